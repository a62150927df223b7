//! The agent: builds the stages in dependency order, supervises them, stops them in order. With `stages`,
//! which starts each of them, the only one that knows all modules.
//!
//! Start: signals, socket, buffer, producer, then the stages; READY when all of them run. Stop, on the first signal or
//! when a stage ends by itself: inputs (what they read is settled and answered), drain (within `agent.stop_grace`),
//! pings and HTTP, losses (the last ones are counted), buffer. A second signal ends everything at once; what was acknowledged is
//! on disk all the same.

mod stages;

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::alive;
use crate::buffer::{self, Buffer, WriterThread};
use crate::cli::exit;
use crate::config::{Config, ConfigErrors};
use crate::drain::DrainError;
use crate::ingest::{Admission, unix};
use crate::sink::ProducerError;
use crate::sink::kafka::KafkaProducer;
use crate::stats::Stats;
use crate::status::{Facts, Overview};
use crate::system::{self, Clock, Notifier, SetBack, Signals};

/// Time between two status lines.
const STATUS_INTERVAL: Duration = Duration::from_secs(60);

/// Time between two looks whether the wall clock was set back, and between two samples for the rates of the status.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);

/// How much longer than one append the inputs may take to settle what they have read.
const INPUT_GRACE: Duration = Duration::from_secs(3);

/// How long the Redis sink may take for its last pipelines; it bounds itself by twice `redis.timeout`.
const PING_GRACE: Duration = Duration::from_secs(5);

/// How long the last sync may take before the service manager may lose its patience; the agent itself waits for it.
const CLOSE_GRACE: Duration = Duration::from_secs(10);

/// Name of the one stage without which nothing can be stopped in order.
const BUFFER: &str = "buffer";

/// Why the agent did not start or did not end in order. The exit code says what the service manager should do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AgentError {
    /// There is nowhere to deliver to.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] unix::UnixError),
    /// The buffer cannot be opened.
    #[error("the buffer cannot be opened: {0}")]
    Buffer(#[from] buffer::OpenError),
    /// librdkafka refuses its settings.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// The operating system refuses signals or a runtime.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    /// A stage ended that should run for ever.
    #[error("{stage} ended: {reason}")]
    Stage {
        /// Which one.
        stage: &'static str,
        /// Its error, or that it panicked.
        reason: String,
    },
    /// Another agent has this one's name. By the exit code the service manager does not start it again: the two would
    /// take the name from each other for ever.
    #[error("{0}")]
    Twin(DrainError),
    /// The buffer did not close in order.
    #[error(transparent)]
    Close(#[from] buffer::CloseError),
    /// The wall clock was set back, and the program cannot be started again in place.
    #[error("the wall clock was set back by {seconds} s and the agent cannot start itself again: {error}")]
    ClockSetBack {
        /// How far.
        seconds: u64,
        /// Why not.
        error: std::io::Error,
    },
    /// A second signal came before the stop was through.
    #[error("stopped at once by a second signal; everything acknowledged is on disk")]
    Forced,
}

impl AgentError {
    fn stage(stage: &'static str, reason: &dyn std::fmt::Display) -> Self {
        Self::Stage { stage, reason: reason.to_string() }
    }

    /// The exit code, by sysexits.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Producer(_) | Self::Twin(_) => exit::CONFIG,
            Self::Socket(_) | Self::Buffer(_) | Self::Close(_) => exit::STORAGE,
            Self::System(_) | Self::Forced | Self::ClockSetBack { .. } => exit::TEMPORARY,
            Self::Stage { .. } => exit::BUG,
        }
        .into()
    }
}

/// Everything that can fail at the start has been done.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    stats: Arc<Stats>,
    listener: Option<unix::Listener>,
    handed_over: Option<OwnedFd>,
    buffer: Buffer,
    writer: WriterThread,
    producer: KafkaProducer,
}

