//! Agents of each mode of delivery under the same faults. At least once and exactly once: nothing that was acknowledged is
//! missing and each source keeps its order, whoever dies, hangs or is away. What the first one sends twice is counted, and
//! a consumer that goes by positions drops all of it; of the second one a `read_committed` consumer finds nothing twice.
//! At most once: nothing is there twice, and what is missing is in the loss ledger.
//!
//! A producer whose answer was lost in a crash sends the event again, and the buffer has it twice, at two positions:
//! what is counted here is positions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{
    Pace, Producer, Stored, assert_no_duplicates, assert_whole_and_in_order, finish, first_occurrences,
    kept_by_position, pass, start_producers,
};
use crate::harness::kafka::{Consumer, Record, consume_count, create_topic, read_all};
use crate::harness::services::{Private, Shared};
use crate::harness::wait::{USUAL, eventually};
use crate::harness::{seed, unique};

/// More than the shortest `kafka.transaction_timeout` and the brokers' look for old transactions every 10 s.
const OUTLIVED: Duration = Duration::from_secs(25);

const ALL: [Mode; 3] = [Mode::AtLeastOnce, Mode::ExactlyOnce, Mode::AtMostOnce];

/// `kafka.delivery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "the words of the key")]
pub(crate) enum Mode {
    AtLeastOnce,
    ExactlyOnce,
    AtMostOnce,
}

impl Mode {
    fn value(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "at_least_once",
            Self::ExactlyOnce => "exactly_once",
            Self::AtMostOnce => "at_most_once",
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

/// At most once: waits for the last of the `total` events that were taken, stops the agent in order, and finds everything
/// that is not in Kafka in the ledger, and each source in order.
#[track_caller]
fn assert_missing_is_counted(agent: &mut Agent, brokers: &str, topic: &str, total: u64) -> Vec<Record> {
    eventually("the last event is in Kafka", USUAL * 3, || {
        read_all(brokers, topic).iter().any(|record| Stored::of(record).position.1 == total).then_some(())
    });
    assert_eq!(agent.stop().code(), Some(0));
    let records = read_all(brokers, topic);
    let stored: Vec<Stored> = records.iter().map(Stored::of).collect();
    let found: BTreeSet<u64> = stored.iter().map(|event| event.position.1).collect();
    let (events, ranges) = agent.lost("undelivered");
    let counted: BTreeSet<u64> = ranges.iter().flat_map(|&(first, last)| first..=last).collect();
    let missing: Vec<u64> = (1..=total).filter(|seq| !found.contains(seq)).collect();
    eprintln!("at_most_once: {total} acknowledged, {} missing, {events} counted", missing.len());
    assert!(missing.iter().all(|seq| counted.contains(seq)), "missing {missing:?}, counted {ranges:?}");
    for (source, numbers) in first_occurrences(&stored) {
        assert!(numbers.is_sorted(), "{source} is out of order");
    }
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

fn stations<const COUNT: usize>(
    modes: [Mode; COUNT],
    brokers: &str,
    rate: u32,
    configure: impl Fn(&mut Config),
) -> [Station; COUNT] {
    modes.map(|mode| {
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

    /// Of an agent that lived on, so that nobody had to send anything twice: nothing is there twice, and what is not
    /// there was counted.
    #[track_caller]
    fn assert_delivered_once(mut self) {
        let acked = finish(self.producers);
        let records = if self.mode == Mode::AtMostOnce {
            assert_missing_is_counted(&mut self.agent, &self.brokers, &self.topic, acked.values().sum())
        } else {
            assert_delivered(self.mode, &mut self.agent, &self.brokers, &self.topic, &acked)
        };
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
        eventually(&what, USUAL * 4, || (reader.count() > before).then_some(()));
    }
}

#[test]
fn fifty_kills_of_the_agent() {
    const ROUNDS: usize = 50;
    let mut random = fastrand::Rng::with_seed(seed("fifty_kills_of_the_agent"));
    let mut stations = stations([Mode::AtLeastOnce, Mode::ExactlyOnce], &Shared::get().kafka, 200, |_| {});
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
    let stations = stations(ALL, kafka.address(), 200, |_| {});
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
    let stations = stations(ALL, kafka.address(), 150, |config| {
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
    let stations = stations([Mode::AtLeastOnce, Mode::ExactlyOnce], kafka.address(), 100, |config| {
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
    for station in stations {
        // Producers whose answer was due meanwhile sent the event again; the agent sent none.
        assert_eq!(station.assert_delivered(), 0);
    }
}

/// The brokers tell twins apart in exactly-once alone. Here each has a log of its own, so nobody takes an event of the one
/// for one of the other.
#[test]
fn two_agents_with_one_name_deliver_all_that_both_took() {
    let brokers = &Shared::get().kafka;
    for mode in [Mode::AtLeastOnce, Mode::AtMostOnce] {
        let (topic, name) = (create_topic(brokers, 1), unique("twin"));
        let mut acked = BTreeMap::new();
        let mut agents = [(), ()].map(|()| {
            Agent::start(|config| {
                config
                    .shared_kafka(&topic)
                    .set("agent.id", name.as_str())
                    .set("kafka.delivery", mode.value());
            })
        });
        let pace = Pace { count: 300, ..Pace::default() };
        let producers = agents.each_ref().map(|agent| start_producers(agent, "twin", 1, pace));
        producers.into_iter().for_each(|producers| acked.extend(finish(producers)));
        consume_count(brokers, &topic, 600, USUAL);
        for agent in &mut agents {
            assert_eq!(agent.stop().code(), Some(0));
        }
        let kept = kept_by_position(&read_all(brokers, &topic));
        assert_whole_and_in_order(&kept, &acked);
        assert_eq!(kept.len(), 600);
    }
}
