//! The way in: every input hands its drafts to [`Admission`] and acknowledges only what came back durable.
//!
//! Admission validates against the limits, stamps time and id, finds the event's route, encodes into a batch what the
//! route lets through, appends it to the buffer and then, after the sync and never before, offers a ping for each event. Inputs know their own protocol and nothing
//! of sinks.

pub(crate) mod form;
pub mod mqtt;
pub mod mqtt_probe;
pub mod route;
pub mod topic;
pub mod unix;
pub mod unix_probe;

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::buffer::{Appended, Batch, Buffer, Refused, Terms, Wait, WhenFull};
use crate::error::Class;
use crate::event::{Draft, Event, InvalidEvent, OWN_SOURCE_TYPE, Stamp};
use crate::ping::Pings;
use crate::stats::{Counter, Stats};
use crate::system::Clock;
use route::{Keep, Memory, Routes, Verdict};

/// Why a draft was not taken into a batch. Class: always [`Class::Reject`]; the producer is told, the line goes on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A field is missing or wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidEvent),
    /// The event is above `limits.max_event_bytes`.
    #[error("the event has {bytes} bytes as stored, limits.max_event_bytes allows {bytes_max}")]
    TooLarge {
        /// Encoded size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

impl Refusal {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        Class::Reject
    }
}

/// What became of a draft that could be an event. Whatever it is, the producer is told that it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It is in the batch: acknowledge it once that is durable.
    Taken,
    /// Its route drops, samples out or filters it, and that is counted: acknowledge it in its turn, there is nothing to
    /// wait for.
    LeftOut,
}

/// What every input shares: limits, clock, buffer and the way to the pings. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission {
    buffer: Buffer,
    event_bytes_max: usize,
    routes: Routes,
    /// Of events that no route says otherwise about.
    when_full: WhenFull,
    clock: Arc<Clock>,
    stats: Arc<Stats>,
    pings: Option<Pings>,
    /// Of routes that let only a part of their events through.
    memory: Arc<Mutex<Memory>>,
    /// Whether the agent's own events are taken: out of an export, from its operator.
    takes_own: bool,
}

impl Admission {
    /// The way into `buffer`; `pings` is `None` when nobody listens or pings wait for Kafka. Events that find no room
    /// wait, but where a route or [`Admission::under`] has it otherwise.
    pub fn new(
        buffer: Buffer,
        event_bytes_max: usize,
        routes: Routes,
        clock: Arc<Clock>,
        stats: Arc<Stats>,
        pings: Option<Pings>,
    ) -> Self {
        let when_full = WhenFull::Block;
        let memory = Arc::new(Mutex::new(Memory::new(routes.sources_max())));
        Self { buffer, event_bytes_max, routes, when_full, clock, stats, pings, memory, takes_own: false }
    }

    /// Also takes the agent's own events, which no producer may forge.
    pub fn with_own(self) -> Self {
        Self { takes_own: true, ..self }
    }

    /// The same way for an input with a policy of its own, which counts where no route has another.
    pub fn under(self, when_full: WhenFull) -> Self {
        Self { when_full, ..self }
    }

    /// Largest encoded event in bytes (`limits.max_event_bytes`); inputs bound their frames by it.
    pub fn event_bytes_max(&self) -> usize {
        self.event_bytes_max
    }

    /// The agent's counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Validates, stamps and encodes one draft into `batch`, on the terms of its route; `mqtt_topic` is where it was
    /// published, if it came over MQTT. Counts a refusal (`invalid` or `too_large`) and what a route leaves out. A batch
    /// that is not appended after all is given to [`Admission::forget`].
    ///
    /// # Errors
    /// [`Refusal`]: this draft can never be taken; the batch is unchanged.
    pub fn admit(
        &self,
        draft: &Draft<'_>,
        mqtt_topic: Option<&str>,
        batch: &mut Batch,
    ) -> Result<Admitted, Refusal> {
        let event =
            stamped(draft, self.clock.now(), self.takes_own).inspect_err(|_| self.stats.invalid.add(1))?;
        let Some((number, route)) = self.routes.of(&event, mqtt_topic) else {
            batch.set_terms(Terms { when_full: self.when_full, priority: 0 });
            return self.push(&event, batch);
        };
        let keep = if draft.was_taken { &Keep::All } else { &route.keep };
        if let Some(counter) = self.left_out(number, keep, &event) {
            counter.add(1);
            return Ok(Admitted::LeftOut);
        }
        batch.set_terms(route.terms(self.when_full));
        let pushed = self.push(&Event { way: route.way(), ..event }, batch);
        if pushed.is_err() {
            self.memory().forget(self.routes.all(), &event);
        }
        pushed
    }

    fn push(&self, event: &Event<'_>, batch: &mut Batch) -> Result<Admitted, Refusal> {
        let pushed = batch.push(event, self.event_bytes_max);
        pushed.map(|_| Admitted::Taken).map_err(|bytes| {
            self.stats.too_large.add(1);
            Refusal::TooLarge { bytes, bytes_max: self.event_bytes_max }
        })
    }

