//! The HTTP interface: what it answers, to whom, and that nobody who asks slows anything down.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer, line_of};
use crate::harness::http::{EventStream, address_of, ask, connect, get, get_with_token};
use crate::harness::kafka::create_topic;
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

/// Nobody listens there: Kafka is down.
const NOWHERE: &str = "127.0.0.1:1";

fn agent_with(brokers: &str, listen: &str) -> Agent {
    let topic = if brokers == NOWHERE { "events".to_owned() } else { create_topic(brokers, 1) };
    Agent::start(|config| {
        config.kafka(brokers, &topic).set("http.listen", listen);
    })
}

/// Sends events `numbers` of `source` and waits until they are acknowledged.
#[track_caller]
fn send(agent: &Agent, source: &str, numbers: std::ops::Range<u64>) {
    let mut client = agent.unix();
    let count = numbers.end - numbers.start;
    for n in numbers {
        client.send_line(&line_of(source, n, 10));
    }
    client.wait_ack(count, USUAL);
}

fn ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["id"].as_str().unwrap()).collect()
}

fn document() -> Value {
    serde_json::from_str(include_str!("../../src/http/openapi.json")).unwrap()
}

/// The schema of an answer, with what it refers to.
fn schema_of(document: &Value, path: &str, status: u16) -> Option<Value> {
    let answer = &document["paths"][path]["get"]["responses"][status.to_string()];
    assert!(answer.is_object(), "{path} does not say what {status} is");
    let mut schema = answer["content"]["application/json"]["schema"].clone();
    schema.as_object_mut()?.insert("components".into(), document["components"].clone());
    Some(schema)
}

