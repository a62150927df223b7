//! A buffer's directory, looked at from outside: what waits in it, whether it is whole, and its events.
//!
//! Nothing is opened for writing, made or locked, so it is safe beside a running agent and on a read-only copy. What an
//! agent does meanwhile shows as files that grow, move on and vanish: a generation that is gone was delivered, and in
//! the newest one a block may be on its way from one place to another, so that only a second look tells what is missing.

#[cfg(test)]
mod tests;
mod verify;
mod walk;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::OpenError;
use super::generations::{Age, Index};
use super::identity::{self, HighWater, LogName};
use super::lanes::{self, Lanes};
use super::ledger::{self, Entries, RANGES_MAX};
use super::probe::{self, Owner};
use super::ranges;
use super::sled::{BLOCKS, folder_name};
use crate::event::{Seq, Stamp};

pub use verify::{FolderReport, Report};
pub use walk::{Missing, Walk};

/// Where a buffer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The buffer's own directory.
    pub dir: PathBuf,
    /// The loss ledger.
    pub ledger: PathBuf,
}

/// Why a directory cannot be looked at.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ViewError {
    /// There is none.
    #[error("there is no buffer in {}: no agent has run with this directory yet, or it is another one", .0.display())]
    Missing(PathBuf),
    /// A later version wrote it, or it cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Something cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ViewError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

/// The folder of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Its name in the directory.
    pub name: String,
    /// The first position in it.
    pub first: Seq,
    /// The last position that may be in it; [`Seq::MAX`] for the newest.
    pub bound: Seq,
    /// It was damaged and set aside.
    pub is_aside: bool,
    /// Another folder stands for these positions; this one is only kept.
    pub is_spare: bool,
    path: PathBuf,
}

/// What the small files and the newest generation tell.
#[derive(Debug)]
pub struct View {
    place: Place,
    /// Who has it open.
    pub owner: Owner,
    /// The names of its events by epoch; empty when `IDENTITY` is missing or damaged.
    pub logs: Vec<LogName>,
    /// How often it was opened.
    pub epoch: u32,
    /// Everything up to here may be forgotten.
    pub cursor: Seq,
    /// Last event that is there and durable.
    pub durable: Seq,
    /// Last event that was acknowledged: further than `durable` when the end is missing.
    pub acknowledged: Seq,
    /// A part of it was written in this later block format.
    pub newer: Option<u8>,
    /// What went out ahead of the cursor, and where the live lane is; `None` when nothing ever did, or nobody knows any more.
    pub lanes: Option<Lanes>,
    /// `LANES` is there and cannot be read: nobody knows what went out ahead of the cursor.
    pub are_lanes_damaged: bool,
    /// What was lost or refused; `None` when the ledger cannot be read.
    pub ledger: Option<Entries>,
    /// Every folder with events, in order.
    pub folders: Vec<Folder>,
    /// Bytes of disk.
    pub disk_bytes: u64,
    /// Numbers between the two of each were never events, or were counted when they were lost.
    jumps: Vec<(Seq, Seq)>,
}

/// An event that waits, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    /// Its position.
    pub seq: Seq,
    /// `type`.
    pub kind: String,
    /// `source_type`.
    pub source_type: String,
    /// `source_id`.
    pub source_id: String,
    /// When it was taken.
    pub received: Stamp,
    /// How long ago that was, where it can be known: in the same boot, or when the clock was right then and is now.
    pub age: Option<Duration>,
}

