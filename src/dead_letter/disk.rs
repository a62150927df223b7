//! The three calls on which a letter's durability rests: a seam, so that a test can end each of them.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// What the disk is asked.
pub(super) trait Disk: fmt::Debug + Send {
    /// Makes the content of a file durable.
    fn sync_file(&mut self, file: &File) -> io::Result<()>;
    /// Gives a file its name, in place of what had it.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&mut self, dir: &Path) -> io::Result<()>;
}

/// The real one.
#[derive(Debug, Clone, Copy)]
pub(super) struct System;

impl Disk for System {
    fn sync_file(&mut self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&mut self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}
