//! Kafka, Redis and Mosquitto: the shared ones of this run, and instances of a test's own.
//!
//! Everything goes through `deploy/services`, which is also what a developer calls by hand.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

/// The services all tests of this run share. Never crashed, paused or reconfigured: see [`Private`] for that.
pub(crate) struct Shared {
    /// Kafka's bootstrap address, `127.0.0.1:PORT`.
    pub(crate) kafka: String,
    /// `redis://127.0.0.1:PORT/`.
    pub(crate) redis: String,
    /// `mqtt://127.0.0.1:PORT`.
    pub(crate) mqtt: String,
}

impl Shared {
    /// The services that `FIELDPOST_TEST_KAFKA`, `FIELDPOST_TEST_REDIS` and `FIELDPOST_TEST_MQTT` name.
    ///
    /// # Panics
    /// When one is not set. The test process does not start them itself, because nothing runs after its last test
    /// that could stop them; and a test without its services fails instead of being skipped.
    pub(crate) fn get() -> &'static Self {
        static SHARED: OnceLock<Shared> = OnceLock::new();
        SHARED.get_or_init(|| Self {
            kafka: from_environment("FIELDPOST_TEST_KAFKA"),
            redis: from_environment("FIELDPOST_TEST_REDIS"),
            mqtt: from_environment("FIELDPOST_TEST_MQTT"),
        })
    }
}

fn from_environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run the tests with `make test`, which starts Kafka, Redis and Mosquitto and \
             stops them afterwards; or `make services-up`, `eval \"$(deploy/services env)\"`, then `cargo test`"
        )
    })
}

/// Which service a [`Private`] instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Kafka,
    Redis,
    Mosquitto,
    /// A schema registry, Apicurio.
    Registry,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Redis => "redis",
            Self::Mosquitto => "mosquitto",
            Self::Registry => "registry",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Kafka => "FIELDPOST_TEST_KAFKA",
            Self::Redis => "FIELDPOST_TEST_REDIS",
            Self::Mosquitto => "FIELDPOST_TEST_MQTT",
            Self::Registry => "FIELDPOST_TEST_REGISTRY",
        }
    }
}

/// Mosquitto's sessions and queued messages over a restart of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persistence {
    On,
    Off,
}

/// One service of a test's own, with data in a temporary folder; stopped and removed on drop.
///
/// A Kafka takes about 4 s to start and 230 MB, the others next to nothing.
pub(crate) struct Private {
    service: Service,
    address: String,
    spare_port: u16,
    folder: TempDir,
    _slot: Option<Slot>,
}

/// How many Kafkas of tests' own run at once: more would push a small machine into swapping and time-outs.
const PRIVATE_KAFKAS_MAX: usize = 2;

static PRIVATE_KAFKAS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// The right to run one more Kafka, given back on drop.
struct Slot;

impl Slot {
    fn take() -> Self {
        let (running, changed) = &PRIVATE_KAFKAS;
        let running = running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = changed
            .wait_while(running, |running| *running >= PRIVATE_KAFKAS_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (running, changed) = &PRIVATE_KAFKAS;
        *running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        changed.notify_one();
    }
}

impl Private {
    #[track_caller]
    pub(crate) fn kafka() -> Self {
        Self::launch(Service::Kafka, &[], &[])
    }

    /// Forgets what it held when it is killed.
    #[track_caller]
    pub(crate) fn registry() -> Self {
        Self::launch(Service::Registry, &[], &[])
    }

    #[track_caller]
    pub(crate) fn redis() -> Self {
        Self::launch(Service::Redis, &[], &[])
    }

    #[track_caller]
    pub(crate) fn mosquitto(persistence: Persistence) -> Self {
        let on_or_off = match persistence {
            Persistence::On => "on",
            Persistence::Off => "off",
        };
        Self::launch(Service::Mosquitto, &[], &["--mosquitto-persistence", on_or_off])
    }

    /// With lines of its own at the end of the service's configuration. `@PORT@`, `@SPARE_PORT@` and `@DIR@`
    /// (where [`Private::file`] puts files) are replaced.
    #[track_caller]
    pub(crate) fn with_settings(service: Service, settings: &str) -> Self {
        Self::launch(service, &[("extra", settings)], &[])
    }

    /// A Mosquitto with this configuration and nothing else; replaced as in [`Private::with_settings`].
    #[track_caller]
    pub(crate) fn mosquitto_alone(configuration: &str) -> Self {
        Self::launch(Service::Mosquitto, &[("extra", configuration), ("alone", "")], &[])
    }

