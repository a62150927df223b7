//! Passwords in memory: readable by the one call that needs them, invisible to logs and errors, wiped when dropped.

use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::files::{self, FileError};

/// A password or token. `Debug` and `Display` print `***`, so that it cannot reach a log by accident; its memory is
/// overwritten when it is dropped. What a library copies is out of reach: for that the process refuses core dumps.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a secret as it was read; a trailing line end belongs to the file and not to the secret.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// The secret itself, for the call that authenticates.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A secret is a line; a file above this is something else.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// A variable of the environment, read once.
    Given(Secret),
    /// A file that holds nothing else, read at each use.
    File(PathBuf),
}

impl Password {
    /// The secret as it is now.
    ///
    /// # Errors
    /// [`FileError`]: the file cannot be read, is empty or holds something else. Try again once it was mended.
    pub fn read(&self) -> Result<Secret, FileError> {
        let path = match self {
            Self::Given(secret) => return Ok(secret.clone()),
            Self::File(path) => path,
        };
        let bytes = files::read(path, SECRET_BYTES_MAX)?;
        match std::str::from_utf8(&bytes) {
            Err(_) => Err(FileError::new(path, "is not UTF-8 text")),
            Ok(text) if text.trim().is_empty() => Err(FileError::new(path, "is empty")),
            Ok(text) => Ok(Secret::new(text)),
        }
    }

    /// The file to watch, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Given(_) => None,
            Self::File(path) => Some(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_shows_itself() {
        let secret = Secret::new("hunter2\n");
        assert_eq!(secret.reveal(), "hunter2");
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Password::Given(secret.clone())),
            "*** *** Given(***)"
        );
    }

    #[test]
    fn a_file_is_read_at_each_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let password = Password::File(path.clone());
        let said = |password: &Password| password.read().unwrap_err().to_string();
        assert!(said(&password).ends_with("cannot be read: No such file or directory (os error 2)"));
        for (content, wanted) in [("one\r\n", Ok("one")), ("two", Ok("two")), (" \n", Err("is empty"))] {
            std::fs::write(&path, content).unwrap();
            match wanted {
                Ok(wanted) => assert_eq!(password.read().unwrap().reveal(), wanted),
                Err(wanted) => assert!(said(&password).ends_with(wanted), "{}", said(&password)),
            }
        }
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(said(&password).ends_with("is not UTF-8 text"));
        std::fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert!(said(&password).ends_with("is larger than 64 KiB"));
    }
}
