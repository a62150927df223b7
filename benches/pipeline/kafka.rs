//! Kafka from outside: topics, how much arrived, and the bare producer that the socket path is held against.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldpost::buffer::block::Origin;
use fieldpost::event::{Event, EventId, Payload, Seq, Stamp, Way};
use fieldpost::sink::record::templates::Template;
use fieldpost::sink::record::{self, Formatter, Lane};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

use crate::process::{PATIENCE, Process, service, unique, wait_for};
use crate::socket::{self, SOURCES};

/// The word that makes this program the bare producer.
pub(crate) const REFERENCE: &str = "reference-producer";

const PARTITIONS: i32 = 4;

/// A new topic and how many records are in it.
pub(crate) struct Topic {
    pub(crate) name: String,
    looks: BaseConsumer,
}

impl Topic {
    pub(crate) fn create() -> Self {
        let name = unique("bench");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", service("KAFKA"));
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let topic = NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = AdminOptions::new();
        let made = runtime.block_on(async { admin.create_topics([&topic], &options).await });
        made.unwrap().remove(0).unwrap();
        let looks: BaseConsumer = config.set("group.id", &name).create().unwrap();
        let topic = Self { name, looks };
        wait_for("the topic has leaders", Duration::from_millis(20), || topic.try_count());
        topic
    }

    /// The section of a configuration that sends to it, for keys to follow.
    pub(crate) fn toml(&self) -> String {
        format!("[kafka]\nbrokers = \"{}\"\ntopic = \"{}\"\n", service("KAFKA"), self.name)
    }

    fn try_count(&self) -> Option<u64> {
        (0..PARTITIONS)
            .map(|partition| {
                let (low, high) =
                    self.looks.fetch_watermarks(&self.name, partition, Duration::from_secs(10)).ok()?;
                u64::try_from(high - low).ok()
            })
            .sum()
    }

    /// Records in it.
    pub(crate) fn count(&self) -> u64 {
        self.try_count().unwrap_or(0)
    }

    /// When there were `count` records, seen with a grain of `pause`.
    pub(crate) fn wait_count(&self, count: u64, pause: Duration) -> Instant {
        wait_for("the records are in Kafka", pause, || (self.count() >= count).then(Instant::now))
    }

    /// When the agent's cursor, committed with the events under `group`, stood behind the event `seq`.
    pub(crate) fn wait_cursor(&self, group: &str, seq: u64, pause: Duration) -> Instant {
        use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", service("KAFKA"))
            .set("group.id", group)
            .create()
            .unwrap();
        let wanted = Offset::Offset(i64::try_from(seq + 1).unwrap());
        wait_for("the cursor is committed", pause, || {
            let mut asked = TopicPartitionList::new();
            asked.add_partition(&self.name, 0);
            let found = consumer.committed_offsets(asked, PATIENCE).ok()?;
            (found.elements().first()?.offset() == wanted).then(Instant::now)
        })
    }

    /// Reads it from now on.
    pub(crate) fn follow(&self) -> BaseConsumer {
        use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", service("KAFKA"))
            .set("group.id", unique("bench"))
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(&self.name, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&partitions).unwrap();
        consumer
    }
}

/// Runs the bare producer; records a second from its start until Kafka has all, and its CPU seconds per million.
pub(crate) fn bare_producer(events: u64) -> (f64, f64) {
    let topic = Topic::create();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([REFERENCE, &service("KAFKA"), &topic.name, &events.to_string()]);
    command.stdout(std::process::Stdio::piped());
    let start = Instant::now();
    let process = Process::start(&mut command);
    let end = topic.wait_count(events, Duration::from_millis(10));
    // It waits a moment after its last confirmation, so that it can be looked at.
    let cpu = process.usage().cpu;
    process.wait();
    (events as f64 / (end - start).as_secs_f64(), cpu.as_secs_f64() * 1e6 / events as f64)
}

/// The bare producer: the agent's records, made beforehand, in a loop.
pub(crate) fn reference(words: &[String]) {
    let [brokers, topic, events] = words else { panic!("brokers, topic, events") };
    let events: usize = events.parse().unwrap();
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.codec", "lz4")
        .set("queue.buffering.max.kbytes", "4096")
        .set("batch.size", "524288")
        .set("linger.ms", "5")
        .create()
        .unwrap();
    let records = records(topic);
    for record in records.iter().cycle().take(events) {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let mut message = BaseRecord::to(topic).key(&record.key).payload(&record.payload).headers(headers);
        while let Err((error, back)) = producer.send(message) {
            assert!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
            message = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    producer.flush(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_secs(1));
}

struct OwnedRecord {
    key: Vec<u8>,
    payload: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
}

/// What the agent makes of [`socket::payload`].
fn records(topic: &str) -> Vec<OwnedRecord> {
    let options = record::Options::new(Template::literal(topic));
    let mut formatter = Formatter::new(options, &[], Arc::default());
    (0..SOURCES)
        .map(|n| {
            let event = Event {
                id: EventId::Generated(uuid::Uuid::now_v7().into_bytes()),
                kind: "reading",
                source_type: "energy-meter",
                source_id: &socket::source_id(n),
                timestamp: None,
                received: Stamp {
                    wall_us: 1_772_366_400_000_000,
                    boot_us: 5_000_000 + n,
                    clock_trusted: true,
                },
                payload: Payload::Json(&socket::payload(n)),
                way: Way::USUAL,
            };
            let origin = Origin { epoch: 1, boot: [7; 16] };
            let formatted =
                formatter.format(Seq(1_000_000 + n), origin, Lane::Live, &event, |record| OwnedRecord {
                    key: record.key.unwrap_or_default().to_vec(),
                    payload: record.payload.to_vec(),
                    headers: record
                        .headers
                        .iter()
                        .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
                        .collect(),
                });
            formatted.expect("an envelope needs no schema")
        })
        .collect()
}
