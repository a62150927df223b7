//! SIGKILL at any time, with producers on both inputs and the drain to Kafka at work.

use std::time::Duration;

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, pass, start_producers};
use crate::harness::kafka::create_topic;
use crate::harness::mqtt::{Beat, Sensor};
use crate::harness::services::Shared;
use crate::harness::tap::Tap;
use crate::harness::unique;
use crate::harness::wait::USUAL;
use crate::support::round::{random, report, rounds};
use crate::support::tally::{Tally, up_to};
use crate::support::{finish, wait_up};

const SOCKET_PRODUCERS: usize = 2;

#[test]
fn killed_at_any_time_nothing_that_either_input_acknowledged_is_lost() {
    let test = "killed_at_any_time";
    let (mut random, rounds) = (random(test), rounds(100));
    let shared = Shared::get();
    let topic = create_topic(&shared.kafka, 3);
    let tally = Tally::start(&shared.kafka, &topic);
    let tap = Tap::on(&shared.mqtt);
    let prefix = unique("kill");
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic);
        config.mqtt(&tap.url(), &[&format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}")]);
    });
    // The broker keeps what it takes for the agent from the first subscription on.
    tap.wait_subscribed();
    let beat = Beat { rate: Some(300), window: 300, ..Beat::default() };
    let sensor = Sensor::start(&shared.mqtt, &prefix, &unique("sensor"), beat);
    let pace = Pace { rate: Some(300), window: 300, ..Pace::default() };
    let producers = start_producers(&agent, "program", SOCKET_PRODUCERS, pace);
    for _ in 0..rounds {
        pass(Duration::from_millis(random.u64(5..700)));
        agent.kill9();
        agent.begin();
        // Every other time it is killed while it may still be starting.
        if random.bool() {
            wait_up(&agent);
        }
    }
    wait_up(&agent);
    let mut acked = finish(producers);
    for (source, count) in sensor.finish(USUAL * 3) {
        acked.append(&mut up_to(&source, count));
    }
    let verdict = tally.verdict(&acked);
    report(test, rounds, &verdict, "");
    verdict.assert_sound_and_in_order();
    assert!(verdict.acknowledged > 50 * rounds as u64, "the producers were hardly served");
    assert_eq!(agent.stop().code(), Some(0));
}
