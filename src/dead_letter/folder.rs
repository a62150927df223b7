//! The letters of a folder, from outside: which there are, one at a time, and away with one.
//!
//! Nothing is locked, so it is safe beside a running agent: a letter comes by a rename, whole or not at all, and one that
//! is gone meanwhile is passed over.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uuid::Uuid;

use super::disk::{Disk as _, System};
use super::file::{self, Stored, Unreadable};
use super::{BLOCK_BYTES, DeadLetterError};
use crate::event::Seq;

/// How a letter's file ends.
const ENDING: &str = ".letter";

/// Largest file that is read: twice the largest `limits.max_event_bytes`, so that no letter is above it.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A letter's name: where its event was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    /// The buffer.
    pub log: Uuid,
    /// The position in it.
    pub seq: Seq,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.seq, self.log)
    }
}

impl Name {
    /// Its file; the zeros sort.
    pub fn file_name(self) -> String {
        format!("{:020}-{}{ENDING}", self.seq.0, self.log)
    }

    fn of_file(file: &str) -> Option<Self> {
        let (seq, log) = file.strip_suffix(ENDING)?.split_once('-')?;
        let name = Self { log: log.parse().ok()?, seq: Seq(seq.parse().ok()?) };
        // No letter has two names.
        (name.file_name() == file).then_some(name)
    }
}

/// A letter that is there, whole or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// What it takes on disk, in whole blocks.
    pub bytes: u64,
    /// When it was put, by the wall clock of then.
    pub put: SystemTime,
}

/// A folder of letters.
#[derive(Debug, Clone)]
pub struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// Names it; nothing is looked at or made.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, name: Name) -> PathBuf {
        self.dir.join(name.file_name())
    }

    /// Every letter by its name, oldest first: in one log by position, logs by their last letter. Empty when there is no
    /// folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, DeadLetterError> {
        let failed = |source| DeadLetterError::Read { path: self.dir.clone(), source };
        let found = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found.map_err(failed)?,
        };
        let mut entries = Vec::new();
        for entry in found {
            let entry = entry.map_err(failed)?;
            let Some(name) = entry.file_name().to_str().and_then(Name::of_file) else { continue };
            match entry.metadata() {
                Ok(found) if found.is_file() => entries.push(Entry {
                    name,
                    bytes: found.len().next_multiple_of(BLOCK_BYTES),
                    put: found.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let mut last_of_log: HashMap<Uuid, SystemTime> = HashMap::new();
        for Entry { name, put, .. } in &entries {
            let last = last_of_log.entry(name.log).or_insert(*put);
            *last = (*last).max(*put);
        }
        entries
            .sort_by_key(|entry| (last_of_log.get(&entry.name.log).copied(), entry.name.log, entry.name.seq));
        Ok(entries)
    }

    /// Reads a letter whole, payload included; `None` when it is not there (any more).
    ///
    /// # Errors
    /// The file cannot be read. What is in it and cannot be understood is the inner error.
    pub fn read(&self, name: Name) -> Result<Option<Result<Stored, Unreadable>>, DeadLetterError> {
        let path = self.path(name);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => {
                Ok(Some(Err(Unreadable::Damaged("it is larger than any letter"))))
            }
            Ok(_) => Ok(Some(file::decode(name, bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DeadLetterError::Read { path, source }),
        }
    }

    /// Takes a letter away; false when it was not there (any more). Gone for good only after [`Folder::sync`].
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, name: Name) -> Result<bool, DeadLetterError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(DeadLetterError::Write { path, source }),
        }
    }

    /// Makes what was put and removed last through a power cut.
    ///
    /// # Errors
    /// It is not certain that it does.
    pub fn sync(&self) -> Result<(), DeadLetterError> {
        System
            .sync_folder(&self.dir)
            .map_err(|source| DeadLetterError::Write { path: self.dir.clone(), source })
    }
}
