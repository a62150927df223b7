//! What makes a position unique: the buffer's UUID, the epoch, and numbers that were promised never to be used again.
//!
//! Three small files beside the generations:
//!
//! - `LOCK`: held by `flock` while the buffer is open; holds the owner's process id as text.
//! - `IDENTITY`: `{"format":1,"logs":[{"epoch":1,"log":"…","agent":"…"}],"epoch":n,"ceiling":m,"jumps":[[a,b]],
//!   "place":[i,t]}`. Replaced atomically and synced with a raised epoch at every start, before the first append, and
//!   whenever the ceiling is raised. Sequence numbers above the ceiling were never used. A jump says that the event
//!   behind `a` is `b`: numbers in between were lost, which was counted when it was found, or never used.
//! - `HIGHWATER`: last durable sequence number, cursor and name of the newest generation, rewritten with each commit
//!   and synced at rotation and stop: exact after a process death, possibly late after a power cut. It tells when the
//!   end of the row is missing.
//!
//! A copy of a buffer, or an old copy put in its place, would use positions that were used already. So events that
//! come after it get a log UUID of their own, while those that are in it keep theirs: the log and the agent's name
//! belong to a range of epochs. A copy shows by the place of its directory on the disk, an old copy by the witness in
//! the loss ledger, and both together, put back in place, by the time of the last change of `IDENTITY`: the witness
//! remembers it, and restoring changes it. A process that dies between the two files is told from a restore by what the
//! ledger was told beforehand. When in doubt it is a copy: that costs consumers nothing, but in exactly-once the events
//! whose commit this buffer had not heard of come again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, StatxFlags};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::OpenError;
use super::lanes::{LANES_FILE, LANES_NEW};
use super::ledger::{Ledger, Witness};
use crate::event::Seq;

/// Version of the directory's layout; a higher one is refused, not touched.
const FORMAT: u32 = 1;

/// How many sequence numbers one synced rewrite of `IDENTITY` reserves: one small write per million events.
const CEILING_STEP: u64 = 1 << 20;

/// Held by `flock` while a buffer is open.
pub(super) const LOCK_FILE: &str = "LOCK";

const HIGHWATER_BYTES: usize = 28;

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
        match lock_alone(&file) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(OpenError::Locked { dir: dir.to_owned(), owner: owner_in(&path) });
            }
            Err(errno) => return Err(failed(&errno.into())),
        }
        // Only for messages, and a full disk must not keep the agent from its start.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

/// How long an owner is given to write down who it is: it does so right behind taking the lock.
const OWNER_MAX: Duration = Duration::from_millis(200);

/// The process id that the owner wrote to the lock file at `path`, for messages; `None` if it does not.
pub(super) fn owner_in(path: &Path) -> Option<u32> {
    let deadline = Instant::now() + OWNER_MAX;
    loop {
        let mut text = String::new();
        // More than an id is none.
        let read = File::open(path).and_then(|file| file.take(32).read_to_string(&mut text));
        match read.ok().and_then(|_| text.trim().parse().ok()) {
            None if Instant::now() < deadline => std::thread::yield_now(),
            owner => return owner,
        }
    }
}

/// How long the lock is tried while somebody only looks at it.
const LOOKS_MAX: Duration = Duration::from_secs(2);

/// Whoever asks who the owner is (`probe`) holds the lock for a moment, together with others who ask; that must not
/// keep an agent from its start.
fn lock_alone(file: &File) -> rustix::io::Result<()> {
    let deadline = Instant::now() + LOOKS_MAX;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                // An owner does not share it.
                rustix::fs::flock(file, FlockOperation::NonBlockingLockShared)?;
                std::thread::yield_now();
            }
            answered => return answered,
        }
    }
}

/// Refuses a directory that holds files and was never a buffer.
///
/// # Errors
/// [`OpenError::Foreign`] with one of the files, [`OpenError::Io`] if it cannot be read.
pub(super) fn refuse_foreign(dir: &Path) -> Result<(), OpenError> {
    let mut foreign = None;
    for entry in fs::read_dir(dir).map_err(|e| OpenError::io(dir, &e))? {
        let name = entry.map_err(|e| OpenError::io(dir, &e))?.file_name().to_string_lossy().into_owned();
        let small = [LOCK_FILE, "IDENTITY", "IDENTITY.new", "HIGHWATER", "RESERVE", LANES_FILE, LANES_NEW];
        let is_ours = small.contains(&name.as_str())
            || [".gen", ".bad", ".del", ".new"].iter().any(|extension| name.ends_with(extension));
        if is_ours {
            return Ok(());
        }
        // What a file system brings along at its root.
        if name != "lost+found" && !name.starts_with('.') {
            foreign = Some(name);
        }
    }
    foreign.map_or(Ok(()), |found| Err(OpenError::Foreign { dir: dir.to_owned(), found }))
}

