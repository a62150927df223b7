//! The demo's Kafka: librdkafka's mock cluster in this process, and a consumer of its own on it.
//!
//! With `sink::kafka` the only file that names rdkafka. The cluster speaks the real protocol on a real port; it keeps
//! at most 5 MiB a partition, so the consumer reads along from the first record on, and a record that was thrown away
//! before it was read shows as a gap in the offsets.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Headers as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::Failure;
use super::consumer::{Position, Record};

/// The demo's topic, the agent's default.
const TOPIC: &str = "fieldpost";

/// Enough that a source's order is tested across partitions, and 40 MiB of records fit.
pub(super) const PARTITIONS: i32 = 8;

/// Every broker.
const ALL: i32 = -1;

/// Longest wait for an answer about the topic's end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// One broker that can be switched off and on.
pub(super) struct Cluster {
    mock: MockCluster<'static, DefaultProducerContext>,
}

impl Cluster {
    /// Starts it on a free port of this machine, with an empty topic.
    pub(super) fn start() -> Result<Self, Failure> {
        let mock = MockCluster::new(1).map_err(Failure::kafka)?;
        mock.create_topic(TOPIC, PARTITIONS, 1).map_err(Failure::kafka)?;
        Ok(Self { mock })
    }

    /// Where it listens, `host:port`.
    pub(super) fn brokers(&self) -> String {
        self.mock.bootstrap_servers()
    }

    /// Breaks every connection and refuses new ones.
    pub(super) fn down(&self) -> Result<(), Failure> {
        self.mock.broker_down(ALL).map_err(Failure::kafka)
    }

    /// Takes connections again.
    pub(super) fn up(&self) -> Result<(), Failure> {
        self.mock.broker_up(ALL).map_err(Failure::kafka)
    }
}

/// Reads every partition from its first record on.
pub(super) struct Reader {
    inner: BaseConsumer,
}

impl Reader {
    pub(super) fn connect(brokers: &str) -> Result<Self, Failure> {
        let inner: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "fieldpost-demo")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "50")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .create()
            .map_err(Failure::kafka)?;
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(TOPIC, partition, Offset::Beginning).map_err(Failure::kafka)?;
        }
        inner.assign(&partitions).map_err(Failure::kafka)?;
        Ok(Self { inner })
    }

    /// Hands the next record to `take`. Whether one came within `timeout`.
    pub(super) fn read(&self, timeout: Duration, take: impl FnOnce(&Record<'_>)) -> bool {
        // Errors are the outage; the library connects again by itself.
        let Some(Ok(message)) = self.inner.poll(timeout) else { return false };
        let header = |name: &str| {
            let found = message.headers()?.iter().find(|header| header.key == name)?;
            std::str::from_utf8(found.value?).ok()
        };
        let position = || {
            Some(Position {
                agent: header("fieldpost-agent")?,
                log: header("fieldpost-log")?,
                epoch: header("fieldpost-epoch")?.parse().ok()?,
                seq: header("fieldpost-seq")?.parse().ok()?,
            })
        };
        take(&Record {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().unwrap_or_default(),
            value: message.payload().unwrap_or_default(),
            position: position(),
        });
        true
    }

    /// The offset behind the last record of each partition; `None` when the cluster does not answer.
    pub(super) fn ends(&self) -> Option<Vec<i64>> {
        let end = |partition| self.inner.fetch_watermarks(TOPIC, partition, ANSWER_TIMEOUT).ok();
        (0..PARTITIONS).map(|partition| end(partition).map(|(_, end)| end)).collect()
    }
}
