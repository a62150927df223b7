//! The document of the interface, made from the routes' own words and from a status, and held against the file.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::events::{Filter, Page, PageLimits, Position, json_of, take_stored};
use super::routes::Shared;
use super::server::Sources;
use super::stream::{Follower, Stream};
use crate::buffer::view::Place;
use crate::buffer::{Batch, Buffer, Options, RecentLimits, Wait};
use crate::event::{Event, EventId, Payload, Seq, Stamp, Way};
use crate::stats::LinkState;
use crate::status::tests::overview;

/// The schema of what both values are: the second has `null` where a field may be.
fn schema_of(value: &Value, other: &Value) -> Value {
    let nullable = |kind: &str| {
        if other.is_null() { json!({ "type": [kind, "null"] }) } else { json!({ "type": kind }) }
    };
    match value {
        Value::Null => panic!("a sample has every field"),
        Value::Bool(_) => nullable("boolean"),
        Value::Number(number) if number.is_f64() => nullable("number"),
        Value::Number(_) => nullable("integer"),
        Value::String(_) => nullable("string"),
        Value::Array(_) => panic!("a status has no lists"),
        Value::Object(fields) => {
            let properties: Map<String, Value> = fields
                .iter()
                .map(|(name, field)| {
                    (name.clone(), schema_of(field, other.get(name).unwrap_or(&Value::Null)))
                })
                .map(|(name, schema)| {
                    if name == "ledger" {
                        let losses = schema["properties"]["evicted"].clone();
                        return (name, json!({ "type": "object", "additionalProperties": losses }));
                    }
                    (name, schema)
                })
                .collect();
            let required: Vec<_> = properties.keys().cloned().collect();
            let mut schema = nullable("object");
            schema["properties"] = Value::Object(properties);
            schema["required"] = json!(required);
            schema
        }
    }
}

async fn status_schema() -> Value {
    let dir = tempfile::tempdir().unwrap();
    let overview = overview(dir.path());
    let min = overview.look();
    let stats = overview.stats();
    for link in [&stats.mqtt, &stats.kafka, &stats.redis, &stats.http] {
        link.set(LinkState::Up);
        link.failed("x");
    }
    stats.oldest_boot_us.set(1);
    let mut full = overview.look();
    full.disk.device_bytes = Some(1);
    let losses = crate::status::Losses { events: 1, acknowledged: true, first: "x".into(), last: "x".into() };
    full.ledger.insert("evicted".into(), losses);
    let mut min = serde_json::to_value(min).unwrap();
    for name in [
        "/buffer/drained_in_s",
        "/disk/free_bytes",
        "/disk/device_bytes",
        "/memory/resident_bytes",
        "/memory/peak_bytes",
    ] {
        *min.pointer_mut(name).unwrap() = Value::Null;
    }
    min["ledger"]["evicted"] = json!({ "events": 1, "acknowledged": true, "first": "x", "last": "x" });
    overview.buffer().close().await;
    schema_of(&serde_json::to_value(full).unwrap(), &min)
}

