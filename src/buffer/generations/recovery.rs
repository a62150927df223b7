//! Finding the end and the cursor at a start. What can be read is served; what is missing is counted once; nothing that
//! may have been used is used again.

use super::{Generations, Handed, Index, Note, Sealed};
use crate::buffer::OpenError;
use crate::buffer::ledger::Reason;
use crate::buffer::store::{Listed, Shelf, StoreError};
use crate::error::Class;
use crate::event::Seq;

/// So many small generations in a row become one: a restart leaves one behind, and a thousand restarts without a
/// network must not fill the disk with folders.
const SMALL_MAX: usize = 8;

/// What the files tell.
#[derive(Debug)]
struct End {
    /// The last position in use.
    last: Seq,
    /// Numbers behind it may have been used all the same.
    is_uncertain: bool,
}

impl<H: Shelf> Generations<H> {
    /// Finds end and cursor, counts what is missing at the end, and makes a newest generation if the disk takes one.
    pub(super) fn recover(&mut self) -> Result<(), OpenError> {
        self.finish_replacement()?;
        let mut found = self.shelf.list()?;
        // Of several copies that were set aside under one name, one is in the row; all are kept.
        found.dedup();
        for listed in found {
            let disk_bytes = self.shelf.disk_bytes(listed);
            let note = if listed.is_aside { None } else { Note::read(&self.shelf, listed.first) };
            self.row.push_back(Sealed { listed, disk_bytes, note, newest: None, delivered: 0 });
        }
        let marks = self.high_water.marks();
        let had_identity = self.identity.ceiling() > Seq(0);
        if !had_identity && self.row.is_empty() {
            self.ledger.forget_ranges();
            if self.ledger.witness().is_some() {
                tracing::warn!(
                    "the buffer that the loss ledger knows is gone, with all that was in it; a new one begins"
                );
            }
        }
        let End { last, is_uncertain } = self.find_end()?;
        self.cursor_durable = self.cursor;
        self.lanes.forget(self.cursor);
        let is_row_short = marks.newest > self.row.back().map_or(Seq(0), |sealed| sealed.listed.first);
        self.must_jump =
            had_identity && (is_uncertain || marks.durable > last || is_row_short || marks.newest == Seq(0));
        self.durable = last;
        self.next = last.next();
        self.handed = Handed::all(self.cursor);
        self.count_lost_tail(last, marks.durable);
        self.store_ledger();
        self.merge_small();
        // Order: a drained generation goes once another one, or the high-water file, has the cursor.
        if let Err(error) = self.reopen() {
            tracing::error!(
                %error,
                "the buffer takes no events now; what is in it is delivered, and writing is tried again every second"
            );
            if let Err(error) = self.commit_without_store() {
                tracing::debug!(%error, "the cursor cannot be written");
            }
        }
        self.store_ledger();
        Ok(())
    }

    /// A replacement that is written and counted comes into the row; until then nothing there is read or deleted.
    ///
    /// # Errors
    /// [`StoreError`]: try again, now or at the next start.
    pub(super) fn finish_replacement(&mut self) -> Result<(), StoreError> {
        let Some(replacement) = self.ledger.replacement() else { return Ok(()) };
        self.shelf.swap_in(replacement.first, replacement.last)?;
        self.ledger.set_replacement(None);
        let Some(sealed) = self.row.iter_mut().find(|s| s.listed.first == replacement.first) else {
            return Ok(());
        };
        if let Some(note) = &sealed.note {
            note.write(&self.shelf, sealed.listed.first);
        }
        sealed.disk_bytes = self.shelf.disk_bytes(sealed.listed);
        Ok(())
    }

