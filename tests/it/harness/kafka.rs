//! Topics, and reading them back from the beginning.
//!
//! Readers take part in no group and see committed records only (`read_committed`), as a careful consumer does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::unique;
use super::wait::{USUAL, eventually, scaled};

/// How long one look at the broker may take.
const LOOK: Duration = Duration::from_millis(100);

/// One record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    /// Empty for a record without a value.
    pub(crate) payload: Vec<u8>,
    /// Whether it has a value, even an empty one.
    pub(crate) has_value: bool,
    /// In the record's order; a name can come more than once.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    /// Milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
}

impl Record {
    /// The key as text.
    #[track_caller]
    pub(crate) fn key_text(&self) -> &str {
        let key = self.key.as_deref().expect("the record has a key");
        std::str::from_utf8(key).expect("the key is UTF-8")
    }

    /// The last header of that name, as text.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(found, _)| found == name)?;
        Some(std::str::from_utf8(value).expect("the header is UTF-8"))
    }

    /// The payload as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).expect("the payload is JSON")
    }

    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            headers
                .iter()
                .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
                .collect()
        });
        Self {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().unwrap_or_default().to_vec(),
            has_value: message.payload().is_some(),
            headers,
            timestamp: message.timestamp().to_millis(),
        }
    }
}

/// Creates a topic with a name of its own and returns the name.
pub(crate) fn create_topic(brokers: &str, partitions: i32) -> String {
    let name = unique("it");
    create_topic_named(brokers, &name, partitions, &[]);
    name
}

/// Creates `name`, with topic settings such as `("max.message.bytes", "1000")`. Returns when the broker shows all of
/// its partitions with a leader.
pub(crate) fn create_topic_named(brokers: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().expect("an admin client");
    let topic = settings
        .iter()
        .fold(NewTopic::new(name, partitions, TopicReplication::Fixed(1)), |topic, (key, value)| {
            topic.set(key, value)
        });
    let options = AdminOptions::new().operation_timeout(Some(scaled(USUAL)));
    let results = block_on(admin.create_topics([&topic], &options)).expect("the broker answers");
    for result in results {
        result.expect("the topic is created");
    }
    eventually("the new topic's partitions have leaders", USUAL, || {
        let metadata = admin.inner().fetch_metadata(Some(name), LOOK).ok()?;
        let shown = metadata.topics().first()?.partitions();
        let ready = shown.iter().filter(|partition| partition.leader() >= 0).count();
        (i32::try_from(ready) == Ok(partitions)).then_some(())
    });
}

/// Changes a setting of a topic.
pub(crate) fn alter_topic(brokers: &str, name: &str, key: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().expect("an admin client");
    let change = AlterConfig::new(ResourceSpecifier::Topic(name)).set(key, value);
    let results = block_on(admin.alter_configs([&change], &AdminOptions::new())).expect("the broker answers");
    for result in results {
        result.expect("the topic is changed");
    }
}

/// Reads `topic` from the beginning until `is_enough` says so of what has been read, in reading order.
///
/// # Panics
/// When that takes longer than `patience` (scaled).
#[track_caller]
pub(crate) fn consume_until(
    brokers: &str,
    topic: &str,
    patience: Duration,
    mut is_enough: impl FnMut(&[Record]) -> bool,
) -> Vec<Record> {
    let deadline = Instant::now() + scaled(patience);
    let mut reader = Reader::open(brokers, topic, patience);
    let mut records = Vec::new();
    while !is_enough(&records) {
        assert!(
            Instant::now() < deadline,
            "not enough within {patience:?}: {} records of {topic}, the last at {:?}",
            records.len(),
            records.last().map(|record| (record.partition, record.offset))
        );
        records.extend(reader.next(LOOK));
    }
    records
}

/// Reads `topic` from the beginning until there are `count` records. More may follow: see [`read_all`].
#[track_caller]
pub(crate) fn consume_count(brokers: &str, topic: &str, count: usize, patience: Duration) -> Vec<Record> {
    consume_until(brokers, topic, patience, |records| records.len() >= count)
}

