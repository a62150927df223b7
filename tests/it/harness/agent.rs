//! The real binary: its own folder, configuration and collected log.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::services::Shared;
use super::unique;
use super::unix::UnixClient;
use super::wait::{USUAL, eventually, scaled, within};

/// Lines kept of an agent's log; older ones go. Enough for any test at `debug`, and a bound for one that spins.
const LINES_MAX: usize = 20_000;

/// A command of the real binary, without arguments yet.
///
/// `FIELDPOST_BINARY` is taken in its place when it is set (an absolute path: a build for another machine), and
/// `FIELDPOST_RUNNER` (for example `qemu-aarch64-static`) is put in front. The environment carries no `FIELDPOST_` variable
/// of the test run and nothing of a service manager, because the agent reads both.
pub(crate) fn fieldpost() -> Command {
    let binary = std::env::var("FIELDPOST_BINARY");
    let binary = binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_fieldpost"));
    let runner = std::env::var("FIELDPOST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let mut command = match words.next() {
        None => Command::new(binary),
        Some(program) => {
            let mut command = Command::new(program);
            command.args(words).arg(binary);
            command
        }
    };
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FIELDPOST_") {
            command.env_remove(name);
        }
    }
    for name in [
        "RUST_LOG",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDS_FIRST_FD",
        "CREDENTIALS_DIRECTORY",
    ] {
        command.env_remove(name);
    }
    command
}

/// An agent's configuration file in the making.
///
/// Keys are written as in the documentation, `kafka.topic`; values are anything JSON has: text, numbers, booleans,
/// arrays, and objects as inline tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    snippets: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
}

impl Config {
    #[track_caller]
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let (section, name) = key.rsplit_once('.').expect("a key is section.name");
        let literal = toml_literal(&value.into());
        self.sections.entry(section.to_owned()).or_default().insert(name.to_owned(), literal);
        self
    }

    /// Takes a key out again, one of those that [`Agent::start`] begins with.
    #[track_caller]
    pub(crate) fn unset(&mut self, key: &str) -> &mut Self {
        let (section, name) = key.rsplit_once('.').expect("a key is section.name");
        let keys = self.sections.get_mut(section);
        assert!(keys.is_some_and(|keys| keys.remove(name).is_some()), "{key} is not set");
        self
    }

    /// Lines of TOML as they are, after everything else; tables that [`Config::set`] has begun cannot be opened
    /// again.
    pub(crate) fn snippet(&mut self, toml: &str) -> &mut Self {
        self.snippets.push(toml.to_owned());
        self
    }

    /// Other lines in place of those that [`Config::snippet`] has added.
    pub(crate) fn replace_snippets(&mut self, toml: &str) {
        self.snippets = vec![toml.to_owned()];
    }

    /// A variable of the agent's environment.
    pub(crate) fn environment(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A program that is started in place of the agent and becomes it, as `systemd-socket-activate` does. Its
    /// arguments end where the agent's own begin.
    pub(crate) fn wrapper(&mut self, words: &[&str]) -> &mut Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Kafka: where it is, and the topic.
    pub(crate) fn kafka(&mut self, brokers: &str, topic: &str) -> &mut Self {
        self.set("kafka.brokers", brokers).set("kafka.topic", topic)
    }

    /// The shared Kafka.
    pub(crate) fn shared_kafka(&mut self, topic: &str) -> &mut Self {
        self.kafka(&Shared::get().kafka, topic)
    }

    /// MQTT: where the broker is, what to subscribe to, under a client id of its own.
    pub(crate) fn mqtt(&mut self, url: &str, topics: &[&str]) -> &mut Self {
        self.set("mqtt.url", url).set("mqtt.topics", topics.to_vec()).set("mqtt.client_id", unique("it"))
    }

    /// The shared Mosquitto.
    pub(crate) fn shared_mqtt(&mut self, topics: &[&str]) -> &mut Self {
        self.mqtt(&Shared::get().mqtt, topics)
    }

    /// Redis: where it is.
    pub(crate) fn redis(&mut self, url: &str) -> &mut Self {
        self.set("redis.url", url)
    }

    /// The shared Redis.
    pub(crate) fn shared_redis(&mut self) -> &mut Self {
        self.redis(&Shared::get().redis)
    }

    fn get(&self, key: &str) -> Option<&str> {
        let (section, name) = key.rsplit_once('.')?;
        self.sections.get(section)?.get(name).map(String::as_str)
    }

    /// The text of the configuration file.
    pub(crate) fn to_toml(&self) -> String {
        let mut text = String::new();
        for (section, keys) in self.sections.iter().filter(|(_, keys)| !keys.is_empty()) {
            writeln!(text, "[{section}]").unwrap();
            for (key, literal) in keys {
                writeln!(text, "{key} = {literal}").unwrap();
            }
        }
        for snippet in &self.snippets {
            writeln!(text, "{snippet}").unwrap();
        }
        text
    }
}

/// JSON's text and TOML's are the same for scalars and arrays (JSON's escapes are a part of TOML's); objects become
/// inline tables.
fn toml_literal(value: &Value) -> String {
    match value {
        Value::Null => panic!("TOML has no null: use `unset`"),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(toml_literal).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{} = {}", Value::from(key.as_str()), toml_literal(value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
    }
}