    /// Reads the generations from the newest on until one has told end and cursor.
    fn find_end(&mut self) -> Result<End, OpenError> {
        let mut end = End { last: self.cursor, is_uncertain: false };
        let mut bound = Seq::MAX;
        for number in (0..self.row.len()).rev() {
            let Some(Sealed { listed, .. }) = self.row.get(number) else { break };
            let listed = *listed;
            let is_newest = bound == Seq::MAX;
            end.last = end.last.max(listed.first.before());
            if is_newest && !listed.is_aside {
                // What a dead process wrote is served, so it has to be durable first.
                if let Err(error) = self.shelf.settle(listed.first) {
                    tracing::debug!(%error, "the last generation cannot be synced");
                    end.is_uncertain = true;
                }
            }
            let mut index = match self.index(listed, bound, self.cursor) {
                Ok(index) => index,
                Err(error) => {
                    // Damage is counted when it is read; a disk that refuses now may not do so for ever.
                    tracing::error!(first = listed.first.0, %error, "a generation cannot be read at the start");
                    if is_newest {
                        end.is_uncertain = true;
                        // What may still come to light is not counted as lost.
                        let is_damaged = error.class() == Class::Reject;
                        let known = if is_damaged { Seq(0) } else { self.high_water.marks().durable };
                        end.last = end.last.max(known);
                    }
                    bound = listed.first.before();
                    continue;
                }
            };
            if let Some(format) = index.scanned.newer {
                return Err(OpenError::NewerBlocks { first: listed.first, format });
            }
            self.cursor = self.cursor.max(index.cursor);
            if is_newest {
                index.cut_torn_tail(listed.first, self.cursor, self.high_water.marks().durable);
                end.is_uncertain |= listed.is_aside || index.scanned.unreadable > 0;
                if let Some(sealed) = self.row.get_mut(number) {
                    sealed.note.get_or_insert_with(|| Note::of(&index));
                }
            }
            end.last = end.last.max(index.last().unwrap_or_default());
            if index.tells_end() {
                break;
            }
            bound = listed.first.before();
        }
        end.last = end.last.max(self.cursor);
        Ok(end)
    }

    /// The index of what a generation holds up to `bound` and behind `after`.
    pub(super) fn index(&self, listed: Listed, bound: Seq, after: Seq) -> Result<Index, StoreError> {
        let source = self.shelf.source(listed)?;
        Index::build(&*source, (listed.first, bound), after).map_err(|e| StoreError::Io(e.to_string()))
    }

    /// Acknowledged events behind `last` are missing: the high-water mark was further.
    fn count_lost_tail(&mut self, last: Seq, known: Seq) {
        let lost = self.count_lost(Reason::Corrupt, last.next(), known);
        if lost > 0 {
            tracing::error!(
                first = last.0 + 1,
                last = known.0,
                events = lost,
                "acknowledged events at the end of the buffer are missing"
            );
            self.set_aside_last(last);
        }
    }

    fn set_aside_last(&mut self, last: Seq) {
        let number = self.row.len().saturating_sub(1);
        let covers = self.row.back().is_some_and(|sealed| sealed.listed.first <= last.next());
        if covers && let Err(error) = self.set_aside(number) {
            tracing::warn!(%error, "the damaged generation could not be renamed");
        }
    }

    /// Makes one generation of many small ones at the end of the row. It only saves space: what refuses now is tried
    /// again at the next start.
    fn merge_small(&mut self) {
        // Nothing is in a generation that begins behind the last event, unless that was lost.
        if self.must_jump {
            return;
        }
        if let Err(error) = self.clear_name(self.durable.next()) {
            tracing::warn!(%error, "an empty generation could not be deleted");
            return;
        }
        let small_max = self.generation_bytes / 4;
        let is_small = |sealed: &&Sealed| !sealed.listed.is_aside && sealed.disk_bytes < small_max;
        let count = self.row.iter().rev().take_while(is_small).count();
        if count < SMALL_MAX {
            return;
        }
        let from = self.row.len() - count;
        if let Err(error) = self.rewrite(from, self.row.len(), None, |_| false) {
            tracing::debug!(%error, "small generations could not be merged");
        }
    }
}
