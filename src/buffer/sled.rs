//! Generations as sled 0.34.7 databases: the only file that names sled.
//!
//! What sled does not promise is added here (measured, see ARCHITECTURE.md): its `flush` ends without a sync of the
//! disk, so [`SledStore::sync`] syncs the `db` file itself; a new database's files and folders are synced before its
//! first use; and a damaged database panics while it is opened, so every call runs under `catch_unwind`.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::store::{Listed, Shelf, Store, StoreError, Visit};
use crate::event::Seq;
use crate::log::quietly;

/// sled's unit of space; blocks are sized for it (`block::RUN_BYTES_MAX`).
pub(super) const SEGMENT_BYTES: usize = 512 * 1024;

/// sled's page cache per open database. Two are open at most: the newest and the one being drained.
const CACHE_BYTES: u64 = 2_000_000;

/// Below this much free space a failed open is taken for a full disk and never for damage.
const FREE_BYTES_MIN: u64 = 4 * SEGMENT_BYTES as u64;

/// How long a generation that was just closed may still be in use, and how often that is looked at.
const RELEASE_WAIT: Duration = Duration::from_secs(1);
const RELEASE_STEP: Duration = Duration::from_millis(1);

/// A directory of generations `NNNNNNNNNNNNNNNNNNNN.gen`.
#[derive(Debug)]
pub(super) struct SledShelf {
    root: PathBuf,
}

/// One open generation.
#[derive(Debug)]
pub(super) struct SledStore {
    db: sled::Db,
    dir: PathBuf,
    /// The database's file, opened again for the sync that sled leaves out.
    file: File,
    /// Size of the other, small files, looked at when it was opened.
    other_bytes: u64,
}

impl SledShelf {
    /// The shelf in `root`, which exists.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn dir(&self, first: Seq) -> PathBuf {
        self.root.join(format!("{:020}.gen", first.0))
    }

    fn start(&self, first: Seq) -> Result<SledStore, StoreError> {
        let dir = self.dir(first);
        await_release(&dir.join("db"))?;
        let opened = quietly(AssertUnwindSafe(|| {
            sled::Config::new()
                .path(&dir)
                .segment_size(SEGMENT_BYTES)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::LowSpace)
                .flush_every_ms(None)
                .use_compression(false)
                .open()
        }));
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(error)) => return Err(verdict(&self.root, store_error(&error))),
            Err(panic) => return Err(verdict(&self.root, StoreError::Damaged(panic_text(&*panic)))),
        };
        let file = File::open(dir.join("db")).map_err(|e| io_error(&dir.join("db"), &e))?;
        let other_bytes = other_bytes(&dir).map_err(|e| io_error(&dir, &e))?;
        Ok(SledStore { db, dir, file, other_bytes })
    }
}

/// A disk without room makes sled fail in many ways; none of them is damage.
fn verdict(dir: &Path, error: StoreError) -> StoreError {
    match (error, crate::system::free_bytes(dir)) {
        (StoreError::Damaged(text), Ok(free)) if free < FREE_BYTES_MIN => StoreError::NoSpace(text),
        (error, _) => error,
    }
}

impl Shelf for SledShelf {
    type Store = SledStore;

    fn list(&mut self) -> Result<Vec<Listed>, StoreError> {
        let failed = |e: io::Error| io_error(&self.root, &e);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|s| s.to_str()).unwrap_or_default();
            let first = name.split('.').next().and_then(|s| s.parse().ok()).map(Seq);
            match (first, path.extension().and_then(|e| e.to_str())) {
                (Some(first), Some("gen")) => found.push(Listed { first, is_aside: false }),
                (Some(first), Some("bad")) => found.push(Listed { first, is_aside: true }),
                (Some(_), Some("del")) => fs::remove_dir_all(&path).map_err(|e| io_error(&path, &e))?,
                _ => {}
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn create(&mut self, first: Seq) -> Result<SledStore, StoreError> {
        let store = self.start(first)?;
        guarded(|| store.db.flush())?;
        sync_tree(&store.dir).map_err(|e| io_error(&store.dir, &e))?;
        sync_path(&self.root).map_err(|e| io_error(&self.root, &e))?;
        Ok(store)
    }

    fn open(&mut self, first: Seq) -> Result<SledStore, StoreError> {
        let dir = self.dir(first);
        if !dir.join("db").is_file() {
            // sled would make an empty database here and hide the loss.
            return Err(StoreError::Damaged(format!("{} has no db file", dir.display())));
        }
        self.start(first)
    }

    fn disk_bytes(&self, first: Seq) -> u64 {
        let dir = self.dir(first);
        let db_bytes = fs::metadata(dir.join("db")).map_or(0, |m| m.len());
        db_bytes + other_bytes(&dir).unwrap_or(0)
    }

    fn delete(&mut self, first: Seq) -> Result<(), StoreError> {
        let (dir, condemned) = (self.dir(first), self.root.join(format!("{:020}.del", first.0)));
        // Order: renamed before it is emptied, so that a half-deleted database is never taken for a damaged one.
        match fs::rename(&dir, &condemned) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(|e| io_error(&dir, &e))?,
        }
        sync_path(&self.root).map_err(|e| io_error(&self.root, &e))?;
        fs::remove_dir_all(&condemned).map_err(|e| io_error(&condemned, &e))
    }

