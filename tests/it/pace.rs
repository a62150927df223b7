//! How fast the drain is when it must not be fast: rates of its own, quotas of the brokers, a jittered start.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::agent::Agent;
use crate::harness::flow::{
    Pace, Stored, assert_no_duplicates, assert_whole_and_in_order, finish, line_of, pass, start_producers,
};
use crate::harness::kafka::{Follower, Record, consume_count, create_topic, read_all};
use crate::harness::services::{Private, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

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

/// The length of the outage: `FIELDPOST_OUTAGE_SECONDS`, 20 without it.
fn outage() -> Duration {
    let seconds = std::env::var("FIELDPOST_OUTAGE_SECONDS").unwrap_or_else(|_| "20".to_owned());
    let seconds = seconds.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    Duration::from_secs(seconds.expect("FIELDPOST_OUTAGE_SECONDS is a number from 1 to 86400"))
}

/// What a consumer keeps of a record; a long outage has too many of them to keep them whole.
#[derive(Clone)]
struct Sent {
    stored: Stored,
    bytes: u64,
    /// When the agent sent it, in milliseconds.
    at_ms: i64,
}

impl Sent {
    fn of(record: &Record) -> Self {
        let headers = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let bytes = record.key.as_ref().map_or(0, Vec::len) + record.payload.len() + headers;
        Self { stored: Stored::of(record), bytes: bytes as u64, at_ms: record.timestamp.unwrap() }
    }
}

/// The most bytes that were sent within any `window_ms`.
fn most_bytes_within(window_ms: i64, sent: &[Sent]) -> u64 {
    let mut by_time: Vec<(i64, u64)> = sent.iter().map(|sent| (sent.at_ms, sent.bytes)).collect();
    by_time.sort_unstable();
    let (mut first, mut bytes, mut most) = (0, 0, 0);
    for (at_ms, more) in &by_time {
        bytes += more;
        while by_time[first].0 <= at_ms - window_ms {
            bytes -= by_time[first].1;
            first += 1;
        }
        most = most.max(bytes);
    }
    most
}

/// Events come all the time, before, in and behind an outage. Behind it the drain may send three times as much as comes,
/// so catching up takes half as long as the outage took.
#[test]
fn a_backlog_is_caught_up_at_the_rate_while_events_keep_coming() {
    const RATE: u64 = 600 << 10;
    /// The limits of memory together are 16 MiB (`limits.memory`); the rest is the program itself.
    const MEMORY_KIB_MAX: u64 = 64 << 10;
    let outage = outage();
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 3);
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).set("kafka.max_rate", "600 KiB");
    });
    let sent = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&sent);
    let _follower = Follower::start(kafka.address(), &topic, move |record| {
        kept.lock().unwrap().push(Sent::of(&record));
    });
    let count = || sent.lock().unwrap().len();
    let pace = Pace { rate: Some(100), padding: 500, ..Pace::default() };
    let producers = start_producers(&agent, "steady", 2, pace);
    eventually("events arrive", USUAL, || (count() > 400).then_some(()));
    kafka.kill();
    pass(outage);
    let peak = agent.disk_bytes();
    kafka.start();
    let (back, backlog) = (Instant::now(), producers.iter().map(|one| one.acked()).sum::<u64>());
    let caught_up = || count() as u64 + 200 >= producers.iter().map(|one| one.acked()).sum::<u64>();
    eventually("the backlog is gone", USUAL * 3 + outage * 2, || caught_up().then_some(()));
    let took = back.elapsed();
    let acked = finish(producers);
    let total: u64 = acked.values().sum();
    eventually("everything is in Kafka", USUAL, || (count() as u64 >= total).then_some(()));
    let memory_kib = agent.peak_rss_kb();
    assert_eq!(agent.stop().code(), Some(0));

    let sent = std::mem::take(&mut *sent.lock().unwrap());
    let stored: Vec<Stored> = sent.iter().map(|sent| sent.stored.clone()).collect();
    assert_whole_and_in_order(&stored, &acked);
    assert_no_duplicates(&stored);
    assert_eq!(stored.len() as u64, total);
    // A tenth of a second's worth may be saved up, one event may go before the last one's time is over, and one may
    // come late to its time.
    let largest = sent.iter().map(|sent| sent.bytes).max().unwrap();
    let allowed = |window_ms: u64| RATE * (window_ms + 100) / 1000 + 2 * largest;
    let windows = [1000, 5000].map(|window_ms| (window_ms, most_bytes_within(window_ms, &sent)));
    eprintln!(
        "outage of {outage:?}: {total} events, {:.1} MiB on disk at its end, {backlog} events taken by then, caught up \
         after {took:?}; most bytes within 1 s {}, within 5 s {}, of {RATE} a second; peak memory {:.1} MiB",
        peak as f64 / f64::from(1 << 20),
        windows[0].1,
        windows[1].1,
        memory_kib as f64 / 1024.0
    );
    for (window_ms, most) in windows {
        let allowed = allowed(window_ms.unsigned_abs());
        assert!(most <= allowed, "{most} bytes within {window_ms} ms, {allowed} are allowed");
    }
    assert!(memory_kib < MEMORY_KIB_MAX, "{memory_kib} KiB");
}
