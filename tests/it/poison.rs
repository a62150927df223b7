//! Poison in the row: exactly what Kafka rejects by itself becomes a dead letter, and the rest arrives whole and in order.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::agent::{Agent, fieldpost};
use crate::harness::flow::{Stored, kept_by_position, line_of};
use crate::harness::kafka::{Record, create_topic_named, read_all};
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

/// The topic takes batches of that size.
const TOPIC_BYTES: usize = 100_000;

const EVENTS: u64 = 100_000;

/// Which events are poison: too large, each in the midst of others and two of them neighbours, and with a time far ahead.
const LARGE: [u64; 4] = [20_000, 20_001, 50_000, 99_999];
const AHEAD: [u64; 3] = [0, 30_000, 70_000];

const SOURCES: u64 = 10;

fn source_of(n: u64) -> String {
    format!("p{}", n % SOURCES)
}

/// Event `n` of all; a source counts its own.
fn line(n: u64) -> String {
    let padding = if LARGE.contains(&n) { TOPIC_BYTES + 20_000 } else { 20 };
    let mut event: Value = serde_json::from_str(&line_of(&source_of(n), n / SOURCES, padding)).unwrap();
    if AHEAD.contains(&n) {
        let ahead = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(48);
        event["timestamp"] = json!(ahead.to_string());
    }
    event.to_string()
}

/// An agent whose topic refuses large events and times ahead, with everything sent and acknowledged.
fn poisoned(delivery: &str, dead_letter_topic: Option<&str>) -> (Agent, String) {
    let topic = unique("poisoned");
    let limit = TOPIC_BYTES.to_string();
    create_topic_named(&Shared::get().kafka, &topic, 2, &[("max.message.bytes", &limit)]);
    let agent = Agent::start(|config| {
        config
            .shared_kafka(&topic)
            .set("kafka.delivery", delivery)
            .set("kafka.timestamp", "event")
            .set("kafka.properties", json!({"batch.size": TOPIC_BYTES / 2}));
        if let Some(name) = dead_letter_topic {
            config.set("kafka.dead_letter_topic", name);
        }
    });
    let mut client = agent.unix();
    for n in 0..EVENTS {
        client.send_line(&line(n));
    }
    client.wait_ack(EVENTS, USUAL * 4);
    (agent, topic)
}

/// Waits until everything but the poison is in `topic`, and looks at it and the status.
#[track_caller]
fn assert_rest_is_whole(agent: &mut Agent, topic: &str, delivery: &str) {
    let brokers = &Shared::get().kafka;
    let poison: BTreeSet<u64> = LARGE.into_iter().chain(AHEAD).collect();
    let rest = EVENTS - poison.len() as u64;
    let kept = eventually("everything but the poison is in Kafka", USUAL * 6, || {
        let kept = kept_by_position(&read_all(brokers, topic));
        (kept.len() as u64 >= rest).then_some(kept)
    });
    // The last of them may wait for its place on disk still, and a stop leaves it in the buffer then.
    eventually("all the poison is in the ledger", USUAL * 2, || {
        (agent.lost("dead_lettered").0 >= poison.len() as u64).then_some(())
    });
    assert_eq!(agent.stop().code(), Some(0));
    let records = read_all(brokers, topic);
    eprintln!("{delivery}: {} records, {} kept by position", records.len(), kept.len());
    assert_eq!(kept.len() as u64, rest);
    if delivery == "exactly_once" {
        assert_eq!(records.len(), kept.len(), "positions are there twice");
    }
    // Each source whole but for its poison, in order.
    let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for Stored { source, n, .. } in kept {
        found.entry(source).or_default().push(n);
    }
    for (source, numbers) in found {
        let number: u64 = source[1..].parse().unwrap();
        let wanted: Vec<u64> =
            (0..EVENTS / SOURCES).filter(|n| !poison.contains(&(n * SOURCES + number))).collect();
        assert!(numbers == wanted, "{source} has gaps or is out of order");
    }
    let (dead, _) = agent.lost("dead_lettered");
    assert_eq!(dead, poison.len() as u64, "in the ledger");
}

