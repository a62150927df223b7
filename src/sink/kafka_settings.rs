//! The settings of a topic that decide what becomes of the agent's records, as the brokers have them.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};

use super::kafka::Options;
use super::kafka_probe::{Trouble, client_config};

/// What a topic is set to; `None`: the brokers did not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Largest batch in bytes (`max.message.bytes`).
    pub batch_bytes_max: Option<u64>,
    /// How many replicas must have a record before it is confirmed (`min.insync.replicas`).
    pub in_sync_min: Option<u64>,
    /// How long records are kept (`retention.ms`); not set for ever.
    pub retention: Option<Duration>,
    /// How far behind the brokers' clock a record's time may be (`message.timestamp.before.max.ms`).
    pub behind_max: Option<Duration>,
    /// How far ahead of it (`message.timestamp.after.max.ms`).
    pub ahead_max: Option<Duration>,
    /// The brokers put their own time in the record's place (`message.timestamp.type`).
    pub is_stamped_by_broker: bool,
}

/// Asks for the settings of `topic`. `None`: the brokers do not tell, for want of the right to describe them or of
/// an answer within `timeout`, for which it blocks at most.
pub fn settings(options: &Options, topic: &str, timeout: Duration) -> Option<Settings> {
    let options = Options { transactional: None, ..options.clone() };
    let mut config = client_config(&options).ok()?;
    // Nothing is produced, so no right to produce is needed either.
    config.set("enable.idempotence", "false").set("enable.gapless.guarantee", "false");
    let admin: AdminClient<Trouble> = config.create_with_context(Trouble::of(&options)).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().ok()?;
    let asked = [ResourceSpecifier::Topic(topic)];
    let limits = AdminOptions::new().request_timeout(Some(timeout));
    let answer = runtime.block_on(async {
        tokio::time::timeout(timeout, admin.describe_configs(&asked, &limits)).await.ok()?.ok()
    });
    answer?.into_iter().next()?.ok().map(|resource| of(&resource))
}

/// Most bytes that the agent's producer puts into a batch before it compresses it; a larger record is one of its own.
/// `None`: the configuration is of no use.
pub fn batch_bytes(options: &Options) -> Option<u64> {
    let config = client_config(options).ok()?;
    let number = |name| config.get(name)?.parse::<u64>().ok();
    Some(number("batch.size")?.min(number("message.max.bytes")?))
}

fn of(resource: &ConfigResource) -> Settings {
    let text = |name| resource.get(name).and_then(|entry| entry.value.as_deref());
    // -1 and the largest number both mean that there is no limit.
    let number =
        |name| text(name)?.parse::<i64>().ok().filter(|n| *n != i64::MAX).and_then(|n| u64::try_from(n).ok());
    Settings {
        batch_bytes_max: number("max.message.bytes"),
        in_sync_min: number("min.insync.replicas"),
        retention: number("retention.ms").map(Duration::from_millis),
        behind_max: number("message.timestamp.before.max.ms").map(Duration::from_millis),
        ahead_max: number("message.timestamp.after.max.ms").map(Duration::from_millis),
        is_stamped_by_broker: text("message.timestamp.type") == Some("LogAppendTime"),
    }
}
