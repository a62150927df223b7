//! The keys of a `[[route]]`.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::super::parse;
use super::super::problem::Problem;
use super::super::reader::{Key, Reader};
use super::super::value::quote;
use super::records::TOPIC_ALLOWED;
use super::{WHEN_FULL, mins, secs};
use crate::buffer::{Rank, WhenFull};
use crate::ingest::route::{Deadband, Keep, PATTERN_BYTES_MAX, Pattern, Pointer, ROUTES_MAX, Report, Route};
use crate::ingest::topic::TopicFilter;

/// The table's name.
const ROUTE: &str = "route";

/// The largest dead-band: what is more is no measured value.
const DEADBAND_MAX: f64 = 1e15;

/// Most bytes of all different topics together. In the worst case a block of 7,000 bytes names them all: so much more is
/// within what the buffer leaves free for each batch.
const TOPICS_BYTES_MAX: usize = 1_000;

/// Most events of which one is kept.
const SAMPLE_MAX: u32 = 1_000_000;

/// All routes.
pub(super) fn routes(r: &mut Reader) -> Vec<Route> {
    let found = r.tables(
        ROUTE,
        "What is agreed about events by what they are: a table for each route, at most 64. The first one whose patterns all \
         match counts; an event without a route goes by its input's `when_full` to `kafka.topic`, with a ping and priority 0. \
         In a pattern `*` stands for any text, also for none. Examples: docs/routes.md.",
        ROUTES_MAX,
        route,
    );
    for (number, (route, place)) in found.iter().enumerate() {
        let mut before = found.iter().take(number).map(|(earlier, _)| earlier);
        if before.clone().any(|earlier| earlier.name == route.name) {
            let problem = Problem::of("route.name", Some(place.clone()), "stands there twice".to_owned());
            r.refuse(problem.with_value(&quote(&route.name)));
        } else if let Some(Route { name, .. }) = before.find(|earlier| earlier.covers(route)) {
            let what =
                format!("is never reached: the route {} before it matches all of its events", quote(name));
            r.refuse(Problem::of("[[route]]", Some(place.clone()), what));
        }
    }
    let mut topics = BTreeSet::new();
    for (route, place) in &found {
        let is_new = route.topic.as_ref().is_some_and(|topic| topics.insert(topic.as_str()));
        let bytes: usize = topics.iter().map(|topic| topic.len()).sum();
        if is_new && bytes > TOPICS_BYTES_MAX {
            let what = format!(
                "makes {bytes} bytes of different topics; allowed: {TOPICS_BYTES_MAX}, because every block of the buffer \
                 names those of its events"
            );
            r.refuse(Problem::of("route.topic", Some(place.clone()), what));
            break;
        }
    }
    found.into_iter().map(|(route, _)| route).collect()
}

fn route(r: &mut Reader, number: usize) -> Route {
    let name = r.derived_text(
        Key { name: "route.name", meaning: "Name of the route, for messages.", delivery: "" },
        "1 to 64 bytes, different for each route",
        ("`route-` and its number", "alarms"),
        format!("route-{number}"),
        |text| parse::length(text, 64).map(str::to_owned),
    );
    let mqtt_topic = r.optional_text(
        Key {
            name: "route.mqtt_topic",
            meaning: "Filter of the MQTT topic, with `+` for a level and a last `#` for all that follow. Such a route matches \
                      MQTT publishes alone: the Unix socket has no topic.",
            delivery: "",
        },
        "an MQTT topic filter",
        ("every event matches", "plant/+/alarms/#"),
        TopicFilter::parse,
    );
    let kind = pattern(r, "route.type", "Pattern of the events' `type`.", "alarm");
    let source_type = pattern(r, "route.source_type", "Pattern of the events' `source_type`.", "pump");
    let source_id = pattern(r, "route.source_id", "Pattern of the events' `source_id`.", "line-1-*");
    let topic = r.optional_text(
        Key {
            name: "route.topic",
            meaning: "Kafka topic of its events; `{source_type}`, `{source_id}` and `{type}` in it stand for the event's. It must exist, or the brokers \
                      must make it: what cannot be sent holds the line.",
            delivery: "Kept with each event: a change counts for events that are taken after it. Order holds per source \
                       within a topic.",
        },
        TOPIC_ALLOWED,
        ("kafka.topic", "alarms"),
        |text| parse::kafka_topic(text).map(|template| template.to_string()),
    );
    let ping = r.fact(
        Key { name: "route.ping", meaning: "Whether Redis is told of its events.", delivery: "" },
        true,
    );
    let (when_full, priority) = terms(r);
    let keep = keep(r);
    let is_nothing = keep == Keep::Nothing;
    for (key, is_set) in [
        ("route.topic", topic.is_some()),
        ("route.ping", !ping),
        ("route.when_full", when_full.is_some()),
        ("route.priority", priority > 0),
    ] {
        let what = "has no effect with route.drop = true: nothing of its events goes on".to_owned();
        r.relation(!(is_nothing && is_set), key, &["route.drop"], what);
    }
    Route {
        name,
        mqtt_topic,
        kind,
        source_type,
        source_id,
        when_full,
        priority,
        topic,
        is_quiet: !ping,
        keep,
    }
}

