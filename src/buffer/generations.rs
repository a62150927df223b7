//! The queue as a row of generations: append at the newest, read from the oldest, give space back behind the cursor.
//!
//! Each generation is a small store named by its first sequence number. Keys are sequence numbers (big-endian, so
//! that they sort), followed by the chunk index for the later chunks of a large event; values are blocks. One more
//! key, [`CURSOR_KEY`], sorts behind all of them and holds the drain's cursor, so that one sync covers both.
//!
//! - The newest generation takes appends. Drained blocks are removed from it and the store reuses their space.
//! - When its live bytes reach the limit it is sealed and a new one is made. A sealed generation that is drained
//!   behind a *durable* cursor is deleted whole: that is how disk space comes back.
//! - Only two are open at most: the newest and the one being read.
//!
//! Owned by the writer thread; everything here blocks.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;

use super::OpenError;
use super::batch::Batch;
use super::block::{Assembly, Block, BlockError, Encoder, Origin, RUN_BYTES_MAX};
use super::identity::{HighWater, Identity};
use super::run::Run;
use super::store::{Listed, Shelf, Store, StoreError};
use crate::error::Class;
use crate::event::Seq;

/// Sorts behind every key of a block.
const CURSOR_KEY: &[u8] = b"\xffcursor";

/// Bound of sequence numbers: at a million events a second it is reached after 290,000 years.
const SEQ_MAX: Seq = Seq(u64::MAX >> 1);

/// Live bytes at which the newest generation is sealed, with a quota that allows it: large enough that opening is
/// rare, small enough that memory (which grows with an open database) and the grain of returned space stay small.
pub(super) const GENERATION_BYTES: u64 = 8 * 1024 * 1024;

/// Disk that a sync may take beyond [`GROWTH`]: segments begun and not filled.
pub(super) const GENERATION_COST_BYTES: u64 = 2 * 1024 * 1024;

/// How many times its size a group of blocks may take on disk before the store cleans up behind itself. Measured with
/// incompressible events of 60 bytes to 60 KB in groups of 10 KB to 4 MB: at most 2.6 and the cost above.
pub(super) const GROWTH: u64 = 3;

/// A drained newest generation larger than this gives its disk back when there is no room: an empty one takes less
/// than a tenth of it.
const DRAINED_BYTES_MAX: u64 = 1024 * 1024;

/// Most events in one block: its count has 16 bits.
const BLOCK_EVENTS_MAX: u16 = u16::MAX;

/// One generation of the row.
#[derive(Debug)]
struct Generation<S> {
    first: Seq,
    /// Open only while it is the newest or is being read.
    store: Option<S>,
    /// Bytes of disk when it was last looked at.
    disk_bytes: u64,
    /// Damaged and set aside: its numbers are known to be missing, its files stay for salvage.
    is_aside: bool,
}

/// Numbers that the handle shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Last durable event.
    pub durable: Seq,
    /// Everything up to here may be forgotten.
    pub cursor: Seq,
    /// Bytes of disk.
    pub disk_bytes: u64,
    /// Number of generations.
    pub generations: usize,
    /// Events that were found damaged or missing in this run.
    pub damaged: u64,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Generations<H: Shelf> {
    shelf: H,
    identity: Identity,
    high_water: HighWater,
    encoder: Encoder,
    row: VecDeque<Generation<H::Store>>,
    /// Most bytes of disk.
    bytes_max: u64,
    /// Live bytes at which the newest is sealed.
    generation_bytes: u64,
    /// Bytes put into the newest and not removed from it.
    live_bytes: u64,
    /// Bytes put since the last sync: the disk does not show them yet.
    unsynced_bytes: u64,
    /// The next event's position.
    next: Seq,
    durable: Seq,
    /// The cursor that the next sync makes durable, and the durable one.
    cursor: Seq,
    cursor_durable: Seq,
    damaged: u64,
    /// Holes up to here were counted.
    looked: Seq,
}

