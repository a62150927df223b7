//! A long life, compressed: outage after outage in a small buffer, so that generations come and go by the hundred. Disk
//! and memory stay flat.

use std::time::{Duration, Instant};

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, pass, start_producers};
use crate::harness::kafka::create_topic;
use crate::harness::services::Private;
use crate::harness::wait::{USUAL, eventually};
use crate::support::round::{factor, random, report};
use crate::support::tally::Tally;
use crate::support::{acked_by, finish};

/// Without `FAULT_ROUNDS`.
const LENGTH: Duration = Duration::from_secs(150);

const OUTAGE: Duration = Duration::from_secs(2);

/// Looks at an even life differ by 2 MiB and their middles by 0.2. A leak of 14 bytes for each event shows in the default
/// length.
const MEMORY_SLACK_KIB: u64 = 2 << 10;

/// What a drained newest generation may keep is up to 8 MiB, so looks differ by as much and their middles by up to half of
/// it. Generations that were never deleted would fill the quota of 16 MiB in the first minute.
const DISK_SLACK: u64 = 4 << 20;

/// The middle of each half of the looks: single peaks depend on the moment.
fn halves(looks: &[u64]) -> (u64, u64) {
    let middle = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part[part.len() / 2]
    };
    let (first, second) = looks.split_at(looks.len() / 2);
    (middle(first), middle(second))
}

#[test]
fn disk_and_memory_stay_flat() {
    let test = "soak";
    let mut random = random(test);
    let length = LENGTH * u32::try_from(factor()).unwrap();
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 2);
    let tally = Tally::start(kafka.address(), &topic);
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).set("limits.max_event_bytes", "64 KiB");
        config.set("buffer.max_bytes", "16 MiB");
    });
    let pace = Pace { rate: Some(1000), window: 1000, padding: 350, ..Pace::default() };
    let producers = start_producers(&agent, "soak", 2, pace);
    let begun = Instant::now();
    let (mut outages, mut disk, mut memory, mut peaks) = (0, Vec::new(), Vec::new(), Vec::new());
    while begun.elapsed() < length {
        kafka.pause();
        pass(OUTAGE + Duration::from_millis(random.u64(..1000)));
        peaks.push(agent.disk_bytes());
        kafka.resume();
        let acked = acked_by(&producers);
        eventually("the backlog is drained", USUAL * 2, || (tally.different() >= acked).then_some(()));
        outages += 1;
        // The first rounds fill caches and pools.
        if begun.elapsed() > length / 10 {
            disk.push(agent.disk_bytes());
            memory.push(agent.rss_kb());
        }
    }
    // A producer sends what was refused again, behind events that were taken meanwhile: then the order is not the agent's. A
    // busy machine can make an outage long enough for a full buffer.
    let is_refused = producers.iter().any(|producer| !producer.refused().is_empty());
    let verdict = tally.verdict(&finish(producers));
    let ((disk_1, disk_2), (memory_1, memory_2)) = (halves(&disk), halves(&memory));
    let more = format!(
        "{:?}; disk {disk_1} then {disk_2} bytes (peak {}), memory {memory_1} then {memory_2} KiB",
        begun.elapsed(),
        peaks.iter().max().unwrap()
    );
    report(test, outages, &verdict, &more);
    if is_refused {
        verdict.assert_sound();
    } else {
        verdict.assert_sound_and_in_order();
    }
    assert!(disk_2 <= disk_1 + DISK_SLACK, "the disk grows: {disk:?}");
    assert!(memory_2 <= memory_1 + MEMORY_SLACK_KIB, "the memory grows: {memory:?}");
    assert_eq!(agent.stop().code(), Some(0));
}
