//! `kafka.order = "live_first"`: fresh events at once, what has waited for too long behind them.
//!
//! There is one lane until the oldest event of it has waited for too long: then everything that waits becomes backlog,
//! and the live lane goes on with what comes. Behind the next outage there may be more backlog; it goes out in order.
//!
//! An event goes out again in the lane in which it may have gone out before: consumers drop duplicates by one position
//! for each lane. So before live events go out, the buffer keeps up to where they may have (`claimed`); after a start
//! those go out live once more, however old they are, and only what is behind them may become backlog. Exactly once needs
//! no such word: what was not committed was not seen, and the lanes are committed with the events.

use std::time::Duration;

use tokio::time::Instant;

use super::flow::Flow;
use super::progress::Progress;
use super::{Delivery, Drain, DrainError, Options, Order};
use crate::buffer::block::Origin;
use crate::buffer::{self, Buffer};
use crate::error::Class;
use crate::event::{Seq, Stamp};
use crate::sink::Producer;
use crate::sink::record::Lane;
use crate::system::Clock;

/// Shortest time between two writes of what is delivered ahead of the cursor: what goes out again after a kill, against
/// writes to flash.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How many events are claimed at once: few where they are rare, so that few old ones go out live after a crash; many
/// where they are not, so that there are few writes to flash.
const CLAIM_MIN: u64 = 1024;
const CLAIM_MAX: u64 = 65_536;

/// Claims that last less long are too small, and too large when they last longer.
const CLAIM_TIME_MIN: Duration = Duration::from_secs(1);
const CLAIM_TIME_MAX: Duration = Duration::from_secs(10);

/// What is on its way in each lane, and what of it is delivered.
#[derive(Debug)]
pub(super) struct Lanes {
    live: Flow,
    backlog: Flow,
    pub(super) progress: Progress,
    /// Live events up to here may have gone out before: they do again, whatever they are by now.
    in_doubt: Seq,
    /// The last event that may go out live before more is claimed.
    claimed: Seq,
    claim: u64,
    claimed_at: Instant,
    /// The live lane's next event is beyond the claim.
    pub(super) needs_claim: bool,
    /// The oldest live event has waited for too long: what waits becomes backlog once nothing live is in flight.
    pub(super) is_split_wanted: bool,
    /// What the buffer keeps.
    kept: Progress,
    kept_at: Instant,
    needs_claims: bool,
    boot: [u8; 16],
    clock: Clock,
}

impl Lanes {
    /// As the buffer keeps them.
    pub(super) fn of(buffer: &Buffer, options: &Options) -> Self {
        let (figures, now) = (buffer.figures(), Instant::now());
        let (progress, claimed) = match buffer.lanes() {
            Some(buffer::Lanes { ahead, live_from, claimed }) => {
                (Progress::restored(figures.cursor, &ahead, live_from), claimed)
            }
            None => (Progress::at(figures.cursor), Seq(0)),
        };
        let live = Flow::at(progress.live_from().before(), 0);
        let backlog = Flow::at(progress.cursor(), 1);
        let mut this = Self {
            live,
            backlog,
            kept: progress.clone(),
            progress,
            in_doubt: Seq(0),
            claimed,
            claim: CLAIM_MIN,
            claimed_at: now,
            needs_claim: false,
            is_split_wanted: false,
            kept_at: now,
            needs_claims: options.needs_claims(),
            boot: buffer.boot(),
            clock: Clock::default(),
        };
        let is_unknown = buffer.are_lanes_damaged() || (this.needs_claims && buffer.lanes().is_none());
        // With exactly once Kafka knows.
        if is_unknown && options.delivery != Delivery::ExactlyOnce && figures.durable > figures.cursor {
            // What may have gone out live is not known, and a consumer may be further there: as backlog nothing is
            // taken for a duplicate that is none.
            this.progress.split(figures.durable);
            this.live.restart(figures.durable);
        }
        if this.needs_claims {
            this.in_doubt = claimed.min(figures.durable);
        }
        this
    }

    pub(super) fn flow(&self, lane: Lane) -> &Flow {
        match lane {
            Lane::Live => &self.live,
            Lane::Backlog => &self.backlog,
        }
    }

    pub(super) fn flow_mut(&mut self, lane: Lane) -> &mut Flow {
        match lane {
            Lane::Live => &mut self.live,
            Lane::Backlog => &mut self.backlog,
        }
    }

    /// The lane whose window gave this tag.
    pub(super) fn of_tag(&mut self, tag: usize) -> &mut Flow {
        if tag & 1 == 0 { &mut self.live } else { &mut self.backlog }
    }

