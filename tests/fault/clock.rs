//! The wall clock jumps: far back, as after an empty battery, and ahead.
//!
//! The shim stands between the agent and the wall clock (`support::shim`) and leaves the monotonic one alone, which no
//! real clock step touches either.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, pass, start_producers};
use crate::harness::kafka::{create_topic_named, read_all};
use crate::harness::services::{Private, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};
use crate::support::round::{random, report, rounds};
use crate::support::shim::Clock;
use crate::support::tally::Tally;
use crate::support::{acked_of, finish, wait_more, wait_up};

/// Two producers of this pace fill no buffer while the clock jumps.
const PACE: Pace = Pace { rate: Some(400), window: 100, padding: 0, is_mixed: false, count: u64::MAX };

const NOW: i64 = 0;
const FIFTY_YEARS_BACK: i64 = -18_262 * A_DAY_AHEAD;
const A_DAY_AHEAD: i64 = 86_400;

/// Kafka takes records of any time: by default it refuses those from the future, and what that does to the line is not
/// the clock's matter.
fn topic(kafka: &str) -> String {
    let name = unique("clock");
    let settings = [("message.timestamp.after.max.ms", "9223372036854775807"), ("retention.ms", "-1")];
    create_topic_named(kafka, &name, 2, &settings);
    name
}

/// Some events say that they are from 1976, some from tomorrow: the clock did jump.
#[track_caller]
fn assert_jumped(kafka: &str, topic: &str) {
    let records = read_all(kafka, topic);
    let days: BTreeSet<String> =
        records.iter().map(|record| record.header("fieldpost-timestamp").unwrap()[..10].to_owned()).collect();
    assert!(days.len() >= 3 && days.iter().next().is_some_and(|day| day.starts_with("197")), "{days:?}");
}

#[test]
fn the_clock_jumps_while_the_agent_runs() {
    let test = "clock_jumps_while_running";
    let (mut random, rounds) = (random(test), rounds(4));
    let topic = topic(&Shared::get().kafka);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let clock = Clock::new();
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic);
        clock.install(config);
    });
    let producers = start_producers(&agent, "clock", 2, PACE);
    for _ in 0..rounds {
        for offset in [FIFTY_YEARS_BACK, A_DAY_AHEAD, NOW] {
            clock.set(offset);
            wait_more(&producers, 200);
            pass(Duration::from_millis(random.u64(..300)));
            let before = tally.different();
            eventually("the drain goes on", USUAL, || (tally.different() > before).then_some(()));
        }
    }
    let verdict = tally.verdict(&finish(producers));
    report(test, rounds, &verdict, "");
    verdict.assert_sound_and_in_order();
    assert_eq!(verdict.duplicates, 0, "within one run of the agent nothing is sent twice");
    assert_jumped(&Shared::get().kafka, &topic);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn the_clock_jumps_between_two_starts() {
    let test = "clock_jumps_between_starts";
    let (mut random, rounds) = (random(test), rounds(3));
    let topic = topic(&Shared::get().kafka);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let clock = Clock::new();
    let mut agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
        clock.install(config);
    });
    let producers = start_producers(&agent, "clock", 2, PACE);
    for _ in 0..rounds {
        for offset in [FIFTY_YEARS_BACK, A_DAY_AHEAD, NOW] {
            clock.set(offset);
            agent.begin();
            wait_up(&agent);
            wait_more(&producers, random.u64(50..300));
            if random.bool() {
                agent.kill9();
            } else {
                assert_eq!(agent.stop().code(), Some(0));
            }
        }
    }
    clock.set(FIFTY_YEARS_BACK);
    agent.begin();
    let verdict = tally.verdict(&finish(producers));
    report(test, rounds * 3, &verdict, "");
    verdict.assert_sound_and_in_order();
    assert_jumped(&Shared::get().kafka, &topic);
    assert_eq!(agent.stop().code(), Some(0));
}

