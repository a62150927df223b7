//! Handing over: what goes out next, and when nothing may.

use std::time::Duration;

use tokio::time::Instant;

use super::poison::Place;
use super::{Delivery, Drain, DrainError, State, Transaction};
use crate::buffer::Run;
use crate::error::Class;
use crate::sink::{Outcome, Producer, SendError};
use crate::stats::LinkState;

/// Bytes of one read: a few milliseconds of work between two looks at the other tasks.
const READ_BYTES: usize = 128 * 1024;

/// Most events in flight, whatever their size; bookkeeping of about 100 bytes each.
const WINDOW_EVENTS_MAX: usize = 16_384;

/// How long a hand-over waits for the confirmation of the last one: one partition without a leader must not hold up
/// the others for longer.
pub(super) const HAND_OVER_WAIT: Duration = Duration::from_secs(1);

impl<P: Producer> Drain<P> {
    /// Hands over what is durable, up to the window. Whether anything went out.
    pub(super) async fn fill(&mut self) -> Result<bool, DrainError> {
        let mut is_sent = false;
        if self.is_held() {
            return Ok(false);
        }
        while self.may_send() {
            let needs_run = self.sent >= self.run.end();
            if needs_run && (self.sent >= *self.durable.borrow_and_update() || !self.read().await?) {
                break;
            }
            let before = self.sent;
            let is_whole = self.send_run();
            if self.poisons.is_letter_due {
                self.store_letter().await?;
            }
            is_sent |= self.sent > before;
            if !is_whole && self.sent == before {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.is_behind = !self.has_room();
        if is_sent {
            self.round_at = Instant::now();
        }
        Ok(is_sent)
    }

    /// Gets the next run. Whether there is one.
    async fn read(&mut self) -> Result<bool, DrainError> {
        let run = std::mem::take(&mut self.run);
        match self.buffer.read(self.sent, READ_BYTES, run).await {
            Ok(run) => self.run = run,
            Err(error) if error.class() == Class::Retry => {
                if let Some(suppressed) = self.refusal_logs.failed.allow() {
                    tracing::error!(%error, suppressed, "waiting for the buffer");
                }
                self.pause_until_tried_again();
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        if self.options.delivery == Delivery::AtMostOnce {
            self.buffer.commit_durable(self.run.end()).await?;
            self.committed = self.run.end();
        }
        Ok(self.run.end() > self.sent)
    }

    /// Sends the run from where it stands. Whether it is through.
    fn send_run(&mut self) -> bool {
        let run = std::mem::take(&mut self.run);
        let is_whole = self.send_events(&run);
        if is_whole {
            self.sent = run.end();
        }
        self.run = run;
        is_whole
    }

    fn send_events(&mut self, run: &Run) -> bool {
        let from = self.sent;
        for (seq, origin, event) in run.events().skip_while(|(seq, ..)| *seq <= from) {
            let is_suspect = self.suspects.contains(&seq);
            // Order: nothing shares a batch with a suspect, and nothing passes it before Kafka confirmed it.
            let is_free = self.has_room() && (!is_suspect || self.window.is_empty());
            let place = self.poisons.place_of(seq);
            if place == Some(Place::Store) {
                self.poisons.is_letter_due = self.window.is_empty();
                return false;
            }
            if !is_free || !self.begin_if_needed() {
                return false;
            }
            let tag = self.window.next_tag();
            let (producer, poisons) = (&mut self.producer, &self.poisons);
            let (mut bytes, mut line_bytes) = (0, 0);
            let sent = self.formatter.format(seq, origin, &event, |record| {
                (bytes, line_bytes) = (record.memory(), record.bytes());
                match place {
                    None => producer.send(record, tag),
                    Some(_) => poisons.send(seq, record, |letter| producer.send(letter, tag)),
                }
            });
            let Ok(sent) = sent else {
                // Said where it is asked for.
                self.is_unready = true;
                return false;
            };
            match sent {
                Ok(()) => {}
                Err(SendError::QueueFull) => return false,
                Err(SendError::Fatal(reason)) => {
                    tracing::warn!(%reason, "the Kafka producer is broken and is made again");
                    self.state = State::Settling;
                    return false;
                }
                Err(SendError::Rejected(_) | SendError::Misconfigured(_)) => {}
            }
            let ping = self.pings.as_ref().and_then(|pings| pings.make(&event));
            self.window.push(seq, bytes, event.received.boot_us, ping);
            self.is_alone = is_suspect;
            self.pace.take(line_bytes);
            if let Some(transaction) = &mut self.transaction {
                transaction.add(bytes);
            }
            self.sent = seq;
            match sent {
                Err(SendError::Rejected(reason)) => self.refused(tag, &Outcome::Rejected(reason)),
                Err(SendError::Misconfigured(reason)) => self.refused(tag, &Outcome::Misconfigured(reason)),
                _ => continue,
            }
            if self.options.delivery != Delivery::AtMostOnce {
                return false;
            }
        }
        true
    }

    pub(super) fn has_room(&self) -> bool {
        // While nobody answers one event asks whether Kafka is back: not a window of a fleet's gateways each.
        let events_max = if self.stats.kafka.get() == LinkState::Up { WINDOW_EVENTS_MAX } else { 1 };
        !self.is_alone
            && self.pace.opens_at().is_none()
            && !self.transaction.as_ref().is_some_and(Transaction::is_full)
            && self.window.len() < events_max
            && self.window.bytes() < self.options.window_bytes_max
    }

    /// Whether the last hand-over is still on its way: an idempotent librdkafka sends a partition's next batch only
    /// after the last one is confirmed, and until then its thread spins over records that are waiting for it.
    pub(super) fn is_held(&self) -> bool {
        self.window.open() > 0 && Instant::now() < self.round_at + HAND_OVER_WAIT
    }

    pub(super) fn may_send(&self) -> bool {
        self.has_room()
            && !self.is_unready
            && !self.transaction.as_ref().is_some_and(Transaction::is_due)
            && self.stop.is_none_or(|stop| {
                // At most once, handing over is what can lose an event: not into a line that is down.
                let is_wise = self.options.delivery != Delivery::AtMostOnce || !self.is_hopeless();
                is_wise && Instant::now() < stop.send_until
            })
    }

    pub(super) fn is_hopeless(&self) -> bool {
        self.stats.kafka.get() == LinkState::Down
            || !matches!(self.state, State::Flowing | State::Stepping(_))
    }
}