/// Stages with their names; how one ended is its value.
type Stages = JoinSet<(&'static str, Result<(), AgentError>)>;

/// The stages of one step of the stop, and the token that ends them.
#[derive(Debug, Default)]
struct Step {
    stages: Stages,
    stop: CancellationToken,
}

/// The agent at work.
#[derive(Debug)]
struct Running {
    inputs: Step,
    drain: Step,
    pings: Step,
    losses: Step,
    http: Step,
    uplink: Step,
    heartbeat: Stages,
    overview: Arc<Overview>,
    /// The service manager's socket, for a start of the agent by itself.
    handed_over: Option<OwnedFd>,
    buffer: Buffer,
    notifier: Arc<Notifier>,
    append_timeout: Duration,
    stop_grace: Duration,
}

/// How the buffer's writer ends; awaited beside the stages.
type WriterEnd = Pin<Box<dyn Future<Output = Result<(), buffer::CloseError>>>>;

/// Why the agent stops.
#[derive(Debug)]
enum End {
    Signal,
    Failure(AgentError),
    /// By so many seconds.
    ClockSetBack(u64),
}

impl Agent {
    /// Binds the socket, opens the buffer, starts the producer. Blocks; to be called before other threads run, since
    /// it takes inherited sockets.
    ///
    /// # Errors
    /// [`AgentError`]: nothing runs, nothing was lost.
    pub fn build(config: Config) -> Result<Self, AgentError> {
        let kafka = config.kafka()?.clone();
        let stats = Arc::new(Stats::default());
        if config.unix.is_none() {
            unix::leave_unserved();
        }
        let listener = config.unix.as_ref().map(unix::bind).transpose()?;
        let handed_over = listener.as_ref().map(unix::Listener::handed_over).transpose()?.flatten();
        let (buffer, writer) = Buffer::open(&config.buffer, system::boot_id(), Arc::default())?;
        let figures = buffer.figures();
        tracing::info!(
            dir = %config.buffer.dir.display(),
            log = %buffer.log().id,
            epoch = buffer.log().epoch,
            events = figures.waiting(),
            bytes = figures.disk_bytes,
            "buffer open"
        );
        let producer = KafkaProducer::start(kafka, Arc::clone(&stats))?;
        Ok(Self { config, stats, listener, handed_over, buffer, writer, producer })
    }

    /// Runs until a signal or until a stage fails, and stops in order. `signals` are those of the whole life of the
    /// process: one that came before ends it right away, in order.
    ///
    /// # Errors
    /// [`AgentError`]; its exit code is the process's.
    ///
    /// Cancel safe: no, it owns the process.
    pub async fn run(self, mut signals: Signals) -> Result<(), AgentError> {
        let (mut running, mut writer) = self.start();
        let failure = match running.supervise(&mut signals, &mut writer).await {
            End::Signal => None,
            End::Failure(failure) => Some(failure),
            End::ClockSetBack(seconds) => running.start_again(writer, seconds).await,
        };
        if let Some(failure) = &failure {
            tracing::error!(%failure, "stopping because a stage ended");
        }
        if matches!(failure, Some(AgentError::Stage { stage: BUFFER, .. })) {
            // Nothing can be settled without the buffer.
            return failure.map_or(Ok(()), Err);
        }
        let stopped = tokio::select! {
            stopped = running.stop(writer) => stopped,
            _ = signals.stop_requested() => return Err(AgentError::Forced),
        };
        failure.map_or(stopped, Err)
    }

    /// Starts every stage and tells the service manager.
    fn start(self) -> (Running, WriterEnd) {
        let Self { config, stats, listener, handed_over, buffer, writer, producer } = self;
        let notifier = Arc::new(Notifier::from_env());
        let overview = Arc::new(Overview::new(facts(&config), Arc::clone(&stats), buffer.clone()));
        let (mut inputs, mut drain, mut pings) = (Step::default(), Step::default(), Step::default());
        let (early, late) = stages::ping_ways(config.redis.clone(), &stats, &mut pings);
        let (drain_asker, alive) = alive::pair();
        stages::spawn_drain(&mut drain, (producer, alive), &config, &buffer, &stats, late);
        let admission = Admission::new(
            buffer.clone(),
            config.limits.event_bytes_max,
            config.routes.clone(),
            Arc::new(Clock::default()),
            Arc::clone(&stats),
            early,
        );
        let losses = stages::spawn_losses(&config, &buffer, &stats);
        let http = stages::spawn_http(&config, &buffer, &overview, &inputs.stop);
        let uplink = stages::spawn_uplink(config.uplink, &stats);
        stages::spawn_inputs(&mut inputs, config.mqtt, config.unix.zip(listener), &admission, &overview);
        if inputs.stages.is_empty() {
            tracing::warn!("no input is configured: set unix.path or mqtt.url");
        }
        let mut heartbeat = Stages::new();
        if let Some(every) = notifier.watchdog_interval() {
            stages::spawn_heartbeat(
                &mut heartbeat,
                every,
                Arc::clone(&notifier),
                buffer.clone(),
                drain_asker,
            );
        }
        notifier.ready();
        tracing::info!(agent = %config.agent.id, "ready");
        let append_timeout = config.limits.append_timeout;
        let stop_grace = config.agent.stop_grace;
        let running = Running {
            inputs,
            drain,
            pings,
            losses,
            http,
            uplink,
            heartbeat,
            overview,
            handed_over,
            buffer,
            notifier,
            append_timeout,
            stop_grace,
        };
        (running, Box::pin(writer.ended()))
    }
}

impl Running {
    /// Watches over the stages until there is a reason to stop.
    async fn supervise(&mut self, signals: &mut Signals, writer: &mut WriterEnd) -> End {
        let clock = Clock::default();
        let mut set_back = SetBack::new(clock.now());
        let mut look = interval_at(Instant::now() + CLOCK_INTERVAL, CLOCK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut status = interval_at(Instant::now() + STATUS_INTERVAL, STATUS_INTERVAL);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = signals.stop_requested() => {
                    tracing::info!(signal, "stopping");
                    return End::Signal;
                }
                Some(ended) = self.inputs.stages.join_next() => return End::Failure(failure(ended)),
                Some(ended) = self.drain.stages.join_next() => return End::Failure(failure(ended)),
                Some(ended) = self.pings.stages.join_next() => return End::Failure(failure(ended)),
                Some(ended) = self.losses.stages.join_next() => return End::Failure(failure(ended)),
                Some(ended) = self.http.stages.join_next() => return End::Failure(failure(ended)),
                Some(ended) = self.uplink.stages.join_next() => return End::Failure(failure(ended)),
                Some(ended) = self.heartbeat.join_next() => return End::Failure(failure(ended)),
                ended = &mut *writer => {
                    let reason = ended.map_or_else(|e| e.to_string(), |()| "closed".into());
                    return End::Failure(AgentError::stage(BUFFER, &reason));
                }
                _ = look.tick() => {
                    self.overview.sample();
                    if let Some(back) = set_back.look(clock.now()) {
                        return End::ClockSetBack(back.as_secs());
                    }
                }
                _ = status.tick() => {
                    let line = self.overview.look().line();
                    tracing::info!("{line}");
                    self.notifier.status(&line);
                }
            }
        }
    }

    /// Starts the program again in the same process. librdkafka's threads wait for times on the wall clock
    /// (`cnd_timedwait`, C11 7.26.3.5): set back by hours, they wait for hours longer, and cannot be ended either. What
    /// was taken is settled first; what was sent and not confirmed goes out again.
    async fn start_again(&mut self, writer: WriterEnd, seconds: u64) -> ! {
        tracing::warn!(
            seconds,
            "the wall clock was set back: the agent starts itself again, because librdkafka waits on it"
        );
        let uplink = std::mem::take(&mut self.uplink).end(INPUT_GRACE);
        let inputs = std::mem::take(&mut self.inputs).end(self.append_timeout + INPUT_GRACE);
        if let (Err(error), _) = tokio::join!(inputs, uplink) {
            tracing::warn!(%error, "an input did not end in order");
        }
        // Order: as at a stop, behind the inputs that count, before the buffer that keeps it.
        if let Err(error) = std::mem::take(&mut self.losses).end(INPUT_GRACE).await {
            tracing::warn!(%error, "the last losses may not be counted");
        }
        self.buffer.close().await;
        if let Err(error) = writer.await {
            tracing::warn!(%error, "the buffer did not close in order");
        }
        let failure =
            AgentError::ClockSetBack { seconds, error: system::start_again(self.handed_over.take()) };
        tracing::error!(%failure, "stopping: the program cannot be started again in place");
        // Not by returning: what would be dropped on the way waits for those threads.
        std::process::exit(exit::TEMPORARY.into())
    }

    /// Stops in order; the first failure counts.
    async fn stop(self, writer: WriterEnd) -> Result<(), AgentError> {
        self.notifier.stopping(stop_longest(self.append_timeout, self.stop_grace));
        // A command that is killed takes no longer than the inputs.
        let (settled, killed) =
            tokio::join!(self.inputs.end(self.append_timeout + INPUT_GRACE), self.uplink.end(INPUT_GRACE));
        // The drain bounds itself by `agent.stop_grace`; its last commit waits for the disk.
        let drained = self.drain.end(self.stop_grace + INPUT_GRACE).await;
        // HTTP says how the stop goes until here; what it holds of the buffer closes with it.
        let (pinged, unserved) = tokio::join!(self.pings.end(PING_GRACE), self.http.end(PING_GRACE));
        // Order: behind everything that counts, before the buffer that keeps it.
        let counted = self.losses.end(INPUT_GRACE).await;
        let mut heartbeat = self.heartbeat;
        heartbeat.shutdown().await;
        self.buffer.close().await;
        let closed = writer.await.map_err(AgentError::from);
        tracing::info!("{}", self.overview.look().line());
        closed.and(drained).and(settled).and(killed).and(pinged).and(unserved).and(counted)
    }
}

