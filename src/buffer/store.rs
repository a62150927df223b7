//! The seam to the disk: one ordered key-value store for the newest generation, files of blocks for the sealed ones,
//! and the shelf that holds them all.
//!
//! A store is written from its making to its sealing and never opened again: sealed generations are read as files, block
//! by block (`scan`), whatever the store made of them. Three implementations keep the same contract (`contract`):
//! sled, memory, and memory that forgets everything since the last sync. The contract: after [`Store::sync`] returned
//! `Ok`, every earlier `put` and `remove` survives a power cut; without it each of them may or may not survive.

use std::fmt::{Debug, Display};
use std::io;
use std::ops::ControlFlow;

use thiserror::Error;

use super::scan::Source;
use crate::error::Class;
use crate::event::Seq;

/// A store's failure.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No space or over a disk quota: never a reason to set data aside. Free space or wait, then open it again.
    #[error("the disk is full: {0}")]
    NoSpace(String),
    /// The system refused or the disk failed: nothing more is acknowledged from this store until it was opened again.
    #[error("{0}")]
    Io(String),
    /// The store's content cannot be read: set it aside.
    #[error("damaged: {0}")]
    Damaged(String),
}

impl StoreError {
    /// What the system answered about `what`.
    pub fn io(what: impl Display, error: &io::Error) -> Self {
        let text = format!("{what}: {error}");
        if is_no_space(error) { Self::NoSpace(text) } else { Self::Io(text) }
    }

    /// The reaction: only damage is final for a store.
    pub fn class(&self) -> Class {
        match self {
            Self::NoSpace(_) | Self::Io(_) => Class::Retry,
            Self::Damaged(_) => Class::Reject,
        }
    }
}

/// Whether an error means a full disk, or a used-up quota.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// One generation's key-value store, ordered by key bytes. Owned by the writer thread.
pub trait Store: Send + Debug {
    /// Stores `value` under `key`; durable after the next [`Store::sync`].
    ///
    /// # Errors
    /// [`StoreError`]; the store is not to be written again before it was opened anew.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError>;

    /// Removes `key`, if it is there; durable after the next [`Store::sync`].
    ///
    /// # Errors
    /// As [`Store::put`].
    fn remove(&mut self, key: &[u8]) -> Result<(), StoreError>;

    /// Shows every entry from `from` on, in order, until `visit` breaks.
    ///
    /// # Errors
    /// As [`Store::put`].
    fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// Makes everything before it durable, over a power cut too.
    ///
    /// # Errors
    /// [`StoreError`]: what was written since the last sync is in an unknown state. Never retried on the same store:
    /// the page cache may have forgotten the failed pages.
    fn sync(&mut self) -> Result<(), StoreError>;

    /// Bytes of disk it takes now.
    fn disk_bytes(&self) -> u64;
}

/// What [`Store::scan`] calls for each key and value.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// One generation on the shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its first sequence number.
    pub first: Seq,
    /// Whether it was found damaged and set aside.
    pub is_aside: bool,
}

/// The row of generations, each named by its first sequence number.
pub trait Shelf: Send + Debug {
    /// Its stores.
    type Store: Store;

    /// All generations by ascending first sequence number, also those that were set aside. Leftovers of an interrupted
    /// removal or replacement are cleared away.
    ///
    /// # Errors
    /// [`StoreError::Io`]: the directory cannot be read.
    fn list(&mut self) -> Result<Vec<Listed>, StoreError>;

    /// Makes a new, empty generation whose existence survives a power cut once this returned.
    ///
    /// # Errors
    /// [`StoreError`]; something may have been made: [`Shelf::delete`] it. One of that name that is there is an error.
    fn create(&mut self, first: Seq) -> Result<Self::Store, StoreError>;

    /// The bytes of a generation that is not open.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]: there are none. The others: it is there and cannot be read now.
    fn source(&self, listed: Listed) -> Result<Box<dyn Source>, StoreError>;

    /// Makes what a dead process wrote to a generation durable.
    ///
    /// # Errors
    /// [`StoreError`]: a power cut may still take it.
    fn settle(&self, first: Seq) -> Result<(), StoreError>;

    /// Writes `note` beside a generation, for [`Shelf::noted`]; not synced, may be lost.
    fn note(&self, first: Seq, note: &[u8]);

    /// What was noted, if it is still there.
    fn noted(&self, first: Seq) -> Option<Vec<u8>>;

    /// Bytes of disk that a generation takes, open or not; 0 when that cannot be found out.
    fn disk_bytes(&self, listed: Listed) -> u64;

    /// Bytes that may still be written to the disk; the largest number when that cannot be found out.
    fn free_bytes(&self) -> u64;

    /// Deletes a generation that is not open, over a power cut too. One that is not there counts as deleted.
    ///
    /// # Errors
    /// [`StoreError::Io`]: it may still be there, whole or in part; the next [`Shelf::list`] goes on with it.
    fn delete(&mut self, first: Seq) -> Result<(), StoreError>;

    /// Takes a generation out of the row and keeps it, and says where.
    ///
    /// # Errors
    /// [`StoreError::Io`]: it is still in the row.
    fn set_aside(&mut self, first: Seq) -> Result<String, StoreError>;

    /// Deletes the oldest copy of a generation that was set aside.
    ///
    /// # Errors
    /// [`StoreError::Io`]: it is still there.
    fn delete_aside(&mut self, first: Seq) -> Result<(), StoreError>;

    /// Writes a replacement for the generations from `first` on, that `fill` brings block by block; durable, and not
    /// in the row before [`Shelf::swap_in`].
    ///
    /// # Errors
    /// [`StoreError`]: nothing has changed.
    fn prepare(&mut self, first: Seq, fill: &mut Fill<'_>) -> Result<(), StoreError>;

    /// Deletes the generations whose first is in `first..=last` and puts the prepared one in their place. Called again
    /// after an interruption it goes on; when it is done already, it does nothing.
    ///
    /// # Errors
    /// [`StoreError`]: call it again before the next [`Shelf::list`].
    fn swap_in(&mut self, first: Seq, last: Seq) -> Result<(), StoreError>;
}

/// Brings a replacement's blocks: calls its argument for each.
pub type Fill<'a> = dyn FnMut(&mut dyn FnMut(&[u8]) -> Result<(), StoreError>) -> Result<(), StoreError> + 'a;
