//! What makes a position unique: the buffer's UUID, the epoch, and numbers that were promised never to be used again.
//!
//! Three small files beside the generations:
//!
//! - `LOCK`: held by `flock` while the buffer is open; holds the owner's process id as text.
//! - `IDENTITY`: `{"format":1,"log":"…","epoch":n,"ceiling":m,"jumps":[[a,b]],"suspect":s}`. Replaced atomically and
//!   synced at every start, before the first append, and whenever the ceiling is raised. Sequence numbers above the
//!   ceiling were never used. A jump says that the event behind `a` is `b`: numbers in between were lost, which was
//!   counted when it was found, or never used. Writing to generation `s` failed: it is read and not written any more.
//! - `HIGHWATER`: last durable sequence number and cursor, rewritten with each commit and synced at rotation and stop:
//!   exact after a process death, possibly late after a power cut. It tells when a generation lost its tail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::OpenError;
use crate::event::Seq;

/// Version of the directory's layout; a higher one is refused, not touched.
const FORMAT: u32 = 1;

/// How many sequence numbers one synced rewrite of `IDENTITY` reserves: one small write per million events.
const CEILING_STEP: u64 = 1 << 20;

/// Held by `flock` while a buffer is open.
pub(super) const LOCK_FILE: &str = "LOCK";

const HIGHWATER_BYTES: usize = 20;

/// Holds the directory; dropping it lets the next owner in.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the directory.
    ///
    /// # Errors
    /// [`OpenError::Locked`] with the owner's process id: another agent runs on it.
    pub(super) fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(LOCK_FILE);
        let failed = |e: &io::Error| OpenError::io(&path, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| failed(&e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut owner = String::new();
                // Only for the message: an unreadable owner is told as such.
                let _ = file.read_to_string(&mut owner);
                let owner = owner.trim().parse().ok();
                return Err(OpenError::Locked { dir: dir.to_owned(), owner });
            }
            Err(errno) => return Err(failed(&errno.into())),
        }
        file.set_len(0).map_err(|e| failed(&e))?;
        writeln!(file, "{}", std::process::id()).map_err(|e| failed(&e))?;
        Ok(Self { _file: file })
    }
}

/// All that is read of a file that a later version may have written.
#[derive(Debug, Deserialize)]
struct Layout {
    format: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    log: String,
    epoch: u32,
    ceiling: u64,
    #[serde(default)]
    jumps: Vec<(Seq, Seq)>,
    #[serde(default)]
    suspect: Option<Seq>,
}

/// The identity of the open buffer.
#[derive(Debug)]
pub(super) struct Identity {
    dir: PathBuf,
    log: Uuid,
    epoch: u32,
    ceiling: Seq,
    jumps: Vec<(Seq, Seq)>,
    suspect: Option<Seq>,
}

