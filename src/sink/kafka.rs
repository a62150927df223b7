//! Kafka through librdkafka: with its folder the only place of the agent that names rdkafka (`cli::demo::cluster` plays
//! a broker).
//!
//! One idempotent producer with its own polling thread. Its queue is bounded in bytes, messages never expire, and the
//! properties on which the promise rests ([`OWN_PROPERTIES`]) are not open to configuration. The drain gathers records in
//! rounds, which costs less CPU at the same latency than librdkafka's own waiting; `linger.ms` only lasts until a round
//! is handed over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memchr::memmem;
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};
use tokio::sync::Notify;

use super::kafka_security::{Changes, Security};
use super::transaction::{Step, StepEnd, StepError};
use super::{Fatal, Outcome, Producer, ProducerError, Record, Rejection, Report, SendError};
use crate::log::Limited;
use crate::stats::{LinkState, Stats};

mod outage;
mod transactions;

use outage::Outage;
use transactions::Transactions;

/// Compression of record batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// Fast; the default.
    Lz4,
    /// Smaller on a thin line, more CPU.
    Zstd,
}

/// How Kafka is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `host:port`, several separated by commas.
    pub brokers: String,
    /// Compression of record batches.
    pub compression: Compression,
    /// Further librdkafka properties, checked against the ones that the promise rests on.
    pub properties: Vec<(String, String)>,
    /// Most bytes of records in librdkafka's queue (`queue.buffering.max.kbytes`).
    pub queue_bytes_max: usize,
    /// Largest record in bytes, the largest event in its envelope (`message.max.bytes`).
    pub record_bytes_max: usize,
    /// Whether records that Kafka rejects are left out and the others go on: at most once only.
    pub leaves_out_rejected: bool,
    /// Set for exactly once.
    pub transactional: Option<Transactional>,
    /// TLS and the login.
    pub security: Security,
}

/// What makes a producer transactional.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transactional {
    /// `transactional.id`: one producer at a time has it.
    pub id: String,
    /// The consumer group that the cursor is committed under.
    pub group: String,
    /// An existing topic whose first partition the cursor is kept for.
    pub cursor_topic: String,
    /// After which the brokers abort a transaction that nobody ends (`transaction.timeout.ms`).
    pub timeout: Duration,
}

/// Properties that the promise rests on, with their values. Numbers from measurements (ARCHITECTURE.md).
pub const OWN_PROPERTIES: [(&str, &str); 5] = [
    // No duplicates and no reordering within a session, over broker restarts too.
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // A rejected batch breaks the producer. Otherwise librdkafka goes on with what is in flight behind it in the same
    // partition, and the rejected events come later: out of order, and at positions that consumers have passed.
    ("enable.gapless.guarantee", "true"),
    // An outage has no limit: nothing expires (librdkafka 3635).
    ("message.timeout.ms", "0"),
    // With 0 the first record of a hand-over goes out alone, and librdkafka's thread spins over the others until it is
    // confirmed: a third of the agent's CPU time at 2,000 events/s. More than it takes to hand over a round is latency.
    ("linger.ms", "0.5"),
];

/// Properties that are set only where the configuration says nothing else.
const DEFAULT_PROPERTIES: [(&str, &str); 6] = [
    // A restarted broker is found within 2 s of its return.
    ("reconnect.backoff.ms", "100"),
    ("reconnect.backoff.max.ms", "2000"),
    ("socket.keepalive.enable", "true"),
    // A topic's max.message.bytes (1 MiB by default) counts the batch: half of it leaves room.
    ("batch.size", "524288"),
    // How soon a link that died, or came back while nothing is sent, is noticed.
    ("statistics.interval.ms", "2000"),
    // Figures that nobody asked the brokers to collect, and an answer that can end the process (librdkafka 5577).
    ("enable.metrics.push", "false"),
];

