//! Exactly once: the steps of transactions, in the drain's loop.

use super::{Drain, DrainError, State};
use crate::sink::record::Lane;
use crate::sink::transaction::{Cursor, Kept, Step, StepEnd, StepError};
use crate::sink::{Fatal, Producer};
use crate::stats::LinkState;

impl<P: Producer> Drain<P> {
    /// Takes the transactional id over.
    pub(super) fn open(&mut self) {
        self.start_step(Step::Open);
    }

    fn start_step(&mut self, step: Step) {
        self.producer.start_step(step.clone());
        self.state = State::Stepping(step);
    }

    pub(super) fn is_transaction_begun(&self) -> bool {
        self.transaction.as_ref().is_some_and(super::Transaction::is_begun)
    }

    /// Whether a transaction is open or a step on its way: a stop waits for its end.
    pub(super) fn is_in_transaction(&self) -> bool {
        self.is_transaction_begun() || matches!(self.state, State::Stepping(_))
    }

    /// Before an event is sent. `false`: it cannot be sent now.
    pub(super) fn begin_if_needed(&mut self) -> bool {
        let Some(transaction) = &mut self.transaction else { return true };
        if transaction.is_begun() {
            return true;
        }
        match self.producer.begin() {
            Ok(()) => {
                transaction.begin();
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a transaction cannot be begun; the Kafka producer is made again");
                transaction.is_opened = false;
                self.state = State::Settling;
                false
            }
        }
    }

    /// Commits the transaction when it is time and all of it is confirmed.
    pub(super) fn end_transaction_if_due(&mut self) {
        let Some(transaction) = &self.transaction else { return };
        let is_due = transaction.is_due()
            || transaction.is_full()
            || self.lanes.is_split_wanted
            || self.stop.is_some_and(|stop| self.is_all_sent(stop));
        if transaction.is_begun()
            && is_due
            && matches!(self.state, State::Flowing)
            && self.lanes.in_flight() == 0
        {
            let log = self.buffer.log();
            for lane in [Lane::Live, Lane::Backlog] {
                // What was sent last may have been followed by a gap.
                self.lanes.flow_mut(lane).advance();
            }
            let confirmed = self.lanes.confirmed();
            self.start_step(Step::Commit(Cursor {
                log: log.id,
                epoch: log.epoch,
                seq: confirmed.cursor(),
                live: confirmed.is_split().then(|| (confirmed.live_from(), confirmed.ahead().to_vec())),
            }));
        }
    }

    /// Takes the end of a step in. Whether there was one.
    pub(super) fn step_ended(&mut self) -> Result<bool, DrainError> {
        let State::Stepping(step) = &self.state else { return Ok(false) };
        let is_abort = *step == Step::Abort;
        let Some(ended) = self.producer.take_step() else { return Ok(false) };
        match ended {
            Ok(StepEnd::Opened(kept)) => self.opened(kept),
            Ok(StepEnd::Committed) => self.committed_to_kafka(),
            Ok(StepEnd::Aborted) => {
                self.forget_transaction();
                self.pause_until_tried_again();
            }
            Err(StepError::Abort(reason)) if !is_abort => {
                self.log_failed_step(&reason);
                self.rewind();
                self.abort_transaction();
            }
            Err(StepError::Fenced(reason)) => self.start_afresh(Fatal::Fenced(reason))?,
            Err(StepError::Broken(reason) | StepError::Abort(reason)) => {
                self.log_failed_step(&reason);
                self.start_afresh(Fatal::Broken(reason))?;
            }
            Err(StepError::Misconfigured(reason)) => {
                self.stats.kafka.set(LinkState::Misconfigured);
                self.stats.kafka.failed(&reason);
                if let Some(suppressed) = self.refusal_logs.misconfigured.allow() {
                    tracing::error!(
                        %reason, suppressed,
                        "Kafka refuses the agent's transactions; look at the rights of kafka.delivery = \"exactly_once\", \
                         nothing is lost meanwhile"
                    );
                }
                self.start_afresh(Fatal::Broken(reason))?;
            }
        }
        Ok(true)
    }

