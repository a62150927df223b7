//! Handing over: what goes out next, and when nothing may.

use tokio::time::Instant;

use super::poison::Place;
use super::{Delivery, Drain, DrainError, State, Transaction};
use crate::buffer::block::Origin;
use crate::buffer::{Buffer, Run};
use crate::error::Class;
use crate::event::Event;
use crate::sink::record::Lane;
use crate::sink::{Outcome, Producer, SendError};
use crate::stats::LinkState;

/// Bytes of one read: a few milliseconds of work between two looks at the other tasks.
const READ_BYTES: usize = 128 * 1024;

/// Most events in flight, whatever their size; bookkeeping of about 100 bytes each.
const WINDOW_EVENTS_MAX: usize = 16_384;

/// The part of the window that the backlog lane leaves to the live one.
const LIVE_SHARE: usize = 4;

impl<P: Producer> Drain<P> {
    /// Hands over what is durable, up to the window, live events first. Whether anything went out.
    pub(super) async fn fill(&mut self) -> Result<bool, DrainError> {
        // At most once knows one cursor: the lanes that another mode left join first.
        let is_backlog_alone =
            self.options.delivery == Delivery::AtMostOnce && self.lanes.progress.is_split();
        let is_live = !is_backlog_alone && self.fill_lane(Lane::Live).await?;
        let is_backlog = self.lanes.progress.is_split() && self.fill_lane(Lane::Backlog).await?;
        Ok(is_live || is_backlog)
    }

    async fn fill_lane(&mut self, lane: Lane) -> Result<bool, DrainError> {
        let mut is_sent = false;
        if self.lanes.flow(lane).is_held() {
            return Ok(false);
        }
        if lane == Lane::Backlog {
            let bytes_max = self.window_bytes_max(lane);
            self.lanes.flow_mut(lane).measure_portion(bytes_max);
        }
        while self.may_send(lane) {
            let flow = self.lanes.flow(lane);
            let needs_run = flow.sent >= flow.run.end();
            if needs_run && !(self.has_unsent(lane) && self.read(lane).await?) {
                break;
            }
            let before = self.lanes.flow(lane).sent;
            let is_whole = self.send_run(lane);
            if self.lanes.needs_claim {
                self.claim().await?;
                continue;
            }
            if self.lanes.is_split_wanted {
                self.split_if_wanted().await?;
                if self.lanes.is_split_wanted {
                    break;
                }
                continue;
            }
            if self.poisons.is_letter_due {
                self.store_letter(lane).await?;
            }
            let went_on = self.lanes.flow(lane).sent > before;
            is_sent |= went_on;
            if !is_whole && !went_on {
                break;
            }
            tokio::task::yield_now().await;
        }
        let is_behind = !self.has_room(lane);
        let flow = self.lanes.flow_mut(lane);
        flow.is_behind = is_behind;
        if is_sent {
            flow.handed_at = Instant::now();
        }
        Ok(is_sent)
    }

    /// Whether there is something behind what was handed over.
    fn has_unsent(&mut self, lane: Lane) -> bool {
        match lane {
            Lane::Live => self.lanes.flow(lane).sent < *self.durable.borrow_and_update(),
            Lane::Backlog => self.lanes.has_unsent_backlog(),
        }
    }

