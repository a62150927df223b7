//! What Kafka says of what was sent: confirmations move the window, refusals stop the flow.

use super::{Delivery, Drain, State};
use crate::event::Seq;
use crate::sink::record::Lane;
use crate::sink::{Outcome, Producer, Report};
use crate::stats::{LinkState, Tally};

impl<P: Producer> Drain<P> {
    /// Takes the reports in. Whether there were any.
    pub(super) fn collect(&mut self) -> bool {
        let mut reports = std::mem::take(&mut self.reports);
        self.producer.take_reports(&mut reports);
        let is_reported = !reports.is_empty();
        // Before the refusals, which have the last word on the link. A link that is down is not up for a report that was
        // taken late: who brings the reports knows in which order they and the outage came.
        let is_answered = reports.iter().any(|report| report.outcome == Outcome::Delivered);
        if is_answered && self.stats.kafka.change(LinkState::Misconfigured, LinkState::Up) {
            tracing::info!("Kafka link up");
        }
        let (mut delivered, mut latency) = (0, Tally::default());
        // One look at the clock for all of them.
        let now_us = if is_answered { self.clock.now().boot_us } else { 0 };
        for Report { tag, outcome } in reports.drain(..) {
            match outcome {
                Outcome::Delivered => {
                    let Some(confirmed) = self.lanes.of_tag(tag).window.confirm(tag) else { continue };
                    delivered += 1;
                    if let Some(taken_us) = confirmed.boot_us {
                        latency.add(now_us.saturating_sub(taken_us), 1);
                    }
                    match (&mut self.pings, confirmed.ping, &mut self.transaction) {
                        (Some(_), Some(ping), Some(transaction)) => transaction.pings.push(ping),
                        (Some(pings), Some(ping), None) => pings.offer(ping),
                        _ => {}
                    }
                }
                outcome => self.refused(tag, &outcome),
            }
        }
        self.reports = reports;
        self.stats.kafka_latency.take(&latency);
        if delivered > 0 {
            match &mut self.transaction {
                Some(transaction) => transaction.confirm(delivered),
                None => self.stats.kafka_out.add(delivered),
            }
        }
        for lane in [Lane::Live, Lane::Backlog] {
            self.lanes.flow_mut(lane).advance();
        }
        if !self.suspects.is_empty() {
            self.suspects.retain(|seq| !self.lanes.is_confirmed(*seq));
        }
        if self.lanes.in_flight() == 0 {
            self.is_alone = false;
        }
        if !self.is_transaction_begun() && self.lanes.settle() {
            self.forget_refusals();
        }
        if let (State::Flowing, Some(reason)) = (&self.state, self.producer.fatal()) {
            tracing::warn!(%reason, "the Kafka producer is broken and is made again");
            self.state = State::Settling;
        }
        is_reported
    }

    /// Since when the oldest event waits. Where the line has to wait nothing may be in flight, and the next event to go is not
    /// known yet: it is little younger than the one before it.
    pub(super) fn tell_oldest(&mut self) {
        if self.lanes.in_flight() > 0 || self.lanes.are_sent(*self.durable.borrow()) {
            self.stats.oldest_boot_us.set(self.lanes.oldest_boot_us().unwrap_or(0));
        }
    }

    /// A lane went on: what was refused up to there is through, the next refusal is a new one.
    pub(super) fn forget_refusals(&mut self) {
        let progress = &self.lanes.progress;
        self.stats.dead_lettered.add(self.poisons.settle(|seq| progress.has(seq)));
        if self.suspects.is_empty() {
            self.backoff.reset();
        }
    }

    /// A record was not delivered.
    pub(super) fn refused(&mut self, tag: usize, outcome: &Outcome) {
        if self.options.delivery == Delivery::AtMostOnce {
            if self.lanes.of_tag(tag).window.confirm(tag).is_some() {
                self.stats.kafka_lost.add(1);
                self.log_refusal(None, outcome);
            }
            return;
        }
        let Some(seq) = self.lanes.of_tag(tag).window.refuse(tag) else { return };
        // What failed only because the producer broke is no suspect.
        if !matches!(outcome, Outcome::Failed(_)) {
            self.suspects.insert(seq);
        }
        match outcome {
            Outcome::Rejected(rejection) if self.is_alone => {
                self.poisons.rejected(seq, rejection);
                // Not the same again: there is nothing to wait for.
                self.backoff.reset();
            }
            Outcome::Misconfigured(reason) if self.is_alone => {
                self.poisons.refused_as_dead_letter(seq, reason)
            }
            _ => {}
        }
        if let Outcome::Misconfigured(reason) = outcome {
            self.stats.kafka.set(LinkState::Misconfigured);
            self.stats.kafka.failed(reason);
        }
        self.state = State::Settling;
        self.log_refusal(Some(seq), outcome);
    }

    fn log_refusal(&self, seq: Option<Seq>, outcome: &Outcome) {
        let limit = match outcome {
            Outcome::Delivered => return,
            Outcome::Rejected(_) => &self.refusal_logs.rejected,
            Outcome::Misconfigured(_) => &self.refusal_logs.misconfigured,
            Outcome::Failed(_) => &self.refusal_logs.failed,
        };
        let Some(suppressed) = limit.allow() else { return };
        let seq = seq.map(|seq| seq.0);
        match outcome {
            Outcome::Delivered => {}
            Outcome::Rejected(reason) => tracing::error!(
                seq, %reason, suppressed,
                "Kafka rejects an event; compare limits.max_event_bytes with the topic's max.message.bytes"
            ),
            Outcome::Misconfigured(reason) => tracing::error!(
                seq, %reason, suppressed,
                "Kafka refuses the topic; look at kafka.topic and the agent's rights, nothing is lost meanwhile"
            ),
            Outcome::Failed(reason) => {
                tracing::warn!(seq, %reason, suppressed, "sending failed and is tried again")
            }
        }
    }
}
