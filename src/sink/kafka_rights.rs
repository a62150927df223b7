//! What the brokers let the agent do, learnt without a record.
//!
//! **Without transactions** an idempotent producer asks for its id, which the brokers give to whoever may write at least one
//! topic, or has IDEMPOTENT_WRITE on the cluster. Which topic that is they tell only with a record.
//!
//! **With transactions** all of it is tried in one that is given up (the *dry transaction*): the transactional id, the cursor
//! under the agent's group, and a partition of each topic. A record for each waits in librdkafka's queue, which announces
//! its partition to the transaction's coordinator, where the right to write is asked for; then the record is thrown
//! away, unsent. What stays is the marker of the end of a transaction, which no consumer is shown.
//!
//! It never fences an agent: the dry transaction has an id of its own, `<id>.check`, which a right to all ids with the
//! prefix `<id>` covers. Where that one is refused, the agent's own id is asked for with a transaction time-out that no
//! broker allows. The brokers look at the right first and at the time-out before they do anything, so that they
//! say which of the two is wrong, and whoever has the id keeps it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memchr::memmem;
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use thiserror::Error;

use super::kafka::{Options, Transactional};
use super::kafka_clock::{Skew, Times, now_ms};
use super::kafka_probe::{Trouble, client_config};

/// After which the brokers give the dry transaction up by themselves, should this process die: until then consumers that
/// read committed records alone wait before it. As short as `kafka.transaction_timeout` may be.
const TRANSACTION_TIME: Duration = Duration::from_secs(10);

/// Above every broker's `transaction.max.timeout.ms`, 15 min by default, but for one that is set to just this.
const IMPOSSIBLE_TIMEOUT_MS: &str = "2147483647";

/// Longest single call, and pause before one is repeated.
const CALL: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// So many refused topics are looked for one by one.
const TOPICS_NAMED_MAX: usize = 16;

/// What is refused, or that it cannot be known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// To produce at all.
    #[error("may not produce: it has WRITE on no topic")]
    Produce,
    /// The transactional id.
    #[error("may not use the transactional id {0}")]
    Id(String),
    /// The dry transaction's id; the agent's own is allowed.
    #[error("may use the transactional id {own}, but not {asked}, under which check tries the other rights")]
    AskedId {
        /// The dry transaction's.
        asked: String,
        /// The agent's.
        own: String,
    },
    /// The consumer group of the cursor.
    #[error("may not use the consumer group {0}")]
    Group(String),
    /// To commit the cursor for its topic.
    #[error("may not read topic {0}, for which its cursor is kept")]
    Cursor(String),
    /// To write these topics.
    #[error("may not write topic {}", .0.join(", "))]
    Topics(Vec<String>),
    /// No answer, or one that says nothing of rights.
    #[error("{0}")]
    Unknown(String),
}

/// Whether the brokers give an idempotent producer its id. Blocks for up to `timeout`.
///
/// # Errors
/// [`Refusal::Produce`] or [`Refusal::Unknown`].
pub fn may_produce(options: &Options, timeout: Duration) -> Result<(), Refusal> {
    let options = Options { transactional: None, ..options.clone() };
    let mut config = config(&options)?;
    // The one place where librdkafka says that it has the id.
    config.set("statistics.interval.ms", "100");
    let producer = create(&config, &options)?;
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        producer.poll(PAUSE);
        if producer.context().has_id.load(Ordering::Relaxed) {
            return Ok(());
        }
        match producer.client().fatal_error() {
            Some((RDKafkaErrorCode::ClusterAuthorizationFailed, _)) => return Err(Refusal::Produce),
            Some((code, text)) => return Err(Refusal::Unknown(format!("{code}: {text}"))),
            None => {}
        }
    }
    Err(Refusal::Unknown(format!("no answer within {} ms", timeout.as_millis())))
}