/// One agent: a folder, a configuration, and at most one running process at a time. On drop the process is killed,
/// and when the test is failing its log is printed.
pub(crate) struct Agent {
    home: TempDir,
    config: Config,
    process: Option<Process>,
    ended: Vec<Arc<Log>>,
}

struct Process {
    child: Child,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Starts an agent and waits until it is ready. The configuration begins with an id of its own, `data_dir` and
    /// `unix.path`; `configure` adds to it.
    #[track_caller]
    pub(crate) fn start(configure: impl FnOnce(&mut Config)) -> Self {
        let mut agent = Self::prepare(configure);
        agent.begin();
        agent.wait_ready();
        agent
    }

    /// As [`Agent::start`], without the wait: for an agent that is to fail.
    #[track_caller]
    pub(crate) fn spawn(configure: impl FnOnce(&mut Config)) -> Self {
        let mut agent = Self::prepare(configure);
        agent.begin();
        agent
    }

    /// The folder and the configuration file only, for `check`, `inspect` and the like. [`Agent::begin`] starts it.
    #[track_caller]
    pub(crate) fn prepare(configure: impl FnOnce(&mut Config)) -> Self {
        // Short: a socket's path has 108 bytes at most.
        let home = tempfile::Builder::new().prefix("fieldpost-").tempdir().expect("a temporary folder");
        let mut config = Config::default();
        config
            .set("agent.id", unique("agent"))
            .set("agent.data_dir", text(&home.path().join("data")))
            .set("unix.path", text(&home.path().join("agent.sock")))
            // Most tests take every record for an event of their own.
            .set("ledger.announce", false);
        configure(&mut config);
        let agent = Self { home, config, process: None, ended: Vec::new() };
        agent.write_config();
        agent
    }

    /// Changes the configuration file; the next start reads it.
    pub(crate) fn reconfigure(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.write_config();
    }

    fn write_config(&self) {
        std::fs::write(self.config_file(), self.config.to_toml()).expect("the temporary folder is writable");
    }

    /// Starts the process; not yet ready on return.
    #[track_caller]
    pub(crate) fn begin(&mut self) {
        assert!(self.process.is_none(), "the agent is running");
        let mut command = match self.config.wrapper.split_first() {
            None => fieldpost(),
            Some((program, words)) => {
                let agent = fieldpost();
                let mut command = Command::new(program);
                command.args(words).arg(agent.get_program()).args(agent.get_args());
                for (name, _) in agent.get_envs() {
                    command.env_remove(name);
                }
                command
            }
        };
        command.arg("run").arg("--config").arg(self.config_file());
        command.envs(self.config.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let log = Arc::new(Log::default());
        let readers = vec![
            collect(child.stderr.take().expect("it is piped"), Arc::clone(&log)),
            collect(child.stdout.take().expect("it is piped"), Arc::clone(&log)),
        ];
        self.process = Some(Process { child, log, readers });
    }

    /// Waits until the Unix socket takes connections; without one in the configuration, until the log says ready.
    #[track_caller]
    pub(crate) fn wait_ready(&mut self) {
        let has_socket = self.config.get("unix.path").is_some();
        let socket = self.socket();
        eventually("the agent is ready", USUAL, || {
            if let Some(status) = self.exited() {
                panic!("the agent ended while starting: {status}");
            }
            if has_socket { UnixStream::connect(&socket).is_ok() } else { self.log_contains("ready") }
                .then_some(())
        });
    }

    /// Another command of the binary with this agent's configuration file and environment.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = fieldpost();
        command.args(words).arg("--config").arg(self.config_file());
        command.envs(self.config.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// SIGKILL, as a crash; returns when the process is gone.
    #[track_caller]
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.wait_exit(USUAL);
    }

    /// SIGTERM; returns at once: [`Agent::wait_exit`] follows.
    #[track_caller]
    pub(crate) fn term(&self) {
        self.signal(Signal::TERM);
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the agent is running");
    }

    /// Waits until the process has ended, whether by itself or by a signal.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        let status = eventually("the agent ends", patience, || self.exited());
        let process = self.process.take().expect("it has just ended");
        for reader in process.readers {
            // The pipes end with the process, so this waits only for the last lines.
            reader.join().expect("the log's reader does not panic");
        }
        self.ended.push(process.log);
        status
    }

