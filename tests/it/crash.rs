//! Death and stop of the agent: what was acknowledged is never missing, and positions tell what is there twice.
//!
//! A kill shows that nothing acknowledged lives in the process alone. It cannot show that an acknowledgement waits for
//! the sync, because the page cache outlives the process: the buffer's own tests do that with a disk that forgets.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use crate::harness::agent::Agent;
use crate::harness::flow::{
    Pace, Producer, Stored, assert_no_duplicates, assert_whole_and_in_order, kept_by_position, line_of, pass,
    start_producers,
};
use crate::harness::kafka::{Record, create_topic, read_all};
use crate::harness::services::{Private, Shared};
use crate::harness::wait::{USUAL, eventually, within};
use crate::harness::{seed, unique};

use rustix::process::Signal;

/// The whole topic, once each source has at least as many different events there as were acknowledged.
#[track_caller]
pub(crate) fn topic_with(topic: &str, acked: &BTreeMap<String, u64>) -> Vec<Record> {
    eventually("everything acknowledged is in Kafka", USUAL * 2, || {
        let records = read_all(&Shared::get().kafka, topic);
        let stored: Vec<Stored> = records.iter().map(Stored::of).collect();
        let is_whole = crate::harness::flow::first_occurrences(&stored);
        acked
            .iter()
            .all(|(source, count)| is_whole.get(source).map_or(0, Vec::len) as u64 >= *count)
            .then_some(records)
    })
}

#[test]
fn killed_at_any_time_nothing_acknowledged_is_missing() {
    const ROUNDS: usize = 20;
    let seed = seed("killed_at_any_time");
    let mut random = fastrand::Rng::with_seed(seed);
    let topic = create_topic(&Shared::get().kafka, 3);
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic);
    });
    let socket = agent.socket();
    let pace = Pace { rate: Some(400), window: 300, ..Pace::default() };
    let producers: Vec<Producer> = (0..4).map(|_| Producer::start(&socket, &unique("crash"), pace)).collect();
    for _ in 0..ROUNDS {
        pass(Duration::from_millis(random.u64(5..700)));
        agent.kill9();
        agent.begin();
        // Every other time it is killed while it may still be starting.
        if random.bool() {
            agent.wait_ready();
        }
    }
    agent.wait_ready();
    let acked: BTreeMap<String, u64> = producers
        .into_iter()
        .map(|producer| (producer.source().to_owned(), producer.finish(USUAL * 3)))
        .collect();
    let records = topic_with(&topic, &acked);
    let kept = kept_by_position(&records);
    assert_whole_and_in_order(&kept, &acked);
    eprintln!(
        "killed {ROUNDS} times: {} acknowledged, {} records, {} after dropping by position",
        acked.values().sum::<u64>(),
        records.len(),
        kept.len()
    );
    assert!(acked.values().sum::<u64>() > 1000, "the producers were hardly served: {acked:?}");
    assert_eq!(agent.stop().code(), Some(0));
}

/// A death between the files that hold the buffer's name is not a restore from a backup: with another name Kafka's cursor
/// would be another buffer's, and exactly-once would send events twice.
#[test]
fn killed_while_it_starts_it_is_no_copy_of_itself() {
    const ROUNDS: usize = 20;
    let mut agent = Agent::start(|config| {
        config.kafka("127.0.0.1:1", "events");
    });
    let log_of = |line: &str| line.split(' ').find(|word| word.starts_with("log=")).unwrap().to_owned();
    let log = log_of(&agent.wait_log("buffer open", USUAL));
    let identity = agent.data_dir().join("buffer/IDENTITY");
    let changed = || {
        let found = std::fs::metadata(&identity).unwrap();
        (found.ctime(), found.ctime_nsec())
    };
    for _ in 0..ROUNDS {
        agent.kill9();
        let before = changed();
        agent.begin();
        // At once, before what comes behind it.
        let deadline = Instant::now() + USUAL;
        while changed() == before {
            assert!(Instant::now() < deadline, "the start does not write IDENTITY: {:?}", agent.log());
            std::thread::yield_now();
        }
    }
    agent.kill9();
    agent.begin();
    let opened = agent.wait_log("buffer open", USUAL);
    assert!(opened.contains(&format!(" epoch={} ", ROUNDS + 2)), "{opened}");
    // The log of this start alone could not tell of the others.
    assert_eq!(log_of(&opened), log);
    assert_eq!(agent.log_count("is a copy"), 0, "{:?}", agent.log());
}

