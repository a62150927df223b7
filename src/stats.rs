//! Counters, latencies and link states that every stage writes and whoever shows the agent's state reads.
//!
//! Plain atomics: a counter costs one relaxed add and nobody ever waits for a reader. Only what went wrong with a link is
//! behind a lock, taken when a link fails and when somebody looks.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::event::Stamp;
use crate::system::Clock;

/// Longest text of a link's failure that is kept, in bytes.
const FAILURE_BYTES_MAX: usize = 256;

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

/// What was dropped on its way to Redis, by reason.
#[derive(Debug, Default)]
pub struct Dropped {
    /// More came than Redis took: `redis.queue` was full.
    pub queue_full: Counter,
    /// There was no link, or no answer on it.
    pub link_down: Counter,
    /// Redis answered with an error.
    pub refused: Counter,
    /// It was for one more stream than `redis.streams_max`.
    pub too_many_streams: Counter,
}

impl Dropped {
    /// The sum so far.
    pub fn get(&self) -> u64 {
        let Self { queue_full, link_down, refused, too_many_streams } = self;
        [queue_full, link_down, refused, too_many_streams].into_iter().map(Counter::get).sum()
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

/// Upper bounds of a [`Latency`]'s buckets, in microseconds: from one sync on fast flash to a day's outage.
pub const LATENCY_BOUNDS_US: [u64; 20] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    3_600_000_000,
    21_600_000_000,
    86_400_000_000,
];

/// Buckets of a [`Latency`]: one for each bound, and one for what is above them all.
const LATENCY_BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;

/// Latencies of a round, gathered without an atomic: see [`Latency::take`].
#[derive(Debug, Default)]
pub struct Tally {
    counts: [u64; LATENCY_BUCKETS],
    sum_us: u64,
}

impl Tally {
    /// `events` took `us` microseconds each.
    pub fn add(&mut self, us: u64, events: u64) {
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += events;
        }
        self.sum_us = self.sum_us.saturating_add(us.saturating_mul(events));
    }
}

/// How long events took, as a histogram.
#[derive(Debug, Default)]
pub struct Latency {
    counts: [Counter; LATENCY_BUCKETS],
    sum_us: Counter,
}

impl Latency {
    /// `events` took `us` microseconds each.
    pub fn add(&self, us: u64, events: u64) {
        let mut tally = Tally::default();
        tally.add(us, events);
        self.take(&tally);
    }

    /// Adds what a round has gathered: one relaxed add for each bucket that something is in.
    pub fn take(&self, tally: &Tally) {
        for (counter, count) in self.counts.iter().zip(tally.counts).filter(|(_, count)| *count > 0) {
            counter.add(count);
        }
        if tally.sum_us > 0 {
            self.sum_us.add(tally.sum_us);
        }
    }

    /// Number of events in each bucket: up to each of [`LATENCY_BOUNDS_US`], then above them.
    pub fn counts(&self) -> [u64; LATENCY_BUCKETS] {
        self.counts.each_ref().map(Counter::get)
    }

    /// All latencies together, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us.get()
    }
}

/// What went wrong with a link last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In words; without secrets, cut at 256 bytes.
    pub what: String,
    /// When, by both clocks.
    pub at: Stamp,
}

/// A link's state, shared between the stage that owns the link and whoever shows it.
#[derive(Debug, Default)]
pub struct Link {
    state: AtomicU8,
    /// Microseconds since boot; 0 before the first change.
    since_boot_us: AtomicU64,
    failure: Mutex<Option<Failure>>,
    changed: Notify,
}

impl Link {
    /// The state now.
    pub fn get(&self) -> LinkState {
        match self.state.load(Ordering::Relaxed) {
            3 => LinkState::Misconfigured,
            2 => LinkState::Up,
            1 => LinkState::Down,
            _ => LinkState::Off,
        }
    }

    /// Sets the state and says whether it changed, so that a change is logged once.
    pub fn set(&self, state: LinkState) -> bool {
        let is_new = self.state.swap(state as u8, Ordering::Relaxed) != state as u8;
        if is_new {
            self.note_change();
        }
        is_new
    }

    /// Sets the state if it is `from`, whoever else sets it meanwhile, and says whether it was.
    pub fn change(&self, from: LinkState, to: LinkState) -> bool {
        let changed = self.state.compare_exchange(from as u8, to as u8, Ordering::Relaxed, Ordering::Relaxed);
        if changed.is_ok() {
            self.note_change();
        }
        changed.is_ok()
    }

