//! Old copies come back: of the buffer's directory, of the whole data folder; or nothing is left of it. Numbering then
//! begins again where it was, and still no position may stand for two events, or consumers would drop new ones.

use std::path::{Path, PathBuf};

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer};
use crate::harness::kafka::create_topic;
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::support::round::{random, report, rounds};
use crate::support::tally::{Acked, Tally};
use crate::support::{Nowhere, copy_tree, finish, wait_up};

/// An agent with its topic.
struct Lives {
    agent: Agent,
    topic: String,
    tally: Tally,
    nowhere: Nowhere,
    acked: Acked,
}

impl Lives {
    fn new() -> Self {
        let kafka = &Shared::get().kafka;
        let topic = create_topic(kafka, 1);
        let tally = Tally::start(kafka, &topic);
        Self { agent: Agent::prepare(|_| {}), topic, tally, nowhere: Nowhere::new(), acked: Acked::new() }
    }

    /// One life: takes `count` events, and delivers everything if there is Kafka.
    #[track_caller]
    fn live(&mut self, has_kafka: bool, count: u64) {
        let kafka = if has_kafka { &Shared::get().kafka } else { self.nowhere.address() };
        self.agent.reconfigure(|config| {
            config.kafka(kafka, &self.topic);
        });
        self.agent.begin();
        wait_up(&self.agent);
        let pace = Pace { count, ..Pace::default() };
        self.acked.append(&mut finish(vec![Producer::start(&self.agent.socket(), &unique("life"), pace)]));
        if has_kafka {
            let verdict = self.tally.verdict(&self.acked);
            assert!(verdict.lost.is_empty(), "{} events are not delivered", verdict.lost.len());
            assert_eq!(self.agent.stop().code(), Some(0));
        } else {
            self.agent.kill9();
        }
    }
}

/// What becomes of a folder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is gone.
    Wiped,
    /// A folder made from the copy takes its place.
    Replaced,
    /// It stays, and what is in it becomes what is in the copy.
    Overwritten,
}

/// `part` of the data folder (`""` for all of it) goes back to a copy, or away.
fn restored(test: &str, part: &str, fate: Fate) {
    let (mut random, rounds) = (random(test), rounds(3));
    let mut lives = Lives::new();
    let place: PathBuf = lives.agent.data_dir().join(part);
    let copy = lives.agent.home().join("copy");
    for _ in 0..rounds {
        let mut many = || random.u64(100..600);
        let (delivered, kept, gone, after) = (many(), many(), many(), many());
        lives.live(true, delivered);
        lives.live(false, kept);
        copy_tree(&place, &copy);
        // All of it is delivered, so the copy holds nothing that Kafka lacks.
        lives.live(true, gone);
        if fate != Fate::Overwritten {
            std::fs::remove_dir_all(&place).unwrap();
        }
        if fate != Fate::Wiped {
            remove_what_is_not_in(&copy, &place);
            copy_tree(&copy, &place);
        }
        std::fs::remove_dir_all(&copy).unwrap();
        // Twice: the first start may find out about it, the second has to know.
        lives.live(true, after);
        lives.live(true, after);
    }
    let verdict = lives.tally.verdict(&lives.acked);
    report(test, rounds, &verdict, "");
    verdict.assert_sound();
}

/// Folders that are in both stay, with their places on the disk.
fn remove_what_is_not_in(copy: &Path, place: &Path) {
    let Ok(entries) = std::fs::read_dir(place) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        let of_copy = copy.join(path.file_name().unwrap());
        match (path.is_dir(), of_copy.exists()) {
            (true, true) => remove_what_is_not_in(&of_copy, &path),
            (true, false) => std::fs::remove_dir_all(path).unwrap(),
            (false, true) => {}
            (false, false) => std::fs::remove_file(path).unwrap(),
        }
    }
}

#[test]
fn an_old_copy_of_the_buffer_never_uses_a_position_twice() {
    restored("old_buffer", "buffer", Fate::Replaced);
}

#[test]
fn an_old_copy_of_the_buffer_in_place_never_uses_a_position_twice() {
    restored("old_buffer_in_place", "buffer", Fate::Overwritten);
}

#[test]
fn an_old_copy_of_the_data_folder_never_uses_a_position_twice() {
    restored("old_data_folder", "", Fate::Replaced);
}

#[test]
fn an_old_copy_of_the_data_folder_in_place_never_uses_a_position_twice() {
    restored("old_data_folder_in_place", "", Fate::Overwritten);
}

#[test]
fn a_wiped_buffer_never_uses_a_position_twice() {
    restored("wiped_buffer", "buffer", Fate::Wiped);
}
