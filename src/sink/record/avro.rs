//! The format `avro`: the envelope as Avro, behind the five bytes that Schema Registry's readers expect: 0, and the
//! schema's id (u32 big-endian). The schema is [`super::schema::AVRO`]; fields in its order, by Avro 1.12's binary encoding.

use super::envelope::ENVELOPE_VERSION;
use crate::event::{Event, Payload};

/// Marks the wire format; there is no other version of it.
const MAGIC: u8 = 0;

/// Places in the unions of the two payload fields.
const NULL: i64 = 0;
const SOME: i64 = 1;

/// Writes the record's value in place of what `out` held.
pub(super) fn write(schema_id: u32, event: &Event<'_>, id: &str, time: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.push(MAGIC);
    out.extend_from_slice(&schema_id.to_be_bytes());
    long(i64::from(ENVELOPE_VERSION), out);
    for text in [id, event.kind, event.source_type, event.source_id] {
        bytes(text.as_bytes(), out);
    }
    bytes(time, out);
    match event.payload {
        Payload::Json(text) => {
            long(SOME, out);
            bytes(text.as_bytes(), out);
            long(NULL, out);
        }
        Payload::Bytes(content) => {
            long(NULL, out);
            long(SOME, out);
            bytes(content, out);
        }
    }
}

/// `bytes` and `string`: the length, then the content.
fn bytes(content: &[u8], out: &mut Vec<u8>) {
    // A length in memory is far below 2^63.
    long(i64::try_from(content.len()).unwrap_or(i64::MAX), out);
    out.extend_from_slice(content);
}

/// `int` and `long`: zigzag, then seven bits a byte, the lowest first.
fn long(n: i64, out: &mut Vec<u8>) {
    let mut rest = ((n << 1) ^ (n >> 63)).cast_unsigned();
    loop {
        let [lowest, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            out.push(lowest);
            return;
        }
        out.push(lowest | 0x80);
    }
}
