//! A full buffer: the broker holds what the agent cannot take, and the session outlives it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::{Bed, arrived};
use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{
    Stored, assert_missing_is_evicted, assert_no_duplicates, assert_whole_and_in_order,
};
use crate::harness::kafka::{consume_count, consume_until, create_topic, read_all};
use crate::harness::mqtt::{Publisher, kind, payload_of};
use crate::harness::services::{Private, Shared};
use crate::harness::tap::{Tap, Way};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

/// The least that `buffer.max_bytes` may be.
const BUFFER: &str = "4 MiB";
const BUFFER_BYTES: u64 = 4 << 20;
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

/// An agent whose Kafka is away, with a policy of its own for the input.
fn bed(kafka: &Private, configure: impl FnOnce(&mut Config)) -> Bed {
    let tap = Tap::on(&Shared::get().mqtt);
    let (prefix, topic) = (unique("mqtt"), create_topic(kafka.address(), 4));
    kafka.kill();
    let agent = Agent::start(|config| {
        config.mqtt(&tap.url(), &[&format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}")]);
        config.kafka(kafka.address(), &topic);
        config.set("buffer.max_bytes", BUFFER).set("limits.max_event_bytes", "128 KiB");
        // Word of what was evicted would be among the events that are counted.
        config.set("ledger.announce", false);
        config.set("mqtt.receive_maximum", 50).set("mqtt.keep_alive", "5s");
        config.set("agent.stop_grace", "1s");
        configure(config);
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

/// Nothing is acknowledged that is not durable, over `pings` keep-alives of one connection; everything arrives once
/// Kafka is back.
fn the_broker_keeps_the_rest(configure: impl FnOnce(&mut Config), pings: usize) {
    let kafka = Private::kafka();
    let mut bed = bed(&kafka, configure);
    publish_all(&bed);
    bed.agent.wait_log("the buffer is full", USUAL);
    let (connections, before_pings) = (bed.tap.connections(), bed.tap.count(Way::ToAgent, kind::PINGRESP));
    bed.tap.wait_count(Way::ToAgent, kind::PINGRESP, before_pings + 1, Duration::from_secs(20));
    let before = acked(&bed);
    let patience = Duration::from_secs(10) * u32::try_from(pings).unwrap();
    bed.tap.wait_count(Way::ToAgent, kind::PINGRESP, before_pings + 1 + pings, patience);
    assert_eq!(bed.tap.connections(), connections, "the session lives on");
    assert_eq!(acked(&bed), before, "nothing is acknowledged that is not durable");
    assert!((1..EVENTS).contains(&before) && bed.tap.unanswered() >= 50, "{before} acknowledged");
    assert!(bed.agent.disk_bytes() <= BUFFER_BYTES, "{} bytes", bed.agent.disk_bytes());

    kafka.start();
    let stored = arrived(kafka.address(), &bed.topic, &BTreeMap::from([("s".to_owned(), COUNT)]), BACKLOG);
    assert_no_duplicates(&stored);
    bed.tap.wait_count(Way::ToBroker, kind::PUBACK, EVENTS, USUAL);
    bed.tap.assert_answers_belong();
    assert_eq!(bed.agent.lost("evicted").0, 0);
    let status = bed.last_status();
    assert!(status.contains(&format!("(mqtt {COUNT}, unix 0), refused 0, buffered 0 ")), "{status}");
}

#[test]
fn a_full_buffer_that_blocks_leaves_the_rest_with_the_broker() {
    let block = |config: &mut Config| {
        config.set("buffer.when_full", "drop_oldest").set("mqtt.when_full", "block");
    };
    the_broker_keeps_the_rest(block, 8);
}

/// MQTT has no way to refuse, and what is not durable is not acknowledged.
#[test]
fn a_full_buffer_that_rejects_leaves_the_rest_with_the_broker_too() {
    let reject = |config: &mut Config| {
        config.set("buffer.when_full", "reject");
    };
    the_broker_keeps_the_rest(reject, 1);
}

#[test]
fn a_full_buffer_that_drops_the_oldest_takes_everything_and_counts() {
    let kafka = Private::kafka();
    let mut bed = bed(&kafka, |config| {
        config.set("mqtt.when_full", "drop_oldest");
        // By what the topic says, and the payload does not.
        config.snippet("[[route]]\ntype = \"al*\"\nwhen_full = \"block\"\npriority = 9");
    });
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    let (reading, alarm) = (bed.topic_of("probe/s/reading"), bed.topic_of("probe/a/alarm"));
    let alarms = COUNT / 20;
    for n in 0..COUNT {
        sensor.send(1, &reading, payload_of("s", n, &noise()).as_bytes(), n).unwrap();
        if n < alarms {
            sensor.send(1, &alarm, payload_of("a", n, "").as_bytes(), n).unwrap();
        }
    }
    sensor.settle();
    let total = COUNT + alarms;
    let answers = usize::try_from(total).unwrap();
    bed.tap.wait_count(Way::ToBroker, kind::PUBACK, answers, USUAL * 2);
    bed.tap.assert_answers_belong();
    assert!(bed.agent.disk_bytes() <= BUFFER_BYTES, "{} bytes", bed.agent.disk_bytes());

    kafka.start();
    let (evicted, _) = bed.agent.lost("evicted");
    consume_count(kafka.address(), &bed.topic, usize::try_from(total - evicted).unwrap(), BACKLOG);
    let status = bed.last_status();
    assert!(
        status.contains(&format!("(mqtt {total}, unix 0), refused 0, buffered 0 ")),
        "{evicted} evicted: {status}"
    );
    let stored: Vec<Stored> = read_all(kafka.address(), &bed.topic).iter().map(Stored::of).collect();
    assert_no_duplicates(&stored);
    assert_eq!(assert_missing_is_evicted(&bed.agent, &stored, total), evicted);
    eprintln!("{evicted} of {COUNT} readings evicted");
    assert!(evicted > COUNT / 2, "{evicted}");
    assert_whole_and_in_order(&stored, &BTreeMap::from([("a".to_owned(), alarms)]));
    assert!(stored.iter().any(|event| event.source == "s" && event.n == COUNT - 1), "the newest is there");
}

/// Nobody waits for an answer: what the memory for waiting events does not hold is dropped and said.
#[test]
fn qos_0_is_dropped_when_a_full_buffer_blocks_and_the_rest_arrives() {
    let kafka = Private::kafka();
    let mut bed = bed(&kafka, |config| {
        config.set("mqtt.qos", 0);
    });
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    let topic = bed.topic_of("probe/s/reading");
    let mut numbers = 0..;
    let mut publish = |count: usize| {
        for n in numbers.by_ref().take(count) {
            sensor.send(0, &topic, payload_of("s", n, &noise()).as_bytes(), n).unwrap();
        }
    };
    // Slowly: what comes at once is dropped also while there is room.
    eventually("the buffer is full", USUAL * 2, || {
        publish(3);
        bed.agent.log_contains("the buffer is full").then_some(())
    });
    publish(EVENTS);
    bed.agent.wait_log("a QoS 0 publish was dropped", USUAL);
    let connections = bed.tap.connections();
    let pings = bed.tap.count(Way::ToAgent, kind::PINGRESP);
    bed.tap.wait_count(Way::ToAgent, kind::PINGRESP, pings + 1, USUAL);
    assert_eq!(bed.tap.connections(), connections, "the session lives on");

    kafka.start();
    bed.agent.wait_log("the buffer has room again", BACKLOG);
    // Ends only when everything that waits is durable.
    bed.restart();
    // A broker keeps no QoS 0 publish for an agent that is not there yet.
    bed.agent.wait_log("MQTT link up", USUAL);
    let mut last = Publisher::connect(&Shared::get().mqtt);
    last.publish(1, &bed.topic_of("probe/last/reading"), payload_of("last", 0, ""));
    let records = consume_until(kafka.address(), &bed.topic, BACKLOG, |records| {
        records.iter().any(|record| record.key_text() == "last")
    });
    let stored: Vec<Stored> = records.iter().map(Stored::of).filter(|event| event.source == "s").collect();
    assert_no_duplicates(&stored);
    assert!(stored.is_sorted_by_key(|event| event.n));
    eprintln!("{} arrived", stored.len());
    assert!((50..EVENTS).contains(&stored.len()), "{} arrived", stored.len());
    assert_eq!(bed.agent.lost("evicted").0, 0);
}