impl View {
    /// Looks at the small files and the newest generation.
    ///
    /// # Errors
    /// [`ViewError`]: there is nothing to look at.
    pub fn of(place: &Place) -> Result<Self, ViewError> {
        let dir = &place.dir;
        match fs::metadata(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ViewError::Missing(dir.clone())),
            found => found.map_err(ViewError::io(dir))?,
        };
        let owner = probe::owner(dir).map_err(ViewError::io(dir))?;
        let known = identity::look(dir)?.unwrap_or_default();
        let marks = HighWater::open(dir)?.marks();
        let lanes = lanes::look(dir)?;
        let folders = folders(place)?;
        if folders.is_empty() && known.logs.is_empty() {
            identity::refuse_foreign(dir)?;
            return Err(ViewError::Missing(dir.clone()));
        }
        let mut this = Self {
            place: place.clone(),
            owner,
            logs: known.logs,
            epoch: known.epoch,
            cursor: marks.cursor,
            durable: marks.cursor,
            acknowledged: marks.durable,
            newer: None,
            lanes: lanes.lanes,
            are_lanes_damaged: lanes.is_damaged,
            ledger: ledger::read_entries(&place.ledger).ok(),
            folders,
            disk_bytes: probe::used_bytes(dir).map_err(ViewError::io(dir))?,
            jumps: known.jumps,
        };
        this.find_end(marks.durable);
        if let Some(lanes) = &mut this.lanes {
            lanes.forget(this.cursor);
        }
        Ok(this)
    }

    /// Whether an agent has it open.
    pub fn is_open(&self) -> bool {
        self.owner != Owner::Nobody
    }

    /// As an agent finds end and cursor at its start, from the newest generation on until one has told; beside a running
    /// agent only up to what is known to be synced.
    fn find_end(&mut self, noted: Seq) {
        let mut last = self.cursor;
        for number in (0..self.folders.len()).rev() {
            let Some(folder) = self.folders.get(number).filter(|folder| !folder.is_spare) else { continue };
            last = last.max(folder.first.before());
            // Gone meanwhile, or not readable: the ones before it tell as much.
            let Ok(mut index) = folder.index(self.cursor) else { continue };
            self.newer = self.newer.or(index.scanned.newer);
            self.cursor = self.cursor.max(index.cursor);
            if folder.bound == Seq::MAX {
                index.cut_torn_tail(folder.first, self.cursor, noted);
            }
            let found = index.last().unwrap_or_default();
            last = last.max(if self.is_open() { found.min(index.synced.max(noted)) } else { found });
            if index.tells_end() {
                break;
            }
        }
        self.durable = last.max(self.cursor);
        self.acknowledged = self.acknowledged.max(self.durable);
    }

    /// Whether [`Self::waiting`] is exact: with more ranges than the ledger keeps apart there are more events than that.
    pub fn is_waiting_exact(&self) -> bool {
        let mut lost = self.ledger.iter().flatten().filter(|(reason, _)| reason.is_acknowledged());
        lost.all(|(_, entry)| entry.ranges.len() < RANGES_MAX)
    }

    /// Number of events that wait: positions behind the cursor, less those that were delivered ahead of it and those
    /// that are known to be none any more.
    pub fn waiting(&self) -> u64 {
        self.waiting_in(self.cursor.next(), self.durable)
    }

    /// While there are two lanes: how many of the events that wait are backlog. The others are live.
    pub fn backlog(&self) -> Option<u64> {
        let live_from = self.lanes.as_ref().map(|lanes| lanes.live_from);
        let live_from = live_from.filter(|live_from| *live_from > self.cursor.next())?;
        Some(self.waiting_in(self.cursor.next(), self.durable.min(live_from.before())))
    }

    fn waiting_in(&self, first: Seq, last: Seq) -> u64 {
        let mut cut = self.known_missing();
        let lost = self.ledger.iter().flatten().filter(|(reason, _)| reason.is_acknowledged());
        cut.extend(lost.flat_map(|(_, entry)| &entry.ranges));
        ranges::count(&ranges::minus((first, last), &mut cut))
    }

    /// The oldest event that waits; `now` in the boot `boot`.
    ///
    /// # Errors
    /// As [`Walk::next`].
    pub fn oldest(&self, boot: [u8; 16], now: Stamp) -> Result<Option<Oldest>, ViewError> {
        let age = Age { boot, now };
        let mut walk = self.walk(self.cursor.next());
        while let Some(run) = walk.next()? {
            if let Some((seq, origin, event)) = run.events().next() {
                return Ok(Some(Oldest {
                    seq,
                    kind: event.kind.to_owned(),
                    source_type: event.source_type.to_owned(),
                    source_id: event.source_id.to_owned(),
                    received: event.received,
                    age: age.of(origin, event.received),
                }));
            }
        }
        Ok(None)
    }

    /// The name of events of `epoch`.
    pub fn log_of(&self, epoch: u32) -> Option<&LogName> {
        LogName::of(&self.logs, epoch)
    }

    /// The events from `from` on that are not given up and were not delivered ahead of the cursor, up to the last durable
    /// one.
    pub fn walk(&self, from: Seq) -> Walk<'_> {
        Walk::new(self, from, false)
    }

    /// As [`Self::walk`], and whatever is whole in the copies of damaged generations or was delivered.
    pub fn salvage(&self, from: Seq) -> Walk<'_> {
        Walk::new(self, from, true)
    }

    /// Ranges that were delivered ahead of the cursor.
    fn ahead(&self) -> &[(Seq, Seq)] {
        self.lanes.as_ref().map_or(&[], |lanes| &lanes.ahead)
    }

    /// Ranges of numbers that need not be there: jumped over, or delivered ahead of the cursor.
    fn known_missing(&self) -> Vec<(Seq, Seq)> {
        let jumped = self.jumps.iter().map(|&(after, to)| (after.next(), to.before()));
        jumped.chain(self.ahead().iter().copied()).collect()
    }

    /// The cursor now: an agent may have moved it.
    fn cursor_now(&self) -> Seq {
        HighWater::open(&self.place.dir).map_or(self.cursor, |file| file.marks().cursor.max(self.cursor))
    }
}

