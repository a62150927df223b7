//! The keys of `[kafka]`.

use std::time::Duration;

use super::super::parse;
use super::super::reader::{Key, Reader};
use super::{dead_letters, mins, ms, records, secs, security, size};
use crate::config::{Agent, DeadLetters, Limits};
use crate::sink::{kafka, record};
use crate::{buffer, drain};

/// What is in flight to Kafka cannot be given up for newer events, so it may be this part of the buffer at most. The
/// largest event fits all the same: it is half of that, and a third more as a record, because 16 of them fit the
/// buffer.
const WINDOW_SHARE: u64 = 8;

/// Kafka, the drain that feeds it, and where goes what Kafka refuses.
pub(super) fn kafka(
    r: &mut Reader,
    agent: &Agent,
    limits: &Limits,
    buffer: &buffer::Options,
) -> (Option<kafka::Options>, record::Options, drain::Options, DeadLetters) {
    r.section("kafka", "Output: where the events go.");
    let brokers = r.optional_text(
        Key {
            name: "kafka.brokers",
            meaning: "Brokers to start from, `host:port`, several with commas between; port 9092 if left out.",
            delivery: "",
        },
        "host:port,host:port",
        ("required: `fieldpost run` does not start without", "127.0.0.1:9092"),
        parse::brokers,
    );
    let records = records::records(r);
    let drain = drain(r, agent, limits, buffer);
    let dead_letters = dead_letters::dead_letters(r, agent, limits, &records);
    let compression = r.one_of(
        Key { name: "kafka.compression", meaning: "zstd for a thin line, lz4 for a weak CPU.", delivery: "" },
        kafka::Compression::Lz4,
        [
            ("lz4", kafka::Compression::Lz4),
            ("zstd", kafka::Compression::Zstd),
            ("none", kafka::Compression::None),
        ],
    );
    let transactional = transactional(r, agent, records.topic.fixed(), &drain);
    let security = security::kafka(r);
    let properties = r.table(
        Key {
            name: "kafka.properties",
            meaning: "Further librdkafka properties, for example `{ \"broker.address.family\" = \"v4\" }`; as a variable \
                      `name=value,name=value`.",
            delivery: "The properties that the guarantees rest on are refused, with the reason.",
        },
        "texts, whole numbers, true or false",
        parse::property_refused,
    );
    let kafka = brokers.map(|brokers| kafka::Options {
        brokers,
        compression,
        properties,
        queue_bytes_max: limits.quarter(),
        record_bytes_max: limits.record_bytes_max(),
        transactional,
        leaves_out_rejected: drain.delivery == drain::Delivery::AtMostOnce,
        security,
    });
    (kafka, records, drain, dead_letters)
}

fn drain(r: &mut Reader, agent: &Agent, limits: &Limits, buffer: &buffer::Options) -> drain::Options {
    let delivery = r.one_of(
        Key {
            name: "kafka.delivery",
            meaning: "What a crash or a restart may do to an event on its way to Kafka.",
            delivery: "at_least_once: never a loss, duplicates after a crash. exactly_once: neither, for consumers that \
                       read committed records only, at a little more latency. at_most_once: never a duplicate, a loss \
                       after a crash. It may be changed at any start; docs/guarantees.md says what holds in between.",
        },
        drain::Delivery::AtLeastOnce,
        [
            ("at_least_once", drain::Delivery::AtLeastOnce),
            ("exactly_once", drain::Delivery::ExactlyOnce),
            ("at_most_once", drain::Delivery::AtMostOnce),
        ],
    );
    let round_interval = r.duration(
        Key {
            name: "kafka.round_interval",
            meaning: "Time between two hand-overs to Kafka: shorter is sooner, longer is less CPU.",
            delivery: "Adds half of itself to the time until Kafka has an event.",
        },
        ms(5),
        ms(1)..=secs(60),
    );
    let order = order(r, delivery);
    let (rates, start_jitter) = pace(r);
    let transaction = transaction(r, buffer);
    drain::Options {
        delivery,
        order,
        round_interval,
        transaction,
        rates,
        start_jitter,
        window_bytes_max: limits.quarter().min(size(buffer.bytes_max / WINDOW_SHARE)),
        stop_grace: agent.stop_grace,
    }
}

/// Which events go out first.
fn order(r: &mut Reader, delivery: drain::Delivery) -> drain::Order {
    let is_live_first = r.one_of(
        Key {
            name: "kafka.order",
            meaning: "Which events go out first: `fifo`, the oldest; `live_first`, the fresh ones, and what an outage has left \
                      behind them, in a lane of its own whose records have the header `fieldpost-backlog`.",
            delivery: "live_first: the order of a source holds within each lane. docs/guarantees.md says what each promises.",
        },
        false,
        [("fifo", false), ("live_first", true)],
    );
    let backlog_after = r.duration(
        Key {
            name: "kafka.backlog_after",
            meaning: "With live_first: once the oldest live event has waited for so long, everything that waits becomes backlog.",
            delivery: "Shorter: fresh events come sooner after a short outage, and more of them come behind others.",
        },
        secs(10),
        ms(100)..=mins(60),
    );
    r.relation(
        !(is_live_first && delivery == drain::Delivery::AtMostOnce),
        "kafka.order",
        &["kafka.delivery"],
        "goes with at_least_once and exactly_once alone: at_most_once lets go of events before it sends them"
            .to_owned(),
    );
    if is_live_first { drain::Order::LiveFirst { backlog_after } } else { drain::Order::Fifo }
}