impl<H: Shelf> Generations<H> {
    /// Opens the row. A generation that cannot be opened for damage is set aside; the rest is served.
    ///
    /// # Errors
    /// [`OpenError`]: the directory cannot be used now; nothing was lost.
    pub(super) fn open(
        shelf: H,
        identity: Identity,
        high_water: HighWater,
        boot: [u8; 16],
        bytes_max: u64,
    ) -> Result<Self, OpenError> {
        let origin = Origin { epoch: identity.epoch(), boot };
        let generation_bytes = (bytes_max / 8).clamp(1024 * 1024, GENERATION_BYTES);
        let mut this = Self {
            shelf,
            identity,
            high_water,
            encoder: Encoder::new(origin),
            row: VecDeque::new(),
            bytes_max,
            generation_bytes,
            live_bytes: 0,
            unsynced_bytes: 0,
            next: Seq(1),
            durable: Seq(0),
            cursor: Seq(0),
            cursor_durable: Seq(0),
            damaged: 0,
            looked: Seq(0),
        };
        // Until the row tells more: what is set aside is counted from here on.
        (this.cursor, this.cursor_durable) = (this.high_water.cursor, this.high_water.cursor);
        for Listed { first, is_aside } in this.shelf.list()? {
            let disk_bytes = if is_aside { 0 } else { this.shelf.disk_bytes(first) };
            this.row.push_back(Generation { first, store: None, disk_bytes, is_aside });
        }
        let is_suspect = this.row.back().is_some_and(|g| this.identity.is_suspect(g.first));
        this.recover(is_suspect)?;
        Ok(this)
    }

    /// Seals the newest generation earlier, so that few bytes make a long row.
    #[cfg(test)]
    pub(super) fn with_generation_bytes(mut self, generation_bytes: u64) -> Self {
        self.generation_bytes = generation_bytes;
        self
    }

    /// The numbers now.
    pub(super) fn figures(&self) -> Figures {
        Figures {
            durable: self.durable,
            cursor: self.cursor_durable,
            disk_bytes: self.disk_bytes(),
            generations: self.row.len(),
            damaged: self.damaged,
        }
    }

    /// Finds the end and the cursor after a start or a failed write, and makes the newest generation writable.
    /// `is_suspect`: a sync failed, so nothing more is written to the generation that was the newest.
    fn recover(&mut self, is_suspect: bool) -> Result<(), OpenError> {
        let End { last, cursor, live_bytes } = self.find_end()?;
        let known = self.high_water.durable;
        let lost = known.0.saturating_sub(last.0);
        let newest = self.row.back().map(|g| g.first);
        let is_newest_usable = self.row.back().is_some_and(|g| g.store.is_some());
        (self.cursor, self.cursor_durable) = (cursor, cursor);
        self.unsynced_bytes = 0;
        self.next = last.next();
        // Numbers may have been used and lost: a tail, a whole generation, a directory without generations; or the
        // suspect generation is empty and has the name that the new one would get.
        let is_name_taken = is_suspect && newest == Some(self.next);
        let is_wiped = newest.is_none() && self.identity.ceiling() > Seq(0);
        if let Some(store) = self.row.back_mut().and_then(|g| g.store.as_mut()).filter(|_| is_suspect) {
            // What was put and refused is served if it is still there. This makes it durable when only a put had
            // failed; when a sync had, nothing can, and nothing depends on it.
            if let Err(error) = store.sync() {
                tracing::debug!(%error, "the generation that is left behind cannot be synced");
            }
        }
        if lost > 0 || is_wiped || is_name_taken || self.row.back().is_some_and(|g| g.is_aside) {
            self.next =
                self.identity.jump(last, cursor).map_err(|e| StoreError::Io(format!("IDENTITY: {e}")))?;
            self.add_generation()?;
        } else if is_suspect || !is_newest_usable {
            self.add_generation()?;
        } else {
            self.adopt_newest(live_bytes).inspect_err(|_| self.doubt_newest())?;
        }
        // A generation that was set aside has counted its own events.
        if lost > 0 && is_newest_usable {
            self.damaged += lost;
            tracing::error!(
                first = last.0 + 1,
                last = known.0,
                events = lost,
                "acknowledged events at the end of the buffer are missing"
            );
        }
        if is_name_taken {
            self.drop_empty(last.next());
        }
        self.trim();
        Ok(())
    }