/// Everything that `topic` holds now, from the beginning to the end of each partition. What is written meanwhile may be
/// among it.
#[track_caller]
pub(crate) fn read_all(brokers: &str, topic: &str) -> Vec<Record> {
    let deadline = Instant::now() + scaled(USUAL);
    let mut reader = Reader::open(brokers, topic, USUAL);
    let mut records = Vec::new();
    while !reader.is_at_the_end() {
        assert!(
            Instant::now() < deadline,
            "the end of {topic} was not reached, {} records read",
            records.len()
        );
        records.extend(reader.next(LOOK));
    }
    records
}

/// Writes a record of that time, in milliseconds since 1970, to a partition of `topic`.
pub(crate) fn put_at(brokers: &str, topic: &str, partition: i32, time_ms: i64) {
    let producer: BaseProducer = client(brokers).create().expect("a producer");
    let record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition).timestamp(time_ms).payload(b"{}");
    producer.send(record).map_err(|(error, _)| error).expect("there is room");
    producer.flush(scaled(USUAL)).expect("the broker takes it");
}

/// Writes `records` to `topic` as they are: partition, key, headers, value.
pub(crate) fn copy(brokers: &str, topic: &str, records: &[Record]) {
    let producer: BaseProducer =
        client(brokers).set("enable.idempotence", "true").create().expect("a producer");
    for record in records {
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        let mut copy =
            BaseRecord::to(topic).partition(record.partition).headers(headers).payload(&record.payload);
        copy.key = record.key.as_ref();
        producer.send(copy).expect("the queue has room");
    }
    producer.flush(scaled(USUAL)).expect("the broker takes the records");
}

/// A consumer group, looked at from outside.
pub(crate) struct Group {
    name: String,
    client: BaseConsumer,
}

impl Group {
    pub(crate) fn new(brokers: &str, name: &str) -> Self {
        let client = client(brokers).set("group.id", name).create().expect("a client");
        Self { name: name.to_owned(), client }
    }

    /// Waits until the group has committed the end of each partition of `topic` that holds records.
    #[track_caller]
    pub(crate) fn wait_end(&self, topic: &str, patience: Duration) {
        eventually(&format!("{} has committed the end of {topic}", self.name), patience, || {
            let metadata = self.client.fetch_metadata(Some(topic), LOOK * 10).ok()?;
            let mut list = TopicPartitionList::new();
            for partition in metadata.topics().first()?.partitions() {
                list.add_partition(topic, partition.id());
            }
            let committed = self.client.committed_offsets(list, LOOK * 10).ok()?;
            let is_there = committed.elements().iter().all(|place| {
                let end = self.client.fetch_watermarks(topic, place.partition(), LOOK * 10);
                end.is_ok_and(|(_, end)| end == 0 || place.offset() == Offset::Offset(end))
            });
            is_there.then_some(())
        });
    }

    /// Waits until the group has `count` members, each with its partitions.
    #[track_caller]
    pub(crate) fn wait_members(&self, count: usize, patience: Duration) {
        eventually(&format!("{} has {count} members", self.name), patience, || {
            let list = self.client.client().fetch_group_list(Some(&self.name), LOOK * 10).ok()?;
            let group = list.groups().first()?;
            (group.state() == "Stable" && group.members().len() == count).then_some(())
        });
    }
}

/// Hands every record of a topic, from the beginning, to a function on a thread of its own, for as long as it lives,
/// over broker crashes too.
pub(crate) struct Follower {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Begins at the beginning of `topic`, which must exist.
    pub(crate) fn start(brokers: &str, topic: &str, mut take: impl FnMut(Record) + Send + 'static) -> Self {
        let mut reader = Reader::open(brokers, topic, USUAL);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(record) = reader.next(LOOK) {
                        take(record);
                    }
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the reading thread has been printed; the test's own assertion is what fails it.
            drop(thread.join());
        }
    }
}

