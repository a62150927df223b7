//! What only `kafka.delivery = "exactly_once"` knows: twins, cursors in Kafka that are gone or of another buffer, and the
//! way from one mode to another. The faults that every mode meets are in `delivery`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::delivery::{Mode, assert_delivered};
use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{Pace, Producer, finish, line_of, pass, start_producers};
use crate::harness::kafka::{Consumer, create_topic};
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

fn exactly_once(config: &mut Config) -> &mut Config {
    config.set("kafka.delivery", "exactly_once")
}

/// See [`assert_delivered`].
#[track_caller]
fn assert_exact(agent: &mut Agent, brokers: &str, topic: &str, acked: &BTreeMap<String, u64>) {
    assert_delivered(Mode::ExactlyOnce, agent, brokers, topic, acked);
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
    let pace = Pace { rate: Some(300), window: 1000, ..Pace::default() };
    let producers = start_producers(&agent, "exactly", 3, pace);
    for (mode, is_killed) in [
        ("exactly_once", false),
        ("at_least_once", false),
        ("exactly_once", false),
        ("exactly_once", true),
        ("exactly_once", true),
        ("exactly_once", false),
        ("at_most_once", false),
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
