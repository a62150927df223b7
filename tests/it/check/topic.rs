//! A topic's settings.

use super::Report;
use crate::harness::agent::{Agent, Config};
use crate::harness::kafka::{create_topic, create_topic_named, put_at};
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::USUAL;

/// The messages of the findings about Kafka that are warnings, and the exit code.
fn doubts(settings: &[(&str, &str)], configure: impl FnOnce(&mut Config)) -> (Vec<String>, i32) {
    let topic = unique("check");
    create_topic_named(&Shared::get().kafka, &topic, 1, settings);
    let agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
        configure(config);
    });
    let report = Report::of(&agent);
    (report.messages("kafka", "warn").into_iter().map(str::to_owned).collect(), report.code)
}

#[test]
fn a_topics_settings_are_compared_with_the_agents() {
    // Room for the largest event in its envelope.
    let roomy = ("max.message.bytes", "2000000");
    assert_eq!(doubts(&[roomy], |_| {}), (Vec::new(), 0));

    let (found, code) = doubts(&[("max.message.bytes", "100000")], |_| {});
    assert!(found.len() == 2 && code == 0, "{found:?}");
    assert!(found[0].contains("become dead letters; set its max.message.bytes to"), "{found:?}");
    let batches = "batches of up to 97 KiB, and the agent makes them of up to 400 KiB: Kafka rejects larger";
    assert!(found[1].contains(batches) && found[1].contains("set batch.size = 100000"), "{found:?}");
    let smaller = |config: &mut Config| {
        config.snippet("[kafka.properties]\n\"batch.size\" = 100000");
    };
    assert_eq!(doubts(&[("max.message.bytes", "100000")], smaller).0.len(), 1);
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

#[test]
fn the_oldest_event_in_the_buffer_is_compared_with_the_topics_limits() {
    let topic = unique("check");
    let hours = |hours: u64| (hours * 3_600_000).to_string();
    let (retention, behind, ahead) = (hours(2), hours(3), hours(1));
    let limits = [
        ("max.message.bytes", "2000000"),
        ("retention.ms", retention.as_str()),
        ("message.timestamp.before.max.ms", behind.as_str()),
        ("message.timestamp.after.max.ms", ahead.as_str()),
    ];
    create_topic_named(&Shared::get().kafka, &topic, 1, &limits);
    // What is in the buffer stays there: no broker for the agent, the real one for check.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut agent = Agent::start(|config| {
        config.kafka(&closed.to_string(), &topic).set("kafka.timestamp", "event");
    });
    let said = |agent: &mut Agent, hours: i64| {
        let time = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        let event = serde_json::json!({
            "type": "reading", "source_type": "probe", "source_id": "s", "timestamp": time.to_string(), "payload": 1
        });
        let mut client = agent.unix();
        client.send(&event);
        client.wait_ack(1, USUAL);
        agent.reconfigure(|config| {
            config.shared_kafka(&topic);
        });
        // Beside the running agent.
        Report::of(agent).messages("kafka", "warn").join("\n")
    };
    let found = said(&mut agent, -4);
    for wanted in [
        "keeps records for 2h, by their time, and the oldest event in the buffer is 4 h 0 min old: Kafka confirms it and",
        "older than 3h (message.timestamp.before.max.ms), and the oldest event in the buffer is 4 h 0 min old",
        "more than 1h ahead (message.timestamp.after.max.ms): events of a producer whose clock is wrong",
    ] {
        assert!(found.contains(wanted), "{wanted:?} is missing in {found}");
    }
    agent = Agent::start(|config| {
        config.kafka(&closed.to_string(), &topic).set("kafka.timestamp", "event");
    });
    let found = said(&mut agent, 3);
    let wanted = "more than 1h ahead (message.timestamp.after.max.ms), and the oldest event in the buffer is 2 h 59 min ahead";
    assert!(
        found.contains(wanted) && found.contains("an event that was in the buffer for longer"),
        "{found}"
    );
}

#[test]
fn records_ahead_of_this_machines_clock_are_told() {
    let topic = create_topic(&Shared::get().kafka, 2);
    let agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
    });
    Report::of(&agent).says("kafka", "ok", "no record is ahead of this machine's clock");
    let ahead = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(30);
    put_at(&Shared::get().kafka, &topic, 1, ahead.as_millisecond());
    let report = Report::of(&agent);
    report.says("kafka", "warn", &format!("the newest record of {topic} is 29 min"));
    report.says("kafka", "warn", "records look older than they are, are deleted early");
    assert_eq!(report.code, 0);
}
