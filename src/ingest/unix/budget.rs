//! The bytes that all connections of the socket may hold together for lines and batches.
//!
//! A connection reads only under a grant, [`READ_BYTES`] out of the read pool, and gives back what its lines and their
//! batch did not need in the same turn. A batch takes its bytes along until it is settled. A line that does not end
//! within a chunk needs a second grant, out of the pool for long lines. Both pools serve in the order of asking. Only
//! [`FIRST_BYTES`] of an unfinished line are a connection's own.
//!
//! Answers that a peer does not read stand beside this, with a bound of their own (`reply.rs`): they are owed for what was
//! taken, so a connection cannot wait for room for them while it holds grants that others wait for.
//!
//! Nothing here counts single events: a busy connection asks once a chunk, and a lone one without waiting.
// Order: whoever waits for the read pool holds nothing but batches, which are settled without any grant. Whoever waits
// for the long pool holds a read grant and batches, and whoever has a long grant waits for none at all, because the two
// grants cover everything that can become of what it reads. So long grants always come back, hence read grants too. A
// grant that was begun and had to be filled up would break this: two connections could each hold half of the pool and
// wait for the other half. Therefore [`Share::top_up`] never waits, and a long line's end leaves enough of the read
// grant for whatever was read behind it ([`KEPT_BYTES`]).

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use super::lines::CHUNK_BYTES;
#[cfg(doc)]
use super::lines::FIRST_BYTES;

/// A grant to read: the line buffer, the events in it, and those in what was read behind the end of a long line. An event
/// takes no more memory in its batch than the line that makes it.
const READ_BYTES: usize = 3 * CHUNK_BYTES;

/// What of it only a long line's end may use: the line buffer and the events in it.
const KEPT_BYTES: usize = 2 * CHUNK_BYTES;

/// A grant for a long line: its buffer, its event, and the events that were read behind it.
fn long_bytes(event_bytes_max: usize) -> usize {
    let line_bytes_max = super::line_bytes_max(event_bytes_max);
    line_bytes_max.saturating_add(1 + event_bytes_max).saturating_add(CHUNK_BYTES)
}

/// The least that lets every event through: one connection reading the largest.
pub(crate) fn bytes_min(event_bytes_max: usize) -> usize {
    READ_BYTES.saturating_add(long_bytes(event_bytes_max))
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Budget {
    read: Arc<Pool>,
    long: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    bytes: Arc<Semaphore>,
    /// One grant.
    grant: usize,
    /// Connections that wait for one.
    waiting: AtomicUsize,
}

impl Pool {
    fn new(bytes: usize, grant: usize) -> Arc<Self> {
        let bytes = Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { bytes, grant, waiting: AtomicUsize::new(0) })
    }

    fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Budget {
    /// A budget of `bytes_max`, at least [`bytes_min`]; half of it for long lines, more where a half is too small.
    pub(super) fn new(bytes_max: usize, event_bytes_max: usize) -> Self {
        let long_grant = long_bytes(event_bytes_max);
        let bytes_max = bytes_max.max(bytes_min(event_bytes_max));
        let long = (bytes_max / 2).clamp(long_grant, bytes_max - READ_BYTES);
        Self { read: Pool::new(bytes_max - long, READ_BYTES), long: Pool::new(long, long_grant) }
    }

    /// Bytes that nobody holds.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.read.bytes.available_permits() + self.long.bytes.available_permits()
    }
}

/// A connection's place in the line for a pool. It leaves when it is dropped.
#[derive(Debug)]
struct Place {
    pool: Arc<Pool>,
    line: PollSemaphore,
    is_waiting: bool,
}

