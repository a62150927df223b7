//! `fieldpost buffer`: beside a running agent, and on what it leaves.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::harness::agent::{Agent, fieldpost};
use crate::harness::flow::line_of;
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::USUAL;

/// Nobody listens there: whatever the agent takes stays in its buffer.
const NO_KAFKA: &str = "127.0.0.1:1";

/// Bytes in an event, so that some hundreds fill a part of the buffer.
const EVENT: usize = 4000;

/// An agent that takes `count` events and cannot deliver them.
fn agent_with(source: &str, count: u64) -> Agent {
    let agent = Agent::start(|config| {
        config.kafka(NO_KAFKA, "none").set("buffer.max_bytes", "64 MiB");
    });
    let mut client = agent.unix();
    for n in 0..count {
        client.send_line(&line_of(source, n, EVENT));
    }
    client.wait_ack(count, USUAL);
    agent
}

fn buffer(command: &str, arguments: &[&str]) -> Output {
    let output =
        fieldpost().arg("buffer").arg(command).args(arguments).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if !error.is_empty() {
        eprintln!("--- buffer {command} {arguments:?}: {}\n{error}---", output.status);
    }
    assert!(!error.contains("panicked"), "{error}");
    output
}

/// A command on the buffer of `agent`.
fn on(agent: &Agent, command: &str, arguments: &[&str]) -> Output {
    let config = agent.config_file();
    buffer(command, &[&["--config", config.to_str().unwrap()], arguments].concat())
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stdout));
    })
}

fn lines(output: &Output) -> Vec<Value> {
    output
        .stdout
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn seqs(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["fieldpost"]["seq"].as_u64().unwrap()).collect()
}

/// Every file below `dir` with its content.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                all.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
    }
    all
}