fn answers(description: &str, schema: &str) -> Value {
    let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

fn parameter(name: &str, place: &str, description: &str, schema: &Value) -> Value {
    let required = place == "path";
    json!({ "name": name, "in": place, "required": required, "description": description, "schema": schema })
}

/// A route: its answers without those that every route has.
fn route(summary: &str, parameters: &[Value], own: &[(&str, Value)]) -> Value {
    let mut responses: Map<String, Value> = [
        ("401", "The token of http.token_file is missing or wrong."),
        ("413", "A request has no body here."),
        ("421", "The Host header does not name this machine (on loopback)."),
        ("503", "Something is taken or cannot be had now; try again."),
    ]
    .map(|(status, what)| (status.to_owned(), answers(what, "Error")))
    .into_iter()
    .collect();
    responses.extend(own.iter().map(|(status, answer)| ((*status).to_owned(), answer.clone())));
    json!({ "get": { "summary": summary, "parameters": parameters, "responses": responses } })
}

#[allow(clippy::too_many_lines, reason = "one document")]
fn document(status: &Value) -> Value {
    let text = json!({ "type": "string" });
    let position = json!({ "type": "string", "pattern": "^[0-9]+-[0-9]+$" });
    let named = |name: &str, what: &str| parameter(name, "query", what, &text);
    let wanted = [
        named("source_id", "Events of this source alone."),
        named("type", "Events of this type alone."),
        parameter("after", "query", "Events behind this position.", &position),
    ];
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 100 });
    let of_page = [wanted.to_vec(), vec![parameter("limit", "query", "Most events.", &limit)]].concat();
    let of_stream = [
        wanted.to_vec(),
        vec![parameter("Last-Event-ID", "header", "As `after`, and counts for more.", &text)],
    ]
    .concat();
    let plain =
        |what: &str, kind: &str| json!({ "description": what, "content": { kind: { "schema": text } } });
    let count = json!({ "type": "integer" });
    let wrong = answers("A parameter is unknown or wrong.", "Error");
    let ready = answers("Events move.", "Readiness");
    let not_ready = answers("They do not, or soon will not, and why.", "Readiness");
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "fieldpost",
            "version": "1",
            "description": "Status, events and metrics of one agent, for reading alone. Fields are added without a new version.",
            "license": { "name": "Apache-2.0 OR MIT" },
        },
        "paths": {
            "/status": route("How the agent is", &[], &[("200", answers("The status.", "Status"))]),
            "/": route("The page for people; needs no token itself", &[], &[("200", plain("HTML.", "text/html"))]),
            "/history": route("The last hour in samples of ten seconds", &[], &[("200", answers("Oldest first.", "History"))]),
            "/healthz": route("Whether the process answers; needs no token", &[], &[("200", answers("It does.", "Health"))]),
            "/readyz": route("Whether events move, or why not", &[], &[("200", ready), ("503", not_ready)]),
            "/metrics": route("Metrics as OpenMetrics", &[], &[("200", plain("docs/metrics.md has them.", "application/openmetrics-text"))]),
            "/events": route("Events behind a position, or the last ones", &of_page, &[
                ("200", answers("Events in order.", "Page")),
                ("400", wrong.clone()),
            ]),
            "/events/stream": route("Events as they become durable, as server-sent events", &of_stream, &[
                ("200", plain("`message` is an event, its `id` the position; `gap` and `lagged` say what is not there.", "text/event-stream")),
                ("400", wrong.clone()),
            ]),
            "/events/{id}": route("One event", &[parameter("id", "path", "Its id, among the last events, or its position.", &text)], &[
                ("200", answers("The event.", "Event")),
                ("400", wrong),
                ("404", answers("It is not kept.", "Error")),
            ]),
            "/openapi.json": route("This document", &[], &[("200", json!({
                "description": "OpenAPI 3.1.",
                "content": { "application/json": { "schema": { "type": "object" } } },
            }))]),
        },
        "components": { "schemas": {
            "Status": status,
            "History": { "type": "object", "required": ["samples"], "properties": { "samples": { "type": "array", "items": {
                "type": "object",
                "required": ["at_s", "received", "delivered", "waiting"],
                "properties": { "at_s": count, "received": count, "delivered": count, "waiting": count },
            } } } },
            "Health": { "type": "object", "required": ["status"], "properties": { "status": { "const": "ok" } } },
            "Readiness": { "type": "object", "required": ["ready", "reasons"], "properties": {
                "ready": { "type": "boolean" },
                "reasons": { "type": "array", "items": text },
            } },
            "Error": { "type": "object", "required": ["error"], "properties": { "error": text } },
            "Page": { "type": "object", "required": ["events", "next", "gap"], "properties": {
                "events": { "type": "array", "items": { "$ref": "#/components/schemas/Event" } },
                "next": position,
                "gap": { "type": ["object", "null"], "required": ["after", "to"], "properties": { "after": position, "to": position } },
            } },
            "Event": { "type": "object", "required": ["position", "version", "id", "type", "source_type", "source_id", "timestamp"],
                "properties": {
                    "position": position,
                    "version": { "const": 1 },
                    "id": text, "type": text, "source_type": text, "source_id": text, "timestamp": text,
                    "payload": true,
                    "payload_base64": text,
                } },
        } },
    })
}

