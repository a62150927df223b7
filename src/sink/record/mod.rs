//! From a stored event to a Kafka record: topic, key, headers and the value in the configured format. Nothing is
//! allocated per event.

pub mod avro;
mod cloudevents;
pub mod envelope;
pub mod headers;
mod raw;
pub mod schema;
pub mod templates;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;
use uuid::fmt::Hyphenated;

use thiserror::Error;

use super::Record;
use super::registry::Schemas;
use crate::buffer::LogName;
use crate::buffer::block::Origin;
use crate::event::{Event, LOSS_TYPE, OWN_SOURCE_TYPE, Seq};
use crate::log::Limited;
use crate::stats::Stats;
use headers::Headers;
use templates::{Allowed, Field, TOPIC_FIELDS, Template};

/// How often it is said that events go to the fallback topic.
const FALLBACK_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What the value of a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON with every field of the event: [`envelope`].
    Envelope,
    /// CloudEvents 1.0, binary mode: the payload, and the attributes in headers.
    CloudEvents,
    /// The payload alone.
    Raw,
    /// The envelope as Avro, behind its id in a Schema Registry.
    Avro,
}

/// Which time a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timestamp {
    /// The time of sending: retention counts from the arrival in Kafka (librdkafka 1238, openmeter 5005).
    Send,
    /// The event's own time.
    Event,
}

/// Which way an event goes to Kafka (`kafka.order`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// As it comes: all events of `fifo`, the fresh ones of `live_first`.
    Live,
    /// Behind fresher events; its records say so in a header.
    Backlog,
}

/// What records look like and where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What the value is.
    pub format: Format,
    /// The topic of an event.
    pub topic: Template,
    /// Which topics that may be; none: any.
    pub allowed: Option<Allowed>,
    /// The topic of the agent's word about losses; none: as for every event.
    pub loss_topic: Option<Template>,
    /// The topic of the backlog lane; none: as for every event.
    pub backlog_topic: Option<Template>,
    /// The key of an event; none: records have no key.
    pub key: Option<Template>,
    /// Headers that every record has besides its own, at most [`headers::STATIC_COUNT_MAX`].
    pub headers: Vec<(String, String)>,
    /// Which time a record carries.
    pub timestamp: Timestamp,
}

impl Options {
    /// Envelopes to `topic` under the source's key: the defaults.
    pub fn new(topic: Template) -> Self {
        Self {
            format: Format::Envelope,
            topic,
            allowed: None,
            loss_topic: None,
            backlog_topic: None,
            key: Some(Template::field(Field::SourceId)),
            headers: Vec::new(),
            timestamp: Timestamp::Send,
        }
    }
}

/// The schema's id for the event's topic is not known yet. Wait for [`Formatter::ready`] and format it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the schema registry has not told the id of the topic's schema")]
pub struct Unready;

/// Makes records; keeps its buffers between calls.
#[derive(Debug)]
pub struct Formatter {
    options: Options,
    stats: Arc<Stats>,
    fallback_log: Limited,
    /// The last event that was counted as one for the fallback topic: it may be formatted again.
    fallback_counted: Seq,
    names: Vec<LogName>,
    agent: String,
    log: String,
    origin: Option<Origin>,
    epoch: Vec<u8>,
    boot: String,
    topic: String,
    /// The last template of a route, as text and parsed: neighbours have the same.
    routed: Option<(String, Template)>,
    key: String,
    source: Vec<u8>,
    time: Vec<u8>,
    seq: Vec<u8>,
    boot_us: Vec<u8>,
    value: Vec<u8>,
    schemas: Option<Schemas>,
    id: [u8; Hyphenated::LENGTH],
}

impl Formatter {
    /// For the records of one buffer, whose events are named by `names` ([`Buffer::logs`](crate::buffer::Buffer::logs)).
    pub fn new(options: Options, names: &[LogName], stats: Arc<Stats>) -> Self {
        Self {
            options,
            stats,
            fallback_log: Limited::new(FALLBACK_LOG_INTERVAL),
            fallback_counted: Seq(0),
            names: names.to_vec(),
            agent: String::new(),
            log: String::new(),
            origin: None,
            epoch: Vec::new(),
            boot: String::new(),
            topic: String::new(),
            routed: None,
            key: String::new(),
            source: Vec::new(),
            time: Vec::new(),
            seq: Vec::new(),
            boot_us: Vec::new(),
            value: Vec::new(),
            schemas: None,
            id: [0; Hyphenated::LENGTH],
        }
    }

    /// Takes the schemas' ids from there: for [`Format::Avro`].
    pub fn with_schemas(self, schemas: Option<Schemas>) -> Self {
        Self { schemas, ..self }
    }