fn terms(r: &mut Reader) -> (Option<WhenFull>, u8) {
    let when_full = r.optional_one_of(
        Key {
            name: "route.when_full",
            meaning: "What happens with its events when the buffer is full, as `buffer.when_full`.",
            delivery: "As `buffer.when_full`, for these events.",
        },
        ("as the input has it", "drop_oldest"),
        WHEN_FULL,
    );
    let priority = r.integer(
        Key {
            name: "route.priority",
            meaning: "Who goes first when room is made: of the events that came under `drop_oldest`, the lowest priority, and \
                      never for an event of a lower one. Whoever does not set it has plain `drop_oldest`: the oldest goes, \
                      whatever it is.",
            delivery: "What comes under `block` or `reject` never goes, whatever its priority; a higher one lets it take the \
                       room of more.",
        },
        0,
        0..=u64::from(Rank::PRIORITY_MAX),
    );
    let priority = u8::try_from(priority).unwrap_or(Rank::PRIORITY_MAX);
    (when_full, priority)
}

/// How many of its events go on.
fn keep(r: &mut Reader) -> Keep {
    let is_nothing = r.fact(
        Key {
            name: "route.drop",
            meaning: "Leave out all of its events.",
            delivery: "They are acknowledged to their producers and counted as dropped.",
        },
        false,
    );
    let sample = r.integer(
        Key {
            name: "route.sample",
            meaning: "Keep one in so many events of each source and type, beginning with the first; 1 keeps all.",
            delivery: "The others are acknowledged to their producers and counted as sampled out.",
        },
        1,
        1..=u64::from(SAMPLE_MAX),
    );
    let is_by_exception = r.one_of(
        Key {
            name: "route.report",
            meaning: "`changes` is report by exception: of each source and type an event goes on when its value is a new one. \
                      Without `value` the whole payload is compared, byte for byte.",
            delivery: "The others are acknowledged to their producers and counted as filtered. What was sent last is forgotten \
                       with a restart: the first event of each source is sent again.",
        },
        false,
        [("all", false), ("changes", true)],
    );
    let report = report(r);
    keep_rules(r, is_nothing, sample, is_by_exception, &report);
    match NonZeroU32::new(u32::try_from(sample).unwrap_or(SAMPLE_MAX)) {
        _ if is_nothing => Keep::Nothing,
        _ if is_by_exception => Keep::Changes(report),
        Some(sample) if sample.get() > 1 => Keep::OneIn(sample),
        _ => Keep::All,
    }
}

const NEEDS_REPORT: &str = "needs route.report = \"changes\"";

/// What goes together.
fn keep_rules(r: &mut Reader, is_nothing: bool, sample: u64, is_by_exception: bool, report: &Report) {
    let Report { value, deadband, max_silence } = report;
    let has_deadband = *deadband != Deadband::default();
    for (holds, key, others, what) in [
        (
            !(is_nothing && sample > 1),
            "route.sample",
            &["route.drop"],
            "has no effect with route.drop = true: nothing of its events goes on",
        ),
        (
            !(is_nothing && is_by_exception),
            "route.report",
            &["route.drop"],
            "has no effect with route.drop = true: nothing of its events goes on",
        ),
        (
            !(sample > 1 && is_by_exception),
            "route.sample",
            &["route.report"],
            "does not go with route.report = \"changes\": what is sampled out could be the one change",
        ),
        (value.is_none() || is_by_exception, "route.value", &["route.report"], NEEDS_REPORT),
        (!has_deadband || is_by_exception, "route.deadband", &["route.report"], NEEDS_REPORT),
        (max_silence.is_none() || is_by_exception, "route.max_silence", &["route.report"], NEEDS_REPORT),
        (
            !has_deadband || value.is_some() || !is_by_exception,
            "route.deadband",
            &["route.value"],
            "needs route.value, which says where the number is",
        ),
    ] {
        r.relation(holds, key, others, what.to_owned());
    }
}

fn report(r: &mut Reader) -> Report {
    let value = r.optional_text(
        Key {
            name: "route.value",
            meaning: "For `report`: JSON pointer to the number that counts, `/celsius` or `/data/0/value`; empty for a payload \
                      that is a number itself.",
            delivery: "A payload without a number there is sent, and so is the next number.",
        },
        "a JSON pointer of up to 256 bytes",
        ("the whole payload is compared", "/celsius"),
        Pointer::parse,
    );
    let deadband = r.number(
        Key {
            name: "route.deadband",
            meaning: "For `report`: a number is new when it differs by more than this from the one sent last.",
            delivery: "",
        },
        0.0,
        0.0..=DEADBAND_MAX,
    );
    let max_silence = r.duration(
        Key {
            name: "route.max_silence",
            meaning: "For `report`: a value that came so long after the one sent last is sent although it is the same; `0s`: \
                      never.",
            delivery: "",
        },
        secs(0),
        secs(0)..=mins(60 * 24 * 365),
    );
    let max_silence = Some(max_silence).filter(|silence| !silence.is_zero());
    Report { value, deadband: Deadband::new(deadband).unwrap_or_default(), max_silence }
}

fn pattern(
    r: &mut Reader,
    name: &'static str,
    meaning: &'static str,
    example: &'static str,
) -> Option<Pattern> {
    r.optional_text(
        Key { name, meaning, delivery: "" },
        "1 to 256 bytes",
        ("every event matches", example),
        |text| parse::length(text, PATTERN_BYTES_MAX).map(Pattern::new),
    )
}
