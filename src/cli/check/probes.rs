//! Asks the directory and the services, one after the other, and words what they say.

use std::time::Duration;

use super::finding::{Area, Finding, Level};
use crate::buffer::probe::{self as buffer_probe, Owner};
use crate::cli::exit;
use crate::config::units::about_bytes;
use crate::config::{Config, Redis};
use crate::event::{Event, EventId, LOSS_TYPE, OWN_SOURCE_TYPE, Payload, Stamp, Way};
use crate::ingest::{mqtt, mqtt_probe, unix_probe};
use crate::sink::record::Timestamp;
use crate::sink::{kafka, kafka_probe, kafka_settings, redis};

/// Everything that is configured; `say` hears each finding as soon as it is known.
pub(super) fn all(config: &Config, timeout: Duration, say: &mut impl FnMut(Finding)) {
    buffer(config).into_iter().for_each(&mut *say);
    say(unix(config));
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            say(runtime.block_on(mqtt(config.mqtt.as_ref(), timeout)));
            kafka(config, timeout).into_iter().for_each(&mut *say);
            say(runtime.block_on(redis(config.redis.as_ref(), timeout)));
        }
        Err(error) => {
            let message = format!("no service was asked, the runtime does not start: {error}");
            say(Finding::fail(Area::Mqtt, exit::TEMPORARY, message));
        }
    }
}

fn buffer(config: &Config) -> Vec<Finding> {
    let options = &config.buffer;
    let dir = options.dir.display();
    let found = match buffer_probe::probe(&options.dir) {
        Ok(found) => found,
        Err(error) => {
            return vec![
                Finding::fail(Area::Buffer, exit::STORAGE, error.to_string()).about("agent.data_dir"),
            ];
        }
    };
    let mut findings = Vec::new();
    let free = about_bytes(found.free_bytes);
    let state = match (found.exists, found.owner) {
        (false, _) => "does not exist yet and can be made".to_owned(),
        (true, Owner::Nobody) => format!("writable, {} used, not open", about_bytes(found.used_bytes)),
        (true, Owner::Process(pid)) => {
            let pid = pid.map_or_else(String::new, |pid| format!(", process {pid}"));
            format!("{} used, open in a running agent{pid}", about_bytes(found.used_bytes))
        }
    };
    // One event and its surroundings must fit, or the agent cannot take a thing.
    let needed = (config.limits.event_bytes_max as u64).saturating_mul(4);
    if found.free_bytes < needed {
        let message = format!(
            "{dir}: only {free} free on its file system, {} needed; make room or set agent.data_dir",
            about_bytes(needed)
        );
        return vec![Finding::fail(Area::Buffer, exit::STORAGE, message).about("agent.data_dir")];
    }
    findings.push(Finding::ok(Area::Buffer, format!("{dir}: {state}, {free} free")));
    if found.used_bytes.saturating_add(found.free_bytes) < options.bytes_max {
        let message = format!(
            "{dir}: {free} free, less than buffer.max_bytes = {} still allows: the disk is full before the buffer is; \
             make room or lower buffer.max_bytes",
            about_bytes(options.bytes_max)
        );
        findings.push(Finding::warn(Area::Buffer, message).about("buffer.max_bytes"));
    }
    if found.forgets {
        let message = format!(
            "{dir}: is in memory (tmpfs): what was acknowledged does not survive a power cut; set agent.data_dir to a \
             folder on flash or disk"
        );
        findings.push(Finding::warn(Area::Buffer, message).about("agent.data_dir"));
    }
    findings
}

fn unix(config: &Config) -> Finding {
    let Some(options) = &config.unix else {
        return Finding::skip(Area::Unix, "off: unix.path is not set");
    };
    let path = options.path.display();
    match unix_probe::probe(&options.path) {
        Ok(unix_probe::Found::Free) => Finding::ok(Area::Unix, format!("{path}: free, can be made")),
        Ok(unix_probe::Found::Listening) => {
            Finding::ok(Area::Unix, format!("{path}: a running agent listens"))
        }
        Ok(unix_probe::Found::LeftOver) => Finding::ok(
            Area::Unix,
            format!("{path}: left over from an agent that was killed, will be replaced"),
        ),
        Err(error) => Finding::fail(Area::Unix, exit::STORAGE, error.to_string()).about("unix.path"),
    }
}

async fn mqtt(options: Option<&mqtt::Options>, timeout: Duration) -> Finding {
    let Some(options) = options else {
        return Finding::skip(Area::Mqtt, "off: mqtt.url is not set");
    };
    let (host, port) = (&options.host, options.port);
    match mqtt_probe::probe(options, timeout).await {
        Ok(version) => Finding::ok(Area::Mqtt, format!("{host}:{port}: lets us in, {version}")),
        Err(error) => {
            Finding::fail(Area::Mqtt, exit::TEMPORARY, format!("{host}:{port}: {error}")).about("mqtt.url")
        }
    }
}

