//! The keys of the loss ledger: `[ledger]`.

use super::super::parse;
use super::super::reader::{Key, Reader};
use super::records::TOPIC_ALLOWED;
use crate::losses;
use crate::sink::record::templates::Template;

/// What is told of losses, and the topic for it, if it has one of its own.
pub(super) fn ledger(r: &mut Reader) -> (losses::Options, Option<Template>) {
    r.section(
        "ledger",
        "The loss ledger: what was lost or refused, why and when, in the file LEDGER of the data directory.",
    );
    let announce = r.fact(
        Key {
            name: "ledger.announce",
            meaning: "Tell Kafka of losses: an event of type `fieldpost.loss` with reason, number, times and positions, at most \
                      one a minute and reason. Not while kafka.topic holds a placeholder and \
                      neither ledger.topic nor kafka.topics_allowed is set.",
            delivery: "",
        },
        true,
    );
    let topic = r.optional_text(
        Key {
            name: "ledger.topic",
            meaning: "Topic of these events. It must exist, or the brokers must make it: what cannot be sent holds the line.",
            delivery: "",
        },
        TOPIC_ALLOWED,
        ("kafka.topic, unless that holds a placeholder", "fieldpost-losses"),
        parse::kafka_topic,
    );
    (losses::Options { announce }, topic)
}
