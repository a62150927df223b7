//! Reads a topic, for `fieldpost tail`: from a place in it on, committed records alone, and without a trace: no group is
//! joined, no offset is committed.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientContext, Statistics};
use thiserror::Error;
use tokio::sync::Notify;

use super::kafka::Options;
use super::kafka_probe::{ProbeError, client_config};
use super::kafka_security::Security;
use crate::log::quietly;

/// What differs from a producer. `group.id`: librdkafka wants one for a place of one's own to read from, and never uses it.
const OWN_PROPERTIES: [(&str, &str); 9] = [
    ("group.id", "fieldpost-tail"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("isolation.level", "read_committed"),
    ("enable.partition.eof", "true"),
    // What is gone is told, not passed over.
    ("auto.offset.reset", "error"),
    // Memory: what is fetched ahead of a reader who is slow, and a single answer.
    ("queued.max.messages.kbytes", "4096"),
    ("fetch.max.bytes", "4194304"),
    ("statistics.interval.ms", "1000"),
];

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At the first record.
    Beginning,
    /// Behind the last one.
    End,
    /// At this offset; below zero: so many before the end.
    Offset(i64),
    /// At the first record of this time or later, milliseconds since 1970.
    Time(i64),
}

/// Where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Where the topic ends now.
    End,
    /// Before the first record of this time or later, as it is now.
    Time(i64),
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The topic.
    pub topic: String,
    /// Its partitions; none: all.
    pub partitions: Vec<i32>,
    /// Where it begins.
    pub from: From,
    /// Where it ends; `None`: never.
    pub until: Option<Until>,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub time_ms: Option<i64>,
    /// Key, if it has one.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Vec<u8>,
    /// Names and values; those whose names are text.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// What is next.
#[derive(Debug)]
pub enum Next {
    /// A record.
    Record(Received),
    /// No broker answers any more, for this reason; the client looks for them and goes on where it was.
    Down(String),
    /// A broker answers again.
    Up,
    /// Everything was read.
    End,
}

/// Why it cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Kafka is not there, or refuses.
    #[error(transparent)]
    Kafka(#[from] ProbeError),
    /// The topic does not exist.
    #[error("topic {0} does not exist")]
    NoTopic(String),
    /// It does not have that partition.
    #[error("topic {0} has no partition {1}")]
    NoPartition(String, i32),
    /// The place is not there any more, or not yet.
    #[error("partition {partition} has offsets from {first} to {end}, not {offset}")]
    NoOffset {
        /// The partition.
        partition: i32,
        /// Asked for.
        offset: i64,
        /// The first.
        first: i64,
        /// The one that the next record will have.
        end: i64,
    },
    /// Anything else that Kafka says.
    #[error("Kafka says: {0}")]
    Other(String),
}

/// Reads.
pub struct Reader {
    consumer: StreamConsumer<Watch>,
    watch: Watch,
    is_bounded: bool,
    /// Those that are not read to their end.
    open: BTreeSet<i32>,
    /// By partition: where it ends.
    ends: Vec<(i32, i64)>,
    is_down: bool,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Reader {
    /// Finds the places to begin and to end. Blocks, for each question up to `timeout`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(options: &Options, plan: &Plan, timeout: Duration) -> Result<Self, ReadError> {
        let options = Options { transactional: None, ..options.clone() };
        // Says what is wrong with the brokers or the topic in words.
        super::kafka_probe::probe(&options, Some(&plan.topic), timeout)?;
        let mut config = client_config(&options)?;
        for (name, value) in OWN_PROPERTIES {
            config.set(name, value);
        }
        let watch = Watch::of(&options);
        let consumer: StreamConsumer<Watch> = config.create_with_context(watch.clone()).map_err(other)?;
        let places = Places { consumer: &consumer, topic: &plan.topic, timeout };
        let mut open = BTreeSet::new();
        let (mut ends, mut assigned) = (Vec::new(), TopicPartitionList::new());
        for partition in places.partitions(&plan.partitions)? {
            let (first, end) = places.range(partition)?;
            let from = places.from(plan.from, partition, first, end)?;
            let until = match plan.until {
                None => i64::MAX,
                Some(Until::End) => end,
                Some(Until::Time(time_ms)) => places.at_time(partition, time_ms)?.unwrap_or(end),
            };
            if from < until {
                assigned.add_partition_offset(&plan.topic, partition, Offset::Offset(from)).map_err(other)?;
                open.insert(partition);
                ends.push((partition, until));
            }
        }
        consumer.assign(&assigned).map_err(other)?;
        Ok(Self { consumer, watch, is_bounded: plan.until.is_some(), open, ends, is_down: false })
    }

    /// What is next.
    ///
    /// # Errors
    /// [`ReadError`]: nothing more can be read.
    ///
    /// Cancel safe: yes.
    pub async fn next(&mut self) -> Result<Next, ReadError> {
        loop {
            if self.is_bounded && self.open.is_empty() {
                return Ok(Next::End);
            }
            let message = tokio::select! {
                biased;
                message = self.consumer.recv() => message.map(|message| received(&message)),
                () = self.watch.inner.came_up.notified(), if self.is_down => {
                    self.is_down = false;
                    return Ok(Next::Up);
                }
            };
            match message {
                Ok(record) => {
                    if let Some(record) = self.within_bounds(record) {
                        return Ok(Next::Record(record));
                    }
                }
                Err(KafkaError::PartitionEOF(partition)) => {
                    self.open.remove(&partition);
                }
                Err(error) => {
                    if let Some(next) = self.heard(&error)? {
                        return Ok(next);
                    }
                }
            }
        }
    }

