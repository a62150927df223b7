//! The format `envelope`, version 1: `{"version":1,"id":…,"type":…,"source_type":…,"source_id":…,"timestamp":…,
//! "payload":…}` in one line; `payload_base64` instead of `payload` for bytes. A JSON payload is passed through byte for
//! byte.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::event::{Event, Payload};

/// Version of the envelope.
pub const ENVELOPE_VERSION: u32 = 1;

/// Writes the envelope of `event` in place of what `out` held.
pub(super) fn write(event: &Event<'_>, id: &str, time: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let _ = write!(out, "{{\"version\":{ENVELOPE_VERSION}");
    for (name, text) in
        [("id", id), ("type", event.kind), ("source_type", event.source_type), ("source_id", event.source_id)]
    {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        // A string always encodes.
        let _ = serde_json::to_writer(&mut *out, text);
    }
    // An RFC 3339 time holds nothing that JSON escapes.
    out.extend_from_slice(b",\"timestamp\":\"");
    out.extend_from_slice(time);
    match event.payload {
        Payload::Json(text) => {
            out.extend_from_slice(b"\",\"payload\":");
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"}");
        }
        Payload::Bytes(bytes) => {
            out.extend_from_slice(b"\",\"payload_base64\":\"");
            let start = out.len();
            out.resize(start + bytes.len().div_ceil(3) * 4, 0);
            // The space is exactly what standard base64 with padding takes.
            let _ = STANDARD.encode_slice(bytes, out.get_mut(start..).unwrap_or_default());
            out.extend_from_slice(b"\"}");
        }
    }
}
