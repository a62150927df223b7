//! A process under measurement: the agent or a reference, and what the kernel says about it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::report::Arguments;

/// How long anything may take that normally takes seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// What Linux counts processor time in for user space, on every architecture of this century.
const TICK: Duration = Duration::from_millis(10);

/// Polls until `done` gives something.
pub(crate) fn wait_for<T>(what: &str, pause: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(pause);
    }
}

/// An address that `make bench` sets.
pub(crate) fn service(name: &str) -> String {
    std::env::var(format!("FIELDPOST_TEST_{name}")).unwrap_or_else(|_| {
        panic!("FIELDPOST_TEST_{name} is not set: `make bench` starts the services and sets it")
    })
}

/// A name that no earlier run used.
pub(crate) fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    format!("{prefix}-{since:x}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A running process; killed when it is dropped.
pub(crate) struct Process(Child);

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// Times that a thread of it was put to sleep and woken up.
    pub(crate) wakeups: u64,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("the program can be started"))
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.0.id().to_string()).join(file)
    }

    pub(crate) fn usage(&self) -> Usage {
        let stat = fs::read_to_string(self.proc("stat")).expect("the process runs");
        // The name in brackets may hold anything; utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        let ticks = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
        let threads = fs::read_dir(self.proc("task")).expect("the process runs");
        let wakeups = threads
            .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok())
            .filter_map(|status| field(&status, "voluntary_ctxt_switches:"))
            .sum();
        Usage { cpu: TICK * ticks, wakeups }
    }

    /// Resident memory now and at its peak, MB of 10^6 bytes.
    pub(crate) fn memory(&self) -> (f64, f64) {
        let status = fs::read_to_string(self.proc("status")).expect("the process runs");
        let mb = |name| field(&status, name).unwrap() as f64 * 1024.0 / 1e6;
        (mb("VmRSS:"), mb("VmHWM:"))
    }

    /// Open sockets, listening ones included.
    pub(crate) fn sockets(&self) -> usize {
        let files = fs::read_dir(self.proc("fd")).expect("the process runs");
        let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits for the end of a process that ends by itself.
    pub(crate) fn wait(mut self) {
        assert!(self.0.wait().unwrap().success());
    }

    pub(crate) fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// An agent's folder and configuration; started once or several times.
pub(crate) struct Agent {
    home: TempDir,
    /// Of the socket: its path has 107 bytes at most, and the target folder's may be longer.
    sockets: TempDir,
    binary: String,
}

impl Agent {
    /// The default configuration, with `toml` for what has to be said.
    pub(crate) fn new(arguments: &Arguments, toml: &str) -> Self {
        let home = tempfile::Builder::new().prefix("fp").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let binary = arguments.binary.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_fieldpost").to_owned());
        let sockets = tempfile::tempdir().unwrap();
        let agent = Self { home, sockets, binary };
        let redis = if arguments.has_redis {
            format!("[redis]\nurl = \"{}\"\n", service("REDIS"))
        } else {
            String::new()
        };
        agent.configure(&format!("{toml}\n{redis}"));
        agent
    }

    pub(crate) fn configure(&self, toml: &str) {
        let home = self.home.path().display();
        let unix = format!("[unix]\npath = \"{}\"\n", self.socket().display());
        let text = format!("[agent]\nid = \"bench\"\ndata_dir = \"{home}/data\"\n{unix}{toml}");
        fs::write(self.home.path().join("fieldpost.toml"), text).unwrap();
    }

    /// The same agent with its data elsewhere.
    pub(crate) fn with_data_dir(self, data_dir: &Path) -> Self {
        let file = self.home.path().join("fieldpost.toml");
        let text = fs::read_to_string(&file).unwrap();
        let home = format!("{}/data", self.home.path().display());
        fs::write(file, text.replace(&home, data_dir.to_str().unwrap())).unwrap();
        self
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.sockets.path().join("agent.sock")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// Starts it; not ready yet.
    pub(crate) fn spawn(&self) -> Process {
        let log = fs::File::create(self.home.path().join("log")).unwrap();
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(self.home.path().join("fieldpost.toml"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FIELDPOST_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Process::start(&mut command)
    }

    /// Starts it and waits until its log holds all of `words`.
    pub(crate) fn start(&self, words: &[&str]) -> Process {
        let mut process = self.spawn();
        wait_for("the agent is ready", Duration::from_millis(5), || {
            let log = self.log();
            assert!(process.is_running(), "the agent ended: {log}");
            words.iter().all(|word| log.contains(word)).then_some(())
        });
        process
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.socket());
    }
}
