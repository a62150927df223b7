//! The dead-letter store: events that Kafka refused for good and that could not go to the dead-letter topic either, kept
//! beside the buffer until somebody looks at them.
//!
//! The promise: when [`Store::put`] returns, the letter is durable, once, whatever the number of times it is put; what is
//! found damaged later is known for it. The store never holds more than [`Options::bytes_max`] and [`LETTERS_MAX`]
//! letters (one more while one is put): the oldest go.
//!
//! One file a letter, named by position and log: `00000000000000001000-08e1dd69-….letter`; its form is in `file`. `NEW` is
//! one that is being written. One agent puts; commands read and remove beside it, and nothing is locked.

mod disk;
mod file;
mod folder;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use thiserror::Error;
use uuid::Uuid;

use crate::error::Class;
use crate::event::{Event, Seq, Stamp};

use disk::{Disk, System};

pub use file::{Head, Stored, Unreadable};
pub use folder::{Entry, Folder, Name};

/// Most letters, whatever their size: as many as a person may ever look at, and a folder that is listed in a moment.
pub const LETTERS_MAX: usize = 10_000;

/// A file takes whole blocks; those of the usual file systems.
const BLOCK_BYTES: u64 = 4096;

/// The letter that is being written.
const NEW: &str = "NEW";

/// An event that Kafka refused, and what is to be known of that.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'a> {
    /// The event as it was in the buffer.
    pub event: &'a Event<'a>,
    /// Its position.
    pub seq: Seq,
    /// The start of the agent in which it was taken.
    pub epoch: u32,
    /// The agent's name of then.
    pub agent: &'a str,
    /// The log in which `seq` counts.
    pub log: Uuid,
    /// Where it should have gone.
    pub topic: &'a str,
    /// Why it was refused, in words; the first 1 KiB is kept.
    pub reason: &'a str,
    /// Kafka's error code.
    pub code: i32,
    /// How often it was sent.
    pub attempts: u32,
    /// When it was given up.
    pub refused_at: Stamp,
}

/// Where the store is and what it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Its folder, made with the first letter.
    pub dir: PathBuf,
    /// Most bytes of disk, files counted in blocks of 4 KiB; at least twice the largest event.
    pub bytes_max: u64,
}

/// What a put did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// Whether the letter is new; false when it was there already, put before a crash.
    pub is_new: bool,
    /// How many of the oldest letters went to make room: gone for good, to be counted and logged by the caller.
    pub evicted: u64,
}

/// Why the store cannot be used now. Nothing is lost: the event stays with the caller ([`Class::Retry`]).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeadLetterError {
    /// The caller waits and puts again.
    #[error("the dead-letter store cannot be written: {}: {source}", path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The caller waits and asks again.
    #[error("the dead-letter store cannot be read: {}: {source}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DeadLetterError {
    /// The reaction to it.
    pub fn class(&self) -> Class {
        match self {
            Self::Write { .. } | Self::Read { .. } => Class::Retry,
        }
    }

    /// What the system said.
    pub fn source_error(&self) -> &io::Error {
        match self {
            Self::Write { source, .. } | Self::Read { source, .. } => source,
        }
    }
}

/// The store, for the one agent that puts.
#[derive(Debug)]
pub struct Store {
    folder: Folder,
    disk: Box<dyn Disk>,
    bytes_max: u64,
    /// This process has seen to it that the folder's own name is durable.
    is_folder_durable: bool,
    /// Bytes and letters, at most; `None` before the first look. Commands that take letters away make it less.
    held_at_most: Option<(u64, usize)>,
}

impl Store {
    /// Opens the store; makes nothing yet, and whatever is wrong with the place is the first put's to say: no dead letter
    /// keeps the agent from its start.
    pub fn open(options: Options) -> Self {
        Self::on(Box::new(System), options)
    }

    fn on(disk: Box<dyn Disk>, options: Options) -> Self {
        let store = Self {
            folder: Folder::at(&options.dir),
            disk,
            bytes_max: options.bytes_max,
            is_folder_durable: false,
            held_at_most: None,
        };
        // Only for its space: the next put writes over it anyhow.
        let _ = fs::remove_file(store.new_path());
        store
    }

