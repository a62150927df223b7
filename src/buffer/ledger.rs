//! The loss ledger: how many events were lost or refused, why, when, and which positions they had.
//!
//! One small file beside the buffer's directory, so that it survives a wiped buffer: `LEDGER`, JSON, replaced
//! atomically and synced. It also remembers which buffer stood beside it and how often that was opened, by which a
//! buffer restored from an old copy is recognised; and an eviction that was counted and not finished.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::Seq;

/// Version of the file; fields that a later version adds are lost by an earlier one, nothing else.
const FORMAT: u32 = 1;

/// Most ranges that a reason keeps apart; beyond it the two oldest neighbours become one that spans both.
pub(super) const RANGES_MAX: usize = 256;

/// Why an event did not reach Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Acknowledged, and given up for newer ones because the buffer was full (`when_full = "drop_oldest"`).
    Evicted,
    /// Acknowledged, and older than `buffer.max_age`.
    Expired,
    /// Acknowledged, and not readable any more: damaged or missing on disk.
    Corrupt,
    /// Acknowledged, and deleted by the operator (`fieldpost buffer purge`).
    Purged,
    /// Acknowledged, sent once and not confirmed (`kafka.delivery = "at_most_once"`).
    Undelivered,
    /// Acknowledged, and refused by Kafka for good; it is in the dead-letter topic or store.
    DeadLettered,
    /// Not taken: the buffer was full or could not be written; the producer was told.
    Rejected,
    /// Not taken: larger than `limits.max_event_bytes`; the producer was told.
    TooLarge,
    /// Not taken: not an event; the producer was told.
    Invalid,
}

impl Reason {
    /// All of them, acknowledged events first.
    pub const ALL: [Self; 9] = [
        Self::Evicted,
        Self::Expired,
        Self::Corrupt,
        Self::Purged,
        Self::Undelivered,
        Self::DeadLettered,
        Self::Rejected,
        Self::TooLarge,
        Self::Invalid,
    ];

    /// As it is written in files, metrics and announcements.
    pub fn word(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Expired => "expired",
            Self::Corrupt => "corrupt",
            Self::Purged => "purged",
            Self::Undelivered => "undelivered",
            Self::DeadLettered => "dead_lettered",
            Self::Rejected => "rejected",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
        }
    }

    /// Whether the producer had been told that the event is safe.
    pub fn is_acknowledged(self) -> bool {
        !matches!(self, Self::Rejected | Self::TooLarge | Self::Invalid)
    }
}

/// What the ledger knows of one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Number of events.
    pub events: u64,
    /// When the first was counted, microseconds since 1970 by the wall clock of that moment.
    pub first_us: i64,
    /// When the last was counted.
    pub last_us: i64,
    /// Positions, first and last of each range, ascending; of events that had one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<(Seq, Seq)>,
    /// How many of `events` were announced to Kafka.
    #[serde(default)]
    pub announced: u64,
}

impl Entry {
    /// Takes a range in, joined with those that it touches.
    fn add_range(&mut self, first: Seq, last: Seq) {
        let (mut first, mut last) = (first, last);
        self.ranges.retain(|&(a, b)| {
            let is_apart = b.next() < first || last.next() < a;
            if !is_apart {
                (first, last) = (first.min(a), last.max(b));
            }
            is_apart
        });
        let at = self.ranges.partition_point(|&(a, _)| a < first);
        self.ranges.insert(at, (first, last));
        if let (true, [(_, end), (_, next_end), ..]) =
            (self.ranges.len() > RANGES_MAX, self.ranges.as_mut_slice())
        {
            *end = *next_end;
            self.ranges.remove(1);
        }
    }
}

/// Counts by reason; only what was counted is in it.
pub type Entries = BTreeMap<Reason, Entry>;

/// The buffer that stood beside the ledger last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Witness {
    pub(super) log: Uuid,
    pub(super) epoch: u32,
    /// Inode number and time of the last change of its `IDENTITY`, which no restore can set.
    #[serde(default)]
    pub(super) mark: Option<(u64, u64)>,
    /// Inode number and checksum of the `IDENTITY` that is about to take its place. Told before that is there: a crash
    /// in between is no copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<(u64, u32)>,
}

/// Generations that are being replaced by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replacement {
    /// Their first position, and the replacement's.
    pub(super) first: Seq,
    /// Their last position.
    pub(super) last: Seq,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Stored {
    format: u32,
    #[serde(default)]
    entries: Entries,
    #[serde(default)]
    witness: Option<Witness>,
    #[serde(default)]
    replacement: Option<Replacement>,
}

