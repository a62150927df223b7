//! An event as it is shown: read from what each source brings, and written as a line.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::cli::text;
use crate::event::Payload;
use crate::ingest::route::Pattern;
use crate::sink::kafka_reader::Received;
use crate::sink::record::avro;
use crate::sink::record::envelope::ENVELOPE_VERSION;
use crate::sink::redis::reading;
use crate::sink::redis::subscription::Heard;

/// Most characters of a payload in a line for people.
const PAYLOAD_CHARS_MAX: usize = 400;

/// The fields of the envelope, and where it came from. What a source does not tell is left out.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Entry {
    /// `epoch-seq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) position: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) channel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stream: Option<String>,
    /// Its id in the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) entry: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) partition: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
    /// JSON, byte for byte but for line ends.
    #[serde(default, deserialize_with = "even_null", skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_left_out: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_bytes: Option<u64>,
}

/// A payload that is `null` is one.
fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// JSON in one line: a line end in it stands between two tokens, and there is none within a token.
fn in_one_line(json: &str) -> Cow<'_, str> {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ").into() } else { json.into() }
}

fn raw(json: &str) -> Option<Box<RawValue>> {
    serde_json::from_str(&in_one_line(json)).ok()
}

impl Entry {
    /// What the agent's stream says.
    pub(super) fn of_agent(data: &str) -> Option<Self> {
        serde_json::from_str(&in_one_line(data)).ok()
    }

    /// A ping; what else is published on the channel is shown as it is.
    pub(super) fn of_ping(heard: Heard) -> Self {
        let Heard { channel, message } = heard;
        let read = std::str::from_utf8(&message).ok().and_then(Self::of_agent);
        let entry = read.unwrap_or_else(|| Self::default().with_payload(&message));
        Self { channel: Some(channel), ..entry }
    }

    /// An entry of a stream, by docs/realtime.md.
    pub(super) fn of_stream(read: reading::Entry) -> Self {
        let mut entry = Self { stream: Some(read.stream), entry: Some(read.id), ..Self::default() };
        for (field, value) in read.fields {
            match field.as_str() {
                "event_type" => entry.kind = Some(value),
                "aggregate_id" => entry.source_id = Some(value),
                "source_type" => entry.source_type = Some(value),
                "id" => entry.id = Some(value),
                "timestamp" => entry.timestamp = Some(value),
                "schema_version" => entry.version = value.parse().ok(),
                "payload" => entry.payload = raw(&value),
                "payload_base64" => entry.payload_base64 = Some(value),
                "payload_left_out" => entry.payload_left_out = Some(value),
                "payload_bytes" => entry.payload_bytes = value.parse().ok(),
                // Of whoever else adds to the stream.
                _ => {}
            }
        }
        entry
    }

    /// A record in any of the formats of docs/formats.md. What is none of them keeps its value: JSON as it is, all else as
    /// bytes.
    pub(super) fn of_record(record: &Received) -> Self {
        let header = |names: &[&str]| {
            let found = record.headers.iter().find(|(name, _)| names.contains(&name.as_str()))?;
            Some(String::from_utf8_lossy(&found.1).into_owned())
        };
        let envelope = header(&["fieldpost-type", "ce_type"]).is_none();
        let text = std::str::from_utf8(&record.value).ok().filter(|_| envelope);
        let json = text.and_then(Self::of_agent).filter(|entry| entry.id.is_some() && entry.kind.is_some());
        let avro = || avro::read(&record.value).filter(|_| envelope).map(Self::of_avro);
        let read = json.or_else(avro);
        let mut entry = read.unwrap_or_else(|| {
            let entry = Self {
                id: header(&["fieldpost-id", "ce_id"]),
                kind: header(&["fieldpost-type", "ce_type"]),
                source_type: header(&["fieldpost-source-type", "ce_sourcetype"]),
                source_id: header(&["fieldpost-source-id", "ce_sourceid"]),
                timestamp: header(&["fieldpost-timestamp", "ce_time"]),
                ..Self::default()
            };
            entry.with_payload(&record.value)
        });
        let position = header(&["fieldpost-epoch"]).zip(header(&["fieldpost-seq"]));
        entry.position = position.map(|(epoch, seq)| format!("{epoch}-{seq}"));
        (entry.partition, entry.offset) = (Some(record.partition), Some(record.offset));
        let of_record = || record.time_ms.map(|ms| text::time(ms.saturating_mul(1000)));
        entry.timestamp = entry.timestamp.take().or_else(of_record);
        entry
    }