/// The longest orderly stop: each step of [`Running::stop`], one after the other.
fn stop_longest(append_timeout: Duration, stop_grace: Duration) -> Duration {
    [append_timeout + INPUT_GRACE, stop_grace + INPUT_GRACE, PING_GRACE, INPUT_GRACE, CLOSE_GRACE]
        .iter()
        .sum()
}

impl Step {
    /// Stops its stages and waits for them, not longer than `grace`.
    async fn end(mut self, grace: Duration) -> Result<(), AgentError> {
        self.stop.cancel();
        let all = async {
            let mut result = Ok(());
            while let Some(ended) = self.stages.join_next().await {
                if !matches!(ended, Ok((_, Ok(())))) {
                    result = result.and(Err(failure(ended)));
                }
            }
            result
        };
        match timeout(grace, all).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!(grace_ms = grace.as_millis(), "a stage did not stop in time and is dropped");
                self.stages.shutdown().await;
                Ok(())
            }
        }
    }
}

fn facts(config: &Config) -> Facts {
    let buffer::Options { dir, agent, bytes_max, free_min, .. } = config.buffer.clone();
    Facts { agent, dir, bytes_max, free_min }
}

fn failure(ended: Result<(&'static str, Result<(), AgentError>), JoinError>) -> AgentError {
    match ended {
        Ok((_, Err(error))) => error,
        Ok((stage, Ok(()))) => AgentError::stage(stage, &"without a reason"),
        Err(error) => AgentError::stage("a stage", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = include_str!("../deploy/systemd/fieldpost.service");

    fn setting(name: &str) -> &'static str {
        let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let value = values.next().unwrap();
        assert_eq!(values.next(), None, "{name} stands once");
        value
    }

    #[test]
    fn the_unit_gives_the_stop_its_time_and_gives_up_what_wants_a_human() {
        let config = Config::load(None, std::iter::empty()).unwrap().config;
        let longest = stop_longest(config.limits.append_timeout, config.agent.stop_grace);
        let given: u64 = setting("TimeoutStopSec").strip_suffix('s').unwrap().parse().unwrap();
        assert!(longest <= Duration::from_secs(given), "{longest:?}");
        assert_eq!(setting("RestartPreventExitStatus"), format!("{} {}", exit::USAGE, exit::CONFIG));
    }
}