/// How often it is said that Kafka refuses the agent: the client tries again without end.
const REFUSED_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How the brokers are reached, for any kind of client. Reads the files of passwords and TLS.
fn connection_config(options: &Options) -> Result<ClientConfig, ProducerError> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &options.brokers).set("client.id", "fieldpost");
    for (name, value) in DEFAULT_PROPERTIES {
        config.set(name, value);
    }
    for (name, value) in &options.properties {
        config.set(name, value);
    }
    options.security.apply(&mut config)?;
    config.set_log_level(RDKafkaLogLevel::Info);
    Ok(config)
}

/// The client configuration of the producer; `check` uses it too.
///
/// # Errors
/// [`ProducerError::File`]: a file of a password or of TLS cannot be used.
pub(crate) fn client_config(options: &Options) -> Result<ClientConfig, ProducerError> {
    let mut config = connection_config(options)?;
    for (name, value) in OWN_PROPERTIES {
        config.set(name, value);
    }
    if options.leaves_out_rejected {
        config.set("enable.gapless.guarantee", "false");
    }
    if let Some(transactional) = &options.transactional {
        config.set("transactional.id", &transactional.id);
        config.set("transaction.timeout.ms", transactional.timeout.as_millis().to_string());
        // Follows the transaction's: it is aborted anyway, and sent again.
        config.remove("message.timeout.ms");
        // A rejected batch costs the transaction, not the producer.
        config.set("enable.gapless.guarantee", "false");
    }
    // An event above the batch size still goes out, in a batch of its own; the topic has the last word.
    config.set("message.max.bytes", options.record_bytes_max.to_string());
    config.set("queue.buffering.max.kbytes", (options.queue_bytes_max / 1024).max(1).to_string());
    config.set(
        "compression.codec",
        match options.compression {
            Compression::None => "none",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        },
    );
    Ok(config)
}

/// The producer behind [`Producer`].
pub struct KafkaProducer {
    options: Options,
    stats: Arc<Stats>,
    inner: Inner,
    changes: Arc<Changes>,
    /// To take over once it is connected.
    successor: Option<Successor>,
    /// Producers whose thread is left behind in a call that does not come back.
    stuck: usize,
}

/// One librdkafka instance and what serves it.
struct Inner {
    polled: Polled,
    transactions: Option<Transactions>,
    shared: Arc<Shared>,
}

/// Made from changed files: those that do not work cost nothing but a line in the log. Or made in a long outage, in which
/// the one in use may have lost its way ([`outage`]).
struct Successor {
    inner: Inner,
    is_for_outage: bool,
}

impl Inner {
    fn is_up(&self) -> bool {
        self.shared.is_up.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for KafkaProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaProducer").field("brokers", &self.options.brokers).finish_non_exhaustive()
    }
}

/// What librdkafka's thread hands to the drain. At most as many reports as there are records in flight.
#[derive(Debug, Default)]
struct Shared {
    reports: Mutex<Vec<Report>>,
    /// How the last step of a transaction ended.
    step: Mutex<Option<Result<StepEnd, StepError>>>,
    /// Since when a call of a step is out.
    call: Mutex<Option<Instant>>,
    reported: Notify,
    /// Not the successor: its link is the agent's.
    is_in_use: AtomicBool,
    is_up: AtomicBool,
    /// The outage lasts: another client is to look for Kafka.
    wants_another: AtomicBool,
}

impl Shared {
    fn end_step(&self, ended: Result<StepEnd, StepError>) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        self.reported.notify_one();
    }

    /// Whether a call does not come back: see [`transactions`].
    fn is_stuck(&self) -> bool {
        let since = *self.call.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() > transactions::CALL_TIME_MAX)
    }

    fn give_up_stuck_call(&self) {
        if self.is_stuck() {
            self.end_step(Err(StepError::Broken("a call of librdkafka does not come back".to_owned())));
        }
    }
}

struct Callbacks {
    shared: Arc<Shared>,
    stats: Arc<Stats>,
    security: Security,
    changes: Arc<Changes>,
    /// What librdkafka said last about a broker, for the line that says that the link is down.
    trouble: Mutex<String>,
    is_judged: AtomicBool,
    outage: Mutex<Outage>,
    refused_log: Limited,
}