/// All that is read of a file that a later version may have written.
#[derive(Debug, Deserialize)]
struct Layout {
    format: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    format: u32,
    logs: Vec<LogName>,
    epoch: u32,
    ceiling: Seq,
    #[serde(default)]
    jumps: Vec<(Seq, Seq)>,
    #[serde(default)]
    place: Option<Place>,
}

/// What the events of some epochs are told by, besides epoch and sequence number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogName {
    /// The first epoch; it holds up to the next entry's.
    pub epoch: u32,
    /// UUID of the log.
    pub log: Uuid,
    /// The agent's name (`agent.id`).
    pub agent: String,
}

impl LogName {
    /// The name of events of `epoch`; `None` only when there are no names.
    pub fn of(names: &[Self], epoch: u32) -> Option<&Self> {
        names.iter().rev().find(|name| name.epoch <= epoch).or(names.first())
    }
}

/// Where a directory is: inode number and time of birth in nanoseconds, 0 where the file system does not tell. A copy
/// has others, a renamed directory the same.
type Place = (u64, u64);

/// Most log names that are kept; the oldest go, whose events are long in Kafka.
const LOGS_MAX: usize = 64;

/// The identity of the open buffer.
#[derive(Debug)]
pub(super) struct Identity {
    dir: PathBuf,
    stored: Stored,
    /// Whether the file holds all this: before that, no number may be used.
    is_stored: bool,
}

