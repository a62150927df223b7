//! A real schema registry: what check learns of it, and that an agent's records are read with what it holds.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::Report;
use crate::harness::agent::Agent;
use crate::harness::flow::line_of;
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::services::{Private, Shared};
use crate::harness::wait::USUAL;

#[test]
fn a_real_registry_is_asked_and_holds_what_records_are_read_with() {
    let registry = Private::registry();
    let kafka = &Shared::get().kafka;
    let (topic, clashing) = (create_topic(kafka, 1), create_topic(kafka, 1));
    let prepared = |topic: &str| {
        Agent::prepare(|config| {
            config.kafka(kafka, topic).set("kafka.format", "avro");
            config.set("schema_registry.url", registry.address());
        })
    };
    let mut agent = prepared(&topic);
    let subject = format!("{topic}-value");
    let unregistered = format!("the envelope's schema is not under {subject} yet and fits");
    Report::of(&agent).says("schema", "ok", &unregistered);
    // Asking changed nothing.
    Report::of(&agent).says("schema", "ok", &unregistered);
    assert_eq!(ask(&registry, "GET", "/subjects", None), (200, json!([])));

    agent.begin();
    agent.wait_ready();
    agent.unix().send_line(&line_of("s", 7, 10));
    let records = consume_count(kafka, &topic, 1, USUAL);
    let (head, body) = records[0].payload.split_at(5);
    let id = u32::from_be_bytes(head[1..].try_into().unwrap());
    assert_eq!(head[0], 0);
    Report::of(&agent).says("schema", "ok", &format!("the envelope's schema is under {subject}, id {id}"));
    let (status, held) = ask(&registry, "GET", &format!("/schemas/ids/{id}"), None);
    assert_eq!(status, 200);
    let schema = apache_avro::Schema::parse_str(held["schema"].as_str().unwrap()).unwrap();
    let value = apache_avro::from_avro_datum(&schema, &mut &body[..], None).unwrap();
    let apache_avro::types::Value::Record(fields) = value else { panic!("{value:?}") };
    let source = ("source_id".to_owned(), apache_avro::types::Value::String("s".to_owned()));
    assert!(fields.contains(&source), "{fields:?}");

    // Another schema, and a subject that wants those after it to fit.
    let subject = format!("{clashing}-value");
    let other = json!({ "schema": "{\"type\":\"string\"}" });
    assert_eq!(ask(&registry, "POST", &format!("/subjects/{subject}/versions"), Some(&other)).0, 200);
    let strict = json!({ "compatibility": "BACKWARD" });
    assert_eq!(ask(&registry, "PUT", &format!("/config/{subject}"), Some(&strict)).0, 200);
    let agent = prepared(&clashing);
    let report = Report::of(&agent);
    report.says(
        "schema",
        "fail",
        &format!("another schema is under {subject}, which the envelope's does not fit"),
    );
    assert_eq!(report.code, 75);

    registry.kill();
    let report = Report::of(&agent);
    report.says("schema", "fail", "cannot reach it");
    assert_eq!(report.code, 75);
}

/// Status and body of the answer.
fn ask(registry: &Private, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let (address, base) = registry.address().trim_start_matches("http://").split_once('/').unwrap();
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} /{base}{path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n\
         {body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}
