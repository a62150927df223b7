//! The brokers' clock, as far as a topic tells of it.
//!
//! Kafka has no question for the time. What it tells is the first record that is not older than a given time, and for that
//! the right to describe the topic is enough. Of a topic that nobody writes to just now it tells how new its newest record
//! is, and whose clock that was: the brokers' for a topic that they stamp and for the marker of a transaction, a producer's
//! otherwise.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::kafka::Options;
use super::kafka_probe::{Trouble, client_config};

/// Clocks that differ by less agree: it takes a moment to ask, and nothing in Kafka has a limit that close.
pub const TOLERANCE: Duration = Duration::from_secs(10);

/// Times are looked for up to so far ahead: a clock that is further off is told as this.
const HORIZON_MS: i64 = 100 * 365 * 24 * 3_600_000;

/// To so many milliseconds a difference is told; each halving is a question more.
const GRAIN_MS: i64 = 1000;

/// Most partitions of a topic that are asked.
const PARTITIONS_MAX: i32 = 16;

/// What a topic's times say of this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    /// Nothing against it.
    None,
    /// The other clock is ahead of this machine's.
    Ahead(Duration),
    /// The other clock is behind this machine's.
    Behind(Duration),
}

/// By how much the newest record of `topic`, which has `partitions`, is ahead of this machine's clock; only that
/// direction shows, for a topic may be quiet. `None`: the brokers do not tell within `timeout`, for which it blocks at
/// most.
pub fn newest_record(options: &Options, topic: &str, partitions: usize, timeout: Duration) -> Option<Skew> {
    let options = Options { transactional: None, ..options.clone() };
    let consumer: BaseConsumer<Trouble> =
        client_config(&options).ok()?.create_with_context(Trouble::of(&options)).ok()?;
    let deadline = Instant::now() + timeout;
    let mut newest = Skew::None;
    for partition in 0..i32::try_from(partitions).unwrap_or(PARTITIONS_MAX).min(PARTITIONS_MAX) {
        let times = Times { consumer: &consumer, topic, partition, deadline };
        let now = now_ms();
        if times.first_from(now + tolerance_ms()).ok()?.is_some() {
            let ahead = between(now, times.newest(now, now + HORIZON_MS).ok()?);
            if newest == Skew::None || matches!(newest, Skew::Ahead(known) if known < ahead) {
                newest = Skew::Ahead(ahead);
            }
        }
    }
    Some(newest)
}

/// One partition's times.
pub(super) struct Times<'a, C: ConsumerContext> {
    pub(super) consumer: &'a BaseConsumer<C>,
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) deadline: Instant,
}

impl<C: ConsumerContext> Times<'_, C> {
    /// The offset behind the last record.
    pub(super) fn end(&self) -> KafkaResult<i64> {
        self.consumer.fetch_watermarks(self.topic, self.partition, self.left()).map(|(_, end)| end)
    }

    /// What the marker that was written at `end` or behind it, between the two times of this machine, says of the clocks.
    /// `None`: the brokers do not tell, or it is not there.
    pub(super) fn of_marker(&self, end: i64, (begun, ended): (i64, i64)) -> Option<Skew> {
        if self.end().ok()? <= end {
            return None;
        }
        let from = begun - tolerance_ms();
        if self.first_from(from).ok()?.is_none() {
            return Some(Skew::Behind(between(self.newest(0, from).ok()?, begun)));
        }
        match self.first_from(ended + tolerance_ms()).ok()? {
            // One from before the marker says nothing of the brokers: a producer's clock was ahead.
            Some(offset) if offset >= end => {
                Some(Skew::Ahead(between(ended, self.newest(ended, ended + HORIZON_MS).ok()?)))
            }
            _ => Some(Skew::None),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// The first offset that has this time or a later one.
    fn first_from(&self, time_ms: i64) -> KafkaResult<Option<i64>> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(self.topic, self.partition, Offset::Offset(time_ms.max(0)))?;
        let found = self.consumer.offsets_for_times(asked, self.left())?;
        let Some(element) = found.elements().into_iter().next() else { return Ok(None) };
        element.error()?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    }

    /// The newest time between two of which the first has one behind it and the second has none.
    fn newest(&self, mut from: i64, mut to: i64) -> KafkaResult<i64> {
        while to - from > GRAIN_MS {
            let middle = from + (to - from) / 2;
            if self.first_from(middle)?.is_some() { from = middle } else { to = middle }
        }
        Ok(from)
    }

    /// Never zero, which would be an endless wait to librdkafka's eyes in places.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }
}

/// This machine's time in milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn tolerance_ms() -> i64 {
    i64::try_from(TOLERANCE.as_millis()).unwrap_or(i64::MAX)
}

fn between(earlier: i64, later: i64) -> Duration {
    Duration::from_secs(u64::try_from((later - earlier) / 1000).unwrap_or_default())
}