/// Tries everything that exactly once needs for `topics`, which exist. Each part of it blocks for up to `timeout`. What the
/// transaction's marker says of the clocks, if there is a topic.
///
/// # Errors
/// [`Refusal`]: the first that is met.
pub fn try_transaction(
    options: &Options,
    transactional: &Transactional,
    topics: &[&str],
    timeout: Duration,
) -> Result<Option<Skew>, Refusal> {
    let asked = format!("{}.check", transactional.id);
    let dry = match Dry::open(options, &asked, timeout) {
        Err(Refusal::Id(_)) => {
            return Err(match own_id(options, &transactional.id, timeout)? {
                true => Refusal::AskedId { asked, own: transactional.id.clone() },
                false => Refusal::Id(transactional.id.clone()),
            });
        }
        opened => opened?,
    };
    let consumer = consumer(options, transactional)?;
    let group = consumer.group_metadata().ok_or_else(|| Refusal::Unknown("no consumer group".to_owned()))?;
    let end_before = topics.first().and_then(|topic| dry.times(&consumer, topic).end().ok());
    let begun = now_ms();
    let ended = dry.attempt(transactional, &group, topics);
    let given_up = dry.give_up();
    if let Err(Refusal::Topics(topics)) = &ended {
        return Err(Refusal::Topics(named(options, transactional, topics, &group, timeout)));
    }
    ended.and(given_up)?;
    let Some((topic, end)) = topics.first().zip(end_before) else { return Ok(None) };
    let times = dry.times(&consumer, topic);
    // The coordinator answers before the marker is written.
    while times.end().is_ok_and(|now| now <= end) && !times.is_over() {
        dry.producer.poll(PAUSE);
    }
    Ok(times.of_marker(end, (begun, now_ms())))
}

/// Which of `topics` are refused: the brokers refuse a transaction's topics together.
fn named(
    options: &Options,
    transactional: &Transactional,
    topics: &[String],
    group: &ConsumerGroupMetadata,
    timeout: Duration,
) -> Vec<String> {
    if topics.len() == 1 || topics.len() > TOPICS_NAMED_MAX {
        return topics.to_vec();
    }
    let is_refused = |topic: &&String| {
        let Ok(dry) = Dry::open(options, &format!("{}.check", transactional.id), timeout) else {
            return false;
        };
        let ended = dry.attempt(transactional, group, &[topic.as_str()]);
        // What cannot be given up the brokers give up.
        let _ = dry.give_up();
        matches!(ended, Err(Refusal::Topics(_)))
    };
    let refused: Vec<String> = topics.iter().filter(is_refused).cloned().collect();
    if refused.is_empty() { topics.to_vec() } else { refused }
}

/// A dry transaction's producer.
struct Dry {
    producer: BaseProducer<Quiet>,
    id: String,
    timeout: Duration,
}

impl Dry {
    fn open(options: &Options, id: &str, timeout: Duration) -> Result<Self, Refusal> {
        let mut config = config(options)?;
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", TRANSACTION_TIME.as_millis().to_string())
            // Nothing leaves the queue: neither for its age nor because there is enough of it.
            .set("linger.ms", (TRANSACTION_TIME.as_millis() - 1).to_string())
            .set("batch.num.messages", "10000")
            .set("batch.size", "1000000")
            .remove("message.timeout.ms");
        let producer = create(&config, options)?;
        let this = Self { producer, id: id.to_owned(), timeout };
        this.patiently(timeout, |producer| producer.init_transactions(CALL))
            .map_err(|error| this.refusal(&error))?;
        Ok(this)
    }