    /// The record, unless its partition has been read to its end.
    fn within_bounds(&mut self, record: Received) -> Option<Received> {
        let end = self.ends.iter().find(|(partition, _)| *partition == record.partition);
        let end = end.map_or(i64::MAX, |(_, end)| *end);
        if record.offset + 1 >= end {
            self.open.remove(&record.partition);
        }
        (record.offset < end).then_some(record)
    }

    fn heard(&mut self, error: &KafkaError) -> Result<Option<Next>, ReadError> {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) if !self.is_down => {
                self.is_down = true;
                self.watch.inner.is_down.store(true, Ordering::Relaxed);
                Ok(Some(Next::Down(self.watch.reason())))
            }
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => Err(ReadError::Other(format!(
                "{error}: what was to come next is gone by the topic's retention; begin again with --offset beginning"
            ))),
            Some(
                Code::TopicAuthorizationFailed
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::Fatal,
            ) => Err(other(error.clone())),
            // One broker of several, a group that is never used, and what the client mends by itself.
            _ => Ok(None),
        }
    }
}

/// Places in a topic.
struct Places<'a> {
    consumer: &'a StreamConsumer<Watch>,
    topic: &'a str,
    timeout: Duration,
}

impl Places<'_> {
    fn partitions(&self, wanted: &[i32]) -> Result<Vec<i32>, ReadError> {
        let metadata = self.consumer.fetch_metadata(Some(self.topic), self.timeout).map_err(other)?;
        let topic = super::kafka_probe::topic_of(&metadata, self.topic);
        let found: Vec<i32> = topic
            .map_or(&[][..], |topic| topic.partitions())
            .iter()
            .map(|partition| partition.id())
            .collect();
        if found.is_empty() {
            return Err(ReadError::NoTopic(self.topic.to_owned()));
        }
        if let Some(missing) = wanted.iter().find(|partition| !found.contains(partition)) {
            return Err(ReadError::NoPartition(self.topic.to_owned(), *missing));
        }
        Ok(if wanted.is_empty() { found } else { wanted.to_vec() })
    }

    /// The first offset, and the one behind the last committed record.
    fn range(&self, partition: i32) -> Result<(i64, i64), ReadError> {
        self.consumer.fetch_watermarks(self.topic, partition, self.timeout).map_err(other)
    }

    fn from(&self, from: From, partition: i32, first: i64, end: i64) -> Result<i64, ReadError> {
        match from {
            From::Beginning => Ok(first),
            From::End => Ok(end),
            From::Time(time_ms) => Ok(self.at_time(partition, time_ms)?.unwrap_or(end)),
            From::Offset(back) if back < 0 => Ok(end.saturating_add(back).max(first)),
            From::Offset(offset) if (first..=end).contains(&offset) => Ok(offset),
            From::Offset(offset) => Err(ReadError::NoOffset { partition, offset, first, end }),
        }
    }

    /// The first record of this time or later.
    fn at_time(&self, partition: i32, time_ms: i64) -> Result<Option<i64>, ReadError> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(self.topic, partition, Offset::Offset(time_ms.max(0))).map_err(other)?;
        let found = self.consumer.offsets_for_times(asked, self.timeout).map_err(other)?;
        Ok(found.elements().into_iter().find_map(|element| match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    }
}

fn other(error: KafkaError) -> ReadError {
    ReadError::Other(error.to_string())
}

fn received(message: &BorrowedMessage<'_>) -> Received {
    Received {
        partition: message.partition(),
        offset: message.offset(),
        time_ms: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().unwrap_or_default().to_vec(),
        headers: message.headers().map_or_else(Vec::new, headers),
    }
}

/// Those whose names are text. Whoever may write to the topic writes what he likes, and rust-rdkafka panics on the others.
fn headers(headers: &impl Headers) -> Vec<(String, Vec<u8>)> {
    let header = |index| {
        let header = headers.try_get(index)?;
        Some((header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
    };
    (0..headers.count()).filter_map(|index| quietly(AssertUnwindSafe(|| header(index))).ok()?).collect()
}

/// Hears whether brokers are there, and why not.
#[derive(Clone)]
struct Watch {
    security: Security,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    is_down: AtomicBool,
    came_up: Notify,
    reason: Mutex<String>,
}

impl Watch {
    fn of(options: &Options) -> Self {
        Self { security: options.security.clone(), inner: Arc::default() }
    }

    fn reason(&self) -> String {
        self.inner.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Watch {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    /// Kept silent: what matters comes as an error, too.
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            let reason = reason.split_once(" (after ").map_or(reason, |(reason, _)| reason);
            reason.clone_into(&mut self.inner.reason.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn stats(&self, statistics: Statistics) {
        let is_up = statistics.brokers.values().any(|broker| broker.state == "UP");
        if is_up && self.inner.is_down.swap(false, Ordering::Relaxed) {
            self.inner.came_up.notify_one();
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.security.token()
    }
}

impl ConsumerContext for Watch {}

#[cfg(test)]
mod tests {
    use rdkafka::message::Header;

    use super::*;

    /// The second one's name is no text.
    struct Three;

    impl Headers for Three {
        fn count(&self) -> usize {
            3
        }

        fn try_get(&self, index: usize) -> Option<Header<'_, &[u8]>> {
            let key = std::str::from_utf8(&b"a\xffc"[index..=index]).unwrap();
            Some(Header { key, value: Some(&b"1"[..]).filter(|_| index == 0) })
        }
    }

    #[test]
    fn a_header_whose_name_is_no_text_is_passed_over() {
        assert_eq!(headers(&Three), [("a".to_owned(), b"1".to_vec()), ("c".to_owned(), vec![])]);
    }
}
