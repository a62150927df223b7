//! `kafka.delivery = "exactly_once"`: whoever dies, hangs or has a twin, a `read_committed` consumer finds every event
//! of the buffer once and in order.
//!
//! A producer whose answer was lost in a crash sends the event again, and the buffer has it twice, at two positions:
//! what is counted here is positions.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{
    self, Pace, Producer, Stored, assert_no_duplicates, assert_whole_and_in_order, finish, first_occurrences,
    kept_by_position, line_of, pass,
};
use crate::harness::kafka::{Consumer, Record, create_topic, read_all};
use crate::harness::services::{Private, Shared};
use crate::harness::wait::{USUAL, eventually};
use crate::harness::{seed, unique};

/// More than the shortest `kafka.transaction_timeout` and the brokers' look for old transactions every 10 s.
const OUTLIVED: Duration = Duration::from_secs(25);

fn exactly_once(config: &mut Config) -> &mut Config {
    config.set("kafka.delivery", "exactly_once")
}

fn start_producers(agent: &Agent, rate: u32) -> Vec<Producer> {
    flow::start_producers(agent, "exactly", 3, Pace { rate: Some(rate), window: 1000, ..Pace::default() })
}

/// Waits until everything acknowledged is in Kafka, stops the agent in order, and looks at the whole topic: each
/// position once, each source whole and in order.
#[track_caller]
fn assert_exact(agent: &mut Agent, brokers: &str, topic: &str, acked: &BTreeMap<String, u64>) -> Vec<Record> {
    eventually("everything acknowledged is in Kafka", USUAL * 3, || {
        let stored: Vec<Stored> = read_all(brokers, topic).iter().map(Stored::of).collect();
        let found = first_occurrences(&stored);
        let is_there =
            |(source, count): (&String, &u64)| found.get(source).map_or(0, Vec::len) as u64 >= *count;
        acked.iter().all(is_there).then_some(())
    });
    assert_eq!(agent.stop().code(), Some(0));
    let records = read_all(brokers, topic);
    let kept = kept_by_position(&records);
    assert_eq!(kept.len(), records.len(), "{} positions are there twice", records.len() - kept.len());
    assert_whole_and_in_order(&kept, acked);
    assert!(acked.values().all(|count| *count > 100), "the producers were hardly served: {acked:?}");
    eprintln!("{} records, {} acknowledged", records.len(), acked.values().sum::<u64>());
    records
}

#[test]
fn fifty_kills_of_the_agent_leave_each_event_once() {
    const ROUNDS: usize = 50;
    let mut random = fastrand::Rng::with_seed(seed("fifty_kills_of_the_agent"));
    let brokers = &Shared::get().kafka;
    let topic = create_topic(brokers, 3);
    let mut agent = Agent::start(|config| {
        exactly_once(config.shared_kafka(&topic));
    });
    let producers = start_producers(&agent, 300);
    for _ in 0..ROUNDS {
        // Long enough for some transactions, short enough that many a kill comes into the first.
        pass(Duration::from_millis(random.u64(5..1500)));
        agent.kill9();
        agent.begin();
        if random.bool() {
            agent.wait_ready();
        }
    }
    agent.wait_ready();
    let acked = finish(producers);
    assert_exact(&mut agent, brokers, &topic, &acked);
}

#[test]
fn ten_kills_of_the_broker_leave_each_event_once() {
    let mut random = fastrand::Rng::with_seed(seed("ten_kills_of_the_broker"));
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 3);
    let mut agent = Agent::start(|config| {
        exactly_once(config.kafka(kafka.address(), &topic));
    });
    let producers = start_producers(&agent, 300);
    for _ in 0..10 {
        pass(Duration::from_millis(random.u64(500..3000)));
        kafka.kill();
        pass(Duration::from_millis(random.u64(100..2000)));
        kafka.start();
    }
    let acked = finish(producers);
    let records = assert_exact(&mut agent, kafka.address(), &topic, &acked);
    // The agent lived on: nobody had to send anything twice.
    assert_no_duplicates(&records.iter().map(Stored::of).collect::<Vec<_>>());
}

#[test]
fn a_broker_that_hangs_for_a_minute_costs_nothing_but_time() {
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 3);
    let mut agent = Agent::start(|config| {
        exactly_once(config.kafka(kafka.address(), &topic)).set("kafka.transaction_timeout", "10s");
    });
    let reader = Consumer::start(kafka.address(), &topic);
    let producers = start_producers(&agent, 200);
    reader.wait_count(500, USUAL);
    kafka.pause();
    pass(Duration::from_secs(60));
    kafka.resume();
    let before = reader.count();
    eventually("the drain resumes", USUAL * 2, || (reader.count() > before).then_some(()));
    let acked = finish(producers);
    let records = assert_exact(&mut agent, kafka.address(), &topic, &acked);
    assert_no_duplicates(&records.iter().map(Stored::of).collect::<Vec<_>>());
}

