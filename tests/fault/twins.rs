//! Two agents on one directory.

use std::time::Duration;

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer, pass, start_producers};
use crate::harness::kafka::create_topic;
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};
use crate::support::round::{random, report, rounds};
use crate::support::tally::{Acked, Tally};
use crate::support::{READY, finish, wait_more, wait_up};

/// `EX_IOERR` of sysexits: the buffer's directory cannot be used.
const STORAGE: i32 = 74;

#[test]
fn a_second_agent_on_the_directory_ends_and_harms_nothing() {
    let test = "second_agent";
    let (mut random, rounds) = (random(test), rounds(10));
    let topic = create_topic(&Shared::get().kafka, 2);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let mut first = Agent::start(|config| {
        config.shared_kafka(&topic);
    });
    let mut second = Agent::prepare(|config| {
        config.shared_kafka(&topic).set("agent.data_dir", first.data_dir().to_str().unwrap());
    });
    let pace = Pace { rate: Some(500), window: 100, ..Pace::default() };
    let producers = start_producers(&first, "twin", 2, pace);
    for _ in 0..rounds {
        pass(Duration::from_millis(random.u64(..200)));
        second.begin();
        assert_eq!(second.wait_exit(USUAL).code(), Some(STORAGE));
        let said = second.log().join("\n");
        let owner = format!("in use by process {}", first.pid().as_raw_nonzero());
        assert!(said.contains(&owner) && said.contains(first.data_dir().to_str().unwrap()), "{said}");
        wait_more(&producers, 50);
        // The first one's death frees the directory at once, and its next start is the owner again.
        if random.bool() {
            first.kill9();
            first.begin();
            wait_up(&first);
        }
    }
    let verdict = tally.verdict(&finish(producers));
    report(test, rounds, &verdict, "");
    verdict.assert_sound_and_in_order();
    assert_eq!(first.stop().code(), Some(0));
}

#[test]
fn of_two_agents_that_start_at_once_one_gets_the_directory() {
    let test = "two_at_once";
    let rounds = rounds(10);
    let topic = create_topic(&Shared::get().kafka, 2);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let mut one = Agent::prepare(|config| {
        config.shared_kafka(&topic);
    });
    let mut other = Agent::prepare(|config| {
        config.shared_kafka(&topic).set("agent.data_dir", one.data_dir().to_str().unwrap());
    });
    let mut acked = Acked::new();
    for _ in 0..rounds {
        one.begin();
        other.begin();
        let is_first = eventually("one of them runs", USUAL, || {
            let runs = |agent: &Agent| agent.log_contains(READY);
            (runs(&one) || runs(&other)).then(|| runs(&one))
        });
        let (winner, loser) = if is_first { (&mut one, &mut other) } else { (&mut other, &mut one) };
        let pace = Pace { count: 50, ..Pace::default() };
        let producer = Producer::start(&winner.socket(), &unique("twin"), pace);
        acked.append(&mut finish(vec![producer]));
        assert_eq!(loser.wait_exit(USUAL).code(), Some(STORAGE));
        let is_named = loser.log_contains("in use by process") && !loser.log_contains("(unknown)");
        assert!(is_named, "{:?}", loser.log());
        assert_eq!(winner.stop().code(), Some(0));
    }
    one.begin();
    // Before, a signal to stop would just end it.
    one.wait_ready();
    let verdict = tally.verdict(&acked);
    report(test, rounds, &verdict, "");
    verdict.assert_sound_and_in_order();
    assert_eq!(one.stop().code(), Some(0));
}
