//! What can be told of a buffer's directory from outside, without opening or making anything that stays.
//!
//! Safe beside a running agent: its lock is only asked for, and a file of our own comes and goes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, FlockOperation, flock};
use thiserror::Error;

use super::identity::{self, LOCK_FILE};
use crate::system;

/// statfs(2): what TMPFS_MAGIC and RAMFS_MAGIC are, the file systems that forget at a power cut.
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whether the directory exists; if not, it can be made.
    pub exists: bool,
    /// Bytes in its files.
    pub used_bytes: u64,
    /// Bytes that may still be written to its file system.
    pub free_bytes: u64,
    /// Its file system lives in memory and forgets at a power cut.
    pub forgets: bool,
    /// Who has it open.
    pub owner: Owner,
}

/// Who has a buffer open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nobody.
    Nobody,
    /// A process, by its id if it wrote one.
    Process(Option<u32>),
}

/// Why the directory cannot be used. The message names the path and the way out; trying again without a change
/// cannot help.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Unusable {
    /// Something else has its name.
    #[error("{} is not a directory: move it away or set agent.data_dir", .0.display())]
    NotADirectory(PathBuf),
    /// It does not exist and cannot be made.
    #[error("{} cannot be made in {}: {source}; make it for the agent's user or set agent.data_dir", dir.display(), parent.display())]
    NotMakeable {
        /// The directory.
        dir: PathBuf,
        /// The nearest folder that exists.
        parent: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It exists and takes no files, or cannot be looked into.
    #[error("{} cannot be {action}: {source}; give it to the agent's user or set agent.data_dir", path.display())]
    NoAccess {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Looks at the directory `dir` of a buffer.
///
/// # Errors
/// [`Unusable`]: an agent could not open a buffer there.
pub fn probe(dir: &Path) -> Result<Found, Unusable> {
    let no_access =
        |action: &'static str| move |source| Unusable::NoAccess { action, path: dir.to_path_buf(), source };
    let exists = match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => return Err(Unusable::NotADirectory(dir.to_path_buf())),
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(no_access("reached")(error)),
    };
    let there = if exists { dir } else { makeable(dir)? };
    if exists {
        try_writing(dir).map_err(no_access("written to"))?;
    }
    let kind = rustix::fs::statfs(there).map_err(|error| no_access("asked about")(error.into()))?.f_type;
    Ok(Found {
        exists,
        used_bytes: if exists { used_bytes(dir).map_err(no_access("read"))? } else { 0 },
        free_bytes: system::free_bytes(there).map_err(no_access("asked about"))?,
        // The field's type differs between architectures; all of these numbers are 32 bits.
        forgets: MEMORY_FILE_SYSTEMS.contains(&(u64::try_from(kind).unwrap_or_default() & 0xffff_ffff)),
        owner: owner(dir).map_err(no_access("locked"))?,
    })
}

/// The nearest folder above `dir` that exists, if a folder can be made in it.
fn makeable(dir: &Path) -> Result<&Path, Unusable> {
    let parents = dir.ancestors().skip(1);
    // A relative path ends in the empty one, which stands for the working directory.
    let parents = parents.map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let parent = parents.into_iter().find(|parent| parent.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if parent.is_dir() => Ok(parent),
        Ok(()) => Err(Unusable::NotADirectory(parent.to_path_buf())),
        Err(error) => Err(Unusable::NotMakeable {
            dir: dir.to_path_buf(),
            parent: parent.to_path_buf(),
            source: error.into(),
        }),
    }
}

/// Makes a file and removes it: permission bits alone do not tell of read-only or full file systems.
fn try_writing(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".check-{}", std::process::id()));
    fs::write(&path, b"fieldpost check")?;
    fs::remove_file(&path)
}

/// Bytes in the files below `dir`.
pub(super) fn used_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A running agent may remove a file between the two calls.
        let Ok(found) = entry.metadata() else { continue };
        let below = if found.is_dir() { used_bytes(&entry.path()).unwrap_or(0) } else { found.len() };
        bytes = bytes.saturating_add(below);
    }
    Ok(bytes)
}

/// Who has the buffer in `dir` open.
///
/// # Errors
/// The lock file is there and cannot be opened.
pub fn owner(dir: &Path) -> io::Result<Owner> {
    let path = dir.join(LOCK_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Owner::Nobody),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        // Closing the file gives the lock back.
        Ok(()) => Ok(Owner::Nobody),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Owner::Process(identity::owner_in(&path))),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_there_or_can_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/b/buffer");
        let found = probe(&dir).unwrap();
        assert!(!found.exists && !dir.exists());
        assert!(found.free_bytes > 0);
        assert_eq!((found.used_bytes, found.owner), (0, Owner::Nobody));
        fs::create_dir_all(dir.join("generation")).unwrap();
        fs::write(dir.join("generation/x"), [0; 100]).unwrap();
        let found = probe(&dir).unwrap();
        assert_eq!((found.exists, found.used_bytes), (true, 100));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing stays behind");
    }

    #[test]
    fn the_owner_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join(LOCK_FILE);
        fs::write(&lock, "4711\n").unwrap();
        assert_eq!(probe(folder.path()).unwrap().owner, Owner::Nobody, "a lock file of a dead process");
        let held = File::open(&lock).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        assert_eq!(probe(folder.path()).unwrap().owner, Owner::Process(Some(4711)));
        drop(held);
        assert_eq!(probe(folder.path()).unwrap().owner, Owner::Nobody);
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let message = probe(&file).unwrap_err().to_string();
        assert!(
            message.ends_with("file is not a directory: move it away or set agent.data_dir"),
            "{message}"
        );
        let message = probe(&file.join("buffer")).unwrap_err().to_string();
        assert!(message.contains("file/buffer cannot be reached: Not a directory"), "{message}");
    }
}
