//! From a stored event to a Kafka record: topic, key, JSON envelope, headers.
//!
//! The envelope, version 1: `{"version":1,"id":…,"type":…,"source_type":…,"source_id":…,"timestamp":…,"payload":…}`;
//! `payload_base64` instead of `payload` for bytes. The payload is passed through byte for byte.
//!
//! Headers, all text: `fieldpost-id`, `fieldpost-timestamp` (as in the envelope), the position `fieldpost-agent`,
//! `fieldpost-log`, `fieldpost-epoch`, `fieldpost-seq`, and the time that is right when the wall clock was not:
//! `fieldpost-boot` (the kernel's boot id), `fieldpost-boot-us` (microseconds since then) and `fieldpost-clock`
//! (`trusted` or `untrusted`).

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::fmt::StdIoWrite;
use jiff::fmt::temporal::DateTimePrinter;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::Record;
use super::kafka;
use crate::buffer::LogName;
use crate::buffer::block::Origin;
use crate::event::{Event, LOSS_TYPE, OWN_SOURCE_TYPE, Payload, Seq};

/// Version of the envelope.
pub const ENVELOPE_VERSION: u32 = 1;

/// Longest topic name that Kafka takes.
pub const TOPIC_BYTES_MAX: usize = 249;

const SOURCE_TYPE: &str = "{source_type}";

/// Microseconds, always: readers need not guess, and equal lengths sort.
const TIMES: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// Makes records; keeps its buffers between calls.
#[derive(Debug)]
pub struct Formatter {
    topic_template: String,
    is_topic_fixed: bool,
    /// Where the agent's word about losses goes, if not with the others.
    loss_topic: Option<String>,
    timestamp: kafka::Timestamp,
    names: Vec<LogName>,
    agent: String,
    log: String,
    origin: Option<Origin>,
    epoch: Vec<u8>,
    boot: String,
    topic: String,
    /// Of an event whose route has a template of its own.
    routed: String,
    time: Vec<u8>,
    seq: Vec<u8>,
    boot_us: Vec<u8>,
    payload: Vec<u8>,
    id: [u8; Hyphenated::LENGTH],
}

impl Formatter {
    /// For the records of one buffer, whose events are named by `names` ([`Buffer::logs`](crate::buffer::Buffer::logs)).
    /// `topic` may hold `{source_type}`.
    pub fn new(topic: &str, timestamp: kafka::Timestamp, names: &[LogName]) -> Self {
        Self {
            topic_template: topic.to_owned(),
            is_topic_fixed: !topic.contains(SOURCE_TYPE),
            loss_topic: None,
            timestamp,
            names: names.to_vec(),
            agent: String::new(),
            log: String::new(),
            origin: None,
            epoch: Vec::new(),
            boot: String::new(),
            topic: topic.to_owned(),
            routed: String::new(),
            time: Vec::new(),
            seq: Vec::new(),
            boot_us: Vec::new(),
            payload: Vec::new(),
            id: [0; Hyphenated::LENGTH],
        }
    }

    /// Sends the agent's word about losses to `topic` (`ledger.topic`).
    pub fn with_loss_topic(self, topic: Option<&str>) -> Self {
        Self { loss_topic: topic.map(|topic| topic_name(topic, OWN_SOURCE_TYPE)), ..self }
    }

