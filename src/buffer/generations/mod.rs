//! The queue as a row of generations: append at the newest, read from the oldest, give space back behind the cursor.
//!
//! Each generation is named by its first sequence number and holds blocks. Only the newest is a store: it takes
//! appends, under keys that are sequence numbers (big-endian, so that they sort) with the chunk index behind them for
//! the later chunks of a large event; one more key, `keys::CURSOR_KEY`, sorts behind all of them and holds the drain's
//! cursor, so that one sync covers both. All others are sealed: files of blocks, read by their raw content (`index`),
//! never written again.
//!
//! - In the newest, drained blocks are removed and the store reuses their space.
//! - When its live bytes reach the limit it is sealed and a new one is made; so it is at every start and after every
//!   failed write, because what a file of an earlier life holds is only read. A sealed generation that is drained
//!   behind a *durable* cursor is deleted whole: that is how disk space comes back.
//! - Without a newest generation (the disk is full or broken) nothing is appended; reads and commits go on.
//!
//! Owned by the writer thread; everything here blocks.

mod evict;
mod index;
mod keys;
mod lanes;
mod note;
mod reading;
mod recovery;

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::OpenError;
use super::batch::Batch;
use super::block::{Block, Encoder, Events, Origin, RUN_BYTES_MAX};
use super::identity::{HighWater, Identity, Marks};
use super::lanes::LanesFile;
use super::ledger::{Entries, Ledger, Reason};
use super::reserve::Reserve;
use super::store::{Listed, Shelf, Store, StoreError};
use crate::event::Seq;
use crate::log::Limited;
use keys::{CURSOR_KEY, block_key, key_seq};
use lanes::Handed;
use note::Note;

pub(in crate::buffer) use index::Index;
pub(in crate::buffer) use reading::{Age, Reading, last_event};

/// Live bytes at which the newest generation is sealed, with a quota that allows it: large enough that sealing is
/// rare, small enough that memory (which grows with an open database) and the grain of returned space stay small.
pub(super) const GENERATION_BYTES: u64 = 4 * 1024 * 1024;

/// The least of it, for small quotas.
const GENERATION_BYTES_MIN: u64 = 512 * 1024;

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

/// Shortest time between two lines about events that were given up.
const GIVEN_UP_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Time between two tries to write the ledger to a disk that refuses.
const LEDGER_RETRY: Duration = Duration::from_secs(10);

/// Copies of damaged generations that were set aside and read to their end are kept up to this part of the quota.
const ASIDE_SHARE: u64 = 8;

/// The largest batch that a buffer of `bytes_max` takes for certain once it is drained. A larger one could wait for
/// ever.
pub(super) fn batch_bytes_max(bytes_max: u64) -> u64 {
    let taken = DRAINED_BYTES_MAX + margin(generation_bytes(bytes_max)) + Reserve::bytes_of(bytes_max);
    bytes_max.saturating_sub(taken) / GROWTH
}

/// Live bytes at which the newest generation is sealed under this quota.
fn generation_bytes(bytes_max: u64) -> u64 {
    (bytes_max / 8).clamp(GENERATION_BYTES_MIN, GENERATION_BYTES)
}

/// Disk that is never taken by events: a new generation has its place there, or one that is written again.
fn margin(generation_bytes: u64) -> u64 {
    GENERATION_COST_BYTES.max(generation_bytes + generation_bytes / 8)
}

/// Most events in one block: its count has 16 bits.
const BLOCK_EVENTS_MAX: u16 = u16::MAX;

/// What bounds the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Most bytes of disk.
    pub(super) bytes_max: u64,
    /// Bytes of the file system that are left to others.
    pub(super) free_min: u64,
    /// Events older than this are given up.
    pub(super) age_max: Option<Duration>,
}

/// The small files beside the generations.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) identity: Identity,
    pub(super) high_water: HighWater,
    pub(super) lanes: LanesFile,
    pub(super) ledger: Ledger,
    pub(super) reserve: Reserve,
}

/// A generation that is only read.
#[derive(Debug)]
struct Sealed {
    listed: Listed,
    /// Bytes of disk.
    disk_bytes: u64,
    note: Option<Note>,
    /// Received by then: the newest event in it, once somebody asked.
    newest: Option<(Origin, crate::event::Stamp)>,
    /// How many events ahead of the cursor it had when their space was last given back.
    delivered: u64,
}

