//! What a publish says arrives as it was said, over both protocols and every quality of service.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::Bed;
use crate::harness::kafka::{Record, consume_count, read_all};
use crate::harness::mqtt::{Publisher, kind};
use crate::harness::services::Shared;
use crate::harness::tap::Way;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually, scaled};

/// A publish, and what its envelope holds.
struct Case {
    topic: &'static str,
    payload: &'static [u8],
    id: Option<&'static str>,
    names: [&'static str; 3],
    timestamp: Option<&'static str>,
    /// The rest of the envelope, byte for byte.
    rest: &'static str,
}

const PLAIN: Case = Case {
    topic: "thermo/t 1/reading",
    payload: br#"{ "celsius" :  21.50 ,"id":"mine","u":"\u00e9 \/","big":1e400 }"#,
    id: None,
    names: ["reading", "thermo", "t 1"],
    timestamp: None,
    rest: r#""payload":{ "celsius" :  21.50 ,"id":"mine","u":"\u00e9 \/","big":1e400 }"#,
};

const CASES: [Case; 7] = [
    PLAIN,
    Case {
        topic: "thermo/日本/é",
        payload: b"-0.0",
        names: ["é", "thermo", "日本"],
        rest: r#""payload":-0.0"#,
        ..PLAIN
    },
    Case {
        topic: "cam/c/image",
        payload: b"\x00\xff\xfe",
        names: ["image", "cam", "c"],
        rest: r#""payload_base64":"AP/+""#,
        ..PLAIN
    },
    Case {
        topic: "cam/c/image",
        payload: b"",
        names: ["image", "cam", "c"],
        rest: r#""payload_base64":"""#,
        ..PLAIN
    },
    Case {
        topic: "door/d/open",
        payload: br#"{"id":"e-1","timestamp":"2026-03-01T12:00:00.5+01:00","payload":[ 1 ]}"#,
        id: Some("e-1"),
        names: ["open", "door", "d"],
        timestamp: Some("2026-03-01T12:00:00.5+01:00"),
        rest: r#""payload":[ 1 ]"#,
    },
    // Nobody speaks for another source by the payload.
    Case {
        topic: "door/d/open",
        payload: br#"{"id":"e-2","type":"x","source_type":"y","source_id":"z","payload_base64":"AP8"}"#,
        id: Some("e-2"),
        names: ["open", "door", "d"],
        timestamp: None,
        rest: r#""payload_base64":"AP8=""#,
    },
    // One field that the form does not know: the whole object is the payload.
    Case {
        topic: "door/d/open",
        payload: br#"{"id":"e-3","payload":1,"rssi":-70}"#,
        names: ["open", "door", "d"],
        rest: r#""payload":{"id":"e-3","payload":1,"rssi":-70}"#,
        ..PLAIN
    },
];

fn assert_record(case: &Case, record: &Record, around_ms: (i64, i64)) {
    let header = |name| record.header(name).unwrap();
    let (id, timestamp) = (header("fieldpost-id"), header("fieldpost-timestamp"));
    match case.id {
        Some(wanted) => assert_eq!(id, wanted),
        None => assert_eq!(Uuid::parse_str(id).unwrap().get_version_num(), 7, "{id}"),
    }
    match case.timestamp {
        Some(wanted) => assert_eq!(timestamp, wanted),
        None => {
            let ms = timestamp.parse::<jiff::Timestamp>().unwrap().as_millisecond();
            assert!((around_ms.0..=around_ms.1).contains(&ms), "{timestamp}");
        }
    }
    let [kind, source_type, source_id] = case.names.map(|name| json!(name));
    let envelope = format!(
        r#"{{"version":1,"id":"{id}","type":{kind},"source_type":{source_type},"source_id":{source_id},"timestamp":"{timestamp}",{}}}"#,
        case.rest
    );
    assert_eq!(std::str::from_utf8(&record.payload).unwrap(), envelope);
    assert_eq!(record.key_text(), case.names[2]);
}

/// Every case over one protocol and one quality of the subscription, published with every quality.
fn every_field_arrives(protocol: u8, qos: u8) {
    let mut bed = Bed::shared(|config| {
        config.set("mqtt.protocol", protocol).set("mqtt.qos", qos);
    });
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    let before = jiff::Timestamp::now().as_millisecond();
    for (number, case) in CASES.iter().enumerate() {
        sensor.publish(u8::try_from(number % 3).unwrap(), &bed.topic_of(case.topic), case.payload);
    }
    let records = consume_count(&Shared::get().kafka, &bed.topic, CASES.len(), USUAL);
    let around_ms = (before, jiff::Timestamp::now().as_millisecond());
    let mut by_seq: Vec<_> = records
        .iter()
        .map(|record| (record.header("fieldpost-seq").unwrap().parse::<u64>().unwrap(), record))
        .collect();
    by_seq.sort_unstable_by_key(|(seq, _)| *seq);
    for (case, (_, record)) in CASES.iter().zip(by_seq) {
        assert_record(case, record, around_ms);
    }
    // The lower one of publish and subscription counts, and only QoS 0 goes without an answer.
    let answers = |way, kind| bed.tap.count(way, kind);
    let (wanted_acks, wanted_recs) = match qos {
        0 => (0, 0),
        1 => (4, 0),
        _ => (2, 2),
    };
    eventually("every answer is given", USUAL, || {
        (answers(Way::ToBroker, kind::PUBACK) + answers(Way::ToBroker, kind::PUBCOMP)
            == wanted_acks + wanted_recs)
            .then_some(())
    });
    assert_eq!(answers(Way::ToBroker, kind::PUBACK), wanted_acks);
    assert_eq!(answers(Way::ToBroker, kind::PUBREC), wanted_recs);
    bed.tap.assert_answers_belong();
    let status = bed.last_status();
    assert!(status.contains(&format!("(mqtt {}, unix 0), refused 0,", CASES.len())), "{status}");
    assert_eq!(read_all(&Shared::get().kafka, &bed.topic).len(), CASES.len());
}

#[test]
fn every_field_arrives_over_mqtt_5() {
    for qos in [0, 1, 2] {
        every_field_arrives(5, qos);
    }
}

#[test]
fn every_field_arrives_over_mqtt_3_1_1() {
    for qos in [0, 1, 2] {
        every_field_arrives(4, qos);
    }
}

#[test]
fn a_ping_says_which_event_and_nothing_more() {
    let client = redis::Client::open(Shared::get().redis.as_str()).unwrap();
    let mut connection = client.get_connection().unwrap();
    connection.set_read_timeout(Some(scaled(Duration::from_secs(20)))).unwrap();
    let mut pings = connection.as_pubsub();
    let source = unique("s");
    pings.subscribe(format!("events:thermo:{source}")).unwrap();
    let bed = Bed::shared(|config| {
        config.shared_redis();
    });
    bed.agent.wait_log("Redis link up", USUAL);
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    let topic = bed.topic_of(&format!("thermo/{source}/reading"));
    sensor.publish(1, &topic, r#"{"id":"e-1","payload":{"secret":1}}"#);
    sensor.publish(0, &topic, "21.5");
    let mut next = || pings.get_message().unwrap().get_payload::<String>().unwrap();
    assert_eq!(next(), format!(r#"{{"id":"e-1","type":"reading","source_id":"{source}"}}"#));
    let second: serde_json::Value = serde_json::from_str(&next()).unwrap();
    let records = consume_count(&Shared::get().kafka, &bed.topic, 2, USUAL);
    let id = records[1].header("fieldpost-id").unwrap();
    assert_eq!(second, json!({"id": id, "type": "reading", "source_id": source}));
}
