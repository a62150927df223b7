//! `fieldpost schema`: the schema of the envelope, for the tools of whoever reads the records.

use std::process::ExitCode;

use crate::cli::load;
use crate::sink::record::schema;

/// Print the schema of the envelope that Kafka's records hold
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost schema > envelope.schema.json                       for validators of JSON
  fieldpost schema --format protobuf > envelope.proto           its JSON form is the envelope
  fieldpost schema --format avro > envelope.avsc

docs/formats.md says how the envelope maps to each.

Exit codes: 0 done, 64 wrong command line")]
pub struct Args {
    /// The language of the schema
    #[arg(long, value_enum, default_value_t = Format::JsonSchema)]
    format: Format,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// JSON Schema, draft 2020-12
    JsonSchema,
    /// Avro
    Avro,
    /// Protobuf, proto3
    Protobuf,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        load::print(match self.format {
            Format::JsonSchema => schema::JSON_SCHEMA,
            Format::Avro => schema::AVRO,
            Format::Protobuf => schema::PROTOBUF,
        })
    }
}