    #[track_caller]
    fn launch(service: Service, files: &[(&str, &str)], options: &[&str]) -> Self {
        // One Kafka per test at most: two tests that wait for their second one would wait for ever.
        let slot = (service == Service::Kafka).then(Slot::take);
        let folder =
            tempfile::Builder::new().prefix("fieldpost-services-").tempdir().expect("a temporary folder");
        for (kind, text) in files {
            let path = folder.path().join(format!("{}.{kind}", service.name()));
            std::fs::write(path, text).expect("the temporary folder is writable");
        }
        let mut private = Self { service, address: String::new(), spare_port: 0, folder, _slot: slot };
        // Should this process be killed, its services go at the next `up` or `run`.
        let owner = std::process::id().to_string();
        private.script("up", &[options, &["--owner", &owner]].concat());
        let mut variables = parse_exports(&private.script("env", &[]));
        let mut take = |suffix: &str| {
            let name = format!("{}{suffix}", service.variable());
            variables.remove(&name).unwrap_or_else(|| panic!("`env` printed no {name}"))
        };
        private.address = take("");
        private.spare_port = take("_SPARE_PORT").parse().expect("a port is a number");
        private
    }

    /// As the `FIELDPOST_TEST_...` variables have it: `127.0.0.1:PORT` for Kafka, otherwise a URL. The same for
    /// the whole life of this value, also over crashes.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A free port kept for one more listener in [`Private::with_settings`].
    pub(crate) fn spare_port(&self) -> u16 {
        self.spare_port
    }

    /// The port that is `@SPARE_PORT_N@` in [`Private::with_settings`], from 2 to 9.
    #[track_caller]
    pub(crate) fn spare_port_of(&self, number: u8) -> u16 {
        let text = std::fs::read_to_string(self.file(&format!("spare-port-{number}")));
        text.expect("the settings name the port").trim().parse().expect("a port is a number")
    }

    /// SIGKILL. Returns when the process is gone.
    #[track_caller]
    pub(crate) fn kill(&self) {
        self.script("kill", &[]);
    }

    /// Starts a killed service again, on the same port and data. Returns when it answers.
    #[track_caller]
    pub(crate) fn start(&self) {
        self.script("start", &[]);
    }

    /// Stops in order, keeping port and data for [`Private::begin_again`].
    #[track_caller]
    pub(crate) fn end(&self) {
        self.script("down", &["--keep"]);
    }

    /// After [`Private::end`]: same port and data.
    #[track_caller]
    pub(crate) fn begin_again(&self) {
        let owner = std::process::id().to_string();
        self.script("up", &["--owner", &owner]);
    }

    /// SIGSTOP: connections stay open and nothing is answered.
    #[track_caller]
    pub(crate) fn pause(&self) {
        self.script("stop", &[]);
    }

    /// SIGCONT.
    #[track_caller]
    pub(crate) fn resume(&self) {
        self.script("cont", &[]);
    }

    /// `name` in the folder that is `@DIR@` in the settings.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(self.service.name()).join(name)
    }

    /// What the service has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read(self.file("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    #[track_caller]
    fn script(&self, command: &str, options: &[&str]) -> String {
        match call(self.folder.path(), command, self.service, options) {
            Ok(output) => output,
            Err(problem) => panic!("{problem}"),
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(20)..].join("\n");
            eprintln!("--- the end of {}'s log\n{end}\n---", self.service.name());
        }
        if let Err(problem) = call(self.folder.path(), "down", self.service, &[]) {
            eprintln!("{problem}");
        }
    }
}

/// Runs a command line class of Kafka's.
#[track_caller]
pub(crate) fn kafka_tool(class: &str, arguments: &[&str]) {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/services"))
        .args(["tool", class])
        .args(arguments)
        .output()
        .expect("deploy/services can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{class} {arguments:?}: {}\n{said}", output.status);
}

fn call(dir: &Path, command: &str, service: Service, options: &[&str]) -> Result<String, String> {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/services"))
        .arg(command)
        .arg("--dir")
        .arg(dir)
        .args(options)
        .arg(service.name())
        .output()
        .map_err(|problem| format!("deploy/services cannot be run: {problem}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("deploy/services {command} {}: {}\n{said}", service.name(), output.status))
}

fn parse_exports(text: &str) -> HashMap<String, String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
