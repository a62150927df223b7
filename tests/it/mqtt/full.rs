//! A full buffer: the broker holds what the agent cannot take, and the session outlives it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::{Bed, arrived, duplicates};
use crate::harness::agent::Agent;
use crate::harness::flow::assert_no_duplicates;
use crate::harness::kafka::{create_topic, read_all};
use crate::harness::mqtt::{Publisher, kind, payload_of};
use crate::harness::services::{Private, Shared};
use crate::harness::tap::{Tap, Way};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

/// The least that `buffer.max_bytes` may be.
const BUFFER: &str = "8MiB";
const EACH_BYTES: usize = 16 << 10;
/// Well above the buffer.
const COUNT: u64 = 1000;
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

#[test]
fn a_full_buffer_that_blocks_leaves_the_rest_with_the_broker() {
    let kafka = Private::kafka();
    let mut bed = bed(&kafka, "block");
    publish_all(&bed);
    eventually("as much as may be is unanswered", USUAL, || (bed.tap.unanswered() == 50).then_some(()));
    let (delivered, acked) =
        (bed.tap.count(Way::ToAgent, kind::PUBLISH), bed.tap.count(Way::ToBroker, kind::PUBACK));
    assert!(acked > 100 && delivered < COUNT as usize, "{delivered} delivered, {acked} acknowledged");
    // Three pings at a keep-alive of 5 s: more than twice the keep-alive.
    let pings = bed.tap.count(Way::ToAgent, kind::PINGRESP);
    bed.tap.wait_count(Way::ToAgent, kind::PINGRESP, pings + 3, Duration::from_secs(40));
    assert_eq!(
        bed.tap.count(Way::ToBroker, kind::PUBACK),
        acked,
        "nothing is acknowledged that is not durable"
    );
    assert_eq!(bed.tap.count(Way::ToAgent, kind::PUBLISH), delivered, "the rest waits at the broker");
    assert_eq!(bed.tap.connections(), 1, "the session lives on");
    assert!(bed.agent.disk_bytes() <= 8 << 20, "{} bytes", bed.agent.disk_bytes());

    kafka.start();
    let stored = arrived(kafka.address(), &bed.topic, &BTreeMap::from([("s".to_owned(), COUNT)]), BACKLOG);
    assert_no_duplicates(&stored);
    bed.tap.wait_count(Way::ToBroker, kind::PUBACK, COUNT as usize, USUAL);
    bed.tap.assert_answers_belong();
    assert_eq!(bed.tap.connections(), 1);
    let status = bed.last_status();
    assert!(status.contains(&format!("(mqtt {COUNT}, unix 0), refused 0, buffered 0 ")), "{status}");
}

#[test]
fn a_full_buffer_that_rejects_counts_what_it_refuses() {
    let kafka = Private::kafka();
    let mut bed = bed(&kafka, "reject");
    publish_all(&bed);
    bed.tap.wait_count(Way::ToBroker, kind::PUBACK, COUNT as usize, USUAL);
    bed.tap.assert_answers_belong();
    assert_eq!(bed.tap.connections(), 1);
    let line = bed.agent.wait_log("the buffer is full: events refused and acknowledged", USUAL);
    assert!(line.contains("WARN"), "{line}");
    kafka.start();
    let status = eventually("everything that was taken is in Kafka", BACKLOG, || {
        let found = read_all(kafka.address(), &bed.topic).len();
        let status = bed.last_status();
        bed.agent.begin();
        bed.agent.wait_ready();
        bed.agent.wait_log("ready", USUAL);
        (status.contains("buffered 0 ")).then_some((status, found))
    });
    eprintln!("{status:?}");
    let stored: Vec<_> =
        read_all(kafka.address(), &bed.topic).iter().map(crate::harness::flow::Stored::of).collect();
    assert_eq!(duplicates(&stored), 0);
}