    fn set_aside(&mut self, first: Seq) -> Result<String, StoreError> {
        let dir = self.dir(first);
        let names = std::iter::once(format!("{:020}.bad", first.0))
            .chain((2..1000).map(|n| format!("{:020}.{n}.bad", first.0)));
        for name in names {
            let aside = self.root.join(name);
            if !aside.exists() {
                fs::rename(&dir, &aside).map_err(|e| io_error(&dir, &e))?;
                sync_path(&self.root).map_err(|e| io_error(&self.root, &e))?;
                return Ok(aside.display().to_string());
            }
        }
        Err(StoreError::Io(format!("{}: too many damaged copies beside it", dir.display())))
    }
}

impl SledStore {
    /// As [`guarded`], for a call that only reads: a panic there means damage that opening has not met, unless the
    /// disk is full.
    fn read<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        match quietly(AssertUnwindSafe(call)) {
            Ok(result) => result.map_err(|e| store_error(&e)),
            Err(panic) => Err(verdict(&self.dir, StoreError::Damaged(panic_text(&*panic)))),
        }
    }
}

impl Store for SledStore {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        guarded(|| self.db.insert(key, value)).map(drop)
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        guarded(|| self.db.remove(key)).map(drop)
    }

    fn floor(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let above = [key, &[0]].concat();
        let found = self.read(|| self.db.get_lt(&above))?;
        Ok(found.map(|(key, _)| key.to_vec()))
    }

    fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.read(|| {
            for entry in self.db.range(from..) {
                let (key, value) = entry?;
                if let ControlFlow::Break(()) = visit(&key, &value) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        guarded(|| self.db.flush())?;
        self.file.sync_data().map_err(|e| io_error(&self.dir.join("db"), &e))
    }

    fn disk_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.len()) + self.other_bytes
    }
}

/// Waits until nobody holds the database's lock any more. sled's own threads may go on with a closed database for a
/// moment (it truncates its file in the background), and opening it again then fails.
fn await_release(db: &Path) -> Result<(), StoreError> {
    let file = match File::open(db) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(|e| io_error(db, &e))?,
    };
    let deadline = Instant::now() + RELEASE_WAIT;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Closing the file gives the lock back.
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::park_timeout(RELEASE_STEP);
            }
            Err(errno) => return Err(io_error(db, &errno.into())),
        }
    }
}

/// Runs one call into sled; a panic inside becomes an error that makes the caller open the store again.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match quietly(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| store_error(&e)),
        Err(panic) => Err(StoreError::Io(format!("sled panicked: {}", panic_text(&*panic)))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a message").to_owned()
}

fn store_error(error: &sled::Error) -> StoreError {
    match error {
        // sled keeps the kind and puts the rest into its own debugging text.
        sled::Error::Io(e) if is_no_space(e) => StoreError::NoSpace(e.kind().to_string()),
        sled::Error::Io(e) => StoreError::Io(e.to_string()),
        other => StoreError::Damaged(other.to_string()),
    }
}

fn io_error(path: &Path, error: &io::Error) -> StoreError {
    let text = format!("{}: {error}", path.display());
    if is_no_space(error) { StoreError::NoSpace(text) } else { StoreError::Io(text) }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn sync_path(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Syncs a database's files and then the folder that names them.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync_path(&path)? }
    }
    sync_path(dir)
}

fn other_bytes(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_file() && entry.file_name() != "db" {
            sum += meta.len();
        }
    }
    Ok(sum)
}