    /// Puts a letter; on return it is durable. A letter of the same log and position that is there already stays as it
    /// is, unless it is damaged. Blocks for two syncs of the disk.
    ///
    /// # Errors
    /// [`DeadLetterError`]: it may or may not be there; put it again.
    pub fn put(&mut self, letter: &Letter<'_>) -> Result<Put, DeadLetterError> {
        let name = Name { log: letter.log, seq: letter.seq };
        self.make_folder()?;
        let is_new = match self.folder.read(name)? {
            Some(Ok(_) | Err(Unreadable::Newer(_))) => false,
            Some(Err(Unreadable::Damaged(_))) | None => {
                self.write(name, letter)?;
                true
            }
        };
        // Order: also when it was there: the agent may have been killed between the rename and this sync, and then a power
        // cut could still take the letter, whose event is about to leave the buffer.
        let dir = self.folder.dir();
        let synced = self.disk.sync_folder(dir);
        synced.map_err(|source| DeadLetterError::Write { path: dir.to_owned(), source })?;
        // Order: room is made only now, so that a letter which cannot be written costs no other; and for one that was there,
        // too, since a crash may have come in between.
        let evicted = self.make_room(name)?;
        Ok(Put { is_new, evicted })
    }

    fn new_path(&self) -> PathBuf {
        self.folder.dir().join(NEW)
    }

    fn make_folder(&mut self) -> Result<(), DeadLetterError> {
        let dir = self.folder.dir();
        if self.is_folder_durable && dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Order: the folder's name is durable before anything in it counts as durable; also one that was there, since its
        // maker may have been killed before this sync.
        let made = fs::create_dir_all(dir).and_then(|()| self.disk.sync_folder(parent));
        made.map_err(|source| DeadLetterError::Write { path: dir.to_owned(), source })?;
        self.is_folder_durable = true;
        Ok(())
    }

    fn write(&mut self, name: Name, letter: &Letter<'_>) -> Result<(), DeadLetterError> {
        let new = self.new_path();
        let written = (|| {
            let (head, payload) = file::encode(letter)?;
            let mut file = File::create(&new)?;
            file.write_all(&head)?;
            file.write_all(payload)?;
            // Order: synced before it has its name, or a power cut could leave a name with nothing behind it.
            self.disk.sync_file(&file)?;
            self.disk.rename(&new, &self.folder.path(name))?;
            Ok((head.len() + payload.len()) as u64)
        })();
        match written {
            Ok(bytes) => {
                if let Some((held, letters)) = &mut self.held_at_most {
                    *held += bytes.next_multiple_of(BLOCK_BYTES);
                    *letters += 1;
                }
                Ok(())
            }
            Err(source) => {
                // Its space may be needed; the next put writes over it anyhow.
                let _ = fs::remove_file(&new);
                Err(DeadLetterError::Write { path: self.folder.path(name), source })
            }
        }
    }

    /// Lets the oldest letters go until the rest is within the limits, `kept` excepted.
    fn make_room(&mut self, kept: Name) -> Result<u64, DeadLetterError> {
        let bytes_max = self.bytes_max;
        let fits = |(bytes, letters): (u64, usize)| bytes <= bytes_max && letters <= LETTERS_MAX;
        if self.held_at_most.is_some_and(fits) {
            return Ok(0);
        }
        let entries = self.folder.entries()?;
        let mut held = (entries.iter().map(|entry| entry.bytes).sum(), entries.len());
        let mut evicted = 0;
        for entry in entries.iter().filter(|entry| entry.name != kept) {
            if fits(held) {
                break;
            }
            // Not synced: one that comes back after a power cut goes again with the next put.
            evicted += u64::from(self.folder.remove(entry.name)?);
            held = (held.0.saturating_sub(entry.bytes), held.1 - 1);
        }
        self.held_at_most = Some(held);
        Ok(evicted)
    }
}