    /// Where an event is counted that its route leaves out, if it does.
    fn left_out(&self, number: usize, keep: &Keep, event: &Event<'_>) -> Option<&Counter> {
        match keep {
            Keep::All => None,
            Keep::Nothing => Some(&self.stats.dropped),
            Keep::OneIn(_) | Keep::Changes(_) => match self.memory().judge(number, keep, event) {
                Verdict::Kept => None,
                Verdict::SampledOut => Some(&self.stats.sampled_out),
                Verdict::Unchanged => Some(&self.stats.filtered),
            },
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        // What a panic may have left half done is a source that is known or not.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events of `batch` are not stored, or nobody knows: the next one of each of their sources is sent, whatever was
    /// sent before.
    pub fn forget(&self, batch: &Batch) {
        if self.routes.remember() {
            let mut memory = self.memory();
            batch.events().for_each(|event| memory.forget(self.routes.all(), &event));
        }
    }

    /// Makes a batch durable and then offers its pings. The caller acknowledges its events when this returns `Ok`.
    ///
    /// # Errors
    /// [`Refused`]: nothing was acknowledged; see [`crate::buffer::AppendError`] for what to do.
    ///
    /// Cancel safe: no, as [`Buffer::append`].
    pub async fn append(&self, batch: Batch, wait: Wait) -> Result<Appended, Refused> {
        let appended = self.buffer.append(batch, wait).await.inspect_err(|refused| match &refused.batch {
            Some(batch) => self.forget(batch),
            None => self.memory().forget_all(),
        })?;
        if let Some(oldest) = appended.batch.events().next() {
            let age_us = self.clock.now().boot_us.saturating_sub(oldest.received.boot_us);
            self.stats.durable_latency.add(age_us, appended.batch.len() as u64);
        }
        if let Some(pings) = &self.pings {
            pings.offer(appended.batch.events());
        }
        Ok(appended)
    }
}

/// The event that a draft becomes. `takes_own`: also one of the agent's own.
///
/// # Errors
/// [`InvalidEvent`]: it cannot be one.
pub(crate) fn stamped<'a>(
    draft: &'a Draft<'_>,
    now: Stamp,
    takes_own: bool,
) -> Result<Event<'a>, InvalidEvent> {
    let is_forged = !takes_own && draft.source_type == OWN_SOURCE_TYPE;
    if is_forged { Err(InvalidEvent::Reserved) } else { draft.stamped(now) }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::event::{DraftPayload, Way};
    use route::{Pattern, Report, Route};

    fn draft<'a>(kind: &'a str, payload: &'a str) -> Draft<'a> {
        Draft {
            id: None,
            kind: kind.into(),
            source_type: "s".into(),
            source_id: "1".into(),
            timestamp: None,
            payload: DraftPayload::Json(payload),
            was_taken: false,
        }
    }

    fn admission(dir: &std::path::Path, routes: Vec<Route>) -> Admission {
        let options = crate::buffer::Options::new(dir);
        let (buffer, _) = Buffer::open(&options, [0; 16], Arc::default()).unwrap();
        Admission::new(buffer, 100, Routes::new(routes, 100), Arc::default(), Arc::default(), None)
    }

    fn route(kind: &str, keep: Keep) -> Route {
        Route { kind: Some(Pattern::new(kind)), keep, ..Route::default() }
    }

    #[tokio::test]
    async fn what_a_route_leaves_out_is_counted_and_not_in_the_batch() {
        let dir = tempfile::tempdir().unwrap();
        let admission = admission(
            dir.path(),
            vec![
                route("noise", Keep::Nothing),
                route("fast", Keep::OneIn(NonZeroU32::new(2).unwrap())),
                route("slow", Keep::Changes(Report::default())),
                Route { topic: Some("alarms".into()), is_quiet: true, ..route("alarm", Keep::All) },
            ],
        );
        let mut batch = Batch::new();
        let taken: Vec<_> = ["noise", "fast", "fast", "fast", "slow", "slow", "alarm", "other"]
            .into_iter()
            .filter(|kind| admission.admit(&draft(kind, "1"), None, &mut batch) == Ok(Admitted::Taken))
            .collect();
        assert_eq!(taken, ["fast", "fast", "slow", "alarm", "other"]);
        assert_eq!(batch.events().map(|event| event.kind).collect::<Vec<_>>(), taken);
        let ways: Vec<_> = batch.events().map(|event| event.way).collect();
        assert_eq!(ways[2..], [Way::USUAL, Way { topic: Some("alarms"), is_quiet: true }, Way::USUAL]);
        let stats = admission.stats();
        assert_eq!((stats.dropped.get(), stats.sampled_out.get(), stats.filtered.get()), (1, 1, 1));
    }

    #[tokio::test]
    async fn an_event_that_was_taken_before_is_not_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let admission = admission(
            dir.path(),
            vec![route("noise", Keep::Nothing), route("slow", Keep::Changes(Report::default()))],
        );
        let mut batch = Batch::new();
        for kind in ["noise", "slow", "slow"] {
            let draft = Draft { was_taken: true, ..draft(kind, "1") };
            assert_eq!(admission.admit(&draft, None, &mut batch), Ok(Admitted::Taken));
        }
        assert_eq!(batch.len(), 3);
    }

    #[tokio::test]
    async fn a_value_that_was_not_stored_does_not_keep_back_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let admission = admission(dir.path(), vec![route("slow", Keep::Changes(Report::default()))]);
        let admit = |payload: &str| {
            let mut batch = Batch::new();
            (admission.admit(&draft("slow", payload), None, &mut batch), batch)
        };
        let (first, batch) = admit("1");
        assert_eq!((first, admit("1").0), (Ok(Admitted::Taken), Ok(Admitted::LeftOut)));
        admission.forget(&batch);
        assert_eq!([0, 1].map(|_| admit("1").0), [Ok(Admitted::Taken), Ok(Admitted::LeftOut)]);
        // Too large to be stored, each time.
        let large = format!("\"{}\"", "x".repeat(100));
        for _ in 0..2 {
            assert!(matches!(admit(&large).0, Err(Refusal::TooLarge { .. })));
        }
        // The buffer takes nothing any more.
        let (taken, batch) = admit("2");
        assert_eq!(taken, Ok(Admitted::Taken));
        admission.buffer.close().await;
        admission.append(batch, Wait::Forever).await.unwrap_err();
        assert_eq!(admit("2").0, Ok(Admitted::Taken));
    }
}