impl Folder {
    fn source(&self) -> io::Result<File> {
        File::open(self.path.join(BLOCKS))
    }

    /// What is in it behind `after`.
    fn index(&self, after: Seq) -> io::Result<Index> {
        Index::build(&self.source()?, (self.first, self.bound), after)
    }

    /// Bytes of its blocks' file.
    fn file_bytes(&self) -> u64 {
        fs::metadata(self.path.join(BLOCKS)).map_or(0, |meta| meta.len())
    }
}

/// The row as an agent would see it, and the copies beside it.
fn folders(place: &Place) -> Result<Vec<Folder>, ViewError> {
    let dir = &place.dir;
    let replacement = ledger::read_replacement(&place.ledger);
    let mut found = Vec::new();
    let mut replaced = None;
    for entry in fs::read_dir(dir).map_err(ViewError::io(dir))? {
        let entry = entry.map_err(ViewError::io(dir))?;
        let path = entry.path();
        let Some((first, extension)) = folder_name(&path) else { continue };
        // One that was written and counted stands for those that it replaces, whether they are gone or not.
        let is_new = extension == "new" && replacement.is_some_and(|r| r.first == first);
        if is_new {
            replaced = replacement;
        }
        if is_new || matches!(extension, "gen" | "bad") {
            let is_aside = extension == "bad";
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push((Folder { name, first, bound: Seq::MAX, is_aside, is_spare: false, path }, is_new));
        }
    }
    if let Some(range) = replaced {
        found.retain(|(folder, is_new)| {
            *is_new || folder.is_aside || !(range.first..=range.last).contains(&folder.first)
        });
    }
    let mut found: Vec<Folder> = found.into_iter().map(|(folder, _)| folder).collect();
    // `NNN.bad` before `NNN.2.bad`.
    found.sort_unstable_by(|a, b| {
        let key = |folder: &Folder| (folder.first, folder.is_aside, folder.name.len());
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    let firsts: Vec<Seq> = found.iter().map(|folder| folder.first).collect();
    let mut before = None;
    for folder in &mut found {
        let next = firsts.iter().find(|first| **first > folder.first);
        folder.bound = next.map_or(Seq::MAX, |next| next.before());
        folder.is_spare = before.replace(folder.first) == Some(folder.first);
    }
    Ok(found)
}
