//! The retained status at a real Mosquitto: what a neighbour that comes late sees, and that it is never an event.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::Bed;
use crate::harness::kafka::{consume_count, read_all};
use crate::harness::mqtt::{Publisher, address_of, kind};
use crate::harness::services::{Persistence, Private, Service, Shared};
use crate::harness::tap::Way;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

/// What the broker keeps on `topic`, for who subscribes now.
fn retained(broker: &Private, topic: &str) -> Option<Value> {
    let (host, port) = address_of(broker.address()).split_once(':').unwrap();
    let output = Command::new("mosquitto_sub")
        .args(["-h", host, "-p", port, "-t", topic, "-C", "1", "-W", "1", "--retained-only"])
        .output()
        .expect("mosquitto_sub, of Debian's mosquitto-clients, is there");
    serde_json::from_slice(&output.stdout).ok()
}

#[track_caller]
fn wait_state(broker: &Private, topic: &str, state: &str) -> Value {
    eventually(state, USUAL, || retained(broker, topic).filter(|status| status["state"] == state))
}

#[test]
fn a_late_neighbour_sees_up_down_and_stopped_and_none_of_it_is_an_event() {
    // The first would make an event of it, the second a complaint.
    let named = r#"{"source_type":"probe","source_id":"s","type":"reading","payload":1}"#;
    for (protocol, template, payload) in
        [(5, "sensors/{source_type}/{source_id}/{type}", "1"), (4, "#", named)]
    {
        // Of its own: what another agent says of itself is an event like any other.
        let broker = Private::mosquitto(Persistence::Off);
        let id = unique("gateway");
        let mut bed = Bed::prepare(broker.address(), |config| {
            config.set("mqtt.protocol", protocol).set("agent.id", id.as_str());
            config.set("mqtt.topics", vec![template]);
            config.set("mqtt.status_topic", "sensors/agent/{agent_id}/status");
            // Sooner than in a minute, for figures alone.
            config.set("mqtt.status_interval", "10s");
        });
        bed.tap.wait_subscribed();
        let topic = format!("sensors/agent/{id}/status");
        let up = eventually("Kafka is seen", USUAL * 2, || {
            retained(&broker, &topic).filter(|status| status["links"]["kafka"] == "up")
        });
        assert_eq!((&up["version"], &up["agent"], &up["state"]), (&json!(1), &json!(id), &json!("up")));
        assert_eq!((&up["links"]["redis"], &up["lost"]), (&json!("off"), &json!(0)));
        assert!(up["buffer"]["bytes"].as_u64().unwrap() > 0 && up["buffer"]["is_writable"] == true, "{up}");
        let since: jiff::Timestamp = up["since"].as_str().unwrap().parse().unwrap();
        assert!(jiff::Timestamp::now().duration_since(since) < jiff::SignedDuration::from_mins(10), "{up}");

        bed.agent.kill9();
        let down = wait_state(&broker, &topic, "down");
        assert_eq!((&down["since"], &down["buffer"]), (&up["since"], &Value::Null));
        bed.agent.begin();
        bed.agent.wait_ready();
        wait_state(&broker, &topic, "up");

        Publisher::connect(broker.address()).publish(1, "sensors/probe/s/reading", payload);
        consume_count(&Shared::get().kafka, &bed.topic, 1, USUAL);
        let line = bed.last_status();
        assert!(line.contains("in 1 (mqtt 1,"), "{line}");
        let stopped = wait_state(&broker, &topic, "stopped");
        assert_eq!(stopped["agent"], id.as_str());
        assert_eq!(read_all(&Shared::get().kafka, &bed.topic).len(), 1);
        // It came back at each subscription and each publish, and was acknowledged without a word.
        let log = bed.agent.log().join("\n");
        assert!(!log.contains("a publish is no event"), "{log}");
        assert!(bed.tap.count(Way::ToBroker, kind::PUBACK) > 1, "its own status was not answered");
    }
}

#[test]
fn a_broker_that_does_not_take_the_status_is_told_of_once_and_takes_events_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules");
    std::fs::write(&rules, "topic read #\ntopic write sensors/#\n").unwrap();
    let broker = Private::with_settings(Service::Mosquitto, &format!("acl_file {}", rules.display()));
    for protocol in [5, 4] {
        let id = unique("gateway");
        let mut bed = Bed::prepare(broker.address(), |config| {
            config
                .set("mqtt.protocol", protocol)
                .set("agent.id", id.as_str())
                .set("mqtt.status_interval", "10s");
            config.set("mqtt.topics", vec!["sensors/{source_type}/{source_id}/{type}"]);
            config.set("mqtt.status_topic", "fieldpost/{agent_id}/status");
        });
        bed.tap.wait_subscribed();
        bed.tap.wait_count(Way::ToBroker, kind::PUBLISH, 2, Duration::from_secs(40));
        bed.tap.wait_count(Way::ToAgent, kind::PUBACK, 2, USUAL);
        Publisher::connect(broker.address()).publish(1, "sensors/probe/s/reading", "1");
        consume_count(&Shared::get().kafka, &bed.topic, 1, USUAL);
        assert_eq!(bed.agent.stop().code(), Some(0));
        assert_eq!(retained(&broker, &format!("fieldpost/{id}/status")), None);
        let told = bed.agent.log().iter().filter(|line| line.contains("mqtt.status_topic")).count();
        // MQTT 3.1.1 has no way to refuse.
        assert_eq!(told, usize::from(protocol == 5), "{:#?}", bed.agent.log());
    }
}
