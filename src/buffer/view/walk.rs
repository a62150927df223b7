//! The events of a buffer in order, each position once.

use std::io;

use super::{Folder, View, ViewError, folders};
use crate::buffer::block::Kind;
use crate::buffer::generations::{Index, Reading};
use crate::buffer::ranges;
use crate::buffer::run::Run;
use crate::buffer::store::Listed;
use crate::event::Seq;

/// So often a generation that changes while it is read is looked at again.
const LOOKS_MAX: usize = 10;

/// Positions for which there should be an event and is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// How many.
    pub events: u64,
    /// The first of them.
    pub first: Option<Seq>,
}

/// Goes through a buffer.
#[derive(Debug)]
pub struct Walk<'v> {
    view: &'v View,
    folders: Vec<Folder>,
    /// The next position.
    next: Seq,
    end: Seq,
    /// Copies of damaged generations are read too, and what is missing is no news.
    is_salvage: bool,
    open: Option<Open>,
    run: Run,
    missing: Missing,
    bytes: u64,
    /// Looks at what is at the next position, after the first one.
    looks: usize,
}

/// Generations that are being read: one, or the copies of one.
#[derive(Debug)]
struct Open {
    copies: Vec<Reading>,
    /// Number of the copy and of the piece, by position.
    pieces: Vec<(usize, usize)>,
    at: usize,
    bound: Seq,
    bytes: u64,
}

impl<'v> Walk<'v> {
    pub(super) fn new(view: &'v View, from: Seq, is_salvage: bool) -> Self {
        Self {
            view,
            folders: view.folders.clone(),
            next: from.max(Seq(1)),
            end: view.durable,
            is_salvage,
            open: None,
            run: Run::default(),
            missing: Missing::default(),
            bytes: 0,
            looks: 0,
        }
    }

    /// Bytes of the files that are behind it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What should have been there and was not, up to where it is.
    pub fn missing(&self) -> &Missing {
        &self.missing
    }

    /// The next events; `None` at the end.
    ///
    /// # Errors
    /// [`ViewError`]: a file cannot be read, for another reason than that it is gone.
    #[allow(clippy::should_implement_trait, reason = "a run is lent, which an iterator cannot")]
    pub fn next(&mut self) -> Result<Option<&Run>, ViewError> {
        while self.next <= self.end {
            let ahead = self.view.ahead().iter().find(|(_, last)| *last >= self.next && !self.is_salvage);
            if let Some(&(first, last)) = ahead
                && first <= self.next
            {
                self.next = last.next();
                continue;
            }
            let until = ahead.map_or(Seq::MAX, |(first, _)| first.before());
            if self.open.is_none() && !self.open_next()? {
                break;
            }
            let Some(open) = self.open.as_mut() else { continue };
            let Some(&(copy, number)) = open.pieces.get(open.at) else {
                let (bound, bytes) = (open.bound.min(self.end), open.bytes);
                self.open = None;
                self.bytes += bytes;
                self.pass(bound);
                continue;
            };
            open.at += 1;
            let Some(reading) = open.copies.get_mut(copy) else { continue };
            let Some(piece) = reading.index().pieces.get(number) else { continue };
            let (first, last, kind) = (piece.first, piece.last, piece.kind);
            if first > until {
                open.at -= 1;
                self.pass(until);
                continue;
            }
            let (last, is_cut) = (last.min(until), last > until);
            // One copy may have given up what another one has.
            if last < self.next || first > self.end || (self.is_salvage && kind != Kind::Events) {
                continue;
            }
            self.run.restart(self.next.before());
            self.run.limit(until);
            if kind == Kind::Events && !reading.unpack(number, &mut self.run) {
                self.run.forget();
                if self.view.is_open() && self.looks < LOOKS_MAX {
                    // The agent has put something else there since the index was made.
                    (self.looks, self.open) = (self.looks + 1, None);
                }
                // Else it is passed as missing, or another copy has it.
                continue;
            }
            self.looks = 0;
            if first > self.next {
                self.pass(first.before());
            }
            self.next = last.next();
            // It is looked at again behind what was delivered.
            self.open.iter_mut().for_each(|open| open.at -= usize::from(is_cut));
            if kind == Kind::Events {
                return Ok(Some(&self.run));
            }
        }
        self.pass(self.end);
        Ok(None)
    }

