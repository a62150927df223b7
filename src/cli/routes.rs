//! Routes in words, for the commands that show them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::buffer::WhenFull;
use crate::config::Config;
use crate::config::units::format_duration;
use crate::ingest::route::{Keep, Report, Route};

/// The route table as comments of a configuration file.
pub(super) fn table(config: &Config) -> String {
    let rest = others(config);
    let routes = config.routes.all();
    let numbers = (1..=routes.len()).map(|number| number.to_string()).chain([String::new()]);
    let rows = routes.iter().chain([&rest]).zip(numbers);
    let rows: Vec<_> = rows
        .map(|(route, number)| (number, route.name.clone(), pattern(route), then(route, config)))
        .collect();
    let width = |of: fn(&(String, String, String, String)) -> &str| {
        rows.iter().map(|row| of(row).chars().count()).max().unwrap_or_default()
    };
    let (names, patterns) = (width(|row| &row.1), width(|row| &row.2));
    let mut text =
        "# Routes, in the order in which they are tried; the first one that matches an event counts:\n"
            .to_owned();
    for (number, name, pattern, then) in &rows {
        let _ = writeln!(text, "# {number:>3} {name:<names$}  {pattern:<patterns$}  -> {then}");
    }
    text
}

/// The same for scripts: what counts in the end, under the names of the keys.
pub(super) fn table_json(config: &Config) -> Value {
    let rest = others(config);
    let numbered = (1..).map(Some).zip(config.routes.all());
    numbered.chain([(None, &rest)]).map(|(number, route)| route_json(number, route, config)).collect()
}

/// What counts for events that no route matches, as a route.
fn others(config: &Config) -> Route {
    let name = if config.routes.all().is_empty() { "all events" } else { "all others" };
    Route { name: name.to_owned(), when_full: None, topic: topic(config), ..Route::default() }
}

fn topic(config: &Config) -> Option<String> {
    config.kafka.as_ref().map(|_| config.records.topic.to_string())
}

fn route_json(number: Option<usize>, route: &Route, config: &Config) -> Value {
    let text = |field: &Option<_>| field.as_ref().map(ToString::to_string);
    let (is_dropped, one_in, report) = match &route.keep {
        Keep::All => (false, 1, None),
        Keep::Nothing => (true, 1, None),
        Keep::OneIn(one_in) => (false, one_in.get(), None),
        Keep::Changes(report) => (false, 1, Some(report)),
    };
    json!({
        "number": number,
        "name": number.map(|_| &route.name),
        "mqtt_topic": route.mqtt_topic.as_ref().map(ToString::to_string),
        "type": text(&route.kind),
        "source_type": text(&route.source_type),
        "source_id": text(&route.source_id),
        "topic": route.topic.clone().or_else(|| topic(config)),
        "ping": !route.is_quiet,
        "when_full": route.when_full.map(WhenFull::word),
        "priority": route.priority,
        "drop": is_dropped,
        "sample": one_in,
        "report": if report.is_some() { "changes" } else { "all" },
        "value": report.and_then(|report| report.value.as_ref()).map(ToString::to_string),
        "deadband": report.map(|report| report.deadband.width()),
        "max_silence": report.and_then(|report| report.max_silence).map(format_duration),
    })
}

/// Which events: `type alarm*, source_type pump`.
fn pattern(route: &Route) -> String {
    let named = [("type", &route.kind), ("source_type", &route.source_type), ("source_id", &route.source_id)];
    let names = named.iter().filter_map(|(name, pattern)| Some(format!("{name} {}", pattern.as_ref()?)));
    let topic = route.mqtt_topic.as_ref().map(|filter| format!("mqtt_topic {filter}"));
    let parts: Vec<_> = topic.into_iter().chain(names).collect();
    if parts.is_empty() { "every event".to_owned() } else { parts.join(", ") }
}