/// Reads a topic in the background and keeps all of it: see [`Follower`].
pub(crate) struct Consumer {
    records: Arc<Mutex<Vec<Record>>>,
    _follower: Follower,
}

impl Consumer {
    /// Begins at the beginning of `topic`, which must exist.
    pub(crate) fn start(brokers: &str, topic: &str) -> Self {
        let records = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&records);
        let follower = Follower::start(brokers, topic, move |record| kept.lock().unwrap().push(record));
        Self { records, _follower: follower }
    }

    /// What has been read so far.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap().clone()
    }

    /// How many records have been read so far.
    pub(crate) fn count(&self) -> usize {
        self.records.lock().unwrap().len()
    }

    /// Waits until `is_enough` says so of what has been read, and returns that.
    #[track_caller]
    pub(crate) fn wait_until(
        &self,
        patience: Duration,
        mut is_enough: impl FnMut(&[Record]) -> bool,
    ) -> Vec<Record> {
        eventually("enough records are read", patience, || {
            let records = self.records.lock().unwrap();
            is_enough(&records).then(|| records.clone())
        })
    }

    #[track_caller]
    pub(crate) fn wait_count(&self, count: usize, patience: Duration) -> Vec<Record> {
        self.wait_until(patience, |records| records.len() >= count)
    }
}

/// All partitions of a topic, from the beginning.
struct Reader {
    consumer: BaseConsumer,
    /// The end of each partition, as it was at the beginning: who writes meanwhile moves it on and on.
    ends: BTreeMap<i32, i64>,
    ended: BTreeSet<i32>,
}

impl Reader {
    #[track_caller]
    fn open(brokers: &str, topic: &str, patience: Duration) -> Self {
        let consumer: BaseConsumer = client(brokers)
            // librdkafka insists on a name, nothing is ever committed under it.
            .set("group.id", unique("reader"))
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "50")
            .create()
            .expect("a consumer");
        // The agent under test may be the one that creates the topic, with its first record.
        let ends = eventually("the topic to read exists", patience, || {
            let metadata = consumer.fetch_metadata(Some(topic), LOOK * 10).ok()?;
            let found = metadata.topics().first().filter(|found| found.error().is_none())?;
            let end = |id| Some((id, consumer.fetch_watermarks(topic, id, LOOK * 10).ok()?.1));
            let ends: Option<BTreeMap<i32, i64>> =
                found.partitions().iter().map(|partition| end(partition.id())).collect();
            ends.filter(|ends| !ends.is_empty())
        });
        let mut list = TopicPartitionList::new();
        for partition in ends.keys() {
            list.add_partition_offset(topic, *partition, Offset::Beginning).expect("a valid offset");
        }
        consumer.assign(&list).expect("partitions can be assigned");
        Self { consumer, ends, ended: BTreeSet::new() }
    }

    fn next(&mut self, wait: Duration) -> Option<Record> {
        match self.consumer.poll(wait)? {
            Ok(message) => {
                let partition = message.partition();
                if self.ends.get(&partition).is_some_and(|end| message.offset() + 1 >= *end) {
                    self.ended.insert(partition);
                }
                Some(Record::of(&message))
            }
            // Needed where the last thing in a partition is the mark of a transaction.
            Err(KafkaError::PartitionEOF(partition)) => {
                self.ended.insert(partition);
                None
            }
            // Lost connections and brokers on their way up: librdkafka tries again, the caller's patience decides.
            Err(_) => None,
        }
    }

    fn is_at_the_end(&self) -> bool {
        self.ends.keys().all(|partition| self.ended.contains(partition))
    }
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("allow.auto.create.topics", "false")
        // Fault tests take brokers away and bring them back: find out soon.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        // Broker loss is expected; without this each one writes to the test's output.
        .set_log_level(rdkafka::config::RDKafkaLogLevel::Critical);
    config
}

/// On a thread of its own, because a test may itself run inside a runtime.
fn block_on<F: Future<Output: Send> + Send>(future: F) -> F::Output {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(future)
        });
        waiting.join().expect("the future does not panic")
    })
}
