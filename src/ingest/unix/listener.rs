//! Where the socket comes from: inherited from the service manager, or made at its path.
//!
//! A socket file outlives its process, so a path that is taken has to be judged. Two agents must not judge at the
//! same time, hence a lock on `<path>.lock` from before the look until the end of the process; the lock file stays
//! behind, since removing it would open the race it closes. A foreign listener, which knows nothing of the lock, is
//! found by connecting. Only a socket that refuses connections is removed.
//!
//! Nobody can connect before the file has its mode: until `listen` every connection is refused.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::{Options, UnixError};

/// Longest path in bytes: `sun_path` without its final zero.
const PATH_BYTES_MAX: usize = 107;

/// Connections that wait for `accept`; the kernel's own default for a Unix socket of this kind.
const BACKLOG: i32 = 128;

/// A socket that listens, not yet served.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// `None`: inherited, the file belongs to the service manager.
    file: Option<SocketFile>,
}

impl Listener {
    /// The socket once more, if the service manager handed it over: to be kept for a start of the agent by itself.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn handed_over(&self) -> io::Result<Option<OwnedFd>> {
        match self.file {
            None => Ok(Some(self.socket.try_clone()?.into())),
            Some(_) => Ok(None),
        }
    }

    pub(super) fn into_parts(self) -> (UnixListener, Option<SocketFile>) {
        (self.socket, self.file)
    }
}

/// Takes the first Unix stream socket the service manager passed (`LISTEN_FDS`), else makes one at `options.path`.
///
/// Call it before other threads run: taking inherited sockets removes `LISTEN_FDS` from the environment.
///
/// # Errors
/// See [`UnixError`]; nothing was removed but a socket file nobody listened on.
pub fn bind_socket(options: &Options) -> Result<Listener, UnixError> {
    let listener = match inherited() {
        Some(socket) => Listener { socket, file: None },
        None => bind_path(&options.path, options.mode)?,
    };
    listener.socket.set_nonblocking(true).map_err(|source| failed("set up", &options.path, source))?;
    Ok(listener)
}

/// The socket of an input that is off: says so if the service manager handed one over, because producers can connect to
/// it and would wait for an answer.
pub fn leave_unserved() {
    if inherited().is_some() {
        tracing::warn!(
            "the service manager handed over a socket that nobody serves: set unix.path, or disable the socket's unit"
        );
    }
}

fn inherited() -> Option<UnixListener> {
    let mut passed = listenfd::ListenFd::from_env();
    // Sockets of other kinds are errors here and stay for their own stages.
    (0..passed.len()).find_map(|index| passed.take_unix_listener(index).ok().flatten())
}

fn bind_path(path: &Path, mode: u32) -> Result<Listener, UnixError> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > PATH_BYTES_MAX {
        return Err(UnixError::PathTooLong { path: path.to_owned(), bytes, bytes_max: PATH_BYTES_MAX });
    }
    let address = SocketAddrUnix::new(path).map_err(|error| failed("use", path, error.into()))?;
    let lock = lock(path)?;
    make_way(path, &address)?;
    let socket = stream_socket(SocketFlags::CLOEXEC).map_err(|error| failed("make", path, error.into()))?;
    bind(&socket, &address).map_err(|error| failed("make", path, error.into()))?;
    let file = SocketFile::new(path, lock).map_err(|error| failed("look at", path, error))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| failed("set the mode of", path, error))?;
    // Order: listen last, so that nobody connects while the file still has the mode the umask left.
    listen(&socket, BACKLOG).map_err(|error| failed("listen on", path, error.into()))?;
    Ok(Listener { socket: UnixListener::from(socket), file: Some(file) })
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> UnixError {
    UnixError::Socket { action, path: path.to_owned(), source }
}

fn lock(path: &Path) -> Result<File, UnixError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(&lock_path);
    let file = opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => UnixError::NoDirectory { path: path.to_owned() },
        _ => failed("open", &lock_path, source),
    })?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => UnixError::InUse { path: path.to_owned() },
        TryLockError::Error(source) => failed("lock", &lock_path, source),
    })?;
    Ok(file)
}

