//! How each stage is started: with what it needs of the configuration and of the stages before it, and under which name.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{AgentError, Stages, Step};
use crate::alive::{Answerer, Asker};
#[cfg(feature = "http")]
use crate::buffer::view::Place;
use crate::buffer::{Buffer, Run};
use crate::config::{self, Config, PingAfter, Redis};
use crate::dead_letter::Store;
use crate::drain::{self, Drain, DrainError};
#[cfg(feature = "http")]
use crate::http;
use crate::ingest::{Admission, mqtt, unix};
use crate::losses::Losses;
use crate::ping::Pings;
use crate::sink;
use crate::sink::kafka::KafkaProducer;
use crate::sink::record::Formatter;
use crate::sink::registry::{self, Registry, Schemas};
#[cfg(feature = "http")]
use crate::stats::LinkState;
use crate::stats::Stats;
use crate::status::Overview;
use crate::system::Notifier;
use crate::uplink;

/// Starts the Redis sink and answers the ways to it: right after the sync, or after Kafka.
pub(super) fn ping_ways(
    redis: Option<Redis>,
    stats: &Arc<Stats>,
    pings: &mut Step,
) -> (Option<Pings>, Option<Pings>) {
    let Some(Redis { options, plan, ping_after }) = redis else { return (None, None) };
    let (queue, waiting) = mpsc::channel(options.queue_max);
    let room = Arc::new(Semaphore::new(options.payload_queue_bytes_max));
    let way = Pings { queue, plan: Arc::new(plan), room, stats: Arc::clone(stats) };
    let (stats, stop) = (Arc::clone(stats), pings.stop.clone());
    pings.stages.spawn(async move {
        let Ok(()) = sink::redis::run(options, waiting, stats, stop).await;
        ("redis sink", Ok(()))
    });
    match ping_after {
        PingAfter::Durable => (Some(way), None),
        PingAfter::Delivered => (None, Some(way)),
    }
}

/// The ids of the format `avro`, and the stage that asks for them; it ends with the drain.
fn spawn_registry(drain: &mut Step, options: registry::Options) -> Schemas {
    let (registry, schemas) = Registry::open(options);
    let stop = drain.stop.clone();
    drain.stages.spawn(async move {
        registry.run(stop).await;
        ("schema registry", Ok(()))
    });
    schemas
}

/// Starts the drain, and what it needs for the format `avro`.
pub(super) fn spawn_drain(
    drain: &mut Step,
    (producer, alive): (KafkaProducer, Answerer),
    config: &Config,
    buffer: &Buffer,
    stats: &Arc<Stats>,
    pings: Option<Pings>,
) {
    let schemas = config.registry.clone().map(|options| spawn_registry(drain, options));
    let formatter =
        Formatter::new(config.records.clone(), buffer.logs(), Arc::clone(stats)).with_schemas(schemas);
    let config::DeadLetters { topic, store } = config.dead_letters.clone();
    let dead_letters = drain::DeadLetters { topic, store: Store::open(store) };
    let stage =
        Drain::new(buffer.clone(), producer, config.drain, formatter, Arc::clone(stats), pings, dead_letters)
            .with_alive(alive);
    let stop = drain.stop.clone();
    drain.stages.spawn(async move {
        let ended = stage.run(stop).await.map_err(|error| match error {
            DrainError::Fenced(_) => AgentError::Twin(error),
            other => AgentError::stage("drain", &other),
        });
        ("drain", ended)
    });
}

pub(super) fn spawn_losses(config: &Config, buffer: &Buffer, stats: &Arc<Stats>) -> Step {
    let mut step = Step::default();
    let (stats, announce) = (Arc::clone(stats), config.ledger.announce);
    let losses = Losses::new(buffer.clone(), stats, Arc::default(), &config.agent.id, announce);
    let stop = step.stop.clone();
    step.stages.spawn(async move {
        losses.run(stop).await;
        ("losses", Ok(()))
    });
    step
}

/// Starts the thread that serves HTTP, if it is on. A thread that cannot be started is no reason to take no events.
#[cfg(feature = "http")]
pub(super) fn spawn_http(
    config: &Config,
    buffer: &Buffer,
    overview: &Arc<Overview>,
    stopping: &CancellationToken,
) -> Step {
    let mut step = Step::default();
    let Some(options) = config.http.clone() else { return step };
    let sources = http::Sources {
        overview: Arc::clone(overview),
        recent: buffer.keep_recent(options.recent),
        place: Place { dir: config.buffer.dir.clone(), ledger: config.buffer.ledger.clone() },
        stopping: stopping.clone(),
    };
    match http::start(options, sources, step.stop.clone()) {
        Ok(thread) => {
            step.stages.spawn(async move {
                let ended = thread.ended().await;
                ("http", ended.map_err(|error| AgentError::stage("http", &error)))
            });
        }
        Err(error) => {
            overview.stats().http.set(LinkState::Down);
            overview.stats().http.failed(&error.to_string());
            tracing::error!(%error, "HTTP cannot be served: the system gives it no thread");
        }
    }
    step
}

