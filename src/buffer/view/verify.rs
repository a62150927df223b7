//! Is everything there that was acknowledged, and is it whole?

use std::io;

use super::{Folder, View, ViewError, folders, walk};
use crate::buffer::block::Kind;
use crate::buffer::ledger::Reason;
use crate::buffer::ranges;
use crate::buffer::run::Run;
use crate::event::Seq;

/// What was found in one folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FolderReport {
    /// Its name.
    pub name: String,
    /// The first position in it.
    pub first: Seq,
    /// The last position that is to be in it.
    pub last: Seq,
    /// It was damaged and set aside.
    pub is_aside: bool,
    /// Nothing in it waits any more: it is not held against the buffer what is missing in it.
    pub is_delivered: bool,
    /// An agent writes to it now: what is missing may be on its way.
    pub is_changing: bool,
    /// Bytes of its file.
    pub bytes: u64,
    /// Whole blocks; of what waits, if anything does.
    pub blocks: u64,
    /// Events in them.
    pub events: u64,
    /// Events that should be there and are not.
    pub missing: u64,
    /// Their positions, first and last of each range.
    pub holes: Vec<(Seq, Seq)>,
    /// Bytes that the disk cannot give.
    pub unreadable_bytes: u64,
}

/// What was found in all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Folders that were looked at.
    pub folders: u64,
    /// Whole blocks.
    pub blocks: u64,
    /// Events that wait and are whole.
    pub events: u64,
    /// Events that wait and are not there or not whole.
    pub missing: u64,
    /// How many of `missing` the loss ledger has counted already.
    pub counted: u64,
    /// Their positions.
    pub holes: Vec<(Seq, Seq)>,
    /// Bytes that the disk cannot give.
    pub unreadable_bytes: u64,
}

impl FolderReport {
    /// Whether what was acknowledged is missing in it.
    pub fn is_damaged(&self) -> bool {
        self.missing > 0
    }
}

impl Report {
    /// Whether something is missing, or will be when it is read.
    pub fn is_damaged(&self) -> bool {
        self.missing > 0
    }
}

impl View {
    /// Bytes that [`Self::verify`] reads.
    pub fn bytes_to_verify(&self) -> u64 {
        self.folders.iter().map(Folder::file_bytes).sum()
    }

    /// Reads every block in every folder, compares checksums, unpacks; `tell` hears of each folder.
    ///
    /// # Errors
    /// [`ViewError`]: a file cannot be read at all, for another reason than that it is gone.
    pub fn verify(&self, mut tell: impl FnMut(&FolderReport)) -> Result<Report, ViewError> {
        let mut report = Report::default();
        let mut at = self.cursor.next();
        for folder in &self.folders {
            if !folder.is_spare {
                // The generation before it is gone.
                self.hold(&mut report, (at, folder.first.before()));
                at = at.max(folder.bound.next());
            }
            let Some(found) = self.look_into(folder)? else { continue };
            report.folders += 1;
            report.unreadable_bytes += found.unreadable_bytes;
            if !found.is_delivered && !folder.is_spare {
                report.blocks += found.blocks;
                report.events += found.events;
                found.holes.iter().for_each(|&hole| self.hold(&mut report, hole));
            }
            tell(&found);
        }
        if !self.is_open() && at <= Seq::MAX {
            self.hold(&mut report, (at, self.acknowledged));
        }
        Ok(report)
    }

    /// Adds what is missing in `range`.
    fn hold(&self, report: &mut Report, range: (Seq, Seq)) {
        let holes = ranges::minus(range, &mut self.known_missing());
        let counted = self.ledger.as_ref().and_then(|entries| entries.get(&Reason::Corrupt));
        let mut counted = counted.map(|entry| entry.ranges.clone()).unwrap_or_default();
        for hole in holes {
            let events = ranges::count(&[hole]);
            report.missing += events;
            report.counted += events - ranges::count(&ranges::minus(hole, &mut counted));
            report.holes.push(hole);
        }
    }

    /// `None`: it is gone, since what was in it was delivered or given up.
    fn look_into(&self, folder: &Folder) -> Result<Option<FolderReport>, ViewError> {
        let is_delivered = folder.bound <= self.cursor;
        let after = if is_delivered || folder.is_spare { Seq(0) } else { self.cursor };
        let mut found = FolderReport {
            name: folder.name.clone(),
            first: folder.first,
            last: if folder.bound == Seq::MAX { self.acknowledged } else { folder.bound },
            is_aside: folder.is_aside,
            is_delivered,
            is_changing: self.is_open() && folder.bound == Seq::MAX,
            bytes: folder.file_bytes(),
            ..FolderReport::default()
        };
        let mut reading = match walk::read(folder, after) {
            Ok(reading) => reading,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let is_there =
                    || folders(&self.place).is_ok_and(|all| all.iter().any(|f| f.name == folder.name));
                if self.is_open() && !is_there() {
                    return Ok(None);
                }
                let all = (folder.first.max(self.cursor.next()), found.last);
                self.miss(&mut found, vec![all]);
                return Ok(Some(found));
            }
            Err(e) => return Err(ViewError::io(&folder.path)(e)),
        };
        found.unreadable_bytes = reading.index().scanned.unreadable;
        let mut run = Run::default();
        let mut holes = reading.index().holes(folder.first.max(after.next()), found.last);
        for number in 0..reading.index().pieces.len() {
            let Some(piece) = reading.index().pieces.get(number) else { break };
            let (first, last, kind) = (piece.first, piece.last, piece.kind);
            if first > found.last {
                break;
            }
            let blocks = reading.index().places(piece).len() as u64;
            if kind != Kind::Events {
                found.blocks += blocks;
                continue;
            }
            // A block may hold events in front of the cursor too.
            let before = first.before().max(after);
            run.restart(before);
            let is_whole = reading.unpack(number, &mut run);
            let events = run.events().count() as u64;
            if is_whole && events == last.0 - before.0 {
                let waiting = ranges::minus((before.next(), last), &mut self.ahead().to_vec());
                found.blocks += blocks;
                found.events += ranges::count(&waiting);
            } else {
                holes.push((before.next(), last));
            }
        }
        if !is_delivered && !folder.is_spare && !found.is_changing {
            holes.sort_unstable();
            self.miss(&mut found, holes);
        }
        Ok(Some(found))
    }

    fn miss(&self, found: &mut FolderReport, holes: Vec<(Seq, Seq)>) {
        let mut known = self.known_missing();
        found.holes = holes.into_iter().flat_map(|hole| ranges::minus(hole, &mut known)).collect();
        found.missing = ranges::count(&found.holes);
    }
}
