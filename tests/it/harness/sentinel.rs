//! A Redis Sentinel of a test's own.

use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A Sentinel that runs; killed on drop.
pub(crate) struct Sentinel {
    child: Child,
    _folder: TempDir,
}

impl Sentinel {
    /// With these settings, besides the folder that it writes to.
    #[track_caller]
    pub(crate) fn start(settings: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("fieldpost-sentinel-").tempdir().unwrap();
        let file = folder.path().join("sentinel.conf");
        let settings = format!("bind 127.0.0.1\ndir {}\n{settings}", folder.path().display());
        std::fs::write(&file, settings).unwrap();
        let child = Command::new("redis-server").arg(&file).arg("--sentinel").stdout(Stdio::null()).spawn();
        Self { child: child.expect("redis-server is installed"), _folder: folder }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