/// Waits until a time on the wall clock last longer when it is set back; whoever waits before the next try to reach
/// Kafka must not wait for fifty years.
#[test]
fn the_clock_jumps_back_while_kafka_is_away() {
    let test = "clock_jumps_back_while_kafka_is_away";
    let (mut random, rounds) = (random(test), rounds(2));
    let kafka = Private::kafka();
    let topic = topic(kafka.address());
    let tally = Tally::start(kafka.address(), &topic);
    let clock = Clock::new();
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic);
        clock.install(config);
    });
    let producers = start_producers(&agent, "clock", 2, PACE);
    for _ in 0..rounds {
        for (before, after) in [(NOW, FIFTY_YEARS_BACK), (A_DAY_AHEAD, NOW)] {
            clock.set(before);
            wait_more(&producers, 100);
            // It looks at the clock every ten seconds; of two steps between two looks it sees the sum.
            pass(Duration::from_secs(11));
            kafka.kill();
            agent.wait_log("Kafka link down", USUAL);
            pass(Duration::from_millis(random.u64(500..3000)));
            clock.set(after);
            // What was refused shortly before the agent starts itself again is counted all the same.
            let mut client = agent.unix();
            client.send_line("no event");
            client.wait_refused(USUAL);
            wait_more(&producers, 100);
            kafka.start();
            let waiting = acked_of(&producers);
            let verdict = tally.verdict(&waiting);
            assert!(verdict.lost.is_empty(), "{} events wait although Kafka is back", verdict.lost.len());
        }
    }
    let verdict = tally.verdict(&finish(producers));
    report(test, rounds * 2, &verdict, "");
    verdict.assert_sound_and_in_order();
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(agent.lost("invalid").0, 2 * rounds as u64);
}

/// The agent starts itself again, and goes on with the socket that it was started with: it has no other way to it.
#[test]
fn the_clock_is_set_back_under_a_socket_of_the_service_manager() {
    let topic = topic(&Shared::get().kafka);
    let clock = Clock::new();
    let mut agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
        clock.install(config);
    });
    let socket = agent.socket();
    agent.reconfigure(|config| {
        let path = socket.to_str().unwrap();
        let passed = ["-E", "LD_PRELOAD", "-E", "FAULT_CLOCK"];
        config.wrapper(&[&["systemd-socket-activate"], &passed[..], &["--listen", path]].concat());
    });
    agent.begin();
    eventually("the manager listens", USUAL, || socket.exists().then_some(()));
    let producers = start_producers(&agent, "clock", 1, PACE);
    for starts in 2..=3 {
        wait_more(&producers, 100);
        clock.set(-A_DAY_AHEAD * starts);
        eventually("the agent starts itself again", USUAL * 2, || {
            let listening = agent.log_count("inherited=true");
            (listening == usize::try_from(starts).unwrap()).then_some(())
        });
    }
    wait_more(&producers, 100);
    let verdict = Tally::start(&Shared::get().kafka, &topic).verdict(&finish(producers));
    report("clock_set_back_under_a_socket", 2, &verdict, "");
    verdict.assert_sound();
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn check_compares_this_machines_clock_with_the_brokers() {
    let topic = topic(&Shared::get().kafka);
    let clock = Clock::new();
    let agent = Agent::prepare(|config| {
        config.shared_kafka(&topic).set("kafka.delivery", "exactly_once");
        clock.install(config);
    });
    const HOUR: i64 = 3600;
    for (offset, wanted) in [
        (-2 * HOUR, "the brokers' clock is 1 h 59 min ahead of this machine's clock: records look older"),
        (2 * HOUR, "the brokers' clock is 2 h 0 min behind this machine's clock: records look newer"),
        (NOW, "the brokers' clock and this machine's agree within 10 s"),
    ] {
        clock.set(offset);
        let output = agent.command(&["check", "--timeout", "20s"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(wanted) && output.status.success(), "{wanted:?} is missing in {said}");
    }
}