/// Removes what an earlier process left at `path`, and nothing else.
fn make_way(path: &Path, address: &SocketAddrUnix) -> Result<(), UnixError> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path, error)),
    };
    if !found.file_type().is_socket() {
        return Err(UnixError::NotASocket { path: path.to_owned() });
    }
    // Not blocking: a listener whose backlog is full would hold up the start.
    let probe = stream_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        .map_err(|error| failed("probe", path, error.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        // AGAIN: its backlog is full. PROTOTYPE: it is bound, if not as a stream.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            return Err(UnixError::InUse { path: path.to_owned() });
        }
        Err(error) => return Err(failed("probe", path, error.into())),
    }
    std::fs::remove_file(path).map_err(|error| failed("remove the left-over", path, error))?;
    tracing::info!(path = %path.display(), "removed the socket file of an earlier process");
    Ok(())
}

fn stream_socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// The file of a socket made here; removed when the socket ends, unless another file has its place by then.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    /// Held until the file is gone.
    _lock: File,
}

impl SocketFile {
    fn new(path: &Path, lock: File) -> io::Result<Self> {
        let identity = identity(path)?;
        Ok(Self { path: path.to_owned(), identity, _lock: lock })
    }
}

impl Drop for SocketFile {
    /// Best effort: a file that stays is recognised as left over by the next start.
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "the socket file stays");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        (dir, path)
    }

    fn bound(path: &Path) -> Result<Listener, UnixError> {
        bind_path(path, 0o640)
    }

    #[test]
    fn a_new_socket_has_its_mode_and_goes_when_it_ends() {
        let (_dir, path) = place();
        for mode in [0o600, 0o666] {
            let listener = bind_path(&path, mode).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, mode);
            UnixStream::connect(&path).unwrap();
            drop(listener);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_left_over_file_makes_way() {
        let (_dir, path) = place();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = bound(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_listening_socket_stays() {
        let (_dir, path) = place();
        let foreign = UnixListener::bind(&path).unwrap();
        let error = bound(&path).unwrap_err();
        assert!(error.to_string().contains("another process listens on"), "{error}");
        assert_eq!(error.class(), Class::Fatal);
        drop(foreign);

        let own = bound(&path).unwrap();
        assert!(matches!(bound(&path), Err(UnixError::InUse { .. })));
        UnixStream::connect(&path).unwrap();
        drop(own);

        let _datagrams = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(bound(&path), Err(UnixError::InUse { .. })));
    }

    #[test]
    fn a_listener_with_a_full_backlog_counts_as_listening() {
        let (_dir, path) = place();
        let address = SocketAddrUnix::new(&path).unwrap();
        let foreign = stream_socket(SocketFlags::CLOEXEC).unwrap();
        bind(&foreign, &address).unwrap();
        listen(&foreign, 0).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        assert!(matches!(bound(&path), Err(UnixError::InUse { .. })));
    }

    #[test]
    fn a_file_that_is_no_socket_is_never_removed() {
        let (dir, path) = place();
        let target = dir.path().join("target");
        for make in [
            &(|| std::fs::write(&path, "precious").unwrap()) as &dyn Fn(),
            &|| std::fs::create_dir(&path).unwrap(),
            &|| std::os::unix::fs::symlink(&target, &path).unwrap(),
        ] {
            make();
            let error = bound(&path).unwrap_err();
            assert!(matches!(error, UnixError::NotASocket { .. }), "{error}");
            assert!(error.to_string().contains("s.sock"), "{error}");
            assert!(path.symlink_metadata().is_ok());
            std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path)).unwrap();
        }
    }

    #[test]
    fn a_missing_directory_and_a_long_path_are_named() {
        let (dir, _) = place();
        let error = bound(&dir.path().join("missing/s.sock")).unwrap_err();
        assert!(matches!(error, UnixError::NoDirectory { .. }), "{error}");
        assert!(error.to_string().contains("RuntimeDirectory"), "{error}");
        let error = bound(&dir.path().join("x".repeat(108))).unwrap_err();
        assert!(matches!(error, UnixError::PathTooLong { .. }), "{error}");
    }

    #[test]
    fn another_file_in_its_place_stays() {
        let (_dir, path) = place();
        let listener = bound(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        drop(other);
    }
}
