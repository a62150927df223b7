//! The keys of `[kafka]` that say where a record goes and what it looks like.

use super::super::parse;
use super::super::reader::{Key, Reader};
use crate::sink::record::headers::{self, STATIC_BYTES_MAX, STATIC_COUNT_MAX};
use crate::sink::record::templates::{Allowed, Field, Template};
use crate::sink::record::{Format, Options, Timestamp};

/// Most topics of the list: `check` asks Kafka for each.
const TOPICS_MAX: usize = 64;

/// Letters of a topic, and what may stand in for others.
pub(super) const TOPIC_ALLOWED: &str =
    "1 to 249 characters of A-Z a-z 0-9 . _ - and {source_type}, {source_id}, {type}";

/// Format, topic, key and headers of the records.
pub(super) fn records(r: &mut Reader) -> Options {
    let topic = r.text(
        Key {
            name: "kafka.topic",
            meaning: "Topic; `{source_type}`, `{source_id}` and `{type}` in it stand for the event's. Characters that Kafka \
                      does not allow become `_`.",
            delivery: "Order holds per key within a topic.",
        },
        TOPIC_ALLOWED,
        Template::literal("fieldpost"),
        parse::kafka_topic,
        Template::to_string,
    );
    let allowed = allowed(r, &topic);
    let backlog_topic = r.optional_text(
        Key {
            name: "kafka.backlog_topic",
            meaning: "With kafka.order = \"live_first\": topic of the backlog; `{source_type}`, `{source_id}` and `{type}` in it \
                      stand for the event's. Goes before the topics of routes.",
            delivery: "Order holds within a lane either way.",
        },
        TOPIC_ALLOWED,
        ("the topic of the event, as for live ones", "events-backlog"),
        parse::kafka_topic,
    );
    let key = r.text(
        Key {
            name: "kafka.key",
            meaning: "Key of the record; `{source_type}`, `{source_id}`, `{type}` and `{id}` in it stand for the event's. Empty: \
                      no key.",
            delivery: "Order holds per key: with another one, or none, the events of a source may overtake each other in \
                       different partitions.",
        },
        "up to 256 bytes, with up to 8 of {source_type}, {source_id}, {type}, {id}",
        Template::field(Field::SourceId),
        parse::kafka_key,
        Template::to_string,
    );
    let format = r.one_of(
        Key {
            name: "kafka.format",
            meaning: "What the record's value is: `envelope`, JSON with every field of the event; `cloudevents`, the payload, with \
                      the attributes of CloudEvents 1.0 in headers; `raw`, the payload alone; `avro`, the envelope as Avro with \
                      the id of its schema in a schema registry. docs/formats.md shows each.",
            delivery: "",
        },
        Format::Envelope,
        [("envelope", Format::Envelope), ("cloudevents", Format::CloudEvents), ("raw", Format::Raw), ("avro", Format::Avro)],
    );
    let headers = static_headers(r);
    let timestamp = r.one_of(
        Key {
            name: "kafka.timestamp",
            meaning: "Time of the Kafka record: of sending, or of the event. The event itself carries its own either way.",
            delivery: "event: Kafka deletes a late event by its old time, perhaps at once, and refuses one from the \
                       future.",
        },
        Timestamp::Send,
        [("send", Timestamp::Send), ("event", Timestamp::Event)],
    );
    let key = Some(key).filter(|key| key.fixed() != Some(""));
    Options { format, topic, allowed, loss_topic: None, backlog_topic, key, headers, timestamp }
}

fn allowed(r: &mut Reader, topic: &Template) -> Option<Allowed> {
    let topics = r.list(
        Key {
            name: "kafka.topics_allowed",
            meaning: "The topics that kafka.topic may give; `[]`: any.",
            delivery: "Events of other topics go to kafka.fallback_topic: they were acknowledged, so they are not dropped. They \
                       are counted, and a WARN names the topic that the list lacks.",
        },
        "up to 64 different topics, each of 1 to 249 characters of A-Z a-z 0-9 . _ -",
        &[],
        0..=TOPICS_MAX,
        parse::kafka_topic_fixed,
    );
    let fallback = r.optional_text(
        Key {
            name: "kafka.fallback_topic",
            meaning: "Topic of the events whose own is not in kafka.topics_allowed.",
            delivery: "It must exist, or the brokers must make it: what cannot be sent holds the line.",
        },
        "1 to 249 characters of A-Z a-z 0-9 . _ -",
        ("required with kafka.topics_allowed, of no use without", "fieldpost-other"),
        parse::kafka_topic_fixed,
    );
    r.relation(
        topics.is_empty() || fallback.is_some(),
        "kafka.topics_allowed",
        &["kafka.fallback_topic"],
        "kafka.fallback_topic is not set: say where the events of other topics go".to_owned(),
    );
    let is_reached = topic.fixed().is_none_or(|topic| topics.is_empty() || topics.iter().any(|t| t == topic));
    r.relation(
        is_reached,
        "kafka.topic",
        &["kafka.topics_allowed"],
        "is not in kafka.topics_allowed, and no event would go there".to_owned(),
    );
    fallback.filter(|_| !topics.is_empty()).map(|fallback| Allowed::new(topics, fallback))
}

fn static_headers(r: &mut Reader) -> Vec<(String, String)> {
    let headers = r.table(
        Key {
            name: "kafka.headers",
            meaning: "Headers that every record has besides its own, for example `{ site = \"plant-4\" }`; as a variable \
                      `name=value,name=value`. At most 16, and 4 KiB together.",
            delivery: "",
        },
        "texts, whole numbers, true or false, under names of up to 128 visible ASCII characters",
        headers::refused,
    );
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    r.relation(
        headers.len() <= STATIC_COUNT_MAX && bytes <= STATIC_BYTES_MAX,
        "kafka.headers",
        &[],
        format!(
            "{} headers of {bytes} bytes; allowed: at most {STATIC_COUNT_MAX}, with names and values of {STATIC_BYTES_MAX} bytes \
             together, because they are in every record",
            headers.len()
        ),
    );
    headers
}