    /// Events in flight without a report.
    pub(super) fn open(&self) -> usize {
        self.live.window.open() + self.backlog.window.open()
    }

    /// Events in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.live.window.len() + self.backlog.window.len()
    }

    /// Bytes of memory in flight.
    pub(super) fn bytes(&self) -> usize {
        self.live.window.bytes() + self.backlog.window.bytes()
    }

    /// When the oldest event in flight was taken, microseconds since boot.
    pub(super) fn oldest_boot_us(&self) -> Option<u64> {
        let oldest = |flow: &Flow| flow.window.oldest_boot_us();
        [oldest(&self.live), oldest(&self.backlog)].into_iter().flatten().min()
    }

    /// Whether everything up to `durable` was handed over.
    pub(super) fn are_sent(&self, durable: Seq) -> bool {
        self.live.sent >= durable && !self.has_unsent_backlog()
    }

    pub(super) fn has_unsent_backlog(&self) -> bool {
        self.progress.is_split() && self.progress.skip(self.backlog.sent).next() < self.progress.live_from()
    }

    /// Events that were read and not handed over.
    pub(super) fn unsent_in_runs(&self) -> usize {
        let unsent = |flow: &Flow| flow.run.events().filter(|(seq, ..)| *seq > flow.sent).count();
        unsent(&self.live) + unsent(&self.backlog)
    }

    /// Whether the event is for the lane: runs are of whole blocks.
    pub(super) fn is_of(&self, lane: Lane, seq: Seq) -> bool {
        lane == Lane::Live || (seq < self.progress.live_from() && !self.progress.has(seq))
    }

    /// Whether the event is confirmed, committed or not.
    pub(super) fn is_confirmed(&self, seq: Seq) -> bool {
        let flow = if seq >= self.progress.live_from() { &self.live } else { &self.backlog };
        self.progress.has(seq) || seq <= flow.confirmed
    }

    /// What a transaction commits: all that is confirmed.
    pub(super) fn confirmed(&self) -> Progress {
        let mut progress = self.progress.clone();
        progress.live(self.live.confirmed);
        progress.backlog(self.backlog.confirmed);
        progress
    }

    /// What is confirmed may be forgotten. Whether the cursor or a lane went on.
    pub(super) fn settle(&mut self) -> bool {
        let (was_split, before) = (self.progress.is_split(), self.progress.mark());
        self.progress.live(self.live.confirmed);
        self.progress.backlog(self.backlog.confirmed);
        if was_split && !self.progress.is_split() {
            // Its memory.
            self.backlog.restart(self.progress.cursor());
            tracing::info!("the backlog is through");
        }
        self.progress.mark() != before
    }

    /// Back to what is settled: what was in flight goes out again, in the same lane.
    pub(super) fn rewind(&mut self) {
        if self.needs_claims {
            self.in_doubt = self.in_doubt.max(self.live.sent);
        }
        self.live.restart(self.progress.live_from().before());
        self.backlog.restart(self.progress.cursor());
        self.is_split_wanted = false;
    }

    /// At most once: what is in flight does not go out again.
    pub(super) fn give_up(&mut self) {
        self.live.window.clear();
        self.backlog.window.clear();
    }

    /// Goes on behind what Kafka has.
    pub(super) fn resume(&mut self, progress: Progress) {
        self.progress = progress;
        self.rewind();
        self.in_doubt = Seq(0);
    }

    /// Whether an event that waits in the live lane is to become backlog, with all that wait behind it.
    pub(super) fn is_late(&self, order: Order, seq: Seq, origin: Origin, received: Stamp) -> bool {
        let Order::LiveFirst { backlog_after } = order else { return false };
        if seq <= self.in_doubt || self.progress.is_at_its_limit() {
            return false;
        }
        let waited_us = self.clock.now().boot_us.saturating_sub(received.boot_us);
        // Of another boot is old enough: the gateway was down.
        origin.boot != self.boot || Duration::from_micros(waited_us) > backlog_after
    }

    /// Makes everything that waits up to `durable` backlog; nothing live is in flight, and the buffer knows.
    fn split(&mut self, split: Progress, durable: Seq) {
        self.is_split_wanted = false;
        let (was_split, first) = (self.progress.is_split(), self.live.sent.next());
        self.progress = split;
        if !was_split {
            self.backlog.restart(self.progress.cursor());
        }
        self.live.restart(durable);
        tracing::info!(
            events = durable.0 + 1 - first.0,
            first = first.0,
            "events have waited for longer than kafka.backlog_after: they go out as backlog, behind fresh ones"
        );
    }

    /// Whether the lane may send the event without another claim.
    pub(super) fn is_claimed(&self, lane: Lane, seq: Seq) -> bool {
        !self.needs_claims || lane == Lane::Backlog || seq <= self.claimed
    }

    /// When what the buffer keeps is written again, if it has to be.
    pub(super) fn keep_due(&self) -> Option<Instant> {
        let is_new = self.progress.is_split() && self.progress.live_from() != self.kept.live_from();
        is_new.then(|| self.kept_at + KEEP_INTERVAL)
    }
}

