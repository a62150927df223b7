//! The parts of a bundle. What a command of fieldpost says is asked of that command, as a program of its own: within its
//! time, and whatever becomes of it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::{Part, machine};
use crate::buffer::probe::{self, Owner};
use crate::child::{self, Bounds, Ended};
use crate::config::Config;
use crate::http::client::Place;

/// For what only looks at small files or asks a service of this machine.
const SHORT: Bounds = Bounds { time: Duration::from_secs(10), output_bytes: 256 << 10 };

/// For reading the whole buffer.
const VERIFY: Bounds = Bounds { time: Duration::from_secs(60), output_bytes: 256 << 10 };

/// For the log: the newest lines come first, so that they are what is kept.
const LOG: Bounds = Bounds { time: Duration::from_secs(20), output_bytes: 1 << 20 };

/// Most lines of the log: a day of a healthy agent has 1,500.
const LOG_LINES: &str = "2000";

/// What the unit's manager is asked; no `Environment`, where somebody may have put a secret.
const UNIT_PROPERTIES: &str = "Id,LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStatus,ExecMainStartTimestamp,MainPID,User,\
                               FragmentPath,DropInPaths,MemoryCurrent,MemoryPeak,MemoryMax,TasksMax,LimitNOFILE,LimitCORE,\
                               WatchdogUSec,TimeoutStopUSec,CPUUsageNSec,ProtectSystem,ReadWritePaths,PrivateDevices,DeviceAllow";

/// What is looked at.
#[derive(Debug)]
pub(super) struct Scene {
    /// `None`: it is invalid, which the parts say.
    pub(super) config: Option<Config>,
    /// Its file.
    pub(super) file: Option<PathBuf>,
    /// In place of the configured one.
    pub(super) data_dir: Option<PathBuf>,
    pub(super) unit: String,
    pub(super) verify: bool,
}

impl Scene {
    fn data_dir(&self) -> &Path {
        let configured = self.config.as_ref().map(|config| config.agent.data_dir.as_path());
        let named = self.data_dir.as_deref().or(configured);
        named.unwrap_or(Path::new("/var/lib/fieldpost"))
    }

    /// Options that lead another command to the same agent.
    fn config_options(&self) -> Vec<OsString> {
        self.file.iter().flat_map(|file| ["--config".into(), file.clone().into_os_string()]).collect()
    }

    fn data_options(&self) -> Vec<OsString> {
        match (&self.data_dir, &self.config) {
            (None, Some(_)) => self.config_options(),
            _ => vec!["--data-dir".into(), self.data_dir().into()],
        }
    }
}

/// Makes every part, one after the other; `say` hears of each before it begins.
pub(super) async fn all(scene: &Scene, say: &mut impl FnMut(&str)) -> Vec<Part> {
    let (dir, config, data) = (scene.data_dir(), scene.config_options(), scene.data_options());
    let pid = match probe::owner(&dir.join("buffer")) {
        Ok(Owner::Process(pid)) => pid,
        _ => None,
    };
    let mut parts: Vec<Part> = Vec::new();
    let mut add = |name: &'static str, part| parts.push((name, part));
    say("versions");
    add("versions", Ok(machine::versions()));
    add("libc", program("getconf", &["GNU_LIBC_VERSION"], SHORT).await);
    add("systemd", program("systemctl", &["--version"], SHORT).await);
    add("clock", Ok(machine::clock()));
    add("memory", machine::memory());
    say("configuration");
    add("configuration", own(&["config"], &config, SHORT).await);
    add("check --offline", own(&["check", "--offline"], &config, SHORT).await);
    say("status");
    add("status of the running agent", status(scene.config.as_ref()).await);
    add("buffer status", own(&["buffer", "status", "--json"], &data, SHORT).await);
    add("ledger", machine::file(&dir.join("LEDGER")));
    if scene.verify {
        say("buffer verify, at most a minute");
        add("buffer verify", own(&["buffer", "verify"], &data, VERIFY).await);
    }
    add("process", machine::process(pid));
    add("disk", machine::disk(dir));
    add("files", machine::listing(dir));
    say("unit and log");
    let unit = ["show", &scene.unit, "--no-pager", "--property", UNIT_PROPERTIES];
    add("unit", program("systemctl", &unit, SHORT).await);
    let log = [
        "--unit",
        &scene.unit,
        "--lines",
        LOG_LINES,
        "--reverse",
        "--no-pager",
        "--output",
        "short-iso-precise",
    ];
    add("log, newest first", program("journalctl", &log, LOG).await);
    parts
}

/// What another command of this program says.
async fn own(words: &[&str], options: &[OsString], bounds: Bounds) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program is not found: {error}"))?;
    let mut command = Command::new(program);
    command.args(words).args(options);
    output(command, bounds).await
}

async fn program(name: &str, words: &[&str], bounds: Bounds) -> Result<String, String> {
    let mut command = Command::new(name);
    command.args(words.iter().map(OsStr::new));
    // Secrets that came as variables are none of their business.
    for (variable, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FIELDPOST_"))
    {
        command.env_remove(variable);
    }
    output(command, bounds).await.map_err(|why| format!("{name}: {why}"))
}

/// What the program said, also where it ended with a code that says that something is wrong.
async fn output(command: Command, bounds: Bounds) -> Result<String, String> {
    let (ended, output) = child::run(command, bounds, &CancellationToken::new()).await;
    let text = String::from_utf8_lossy(&output).into_owned();
    match ended {
        Ended::Exited(status) if status.success() => Ok(text),
        Ended::Exited(status) if !text.trim().is_empty() => Ok(format!("{}\n({status})\n", text.trim_end())),
        Ended::Exited(status) => Err(status.to_string()),
        Ended::Overdue | Ended::Stopped => {
            Err(format!("not done within {} s, was killed; until then:\n{text}", bounds.time.as_secs()))
        }
        Ended::Failed(error) => Err(error.to_string()),
    }
}

/// `/status` of the running agent, if it serves HTTP.
async fn status(config: Option<&Config>) -> Result<String, String> {
    let config = config.ok_or("the configuration is invalid")?;
    let options = config.http.as_ref().ok_or("http.listen is not set; see the buffer's status")?;
    let place = Place::of(options)?;
    let answer = place.get("/status").await.map_err(|error| format!("{place}/status: {error}"))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