    /// Returns when it is worth formatting an event again that was [`Unready`].
    ///
    /// Cancel safe: yes.
    pub async fn ready(&mut self) {
        match &mut self.schemas {
            Some(schemas) => schemas.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Formats `event` and hands the record to `send`, whose answer it returns.
    ///
    /// # Errors
    /// [`Unready`]: nothing was sent.
    pub fn format<T>(
        &mut self,
        seq: Seq,
        origin: Origin,
        lane: Lane,
        event: &Event<'_>,
        send: impl FnOnce(&Record<'_>) -> T,
    ) -> Result<T, Unready> {
        self.name_origin(origin);
        self.choose_topic(seq, lane, event);
        number(&mut self.seq, seq.0);
        number(&mut self.boot_us, event.received.boot_us);
        self.time.clear();
        event.write_time(&mut self.time);
        let id = event.id.text(&mut self.id);
        if let Some(key) = &self.options.key {
            key.key(event, id, &mut self.key);
        }
        let mut headers = Headers::new();
        for (name, value) in [
            ("fieldpost-id", id.as_bytes()),
            ("fieldpost-timestamp", &self.time),
            ("fieldpost-agent", self.agent.as_bytes()),
            ("fieldpost-log", self.log.as_bytes()),
            ("fieldpost-epoch", &self.epoch),
            ("fieldpost-seq", &self.seq),
            ("fieldpost-boot", self.boot.as_bytes()),
            ("fieldpost-boot-us", &self.boot_us),
            ("fieldpost-clock", if event.received.clock_trusted { b"trusted" } else { b"untrusted" }),
        ] {
            headers.push(name, value);
        }
        if lane == Lane::Backlog {
            headers.push("fieldpost-backlog", b"1");
        }
        let payload = match self.options.format {
            Format::Envelope => {
                envelope::write(event, id, &self.time, &mut self.value);
                &self.value
            }
            Format::Avro => {
                let schema_id =
                    self.schemas.as_mut().and_then(|schemas| schemas.id(&self.topic)).ok_or(Unready)?;
                avro::write(schema_id, event, id, &self.time, &mut self.value);
                &self.value
            }
            Format::CloudEvents => {
                cloudevents::source(&self.agent, event, &mut self.source);
                cloudevents::headers(event, id, &self.time, &self.source, &mut headers);
                raw::payload(event)
            }
            Format::Raw => {
                raw::headers(event, &mut headers);
                raw::payload(event)
            }
        };
        for (name, value) in &self.options.headers {
            headers.push(name, value.as_bytes());
        }
        Ok(send(&Record {
            topic: &self.topic,
            key: self.options.key.as_ref().map(|_| self.key.as_bytes()),
            payload,
            headers: headers.as_slice(),
            timestamp_ms: match self.options.timestamp {
                Timestamp::Send => None,
                Timestamp::Event => Some(event_ms(event)),
            },
        }))
    }

    /// Makes the names that events of one start of the agent share.
    fn name_origin(&mut self, origin: Origin) {
        if self.origin == Some(origin) {
            return;
        }
        self.origin = Some(origin);
        number(&mut self.epoch, u64::from(origin.epoch));
        self.boot = Uuid::from_bytes(origin.boot).to_string();
        if let Some(name) = LogName::of(&self.names, origin.epoch) {
            (self.agent, self.log) = (name.agent.clone(), name.log.to_string());
        }
    }

    fn choose_topic(&mut self, seq: Seq, lane: Lane, event: &Event<'_>) {
        let Options { topic, allowed, loss_topic, backlog_topic, .. } = &self.options;
        let is_loss = event.source_type == OWN_SOURCE_TYPE && event.kind == LOSS_TYPE;
        if let Some(template) = loss_topic.as_ref().filter(|_| is_loss) {
            // Named by the operator for this alone: no list speaks of it.
            template.topic(event, &mut self.topic);
            return;
        }
        if let Some(template) = backlog_topic.as_ref().filter(|_| lane == Lane::Backlog) {
            template.topic(event, &mut self.topic);
            return;
        }
        match event.way.topic {
            // Named by the operator, too.
            Some(routed) if !routed.contains('{') => return routed.clone_into(&mut self.topic),
            Some(routed) => {
                if self.routed.as_ref().is_none_or(|(text, _)| text != routed) {
                    let template = Template::parse(routed, TOPIC_FIELDS);
                    self.routed = template.ok().map(|template| (routed.to_owned(), template));
                }
                // What a later version wrote and this one cannot read goes where all others go.
                let template = self.routed.as_ref().map_or(topic, |(_, template)| template);
                template.topic(event, &mut self.topic);
            }
            None => topic.topic(event, &mut self.topic),
        }
        let Some(allowed) = allowed.as_ref().filter(|allowed| !allowed.contains(&self.topic)) else { return };
        if seq > self.fallback_counted {
            self.fallback_counted = seq;
            self.stats.fallback_topic.add(1);
            if let Some(suppressed) = self.fallback_log.allow() {
                tracing::warn!(
                    topic = self.topic,
                    fallback = allowed.fallback(),
                    suppressed,
                    "an event's topic is not in kafka.topics_allowed: it goes to kafka.fallback_topic"
                );
            }
        }
        allowed.fallback().clone_into(&mut self.topic);
    }
}

/// The time of its record by [`Timestamp::Event`], in milliseconds since 1970.
pub fn event_ms(event: &Event<'_>) -> i64 {
    // The text was parsed at admission; what an older format let through falls back to the time of admission.
    let parsed = event.timestamp.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    parsed.map_or(event.received.wall_us / 1000, jiff::Timestamp::as_millisecond)
}

/// The envelope of an event as [`Format::Envelope`] has it, in place of what `out` held.
pub fn write_envelope(event: &Event<'_>, out: &mut Vec<u8>) {
    let (mut space, mut time) = ([0; Hyphenated::LENGTH], Vec::new());
    event.write_time(&mut time);
    envelope::write(event, event.id.text(&mut space), &time, out);
}

fn number(out: &mut Vec<u8>, n: u64) {
    out.clear();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{n}");
}
