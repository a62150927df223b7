//! The command that is run while Kafka stays unreachable: to reset a modem, to switch to another line.
//!
//! # The promise
//! - Nothing waits for it: it runs beside everything else, and the agent needs neither its success nor its end.
//! - One at a time, not sooner than [`Options::repeat`] after the one before, whatever outage that was for.
//! - It never outlives the agent's stop nor [`Options::timeout`]: then it is killed with its process group.
//! - No shell: the program gets its arguments as they stand, an empty standard input and no environment but
//!   `FIELDPOST_AGENT_ID` and `FIELDPOST_DOWN_SECONDS`. Of its output the first [`OUTPUT_BYTES_MAX`] bytes are logged.
//!
//! # What it does not do
//! It decides nothing: no retry of a command that failed, no look at other links. A program that leaves the process group
//! and closes its output is on its own.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access, access};
use tokio::process::Command;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::child::{self, Bounds, Ended};
use crate::stats::{LinkState, Stats};
use crate::system::Clock;

/// Longest time between two looks at a link that is down: what is waited for is time since boot, and a timer stands still
/// while the machine sleeps. A link that is up is not looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Most bytes of a command's output that reach the log: a message, not a transcript.
pub const OUTPUT_BYTES_MAX: usize = 2048;

/// What is run, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// How long Kafka must have been unreachable, from a second.
    pub after: Duration,
    /// Shortest time between the starts of two commands, from a second.
    pub repeat: Duration,
    /// Longest run, from a second.
    pub timeout: Duration,
    /// `agent.id`, which the command is told.
    pub agent: String,
}

impl Options {
    /// Whether the program is a file that this process may run.
    ///
    /// # Errors
    /// Why not.
    pub fn is_executable(&self) -> io::Result<()> {
        if !std::fs::metadata(&self.program)?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        Ok(access(&self.program, Access::EXEC_OK)?)
    }
}

