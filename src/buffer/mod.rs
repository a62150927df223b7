//! The durable buffer: what was appended and answered is on disk, in order, until it is committed.
//!
//! The promise: [`Buffer::append`] returns only after the events were synced; [`Buffer::read`] returns only synced
//! events, in order, each with its position; space is given back only behind [`Buffer::commit`]. The handle is
//! cheap to clone; all work is done by one writer thread (`writer`), which answers every waiter of a group after
//! one sync.
//!
//! It knows nothing of MQTT, Kafka, Redis or the configuration file.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::error::Class;
use crate::event::Seq;

mod batch;
pub mod probe;

pub use batch::Batch;

/// What to do with an append that does not fit below `bytes_max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The append waits for room, as long as its caller allows.
    Block,
    /// The append is refused at once.
    Reject,
}

/// How the buffer is opened. Every limit has its key in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The buffer's own directory, made when it is missing; one owner at a time.
    pub dir: PathBuf,
    /// Most bytes of disk, everything in the directory counted.
    pub bytes_max: u64,
    /// The policy at that limit.
    pub when_full: WhenFull,
    /// Shortest time between two syncs; zero: the next group starts when the last one is synced.
    pub commit_interval: Duration,
    /// Most bytes of encoded events waiting for the writer.
    pub queue_bytes_max: usize,
    /// Largest encoded event in bytes.
    pub event_bytes_max: usize,
}

/// How long an append may wait for room and for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Up to this long, then [`AppendError::Full`] or [`AppendError::TimedOut`].
    AtMost(Duration),
    /// Until there is room: for a producer that is held back by not being acknowledged.
    Forever,
}

/// A batch that became durable.
#[derive(Debug)]
pub struct Appended {
    /// Position of its first event; the others follow without a gap.
    pub first: Seq,
    /// The batch, for pings and for its memory.
    pub batch: Batch,
}

/// An append that was not taken.
#[derive(Debug, Error)]
#[error("{reason}")]
pub struct Refused {
    /// Why.
    #[source]
    pub reason: AppendError,
    /// The batch, unless the writer still holds it (then the outcome is unknown and the producer sends again).
    pub batch: Option<Batch>,
}

/// Why an append was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The buffer is at its limit and the policy or the wait is over: tell the producer to come back later.
    #[error("the buffer is full")]
    Full,
    /// The disk did not answer in time; the events may or may not be stored: tell the producer to send again.
    #[error("the buffer did not become durable in time")]
    TimedOut,
    /// Writing or syncing failed; nothing of the batch is acknowledged: tell the producer, the writer reopens.
    #[error("the buffer cannot be written: {0}")]
    Storage(String),
    /// The buffer is closed: the agent is stopping.
    #[error("the buffer is closed")]
    Closed,
}

impl AppendError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        match self {
            Self::Full | Self::TimedOut | Self::Storage(_) => Class::Retry,
            Self::Closed => Class::Fatal,
        }
    }
}

/// The handle: clone it for every stage. The buffer closes when [`Buffer::close`] was called or the last handle is gone.
#[derive(Debug, Clone)]
pub struct Buffer {}

impl Buffer {
    /// Appends `batch` behind everything accepted before it and returns when it is durable.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing of a refused batch was acknowledged.
    ///
    /// Cancel safe: no. Dropping the future after the writer took the batch leaves it stored without an answer.
    pub async fn append(&self, batch: Batch, wait: Wait) -> Result<Appended, Refused> {
        let _ = (batch, wait);
        std::future::pending().await
    }
}
