//! Generations as sled 0.34.7 databases: the only file that names sled.
//!
//! What sled does not promise is added here (measured, see ARCHITECTURE.md): its `flush` ends without a sync of the
//! disk, so [`SledStore::sync`] syncs the `db` file itself; a new database's files and folders are synced before its
//! first use; every call runs under `catch_unwind`, since sled panics on what it does not expect; and no database is
//! ever opened again, since opening a damaged one panics or zeroes what it does not understand.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use super::scan::Source;
use super::store::{Fill, Listed, Shelf, Store, StoreError, Visit, is_no_space};
use crate::event::Seq;
use crate::log::quietly;

/// sled's unit of space; blocks are sized for it (`block::RUN_BYTES_MAX`).
pub(super) const SEGMENT_BYTES: usize = 512 * 1024;

/// A store is synced at least each time so many bytes were put. sled rewrites its pages as they grow, blocks that were
/// synced long ago with them, and reuses a segment once all in it is elsewhere and `sync_file_range` has returned for
/// that, which does not make a longer file longer after a power cut: then the old blocks are overwritten and the new
/// place is gone. It reuses none before another one was filled, and writes up to three times what is put.
const SYNC_BYTES: usize = SEGMENT_BYTES / 4;

/// What a removal counts for in this: in a row they rewrite half of what they remove.
const REMOVAL_BYTES: usize = super::block::RUN_BYTES_MAX / 2;

/// sled's page cache per open database. Two are open at most: the newest and the one being drained.
const CACHE_BYTES: u64 = 2_000_000;

/// Below this much free space a panic is taken for a full disk and never for damage.
const FREE_BYTES_MIN: u64 = 4 * SEGMENT_BYTES as u64;

/// The file with the blocks: sled's own name, kept by replacements.
pub(super) const BLOCKS: &str = "db";

/// Beside it: what the agent noted of a sealed generation.
const NOTE: &str = "note";

/// A directory of generations `NNNNNNNNNNNNNNNNNNNN.gen`.
#[derive(Debug)]
pub(super) struct SledShelf {
    root: PathBuf,
}

/// One open generation.
#[derive(Debug)]
pub(super) struct SledStore {
    /// Taken when it is closed.
    db: Option<sled::Db>,
    dir: PathBuf,
    /// The database's file, opened again for the sync that sled leaves out.
    file: File,
    /// Size of the other, small files, looked at when it was opened.
    other_bytes: u64,
    /// What sled may have written since the last sync, [`SYNC_BYTES`] at most.
    unsynced_bytes: usize,
}

impl SledShelf {
    /// The shelf in `root`, which exists.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn dir(&self, first: Seq) -> PathBuf {
        self.named(first, "gen")
    }

    fn named(&self, first: Seq, extension: &str) -> PathBuf {
        self.root.join(format!("{:020}.{extension}", first.0))
    }

    /// The folder of a generation; of several copies that were set aside, the first.
    fn place(&self, listed: Listed) -> PathBuf {
        self.named(listed.first, if listed.is_aside { "bad" } else { "gen" })
    }

    fn start(&self, first: Seq) -> Result<SledStore, StoreError> {
        let dir = self.dir(first);
        let opened = quietly(AssertUnwindSafe(|| {
            sled::Config::new()
                .path(&dir)
                .segment_size(SEGMENT_BYTES)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::LowSpace)
                .flush_every_ms(None)
                .use_compression(false)
                .create_new(true)
                .open()
        }));
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(error)) => return Err(verdict(&self.root, store_error(&error))),
            Err(panic) => return Err(verdict(&self.root, StoreError::Damaged(panic_text(&*panic)))),
        };
        let file = File::open(dir.join(BLOCKS)).map_err(|e| io_error(&dir.join(BLOCKS), &e))?;
        let other_bytes = other_bytes(&dir).map_err(|e| io_error(&dir, &e))?;
        Ok(SledStore { db: Some(db), dir, file, other_bytes, unsynced_bytes: 0 })
    }

    fn remove(&self, dir: &Path, first: Seq) -> Result<(), StoreError> {
        let condemned = self.named(first, "del");
        // What an earlier removal left.
        match fs::remove_dir_all(&condemned) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error(&condemned, &e)),
            _ => {}
        }
        // Order: renamed before it is emptied, so that a half-deleted generation is never taken for a damaged one.
        match fs::rename(dir, &condemned) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(|e| io_error(dir, &e))?,
        }
        sync_path(&self.root).map_err(|e| io_error(&self.root, &e))?;
        fs::remove_dir_all(&condemned).map_err(|e| io_error(&condemned, &e))
    }
}

