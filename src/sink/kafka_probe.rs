//! Asks Kafka whether it would take the agent's records, and librdkafka whether it knows the properties.
//!
//! A consumer asks, not a producer: asking for a topic's metadata as a producer would create the topic.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use thiserror::Error;

use super::kafka::{self, Options};
use super::kafka_security::Security;
use crate::log::quietly;

/// Version of librdkafka.
pub fn library_version() -> String {
    rdkafka::util::get_rdkafka_version().1
}

/// What Kafka said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Brokers of the cluster; zero when only its id was asked for.
    pub brokers: usize,
    /// The topic.
    pub topic: Topic,
}

/// The state of the configured topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// Its name depends on the event, so there is nothing to ask for.
    PerEvent,
    /// It does not exist; the broker may or may not make it with the first record.
    Missing,
    /// It exists.
    Exists {
        /// Its partitions.
        partitions: usize,
        /// Those among them that nobody leads and that take no records for now.
        leaderless: usize,
        /// Replicas of the partition that has the fewest.
        replicas: usize,
    },
}

/// Why Kafka would not take the agent's records. The message says what to look at.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// librdkafka does not take a property: a configuration error.
    #[error("{0}; see kafka.properties")]
    Property(String),
    /// A file of a password or of TLS cannot be used: a human is needed.
    #[error("{0}")]
    File(String),
    /// The agent does not trust Kafka, or Kafka does not let it in: a human is needed.
    #[error("{0}")]
    Refused(String),
    /// No broker answers: try again once they run.
    #[error("{0}; are the brokers running, and is kafka.brokers right?")]
    Unreachable(String),
    /// The topic must not be used: a human is needed.
    #[error("topic {topic}: {reason}")]
    Topic {
        /// Its name.
        topic: String,
        /// What Kafka said.
        reason: String,
    },
}

/// Whether librdkafka knows every property and takes its value. Connects to nothing.
///
/// # Errors
/// [`ProbeError::Property`] names the property.
pub fn validate(options: &Options) -> Result<(), ProbeError> {
    client_config(options)?.create_native_config().map(drop).map_err(|error| property(&error))
}

/// Connects and reads the metadata of `topic`; none: its name depends on the event. Blocks for up to `timeout`.
///
/// # Errors
/// [`ProbeError`], as the sink would meet it.
pub fn probe(options: &Options, topic: Option<&str>, timeout: Duration) -> Result<Found, ProbeError> {
    let trouble = Trouble::of(options);
    let consumer: BaseConsumer<Trouble> =
        client_config(options)?.create_with_context(trouble.clone()).map_err(|error| property(&error))?;
    let Some(topic) = topic else {
        let answered = consumer.client().fetch_cluster_id(timeout).is_some();
        return match answered {
            true => Ok(Found { brokers: 0, topic: Topic::PerEvent }),
            false => Err(unreachable(&consumer, &trouble, timeout)),
        };
    };
    let metadata = consumer
        .fetch_metadata(Some(topic), timeout)
        .map_err(|_| unreachable(&consumer, &trouble, timeout))?;
    let topic = described(&metadata, topic)?;
    Ok(Found { brokers: metadata.brokers().len(), topic })
}

fn unreachable(consumer: &BaseConsumer<Trouble>, trouble: &Trouble, timeout: Duration) -> ProbeError {
    // librdkafka tells its errors to whoever polls; there are few, and each poll takes one.
    for _ in 0..EVENTS_MAX {
        let _ = consumer.poll(Duration::ZERO);
    }
    let said = trouble.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some((code, reason)) = &said.refused {
        return ProbeError::Refused(trouble.security.remedy(*code, reason));
    }
    ProbeError::Unreachable(
        said.other.unwrap_or_else(|| format!("no answer within {} ms", timeout.as_millis())),
    )
}

/// More errors than a few brokers cause within the longest time-out anyone waits for.
const EVENTS_MAX: usize = 100;

/// The topic of that name in a broker's answer; rust-rdkafka panics on a name that is no text.
pub(in crate::sink) fn topic_of<'a>(metadata: &'a Metadata, name: &str) -> Option<&'a MetadataTopic> {
    let is_it = |topic: &&MetadataTopic| quietly(AssertUnwindSafe(|| topic.name() == name)).unwrap_or(false);
    metadata.topics().iter().find(is_it)
}

