//! The power goes: everything that the device has not got is gone, at one moment, with the agent.
//!
//! Each cut makes a copy of the loop device's file while nobody writes, and the agent goes on upon that copy. The
//! producers do not notice more than a lost connection. So one run is a life with many power cuts, and at its end
//! everything that was acknowledged in between has to be in Kafka.
//!
//! A power cut that forgets too little would prove nothing: `without_syncs_the_cut_loses_events` shows that it does not.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{Pace, Producer, pass, start_producers};
use crate::harness::kafka::{create_topic, create_topic_named};
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};
use crate::support::disk::Disk;
use crate::support::round::{random, report, rounds};
use crate::support::shim::Shim;
use crate::support::tally::{Acked, Tally, up_to};
use crate::support::{Nowhere, acked_by, finish, generations, wait_new_generation, wait_up};

/// Longest time between what a round waits for and its cut: the work behind a rotation, a deletion or a start takes
/// some milliseconds, and the cut should fall into it, and before and behind it.
const SHORTLY_MS: u64 = 40;

const MIB: usize = 1 << 20;

/// More than what an event takes beside its padding.
const NAMES: usize = 1000;

/// An agent on a disk that loses its power.
struct Site {
    /// Before the disk: it ends first.
    agent: Agent,
    disk: Disk,
    topic: String,
    nowhere: Nowhere,
    producers: Vec<Producer>,
}

impl Site {
    fn new(disk: Disk, topic: String, configure: impl FnOnce(&mut Config)) -> Self {
        let agent = Agent::prepare(|config| {
            disk.install(config);
            config.shared_kafka(&topic);
            configure(config);
        });
        Self { agent, disk, topic, nowhere: Nowhere::new(), producers: Vec::new() }
    }

    fn produce(&mut self, count: usize, pace: Pace) {
        self.producers.extend(start_producers(&self.agent, "power", count, pace));
    }

    /// Starts the agent, with Kafka or without.
    fn begin(&mut self, has_kafka: bool) {
        let kafka = if has_kafka { &Shared::get().kafka } else { self.nowhere.address() };
        self.agent.reconfigure(|config| {
            config.kafka(kafka, &self.topic);
        });
        self.agent.begin();
    }

    /// Starts the agent without Kafka and lets its buffer grow by the beginning of one more generation.
    fn grow(&mut self) {
        if generations(&self.disk.data_dir()).len() > 3 {
            self.begin(true);
            eventually("the backlog is drained", USUAL, || {
                (generations(&self.disk.data_dir()).len() < 2).then_some(())
            });
            self.agent.kill9();
        }
        self.begin(false);
        wait_up(&self.agent);
        wait_new_generation(&self.agent, &generations(&self.disk.data_dir()));
    }

    /// Starts the agent with Kafka and waits until a drained generation is deleted.
    fn shrink(&mut self) {
        // The last cut may have taken the newest generation with it, and the newest is not deleted.
        if generations(&self.disk.data_dir()).len() < 2 {
            self.grow();
            self.agent.kill9();
        }
        let known = generations(&self.disk.data_dir());
        self.begin(true);
        eventually("a generation is deleted", USUAL, || {
            let left = generations(&self.disk.data_dir());
            known.iter().any(|path| !left.contains(path)).then_some(())
        });
    }

    fn cut(&mut self) {
        self.disk.cut_power(&mut self.agent);
    }

    fn acked(&self) -> u64 {
        acked_by(&self.producers)
    }

    /// Starts the agent for the last time and lets the producers end.
    fn settle(&mut self) -> Acked {
        self.begin(true);
        wait_up(&self.agent);
        finish(std::mem::take(&mut self.producers))
    }

    fn close(mut self, test: &str, rounds: usize, tally: &Tally) {
        let acked = self.settle();
        let verdict = tally.verdict_within(&acked, USUAL * 6);
        let each: Vec<usize> = acked.values().map(BTreeSet::len).collect();
        report(test, rounds, &verdict, &format!("by producer {each:?}"));
        verdict.assert_sound_and_in_order();
        assert!(each.iter().all(|&acked| acked > 0), "a producer was not served: {each:?}");
        assert!(verdict.acknowledged >= rounds as u64, "the producers were hardly served");
        assert_eq!(self.agent.stop().code(), Some(0));
    }
}

#[test]
fn power_cut_at_any_moment() {
    let test = "power_cut_at_any_moment";
    let (mut random, rounds) = (random(test), rounds(20));
    let topic = create_topic(&Shared::get().kafka, 2);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let mut site = Site::new(Disk::ext4(64), topic, |_| {});
    site.produce(2, Pace { rate: Some(500), window: 300, ..Pace::default() });
    for round in 0..rounds {
        site.begin(true);
        // Every third time right behind the opening, the others whenever.
        if round % 3 == 0 {
            wait_up(&site.agent);
            pass(Duration::from_millis(random.u64(..SHORTLY_MS)));
        } else {
            pass(Duration::from_millis(random.u64(5..1500)));
        }
        site.cut();
    }
    site.close(test, rounds, &tally);
}

#[test]
fn power_cut_after_the_very_first_start() {
    let test = "power_cut_after_the_very_first_start";
    let (mut random, rounds) = (random(test), rounds(10));
    let topic = create_topic(&Shared::get().kafka, 2);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let mut acked = Acked::new();
    for _ in 0..rounds {
        let mut site = Site::new(Disk::ext4(32), topic.clone(), |_| {});
        site.begin(false);
        site.produce(1, Pace { rate: Some(500), window: 50, ..Pace::default() });
        eventually("the first acknowledgement", USUAL, || (site.acked() > 0).then_some(()));
        pass(Duration::from_millis(random.u64(..SHORTLY_MS)));
        site.cut();
        acked.append(&mut site.settle());
        assert!(tally.verdict(&acked).lost.is_empty(), "of {acked:?}");
        assert_eq!(site.agent.stop().code(), Some(0));
    }
    let verdict = tally.verdict(&acked);
    report(test, rounds, &verdict, "");
    verdict.assert_sound_and_in_order();
}