#[test]
fn two_agents_never_share_a_data_directory() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let mut first = Agent::start(|config| {
        config.shared_kafka(&topic);
    });
    let mut second = Agent::spawn(|config| {
        config.shared_kafka(&topic).set("agent.data_dir", first.data_dir().to_str().unwrap());
    });
    assert_eq!(second.wait_exit(USUAL).code(), Some(74));
    let said = second.log().join("\n");
    assert!(said.contains(&format!("in use by process {}", first.pid().as_raw_nonzero())), "{said}");
    let source = unique("s");
    let mut client = first.unix();
    client.send_line(&line_of(&source, 0, 0));
    client.wait_ack(1, USUAL);
    topic_with(&topic, &BTreeMap::from([(source, 1)]));
    assert_eq!(first.stop().code(), Some(0));
    // The directory is free again.
    second.restart();
}

#[test]
fn stopped_in_a_burst_nothing_is_lost_or_sent_twice() {
    const STOPS: usize = 4;
    let seed = seed("stopped_in_a_burst");
    let mut random = fastrand::Rng::with_seed(seed);
    let topic = create_topic(&Shared::get().kafka, 3);
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("agent.stop_grace", "5s");
    });
    let mut acked = BTreeMap::new();
    for _ in 0..STOPS {
        let producers = start_producers(&agent, "stop", 2, Pace::default());
        eventually("the burst is on its way", USUAL, || {
            producers.iter().all(|producer| producer.acked() > 300).then_some(())
        });
        pass(Duration::from_millis(random.u64(..300)));
        let begun = Instant::now();
        agent.term();
        let status = agent.wait_exit(Duration::from_secs(5 + 5));
        eprintln!("stopped after {:?}: {status}", begun.elapsed());
        assert_eq!(status.code(), Some(0));
        for producer in producers {
            let source = producer.source().to_owned();
            let events = producer.abandon();
            assert_eq!(events.last().map(|last| last + 1), Some(events.len() as u64));
            acked.insert(source, events.len() as u64);
        }
        agent.begin();
        agent.wait_ready();
    }
    topic_with(&topic, &acked);
    assert_eq!(agent.stop().code(), Some(0));
    let stored: Vec<Stored> = read_all(&Shared::get().kafka, &topic).iter().map(Stored::of).collect();
    assert_no_duplicates(&stored);
    assert_whole_and_in_order(&stored, &acked);
    // Exactly what was acknowledged: at an orderly stop nothing is taken without an answer.
    let found: BTreeMap<String, u64> = crate::harness::flow::first_occurrences(&stored)
        .into_iter()
        .map(|(source, numbers)| (source, numbers.len() as u64))
        .collect();
    assert_eq!(found, acked);
}

#[test]
fn a_second_signal_ends_the_agent_at_once() {
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 1);
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).set("agent.stop_grace", "60s");
    });
    let source = unique("s");
    let mut client = agent.unix();
    client.send_line(&line_of(&source, 0, 0));
    client.wait_ack(1, USUAL);
    agent.wait_log("Kafka link up", USUAL);
    // A broker that answers nothing keeps an orderly stop waiting for its confirmations.
    kafka.pause();
    client.send_line(&line_of(&source, 1, 0));
    client.wait_ack(2, USUAL);
    agent.term();
    agent.wait_log("stopping", USUAL);
    let still_there: Option<()> = within(Duration::from_secs(1), || UnixSocketGone::look(&agent));
    assert!(still_there.is_some(), "the inputs end first");
    agent.signal(Signal::INT);
    let begun = Instant::now();
    assert_eq!(agent.wait_exit(USUAL).code(), Some(75));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(agent.log_contains("second signal"));
    kafka.resume();
    agent.begin();
    agent.wait_ready();
    // What was acknowledged is on disk and goes out now.
    let records = crate::harness::kafka::consume_until(kafka.address(), &topic, USUAL, |records| {
        records.iter().any(|record| Stored::of(record).n == 1)
    });
    assert_whole_and_in_order(&kept_by_position(&records), &BTreeMap::from([(source, 2)]));
}

/// The socket takes no more connections.
struct UnixSocketGone;

impl UnixSocketGone {
    fn look(agent: &Agent) -> Option<()> {
        std::os::unix::net::UnixStream::connect(agent.socket()).is_err().then_some(())
    }
}
