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

/// What an envelope in Avro says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `id`.
    pub id: &'a str,
    /// `type`.
    pub kind: &'a str,
    /// `source_type`.
    pub source_type: &'a str,
    /// `source_id`.
    pub source_id: &'a str,
    /// `timestamp`, RFC 3339.
    pub timestamp: &'a str,
    /// `payload_json` or `payload_bytes`.
    pub payload: Payload<'a>,
}

/// The envelope in a record's value, whatever its schema's id; `None`: it is not one of this version from the first byte to
/// the last. Takes no memory, whatever the lengths in it say.
pub fn read(value: &[u8]) -> Option<Envelope<'_>> {
    let (&MAGIC, rest) = value.split_first()? else { return None };
    let mut rest = rest.get(size_of::<u32>()..)?;
    if read_long(&mut rest)? != i64::from(ENVELOPE_VERSION) {
        return None;
    }
    let [id, kind, source_type, source_id, timestamp] = [(); 5].map(|()| read_text(&mut rest));
    let json = (read_long(&mut rest)? == SOME).then(|| read_text(&mut rest));
    let is_bytes = read_long(&mut rest)? == SOME;
    let payload = match (json, is_bytes) {
        (Some(json), false) => Payload::Json(json?),
        (None, true) => Payload::Bytes(read_bytes(&mut rest)?),
        _ => return None,
    };
    let envelope = Envelope {
        id: id?,
        kind: kind?,
        source_type: source_type?,
        source_id: source_id?,
        timestamp: timestamp?,
        payload,
    };
    rest.is_empty().then_some(envelope)
}

fn read_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(read_bytes(rest)?).ok()
}

fn read_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(read_long(rest)?).ok()?;
    let (content, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(content)
}

/// As [`long`] writes it, in ten bytes at most.
fn read_long(rest: &mut &[u8]) -> Option<i64> {
    let mut n = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((n >> 1).cast_signed() ^ -(n & 1).cast_signed());
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventId, Stamp, Way};

    fn written(payload: Payload<'_>) -> Vec<u8> {
        let event = Event {
            id: EventId::Given("e1"),
            kind: "reading",
            source_type: "mètre",
            source_id: "m-1",
            timestamp: None,
            received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: true },
            payload,
            way: Way::USUAL,
        };
        let mut out = Vec::new();
        write(7, &event, "e1", b"2026-03-01T12:00:00Z", &mut out);
        out
    }

    #[test]
    fn what_is_written_is_read_and_nothing_less_or_more() {
        let long = format!("\"{}\"", "x".repeat(100_000));
        for payload in [
            Payload::Json("{\"c\":1}"),
            Payload::Json(&long),
            Payload::Bytes(b"\x00\xff"),
            Payload::Bytes(b""),
        ] {
            let value = written(payload);
            let wanted = Envelope {
                id: "e1",
                kind: "reading",
                source_type: "mètre",
                source_id: "m-1",
                timestamp: "2026-03-01T12:00:00Z",
                payload,
            };
            assert_eq!(read(&value), Some(wanted));
            assert_eq!(read(&[&value[..], b"\0"].concat()), None);
            for end in (0..value.len().min(60)).chain([value.len() - 1]) {
                assert_eq!(read(&value[..end]), None, "{end}");
            }
        }
        // Another version, a length beyond the end, a number without one, and a text that is none.
        for (at, bytes) in
            [(5, &[4][..]), (6, &[0xfe, 0xff, 0xff, 0xff, 0x0f]), (6, &[0xff; 12]), (7, &[0xff])]
        {
            let mut value = written(Payload::Json("1"));
            value.splice(at..at + bytes.len(), bytes.iter().copied());
            assert_eq!(read(&value), None, "{at} {bytes:?}");
        }
    }

    #[test]
    fn numbers_come_back() {
        for n in [0, 1, -1, 63, 64, -65, i64::from(u32::MAX), i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            long(n, &mut out);
            let mut rest = &out[..];
            assert_eq!((read_long(&mut rest), rest.len()), (Some(n), 0));
        }
    }
}
