//! Giving events up on purpose: the lowest priority first, the oldest first, whole blocks, every event counted. Space
//! comes back when a generation is written again without them, so that is how it is done, one generation at a time.

use super::index::Piece;
use super::reading::{Age, Reading};
use super::{Generations, Note, Sealed};
use crate::buffer::block::{Kind, Rank};
use crate::buffer::ledger::{Reason, Replacement};
use crate::buffer::store::{Listed, Shelf, StoreError};
use crate::event::Seq;

/// A generation is written again when at least this part of it can go: below it, much would be written to win little.
const SHARE_MIN: u64 = 8;

/// A file is compacted for room when this part of its content, and some bytes, would come back.
const BLOAT_SHARE: u64 = 4;
const BLOAT_BYTES_MIN: u64 = 128 * 1024;

impl<H: Shelf> Generations<H> {
    /// Gives up the oldest evictable events of the lowest priority there is, up to `priority`, out of one generation.
    /// What the drain has read may be on its way and stays. Whether anything was given up.
    ///
    /// # Errors
    /// [`StoreError`]: the disk refuses; nothing was given up.
    pub(in crate::buffer) fn evict(&mut self, priority: u8) -> Result<bool, StoreError> {
        if self.unsynced_bytes > 0 {
            return Ok(false);
        }
        for priority in 0..=priority {
            let rank = Rank { priority, evictable: true };
            for number in 0..self.row.len() {
                if self.is_worth_it(number, rank)
                    && self.rewrite(number, number + 1, Some(Reason::Evicted), |piece| piece.rank == rank)?
                        > 0
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Seals the newest generation if it holds much that could be evicted, so that [`Self::evict`] can reach it.
    ///
    /// # Errors
    /// As [`Self::evict`].
    pub(in crate::buffer) fn seal_evictable(&mut self, priority: u8) -> Result<bool, StoreError> {
        let Some(newest) = self.newest.as_ref() else { return Ok(false) };
        let evictable = newest.note.bytes_of(|rank| rank.evictable && rank.priority <= priority);
        let is_small =
            newest.live_bytes < self.generation_bytes / 4 || evictable * SHARE_MIN < newest.disk_bytes;
        if is_small || self.unsynced_bytes > 0 || !self.is_idle(newest.first, self.durable) {
            return Ok(false);
        }
        self.add_generation()?;
        Ok(true)
    }

    /// Gives back the space of what was delivered ahead of the cursor: writes a generation again without it, the oldest
    /// in which it is worth it, and seals the newest if it is that one. Nothing is lost and nothing counted. Whether
    /// there was one.
    ///
    /// # Errors
    /// As [`Self::evict`].
    pub(in crate::buffer) fn free_delivered(&mut self) -> Result<bool, StoreError> {
        if self.unsynced_bytes > 0 || self.ahead().is_empty() {
            return Ok(false);
        }
        for number in 0..self.row.len() {
            let end = self.end_of(number);
            let Some(sealed) = self.row.get(number).filter(|sealed| !sealed.listed.is_aside) else {
                continue;
            };
            let (first, seen) = (sealed.listed.first, sealed.delivered);
            let is_empty = sealed.note.as_ref().is_some_and(|note| note.bytes() == 0);
            let (delivered, all) = self.delivered(first, end);
            if is_empty
                || delivered == seen
                || (delivered < all && delivered.saturating_sub(seen) * SHARE_MIN < all)
            {
                continue;
            }
            let before = self.disk_bytes();
            self.rewrite(number, number + 1, None, |_| false)?;
            let written = self.row.partition_point(|sealed| sealed.listed.first <= first).saturating_sub(1);
            if let Some(first) = self.row.get(written).map(|sealed| sealed.listed.first) {
                let (delivered, _) = self.delivered(first, self.end_of(written));
                self.row.iter_mut().skip(written).take(1).for_each(|sealed| sealed.delivered = delivered);
            }
            if self.disk_bytes() < before {
                return Ok(true);
            }
        }
        let Some(newest) = self.newest.as_ref() else { return Ok(false) };
        let is_small = newest.live_bytes < self.generation_bytes / 4;
        let (delivered, all) = self.delivered(newest.first, self.durable);
        if is_small || delivered * 2 < all {
            return Ok(false);
        }
        self.add_generation()?;
        Ok(true)
    }

    /// Writes the oldest sealed generation again whose file is much larger than what is in it: the store leaves space
    /// between its blocks, which matters only when there is no room. Whether there was one.
    ///
    /// # Errors
    /// As [`Self::evict`].
    pub(in crate::buffer) fn compact(&mut self) -> Result<bool, StoreError> {
        if self.unsynced_bytes > 0 {
            return Ok(false);
        }
        let is_bloated = |sealed: &Sealed| {
            let Some(live) = sealed.note.as_ref().map(Note::bytes) else { return false };
            !sealed.listed.is_aside && sealed.disk_bytes > live + live / BLOAT_SHARE + BLOAT_BYTES_MIN
        };
        let Some(number) = self.row.iter().position(is_bloated) else { return Ok(false) };
        let before = self.disk_bytes();
        self.rewrite(number, number + 1, None, |_| false)?;
        Ok(self.disk_bytes() < before)
    }

    fn is_worth_it(&mut self, number: usize, rank: Rank) -> bool {
        let end = self.end_of(number);
        let Some(Sealed { listed, disk_bytes, note, .. }) = self.row.get(number) else { return false };
        let (listed, disk_bytes) = (*listed, *disk_bytes);
        if listed.is_aside || !self.is_idle(listed.first, end) {
            return false;
        }
        if note.is_none() {
            let index = self.index(listed, end, self.cursor_durable).unwrap_or_default();
            if let Some(sealed) = self.row.get_mut(number) {
                sealed.note = Some(Note::of(&index));
            }
        }
        let note = self.row.get(number).and_then(|sealed| sealed.note.as_ref());
        let bytes = note.map_or(0, |note| note.bytes_of(|known| known == rank));
        bytes > 0 && bytes.saturating_mul(SHARE_MIN) >= disk_bytes
    }

    /// Gives up whole generations, oldest first, whose newest event is older than `max_age`. What the drain reads is
    /// looked at block by block besides.
    ///
    /// # Errors
    /// As [`Self::evict`].
    pub(in crate::buffer) fn expire(&mut self, age: Age) -> Result<(), StoreError> {
        let Some(age_max) = self.limits.age_max else { return Ok(()) };
        let mut number = 0;
        while number < self.row.len() {
            // Not what the drain has in its hands, nor what was given up already.
            if self.is_unread(number)
                && let Some((origin, received)) = self.newest_event(number)
            {
                if age.of(origin, received).is_none_or(|age| age <= age_max) {
                    break;
                }
                let before = self.row.len();
                self.rewrite(number, number + 1, Some(Reason::Expired), |_| true)?;
                number -= before.saturating_sub(self.row.len()).min(number);
            }
            number += 1;
        }
        Ok(())
    }

    /// Whether a sealed generation holds something to be delivered and nothing that was read.
    pub(super) fn is_unread(&self, number: usize) -> bool {
        let end = self.end_of(number);
        let first = self.row.get(number).map(|sealed| sealed.listed.first);
        first.is_some_and(|first| !self.is_handed(first, end) && !self.waiting(first, end).is_empty())
    }

    /// Writes the generations `from..to` of the row again as one, without the events that are to go: those that were
    /// delivered ahead of the cursor, and of those that were not read the ones for which `is_given_up` holds. A small
    /// replacement before them is taken in. Counts what is given up under `reason` and answers how many.
    ///
    /// # Errors
    /// [`StoreError`]: the disk refuses; everything is as it was.
    pub(super) fn rewrite(
        &mut self,
        from: usize,
        to: usize,
        reason: Option<Reason>,
        is_given_up: impl Fn(&Piece) -> bool,
    ) -> Result<u64, StoreError> {
        self.finish_replacement()?;
        let from = self.with_small_before(from);
        let mut readings = Vec::new();
        for number in from..to {
            // Counts what is damaged; a damaged generation is kept as it is.
            match self.take_reading(number)? {
                Some(reading) if !reading.listed.is_aside => readings.push(reading),
                _ => return Ok(0),
            }
        }
        let Some(first) = readings.first().map(|reading| reading.listed.first) else { return Ok(0) };
        let last = self.end_of(to - 1);
        let plan = plan(&readings, |piece| match piece.kind {
            Kind::Events if self.waiting(piece.first, piece.last).is_empty() => Fate::Delivered,
            Kind::Events if self.is_handed(piece.first, piece.last) || !is_given_up(piece) => Fate::Kept,
            Kind::Events => Fate::GivenUp,
            _ => Fate::Delivered,
        });
        let slack = self.limits.bytes_max.saturating_sub(self.disk_bytes());
        if plan.kept.bytes() > slack || (reason.is_some() && plan.given_up.is_empty()) {
            return Ok(0);
        }
        self.write_replacement(first, &mut readings, &plan)?;
        // Order: from here on it is counted, and a start that finds the ledger finishes what follows.
        let mut events = 0;
        if let Some(reason) = reason {
            for &(first, last) in &plan.given_up {
                events += self.count_lost(reason, first, last);
            }
        }
        self.ledger.set_replacement(Some(Replacement { first, last }));
        self.store_ledger();
        self.row.drain(from..to);
        let listed = Listed { first, is_aside: false };
        self.row.insert(
            from,
            Sealed { listed, disk_bytes: 0, note: Some(plan.kept), newest: None, delivered: 0 },
        );
        self.finish_replacement()?;
        self.given_up += events;
        if let Some((reason, suppressed)) =
            reason.and_then(|reason| Some((reason, self.given_up_log.allow()?)))
        {
            tracing::warn!(
                events = std::mem::take(&mut self.given_up),
                suppressed,
                first = plan.given_up.first().map(|range| range.0.0),
                last = plan.given_up.last().map(|range| range.1.0),
                "events were given up ({}) and counted in the loss ledger",
                reason.word()
            );
        }
        Ok(events)
    }

    fn write_replacement(
        &mut self,
        first: Seq,
        readings: &mut [Reading],
        plan: &Plan,
    ) -> Result<(), StoreError> {
        let (encoder, cursor) = (&mut self.encoder, self.cursor_durable);
        let mut bytes = 0;
        self.shelf.prepare(first, &mut |put| {
            let mut put = |block: &[u8]| {
                bytes += block.len() as u64;
                put(block)
            };
            put(encoder.cursor(cursor))?;
            for step in &plan.steps {
                match *step {
                    Step::Keep { reading, piece } => {
                        if let Some(reading) = readings.get_mut(reading) {
                            reading.blocks(piece, &mut put)?;
                        }
                    }
                    Step::Gap { first, last } => {
                        let mut from = first;
                        while from <= last {
                            let positions = u32::try_from(last.0 + 1 - from.0).unwrap_or(u32::MAX);
                            put(encoder.gap(from, positions))?;
                            from = from.plus(u64::from(positions));
                        }
                    }
                }
            }
            Ok(())
        })?;
        self.stored_bytes += bytes;
        Ok(())
    }

    /// A generation that was emptied before grows with its neighbour, so that gaps do not pile up as folders.
    fn with_small_before(&self, from: usize) -> usize {
        let before = from.checked_sub(1).and_then(|before| self.row.get(before));
        let is_small = before
            .is_some_and(|sealed| !sealed.listed.is_aside && sealed.disk_bytes < self.generation_bytes / 4);
        if is_small { from - 1 } else { from }
    }
}

#[derive(Debug)]
enum Step {
    Keep { reading: usize, piece: usize },
    Gap { first: Seq, last: Seq },
}

/// What a replacement consists of.
#[derive(Debug, Default)]
struct Plan {
    steps: Vec<Step>,
    given_up: Vec<(Seq, Seq)>,
    kept: Note,
}

/// What becomes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    GivenUp,
    /// Or it is a gap.
    Delivered,
}

fn plan(readings: &[Reading], fate: impl Fn(&Piece) -> Fate) -> Plan {
    let mut plan = Plan::default();
    for (reading, index) in readings.iter().map(Reading::index).enumerate() {
        for (number, piece) in index.pieces.iter().enumerate() {
            let fate = fate(piece);
            if fate == Fate::GivenUp {
                match plan.given_up.last_mut() {
                    Some((_, last)) if last.next() == piece.first => *last = piece.last,
                    _ => plan.given_up.push((piece.first, piece.last)),
                }
            }
            if fate == Fate::Kept {
                plan.kept.add(piece.rank, piece.bytes);
                plan.steps.push(Step::Keep { reading, piece: number });
                continue;
            }
            match plan.steps.last_mut() {
                Some(Step::Gap { last, .. }) if last.next() == piece.first => *last = piece.last,
                _ => plan.steps.push(Step::Gap { first: piece.first, last: piece.last }),
            }
        }
    }
    plan
}