impl KafkaProducer {
    /// Starts a producer; brokers are looked for in the background, without end.
    ///
    /// # Errors
    /// [`ProducerError`]: librdkafka refuses a property.
    pub fn start(options: Options, stats: Arc<Stats>) -> Result<Self, ProducerError> {
        stats.kafka.set(LinkState::Down);
        // Order: before the files are read; see `Watched::new`.
        let changes = Arc::new(Changes::new(&options.security));
        let inner = create(&options, &stats, &changes, true)?;
        Ok(Self { options, stats, inner, changes, successor: None, stuck: 0 })
    }
}

fn create(
    options: &Options,
    stats: &Arc<Stats>,
    changes: &Arc<Changes>,
    is_in_use: bool,
) -> Result<Inner, ProducerError> {
    let shared = Arc::new(Shared { is_in_use: AtomicBool::new(is_in_use), ..Shared::default() });
    let callbacks = Callbacks {
        shared: Arc::clone(&shared),
        stats: Arc::clone(stats),
        security: options.security.clone(),
        changes: Arc::clone(changes),
        trouble: Mutex::default(),
        is_judged: AtomicBool::new(false),
        outage: Mutex::default(),
        refused_log: Limited::new(REFUSED_LOG_INTERVAL),
    };
    let producer = client_config(options)?
        .create_with_context(callbacks)
        .map_err(|e| ProducerError::Setting(e.to_string()))?;
    let polled = Polled::start(producer)?;
    let transactions = options.transactional.clone().map(|transactional| {
        Transactions::start(options.clone(), transactional, Arc::clone(&polled.producer), Arc::clone(&shared))
    });
    Ok(Inner { transactions: transactions.transpose()?, polled, shared })
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(transactions) = &self.transactions {
            transactions.stop();
        }
    }
}

/// A producer and the thread that serves its callbacks. rust-rdkafka's own `ThreadedProducer` asks ten times a second,
/// and each of its calls spins for the last millisecond: one per cent of a core while nothing happens.
struct Polled {
    producer: Arc<BaseProducer<Callbacks>>,
    is_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Length of one call; callbacks come at once within it. It is how long the thread may outlive its producer.
const POLL_TIME: Duration = Duration::from_secs(1);

impl Polled {
    fn start(producer: BaseProducer<Callbacks>) -> Result<Self, ProducerError> {
        let producer = Arc::new(producer);
        let is_ended = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("kafka-reports".into()).spawn({
            let (producer, is_ended) = (Arc::clone(&producer), Arc::clone(&is_ended));
            move || {
                while !is_ended.load(Ordering::Relaxed) {
                    producer.poll(POLL_TIME);
                }
            }
        });
        let thread = thread.map_err(|e| ProducerError::Setting(format!("cannot start a thread: {e}")))?;
        Ok(Self { producer, is_ended, thread: Some(thread) })
    }

    fn end(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::debug!("the thread of Kafka's reports died");
        }
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        // Order: at once and not when the thread notices, or what waits would go out beside the next producer's.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.is_ended.store(true, Ordering::Relaxed);
    }
}

