//! The steps of transactions, on a thread of their own: librdkafka's calls for them block.
//!
//! Every call that may be repeated is repeated, for as long as it takes: an outage in the middle of a commit ends with
//! the commit, or with an error that says that there was none. Only the end of the producer interrupts that, within
//! [`STEP_TIME`].
//!
//! librdkafka 2.12 forgets the time limit of `send_offsets_to_transaction` (confluentinc/librdkafka#5456): when the group's
//! coordinator is lost under it, the call may never come back. After [`CALL_TIME_MAX`] its step counts as broken, and the
//! producer is made again. Its thread stays until the call comes back, if it does; the next producer's init has fenced it.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::client::OAuthToken;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientContext, config::RDKafkaLogLevel};

use super::{Callbacks, Options, Shared, Transactional, connection_config, is_fenced, is_misconfiguration};
use crate::log::quietly;
use crate::sink::ProducerError;
use crate::sink::kafka_security::Security;
use crate::sink::transaction::{Cursor, Kept, Step, StepEnd, StepError};

/// Longest single call: how long the thread may outlive its producer.
const STEP_TIME: Duration = Duration::from_secs(1);

/// A call that takes longer is not waited for any more. Ten times [`STEP_TIME`]: none that keeps its limit gets there.
pub(super) const CALL_TIME_MAX: Duration = Duration::from_secs(10);

/// So many producers may be left behind in such calls, some megabytes and four threads each; with one more the agent ends.
pub(super) const STUCK_MAX: usize = 4;

/// Pause before a call is repeated that came back at once.
const REPEAT_PAUSE: Duration = Duration::from_millis(100);

/// The partition of the cursor topic that the cursor is kept under; every topic has it.
const CURSOR_PARTITION: i32 = 0;

/// The thread's handle. Dropping it lets the thread end after its current call.
pub(super) struct Transactions {
    steps: SyncSender<Step>,
    end: Arc<End>,
    thread: JoinHandle<()>,
}

/// Set when nobody waits for a step any more, and reached when the thread is through.
#[derive(Default)]
struct End {
    is_set: AtomicBool,
    is_reached: AtomicBool,
    guard: Mutex<()>,
    word: Condvar,
}

impl End {
    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    fn set(&self) {
        self.say(&self.is_set);
    }

    fn reach(&self) {
        self.say(&self.is_reached);
    }

    fn say(&self, what: &AtomicBool) {
        let _guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        what.store(true, Ordering::Release);
        self.word.notify_all();
    }

    /// Waits for that for at most `limit`.
    fn is_reached(&self, limit: Duration) -> bool {
        let is_out = |(): &mut ()| !self.is_reached.load(Ordering::Acquire);
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.word.wait_timeout_while(guard, limit, is_out);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.is_reached.load(Ordering::Acquire)
    }

