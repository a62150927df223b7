//! The keys of a `[[route]]`.

use super::super::parse;
use super::super::problem::Problem;
use super::super::reader::{Key, Reader};
use super::super::value::quote;
use super::WHEN_FULL;
use crate::buffer::Rank;
use crate::ingest::route::{PATTERN_BYTES_MAX, Pattern, ROUTES_MAX, Route, Routes};

/// The table's name.
const ROUTE: &str = "route";

/// All routes.
pub(super) fn routes(r: &mut Reader) -> Routes {
    let found = r.tables(
        ROUTE,
        "What is agreed about events by what they are: a table for each route, at most 64. The first one whose patterns all \
         match counts; an event without a route goes by its input's `when_full` and has priority 0. In a pattern `*` stands \
         for any text, also for none.",
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
    Routes::new(found.into_iter().map(|(route, _)| route).collect())
}

fn route(r: &mut Reader, number: usize) -> Route {
    let name = r.derived_text(
        Key { name: "route.name", meaning: "Name of the route, for messages.", delivery: "" },
        "1 to 64 bytes, different for each route",
        ("`route-` and its number", "alarms"),
        format!("route-{number}"),
        |text| parse::length(text, 64).map(str::to_owned),
    );
    let kind = pattern(r, "route.type", "Pattern of the events' `type`.", "alarm");
    let source_type = pattern(r, "route.source_type", "Pattern of the events' `source_type`.", "pump");
    let source_id = pattern(r, "route.source_id", "Pattern of the events' `source_id`.", "line-1-*");
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
    Route { name, kind, source_type, source_id, when_full, priority }
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
