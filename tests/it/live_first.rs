//! `kafka.order = "live_first"`: fresh events pass the backlog, each lane keeps the order of its sources, nothing changes
//! lanes, and a consumer that remembers one position for each lane has every event once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{
    Pace, Producer, Stored, finish, first_occurrences, kept_by_position, pass, start_producers,
};
use crate::harness::kafka::{Record, create_topic, read_all};
use crate::harness::seed;
use crate::harness::services::Private;
use crate::harness::wait::{USUAL, eventually};

const SPLIT: &str = "they go out as backlog, behind fresh ones";
const JOINED: &str = "the backlog is through";

fn live_first(config: &mut Config, delivery: &str) {
    config.set("kafka.order", "live_first").set("kafka.backlog_after", "1s").set("kafka.delivery", delivery);
}

fn is_backlog(record: &Record) -> bool {
    let header = record.header("fieldpost-backlog");
    assert!(header.is_none_or(|value| value == "1"), "{header:?}");
    header.is_some()
}

/// The records of each lane: live, backlog.
fn lanes(records: Vec<Record>) -> [Vec<Record>; 2] {
    let (backlog, live) = records.into_iter().partition(is_backlog);
    [live, backlog]
}

fn positions(records: &[Record]) -> BTreeSet<(String, (u64, u64))> {
    records.iter().map(Stored::of).map(|stored| (stored.log, stored.position)).collect()
}

/// Waits until everything acknowledged is in the topics, stops the agent in order, and looks at all of it: no event in
/// both lanes, each lane in the order of its sources, and by positions nothing is dropped that was not seen. Answers
/// the lanes.
#[track_caller]
fn assert_lanes(
    agent: &mut Agent,
    brokers: &str,
    topics: &[&str],
    acked: &BTreeMap<String, u64>,
) -> [Vec<Record>; 2] {
    let read = || topics.iter().flat_map(|topic| read_all(brokers, topic)).collect::<Vec<_>>();
    eventually("everything acknowledged is in Kafka", USUAL * 4, || {
        let found = first_occurrences(&read().iter().map(Stored::of).collect::<Vec<_>>());
        let is_there =
            |(source, count): (&String, &u64)| found.get(source).map_or(0, Vec::len) as u64 >= *count;
        acked.iter().all(is_there).then_some(())
    });
    assert_eq!(agent.stop().code(), Some(0));
    let lanes = lanes(read());
    let [live, backlog] = &lanes;
    let both: Vec<_> = positions(live).intersection(&positions(backlog)).cloned().collect();
    assert!(both.is_empty(), "in both lanes: {both:?}");
    let mut kept = Vec::new();
    for lane in &lanes {
        let of_lane = kept_by_position(lane);
        for (source, numbers) in first_occurrences(&of_lane) {
            assert!(numbers.is_sorted(), "{source} is out of order within its lane");
        }
        kept.extend(of_lane);
    }
    for (source, numbers) in first_occurrences(&kept) {
        let found: BTreeSet<u64> = numbers.into_iter().collect();
        let count = acked.get(&source).copied().unwrap_or_default();
        assert!((0..count).all(|n| found.contains(&n)), "{source} has a gap");
    }
    eprintln!("{} live records, {} of the backlog, {} kept", live.len(), backlog.len(), kept.len());
    lanes
}

fn producers(agent: &Agent) -> Vec<Producer> {
    start_producers(agent, "lanes", 3, Pace { rate: Some(100), window: 3000, ..Pace::default() })
}

/// An outage, and a rate that lets the backlog out slowly.
fn fresh_events_pass(delivery: &str, backlog_topic: Option<&str>) {
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 1);
    let backlog_topic = backlog_topic.map(|_| create_topic(kafka.address(), 1));
    let mut agent = Agent::start(|config| {
        live_first(config.kafka(kafka.address(), &topic), delivery);
        config.set("kafka.max_event_rate", 600);
        if let Some(topic) = &backlog_topic {
            config.set("kafka.backlog_topic", topic.as_str());
        }
    });
    let producers = producers(&agent);
    eventually("events flow", USUAL, || (read_all(kafka.address(), &topic).len() > 300).then_some(()));
    kafka.kill();
    // A slow start may have left a backlog, too.
    let more = |what: &str, before: usize| {
        eventually(what, USUAL * 2, || (agent.log_count(what) > before).then_some(()));
    };
    let splits = agent.log_count(SPLIT);
    pass(Duration::from_secs(12));
    kafka.start();
    more(SPLIT, splits);
    more(JOINED, agent.log_count(JOINED));
    let acked = finish(producers);
    let topics: Vec<&str> = [Some(topic.as_str()), backlog_topic.as_deref()].into_iter().flatten().collect();
    let [live, backlog] = assert_lanes(&mut agent, kafka.address(), &topics, &acked);
    let last_sent = backlog.iter().map(|record| record.timestamp).max().unwrap();
    let last = backlog.iter().map(|record| Stored::of(record).position).max().unwrap();
    let passed =
        live.iter().filter(|record| Stored::of(record).position > last && record.timestamp < last_sent);
    let passed = passed.count();
    eprintln!("{passed} fresh events went out before the end of the backlog");
    // In the order of `fifo` there is none.
    assert!(passed > 20, "{passed}");
    if backlog_topic.is_some() {
        let of_topic = read_all(kafka.address(), topics[1]);
        assert_eq!(of_topic.len(), backlog.len());
        assert!(of_topic.iter().all(is_backlog));
    }
}

#[test]
fn fresh_events_pass_the_backlog_of_an_outage() {
    fresh_events_pass("at_least_once", None);
}

#[test]
fn exactly_once_too_and_into_a_topic_of_its_own() {
    fresh_events_pass("exactly_once", Some("late"));
}

/// Kills of the agent and a broker that hangs, by chance.
fn kills(delivery: &str) -> [Vec<Record>; 2] {
    let mut random = fastrand::Rng::with_seed(seed(delivery));
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 2);
    let mut agent = Agent::start(|config| {
        live_first(config.kafka(kafka.address(), &topic), delivery);
        // A backlog is there for a while.
        config.set("kafka.max_event_rate", 1000);
    });
    let producers = producers(&agent);
    for round in 0..12 {
        pass(Duration::from_millis(random.u64(300..2500)));
        if round % 3 == 1 {
            kafka.pause();
            pass(Duration::from_millis(random.u64(1500..4000)));
            kafka.resume();
            pass(Duration::from_millis(random.u64(0..2000)));
        }
        agent.kill9();
        agent.begin();
        agent.wait_ready();
    }
    let acked = finish(producers);
    let lanes = assert_lanes(&mut agent, kafka.address(), &[&topic], &acked);
    assert!(!lanes[1].is_empty(), "there was no backlog");
    lanes
}

#[test]
fn kills_among_two_lanes_lose_nothing_and_change_no_lane() {
    kills("at_least_once");
}

#[test]
fn kills_among_two_lanes_leave_each_event_once_with_exactly_once() {
    let lanes = kills("exactly_once");
    for lane in lanes {
        assert_eq!(positions(&lane).len(), lane.len(), "a position is there twice");
    }
}