#[tokio::test]
async fn the_document_is_what_is_served() {
    let document = document(&status_schema().await);
    let text = serde_json::to_string_pretty(&document).unwrap();
    crate::config::tests::assert_file("src/http/openapi.json", &format!("{text}\n"));
}

/// What the document has, the router has, and the other way round.
#[test]
fn every_route_is_in_the_document() {
    let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
    let documented: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let routes = include_str!("routes.rs");
    let mut routed: Vec<_> =
        routes.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    routed.sort();
    let mut sorted = documented;
    sorted.sort();
    assert_eq!(routed, sorted);
}

#[test]
fn positions_are_read_as_they_are_written() {
    let position = Position { epoch: 3, seq: Seq(17) };
    assert_eq!((position.to_string().as_str(), "3-17".parse()), ("3-17", Ok(position)));
    let above = format!("1-{}", u64::MAX);
    for wrong in ["", "-", "3", "3-", "-17", "+3-17", "3-17-1", "3-1x", "4294967296-1", &above] {
        assert!(wrong.parse::<Position>().is_err(), "{wrong}");
    }
}

fn event<'a>(kind: &'a str, payload: Payload<'a>) -> Event<'a> {
    Event {
        id: EventId::Given("i"),
        kind,
        source_type: "s",
        source_id: "1",
        timestamp: Some("2026-03-01T12:00:00Z"),
        received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: true },
        payload,
        way: Way::USUAL,
    }
}

fn kinds(page: &Page) -> Vec<String> {
    let json = |frame| serde_json::from_slice::<Value>(&json_of(frame)).unwrap();
    page.frames.iter().map(|frame| json(frame)["type"].as_str().unwrap().to_owned()).collect()
}

async fn append(buffer: &Buffer, kinds: &[&str]) {
    let mut batch = Batch::new();
    for kind in kinds {
        batch.push(&event(kind, Payload::Json("[1,\r\n \"a\\n\"]")), 1000).unwrap();
    }
    buffer.append(batch, Wait::Forever).await.unwrap();
}

const MANY: PageLimits = PageLimits { events: 100, bytes: 100_000 };

#[tokio::test]
async fn a_page_comes_from_the_directory_and_from_memory_without_a_seam() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path());
    let (buffer, writer) = Buffer::open(&options, [0; 16], std::sync::Arc::default()).unwrap();
    append(&buffer, &["a", "b", "c"]).await;
    buffer.close().await;
    writer.ended().await.unwrap();
    let (buffer, _) = Buffer::open(&options, [0; 16], std::sync::Arc::default()).unwrap();
    let recent = buffer.keep_recent(RecentLimits { bytes_max: 1 << 20, events_max: 100 });
    append(&buffer, &["d", "b"]).await;
    let place = Place { dir: options.dir.clone(), ledger: options.ledger.clone() };
    let read = |after: u64, filter: &Filter, limits: PageLimits| {
        let mut page = Page::at(Seq(after));
        while let Some(to) = page.take_recent(&recent, 2, filter, limits) {
            take_stored(&mut page, &place, to, filter, limits).unwrap();
            if page.is_full(limits) {
                break;
            }
        }
        page
    };
    let all = read(1, &Filter::default(), MANY);
    assert_eq!(
        (kinds(&all), all.end, all.gap),
        (["b", "c", "d", "b"].map(String::from).into(), Seq(5), None)
    );
    let text = std::str::from_utf8(&all.frames[0]).unwrap();
    assert_eq!(
        text,
        "id: 1-2\ndata: {\"position\":\"1-2\",\"version\":1,\"id\":\"i\",\"type\":\"b\",\"source_type\":\"s\",\
         \"source_id\":\"1\",\"timestamp\":\"2026-03-01T12:00:00Z\",\"payload\":[1,   \"a\\n\"]}\n\n"
    );
    assert!(all.frames[2].starts_with(b"id: 2-4\n"));
    let two = read(0, &Filter::default(), PageLimits { events: 4, ..MANY });
    assert_eq!((kinds(&two), two.end), (["a", "b", "c", "d"].map(String::from).into(), Seq(4)));
    let some = read(0, &Filter { kind: Some("b".into()), source_id: Some("1".into()) }, MANY);
    assert_eq!((kinds(&some), some.end), (["b", "b"].map(String::from).into(), Seq(5)));
    let none = read(0, &Filter { source_id: Some("2".into()), kind: None }, MANY);
    assert_eq!((none.frames.len(), none.end, none.gap), (0, Seq(5), None));
    buffer.commit_durable(Seq(2)).await.unwrap();
    let late = read(0, &Filter::default(), MANY);
    assert_eq!((kinds(&late), late.gap), (["c", "d", "b"].map(String::from).into(), Some((Seq(1), Seq(2)))));
    buffer.close().await;
}

