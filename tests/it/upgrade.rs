//! What docs/upgrading.md promises: what the first release wrote, took and said, this version reads, takes and says.
//!
//! `tests/fixtures` is kept as it is: a later release gets files of its own beside those of the first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::buffer::copy;
use crate::harness::agent::{Agent, fieldpost};
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::services::Shared;
use crate::harness::unix::Reply;
use crate::harness::wait::USUAL;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(fixture(name)).unwrap()
}

/// The headers of 0.1 that carry an event's position and what a consumer reads beside it.
const HEADERS: [&str; 9] = [
    "fieldpost-id",
    "fieldpost-timestamp",
    "fieldpost-agent",
    "fieldpost-log",
    "fieldpost-epoch",
    "fieldpost-seq",
    "fieldpost-boot",
    "fieldpost-boot-us",
    "fieldpost-clock",
];

/// `src/buffer/fixture.rs` holds what is read; here the agent itself takes the folder over and goes on with it.
#[test]
fn a_buffer_of_each_format_is_taken_over_and_drained_with_its_positions() {
    // Events 4 to 20 and 41 to 60: the cursor is at 3, the others were evicted.
    const LEFT: usize = 37;
    for format in ["buffer-1", "buffer-2"] {
        let topic = create_topic(&Shared::get().kafka, 1);
        let mut agent = Agent::prepare(|config| {
            config.shared_kafka(&topic).set("agent.id", "gw-1");
        });
        copy(&fixture(format), &agent.data_dir());
        agent.begin();
        agent.wait_ready();
        let mut client = agent.unix();
        client.send_line(r#"{"type":"reading","source_type":"meter","source_id":"m-1","payload":"after"}"#);
        client.wait_ack(1, USUAL);
        let usual = if format == "buffer-1" { LEFT } else { usual_ways() };
        let records = consume_count(&Shared::get().kafka, &topic, usual + 1, USUAL);
        let seqs: Vec<u64> =
            records.iter().map(|record| record.header("fieldpost-seq").unwrap().parse().unwrap()).collect();
        assert!(seqs.is_sorted_by(|one, next| one < next), "{format}: {seqs:?}");
        assert_eq!((seqs.first(), seqs.last()), (Some(&4), Some(&61)), "{format}");
        for record in &records {
            let names: Vec<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, HEADERS, "{format}");
            assert_eq!(record.header("fieldpost-agent"), Some("gw-1"), "{format}");
        }
        // The fixture is a copy, and a copy's new events are another log's; those that were in it keep theirs.
        let logs: Vec<_> = records.iter().map(|record| record.header("fieldpost-log").unwrap()).collect();
        let (new, kept) = logs.split_last().unwrap();
        assert!(kept.iter().all(|log| log == &kept[0] && log != new), "{format}: {logs:?}");
        assert_eq!(agent.stop().code(), Some(0), "{format}");
    }
}

/// How many of the events that are left in the fixture of format 2 go to the usual topic.
fn usual_ways() -> usize {
    (4..=20).chain(41..=60).filter(|n| !matches!(n % 5, 0 | 1)).count()
}

#[test]
fn a_configuration_with_every_key_of_the_first_release_still_counts() {
    for name in ["config.toml", "token.toml"] {
        let folder = tempfile::tempdir().unwrap();
        let text = read(&format!("0.1/{name}"));
        std::fs::write(folder.path().join(name), &text).unwrap();
        let keys: Vec<(&str, &str)> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "))
            .collect();
        for (key, file) in &keys {
            if key.ends_with("_file") {
                std::fs::write(folder.path().join(file.trim_matches('"')), "secret").unwrap();
            }
        }
        let output = fieldpost().args(["config", "--config"]).arg(folder.path().join(name)).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let shown = String::from_utf8(output.stdout).unwrap();
        let counting = shown.lines().filter(|line| line.contains("# line ")).count();
        assert_eq!(counting, keys.len(), "{name}: each key is shown with its line\n{shown}");
    }
}

/// `section.key` of each line that sets one, or would without its `#`.
fn keys(text: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut keys = BTreeSet::new();
    for line in text.lines().map(|line| line.strip_prefix('#').unwrap_or(line)) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']);
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            keys.insert(format!("{section}.{key}"));
        }
    }
    keys
}

/// A key that is new is kept with the release that brings it.
#[test]
fn every_key_is_in_a_kept_configuration() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/fieldpost.toml");
    let known = keys(&std::fs::read_to_string(file).unwrap());
    let kept = keys(&(read("0.1/config.toml") + &read("0.1/token.toml")));
    assert!(known.len() > 100, "{known:?}");
    let missing: Vec<_> = known.difference(&kept).collect();
    assert!(missing.is_empty(), "in no file of tests/fixtures: {missing:?}");
}

/// A schema without what is said for people.
fn bare(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("description");
            map.remove("doc");
            map.values_mut().for_each(bare);
        }
        Value::Array(list) => list.iter_mut().for_each(bare),
        _ => {}
    }
}

/// Version 1 of the envelope is closed: what changes is version 2.
#[test]
fn the_schemas_of_version_1_stay() {
    for (format, kept) in
        [("json-schema", "envelope.schema.json"), ("avro", "envelope.avsc"), ("protobuf", "envelope.proto")]
    {
        let output = fieldpost().args(["schema", "--format", format]).output().unwrap();
        let (kept, printed) = (read(&format!("0.1/{kept}")), String::from_utf8(output.stdout).unwrap());
        if format == "protobuf" {
            let fields = |text: &str| -> Vec<String> {
                text.lines()
                    .map(str::trim)
                    .filter(|line| !line.starts_with("//"))
                    .map(str::to_owned)
                    .collect()
            };
            assert_eq!(fields(&printed), fields(&kept), "{format}");
        } else {
            let [mut printed, mut kept] =
                [printed, kept].map(|text| serde_json::from_str::<Value>(&text).unwrap());
            bare(&mut printed);
            bare(&mut kept);
            assert_eq!(printed, kept, "{format}");
        }
    }
}

/// Lines of 0.1 and what was answered: `ack`, or the code of a refusal. The words of a refusal may change.
#[test]
fn the_socket_answers_the_lines_of_the_first_release_as_it_did() {
    let agent = Agent::start(|config| {
        config.kafka("127.0.0.1:9", "nowhere").set("limits.max_event_bytes", "1 KiB");
    });
    let mut client = agent.unix();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let text = read("0.1/socket.txt");
    for (number, pair) in text.lines().filter(|line| !line.starts_with('#')).enumerate() {
        let (expected, line) = pair.split_once(' ').unwrap();
        client.send_line(line);
        let reply = client.try_reply(USUAL).unwrap_or_else(|none| panic!("{line}: {none:?}"));
        let found = match reply {
            Reply::Ack { .. } => "ack".to_owned(),
            Reply::Refused(refusal) => {
                assert_eq!(refusal.line, Some(number as u64 + 1), "{line}");
                refusal.code
            }
        };
        assert_eq!(found, expected, "{line}");
        *seen.entry(found).or_default() += 1;
    }
    assert!(seen.len() > 2, "{seen:?}");
}