/// The open ledger.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    path: PathBuf,
    stored: Stored,
    is_dirty: bool,
    /// How often the counts changed since it was opened.
    changes: u64,
}

impl Ledger {
    /// Reads the ledger. A damaged one is kept beside it as `LEDGER.bad` and begun anew; one that cannot be read now
    /// is not replaced.
    pub(super) fn open(path: &Path) -> Self {
        let stored = read(path).unwrap_or_else(|error| {
            let aside = path.with_extension("bad");
            tracing::error!(path = %path.display(), %error, "the loss ledger cannot be read and is begun anew; the old one stays as LEDGER.bad");
            if let Err(error) = fs::rename(path, &aside) {
                tracing::debug!(%error, "it could not be renamed");
            }
            None
        });
        Self { path: path.to_owned(), stored: stored.unwrap_or_default(), is_dirty: false, changes: 0 }
    }

    /// The counts.
    pub(super) fn entries(&self) -> &Entries {
        &self.stored.entries
    }

    /// How often the counts changed since it was opened: whoever has seen this number has seen them.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn witness(&self) -> Option<Witness> {
        self.stored.witness
    }

    pub(super) fn replacement(&self) -> Option<Replacement> {
        self.stored.replacement
    }

    pub(super) fn set_witness(&mut self, witness: Witness) {
        self.is_dirty |= self.stored.witness != Some(witness);
        self.stored.witness = Some(witness);
    }

    pub(super) fn set_replacement(&mut self, replacement: Option<Replacement>) {
        self.is_dirty |= self.stored.replacement != replacement;
        self.stored.replacement = replacement;
    }

    /// Counts events without a position.
    pub(super) fn count(&mut self, reason: Reason, events: u64) {
        if events > 0 {
            self.entry(reason).events += events;
        }
    }

    /// Counts the positions `first..=last`; what is in a range of this reason already was counted before. Answers how
    /// many were new.
    pub(super) fn count_range(&mut self, reason: Reason, first: Seq, last: Seq) -> u64 {
        if first > last {
            return 0;
        }
        let overlap = |&(a, b): &(Seq, Seq)| (last.min(b).next().0).saturating_sub(first.max(a).0);
        let known: u64 = self.stored.entries.get(&reason).map_or(0, |e| e.ranges.iter().map(overlap).sum());
        let events = (last.next().0 - first.0).saturating_sub(known);
        if events > 0 {
            let entry = self.entry(reason);
            entry.events += events;
            entry.add_range(first, last);
        }
        events
    }

    /// A buffer that begins anew counts its positions from 1 again: ranges of the one before mean nothing in it.
    pub(super) fn forget_ranges(&mut self) {
        for entry in self.stored.entries.values_mut().filter(|entry| !entry.ranges.is_empty()) {
            entry.ranges.clear();
            (self.is_dirty, self.changes) = (true, self.changes + 1);
        }
    }

    /// Remembers that so many of `reason` were announced.
    pub(super) fn announced(&mut self, reason: Reason, events: u64) {
        if let Some(entry) = self.stored.entries.get_mut(&reason) {
            entry.announced = entry.announced.max(events.min(entry.events));
            (self.is_dirty, self.changes) = (true, self.changes + 1);
        }
    }

    fn entry(&mut self, reason: Reason) -> &mut Entry {
        (self.is_dirty, self.changes) = (true, self.changes + 1);
        let now = jiff::Timestamp::now().as_microsecond();
        let entry = self.stored.entries.entry(reason).or_default();
        if entry.events == 0 {
            entry.first_us = now;
        }
        entry.last_us = now;
        entry
    }

    /// Whether something was counted and not stored.
    pub(super) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Makes it durable, if anything changed.
    ///
    /// # Errors
    /// It could not be replaced: the old one is still there, and this one in memory.
    pub(super) fn store(&mut self) -> io::Result<()> {
        if !self.is_dirty {
            return Ok(());
        }
        self.stored.format = FORMAT;
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&self.stored)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        self.is_dirty = false;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }
}

/// The counts in the ledger at `path`, without opening anything; empty where there is none.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn read_entries(path: &Path) -> io::Result<Entries> {
    Ok(read(path)?.unwrap_or_default().entries)
}