/// The generation that takes appends.
#[derive(Debug)]
struct Newest<S> {
    first: Seq,
    store: S,
    disk_bytes: u64,
    /// Bytes put and not removed.
    live_bytes: u64,
    note: Note,
}

/// Numbers that the handle shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Last durable event.
    pub durable: Seq,
    /// Everything up to here may be forgotten.
    pub cursor: Seq,
    /// Bytes of disk, copies of damaged generations included.
    pub disk_bytes: u64,
    /// Number of generations.
    pub generations: usize,
    /// Acknowledged events that were lost since the ledger began, for whatever reason.
    pub lost: u64,
    /// Whether events can be appended now.
    pub is_writable: bool,
    /// Bytes handed to the store in this run: blocks, cursors and replacements.
    pub stored_bytes: u64,
    /// Events behind the cursor that were delivered ahead of it.
    pub ahead: u64,
    /// Of those that wait, the ones in front of the live lane; 0 while there is one lane.
    pub backlog: u64,
}

impl Figures {
    /// Events that are to be delivered; those that were lost and not passed yet included.
    pub fn waiting(&self) -> u64 {
        (self.durable.0 - self.cursor.0).saturating_sub(self.ahead)
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Generations<H: Shelf> {
    shelf: H,
    identity: Identity,
    high_water: HighWater,
    lanes: LanesFile,
    ledger: Ledger,
    reserve: Reserve,
    encoder: Encoder,
    /// Space for the ways of one block's events.
    ways: Vec<u8>,
    row: VecDeque<Sealed>,
    /// `None` while nothing can be written.
    newest: Option<Newest<H::Store>>,
    /// The sealed generations that were read last, the last one in front: one for each lane.
    readings: Vec<Reading>,
    /// Set aside and read to the end, oldest first, with bytes of disk.
    asides: VecDeque<(Seq, u64)>,
    limits: Limits,
    /// Live bytes at which the newest is sealed.
    generation_bytes: u64,
    /// Put since the last sync: the disk does not show them yet.
    unsynced_bytes: u64,
    stored_bytes: u64,
    /// The next event's position.
    next: Seq,
    durable: Seq,
    /// The cursor that the next sync makes durable, and the durable one.
    cursor: Seq,
    cursor_durable: Seq,
    /// What was read may be on its way: it is not given up any more.
    handed: Handed,
    /// Numbers behind `durable` may have been used: the next generation starts behind the ceiling.
    must_jump: bool,
    /// A half-made generation that could not be deleted: it goes before anything else is written.
    leftover: Option<Seq>,
    /// Given up and not yet told in the log.
    given_up: u64,
    given_up_log: Limited,
    /// The ledger could not be written: when that is tried again.
    ledger_retry: Option<Instant>,
}

impl<H: Shelf> Generations<H> {
    /// Opens the row. What is damaged is served as far as it goes; a disk that takes nothing now makes it start
    /// without a newest generation.
    ///
    /// # Errors
    /// [`OpenError`]: the directory cannot be used now or belongs to a later version; nothing was lost.
    pub(super) fn open(shelf: H, files: Files, boot: [u8; 16], limits: Limits) -> Result<Self, OpenError> {
        let Files { identity, high_water, lanes, ledger, reserve } = files;
        let origin = Origin { epoch: identity.epoch(), boot };
        let marks = high_water.marks();
        let mut this = Self {
            shelf,
            identity,
            high_water,
            lanes,
            ledger,
            reserve,
            encoder: Encoder::new(origin),
            ways: Vec::new(),
            row: VecDeque::new(),
            newest: None,
            readings: Vec::new(),
            asides: VecDeque::new(),
            limits,
            generation_bytes: generation_bytes(limits.bytes_max),
            unsynced_bytes: 0,
            stored_bytes: 0,
            next: Seq(1),
            durable: Seq(0),
            cursor: marks.cursor,
            cursor_durable: marks.cursor,
            handed: Handed::default(),
            must_jump: false,
            leftover: None,
            given_up: 0,
            given_up_log: Limited::new(GIVEN_UP_LOG_INTERVAL),
            ledger_retry: None,
        };
        this.recover()?;
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
        let lost = self.ledger.entries().iter().filter(|(reason, _)| reason.is_acknowledged());
        Figures {
            durable: self.durable,
            cursor: self.cursor_durable,
            disk_bytes: self.disk_bytes(),
            generations: self.row.len() + usize::from(self.newest.is_some()),
            lost: lost.map(|(_, entry)| entry.events).sum(),
            is_writable: self.newest.is_some(),
            stored_bytes: self.stored_bytes,
            ahead: self.delivered(Seq(0), self.durable).0,
            backlog: self.backlog(),
        }
    }

    /// What was lost, by reason.
    pub(super) fn ledger(&self) -> &Entries {
        self.ledger.entries()
    }

    /// As [`Ledger::changes`].
    pub(super) fn ledger_changes(&self) -> u64 {
        self.ledger.changes()
    }

    /// Counts events that never got a position.
    pub(super) fn count(&mut self, reason: Reason, events: u64) {
        self.ledger.count(reason, events);
    }

    /// Notes that losses were announced.
    pub(super) fn announced(&mut self, reason: Reason, events: u64) {
        self.ledger.announced(reason, events);
    }

    /// Writes what the ledger counted; it is tried again with the next sync if the disk refuses.
    pub(super) fn store_ledger(&mut self) {
        let stored = self.ledger.store();
        self.ledger_retry = stored.is_err().then(|| Instant::now() + LEDGER_RETRY);
        if let Err(error) = stored {
            tracing::warn!(%error, "the loss ledger cannot be written now; it is kept in memory");
        }
    }

    /// Whether the ledger has something to write, and is not to wait after a failure.
    fn is_ledger_due(&self) -> bool {
        self.ledger.is_dirty() && self.ledger_retry.is_none_or(|retry| retry <= Instant::now())
    }

    /// Seals the newest generation, if there is one, and makes a new one that starts at the next event.
    fn add_generation(&mut self) -> Result<(), StoreError> {
        if self.must_jump {
            let (durable, cursor) = (self.durable, self.cursor);
            self.next = self.promise(|identity, ledger| identity.jump(durable, cursor, ledger))?;
            self.must_jump = false;
        }
        let (first, cursor) = (self.next, self.cursor);
        self.promise(|identity, ledger| identity.reserve(first, ledger))?;
        if let Some(leftover) = self.leftover {
            self.shelf.delete(leftover)?;
            self.leftover = None;
        }
        self.clear_name(first)?;
        let made = self.shelf.create(first).and_then(|mut store| {
            let record = self.encoder.cursor(cursor);
            store.put(CURSOR_KEY, record)?;
            store.sync()?;
            Ok(store)
        });
        let store = made.inspect_err(|_| {
            // Order: what was half made is gone before anything else gets this name or grows on before it; a later
            // start would take it for the end of the row.
            if let Err(error) = self.shelf.delete(first) {
                tracing::warn!(%error, "a half-made generation could not be deleted");
                self.leftover = Some(first);
                self.fail();
            }
        })?;
        self.seal();
        // Everything before a new generation is durable, or known to be lost.
        (self.durable, self.cursor_durable) = (first.before(), cursor);
        let disk_bytes = store.disk_bytes();
        self.newest = Some(Newest { first, store, disk_bytes, live_bytes: 0, note: Note::default() });
        self.note_high_water(true);
        Ok(())
    }

    /// Lets the identity give its word on numbers; the ledger remembers which identity that was.
    fn promise<T>(
        &mut self,
        give: impl FnOnce(&mut Identity, &mut Ledger) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        give(&mut self.identity, &mut self.ledger).map_err(|e| StoreError::io("IDENTITY", &e))
    }

    /// A generation in which nothing ever became durable has the name that the next one gets: it goes.
    fn clear_name(&mut self, first: Seq) -> Result<(), StoreError> {
        while self.row.back().is_some_and(|sealed| sealed.listed.first >= first) {
            let Some(empty) = self.row.pop_back() else { break };
            self.readings.clear();
            if empty.listed.is_aside {
                self.asides.push_back((empty.listed.first, empty.disk_bytes));
            } else {
                self.shelf.delete(empty.listed.first)?;
            }
        }
        Ok(())
    }

    /// Makes the newest generation, if there is one, a sealed one. Everything in it is synced.
    fn seal(&mut self) {
        let Some(Newest { first, store, note, .. }) = self.newest.take() else { return };
        drop(store);
        let listed = Listed { first, is_aside: false };
        note.write(&self.shelf, first);
        let disk_bytes = self.shelf.disk_bytes(listed);
        self.row.push_back(Sealed { listed, disk_bytes, note: Some(note), newest: None, delivered: 0 });
    }

    /// A write failed, or the newest generation cannot be read: it is only read from now on. What was put since the
    /// last sync was never acknowledged, and its numbers are used again.
    fn fail(&mut self) {
        if self.newest.is_none() {
            return;
        }
        self.unsynced_bytes = 0;
        self.next = self.durable.next();
        self.seal();
    }

    /// Whether events can be appended.
    pub(super) fn is_writable(&self) -> bool {
        self.newest.is_some()
    }

    /// Makes a new generation after a failure. Frees the reserve for it when the disk is full.
    ///
    /// # Errors
    /// [`StoreError`]: nothing can be written now; reads and commits go on. Try again later.
    pub(super) fn reopen(&mut self) -> Result<(), StoreError> {
        if self.newest.is_some() {
            return Ok(());
        }
        let made = match self.add_generation() {
            Err(StoreError::NoSpace(text)) => {
                if self.reserve.release() {
                    self.add_generation()
                } else {
                    Err(StoreError::NoSpace(text))
                }
            }
            made => made,
        };
        made?;
        self.trim();
        Ok(())
    }

    /// Whether `bytes` of events can be put without going over the quota or below the floor of free space. May replace
    /// an emptied newest generation by a new one, since a store's file never shrinks.
    ///
    /// # Errors
    /// [`StoreError`] of that replacement.
    pub(super) fn has_room(&mut self, bytes: usize) -> Result<bool, StoreError> {
        if self.fits(bytes) {
            return Ok(true);
        }
        while let Some((first, _)) = self.asides.pop_front() {
            self.forget_aside(first);
            if self.fits(bytes) {
                return Ok(true);
            }
        }
        if !self.is_mostly_free(DRAINED_BYTES_MAX) || self.unsynced_bytes > 0 {
            return Ok(false);
        }
        self.add_generation()?;
        self.trim();
        Ok(self.fits(bytes))
    }

    fn fits(&self, bytes: usize) -> bool {
        let fresh = GROWTH * (self.unsynced_bytes + bytes as u64) + margin(self.generation_bytes);
        let floor = self.limits.free_min;
        self.disk_bytes() + fresh <= self.limits.bytes_max
            && (floor == 0 || self.shelf.free_bytes() >= floor.saturating_add(fresh))
    }

    /// Whether the newest generation takes more than `bytes_max` of disk and most of that for nothing.
    fn is_mostly_free(&self, bytes_max: u64) -> bool {
        self.newest.as_ref().is_some_and(|newest| {
            newest.disk_bytes > bytes_max && newest.live_bytes.saturating_mul(4) < newest.disk_bytes
        })
    }

    fn disk_bytes(&self) -> u64 {
        let sealed: u64 = self.row.iter().map(|sealed| sealed.disk_bytes).sum();
        let asides: u64 = self.asides.iter().map(|(_, bytes)| bytes).sum();
        self.reserve.bytes() + sealed + asides + self.newest.as_ref().map_or(0, |newest| newest.disk_bytes)
    }

    /// Puts a batch behind everything else and answers its first position. Not durable before [`Self::sync`].
    ///
    /// # Errors
    /// [`StoreError`]: nothing put since the last sync may be acknowledged; call [`Self::reopen`] before the next put.
    pub(super) fn put(&mut self, batch: &Batch) -> Result<Seq, StoreError> {
        self.try_put(batch).inspect_err(|_| self.fail())
    }

    fn try_put(&mut self, batch: &Batch) -> Result<Seq, StoreError> {
        let first = self.next;
        let end = first.plus(batch.len() as u64);
        self.promise(|identity, ledger| identity.reserve(end, ledger))?;
        let newest = self.newest.as_mut().ok_or_else(not_writable)?;
        let mut put_bytes = 0;
        let mut at = 0;
        while let Some(events) = batch.run(at, RUN_BYTES_MAX, BLOCK_EVENTS_MAX, &mut self.ways) {
            let Events { rank, count, .. } = events;
            let run_first = first.plus(at as u64);
            let unsynced = u32::try_from(run_first.0 - self.durable.next().0).unwrap_or(u32::MAX);
            let mut run_put = 0;
            self.encoder.encode(run_first, unsynced, events, |chunk, value| {
                let (key, key_bytes) = block_key(run_first, chunk);
                run_put += (key_bytes + value.len()) as u64;
                newest.store.put(key.get(..key_bytes).unwrap_or_default(), value)
            })?;
            newest.note.add(rank, run_put);
            put_bytes += run_put;
            at += usize::from(count);
        }
        newest.live_bytes += put_bytes;
        self.next = end;
        self.unsynced_bytes += put_bytes;
        self.stored_bytes += put_bytes;
        Ok(first)
    }

    /// Notes that everything up to `cursor` may be forgotten once that is durable.
    pub(super) fn advance(&mut self, cursor: Seq) {
        self.cursor = self.cursor.max(cursor.min(self.durable));
    }

    /// Gives up everything up to `to` and answers how many events that were: `events` are the positions of those in it,
    /// first and last of each range.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was given up, or all of it and the cursor may be late.
    pub(super) fn purge(&mut self, events: &[(Seq, Seq)], to: Seq) -> Result<u64, StoreError> {
        let before = self.ledger.clone();
        let mut purged = 0;
        for &(first, last) in events {
            purged += self.count_lost(Reason::Purged, first, last.min(to));
        }
        // Order: counted before it is gone.
        if let Err(error) = self.ledger.store() {
            self.ledger = before;
            return Err(StoreError::io("the loss ledger cannot be written", &error));
        }
        self.advance(to);
        self.sync()?;
        Ok(purged)
    }

    /// Whether a sync would make anything durable.
    pub(super) fn is_dirty(&self) -> bool {
        self.unsynced_bytes > 0 || self.cursor > self.cursor_durable || self.is_ledger_due()
    }

    /// Whether something was put that is not synced.
    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced_bytes > 0
    }

    /// Whether there is a sealed generation that could grow too old: what is read is looked at then.
    pub(super) fn may_expire(&self) -> bool {
        (0..self.row.len()).rev().any(|number| self.is_unread(number))
    }

    /// Makes puts, cursor and ledger durable, then seals a full generation and deletes drained ones. Without a newest
    /// generation the cursor goes to the high-water file alone, which needs no new space.
    ///
    /// # Errors
    /// [`StoreError`]: nothing put since the last sync may be acknowledged; call [`Self::reopen`].
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        if self.is_ledger_due() {
            // Order: what is lost is counted before a cursor passes it.
            self.store_ledger();
        }
        let moved = self.cursor > self.cursor_durable;
        if self.unsynced_bytes == 0 && !moved {
            return Ok(());
        }
        if self.newest.is_none() {
            return self.commit_without_store();
        }
        self.try_sync(moved).inspect_err(|_| self.fail())?;
        self.note_high_water(false);
        if moved {
            self.trim();
        }
        let is_full = self.newest.as_ref().is_some_and(|newest| newest.live_bytes >= self.generation_bytes);
        if is_full || (moved && self.is_mostly_free(SLACK_BYTES_MAX)) {
            // Not being able to start a new generation is no reason to refuse what is durable: the old one goes on.
            if let Err(error) = self.add_generation() {
                tracing::warn!(%error, "no new generation could be started; the newest one grows on");
            }
            self.trim();
        }
        Ok(())
    }

