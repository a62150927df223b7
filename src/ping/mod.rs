//! Pings: the light messages for realtime views, and the bounded way to them. Best effort, never waited for.
//!
//! A ping is rendered once, into one allocation, and carries what it is published on and what a stream's entry holds.

mod outbox;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use uuid::fmt::Hyphenated;

use crate::event::{Event, Payload};
use crate::stats::Stats;

pub use outbox::Outbox;
pub use template::{ChannelTemplate, ChannelTemplateError};

/// What an event's ping is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Channel of the event's source; `None`: not published there.
    pub channel: Option<ChannelTemplate>,
    /// Channel of many sources, on which the same is published again.
    pub aggregate: Option<ChannelTemplate>,
    /// The stream to which an entry is added.
    pub stream: Option<StreamPlan>,
}

/// What goes to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPlan {
    /// How the stream is named.
    pub name: ChannelTemplate,
    /// Largest payload that goes along, in bytes; `None`: none does.
    pub payload_bytes_max: Option<usize>,
}

impl Plan {
    /// Whether anything is published.
    pub fn publishes(&self) -> bool {
        self.channel.is_some() || self.aggregate.is_some()
    }

    /// Counts pings that could not be offered.
    fn count_dropped(&self, stats: &Stats, n: u64) {
        if self.publishes() {
            stats.pings_dropped.queue_full.add(n);
        }
        if self.stream.is_some() {
            stats.stream_entries_dropped.queue_full.add(n);
        }
    }

    /// The ping of `event`, offered at `since`. Its payload takes its bytes out of `room` while the ping lives, or is left out.
    pub fn ping(&self, event: &Event<'_>, since: Instant, room: &Arc<Semaphore>) -> Ping {
        let mut space = [0; Hyphenated::LENGTH];
        let id = event.id.text(&mut space);
        let publishes = self.publishes();
        let mut text = Rendered::with_capacity(self.length(event, id));
        for template in [&self.channel, &self.aggregate] {
            text.template(template.as_ref(), event);
        }
        if publishes {
            text.message(event, id);
        }
        text.end();
        for name in [event.kind, event.source_type, event.source_id] {
            text.add(name.as_bytes());
            text.end();
        }
        text.template(self.stream.as_ref().map(|stream| &stream.name), event);
        let mut payload = (Carried::Unwanted, None);
        if let Some(stream) = &self.stream {
            text.add(id.as_bytes());
            text.end();
            event.write_time(&mut text.bytes);
            text.end();
            if let Some(bytes_max) = stream.payload_bytes_max {
                payload = text.payload(event.payload, bytes_max, room);
            }
        }
        let (payload, permit) = payload;
        Ping { since, text: Bytes::from(text.bytes), ends: text.ends, payload, _room: permit }
    }

    /// Bytes of the text without the payload; more where names need escapes in JSON.
    fn length(&self, event: &Event<'_>, id: &str) -> usize {
        const TIME: usize = "2026-03-01T12:00:00.000001Z".len();
        const MESSAGE: usize = r#"{"id":"","type":"","source_id":""}"#.len();
        let template = |template: Option<&ChannelTemplate>| -> usize {
            template.map_or(0, |template| template.parts(event).map(str::len).sum())
        };
        let mut length = template(self.channel.as_ref()) + template(self.aggregate.as_ref());
        if self.publishes() {
            length += MESSAGE + id.len() + event.kind.len() + event.source_id.len();
        }
        length += event.kind.len() + event.source_type.len() + event.source_id.len();
        if let Some(stream) = &self.stream {
            let time = event.timestamp.map_or(TIME, str::len);
            length += template(Some(&stream.name)) + id.len() + time;
        }
        length
    }
}

/// The parts of a ping's text, in their order. The first six are what publishing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Channel,
    Aggregate,
    Message,
    Kind,
    SourceType,
    SourceId,
    Stream,
    Id,
    Time,
    Payload,
}

const PARTS: usize = Part::Payload as usize + 1;

/// A text in the making; parts that were not written are empty.
struct Rendered {
    bytes: Vec<u8>,
    ends: [u32; PARTS],
    part: usize,
}

impl Rendered {
    fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: [0; PARTS], part: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Ends a part, and with it, for now, all that follow.
    fn end(&mut self) {
        let end = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.ends.iter_mut().skip(self.part).for_each(|other| *other = end);
        self.part += 1;
    }

    fn template(&mut self, template: Option<&ChannelTemplate>, event: &Event<'_>) {
        template
            .into_iter()
            .flat_map(|template| template.parts(event))
            .for_each(|part| self.add(part.as_bytes()));
        self.end();
    }

