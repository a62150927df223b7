//! From the load that gathers to the buffer and back: when it is appended, and what becomes of its publishes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::Station;
use crate::backoff::Backoff;
use crate::buffer::{AppendError, Batch, Refused, Wait};
use crate::ingest::Admission;
use crate::ingest::mqtt::book::LoadNumber;
use crate::ingest::mqtt::link::Wire;
use crate::log::Limited;

/// Shortest time between two appends while events trickle in: 2,000 events a second cost 100 syncs and as many rounds
/// to Kafka. Twice the drain's default round, so that a load finds the drain waiting for it. An event that comes alone
/// is appended at once.
const GATHER: Duration = Duration::from_millis(10);
/// A load of this many bytes is worth a sync of its own.
const LOAD_BYTES: usize = 256 << 10;
const STORE_FIRST: Duration = Duration::from_millis(100);
const STORE_MAX: Duration = Duration::from_secs(5);

pub(super) type Append = Pin<Box<dyn Future<Output = Stored> + Send>>;

/// Cancel safe: yes, the append is kept by its owner.
pub(super) async fn outcome(append: &mut Option<Append>) -> Stored {
    match append {
        Some(append) => append.await,
        None => std::future::pending().await,
    }
}

/// What became of a load.
#[derive(Debug)]
pub(super) enum Stored {
    Durable(Batch),
    /// Nobody knows.
    Unknown,
    Closed,
}

/// Appends `batch`, however long it takes, and again after failures that leave it whole.
async fn store(admission: Admission, batch: Batch, limited: Arc<Limited>) -> Stored {
    let mut backoff = Backoff::new(STORE_FIRST, STORE_MAX);
    let mut batch = batch;
    loop {
        let Refused { reason, batch: back } = match admission.append(batch, Wait::UntilTaken).await {
            Ok(appended) => return Stored::Durable(appended.batch),
            Err(refused) => refused,
        };
        batch = match (&reason, back) {
            (AppendError::Closed, _) => return Stored::Closed,
            (_, None) => return Stored::Unknown,
            (_, Some(batch)) => batch,
        };
        if let Some(suppressed) = limited.allow() {
            warn!(%reason, events = batch.len(), suppressed, "append failed; trying again, PUBACK withheld");
        }
        sleep(backoff.delay()).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buffering {
    Open,
    Closed,
}

impl<W: Wire> Station<W> {
    /// When the load that gathers is to be appended; `now` if it is time.
    pub(super) fn due_at(&self, now: Instant) -> Option<Instant> {
        let gathered = self.submitted.map(|at| at + GATHER);
        let urgent =
            self.batch.bytes() >= LOAD_BYTES || self.book.holds_up_the_broker() || self.stop_by.is_some();
        let at = gathered.filter(|&at| at > now && !urgent).unwrap_or(now);
        (!self.batch.is_empty()).then_some(at)
    }

    /// Starts the append of the load, if it is time.
    pub(super) fn submit(&mut self, now: Instant) -> Option<Append> {
        self.due_at(now).filter(|&at| at <= now)?;
        self.submitted = Some(now);
        self.load += 1;
        self.batch_qos0 = 0;
        let batch = std::mem::replace(&mut self.batch, std::mem::take(&mut self.spare));
        let limited = Arc::clone(&self.notices.storage);
        Some(Box::pin(store(self.admission.clone(), batch, limited)))
    }

    pub(super) fn stored(&mut self, stored: Stored) -> Buffering {
        // One append at a time: it is the load before the one that gathers.
        let load = self.load - 1;
        match stored {
            Stored::Durable(batch) => {
                self.stats().mqtt_in.add(batch.len() as u64);
                self.settle(load, batch);
            }
            Stored::Unknown => {
                if let Some(suppressed) = self.notices.storage.allow() {
                    warn!(suppressed, "outcome of an append is unknown: the MQTT broker will deliver again");
                }
                self.leave_all_since(load);
            }
            Stored::Closed => return Buffering::Closed,
        }
        Buffering::Open
    }

    fn settle(&mut self, load: LoadNumber, batch: Batch) {
        self.spare = batch;
        self.spare.clear();
        let lost = self.book.settle(load);
        self.stats().mqtt_acks_dropped.add(lost);
    }

    /// Nobody knows whether `load` is stored. Order: what came after it is left with the broker too, or it would be
    /// stored in front of the redelivered ones.
    fn leave_all_since(&mut self, load: LoadNumber) {
        self.book.forget(load);
        self.book.forget(self.load);
        self.admission.forget(&self.batch);
        self.batch.clear();
        let qos0 = std::mem::take(&mut self.batch_qos0);
        self.stats().mqtt_qos0_dropped.add(qos0);
        self.skipping = true;
        self.comeback = self.reconnect.delay();
    }
}
