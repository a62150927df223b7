//! A file that only takes space, so that there is some when the disk is full: with its bytes a new generation, the
//! identity and the ledger can be written.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rustix::fs::FallocateFlags;

/// Enough for a new generation (two segments) and the small files.
const RESERVE_BYTES: u64 = 3 * 1024 * 1024;

/// A smaller buffer reserves this part of its quota.
const QUOTA_SHARE: u64 = 16;

/// The reserve is made again when so many times its size is free.
const RESTORE_AT: u64 = 4;

/// The reserve of one buffer.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
    is_there: bool,
}

impl Reserve {
    /// The reserve of a buffer of `bytes_max` in `dir`; [`Self::restore`] makes it.
    pub(super) fn new(dir: &std::path::Path, bytes_max: u64) -> Self {
        let path = dir.join("RESERVE");
        let is_there = path.exists();
        Self { path, bytes: Self::bytes_of(bytes_max), is_there }
    }

    /// The size of the reserve of such a buffer.
    pub(super) fn bytes_of(bytes_max: u64) -> u64 {
        RESERVE_BYTES.min(bytes_max / QUOTA_SHARE)
    }

    /// The bytes that it takes now.
    pub(super) fn bytes(&self) -> u64 {
        if self.is_there { self.bytes } else { 0 }
    }

    /// Gives its space to whoever needs it now. Whether there was any.
    pub(super) fn release(&mut self) -> bool {
        if !std::mem::take(&mut self.is_there) {
            return false;
        }
        let removed = fs::remove_file(&self.path);
        if removed.is_ok() {
            tracing::warn!(bytes = self.bytes, "the disk is full: the buffer uses its reserve");
        }
        removed.is_ok()
    }

    /// Makes it, if it is missing and the `free` bytes, which are asked for only then, are enough.
    pub(super) fn restore(&mut self, free: impl FnOnce() -> u64) {
        if self.is_there || self.bytes == 0 || free() / RESTORE_AT < self.bytes {
            return;
        }
        match self.make() {
            Ok(()) => self.is_there = true,
            Err(error) => {
                tracing::debug!(%error, "the reserve could not be made");
                // Not half of it: nobody would count that.
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn make(&self) -> io::Result<()> {
        let file = File::create(&self.path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
            // A file system that cannot allocate ahead: zeros do it too.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                io::copy(&mut io::Read::take(io::repeat(0), self.bytes), &mut &file)?;
            }
            made => made?,
        }
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_its_space_and_gives_it_back_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::new(dir.path(), 1 << 30);
        assert!(!reserve.release(), "there is none yet");
        reserve.restore(|| RESERVE_BYTES * 3);
        assert!(!dir.path().join("RESERVE").exists(), "the disk is nearly full");
        reserve.restore(|| RESERVE_BYTES * 4);
        reserve.restore(|| unreachable!("it is there"));
        assert_eq!(fs::metadata(dir.path().join("RESERVE")).unwrap().len(), RESERVE_BYTES);
        let mut again = Reserve::new(dir.path(), 1 << 30);
        assert!(again.release() && !again.release());
        assert!(!dir.path().join("RESERVE").exists());
    }
}
