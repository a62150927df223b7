//! What can be told of the socket's path from outside, without making or removing anything.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use thiserror::Error;

/// What is at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing: an agent can make its socket.
    Free,
    /// A socket that nobody listens on, of an agent that was killed: the next one replaces it.
    LeftOver,
    /// A socket on which somebody listens.
    Listening,
}

/// Why no socket can be made there. The message names the path and the way out.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Unusable {
    /// Its folder is not there.
    #[error("the folder {} does not exist: make it (RuntimeDirectory= of the service does so) or set unix.path", .0.display())]
    NoFolder(PathBuf),
    /// Something else has its name.
    #[error("{} exists and is not a socket: move it away or set unix.path", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("{}: {source}; give it to the agent's user or set unix.path", path.display())]
    NoAccess {
        /// The socket or its folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Looks at the socket's path. Connects to a socket that is there and hangs up at once.
///
/// # Errors
/// [`Unusable`]: an agent could not listen there.
pub fn probe(path: &Path) -> Result<Found, Unusable> {
    let no_access = |path: &Path, source| Unusable::NoAccess { path: path.to_path_buf(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(Unusable::NoFolder(folder.to_path_buf()));
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let access = rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK);
            access.map(|()| Found::Free).map_err(|error| no_access(folder, error.into()))
        }
        Err(error) => Err(no_access(path, error)),
        Ok(found) if !found.file_type().is_socket() => Err(Unusable::NotASocket(path.to_path_buf())),
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => Ok(Found::Listening),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Found::LeftOver),
            Err(error) => Err(no_access(path, error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn paths() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        assert_eq!(probe(&path).unwrap(), Found::Free);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(probe(&path).unwrap(), Found::Listening);
        drop(listener);
        assert_eq!(probe(&path).unwrap(), Found::LeftOver);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(matches!(probe(&path), Err(Unusable::NotASocket(_))));
        assert!(matches!(probe(&path.join("x/y")), Err(Unusable::NoFolder(_))));
    }
}