/// What becomes of them.
fn then(route: &Route, config: &Config) -> String {
    if route.keep == Keep::Nothing {
        return keep(&route.keep);
    }
    let topic = route.topic.clone().or_else(|| topic(config));
    let mut parts = vec![match topic {
        Some(topic) => format!("topic {topic}"),
        None => "kafka.topic".to_owned(),
    }];
    parts.extend(route.is_quiet.then(|| "no ping".to_owned()));
    parts.push(format!("priority {}", route.priority));
    parts.extend(route.when_full.map(|when_full| format!("when_full {}", when_full.word())));
    parts.extend((route.keep != Keep::All).then(|| keep(&route.keep)));
    parts.join(", ")
}

/// How many of a route's events go on.
pub(super) fn keep(keep: &Keep) -> String {
    match keep {
        Keep::All => "all go on".to_owned(),
        Keep::Nothing => "dropped and counted".to_owned(),
        Keep::OneIn(one_in) => format!("one in {one_in} of each source and type, beginning with the first"),
        Keep::Changes(Report { value, deadband, max_silence }) => {
            let mut text = match value {
                None => "changes of the payload".to_owned(),
                Some(_) if deadband.width() == 0.0 => "changes".to_owned(),
                Some(_) => format!("changes by more than {}", deadband.width()),
            };
            if let Some(pointer) = value.as_ref().map(ToString::to_string) {
                let pointer = if pointer.is_empty() { "the number" } else { &pointer };
                let _ = write!(text, " of {pointer}");
            }
            if let Some(silence) = max_silence {
                let _ = write!(text, ", or the same after {}", format_duration(*silence));
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(routes: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fieldpost.toml");
        let text = format!("[agent]\nid = \"a\"\n[kafka]\nbrokers = \"k\"\ntopic = \"readings\"\n{routes}");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), std::iter::empty()).unwrap().config
    }

    const ROUTES: &str = r#"
        [[route]]
        name = "alarms"
        mqtt_topic = "plant/#"
        type = "alarm*"
        topic = "alarms"
        ping = false
        when_full = "block"
        priority = 9
        [[route]]
        source_type = "debug"
        drop = true
        [[route]]
        type = "vibration"
        sample = 10
        [[route]]
        type = "temperature"
        report = "changes"
        value = "/celsius"
        deadband = 0.5
        max_silence = "1h"
    "#;

    #[test]
    fn the_table_says_which_events_and_what_becomes_of_them() {
        assert_eq!(
            table(&config(ROUTES)),
            "\
# Routes, in the order in which they are tried; the first one that matches an event counts:
#   1 alarms      mqtt_topic plant/#, type alarm*  -> topic alarms, no ping, priority 9, when_full block
#   2 route-2     source_type debug                -> dropped and counted
#   3 route-3     type vibration                   -> topic readings, priority 0, one in 10 of each source and type, beginning with the first
#   4 route-4     type temperature                 -> topic readings, priority 0, changes by more than 0.5 of /celsius, or the same after 1h
#     all others  every event                      -> topic readings, priority 0
"
        );
        let bare = table(&config(""));
        assert!(bare.ends_with("#     all events  every event  -> topic readings, priority 0\n"), "{bare}");
    }

    #[test]
    fn the_table_for_scripts_has_the_names_of_the_keys() {
        let table = table_json(&config(ROUTES));
        assert_eq!(table.as_array().unwrap().len(), 5);
        assert_eq!(
            table[0],
            json!({
                "number": 1, "name": "alarms", "mqtt_topic": "plant/#", "type": "alarm*", "source_type": null,
                "source_id": null, "topic": "alarms", "ping": false, "when_full": "block", "priority": 9, "drop": false,
                "sample": 1, "report": "all", "value": null, "deadband": null, "max_silence": null,
            })
        );
        assert_eq!((&table[1]["drop"], &table[2]["sample"]), (&true.into(), &10.into()));
        assert_eq!(
            ["report", "value", "deadband", "max_silence"].map(|key| &table[3][key]),
            [&json!("changes"), &json!("/celsius"), &json!(0.5), &json!("1h")]
        );
        assert_eq!((&table[4]["number"], &table[4]["topic"]), (&Value::Null, &json!("readings")));
    }
}
