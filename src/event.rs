//! The event: what producers hand in, what the buffer keeps, what Kafka and Redis are told.
//!
//! Pure: no clock, no I/O. An [`Event`] borrows everything, so that admission encodes it straight into a batch
//! and the drain reads it straight out of a decompressed block, without an allocation per event.
//!
//! The stored form is the postcard encoding of [`Event`] (<https://postcard.jamesmunns.com/wire-format>): fields in
//! the order below, integers as varints, strings with a length. A change of the struct is a change of the block
//! format version (`buffer::block::FORMAT`), never less.

use std::borrow::Cow;
use std::fmt;

use jiff::fmt::StdIoWrite;
use jiff::fmt::temporal::DateTimePrinter;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// Longest `id`, `type`, `source_type` and `source_id` in bytes: they become Kafka keys, header values and channel
/// names, and two of them fit an MQTT topic level each many times over.
pub const NAME_BYTES_MAX: usize = 256;

/// Microseconds, always: readers need not guess, and equal lengths sort.
const TIMES: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// Position of an event inside one buffer: gapless, starting at 1, never used twice. 0 means "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    /// Bound of positions: at a million events a second it is reached after 290,000 years.
    pub const MAX: Self = Self(u64::MAX >> 1);

    /// The position behind this one.
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// The position before this one; that of nothing has none before it.
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The position `n` events behind this one.
    pub fn plus(self, n: u64) -> Self {
        Self(self.0.saturating_add(n))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `source_type` of the agent's own events; producers may not use it.
pub const OWN_SOURCE_TYPE: &str = "fieldpost";

/// `type` of the agent's word about losses: see `crate::losses`.
pub const LOSS_TYPE: &str = "fieldpost.loss";

/// The times stamped on an event at admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Wall clock, microseconds since 1970-01-01 UTC; may be wrong while `clock_trusted` is false.
    pub wall_us: i64,
    /// Time since boot including sleep, microseconds: right even when the wall clock is not.
    pub boot_us: u64,
    /// Whether the kernel said that the wall clock is synchronised.
    pub clock_trusted: bool,
}

/// An event's name: the producer's own, else a UUIDv7 made at admission (16 bytes stored instead of 36).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventId<'a> {
    /// Given by the producer.
    Given(&'a str),
    /// Made by the agent.
    Generated([u8; 16]),
}

impl<'a> EventId<'a> {
    /// The id as text. `space` holds the text of a generated id; a given one is returned as it is.
    pub fn text<'s>(&self, space: &'s mut [u8; uuid::fmt::Hyphenated::LENGTH]) -> &'s str
    where
        'a: 's,
    {
        match *self {
            Self::Given(id) => id,
            Self::Generated(bytes) => Uuid::from_bytes(bytes).hyphenated().encode_lower(space),
        }
    }
}

/// What the producer measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload<'a> {
    /// JSON text, passed through byte for byte.
    Json(&'a str),
    /// Anything else; `payload_base64` in the JSON envelope.
    Bytes(&'a [u8]),
}

/// One event as it is stored. Sequence number, epoch and boot id belong to its block (`buffer::block`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event<'a> {
    /// Name for people and for producers that retry; identity is the position.
    #[serde(borrow)]
    pub id: EventId<'a>,
    /// `type`: what happened.
    pub kind: &'a str,
    /// `source_type`: the kind of thing that sent it.
    pub source_type: &'a str,
    /// `source_id`: the one thing that sent it; the Kafka key, hence the unit of order.
    pub source_id: &'a str,
    /// RFC 3339, as the producer gave it; `None` stands for the time of admission.
    pub timestamp: Option<&'a str>,
    /// When the agent took it.
    pub received: Stamp,
    /// The content.
    pub payload: Payload<'a>,
    /// Where it goes. Stored beside the events (`buffer::ways`), not in their encoding.
    #[serde(skip)]
    pub way: Way<'a>,
}

