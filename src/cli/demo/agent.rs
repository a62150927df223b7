//! The demo's agent: the real binary as a child process in a folder of its own, to be killed and started again.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{Failure, Plan};

/// Variables that the agent reads, `FIELDPOST_…` aside: they belong to this process or to nobody.
const VARIABLES: [&str; 9] = [
    "RUST_LOG",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_FDS_FIRST_FD",
    "CREDENTIALS_DIRECTORY",
];

/// Lines of the agent's log that a failure shows.
const LOG_LINES: usize = 20;

/// The demo's folder; removed with everything in it unless it is to be kept.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    pub(super) is_kept: bool,
}

impl Home {
    /// Makes a folder that only this user can enter.
    pub(super) fn make(plan: &Plan, is_kept: bool) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("fieldpost-demo-{}", plan.run));
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| Failure::file("make", &path, e))?;
        Ok(Self { path, is_kept })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.path.join("fieldpost.toml")
    }

    fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    fn log(&self) -> PathBuf {
        self.path.join("agent.log")
    }

    /// Writes the configuration: where everything is, and defaults for the rest.
    pub(super) fn configure(&self, brokers: &str, redis: Option<&str>) -> Result<(), Failure> {
        // JSON's text is TOML's. The consumer accounts for each record, so the agent adds none of its own.
        let text = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
        let mut toml = format!(
            "[agent]\nid = \"demo\"\ndata_dir = {}\n\n[unix]\npath = {}\n\n[kafka]\nbrokers = \"{brokers}\"\n\n\
             [ledger]\nannounce = false\n",
            text(&self.data()),
            text(&self.socket()),
        );
        if let Some(url) = redis {
            toml += &format!("\n[redis]\nurl = {}\n", serde_json::Value::from(url));
        }
        let path = self.config();
        fs::write(&path, toml).map_err(|e| Failure::file("write", &path, e))
    }

    /// Disk that the agent's data takes now.
    pub(super) fn data_bytes(&self) -> u64 {
        disk_bytes(&self.data())
    }

    /// The last lines of the agent's log.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.is_kept {
            // What is left of it belongs to the system's own tidying of its temporary folder.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn disk_bytes(path: &Path) -> u64 {
    // Files come and go meanwhile: what cannot be looked at is gone.
    let Ok(own) = fs::symlink_metadata(path) else { return 0 };
    let below = |dir: fs::ReadDir| dir.flatten().map(|entry| disk_bytes(&entry.path())).sum();
    own.blocks() * 512 + if own.is_dir() { fs::read_dir(path).map_or(0, below) } else { 0 }
}

/// The running agent. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    socket: PathBuf,
    /// Most memory so far, in bytes.
    pub(super) peak_memory: u64,
}

impl Agent {
    /// Starts it; see [`Agent::is_ready`].
    pub(super) fn start(home: &Home) -> Result<Self, Failure> {
        let binary = std::env::current_exe().map_err(Failure::System)?;
        let path = home.log();
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(|e| Failure::file("write", &path, e))?;
        let stdout = log.try_clone().map_err(Failure::System)?;
        let mut command = Command::new(&binary);
        command.arg("run").arg("--config").arg(home.config());
        command.stdin(Stdio::null()).stdout(stdout).stderr(log);
        let is_ours = |name: &str| name.starts_with("FIELDPOST_") || VARIABLES.contains(&name);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let child = command.spawn().map_err(|e| Failure::file("start", &binary, e))?;
        Ok(Self { child, socket: home.socket(), peak_memory: 0 })
    }

    pub(super) fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it takes connections.
    pub(super) fn is_ready(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.child.try_wait().map_err(Failure::System)
    }

    /// Looks at its memory.
    pub(super) fn look(&mut self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        self.peak_memory = self.peak_memory.max(peak_memory(&status).unwrap_or(0));
    }

    /// SIGKILL, and waits for its end.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        self.look();
        self.child.kill().and_then(|()| self.child.wait()).map(drop).map_err(Failure::System)
    }

    /// SIGTERM; it stops in order.
    pub(super) fn terminate(&mut self) -> Result<(), Failure> {
        self.look();
        let signalled = kill_process(self.process(), Signal::TERM);
        signalled.map_err(|errno| Failure::System(io::Error::from(errno)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `VmHWM` in bytes.
fn peak_memory(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_as_the_kernel_writes_it() {
        assert_eq!(peak_memory("VmPeak:\t  9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n"), Some(1234 * 1024));
        assert_eq!(peak_memory("State:\tZ (zombie)\n"), None);
    }

    #[test]
    fn a_folder_and_its_files_count_and_a_missing_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let empty = disk_bytes(dir.path());
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), vec![1; 10_000]).unwrap();
        assert!(disk_bytes(dir.path()) >= empty + 10_000);
        assert_eq!(disk_bytes(&dir.path().join("none")), 0);
    }
}
