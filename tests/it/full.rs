//! The buffer at its limit, as its producers see it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer, Stored, assert_no_duplicates, first_occurrences, line_of};
use crate::harness::kafka::{create_topic, read_all};
use crate::harness::services::Private;
use crate::harness::unique;
use crate::harness::unix::Reply;
use crate::harness::wait::{USUAL, eventually, scaled, within};

const LIMIT: u64 = 8 << 20;
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);
const EVENT: usize = 4000;

/// What one empty generation of a buffer of this size may keep: 1 MiB of events, thrice that on disk, and its files.
const KEPT: u64 = 5 << 20;

/// Kafka that is away, and an agent with a small buffer.
fn kafka_and_agent(when_full: &str) -> (Private, String, Agent) {
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 1);
    kafka.kill();
    let agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).set("buffer.when_full", when_full);
        config.set("buffer.max_bytes", "8 MiB").set("limits.max_event_bytes", "64 KiB");
        config.set("limits.append_timeout", "1s");
    });
    (kafka, topic, agent)
}

/// Looks at the directory's size all the time while `work` runs, and answers the largest.
fn watching_the_disk<T>(agent: &Agent, work: impl FnOnce() -> T) -> (T, u64) {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut largest = 0;
            let _never: Option<()> = within(USUAL * 100, || {
                largest = agent.disk_bytes().max(largest);
                is_done.load(Ordering::Relaxed).then_some(())
            });
            largest
        });
        let result = work();
        is_done.store(true, Ordering::Relaxed);
        (result, watch.join().unwrap())
    })
}

/// Sends events one after the other until the buffer is full; how many were taken, and how long the refused one
/// waited.
fn fill(agent: &Agent, source: &str) -> (u64, Duration) {
    let mut client = agent.unix();
    for n in 0.. {
        let begun = Instant::now();
        client.send_line(&line_of(source, n, EVENT));
        match client.read_reply(USUAL).expect("each event is answered") {
            Reply::Ack { ack } => assert_eq!(ack, n + 1),
            Reply::Refused(refusal) => {
                assert_eq!((refusal.code.as_str(), refusal.line), ("buffer_full", Some(n + 1)));
                return (n, begun.elapsed());
            }
        }
    }
    unreachable!("the loop ends with a refusal");
}

/// From the full buffer to the last event in Kafka.
fn fill_and_drain(when_full: &str, refused_within: impl Fn(Duration) -> bool) {
    let (kafka, topic, mut agent) = kafka_and_agent(when_full);
    let first = unique("first");
    let ((taken, refused_after), largest) = watching_the_disk(&agent, || fill(&agent, &first));
    eprintln!(
        "{when_full}: {taken} events taken, refused after {refused_after:?}, largest disk {largest} of {LIMIT}"
    );
    assert!(refused_within(refused_after), "{refused_after:?}");
    assert!(largest <= LIMIT, "{largest} bytes on disk");
    assert!(taken * EVENT as u64 > LIMIT / 6, "full at {taken} events already");

    // The state is told, and a restart changes nothing of it.
    assert_eq!(agent.stop().code(), Some(0));
    let status = agent.log().into_iter().rfind(|line| line.contains("buffered")).expect("a status line");
    assert!(status.contains(&format!("buffered {taken} events")), "{status}");
    assert!(status.contains("refused 1,") && status.contains("lost 0"), "{status}");
    agent.begin();
    agent.wait_ready();

    // Producers that go on trying go on by themselves once there is room.
    let producers: Vec<Producer> = (0..2)
        .map(|_| {
            let pace = Pace { window: 20, padding: EVENT, count: 200, rate: None };
            Producer::start(&agent.socket(), &unique("waiting"), pace)
        })
        .collect();
    let (acked, largest) = watching_the_disk(&agent, || {
        eventually("they are refused", USUAL, || {
            producers.iter().all(|producer| !producer.refused().is_empty()).then_some(())
        });
        kafka.start();
        let mut acked: BTreeMap<String, u64> = producers
            .into_iter()
            .map(|producer| (producer.source().to_owned(), producer.finish(USUAL * 3)))
            .collect();
        acked.insert(first, taken);
        acked
    });
    assert!(largest <= LIMIT, "{largest} bytes on disk");
    let total: u64 = acked.values().sum();
    eventually("everything is in Kafka", USUAL * 2, || {
        (read_all(kafka.address(), &topic).len() as u64 >= total).then_some(())
    });
    let given_back = within(scaled(USUAL), || (agent.disk_bytes() < KEPT).then_some(()));
    assert!(given_back.is_some(), "{} bytes are still on disk", agent.disk_bytes());
    assert_eq!(agent.stop().code(), Some(0));
    let stored: Vec<Stored> = read_all(kafka.address(), &topic).iter().map(Stored::of).collect();
    // `buffer_full` means that the event was not taken: sending it again makes no second one.
    assert_no_duplicates(&stored);
    let found: BTreeMap<String, u64> = first_occurrences(&stored)
        .into_iter()
        .map(|(source, numbers)| (source, numbers.len() as u64))
        .collect();
    assert_eq!(found, acked);
}

#[test]
fn a_full_buffer_lets_producers_wait_and_then_tells_them() {
    fill_and_drain("block", |after| {
        after + Duration::from_millis(50) >= APPEND_TIMEOUT
            && after < APPEND_TIMEOUT + scaled(Duration::from_secs(2))
    });
}

#[test]
fn a_full_buffer_tells_producers_at_once() {
    fill_and_drain("reject", |after| after < scaled(Duration::from_millis(900)));
}
