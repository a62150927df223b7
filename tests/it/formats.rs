//! What a record is in each format, read back from Kafka with every field and header; keys, topics and the schemas.

use std::process::Command;

use serde_json::json;

use crate::harness::agent::{Agent, Config, fieldpost};
use crate::harness::kafka::{Record, consume_count, create_topic, create_topic_named, read_all};
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::USUAL;

/// Three events: a JSON payload, bytes, and bytes of which there are none.
const LINES: [&str; 3] = [
    r#"{"id":"e 1","type":"reading","source_type":"café/1","source_id":"日本","timestamp":"2026-03-01T12:00:00+01:00","payload":{ "celsius" :  21.50 }}"#,
    r#"{"id":"e-2","type":"image","source_type":"camera","source_id":"c-1","timestamp":"2026-03-01T12:00:01Z","payload_base64":"AP8="}"#,
    r#"{"id":"e-3","type":"image","source_type":"camera","source_id":"c-1","timestamp":"2026-03-01T12:00:02Z","payload_base64":""}"#,
];

/// Sends the three events and reads them back.
fn records(format: &str, configure: impl FnOnce(&mut Config)) -> Vec<Record> {
    let topic = create_topic(&Shared::get().kafka, 1);
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("kafka.format", format);
        configure(config);
    });
    let mut client = agent.unix();
    for line in LINES {
        client.send_line(line);
    }
    client.wait_ack(LINES.len() as u64, USUAL);
    consume_count(&Shared::get().kafka, &topic, LINES.len(), USUAL)
}

/// The headers behind the agent's own nine, which are checked here.
fn headers(record: &Record) -> Vec<(&str, &str)> {
    let headers: Vec<(&str, &str)> = record
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), std::str::from_utf8(value).unwrap()))
        .collect();
    let names = ["id", "timestamp", "agent", "log", "epoch", "seq", "boot", "boot-us", "clock"];
    for (name, (found, value)) in names.iter().zip(&headers) {
        assert_eq!(found.strip_prefix("fieldpost-"), Some(*name));
        assert!(!value.is_empty(), "{name}");
    }
    headers[names.len()..].to_vec()
}

#[test]
fn an_envelope_has_the_agents_headers_alone() {
    let found = records("envelope", |_| {});
    for record in &found {
        assert_eq!(headers(record), []);
    }
    assert_eq!(
        found[0].payload,
        r#"{"version":1,"id":"e 1","type":"reading","source_type":"café/1","source_id":"日本","timestamp":"2026-03-01T12:00:00+01:00","payload":{ "celsius" :  21.50 }}"#.as_bytes()
    );
    assert_eq!(found[2].json()["payload_base64"], "");
}

#[test]
fn a_cloudevent_has_its_attributes_in_headers_and_the_payload_as_its_value() {
    let found = records("cloudevents", |config| {
        config.set("agent.id", "gw-7").set("kafka.headers", json!({ "site": "plant 4", "line": 3 }));
    });
    let values: Vec<_> = found.iter().map(|record| record.payload.as_slice()).collect();
    assert_eq!(values, [br#"{ "celsius" :  21.50 }"#, &b"\x00\xff"[..], b""]);
    assert!(found.iter().all(|record| record.has_value), "no value would be a tombstone");
    assert_eq!(found[0].key_text(), "日本");
    assert_eq!(
        headers(&found[0]),
        [
            ("content-type", "application/json"),
            ("ce_specversion", "1.0"),
            ("ce_id", "e 1"),
            ("ce_source", "fieldpost://gw-7/caf%C3%A9%2F1/%E6%97%A5%E6%9C%AC"),
            ("ce_type", "reading"),
            ("ce_time", "2026-03-01T12:00:00+01:00"),
            ("ce_sourcetype", "café/1"),
            ("ce_sourceid", "日本"),
            ("line", "3"),
            ("site", "plant 4"),
        ]
    );
    assert_eq!(found[1].header("content-type"), Some("application/octet-stream"));
    assert_eq!(found[1].header("fieldpost-agent"), Some("gw-7"));
    assert_eq!(found[1].header("fieldpost-seq"), Some("2"));
}

#[test]
fn a_raw_record_is_the_payload_and_the_headers_say_the_rest() {
    let found = records("raw", |_| {});
    let values: Vec<_> = found.iter().map(|record| record.payload.as_slice()).collect();
    assert_eq!(values, [br#"{ "celsius" :  21.50 }"#, &b"\x00\xff"[..], b""]);
    assert!(found.iter().all(|record| record.has_value), "no value would be a tombstone");
    assert_eq!(
        headers(&found[0]),
        [
            ("content-type", "application/json"),
            ("fieldpost-type", "reading"),
            ("fieldpost-source-type", "café/1"),
            ("fieldpost-source-id", "日本"),
        ]
    );
    assert_eq!(found[1].header("content-type"), Some("application/octet-stream"));
    assert_eq!(found[1].header("fieldpost-id"), Some("e-2"));
}

#[test]
fn the_key_follows_its_template_and_may_be_absent() {
    let found = records("envelope", |config| {
        config.set("kafka.key", "{source_type}/{source_id}#{type}:{id}");
    });
    assert_eq!(found[0].key_text(), "café/1/日本#reading:e 1");
    let found = records("envelope", |config| {
        config.set("kafka.key", "");
    });
    assert!(found.iter().all(|record| record.key.is_none()));
}

#[test]
fn an_event_whose_topic_is_not_allowed_goes_to_the_fallback() {
    let kafka = &Shared::get().kafka;
    let prefix = unique("allowed");
    for name in ["camera.image", "other"] {
        create_topic_named(kafka, &format!("{prefix}.{name}"), 1, &[]);
    }
    let agent = Agent::start(|config| {
        config
            .shared_kafka(&format!("{prefix}.{{source_type}}.{{type}}"))
            .set("kafka.topics_allowed", vec![format!("{prefix}.camera.image")])
            .set("kafka.fallback_topic", format!("{prefix}.other"));
    });
    let mut client = agent.unix();
    for line in LINES {
        client.send_line(line);
    }
    client.wait_ack(LINES.len() as u64, USUAL);
    assert_eq!(consume_count(kafka, &format!("{prefix}.camera.image"), 2, USUAL).len(), 2);
    let other = consume_count(kafka, &format!("{prefix}.other"), 1, USUAL);
    assert_eq!(other[0].json()["id"], "e 1");
    let line = agent.wait_log("is not in kafka.topics_allowed", USUAL);
    assert!(line.contains(&format!("{prefix}.caf__1.reading")), "{line}");
    assert_eq!(read_all(kafka, &format!("{prefix}.other")).len(), 1);
}

#[test]
fn the_schemas_are_printed() {
    let schema = |arguments: &[&str]| {
        let mut command: Command = fieldpost();
        let output = command.arg("schema").args(arguments).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
        String::from_utf8(output.stdout).unwrap()
    };
    let json: serde_json::Value = serde_json::from_str(&schema(&[])).unwrap();
    assert_eq!(json["title"], "fieldpost envelope, version 1");
    assert_eq!(schema(&["--format", "json-schema"]), schema(&[]));
    let avro: serde_json::Value = serde_json::from_str(&schema(&["--format", "avro"])).unwrap();
    assert_eq!((&avro["namespace"], &avro["name"]), (&json!("fieldpost"), &json!("Envelope")));
    assert!(schema(&["--format", "protobuf"]).contains("message Envelope {"));
}