/// Watches Kafka's link and runs the command when it is due, until `stop`; then a command that runs is killed and gone, or
/// two seconds have passed.
///
/// Cancel safe: no. Dropping it kills the program and leaves what that has started.
pub async fn run(options: Options, stats: Arc<Stats>, stop: CancellationToken) {
    let clock = Clock::default();
    let mut watch = Watch { after: options.after, repeat: options.repeat, last_us: None };
    loop {
        // Order: before the look, so that no change is missed.
        let changed = stats.kafka.changed();
        let is_down = stats.kafka.get() == LinkState::Down;
        let down_since = stats.kafka.since_boot_us().filter(|_| is_down);
        let wait = match watch.due(down_since, clock.now().boot_us) {
            _ if stop.is_cancelled() => return,
            Due::Now(down) => {
                run_command(&options, down, &stats, &stop).await;
                continue;
            }
            Due::In(time) => Some(time.min(LOOK)),
            Due::Never => None,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed => {}
            () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

async fn run_command(options: &Options, down: Duration, stats: &Stats, stop: &CancellationToken) {
    stats.uplink_runs.add(1);
    let bounds = Bounds { time: options.timeout, output_bytes: OUTPUT_BYTES_MAX };
    let (ended, output) = child::run(command(options, down), bounds, stop).await;
    if !matches!(&ended, Ended::Exited(status) if status.success()) && !matches!(ended, Ended::Stopped) {
        stats.uplink_failures.add(1);
    }
    tell(options, down, &ended, &printable(&output));
}

/// When a command is due.
#[derive(Debug)]
struct Watch {
    after: Duration,
    repeat: Duration,
    /// When the last one was due, microseconds since boot.
    last_us: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Kafka has been away for so long.
    Now(Duration),
    /// If it stays away.
    In(Duration),
    /// While it is there.
    Never,
}

impl Watch {
    /// When a command is due. Now counts as taken.
    fn due(&mut self, down_since_us: Option<u64>, now_us: u64) -> Due {
        let since = |us: u64| Duration::from_micros(now_us.saturating_sub(us));
        let Some(down) = down_since_us.map(since) else { return Due::Never };
        let pause = self.last_us.map_or(Duration::ZERO, |last| self.repeat.saturating_sub(since(last)));
        let wait = self.after.saturating_sub(down).max(pause);
        if !wait.is_zero() {
            return Due::In(wait);
        }
        self.last_us = Some(now_us);
        Due::Now(down)
    }
}

/// The program with nothing but what it is to know.
fn command(options: &Options, down: Duration) -> Command {
    let mut command = Command::new(&options.program);
    command
        .args(&options.arguments)
        .env_clear()
        .env("FIELDPOST_AGENT_ID", &options.agent)
        .env("FIELDPOST_DOWN_SECONDS", down.as_secs().to_string());
    command
}

fn tell(options: &Options, down: Duration, ended: &Ended, output: &str) {
    let (program, down_s) = (options.program.display(), down.as_secs());
    match ended {
        Ended::Exited(status) if status.success() => {
            tracing::info!(%program, down_s, output, "Kafka is unreachable: uplink.command was run");
        }
        Ended::Exited(status) => {
            tracing::warn!(%program, %status, down_s, output, "uplink.command ended with an error");
        }
        Ended::Overdue => {
            let timeout_s = options.timeout.as_secs();
            tracing::warn!(%program, timeout_s, down_s, output, "uplink.command took too long and was killed");
        }
        Ended::Stopped => tracing::info!(%program, "uplink.command was killed, because the agent stops"),
        Ended::Failed(error) => tracing::error!(%program, %error, "uplink.command cannot be run"),
    }
}

/// Output on one line of the log.
fn printable(output: &[u8]) -> String {
    String::from_utf8_lossy(output).trim_end().chars().flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::time::timeout;

    use super::*;

    fn options(script: &str) -> Options {
        Options {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            after: Duration::from_secs(1),
            repeat: Duration::from_secs(60),
            timeout: Duration::from_secs(1),
            agent: "gateway-17".into(),
        }
    }

    async fn executed(options: &Options, stop: &CancellationToken) -> (Ended, String) {
        let bounds = Bounds { time: options.timeout, output_bytes: OUTPUT_BYTES_MAX };
        let (ended, output) = child::run(command(options, Duration::from_secs(90)), bounds, stop).await;
        (ended, printable(&output))
    }

    #[test]
    fn a_command_is_due_after_a_while_and_seldom_again() {
        let seconds = |n: u64| n * 1_000_000;
        let mut watch =
            Watch { after: Duration::from_secs(900), repeat: Duration::from_secs(3600), last_us: None };
        let mut due = |since: Option<u64>, now: u64| watch.due(since.map(seconds), seconds(now));
        let now = |seconds| Due::Now(Duration::from_secs(seconds));
        let wait = |seconds| Due::In(Duration::from_secs(seconds));
        assert_eq!(
            (due(None, 5_000), due(Some(100), 100), due(Some(100), 999)),
            (Due::Never, wait(900), wait(1))
        );
        assert_eq!(due(Some(100), 1_000), now(900));
        assert_eq!((due(Some(100), 1_001), due(Some(100), 4_599)), (wait(3_599), wait(1)));
        // Kafka was there in between: the pause between two commands holds all the same.
        assert_eq!(
            (due(None, 4_600), due(Some(4_500), 4_590), due(Some(4_500), 5_000)),
            (Due::Never, wait(810), wait(400))
        );
        assert_eq!(due(Some(4_500), 5_400), now(900));
        assert_eq!(due(Some(4_500), 9_000), now(4_500));
    }

    #[tokio::test]
    async fn a_link_that_goes_down_is_noticed_without_looking() {
        let stats = Arc::new(Stats::default());
        stats.kafka.set(LinkState::Up);
        let stop = CancellationToken::new();
        let outage = async {
            tokio::task::yield_now().await;
            stats.kafka.set(LinkState::Down);
            while stats.uplink_runs.get() == 0 {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        let both = async { tokio::join!(run(options("true"), Arc::clone(&stats), stop.clone()), outage) };
        timeout(Duration::from_secs(30), both).await.expect("a link that is up is not looked at");
    }

    #[tokio::test]
    async fn it_gets_its_arguments_two_variables_and_nothing_else() {
        let never = CancellationToken::new();
        let script =
            options("echo \"$FIELDPOST_AGENT_ID $FIELDPOST_DOWN_SECONDS ${HOME-none}\"; echo no >&2; exit 3");
        let (ended, output) = executed(&script, &never).await;
        assert!(matches!(ended, Ended::Exited(status) if status.code() == Some(3)), "{ended:?}");
        assert_eq!(output, "gateway-17 90 none\\nno");
        let missing = Options { program: "/nonexistent/reset".into(), ..script };
        assert!(matches!(executed(&missing, &never).await, (Ended::Failed(_), _)));
    }

    #[tokio::test]
    async fn more_output_than_fits_holds_nothing_up() {
        let script =
            Options { timeout: Duration::from_secs(60), ..options("head -c 1000000 /dev/zero | tr '\\0' x") };
        let (ended, output) = executed(&script, &CancellationToken::new()).await;
        assert!(matches!(ended, Ended::Exited(status) if status.success()), "{ended:?}");
        assert_eq!(output, "x".repeat(OUTPUT_BYTES_MAX));
    }

    /// Whether a process that prints its id runs.
    fn runs(id: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // A zombie waits for a parent that is no business of this.
        !stat.is_empty() && !stat.contains(") Z ")
    }

    /// A signal takes its time.
    async fn gone(id: &str) {
        let watch = async {
            while runs(id) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), watch).await.unwrap_or_else(|_| panic!("{id} runs"));
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_what_it_started() {
        // The shell ends, what it started holds the output.
        for script in ["sleep 60 & echo $!", "sleep 60 & echo $!; wait"] {
            let (ended, output) = executed(&options(script), &CancellationToken::new()).await;
            assert!(matches!(ended, Ended::Overdue), "{ended:?}");
            assert!(!output.is_empty());
            gone(&output).await;
        }
    }

    #[tokio::test]
    async fn a_stop_ends_it_at_once_and_none_is_begun() {
        let stats = Arc::new(Stats::default());
        stats.kafka.set(LinkState::Down);
        let folder = tempfile::tempdir().unwrap();
        let begun = folder.path().join("begun");
        let script = format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 60", begun.display());
        let stop = CancellationToken::new();
        let slow = Options { timeout: Duration::from_secs(60), ..options(&script) };
        let at = Instant::now();
        let watcher = async {
            while !begun.exists() {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        tokio::join!(run(slow, Arc::clone(&stats), stop.clone()), watcher);
        assert!(at.elapsed() < Duration::from_secs(30));
        gone(std::fs::read_to_string(&begun).unwrap().trim()).await;
        assert_eq!((stats.uplink_runs.get(), stats.uplink_failures.get()), (1, 0));
        run(options("true"), Arc::clone(&stats), stop).await;
        assert_eq!(stats.uplink_runs.get(), 1);
    }
}
