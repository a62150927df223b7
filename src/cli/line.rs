//! An event that was kept as a line in the form that the socket takes (`ingest::form`).

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::cli::text;
use crate::event::{Event, Payload, Seq};

/// Where an event was: the field `fieldpost` of the line, which nobody who reads it back keeps.
#[derive(Debug, Clone, Serialize)]
pub(in crate::cli) struct Place<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) log: Option<Uuid>,
    pub(in crate::cli) epoch: u32,
    pub(in crate::cli) seq: Seq,
    /// Why it is not in Kafka.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) dead_letter: Option<Refusal<'a>>,
}

/// What Kafka said to it.
#[derive(Debug, Clone, Serialize)]
pub(in crate::cli) struct Refusal<'a> {
    pub(in crate::cli) topic: &'a str,
    pub(in crate::cli) code: i32,
    pub(in crate::cli) reason: &'a str,
    pub(in crate::cli) attempts: u32,
    /// RFC 3339.
    pub(in crate::cli) refused: String,
}

#[derive(Serialize)]
struct Form<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    source_type: &'a str,
    source_id: &'a str,
    timestamp: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    fieldpost: Origin<'a>,
}

#[derive(Serialize)]
struct Origin<'a> {
    #[serde(flatten)]
    place: Place<'a>,
    received: &'a str,
    clock: &'static str,
}

/// Writes the line, its end included. An event without a time of its own gets that of its receipt, as in Kafka.
///
/// # Errors
/// `out` cannot be written.
pub(in crate::cli) fn write(event: &Event<'_>, place: Place<'_>, out: &mut impl Write) -> io::Result<()> {
    let received = text::time(event.received.wall_us);
    let mut space = [0; uuid::fmt::Hyphenated::LENGTH];
    let (payload, bytes) = match event.payload {
        // A line end in valid JSON is a space between tokens, and here it would end the event.
        Payload::Json(text) => (Some(text.replace(['\n', '\r'], " ")), None),
        Payload::Bytes(bytes) => (None, Some(STANDARD.encode(bytes))),
    };
    let form = Form {
        id: event.id.text(&mut space),
        kind: event.kind,
        source_type: event.source_type,
        source_id: event.source_id,
        timestamp: event.timestamp.unwrap_or(&received),
        payload: payload.as_deref().map(serde_json::from_str).transpose()?,
        payload_base64: bytes,
        fieldpost: Origin { place, received: &received, clock: text::clock(event.received) },
    };
    serde_json::to_writer(&mut *out, &form)?;
    out.write_all(b"\n")
}