pub(crate) fn copy(from: &Path, to: &Path) {
    for (path, content) in contents(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

/// Damages every block in `file` that begins with one of these positions; the store may have kept older copies of it.
pub(crate) fn damage_blocks(file: &Path, positions: RangeInclusive<u64>) {
    let mut bytes = std::fs::read(file).unwrap();
    let starts: Vec<usize> =
        (0..bytes.len().saturating_sub(56)).filter(|&at| bytes[at..].starts_with(b"fpB")).collect();
    let is_hit = |at: &&usize| {
        let first = bytes[**at + 12..**at + 20].try_into().unwrap();
        positions.contains(&u64::from_le_bytes(first))
    };
    let hits: Vec<usize> = starts.iter().filter(is_hit).copied().collect();
    assert!(!hits.is_empty());
    for at in hits {
        bytes[at + 50] ^= 1;
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn status_and_export_work_beside_a_running_agent_and_touch_nothing() {
    let source = unique("s");
    let mut agent = agent_with(&source, 2500);
    let before = contents(&agent.data_dir());
    let output = on(&agent, "status", &["--json"]);
    assert_eq!(output.status.code(), Some(0));
    let status = json(&output);
    assert_eq!(status["running"], true);
    assert_eq!(status["pid"], agent.pid().as_raw_nonzero().get());
    let wanted = serde_json::json!([2500, 0, 2500, 64 << 20]);
    assert_eq!(
        serde_json::json!([status["events"], status["cursor"], status["durable"], status["max_bytes"]]),
        wanted
    );
    assert_eq!(
        (&status["oldest"]["seq"], &status["oldest"]["source_id"]),
        (&1.into(), &source.as_str().into())
    );
    assert!(status["oldest"]["age_s"].as_u64().unwrap() < 600, "{status}");
    assert!(status["generations"].as_u64().unwrap() > 1, "{status}");

    let text = String::from_utf8(on(&agent, "status", &[]).stdout).unwrap();
    eprintln!("{text}");
    for part in
        ["waiting   2500 events", "running, process", "reading of probe/", "ledger    nothing was lost"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let exported = on(&agent, "export", &[]);
    assert_eq!(exported.status.code(), Some(0));
    let events = lines(&exported);
    assert_eq!(seqs(&events), (1..=2500).collect::<Vec<_>>());
    for (n, event) in events.iter().enumerate() {
        assert_eq!((&event["id"], &event["payload"]["n"]), (&format!("{source}-{n}").into(), &n.into()));
    }
    let verified = on(&agent, "verify", &["--json"]);
    assert_eq!((verified.status.code(), &json(&verified)["running"]), (Some(0), &true.into()));
    let middle = events[1200]["fieldpost"]["received"].as_str().unwrap();
    let later = lines(&on(&agent, "export", &["--since", middle, "--from", "100"]));
    let earliest = later[0]["fieldpost"]["received"].as_str().unwrap();
    assert!(
        earliest >= middle && later.len() < 2000 && later.len() >= 1300,
        "{earliest} {middle} {}",
        later.len()
    );
    assert!(contents(&agent.data_dir()) == before, "something was written");

    // What needs the buffer for itself says so and does nothing.
    for (command, arguments) in [("import", &["/dev/null"][..]), ("purge", &["--before", "10", "--yes"])] {
        let output = on(&agent, command, arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(75), "{error}");
        assert!(error.contains("is in use by process") && error.contains("stop it first"), "{error}");
    }
    assert_eq!(agent.stop().code(), Some(0));
    let status = json(&on(&agent, "status", &["--json"]));
    assert_eq!(
        (&status["running"], &status["events"], status.get("pid")),
        (&false.into(), &2500.into(), None)
    );
}

#[test]
fn what_was_exported_can_be_imported_elsewhere_and_arrives() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let source = unique("s");
    let mut agent = agent_with(&source, 700);
    assert_eq!(agent.stop().code(), Some(0));
    let file = agent.home().join("events.ndjson");
    let output = on(&agent, "export", &["--output", file.to_str().unwrap(), "--json"]);
    assert_eq!((output.status.code(), &json(&output)["events"]), (Some(0), &700.into()));
    // It is not written over.
    assert_eq!(on(&agent, "export", &["--output", file.to_str().unwrap()]).status.code(), Some(74));

    // A line that is none and one that is too long cost only themselves.
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.insert_str(0, "{\"type\":\"t\"}\n\n");
    text += &format!("{{\"payload\":\"{}\"}}\n", "x".repeat(1 << 20));
    std::fs::write(&file, text).unwrap();
    let mut other = Agent::prepare(|config| {
        config.shared_kafka(&topic);
    });
    let output = on(&other, "import", &["--json", file.to_str().unwrap()]);
    let summary = json(&output);
    assert_eq!(output.status.code(), Some(65));
    assert_eq!((&summary["imported"], &summary["refused"]), (&700.into(), &2.into()), "{summary}");
    let wrong: Vec<_> =
        summary["errors"].as_array().unwrap().iter().map(|e| (&e["line"], &e["code"])).collect();
    assert_eq!(wrong, [(&1.into(), &"invalid".into()), (&703.into(), &"too_large".into())]);
    assert_eq!(json(&on(&other, "status", &["--json"]))["events"], 700);

    other.begin();
    other.wait_ready();
    let records = consume_count(&Shared::get().kafka, &topic, 700, USUAL);
    let original = lines(&on(&agent, "export", &[]));
    for (record, line) in records.iter().zip(original) {
        let event = record.json();
        for field in ["id", "type", "source_type", "source_id", "timestamp", "payload"] {
            assert_eq!(event[field], line[field], "{field}");
        }
    }
    assert_eq!(other.stop().code(), Some(0));
}

#[test]
fn an_import_that_finds_the_buffer_full_says_where_to_go_on() {
    let source = unique("s");
    let mut agent = Agent::prepare(|config| {
        config.kafka(NO_KAFKA, "none").set("buffer.max_bytes", "8 MiB");
    });
    let file = agent.home().join("events.ndjson");
    let text: String = (0..4000).map(|n| line_of(&source, n, EVENT) + "\n").collect();
    std::fs::write(&file, text).unwrap();
    let output = on(&agent, "import", &["--json", file.to_str().unwrap()]);
    let summary = json(&output);
    assert_eq!(output.status.code(), Some(75), "{summary}");
    let imported = summary["imported"].as_u64().unwrap();
    assert!(imported > 300 && summary["next_line"] == imported + 1, "{summary}");
    assert_eq!(seqs(&lines(&on(&agent, "export", &[]))), (1..=imported).collect::<Vec<_>>());
    agent.begin();
    agent.wait_log("ready", USUAL);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn what_is_purged_is_counted_and_never_arrives() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let source = unique("s");
    let mut agent = agent_with(&source, 1500);
    assert_eq!(agent.stop().code(), Some(0));
    let output = on(&agent, "purge", &["--before", "1001"]);
    assert_eq!(output.status.code(), Some(64), "nobody can be asked");
    assert_eq!(json(&on(&agent, "status", &["--json"]))["events"], 1500);
    let output = on(&agent, "purge", &["--before", "1001", "--yes", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(json(&output), serde_json::json!({"events": 1000, "first": 1, "last": 1000}));
    let status = json(&on(&agent, "status", &["--json"]));
    assert_eq!((&status["events"], &status["oldest"]["seq"]), (&500.into(), &1001.into()));
    let purged = &status["ledger"]["purged"];
    assert_eq!(
        (&purged["events"], &purged["ranges"]),
        (&1000.into(), &serde_json::json!([[1, 1000]])),
        "{status}"
    );
    // By time: all that is left but the last.
    let lines = lines(&on(&agent, "export", &[]));
    let last = lines.last().unwrap()["fieldpost"]["received"].as_str().unwrap().to_owned();
    let purged = json(&on(&agent, "purge", &["--before", &last, "--yes", "--json"]));
    let left = 500 - purged["events"].as_u64().unwrap();
    assert!((1..500).contains(&left), "{purged}");

    agent.reconfigure(|config| {
        config.shared_kafka(&topic);
    });
    agent.begin();
    agent.wait_ready();
    let records = consume_count(&Shared::get().kafka, &topic, usize::try_from(left).unwrap(), USUAL);
    assert_eq!(records[0].json()["payload"]["n"], 1500 - left);
    assert_eq!(agent.stop().code(), Some(0));
    assert!(agent.log_contains(&format!("lost {}", 1500 - left)), "the status line counts them");
}

#[test]
fn verify_finds_damage_in_a_copy_and_none_in_the_original() {
    let mut agent = agent_with(&unique("s"), 1500);
    assert_eq!(agent.stop().code(), Some(0));
    let whole = on(&agent, "verify", &["--json"]);
    assert_eq!((whole.status.code(), &json(&whole)["events"]), (Some(0), &1500.into()));
    let damaged = agent.home().join("copy");
    copy(&agent.data_dir(), &damaged);
    let first = damaged.join("buffer/00000000000000000001.gen/db");
    damage_blocks(&first, 200..=210);
    let place = damaged.to_str().unwrap();
    let before = contents(&damaged);
    let output = buffer("verify", &["--data-dir", place, "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(65), "{report}");
    let missing = report["missing"].as_u64().unwrap();
    assert!((5..30).contains(&missing), "{report}");
    assert_eq!(report["events"], 1500 - missing);
    let text = String::from_utf8(buffer("verify", &["--data-dir", place]).stdout).unwrap();
    eprintln!("{text}");
    assert!(text.contains("DAMAGED 00000000000000000001.gen"), "{text}");
    assert!(text.contains("will be counted in the loss ledger when the agent comes to them"), "{text}");
    // What is whole can be taken out.
    let exported = buffer("export", &["--data-dir", place]);
    assert_eq!((exported.status.code(), lines(&exported).len() as u64), (Some(65), 1500 - missing));
    let salvaged = buffer("export", &["--data-dir", place, "--bad"]);
    assert_eq!((salvaged.status.code(), lines(&salvaged).len() as u64), (Some(0), 1500 - missing));
    assert!(contents(&damaged) == before, "something was written");
}

#[test]
fn where_there_is_no_buffer_none_is_made() {
    let agent = Agent::prepare(|config| {
        config.kafka(NO_KAFKA, "none");
    });
    for (command, arguments) in
        [("status", &[][..]), ("verify", &[]), ("export", &[]), ("purge", &["--before", "1", "--yes"])]
    {
        let output = on(&agent, command, arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(74), "{command}");
        assert!(error.contains("there is no buffer in"), "{error}");
    }
    assert!(!agent.data_dir().exists());
}
