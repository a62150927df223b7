//! `fieldpost check` against real services: what it finds, what that means and what to do.

use serde_json::Value;

use crate::harness::agent::{Agent, Config, fieldpost};
use crate::harness::kafka::create_topic_named;
use crate::harness::services::Shared;
use crate::harness::unique;

/// The messages of the findings about Kafka that are warnings, and the exit code.
fn doubts(settings: &[(&str, &str)], configure: impl FnOnce(&mut Config)) -> (Vec<String>, i32) {
    let topic = unique("check");
    create_topic_named(&Shared::get().kafka, &topic, 1, settings);
    let agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
        configure(config);
    });
    let output = fieldpost().args(["check", "--json", "--config"]).arg(agent.config_file()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let findings = report["findings"].as_array().unwrap().iter();
    let doubts = findings.filter(|finding| finding["area"] == "kafka" && finding["level"] == "warn");
    let messages = doubts.map(|finding| finding["message"].as_str().unwrap().to_owned()).collect();
    (messages, output.status.code().unwrap())
}

#[test]
fn a_topics_settings_are_compared_with_the_agents() {
    // Room for the largest event in its envelope.
    let roomy = ("max.message.bytes", "2000000");
    assert_eq!(doubts(&[roomy], |_| {}), (Vec::new(), 0));

    let (found, code) = doubts(&[("max.message.bytes", "100000")], |_| {});
    assert!(found.len() == 1 && code == 0, "{found:?}");
    assert!(found[0].contains("become dead letters; set its max.message.bytes to"), "{found:?}");
    assert_eq!(
        doubts(&[("max.message.bytes", "100000")], |config| {
            config.set("limits.max_event_bytes", "32 KiB");
        })
        .0,
        [""; 0]
    );

    let (found, _) = doubts(&[roomy, ("min.insync.replicas", "2")], |_| {});
    assert!(found.len() == 1 && found[0].contains("no record is ever confirmed"), "{found:?}");

    let limits = [
        roomy,
        ("retention.ms", "86400000"),
        ("message.timestamp.before.max.ms", "7200000"),
        ("message.timestamp.after.max.ms", "60000"),
    ];
    assert_eq!(doubts(&limits, |_| {}).0, [""; 0], "the time of sending suits every limit");
    let by_event = |config: &mut Config| {
        config.set("kafka.timestamp", "event");
    };
    let (found, _) = doubts(&limits, by_event);
    let wanted = ["keeps records for 24h", "older than 2h", "more than 1m ahead"];
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.contains(wanted) && found.contains("kafka.timestamp = \"send\""), "{found}");
    }
    let stamped = [&limits[..], &[("message.timestamp.type", "LogAppendTime")]].concat();
    assert_eq!(doubts(&stamped, by_event).0, [""; 0], "the brokers' own time counts");
}
