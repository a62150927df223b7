//! What a topic's settings mean for the agent's records: each doubt with its consequence and the way out.

use std::time::Duration;

use super::finding::{Area, Finding};
use crate::cli::text;
use crate::config::units::{about_bytes, format_duration};
use crate::sink::kafka::{self, Compression};
use crate::sink::kafka_settings::{self, Settings};
use crate::sink::record::Timestamp;

/// The events that wait, as far as a topic's limits of time concern them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The time that the oldest one's record would have by `kafka.timestamp = "event"`, in milliseconds since 1970.
    pub(super) oldest_ms: i64,
    /// This machine's time.
    pub(super) now_ms: i64,
}

/// `replicas` is the number of the partition that has the fewest.
pub(super) fn findings(
    options: &kafka::Options,
    topic: &str,
    timestamp: Timestamp,
    settings: &Settings,
    replicas: usize,
    waiting: Option<Waiting>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut warn = |key: &str, message: String| {
        findings.push(Finding::warn(Area::Kafka, format!("topic {topic}: {message}")).about(key));
    };
    if let Some(bytes) = settings.batch_bytes_max.filter(|bytes| *bytes < options.record_bytes_max as u64) {
        let (bytes, needed) = (about_bytes(bytes), options.record_bytes_max);
        warn(
            "limits.max_event_bytes",
            format!(
                "takes records of up to {bytes}, less than the largest event becomes: Kafka rejects those above, and they \
                 become dead letters; set its max.message.bytes to {needed} or lower limits.max_event_bytes"
            ),
        );
    }
    let batch = kafka_settings::batch_bytes(options);
    if let Some((batch, bytes)) = batch.zip(settings.batch_bytes_max).filter(|(batch, bytes)| batch > bytes) {
        let shrunk = match options.compression {
            Compression::None => "",
            Compression::Lz4 | Compression::Zstd => {
                ", where kafka.compression does not make them small enough"
            }
        };
        warn(
            "kafka.properties",
            format!(
                "takes batches of up to {}, and the agent makes them of up to {}: Kafka rejects larger ones whole{shrunk}, and \
                 their events go out again one by one, slowly; set batch.size = {bytes} in kafka.properties, or raise the topic's \
                 max.message.bytes",
                about_bytes(bytes),
                about_bytes(batch)
            ),
        );
    }
    let replicas = replicas as u64;
    match settings.in_sync_min {
        Some(min) if min > replicas => warn(
            "kafka.topic",
            format!(
                "min.insync.replicas is {min}, but a partition has only {replicas}: no record is ever confirmed, and events \
                 stay in the buffer; lower it or add replicas"
            ),
        ),
        Some(min) if min == replicas && replicas > 1 => warn(
            "kafka.topic",
            format!(
                "min.insync.replicas is {min} of {replicas}: while one broker is away no record is confirmed, and events wait \
                 in the buffer; set it to {}",
                min - 1
            ),
        ),
        Some(1) if replicas > 1 => warn(
            "kafka.topic",
            format!(
                "min.insync.replicas is 1 of {replicas}: a record may be confirmed that only one broker has, and is lost with \
                 it; set it to 2"
            ),
        ),
        _ => {}
    }
    if timestamp == Timestamp::Event && !settings.is_stamped_by_broker {
        by_event_time(settings, waiting, &mut warn);
    }
    findings
}

/// With `kafka.timestamp = "event"` a record is as old as its event.
fn by_event_time(settings: &Settings, waiting: Option<Waiting>, warn: &mut impl FnMut(&str, String)) {
    const WAY_OUT: &str = "set kafka.timestamp = \"send\"";
    // How far the oldest event that waits is behind this machine's clock, or ahead of it.
    let age = |ahead: bool| {
        let Waiting { oldest_ms, now_ms } = waiting?;
        let ms = if ahead { oldest_ms.checked_sub(now_ms) } else { now_ms.checked_sub(oldest_ms) };
        ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis)
    };
    let above = |limit: Duration, ahead| age(ahead).filter(|age| *age > limit).map(text::age);
    if let Some(limit) = settings.retention {
        let limit_text = format_duration(limit);
        warn(
            "kafka.timestamp",
            match above(limit, false) {
                Some(age) => format!(
                    "keeps records for {limit_text}, by their time, and the oldest event in the buffer is {age} old: Kafka \
                     confirms it and deletes it at once; {WAY_OUT}, or raise retention.ms before it is sent"
                ),
                None => format!(
                    "keeps records for {limit_text}, by their time: an event that was in the buffer for longer than that is \
                     deleted at once; {WAY_OUT}, or a longer retention.ms than the longest outage"
                ),
            },
        );
    }
    if let Some(limit) = settings.behind_max {
        let limit_text = format_duration(limit);
        warn(
            "kafka.timestamp",
            match above(limit, false) {
                Some(age) => format!(
                    "refuses records that are older than {limit_text} (message.timestamp.before.max.ms), and the oldest event in \
                     the buffer is {age} old: it becomes a dead letter; {WAY_OUT}, or raise it before that is sent"
                ),
                None => format!(
                    "refuses records that are older than {limit_text} (message.timestamp.before.max.ms): events of a longer \
                     outage become dead letters; {WAY_OUT} or raise it"
                ),
            },
        );
    }
    if let Some(limit) = settings.ahead_max {
        let limit_text = format_duration(limit);
        warn(
            "kafka.timestamp",
            match above(limit, true) {
                Some(ahead) => format!(
                    "refuses records that are more than {limit_text} ahead (message.timestamp.after.max.ms), and the oldest event \
                     in the buffer is {ahead} ahead: it becomes a dead letter; look at its producer's clock, or {WAY_OUT}"
                ),
                None => format!(
                    "refuses records that are more than {limit_text} ahead (message.timestamp.after.max.ms): events of a producer \
                     whose clock is wrong become dead letters; {WAY_OUT}"
                ),
            },
        );
    }
}