    fn message(&mut self, event: &Event<'_>, id: &str) {
        #[derive(Serialize)]
        struct Message<'a> {
            id: &'a str,
            #[serde(rename = "type")]
            kind: &'a str,
            source_id: &'a str,
        }
        let message = Message { id, kind: event.kind, source_id: event.source_id };
        // Three strings always encode.
        let _ = serde_json::to_writer(&mut self.bytes, &message);
    }

    fn payload(
        &mut self,
        payload: Payload<'_>,
        bytes_max: usize,
        room: &Arc<Semaphore>,
    ) -> (Carried, Option<OwnedSemaphorePermit>) {
        let (length, carried) = match payload {
            Payload::Json(text) => (text.len(), text.len()),
            Payload::Bytes(bytes) => (bytes.len(), bytes.len().div_ceil(3) * 4),
        };
        if length > bytes_max {
            return (Carried::TooLarge(length), None);
        }
        let wanted = u32::try_from(carried).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(room).try_acquire_many_owned(wanted) else {
            return (Carried::NoRoom(length), None);
        };
        self.bytes.reserve_exact(carried);
        let kind = match payload {
            Payload::Json(text) => {
                self.add(text.as_bytes());
                Carried::Json
            }
            Payload::Bytes(bytes) => {
                let start = self.bytes.len();
                self.bytes.resize(start + carried, 0);
                // The space is exactly what standard base64 with padding takes.
                let _ = STANDARD.encode_slice(bytes, self.bytes.get_mut(start..).unwrap_or_default());
                Carried::Base64
            }
        };
        self.end();
        (kind, Some(permit))
    }
}

/// What a ping has of its event's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Nobody asked for it.
    Unwanted,
    /// JSON, as it came.
    Json,
    /// Bytes, in base64.
    Base64,
    /// Nothing: it has so many bytes, which is more than may go along.
    TooLarge(usize),
    /// Nothing: it has so many bytes, and those that wait leave no room for it.
    NoRoom(usize),
}

/// The light message to Redis.
#[derive(Debug)]
pub struct Ping {
    /// When it was offered: it goes out soon after that or not at all.
    pub since: Instant,
    text: Bytes,
    ends: [u32; PARTS],
    payload: Carried,
    _room: Option<OwnedSemaphorePermit>,
}

impl Ping {
    fn part(&self, part: Part) -> &[u8] {
        let end = |at: usize| self.ends.get(at).map_or(0, |end| *end as usize);
        let at = part as usize;
        let start = at.checked_sub(1).map_or(0, end);
        self.text.get(start..end(at)).unwrap_or_default()
    }

    fn some(&self, part: Part) -> Option<&[u8]> {
        Some(self.part(part)).filter(|bytes| !bytes.is_empty())
    }

    /// The channels on which [`Ping::message`] is published.
    pub fn channels(&self) -> impl Iterator<Item = &[u8]> {
        [Part::Channel, Part::Aggregate].into_iter().filter_map(|part| self.some(part))
    }

    /// Whether it is published.
    pub fn is_published(&self) -> bool {
        self.channels().next().is_some()
    }

    /// `{"id":…,"type":…,"source_id":…}`, encoded.
    pub fn message(&self) -> &[u8] {
        self.part(Part::Message)
    }

    /// The stream that gets an entry.
    pub fn stream(&self) -> Option<&[u8]> {
        self.some(Part::Stream)
    }

    /// Name and value of each field of the stream's entry, but for the payload.
    pub fn fields(&self) -> [(&'static str, &[u8]); 5] {
        [
            ("event_type", self.part(Part::Kind)),
            ("aggregate_id", self.part(Part::SourceId)),
            ("source_type", self.part(Part::SourceType)),
            ("id", self.part(Part::Id)),
            ("timestamp", self.part(Part::Time)),
        ]
    }

    /// What it has of the payload, and that.
    pub fn payload(&self) -> (Carried, &[u8]) {
        (self.payload, self.part(Part::Payload))
    }

    /// The source and type that it is about, the same for pings that stand for each other.
    pub fn subject(&self) -> Subject {
        let end = |part: Part| self.ends.get(part as usize).map_or(0, |end| *end as usize);
        let names = end(Part::Message)..end(Part::SourceId);
        let names = if names.end <= self.text.len() { self.text.slice(names) } else { Bytes::new() };
        Subject { names, lengths: (self.part(Part::Kind).len(), self.part(Part::SourceType).len()) }
    }

    /// What publishing needs of it, and nothing for a stream: a copy, so that it holds no payload.
    #[must_use]
    pub fn without_stream(&self) -> Self {
        let mut ends = self.ends;
        let end = ends.get(Part::SourceId as usize).copied().unwrap_or_default();
        ends.iter_mut().skip(Part::Stream as usize).for_each(|other| *other = end);
        let text = Bytes::copy_from_slice(self.text.get(..end as usize).unwrap_or_default());
        Self { since: self.since, text, ends, payload: Carried::Unwanted, _room: None }
    }
}

/// A type of a source's events.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Type, source type and source id.
    names: Bytes,
    /// Of the first two, which tell where each begins.
    lengths: (usize, usize),
}

/// Where pings go, of events whose way is not quiet: cloned into the stage that offers them (`redis.ping_after`).
#[derive(Debug, Clone)]
pub struct Pings {
    /// The sink's bounded queue.
    pub queue: mpsc::Sender<Ping>,
    /// What they are made of.
    pub plan: Arc<Plan>,
    /// Bytes that payloads may take which wait.
    pub room: Arc<Semaphore>,
    /// Where dropped pings are counted.
    pub stats: Arc<Stats>,
}

impl Pings {
    /// Offers a ping for each event. What does not fit is dropped and counted; nothing waits.
    pub fn offer<'e>(&self, events: impl Iterator<Item = Event<'e>>) {
        let now = Instant::now();
        for event in events.filter(|event| !event.way.is_quiet) {
            // Order: a place first, so that a full queue costs no rendering.
            match self.queue.try_reserve() {
                Ok(place) => place.send(self.plan.ping(&event, now, &self.room)),
                Err(_) => self.plan.count_dropped(&self.stats, 1),
            }
        }
    }
}
