//! `fieldpost demo`: the agent's main job in under half a minute, with nothing installed, and a verdict.
//!
//! The promise: the verdict is reached from outside. The agent is the real binary in a process of its own with its
//! default settings, on a real socket and a real folder; the sensors keep book of what was acknowledged to them, an
//! independent consumer of what Kafka holds, and the two books are compared event by event. Kafka alone is played
//! (`cluster`). A killed process loses nothing that the kernel has, so this shows nothing about power cuts.
//!
//! Parts: `story` is the order of events, `agent` the child process, `sensors` and `consumer` are the two books,
//! `report` compares them, `progress` is what is said meanwhile. Every thread is joined before the command ends.

mod agent;
mod cluster;
mod consumer;
mod progress;
mod report;
mod sensors;
mod story;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;

use crate::cli::{exit, load, text};
use crate::config::{Config, ConfigErrors};
use crate::stats::{Counter, Gauge};
use agent::Home;
use cluster::Cluster;
use progress::Progress;
use report::Verdict;
use story::Story;

/// The verdict is that something is missing or out of order.
const EXIT_FAILED: u8 = 1;
/// By convention: 128 and the number of SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

/// Simulated sensors.
const SOURCES: usize = 20;

/// The part of the sending time that Kafka is away: 6 of 20 seconds; and the bounds of the outage.
const OUTAGE_SHARE: f64 = 0.3;
const OUTAGE_MAX: Duration = Duration::from_secs(60);

/// Show what the agent does, with nothing installed: sensors, an outage, a kill -9, and a verdict.
///
/// Twenty simulated sensors send readings to the Unix socket of a real agent. After a while Kafka goes away. In the
/// middle of that outage the agent is killed with SIGKILL, at the very moment a sensor gets an acknowledgement, and
/// started again. Kafka comes back, the backlog drains, the agent is stopped. Then a consumer's count of the topic is compared with what was acknowledged to the sensors,
/// event by event, and the demo fails if a single acknowledged event is missing or out of order.
///
/// Kafka is played by librdkafka's mock cluster on a free port of this machine; everything else is real. Files are in
/// a temporary folder ($TMPDIR, else /tmp), which is removed at the end. Neither a configuration file nor FIELDPOST_
/// variables of the environment count.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// How long the sensors send; the whole takes some 5 seconds more
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(6..=3600))]
    seconds: u32,
    /// Events a second, of all sensors together
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(20..=20_000))]
    rate: u32,
    /// Also ping this Redis (6 or later, without login) and count the pings, such as redis://127.0.0.1:6379
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Keep the temporary folder: configuration, log and data of the agent
    #[arg(long)]
    keep: bool,
    /// Print the verdict as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  fieldpost demo
  fieldpost demo --seconds 60 --rate 5000
  fieldpost demo --redis redis://127.0.0.1:6379
  fieldpost demo --json | jq .lost

