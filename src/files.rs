//! Small files that others replace while the agent runs: certificates, keys and passwords. Reading them, and noticing
//! that one was replaced.
//!
//! A change is found by looking (a few `stat` calls), not by being told: it works on every file system and for every
//! way of replacing a file, symbolic links that are turned round included.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use zeroize::Zeroizing;

/// Time between two looks where no other work sets the pace.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// A file cannot be used. Class: retry, once somebody mended it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the file {} {what}", .path.display())]
pub struct FileError {
    path: PathBuf,
    what: String,
}

impl FileError {
    /// `what` completes "the file … ".
    pub fn new(path: &Path, what: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), what: what.into() }
    }

    /// The message without the file's name.
    pub fn what(&self) -> &str {
        &self.what
    }
}

/// What a file holds, up to `bytes_max`; wiped when dropped.
///
/// # Errors
/// [`FileError`]: it cannot be read or is larger.
pub fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = File::open(path).and_then(|file| {
        // Room for all of it at once: a growing vector would leave copies behind that nobody wipes.
        let expected = file.metadata()?.len().min(bytes_max) + 1;
        bytes.reserve(usize::try_from(expected).unwrap_or(0));
        file.take(bytes_max + 1).read_to_end(&mut bytes)
    });
    match read {
        Err(error) => Err(FileError::new(path, format!("cannot be read: {error}"))),
        Ok(_) if bytes.len() as u64 > bytes_max => {
            Err(FileError::new(path, format!("is larger than {} KiB", bytes_max / 1024)))
        }
        Ok(_) => Ok(bytes),
    }
}

/// What tells one state of a file from another; `None`: it cannot be looked at.
type Stamp = Option<[i64; 5]>;

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    let number = |n: u64| i64::from_ne_bytes(n.to_ne_bytes());
    let (mtime, ctime) = (found.mtime(), found.ctime());
    // The time of change, which nobody can set, catches what the others miss; seconds and nanoseconds fit together.
    let nanos = |seconds: i64, rest: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(rest);
    Some([
        number(found.dev()),
        number(found.ino()),
        number(found.len()),
        nanos(mtime, found.mtime_nsec()),
        nanos(ctime, found.ctime_nsec()),
    ])
}

/// Files and how they looked last.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    files: Vec<(PathBuf, Stamp)>,
}

impl Watched {
    /// Order: to be made before the files are read. A change in between is then found at the next look, and the worst is
    /// that unchanged content is read again.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let files = paths.into_iter().map(|path| {
            let stamp = stamp(&path);
            (path, stamp)
        });
        Self { files: files.collect() }
    }

    /// Whether there is nothing to watch.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether a file was changed, replaced, made or removed since the last look.
    pub fn is_changed(&mut self) -> bool {
        let mut is_changed = false;
        for (path, last) in &mut self.files {
            let now = stamp(path);
            is_changed |= std::mem::replace(last, now) != now;
        }
        is_changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_replacing_a_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (file, link) = (path("file"), path("link"));
        let mut watched = Watched::new([file.clone(), link.clone()]);
        assert!(!watched.is_empty() && !watched.is_changed());
        let mut step = |what: &str, change: &dyn Fn()| {
            change();
            assert!(watched.is_changed(), "{what}");
            assert!(!watched.is_changed(), "{what}, twice");
        };
        step("made", &|| std::fs::write(&file, "one").unwrap());
        step("written again with the same length", &|| std::fs::write(&file, "two").unwrap());
        step("renamed over", &|| {
            std::fs::write(path("new"), "two").unwrap();
            std::fs::rename(path("new"), &file).unwrap();
        });
        step("a link that is made", &|| std::os::unix::fs::symlink(&file, &link).unwrap());
        std::fs::write(path("other"), "two").unwrap();
        step("a link that is turned round", &|| {
            std::os::unix::fs::symlink(path("other"), path("new")).unwrap();
            std::fs::rename(path("new"), &link).unwrap();
        });
        step("removed", &|| std::fs::remove_file(&file).unwrap());
    }
}
