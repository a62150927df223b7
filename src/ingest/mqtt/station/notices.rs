//! What is said of what the outside causes, and how often.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::ingest::mqtt::body;
use crate::ingest::mqtt::link::Publish;
use crate::log::Limited;

/// Longest part of a topic in a log line, in characters.
const SHOWN_CHARS_MAX: usize = 120;

/// One limit for each reason to log that the outside can cause at any rate.
pub(super) struct Notices {
    pub(super) topic: Limited,
    pub(super) missing: Limited,
    pub(super) base64: Limited,
    pub(super) invalid: Limited,
    pub(super) too_large: Limited,
    pub(super) qos0: Limited,
    pub(super) skipped: Limited,
    pub(super) packet: Limited,
    pub(super) taken_over: Limited,
    pub(super) storage: Arc<Limited>,
}

impl Notices {
    pub(super) fn new() -> Self {
        let limited = || Limited::new(Duration::from_secs(60));
        Self {
            topic: limited(),
            missing: limited(),
            base64: limited(),
            invalid: limited(),
            too_large: limited(),
            qos0: limited(),
            skipped: limited(),
            packet: limited(),
            taken_over: limited(),
            storage: Arc::new(limited()),
        }
    }

    pub(super) fn limit_of(&self, unfit: body::Unfit) -> &Limited {
        match unfit {
            body::Unfit::Topic => &self.topic,
            body::Unfit::Missing { .. } => &self.missing,
            body::Unfit::Base64 => &self.base64,
        }
    }

    pub(super) fn unfit(&self, limited: &Limited, publish: &Publish, reason: &dyn std::fmt::Display) {
        if let Some(suppressed) = limited.allow() {
            let topic = shown(publish);
            warn!(topic, %reason, suppressed, "a publish is no event: acknowledged and dropped");
        }
    }

    pub(super) fn qos0(&self, publish: &Publish) {
        if let Some(suppressed) = self.qos0.allow() {
            let topic = shown(publish);
            warn!(topic, suppressed, "a QoS 0 publish was dropped: the buffer cannot take it in time");
        }
    }
}

/// The topic, printable and short.
fn shown(publish: &Publish) -> String {
    String::from_utf8_lossy(&publish.topic)
        .chars()
        .take(SHOWN_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect()
}
