//! Lost links, dead links, and brokers that come back with and without what they knew.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Bed, duplicates};
use crate::harness::flow::assert_no_duplicates;
use crate::harness::mqtt::{Beat, Publisher, Sensor, kind, payload_of};
use crate::harness::seed;
use crate::harness::services::{Persistence, Private, Shared};
use crate::harness::tap::{Seen, Way};
use crate::harness::wait::{USUAL, eventually};

const BACKLOG: Duration = Duration::from_secs(60);
const DOWN: &str = "MQTT link down";
const UP: &str = "MQTT link up";

/// Publishes events `range` of source `s`, and waits until the tap has seen them go to the agent.
#[track_caller]
fn publish(bed: &Bed, sensor: &mut Publisher, qos: u8, range: std::ops::Range<u64>) {
    let before = bed.tap.count(Way::ToAgent, kind::PUBLISH);
    let count = usize::try_from(range.end - range.start).unwrap();
    for n in range {
        sensor.send(qos, &bed.topic_of("probe/s/reading"), payload_of("s", n, "").as_bytes(), n).unwrap();
    }
    sensor.settle();
    bed.tap.wait_count(Way::ToAgent, kind::PUBLISH, before + count, USUAL);
}

/// Publishes of one connection.
fn publishes(bed: &Bed, connection: usize) -> Vec<Seen> {
    let mut seen = bed.tap.seen();
    seen.retain(|seen| seen.connection == connection && seen.kind == kind::PUBLISH);
    seen
}

fn wanted(count: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([("s".to_owned(), count)])
}

/// The link is lost between the receipt and the sync, so the broker sends the same packet ids again while the first
/// ones are under way. They are no second events, they are answered, and never on the connection that is gone.
fn a_redelivery_is_answered_and_no_second_event(protocol: u8, qos: u8, away_over_the_sync: bool) {
    const FIRST: u64 = 1;
    const ALL: u64 = 41;
    // Long enough to cut and connect again before the second sync.
    let mut bed = Bed::shared(|config| {
        config.set("mqtt.protocol", protocol).set("mqtt.qos", qos).set("buffer.commit_interval", "3s");
    });
    let answer = if qos == 2 { kind::PUBREC } else { kind::PUBACK };
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    publish(&bed, &mut sensor, qos, 0..FIRST);
    bed.tap.wait_count(Way::ToBroker, answer, 1, USUAL);
    publish(&bed, &mut sensor, qos, FIRST..ALL);
    assert_eq!(bed.tap.count(Way::ToBroker, answer), 1, "no answer before the sync");
    if away_over_the_sync {
        bed.tap.refuse();
    }
    bed.tap.cut();
    if away_over_the_sync {
        // In Kafka: so they are durable, and the answers were due while there was no connection.
        bed.arrived(&wanted(ALL), USUAL);
        bed.tap.accept();
    }
    bed.tap.wait_count(Way::ToBroker, answer, 41, USUAL);
    bed.tap.assert_answers_belong();
    let again = publishes(&bed, 1);
    assert_eq!(again.len(), 40);
    assert!(again.iter().all(|seen| seen.dup && seen.qos == qos));
    let mut ids: Vec<u16> = publishes(&bed, 0).iter().skip(1).map(|seen| seen.pkid).collect();
    ids.sort_unstable();
    let mut ids_again: Vec<u16> = again.iter().map(|seen| seen.pkid).collect();
    ids_again.sort_unstable();
    assert_eq!(ids, ids_again, "the broker uses the same packet ids");
    // Nothing is blocked: what follows is answered on the same connection.
    publish(&bed, &mut sensor, qos, ALL..ALL + 10);
    bed.tap.wait_count(Way::ToBroker, answer, 51, USUAL);
    assert_eq!(bed.tap.connections(), 2);
    let stored = bed.arrived(&wanted(ALL + 10), BACKLOG);
    assert_no_duplicates(&stored);
    let status = bed.last_status();
    assert!(status.contains("(mqtt 51, unix 0), refused 0,"), "{status}");
}

#[test]
fn a_redelivery_before_the_sync_is_no_second_event() {
    for (protocol, qos) in [(5, 1), (4, 1), (5, 2), (4, 2)] {
        a_redelivery_is_answered_and_no_second_event(protocol, qos, false);
    }
}

#[test]
fn an_answer_that_was_due_without_a_connection_goes_out_after_the_redelivery() {
    for (protocol, qos) in [(5, 1), (4, 2)] {
        a_redelivery_is_answered_and_no_second_event(protocol, qos, true);
    }
}

#[test]
fn a_lost_puback_costs_a_duplicate_and_no_event() {
    let bed = Bed::shared(|_| {});
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    bed.tap.hold(Way::ToBroker);
    publish(&bed, &mut sensor, 1, 0..20);
    bed.tap.wait_count(Way::ToBroker, kind::PUBACK, 20, USUAL);
    bed.tap.cut();
    bed.tap.pass(Way::ToBroker);
    bed.tap.wait_count(Way::ToBroker, kind::PUBACK, 40, USUAL);
    bed.tap.assert_answers_belong();
    eventually("the duplicates are in Kafka", USUAL, || {
        let stored = bed.arrived(&wanted(20), USUAL);
        (duplicates(&stored) == 20).then_some(())
    });
}

