//! Every key of the configuration, declared once, section by section, and what becomes of it.
//!
//! All keys of a section are read even when the section is off, so that a mistake shows before it is switched on.

mod dead_letters;
mod http;
mod inputs;
mod ledger;
mod outputs;
mod records;
mod redis;
mod registry;
mod routes;
mod security;
mod uplink;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parse;
use super::reader::{Key, Reader};
use super::units::format_bytes;
use super::{Agent, Config, Limits};
use crate::buffer::WhenFull;
use crate::ingest::route::Routes;
use crate::ingest::{mqtt, unix};
use crate::sink::record;
use crate::{buffer, log, losses};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// What [`memory_min`] leaves each quarter beside one event: room for a block and for the work in progress.
const QUARTER_REST: u64 = MIB;

/// The smallest buffer: below it a generation, its successor and the copy of one that is written again leave no room for
/// events.
const BUFFER_MIN: u64 = 4 * MIB;

/// The buffer must turn over, not hold one event at a time: this many of the largest fit at least.
const BUFFER_EVENTS_MIN: u64 = 16;

/// The words of every `when_full`.
const WHEN_FULL: [(&str, WhenFull); 3] = [
    (WhenFull::Block.word(), WhenFull::Block),
    (WhenFull::Reject.word(), WhenFull::Reject),
    (WhenFull::DropOldest.word(), WhenFull::DropOldest),
];

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn mins(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// Reads everything. What it returns is valid only when the reader finishes without a problem.
pub(super) fn config(r: &mut Reader, host_name: &str) -> Config {
    let agent = agent(r, host_name);
    let mqtt = inputs::mqtt(r, &agent);
    let mqtt_when_full = inputs::when_full(r, "mqtt.when_full");
    let unix = inputs::unix(r);
    let unix_when_full = inputs::when_full(r, "unix.when_full");
    let routes = routes::routes(r);
    let limits = limits(r);
    let routes = Routes::new(routes, limits.sources_max);
    let (buffer, when_full) = buffer(r, &agent, &limits);
    let (kafka, records, drain, dead_letters) = outputs::kafka(r, &agent, &limits, &buffer);
    let registry = registry::registry(r, &agent, records.format);
    let redis = redis::redis(r);
    let http = http::http(r);
    let uplink = uplink::uplink(r, &agent);
    let (ledger, loss_topic) = ledger::ledger(r);
    let log = log(r);
    // The inputs share what the limits leave them; their sections come first for the reader of the file.
    // What waits is appended as one batch, the event included with which it came to the limit.
    let batch_bytes_max = buffer.batch_bytes_max().saturating_sub(limits.event_bytes_max);
    let pending_bytes_max = limits.quarter().min(batch_bytes_max);
    let mqtt = mqtt.map(|mqtt| {
        let when_full = mqtt_when_full.unwrap_or(when_full);
        mqtt::Options { pending_bytes_max, when_full, ..mqtt }
    });
    let unix = unix.map(|unix| {
        let when_full = unix_when_full.unwrap_or(when_full);
        // Each connection's batches are appended by themselves, so a small buffer does not matter here.
        let pending_bytes_max = limits.quarter();
        unix::Options { pending_bytes_max, append_timeout: limits.append_timeout, when_full, ..unix }
    });
    // Nobody may have made the topic that the template names for them, and what cannot be sent holds the line.
    let is_topic_sure = loss_topic.is_some() || records.topic.fixed().is_some() || records.allowed.is_some();
    let ledger = losses::Options { announce: ledger.announce && is_topic_sure };
    let records = record::Options { loss_topic, ..records };
    Config {
        agent,
        mqtt,
        unix,
        routes,
        limits,
        buffer,
        when_full,
        drain,
        kafka,
        records,
        dead_letters,
        registry,
        redis,
        http,
        uplink,
        ledger,
        log,
    }
}

fn agent(r: &mut Reader, host_name: &str) -> Agent {
    r.section("agent", "The agent itself.");
    let id = r.derived_text(
        Key {
            name: "agent.id",
            meaning: "Name of this gateway in every record; different on every gateway of a fleet.",
            delivery: "Part of each event's position: consumers drop duplicates per agent and partition.",
        },
        "1 to 128 characters of A-Z a-z 0-9 . _ -",
        ("the host name", "gateway-17"),
        host_name.to_owned(),
        parse::agent_id,
    );
    let data_dir = r.text(
        Key {
            name: "agent.data_dir",
            meaning: "Folder of everything the agent keeps; the buffer is in `buffer` below it.",
            delivery: "Acknowledged events live here until Kafka has them: flash or disk, never a RAM disk.",
        },
        "a path",
        PathBuf::from("/var/lib/fieldpost"),
        |text| parse::length(text, 4096).map(PathBuf::from),
        |path| path.display().to_string(),
    );
    let stop_grace = r.duration(
        Key {
            name: "agent.stop_grace",
            meaning: "How long a stop may go on with Kafka: half of it sending what waits, all of it waiting for \
                      confirmations. The service manager is told how long the stop may take with it.",
            delivery: "What is unconfirmed by then stays in the buffer and is sent again after the start.",
        },
        secs(10),
        secs(0)..=mins(10),
    );
    Agent { id, data_dir, stop_grace }
}

fn limits(r: &mut Reader) -> Limits {
    r.section("limits", "What events may cost.");
    let event_bytes_max = r.bytes(
        Key {
            name: "limits.max_event_bytes",
            meaning: "Largest event as it is stored.",
            delivery: "A larger one is refused: the socket's producer is told, an MQTT message is acknowledged, dropped \
                       and counted.",
        },
        256 * KIB,
        KIB..=8 * MIB,
    );
    let memory_bytes_max = r.bytes(
        Key {
            name: "limits.memory",
            meaning: "Memory for events on their way: a quarter each for MQTT, for all connections of the socket, for the \
                      events read ahead for Kafka, and for Kafka's own queue. At least 10 x max_event_bytes + 4 MiB.",
            delivery: "At the limit inputs wait (MQTT) or their producers do (socket); nothing is dropped.",
        },
        16 * MIB,
        // A quarter must be addressable on 32 bits with much to spare.
        4 * MIB..=GIB,
    );
    let append_timeout = r.duration(
        Key {
            name: "limits.append_timeout",
            meaning: "Longest wait of a socket's event for the buffer.",
            delivery: "After it the producer gets `buffer_full` or `timeout` and sends again.",
        },
        secs(5),
        ms(10)..=mins(10),
    );
    let sources_max = r.integer(
        Key {
            name: "limits.sources",
            meaning: "Most sources and types of which routes with `sample` or `report` remember something, each of 100 bytes \
                      and its names, beside `limits.memory`.",
            delivery: "At the limit those that were silent longest are forgotten: their next event is sent.",
        },
        10_000,
        100..=1_000_000,
    );
    let needed = memory_min(event_bytes_max);
    r.relation(
        memory_bytes_max >= needed,
        "limits.memory",
        &["limits.max_event_bytes"],
        format!(
            "too small for limits.max_event_bytes = \"{}\"; allowed: \"{}\" or more, because each quarter must hold \
             the largest event beside the line it came in",
            format_bytes(event_bytes_max),
            format_bytes(needed)
        ),
    );
    Limits {
        event_bytes_max: size(event_bytes_max),
        memory_bytes_max: size(memory_bytes_max),
        append_timeout,
        sources_max: size(sources_max),
    }
}

/// The least `limits.memory`. A quarter holds the largest event of the socket beside its line, a third longer in base64,
/// and what is read with it: 2.5 events and some rest. Kafka's queue needs less: librdkafka refuses a record above its
/// whole queue for ever, and a record has less than 1.5 times the size of its event.
fn memory_min(event_bytes_max: u64) -> u64 {
    10 * event_bytes_max + 4 * QUARTER_REST
}

fn buffer(r: &mut Reader, agent: &Agent, limits: &Limits) -> (buffer::Options, WhenFull) {
    r.section("buffer", "The durable buffer between the inputs and Kafka.");
    let bytes_max = r.bytes(
        Key {
            name: "buffer.max_bytes",
            meaning: "Most bytes of disk, everything counted. At least 16 x limits.max_event_bytes; the smallest buffer of \
                      4 MiB takes events of up to 192 KiB.",
            delivery: "How long an outage of Kafka may last before `when_full` applies.",
        },
        GIB,
        BUFFER_MIN..=TIB,
    );
    let when_full = r.one_of(
        Key {
            name: "buffer.when_full",
            meaning: "What happens at that limit: `block` lets producers wait, `reject` answers them at once, \
                      `drop_oldest` gives up the oldest events for new ones.",
            delivery: "With `drop_oldest` acknowledged events may be lost; each is counted in the loss ledger as \
                       `evicted`. With the others none is; MQTT with QoS 1 or 2 waits in the broker, with `reject` too. \
                       Inputs and routes may have it otherwise.",
        },
        WhenFull::Block,
        WHEN_FULL,
    );
    let (free_min, age_max) = buffer_floors(r);
    let commit_interval = r.duration(
        Key {
            name: "buffer.commit_interval",
            meaning: "Shortest time between two syncs. More spares flash, less answers sooner; `0s`: at once.",
            delivery: "None on safety: an acknowledgement always waits for its sync.",
        },
        secs(0),
        secs(0)..=secs(10),
    );
    let needed = buffer_min(limits.event_bytes_max);
    r.relation(
        bytes_max >= needed,
        "buffer.max_bytes",
        &["limits.max_event_bytes"],
        format!(
            "too small for limits.max_event_bytes = \"{}\"; allowed: \"{}\" or more, or smaller events, so that \
             {BUFFER_EVENTS_MIN} of the largest fit and what an input appends at once always finds room",
            format_bytes(limits.event_bytes_max as u64),
            format_bytes(needed)
        ),
    );
    r.relation(
        commit_interval < limits.append_timeout,
        "buffer.commit_interval",
        &["limits.append_timeout"],
        "not below limits.append_timeout: every event of the socket would time out before its sync"
            .to_owned(),
    );
    let options = buffer::Options {
        dir: agent.data_dir.join("buffer"),
        ledger: agent.data_dir.join("LEDGER"),
        agent: agent.id.clone(),
        bytes_max,
        free_min,
        age_max,
        commit_interval,
        queue_bytes_max: limits.quarter(),
    };
    (options, when_full)
}

/// The least `buffer.max_bytes`. On disk a batch costs more than its size: a larger buffer is needed than its events
/// alone would be, or a batch of the inputs would be refused by a buffer that is empty.
fn buffer_min(event_bytes_max: usize) -> u64 {
    const STEP: u64 = 64 * KIB;
    let takes_a_batch = |bytes_max: &u64| {
        let options = buffer::Options { bytes_max: *bytes_max, ..buffer::Options::new(Path::new("")) };
        options.batch_bytes_max() >= unix::BATCH_BYTES + event_bytes_max
    };
    let events = (BUFFER_EVENTS_MIN * event_bytes_max as u64).max(BUFFER_MIN).next_multiple_of(STEP);
    // It has grown enough long before its end: a batch costs a small multiple of its size.
    (events..=16 * events).step_by(size(STEP)).find(takes_a_batch).unwrap_or(events)
}

fn buffer_floors(r: &mut Reader) -> (u64, Option<Duration>) {
    let free_min = r.bytes(
        Key {
            name: "buffer.min_free",
            meaning: "Bytes of the file system that the buffer leaves to others; `0` for no such floor.",
            delivery: "Below it the buffer counts as full.",
        },
        16 * MIB,
        0..=TIB,
    );
    let age_max = r.duration(
        Key {
            name: "buffer.max_age",
            meaning: "Events that wait longer are given up; `0s`: never. Time without power counts only where the clock was \
                      trusted before and after it; when in doubt an event is kept.",
            delivery: "Each is counted in the loss ledger as `expired`.",
        },
        secs(0),
        secs(0)..=mins(60 * 24 * 3650),
    );
    (free_min, Some(age_max).filter(|age_max| !age_max.is_zero()))
}

fn username(r: &mut Reader, name: &'static str, meaning: &'static str) -> Option<String> {
    r.optional_text(
        Key { name, meaning, delivery: "" },
        "1 to 256 bytes",
        ("none is sent", "fieldpost"),
        |text| parse::length(text, 256).map(str::to_owned),
    )
}

fn log(r: &mut Reader) -> log::Options {
    r.section("log", "Log lines, on standard error.");
    let level = r.text(
        Key {
            name: "log.level",
            meaning: "How much is logged; a module may have a level of its own: `info,fieldpost::drain=debug`.",
            delivery: "",
        },
        "off, error, warn, info, debug, trace, or a list with module=level",
        "info".to_owned(),
        parse::log_level,
        String::clone,
    );
    let format = r.one_of(
        Key { name: "log.format", meaning: "text for people, json for machines.", delivery: "" },
        log::Format::Text,
        [("text", log::Format::Text), ("json", log::Format::Json)],
    );
    log::Options { level, format }
}

/// A value whose declared range fits 32 bits.
fn size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl Limits {
    /// A quarter of `limits.memory`: what each of the four places where events wait may hold.
    pub fn quarter(&self) -> usize {
        self.memory_bytes_max / 4
    }

    /// Largest Kafka record of the largest event: base64 adds a third, the envelope's names some hundred bytes.
    pub fn record_bytes_max(&self) -> usize {
        self.event_bytes_max + self.event_bytes_max / 2 + size(16 * KIB)
    }
}