    fn of_avro(read: avro::Envelope<'_>) -> Self {
        let entry = Self {
            version: Some(ENVELOPE_VERSION),
            id: Some(read.id.to_owned()),
            kind: Some(read.kind.to_owned()),
            source_type: Some(read.source_type.to_owned()),
            source_id: Some(read.source_id.to_owned()),
            timestamp: Some(read.timestamp.to_owned()),
            ..Self::default()
        };
        match read.payload {
            Payload::Json(json) => entry.with_payload(json.as_bytes()),
            Payload::Bytes(bytes) => Self { payload_base64: Some(STANDARD.encode(bytes)), ..entry },
        }
    }

    fn with_payload(mut self, bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes).ok().and_then(raw) {
            Some(json) => self.payload = Some(json),
            None => self.payload_base64 = Some(STANDARD.encode(bytes)),
        }
        self
    }

    /// As a line of JSON.
    pub(super) fn write_json(&self, out: &mut Vec<u8>) {
        // Texts, numbers and valid JSON always encode.
        let _ = serde_json::to_writer(&mut *out, self);
        out.push(b'\n');
    }

    /// As a line for people: time, place, source, type, and the payload or what is known instead.
    pub(super) fn write_text(&self, out: &mut Vec<u8>) {
        let source = match (&self.source_type, &self.source_id) {
            (Some(source_type), Some(source_id)) => Some(format!("{source_type}/{source_id}")),
            (source_type, source_id) => source_type.clone().or_else(|| source_id.clone()),
        };
        let content = match (&self.payload, &self.payload_base64, &self.payload_left_out) {
            (Some(json), _, _) => Some(json.get().to_owned()),
            (_, Some(base64), _) => Some(format!("base64 {base64}")),
            (_, _, Some(why)) => {
                Some(format!("{} (payload left out: {why})", self.id.as_deref().unwrap_or_default()))
            }
            _ => self.id.clone(),
        };
        let parts = [self.timestamp.clone(), self.place(), source, self.kind.clone(), content];
        for (number, part) in parts.into_iter().flatten().enumerate() {
            if number > 0 {
                out.extend_from_slice(b"  ");
            }
            out.extend_from_slice(text::plain(&short(part)).as_bytes());
        }
        out.push(b'\n');
    }

    /// By what it is found again.
    fn place(&self) -> Option<String> {
        if let (Some(partition), Some(offset)) = (self.partition, self.offset) {
            return Some(format!("{partition}@{offset}"));
        }
        if let (Some(stream), Some(entry)) = (&self.stream, &self.entry) {
            return Some(format!("{stream}@{entry}"));
        }
        self.position.clone().or_else(|| self.channel.clone())
    }
}

fn short(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(PAYLOAD_CHARS_MAX) {
        let bytes = text.len();
        text.truncate(end);
        text += &format!("… ({bytes} bytes; --json shows all)");
    }
    text
}

/// Which events are shown: those that match one of each list that is not empty.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub(super) kinds: Vec<Pattern>,
    pub(super) source_types: Vec<Pattern>,
    pub(super) source_ids: Vec<Pattern>,
}

