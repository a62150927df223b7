//! What a record is in each format, read back from Kafka with every field and header; keys, topics and the schemas.

use std::process::Command;

use apache_avro::types::Value as Avro;
use serde_json::json;

use crate::harness::agent::{Agent, Config, fieldpost};
use crate::harness::kafka::{Record, consume_count, create_topic, create_topic_named, read_all};
use crate::harness::registry::Registry;
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
    agent_and_records(format, configure).1
}

fn agent_and_records(format: &str, configure: impl FnOnce(&mut Config)) -> (Agent, Vec<Record>) {
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
    let records = consume_count(&Shared::get().kafka, &topic, LINES.len(), USUAL);
    (agent, records)
}

/// What `fieldpost tail` shows of them, without the place where each was found.
fn shown(agent: &Agent) -> Vec<String> {
    let words = ["tail", "--from", "kafka", "--offset", "beginning", "--until", "end", "--json"];
    let output = agent.command(&words).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let fields =
        |line: &str| line.split_once("\"version\":1,").unwrap_or_else(|| panic!("{line}")).1.to_owned();
    text.lines().map(fields).collect()
}

/// The three events without the first brace.
fn wanted() -> Vec<String> {
    LINES.map(|line| line[1..].to_owned()).to_vec()
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
    let (agent, found) = agent_and_records("envelope", |_| {});
    assert_eq!(shown(&agent), wanted());
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

/// The fields of a record in Schema Registry's wire format, read with the schema that its id names.
fn decoded(registry: &Registry, record: &Record) -> Vec<(String, Avro)> {
    let (head, mut datum) = record.payload.split_at(5);
    assert_eq!(head[0], 0, "the magic byte");
    let id = u32::from_be_bytes(head[1..].try_into().unwrap());
    let schema = registry.schema(id).expect("the id is the registry's");
    let schema = apache_avro::Schema::parse_str(&schema).unwrap();
    let value = apache_avro::from_avro_datum(&schema, &mut datum, None).unwrap();
    assert!(datum.is_empty());
    let Avro::Record(fields) = value else { panic!("{value:?}") };
    fields
}

#[test]
fn an_avro_record_is_read_with_the_schema_that_the_registry_holds() {
    let registry = Registry::start();
    let (agent, found) = agent_and_records("avro", |config| {
        config.set("schema_registry.url", registry.url());
    });
    assert_eq!(shown(&agent), wanted());
    assert_eq!(registry.requests().len(), 2, "{:?}", registry.requests());
    let text = |text: &str| Avro::String(text.to_owned());
    let some = |value| Avro::Union(1, Box::new(value));
    let none = || Avro::Union(0, Box::new(Avro::Null));
    let field = |name: &str, value| (name.to_owned(), value);
    assert_eq!(
        decoded(&registry, &found[0]),
        [
            field("version", Avro::Int(1)),
            field("id", text("e 1")),
            field("type", text("reading")),
            field("source_type", text("café/1")),
            field("source_id", text("日本")),
            field("timestamp", text("2026-03-01T12:00:00+01:00")),
            field("payload_json", some(text("{ \"celsius\" :  21.50 }"))),
            field("payload_bytes", none()),
        ]
    );
    let image = decoded(&registry, &found[1]);
    assert_eq!(
        image[6..],
        [field("payload_json", none()), field("payload_bytes", some(Avro::Bytes(vec![0, 255])))]
    );
    assert_eq!(headers(&found[0]), []);
}

#[test]
fn an_outage_of_the_registry_stops_unknown_schemas_alone_and_loses_nothing() {
    let kafka = &Shared::get().kafka;
    let prefix = unique("registry");
    for kind in ["known", "new"] {
        create_topic_named(kafka, &format!("{prefix}.{kind}"), 1, &[]);
    }
    let mut registry = Registry::start();
    let mut agent = Agent::start(|config| {
        config
            .shared_kafka(&format!("{prefix}.{{type}}"))
            .set("kafka.format", "avro")
            .set("schema_registry.url", registry.url());
    });
    let send = |agent: &Agent, kinds: &[&str]| {
        let mut client = agent.unix();
        for kind in kinds {
            client.send(&json!({"type": kind, "source_type": "s", "source_id": "1", "payload": 1}));
        }
        client.wait_ack(kinds.len() as u64, USUAL);
    };
    let count = |kind: &str, count| consume_count(kafka, &format!("{prefix}.{kind}"), count, USUAL);
    send(&agent, &["known"]);
    count("known", 1);
    registry.shut();

    // The next start knows the id from its disk.
    agent.restart();
    send(&agent, &["known", "known"]);
    count("known", 3);

    // A topic without an id holds the line, also over a restart, and events are taken meanwhile.
    send(&agent, &["new", "known"]);
    let line = agent.wait_log("the schema registry gives no id for a topic", USUAL);
    assert!(line.contains(&format!("{prefix}.new")) && line.contains("nothing is lost"), "{line}");
    assert_eq!(read_all(kafka, &format!("{prefix}.new")), []);
    agent.restart();
    send(&agent, &["new"]);
    agent.wait_log("the schema registry gives no id for a topic", USUAL);
    assert_eq!(read_all(kafka, &format!("{prefix}.known")).len(), 3, "nothing passes the one that waits");

    registry.reopen();
    assert_eq!(count("new", 2).len(), 2);
    let known = count("known", 4);
    assert_eq!(decoded(&registry, &known[3])[2], ("type".to_owned(), Avro::String("known".to_owned())));
    // The same schema has the same id under each subject.
    assert_eq!(count("new", 2)[0].payload[..5], known[0].payload[..5]);
    assert_eq!(agent.stop().code(), Some(0));
    let requests = registry.requests();
    assert_eq!(
        requests,
        ["known-value", "known-value/versions", "new-value", "new-value/versions"]
            .map(|path| format!("POST /subjects/{prefix}.{path}"))
    );
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