impl Identity {
    /// Reads or makes the identity and raises the epoch; durable before the first number is used ([`Self::reserve`]).
    ///
    /// # Errors
    /// [`OpenError::Newer`] for a directory of a later version, [`OpenError::Io`] when it cannot be read.
    pub(super) fn open(dir: &Path, agent: &str, witness: Option<Witness>) -> Result<Self, OpenError> {
        let path = dir.join("IDENTITY");
        let (found, is_damaged, is_announced) = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Layout>(&bytes) {
                Ok(Layout { format }) if format > FORMAT => {
                    return Err(OpenError::Newer { dir: dir.to_owned(), format });
                }
                _ => {
                    let next = witness.and_then(|w| w.next);
                    let is_announced = next.is_some() && next == print_of(&path, &bytes);
                    let stored = serde_json::from_slice::<Stored>(&bytes).ok();
                    let is_damaged = stored.is_none();
                    (stored.filter(|stored| !stored.logs.is_empty()), is_damaged, is_announced)
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => (None, false, false),
            Err(e) => return Err(OpenError::io(&path, &e)),
        };
        if is_damaged {
            tracing::error!(path = %path.display(), "IDENTITY is damaged; the buffer gets a new identity and keeps its events");
        }
        let place = place(dir);
        let is_known = found.is_some();
        let mut stored = found.unwrap_or_else(|| Stored {
            format: FORMAT,
            // Events that may still be here were stamped under the name that the ledger remembers.
            logs: witness.iter().map(|w| LogName { epoch: 0, log: w.log, agent: agent.to_owned() }).collect(),
            epoch: witness.map_or(0, |w| w.epoch),
            ceiling: Seq(0),
            jumps: Vec::new(),
            place,
        });
        let current = stored.logs.last();
        let is_old = witness
            .is_some_and(|w| is_known && current.is_some_and(|l| l.log == w.log) && w.epoch > stored.epoch);
        let is_touched =
            !is_announced && witness.and_then(|w| w.mark).is_some_and(|mark| mark_of(&path) != Some(mark));
        let is_copy = is_known && (stored.place != place || is_touched);
        let is_renamed = current.is_none_or(|l| l.agent != agent);
        if is_old || is_copy {
            tracing::warn!(
                dir = %dir.display(),
                "this buffer is a copy or an old copy: its events keep their positions, new events get a log id of their own"
            );
        }
        if let Some(witness) = witness.filter(|_| is_old) {
            stored.epoch = witness.epoch;
        }
        stored.epoch = stored.epoch.saturating_add(1);
        if is_old || is_copy || is_renamed || !is_known {
            stored.logs.push(LogName { epoch: stored.epoch, log: Uuid::new_v4(), agent: agent.to_owned() });
            let surplus = stored.logs.len().saturating_sub(LOGS_MAX);
            stored.logs.drain(..surplus);
        }
        stored.place = place;
        Ok(Self { dir: dir.to_owned(), stored, is_stored: false })
    }

    /// The buffer's UUID for new events.
    pub(super) fn log(&self) -> Uuid {
        self.stored.logs.last().map_or(Uuid::nil(), |log| log.log)
    }

    /// The names of all events that may be in the buffer, by epoch.
    pub(super) fn logs(&self) -> &[LogName] {
        &self.stored.logs
    }

    /// How often the buffer was opened.
    pub(super) fn epoch(&self) -> u32 {
        self.stored.epoch
    }

    /// Numbers above it were never used.
    pub(super) fn ceiling(&self) -> Seq {
        self.stored.ceiling
    }

    /// Reserves numbers so that `seq` may be used; writes and syncs only when they run out, or the epoch is not yet
    /// durable. The ledger's witness is of this identity then; it is not stored yet.
    ///
    /// # Errors
    /// The file could not be replaced: `seq` must not be used.
    pub(super) fn reserve(&mut self, seq: Seq, ledger: &mut Ledger) -> io::Result<()> {
        if seq <= self.stored.ceiling && self.is_stored {
            return Ok(());
        }
        let before = self.stored.ceiling;
        if seq > before {
            self.stored.ceiling = seq.plus(CEILING_STEP);
        }
        self.store(ledger).inspect_err(|_| self.stored.ceiling = before)
    }

    /// Goes on behind the ceiling instead of behind `after`, and answers the number to go on with. Used when a tail
    /// was lost: its numbers were used, and a consumer that drops duplicates would drop new events with old numbers. The
    /// ledger as in [`Self::reserve`].
    ///
    /// # Errors
    /// The file could not be replaced: nothing has changed.
    pub(super) fn jump(&mut self, after: Seq, cursor: Seq, ledger: &mut Ledger) -> io::Result<Seq> {
        // Never the number behind `after`: an empty generation that is damaged may have it for its name.
        let to = self.stored.ceiling.max(after.next()).next();
        let before = (self.stored.ceiling, self.stored.jumps.clone());
        // A jump that was made and then not used is replaced: behind a number there is one other.
        self.stored.jumps.retain(|&(from, to)| to > cursor && from != after);
        self.stored.jumps.push((after, to));
        self.stored.ceiling = to.plus(CEILING_STEP);
        self.store(ledger).inspect_err(|_| (self.stored.ceiling, self.stored.jumps) = before)?;
        Ok(to)
    }

    /// Ranges of numbers that were jumped over.
    pub(super) fn jumped(&self) -> impl Iterator<Item = (Seq, Seq)> {
        self.stored.jumps.iter().map(|&(after, to)| (after.next(), to.before()))
    }

    fn store(&mut self, ledger: &mut Ledger) -> io::Result<()> {
        let (new, path) = (self.dir.join("IDENTITY.new"), self.dir.join("IDENTITY"));
        let bytes = serde_json::to_vec(&self.stored)?;
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        // Order: a ledger that knew nothing of what is there would take it for a copy.
        if let Some(witness) = ledger.witness() {
            ledger.set_witness(Witness { next: print_of(&new, &bytes), ..witness });
            if let Err(error) = ledger.store() {
                tracing::debug!(%error, "the loss ledger cannot be written now; a crash would make the buffer a copy");
            }
        }
        fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()?;
        self.is_stored = true;
        ledger.set_witness(Witness {
            log: self.log(),
            epoch: self.epoch(),
            mark: mark_of(&path),
            next: None,
        });
        Ok(())
    }
}

/// Inode number and checksum of a file that holds `bytes`.
fn print_of(path: &Path, bytes: &[u8]) -> Option<(u64, u32)> {
    Some((fs::metadata(path).ok()?.ino(), crc32fast::hash(bytes)))
}

/// Inode number and time of the last change in nanoseconds of a file; no call can set that time.
fn mark_of(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    let (seconds, nanos) = (u64::try_from(meta.ctime()).ok()?, u64::try_from(meta.ctime_nsec()).ok()?);
    Some((meta.ino(), seconds.saturating_mul(1_000_000_000).saturating_add(nanos)))
}

/// What `IDENTITY` tells of a buffer that is only looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The names of its events, by epoch.
    pub(super) logs: Vec<LogName>,
    /// How often it was opened.
    pub(super) epoch: u32,
    /// The event behind the first is the second.
    pub(super) jumps: Vec<(Seq, Seq)>,
}

