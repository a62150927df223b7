//! The session at the broker: what was published while the agent was away, dying or stopping.

use std::time::Duration;

use super::{Bed, duplicates};
use crate::harness::flow::assert_no_duplicates;
use crate::harness::mqtt::{Beat, Publisher, Sensor, kind, payload_of};
use crate::harness::seed;
use crate::harness::services::Shared;
use crate::harness::tap::Way;
use crate::harness::wait::USUAL;

/// Long enough for a backlog on a busy machine.
const BACKLOG: Duration = Duration::from_secs(60);

#[test]
fn what_was_published_while_the_agent_was_stopped_arrives_after_its_start() {
    for (protocol, qos) in [(5, 1), (4, 1), (5, 2)] {
        let mut bed = Bed::shared(|config| {
            config.set("mqtt.protocol", protocol).set("mqtt.qos", qos);
        });
        let sensor = Sensor::start(
            &Shared::get().mqtt,
            &bed.prefix,
            "away",
            Beat { qos, rate: Some(200), ..Beat::default() },
        );
        sensor.wait_more(50);
        assert_eq!(bed.agent.stop().code(), Some(0));
        sensor.wait_more(100);
        bed.restart();
        sensor.wait_more(50);
        let stored = bed.arrived(&sensor.finish(USUAL), BACKLOG);
        assert_no_duplicates(&stored);
        bed.tap.assert_answers_belong();
        assert!(bed.agent.log_contains("session=true"), "the broker kept the session");
    }
}

#[test]
fn a_killed_agent_has_lost_nothing_that_the_broker_took() {
    fastrand::seed(seed("a_killed_agent"));
    let mut bed = Bed::shared(|_| {});
    let beat = Beat { rate: Some(2000), window: 500, ..Beat::default() };
    let sensor = Sensor::start(&Shared::get().mqtt, &bed.prefix, "killed", beat);
    for _ in 0..6 {
        sensor.wait_more(fastrand::u64(100..600));
        bed.agent.kill9();
        bed.restart();
    }
    let wanted = sensor.finish(USUAL);
    let stored = bed.arrived(&wanted, BACKLOG);
    bed.tap.assert_answers_belong();
    eprintln!("killed six times: {wanted:?}, {} of them twice", duplicates(&stored));
}

#[test]
fn a_stop_in_the_middle_of_a_burst_leaves_nothing_half_done() {
    for protocol in [5, 4] {
        let mut bed = Bed::shared(|config| {
            config.set("mqtt.protocol", protocol);
        });
        let beat = Beat { window: 500, ..Beat::default() };
        let sensor = Sensor::start(&Shared::get().mqtt, &bed.prefix, "burst", beat);
        let mut is_orderly = true;
        for _ in 0..3 {
            sensor.wait_more(1000);
            // Up still: the broker was too busy to close within the time that a stop has.
            is_orderly &= bed.last_status().contains("mqtt down");
            bed.restart();
        }
        let wanted = sensor.finish(USUAL);
        let stored = bed.arrived(&wanted, BACKLOG);
        bed.tap.assert_answers_belong();
        let twice = duplicates(&stored);
        eprintln!(
            "protocol {protocol}, stopped three times: {wanted:?}, {twice} of them twice, in time: {is_orderly}"
        );
        if is_orderly {
            // What is answered before the goodbye does not come again.
            assert_eq!(twice, 0);
            // More than three: the input also says goodbye when it leaves a connection for want of room.
            assert!(bed.tap.count(Way::ToBroker, kind::DISCONNECT) >= 3, "each stop says goodbye");
        }
    }
}

#[test]
fn one_hundred_sources_keep_their_order() {
    const SOURCES: u64 = 100;
    const EACH: u64 = 200;
    let mut bed = Bed::shared(|_| {});
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    for n in 0..EACH {
        for source in 0..SOURCES {
            let topic = bed.topic_of(&format!("probe/s{source}/reading"));
            let payload = payload_of(&format!("s{source}"), n, "");
            sensor.send(1, &topic, payload.as_bytes(), n).unwrap();
        }
    }
    sensor.settle();
    let wanted = (0..SOURCES).map(|source| (format!("s{source}"), EACH)).collect();
    let stored = bed.arrived(&wanted, BACKLOG);
    assert_no_duplicates(&stored);
    bed.tap.assert_answers_belong();
    assert_eq!(bed.tap.connections(), 1);
    let status = bed.last_status();
    assert!(status.contains("in 20000 (mqtt 20000, unix 0), refused 0, buffered 0 "), "{status}");
}
