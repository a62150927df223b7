//! Two lanes in one row: what of it was delivered ahead of the cursor, what each lane's reader has in its hands, and the
//! one way to count a loss.
//!
//! The row is split while the live lane begins behind the event after the cursor. Then the backlog is read up to there
//! and the live lane from there on.

use super::Generations;
use crate::buffer::lanes::Lanes;
use crate::buffer::ledger::Reason;
use crate::buffer::ranges;
use crate::buffer::store::{Shelf, StoreError};
use crate::event::Seq;

/// Up to where each lane was read: that may be on its way. The same in both while there is one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Handed {
    backlog: Seq,
    live: Seq,
}

impl Handed {
    /// Everything up to `seq`.
    pub(super) fn all(seq: Seq) -> Self {
        Self { backlog: seq, live: seq }
    }

    fn furthest(self) -> Seq {
        self.backlog.max(self.live)
    }
}

impl<H: Shelf> Generations<H> {
    /// What went out ahead of the cursor, as it was stored last.
    pub(in crate::buffer) fn lanes(&self) -> Option<&Lanes> {
        self.lanes.lanes()
    }

    /// Makes `lanes` durable and reckons with them.
    ///
    /// # Errors
    /// [`StoreError`]: what was stored before counts.
    pub(in crate::buffer) fn set_lanes(&mut self, lanes: Lanes) -> Result<(), StoreError> {
        let was_split = self.live_from().is_some();
        let set = self.lanes.set(lanes, self.cursor_durable);
        set.map_err(|e| StoreError::io("LANES cannot be written", &e))?;
        if !was_split {
            // What the live lane of an earlier split has read may be backlog now.
            self.handed = Handed::all(self.handed.furthest());
        }
        Ok(())
    }

    /// Ranges that were delivered ahead of the cursor.
    pub(super) fn ahead(&self) -> &[(Seq, Seq)] {
        self.lanes.lanes().map_or(&[], |lanes| &lanes.ahead)
    }

    /// Where the live lane begins; `None` while there is one lane.
    pub(super) fn live_from(&self) -> Option<Seq> {
        let live_from = self.lanes.lanes()?.live_from;
        Some(live_from).filter(|live_from| *live_from > self.cursor.next())
    }

    /// Where the backlog ends, for a read behind `after` if that begins in it; else the last durable event.
    pub(super) fn end_of_lane(&self, after: Seq) -> Seq {
        let backlog = self.live_from().map(Seq::before).filter(|end| after < *end);
        backlog.map_or(self.durable, |end| end.min(self.durable))
    }

    /// Notes that a read behind `after` went up to `end`.
    pub(super) fn hand(&mut self, after: Seq, end: Seq) {
        match self.live_from() {
            Some(live_from) if after.next() < live_from => self.handed.backlog = self.handed.backlog.max(end),
            Some(_) => self.handed.live = self.handed.live.max(end),
            None => self.handed = Handed::all(self.handed.furthest().max(end)),
        }
    }

    /// What was read and may be on its way: the backlog's, and the live lane's.
    fn handed(&self) -> [(Seq, Seq); 2] {
        match self.live_from() {
            Some(live_from) => {
                let end = live_from.before();
                [(Seq(0), self.handed.backlog.min(end)), (live_from, self.handed.live.max(end))]
            }
            None => [(Seq(0), self.handed.furthest()), (Seq(1), Seq(0))],
        }
    }

    /// Whether something of `first..=last` may be on its way.
    pub(super) fn is_handed(&self, first: Seq, last: Seq) -> bool {
        self.handed().iter().any(|&(from, to)| first.max(from) <= last.min(to))
    }

    /// Whether there is something in `first..=last` that was neither delivered nor may be on its way.
    pub(super) fn is_idle(&self, first: Seq, last: Seq) -> bool {
        let handed = self.handed();
        self.waiting(first, last)
            .iter()
            .any(|&(first, last)| !ranges::minus((first, last), &mut handed.to_vec()).is_empty())
    }

    /// What of `first..=last` was not delivered.
    pub(super) fn waiting(&self, first: Seq, last: Seq) -> Vec<(Seq, Seq)> {
        ranges::minus((first.max(self.cursor_durable.next()), last), &mut self.ahead().to_vec())
    }

    /// How many positions of `first..=last` behind the cursor were delivered, and of how many.
    pub(super) fn delivered(&self, first: Seq, last: Seq) -> (u64, u64) {
        let all = ranges::count(&[(first.max(self.cursor_durable.next()), last)]);
        (all - ranges::count(&self.waiting(first, last)), all)
    }

    /// How many positions in front of the live lane were not delivered.
    pub(super) fn backlog(&self) -> u64 {
        let end = self.live_from().map_or(Seq(0), |live_from| live_from.before().min(self.durable));
        ranges::count(&self.waiting(Seq(0), end))
    }

    /// Counts what of `first..=last` was an event, not delivered and not counted before: every loss of events that
    /// have a position comes through here. Answers how many that were.
    pub(super) fn count_lost(&mut self, reason: Reason, first: Seq, last: Seq) -> u64 {
        let mut events = 0;
        for range in self.waiting(first, last) {
            let mut jumped: Vec<_> = self.identity.jumped().collect();
            for (first, last) in ranges::minus(range, &mut jumped) {
                events += self.ledger.count_range(reason, first, last);
            }
        }
        events
    }
}
