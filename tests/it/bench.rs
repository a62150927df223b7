//! `fieldpost bench`, on each of its targets.

use serde_json::Value;

use crate::harness::agent::{Agent, fieldpost};
use crate::harness::kafka::{consume_count, create_topic, read_all};
use crate::harness::services::{Persistence, Private, Shared};
use crate::harness::wait::USUAL;

/// Code, report and what was said.
fn bench(arguments: &[&str]) -> (Option<i32>, Value, String) {
    let output = fieldpost().arg("bench").args(arguments).arg("--json").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

fn ms(report: &Value, name: &str) -> f64 {
    report["latency_ms"][name].as_f64().unwrap_or_else(|| panic!("{report}"))
}

#[test]
fn each_target_is_measured_and_its_events_arrive() {
    let brokers = &Shared::get().kafka;
    let mosquitto = Private::mosquitto(Persistence::Off);
    let (topic, scratch) = (create_topic(brokers, 2), create_topic(brokers, 1));
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic).mqtt(mosquitto.address(), &["s/{source_type}/{source_id}/{type}"]);
    });
    let config = agent.config_file().to_str().unwrap().to_owned();
    let (code, report, said) =
        bench(&["--config", &config, "--events", "5000", "--sources", "7", "--bytes", "64"]);
    assert_eq!(
        (code, &report["taken"], &report["sent"]),
        (Some(0), &5000.into(), &5000.into()),
        "{said}{report}"
    );
    assert!(
        ms(&report, "p50") > 0.0
            && ms(&report, "p50") <= ms(&report, "p99")
            && ms(&report, "p99") <= ms(&report, "max"),
        "{report}"
    );
    let (code, report, said) =
        bench(&["--config", &config, "--target", "mqtt", "--events", "300", "--window", "20"]);
    assert_eq!((code, &report["taken"]), (Some(0), &300.into()), "{said}{report}");
    let records = consume_count(brokers, &topic, 5300, USUAL);
    assert!(
        records.iter().all(|record| record.key.as_deref().is_some_and(|key| key.starts_with(b"bench-0")))
    );
    let (code, report, said) = bench(&[
        "--config", &config, "--target", "kafka", "--topic", &scratch, "--events", "2000", "--bytes", "500",
    ]);
    assert_eq!((code, &report["taken"]), (Some(0), &2000.into()), "{said}{report}");
    let records = read_all(brokers, &scratch);
    assert_eq!(records.len(), 2000);
    assert!(records.iter().all(|record| record.payload.len() == 500));

    // A rate holds, and its time ends it.
    let (code, report, said) = bench(&["--config", &config, "--rate", "200", "--seconds", "2"]);
    let taken = report["taken"].as_u64().unwrap();
    assert!(code == Some(0) && (300..=401).contains(&taken), "{said}{report}");
}

#[test]
fn what_is_not_taken_is_told() {
    let agent = Agent::start(|config| {
        config.kafka("127.0.0.1:9", "t");
        config
            .set("buffer.max_bytes", "4MiB")
            .set("buffer.when_full", "reject")
            .set("limits.max_event_bytes", "16KiB");
    });
    let socket = agent.socket();
    let socket = socket.to_str().unwrap();
    let (code, report, said) = bench(&["--socket", socket, "--bytes", "20000", "--events", "10"]);
    assert_eq!((code, &report["refused_for_good"]), (Some(65), &10.into()), "{said}{report}");
    let (code, report, said) = bench(&["--socket", socket, "--bytes", "8000", "--events", "2000"]);
    let of = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(code, Some(75), "{said}{report}");
    assert!(of("refused_for_now") > 0 && of("taken") > 0, "{report}");
    assert_eq!(of("taken") + of("refused_for_now"), 2000, "{report}");

    let (code, report, said) = bench(&["--socket", "/nonexistent/socket"]);
    assert!(code == Some(69) && report.is_null() && said.contains("no agent answers"), "{said}");
    let (code, _, said) = bench(&["--target", "kafka"]);
    assert!(code == Some(64) && said.contains("--topic"), "{said}");
    let config = agent.config_file();
    let (code, _, said) = bench(&["--target", "mqtt", "--config", config.to_str().unwrap()]);
    assert!(code == Some(69) && said.contains("mqtt.url"), "{said}");
    let arguments = ["--target", "kafka", "--topic", "t", "--events", "3", "--timeout", "1", "--config"];
    let (code, report, said) = bench(&[&arguments, [config.to_str().unwrap()].as_slice()].concat());
    assert_eq!((code, &report["without_answer"]), (Some(75), &3.into()), "{said}{report}");
    assert!(said.contains("kafka.brokers"), "{said}");
}
