//! The format `raw`: the value is the payload alone, byte for byte. What else the event says is in the headers:
//! `fieldpost-type`, `fieldpost-source-type`, `fieldpost-source-id`, and the payload's media type in `content-type`.

use super::headers::{CONTENT_TYPE, Headers};
use crate::event::{Event, Payload};

/// The payload as the producer gave it.
pub(super) fn payload<'e>(event: &Event<'e>) -> &'e [u8] {
    match event.payload {
        Payload::Json(text) => text.as_bytes(),
        Payload::Bytes(bytes) => bytes,
    }
}

/// What the payload is, as far as the agent knows.
pub(super) fn media_type(event: &Event<'_>) -> &'static [u8] {
    match event.payload {
        Payload::Json(_) => b"application/json",
        Payload::Bytes(_) => b"application/octet-stream",
    }
}

pub(super) fn headers<'a>(event: &Event<'a>, headers: &mut Headers<'a>) {
    headers.push(CONTENT_TYPE, media_type(event));
    headers.push("fieldpost-type", event.kind.as_bytes());
    headers.push("fieldpost-source-type", event.source_type.as_bytes());
    headers.push("fieldpost-source-id", event.source_id.as_bytes());
}