impl Producer for KafkaProducer {
    fn send(&mut self, record: &Record<'_>, tag: usize) -> Result<(), SendError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in record.headers {
            headers = headers.insert(Header { key, value: Some(*value) });
        }
        let mut message =
            BaseRecord::with_opaque_to(record.topic, tag).payload(record.payload).headers(headers);
        if let Some(key) = record.key {
            message = message.key(key);
        }
        if let Some(ms) = record.timestamp_ms {
            message = message.timestamp(ms);
        }
        self.inner.polled.producer.send(message).map_err(|(error, _)| match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => SendError::QueueFull,
            KafkaError::MessageProduction(RDKafkaErrorCode::Fatal) => SendError::Fatal(error.to_string()),
            other => match outcome(&other) {
                Outcome::Misconfigured(reason) => SendError::Misconfigured(reason),
                _ => SendError::Rejected(rejection(&other)),
            },
        })
    }

    fn take_reports(&mut self, reports: &mut Vec<Report>) {
        reports.append(&mut self.inner.shared.reports.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn reported(&self) {
        tokio::select! {
            () = self.inner.shared.reported.notified() => {}
            () = self.changes.news.notified() => {}
        }
    }

    fn fatal(&self) -> Option<Fatal> {
        self.inner.polled.producer.client().fatal_error().map(|(code, text)| {
            let text = format!("{code}: {text}");
            if is_fenced(code) { Fatal::Fenced(text) } else { Fatal::Broken(text) }
        })
    }

    fn begin(&mut self) -> Result<(), StepError> {
        self.inner.polled.producer.begin_transaction().map_err(|error| StepError::Broken(error.to_string()))
    }

    fn start_step(&mut self, step: Step) {
        if let Some(transactions) = &self.inner.transactions {
            transactions.step(step);
        }
    }

    fn take_step(&mut self) -> Option<Result<StepEnd, StepError>> {
        self.inner.shared.step.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn purge(&mut self) {
        self.inner.polled.producer.purge(PurgeConfig::default().queue().inflight());
    }

    fn restart(&mut self) -> Result<(), ProducerError> {
        // Order: the new one first, so that a refusal leaves a producer in place; the old one is purged as it drops.
        let successor = self.successor.take_if(|successor| successor.inner.is_up());
        // A successor by transactions has only shown that the files work: its name would fence the one in use.
        let inner = match successor.filter(|_| self.options.transactional.is_none()) {
            Some(successor) => successor.inner,
            None => create(&self.options, &self.stats, &self.changes, true)?,
        };
        if self.inner.shared.is_stuck() {
            self.stuck += 1;
        }
        if self.stuck > transactions::STUCK_MAX {
            return Err(ProducerError::Stuck(self.stuck));
        }
        inner.shared.is_in_use.store(true, Ordering::Relaxed);
        self.inner.shared.is_in_use.store(false, Ordering::Relaxed);
        if inner.is_up() && self.stats.kafka.set(LinkState::Up) {
            tracing::info!("Kafka link up");
        }
        self.inner = inner;
        Ok(())
    }

    fn has_successor(&mut self) -> bool {
        let is_changed = self.changes.take();
        let is_lost = self.inner.shared.wants_another.swap(false, Ordering::Relaxed);
        let is_for_files = is_changed || self.successor.as_ref().is_some_and(|made| !made.is_for_outage);
        if is_changed {
            tracing::info!("a file of the Kafka link changed: a producer is made from the new ones");
        }
        if is_changed || is_lost {
            let options = Options { transactional: None, ..self.options.clone() };
            match create(&options, &self.stats, &self.changes, false) {
                Ok(inner) => self.successor = Some(Successor { inner, is_for_outage: !is_for_files }),
                Err(error) if is_changed => {
                    tracing::error!(%error, "changed files are of no use; the producer that is there stays");
                    self.successor = None;
                }
                Err(error) => tracing::debug!(%error, "no other client can be made"),
            }
        }
        if self.inner.is_up() {
            // It found its way back.
            self.successor.take_if(|successor| successor.is_for_outage);
        }
        self.successor.as_ref().is_some_and(|successor| successor.inner.is_up())
    }

    fn close(mut self, timeout: Duration) {
        self.purge();
        if let Err(error) = self.inner.polled.producer.flush(timeout) {
            tracing::debug!(%error, "the producer did not end in time");
        }
        if let Some(transactions) = self.inner.transactions.take() {
            transactions.join();
        }
        self.inner.polled.end();
    }
}

impl ProducerContext for Callbacks {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        let outcome = match result {
            Ok(_) => {
                self.answered();
                Outcome::Delivered
            }
            Err((error, _)) => outcome(error),
        };
        self.shared.reports.lock().unwrap_or_else(PoisonError::into_inner).push(Report { tag, outcome });
        self.shared.reported.notify_one();
    }
}

impl Callbacks {
    /// A record was delivered: the link is up, and known to be up to two seconds sooner than by the statistics. Order: in
    /// the thread that hears the statistics too, or a report from before an outage would be taken for its end.
    fn answered(&self) {
        if self.shared.is_in_use.load(Ordering::Relaxed)
            && self.stats.kafka.change(LinkState::Down, LinkState::Up)
        {
            self.say_up();
        }
    }

    /// The link has come up: what was wrong with it is over.
    fn say_up(&self) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clear();
        tracing::info!("Kafka link up");
    }
}

