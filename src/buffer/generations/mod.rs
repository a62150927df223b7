//! The queue as a row of generations: append at the newest, read from the oldest, give space back behind the cursor.
//!
//! Each generation is a small store named by its first sequence number. Keys are sequence numbers (big-endian, so
//! that they sort), followed by the chunk index for the later chunks of a large event; values are blocks. One more
//! key, `keys::CURSOR_KEY`, sorts behind all of them and holds the drain's cursor, so that one sync covers both.
//!
//! - The newest generation takes appends. Drained blocks are removed from it and the store reuses their space.
//! - When its live bytes reach the limit it is sealed and a new one is made. A sealed generation that is drained
//!   behind a *durable* cursor is deleted whole: that is how disk space comes back.
//! - Only two are open at most: the newest and the one being read.
//!
//! Owned by the writer thread; everything here blocks.

mod keys;
mod reading;
mod recovery;

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;

use super::OpenError;
use super::batch::Batch;
use super::block::{Block, Encoder, Origin, RUN_BYTES_MAX};
use super::identity::{HighWater, Identity};
use super::store::{Listed, Shelf, Store, StoreError};
use crate::error::Class;
use crate::event::Seq;
use keys::{CURSOR_KEY, block_key, key_seq};

/// Live bytes at which the newest generation is sealed, with a quota that allows it: large enough that opening is
/// rare, small enough that memory (which grows with an open database) and the grain of returned space stay small.
pub(super) const GENERATION_BYTES: u64 = 4 * 1024 * 1024;

/// Disk that a sync may take beyond [`GROWTH`]: segments begun and not filled.
pub(super) const GENERATION_COST_BYTES: u64 = 2 * 1024 * 1024;

/// How many times its size a group of blocks may take on disk before the store cleans up behind itself. Measured with
/// incompressible events of 60 bytes to 60 KB in groups of 10 KB to 4 MB: at most 2.6 and the cost above.
pub(super) const GROWTH: u64 = 3;

/// A drained newest generation larger than this gives its disk back when there is no room: an empty one takes less
/// than a tenth of it.
const DRAINED_BYTES_MAX: u64 = 1024 * 1024;

/// A drained newest generation larger than this gives its disk back also while there is room: after an outage the disk
/// is soon as it was before.
const SLACK_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The largest batch that a buffer of `bytes_max` takes for certain once it is drained. A larger one could wait for
/// ever.
pub(super) fn batch_bytes_max(bytes_max: u64) -> u64 {
    bytes_max.saturating_sub(DRAINED_BYTES_MAX + GENERATION_COST_BYTES) / GROWTH
}

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
        if !self.is_mostly_free(DRAINED_BYTES_MAX) || self.unsynced_bytes > 0 {
            return Ok(false);
        }
        self.add_generation()?;
        self.trim();
        Ok(needed(self) <= self.bytes_max)
    }

    /// Whether the newest generation takes more than `bytes_max` of disk and most of that for nothing.
    fn is_mostly_free(&self, bytes_max: u64) -> bool {
        let newest_disk = self.row.back().map_or(0, |g| g.disk_bytes);
        newest_disk > bytes_max && self.live_bytes.saturating_mul(4) < newest_disk
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
        if self.live_bytes >= self.generation_bytes || (moved && self.is_mostly_free(SLACK_BYTES_MAX)) {
            // Not being able to start a new generation is no reason to refuse what is durable: the old one goes on.
            if let Err(error) = self.add_generation() {
                // Order: what was half made is gone before the old one grows on; a later start would take it for
                // the end of the row and miss every event behind its name.
                self.shelf.delete(self.next)?;
                tracing::warn!(%error, "no new generation could be started; the newest one grows on");
            }
            self.trim();
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