impl Event<'_> {
    /// Appends its time, RFC 3339: the producer's, else that of admission. It holds nothing that JSON escapes.
    pub fn write_time(&self, out: &mut Vec<u8>) {
        match self.timestamp.filter(|text| is_plain(text)) {
            Some(text) => out.extend_from_slice(text.as_bytes()),
            None => {
                let time = jiff::Timestamp::from_microsecond(self.received.wall_us).unwrap_or_default();
                // Writing to a Vec cannot fail.
                let _ = TIMES.print_timestamp(&time, StdIoWrite(out));
            }
        }
    }
}

/// A time in microseconds since 1970 as RFC 3339, with microseconds; one that no calendar has is 1970.
pub fn rfc3339(wall_us: i64) -> String {
    format!("{:.6}", jiff::Timestamp::from_microsecond(wall_us).unwrap_or_default())
}

/// Whether JSON takes a text as it is. Admission parses times; what something else has stored must not break an envelope.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

/// Where an event goes, as its route had it at admission: kept with it, so that no later configuration changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way<'a> {
    /// Its Kafka topic, or the template of it; `None`: that of the configuration, when it is sent.
    pub topic: Option<&'a str>,
    /// Whether no ping tells of it.
    pub is_quiet: bool,
}

impl Way<'_> {
    /// The way of events about which no route says anything else.
    pub const USUAL: Way<'static> = Way { topic: None, is_quiet: false };
}

/// An event on its way in: what a producer may say, before it is validated and stamped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft<'a> {
    /// The producer's own id, if it has one.
    pub id: Option<Cow<'a, str>>,
    /// `type`.
    pub kind: Cow<'a, str>,
    /// `source_type`.
    pub source_type: Cow<'a, str>,
    /// `source_id`.
    pub source_id: Cow<'a, str>,
    /// RFC 3339.
    pub timestamp: Option<Cow<'a, str>>,
    /// The content.
    pub payload: DraftPayload<'a>,
    /// It says where it was in a buffer before, as an export or a dead letter does: its route leaves nothing of it out.
    pub was_taken: bool,
}

/// The content of a [`Draft`]; owned where base64 had to be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DraftPayload<'a> {
    /// JSON text that has been checked to be JSON.
    Json(&'a str),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
}

/// Why a draft cannot become an event. The caller counts it, tells the producer and goes on ([`crate::error::Class::Reject`]).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidEvent {
    /// A required name is empty.
    #[error("`{field}` is empty")]
    Empty {
        /// The event's field.
        field: &'static str,
    },
    /// A name is longer than [`NAME_BYTES_MAX`].
    #[error("`{field}` has {bytes} bytes, at most {NAME_BYTES_MAX} are allowed")]
    TooLong {
        /// The event's field.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A name holds a control character, which no log line, channel or header should carry, or a code point that Unicode
    /// keeps free of characters, which no CloudEvents attribute may hold.
    #[error("`{field}` holds a control character or a Unicode noncharacter")]
    Control {
        /// The event's field.
        field: &'static str,
    },
    /// A name that only the agent itself may use.
    #[error("`source_type` `{OWN_SOURCE_TYPE}` is the agent's own")]
    Reserved,
    /// The time is not RFC 3339.
    #[error("`timestamp` is not an RFC 3339 time such as 2026-03-01T12:00:00Z")]
    Timestamp,
}

