//! The schema of the envelope in three languages, printed by `fieldpost schema`. They change with
//! [`ENVELOPE_VERSION`](super::envelope::ENVELOPE_VERSION) and not without it; docs/formats.md says how the JSON of the envelope maps to each.

/// JSON Schema, draft 2020-12: of the value of a record in the format `envelope`.
pub const JSON_SCHEMA: &str = include_str!("envelope.schema.json");

/// Avro: the same fields; a JSON payload is text.
pub const AVRO: &str = include_str!("envelope.avsc");

/// Protobuf: a message whose JSON form, by the mapping of proto3, is the envelope.
pub const PROTOBUF: &str = include_str!("envelope.proto");

#[cfg(test)]
mod tests;