fn described(metadata: &Metadata, name: &str) -> Result<Topic, ProbeError> {
    let Some(topic) = topic_of(metadata, name) else {
        return Ok(Topic::Missing);
    };
    match topic.error().map(RDKafkaErrorCode::from) {
        None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {
            let partitions = topic.partitions();
            let leaderless = partitions.iter().filter(|partition| partition.leader() < 0).count();
            let replicas = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            Ok(Topic::Exists { partitions: partitions.len(), leaderless, replicas })
        }
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Ok(Topic::Missing)
        }
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => Err(ProbeError::Topic {
            topic: name.to_owned(),
            reason: "access denied; let this user describe and write it, or set kafka.topic".to_owned(),
        }),
        Some(other) => {
            Err(ProbeError::Topic { topic: name.to_owned(), reason: format!("{other}; see kafka.topic") })
        }
    }
}

/// The producer's own configuration: what it would meet, this meets.
pub(super) fn client_config(options: &Options) -> Result<ClientConfig, ProbeError> {
    let mut config = kafka::client_config(options).map_err(|error| ProbeError::File(error.to_string()))?;
    config.set("allow.auto.create.topics", "false");
    Ok(config)
}

/// librdkafka's own words, which name the property, without their wrapping.
fn property(error: &KafkaError) -> ProbeError {
    ProbeError::Property(match error {
        KafkaError::ClientConfig(_, reason, _, _) | KafkaError::ClientCreation(reason) => reason.clone(),
        other => other.to_string(),
    })
}

/// Remembers why connections failed: callers of librdkafka just hear of a time-out.
#[derive(Clone)]
pub(super) struct Trouble {
    security: Security,
    said: Arc<Mutex<Said>>,
}

impl Trouble {
    pub(super) fn of(options: &Options) -> Self {
        Self { security: options.security.clone(), said: Arc::default() }
    }
}

#[derive(Clone, Default)]
struct Said {
    /// About TLS or the login, with its code.
    refused: Option<(Option<RDKafkaErrorCode>, String)>,
    other: Option<String>,
}

impl ClientContext for Trouble {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    /// Kept silent: what matters comes as an error, too.
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if self.security.is_about(code, reason) {
            said.refused = Some((code, reason.to_owned()));
            return;
        }
        // "1/1 brokers are down" says less than the error before it.
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        // "host:port/bootstrap: Connect to ipv4#host:port failed: Connection refused (after 0ms in state CONNECT)"
        let reason = reason.split_once("/bootstrap: ").map_or(reason, |(_, reason)| reason);
        let reason = reason.split_once(" (after ").map_or(reason, |(reason, _)| reason);
        said.other = Some(reason.to_owned());
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.security.token()
    }
}

impl ConsumerContext for Trouble {}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::sink::kafka::Compression;

    fn options(brokers: &str) -> Options {
        Options {
            brokers: brokers.to_owned(),
            compression: Compression::Lz4,
            properties: Vec::new(),
            queue_bytes_max: 4 << 20,
            record_bytes_max: 1 << 20,
            leaves_out_rejected: false,
            transactional: None,
            security: Security::default(),
        }
    }

    #[test]
    fn brokers_get_no_figures_unless_the_configuration_says_so() {
        let mut options = options("127.0.0.1:9");
        assert_eq!(client_config(&options).unwrap().get("enable.metrics.push"), Some("false"));
        options.properties = vec![("enable.metrics.push".to_owned(), "true".to_owned())];
        assert_eq!(client_config(&options).unwrap().get("enable.metrics.push"), Some("true"));
    }

    #[test]
    fn properties_are_librdkafkas() {
        let mut options = options("127.0.0.1:9");
        options.properties = vec![("socket.keepalive.enable".to_owned(), "true".to_owned())];
        assert_eq!(validate(&options), Ok(()));
        options.properties = vec![("sockt.x".to_owned(), "1".to_owned())];
        let message = "No such configuration property: \"sockt.x\"; see kafka.properties";
        assert_eq!(validate(&options).unwrap_err().to_string(), message);
        assert_eq!(
            probe(&options, Some("fieldpost"), Duration::from_secs(1)).unwrap_err().to_string(),
            message
        );
    }

    #[test]
    fn a_topic_is_described() {
        let cluster = MockCluster::new(2).unwrap();
        cluster.create_topic("fieldpost", 3, 2).unwrap();
        let options = options(&cluster.bootstrap_servers());
        let timeout = Duration::from_secs(20);
        let exists = Topic::Exists { partitions: 3, leaderless: 0, replicas: 2 };
        assert_eq!(probe(&options, Some("fieldpost"), timeout), Ok(Found { brokers: 2, topic: exists }));
        assert_eq!(probe(&options, None, timeout), Ok(Found { brokers: 0, topic: Topic::PerEvent }));
    }

    #[test]
    fn a_closed_port_says_so() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let message =
            probe(&options(&format!("127.0.0.1:{port}")), Some("fieldpost"), Duration::from_millis(300))
                .unwrap_err()
                .to_string();
        assert!(message.contains("Connection refused; are the brokers running"), "{message}");
    }
}