#[track_caller]
fn assert_answers(address: &str, route: &str, path: &str, status: u16) -> Value {
    let answer = get(address, path);
    assert_eq!(answer.status, status, "{path}: {answer:?}");
    assert_eq!(answer.headers["cache-control"], "no-store");
    let Some(schema) = schema_of(&document(), route, status) else { return Value::Null };
    let body = answer.json();
    let errors: Vec<_> = jsonschema::validator_for(&schema)
        .unwrap()
        .iter_errors(&body)
        .map(|error| format!("{error} at {}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{path}: {errors:?} in {body}");
    body
}

#[test]
fn every_route_answers_as_the_document_says() {
    let mut agent = agent_with(&Shared::get().kafka, "127.0.0.1:0");
    let address = address_of(&agent);
    let source = unique("s");
    send(&agent, &source, 0..5);
    agent.wait_log("Kafka link up", USUAL);
    eventually("it is ready", USUAL, || (get(&address, "/readyz").status == 200).then_some(()));
    let status = assert_answers(&address, "/status", "/status", 200);
    assert_eq!((&status["inputs"]["unix_events"], &status["kafka"]["state"]), (&json!(5), &json!("up")));
    assert_answers(&address, "/healthz", "/healthz", 200);
    assert_answers(&address, "/readyz", "/readyz", 200);
    let history = assert_answers(&address, "/history", "/history", 200);
    assert_eq!(history["samples"].as_array().unwrap().last().unwrap()["received"], 5);
    let page = get(&address, "/");
    assert!(page.status == 200 && page.body.starts_with("<!doctype html>"), "{page:?}");
    assert!(page.headers["content-security-policy"].starts_with("default-src 'none';"), "{page:?}");
    let events = assert_answers(&address, "/events", "/events", 200);
    assert_eq!(
        ids(events["events"].as_array().unwrap()),
        (0..5).map(|n| format!("{source}-{n}")).collect::<Vec<_>>()
    );
    assert_eq!(events["events"][4]["payload"]["n"], 4);
    let third = events["events"][2]["position"].as_str().unwrap();
    let rest = assert_answers(&address, "/events", &format!("/events?after={third}&limit=1"), 200);
    assert_eq!(ids(rest["events"].as_array().unwrap()), [format!("{source}-3")]);
    assert_eq!(rest["next"], events["events"][3]["position"]);
    let none = assert_answers(&address, "/events", "/events?source_id=nobody&type=reading", 200);
    assert_eq!((&none["events"], &none["next"]), (&json!([]), &events["next"]));
    for id in [third, &format!("{source}-2")] {
        let event = assert_answers(&address, "/events/{id}", &format!("/events/{id}"), 200);
        assert_eq!(event, events["events"][2]);
    }
    assert_answers(&address, "/events/{id}", "/events/nobody", 404);
    for wrong in ["after=x", "limit=0", "limit=1001", "limit=x", "colour=red", "limit=1&limit=2"] {
        assert_answers(&address, "/events", &format!("/events?{wrong}"), 400);
    }
    assert_answers(&address, "/events/stream", "/events/stream?after=1", 400);
    let metrics = get(&address, "/metrics");
    assert!(metrics.headers["content-type"].starts_with("application/openmetrics-text"));
    assert!(metrics.body.contains("fieldpost_received_events_total{input=\"unix\"} 5\n"), "{}", metrics.body);
    assert!(metrics.body.contains("fieldpost_durable_latency_seconds_count 5\n"), "{}", metrics.body);
    assert_eq!(get(&address, "/openapi.json").json(), document());
    assert_eq!(get(&address, "/nothing").status, 404);
    let foreign = ask(&address, "GET /events HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!(foreign.status, 421);
    let long = format!("GET / HTTP/1.1\r\nHost: {address}\r\nx: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(ask(&address, &long).status, 431);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn beyond_loopback_nobody_gets_in_without_the_token() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "hush\n").unwrap();
    let path = token.path().display().to_string();
    let agent = Agent::start(|config| {
        config.kafka(NOWHERE, "events").set("http.listen", "0.0.0.0:0").set("http.token_file", path);
    });
    let address = address_of(&agent);
    for route in [
        "/events",
        "/events/stream",
        "/status",
        "/metrics",
        "/readyz",
        "/history",
        "/openapi.json",
        "/nothing",
    ] {
        assert_eq!(get(&address, route).status, 401, "{route}");
        assert_eq!(get_with_token(&address, route, "husk").status, 401, "{route}");
    }
    assert_eq!(get(&address, "/healthz").status, 200);
    assert_eq!(get(&address, "/").status, 200, "the page asks for the token");
    assert_eq!(get_with_token(&address, "/status", "hush").status, 200);
    // Another token counts at once.
    std::fs::write(token.path(), "shush").unwrap();
    assert_eq!(get_with_token(&address, "/status", "hush").status, 401);
    assert_eq!(get_with_token(&address, "/status", "shush").status, 200);
    assert!(!agent.log().iter().any(|line| line.contains("hush")), "no token in the log");
}

#[test]
fn a_stream_goes_on_over_a_restart_and_says_what_is_gone() {
    let mut agent = agent_with(NOWHERE, "127.0.0.1:0");
    let source = unique("s");
    let mut stream = EventStream::open(&address_of(&agent), "/events/stream", None);
    send(&agent, &source, 0..6);
    let seen = stream.events(6);
    assert_eq!(seen[5].data["id"], format!("{source}-5"));
    let fourth = seen[3].id.clone().unwrap();
    agent.kill9();
    assert_eq!(stream.next(), None, "the stream ends with the agent");
    agent.begin();
    agent.wait_ready();
    // What waits for Kafka is in the buffer still.
    let mut again = EventStream::open(&address_of(&agent), "/events/stream", Some(&fourth));
    send(&agent, &source, 6..8);
    let words = again.events(4);
    let found: Vec<_> = words.iter().map(|word| word.data["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(found, (4..8).map(|n| format!("{source}-{n}")).collect::<Vec<_>>());
    assert_eq!(words[0].id, seen[4].id, "an event keeps its position");
    // One reader alone of another source is not told of these.
    let page = get(&address_of(&agent), &format!("/events?after={fourth}&source_id={source}&limit=3")).json();
    assert_eq!(ids(page["events"].as_array().unwrap()), found[..3]);
    assert_eq!(page["gap"], Value::Null);
    drop(again);
    // Kafka takes them, and with the next start they are in nobody's memory.
    agent.stop();
    agent.reconfigure(|config| {
        let topic = create_topic(&Shared::get().kafka, 1);
        config.shared_kafka(&topic);
    });
    agent.begin();
    agent.wait_ready();
    let address = address_of(&agent);
    eventually("all is delivered", USUAL, || {
        (get(&address, "/status").json()["buffer"]["events"] == 0).then_some(())
    });
    let mut late = EventStream::open(&address, "/events/stream", Some(&fourth));
    let gap = late.next().unwrap();
    let last = words[3].id.as_ref().unwrap().rsplit_once('-').unwrap().1;
    assert_eq!(
        (gap.kind.as_str(), &gap.data["after"].as_str().unwrap().rsplit_once('-').unwrap().1),
        ("gap", &fourth.rsplit_once('-').unwrap().1)
    );
    assert!(gap.data["to"].as_str().unwrap().ends_with(&format!("-{last}")), "{gap:?}");
    send(&agent, &source, 8..9);
    assert_eq!(late.events(1)[0].data["id"], format!("{source}-8"));
    let unknown = EventStream::open(&address, "/events/stream", Some("9-999999")).next().unwrap();
    assert_eq!(unknown.kind, "gap");
}

/// Half of 200 readers never read; the others follow. Memory stays bounded and producers are acknowledged.
#[test]
fn readers_that_never_read_hold_up_nobody() {
    const READERS: usize = 200;
    const EVENTS: u64 = 10_000;
    let topic = create_topic(&Shared::get().kafka, 1);
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("http.listen", "127.0.0.1:0").set("http.max_connections", 256);
        config.set("http.recent_bytes", "512KiB");
    });
    let address = address_of(&agent);
    let before_kb = agent.rss_kb();
    let source = unique("s");
    let path = "/events/stream";
    let asleep: Vec<TcpStream> =
        (0..READERS / 2).map(|_| EventStream::open(&address, path, None).abandon()).collect();
    let filtered = format!("/events/stream?source_id={}", unique("nobody"));
    let _quiet: Vec<EventStream> =
        (1..READERS / 2).map(|_| EventStream::open(&address, &filtered, None)).collect();
    let mut awake = EventStream::open(&address, path, None);
    let producer = Producer::start(
        &agent.socket(),
        &source,
        Pace { rate: Some(2_000), padding: 500, count: EVENTS, ..Pace::default() },
    );
    let mut seen = BTreeSet::new();
    let mut last = None;
    while seen.len() < usize::try_from(EVENTS).unwrap() {
        match awake.next() {
            Some(word) if word.kind == "message" => {
                last = word.id;
                seen.insert(word.data["payload"]["n"].as_u64().unwrap());
            }
            // Too slow on this machine: it is told, and goes on where it was.
            Some(word) => assert!(["lagged", "gap"].contains(&word.kind.as_str()), "{word:?}"),
            None => awake = EventStream::open(&address, path, last.as_deref()),
        }
        if producer.acked() == EVENTS && seen.contains(&(EVENTS - 1)) {
            break;
        }
    }
    assert_eq!(producer.finish(USUAL), EVENTS, "every event is acknowledged");
    assert!(seen.len() as u64 > EVENTS / 10, "{} seen", seen.len());
    let grown_kb = agent.rss_kb().saturating_sub(before_kb);
    assert!(grown_kb < 40 * 1024, "{grown_kb} KiB more with {READERS} readers");
    assert_eq!(get(&address, "/healthz").status, 200, "there is room for who asks how it is");
    drop(asleep);
}

#[test]
fn connections_are_bounded_and_some_are_not_for_streams() {
    let agent = Agent::start(|config| {
        config.kafka(NOWHERE, "events").set("http.listen", "127.0.0.1:0").set("http.max_connections", 16);
    });
    let address = address_of(&agent);
    let streams: Vec<_> = (0..8).map(|_| EventStream::open(&address, "/events/stream", None)).collect();
    let refused = get(&address, "/events/stream");
    assert_eq!(
        (refused.status, refused.json()["error"].as_str()),
        (503, Some("all streams are taken: http.max_connections"))
    );
    assert_eq!(get(&address, "/healthz").status, 200);
    let idle: Vec<_> = (0..8).map(|_| connect(&address)).collect();
    eventually("one more is told so", USUAL, || {
        let answer = std::panic::catch_unwind(|| get(&address, "/healthz")).ok()?;
        (answer.status == 503).then_some(())
    });
    drop((streams, idle));
    eventually("there is room again", USUAL, || {
        let answer = std::panic::catch_unwind(|| get(&address, "/healthz")).ok()?;
        (answer.status == 200).then_some(())
    });
}

#[test]
fn not_ready_says_why() {
    let agent = agent_with(NOWHERE, "127.0.0.1:0");
    let address = address_of(&agent);
    agent.wait_log("Kafka link down", USUAL);
    let body = assert_answers(&address, "/readyz", "/readyz", 503);
    let reason = body["reasons"][0].as_str().unwrap();
    assert!(reason.starts_with("kafka is down for "), "{reason}");
    assert_eq!(get(&address, "/healthz").status, 200);
    let status = get(&address, "/status").json();
    assert!(status["kafka"]["last_error"]["what"].as_str().is_some_and(|what| !what.is_empty()), "{status}");
}

#[test]
fn a_port_that_is_taken_keeps_nothing_else_from_starting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let mut agent = agent_with(NOWHERE, &listen);
    agent.wait_log("HTTP cannot be served", USUAL);
    send(&agent, &unique("s"), 0..1);
    drop(taken);
    let address = address_of(&agent);
    assert_eq!(get(&address, "/status").json()["http"]["state"], "up");
    // A connection that never asks does not hold up the stop.
    let mut half = connect(&address);
    half.write_all(b"GET /status HT").unwrap();
    let _stream = EventStream::open(&address, "/events/stream", None);
    assert_eq!(agent.stop().code(), Some(0));
    assert!(agent.log_contains(", http up"), "the last status line has it");
}
