//! After a refusal or a broken producer, and for a producer with new files: back to the cursor, and on from there.

use tokio::time::Instant;

use super::{Delivery, Drain, DrainError, State};
use crate::error::Class;
use crate::sink::transaction::Step;
use crate::sink::{Fatal, Producer};
use crate::stats::LinkState;

impl<P: Producer> Drain<P> {
    /// Once nothing is in flight any more: back to the cursor, with a pause. Whether it is time to look again.
    pub(super) fn settle(&mut self) -> Result<bool, DrainError> {
        let fatal = self.producer.fatal();
        if self.lanes.open() > 0 && fatal.is_none() {
            self.purge_transaction();
            return Ok(false);
        }
        // A producer that cannot begin a transaction is of no more use than one that is broken.
        let is_closed = self.transaction.as_ref().is_some_and(|transaction| !transaction.is_opened);
        if let Some(fatal) = fatal.or_else(|| is_closed.then(|| Fatal::Broken("not opened".into()))) {
            return self.start_afresh(fatal).map(|()| false);
        }
        self.rewind();
        if !self.abort_transaction() {
            self.pause_until_tried_again();
        }
        Ok(false)
    }

    /// The producer is of no more use.
    pub(super) fn start_afresh(&mut self, fatal: Fatal) -> Result<(), DrainError> {
        self.refuse_twin(fatal)?;
        match self.producer.restart() {
            // The broken one stays for now, and is found broken again after the pause.
            Err(error) if error.class() == Class::Retry => {
                if let Some(suppressed) = self.refusal_logs.failed.allow() {
                    tracing::error!(%error, suppressed, "waiting for the file to be mended");
                }
            }
            restarted => restarted?,
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.is_opened = false;
        }
        self.rewind();
        self.pause_until_tried_again();
        Ok(())
    }

    /// Puts the successor in place that was made from changed files, or in a long outage. Between two hand-overs, or two
    /// transactions, nothing is in flight, so that nothing goes out twice. On a link that is down nothing will be confirmed
    /// any more: then what is in flight goes out again.
    pub(super) fn renew(&mut self) -> Result<(), DrainError> {
        let is_up = self.stats.kafka.get() == LinkState::Up;
        let is_busy = self.lanes.open() > 0 || self.is_in_transaction();
        let is_idle = matches!(self.state, State::Flowing) && !is_busy;
        // Opened by files that have changed since, it may never come to an end.
        let is_opening = matches!(self.state, State::Stepping(Step::Open));
        if !self.producer.has_successor() || (is_up && !is_idle && !is_opening) {
            return Ok(());
        }
        match self.producer.restart() {
            // Changed once more: has to be looked at again.
            Err(error) if error.class() == Class::Retry => return Ok(()),
            restarted => restarted?,
        }
        tracing::info!(in_flight = self.lanes.open(), "the Kafka producer was made anew");
        self.forget_transaction();
        if let Some(transaction) = &mut self.transaction {
            transaction.is_opened = false;
        }
        if is_busy || matches!(self.state, State::Settling) {
            self.rewind();
        }
        if is_busy || !matches!(self.state, State::Waiting(_)) {
            self.go_on();
        }
        Ok(())
    }

    /// Back to the cursor: what was in flight is not on its way any more.
    pub(super) fn rewind(&mut self) {
        self.stats.kafka_rewinds.add(1);
        if self.options.delivery == Delivery::AtMostOnce {
            self.stats.kafka_lost.add(self.lanes.open() as u64);
            self.lanes.give_up();
        } else {
            self.lanes.rewind();
        }
        self.is_alone = false;
        self.is_unready = false;
    }

    pub(super) fn pause_until_tried_again(&mut self) {
        self.state = State::Waiting(Instant::now() + self.backoff.delay());
    }

    /// The pause is over.
    pub(super) fn go_on(&mut self) {
        if self.transaction.as_ref().is_some_and(|transaction| !transaction.is_opened) {
            self.open();
        } else {
            self.state = State::Flowing;
        }
    }
}