    /// SIGTERM, and the exit status.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.term();
        self.wait_exit(USUAL)
    }

    /// Starts the agent again on the same folder and waits until it is ready; stops it in order before that, if it
    /// is running.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        if self.process.is_some() {
            let status = self.stop();
            assert!(status.success(), "the agent did not stop in order: {status}");
        }
        self.begin();
        self.wait_ready();
    }

    /// The exit status when the process has ended and [`Agent::wait_exit`] has not been called yet.
    #[track_caller]
    fn exited(&mut self) -> Option<ExitStatus> {
        let process = self.process.as_mut().expect("the agent was started");
        process.child.try_wait().expect("a child of this process")
    }

    /// Whether the process is gone, [`Agent::wait_exit`] not having been called yet.
    #[track_caller]
    pub(crate) fn has_ended(&mut self) -> bool {
        self.exited().is_some()
    }

    /// A connection to the agent's Unix socket.
    #[track_caller]
    pub(crate) fn unix(&self) -> UnixClient {
        UnixClient::connect(&self.socket()).expect("the agent takes connections")
    }

    #[track_caller]
    pub(crate) fn pid(&self) -> Pid {
        let process = self.process.as_ref().expect("the agent is running");
        Pid::from_child(&process.child)
    }

    /// Lines of the running process, or of the last one when none runs: standard error, and standard output mixed in.
    pub(crate) fn log(&self) -> Vec<String> {
        self.current_log().map(|log| log.lines.lock().unwrap().iter().cloned().collect()).unwrap_or_default()
    }

    pub(crate) fn log_contains(&self, part: &str) -> bool {
        self.current_log().is_some_and(|log| log.find(part).is_some())
    }

    /// Waits for a line of the running process that contains `part`, and returns the first such line.
    #[track_caller]
    pub(crate) fn wait_log(&self, part: &str, patience: Duration) -> String {
        eventually(&format!("the log says {part:?}"), patience, || self.current_log()?.find(part))
    }

    fn current_log(&self) -> Option<&Log> {
        let running = self.process.as_ref().map(|process| &process.log);
        running.or(self.ended.last()).map(Arc::as_ref)
    }

    /// How many lines of the running process (or of the last one) contain `part`.
    pub(crate) fn log_count(&self, part: &str) -> usize {
        self.log().iter().filter(|line| line.contains(part)).count()
    }

    /// Bytes of all files in the data folder, as they count against `buffer.max_bytes`.
    pub(crate) fn disk_bytes(&self) -> u64 {
        bytes_below(&self.data_dir())
    }

    /// What the loss ledger says of a reason: the number of events, and the positions, first and last of each range.
    #[track_caller]
    pub(crate) fn lost(&self, reason: &str) -> (u64, Vec<(u64, u64)>) {
        let Ok(text) = std::fs::read(self.data_dir().join("LEDGER")) else { return (0, Vec::new()) };
        let ledger: Value = serde_json::from_slice(&text).expect("the ledger is JSON");
        let entry = &ledger["entries"][reason];
        let range = |range: &Value| (range[0].as_u64().expect("a seq"), range[1].as_u64().expect("a seq"));
        let ranges = entry["ranges"].as_array().map(|ranges| ranges.iter().map(range).collect());
        (entry["events"].as_u64().unwrap_or(0), ranges.unwrap_or_default())
    }

    /// Resident memory of the running process (with a runner, of the runner) in KiB.
    #[track_caller]
    pub(crate) fn rss_kb(&self) -> u64 {
        self.memory_kb("VmRSS:")
    }

    /// The most that [`Agent::rss_kb`] has been in the life of the process.
    #[track_caller]
    pub(crate) fn peak_rss_kb(&self) -> u64 {
        self.memory_kb("VmHWM:")
    }

    #[track_caller]
    fn memory_kb(&self, name: &str) -> u64 {
        let status = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(status).expect("the agent is running");
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).expect("a live process has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// The folder that holds everything of this agent.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.home.path().join("fieldpost.toml")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path_of("agent.data_dir")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path_of("unix.path")
    }

    fn path_of(&self, key: &str) -> PathBuf {
        let literal = self.config.get(key).unwrap_or("\"\"");
        let path: String = serde_json::from_str(literal).expect("a path is text");
        PathBuf::from(path)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // Gone already is fine; a killed child is reaped within moments.
            drop(process.child.kill());
            let _status = within(scaled(USUAL), || process.child.try_wait().ok().flatten());
            // The last lines often say why; they come within moments of the end.
            let _all_read = within(scaled(Duration::from_secs(1)), || {
                process.readers.iter().all(JoinHandle::is_finished).then_some(())
            });
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.config_file().display(), self.config.to_toml());
            let running = self.process.as_ref().map(|process| &process.log);
            for (number, log) in self.ended.iter().chain(running).enumerate() {
                eprintln!("--- log of start {}", number + 1);
                log.print();
            }
            eprintln!("---");
        }
    }
}

#[derive(Default)]
struct Log {
    lines: Mutex<VecDeque<String>>,
}

impl Log {
    fn push(&self, line: String) {
        let mut lines = self.lines.lock().unwrap();
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn find(&self, part: &str) -> Option<String> {
        self.lines.lock().unwrap().iter().find(|line| line.contains(part)).cloned()
    }

    fn print(&self) {
        for line in self.lines.lock().unwrap().iter() {
            eprintln!("{line}");
        }
    }
}

/// Reads to the end of the pipe, whatever comes, so that the agent never waits for a full one.
fn collect(pipe: impl Read + Send + 'static, log: Arc<Log>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            log.push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
            line.clear();
        }
    })
}

fn text(path: &Path) -> String {
    path.to_str().expect("a temporary folder's path is UTF-8").to_owned()
}

/// Files come and go while this walks: what is gone has no bytes.
fn bytes_below(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_below(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}