impl Options {
    /// Whether the buffer has to know what may have gone out live.
    fn needs_claims(&self) -> bool {
        matches!(self.order, Order::LiveFirst { .. }) && self.delivery == Delivery::AtLeastOnce
    }
}

impl<P: Producer> Drain<P> {
    /// Makes what waits backlog, once nothing live is in flight and no transaction is open: its end commits the lanes as
    /// they were.
    pub(super) async fn split_if_wanted(&mut self) -> Result<(), DrainError> {
        let is_free = self.lanes.live.window.is_empty() && !self.is_transaction_begun();
        if !self.lanes.is_split_wanted || !is_free {
            return Ok(());
        }
        let durable = *self.durable.borrow();
        let mut split = self.lanes.progress.clone();
        split.split(durable);
        // Order: kept before the first of them goes out as backlog, for they were claimed for the live lane.
        let claimed = durable.plus(self.lanes.claim);
        if self.keep_lanes(&split, claimed).await? {
            self.lanes.claimed = claimed;
            self.lanes.split(split, durable);
        } else {
            self.lanes.is_split_wanted = false;
            self.pause_until_tried_again();
        }
        Ok(())
    }

    /// Claims more events for the live lane. Without the word on disk nothing goes out: it is tried again.
    pub(super) async fn claim(&mut self) -> Result<(), DrainError> {
        let now = Instant::now();
        let lanes = &mut self.lanes;
        lanes.needs_claim = false;
        let lasted = now - lanes.claimed_at;
        if lasted < CLAIM_TIME_MIN {
            lanes.claim = (lanes.claim * 4).min(CLAIM_MAX);
        } else if lasted > CLAIM_TIME_MAX {
            lanes.claim = (lanes.claim / 4).max(CLAIM_MIN);
        }
        let claimed = lanes.live.sent.plus(lanes.claim);
        let progress = self.lanes.progress.clone();
        if self.keep_lanes(&progress, claimed).await? {
            (self.lanes.claimed, self.lanes.claimed_at) = (claimed, now);
        } else {
            self.pause_until_tried_again();
        }
        Ok(())
    }

    /// Lets the buffer keep the lanes. Whether it does.
    async fn keep_lanes(&mut self, progress: &Progress, claimed: Seq) -> Result<bool, DrainError> {
        match self.buffer.set_lanes(progress.to_lanes(self.buffer.figures().cursor, claimed)).await {
            Ok(()) => {
                self.lanes.kept.clone_from(progress);
                self.lanes.kept_at = Instant::now();
                Ok(true)
            }
            Err(error) if error.class() == Class::Retry => {
                if let Some(suppressed) = self.refusal_logs.failed.allow() {
                    tracing::error!(%error, suppressed, "waiting for the buffer, which has to keep what goes out live");
                }
                self.lanes.kept_at = Instant::now();
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Lets the buffer keep what is delivered ahead of the cursor, not too often: without it, it goes out again.
    pub(super) async fn keep_lanes_if_due(&mut self) -> Result<(), DrainError> {
        if self.lanes.keep_due().is_some_and(|due| due <= Instant::now()) {
            let progress = self.lanes.progress.clone();
            self.keep_lanes(&progress, self.lanes.claimed).await?;
        }
        Ok(())
    }

    /// At the stop: nothing is in doubt but what was not confirmed.
    pub(super) async fn keep_lanes_for_next_start(&mut self) {
        let claimed = self.lanes.live.sent.max(self.lanes.in_doubt);
        let is_needed = self.lanes.needs_claims && claimed < self.lanes.claimed;
        let progress = self.lanes.progress.clone();
        if (is_needed || self.lanes.keep_due().is_some())
            && let Err(error) = self.keep_lanes(&progress, claimed).await
        {
            tracing::warn!(%error, "what went out live could not be kept: it may go out again");
        }
    }
}