#[test]
fn power_cut_around_the_beginning_and_the_end_of_a_generation() {
    let test = "power_cut_around_generations";
    let (mut random, rounds) = (random(test), rounds(12));
    let topic = create_topic(&Shared::get().kafka, 2);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let mut site = Site::new(Disk::ext4(128), topic, |config| {
        // Generations of 2 MiB.
        config.set("buffer.max_bytes", "16 MiB").set("limits.max_event_bytes", "64 KiB");
    });
    site.produce(2, Pace { rate: Some(900), window: 200, padding: 900, ..Pace::default() });
    for round in 0..rounds {
        if round % 2 == 0 {
            site.grow();
        } else {
            site.shrink();
        }
        pass(Duration::from_millis(random.u64(..SHORTLY_MS)));
        site.cut();
    }
    site.close(test, rounds, &tally);
}

#[test]
fn power_cut_with_large_events() {
    // Just below the limit, and some of a few chunks beside them.
    let just_below = Pace { rate: Some(4), window: 2, padding: MIB - NAMES, ..Pace::default() };
    let few_chunks = Pace { rate: Some(50), window: 10, padding: 30_000, ..Pace::default() };
    cut_with_large_events(
        "power_cut_with_large_events",
        Disk::ext4(256),
        &[just_below, few_chunks],
        |config| {
            config.set("limits.max_event_bytes", "1 MiB").set("buffer.max_bytes", "128 MiB");
        },
    );
}

#[test]
fn power_cut_with_the_largest_events() {
    // Just below the limit, of all sizes up to it, and small ones between them.
    let just_below = Pace { rate: Some(1), window: 2, padding: 8 * MIB - NAMES, ..Pace::default() };
    let mixed = Pace { rate: Some(6), window: 6, is_mixed: true, ..just_below };
    let small = Pace { rate: Some(100), window: 50, padding: 100, ..Pace::default() };
    cut_with_large_events(
        "power_cut_with_the_largest_events",
        Disk::ext4(512),
        &[just_below, mixed, small],
        |config| {
            config.set("limits.max_event_bytes", "8 MiB").set("limits.memory", "128 MiB");
            config.set("buffer.max_bytes", "384 MiB");
        },
    );
}

/// Cuts at random moments, every other time not before something was acknowledged. Each byte that comes to Kafka is
/// compared.
fn cut_with_large_events(test: &str, disk: Disk, paces: &[Pace], configure: impl FnOnce(&mut Config)) {
    let (mut random, rounds) = (random(test), rounds(8));
    let topic = unique("large");
    create_topic_named(&Shared::get().kafka, &topic, 2, &[("max.message.bytes", "12000000")]);
    let tally = Tally::start_comparing(&Shared::get().kafka, &topic);
    let mut site = Site::new(disk, topic, configure);
    for &pace in paces {
        site.produce(1, pace);
    }
    for round in 0..rounds {
        let before = site.acked();
        site.begin(random.bool());
        if round % 2 == 0 {
            eventually("something is acknowledged", USUAL, || (site.acked() > before).then_some(()));
            pass(Duration::from_millis(random.u64(..800)));
        } else {
            pass(Duration::from_millis(random.u64(50..2000)));
        }
        site.cut();
    }
    site.close(test, rounds, &tally);
}

#[test]
fn power_cut_while_syncs_fail() {
    let test = "power_cut_while_syncs_fail";
    let (mut random, rounds) = (random(test), rounds(5));
    let topic = create_topic(&Shared::get().kafka, 2);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let disk = Disk::ext4(64);
    let shim = Shim::new();
    let mut site = Site::new(disk, topic, |_| {});
    let data_dir = site.disk.data_dir();
    site.agent.reconfigure(|config| shim.install(config, &data_dir));
    site.produce(2, Pace { rate: Some(300), window: 100, ..Pace::default() });
    for _ in 0..rounds {
        let before = site.acked();
        site.begin(true);
        eventually("something is acknowledged", USUAL, || (site.acked() > before).then_some(()));
        shim.raise("sync", "EIO");
        shim.wait_hit(USUAL);
        pass(Duration::from_millis(random.u64(..1500)));
        site.cut();
        shim.clear();
    }
    site.close(test, rounds, &tally);
}

/// The test of the tests: an agent whose syncs do nothing has to lose what it acknowledged.
#[test]
fn without_syncs_the_cut_loses_events() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let mut site = Site::new(Disk::ext4(64), topic, |_| {});
    let shim = Shim::new();
    let data_dir = site.disk.data_dir();
    site.agent.reconfigure(|config| shim.install(config, &data_dir));
    shim.raise("lie", "EIO");
    site.begin(false);
    site.produce(1, Pace { count: 200, ..Pace::default() });
    let source = site.producers[0].source().to_owned();
    let count = site.producers.remove(0).finish(USUAL);
    assert!(shim.hits() > 0, "the agent synced nothing");
    site.cut();
    shim.clear();
    site.begin(true);
    wait_up(&site.agent);
    let verdict = tally.verdict_within(&up_to(&source, count), Duration::from_secs(3));
    report("without_syncs", 1, &verdict, "the loss is what this test wants");
    assert!(!verdict.lost.is_empty(), "the simulated power cut forgets nothing");
}