    /// Everything between the beginning and the end.
    fn attempt(
        &self,
        transactional: &Transactional,
        group: &ConsumerGroupMetadata,
        topics: &[&str],
    ) -> Result<(), Refusal> {
        // In half its time the transaction is given up in any case, so that no record ever leaves the queue.
        let time = self.timeout.min(TRANSACTION_TIME / 2);
        for topic in topics {
            // A record for a topic that librdkafka does not know yet would wait for that first.
            let known = self.producer.client().fetch_metadata(Some(topic), time);
            known.map_err(|error| Refusal::Unknown(error.to_string()))?;
        }
        self.producer.begin_transaction().map_err(|error| self.refusal(&error))?;
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(&transactional.cursor_topic, 0, Offset::Offset(0))
            .map_err(|error| Refusal::Unknown(error.to_string()))?;
        let cursor =
            |producer: &BaseProducer<Quiet>| producer.send_offsets_to_transaction(&offsets, group, CALL);
        self.patiently(time, cursor).map_err(|error| match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::GroupAuthorizationFailed) => Refusal::Group(transactional.group.clone()),
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                Refusal::Cursor(transactional.cursor_topic.clone())
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                let topic = &transactional.cursor_topic;
                Refusal::Unknown(format!("topic {topic}, for which its cursor is kept, does not exist yet"))
            }
            _ => self.refusal(&error),
        })?;
        if topics.is_empty() {
            return Ok(());
        }
        for topic in topics {
            let record = BaseRecord::<[u8], [u8]>::to(topic).partition(0).payload(b"fieldpost check");
            self.producer.send(record).map_err(|(error, _)| self.refusal(&error))?;
        }
        // Order: the coordinator answers in turn, so the answer to the second of these comes behind the one about the
        // partitions, which are announced a moment after the record came.
        for _ in 0..2 {
            self.producer.poll(PAUSE);
            self.patiently(time, cursor).map_err(|error| match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                    Refusal::Topics(topics.iter().map(|topic| (*topic).to_owned()).collect())
                }
                _ => self.refusal(&error),
            })?;
        }
        Ok(())
    }

    /// Throws the records away and ends the transaction.
    fn give_up(&self) -> Result<(), Refusal> {
        self.producer.purge(PurgeConfig::default().queue().inflight());
        let deadline = Instant::now() + CALL;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.producer.poll(PAUSE);
        }
        let ended = self.patiently(self.timeout, |producer| producer.abort_transaction(CALL));
        ended.map_err(|error| self.refusal(&error))
    }

    fn times<'a>(&self, consumer: &'a BaseConsumer<Trouble>, topic: &'a str) -> Times<'a, Trouble> {
        Times { consumer, topic, partition: 0, deadline: Instant::now() + self.timeout }
    }

    /// Repeats `call` for as long as that may help, up to `time`.
    fn patiently(
        &self,
        time: Duration,
        call: impl Fn(&BaseProducer<Quiet>) -> KafkaResult<()>,
    ) -> KafkaResult<()> {
        let deadline = Instant::now() + time;
        loop {
            match call(&self.producer) {
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                    self.producer.poll(PAUSE);
                }
                ended => return ended,
            }
        }
    }

    fn refusal(&self, error: &KafkaError) -> Refusal {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => Refusal::Id(self.id.clone()),
            Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced) => {
                Refusal::Unknown("another check of this agent runs".to_owned())
            }
            _ => Refusal::Unknown(error.to_string()),
        }
    }
}

/// Whether the agent's own id is allowed; see the module.
fn own_id(options: &Options, id: &str, timeout: Duration) -> Result<bool, Refusal> {
    let mut config = config(options)?;
    config
        .set("transactional.id", id)
        .set("transaction.timeout.ms", IMPOSSIBLE_TIMEOUT_MS)
        .remove("message.timeout.ms");
    let dry = Dry { producer: create(&config, options)?, id: id.to_owned(), timeout };
    match dry.patiently(timeout, |producer| producer.init_transactions(CALL)) {
        // The impossible was possible; the id is allowed all the same.
        Ok(()) => Ok(true),
        Err(error) => match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::InvalidTransactionTimeout) => Ok(true),
            Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => Ok(false),
            _ => Err(dry.refusal(&error)),
        },
    }
}

fn config(options: &Options) -> Result<ClientConfig, Refusal> {
    client_config(options).map_err(|error| Refusal::Unknown(error.to_string()))
}

fn create(config: &ClientConfig, options: &Options) -> Result<BaseProducer<Quiet>, Refusal> {
    let context = Quiet { trouble: Trouble::of(options), has_id: Arc::default() };
    config.create_with_context(context).map_err(|error| Refusal::Unknown(error.to_string()))
}

/// For the group's name and for the times; it joins no group.
fn consumer(options: &Options, transactional: &Transactional) -> Result<BaseConsumer<Trouble>, Refusal> {
    let mut config = config(&Options { transactional: None, ..options.clone() })?;
    config.set("group.id", &transactional.group);
    config.create_with_context(Trouble::of(options)).map_err(|error| Refusal::Unknown(error.to_string()))
}

/// Says nothing in the log, and notes when an idempotent producer has its id.
struct Quiet {
    trouble: Trouble,
    has_id: Arc<AtomicBool>,
}

impl ClientContext for Quiet {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}

    fn error(&self, _error: KafkaError, _reason: &str) {}

    fn stats_raw(&self, statistics: &[u8]) {
        if memmem::find(statistics, br#""idemp_state": "Assigned""#).is_some() {
            self.has_id.store(true, Ordering::Relaxed);
        }
    }

    fn generate_oauth_token(&self, name: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.trouble.generate_oauth_token(name)
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, (): ()) {}
}
