//! The ways out. A sink is told what to send and reports what became of it; it never sees the buffer.
//!
//! [`Producer`] is the seam between the drain and Kafka: the drain's states are tested against a scripted one, and
//! [`kafka`] implements it over librdkafka.

use std::time::Duration;

use thiserror::Error;

use crate::error::Class;

pub mod kafka;
pub mod kafka_clock;
pub mod kafka_probe;
pub mod kafka_reader;
pub mod kafka_rights;
pub mod kafka_security;
pub mod kafka_settings;
pub mod record;
pub mod redis;
pub mod registry;
pub mod transaction;

use transaction::{Step, StepEnd, StepError};

/// One record on its way to Kafka; borrows from the drain, the producer copies what it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Key: the unit of order; none: Kafka's client spreads the records over the partitions.
    pub key: Option<&'a [u8]>,
    /// Value.
    pub payload: &'a [u8],
    /// Names and values, in order.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Record timestamp, milliseconds since 1970; `None`: the time of sending.
    pub timestamp_ms: Option<i64>,
}

/// What librdkafka keeps for a record besides its content (its message, its place in batches and reports), and the
/// drain for its entry in the window.
const RECORD_BYTES: usize = 400;

/// The same for a header: an allocation of its own with its bookkeeping.
const HEADER_BYTES: usize = 64;

impl Record<'_> {
    /// Bytes of key, value and headers: what goes over the line, but for what the protocol adds and compression takes.
    pub fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len());
        self.key.map_or(0, <[u8]>::len) + self.payload.len() + headers.sum::<usize>()
    }

    /// About how much memory it takes until it is confirmed.
    pub fn memory(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| HEADER_BYTES + name.len() + value.len());
        RECORD_BYTES + self.key.map_or(0, <[u8]>::len) + self.payload.len() + headers.sum::<usize>()
    }
}

/// Why a record can never be delivered as it is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct Rejection {
    /// Kafka's error code, or librdkafka's own, which are below zero.
    pub code: i32,
    /// In words.
    pub reason: String,
}

/// Why a record was not taken into the producer's queue.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendError {
    /// The queue is full: keep the record, wait for reports, send it again.
    #[error("the producer's queue is full")]
    QueueFull,
    /// This record can never be sent as it is.
    #[error("{0}")]
    Rejected(Rejection),
    /// A right or the topic is missing: keep the record, somebody has to mend it.
    #[error("{0}")]
    Misconfigured(String),
    /// The producer is broken: restart it.
    #[error("{0}")]
    Fatal(String),
}

impl SendError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        match self {
            Self::QueueFull | Self::Misconfigured(_) => Class::Retry,
            Self::Rejected(_) => Class::Reject,
            Self::Fatal(_) => Class::Fatal,
        }
    }
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Kafka confirmed it.
    Delivered,
    /// Kafka refused it, or the batch it was in, for its content: size, timestamp, format.
    Rejected(Rejection),
    /// Kafka refused it for a setting: authorisation, unknown or invalid topic. Waiting helps once somebody mends it.
    Misconfigured(String),
    /// The producer gave it up or is broken.
    Failed(String),
}

/// The report on one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What [`Producer::send`] was given.
    pub tag: usize,
    /// What became of the record.
    pub outcome: Outcome,
}

/// A producer cannot be made or made again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProducerError {
    /// A setting that librdkafka refuses: end.
    #[error("the Kafka producer cannot be started: {0}")]
    Setting(String),
    /// A file of a password or of TLS cannot be used: at the start end, later try again once it was mended.
    #[error("the Kafka producer cannot be started: {0}")]
    File(String),
    /// Calls of librdkafka do not come back, and each holds a producer's memory: end, and start the agent again.
    #[error(
        "{0} calls of librdkafka for transactions did not come back; the agent ends so that it is started afresh, nothing is lost"
    )]
    Stuck(usize),
}

impl ProducerError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        match self {
            Self::Setting(_) | Self::Stuck(_) => Class::Fatal,
            Self::File(_) => Class::Retry,
        }
    }
}

/// Why a producer does not work any more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fatal {
    /// Another producer has taken its transactional id over, or its transaction outlived its time.
    #[error("{0}")]
    Fenced(String),
    /// Anything else.
    #[error("{0}")]
    Broken(String),
}

/// The drain's way to Kafka.
pub trait Producer: Send {
    /// Queues a record. In the order of the calls within a partition, as long as nothing is rejected.
    ///
    /// # Errors
    /// See [`SendError`]; no report follows.
    fn send(&mut self, record: &Record<'_>, tag: usize) -> Result<(), SendError>;

    /// Moves the reports that came since the last call to the end of `reports`: one for each queued record, in any
    /// order between partitions.
    fn take_reports(&mut self, reports: &mut Vec<Report>);

    /// Returns when there are reports, or the producer has become fatal.
    ///
    /// Cancel safe: yes.
    fn reported(&self) -> impl Future<Output = ()> + Send;

    /// Why the producer is broken, if it is.
    fn fatal(&self) -> Option<Fatal>;

    /// Begins a transaction: what is sent from now on belongs to it. Only behind [`StepEnd::Opened`]. Talks to nobody.
    ///
    /// # Errors
    /// [`StepError`].
    fn begin(&mut self) -> Result<(), StepError>;

    /// Starts a step of a transaction, in the background; one at a time.
    fn start_step(&mut self, step: Step);

    /// How the step ended, once; [`Producer::reported`] tells when to look.
    fn take_step(&mut self) -> Option<Result<StepEnd, StepError>>;

    /// Gives up everything that waits or is in flight; each record is reported as failed.
    fn purge(&mut self);

    /// Whether a successor is connected, which [`Producer::restart`] puts in place. Makes one when a file has changed, and
    /// in a long outage; [`Producer::reported`] returns when there is something new to ask for.
    fn has_successor(&mut self) -> bool;

    /// Throws everything queued away without a report and starts afresh, with the successor if there is one.
    ///
    /// # Errors
    /// [`ProducerError`].
    fn restart(&mut self) -> Result<(), ProducerError>;

    /// Ends it: throws away what is queued and waits at most `timeout` for the library's threads.
    fn close(self, timeout: Duration)
    where
        Self: Sized;
}