/// How fast events go out.
fn pace(r: &mut Reader) -> (drain::Rates, Duration) {
    let bytes = r.bytes(
        Key {
            name: "kafka.max_rate",
            meaning: "Most bytes a second to Kafka, of keys, values and headers before compression; `0`: no limit. For a line \
                      that others need too while a backlog is drained.",
            delivery: "Events wait in the buffer for longer. Below the rate at which they come the buffer fills up.",
        },
        0,
        0..=super::GIB,
    );
    let events = r.integer(
        Key {
            name: "kafka.max_event_rate",
            meaning: "Most events a second to Kafka; `0`: no limit.",
            delivery: "As kafka.max_rate.",
        },
        0,
        0..=1_000_000,
    );
    let start_jitter = r.duration(
        Key {
            name: "kafka.start_jitter",
            meaning: "Before the first event goes to Kafka the agent waits any time up to this, by chance: gateways that get \
                      their power back together do not come back together.",
            delivery: "Events are taken and acknowledged meanwhile.",
        },
        secs(0),
        secs(0)..=mins(60),
    );
    let limit = |rate: u64| Some(rate).filter(|rate| *rate > 0);
    (drain::Rates { bytes: limit(bytes), events: limit(events) }, start_jitter)
}

/// The transactions of `exactly_once`.
fn transaction(r: &mut Reader, buffer: &buffer::Options) -> drain::TransactionLimits {
    let interval = r.duration(
        Key {
            name: "kafka.transaction_interval",
            meaning: "With exactly_once: longest time that a transaction gathers events before it is committed.",
            delivery: "Consumers of committed records see an event that much later at most, and the commit's few \
                       milliseconds.",
        },
        ms(200),
        ms(1)..=secs(10),
    );
    let bytes_max = r.bytes(
        Key {
            name: "kafka.transaction_bytes",
            meaning: "With exactly_once: most bytes in a transaction, some 400 for each record and 64 for each header \
                      included; never more than an eighth of buffer.max_bytes.",
            delivery: "What goes out again after a crash, unseen by consumers of committed records.",
        },
        32 * super::MIB,
        64 * super::KIB..=super::GIB,
    );
    let events_max = r.integer(
        Key {
            name: "kafka.transaction_events",
            meaning: "With exactly_once: most events in a transaction; with redis.ping_after = \"delivered\" their pings, of \
                      some 300 bytes each, wait in memory for its commit, and then as many again for room in redis.queue.",
            delivery: "As kafka.transaction_bytes.",
        },
        20_000,
        1..=1_000_000,
    );
    let timeout = r.duration(
        Key {
            name: "kafka.transaction_timeout",
            meaning: "With exactly_once: how old a transaction that nobody ends becomes before the brokers abort it; their \
                      transaction.max.timeout.ms allows 15 minutes if not set.",
            delivery: "How long an agent that crashed can hold up consumers of committed records. An outage of Kafka may be \
                       longer: the events go out again.",
        },
        secs(30),
        // Below ten seconds a broker's restart aborts every transaction.
        secs(10)..=mins(15),
    );
    let bytes_max = size(bytes_max.min(buffer.bytes_max / WINDOW_SHARE));
    drain::TransactionLimits { interval, bytes_max, events_max: size(events_max), timeout }
}

fn transactional(
    r: &mut Reader,
    agent: &Agent,
    topic: Option<&str>,
    drain: &drain::Options,
) -> Option<kafka::Transactional> {
    let cursor_topic = r.optional_text(
        Key {
            name: "kafka.cursor_topic",
            meaning: "With exactly_once: an existing topic for whose first partition the agent's cursor is committed, under \
                      the consumer group `fieldpost.<agent.id>`; no record is written to it for that.",
            delivery: "Another one means another cursor: change it only when the buffer is drained.",
        },
        "1 to 249 characters of A-Z a-z 0-9 . _ -",
        ("kafka.topic; required when that has a placeholder", "events"),
        parse::kafka_topic_fixed,
    );
    let is_wanted = drain.delivery == drain::Delivery::ExactlyOnce;
    r.relation(
        !is_wanted || cursor_topic.is_some() || topic.is_some(),
        "kafka.cursor_topic",
        &["kafka.topic", "kafka.delivery"],
        "is required with exactly_once when kafka.topic has a placeholder: name a topic that exists"
            .to_owned(),
    );
    is_wanted.then(|| kafka::Transactional {
        id: format!("fieldpost.{}", agent.id),
        group: format!("fieldpost.{}", agent.id),
        cursor_topic: cursor_topic.or_else(|| topic.map(str::to_owned)).unwrap_or_default(),
        timeout: drain.transaction.timeout,
    })
}
