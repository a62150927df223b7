//! A full buffer: the broker holds what the agent cannot take, and the session outlives it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::{Bed, arrived};
use crate::harness::agent::Agent;
use crate::harness::flow::{Stored, assert_no_duplicates};
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::mqtt::{Publisher, kind, payload_of};
use crate::harness::services::{Private, Shared};
use crate::harness::tap::{Tap, Way};
use crate::harness::unique;
use crate::harness::wait::USUAL;

/// The least that `buffer.max_bytes` may be.
const BUFFER: &str = "8MiB";
const EACH_BYTES: usize = 16 << 10;
/// Well above the buffer.
const EVENTS: usize = 1000;
const COUNT: u64 = EVENTS as u64;
const BACKLOG: Duration = Duration::from_secs(90);

/// Text that no compression makes small.
fn noise() -> String {
    let mut text = String::new();
    while text.len() < EACH_BYTES {
        write!(text, "{:016x}", fastrand::u64(..)).unwrap();
    }
    text
}

/// An agent whose Kafka is away.
fn bed(kafka: &Private, when_full: &str) -> Bed {
    let tap = Tap::on(&Shared::get().mqtt);
    let (prefix, topic) = (unique("mqtt"), create_topic(kafka.address(), 4));
    kafka.kill();
    let agent = Agent::start(|config| {
        config.mqtt(&tap.url(), &[&format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}")]);
        config.kafka(kafka.address(), &topic);
        config.set("buffer.max_bytes", BUFFER).set("buffer.when_full", when_full);
        config.set("mqtt.receive_maximum", 50).set("mqtt.keep_alive", "5s");
        config.set("agent.stop_grace", "1s");
    });
    tap.wait_subscribed();
    Bed { agent, tap, prefix, topic }
}

/// The broker takes everything, whatever the agent can take.
fn publish_all(bed: &Bed) {
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    let topic = bed.topic_of("probe/s/reading");
    for n in 0..COUNT {
        sensor.send(1, &topic, payload_of("s", n, &noise()).as_bytes(), n).unwrap();
    }
    sensor.settle();
}

fn acked(bed: &Bed) -> usize {
    bed.tap.count(Way::ToBroker, kind::PUBACK)
}

#[test]
fn a_full_buffer_that_blocks_leaves_the_rest_with_the_broker() {
    let kafka = Private::kafka();
    let mut bed = bed(&kafka, "block");
    publish_all(&bed);
    bed.agent.wait_log("the buffer is full", USUAL);
    // Twice as long as the keep-alive, and more.
    let (connections, pings) = (bed.tap.connections(), bed.tap.count(Way::ToAgent, kind::PINGRESP));
    bed.tap.wait_count(Way::ToAgent, kind::PINGRESP, pings + 1, Duration::from_secs(20));
    let before = acked(&bed);
    bed.tap.wait_count(Way::ToAgent, kind::PINGRESP, pings + 3, Duration::from_secs(30));
    assert_eq!(bed.tap.connections(), connections, "the session lives on");
    assert_eq!(acked(&bed), before, "nothing is acknowledged that is not durable");
    assert!((1..EVENTS).contains(&before) && bed.tap.unanswered() >= 50, "{before} acknowledged");
    assert!(bed.agent.disk_bytes() <= 8 << 20, "{} bytes", bed.agent.disk_bytes());

    kafka.start();
    let stored = arrived(kafka.address(), &bed.topic, &BTreeMap::from([("s".to_owned(), COUNT)]), BACKLOG);
    assert_no_duplicates(&stored);
    bed.tap.wait_count(Way::ToBroker, kind::PUBACK, EVENTS, USUAL);
    bed.tap.assert_answers_belong();
    let status = bed.last_status();
    assert!(status.contains(&format!("(mqtt {COUNT}, unix 0), refused 0, buffered 0 ")), "{status}");
}

/// The number after `word` in a status line.
fn number_after(status: &str, word: &str) -> u64 {
    let rest = status.split_once(word).expect("the word is there").1;
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn a_full_buffer_that_rejects_counts_what_it_refuses() {
    let kafka = Private::kafka();
    let mut bed = bed(&kafka, "reject");
    publish_all(&bed);
    bed.tap.wait_count(Way::ToBroker, kind::PUBACK, EVENTS, USUAL);
    bed.tap.assert_answers_belong();
    let line = bed.agent.wait_log("events refused and acknowledged", USUAL);
    assert!(line.contains("WARN"), "{line}");
    let status = bed.last_status();
    let [taken, refused, kept] = [" (mqtt ", "refused ", "buffered "].map(|word| number_after(&status, word));
    assert_eq!((taken + refused, kept), (COUNT, taken), "{status}");
    assert!(taken > 100 && refused > 100, "{status}");

    kafka.start();
    bed.restart();
    let count = usize::try_from(taken).unwrap();
    let records = consume_count(kafka.address(), &bed.topic, count, BACKLOG);
    let mut events: Vec<u64> = records.iter().map(|record| Stored::of(record).n).collect();
    let before = events.clone();
    events.sort_unstable();
    events.dedup();
    assert_eq!(events, before, "in order, none twice");
    let status = bed.last_status();
    assert!(status.contains("buffered 0 ") && status.contains(&format!("out {count}, lost 0")), "{status}");
}
