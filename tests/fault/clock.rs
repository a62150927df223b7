//! The wall clock jumps: far back, as after an empty battery, and ahead.
//!
//! libfaketime stands between the agent and the wall clock and leaves the monotonic one alone, which no real clock step
//! touches either.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{Pace, Producer, pass};
use crate::harness::kafka::{create_topic_named, read_all};
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};
use crate::support::round::{random, report, rounds};
use crate::support::tally::Tally;
use crate::support::{finish, wait_more, wait_up};

const NOW: &str = "+0d";
const FIFTY_YEARS_BACK: &str = "-18262d";
const A_DAY_AHEAD: &str = "+1d";

/// The agent's clock.
struct Clock {
    home: tempfile::TempDir,
}

impl Clock {
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("fieldpost-clock-").tempdir().expect("a temporary folder");
        let clock = Self { home };
        clock.set(NOW);
        clock
    }

    fn install(&self, config: &mut Config) {
        config.environment("LD_PRELOAD", library().to_str().unwrap());
        config.environment("FAKETIME_TIMESTAMP_FILE", self.file().to_str().unwrap());
        config.environment("FAKETIME_NO_CACHE", "1");
        config.environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    fn set(&self, offset: &str) {
        let fresh = self.home.path().join("fresh");
        std::fs::write(&fresh, offset).expect("the temporary folder is writable");
        std::fs::rename(fresh, self.file()).expect("within one folder");
    }

    fn file(&self) -> PathBuf {
        self.home.path().join("clock")
    }
}

/// Debian keeps it in a folder of the machine's architecture.
#[track_caller]
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("/usr/lib is there").flatten();
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.exists()).expect("libfaketime is not installed: Debian's package faketime")
}

/// Kafka takes records of any time: by default it refuses those from the future, and what that does to the line is not
/// the clock's matter.
fn topic() -> String {
    let name = unique("clock");
    let settings = [("message.timestamp.after.max.ms", "9223372036854775807"), ("retention.ms", "-1")];
    create_topic_named(&Shared::get().kafka, &name, 2, &settings);
    name
}

/// Some events say that they are from 1976, some from tomorrow: the clock did jump.
#[track_caller]
fn assert_jumped(topic: &str) {
    let records = read_all(&Shared::get().kafka, topic);
    let days: BTreeSet<String> =
        records.iter().map(|record| record.header("fieldpost-timestamp").unwrap()[..10].to_owned()).collect();
    assert!(days.len() >= 3 && days.iter().next().is_some_and(|day| day.starts_with("197")), "{days:?}");
}

#[test]
fn the_clock_jumps_while_the_agent_runs() {
    let test = "clock_jumps_while_running";
    let (mut random, rounds) = (random(test), rounds(4));
    let topic = topic();
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let clock = Clock::new();
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic);
        clock.install(config);
    });
    let pace = Pace { rate: Some(500), window: 100, ..Pace::default() };
    let producers: Vec<Producer> =
        (0..2).map(|_| Producer::start(&agent.socket(), &unique("clock"), pace)).collect();
    for _ in 0..rounds {
        for offset in [FIFTY_YEARS_BACK, A_DAY_AHEAD, NOW] {
            clock.set(offset);
            wait_more(&producers, 200);
            pass(Duration::from_millis(random.u64(..300)));
            let before = tally.different();
            eventually("the drain goes on", USUAL, || {
                (tally.different() > before).then_some(())
            });
        }
    }
    let verdict = tally.verdict(&finish(producers));
    report(test, rounds, &verdict, "");
    verdict.assert_sound_and_in_order();
    assert_eq!(verdict.duplicates, 0, "within one run of the agent nothing is sent twice");
    assert_jumped(&topic);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn the_clock_jumps_between_two_starts() {
    let test = "clock_jumps_between_starts";
    let (mut random, rounds) = (random(test), rounds(3));
    let topic = topic();
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let clock = Clock::new();
    let mut agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
        clock.install(config);
    });
    let pace = Pace { rate: Some(500), window: 100, ..Pace::default() };
    let producers: Vec<Producer> =
        (0..2).map(|_| Producer::start(&agent.socket(), &unique("clock"), pace)).collect();
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
    assert_jumped(&topic);
    assert_eq!(agent.stop().code(), Some(0));
}
