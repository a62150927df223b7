//! What cannot become an event, and what is too much at once.

use super::Bed;
use crate::harness::kafka::{consume_count, read_all};
use crate::harness::mqtt::{Publisher, kind, payload_of};
use crate::harness::services::{Persistence, Private, Shared};
use crate::harness::tap::Way;
use crate::harness::wait::USUAL;

/// Above what the agent reads of one packet.
const PACKET_TOO_LARGE: usize = 17 << 20;
const DROPPED: &str = "a publish is no event: acknowledged and dropped";

/// The payloads in Kafka, in the order of `fieldpost-seq`.
fn payloads(bed: &Bed, count: usize) -> Vec<serde_json::Value> {
    let mut records = consume_count(&Shared::get().kafka, &bed.topic, count, USUAL);
    records.sort_by_key(|record| record.header("fieldpost-seq").unwrap().parse::<u64>().unwrap());
    records.iter().map(|record| record.json()["payload"].clone()).collect()
}

/// One of each kind between neighbours: acknowledged in its turn, counted, logged once, gone.
fn bad_publishes_hold_up_nobody(protocol: u8, qos: u8) {
    let mut bed = Bed::shared(|config| {
        config.set("mqtt.protocol", protocol).set("mqtt.qos", qos).set("limits.max_event_bytes", "2KiB");
    });
    // The session keeps the filter of an earlier configuration; and a template that leaves names to the payload.
    let usual = bed.topic_of("{source_type}/{source_id}/{type}");
    let (old, loose) = (bed.topic_of("old/{type}"), bed.topic_of("loose/{type}/#"));
    for topics in [vec![usual.clone(), loose.clone(), old], vec![usual, loose]] {
        let before = bed.tap.count(Way::ToAgent, kind::SUBACK);
        bed.agent.reconfigure(|config| {
            config.set("mqtt.topics", topics);
        });
        bed.restart();
        bed.tap.wait_count(Way::ToAgent, kind::SUBACK, before + 1, USUAL);
    }
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    let good = bed.topic_of("probe/s/reading");
    let large = "x".repeat(5000);
    let huge = "x".repeat(100_000);
    let long_name = bed.topic_of(&format!("probe/{}/reading", "n".repeat(2000)));
    // With the reason in the log, where it is the first of its kind: one line a minute each.
    let bad = [
        (bed.topic_of("old/reading"), "1", Some("matches no template")),
        (bed.topic_of("loose/reading"), "1", Some("`source_type` is neither captured")),
        (bed.topic_of("loose/reading"), r#"{"source_type":"s","payload":1}"#, None),
        (bed.topic_of("probe//reading"), "1", Some("`source_id` is empty")),
        (long_name, "1", None),
        (good.clone(), r#"{"id":"e","payload_base64":"-"}"#, Some("not standard base64")),
        (good.clone(), large.as_str(), Some("limits.max_event_bytes allows 2048")),
        (good.clone(), huge.as_str(), None),
    ];
    sensor.publish(1, &good, "0");
    for (number, (topic, payload, _)) in bad.iter().enumerate() {
        sensor.publish(2, topic, payload);
        sensor.publish(1, &good, (number + 1).to_string());
    }
    let all = 2 * bad.len() + 1;
    if qos > 0 {
        bed.tap.wait_count(Way::ToBroker, kind::PUBACK, if qos == 1 { all } else { all - bad.len() }, USUAL);
    }
    assert_eq!(
        payloads(&bed, bad.len() + 1),
        (0..=bad.len()).map(|n| n.into()).collect::<Vec<serde_json::Value>>()
    );
    bed.tap.assert_answers_belong();
    let log = bed.agent.log();
    let told: Vec<_> = log.iter().filter(|line| line.contains(DROPPED)).collect();
    let reasons: Vec<&str> = bad.iter().filter_map(|(_, _, reason)| *reason).collect();
    assert_eq!(told.len(), reasons.len(), "{told:#?}");
    for (line, reason) in told.iter().zip(reasons) {
        assert!(line.contains(reason), "{reason} in {line}");
    }
    let status = bed.last_status();
    assert!(
        status.contains(&format!("(mqtt {}, unix 0), refused {},", bad.len() + 1, bad.len())),
        "{status}"
    );
    // Nothing comes again.
    let before = bed.tap.count(Way::ToAgent, kind::PUBLISH);
    bed.restart();
    sensor.publish(1, &good, "9");
    bed.tap.wait_count(Way::ToAgent, kind::PUBLISH, before + 1, USUAL);
    assert_eq!(payloads(&bed, bad.len() + 2).last(), Some(&9.into()));
    assert_eq!(bed.tap.count(Way::ToAgent, kind::PUBLISH), before + 1);
    assert_eq!(read_all(&Shared::get().kafka, &bed.topic).len(), bad.len() + 2);
}

#[test]
fn bad_publishes_hold_up_nobody_over_mqtt_5() {
    bad_publishes_hold_up_nobody(5, 1);
}

#[test]
fn bad_publishes_hold_up_nobody_over_mqtt_3_1_1() {
    for qos in [1, 2] {
        bad_publishes_hold_up_nobody(4, qos);
    }
}

#[test]
fn a_packet_above_the_limit_never_comes_over_mqtt_5() {
    let mut bed = Bed::shared(|_| {});
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    let topic = bed.topic_of("probe/s/reading");
    sensor.publish(1, &topic, "0");
    sensor.publish(1, &topic, vec![b'x'; PACKET_TOO_LARGE]);
    sensor.publish(1, &topic, "1");
    assert_eq!(payloads(&bed, 2), [0, 1]);
    assert_eq!((bed.tap.count(Way::ToAgent, kind::PUBLISH), bed.tap.connections()), (2, 1));
    assert_eq!(bed.agent.log_count("WARN") + bed.agent.log_count("ERROR"), 0);
    let status = bed.last_status();
    assert!(status.contains("(mqtt 2, unix 0), refused 0,"), "{status}");
}

/// MQTT 3.1.1 has no way to say it: the log names the cure, and the cure works.
#[test]
fn a_packet_above_the_limit_is_explained_over_mqtt_3_1_1() {
    let broker = Private::mosquitto(Persistence::On);
    let mut bed = Bed::at(broker.address(), |config| {
        config.set("mqtt.protocol", 4);
    });
    let mut sensor = Publisher::connect(broker.address());
    let topic = bed.topic_of("probe/s/reading");
    sensor.publish(1, &topic, "0");
    sensor.publish(1, &topic, vec![b'x'; PACKET_TOO_LARGE]);
    sensor.publish(1, &topic, "1");
    let line = bed.agent.wait_log("too large to read", USUAL);
    assert!(
        line.contains("ERROR") && line.contains("max_packet_size") && line.contains("mqtt.protocol = 5"),
        "{line}"
    );
    bed.agent.reconfigure(|config| {
        config.set("mqtt.protocol", 5);
    });
    bed.restart();
    assert_eq!(payloads(&bed, 2), [0, 1]);
    assert_eq!(bed.agent.log_count("too large"), 0);
}

/// While nothing is answered. Mosquitto 2.0 sends more once answers come several in one read.
#[test]
fn receive_maximum_bounds_what_is_unanswered() {
    let bed = Bed::shared(|config| {
        config.set("mqtt.receive_maximum", 10);
    });
    bed.tap.hold(Way::ToBroker);
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    for n in 0..500 {
        sensor.send(1, &bed.topic_of("probe/s/reading"), payload_of("s", n, "").as_bytes(), n).unwrap();
    }
    sensor.settle();
    bed.tap.wait_count(Way::ToBroker, kind::PUBACK, 10, USUAL);
    assert_eq!(bed.tap.count(Way::ToAgent, kind::PUBLISH), 10);
    bed.tap.pass(Way::ToBroker);
    bed.arrived(&[("s".to_owned(), 500)].into(), USUAL);
    bed.tap.assert_answers_belong();
    assert_eq!(bed.tap.connections(), 1);
}