    fn try_sync(&mut self, moved: bool) -> Result<(), StoreError> {
        let cursor = self.cursor;
        let newest = self.newest.as_mut().ok_or_else(not_writable)?;
        if moved {
            // Order: cursor before removals, so that a store that keeps the first part of what was not synced never
            // shows removed events as missing.
            newest.store.put(CURSOR_KEY, self.encoder.cursor(cursor))?;
            newest.remove_drained(cursor)?;
        }
        newest.store.sync()?;
        newest.disk_bytes = newest.store.disk_bytes();
        self.durable = self.next.before();
        self.cursor_durable = cursor;
        self.lanes.forget(cursor);
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// The disk takes no new data: the cursor is written over the old one, in place.
    ///
    /// # Errors
    /// [`StoreError`]: it stays in memory; after a restart some events go out again.
    fn commit_without_store(&mut self) -> Result<(), StoreError> {
        let marks = Marks { cursor: self.cursor, ..self.marks() };
        let noted = self.high_water.note(marks).and_then(|()| self.high_water.sync());
        noted.map_err(|e| StoreError::io("HIGHWATER", &e))?;
        self.cursor_durable = self.cursor;
        self.lanes.forget(self.cursor);
        self.trim();
        Ok(())
    }

    /// Deletes sealed generations that are drained behind the durable cursor, and makes the reserve again.
    fn trim(&mut self) {
        if let Err(error) = self.finish_replacement() {
            tracing::warn!(%error, "a replacement could not be brought in yet");
            return;
        }
        while !self.row.is_empty() {
            let next = self.row.get(1).map(|second| second.listed.first);
            let next = next.or(self.newest.as_ref().map(|newest| newest.first));
            // Without a generation behind it, its end is the durable one.
            let end = next.map_or(self.durable, Seq::before);
            if end > self.cursor_durable {
                break;
            }
            let Some(Sealed { listed, disk_bytes, .. }) = self.row.pop_front() else { break };
            self.readings.retain(|reading| reading.listed != listed);
            if listed.is_aside {
                self.asides.push_back((listed.first, disk_bytes));
            } else if let Err(error) = self.shelf.delete(listed.first) {
                // It is deleted at the next start; until then its space is not counted as ours.
                tracing::warn!(%error, "a drained generation could not be deleted");
            }
        }
        let kept_max = self.limits.bytes_max / ASIDE_SHARE;
        while self.asides.len() > 1 && self.asides.iter().map(|(_, bytes)| bytes).sum::<u64>() > kept_max {
            let Some((first, _)) = self.asides.pop_front() else { break };
            self.forget_aside(first);
        }
        self.reserve.restore(|| self.shelf.free_bytes());
    }

    fn forget_aside(&mut self, first: Seq) {
        match self.shelf.delete_aside(first) {
            Ok(()) => {
                tracing::warn!(first = first.0, "the copy of a damaged generation was deleted for room")
            }
            Err(error) => tracing::warn!(%error, "the copy of a damaged generation could not be deleted"),
        }
    }

    fn marks(&self) -> Marks {
        let newest = self.newest.as_ref().map_or(self.high_water.marks().newest, |newest| newest.first);
        Marks { durable: self.durable, cursor: self.cursor_durable, newest }
    }

    fn note_high_water(&mut self, sync: bool) {
        let noted: io::Result<()> = self
            .high_water
            .note(self.marks())
            .and_then(|()| if sync { self.high_water.sync() } else { Ok(()) });
        if let Err(error) = noted {
            tracing::warn!(%error, "HIGHWATER could not be written; a lost tail would go unnoticed");
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

impl<S: Store> Newest<S> {
    /// Removes drained blocks: the store reuses their space. The same sync makes it durable, and a removal that survives
    /// without its cursor removes only what Kafka has confirmed.
    fn remove_drained(&mut self, cursor: Seq) -> Result<(), StoreError> {
        if self.first > cursor {
            return Ok(());
        }
        let mut drained: Vec<(Vec<u8>, u64)> = Vec::new();
        self.store.scan(&[], &mut |key, value| {
            // A damaged block goes with its first event: nobody can read the others.
            let last = Block::parse(value).map_or(key_seq(key), |block| Some(block.last()));
            if last.is_none_or(|last| last > cursor) {
                return ControlFlow::Break(());
            }
            drained.push((key.to_vec(), (key.len() + value.len()) as u64));
            ControlFlow::Continue(())
        })?;
        for (key, bytes) in drained {
            self.store.remove(&key)?;
            self.live_bytes = self.live_bytes.saturating_sub(bytes);
        }
        Ok(())
    }
}

fn not_writable() -> StoreError {
    StoreError::Io("no generation is open".into())
}