#[test]
fn an_agent_whose_transaction_timed_out_goes_on() {
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 3);
    let mut agent = Agent::start(|config| {
        // So long that a transaction is open whenever the agent is stopped.
        exactly_once(config.kafka(kafka.address(), &topic))
            .set("kafka.transaction_timeout", "10s")
            .set("kafka.transaction_interval", "2s");
    });
    let reader = Consumer::start(kafka.address(), &topic);
    let producers = start_producers(&agent, 100);
    reader.wait_count(100, USUAL);
    agent.signal(Signal::STOP);
    pass(OUTLIVED);
    let before = reader.count();
    agent.signal(Signal::CONT);
    eventually("the drain resumes", USUAL * 2, || (reader.count() > before).then_some(()));
    let acked = finish(producers);
    let records = assert_exact(&mut agent, kafka.address(), &topic, &acked);
    assert_no_duplicates(&records.iter().map(Stored::of).collect::<Vec<_>>());
}

#[test]
fn of_two_agents_with_one_name_the_first_one_ends_and_says_why() {
    let brokers = &Shared::get().kafka;
    let topic = create_topic(brokers, 1);
    let name = unique("twin");
    let mut first = Agent::start(|config| {
        exactly_once(config.shared_kafka(&topic)).set("agent.id", name.as_str());
    });
    let reader = Consumer::start(brokers, &topic);
    let of_first =
        Producer::start(&first.socket(), &unique("first"), Pace { rate: Some(200), ..Pace::default() });
    reader.wait_count(200, USUAL);
    let mut second = Agent::start(|config| {
        exactly_once(config.shared_kafka(&topic)).set("agent.id", name.as_str());
    });
    let of_second =
        Producer::start(&second.socket(), &unique("second"), Pace { rate: Some(200), ..Pace::default() });
    // Not 75 or 70, for which the service manager would start it again to fence the other one.
    assert_eq!(first.wait_exit(USUAL).code(), Some(78));
    let said = first.log().join("\n");
    assert!(said.contains("another agent with the same agent.id has taken over"), "{said}");
    second.wait_log("Kafka's cursor belongs to another buffer", USUAL);
    let source = of_second.source().to_owned();
    eventually("the other one is served", USUAL, || (of_second.acked() > 400).then_some(()));
    let mut acked = BTreeMap::from([(source, of_second.finish(USUAL))]);
    assert_exact(&mut second, brokers, &topic, &acked);
    // What the first one had taken is still there, and goes out once it is alone.
    first.begin();
    first.wait_ready();
    acked.insert(of_first.source().to_owned(), of_first.finish(USUAL));
    assert_exact(&mut first, brokers, &topic, &acked);
}

#[test]
fn a_wiped_buffer_and_a_cursor_that_is_gone_are_explained() {
    let brokers = &Shared::get().kafka;
    let (topic, other) = (create_topic(brokers, 1), create_topic(brokers, 1));
    let mut agent = Agent::start(|config| {
        exactly_once(config.shared_kafka(&topic));
    });
    agent.wait_log("Kafka has no cursor of this agent", USUAL);
    let source = unique("wiped");
    let send = |agent: &Agent, numbers: std::ops::Range<u64>| {
        let mut client = agent.unix();
        let count = numbers.end - numbers.start;
        numbers.for_each(|n| client.send_line(&line_of(&source, n, 0)));
        client.wait_ack(count, USUAL);
    };
    send(&agent, 0..200);
    assert_exact(&mut agent, brokers, &topic, &BTreeMap::from([(source.clone(), 200)]));

    std::fs::remove_dir_all(agent.data_dir()).unwrap();
    agent.begin();
    agent.wait_log("Kafka's cursor belongs to another buffer", USUAL);
    send(&agent, 200..300);
    assert_exact(&mut agent, brokers, &topic, &BTreeMap::from([(source.clone(), 300)]));

    // The cursor of this buffer now: no word about it. Under another topic there is none.
    agent.begin();
    agent.wait_log("Kafka link up", USUAL);
    send(&agent, 300..310);
    assert_exact(&mut agent, brokers, &topic, &BTreeMap::from([(source.clone(), 310)]));
    assert!(!agent.log_contains("cursor belongs"), "{:?}", agent.log());
    agent.reconfigure(|config| {
        config.set("kafka.cursor_topic", other.as_str());
    });
    agent.begin();
    agent.wait_log("Kafka has no cursor of this agent", USUAL);
    send(&agent, 310..320);
    assert_exact(&mut agent, brokers, &topic, &BTreeMap::from([(source, 320)]));
}

#[test]
fn the_mode_may_change_between_any_two_starts() {
    let brokers = &Shared::get().kafka;
    let topic = create_topic(brokers, 2);
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic);
    });
    let producers = start_producers(&agent, 300);
    for (mode, is_killed) in [
        ("exactly_once", false),
        ("at_least_once", false),
        ("exactly_once", false),
        ("exactly_once", true),
        ("exactly_once", true),
        ("exactly_once", false),
    ] {
        pass(Duration::from_millis(1500));
        if is_killed {
            agent.kill9();
        } else {
            assert_eq!(agent.stop().code(), Some(0));
        }
        agent.reconfigure(|config| {
            config.set("kafka.delivery", mode);
        });
        agent.begin();
        agent.wait_ready();
    }
    let acked = finish(producers);
    assert_exact(&mut agent, brokers, &topic, &acked);
}