impl Identity {
    /// Reads or makes the identity and raises the epoch; both are durable when this returns.
    ///
    /// # Errors
    /// [`OpenError::Newer`] for a directory of a later version, [`OpenError::Io`] when it cannot be read or written.
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("IDENTITY");
        let stored = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Layout>(&bytes) {
                Ok(Layout { format }) if format > FORMAT => {
                    return Err(OpenError::Newer { dir: dir.to_owned(), format });
                }
                _ => read_stored(&bytes),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(OpenError::io(&path, &e)),
        };
        let mut identity = match stored {
            Some((log, Stored { epoch, ceiling, jumps, suspect, .. })) => {
                Self { dir: dir.to_owned(), log, epoch, ceiling: Seq(ceiling), jumps, suspect }
            }
            None => {
                if path.exists() {
                    tracing::error!(path = %path.display(), "IDENTITY is damaged; the buffer gets a new identity and keeps its events");
                }
                Self {
                    dir: dir.to_owned(),
                    log: Uuid::new_v4(),
                    epoch: 0,
                    ceiling: Seq(0),
                    jumps: Vec::new(),
                    suspect: None,
                }
            }
        };
        identity.epoch = identity.epoch.saturating_add(1);
        identity.store().map_err(|e| OpenError::io(&path, &e))?;
        Ok(identity)
    }

    /// The buffer's UUID.
    pub(super) fn log(&self) -> Uuid {
        self.log
    }

    /// How often the buffer was opened.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Numbers above it were never used.
    pub(super) fn ceiling(&self) -> Seq {
        self.ceiling
    }

    /// Reserves numbers so that `seq` may be used; writes and syncs only when they run out.
    ///
    /// # Errors
    /// The file could not be replaced: `seq` must not be used.
    pub(super) fn reserve(&mut self, seq: Seq) -> io::Result<()> {
        if seq <= self.ceiling {
            return Ok(());
        }
        let before = self.ceiling;
        self.ceiling = seq.plus(CEILING_STEP);
        self.store().inspect_err(|_| self.ceiling = before)
    }

    /// Goes on behind the ceiling instead of behind `after`, and answers the number to go on with. Used when a tail
    /// was lost: its numbers were used, and a consumer that drops duplicates would drop new events with old numbers.
    ///
    /// # Errors
    /// The file could not be replaced: nothing has changed.
    pub(super) fn jump(&mut self, after: Seq, cursor: Seq) -> io::Result<Seq> {
        // Never the number behind `after`: an empty generation that is damaged or doubted may have it for its name.
        let to = self.ceiling.max(after.next()).next();
        let before = (self.ceiling, self.jumps.clone());
        // A jump that was made and then not used is replaced: behind a number there is one other.
        self.jumps.retain(|&(from, to)| to > cursor && from != after);
        self.jumps.push((after, to));
        self.ceiling = to.plus(CEILING_STEP);
        self.store().inspect_err(|_| (self.ceiling, self.jumps) = before)?;
        Ok(to)
    }

    /// Remembers over a restart that writing to the generation at `first` failed.
    ///
    /// # Errors
    /// The file could not be replaced: it is remembered in this run only.
    pub(super) fn doubt(&mut self, first: Seq) -> io::Result<()> {
        if self.suspect == Some(first) {
            return Ok(());
        }
        self.suspect = Some(first);
        self.store()
    }

    /// Whether writing to the generation at `first` failed.
    pub(super) fn is_suspect(&self, first: Seq) -> bool {
        self.suspect == Some(first)
    }

    /// How many of the numbers `first..=last` were jumped over.
    pub(super) fn jumped(&self, first: Seq, last: Seq) -> u64 {
        let overlap = |&(after, to): &(Seq, Seq)| {
            let (from, end) = (first.max(after.next()), last.next().min(to));
            end.0.saturating_sub(from.0)
        };
        self.jumps.iter().map(overlap).sum()
    }

    fn store(&self) -> io::Result<()> {
        let stored = Stored {
            format: FORMAT,
            log: self.log.to_string(),
            epoch: self.epoch,
            ceiling: self.ceiling.0,
            jumps: self.jumps.clone(),
            suspect: self.suspect,
        };
        let (new, path) = (self.dir.join("IDENTITY.new"), self.dir.join("IDENTITY"));
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&stored)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()
    }
}

fn read_stored(bytes: &[u8]) -> Option<(Uuid, Stored)> {
    let stored: Stored = serde_json::from_slice(bytes).ok()?;
    Some((Uuid::parse_str(&stored.log).ok()?, stored))
}

/// The high-water file.
#[derive(Debug)]
pub(super) struct HighWater {
    file: File,
    /// Last durable sequence number that was noted.
    pub durable: Seq,
    /// Cursor that was noted.
    pub cursor: Seq,
}