    /// Formats `event` and hands the record to `send`, whose answer it returns.
    pub fn format<T>(
        &mut self,
        seq: Seq,
        origin: Origin,
        event: &Event<'_>,
        send: impl FnOnce(&Record<'_>) -> T,
    ) -> T {
        if self.origin != Some(origin) {
            self.origin = Some(origin);
            number(&mut self.epoch, u64::from(origin.epoch));
            self.boot = Uuid::from_bytes(origin.boot).to_string();
            if let Some(name) = LogName::of(&self.names, origin.epoch) {
                (self.agent, self.log) = (name.agent.clone(), name.log.to_string());
            }
        }
        let topic: &str = match event.way.topic {
            Some(topic) if !topic.contains(SOURCE_TYPE) => topic,
            Some(template) => {
                self.routed = topic_name(template, event.source_type);
                &self.routed
            }
            None => {
                if !self.is_topic_fixed {
                    self.topic = topic_name(&self.topic_template, event.source_type);
                }
                &self.topic
            }
        };
        number(&mut self.seq, seq.0);
        number(&mut self.boot_us, event.received.boot_us);
        self.time.clear();
        match event.timestamp {
            Some(text) => self.time.extend_from_slice(text.as_bytes()),
            None => rfc3339(event.received.wall_us, &mut self.time),
        }
        let id = event.id.text(&mut self.id);
        envelope(event, id, &self.time, &mut self.payload);
        let clock: &[u8] = if event.received.clock_trusted { b"trusted" } else { b"untrusted" };
        let headers: [(&'static str, &[u8]); 9] = [
            ("fieldpost-id", id.as_bytes()),
            ("fieldpost-timestamp", &self.time),
            ("fieldpost-agent", self.agent.as_bytes()),
            ("fieldpost-log", self.log.as_bytes()),
            ("fieldpost-epoch", &self.epoch),
            ("fieldpost-seq", &self.seq),
            ("fieldpost-boot", self.boot.as_bytes()),
            ("fieldpost-boot-us", &self.boot_us),
            ("fieldpost-clock", clock),
        ];
        let is_loss = event.source_type == OWN_SOURCE_TYPE && event.kind == LOSS_TYPE;
        send(&Record {
            topic: self.loss_topic.as_deref().filter(|_| is_loss).unwrap_or(topic),
            key: event.source_id.as_bytes(),
            payload: &self.payload,
            headers: &headers,
            timestamp_ms: match self.timestamp {
                kafka::Timestamp::Send => None,
                kafka::Timestamp::Event => Some(event_ms(event)),
            },
        })
    }
}

/// The topic of a source type: characters that Kafka does not allow become `_`, so that no event is stuck for its name.
pub fn topic_name(template: &str, source_type: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let part: String = source_type.chars().map(legal).collect();
    let mut topic = template.replace(SOURCE_TYPE, &part);
    topic.truncate(TOPIC_BYTES_MAX);
    topic
}

fn event_ms(event: &Event<'_>) -> i64 {
    // The text was parsed at admission; what an older format let through falls back to the time of admission.
    let parsed = event.timestamp.and_then(|text| text.parse::<Timestamp>().ok());
    parsed.map_or(event.received.wall_us / 1000, Timestamp::as_millisecond)
}

fn number(out: &mut Vec<u8>, n: u64) {
    out.clear();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{n}");
}

fn rfc3339(wall_us: i64, out: &mut Vec<u8>) {
    let time = Timestamp::from_microsecond(wall_us).unwrap_or_default();
    let _ = TIMES.print_timestamp(&time, StdIoWrite(out));
}

fn envelope(event: &Event<'_>, id: &str, time: &[u8], out: &mut Vec<u8>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventId, Stamp, Way};

    const ORIGIN: Origin = Origin { epoch: 4, boot: [9; 16] };

    fn event<'a>(payload: Payload<'a>, timestamp: Option<&'a str>) -> Event<'a> {
        Event {
            id: EventId::Given("e\"1"),
            kind: "reading",
            source_type: "meter/é",
            source_id: "m-1",
            timestamp,
            received: Stamp { wall_us: 1_772_366_400_000_001, boot_us: 77, clock_trusted: false },
            payload,
            way: Way::USUAL,
        }
    }

    fn owned(
        formatter: &mut Formatter,
        event: &Event<'_>,
    ) -> (String, String, Vec<(String, String)>, Option<i64>) {
        formatter.format(Seq(12), ORIGIN, event, |record| {
            assert_eq!(record.key, b"m-1");
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let headers =
                record.headers.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect();
            (record.topic.to_owned(), text(record.payload), headers, record.timestamp_ms)
        })
    }

    #[test]
    fn the_envelope_and_the_headers_carry_every_field() {
        let log = Uuid::from_u128(5);
        let name = |epoch, log, agent: &str| LogName { epoch, log, agent: agent.to_owned() };
        let names = [name(0, Uuid::nil(), "old"), name(3, log, "gw-7"), name(5, Uuid::nil(), "new")];
        let mut formatter = Formatter::new("events", kafka::Timestamp::Send, &names);
        let (topic, payload, headers, timestamp) =
            owned(&mut formatter, &event(Payload::Json("{ \"c\": 1 }"), None));
        assert_eq!(topic, "events");
        assert_eq!(
            payload,
            "{\"version\":1,\"id\":\"e\\\"1\",\"type\":\"reading\",\"source_type\":\"meter/é\",\"source_id\":\"m-1\",\
             \"timestamp\":\"2026-03-01T12:00:00.000001Z\",\"payload\":{ \"c\": 1 }}"
        );
        let boot = Uuid::from_bytes([9; 16]).to_string();
        let log = log.to_string();
        let expected = [
            ("fieldpost-id", "e\"1"),
            ("fieldpost-timestamp", "2026-03-01T12:00:00.000001Z"),
            ("fieldpost-agent", "gw-7"),
            ("fieldpost-log", log.as_str()),
            ("fieldpost-epoch", "4"),
            ("fieldpost-seq", "12"),
            ("fieldpost-boot", boot.as_str()),
            ("fieldpost-boot-us", "77"),
            ("fieldpost-clock", "untrusted"),
        ];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(timestamp, None);
    }

    #[test]
    fn bytes_become_base64_and_the_event_time_can_be_the_record_time() {
        let mut formatter = Formatter::new("e.{source_type}", kafka::Timestamp::Event, &[]);
        let event = event(Payload::Bytes(&[0, 255, 1, 2]), Some("1970-01-01T01:00:01+01:00"));
        let (topic, payload, _, timestamp) = owned(&mut formatter, &event);
        assert_eq!(topic, "e.meter__");
        assert!(
            payload.ends_with("\"timestamp\":\"1970-01-01T01:00:01+01:00\",\"payload_base64\":\"AP8BAg==\"}")
        );
        assert!(serde_json::from_str::<serde_json::Value>(&payload).is_ok());
        assert_eq!(timestamp, Some(1000));
    }

    #[test]
    fn word_of_losses_has_a_topic_of_its_own_when_it_is_given_one() {
        let mut losses = event(Payload::Json("1"), None);
        (losses.kind, losses.source_type) = (LOSS_TYPE, OWN_SOURCE_TYPE);
        let topics = |topic: Option<&str>| {
            let mut formatter =
                Formatter::new("e.{source_type}", kafka::Timestamp::Send, &[]).with_loss_topic(topic);
            let other = Event { kind: LOSS_TYPE, ..event(Payload::Json("1"), None) };
            [losses, other].map(|event| owned(&mut formatter, &event).0)
        };
        assert_eq!(topics(None), ["e.fieldpost", "e.meter__"]);
        assert_eq!(topics(Some("l.{source_type}")), ["l.fieldpost", "e.meter__"]);
    }

    #[test]
    fn the_topic_of_an_events_route_comes_before_that_of_the_configuration() {
        let mut formatter = Formatter::new("events", kafka::Timestamp::Send, &[]);
        let topics = [Some("alarms"), None, Some("a.{source_type}"), None].map(|topic| {
            let way = Way { topic, is_quiet: false };
            owned(&mut formatter, &Event { way, ..event(Payload::Json("1"), None) }).0
        });
        assert_eq!(topics, ["alarms", "events", "a.meter__", "events"]);
    }

    #[test]
    fn a_long_source_type_is_cut_to_what_kafka_takes() {
        assert_eq!(topic_name("{source_type}.x", &"y".repeat(300)).len(), TOPIC_BYTES_MAX);
    }
}