    /// Goes on behind `last`; what was not served up to there is missing.
    fn pass(&mut self, last: Seq) {
        if last < self.next {
            return;
        }
        let (first, is_silent) = (self.next, self.is_salvage);
        self.next = last.next();
        // What the agent has delivered meanwhile is not missing.
        let first = if self.view.is_open() { first.max(self.view.cursor_now().next()) } else { first };
        let missing = ranges::minus((first, last), &mut self.view.known_missing());
        if let Some(&(first, _)) = missing.first().filter(|_| !is_silent) {
            self.missing.events += ranges::count(&missing);
            self.missing.first.get_or_insert(first);
        }
    }

    /// Opens what has the next position, or the first one behind it. `false`: there is nothing more.
    fn open_next(&mut self) -> Result<bool, ViewError> {
        for look in 1..=LOOKS_MAX {
            let is_last_look = look == LOOKS_MAX;
            let Some(first) = self.folders.iter().filter(|f| f.bound >= self.next).map(|f| f.first).min()
            else {
                return Ok(false);
            };
            if first > self.end {
                return Ok(false);
            }
            let copies: Vec<&Folder> = self.folders.iter().filter(|f| f.first == first).collect();
            let wanted = if self.is_salvage { copies.len() } else { 1 };
            let (bound, mut open) = (copies.first().map_or(first, |f| f.bound), Vec::new());
            let mut bytes = 0;
            for folder in copies.into_iter().take(wanted) {
                match read(folder, self.next.before()) {
                    Ok(reading) => open.push(reading),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(ViewError::io(&folder.path)(e)),
                }
                bytes += folder.file_bytes();
            }
            let is_changing = open.is_empty() || self.has_holes(&open, first, bound);
            if !self.view.is_open() || !is_changing || is_last_look {
                self.open = Some(Open::new(open, bound, bytes));
                return Ok(true);
            }
            // The agent has replaced or deleted it, or is moving blocks in it.
            self.folders = folders(&self.view.place)?;
            let cursor = self.view.cursor_now();
            if !self.is_salvage && self.next <= cursor {
                self.pass(cursor.min(self.end));
            }
        }
        Ok(false)
    }

    fn has_holes(&self, copies: &[Reading], first: Seq, bound: Seq) -> bool {
        let from = first.max(self.next).max(self.view.cursor_now().next());
        let holes = |reading: &Reading| {
            let holes = reading.index().holes(from, bound.min(self.end));
            holes.into_iter().any(|hole| !ranges::minus(hole, &mut self.view.known_missing()).is_empty())
        };
        !self.is_salvage && copies.iter().any(holes)
    }
}

impl Open {
    fn new(copies: Vec<Reading>, bound: Seq, bytes: u64) -> Self {
        let pieces = |(copy, reading): (usize, &Reading)| {
            let firsts = reading.index().pieces.iter().map(|piece| piece.first).enumerate();
            firsts.map(|(number, first)| (first, copy, number)).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = copies.iter().enumerate().flat_map(pieces).collect();
        all.sort_unstable();
        let pieces = all.into_iter().map(|(_, copy, number)| (copy, number)).collect();
        Self { copies, pieces, at: 0, bound, bytes }
    }
}

/// Reads what is in a folder behind `after`.
pub(super) fn read(folder: &Folder, after: Seq) -> io::Result<Reading> {
    let source = folder.source()?;
    let index = Index::build(&source, (folder.first, folder.bound), after)?;
    let listed = Listed { first: folder.first, is_aside: folder.is_aside };
    Ok(Reading::new(listed, Box::new(source), index))
}
