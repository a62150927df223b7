//! Finding the end and the cursor, after a start and after a failed write.
//!
//! What can be read is served; what cannot is counted once; nothing that may have been used is used again; and a file
//! whose write failed gets no new event.

use std::ops::ControlFlow;

use super::Generations;
use super::keys::{CURSOR_KEY, SEQ_MAX, key_seq};
use crate::buffer::OpenError;
use crate::buffer::block::{Assembly, Block};
use crate::buffer::store::{Listed, Shelf, Store, StoreError};
use crate::error::Class;
use crate::event::Seq;

impl<H: Shelf> Generations<H> {
    /// Finds the end and the cursor after a start or a failed write, and makes the newest generation writable.
    /// `is_suspect`: a sync failed, so nothing more is written to the generation that was the newest.
    pub(super) fn recover(&mut self, is_suspect: bool) -> Result<(), OpenError> {
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

    /// Closes everything after a failed write, finds out what is durable and goes on in a new generation: the file
    /// whose sync failed is never trusted with a new event. Nothing is acknowledged in between.
    ///
    /// # Errors
    /// [`OpenError`]: try again later.
    pub(in crate::buffer) fn reopen(&mut self) -> Result<(), OpenError> {
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

    /// A write to the newest generation failed. Should the agent end before [`Self::reopen`] has made another one,
    /// the next start must know: the page cache shows what the disk may not have.
    pub(super) fn doubt_newest(&mut self) {
        let Some(first) = self.row.back().map(|g| g.first) else { return };
        if let Err(error) = self.identity.doubt(first) {
            tracing::warn!(%error, "IDENTITY could not be written; the failed write is not remembered over a restart");
        }
    }
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
