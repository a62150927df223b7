//! What a topic's settings mean for the agent's records: each doubt with its consequence and the way out.

use std::time::Duration;

use super::finding::{Area, Finding};
use crate::config::units::{about_bytes, format_duration};
use crate::sink::kafka;
use crate::sink::kafka_settings::Settings;
use crate::sink::record::Timestamp;

/// `replicas` is the number of the partition that has the fewest.
pub(super) fn findings(
    options: &kafka::Options,
    topic: &str,
    timestamp: Timestamp,
    settings: &Settings,
    replicas: usize,
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
        by_event_time(settings, &mut warn);
    }
    findings
}

/// With `kafka.timestamp = "event"` a record is as old as its event.
fn by_event_time(settings: &Settings, warn: &mut impl FnMut(&str, String)) {
    let text = |limit: Duration| format_duration(limit);
    if let Some(retention) = settings.retention {
        warn(
            "kafka.timestamp",
            format!(
                "keeps records for {}, by their time: an event that was in the buffer for longer than that is deleted at \
                 once; set kafka.timestamp = \"send\", or a longer retention.ms than the longest outage",
                text(retention)
            ),
        );
    }
    if let Some(limit) = settings.behind_max {
        warn(
            "kafka.timestamp",
            format!(
                "refuses records that are older than {} (message.timestamp.before.max.ms): events of a longer outage become \
                 dead letters; set kafka.timestamp = \"send\" or raise it",
                text(limit)
            ),
        );
    }
    if let Some(limit) = settings.ahead_max {
        warn(
            "kafka.timestamp",
            format!(
                "refuses records that are more than {} ahead (message.timestamp.after.max.ms): events of a producer whose \
                 clock is wrong become dead letters; set kafka.timestamp = \"send\"",
                text(limit)
            ),
        );
    }
}
