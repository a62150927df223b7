//! Two agents under the same faults, one of which delivers at least once and one exactly once: nothing that was
//! acknowledged is missing and each source keeps its order, whoever dies, hangs or is away. What the first one sends
//! twice is counted, and a consumer that goes by positions drops all of it; of the second one a `read_committed`
//! consumer finds nothing twice.
//!
//! A producer whose answer was lost in a crash sends the event again, and the buffer has it twice, at two positions:
//! what is counted here is positions.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{
    Pace, Producer, Stored, assert_no_duplicates, assert_whole_and_in_order, finish, first_occurrences,
    kept_by_position, pass, start_producers,
};
use crate::harness::kafka::{Consumer, Record, create_topic, read_all};
use crate::harness::seed;
use crate::harness::services::{Private, Shared};
use crate::harness::wait::{USUAL, eventually};

/// More than the shortest `kafka.transaction_timeout` and the brokers' look for old transactions every 10 s.
const OUTLIVED: Duration = Duration::from_secs(25);

/// `kafka.delivery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    AtLeastOnce,
    ExactlyOnce,
}

impl Mode {
    fn value(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "at_least_once",
            Self::ExactlyOnce => "exactly_once",
        }
    }
}

/// Waits until everything acknowledged is in Kafka, stops the agent in order, and looks at the whole topic: what is
/// left after dropping by position has each source whole and in order, and in exactly-once nothing was dropped.
#[track_caller]
pub(crate) fn assert_delivered(
    mode: Mode,
    agent: &mut Agent,
    brokers: &str,
    topic: &str,
    acked: &BTreeMap<String, u64>,
) -> Vec<Record> {
    eventually("everything acknowledged is in Kafka", USUAL * 3, || {
        let stored: Vec<Stored> = read_all(brokers, topic).iter().map(Stored::of).collect();
        let found = first_occurrences(&stored);
        let is_there =
            |(source, count): (&String, &u64)| found.get(source).map_or(0, Vec::len) as u64 >= *count;
        acked.iter().all(is_there).then_some(())
    });
    assert_eq!(agent.stop().code(), Some(0));
    let records = read_all(brokers, topic);
    let kept = kept_by_position(&records);
    let duplicates = records.len() - kept.len();
    assert_whole_and_in_order(&kept, acked);
    assert!(acked.values().all(|count| *count > 100), "the producers were hardly served: {acked:?}");
    eprintln!(
        "{}: {} acknowledged, {} records, {duplicates} of them dropped by position",
        mode.value(),
        acked.values().sum::<u64>(),
        records.len()
    );
    assert!(mode == Mode::AtLeastOnce || duplicates == 0, "{duplicates} positions are there twice");
    records
}

/// An agent, its topic and its producers, which never rest.
struct Station {
    mode: Mode,
    agent: Agent,
    brokers: String,
    topic: String,
    producers: Vec<Producer>,
}

/// One of each mode.
fn stations(brokers: &str, rate: u32, configure: impl Fn(&mut Config)) -> [Station; 2] {
    [Mode::AtLeastOnce, Mode::ExactlyOnce].map(|mode| {
        let topic = create_topic(brokers, 3);
        let agent = Agent::start(|config| {
            config.kafka(brokers, &topic).set("kafka.delivery", mode.value());
            configure(config);
        });
        let pace = Pace { rate: Some(rate), window: 1000, ..Pace::default() };
        let producers = start_producers(&agent, mode.value(), 3, pace);
        Station { mode, agent, brokers: brokers.to_owned(), topic, producers }
    })
}

impl Station {
    /// See [`assert_delivered`]. Answers how many records a consumer drops.
    #[track_caller]
    fn assert_delivered(mut self) -> usize {
        let acked = finish(self.producers);
        let records = assert_delivered(self.mode, &mut self.agent, &self.brokers, &self.topic, &acked);
        records.len() - kept_by_position(&records).len()
    }

    /// As [`Station::assert_delivered`], of an agent that lived on: nobody had to send anything twice.
    #[track_caller]
    fn assert_delivered_once(mut self) {
        let acked = finish(self.producers);
        let records = assert_delivered(self.mode, &mut self.agent, &self.brokers, &self.topic, &acked);
        assert_no_duplicates(&records.iter().map(Stored::of).collect::<Vec<_>>());
    }
}

/// Lets `fault` happen once something is on its way from each, and waits until the drain of each goes on behind it.
#[track_caller]
fn assert_got_over(stations: &[Station], fault: impl FnOnce()) {
    let start = |station: &Station| Consumer::start(&station.brokers, &station.topic);
    let readers: Vec<Consumer> = stations.iter().map(start).collect();
    for reader in &readers {
        reader.wait_count(200, USUAL);
    }
    fault();
    for (station, reader) in stations.iter().zip(&readers) {
        let before = reader.count();
        let what = format!("the drain resumes, {}", station.mode.value());
        eventually(&what, USUAL * 2, || (reader.count() > before).then_some(()));
    }
}

#[test]
fn fifty_kills_of_the_agent() {
    const ROUNDS: usize = 50;
    let mut random = fastrand::Rng::with_seed(seed("fifty_kills_of_the_agent"));
    let mut stations = stations(&Shared::get().kafka, 200, |_| {});
    for _ in 0..ROUNDS {
        // Long enough for some transactions, short enough that many a kill comes into the first.
        pass(Duration::from_millis(random.u64(5..1500)));
        for station in &mut stations {
            station.agent.kill9();
            station.agent.begin();
        }
        for station in &mut stations {
            if random.bool() {
                station.agent.wait_ready();
            }
        }
    }
    for mut station in stations {
        station.agent.wait_ready();
        let mode = station.mode;
        let dropped = station.assert_delivered();
        // Or the dropping was not looked at.
        assert_eq!(dropped > 0, mode == Mode::AtLeastOnce, "{dropped}");
    }
}

#[test]
fn ten_kills_of_the_broker() {
    let mut random = fastrand::Rng::with_seed(seed("ten_kills_of_the_broker"));
    let kafka = Private::kafka();
    let stations = stations(kafka.address(), 200, |_| {});
    for _ in 0..10 {
        pass(Duration::from_millis(random.u64(500..3000)));
        kafka.kill();
        pass(Duration::from_millis(random.u64(100..2000)));
        kafka.start();
    }
    stations.into_iter().for_each(Station::assert_delivered_once);
}

#[test]
fn a_broker_that_hangs_for_a_minute() {
    let kafka = Private::kafka();
    let stations = stations(kafka.address(), 150, |config| {
        config.set("kafka.transaction_timeout", "10s");
    });
    assert_got_over(&stations, || {
        kafka.pause();
        pass(Duration::from_secs(60));
        kafka.resume();
    });
    stations.into_iter().for_each(Station::assert_delivered_once);
}

#[test]
fn an_agent_that_stands_still_for_longer_than_its_transaction_may_last() {
    let kafka = Private::kafka();
    let stations = stations(kafka.address(), 100, |config| {
        // So long that a transaction is open whenever the agent is stopped.
        config.set("kafka.transaction_timeout", "10s").set("kafka.transaction_interval", "2s");
    });
    assert_got_over(&stations, || {
        for signal in [Signal::STOP, Signal::CONT] {
            stations.iter().for_each(|station| station.agent.signal(signal));
            if signal == Signal::STOP {
                pass(OUTLIVED);
            }
        }
    });
    stations.into_iter().for_each(Station::assert_delivered_once);
}
