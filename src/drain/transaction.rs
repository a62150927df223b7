//! Exactly once: when a transaction begins, what belongs to it, and when it is to end.
//!
//! ```text
//! closed ──Open──> opened ──the first event──> begun ──due and all of it confirmed──> Commit ──> opened
//!    ^                ^                          │
//!    │                └────────── Abort <────────┴─ an event is refused, or the commit is
//!    └── the producer is made again
//! ```
//!
//! The cursor moves with the commit and not with the confirmations: until then everything may have to go out again.

use std::time::Duration;

use tokio::time::Instant;

use crate::ping::Ping;
use crate::system::Clock;

/// When a transaction is ended, whichever comes first, and how long one may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time from its first event: what `read_committed` consumers wait for at most, besides the commit.
    pub interval: Duration,
    /// Bytes of its records ([`Record::memory`](crate::sink::Record::memory)).
    pub bytes_max: usize,
    /// Its events.
    pub events_max: usize,
    /// After which the brokers abort it.
    pub timeout: Duration,
}

/// The transaction of the moment.
#[derive(Debug)]
pub(super) struct Transaction {
    limits: Limits,
    clock: Clock,
    /// The transactional id is ours, the cursor is known.
    pub(super) is_opened: bool,
    begun: Option<Begun>,
    /// Pings of its confirmed events, which are for its commit to send.
    pub(super) pings: Vec<Ping>,
}

#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Instant,
    boot_us: u64,
    events: usize,
    bytes: usize,
    confirmed: u64,
    is_purged: bool,
}

impl Transaction {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, clock: Clock::default(), is_opened: false, begun: None, pings: Vec::new() }
    }

    pub(super) fn is_begun(&self) -> bool {
        self.begun.is_some()
    }

    pub(super) fn begin(&mut self) {
        let boot_us = self.clock.now().boot_us;
        let at = Instant::now();
        self.begun = Some(Begun { at, boot_us, events: 0, bytes: 0, confirmed: 0, is_purged: false });
    }

    /// An event of `bytes` belongs to it.
    pub(super) fn add(&mut self, bytes: usize) {
        if let Some(begun) = &mut self.begun {
            begun.events += 1;
            begun.bytes += bytes;
        }
    }

    /// So many of its events are confirmed.
    pub(super) fn confirm(&mut self, events: u64) {
        if let Some(begun) = &mut self.begun {
            begun.confirmed += events;
        }
    }

    /// Whether nothing more may go into it.
    pub(super) fn is_full(&self) -> bool {
        self.begun.is_some_and(|begun| {
            begun.events >= self.limits.events_max || begun.bytes >= self.limits.bytes_max
        })
    }

    /// When it is to end, whatever is in it.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.begun.map(|begun| begun.at + self.limits.interval)
    }

    pub(super) fn is_due(&self) -> bool {
        self.due_at().is_some_and(|due| due <= Instant::now())
    }

    /// Whether the brokers may have aborted it for its age. Counted from before they heard of it, in a time that goes on
    /// while the machine sleeps.
    pub(super) fn is_outlived(&self) -> bool {
        self.begun.is_some_and(|begun| {
            let age_us = self.clock.now().boot_us.saturating_sub(begun.boot_us);
            Duration::from_micros(age_us) >= self.limits.timeout
        })
    }

    /// Whether what is in flight still has to be given up, before it can be aborted.
    pub(super) fn needs_purge(&mut self) -> bool {
        self.begun.as_mut().is_some_and(|begun| !std::mem::replace(&mut begun.is_purged, true))
    }

    /// It is over. Answers how many of its events were confirmed.
    pub(super) fn end(&mut self) -> u64 {
        self.begun.take().map_or(0, |begun| begun.confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction() -> Transaction {
        let interval = Duration::from_millis(100);
        let timeout = Duration::from_secs(30);
        Transaction::new(Limits { interval, bytes_max: 1000, events_max: 10, timeout })
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_by_time_bytes_or_events() {
        let mut transaction = transaction();
        assert!(!transaction.is_full() && !transaction.is_due() && !transaction.is_outlived());
        transaction.begin();
        assert!(!transaction.is_due());
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(transaction.is_due() && !transaction.is_full());
        transaction.add(10);
        assert!(!transaction.is_full());
        transaction.add(990);
        assert!(transaction.is_full(), "bytes");
        transaction.end();
        transaction.begin();
        for _ in 0..10 {
            transaction.add(1);
        }
        assert!(transaction.is_full(), "events");
        transaction.confirm(4);
        assert_eq!((transaction.end(), transaction.is_begun()), (4, false));
    }
}