#[test]
fn a_lost_pubrec_costs_no_duplicate() {
    for protocol in [5, 4] {
        let bed = Bed::shared(|config| {
            config.set("mqtt.protocol", protocol).set("mqtt.qos", 2);
        });
        let mut sensor = Publisher::connect(&Shared::get().mqtt);
        bed.tap.hold(Way::ToBroker);
        publish(&bed, &mut sensor, 2, 0..20);
        bed.tap.wait_count(Way::ToBroker, kind::PUBREC, 20, USUAL);
        bed.tap.cut();
        bed.tap.pass(Way::ToBroker);
        bed.tap.wait_count(Way::ToBroker, kind::PUBCOMP, 20, USUAL);
        publish(&bed, &mut sensor, 2, 20..30);
        bed.tap.wait_count(Way::ToBroker, kind::PUBCOMP, 30, USUAL);
        let stored = bed.arrived(&wanted(30), USUAL);
        assert_no_duplicates(&stored);
    }
}

#[test]
fn qos_2_is_exactly_once_over_lost_links() {
    fastrand::seed(seed("qos_2_is_exactly_once"));
    for protocol in [5, 4] {
        let mut bed = Bed::shared(|config| {
            config.set("mqtt.protocol", protocol).set("mqtt.qos", 2);
        });
        let beat = Beat { qos: 2, rate: Some(1000), ..Beat::default() };
        let sensor = Sensor::start(&Shared::get().mqtt, &bed.prefix, "s", beat);
        for cuts in 1..=6 {
            sensor.wait_more(fastrand::u64(50..300));
            bed.tap.cut();
            eventually("the agent is back", USUAL, || (bed.tap.connections() > cuts).then_some(()));
        }
        let wanted = sensor.finish(USUAL);
        let stored = bed.arrived(&wanted, BACKLOG);
        assert_no_duplicates(&stored);
        bed.tap.assert_answers_belong();
        let status = bed.last_status();
        assert!(status.contains(&format!("(mqtt {}, unix 0), refused 0,", wanted["s"])), "{status}");
    }
}

/// Ends or kills a broker of its own with messages in flight.
fn restarted(persistence: Persistence, kill: bool) {
    let broker = Private::mosquitto(persistence);
    let bed = Bed::at(broker.address(), |_| {});
    let beat = Beat { rate: Some(1000), ..Beat::default() };
    let sensor = Sensor::start(broker.address(), &bed.prefix, "s", beat);
    sensor.wait_more(300);
    if kill {
        broker.kill();
        broker.start();
    } else {
        broker.end();
        broker.begin_again();
    }
    if persistence == Persistence::Off || kill {
        let taken = bed.tap.count(Way::ToAgent, kind::PUBLISH);
        sensor.wait_more(300);
        bed.tap.wait_count(Way::ToAgent, kind::PUBLISH, taken + 100, USUAL);
        drop(sensor);
    } else {
        sensor.wait_more(300);
        let wanted = sensor.finish(USUAL);
        let stored = bed.arrived(&wanted, BACKLOG);
        eprintln!("broker restarted: {wanted:?}, {} of them twice", duplicates(&stored));
    }
    if persistence == Persistence::Off {
        bed.tap.wait_count(Way::ToAgent, kind::SUBACK, 2, USUAL);
        // A session that is new to the broker counts its packet ids anew: the next event is none that was known.
        let mut sensor = Publisher::connect(broker.address());
        sensor.publish(1, &bed.topic_of("probe/last/reading"), payload_of("last", 0, ""));
        crate::harness::kafka::consume_until(&Shared::get().kafka, &bed.topic, USUAL, |records| {
            records.last().is_some_and(|record| record.key_text() == "last")
        });
    }
    bed.tap.assert_answers_belong();
    assert_eq!(
        (bed.agent.log_count(DOWN), bed.agent.log_count(UP)),
        (1, 2),
        "each change of the link is one line"
    );
}

#[test]
fn a_restarted_broker_with_persistence_has_lost_nothing() {
    restarted(Persistence::On, false);
}

#[test]
fn after_a_restart_without_persistence_the_agent_subscribes_again() {
    restarted(Persistence::Off, false);
    restarted(Persistence::Off, true);
}

#[test]
fn a_killed_broker_goes_on_with_the_agent() {
    restarted(Persistence::On, true);
}

#[test]
fn a_dead_link_is_noticed_and_nothing_is_lost() {
    let broker = Private::mosquitto(Persistence::On);
    let bed = Bed::at(broker.address(), |config| {
        config.set("mqtt.keep_alive", "5s");
    });
    let beat = Beat { rate: Some(200), ..Beat::default() };
    let sensor = Sensor::start(broker.address(), &bed.prefix, "s", beat);
    sensor.wait_more(200);
    broker.pause();
    // 1.5 times the keep-alive, and what a busy machine adds.
    bed.agent.wait_log(DOWN, Duration::from_secs(12));
    broker.resume();
    sensor.wait_more(200);
    let wanted = sensor.finish(USUAL);
    let stored = bed.arrived(&wanted, BACKLOG);
    eprintln!("dead link: {wanted:?}, {} of them twice", duplicates(&stored));
    bed.tap.assert_answers_belong();
    assert_eq!(
        (bed.agent.log_count(DOWN), bed.agent.log_count(UP)),
        (1, 2),
        "each change of the link is one line"
    );
}