    /// Goes on with the newest generation as it was found. After a process death it may hold what was never synced:
    /// that is served, so it is made durable first.
    fn adopt_newest(&mut self, live_bytes: u64) -> Result<(), StoreError> {
        let (mut torn, mut torn_bytes) = (Vec::new(), 0);
        let next = self.next.0.to_be_bytes();
        let store = self.newest()?;
        store.scan(&next, &mut |key, value| {
            if key_seq(key).is_none() {
                return ControlFlow::Break(());
            }
            torn.push(key.to_vec());
            torn_bytes += (key.len() + value.len()) as u64;
            ControlFlow::Continue(())
        })?;
        // Chunks without their event would lie between the blocks that are put next and hide them.
        for key in torn {
            store.remove(&key)?;
        }
        store.sync()?;
        self.live_bytes = live_bytes.saturating_sub(torn_bytes);
        self.durable = Seq(self.next.0 - 1);
        self.note_high_water(false);
        Ok(())
    }

    /// Deletes a generation in which nothing ever became durable, so that failing syncs do not pile up empty ones.
    fn drop_empty(&mut self, first: Seq) {
        self.row.retain(|g| g.first != first);
        if let Err(error) = self.shelf.delete(first) {
            tracing::warn!(%error, "an empty generation could not be deleted");
        }
    }

