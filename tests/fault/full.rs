//! A disk that others fill, and a buffer at its own limit.

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer, start_producers};
use crate::harness::kafka::create_topic;
use crate::harness::services::{Private, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};
use crate::support::disk::Disk;
use crate::support::round::{random, report, rounds};
use crate::support::tally::{Acked, Tally};
use crate::support::{Nowhere, acked_of, finish, wait_more, wait_stalled, wait_up};

const MIB: u64 = 1 << 20;

/// Somebody else's file takes the last byte while events come and Kafka hangs; Kafka comes back first, then the room.
fn filled_by_somebody_else(test: &str, disk: &Disk) {
    let (mut random, laps) = (random(test), rounds(5));
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 2);
    let tally = Tally::start(kafka.address(), &topic);
    let mut agent = Agent::start(|config| {
        disk.install(config);
        config.set("buffer.max_bytes", "24 MiB").set("limits.append_timeout", "1s");
        config.kafka(kafka.address(), &topic);
    });
    let producers = start_producers(
        &agent,
        "full",
        2,
        Pace { rate: Some(600), window: 100, padding: 300, ..Pace::default() },
    );
    for _ in 0..laps {
        kafka.pause();
        wait_more(&producers, random.u64(300..1500));
        let filler = disk.fill(0);
        wait_stalled(&producers);
        let acked = acked_of(&producers);
        kafka.resume();
        let verdict = tally.verdict(&acked);
        assert!(
            verdict.lost.is_empty(),
            "with the disk full the drain does not go on: {} events wait",
            verdict.lost.len()
        );
        drop(filler);
        wait_more(&producers, 300);
    }
    let verdict = tally.verdict(&finish(producers));
    report(test, laps, &verdict, "");
    verdict.assert_sound();
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn tmpfs_filled_by_somebody_else_while_the_agent_works() {
    filled_by_somebody_else("tmpfs_filled", &Disk::tmpfs(32));
}

#[test]
fn ext4_filled_by_somebody_else_while_the_agent_works() {
    filled_by_somebody_else("ext4_filled", &Disk::ext4(32));
}

#[test]
fn restart_with_a_full_buffer_and_one_mebibyte_of_free_disk() {
    let test = "restart_with_a_full_buffer";
    let rounds = rounds(2);
    let topic = create_topic(&Shared::get().kafka, 2);
    let tally = Tally::start(&Shared::get().kafka, &topic);
    let nowhere = Nowhere::new();
    let disk = Disk::ext4(32);
    let mut agent = Agent::prepare(|config| {
        disk.install(config);
        config.set("buffer.max_bytes", "16 MiB").set("limits.append_timeout", "500ms");
    });
    let mut acked = Acked::new();
    for _ in 0..rounds {
        agent.reconfigure(|config| {
            config.kafka(nowhere.address(), &topic);
        });
        agent.begin();
        wait_up(&agent);
        let producers =
            start_producers(&agent, "full", 2, Pace { window: 50, padding: 2000, ..Pace::default() });
        eventually("the buffer is full", USUAL * 2, || {
            let is_full =
                |producer: &Producer| producer.refused().iter().any(|refusal| refusal.code == "buffer_full");
            producers.iter().all(is_full).then_some(())
        });
        for producer in producers {
            acked.insert(producer.source().to_owned(), producer.abandon());
        }
        assert_eq!(agent.stop().code(), Some(0));
        let filler = disk.fill(MIB);
        agent.reconfigure(|config| {
            config.shared_kafka(&topic);
        });
        agent.begin();
        wait_up(&agent);
        let verdict = tally.verdict(&acked);
        assert!(verdict.lost.is_empty(), "{} events are not delivered", verdict.lost.len());
        // Room came back with the drain; with the other file still there.
        let producers = start_producers(&agent, "full", 1, Pace { count: 100, ..Pace::default() });
        acked.append(&mut finish(producers));
        drop(filler);
        assert_eq!(agent.stop().code(), Some(0));
    }
    let verdict = tally.verdict(&acked);
    report(test, rounds, &verdict, "");
    verdict.assert_sound();
}

#[test]
fn delivered_data_that_still_takes_space_never_counts_as_full() {
    let test = "delivered_data_never_counts";
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 2);
    let tally = Tally::start(kafka.address(), &topic);
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).set("buffer.max_bytes", "8 MiB");
        config.set("limits.append_timeout", "1s").set("limits.max_event_bytes", "64 KiB");
    });
    let paddings = [60, 1000, 6000, 30_000, 300].repeat(rounds(1));
    let mut acked = Acked::new();
    for &padding in &paddings {
        kafka.pause();
        let producers = start_producers(&agent, "full", 2, Pace { window: 20, padding, ..Pace::default() });
        eventually("the buffer is full", USUAL * 2, || {
            producers.iter().all(|producer| !producer.refused().is_empty()).then_some(())
        });
        for producer in producers {
            acked.insert(producer.source().to_owned(), producer.abandon());
        }
        kafka.resume();
        let verdict = tally.verdict(&acked);
        assert!(verdict.lost.is_empty(), "{} events are not delivered", verdict.lost.len());
        // An eighth of the buffer, at once.
        let pace = Pace { window: 50, padding, count: MIB / (padding as u64 + 100), ..Pace::default() };
        let producer = Producer::start(&agent.socket(), &unique("again"), pace);
        eventually("all of it is acknowledged", USUAL, || (producer.acked() == pace.count).then_some(()));
        assert_eq!(producer.refused(), [], "events of {padding} bytes behind a drained buffer");
        acked.append(&mut finish(vec![producer]));
    }
    let verdict = tally.verdict(&acked);
    report(test, paddings.len(), &verdict, "");
    verdict.assert_sound();
    assert_eq!(agent.stop().code(), Some(0));
}