fn shared(dir: &std::path::Path, events_max: usize) -> Arc<Shared> {
    let overview = Arc::new(overview(dir));
    let recent = overview.buffer().keep_recent(RecentLimits { bytes_max: 1 << 20, events_max });
    let options = super::Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        token: None,
        connections_max: super::CONNECTIONS_SPARE + 1,
        recent: RecentLimits { bytes_max: 1 << 20, events_max },
        ready_age_max: Duration::ZERO,
    };
    let Options { dir, ledger, .. } = Options::new(dir);
    let place = Place { dir, ledger };
    let sources = Sources { overview, recent, place, stopping: CancellationToken::new() };
    Arc::new(Shared::new(options, sources, CancellationToken::new()))
}

fn follow(shared: &Arc<Shared>, after: Option<Position>) -> Stream {
    let place = Arc::clone(&shared.streams).try_acquire_owned().unwrap();
    Follower::new(Arc::clone(shared), Filter::default(), after, place).into_stream()
}

async fn word(stream: &mut Stream) -> Option<String> {
    let frame = stream.frame().await?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

#[tokio::test]
async fn a_reader_that_falls_behind_is_told_and_left() {
    let dir = tempfile::tempdir().unwrap();
    let shared = shared(dir.path(), 3);
    let buffer = shared.overview.buffer();
    let mut stream = follow(&shared, None);
    assert_eq!(word(&mut stream).await.unwrap(), "retry: 2000\n\n");
    append(buffer, &["a"]).await;
    assert!(word(&mut stream).await.unwrap().starts_with("id: 1-1\ndata: "));
    for kind in ["b", "c", "d", "e"] {
        append(buffer, &[kind]).await;
    }
    let lagged = word(&mut stream).await.unwrap();
    assert!(lagged.starts_with("event: lagged\ndata: {\"after\":\"1-1\",\"to\":\"1-2\","), "{lagged}");
    assert_eq!((word(&mut stream).await, shared.streams.available_permits()), (None, 1));
    // At its last position it goes on out of the buffer's directory.
    let mut again = follow(&shared, Some(Position { epoch: 1, seq: Seq(1) }));
    let words = [word(&mut again).await, word(&mut again).await, word(&mut again).await];
    let found: Vec<_> = words.iter().flatten().filter_map(|word| word.lines().next()).collect();
    assert_eq!(found, ["retry: 2000", "id: 1-2", "id: 1-3"]);
    shared.stop.cancel();
    while word(&mut again).await.is_some() {}
    buffer.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_news_says_that_it_lives() {
    let dir = tempfile::tempdir().unwrap();
    let shared = shared(dir.path(), 3);
    let mut stream = follow(&shared, None);
    word(&mut stream).await;
    assert_eq!(word(&mut stream).await.unwrap(), ": nothing new\n\n");
    shared.stop.cancel();
    assert_eq!(word(&mut stream).await, None);
    shared.overview.buffer().close().await;
}