fn kafka(config: &Config, timeout: Duration) -> Vec<Finding> {
    let Some(options) = &config.kafka else {
        return vec![Finding::skip(Area::Kafka, "kafka.brokers is not set")];
    };
    let records = &config.records;
    let loss =
        Event { kind: LOSS_TYPE, source_type: OWN_SOURCE_TYPE, source_id: &config.agent.id, ..EXAMPLE_EVENT };
    let of_losses_topic;
    let mut topics: Vec<(Option<&str>, &str)> = match (records.topic.fixed(), &records.allowed) {
        (Some(topic), _) => vec![(Some(topic), "kafka.topic")],
        (None, None) => vec![(None, "kafka.topic")],
        (None, Some(allowed)) => {
            let key = |topic| {
                if topic == allowed.fallback() { "kafka.fallback_topic" } else { "kafka.topics_allowed" }
            };
            allowed.all().map(|topic| (Some(topic), key(topic))).collect()
        }
    };
    // The agent's own events may have a topic of their own, and hold the line like any other when it is not there.
    if let Some(of_losses) = records.loss_topic.as_ref().filter(|_| config.ledger.announce)
        && let topic = of_losses.topic_of(&loss)
        && topics.iter().all(|(known, _)| *known != Some(topic.as_str()))
    {
        of_losses_topic = topic;
        topics.push((Some(&of_losses_topic), "ledger.topic"));
    }
    let of_routes = config.routes.all().iter().filter_map(|route| route.topic.as_deref());
    for of_route in of_routes.filter(|topic| !topic.contains('{')) {
        if topics.iter().all(|(known, _)| *known != Some(of_route)) {
            topics.push((Some(of_route), "route.topic"));
        }
    }
    let mut findings = Vec::new();
    for (name, key) in topics {
        findings.extend(topic(options, name, key, records.timestamp, timeout));
        if findings.iter().any(|finding| !matches!(finding.level, Level::Ok | Level::Warn)) {
            break;
        }
    }
    findings
}

/// Asks for a topic, which `key` names.
fn topic(
    options: &kafka::Options,
    name: Option<&str>,
    key: &str,
    timestamp: Timestamp,
    timeout: Duration,
) -> Vec<Finding> {
    let (brokers, topic) = (&options.brokers, name.unwrap_or_default());
    let found = match kafka_probe::probe(options, name, timeout) {
        Ok(found) => found,
        // Said already where the configuration was looked at.
        Err(kafka_probe::ProbeError::Property(_) | kafka_probe::ProbeError::File(_)) => {
            return vec![Finding::skip(Area::Kafka, "not asked: its configuration is of no use")];
        }
        Err(error) => {
            let key = match error {
                kafka_probe::ProbeError::Topic { .. } => key,
                _ => "kafka.brokers",
            };
            return vec![
                Finding::fail(Area::Kafka, exit::TEMPORARY, format!("{brokers}: {error}")).about(key),
            ];
        }
    };
    match found.topic {
        kafka_probe::Topic::PerEvent => {
            let message = format!("{brokers}: answers; the topic depends on the event and was not looked up");
            vec![Finding::ok(Area::Kafka, message)]
        }
        kafka_probe::Topic::Missing => {
            let message = format!(
                "{brokers}: answers, but topic {topic} does not exist; create it, unless the brokers do so with the \
                 first record (auto.create.topics.enable)"
            );
            vec![Finding::warn(Area::Kafka, message).about(key)]
        }
        kafka_probe::Topic::Exists { partitions, leaderless, replicas } => {
            let plural = if partitions == 1 { "" } else { "s" };
            let message = format!("{brokers}: topic {topic}, {partitions} partition{plural}");
            let mut findings = vec![Finding::ok(Area::Kafka, message)];
            if leaderless > 0 {
                let message = format!(
                    "{brokers}: topic {topic}: {leaderless} of {partitions} partition{plural} without a leader take no \
                     records until their brokers are back"
                );
                findings.push(Finding::warn(Area::Kafka, message).about(key));
            }
            match kafka_settings::settings(options, topic, timeout) {
                Some(settings) => findings.extend(super::topic::findings(options, topic, timestamp, &settings, replicas)),
                None => findings.push(Finding::skip(
                    Area::Kafka,
                    format!("{brokers}: topic {topic}: its settings are not told; DESCRIBE_CONFIGS would let check compare them"),
                )),
            }
            findings
        }
    }
}

async fn redis(redis: Option<&Redis>, timeout: Duration) -> Finding {
    let Some(Redis { options, channel, .. }) = redis else {
        return Finding::skip(Area::Redis, "off: redis.url is not set");
    };
    let (host, port) = (&options.host, options.port);
    let channel = channel.channel(&EXAMPLE_EVENT);
    let failed = |message: String| {
        Finding::fail(Area::Redis, exit::TEMPORARY, format!("{host}:{port}: {message}")).about("redis.url")
    };
    match tokio::time::timeout(timeout, redis::probe(options, &channel)).await {
        Ok(Ok(message)) => Finding::ok(Area::Redis, format!("{host}:{port}: {message}")),
        Ok(Err(error)) => failed(error.to_string()),
        Err(_) => failed(format!("no answer within {} ms", timeout.as_millis())),
    }
}

/// Stands for any event where a permission depends on a name.
const EXAMPLE_EVENT: Event<'static> = Event {
    id: EventId::Given("check"),
    kind: "check",
    source_type: "check",
    source_id: "check",
    timestamp: None,
    received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: false },
    payload: Payload::Json("null"),
    way: Way::USUAL,
};
