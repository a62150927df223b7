//! The way in: every input hands its drafts to [`Admission`] and acknowledges only what came back durable.
//!
//! Admission validates against the limits, stamps time and id, finds the event's route, encodes into a batch, appends it
//! to the buffer and then, after the sync and never before, offers a ping for each event. Inputs know their own protocol and nothing
//! of sinks.

pub(crate) mod form;
pub mod mqtt;
pub mod mqtt_probe;
pub mod route;
pub mod topic;
pub mod unix;
pub mod unix_probe;

use std::sync::Arc;

use thiserror::Error;

use crate::buffer::{Appended, Batch, Buffer, Refused, Terms, Wait, WhenFull};
use crate::error::Class;
use crate::event::{Draft, InvalidEvent, OWN_SOURCE_TYPE};
use crate::ping::Pings;
use crate::stats::Stats;
use crate::system::Clock;
use route::Routes;

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
        Self { buffer, event_bytes_max, routes, when_full, clock, stats, pings, takes_own: false }
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

    /// Validates, stamps and encodes one draft into `batch`, on the terms of its route. Counts a refusal (`invalid` or `too_large`).
    ///
    /// # Errors
    /// [`Refusal`]: this draft can never be taken; the batch is unchanged.
    pub fn admit(&self, draft: &Draft<'_>, batch: &mut Batch) -> Result<(), Refusal> {
        let is_forged = !self.takes_own && draft.source_type == OWN_SOURCE_TYPE;
        let stamped = if is_forged { Err(InvalidEvent::Reserved) } else { draft.stamped(self.clock.now()) };
        let event = stamped.inspect_err(|_| self.stats.invalid.add(1))?;
        batch.set_terms(match self.routes.of(&event) {
            Some(route) => route.terms(self.when_full),
            None => Terms { when_full: self.when_full, priority: 0 },
        });
        batch.push(&event, self.event_bytes_max).map_err(|bytes| {
            self.stats.too_large.add(1);
            Refusal::TooLarge { bytes, bytes_max: self.event_bytes_max }
        })?;
        Ok(())
    }

    /// Makes a batch durable and then offers its pings. The caller acknowledges its events when this returns `Ok`.
    ///
    /// # Errors
    /// [`Refused`]: nothing was acknowledged; see [`crate::buffer::AppendError`] for what to do.
    ///
    /// Cancel safe: no, as [`Buffer::append`].
    pub async fn append(&self, batch: Batch, wait: Wait) -> Result<Appended, Refused> {
        let appended = self.buffer.append(batch, wait).await?;
        if let Some(pings) = &self.pings {
            pings.offer(appended.batch.events());
        }
        Ok(appended)
    }
}
