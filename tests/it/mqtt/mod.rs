//! MQTT, from a sensor's publish at a real Mosquitto to the record in Kafka.
//!
//! The agent reaches the broker through a [`Tap`]: the promise is about acknowledgements, and these are seen nowhere
//! but on the wire.

mod deployed;
mod events;
mod faults;
mod full;
mod limits;
mod login;
mod session;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{self, Stored, kept_by_position};
use crate::harness::kafka::{consume_until, create_topic, read_all};
use crate::harness::services::Shared;
use crate::harness::tap::Tap;
use crate::harness::unique;
use crate::harness::wait::USUAL;

/// A bed of one agent, its line to a broker, and its topic on the shared Kafka.
struct Bed {
    agent: Agent,
    tap: Tap,
    /// First level of the sensors' topics.
    prefix: String,
    /// Kafka's.
    topic: String,
}

impl Bed {
    /// At the broker `url`, with the usual template below the prefix, until the subscription is confirmed.
    #[track_caller]
    fn at(url: &str, configure: impl FnOnce(&mut Config)) -> Self {
        let bed = Self::prepare(url, configure);
        bed.tap.wait_subscribed();
        bed
    }

    /// At the shared broker.
    #[track_caller]
    fn shared(configure: impl FnOnce(&mut Config)) -> Self {
        Self::at(&Shared::get().mqtt, configure)
    }

    /// As [`Bed::at`], without a wait for the subscription.
    #[track_caller]
    fn prepare(url: &str, configure: impl FnOnce(&mut Config)) -> Self {
        let tap = Tap::on(url);
        let prefix = unique("mqtt");
        let topic = create_topic(&Shared::get().kafka, 4);
        let agent = Agent::start(|config| {
            config.mqtt(&tap.url(), &[&format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}")]);
            config.shared_kafka(&topic);
            configure(config);
        });
        agent.wait_log("ready", USUAL);
        Self { agent, tap, prefix, topic }
    }

    fn topic_of(&self, rest: &str) -> String {
        format!("{}/{rest}", self.prefix)
    }

    /// Reads Kafka until events `0..n` of every source are there, and then everything; returns that in Kafka's order.
    #[track_caller]
    fn arrived(&self, wanted: &BTreeMap<String, u64>, patience: Duration) -> Vec<Stored> {
        arrived(&Shared::get().kafka, &self.topic, wanted, patience)
    }

    /// Stops the agent in order, if it runs, and starts it again. Its socket takes connections before it listens to
    /// signals; this waits for both.
    #[track_caller]
    fn restart(&mut self) {
        self.agent.restart();
        self.agent.wait_log("ready", USUAL);
    }

    /// Stops the agent in order and returns its last status line.
    #[track_caller]
    fn last_status(&mut self) -> String {
        let status = self.agent.stop();
        assert_eq!(status.code(), Some(0));
        self.agent
            .log()
            .into_iter()
            .rfind(|line| line.contains("buffered"))
            .expect("a status line at the end")
    }
}

/// See [`Bed::arrived`]. Checks what holds always: whole, in order, and nothing dropped by its position that was not
/// seen before.
#[track_caller]
fn arrived(brokers: &str, topic: &str, wanted: &BTreeMap<String, u64>, patience: Duration) -> Vec<Stored> {
    let count: u64 = wanted.values().sum();
    let (mut read, mut different) = (0, BTreeSet::new());
    consume_until(brokers, topic, patience, |records| {
        different.extend(records[read..].iter().map(Stored::of).map(|event| (event.source, event.n)));
        read = records.len();
        different.len() as u64 >= count
    });
    let records = read_all(brokers, topic);
    flow::assert_whole_and_in_order(&kept_by_position(&records), wanted);
    records.iter().map(Stored::of).collect()
}

/// How many records are there more than different events.
fn duplicates(stored: &[Stored]) -> usize {
    let different: BTreeSet<_> = stored.iter().map(|event| (&event.source, event.n)).collect();
    stored.len() - different.len()
}
