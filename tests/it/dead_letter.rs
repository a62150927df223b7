//! `fieldpost dead-letter`: what Kafka refused, beside a running agent and without one.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use fieldpost::dead_letter::{Letter, Name, Options, Store};
use fieldpost::event::{Event, EventId, Payload, Seq, Stamp, Way};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::agent::{Agent, fieldpost};
use crate::harness::flow::line_of;
use crate::harness::kafka::{Record, consume_count, create_topic, read_all};
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::USUAL;

/// Nobody listens there.
const NO_KAFKA: &str = "127.0.0.1:1";

const LOG: Uuid = Uuid::from_u128(0x08e1_dd69_c531_49c0_9c96_4ae6_a69a_ff3b);

/// 2026-03-01T12:00:00Z, and a second a position.
fn stamp(seq: u64, clock_trusted: bool) -> Stamp {
    Stamp { wall_us: 1_772_366_400_000_000 + seq.cast_signed() * 1_000_000, boot_us: seq, clock_trusted }
}

fn name(seq: u64) -> Name {
    Name { log: LOG, seq: Seq(seq) }
}

fn event<'a>(id: &'a str, payload: Payload<'a>) -> Event<'a> {
    Event {
        id: EventId::Given(id),
        kind: "reading",
        source_type: "thermometer",
        source_id: "t-4",
        timestamp: None,
        received: stamp(0, false),
        payload,
        way: Way::USUAL,
    }
}

/// An agent's dead letters, put as the agent puts them.
struct Letters(Store, PathBuf);

impl Letters {
    fn of(agent: &Agent) -> Self {
        let dir = agent.data_dir().join("dead-letters");
        Self(Store::open(Options { dir: dir.clone(), bytes_max: 64 << 20 }), dir)
    }

    fn put_in(&mut self, log: Uuid, seq: u64, event: &Event<'_>) {
        let letter = Letter {
            event,
            seq: Seq(seq),
            epoch: 3,
            agent: "gateway-17",
            log,
            topic: "readings",
            reason: "Broker: Message size too large",
            code: 10,
            attempts: 2,
            refused_at: stamp(seq, true),
        };
        assert!(self.0.put(&letter).unwrap().is_new);
    }

    fn put(&mut self, seq: u64, event: &Event<'_>) {
        self.put_in(LOG, seq, event);
    }

    /// Flips the last bit of a letter.
    fn damage(&self, seq: u64) {
        let path = self.1.join(name(seq).file_name());
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }

    fn left(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.1)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn names(seqs: &[u64]) -> Vec<String> {
    seqs.iter().map(|seq| name(*seq).file_name()).collect()
}

fn run(arguments: &[&str]) -> Output {
    let output = fieldpost().arg("dead-letter").args(arguments).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("--- dead-letter {arguments:?}: {}\n{error}---", output.status);
    assert!(!error.contains("panicked"), "{error}");
    output
}

/// A command on the store of `agent`, whose exit code is `code`: what it said on standard output and on standard error.
fn on(agent: &Agent, arguments: &[&str], code: i32) -> (String, String) {
    let config = agent.config_file();
    let output = run(&[arguments, &["--config", config.to_str().unwrap()]].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    (String::from_utf8(output.stdout).unwrap(), error)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn offline() -> Agent {
    Agent::prepare(|config| {
        config.kafka(NO_KAFKA, "none");
    })
}

#[test]
fn letters_are_listed_and_shown_the_damaged_ones_as_such() {
    let agent = offline();
    let (_, error) = on(&agent, &["list"], 74);
    assert!(error.contains("there is no directory") && error.contains("--data-dir"), "{error}");
    std::fs::create_dir(agent.data_dir()).unwrap();
    let (out, error) = on(&agent, &["list"], 0);
    assert_eq!((out.as_str(), error.contains("no dead letters")), ("", true));
    assert_eq!(on(&agent, &["list", "--json"], 0).0, "");

    let mut letters = Letters::of(&agent);
    letters.put(1000, &event("e-1000", Payload::Json("{\"c\": 21.50,\n\"b\":[]}")));
    letters.put(1001, &event("e-1001", Payload::Json("1")));
    letters.put(1002, &event("e-1002", Payload::Bytes(&[0, 255])));
    letters.damage(1001);
    let (text, error) = on(&agent, &["list"], 0);
    eprintln!("{text}");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "REFUSED", "SOURCE", "TYPE", "TOPIC", "CODE", "REASON"]);
    let wanted = ["1000-08e1dd69", "2026-03-01T12:16:40Z", "thermometer/t-4", "reading", "readings", "10"];
    assert_eq!(rows[1][..6], wanted);
    assert_eq!((rows[2][0], rows[2][1]), ("1001-08e1dd69", "damaged:"));
    assert_eq!(rows[3][0], "1002-08e1dd69");
    assert!(error.contains("3 dead letters, 12 KiB of 64 MiB; 1 damaged"), "{error}");

    let rows = lines(&on(&agent, &["list", "--json"], 0).0);
    let parts = |row: &Value| (row["seq"].clone(), row["code"].clone(), row["payload_bytes"].clone());
    assert_eq!(
        rows.iter().map(parts).collect::<Vec<_>>(),
        [
            (json!(1000), json!(10), json!(20)),
            (json!(1001), json!(null), json!(null)),
            (json!(1002), json!(10), json!(2)),
        ]
    );
    assert_eq!(
        (&rows[0]["refused"], &rows[0]["clock"]),
        (&json!("2026-03-01T12:16:40.000000Z"), &json!("trusted"))
    );
    assert!(rows[0].get("damaged").is_none() && rows[1]["damaged"].as_str().unwrap().contains("checksum"));

    let (text, _) = on(&agent, &["show", "1000"], 0);
    eprintln!("{text}");
    for part in [
        "letter    1000-08e1dd69-c531-49c0-9c96-4ae6a69aff3b\n",
        "refused   2026-03-01T12:16:40Z, after 2 attempts\n",
        "reason    Broker: Message size too large (code 10)\n",
        "epoch 3, position 1000\n",
        "taken     2026-03-01T12:00:00Z?\n",
        "payload   20 bytes of JSON\n{\n  \"c\": 21.50,\n  \"b\": []\n}\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(on(&agent, &["show", "1002"], 0).0.ends_with("payload   2 bytes in base64\nAP8=\n"));
    // By a name as a file manager has it, too.
    let shown = lines(&on(&agent, &["show", "--json", &name(1000).file_name()], 0).0);
    assert_eq!((&shown[0]["payload"]["c"], &shown[0]["id"]), (&json!(21.5), &json!("e-1000")));
    let shown = lines(&on(&agent, &["show", "--json", "1002-08e1"], 0).0);
    assert_eq!(shown[0]["payload_base64"], "AP8=");
    let (out, error) = on(&agent, &["show", "1001"], 65);
    assert!(out.is_empty() && error.contains("1001-08e1dd69: damaged: the checksum does not fit"), "{error}");
    assert!(on(&agent, &["show", "7"], 65).1.contains("there is no dead letter 7; see"));
    letters.put_in(Uuid::from_u128(7), 1000, &event("other", Payload::Json("1")));
    let (_, error) = on(&agent, &["show", "1000"], 65);
    assert!(error.contains("1000 fits more than one dead letter"), "{error}");
    assert!(on(&agent, &["show", "1000-0000"], 0).0.contains("other"));
    // Without a configuration, and from anywhere.
    let output = run(&["list", "--json", "--data-dir", agent.data_dir().to_str().unwrap()]);
    assert_eq!(lines(std::str::from_utf8(&output.stdout).unwrap()).len(), 4);
}

#[test]
fn an_export_leaves_the_letters_and_out_only_what_is_damaged() {
    let agent = offline();
    let mut letters = Letters::of(&agent);
    for seq in 1..=4 {
        letters.put(seq, &event(&format!("e-{seq}"), Payload::Json("{\"n\":\n1.50}")));
    }
    letters.damage(2);
    let (out, error) = on(&agent, &["export"], 65);
    assert!(error.contains("2-08e1dd69: damaged"), "{error}");
    let events = lines(&out);
    assert_eq!(events.iter().map(|event| event["id"].clone()).collect::<Vec<_>>(), ["e-1", "e-3", "e-4"]);
    assert!(out.contains("\"payload\":{\"n\": 1.50}"), "{out}");
    let wanted = json!({
        "agent": "gateway-17", "log": LOG, "epoch": 3, "seq": 1,
        "dead_letter": {"topic": "readings", "code": 10, "reason": "Broker: Message size too large", "attempts": 2,
                        "refused": "2026-03-01T12:00:01.000000Z"},
        "received": "2026-03-01T12:00:00.000000Z", "clock": "untrusted",
    });
    assert_eq!(events[0]["fieldpost"], wanted);

    let file = agent.home().join("refused.ndjson");
    let file = file.to_str().unwrap();
    assert!(on(&agent, &["export", "4", "3", "4", "--output", file], 0).1.contains("2 events written"));
    assert_eq!(lines(&std::fs::read_to_string(file).unwrap()).len(), 2);
    // It is not written over.
    assert!(on(&agent, &["export", "--output", file], 74).1.contains("cannot write"));
    assert_eq!(on(&agent, &["export", "9"], 65).0, "");
    assert_eq!(letters.left(), names(&[1, 2, 3, 4]));
}

#[test]
fn letters_are_dropped_by_name_by_time_and_all_of_them() {
    let agent = offline();
    let mut letters = Letters::of(&agent);
    for seq in 1..=6 {
        letters.put(seq, &event("e", Payload::Json("1")));
    }
    letters.damage(1);
    for wrong in
        [&["drop"][..], &["drop", "--all", "3"], &["drop", "--all", "--before", "2026-03-01T12:00:00Z"]]
    {
        on(&agent, wrong, 64);
    }
    let (_, error) = on(&agent, &["drop", "3"], 64);
    assert!(error.contains("no terminal to ask on: say --yes"), "{error}");
    on(&agent, &["drop", "3", "9", "--yes"], 65);
    assert_eq!(letters.left(), names(&[1, 2, 3, 4, 5, 6]));
    assert!(on(&agent, &["drop", "3", "--yes"], 0).1.contains("1 dead letter dropped"));
    // Nobody knows when the damaged one was refused.
    let (_, error) = on(&agent, &["drop", "--before", "2026-03-01T12:00:05Z", "--yes"], 0);
    assert!(error.contains("1-08e1dd69: damaged") && error.contains("2 dead letters dropped"), "{error}");
    assert_eq!(letters.left(), names(&[1, 5, 6]));
    assert!(on(&agent, &["drop", "--all", "--yes"], 0).1.contains("3 dead letters dropped"));
    assert_eq!(letters.left(), names(&[]));
    assert!(on(&agent, &["drop", "--all", "--yes"], 0).1.contains("nothing to drop"));
}

#[test]
fn a_retry_brings_letters_to_kafka_with_their_ids_and_drops_what_was_acknowledged() {
    let kafka = &Shared::get().kafka;
    let topic = create_topic(kafka, 1);
    let mut agent = Agent::prepare(|config| {
        config.shared_kafka(&topic).set("limits.max_event_bytes", "8 KiB");
    });
    let source = unique("s");
    let mut letters = Letters::of(&agent);
    let bytes: Vec<u8> = (0..=255).collect();
    let large = format!("\"{}\"", "x".repeat(9000));
    let reserved = Event { source_type: "fieldpost", ..event("own", Payload::Json("1")) };
    let ids: Vec<String> = (1..=5).map(|n| format!("{source}-{n}")).collect();
    letters.put(11, &event(&ids[0], Payload::Json("{\"n\":\n1.50}")));
    letters.put(12, &event("large", Payload::Json(&large)));
    letters.put(13, &event(&ids[1], Payload::Bytes(&bytes)));
    letters.put(14, &event("damaged", Payload::Json("1")));
    letters.damage(14);
    letters.put(15, &reserved);
    letters.put(16, &event(&ids[2], Payload::Json("null")));

    // Only now: one process puts, and that is the agent while it runs.
    agent.begin();
    agent.wait_ready();
    assert!(on(&agent, &["retry", "13"], 0).1.contains("1 of 1 dead letter durable in the agent's buffer"));
    assert_eq!(letters.left(), names(&[11, 12, 14, 15, 16]));
    let (_, error) = on(&agent, &["retry", "--all"], 65);
    for part in [
        "12-08e1dd69: too_large: ",
        "14-08e1dd69: damaged: ",
        "15-08e1dd69: invalid: `source_type` `fieldpost` is the agent's own; it stays in the store",
        "2 of 5 dead letters durable",
    ] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    assert_eq!(letters.left(), names(&[12, 14, 15]));
    let mut client = agent.unix();
    client.send_line(&line_of(&source, 1, 10));
    client.wait_ack(1, USUAL);
    consume_count(kafka, &topic, 4, USUAL * 2);
    let records = read_all(kafka, &topic);
    let arrived: Vec<_> = records.iter().filter_map(|record| record.header("fieldpost-id")).collect();
    assert_eq!(arrived[..3], [&*ids[1], &*ids[0], &*ids[2]]);
    assert_eq!(arrived.len(), 4);
    let payloads: Vec<Value> = records.iter().take(3).map(Record::json).collect();
    assert_eq!(payloads[1]["payload"], json!({"n": 1.5}));
    assert_eq!(payloads[0]["payload_base64"].as_str().unwrap().len(), 344);
    // An event without a time of its own keeps the one at which it was first taken.
    assert_eq!(payloads[2]["timestamp"], "2026-03-01T12:00:00.000000Z");
}

#[test]
fn what_is_not_acknowledged_stays() {
    let mut agent = offline();
    std::fs::create_dir(agent.data_dir()).unwrap();
    assert!(on(&agent, &["retry", "--all"], 0).1.contains("nothing to retry"));
    let mut letters = Letters::of(&agent);
    for seq in 1..=3 {
        letters.put(seq, &event("e", Payload::Json("1")));
    }
    let (_, error) = on(&agent, &["retry", "--all"], 69);
    for part in ["no agent answers on ", "agent.sock", "start it", "--socket", "0 of 3 dead letters durable"]
    {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    // One that takes the line and dies: nobody knows whether the event is durable.
    let socket = agent.socket();
    let listener = UnixListener::bind(&socket).unwrap();
    let mortal = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    });
    let (_, error) = on(&agent, &["retry", "--all"], 75);
    assert!(serde_json::from_str::<Value>(&mortal.join().unwrap()).unwrap()["id"] == "e");
    assert!(error.contains("1-08e1dd69: the connection was lost"), "{error}");
    assert_eq!(letters.left(), names(&[1, 2, 3]));
    agent.reconfigure(|config| {
        config.unset("unix.path");
    });
    let (_, error) = on(&agent, &["retry", "--all"], 69);
    assert!(error.contains("the agent has no Unix socket: set unix.path"), "{error}");
    on(&agent, &["retry"], 64);
    assert_eq!(letters.left(), names(&[1, 2, 3]));
}
