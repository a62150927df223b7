//! Keeps the loss ledger complete, and tells Kafka what is in it.
//!
//! The inputs and the drain count what they refuse or lose in [`Stats`]; this stage hands it to the ledger, every ten
//! seconds while something is counted and once more at the stop. What the buffer loses it counts itself.
//!
//! Word of losses goes the way of every event, through the buffer, so that an outage delays it and no crash forgets it:
//! `type` `fieldpost.loss`, `source_type` `fieldpost`, `source_id` the agent's id, and the payload of `word`. At most one
//! a minute and reason; a crash between the append and the ledger's next write repeats one, under the same `id`, and a disk
//! that does not answer in time may do so too.
//!
//! Nothing wakes it while nothing is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::buffer::ledger::{Entry, Reason};
use crate::buffer::{Batch, Buffer, Rank, Terms, Wait, WhenFull};
use crate::event::{Event, EventId, LOSS_TYPE, OWN_SOURCE_TYPE, Payload, Way, rfc3339};
use crate::log::Limited;
use crate::stats::{Stats, Watched};
use crate::system::Clock;

/// Losses gather for so long before they are written down: one write, and not one for each line of a producer that has
/// gone mad.
const GATHER: Duration = Duration::from_secs(10);

/// Shortest time between two announcements of one reason.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(60);

/// How long an announcement waits for the buffer; below the time that a stop waits for this stage.
const APPEND_WAIT: Duration = Duration::from_secs(2);

/// Most ranges of positions in an announcement; the ledger keeps more.
const RANGES_MAX: usize = 32;

/// What is told of losses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether Kafka is told.
    pub announce: bool,
}

/// How fast it goes.
#[derive(Debug, Clone, Copy)]
struct Pace {
    gather: Duration,
    announce_interval: Duration,
}

/// The stage.
#[derive(Debug)]
pub struct Losses {
    buffer: Buffer,
    stats: Arc<Stats>,
    clock: Arc<Clock>,
    agent: String,
    announces: bool,
    pace: Pace,
    /// When each reason was announced last, or that was tried.
    tried: BTreeMap<Reason, Instant>,
    /// The total that was announced in this run: the ledger shows it a little later.
    told: BTreeMap<Reason, u64>,
    log: Limited,
}

impl Losses {
    /// The stage for `buffer`, telling in the name of `agent`.
    pub fn new(buffer: Buffer, stats: Arc<Stats>, clock: Arc<Clock>, agent: &str, announces: bool) -> Self {
        Self {
            buffer,
            stats,
            clock,
            agent: agent.to_owned(),
            announces,
            pace: Pace { gather: GATHER, announce_interval: ANNOUNCE_INTERVAL },
            tried: BTreeMap::new(),
            told: BTreeMap::new(),
            log: Limited::new(ANNOUNCE_INTERVAL),
        }
    }

    /// Works until `stop`, and then counts what is left. Announcements that are due by then are made after the next start.
    ///
    /// Cancel safe: no; what was counted since the last time would be missing in the ledger.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.count();
            let next = self.announce().await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = something_counted(&self.stats, &self.buffer) => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => continue,
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(self.pace.gather) => {}
            }
        }
        self.count();
    }

    /// Hands what was newly counted to the ledger.
    fn count(&self) {
        for (reason, counter) in counted(&self.stats) {
            let events = counter.unsettled();
            if events > 0 && self.buffer.count(reason, events) {
                counter.settle(events);
            }
        }
    }

    /// Announces what is due. Answers when the next one is, if something waits for its time.
    async fn announce(&mut self) -> Option<Instant> {
        if !self.announces {
            return None;
        }
        let mut next: Option<Instant> = None;
        for (reason, mut entry) in self.buffer.ledger() {
            entry.announced = entry.announced.max(self.told.get(&reason).copied().unwrap_or(0));
            if entry.events <= entry.announced {
                continue;
            }
            let due = self.tried.get(&reason).map(|last| *last + self.pace.announce_interval);
            if due.is_none_or(|due| due <= Instant::now()) {
                self.tried.insert(reason, Instant::now());
                if self.append(reason, &entry).await && self.buffer.announced(reason, entry.events) {
                    self.told.insert(reason, entry.events);
                    continue;
                }
            }
            let due = self.tried.get(&reason).map(|last| *last + self.pace.announce_interval);
            next = next.into_iter().chain(due).min();
        }
        next
    }

    /// Whether the word is in the buffer.
    async fn append(&self, reason: Reason, entry: &Entry) -> bool {
        let (id, payload) = (format!("loss-{}-{}", reason.word(), entry.events), word(reason, entry));
        let event = Event {
            id: EventId::Given(&id),
            kind: LOSS_TYPE,
            source_type: OWN_SOURCE_TYPE,
            source_id: &self.agent,
            timestamp: None,
            received: self.clock.now(),
            payload: Payload::Json(&payload),
            way: Way::USUAL,
        };
        let mut batch = Batch::new();
        batch.set_terms(Terms { when_full: WhenFull::Reject, priority: Rank::PRIORITY_MAX });
        if batch.push(&event, usize::MAX).is_err() {
            return false;
        }
        let events = entry.events - entry.announced;
        match self.buffer.append(batch, Wait::AtMost(APPEND_WAIT)).await {
            Ok(_) => {
                tracing::info!(reason = reason.word(), events, total = entry.events, "losses are announced");
                true
            }
            Err(error) => {
                if let Some(suppressed) = self.log.allow() {
                    tracing::warn!(
                        reason = reason.word(), events, %error, suppressed,
                        "losses cannot be announced now; it is tried again"
                    );
                }
                false
            }
        }
    }
}

/// What the other stages count, and under which reason it goes to the ledger.
fn counted(stats: &Stats) -> [(Reason, &Watched); 6] {
    [
        (Reason::Rejected, &stats.refused),
        (Reason::Rejected, &stats.mqtt_qos0_dropped),
        (Reason::TooLarge, &stats.too_large),
        (Reason::Invalid, &stats.invalid),
        (Reason::Undelivered, &stats.kafka_lost),
        (Reason::DeadLettered, &stats.dead_lettered),
    ]
}

/// Returns when there may be something to count or to tell.
async fn something_counted(stats: &Stats, buffer: &Buffer) {
    let [one, two, three, four, five, six] = counted(stats).map(|(_, counter)| counter.grown());
    tokio::select! {
        () = one => {}
        () = two => {}
        () = three => {}
        () = four => {}
        () = five => {}
        () = six => {}
        () = buffer.ledger_changed() => {}
    }
}

/// The payload of an announcement: `{"reason", "events" (since the last announcement), "total", "first", "last" (when the
/// first and the last of the total were counted), "ranges" (of positions, first and last, the latest ones)}`.
fn word(reason: Reason, entry: &Entry) -> String {
    let surplus = entry.ranges.len().saturating_sub(RANGES_MAX);
    let ranges = entry.ranges.get(surplus..).unwrap_or_default();
    json!({
        "reason": reason,
        "events": entry.events.saturating_sub(entry.announced),
        "total": entry.events,
        "first": rfc3339(entry.first_us),
        "last": rfc3339(entry.last_us),
        "ranges": ranges,
    })
    .to_string()
}

#[cfg(test)]
mod tests;
