//! The file of one letter.
//!
//! ```text
//! fieldpost letter 1 0a1b2c3d\n     format, CRC-32 in hex of everything behind this line
//! {"agent":…}\n                     where the event was, what Kafka said, the event but for its payload
//! …                                 the payload, byte for byte, to the end of the file
//! ```
//!
//! The first line means the same in every format, so that a later one is known for what it is. Fields that the header of
//! a later version adds are passed over.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;
use uuid::Uuid;

use super::{Letter, Name};
use crate::event::{Event, EventId, Payload, Seq, Stamp, Way};

/// Version of the file.
const FORMAT: u32 = 1;

/// What every letter begins with.
const MAGIC: &str = "fieldpost letter ";

/// Longest first line; ours has 28 bytes.
const FIRST_LINE_MAX: usize = 64;

/// Longest reason that is kept in bytes: a broker's sentence, not its stack trace.
const REASON_BYTES_MAX: usize = 1024;

/// What is known of a letter but its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head<'a> {
    /// The agent that took the event.
    pub agent: Cow<'a, str>,
    /// The buffer in which the event was.
    pub log: Uuid,
    /// The start of the agent in which it was taken.
    pub epoch: u32,
    /// Its position.
    pub seq: Seq,
    /// Where it should have gone.
    pub topic: Cow<'a, str>,
    /// Why Kafka did not take it, in words.
    pub reason: Cow<'a, str>,
    /// The same as Kafka's error code.
    pub code: i32,
    /// How often it was sent.
    pub attempts: u32,
    /// When it was given up.
    pub refused: Stamp,
    /// The event's name; one that the agent made is text here.
    pub id: Cow<'a, str>,
    /// `type`.
    #[serde(rename = "type")]
    pub kind: Cow<'a, str>,
    /// `source_type`.
    pub source_type: Cow<'a, str>,
    /// `source_id`.
    pub source_id: Cow<'a, str>,
    /// RFC 3339, as the producer gave it.
    pub timestamp: Option<Cow<'a, str>>,
    /// When the agent took the event.
    pub received: Stamp,
    /// Whether the payload is JSON.
    pub is_json: bool,
}

/// A letter as it was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Everything but the payload.
    pub head: Head<'static>,
    payload: StoredPayload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum StoredPayload {
    Json(String),
    Bytes(Vec<u8>),
}

/// Why a letter cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// The file is not what was written; the event is lost as far as this store goes.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// A later version wrote it.
    #[error("in letter format {0}, which this version does not know")]
    Newer(u32),
}

impl Stored {
    /// The event as it was; a name that the agent made comes back as text.
    pub fn event(&self) -> Event<'_> {
        let head = &self.head;
        Event {
            id: EventId::Given(&head.id),
            kind: &head.kind,
            source_type: &head.source_type,
            source_id: &head.source_id,
            timestamp: head.timestamp.as_deref(),
            received: head.received,
            payload: match &self.payload {
                StoredPayload::Json(text) => Payload::Json(text),
                StoredPayload::Bytes(bytes) => Payload::Bytes(bytes),
            },
            way: Way::USUAL,
        }
    }
}

/// The two parts of the file: the lines in front, and the payload.
pub(super) fn encode<'a>(letter: &Letter<'a>) -> serde_json::Result<(Vec<u8>, &'a [u8])> {
    let event = letter.event;
    let mut space = [0; uuid::fmt::Hyphenated::LENGTH];
    let (payload, is_json) = match event.payload {
        Payload::Json(text) => (text.as_bytes(), true),
        Payload::Bytes(bytes) => (bytes, false),
    };
    let reason_end = letter.reason.floor_char_boundary(REASON_BYTES_MAX);
    let head = Head {
        agent: letter.agent.into(),
        log: letter.log,
        epoch: letter.epoch,
        seq: letter.seq,
        topic: letter.topic.into(),
        reason: letter.reason.get(..reason_end).unwrap_or_default().into(),
        code: letter.code,
        attempts: letter.attempts,
        refused: letter.refused_at,
        id: event.id.text(&mut space).into(),
        kind: event.kind.into(),
        source_type: event.source_type.into(),
        source_id: event.source_id.into(),
        timestamp: event.timestamp.map(Cow::from),
        received: event.received,
        is_json,
    };
    let mut head = serde_json::to_vec(&head)?;
    head.push(b'\n');
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head);
    crc.update(payload);
    let mut lines = format!("{MAGIC}{FORMAT} {:08x}\n", crc.finalize()).into_bytes();
    lines.append(&mut head);
    Ok((lines, payload))
}

/// Reads the whole file of the letter `name` back.
///
/// # Errors
/// [`Unreadable`].
pub(super) fn decode(name: Name, mut bytes: Vec<u8>) -> Result<Stored, Unreadable> {
    use Unreadable::{Damaged, Newer};
    let begin = bytes.get(..bytes.len().min(FIRST_LINE_MAX)).unwrap_or_default();
    let end = memchr::memchr(b'\n', begin).ok_or(Damaged("its first line is missing"))?;
    let line = begin.get(..end).and_then(|line| str::from_utf8(line).ok());
    let line = line.and_then(|line| line.strip_prefix(MAGIC)).ok_or(Damaged("it is not a letter"))?;
    let (format, crc) = line.split_once(' ').unwrap_or((line, ""));
    match format.parse() {
        Ok(FORMAT) => {}
        Ok(format) if format > FORMAT => return Err(Newer(format)),
        _ => return Err(Damaged("its format is not a number")),
    }
    let crc = u32::from_str_radix(crc, 16).map_err(|_| Damaged("its checksum is not a number"))?;
    let body = bytes.get(end + 1..).unwrap_or_default();
    if crc32fast::hash(body) != crc {
        return Err(Damaged("the checksum does not fit: it was changed or cut off"));
    }
    // From here on only a writer's mistake or a hand-made file can be wrong.
    let head_end = memchr::memchr(b'\n', body).ok_or(Damaged("its header has no end"))?;
    let head: Head<'static> = serde_json::from_slice(body.get(..head_end).unwrap_or_default())
        .map_err(|_| Damaged("its header cannot be read"))?;
    if (Name { log: head.log, seq: head.seq }) != name {
        return Err(Damaged("its name is that of another letter"));
    }
    bytes.drain(..=end + 1 + head_end);
    let payload = if head.is_json {
        let text = String::from_utf8(bytes).map_err(|_| Damaged("its payload is not text"))?;
        // Whoever reads it writes it as a part of JSON.
        serde_json::from_str::<&RawValue>(&text).map_err(|_| Damaged("its payload is not JSON"))?;
        StoredPayload::Json(text)
    } else {
        StoredPayload::Bytes(bytes)
    };
    Ok(Stored { head, payload })
}
