//! What the broker grants and tells.

use super::Report;
use crate::harness::agent::Agent;
use crate::harness::kafka::create_topic;
use crate::harness::mqtt::Publisher;
use crate::harness::services::{Private, Service, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

#[test]
fn less_quality_than_asked_for_is_told() {
    let broker = Private::with_settings(Service::Mosquitto, "max_qos 0\n");
    for (protocol, spoken) in [(4, "MQTT 3.1.1"), (5, "MQTT 5")] {
        let agent = Agent::prepare(|config| {
            config.mqtt(broker.address(), &["plant/{source_type}/{source_id}/{type}"]);
            config.shared_kafka("unused").set("mqtt.protocol", protocol);
        });
        let report = Report::of(&agent);
        report.says("mqtt", "ok", &format!("lets us in, {spoken}"));
        report.says(
            "mqtt",
            "warn",
            "grants QoS 0 for plant/+/+/+ and not 1: nothing is acknowledged, and what is published while",
        );
    }
}

#[test]
fn what_the_broker_keeps_and_drops_for_the_agent_is_told_beside_it() {
    let settings = "persistence false\nsys_interval 1\nmax_queued_messages 10\nmax_inflight_messages 20\n";
    let broker = Private::with_settings(Service::Mosquitto, settings);
    let (prefix, topic) = (unique("check"), create_topic(&Shared::get().kafka, 1));
    let mut agent = Agent::prepare(|config| {
        config.mqtt(broker.address(), &[&format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}")]);
        config.shared_kafka(&topic);
    });
    let report = Report::of(&agent);
    report.says("mqtt", "ok", "(max_queued_messages, 1000 by default) is in its configuration alone");
    report.says("mqtt", "ok", "keeps what is published for the agent from its first start on");
    assert_eq!(report.messages("mqtt", "warn"), [""; 0]);

    agent.begin();
    agent.wait_ready();
    let mut sensor = Publisher::connect(broker.address());
    let publish = |sensor: &mut Publisher| {
        sensor.publish(1, &format!("{prefix}/probe/s/reading"), "1");
    };
    let stored = |agent: &Agent| agent.disk_bytes();
    let before = stored(&agent);
    eventually("the agent has subscribed", USUAL, || {
        publish(&mut sensor);
        (stored(&agent) > before).then_some(())
    });
    // Beside the agent, which keeps its link, while check's copy of what is published is thrown away.
    let report = Report::of(&agent);
    assert_eq!(report.messages("mqtt", "warn"), [""; 0]);
    assert_eq!(agent.log_count("MQTT link down") + agent.log_count("took over the session"), 0);

    assert!(agent.stop().success());
    for _ in 0..100 {
        publish(&mut sensor);
    }
    sensor.settle();
    eventually("what is dropped and kept is told", USUAL, || {
        let report = Report::of(&agent);
        let warned = report.messages("mqtt", "warn");
        let is_told =
            warned.len() == 1 && warned[0].contains("publishes since its start, most often because");
        let is_kept = "sessions of clients that are away: 1";
        (is_told && report.messages("mqtt", "ok").iter().any(|message| message.contains(is_kept)))
            .then_some(())
    });
    broker.kill();
    broker.start();
    eventually("the lost session is told", USUAL, || {
        let report = Report::of(&agent);
        let warned = report.messages("mqtt", "warn");
        warned
            .iter()
            .any(|message| message.contains("keeps no session of any client that is away"))
            .then_some(())
    });
}