/// Reads `IDENTITY` without opening the buffer; `None` when it is missing or damaged.
///
/// # Errors
/// [`OpenError::Newer`] for a directory of a later version, [`OpenError::Io`] when it cannot be read.
pub(super) fn look(dir: &Path) -> Result<Option<Known>, OpenError> {
    let path = dir.join("IDENTITY");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(OpenError::io(&path, &e)),
    };
    match serde_json::from_slice::<Layout>(&bytes) {
        Ok(Layout { format }) if format > FORMAT => Err(OpenError::Newer { dir: dir.to_owned(), format }),
        _ => {
            let stored = serde_json::from_slice::<Stored>(&bytes).ok();
            Ok(stored.map(|Stored { logs, epoch, jumps, .. }| Known { logs, epoch, jumps }))
        }
    }
}

fn place(dir: &Path) -> Option<Place> {
    let asked = StatxFlags::INO | StatxFlags::BTIME;
    let found = rustix::fs::statx(rustix::fs::CWD, dir, AtFlags::empty(), asked).ok()?;
    let has_birth = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
    let birth = u64::try_from(found.stx_btime.tv_sec).ok().filter(|_| has_birth).map_or(0, |seconds| {
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(found.stx_btime.tv_nsec))
    });
    Some((found.stx_ino, birth))
}

/// The high-water file.
#[derive(Debug)]
pub(super) struct HighWater {
    path: PathBuf,
    /// Open unless the disk refused; then it is tried again with each note.
    file: Option<File>,
    noted: Marks,
}

/// What is noted: see the module doc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Last durable sequence number.
    pub(super) durable: Seq,
    /// Everything up to here may be forgotten.
    pub(super) cursor: Seq,
    /// First number of the newest generation; 0 before there is one.
    pub(super) newest: Seq,
}