impl HighWater {
    /// Opens or makes the file; a damaged one counts as never written.
    ///
    /// # Errors
    /// [`OpenError::Io`].
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("HIGHWATER");
        let open = || -> io::Result<Self> {
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let (durable, cursor) = decode(&bytes).unwrap_or_default();
            Ok(Self { file, durable, cursor })
        };
        open().map_err(|e| OpenError::io(&path, &e))
    }

    /// Notes both numbers without a sync.
    ///
    /// # Errors
    /// The write failed; the note is only late, nothing depends on it at once.
    pub(super) fn note(&mut self, durable: Seq, cursor: Seq) -> io::Result<()> {
        if (durable, cursor) == (self.durable, self.cursor) {
            return Ok(());
        }
        (self.durable, self.cursor) = (durable, cursor);
        self.file.write_all_at(&encode(durable, cursor), 0)
    }

    /// Syncs the note: at rotation and stop.
    ///
    /// # Errors
    /// The sync failed.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn encode(durable: Seq, cursor: Seq) -> [u8; HIGHWATER_BYTES] {
    let mut bytes = [0; HIGHWATER_BYTES];
    let (numbers, crc) = bytes.split_at_mut(16);
    let (first, second) = numbers.split_at_mut(8);
    first.copy_from_slice(&durable.0.to_le_bytes());
    second.copy_from_slice(&cursor.0.to_le_bytes());
    crc.copy_from_slice(&crc32fast::hash(numbers).to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(Seq, Seq)> {
    let (numbers, crc) = bytes.split_first_chunk::<16>()?;
    if crc != crc32fast::hash(numbers).to_le_bytes() {
        return None;
    }
    let (durable, cursor) = numbers.split_first_chunk::<8>()?;
    Some((Seq(u64::from_le_bytes(*durable)), Seq(u64::from_le_bytes(cursor.try_into().ok()?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        match Lock::take(dir.path()) {
            Err(OpenError::Locked { owner, .. }) => assert_eq!(owner, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(lock);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn every_start_raises_the_epoch_and_keeps_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path()).unwrap();
        let second = Identity::open(dir.path()).unwrap();
        assert_eq!((first.log(), first.epoch() + 1), (second.log(), second.epoch()));
    }

    #[test]
    fn reserved_numbers_survive() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::open(dir.path()).unwrap();
        identity.reserve(Seq(5)).unwrap();
        let ceiling = identity.ceiling();
        assert!(ceiling >= Seq(5));
        identity.reserve(ceiling).unwrap();
        assert_eq!(identity.ceiling(), ceiling, "no write while the reserve lasts");
        assert_eq!(Identity::open(dir.path()).unwrap().ceiling(), ceiling);
    }

    #[test]
    fn a_jump_goes_where_no_number_was_used_and_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::open(dir.path()).unwrap();
        identity.reserve(Seq(100)).unwrap();
        let before = identity.ceiling();
        let to = identity.jump(Seq(40), Seq(0)).unwrap();
        assert!(to > before && identity.ceiling() > to);
        let identity = Identity::open(dir.path()).unwrap();
        assert_eq!(identity.jumped(Seq(41), Seq(50)), 10);
        assert_eq!(identity.jumped(Seq(39), to), to.0 - 41);
        assert_eq!(identity.jumped(Seq(1), Seq(40)), 0);
    }

    #[test]
    fn a_later_layout_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"format":2,"log":"x","epoch":1,"ceiling":9,"more":true}"#;
        fs::write(dir.path().join("IDENTITY"), text).unwrap();
        assert!(matches!(Identity::open(dir.path()), Err(OpenError::Newer { format: 2, .. })));
        assert_eq!(fs::read_to_string(dir.path().join("IDENTITY")).unwrap(), text);
    }

    #[test]
    fn a_damaged_identity_becomes_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let before = Identity::open(dir.path()).unwrap();
        fs::write(dir.path().join("IDENTITY"), b"{").unwrap();
        assert_ne!(Identity::open(dir.path()).unwrap().log(), before.log());
    }

    #[test]
    fn the_high_water_mark_survives_and_damage_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        HighWater::open(dir.path()).unwrap().note(Seq(9), Seq(4)).unwrap();
        let again = HighWater::open(dir.path()).unwrap();
        assert_eq!((again.durable, again.cursor), (Seq(9), Seq(4)));
        let mut bytes = fs::read(dir.path().join("HIGHWATER")).unwrap();
        bytes[3] ^= 1;
        fs::write(dir.path().join("HIGHWATER"), bytes).unwrap();
        assert_eq!(HighWater::open(dir.path()).unwrap().durable, Seq(0));
    }
}