/// The first position and the extension in the name of a generation's folder; a second copy has a number between them.
pub(super) fn folder_name(path: &Path) -> Option<(Seq, &str)> {
    let (first, rest) = path.file_name()?.to_str()?.split_once('.')?;
    Some((Seq(first.parse().ok()?), rest.rsplit('.').next().unwrap_or(rest)))
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
            match folder_name(&path) {
                Some((first, "gen")) => found.push(Listed { first, is_aside: false }),
                Some((first, "bad")) => found.push(Listed { first, is_aside: true }),
                Some((_, "del" | "new")) => {
                    // It is tried again at the next start; only its space is missing until then.
                    if let Err(error) = fs::remove_dir_all(&path) {
                        tracing::warn!(path = %path.display(), %error, "a leftover could not be deleted");
                    }
                }
                _ => {}
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn create(&mut self, first: Seq) -> Result<SledStore, StoreError> {
        let store = self.start(first)?;
        guarded(|| store.db()?.flush())?;
        sync_tree(&store.dir).map_err(|e| io_error(&store.dir, &e))?;
        sync_path(&self.root).map_err(|e| io_error(&self.root, &e))?;
        Ok(store)
    }

    fn source(&self, listed: Listed) -> Result<Box<dyn Source>, StoreError> {
        let path = self.place(listed).join(BLOCKS);
        match File::open(&path) {
            Ok(file) => Ok(Box::new(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::Damaged(format!("{} is missing", path.display())))
            }
            Err(e) => Err(io_error(&path, &e)),
        }
    }

    fn settle(&self, first: Seq) -> Result<(), StoreError> {
        let path = self.dir(first).join(BLOCKS);
        File::open(&path).and_then(|file| file.sync_data()).map_err(|e| io_error(&path, &e))
    }

    fn note(&self, first: Seq, note: &[u8]) {
        let path = self.dir(first).join(NOTE);
        if let Err(error) = fs::write(&path, note) {
            tracing::debug!(path = %path.display(), %error, "not noted; it is found out again when it is needed");
        }
    }

    fn noted(&self, first: Seq) -> Option<Vec<u8>> {
        fs::read(self.dir(first).join(NOTE)).ok()
    }

    fn disk_bytes(&self, listed: Listed) -> u64 {
        let dir = self.place(listed);
        let bytes = fs::metadata(dir.join(BLOCKS)).map_or(0, |m| m.len());
        bytes + other_bytes(&dir).unwrap_or(0)
    }

    fn free_bytes(&self) -> u64 {
        crate::system::free_bytes(&self.root).unwrap_or(u64::MAX)
    }

    fn delete(&mut self, first: Seq) -> Result<(), StoreError> {
        self.remove(&self.dir(first), first)
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

    fn delete_aside(&mut self, first: Seq) -> Result<(), StoreError> {
        self.remove(&self.named(first, "bad"), first)
    }

    fn prepare(&mut self, first: Seq, fill: &mut Fill<'_>) -> Result<(), StoreError> {
        let dir = self.named(first, "new");
        let mut write = || {
            let failed = |e: io::Error| io_error(&dir, &e);
            // What an interrupted one left.
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
                _ => {}
            }
            fs::create_dir(&dir).map_err(failed)?;
            let mut file = BufWriter::new(File::create(dir.join(BLOCKS)).map_err(failed)?);
            fill(&mut |block| file.write_all(block).map_err(failed))?;
            let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
            file.sync_all().map_err(failed)?;
            sync_path(&dir).and_then(|()| sync_path(&self.root)).map_err(failed)
        };
        write().inspect_err(|_| {
            // A full disk needs its space at once; what stays is cleared away by the next list.
            let _ = fs::remove_dir_all(&dir);
        })
    }

    fn swap_in(&mut self, first: Seq, last: Seq) -> Result<(), StoreError> {
        let new = self.named(first, "new");
        if !new.is_dir() {
            return Ok(());
        }
        let failed = |e: io::Error| io_error(&self.root, &e);
        let mut replaced = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let found = folder_name(&path).filter(|(_, extension)| *extension == "gen");
            replaced.extend(found.map(|(seq, _)| seq).filter(|seq| (first..=last).contains(seq)));
        }
        for seq in replaced {
            self.remove(&self.dir(seq), seq)?;
        }
        fs::rename(&new, self.dir(first)).map_err(failed)?;
        sync_path(&self.root).map_err(failed)
    }
}