impl HighWater {
    /// Opens the file; a damaged or missing one counts as never written.
    ///
    /// # Errors
    /// [`OpenError::Io`]: it is there and cannot be read.
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("HIGHWATER");
        let noted = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Marks::default(),
            Err(e) => return Err(OpenError::io(&path, &e)),
        };
        Ok(Self { path, file: None, noted })
    }

    /// What was noted last.
    pub(super) fn marks(&self) -> Marks {
        self.noted
    }

    /// Notes the marks without a sync.
    ///
    /// # Errors
    /// The write failed; the note is only late, nothing depends on it at once.
    pub(super) fn note(&mut self, marks: Marks) -> io::Result<()> {
        if marks == self.noted && self.file.is_some() {
            return Ok(());
        }
        self.noted = marks;
        self.file()?.write_all_at(&encode(marks), 0)
    }

    /// Syncs the note: at rotation and stop, and with every commit while no generation can be written.
    ///
    /// # Errors
    /// The sync failed.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file()?.sync_data()
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
            self.file = Some(file);
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn encode(marks: Marks) -> [u8; HIGHWATER_BYTES] {
    let mut bytes = [0; HIGHWATER_BYTES];
    let (numbers, crc) = bytes.split_at_mut(24);
    for (place, seq) in numbers.chunks_exact_mut(8).zip([marks.durable, marks.cursor, marks.newest]) {
        place.copy_from_slice(&seq.0.to_le_bytes());
    }
    crc.copy_from_slice(&crc32fast::hash(numbers).to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Marks> {
    let (numbers, crc) = bytes.split_first_chunk::<24>()?;
    if crc != crc32fast::hash(numbers).to_le_bytes() {
        return None;
    }
    let (durable, rest) = numbers.split_first_chunk::<8>()?;
    let (cursor, rest) = rest.split_first_chunk::<8>()?;
    let number = |bytes| Seq(u64::from_le_bytes(bytes));
    Some(Marks { durable: number(*durable), cursor: number(*cursor), newest: number(rest.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Identity {
        witnessed(dir).0
    }

    /// An identity, and what a ledger that nobody stores remembers of it.
    fn witnessed(dir: &Path) -> (Identity, Witness) {
        let mut identity = Identity::open(dir, "gw", None).unwrap();
        let mut ledger = forgetful(dir);
        identity.reserve(Seq(0), &mut ledger).unwrap();
        (identity, ledger.witness().unwrap())
    }

    fn forgetful(dir: &Path) -> Ledger {
        Ledger::open(&dir.join("no/ledger"))
    }

    #[test]
    fn who_only_asks_for_the_owner_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        drop(Lock::take(dir.path()).unwrap());
        let is_done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                        crate::buffer::probe::owner(dir.path()).unwrap();
                    }
                });
            }
            let taken = (0..500).find_map(|n| Lock::take(dir.path()).err().map(|error| (n, error)));
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(taken.is_none(), "{taken:?}");
        });
    }

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
    fn an_owner_that_has_just_begun_is_named_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK_FILE);
        assert_eq!(owner_in(&path), None);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Somewhat later than whoever asks.
                while begun.elapsed() < OWNER_MAX / 4 {
                    std::thread::yield_now();
                }
                fs::write(&path, "4711\n").unwrap();
            });
            assert_eq!(owner_in(&path), Some(4711));
        });
        fs::write(&path, [b'1'; 100]).unwrap();
        assert_eq!(owner_in(&path), None, "not read whole");
    }

    #[test]
    fn every_start_raises_the_epoch_and_keeps_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        let second = open(dir.path());
        assert_eq!((first.log(), first.epoch() + 1), (second.log(), second.epoch()));
    }

    #[test]
    fn an_epoch_is_durable_before_a_number_is_used() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        let unused = Identity::open(dir.path(), "gw", None).unwrap();
        let mut used = Identity::open(dir.path(), "gw", None).unwrap();
        assert_eq!(unused.epoch(), used.epoch(), "nothing was stamped with it");
        used.reserve(Seq(1), &mut forgetful(dir.path())).unwrap();
        assert_eq!(open(dir.path()).epoch(), used.epoch() + 1);
    }

    #[test]
    fn reserved_numbers_survive() {
        let dir = tempfile::tempdir().unwrap();
        let (mut identity, mut ledger) = (open(dir.path()), forgetful(dir.path()));
        identity.reserve(Seq(5), &mut ledger).unwrap();
        let ceiling = identity.ceiling();
        assert!(ceiling >= Seq(5));
        identity.reserve(ceiling, &mut ledger).unwrap();
        assert_eq!(identity.ceiling(), ceiling, "no write while the reserve lasts");
        assert_eq!(open(dir.path()).ceiling(), ceiling);
    }

    #[test]
    fn a_jump_goes_where_no_number_was_used_and_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let (mut identity, mut ledger) = (open(dir.path()), forgetful(dir.path()));
        identity.reserve(Seq(100), &mut ledger).unwrap();
        let before = identity.ceiling();
        let to = identity.jump(Seq(40), Seq(0), &mut ledger).unwrap();
        assert!(to > before && identity.ceiling() > to);
        let identity = open(dir.path());
        assert_eq!(identity.jumped().collect::<Vec<_>>(), [(Seq(41), to.before())]);
    }

    #[test]
    fn a_later_layout_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"format":2,"log":"x","epoch":1,"ceiling":9,"more":true}"#;
        fs::write(dir.path().join("IDENTITY"), text).unwrap();
        let opened = Identity::open(dir.path(), "gw", None);
        assert!(matches!(opened, Err(OpenError::Newer { format: 2, .. })));
        assert_eq!(fs::read_to_string(dir.path().join("IDENTITY")).unwrap(), text);
    }

    #[test]
    fn a_damaged_identity_becomes_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let before = open(dir.path());
        fs::write(dir.path().join("IDENTITY"), b"{").unwrap();
        assert_ne!(open(dir.path()).log(), before.log());
    }

    #[test]
    fn with_a_witness_old_events_keep_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let (before, witness) = witnessed(dir.path());
        fs::remove_file(dir.path().join("IDENTITY")).unwrap();
        let after = Identity::open(dir.path(), "gw", Some(witness)).unwrap();
        assert_eq!(after.epoch(), before.epoch() + 1);
        let logs: Vec<_> = after.logs().iter().map(|log| (log.epoch, log.log)).collect();
        assert_eq!(logs, [(0, before.log()), (after.epoch(), after.log())]);
        assert_ne!(before.log(), after.log());
    }

    #[test]
    fn an_old_copy_gets_a_new_log_for_new_events() {
        let dir = tempfile::tempdir().unwrap();
        let old = open(dir.path());
        let copy = fs::read(dir.path().join("IDENTITY")).unwrap();
        let (later, witness) = witnessed(dir.path());
        fs::write(dir.path().join("IDENTITY"), copy).unwrap();
        let restored = Identity::open(dir.path(), "gw", Some(witness)).unwrap();
        assert!(restored.epoch() > later.epoch());
        assert_ne!(restored.log(), old.log());
        assert_eq!(restored.logs()[0].log, old.log());
    }

    #[test]
    fn a_copy_put_back_in_place_with_its_ledger_is_known_by_the_time_of_its_change() {
        let dir = tempfile::tempdir().unwrap();
        let (old, witness) = witnessed(dir.path());
        let path = dir.path().join("IDENTITY");
        let untouched = Identity::open(dir.path(), "gw", Some(witness)).unwrap();
        assert_eq!(untouched.log(), old.log());
        let copy = fs::read(&path).unwrap();
        open(dir.path());
        // As `cp` does it: into the file that is there.
        fs::write(&path, copy).unwrap();
        let restored = Identity::open(dir.path(), "gw", Some(witness)).unwrap();
        assert_ne!(restored.log(), old.log());
    }

    #[test]
    fn a_death_before_the_ledger_is_stored_makes_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LEDGER");
        let reopen = || {
            let ledger = Ledger::open(&path);
            (Identity::open(dir.path(), "gw", ledger.witness()).unwrap(), ledger)
        };
        let (mut first, mut ledger) = reopen();
        first.reserve(Seq(1), &mut ledger).unwrap();
        ledger.store().unwrap();
        for _ in 0..3 {
            // A start, then numbers that run out: each time it dies before what the ledger has to remember is on disk.
            let (mut identity, mut ledger) = reopen();
            assert_eq!(identity.log(), first.log());
            identity.reserve(Seq(1), &mut ledger).unwrap();
            assert_eq!(reopen().0.log(), first.log());
            identity.reserve(identity.ceiling().next(), &mut ledger).unwrap();
            assert_eq!(reopen().0.log(), first.log());
        }
        // What was announced and is not there is no excuse for a copy.
        let copy = fs::read(dir.path().join("IDENTITY")).unwrap();
        let (mut identity, mut ledger) = reopen();
        identity.reserve(Seq(1), &mut ledger).unwrap();
        fs::write(dir.path().join("IDENTITY"), copy).unwrap();
        assert_ne!(reopen().0.log(), first.log());
    }

    #[test]
    fn a_copy_elsewhere_gets_a_new_log_and_a_moved_one_does_not() {
        let root = tempfile::tempdir().unwrap();
        let [one, two, three] = ["one", "two", "three"].map(|name| root.path().join(name));
        for dir in [&one, &two] {
            fs::create_dir(dir).unwrap();
        }
        let original = open(&one);
        fs::copy(one.join("IDENTITY"), two.join("IDENTITY")).unwrap();
        assert_ne!(open(&two).log(), original.log());
        fs::rename(&one, &three).unwrap();
        assert_eq!(open(&three).log(), original.log());
    }

    #[test]
    fn a_renamed_agent_speaks_for_new_events_only() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        let renamed = Identity::open(dir.path(), "gw-2", None).unwrap();
        let names: Vec<_> = renamed.logs().iter().map(|log| (log.epoch, log.agent.as_str())).collect();
        assert_eq!(names, [(1, "gw"), (2, "gw-2")]);
    }

    #[test]
    fn the_high_water_mark_survives_and_damage_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks { durable: Seq(9), cursor: Seq(4), newest: Seq(7) };
        HighWater::open(dir.path()).unwrap().note(marks).unwrap();
        assert_eq!(HighWater::open(dir.path()).unwrap().marks(), marks);
        let mut bytes = fs::read(dir.path().join("HIGHWATER")).unwrap();
        bytes[3] ^= 1;
        fs::write(dir.path().join("HIGHWATER"), bytes).unwrap();
        assert_eq!(HighWater::open(dir.path()).unwrap().marks(), Marks::default());
    }
}