/// As [`read_entries`]: the replacement that is not finished, if there is one.
pub(super) fn read_replacement(path: &Path) -> Option<Replacement> {
    read(path).ok().flatten()?.replacement
}

fn read(path: &Path) -> io::Result<Option<Stored>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(dir: &Path) -> Ledger {
        Ledger::open(&dir.join("LEDGER"))
    }

    #[test]
    fn counts_survive() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = ledger(dir.path());
        one.count(Reason::Invalid, 3);
        assert_eq!(one.count_range(Reason::Corrupt, Seq(10), Seq(19)), 10);
        one.announced(Reason::Invalid, 2);
        assert!(one.is_dirty());
        one.store().unwrap();
        assert!(!one.is_dirty());
        let two = ledger(dir.path());
        assert_eq!(one.entries(), two.entries());
        let corrupt = &two.entries()[&Reason::Corrupt];
        assert_eq!((corrupt.events, &corrupt.ranges[..]), (10, &[(Seq(10), Seq(19))][..]));
        assert!(corrupt.first_us > 0 && corrupt.last_us >= corrupt.first_us);
        assert_eq!(two.entries()[&Reason::Invalid].announced, 2);
        assert_eq!(read_entries(&dir.path().join("LEDGER")).unwrap(), *two.entries());
    }

    #[test]
    fn every_change_of_a_count_shows_and_nothing_else_does() {
        type Step = fn(&mut Ledger);
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = ledger(dir.path());
        let steps: [(Step, bool); 8] = [
            (|ledger| ledger.count(Reason::Invalid, 0), false),
            (|ledger| ledger.count(Reason::Invalid, 3), true),
            (|ledger| assert_eq!(ledger.count_range(Reason::Corrupt, Seq(1), Seq(2)), 2), true),
            (|ledger| assert_eq!(ledger.count_range(Reason::Corrupt, Seq(1), Seq(2)), 0), false),
            (|ledger| ledger.announced(Reason::Invalid, 2), true),
            (|ledger| ledger.forget_ranges(), true),
            (
                |ledger| ledger.set_witness(Witness { log: Uuid::nil(), epoch: 1, mark: None, next: None }),
                false,
            ),
            (|ledger| ledger.store().unwrap(), false),
        ];
        for (number, (step, changes)) in steps.into_iter().enumerate() {
            let (before, seen) = (ledger.entries().clone(), ledger.changes());
            step(&mut ledger);
            assert_eq!(
                (ledger.changes() != seen, *ledger.entries() != before),
                (changes, changes),
                "{number}"
            );
        }
    }

    #[test]
    fn a_range_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = ledger(dir.path());
        assert_eq!(ledger.count_range(Reason::Corrupt, Seq(5), Seq(9)), 5);
        assert_eq!(ledger.count_range(Reason::Corrupt, Seq(5), Seq(9)), 0);
        assert_eq!(ledger.count_range(Reason::Corrupt, Seq(8), Seq(12)), 3);
        assert_eq!(ledger.count_range(Reason::Corrupt, Seq(1), Seq(2)), 2);
        assert_eq!(ledger.count_range(Reason::Evicted, Seq(5), Seq(6)), 2);
        let corrupt = &ledger.entries()[&Reason::Corrupt];
        assert_eq!((corrupt.events, &corrupt.ranges[..]), (10, &[(Seq(1), Seq(2)), (Seq(5), Seq(12))][..]));
    }

    #[test]
    fn ranges_have_a_limit_and_the_oldest_grow_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = ledger(dir.path());
        for n in 0..1000 {
            ledger.count_range(Reason::Corrupt, Seq(n * 10 + 1), Seq(n * 10 + 2));
        }
        let corrupt = &ledger.entries()[&Reason::Corrupt];
        assert_eq!((corrupt.events, corrupt.ranges.len()), (2000, RANGES_MAX));
        assert_eq!(corrupt.ranges[0].0, Seq(1));
        assert_eq!(corrupt.ranges[RANGES_MAX - 1], (Seq(9991), Seq(9992)));
    }

    #[test]
    fn a_damaged_ledger_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("LEDGER"), b"{").unwrap();
        let mut ledger = ledger(dir.path());
        assert!(ledger.entries().is_empty());
        assert_eq!(fs::read(dir.path().join("LEDGER.bad")).unwrap(), b"{");
        ledger.count(Reason::TooLarge, 1);
        ledger.store().unwrap();
        assert_eq!(read_entries(&dir.path().join("LEDGER")).unwrap().len(), 1);
    }
}