    fn log_failed_step(&self, reason: &str) {
        if let Some(suppressed) = self.refusal_logs.failed.allow() {
            tracing::warn!(%reason, suppressed, "a transaction failed; its events go out again");
        }
    }

    fn opened(&mut self, kept: Kept) {
        self.resume(kept);
        if let Some(transaction) = &mut self.transaction {
            transaction.is_opened = true;
        }
        self.state = State::Flowing;
    }

    fn committed_to_kafka(&mut self) {
        self.lanes.settle();
        self.forget_refusals();
        if let Some(transaction) = &mut self.transaction {
            self.stats.kafka_out.add(transaction.end());
            self.stats.kafka_transactions.add(1);
            for ping in transaction.pings.drain(..) {
                if let Some(pings) = &mut self.pings {
                    pings.offer(ping);
                }
            }
        }
        self.state = State::Flowing;
    }

    pub(super) fn forget_transaction(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.end();
            transaction.pings.clear();
        }
    }

    /// Starts to abort what was begun. `false`: nothing was.
    pub(super) fn abort_transaction(&mut self) -> bool {
        if !self.is_transaction_begun() {
            return false;
        }
        self.start_step(Step::Abort);
        true
    }

    /// What is in flight belongs to a transaction that is going to be aborted: no need to wait for it.
    pub(super) fn purge_transaction(&mut self) {
        if self.transaction.as_mut().is_some_and(super::Transaction::needs_purge) {
            self.producer.purge();
        }
    }

    /// Ends the agent when another one has its name. The brokers fence a producer also when its transaction outlived its
    /// time: that is no twin, and the events go out again. Ends the transaction either way.
    pub(super) fn refuse_twin(&mut self, fatal: Fatal) -> Result<(), DrainError> {
        let is_outlived = self.transaction.as_ref().is_some_and(super::Transaction::is_outlived);
        self.forget_transaction();
        match fatal {
            Fatal::Fenced(reason) if !is_outlived => Err(DrainError::Fenced(reason)),
            Fatal::Fenced(_) | Fatal::Broken(_) => Ok(()),
        }
    }

    /// Goes on behind the cursor that Kafka has, or behind the buffer's own. Never behind a later one than both can
    /// prove: when in doubt events go out again.
    fn resume(&mut self, kept: Kept) {
        let (own, durable) = (self.buffer.log(), *self.durable.borrow());
        let local = self.lanes.progress.cursor();
        let mut progress = self.lanes.progress.clone();
        match kept {
            Kept::Cursor(kept) if kept.log == own.id && kept.epoch <= own.epoch => {
                if kept.seq > durable {
                    tracing::warn!(
                        kafka = kept.seq.0,
                        buffer = durable.0,
                        "Kafka has events that this buffer has lost since: its disk did not keep what it had synced"
                    );
                } else if kept.seq > local {
                    tracing::info!(
                        events = kept.seq.0 - local.0,
                        "Kafka had committed more events than the buffer knew of; they are not sent again"
                    );
                }
                progress = progress.or_later(kept.seq.min(durable), kept.live.as_ref(), durable);
            }
            Kept::Cursor(kept) => tracing::warn!(
                kafka_log = %kept.log, kafka_epoch = kept.epoch, kafka_seq = kept.seq.0, log = %own.id, epoch = own.epoch,
                "Kafka's cursor belongs to another buffer, which this agent had before: it was wiped, swapped or restored. \
                 Going on at this buffer's own cursor"
            ),
            Kept::Foreign(found) => tracing::warn!(
                %found,
                "Kafka's cursor was not written by fieldpost: another program commits under the agent's consumer group. \
                 Going on at the buffer's own cursor"
            ),
            Kept::None => tracing::info!(
                cursor = local.0,
                "Kafka has no cursor of this agent (first start with exactly_once, or unused for the broker's \
                 offsets.retention.minutes); going on at the buffer's own"
            ),
        }
        self.lanes.resume(progress);
        self.is_alone = false;
    }
}