fn numbers_of<'a>(records: impl IntoIterator<Item = &'a Record>) -> BTreeSet<u64> {
    let of = |record: &Record| {
        let stored = Stored::of(record);
        let number: u64 = stored.source[1..].parse().unwrap();
        stored.n * SOURCES + number
    };
    records.into_iter().map(of).collect()
}

fn exactly_the_poison_is_dead_lettered(delivery: &str) {
    let dead = unique("dead");
    create_topic_named(&Shared::get().kafka, &dead, 1, &[]);
    let (mut agent, topic) = poisoned(delivery, Some(&dead));
    assert_rest_is_whole(&mut agent, &topic, delivery);
    let letters = read_all(&Shared::get().kafka, &dead);
    assert_eq!(numbers_of(&letters), LARGE.into_iter().chain(AHEAD).collect::<BTreeSet<_>>());
    for letter in &letters {
        let header = |name: &str| letter.header(&format!("fieldpost-dead-letter-{name}")).unwrap();
        let n = *numbers_of([letter]).first().unwrap();
        let (code, word) = if LARGE.contains(&n) { ("10", "too large") } else { ("32", "timestamp") };
        assert_eq!((header("code"), header("topic"), header("attempts")), (code, topic.as_str(), "2"));
        assert!(header("reason").contains(word), "{}", header("reason"));
        assert!(header("time").parse::<jiff::Timestamp>().is_ok(), "{}", header("time"));
    }
    assert!(!agent.data_dir().join("dead-letters").exists(), "the topic has them");
}

#[test]
fn at_least_once_exactly_the_poison_is_dead_lettered() {
    exactly_the_poison_is_dead_lettered("at_least_once");
}

#[test]
fn exactly_once_exactly_the_poison_is_dead_lettered() {
    exactly_the_poison_is_dead_lettered("exactly_once");
}

#[test]
fn what_no_topic_takes_is_kept_on_disk_and_can_be_sent_again() {
    let dead = unique("dead");
    // It takes what was only too early, and the large ones not either.
    create_topic_named(&Shared::get().kafka, &dead, 1, &[("max.message.bytes", "10000")]);
    let (mut agent, topic) = poisoned("at_least_once", Some(&dead));
    assert_rest_is_whole(&mut agent, &topic, "at_least_once");
    assert_eq!(numbers_of(&read_all(&Shared::get().kafka, &dead)), BTreeSet::from(AHEAD));
    let config = agent.config_file();
    let command = |words: &[&str]| {
        let output =
            fieldpost().arg("dead-letter").args(words).arg("--config").arg(&config).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let listed: Vec<Value> =
        command(&["list", "--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), LARGE.len(), "{listed:?}");
    assert!(
        listed.iter().all(|letter| letter["topic"] == topic.as_str() && letter["code"] == 10),
        "{listed:?}"
    );

    // The operator mends the topic and sends them again.
    crate::harness::kafka::alter_topic(&Shared::get().kafka, &topic, "max.message.bytes", "1000000");
    agent.begin();
    agent.wait_ready();
    command(&["retry", "--all"]);
    assert_eq!(command(&["list", "--json"]), "");
    let kept = eventually("the large ones are there too", USUAL * 2, || {
        let kept = kept_by_position(&read_all(&Shared::get().kafka, &topic));
        (kept.len() as u64 >= EVENTS - AHEAD.len() as u64).then_some(kept)
    });
    let large: BTreeSet<(String, u64)> = LARGE.into_iter().map(|n| (source_of(n), n / SOURCES)).collect();
    assert!(
        large.iter().all(|(source, n)| kept.iter().any(|event| event.source == *source && event.n == *n))
    );
}