    fn pause(&self) {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.word.wait_timeout_while(guard, REPEAT_PAUSE, |()| !self.is_set());
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Transactions {
    pub(super) fn start(
        options: Options,
        transactional: Transactional,
        producer: Arc<BaseProducer<Callbacks>>,
        shared: Arc<Shared>,
    ) -> Result<Self, ProducerError> {
        let (steps, waiting) = sync_channel(1);
        let end = Arc::<End>::default();
        // Order: with the producer and not when it is asked for, or it would read files that have changed since.
        let consumer = group_config(&options, &transactional)?
            .create_with_context(Silent(options.security.clone()))
            .map_err(|error| ProducerError::Setting(error.to_string()))?;
        let end_of_worker = Arc::clone(&end);
        let consumer = Some(consumer);
        let worker = Worker { transactional, consumer, producer, shared, end: end_of_worker, group: None };
        let thread = std::thread::Builder::new()
            .name("kafka-steps".into())
            .spawn(move || worker.run(&waiting))
            .map_err(|e| ProducerError::Setting(format!("cannot start a thread: {e}")))?;
        Ok(Self { steps, end, thread })
    }

    /// Hands a step over. A second one before the first has ended is dropped: nobody asks for that.
    pub(super) fn step(&self, step: Step) {
        if let Err(TrySendError::Full(step) | TrySendError::Disconnected(step)) = self.steps.try_send(step) {
            tracing::error!(?step, "a step of a transaction was asked for while another one runs");
        }
    }

    pub(super) fn stop(&self) {
        self.end.set();
    }

    pub(super) fn join(self) {
        self.end.set();
        let Self { steps, thread, end } = self;
        drop(steps);
        if !end.is_reached(2 * STEP_TIME) && !thread.is_finished() {
            tracing::debug!("a call of librdkafka does not come back; its thread is left behind");
        } else if thread.join().is_err() {
            tracing::debug!("the thread of Kafka's transactions died");
        }
    }
}

struct Worker {
    transactional: Transactional,
    /// Reads the cursor, once.
    consumer: Option<BaseConsumer<Silent>>,
    producer: Arc<BaseProducer<Callbacks>>,
    shared: Arc<Shared>,
    end: Arc<End>,
    group: Option<ConsumerGroupMetadata>,
}

impl Worker {
    fn run(mut self, steps: &Receiver<Step>) {
        while let Ok(step) = steps.recv() {
            let ended = match step {
                Step::Open => self.open().map(StepEnd::Opened),
                Step::Commit(cursor) => self.commit(cursor).map(|()| StepEnd::Committed),
                Step::Abort => self
                    .patiently(|this| this.producer.abort_transaction(STEP_TIME))
                    .map(|()| StepEnd::Aborted),
            };
            self.shared.end_step(ended);
        }
        self.end.reach();
    }

    fn open(&mut self) -> Result<Kept, StepError> {
        self.patiently(|this| this.producer.init_transactions(STEP_TIME))?;
        // Order: behind the init, which ends whatever a producer before this one had begun to commit.
        let consumer =
            self.consumer.take().ok_or_else(|| StepError::Broken("was opened before".to_owned()))?;
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&self.transactional.cursor_topic, CURSOR_PARTITION);
        let found = self.patiently(|_| {
            let found = consumer.committed_offsets(asked.clone(), STEP_TIME)?;
            found.elements().iter().try_for_each(|element| element.error())?;
            Ok(found)
        })?;
        self.group = consumer.group_metadata();
        Ok(match found.elements().first() {
            Some(element) => match element.offset() {
                Offset::Offset(offset) => kept(offset, || element.metadata().to_owned()),
                _ => Kept::None,
            },
            None => Kept::None,
        })
    }

    fn commit(&self, cursor: Cursor) -> Result<(), StepError> {
        let Some(group) = &self.group else { return Err(StepError::Broken("not opened".into())) };
        let (offset, metadata) = cursor.to_offset();
        let mut offsets = TopicPartitionList::new();
        {
            let mut element = offsets.add_partition(&self.transactional.cursor_topic, CURSOR_PARTITION);
            element.set_offset(Offset::Offset(offset)).map_err(|e| StepError::Abort(e.to_string()))?;
            element.set_metadata(metadata);
        }
        self.patiently(|this| this.producer.send_offsets_to_transaction(&offsets, group, STEP_TIME))?;
        self.patiently(|this| this.producer.commit_transaction(STEP_TIME))
    }

    fn note_call(&self, since: Option<Instant>) {
        *self.shared.call.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Repeats `call` until it succeeds or fails in a way that repeating does not help.
    fn patiently<T>(&self, call: impl Fn(&Self) -> Result<T, KafkaError>) -> Result<T, StepError> {
        loop {
            self.note_call(Some(Instant::now()));
            let called = call(self);
            self.note_call(None);
            let error = match called {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if let Some(failure) = failure(&error) {
                return Err(failure);
            }
            if self.end.is_set() {
                return Err(StepError::Broken("the producer is being ended".into()));
            }
            tracing::debug!(%error, "a step of a transaction is repeated");
            self.end.pause();
        }
    }
}

/// What was committed. Whoever may commit for the group writes what he likes, and rust-rdkafka panics on what is no text.
fn kept(offset: i64, metadata: impl FnOnce() -> String) -> Kept {
    match quietly(AssertUnwindSafe(metadata)) {
        Ok(metadata) => Kept::of_offset(offset, &metadata),
        Err(_) => Kept::Foreign(format!("offset {offset}, metadata that are no text")),
    }
}

fn group_config(options: &Options, transactional: &Transactional) -> Result<ClientConfig, ProducerError> {
    let mut config = connection_config(options)?;
    config.set("group.id", &transactional.group);
    config.set("allow.auto.create.topics", "false");
    // Reads only what is committed, and waits for what is about to be.
    config.set("isolation.level", "read_committed");
    Ok(config)
}

/// What a failed call means; `None`: repeat it.
fn failure(error: &KafkaError) -> Option<StepError> {
    let text = error.to_string();
    let KafkaError::Transaction(details) = error else {
        // The cursor's: only a missing right does not end by itself.
        return error
            .rdkafka_error_code()
            .filter(|code| is_misconfiguration(*code))
            .map(|_| StepError::Misconfigured(text));
    };
    let code = details.code();
    if is_misconfiguration(code) {
        Some(StepError::Misconfigured(text))
    } else if is_fenced(code) {
        Some(StepError::Fenced(text))
    } else if details.is_fatal() {
        Some(StepError::Broken(text))
    } else if details.txn_requires_abort() {
        Some(StepError::Abort(text))
    } else if details.is_retriable() {
        None
    } else {
        Some(StepError::Broken(text))
    }
}

/// For the consumer that reads the cursor: its troubles are the producer's, which are told.
struct Silent(Security);

impl ClientContext for Silent {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", severity = ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.0.token()
    }
}

impl ConsumerContext for Silent {}

#[cfg(test)]
mod tests {
    use super::super::KafkaProducer;
    use super::*;
    use crate::config::Config;
    use crate::sink::Producer as _;

    #[test]
    fn a_call_that_does_not_come_back_ends_its_step() {
        let shared = Shared::default();
        let ended = |since: Option<Duration>| {
            *shared.call.lock().unwrap() = since.map(|since| Instant::now().checked_sub(since).unwrap());
            shared.give_up_stuck_call();
            shared.step.lock().unwrap().take()
        };
        assert_eq!(ended(None), None);
        assert_eq!(ended(Some(CALL_TIME_MAX / 2)), None);
        assert!(matches!(ended(Some(CALL_TIME_MAX * 2)), Some(Err(StepError::Broken(_)))));
    }

    #[test]
    fn metadata_that_are_no_text_are_somebody_elses() {
        let read = || String::from_utf8(b"fieldpost 1 log=\xff".to_vec()).unwrap();
        assert!(matches!(kept(7, read), Kept::Foreign(found) if found.starts_with("offset 7")));
    }

    #[test]
    fn calls_that_do_not_come_back_do_not_fill_the_memory() {
        let variables = [("FIELDPOST_AGENT__ID", "a"), ("FIELDPOST_KAFKA__BROKERS", "127.0.0.1:1")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let options = Config::load(None, variables.into_iter()).unwrap().config.kafka.unwrap();
        let mut producer = KafkaProducer::start(options, Arc::default()).unwrap();
        for stuck in 1..=STUCK_MAX + 1 {
            let long_ago = Instant::now().checked_sub(CALL_TIME_MAX * 2);
            *producer.inner.shared.call.lock().unwrap() = long_ago;
            let restarted = producer.restart();
            assert_eq!(restarted.is_err(), stuck > STUCK_MAX, "{stuck}: {restarted:?}");
        }
        let calls = producer.restart().unwrap_err();
        assert!(calls.to_string().starts_with("6 calls of librdkafka"), "{calls}");
    }
}