What the verdict counts:
  acknowledged     the agent said {\"ack\":n}: from then on it must never be lost
  in flight        sent and not acknowledged when the agent was killed: the sensor sends it
                   again with the same id, as any producer should
  duplicates       records sent again by the agent because it was killed before it had Kafka's
                   confirmation; a consumer drops them by remembering one position (epoch, seq)
                   per agent, log and partition
  stored twice     in flight at the kill and stored all the same, so that the sensor's second
                   copy has a position of its own; a consumer that minds compares ids
  lost             acknowledged and not in Kafka; one is enough to fail

Exit codes:
  0    passed                               74  the temporary folder cannot be used
  1    failed; the folder is kept           75  the demo could not be played to its end
  64   wrong use of this command            130 interrupted";

/// What is played.
#[derive(Debug, Default)]
struct Plan {
    /// Names this run: in ids, sources and the folder.
    run: String,
    sources: usize,
    rate: u32,
    /// How long the sensors send.
    sending: Duration,
    has_redis: bool,
}

impl Plan {
    /// When Kafka goes, when the agent is killed, when Kafka comes back; from the first event on.
    fn times(&self) -> [Duration; 3] {
        let outage = self.sending.mul_f64(OUTAGE_SHARE).min(OUTAGE_MAX);
        let from = self.sending / 4;
        [from, from + outage / 2, from + outage]
    }

    /// More events than one source can reach.
    fn events_max(&self) -> usize {
        let seconds = usize::try_from(self.sending.as_secs()).unwrap_or(usize::MAX);
        seconds.saturating_mul(self.rate as usize).div_ceil(self.sources.max(1)) + 16
    }
}

/// What everybody sees meanwhile.
#[derive(Debug, Default)]
struct Shared {
    figures: Figures,
    /// Everything has to end now.
    stop: Flag,
    /// Nothing is written to the topic any more.
    is_agent_gone: Flag,
    /// The agent's process while it is to be killed.
    target: Mutex<Option<Pid>>,
}

impl Shared {
    fn target(&self) -> MutexGuard<'_, Option<Pid>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An acknowledgement has just come: the moment at which a kill hurts most, because an agent that acknowledges
    /// before its sync has not got any further.
    fn acknowledgement_came(&self) {
        if let Some(process) = self.target().take() {
            // An error means that it is gone already.
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

#[derive(Debug, Default)]
struct Figures {
    sent: Counter,
    acknowledged: Counter,
    refused: Counter,
    /// On their way when a connection broke.
    in_flight: Counter,
    /// Read from Kafka.
    records: Gauge,
    /// Read from Kafka, distinct.
    events: Gauge,
    pings: Arc<Counter>,
}

/// Set once, and to be waited for.
#[derive(Debug, Default)]
struct Flag {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_set(&self) -> bool {
        *self.lock()
    }

    fn set(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    /// Waits until it is set, not longer than `limit`.
    fn wait(&self, limit: Duration) {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |is_set| !*is_set);
        drop(waited);
    }
}

/// Sets the flag when it goes, so that threads end whatever happens.
struct SetOnDrop<'a>(&'a Flag);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// Why there is no verdict. The message goes to the person at the terminal.
#[derive(Debug, Error)]
#[non_exhaustive]
enum Failure {
    /// Exit code 74.
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// Exit code 64: --redis, or a $TMPDIR too long for a socket.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// Exit code 75.
    #[error("the mock Kafka cluster: {0}")]
    Kafka(String),
    /// Exit code 75.
    #[error("cannot listen for pings: {0}")]
    Redis(#[from] crate::sink::redis::RedisError),
    /// Exit code 75.
    #[error("{0}")]
    System(io::Error),
    /// Exit code 75.
    #[error("{what}; its last lines:\n{log}")]
    Agent { what: String, log: String },
    /// Exit code 75.
    #[error("a thread of the demo panicked, which is a bug of the demo")]
    Panicked,
    /// Exit code 130.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source }
    }

    fn kafka(error: impl std::fmt::Display) -> Self {
        Self::Kafka(error.to_string())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => exit::USAGE,
            Self::File { .. } => exit::STORAGE,
            Self::Interrupted => EXIT_INTERRUPTED,
            _ => exit::TEMPORARY,
        }
    }
}

impl Args {
    /// Plays the demo; the code to exit with.
    pub fn run(self) -> ExitCode {
        let played = self.play().and_then(|verdict| {
            let text = if self.json { verdict.json()? } else { verdict.table() };
            Ok((verdict.passed, load::print(&text)))
        });
        match played {
            Ok((true, printed)) => printed,
            Ok((false, _)) => EXIT_FAILED.into(),
            Err(failure) => {
                text::say("fieldpost demo", &failure);
                failure.exit_code().into()
            }
        }
    }

    fn play(&self) -> Result<Verdict, Failure> {
        let began = Instant::now();
        let plan = Plan {
            run: format!("{:06x}", fastrand::u32(..1 << 24)),
            sources: SOURCES,
            rate: self.rate,
            sending: Duration::from_secs(self.seconds.into()),
            has_redis: self.redis.is_some(),
        };
        let shared = Shared::default();
        let mut home = Home::make(&plan, self.keep)?;
        let cluster = Cluster::start()?;
        home.configure(&cluster.brokers(), self.redis.as_deref())?;
        let config = Config::load(Some(&home.config()), std::iter::empty())?.config;
        let story = Story::new(&plan, &shared, &home, &cluster, config.redis, Progress::new(&plan));
        let mut verdict = story.tell()?;
        verdict.seconds = began.elapsed().as_secs_f64();
        home.is_kept |= !verdict.passed;
        if home.is_kept {
            text::say_plainly(format_args!("kept: {}", home.path().display()));
        }
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kill_is_in_the_middle_of_the_outage_and_the_outage_in_the_middle_of_the_sending() {
        for seconds in [6, 20, 3600] {
            let plan = Plan { sending: Duration::from_secs(seconds), ..Plan::default() };
            let [from, kill, to] = plan.times();
            assert_eq!(kill - from, to - kill);
            assert!(from > Duration::ZERO && to < plan.sending.mul_f64(0.6), "{seconds}");
        }
    }
}