    /// The last position in use and the cursor, as far as what can be opened tells.
    fn find_end(&mut self) -> Result<End, StoreError> {
        let mut found = End { last: Seq(0), cursor: self.high_water.cursor, live_bytes: 0 };
        // The newest that can be opened has the end. The cursor is in it too, or in the one before it when a crash
        // came between the making of a generation and its first sync.
        for index in (0..self.row.len()).rev() {
            let Some(store) = self.open_at(index)? else { continue };
            let end = match read_end(store) {
                Ok(end) => end,
                Err(error) if error.class() == Class::Reject => {
                    self.set_aside(index, &error)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if index + 1 == self.row.len() {
                found.live_bytes = end.live_bytes;
            }
            found.last = found.last.max(end.last);
            found.cursor = found.cursor.max(end.cursor);
            if end.cursor > Seq(0) || end.last > Seq(0) {
                break;
            }
        }
        let newest = self.row.iter().rev().find(|g| !g.is_aside);
        found.last = found.last.max(newest.map_or(Seq(0), |g| Seq(g.first.0.saturating_sub(1))));
        found.last = found.last.max(found.cursor);
        Ok(found)
    }

    /// The store at `index` of the row, opened if need be; `None` when it was damaged and is set aside now.
    fn open_at(&mut self, index: usize) -> Result<Option<&H::Store>, StoreError> {
        let Some(generation) = self.row.get_mut(index).filter(|g| !g.is_aside) else { return Ok(None) };
        if generation.store.is_none() {
            match self.shelf.open(generation.first) {
                Ok(store) => {
                    generation.disk_bytes = store.disk_bytes();
                    generation.store = Some(store);
                }
                Err(error) if error.class() == Class::Reject => {
                    self.set_aside(index, &error)?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.row.get(index).and_then(|g| g.store.as_ref()))
    }

    fn set_aside(&mut self, index: usize, error: &StoreError) -> Result<(), StoreError> {
        let Some(generation) = self.row.get_mut(index) else { return Ok(()) };
        generation.store = None;
        let first = generation.first;
        let end = self.row.get(index + 1).map(|g| g.first.0 - 1).or_else(|| {
            let known = self.high_water.durable.0;
            (known >= first.0).then_some(known)
        });
        let from = first.max(self.cursor_durable.next());
        let lost = end.map_or(0, |end| {
            (end + 1).saturating_sub(from.0).saturating_sub(self.identity.jumped(from, Seq(end)))
        });
        let place = self.shelf.set_aside(first)?;
        if let Some(generation) = self.row.get_mut(index) {
            (generation.is_aside, generation.disk_bytes) = (true, 0);
        }
        self.damaged += lost;
        tracing::error!(
            %place, first = from.0, last = end, events = lost, %error,
            "a part of the buffer is damaged and was set aside; the rest is served"
        );
        Ok(())
    }

    /// Seals the newest generation, if there is one, and makes a new one that starts at the next event.
    fn add_generation(&mut self) -> Result<(), StoreError> {
        let (first, cursor) = (self.next, self.cursor);
        let mut store = self.shelf.create(first)?;
        store.put(CURSOR_KEY, &cursor.0.to_be_bytes())?;
        store.sync()?;
        // Everything before a new generation is durable, or known to be lost.
        (self.durable, self.cursor_durable) = (Seq(first.0 - 1), cursor);
        let disk_bytes = store.disk_bytes();
        self.row.push_back(Generation { first, store: Some(store), disk_bytes, is_aside: false });
        self.live_bytes = 0;
        self.note_high_water(true);
        // The oldest stays open for the drain; every other sealed one is opened again when it is its turn.
        self.close_all_but(0, self.row.len() - 1);
        Ok(())
    }

    /// Whether `bytes` of events can be put without going over the quota. May replace an emptied newest generation
    /// by a new one, since a store's file never shrinks.
    ///
    /// # Errors
    /// [`StoreError`] of that replacement.
    pub(super) fn has_room(&mut self, bytes: usize) -> Result<bool, StoreError> {
        let needed = |this: &Self| {
            let fresh = this.unsynced_bytes + bytes as u64;
            this.disk_bytes() + GROWTH * fresh + GENERATION_COST_BYTES
        };
        if needed(self) <= self.bytes_max {
            return Ok(true);
        }
        let newest_disk = self.row.back().map_or(0, |g| g.disk_bytes);
        let is_mostly_free =
            newest_disk > DRAINED_BYTES_MAX && self.live_bytes.saturating_mul(4) < newest_disk;
        if !is_mostly_free || self.unsynced_bytes > 0 {
            return Ok(false);
        }
        self.add_generation()?;
        self.trim();
        Ok(needed(self) <= self.bytes_max)
    }

    fn disk_bytes(&self) -> u64 {
        self.row.iter().map(|g| g.disk_bytes).sum()
    }

    /// Puts a batch behind everything else and answers its first position. Not durable before [`Self::sync`].
    ///
    /// # Errors
    /// [`StoreError`]: nothing of it may be acknowledged; call [`Self::reopen`] before the next write.
    pub(super) fn put(&mut self, batch: &Batch) -> Result<Seq, StoreError> {
        self.try_put(batch).inspect_err(|_| self.doubt_newest())
    }

    fn try_put(&mut self, batch: &Batch) -> Result<Seq, StoreError> {
        let first = self.next;
        let end = first.plus(batch.len() as u64);
        self.identity.reserve(end).map_err(|e| StoreError::Io(format!("IDENTITY: {e}")))?;
        let store = self.row.back_mut().and_then(|g| g.store.as_mut());
        let store = store.ok_or_else(|| StoreError::Io("no generation is open".into()))?;
        let mut put_bytes = 0;
        let mut at = 0;
        while let Some((run, count)) = batch.run(at, RUN_BYTES_MAX, BLOCK_EVENTS_MAX) {
            let run_first = first.plus(at as u64);
            self.encoder.encode(run_first, count, run, |chunk, value| {
                let (key, key_bytes) = block_key(run_first, chunk);
                put_bytes += (key_bytes + value.len()) as u64;
                store.put(key.get(..key_bytes).unwrap_or_default(), value)
            })?;
            at += usize::from(count);
        }
        self.next = end;
        self.live_bytes += put_bytes;
        self.unsynced_bytes += put_bytes;
        Ok(first)
    }

    /// Notes that everything up to `cursor` may be forgotten once that is durable.
    pub(super) fn advance(&mut self, cursor: Seq) {
        self.cursor = self.cursor.max(cursor.min(self.durable));
    }

    /// Whether a sync would make anything durable.
    pub(super) fn is_dirty(&self) -> bool {
        self.unsynced_bytes > 0 || self.cursor > self.cursor_durable
    }

    /// Makes puts and cursor durable with one sync, then seals a full generation and deletes drained ones.
    ///
    /// # Errors
    /// [`StoreError`]: nothing put since the last sync may be acknowledged; call [`Self::reopen`].
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        if !self.is_dirty() {
            return Ok(());
        }
        let moved = self.cursor > self.cursor_durable;
        self.try_sync(moved).inspect_err(|_| self.doubt_newest())?;
        self.note_high_water(false);
        if moved {
            self.trim();
        }
        if self.live_bytes >= self.generation_bytes {
            // Not being able to start a new generation is no reason to refuse what is durable: the old one goes on.
            if let Err(error) = self.add_generation() {
                // Order: what was half made is gone before the old one grows on; a later start would take it for
                // the end of the row and miss every event behind its name.
                self.shelf.delete(self.next)?;
                tracing::warn!(%error, "no new generation could be started; the newest one grows on");
            }
        }
        Ok(())
    }

    fn try_sync(&mut self, moved: bool) -> Result<(), StoreError> {
        let cursor = self.cursor;
        if moved {
            // Order: cursor before removals, so that a store that keeps the first part of what was not synced never
            // shows removed events as missing.
            self.newest()?.put(CURSOR_KEY, &cursor.0.to_be_bytes())?;
            self.remove_drained()?;
        }
        self.newest()?.sync()?;
        let Some(newest) = self.row.back_mut() else { return Ok(()) };
        let Some(store) = newest.store.as_ref() else { return Ok(()) };
        newest.disk_bytes = store.disk_bytes();
        self.durable = Seq(self.next.0 - 1);
        self.cursor_durable = cursor;
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// A write to the newest generation failed. Should the agent end before [`Self::reopen`] has made another one,
    /// the next start must know: the page cache shows what the disk may not have.
    fn doubt_newest(&mut self) {
        let Some(first) = self.row.back().map(|g| g.first) else { return };
        if let Err(error) = self.identity.doubt(first) {
            tracing::warn!(%error, "IDENTITY could not be written; the failed write is not remembered over a restart");
        }
    }

    fn newest(&mut self) -> Result<&mut H::Store, StoreError> {
        let store = self.row.back_mut().and_then(|g| g.store.as_mut());
        store.ok_or_else(|| StoreError::Io("no generation is open".into()))
    }

    /// Removes drained blocks from the newest generation: its space is reused. The same sync makes it durable, and a
    /// removal that survives without its cursor removes only what Kafka has confirmed.
    fn remove_drained(&mut self) -> Result<(), StoreError> {
        let cursor = self.cursor;
        let Some(newest) = self.row.back_mut() else { return Ok(()) };
        if newest.first > cursor {
            return Ok(());
        }
        let Some(store) = newest.store.as_mut() else { return Ok(()) };
        let mut drained: Vec<(Vec<u8>, u64)> = Vec::new();
        store.scan(&[], &mut |key, value| {
            // A damaged block goes with its first event: nobody can read the others.
            let last = Block::parse(value).map_or(key_seq(key), |block| Some(block.last()));
            if last.is_none_or(|last| last > cursor) {
                return ControlFlow::Break(());
            }
            drained.push((key.to_vec(), (key.len() + value.len()) as u64));
            ControlFlow::Continue(())
        })?;
        for (key, bytes) in drained {
            store.remove(&key)?;
            self.live_bytes = self.live_bytes.saturating_sub(bytes);
        }
        Ok(())
    }

    /// Deletes sealed generations that are drained behind the durable cursor.
    fn trim(&mut self) {
        while let (Some(oldest), Some(second)) = (self.row.front(), self.row.get(1)) {
            if second.first.0 - 1 > self.cursor_durable.0 {
                break;
            }
            let (first, is_aside) = (oldest.first, oldest.is_aside);
            self.row.pop_front();
            if is_aside {
                continue;
            }
            if let Err(error) = self.shelf.delete(first) {
                // It is deleted at the next start; until then its space is not counted as ours.
                tracing::warn!(%error, "a drained generation could not be deleted");
            }
        }
    }

    fn note_high_water(&mut self, sync: bool) {
        let noted: io::Result<()> = self
            .high_water
            .note(self.durable, self.cursor_durable)
            .and_then(|()| if sync { self.high_water.sync() } else { Ok(()) });
        if let Err(error) = noted {
            tracing::warn!(%error, "HIGHWATER could not be written; a lost tail would go unnoticed");
        }
    }

    /// Closes everything after a failed write, finds out what is durable and goes on in a new generation: the file
    /// whose sync failed is never trusted with a new event. Nothing is acknowledged in between.
    ///
    /// # Errors
    /// [`OpenError`]: try again later.
    pub(super) fn reopen(&mut self) -> Result<(), OpenError> {
        for generation in &mut self.row {
            generation.store = None;
        }
        // Half-made ones, and drained ones that could not be deleted: a later start would take them for a part of the
        // row.
        for Listed { first, is_aside } in self.shelf.list()? {
            if !is_aside && !self.row.iter().any(|g| g.first == first) {
                self.shelf.delete(first)?;
            }
        }
        self.recover(true)
    }

    /// Fills `run` with durable events behind `after`, whole blocks, at least one and up to about `bytes_max`.
    /// An empty run: there is none. Damaged blocks are skipped, counted and logged.
    ///
    /// # Errors
    /// [`StoreError`]: the generation cannot be read now; try again later.
    pub(super) fn read(&mut self, after: Seq, bytes_max: usize, run: &mut Run) -> Result<(), StoreError> {
        run.restart(after);
        while run.end() < self.durable && run.bytes() < bytes_max {
            let wanted = run.end().next();
            // The last generation that starts at or before `wanted`, else the first one behind it.
            let index = self.row.partition_point(|g| g.first <= wanted).saturating_sub(1);
            let newest = self.row.len().saturating_sub(1);
            self.close_all_but(index, newest);
            let end = self.row.get(index + 1).map_or(self.durable, |g| Seq(g.first.0 - 1));
            let Some(store) = self.open_at(index)? else {
                run.reach(end);
                continue;
            };
            match read_blocks(store, end, bytes_max, run) {
                Ok(holes) => {
                    for (first, last) in holes {
                        self.count_missing(first, last);
                    }
                }
                Err(error) => {
                    run.forget();
                    self.give_up(index, error)?;
                    run.reach(end);
                }
            }
        }
        Ok(())
    }

    /// A generation that was opened cannot be read: it is set aside if it is damaged, else opened again next time.
    fn give_up(&mut self, index: usize, error: StoreError) -> Result<(), StoreError> {
        if error.class() == Class::Reject {
            return self.set_aside(index, &error);
        }
        let newest = self.row.len().saturating_sub(1);
        if let Some(generation) = self.row.get_mut(index).filter(|_| index < newest) {
            generation.store = None;
        }
        Err(error)
    }

    /// Counts a hole, once: a drain that reads the same range again, or from before the cursor, changes nothing.
    fn count_missing(&mut self, first: Seq, last: Seq) {
        let first = first.max(self.cursor.next()).max(self.looked.next());
        if first > last {
            return;
        }
        self.looked = last;
        let missing = (last.0 + 1 - first.0).saturating_sub(self.identity.jumped(first, last));
        if missing > 0 {
            self.damaged += missing;
            tracing::error!(
                first = first.0,
                last = last.0,
                events = missing,
                "events in the buffer are damaged or missing and are skipped"
            );
        }
    }

    fn close_all_but(&mut self, one: usize, other: usize) {
        for (index, generation) in self.row.iter_mut().enumerate() {
            if index != one && index != other {
                generation.store = None;
            }
        }
    }

    /// Last sync and the high-water mark: the buffer is closed in order.
    ///
    /// # Errors
    /// [`StoreError`]: the cursor may be late at the next start.
    pub(super) fn close(mut self) -> Result<(), StoreError> {
        self.sync()?;
        self.note_high_water(true);
        Ok(())
    }
}

/// Key of a block: its first position, and for a later chunk of a large event the chunk's index.
fn block_key(first: Seq, chunk: u16) -> ([u8; 10], usize) {
    let mut key = [0; 10];
    let (seq, index) = key.split_at_mut(8);
    seq.copy_from_slice(&first.0.to_be_bytes());
    index.copy_from_slice(&chunk.to_be_bytes());
    (key, if chunk == 0 { 8 } else { 10 })
}

/// Position in a key; `None` for the cursor's.
fn key_seq(key: &[u8]) -> Option<Seq> {
    let (seq, chunk) = key.split_first_chunk::<8>()?;
    matches!(chunk.len(), 0 | 2).then(|| Seq(u64::from_be_bytes(*seq))).filter(|_| key != CURSOR_KEY)
}

struct End {
    last: Seq,
    cursor: Seq,
    live_bytes: u64,
}

/// The last whole event, the cursor and the size of what is in a generation.
fn read_end<S: Store>(store: &S) -> Result<End, StoreError> {
    let mut cursor = Seq(0);
    store.scan(CURSOR_KEY, &mut |key, value| {
        if let (true, Ok(bytes)) = (key == CURSOR_KEY, value.try_into()) {
            cursor = Seq(u64::from_be_bytes(bytes));
        }
        ControlFlow::Break(())
    })?;
    let mut last = Seq(0);
    let mut bound = SEQ_MAX.0.to_be_bytes().to_vec();
    while let Some(key) = store.floor(&bound)? {
        let Some(seq) = key_seq(&key) else { break };
        if let Some(end) = whole_event_end(store, seq)? {
            last = end;
            break;
        }
        // A torn tail: chunks of an event that was never acknowledged, or a damaged last block. Look before it.
        let Some(before) = seq.0.checked_sub(1) else { break };
        bound = before.to_be_bytes().to_vec();
        bound.extend_from_slice(&u16::MAX.to_be_bytes());
    }
    Ok(End { last, cursor, live_bytes: live_bytes(store)? })
}

/// Position of the last event of the block at `seq`, if the block, with all its chunks, is whole.
fn whole_event_end<S: Store>(store: &S, seq: Seq) -> Result<Option<Seq>, StoreError> {
    let mut end = None;
    let mut assembly = Assembly::default();
    let mut run = Vec::new();
    store.scan(&seq.0.to_be_bytes(), &mut |key, value| {
        let block = Block::parse(value).ok().filter(|block| key_seq(key) == Some(seq) && block.first == seq);
        let Some(block) = block else { return ControlFlow::Break(()) };
        match assembly.take(&block, &mut run) {
            Ok(false) => return ControlFlow::Continue(()),
            Ok(true) => end = Some(block.last()),
            Err(_) => {}
        }
        ControlFlow::Break(())
    })?;
    Ok(end)
}

fn live_bytes<S: Store>(store: &S) -> Result<u64, StoreError> {
    let mut sum = 0;
    store.scan(&[], &mut |key, value| {
        sum += (key.len() + value.len()) as u64;
        ControlFlow::Continue(())
    })?;
    Ok(sum)
}

/// Reads blocks of one generation into `run`, from where it ends on, up to `end`. Answers the holes: ranges of
/// positions that could not be served, first and last.
fn read_blocks<S: Store>(
    store: &S,
    end: Seq,
    bytes_max: usize,
    run: &mut Run,
) -> Result<Vec<(Seq, Seq)>, StoreError> {
    let wanted = run.end().next();
    let from = store.floor(&wanted.0.to_be_bytes())?;
    let from = from.as_deref().and_then(key_seq).unwrap_or(wanted);
    let mut holes = Vec::new();
    let mut assembly = Assembly::default();
    let mut is_cut = false;
    store.scan(&from.0.to_be_bytes(), &mut |key, value| {
        if key_seq(key).is_none_or(|seq| seq > end) {
            return ControlFlow::Break(());
        }
        if run.bytes() >= bytes_max && !assembly.is_partial() {
            is_cut = true;
            return ControlFlow::Break(());
        }
        // What cannot be read leaves a hole, which the next whole block or the generation's end measures.
        if let Ok(Some(block)) = take_block(value, &mut assembly, run) {
            let wanted = run.end().next();
            if block.last() < wanted {
                run.forget();
                return ControlFlow::Continue(());
            }
            if block.first > wanted {
                holes.push((wanted, Seq(block.first.0 - 1)));
            }
            run.close(block.first, block.count, block.origin);
            run.reach(block.last());
        }
        ControlFlow::Continue(())
    })?;
    if !is_cut && run.end() < end {
        holes.push((run.end().next(), end));
        run.reach(end);
    }
    Ok(holes)
}

/// Unpacks one value into the run; `None` while a chunked event is not complete.
fn take_block<'v>(
    value: &'v [u8],
    assembly: &mut Assembly,
    run: &mut Run,
) -> Result<Option<Block<'v>>, BlockError> {
    let block = Block::parse(value)?;
    if block.chunks == 1 {
        // An event of which a chunk is missing ends here: it must not keep the run growing.
        *assembly = Assembly::default();
        block.unpack(run.space())?;
        return Ok(Some(block));
    }
    Ok(assembly.take(&block, run.space())?.then_some(block))
}
