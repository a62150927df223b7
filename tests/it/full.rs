//! The buffer at its limit, as its producers see it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{
    Pace, Producer, Stored, assert_missing_is_evicted, assert_no_duplicates, assert_whole_and_in_order,
    first_occurrences, line_of, start_producers,
};
use crate::harness::kafka::{consume_count, create_topic, read_all};
use crate::harness::services::Private;
use crate::harness::unique;
use crate::harness::unix::Reply;
use crate::harness::wait::{USUAL, eventually, scaled, within};

/// The least that `buffer.max_bytes` may be.
const LIMIT: u64 = 4 << 20;
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);
const EVENT: usize = 4000;

/// What one empty generation of a buffer of this size may keep: 512 KiB of events, thrice that on disk, and the reserve.
const KEPT: u64 = 2 << 20;

/// What may be on its way to Kafka: an eighth of the buffer, and the last read.
const IN_FLIGHT: u64 = LIMIT / 8 + (128 << 10);

/// Kafka that is away, and an agent with a small buffer.
fn kafka_and_agent(configure: impl FnOnce(&mut Config)) -> (Private, String, Agent) {
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 1);
    kafka.kill();
    let agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic);
        config.set("buffer.max_bytes", "4 MiB").set("limits.max_event_bytes", "128 KiB");
        // Word of what was evicted would be among the events that are counted.
        config.set("limits.append_timeout", "1s").set("ledger.announce", false);
        configure(config);
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
    let (kafka, topic, mut agent) = kafka_and_agent(|config| {
        config.set("buffer.when_full", when_full);
    });
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
            let pace = Pace { window: 20, padding: EVENT, count: 200, ..Pace::default() };
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

/// Everything is in Kafka that was not evicted; the agent is stopped then.
fn drained(kafka: &Private, topic: &str, agent: &mut Agent, total: u64) -> Vec<Stored> {
    let (evicted, _) = agent.lost("evicted");
    consume_count(kafka.address(), topic, usize::try_from(total - evicted).unwrap(), USUAL * 3);
    assert_eq!(agent.stop().code(), Some(0));
    let stored: Vec<Stored> = read_all(kafka.address(), topic).iter().map(Stored::of).collect();
    assert_no_duplicates(&stored);
    stored
}

#[test]
fn a_full_buffer_gives_up_the_oldest_for_the_newest_and_counts_them() {
    const EACH: u64 = 1500;
    const TOTAL: u64 = 2 * EACH;
    let (kafka, topic, mut agent) = kafka_and_agent(|config| {
        config.set("buffer.when_full", "reject").set("unix.when_full", "drop_oldest");
    });
    let pace = Pace { window: 20, padding: EVENT, count: EACH, ..Pace::default() };
    let producers = start_producers(&agent, "flood", 2, pace);
    let (refused, largest) = watching_the_disk(&agent, || {
        eventually("everything is acknowledged", USUAL * 2, || {
            producers.iter().all(|producer| producer.acked() == EACH).then_some(())
        });
        producers.iter().map(|producer| producer.refused().len()).sum::<usize>()
    });
    assert_eq!(refused, 0, "there is always something older");
    assert!(largest <= LIMIT, "{largest} bytes on disk");
    // What is counted is durable.
    let before = agent.lost("evicted");
    agent.kill9();
    assert_eq!(agent.lost("evicted"), before);
    agent.begin();
    agent.wait_ready();

    kafka.start();
    let stored = drained(&kafka, &topic, &mut agent, TOTAL);
    let evicted = assert_missing_is_evicted(&agent, &stored, TOTAL);
    eprintln!("{evicted} of {TOTAL} events evicted, {before:?}, largest disk {largest} of {LIMIT}");
    assert!(evicted > TOTAL / 3, "{evicted}");
    // What is on its way to Kafka stays, of everything else the newest.
    let (_, ranges) = agent.lost("evicted");
    let &(_, end) = ranges.last().unwrap();
    let older = end - evicted;
    assert!(older * EVENT as u64 <= IN_FLIGHT, "{older} events stayed before {ranges:?}");
    assert!((TOTAL - end) * EVENT as u64 > LIMIT / 16, "{ranges:?}");
    let status = agent.log().into_iter().rfind(|line| line.contains("buffered")).expect("a status line");
    assert!(status.contains("buffered 0 events") && status.contains(&format!("lost {evicted}")), "{status}");
}

#[test]
fn alarms_that_block_are_kept_and_come_through_while_telemetry_goes_for_them() {
    // Less than half of what the buffer holds.
    const ALARMS: u64 = 100;
    const TELEMETRY: u64 = 2000;
    const TOTAL: u64 = ALARMS + TELEMETRY;
    let (kafka, topic, mut agent) = kafka_and_agent(|config| {
        config.set("buffer.when_full", "reject");
        config.snippet("[[route]]\nsource_id = \"alarms-*\"\nwhen_full = \"block\"\npriority = 9");
        config.snippet("[[route]]\nwhen_full = \"drop_oldest\"\npriority = 1");
    });
    let start = |source, count, rate, padding| {
        Producer::start(&agent.socket(), source, Pace { window: 20, padding, count, rate, ..Pace::default() })
    };
    let (alarm, reading) = (unique("alarms"), unique("telemetry"));
    let telemetry = start(&reading, TELEMETRY, None, EVENT);
    eventually("the buffer is full of telemetry", USUAL * 2, || (agent.lost("evicted").0 > 0).then_some(()));
    let alarms = start(&alarm, ALARMS, Some(100), EVENT);
    eventually("everything is acknowledged", USUAL * 2, || {
        (alarms.acked() == ALARMS && telemetry.acked() == TELEMETRY).then_some(())
    });
    assert_eq!((alarms.refused(), telemetry.refused()), (Vec::new(), Vec::new()));
    assert!(alarms.longest_wait() < scaled(Duration::from_secs(5)), "{:?}", alarms.longest_wait());
    assert!(agent.disk_bytes() <= LIMIT, "{} bytes on disk", agent.disk_bytes());

    // Alarms take the room of all telemetry, and wait when only alarms are left; telemetry is refused at once then.
    let more = unique("alarms");
    let (taken, waited) = fill(&agent, &more);
    assert!(waited + Duration::from_millis(50) >= APPEND_TIMEOUT, "{waited:?}");
    let begun = Instant::now();
    let mut client = agent.unix();
    client.send_line(&line_of(&reading, TELEMETRY, EVENT));
    assert_eq!(client.wait_refused(USUAL).code, "buffer_full");
    assert!(begun.elapsed() < scaled(Duration::from_millis(900)), "{:?}", begun.elapsed());

    kafka.start();
    let stored = drained(&kafka, &topic, &mut agent, TOTAL + taken);
    let evicted = assert_missing_is_evicted(&agent, &stored, TOTAL + taken);
    let kept = first_occurrences(&stored).get(&reading).map_or(0, |numbers| numbers.len() as u64);
    eprintln!("{taken} more alarms taken, {evicted} of {TELEMETRY} readings evicted, {kept} kept");
    assert_whole_and_in_order(&stored, &BTreeMap::from([(alarm, ALARMS), (more, taken)]));
    assert_eq!(evicted + kept, TELEMETRY);
    assert!(taken > ALARMS / 4, "telemetry made way for {taken} alarms only");
}