impl SledStore {
    fn db(&self) -> sled::Result<&sled::Db> {
        self.db.as_ref().ok_or_else(|| sled::Error::Unsupported("it is closed".into()))
    }

    /// Order: whatever sled has moved is synced before it writes over the place where that was. See [`SYNC_BYTES`].
    fn note_written(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.unsynced_bytes += bytes;
        if self.unsynced_bytes < SYNC_BYTES { Ok(()) } else { self.sync() }
    }

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
        guarded(|| self.db()?.insert(key, value))?;
        self.note_written(key.len() + value.len())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        guarded(|| self.db()?.remove(key))?;
        self.note_written(REMOVAL_BYTES)
    }

    fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.read(|| {
            for entry in self.db()?.range(from..) {
                let (key, value) = entry?;
                if let ControlFlow::Break(()) = visit(&key, &value) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        guarded(|| self.db()?.flush())?;
        self.file.sync_data().map_err(|e| io_error(&self.dir.join(BLOCKS), &e))?;
        self.unsynced_bytes = 0;
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.len()) + self.other_bytes
    }
}

impl Drop for SledStore {
    /// sled syncs when it is closed and panics when that fails, as it does behind the failed sync of which the store is
    /// closed.
    fn drop(&mut self) {
        let db = self.db.take();
        if let Err(error) = guarded(|| {
            drop(db);
            Ok(())
        }) {
            tracing::debug!(%error, "a database was not closed in order");
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
    StoreError::io(path.display(), error)
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
        if meta.is_file() && entry.file_name() != BLOCKS {
            sum += meta.len();
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::buffer::block::{Encoder, Events, Origin, Rank};
    use crate::buffer::scan::scan;

    /// What is left of a file when the power goes and only its length of the last sync was written down: what was
    /// overwritten in place is, and what made it longer is not.
    #[test]
    fn what_was_synced_is_never_overwritten_before_its_copy_is_safe() {
        for seed in 0..4 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let dir = tempfile::tempdir().unwrap();
            let mut store = SledShelf::new(dir.path().into()).create(Seq(1)).unwrap();
            let db = store.dir.join(BLOCKS);
            let mut encoder = Encoder::new(Origin { epoch: 1, boot: [1; 16] });
            let (mut next, mut drained, mut safe_bytes) = (1_u64, 0, 0);
            for group in [5, 60, 500] {
                let synced = next;
                for n in 0..group {
                    let run: Vec<u8> = (0..rng.usize(3_000..7_000)).map(|_| rng.u8(..)).collect();
                    let put = |_, block: &[u8]| store.put(&next.to_be_bytes(), block);
                    let events = Events { rank: Rank::default(), count: 1, ways: &[], bytes: &run };
                    encoder.encode(Seq(next), 0, events, put).unwrap();
                    next += 1;
                    // Half of the seeds drain meanwhile what is far behind.
                    if seed % 2 == 1 && drained + 40 < synced {
                        drained += 1;
                        store.remove(&drained.to_be_bytes()).unwrap();
                    }
                    if store.unsynced_bytes == 0 {
                        safe_bytes = fs::metadata(&db).unwrap().len();
                    }
                    if n % 50 == 0 {
                        let mut left = fs::read(&db).unwrap();
                        left.truncate(usize::try_from(safe_bytes).unwrap());
                        let mut found = BTreeSet::new();
                        scan(&left, |_, block| found.extend([block.first.0])).unwrap();
                        let lost: Vec<u64> =
                            (drained + 1..synced).filter(|seq| !found.contains(seq)).collect();
                        assert_eq!(lost, [0; 0], "seed {seed}, {n} blocks behind them");
                    }
                }
                store.sync().unwrap();
                safe_bytes = fs::metadata(&db).unwrap().len();
            }
        }
    }

    #[test]
    fn only_the_folders_of_generations_have_such_names() {
        for (name, found) in [
            ("00000000000000000017.gen", Some((Seq(17), "gen"))),
            ("00000000000000000017.2.bad", Some((Seq(17), "bad"))),
            ("17", None),
            ("IDENTITY.new", None),
            (".gen", None),
        ] {
            assert_eq!(folder_name(&Path::new("/var/lib/x.y").join(name)), found, "{name}");
        }
    }
}