    /// Gets the next run. Whether there is one.
    async fn read(&mut self, lane: Lane) -> Result<bool, DrainError> {
        let flow = self.lanes.flow_mut(lane);
        let (sent, run) = (flow.sent, std::mem::take(&mut flow.run));
        let after = if lane == Lane::Backlog { self.lanes.progress.skip(sent) } else { sent };
        let run = match self.buffer.read(after, READ_BYTES, run).await {
            Ok(run) => run,
            Err(error) if error.class() == Class::Retry => {
                if let Some(suppressed) = self.refusal_logs.failed.allow() {
                    tracing::error!(%error, suppressed, "waiting for the buffer");
                }
                self.pause_until_tried_again();
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let end = run.end();
        self.lanes.flow_mut(lane).run = run;
        if self.options.delivery == Delivery::AtMostOnce {
            self.buffer.commit_durable(end).await?;
            self.committed = end;
        }
        Ok(end > sent)
    }

    /// Sends the run from where it stands. Whether it is through.
    fn send_run(&mut self, lane: Lane) -> bool {
        let run = std::mem::take(&mut self.lanes.flow_mut(lane).run);
        let is_whole = self.send_events(lane, &run);
        let flow = self.lanes.flow_mut(lane);
        if is_whole {
            flow.sent = run.end();
        }
        flow.run = run;
        is_whole
    }

    fn send_events(&mut self, lane: Lane, run: &Run) -> bool {
        let from = self.lanes.flow(lane).sent;
        let mut is_first = true;
        for (seq, origin, event) in run.events().skip_while(|(seq, ..)| *seq <= from) {
            if !self.lanes.is_of(lane, seq) {
                continue;
            }
            // Not before Kafka is back: until then there would be one split after the other.
            let is_first = lane == Lane::Live && std::mem::take(&mut is_first);
            if is_first && self.stats.kafka.get() == LinkState::Up {
                self.lanes.is_split_wanted |=
                    self.lanes.is_late(self.options.order, seq, origin, event.received);
            }
            if !self.lanes.is_claimed(lane, seq) {
                self.lanes.needs_claim = !self.lanes.is_split_wanted;
            }
            if lane == Lane::Live && (self.lanes.is_split_wanted || self.lanes.needs_claim) {
                return false;
            }
            let is_suspect = self.suspects.contains(&seq);
            // Order: nothing shares a batch with a suspect, and nothing passes it before Kafka confirmed it.
            let is_free = self.has_room(lane) && (!is_suspect || self.lanes.in_flight() == 0);
            let place = self.poisons.place_of(seq);
            if place == Some(Place::Store) {
                self.poisons.is_letter_due = self.lanes.flow(lane).window.is_empty();
                return false;
            }
            if !is_free || !self.begin_if_needed() {
                return false;
            }
            let tag = self.lanes.flow(lane).window.next_tag();
            let (producer, poisons) = (&mut self.producer, &self.poisons);
            let (mut bytes, mut line_bytes) = (0, 0);
            let sent = self.formatter.format(seq, origin, lane, &event, |record| {
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
            let flow = self.lanes.flow_mut(lane);
            flow.window.push(seq, bytes, taken_us(&self.buffer, origin, &event), ping);
            flow.sent = seq;
            self.is_alone = is_suspect;
            self.pace.take(line_bytes);
            if let Some(transaction) = &mut self.transaction {
                transaction.add(bytes);
            }
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

    /// Whether the lane may hand over one more.
    pub(super) fn has_room(&self, lane: Lane) -> bool {
        // While nobody answers one event asks whether Kafka is back: not a window of a fleet's gateways each.
        let events_max = if self.stats.kafka.get() == LinkState::Up { WINDOW_EVENTS_MAX } else { 1 };
        let flow = self.lanes.flow(lane);
        let is_in_portion = lane == Lane::Live
            || (flow.window.bytes() < flow.portion(self.window_bytes_max(lane))
                && flow.window.len() < WINDOW_EVENTS_MAX - WINDOW_EVENTS_MAX / LIVE_SHARE);
        is_in_portion
            && !self.is_alone
            && self.pace.opens_at().is_none()
            && !self.transaction.as_ref().is_some_and(Transaction::is_full)
            && self.lanes.in_flight() < events_max
            && self.lanes.bytes() < self.options.window_bytes_max
    }

    fn window_bytes_max(&self, lane: Lane) -> usize {
        let bytes_max = self.options.window_bytes_max;
        if lane == Lane::Live { bytes_max } else { bytes_max - bytes_max / LIVE_SHARE }
    }

    /// Whether the lane may hand over now.
    pub(super) fn may_send(&self, lane: Lane) -> bool {
        self.has_room(lane)
            && !self.is_unready
            && !self.transaction.as_ref().is_some_and(Transaction::is_due)
            && self.stop.is_none_or(|stop| {
                // At most once, handing over is what can lose an event: not into a line that is down.
                let is_wise = self.options.delivery != Delivery::AtMostOnce || !self.is_hopeless();
                is_wise && Instant::now() < stop.send_until
            })
    }

    pub(super) fn is_hopeless(&self) -> bool {
        matches!(self.stats.kafka.get(), LinkState::Down | LinkState::Misconfigured)
            || !matches!(self.state, State::Flowing | State::Stepping(_))
    }
}

/// When an event was taken, microseconds since boot; `None`: in another boot.
fn taken_us(buffer: &Buffer, origin: Origin, event: &Event<'_>) -> Option<u64> {
    (origin.boot == buffer.boot()).then_some(event.received.boot_us)
}
