//! The agent: builds the stages in dependency order, supervises them, stops them in order. The only file that knows
//! all modules.
//!
//! Start: socket, buffer, producer, then the stages; READY when all of them run. Stop, on the first signal or when a
//! stage ends by itself: inputs (what they read is settled and answered), drain (within `agent.stop_grace`), pings,
//! buffer. A second signal ends everything at once; what was acknowledged is on disk all the same.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::buffer::{self, Buffer, Run, WriterThread};
use crate::cli::exit;
use crate::config::{Config, ConfigErrors, PingAfter, Redis};
use crate::drain::Drain;
use crate::ingest::{Admission, mqtt, unix};
use crate::ping::Pings;
use crate::sink::kafka::KafkaProducer;
use crate::sink::record::Formatter;
use crate::sink::{self, ProducerError};
use crate::stats::{LinkState, Stats};
use crate::system::{self, Clock, Notifier, Signals};

/// Time between two status lines.
const STATUS_INTERVAL: Duration = Duration::from_secs(60);

/// How much longer than one append the inputs may take to settle what they have read.
const INPUT_GRACE: Duration = Duration::from_secs(3);

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
    /// The buffer did not close in order.
    #[error(transparent)]
    Close(#[from] buffer::CloseError),
    /// A second signal came before the stop was through.
    #[error("stopped at once by a second signal; everything acknowledged is on disk")]
    Forced,
}

impl AgentError {
    /// The exit code, by sysexits.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Producer(_) => exit::CONFIG,
            Self::Socket(_) | Self::Buffer(_) | Self::Close(_) => exit::STORAGE,
            Self::System(_) | Self::Forced => exit::TEMPORARY,
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
    buffer: Buffer,
    writer: WriterThread,
    producer: KafkaProducer,
}

/// The stages, each with its name; how one ended is its value.
type Stages = JoinSet<(&'static str, Result<(), String>)>;

/// One token per step of the stop.
#[derive(Debug, Default)]
struct Stops {
    inputs: CancellationToken,
    drain: CancellationToken,
    pings: CancellationToken,
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
        let listener = config.unix.as_ref().map(unix::bind).transpose()?;
        let (buffer, writer) = Buffer::open(&config.buffer, system::boot_id())?;
        let figures = buffer.figures();
        tracing::info!(
            dir = %config.buffer.dir.display(),
            log = %buffer.log().id,
            epoch = buffer.log().epoch,
            events = figures.durable.0 - figures.cursor.0,
            bytes = figures.disk_bytes,
            "buffer open"
        );
        let producer = KafkaProducer::start(kafka, Arc::clone(&stats))?;
        Ok(Self { config, stats, listener, buffer, writer, producer })
    }

    /// Runs until a signal or until a stage fails, and stops in order.
    ///
    /// # Errors
    /// [`AgentError`]; its exit code is the process's.
    ///
    /// Cancel safe: no, it owns the process.
    pub async fn run(self) -> Result<(), AgentError> {
        let mut signals = Signals::new()?;
        let notifier = Arc::new(Notifier::from_env());
        let stops = Stops::default();
        let append_timeout = self.config.limits.append_timeout;
        let (stats, buffer, writer) = (Arc::clone(&self.stats), self.buffer.clone(), self.writer);
        let mut stages = Stages::new();
        let (mut inputs, mut drain, mut pings) = (Stages::new(), Stages::new(), Stages::new());
        let (early, late) = ping_ways(self.config.redis.clone(), &stats, &mut pings, &stops.pings);
        let admission = Admission::new(
            buffer.clone(),
            self.config.limits.event_bytes_max,
            Arc::new(Clock::default()),
            Arc::clone(&stats),
            early,
        );
        spawn_drain(&mut drain, self.producer, &self.config, &buffer, &stats, late, &stops.drain);
        spawn_inputs(
            &mut inputs,
            self.config.mqtt,
            self.config.unix.zip(self.listener),
            &admission,
            &stops.inputs,
        );
        drop(admission);
        if inputs.is_empty() {
            tracing::warn!("no input is configured: set unix.path or mqtt.url");
        }
        if let Some(every) = notifier.watchdog_interval() {
            spawn_heartbeat(&mut stages, every, Arc::clone(&notifier), buffer.clone());
        }
        let mut writer = Box::pin(writer.ended());
        notifier.ready();
        tracing::info!(agent = %self.config.agent.id, "ready");

        let mut status = interval_at(Instant::now() + STATUS_INTERVAL, STATUS_INTERVAL);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let failure = loop {
            tokio::select! {
                signal = signals.stop_requested() => {
                    tracing::info!(signal, "stopping");
                    break None;
                }
                Some(ended) = inputs.join_next() => break Some(failure(ended)),
                Some(ended) = drain.join_next() => break Some(failure(ended)),
                Some(ended) = pings.join_next() => break Some(failure(ended)),
                Some(ended) = stages.join_next() => break Some(failure(ended)),
                ended = &mut writer => {
                    let reason = ended.map_or_else(|e| e.to_string(), |()| "closed".into());
                    return Err(AgentError::Stage { stage: "buffer", reason });
                }
                _ = status.tick() => {
                    let line = status_line(&stats, &buffer);
                    tracing::info!("{line}");
                    notifier.status(&line);
                }
            }
        };
        if let Some(failure) = &failure {
            tracing::error!(%failure, "stopping because a stage ended");
        }
        notifier.stopping();
        let in_order = async {
            stops.inputs.cancel();
            let settled = end(&mut inputs, append_timeout + INPUT_GRACE).await;
            stops.drain.cancel();
            // The drain bounds itself by `agent.stop_grace`; its last commit waits for the disk.
            let drained = end(&mut drain, self.config.agent.stop_grace + INPUT_GRACE).await;
            stops.pings.cancel();
            let pinged = end(&mut pings, INPUT_GRACE).await;
            stages.shutdown().await;
            buffer.close().await;
            writer.await.map_err(AgentError::from).and(drained).and(settled).and(pinged)
        };
        let stopped = tokio::select! {
            stopped = in_order => stopped,
            _ = signals.stop_requested() => return Err(AgentError::Forced),
        };
        tracing::info!("{}", status_line(&stats, &buffer));
        match failure {
            Some(failure) => Err(failure),
            None => stopped,
        }
    }
}

