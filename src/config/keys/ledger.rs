//! The keys of the loss ledger: `[ledger]`.

use super::super::parse;
use super::super::reader::{Key, Reader};
use crate::losses;

pub(super) fn ledger(r: &mut Reader) -> losses::Options {
    r.section(
        "ledger",
        "The loss ledger: what was lost or refused, why and when, in the file LEDGER of the data directory.",
    );
    let announce = r.fact(
        Key {
            name: "ledger.announce",
            meaning: "Tell Kafka of losses: an event of type `fieldpost.loss` with reason, number, times and positions, at most \
                      one a minute and reason. Not while kafka.topic holds {source_type} and ledger.topic is not set.",
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
        "1 to 249 characters of A-Z a-z 0-9 . _ - and {source_type}",
        ("kafka.topic, unless that holds {source_type}", "fieldpost-losses"),
        parse::kafka_topic,
    );
    losses::Options { announce, topic }
}