    fn note_change(&self) {
        self.since_boot_us.store(Clock::default().now().boot_us, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Returns when the state has changed since this was called, awaited or not.
    ///
    /// Cancel safe: yes; to miss no change, call it before the look at the state.
    pub fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Since when it is in its state, microseconds since boot; `None` before the first change.
    pub fn since_boot_us(&self) -> Option<u64> {
        Some(self.since_boot_us.load(Ordering::Relaxed)).filter(|us| *us > 0)
    }

    /// Notes what went wrong; it stays after the link is up again.
    pub fn failed(&self, what: &str) {
        let end = what.floor_char_boundary(FAILURE_BYTES_MAX);
        let what = what.get(..end).unwrap_or_default().to_owned();
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Failure { what, at: Clock::default().now() });
    }

    /// What went wrong last.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    /// Pings that were dropped.
    pub pings_dropped: Dropped,
    /// Pings in whose place a later one of the same source and type went (`redis.coalesce`).
    pub pings_coalesced: Counter,
    /// Pings older than `redis.max_age` when their turn came.
    pub pings_stale: Counter,
    /// Entries that Redis added to a stream.
    pub stream_entries_out: Counter,
    /// As [`Stats::pings_dropped`], of entries for streams.
    pub stream_entries_dropped: Dropped,
    /// As [`Stats::pings_stale`], of entries for streams.
    pub stream_entries_stale: Counter,
    /// Times that `uplink.command` was started.
    pub uplink_runs: Counter,
    /// Of them those that could not be run, ended with an error or took too long.
    pub uplink_failures: Counter,
    /// From admission until durable, each event with the time of the oldest of its batch.
    pub durable_latency: Latency,
    /// From admission until Kafka's delivery report, for events of this boot.
    pub kafka_latency: Latency,
    /// State of the link to the MQTT broker.
    pub mqtt: Link,
    /// State of the link to Kafka.
    pub kafka: Link,
    /// State of the link to Redis.
    pub redis: Link,
    /// Whether HTTP is served: down while its port is taken.
    pub http: Link,
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
    fn a_latency_is_counted_in_its_bucket_and_in_the_sum() {
        let latency = Latency::default();
        let mut tally = Tally::default();
        tally.add(1_000, 2);
        tally.add(1_001, 1);
        tally.add(u64::MAX / 2, 1);
        latency.take(&tally);
        latency.take(&Tally::default());
        let counts = latency.counts();
        assert_eq!((counts[0], counts[1], counts[20], counts.iter().sum::<u64>()), (2, 1, 1, 4));
        assert_eq!(latency.sum_us(), u64::MAX / 2 + 3_001);
        assert!(LATENCY_BOUNDS_US.is_sorted());
    }

    #[test]
    fn a_link_remembers_since_when_and_what_went_wrong() {
        let link = Link::default();
        assert_eq!((link.since_boot_us(), link.failure()), (None, None));
        link.set(LinkState::Down);
        let since = link.since_boot_us();
        link.set(LinkState::Down);
        assert!(since.is_some() && link.since_boot_us() == since);
        link.failed(&"ä".repeat(FAILURE_BYTES_MAX));
        link.set(LinkState::Up);
        assert_eq!(link.failure().unwrap().what.len(), FAILURE_BYTES_MAX);
    }

    #[test]
    fn a_link_tells_a_change_once() {
        let link = Link::default();
        assert_eq!(link.get(), LinkState::Off);
        assert!(link.set(LinkState::Down));
        assert!(!link.set(LinkState::Down));
        assert!(link.set(LinkState::Up));
        assert_eq!(link.get().word(), "up");
        assert!(!link.change(LinkState::Down, LinkState::Misconfigured));
        assert!(link.change(LinkState::Up, LinkState::Down));
        assert_eq!(link.get(), LinkState::Down);
    }

    #[tokio::test]
    async fn a_change_behind_the_call_is_not_missed() {
        let link = Link::default();
        let (set, soon) = (link.changed(), std::time::Duration::from_secs(60));
        link.set(LinkState::Up);
        tokio::time::timeout(soon, set).await.unwrap();
        let changed = link.changed();
        link.change(LinkState::Up, LinkState::Down);
        tokio::time::timeout(soon, changed).await.unwrap();
        let again = tokio::time::timeout(std::time::Duration::ZERO, link.changed()).await;
        assert!(again.is_err(), "nothing changed since");
    }
}
