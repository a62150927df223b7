//! Counters and link states that every stage writes and the status line, `STATUS=` and the log read.
//!
//! Plain atomics: a counter costs one relaxed add and nobody ever waits for a reader.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tokio::sync::Notify;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that only grows, whose growth somebody waits for to write it down.
#[derive(Debug, Default)]
pub struct Watched {
    sum: Counter,
    settled: Counter,
    grown: Notify,
}

impl Watched {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if n > 0 {
            self.sum.add(n);
            self.grown.notify_one();
        }
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.sum.get()
    }

    /// What was added and not settled.
    pub fn unsettled(&self) -> u64 {
        self.sum.get().saturating_sub(self.settled.get())
    }

    /// `n` of what was added is written down.
    pub fn settle(&self, n: u64) {
        self.settled.add(n);
    }

    /// Returns when something was added since the last time it returned. For one waiter.
    ///
    /// Cancel safe: yes.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }
}

/// A number that goes up and down; 0 stands for "none".
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a stage knows about its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkState {
    /// The input or sink is not configured.
    Off = 0,
    /// Not connected, or the last answer was an error; it is being tried.
    Down = 1,
    /// Connected and answering.
    Up = 2,
    /// Connected, and refused for a setting that somebody has to mend (a right, a topic); it is being tried.
    Misconfigured = 3,
}

impl LinkState {
    /// One word for logs and the status line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Down => "down",
            Self::Up => "up",
            Self::Misconfigured => "MISCONFIGURED",
        }
    }
}

/// A link's state, shared between the stage that owns the link and whoever shows it.
#[derive(Debug, Default)]
pub struct Link(AtomicU8);

impl Link {
    /// The state now.
    pub fn get(&self) -> LinkState {
        match self.0.load(Ordering::Relaxed) {
            3 => LinkState::Misconfigured,
            2 => LinkState::Up,
            1 => LinkState::Down,
            _ => LinkState::Off,
        }
    }

    /// Sets the state and says whether it changed, so that a change is logged once.
    pub fn set(&self, state: LinkState) -> bool {
        self.0.swap(state as u8, Ordering::Relaxed) != state as u8
    }
}

/// All counters of one agent since its start. Units: events, unless the name says otherwise.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events durable in the buffer that came over MQTT.
    pub mqtt_in: Counter,
    /// Events durable in the buffer that came over the Unix socket.
    pub unix_in: Counter,
    /// Publishes and lines that cannot become an event (bad topic, not JSON, missing field).
    pub invalid: Watched,
    /// Publishes and lines above `limits.max_event_bytes`.
    pub too_large: Watched,
    /// Events refused because the buffer was full or not writable in time.
    pub refused: Watched,
    /// Events that a route with `drop = true` left out.
    pub dropped: Counter,
    /// Events that a route with `sample` left out.
    pub sampled_out: Counter,
    /// Events that a route with `report = "changes"` left out.
    pub filtered: Counter,
    /// Acknowledgements of an older MQTT connection that were dropped; the broker delivers those again.
    pub mqtt_acks_dropped: Counter,
    /// QoS 0 publishes dropped because the buffer could not take them in time (nobody waits for an answer).
    pub mqtt_qos0_dropped: Watched,
    /// Connections of the Unix socket open now: opened minus closed.
    pub unix_opened: Counter,
    /// See [`Stats::unix_opened`].
    pub unix_closed: Counter,
    /// Events that Kafka confirmed.
    pub kafka_out: Counter,
    /// Events given up under `delivery = "at_most_once"` because Kafka refused them.
    pub kafka_lost: Watched,
    /// Events whose topic was not allowed and that went to the fallback topic.
    pub fallback_topic: Counter,
    /// When the oldest event that Kafka has not confirmed was taken, microseconds since boot.
    pub oldest_boot_us: Gauge,
    /// Events that Kafka rejected alone and that are in the dead-letter topic or store.
    pub dead_lettered: Watched,
    /// Dead letters that went for newer ones, because the store was full.
    pub dead_letters_evicted: Counter,
    /// Transactions that Kafka committed.
    pub kafka_transactions: Counter,
    /// Times that the drain had to go back and send again.
    pub kafka_rewinds: Counter,
    /// Pings handed to Redis and answered.
    pub pings_out: Counter,
    /// Pings dropped: queue full, link down, or no answer in time.
    pub pings_dropped: Counter,
    /// Pings in whose place a later one of the same source and type went (`redis.coalesce`).
    pub pings_coalesced: Counter,
    /// Pings older than `redis.max_age` when their turn came.
    pub pings_stale: Counter,
    /// Entries that Redis added to a stream.
    pub stream_entries_out: Counter,
    /// As [`Stats::pings_dropped`], of entries for streams.
    pub stream_entries_dropped: Counter,
    /// As [`Stats::pings_stale`], of entries for streams.
    pub stream_entries_stale: Counter,
    /// State of the link to the MQTT broker.
    pub mqtt: Link,
    /// State of the link to Kafka.
    pub kafka: Link,
    /// State of the link to Redis.
    pub redis: Link,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_grew_is_settled_once() {
        let lost = Watched::default();
        lost.add(0);
        lost.add(2);
        lost.add(3);
        lost.grown().await;
        assert_eq!((lost.get(), lost.unsettled()), (5, 5));
        lost.settle(5);
        assert_eq!((lost.get(), lost.unsettled()), (5, 0));
        let again = tokio::time::timeout(std::time::Duration::ZERO, lost.grown()).await;
        assert!(again.is_err(), "nothing was added since");
    }

    #[test]
    fn a_link_tells_a_change_once() {
        let link = Link::default();
        assert_eq!(link.get(), LinkState::Off);
        assert!(link.set(LinkState::Down));
        assert!(!link.set(LinkState::Down));
        assert!(link.set(LinkState::Up));
        assert_eq!(link.get().word(), "up");
    }
}