/// The configuration of a build without HTTP never turns it on.
#[cfg(not(feature = "http"))]
pub(super) fn spawn_http(_: &Config, _: &Buffer, _: &Arc<Overview>, _: &CancellationToken) -> Step {
    Step::default()
}

pub(super) fn spawn_uplink(options: Option<uplink::Options>, stats: &Arc<Stats>) -> Step {
    let mut step = Step::default();
    let Some(options) = options else { return step };
    let (stats, stop) = (Arc::clone(stats), step.stop.clone());
    step.stages.spawn(async move {
        uplink::run(options, stats, stop).await;
        ("uplink command", Ok(()))
    });
    step
}

pub(super) fn spawn_inputs(
    inputs: &mut Step,
    mqtt: Option<mqtt::Options>,
    unix: Option<(unix::Options, unix::Listener)>,
    admission: &Admission,
    overview: &Arc<Overview>,
) {
    if let Some(options) = mqtt {
        let (admission, stop, overview) = (admission.clone(), inputs.stop.clone(), Arc::clone(overview));
        inputs.stages.spawn(async move {
            let ended = mqtt::run(options, admission, overview, stop).await;
            ("mqtt input", ended.map_err(|error| AgentError::stage("mqtt input", &error)))
        });
    }
    if let Some((options, listener)) = unix {
        let (admission, stop) = (admission.clone(), inputs.stop.clone());
        inputs.stages.spawn(async move {
            let ended = unix::run(options, listener, admission, stop).await;
            ("unix input", ended.map_err(|error| AgentError::stage("unix input", &error)))
        });
    }
}

/// Tells the service manager that the agent makes progress: this task runs, the writer answers and the drain's loop turns.
/// Whether Kafka answers is no part of it: to start again ends no outage.
pub(super) fn spawn_heartbeat(
    stages: &mut Stages,
    every: Duration,
    notifier: Arc<Notifier>,
    buffer: Buffer,
    drain: Asker,
) {
    stages.spawn(async move {
        loop {
            tokio::time::sleep(every / 2).await;
            let end = *buffer.durable().borrow();
            let writer = timeout(every / 2, buffer.read(end, 0, Run::default()));
            let (written, turned) = tokio::join!(writer, timeout(every / 2, drain.turned()));
            match (written, turned) {
                (Ok(_), Ok(())) => notifier.watchdog(),
                // Then the drain may well wait for it.
                (Err(_), _) => tracing::warn!("the buffer's writer does not answer: the disk may hang"),
                (Ok(_), Err(_)) => {
                    tracing::warn!("the drain does not answer: nothing goes to Kafka, and this is a bug");
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{alive, buffer};

    #[tokio::test]
    async fn a_drain_that_hangs_ends_the_signs_of_life() {
        let dir = tempfile::tempdir().unwrap();
        let manager = std::os::unix::net::UnixDatagram::bind(dir.path().join("notify")).unwrap();
        manager.set_nonblocking(true).unwrap();
        let is_told = || {
            let mut message = [0; 64];
            manager.recv(&mut message).is_ok_and(|bytes| message[..bytes] == *b"WATCHDOG=1")
        };
        let (buffer, writer) =
            Buffer::open(&buffer::Options::new(dir.path()), [1; 16], Arc::default()).unwrap();
        let every = Duration::from_millis(200);
        let notifier = Arc::new(Notifier::to(&dir.path().join("notify"), Some(every)));
        let (asker, mut drain) = alive::pair();
        let mut heartbeat = Stages::new();
        spawn_heartbeat(&mut heartbeat, every, notifier, buffer.clone(), asker);
        let soon = Duration::from_secs(60);
        let hangs = timeout(soon, drain.asked()).await.unwrap();
        let goes_on = timeout(soon, drain.asked()).await.unwrap();
        assert!(!is_told(), "the time for the first question is over");
        drop(hangs);
        assert!(!is_told(), "nobody waits for it any more");
        goes_on.answer();
        let turning = async {
            while !is_told() {
                match timeout(Duration::from_millis(1), drain.asked()).await {
                    Ok(question) => question.answer(),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        timeout(soon, turning).await.expect("the drain turns again");
        heartbeat.shutdown().await;
        buffer.close().await;
        writer.ended().await.unwrap();
    }
}
