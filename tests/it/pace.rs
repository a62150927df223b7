//! How fast the drain is when it must not be fast: rates of its own, quotas of the brokers, a jittered start.

use std::process::Command;

use crate::harness::agent::Agent;
use crate::harness::flow::{Stored, assert_no_duplicates, line_of};
use crate::harness::kafka::{Record, consume_count, create_topic, read_all};
use crate::harness::services::{Private, Shared};
use crate::harness::unique;
use crate::harness::wait::USUAL;

/// Sends `count` events of about `bytes` and returns when they are acknowledged.
fn send(agent: &Agent, count: usize, bytes: usize) {
    let source = unique("pace");
    let mut client = agent.unix();
    for n in 0..count as u64 {
        client.send_line(&line_of(&source, n, bytes));
    }
    client.wait_ack(count as u64, USUAL);
}

/// Seconds between the first record and the last, by the time of their sending.
fn span_s(records: &[Record]) -> f64 {
    let times = || records.iter().map(|record| record.timestamp.unwrap());
    (times().max().unwrap() - times().min().unwrap()) as f64 / 1000.0
}

#[test]
fn rates_hold_for_events_and_for_bytes() {
    const EVENTS: usize = 600;
    let brokers = &Shared::get().kafka;
    for (key, rate, least_s) in
        [("kafka.max_event_rate", 200.into(), 2.8), ("kafka.max_rate", "200 KiB".into(), 2.8)]
    {
        let topic = create_topic(brokers, 2);
        let rate: serde_json::Value = rate;
        let agent = Agent::start(|config| {
            config.shared_kafka(&topic).set(key, rate.clone());
        });
        // 600 kB and more, acknowledged long before the last one may go.
        send(&agent, EVENTS, 1000);
        let records = consume_count(brokers, &topic, EVENTS, USUAL);
        let span_s = span_s(&records);
        eprintln!("{key} = {rate}: {EVENTS} events within {span_s} s");
        // A machine that is slow only adds to it; a tenth of a second's worth goes out at once.
        assert!(span_s >= least_s, "{key}: {span_s} s");
    }
}

#[test]
fn a_quota_of_the_brokers_slows_the_drain_and_costs_nothing() {
    const EVENTS: usize = 1000;
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 1);
    let status = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/services"))
        .args(["tool", "kafka.admin.ConfigCommand", "--bootstrap-server", kafka.address()])
        .args([
            "--alter",
            "--add-config",
            "producer_byte_rate=100000",
            "--entity-type",
            "clients",
            "--entity-default",
        ])
        .status()
        .unwrap();
    assert!(status.success());
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).set("kafka.compression", "none");
    });
    send(&agent, EVENTS, 1000);
    let records = consume_count(kafka.address(), &topic, EVENTS, USUAL * 2);
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(read_all(kafka.address(), &topic).len(), EVENTS);
    assert_no_duplicates(&records.iter().map(Stored::of).collect::<Vec<_>>());
    assert!(!agent.log_contains("is tried again"), "{:?}", agent.log());
}

#[test]
fn a_jittered_start_takes_events_at_once() {
    let brokers = &Shared::get().kafka;
    let topic = create_topic(brokers, 1);
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("kafka.start_jitter", "4s");
    });
    agent.wait_log("the first event to Kafka waits (kafka.start_jitter)", USUAL);
    send(&agent, 10, 0);
    consume_count(brokers, &topic, 10, USUAL);
}