impl Filter {
    pub(super) fn wants(&self, entry: &Entry) -> bool {
        let lists = [
            (&self.kinds, &entry.kind),
            (&self.source_types, &entry.source_type),
            (&self.source_ids, &entry.source_id),
        ];
        lists.into_iter().all(|(patterns, name)| {
            let is_one = |name: &String| patterns.iter().any(|pattern| pattern.matches(name));
            patterns.is_empty() || name.as_ref().is_some_and(is_one)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENVELOPE: &str = r#"{"version":1,"id":"e1","type":"reading","source_type":"meter","source_id":"m-1","timestamp":"2026-03-01T12:00:00.000000Z","payload":{ "c": 1.50 }}"#;

    fn json(entry: &Entry) -> String {
        let mut out = Vec::new();
        entry.write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn text(entry: &Entry) -> String {
        let mut out = Vec::new();
        entry.write_text(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn record(value: &[u8], headers: &[(&str, &str)]) -> Received {
        let headers =
            headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        Received { partition: 2, offset: 7, time_ms: Some(1000), key: None, value: value.to_vec(), headers }
    }

    #[test]
    fn what_the_agent_says_stays_as_it_is() {
        let data = ENVELOPE.replace("{\"version\"", "{\"position\":\"3-17\",\"version\"");
        let entry = Entry::of_agent(&data).unwrap();
        assert_eq!(json(&entry), format!("{data}\n"));
        assert_eq!(text(&entry), "2026-03-01T12:00:00.000000Z  3-17  meter/m-1  reading  { \"c\": 1.50 }\n");
        let null = Entry::of_agent(r#"{"id":"e","type":"t","payload":null}"#).unwrap();
        assert_eq!(json(&null), "{\"id\":\"e\",\"type\":\"t\",\"payload\":null}\n");
        assert!(Entry::of_agent("[]").is_none());
    }

    #[test]
    fn a_ping_has_a_channel_and_no_time() {
        let message = br#"{"id":"e1","type":"reading","source_id":"m-1"}"#.to_vec();
        let entry = Entry::of_ping(Heard { channel: "events:meter:m-1".into(), message });
        assert_eq!(text(&entry), "events:meter:m-1  m-1  reading  e1\n");
        let other = Entry::of_ping(Heard { channel: "c".into(), message: b"\x1b[2J hello".to_vec() });
        assert_eq!(json(&other), "{\"channel\":\"c\",\"payload_base64\":\"G1sySiBoZWxsbw==\"}\n");
    }

    #[test]
    fn an_entry_of_a_stream_has_the_names_of_the_envelope() {
        let fields = [
            ("event_type", "reading"),
            ("aggregate_id", "m-1"),
            ("source_type", "meter"),
            ("id", "e1"),
            ("timestamp", "2026-03-01T12:00:00Z"),
            ("schema_version", "1"),
            ("payload", "{\n\"c\":1}"),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let entry = Entry::of_stream(reading::Entry { stream: "s".into(), id: "5-0".into(), fields });
        assert_eq!(
            json(&entry),
            "{\"stream\":\"s\",\"entry\":\"5-0\",\"version\":1,\"id\":\"e1\",\"type\":\"reading\",\"source_type\":\"meter\",\
             \"source_id\":\"m-1\",\"timestamp\":\"2026-03-01T12:00:00Z\",\"payload\":{ \"c\":1}}\n"
        );
    }

    #[test]
    fn records_of_each_format_are_read() {
        let position = [("fieldpost-epoch", "3"), ("fieldpost-seq", "9")];
        let entry = Entry::of_record(&record(ENVELOPE.as_bytes(), &position));
        assert!(
            json(&entry).starts_with(r#"{"position":"3-9","partition":2,"offset":7,"version":1,"id":"e1""#)
        );
        let headers =
            [("ce_id", "e1"), ("ce_type", "reading"), ("ce_sourcetype", "meter"), ("ce_sourceid", "m-1")];
        // A payload that looks like an envelope is a payload all the same.
        let entry = Entry::of_record(&record(ENVELOPE.as_bytes(), &headers));
        assert_eq!((entry.kind.as_deref(), entry.source_id.as_deref()), (Some("reading"), Some("m-1")));
        assert!(json(&entry).contains(r#""payload":{"version":1,"#), "{}", json(&entry));
        let avro = b"\0\0\0\0\x07\x02\x04e1\x0ereading\x0ameter\x06m-1\x021\x00\x02\x04\x00\xff";
        assert_eq!(
            json(&Entry::of_record(&record(avro, &position))).split_once(",\"version\"").unwrap().1,
            ":1,\"id\":\"e1\",\"type\":\"reading\",\"source_type\":\"meter\",\"source_id\":\"m-1\",\"timestamp\":\"1\",\
             \"payload_base64\":\"AP8=\"}\n"
        );
        // A payload of bytes alone that looks like an envelope stays what it is.
        let raw = Entry::of_record(&record(avro, &[("fieldpost-type", "reading")]));
        assert!(json(&raw).contains("payload_base64") && raw.id.is_none(), "{raw:?}");
        let entry = Entry::of_record(&record(b"\x00\x01", &[("fieldpost-id", "e1")]));
        assert_eq!(text(&entry), "1970-01-01T00:00:01.000000Z  2@7  base64 AAE=\n");
    }

    #[test]
    fn a_filter_matches_one_of_each_list() {
        let patterns = |texts: &[&str]| texts.iter().copied().map(Pattern::new).collect();
        let entry = Entry::of_agent(ENVELOPE).unwrap();
        for (kinds, source_types, source_ids, wanted) in [
            (&[][..], &[][..], &[][..], true),
            (&["alarm", "read*"], &["meter"], &["m-*"], true),
            (&["alarm"], &[], &[], false),
            (&["reading"], &["pump*"], &[], false),
        ] {
            let filter = Filter {
                kinds: patterns(kinds),
                source_types: patterns(source_types),
                source_ids: patterns(source_ids),
            };
            assert_eq!(filter.wants(&entry), wanted, "{kinds:?}");
            assert!(!filter.wants(&Entry::default()) || kinds.is_empty());
        }
    }

    #[test]
    fn a_long_payload_is_cut_for_people_alone() {
        let entry = Entry::default().with_payload(format!("\"{}\"", "x".repeat(1000)).as_bytes());
        assert!(text(&entry).len() < 500 && text(&entry).ends_with("… (1002 bytes; --json shows all)\n"));
        assert!(json(&entry).len() > 1000);
    }
}
