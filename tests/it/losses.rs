//! The loss ledger, and the word of it in Kafka.

use serde_json::{Value, json};

use crate::buffer::damage_blocks;
use crate::harness::agent::{Agent, fieldpost};
use crate::harness::flow::line_of;
use crate::harness::kafka::{Record, consume_until, create_topic, read_all};
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::USUAL;

fn ledger(agent: &Agent) -> Value {
    let output = fieldpost()
        .args(["buffer", "status", "--json", "--config"])
        .arg(agent.config_file())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["ledger"].clone()
}

/// Payloads of announcements by reason.
fn words(records: &[Record], agent: &str) -> Vec<(String, Value)> {
    let of_losses = records.iter().map(Record::json).filter(|event| event["type"] == "fieldpost.loss");
    let mut words: Vec<_> = of_losses
        .map(|event| {
            assert_eq!((&event["source_type"], &event["source_id"]), (&"fieldpost".into(), &agent.into()));
            (event["payload"]["reason"].as_str().unwrap().to_owned(), event["payload"].clone())
        })
        .collect();
    words.sort_by(|a, b| a.0.cmp(&b.0));
    words
}

/// Refusals reach Kafka once, in a topic of their own, and not again after a restart; nobody else speaks for the agent.
#[test]
fn what_was_refused_is_told_once() {
    let kafka = &Shared::get().kafka;
    let (topic, losses) = (create_topic(kafka, 1), create_topic(kafka, 1));
    let id = unique("gw");
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("agent.id", id.as_str()).set("limits.max_event_bytes", "8 KiB");
        config.set("ledger.announce", true).set("ledger.topic", losses.as_str());
    });
    let mut client = agent.unix();
    client.send_line("no event");
    client.send_line(r#"{"type":"fieldpost.loss","source_type":"fieldpost","source_id":"x","payload":1}"#);
    client.send_line(&line_of("s", 1, 20_000));
    client.send_line(&line_of("s", 2, 10));
    client.wait_ack(1, USUAL);
    let codes: Vec<_> = client.refused().iter().map(|refusal| refusal.code.clone()).collect();
    assert_eq!(codes, ["invalid", "invalid", "too_large"]);

    let records = consume_until(kafka, &losses, USUAL * 2, |records| records.len() >= 2);
    let told = words(&records, &id);
    let numbers: Vec<_> = told
        .iter()
        .map(|(reason, word)| (reason.as_str(), word["events"].clone(), word["total"].clone()))
        .collect();
    assert_eq!(numbers, [("invalid", json!(2), json!(2)), ("too_large", json!(1), json!(1))]);
    assert!(agent.log_contains("losses are announced"));

    agent.restart();
    let mut client = agent.unix();
    client.send_line("no event either");
    client.send_line(&line_of("s", 3, 10));
    client.wait_ack(1, USUAL);
    let records = consume_until(kafka, &losses, USUAL * 2, |records| records.len() >= 3);
    let word = records[2].json()["payload"].clone();
    assert_eq!((&word["reason"], &word["events"], &word["total"]), (&"invalid".into(), &1.into(), &3.into()));
    assert_eq!(agent.stop().code(), Some(0));
    let ledger = ledger(&agent);
    assert_eq!(
        (&ledger["invalid"]["events"], &ledger["invalid"]["announced"]),
        (&3.into(), &3.into()),
        "{ledger}"
    );
    assert_eq!(ledger["too_large"]["events"], 1);
    assert_eq!(read_all(kafka, &losses).len(), 3, "each was told once");
    assert_eq!(words(&read_all(kafka, &topic), &id), []);
}

/// What was refused just before the stop is in the ledger, and told after the next start.
#[test]
fn a_stop_counts_what_was_refused_last() {
    let kafka = &Shared::get().kafka;
    let topic = create_topic(kafka, 1);
    let id = unique("gw");
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("agent.id", id.as_str()).set("ledger.announce", true);
    });
    let mut client = agent.unix();
    client.send_line("no event");
    client.wait_refused(USUAL);
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(ledger(&agent)["invalid"]["events"], 1);
    agent.restart();
    let records = consume_until(kafka, &topic, USUAL, |records| !records.is_empty());
    let told = words(&records, &id);
    assert_eq!((told[0].0.as_str(), &told[0].1["total"]), ("invalid", &json!(1)));
    assert_eq!(agent.stop().code(), Some(0));
}

/// Damage: the numbers that Kafka hears, the ledger and what is missing in Kafka are the same.
#[test]
fn damage_is_told_with_its_positions() {
    let kafka = &Shared::get().kafka;
    let topic = create_topic(kafka, 1);
    let id = unique("gw");
    let mut agent = Agent::start(|config| {
        config.kafka("127.0.0.1:1", "none").set("agent.id", id.as_str()).set("ledger.announce", true);
    });
    let mut client = agent.unix();
    for n in 0..300 {
        client.send_line(&line_of("s", n, 2000));
    }
    client.wait_ack(300, USUAL);
    assert_eq!(agent.stop().code(), Some(0));
    let file = agent.data_dir().join("buffer/00000000000000000001.gen/db");
    damage_blocks(&file, 100..=120);

    agent.reconfigure(|config| {
        config.shared_kafka(&topic);
    });
    agent.begin();
    agent.wait_ready();
    let records = consume_until(kafka, &topic, USUAL * 2, |records| !words(records, &id).is_empty());
    let (reason, word) = words(&records, &id).remove(0);
    let missing = word["total"].as_u64().unwrap();
    assert!(reason == "corrupt" && (2..40).contains(&missing), "{word}");
    assert_eq!(word["events"], missing);
    let ranges: Vec<(u64, u64)> = serde_json::from_value(word["ranges"].clone()).unwrap();
    assert_eq!(ranges.iter().map(|(first, last)| last + 1 - first).sum::<u64>(), missing);
    let events = records.iter().filter(|record| record.json()["type"] != "fieldpost.loss");
    let found: Vec<u64> =
        events.map(|record| record.header("fieldpost-seq").unwrap().parse().unwrap()).collect();
    let wanted: Vec<u64> =
        (1..=300).filter(|seq| !ranges.iter().any(|(first, last)| (first..=last).contains(&seq))).collect();
    assert_eq!(found, wanted);
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(ledger(&agent)["corrupt"]["events"], missing);
    let line = agent.log().into_iter().rfind(|line| line.contains("buffered")).unwrap();
    assert!(line.contains(&format!("lost {missing} (corrupt {missing})")), "{line}");
}