impl Place {
    fn new(pool: &Arc<Pool>) -> Self {
        Self { pool: Arc::clone(pool), line: PollSemaphore::new(Arc::clone(&pool.bytes)), is_waiting: false }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<OwnedSemaphorePermit> {
        let grant = u32::try_from(self.pool.grant).unwrap_or(u32::MAX);
        let polled = self.line.poll_acquire_many(context, grant);
        // `None` stands for a closed pool, and nobody closes one.
        let permit = if let Poll::Ready(Some(permit)) = polled { Poll::Ready(permit) } else { Poll::Pending };
        self.set_waiting(permit.is_pending());
        permit
    }

    fn leave(&mut self) {
        if self.is_waiting {
            self.line = PollSemaphore::new(Arc::clone(&self.pool.bytes));
            self.set_waiting(false);
        }
    }

    fn set_waiting(&mut self, is_waiting: bool) {
        if is_waiting && !self.is_waiting {
            self.pool.waiting.fetch_add(1, Ordering::Relaxed);
        } else if !is_waiting && self.is_waiting {
            self.pool.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        self.is_waiting = is_waiting;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.set_waiting(false);
    }
}

/// Bytes of the budget that belong to something; they come back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Held {
    read: Option<OwnedSemaphorePermit>,
    long: Option<OwnedSemaphorePermit>,
}

fn bytes(permit: Option<&OwnedSemaphorePermit>) -> usize {
    permit.map_or(0, OwnedSemaphorePermit::num_permits)
}

/// Moves up to `count` bytes.
fn shift(from: &mut Option<OwnedSemaphorePermit>, to: &mut Option<OwnedSemaphorePermit>, count: usize) {
    let Some(part) = from.as_mut().and_then(|from| from.split(count.min(from.num_permits()))) else { return };
    match to {
        Some(to) => to.merge(part),
        None => *to = Some(part),
    }
}

/// What one connection holds and waits for.
#[derive(Debug)]
pub(super) struct Share {
    read: Place,
    long: Place,
    /// For its line buffer and for the events in it.
    grant: Held,
    /// Of the batch that gathers.
    batch: Held,
}

impl Share {
    /// Nothing yet.
    pub(super) fn new(budget: &Budget) -> Self {
        Self {
            read: Place::new(&budget.read),
            long: Place::new(&budget.long),
            grant: Held::default(),
            batch: Held::default(),
        }
    }

    /// Waits until something may be read behind `rest` bytes of an unfinished line.
    ///
    /// Cancel safe: yes, the place in the line and what was granted are kept.
    pub(super) async fn granted(&mut self, rest: usize) {
        poll_fn(|context| self.poll_granted(rest, context)).await;
    }

    fn poll_granted(&mut self, rest: usize, context: &mut Context<'_>) -> Poll<()> {
        if self.grant.read.is_none() {
            self.grant.read = Some(ready!(self.read.poll(context)));
        }
        if self.space(rest) == 0 {
            self.grant.long = Some(ready!(self.long.poll(context)));
        }
        Poll::Ready(())
    }

    /// How much may be read behind `rest` bytes of an unfinished line.
    pub(super) fn space(&self, rest: usize) -> usize {
        if self.is_long() {
            return CHUNK_BYTES;
        }
        bytes(self.grant.read.as_ref()).saturating_sub(KEPT_BYTES).saturating_sub(rest)
    }

    /// Whether there is a grant for a long line.
    pub(super) fn is_long(&self) -> bool {
        self.grant.long.is_some()
    }

    /// The batch that gathers takes `batch_bytes` of memory now.
    pub(super) fn charge(&mut self, batch_bytes: usize) {
        let held = bytes(self.batch.read.as_ref()) + bytes(self.batch.long.as_ref());
        let more = batch_bytes.saturating_sub(held);
        if more == 0 {
        } else if self.is_long() {
            shift(&mut self.grant.long, &mut self.batch.long, more);
        } else {
            shift(&mut self.grant.read, &mut self.batch.read, more);
        }
    }

    /// The bytes of the batch that gathered, for as long as it lives.
    pub(super) fn hand_over(&mut self) -> Held {
        std::mem::take(&mut self.batch)
    }

    /// Makes the grant whole again, if there is one and nobody has to wait for it.
    pub(super) fn top_up(&mut self) -> bool {
        let Some(grant) = &mut self.grant.read else { return false };
        let missing = u32::try_from(READ_BYTES - grant.num_permits()).unwrap_or(u32::MAX);
        if missing == 0 {
            return !self.read.pool.is_wanted();
        }
        match Arc::clone(&self.read.pool.bytes).try_acquire_many_owned(missing) {
            Ok(more) => {
                grant.merge(more);
                true
            }
            Err(_) => false,
        }
    }

    /// Gives back what the line buffer does not need for short lines.
    pub(super) fn release_long(&mut self) {
        self.grant.long = None;
        self.long.leave();
    }

    /// Gives back everything but what belongs to batches. A place in the line for reading is kept.
    pub(super) fn release(&mut self) {
        self.release_long();
        self.grant.read = None;
    }

    /// Waits no more; what is held stays.
    pub(super) fn leave_line(&mut self) {
        self.read.leave();
        self.long.leave();
    }

    /// Whether somebody waits for what is held here.
    pub(super) fn is_wanted(&self) -> bool {
        self.grant.read.is_some() && self.read.pool.is_wanted()
            || self.is_long() && self.long.pool.is_wanted()
    }
}