fn outcome(error: &KafkaError) -> Outcome {
    use RDKafkaErrorCode as Code;
    let text = error.to_string();
    match error.rdkafka_error_code() {
        Some(
            Code::MessageSizeTooLarge
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::MessageBatchTooLarge
            | Code::InvalidTimestamp
            | Code::InvalidRecord
            | Code::UnsupportedCompressionType,
        ) => Outcome::Rejected(rejection(error)),
        Some(code) if is_misconfiguration(code) => Outcome::Misconfigured(text),
        _ => Outcome::Failed(text),
    }
}

fn rejection(error: &KafkaError) -> Rejection {
    let code = error.rdkafka_error_code().map_or(0, |code| code as i32);
    Rejection { code, reason: error.to_string() }
}

/// Another producer has the transactional id, or the brokers aborted the transaction for its age.
fn is_fenced(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// What somebody has to mend: a right or a topic.
fn is_misconfiguration(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::PolicyViolation
            | Code::InvalidTransactionTimeout
    )
}

impl ClientContext for Callbacks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Several lines a second in an outage: the link's change has been said once, the rest is for debugging.
        tracing::debug!(target: "librdkafka", severity = ?level, facility, "{message}");
    }

    fn stats_raw(&self, statistics: &[u8]) {
        // The one judge of the link: errors come several times in an outage, and also when only the first connection
        // to one broker was closed.
        let is_up = memmem::find(statistics, br#""state":"UP""#).is_some();
        let was_up = self.shared.is_up.swap(is_up, Ordering::Relaxed);
        if !self.shared.is_in_use.load(Ordering::Relaxed) {
            if is_up && !was_up {
                self.changes.news.notify_one();
            }
            return;
        }
        self.changes.look();
        if self.outage.lock().unwrap_or_else(PoisonError::into_inner).look(is_up, Instant::now()) {
            self.shared.wants_another.store(true, Ordering::Relaxed);
            self.changes.news.notify_one();
        }
        self.shared.give_up_stuck_call();
        // Connected is not enough to end a refusal: that takes a record that is delivered.
        let is_refused = self.stats.kafka.get() == LinkState::Misconfigured;
        let state = match (is_up, is_refused) {
            (false, _) => LinkState::Down,
            (true, true) => LinkState::Misconfigured,
            (true, false) => LinkState::Up,
        };
        let is_first = !self.is_judged.swap(true, Ordering::Relaxed);
        // A link that is down from the start has not changed and is worth a line all the same.
        if self.stats.kafka.set(state) || (is_first && !is_up) {
            if is_up {
                self.say_up();
            } else {
                let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                // A broker that hangs, as a rule.
                let reason = if trouble.is_empty() { "no broker answers" } else { &trouble };
                self.stats.kafka.failed(reason);
                tracing::warn!(%reason, "Kafka link down; events are kept in the buffer");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        match code {
            Some(RDKafkaErrorCode::Fatal) => return self.shared.reported.notify_one(),
            // Said in the line of the link's change; it comes again and again.
            Some(RDKafkaErrorCode::AllBrokersDown) => return,
            _ => {}
        }
        if !self.security.is_about(code, reason) {
            reason.clone_into(&mut self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
            return tracing::debug!(%error, reason, "librdkafka");
        }
        let Some(suppressed) = self.refused_log.allow() else { return };
        let remedy = self.security.remedy(code, reason);
        remedy.clone_into(&mut self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
        if self.shared.is_in_use.load(Ordering::Relaxed) {
            tracing::error!(reason, suppressed, "Kafka refuses the agent, or the agent Kafka: {remedy}");
        } else {
            tracing::error!(
                reason,
                suppressed,
                "changed files do not open a link to Kafka, the old one stays: {remedy}"
            );
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.security.token()
    }
}