/// Starts the Redis sink and answers the ways to it: right after the sync, or after Kafka.
fn ping_ways(
    redis: Option<Redis>,
    stats: &Arc<Stats>,
    pings: &mut Stages,
    stop: &CancellationToken,
) -> (Option<Pings>, Option<Pings>) {
    let Some(Redis { options, channel, ping_after }) = redis else { return (None, None) };
    let (queue, waiting) = mpsc::channel(options.queue_max);
    let way = Pings { queue, channel, stats: Arc::clone(stats) };
    let (stats, stop) = (Arc::clone(stats), stop.clone());
    pings.spawn(async move {
        let Ok(()) = sink::redis::run(options, waiting, stats, stop).await;
        ("redis sink", Ok(()))
    });
    match ping_after {
        PingAfter::Durable => (Some(way), None),
        PingAfter::Delivered => (None, Some(way)),
    }
}

fn spawn_drain(
    drain: &mut Stages,
    producer: KafkaProducer,
    config: &Config,
    buffer: &Buffer,
    stats: &Arc<Stats>,
    pings: Option<Pings>,
    stop: &CancellationToken,
) {
    let Some(kafka) = &config.kafka else { return };
    let formatter = Formatter::new(&kafka.topic, kafka.timestamp, &config.agent.id, buffer.log().id);
    let stage = Drain::new(buffer.clone(), producer, config.drain, formatter, Arc::clone(stats), pings);
    let stop = stop.clone();
    drain.spawn(async move { ("drain", stage.run(stop).await.map_err(|e| e.to_string())) });
}

fn spawn_inputs(
    inputs: &mut Stages,
    mqtt: Option<mqtt::Options>,
    unix: Option<(unix::Options, unix::Listener)>,
    admission: &Admission,
    stop: &CancellationToken,
) {
    if let Some(options) = mqtt {
        let (admission, stop) = (admission.clone(), stop.clone());
        inputs.spawn(async move {
            ("mqtt input", mqtt::run(options, admission, stop).await.map_err(|e| e.to_string()))
        });
    }
    if let Some((options, listener)) = unix {
        let (admission, stop) = (admission.clone(), stop.clone());
        inputs.spawn(async move {
            ("unix input", unix::run(options, listener, admission, stop).await.map_err(|e| e.to_string()))
        });
    }
}

/// Tells the service manager that the agent makes progress: this task runs, and the writer answers.
fn spawn_heartbeat(stages: &mut Stages, every: Duration, notifier: Arc<Notifier>, buffer: Buffer) {
    stages.spawn(async move {
        loop {
            tokio::time::sleep(every / 2).await;
            let end = *buffer.durable().borrow();
            match timeout(every / 2, buffer.read(end, 0, Run::default())).await {
                Ok(_) => notifier.watchdog(),
                Err(_) => tracing::warn!("the buffer's writer does not answer: the disk may hang"),
            }
        }
    });
}

fn failure(ended: Result<(&'static str, Result<(), String>), JoinError>) -> AgentError {
    match ended {
        Ok((stage, result)) => {
            AgentError::Stage { stage, reason: result.err().unwrap_or_else(|| "without a reason".into()) }
        }
        Err(error) => AgentError::Stage { stage: "a stage", reason: error.to_string() },
    }
}

/// Waits for the stages of one step, not longer than `grace`; the first failure counts.
async fn end(stages: &mut Stages, grace: Duration) -> Result<(), AgentError> {
    let all = async {
        let mut result = Ok(());
        while let Some(ended) = stages.join_next().await {
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
            stages.shutdown().await;
            Ok(())
        }
    }
}

/// What goes in, what waits, what went out, in one line.
fn status_line(stats: &Stats, buffer: &Buffer) -> String {
    let figures = buffer.figures();
    let waiting = figures.durable.0 - figures.cursor.0;
    let oldest_s = match stats.oldest_boot_us.get() {
        0 => 0,
        taken_us => Clock::default().now().boot_us.saturating_sub(taken_us) / 1_000_000,
    };
    let lost = stats.kafka_lost.get() + figures.damaged;
    let refused = stats.refused.get() + stats.invalid.get() + stats.too_large.get();
    let mut line = format!(
        "in {} (mqtt {}, unix {}), refused {refused}, buffered {waiting} events in {} KiB, oldest {oldest_s} s, out {}, lost {lost}",
        stats.mqtt_in.get() + stats.unix_in.get(),
        stats.mqtt_in.get(),
        stats.unix_in.get(),
        figures.disk_bytes / 1024,
        stats.kafka_out.get(),
    );
    if stats.redis.get() != LinkState::Off {
        line += &format!(", pings {} (dropped {})", stats.pings_out.get(), stats.pings_dropped.get());
    }
    for (name, link) in [("mqtt", &stats.mqtt), ("kafka", &stats.kafka), ("redis", &stats.redis)] {
        line += &format!(", {name} {}", link.get().word());
    }
    line
}
