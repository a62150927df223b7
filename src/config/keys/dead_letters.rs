//! The keys of `[kafka]` about events that Kafka refuses.

use super::super::parse;
use super::super::reader::{Key, Reader};
use super::super::units::format_bytes;
use super::{GIB, MIB};
use crate::config::{Agent, DeadLetters, Limits};
use crate::dead_letter;
use crate::sink::record;
use crate::sink::record::templates::Allowed;

/// The least `kafka.dead_letter_max_bytes` in largest events: one is kept while the next one is written.
const LETTERS_MIN: u64 = 2;

/// Where goes what the topics of `records` do not take.
pub(super) fn dead_letters(
    r: &mut Reader,
    agent: &Agent,
    limits: &Limits,
    records: &record::Options,
) -> DeadLetters {
    let topic = r.optional_text(
        Key {
            name: "kafka.dead_letter_topic",
            meaning: "Topic of events that Kafka refuses for their content, each alone, with the reason in headers. It must \
                      exist, or the brokers must make it; another one than kafka.topic.",
            delivery: "What it does not take either goes to the dead-letter store on this gateway.",
        },
        "1 to 249 characters of A-Z a-z 0-9 . _ -",
        ("such events go to the dead-letter store at once", "fieldpost-dead-letters"),
        parse::kafka_topic_fixed,
    );
    let bytes_max = r.bytes(
        Key {
            name: "kafka.dead_letter_max_bytes",
            meaning: "Most bytes of disk of the dead-letter store, the folder `dead-letters` in agent.data_dir; at most 10000 \
                      letters in any case. At least 2 x limits.max_event_bytes. See `fieldpost dead-letter`.",
            delivery: "At the limit the oldest dead letters go for good, counted and logged.",
        },
        // Room for thousands of usual events, until somebody has looked, beside a buffer of 1 GiB on small flash.
        64 * MIB,
        MIB..=GIB,
    );
    r.relation(
        topic.is_none() || topic.as_deref() != records.topic.fixed(),
        "kafka.dead_letter_topic",
        &["kafka.topic"],
        "is kafka.topic: what is refused there would be sent there again; name another topic".to_owned(),
    );
    let is_listed =
        records.allowed.iter().flat_map(Allowed::all).any(|allowed| Some(allowed) == topic.as_deref());
    r.relation(
        !is_listed,
        "kafka.dead_letter_topic",
        &["kafka.topics_allowed", "kafka.fallback_topic"],
        "is a topic of other events too: what is refused there would be sent there again; name another topic"
            .to_owned(),
    );
    let needed = LETTERS_MIN * limits.event_bytes_max as u64;
    r.relation(
        bytes_max >= needed,
        "kafka.dead_letter_max_bytes",
        &["limits.max_event_bytes"],
        format!(
            "too small for limits.max_event_bytes = \"{}\"; allowed: \"{}\" or more",
            format_bytes(limits.event_bytes_max as u64),
            format_bytes(needed)
        ),
    );
    DeadLetters { topic, store: dead_letter::Options { dir: agent.data_dir.join("dead-letters"), bytes_max } }
}
