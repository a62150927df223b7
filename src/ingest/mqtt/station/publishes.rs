//! What becomes of a publish: an event of the load that gathers, left with the broker, or answered and dropped.

use tracing::warn;

use super::Station;
use crate::ingest::mqtt::book::{Mark, Received};
use crate::ingest::mqtt::link::{Publish, Wire};
use crate::ingest::mqtt::{Qos, body};
use crate::ingest::{Admitted, Refusal};

/// What a publish costs besides its encoded event: its end in the batch and its entry in the order book.
const PUBLISH_BYTES: usize = 64;

impl<W: Wire> Station<W> {
    pub(super) fn take(&mut self, publish: &Publish) {
        let full = self.pending_bytes() >= self.options.pending_bytes_max;
        if publish.qos == Qos::AtMostOnce {
            if full || self.stop_by.is_some() {
                self.stats().mqtt_qos0_dropped.add(1);
                self.notices.qos0(publish);
            } else if self.admit(publish) {
                self.batch_qos0 += 1;
            }
            return;
        }
        let mark = mark(publish);
        let again = self.book.knows(mark, publish.dup);
        if !again && (full || self.skipping || self.stop_by.is_some()) {
            self.skip();
            return;
        }
        if self.book.receive(mark, publish.dup, self.load) == Received::New && !self.admit(publish) {
            self.book.last_is_ready();
        }
    }

    /// Order: after one publish was left with the broker, all later ones of the connection are, or the redelivered
    /// one would be behind them.
    fn skip(&mut self) {
        if !self.skipping
            && self.stop_by.is_none()
            && let Some(suppressed) = self.notices.skipped.allow()
        {
            let bytes_max = self.options.pending_bytes_max;
            warn!(
                bytes_max,
                suppressed, "too much waits for the buffer: publishes stay with the MQTT broker"
            );
        }
        self.skipping = true;
    }

    /// Whether the publish became an event of the load; if not it is answered in its turn.
    fn admit(&mut self, publish: &Publish) -> bool {
        if self.options.is_status(&publish.topic) {
            return false;
        }
        let bytes_max = self.admission.event_bytes_max();
        // An encoded event is never larger in text than this: base64 grows by a third, names are bounded. Looking
        // first keeps a huge publish from being copied only to be refused.
        if publish.payload.len() > (bytes_max / 3).saturating_mul(4).saturating_add(16 << 10) {
            self.stats().too_large.add(1);
            let refusal = Refusal::TooLarge { bytes: publish.payload.len(), bytes_max };
            self.notices.unfit(&self.notices.too_large, publish, &refusal);
            return false;
        }
        let draft = match body::draft(&self.options.topics, &publish.topic, &publish.payload) {
            Ok(draft) => draft,
            Err(unfit) => {
                self.stats().invalid.add(1);
                self.notices.unfit(self.notices.limit_of(unfit), publish, &unfit);
                return false;
            }
        };
        // It was text, or it would be no draft.
        let topic = std::str::from_utf8(&publish.topic).ok();
        let refusal = match self.admission.admit(&draft, topic, &mut self.batch) {
            Ok(admitted) => return admitted == Admitted::Taken,
            Err(refusal) => refusal,
        };
        let limited = match refusal {
            Refusal::TooLarge { .. } => &self.notices.too_large,
            Refusal::Invalid(_) => &self.notices.invalid,
        };
        self.notices.unfit(limited, publish, &refusal);
        false
    }

    fn pending_bytes(&self) -> usize {
        self.batch.bytes() + PUBLISH_BYTES * (self.batch.len() + self.book.len())
    }
}

fn mark(publish: &Publish) -> Mark {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&publish.topic);
    hasher.update(&publish.payload);
    let bytes = publish.topic.len() ^ publish.payload.len().rotate_left(16);
    let print = u64::from(hasher.finalize()) << 32 ^ bytes as u64;
    Mark { pkid: publish.pkid, twice: publish.qos == Qos::ExactlyOnce, print }
}