impl<'a> Draft<'a> {
    /// Validates names and time and stamps the event.
    ///
    /// # Errors
    /// [`InvalidEvent`]: the draft can never become an event; tell the producer.
    pub fn stamped(&'a self, received: Stamp) -> Result<Event<'a>, InvalidEvent> {
        let id = match &self.id {
            Some(id) => EventId::Given(name("id", id)?),
            None => EventId::Generated(Uuid::now_v7().into_bytes()),
        };
        Ok(Event {
            id,
            kind: name("type", &self.kind)?,
            source_type: name("source_type", &self.source_type)?,
            source_id: name("source_id", &self.source_id)?,
            timestamp: self.timestamp.as_deref().map(timestamp).transpose()?,
            received,
            payload: match &self.payload {
                DraftPayload::Json(text) => Payload::Json(text),
                DraftPayload::Bytes(bytes) => Payload::Bytes(bytes),
            },
            way: Way::USUAL,
        })
    }
}

fn name<'a>(field: &'static str, text: &'a str) -> Result<&'a str, InvalidEvent> {
    if text.is_empty() {
        return Err(InvalidEvent::Empty { field });
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(InvalidEvent::TooLong { field, bytes: text.len() });
    }
    if text.chars().any(|c| c.is_control() || is_noncharacter(c)) {
        return Err(InvalidEvent::Control { field });
    }
    Ok(text)
}

/// U+FDD0 to U+FDEF, and the last two code points of each plane.
fn is_noncharacter(c: char) -> bool {
    matches!(u32::from(c), 0xFDD0..=0xFDEF) || u32::from(c) & 0xFFFE == 0xFFFE
}

/// Accepts RFC 3339 section 5.6 `date-time` with an upper-case or lower-case `T`/`Z`: a full date and time with an
/// offset. jiff takes more (ISO 8601 without seconds, time zone annotations), hence the look at the shape.
fn timestamp(text: &str) -> Result<&str, InvalidEvent> {
    const SHAPE: &[u8; 19] = b"dddd-dd-ddTdd:dd:dd";
    let bytes = text.as_bytes();
    let shaped = bytes.len() > SHAPE.len()
        && SHAPE.iter().zip(bytes).all(|(shape, byte)| match shape {
            b'd' => byte.is_ascii_digit(),
            b'T' => matches!(byte, b'T' | b't'),
            other => byte == other,
        })
        && !bytes.contains(&b'[');
    let parsed = shaped && text.parse::<jiff::Timestamp>().is_ok();
    parsed.then_some(text).ok_or(InvalidEvent::Timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { wall_us: 1_772_366_400_000_000, boot_us: 7, clock_trusted: true };

    fn draft() -> Draft<'static> {
        Draft {
            id: None,
            kind: "reading".into(),
            source_type: "thermometer".into(),
            source_id: "t-1".into(),
            timestamp: Some("2026-03-01T12:00:00+01:00".into()),
            payload: DraftPayload::Json("{\"c\":21.5}"),
            was_taken: false,
        }
    }

    #[test]
    fn a_stamped_event_survives_its_encoding() {
        let mut draft = draft();
        for payload in [DraftPayload::Json("[1]"), DraftPayload::Bytes(vec![0, 255].into())] {
            draft.payload = payload;
            let event = draft.stamped(STAMP).unwrap();
            let bytes = postcard::to_stdvec(&event).unwrap();
            assert_eq!(postcard::from_bytes::<Event<'_>>(&bytes).unwrap(), event);
        }
    }

    #[test]
    fn a_missing_id_becomes_a_uuid_v7() {
        let draft = draft();
        let event = draft.stamped(STAMP).unwrap();
        let mut space = [0; 36];
        let id = Uuid::parse_str(event.id.text(&mut space)).unwrap();
        assert_eq!(id.get_version_num(), 7);
    }

    #[test]
    fn names_are_checked() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for (bad, wanted) in [
            ("", InvalidEvent::Empty { field: "source_id" }),
            ("a\nb", InvalidEvent::Control { field: "source_id" }),
            ("a\u{FDD0}", InvalidEvent::Control { field: "source_id" }),
            ("a\u{1FFFE}", InvalidEvent::Control { field: "source_id" }),
            (&long, InvalidEvent::TooLong { field: "source_id", bytes: NAME_BYTES_MAX + 1 }),
        ] {
            let draft = Draft { source_id: bad.into(), ..draft() };
            assert_eq!(draft.stamped(STAMP), Err(wanted));
        }
    }

    #[test]
    fn times_must_be_rfc_3339() {
        for good in ["2026-03-01T12:00:00Z", "2026-03-01t12:00:00.123456789z", "2026-03-01T12:00:00-05:30"] {
            assert_eq!(timestamp(good), Ok(good));
        }
        for bad in [
            "",
            "now",
            "1772366400",
            "2026-03-01",
            "2026-03-01T12:00Z",
            "2026-03-01T12:00:00",
            "2026-13-01T12:00:00Z",
            "2026-03-01T12:00:00+01:00[Europe/Berlin]",
        ] {
            assert_eq!(timestamp(bad), Err(InvalidEvent::Timestamp), "{bad}");
        }
    }
}
