//! Calls that fail: a device with errors, a sync that fails, a file system that became read-only.
//!
//! The errors come from a preloaded library (`support::shim`): a device mapper target for it (dm-flakey) is missing on
//! many machines, and `mount -o remount,ro` is refused while a file is open for writing. What the kernel itself does
//! then, an emergency remount after an error of its own, is the last test.

use std::time::Duration;

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer, start_producers};
use crate::harness::kafka::create_topic;
use crate::harness::manager::Manager;
use crate::harness::services::{Private, Shared};
use crate::harness::wait::{USUAL, within};
use crate::support::disk::Disk;
use crate::support::round::{random, report, rounds};
use crate::support::shim::Shim;
use crate::support::tally::Tally;
use crate::support::{acked_by, acked_of, finish, wait_more, wait_stalled, wait_up};

/// How long nothing may be acknowledged while the fault lasts; the agent tries again once a second.
const HOLD: Duration = Duration::from_secs(3);

/// The disk has failed while Kafka hangs: nothing is acknowledged any more, and what was goes on to Kafka once that
/// answers.
#[track_caller]
fn assert_only_the_drain_goes_on(fault: &str, producers: &[Producer], kafka: &Private, tally: &Tally) {
    let acked = wait_stalled(producers);
    let late = within(HOLD, || (acked_by(producers) > acked).then_some(()));
    assert!(late.is_none(), "acknowledged with {fault}");
    let waiting = acked_of(producers);
    kafka.resume();
    let verdict = tally.verdict(&waiting);
    assert!(verdict.lost.is_empty(), "the drain does not go on: {} events wait", verdict.lost.len());
    assert_eq!(acked_by(producers), acked, "acknowledged with {fault}");
}

/// Nothing is acknowledged while calls of `class` fail, the drain goes on, and the agent recovers by itself.
fn calls_fail(test: &str, class: &str, errno: &str) {
    let (mut random, rounds) = (random(test), rounds(3));
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 2);
    let tally = Tally::start(kafka.address(), &topic);
    let shim = Shim::new();
    let mut agent = Agent::prepare(|config| {
        config.kafka(kafka.address(), &topic).set("limits.append_timeout", "1s");
    });
    let data_dir = agent.data_dir();
    agent.reconfigure(|config| shim.install(config, &data_dir));
    agent.begin();
    wait_up(&agent);
    let pace = Pace { rate: Some(400), window: 100, ..Pace::default() };
    let producers = start_producers(&agent, "error", 2, pace);
    for _ in 0..rounds {
        kafka.pause();
        wait_more(&producers, random.u64(100..800));
        shim.raise(class, errno);
        shim.wait_hit(USUAL);
        assert_only_the_drain_goes_on(&format!("{errno} from {class}"), &producers, &kafka, &tally);
        shim.clear();
        wait_more(&producers, 100);
    }
    let verdict = tally.verdict(&finish(producers));
    report(test, rounds, &verdict, "");
    verdict.assert_sound();
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn failing_syncs_acknowledge_nothing() {
    calls_fail("failing_syncs", "sync", "EIO");
}

#[test]
fn failing_writes_acknowledge_nothing() {
    calls_fail("failing_writes", "write", "EIO");
}

#[test]
fn no_space_for_any_write_acknowledges_nothing() {
    calls_fail("no_space_for_any_write", "space", "ENOSPC");
}

#[test]
fn a_file_system_that_turns_read_only_and_back_is_got_over() {
    calls_fail("turns_read_only", "all", "EROFS");
}

/// The agent's loop runs, but nothing becomes durable: the service manager hears no sign of life until that is over.
#[test]
fn a_disk_that_does_not_answer_silences_the_signs_of_life() {
    const WATCHDOG: Duration = Duration::from_secs(2);
    let topic = create_topic(&Shared::get().kafka, 2);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let disk = Disk::ext4(64);
    let mut agent = Agent::prepare(|config| {
        disk.install(config);
        config.shared_kafka(&topic);
    });
    let manager = Manager::of(&mut agent, WATCHDOG);
    agent.begin();
    assert_eq!(manager.next(USUAL).unwrap().0, "READY=1");
    let producers =
        start_producers(&agent, "hang", 2, Pace { rate: Some(400), window: 100, ..Pace::default() });
    wait_more(&producers, 200);
    manager.next_of("WATCHDOG=1", USUAL).expect("a sign of life");
    let frozen = disk.freeze();
    agent.wait_log("the buffer's writer does not answer", USUAL);
    manager.catch_up();
    let sign = manager.next_of("WATCHDOG=1", WATCHDOG * 2);
    assert_eq!(sign, None, "a manager would have ended the agent by now");
    drop(frozen);
    manager.next_of("WATCHDOG=1", USUAL).expect("a sign of life");
    wait_more(&producers, 200);
    let verdict = tally.verdict(&finish(producers));
    report("disk_does_not_answer", 1, &verdict, "");
    verdict.assert_sound();
    assert_eq!(agent.stop().code(), Some(0));
}

/// The kernel finds an error in its ext4 and makes it read-only for good: it takes a repair and a start.
#[test]
fn an_emergency_remount_loses_nothing() {
    let test = "emergency_remount";
    let (mut random, rounds) = (random(test), rounds(3));
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 2);
    let tally = Tally::start(kafka.address(), &topic);
    let disk = Disk::ext4_with(64, "loop,errors=remount-ro");
    let mut agent = Agent::start(|config| {
        disk.install(config);
        config.kafka(kafka.address(), &topic).set("limits.append_timeout", "1s");
    });
    let pace = Pace { rate: Some(400), window: 100, ..Pace::default() };
    let producers = start_producers(&agent, "error", 2, pace);
    for _ in 0..rounds {
        kafka.pause();
        wait_more(&producers, random.u64(100..800));
        disk.fail_read_only();
        assert_only_the_drain_goes_on("a read-only file system", &producers, &kafka, &tally);
        agent.term();
        let status = agent.wait_exit(USUAL * 2);
        // 74: it could not be closed in order.
        assert!(matches!(status.code(), Some(0 | 74)), "{status}");
        disk.repair();
        agent.begin();
        wait_up(&agent);
        wait_more(&producers, 100);
    }
    let verdict = tally.verdict(&finish(producers));
    report(test, rounds, &verdict, "");
    verdict.assert_sound();
    assert_eq!(agent.stop().code(), Some(0));
}
