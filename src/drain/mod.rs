//! From the buffer to Kafka: reads in order, hands over a bounded window, commits what was confirmed.
//!
//! The drain works in rounds: everything that became durable since the last one goes out together, then it waits
//! for the next round, or, when there is nothing to do, for news. It is in one of these states:
//!
//! ```text
//! Flowing ──a record is refused or the producer breaks──> Settling ──everything in flight is reported──> Waiting
//!    ^                                                                                                      │
//!    └──────────── the backoff is over: go on behind the cursor, one by one past what was refused ──────────┘
//! ```
//!
//! An event whose record cannot be made yet (the format `avro` without its schema's id) holds the line while it flows:
//! what went out before it is confirmed and committed, nothing passes it.
//!
//! At least once: the cursor is the last event up to which Kafka confirmed everything; it is committed to the buffer
//! at most every 100 ms. At most once: the cursor is durable before an event is sent, and what Kafka
//! refuses is counted and not sent again.
//!
//! Exactly once: what goes out belongs to a transaction (`transaction`), and the cursor is committed to Kafka with
//! it. Its steps are a fourth state, `Stepping`: entered at the start, when a transaction is due and all of it is
//! confirmed, and behind `Settling` to abort it.
//!
//! Live first: what has waited for too long goes out as backlog in a lane of its own, behind what comes in (`lanes`).

use std::collections::BTreeSet;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

mod exactly_once;
mod flow;
mod lanes;
mod pace;
mod poison;
mod progress;
mod reports;
mod sending;
mod settling;
mod transaction;
mod window;

#[cfg(test)]
mod tests;

use crate::alive::Answerer;
use crate::backoff::Backoff;
use crate::buffer::{Buffer, ReadError};
use crate::error::Class;
use crate::event::Seq;
use crate::log::Limited;
use crate::ping::{Outbox, Pings};
use crate::sink::record::{Formatter, Lane};
use crate::sink::transaction::Step;
use crate::sink::{Producer, ProducerError, Report};
use crate::stats::Stats;
use crate::system::Clock;
use flow::Flow;
use lanes::Lanes;
use pace::Pace;
pub use pace::Rates;
pub use poison::DeadLetters;
use poison::Poisons;
pub use transaction::Limits as TransactionLimits;
use transaction::Transaction;

/// Shortest time between two commits of the cursor: what is sent again after a kill, against writes to flash.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// How long confirmations gather while a full window waits for them.
const REPORTS_GATHER: Duration = Duration::from_millis(1);

/// Pause after a refusal, doubled up to the maximum while it goes on.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How often a refusal that goes on is said again.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What a restart or an outage may do to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Removed after Kafka confirmed it: duplicates after a kill, never a loss.
    AtLeastOnce,
    /// Removed after it was committed in one transaction with the cursor: neither, for `read_committed` consumers.
    ExactlyOnce,
    /// Removed before it is sent: losses after a kill, never a duplicate.
    AtMostOnce,
}

/// Which events go out first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The oldest.
    Fifo,
    /// The fresh ones; what has waited for longer than `backlog_after` goes out behind them, in a lane of its own.
    LiveFirst {
        /// How old the oldest event must be for what waits to become backlog.
        backlog_after: Duration,
    },
}

/// The pace and the guarantee of the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The guarantee.
    pub delivery: Delivery,
    /// Which events go out first.
    pub order: Order,
    /// Time between two hand-overs to Kafka: latency against CPU.
    pub round_interval: Duration,
    /// Most bytes of memory for records in flight ([`Record::memory`](crate::sink::Record::memory)).
    pub window_bytes_max: usize,
    /// For exactly once.
    pub transaction: TransactionLimits,
    /// The most that may go out.
    pub rates: Rates,
    /// Before the first event goes out: any time up to this, by chance, so that a fleet does not come back in one beat.
    pub start_jitter: Duration,
    /// How long it may go on after the stop: half of it sending, all of it waiting for confirmations.
    pub stop_grace: Duration,
}

/// Why the drain ended early. Class: fatal, nothing durable is lost.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DrainError {
    /// The buffer is gone.
    #[error(transparent)]
    Buffer(#[from] ReadError),
    /// The producer cannot be made again.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// Two agents with one name: the other one has taken the transactional id over. A human is needed, or they take it
    /// from each other for ever.
    #[error(
        "another agent with the same agent.id has taken over ({0}); give each gateway its own agent.id, or stop the \
         other one and start this one again: what is buffered here stays"
    )]
    Fenced(String),
}

impl DrainError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        Class::Fatal
    }
}

#[derive(Debug)]
enum State {
    Flowing,
    Settling,
    Waiting(Instant),
    /// A step of a transaction is on its way.
    Stepping(Step),
}

/// One limit per reason, so that none hides another.
#[derive(Debug)]
struct RefusalLogs {
    rejected: Limited,
    misconfigured: Limited,
    failed: Limited,
}

impl Default for RefusalLogs {
    fn default() -> Self {
        let limited = || Limited::new(REFUSAL_LOG_INTERVAL);
        Self { rejected: limited(), misconfigured: limited(), failed: limited() }
    }
}

/// The stop: until when events are still sent, and until when confirmations are waited for.
#[derive(Debug, Clone, Copy)]
struct Stop {
    send_until: Instant,
    end: Instant,
}

/// The stage.
#[derive(Debug)]
pub struct Drain<P> {
    buffer: Buffer,
    durable: watch::Receiver<Seq>,
    producer: P,
    options: Options,
    formatter: Formatter,
    stats: std::sync::Arc<Stats>,
    clock: Clock,
    /// Set when pings wait for Kafka (`redis.ping_after = "delivered"`).
    pings: Option<Outbox>,
    state: State,
    lanes: Lanes,
    reports: Vec<Report>,
    transaction: Option<Transaction>,
    pace: Pace,
    poisons: Poisons,
    committed: Seq,
    committed_at: Instant,
    /// Were refused, perhaps for a neighbour in their batch: each goes out alone until Kafka has it.
    suspects: BTreeSet<Seq>,
    /// One of them is in flight.
    is_alone: bool,
    /// The next event's record cannot be made yet: its schema's id is not known.
    is_unready: bool,
    backoff: Backoff,
    refusal_logs: RefusalLogs,
    alive: Answerer,
    stop: Option<Stop>,
}

impl<P: Producer> Drain<P> {
    /// A drain that goes on where the buffer's cursor stands. At most once there are no dead letters: what Kafka rejects is
    /// counted as lost.
    pub fn new(
        buffer: Buffer,
        producer: P,
        options: Options,
        formatter: Formatter,
        stats: std::sync::Arc<Stats>,
        pings: Option<Pings>,
        dead_letters: DeadLetters,
    ) -> Self {
        let lanes = Lanes::of(&buffer, &options);
        // Only a commit brings more at once than the sink takes.
        let is_transactional = options.delivery == Delivery::ExactlyOnce;
        let waiting_max = if is_transactional { options.transaction.events_max } else { 0 };
        let cursor = lanes.progress.cursor();
        Self {
            durable: buffer.durable(),
            buffer,
            producer,
            options,
            formatter,
            stats,
            clock: Clock::default(),
            pings: pings.map(|pings| Outbox::new(pings, waiting_max)),
            state: State::Flowing,
            lanes,
            reports: Vec::new(),
            transaction: is_transactional.then(|| Transaction::new(options.transaction)),
            pace: Pace::new(options.rates),
            poisons: Poisons::new(dead_letters),
            committed: cursor,
            committed_at: Instant::now(),
            suspects: BTreeSet::new(),
            is_alone: false,
            is_unready: false,
            backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_MAX),
            refusal_logs: RefusalLogs::default(),
            alive: Answerer::default(),
            stop: None,
        }
    }

    /// Whom to tell, when asked, that its loop turns.
    #[must_use]
    pub fn with_alive(self, alive: Answerer) -> Self {
        Self { alive, ..self }
    }

    /// Drains until `stop`, then for at most `stop_grace`, and commits what was confirmed.
    ///
    /// # Errors
    /// [`DrainError`]: the agent has to stop.
    ///
    /// Cancel safe: no; dropped events in flight go out again after the next start.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), DrainError> {
        let jitter = self.options.start_jitter.mul_f64(fastrand::f64());
        if jitter.is_zero() {
            self.go_on();
        } else {
            tracing::info!(
                jitter_ms = jitter.as_millis(),
                "the first event to Kafka waits (kafka.start_jitter)"
            );
            self.state = State::Waiting(Instant::now() + jitter);
        }
        loop {
            let is_reported = self.collect() | self.step_ended()?;
            self.commit_if_due();
            self.keep_lanes_if_due().await?;
            self.renew()?;
            let is_sent = match self.state {
                State::Flowing => self.fill().await?,
                State::Settling => self.settle()?,
                State::Waiting(until) => {
                    if until <= Instant::now() {
                        self.go_on();
                    }
                    matches!(self.state, State::Flowing)
                }
                State::Stepping(_) => false,
            };
            self.end_transaction_if_due();
            self.tell_oldest();
            if self.is_finished() {
                break;
            }
            self.pause(is_sent || is_reported, &stop).await;
        }
        if let Some(pings) = self.pings.take() {
            pings.close();
        }
        // Also when the last commit was asked for already: it may still be on its way.
        self.buffer.commit_durable(self.lanes.progress.cursor()).await?;
        self.keep_lanes_for_next_start().await;
        self.say_unconfirmed();
        self.producer.close(Duration::from_millis(500));
        Ok(())
    }

    /// What the stop did not wait for any longer.
    fn say_unconfirmed(&self) {
        // At most once, what was read has left the disk, sent or not.
        let unsent = match self.options.delivery {
            Delivery::AtLeastOnce | Delivery::ExactlyOnce => 0,
            Delivery::AtMostOnce => self.lanes.unsent_in_runs(),
        };
        let events = self.lanes.open() + unsent;
        match self.options.delivery {
            Delivery::ExactlyOnce if self.is_transaction_begun() => {
                tracing::info!("stopped before Kafka committed the transaction; its events go out again");
            }
            Delivery::ExactlyOnce => {}
            _ if events == 0 => {}
            Delivery::AtLeastOnce => {
                tracing::info!(
                    events,
                    "stopped before Kafka confirmed everything in flight; it goes out again"
                );
            }
            Delivery::AtMostOnce => {
                self.stats.kafka_lost.add(events as u64);
                tracing::error!(
                    events,
                    "stopped before Kafka confirmed everything in flight; it is lost, as kafka.delivery = \"at_most_once\" has it"
                );
            }
        }
    }

    /// Lets the buffer forget what was confirmed, not too often.
    fn commit_if_due(&mut self) {
        let (now, cursor) = (Instant::now(), self.lanes.progress.cursor());
        if cursor > self.committed && now >= self.committed_at + COMMIT_INTERVAL {
            self.buffer.commit(cursor);
            (self.committed, self.committed_at) = (cursor, now);
        }
    }

    /// After the stop: whether there is nothing left to do or no time left for it.
    fn is_finished(&self) -> bool {
        let Some(stop) = self.stop else { return false };
        let now = Instant::now();
        let is_hopeless = self.is_hopeless();
        // At most once, what is in flight has left the disk: the whole grace for it.
        let gives_up = is_hopeless && self.options.delivery != Delivery::AtMostOnce;
        let is_through = self.lanes.open() == 0 && (self.is_all_sent(stop) || is_hopeless);
        now >= stop.end || gives_up || (is_through && !self.is_in_transaction())
    }

    fn is_all_sent(&self, stop: Stop) -> bool {
        self.lanes.are_sent(*self.durable.borrow()) || self.is_unready || Instant::now() >= stop.send_until
    }

    /// Waits for the next round, or for news when there was nothing to do.
    async fn pause(&mut self, is_busy: bool, stop: &CancellationToken) {
        let may_send = matches!(self.state, State::Flowing) && self.may_send(Lane::Live);
        let (live, backlog) = (self.lanes.flow(Lane::Live), self.lanes.flow(Lane::Backlog));
        let round_end = live.handed_at.max(backlog.handed_at) + self.options.round_interval;
        let live_round_end = live.handed_at + self.options.round_interval;
        let commit_due = self.committed_at + COMMIT_INTERVAL;
        let keep_due = self.lanes.keep_due();
        let waiting_until = if let State::Waiting(until) = self.state { Some(until) } else { None };
        let pace_opens = self.pace.opens_at().filter(|_| matches!(self.state, State::Flowing));
        // Over it already, only reports are waited for, if any are to come.
        let is_to_end = matches!(self.state, State::Flowing) && self.lanes.in_flight() == 0;
        let transaction_due = self.transaction.as_ref().and_then(Transaction::due_at);
        let transaction_due = transaction_due.filter(|due| is_to_end || *due > Instant::now());
        let stop_times = self.stop.map(|stop| if may_send { stop.send_until } else { stop.end });
        let is_stopping = self.stop.is_some();
        // News are for the live lane; each lane waits for its own hand-overs.
        let is_live_held = live.is_held();
        let held = [live, backlog].into_iter().filter(|flow| flow.is_held());
        let held_until = held.map(Flow::held_until).min();
        let is_held = held_until.is_some();
        let is_behind = live.is_behind || backlog.is_behind;
        // The round is the pace while there is work; news would only wake it up more often. A hand-over that takes
        // longer than its round is waited for, and a full window sets its own pace.
        let is_paced = is_busy && (!is_held || (!is_behind && Instant::now() < round_end));
        let mut is_reported = false;
        let pings = self.pings.as_mut().filter(|pings| !pings.is_empty());
        let has_pings = pings.is_some();
        tokio::select! {
            () = sleep_until(round_end), if is_paced => {}
            _ = self.durable.changed(), if !is_paced && !is_live_held && may_send => {}
            () = self.producer.reported(), if !is_paced => is_reported = true,
            () = sleep_until(held_until.unwrap_or(round_end)), if is_held => {}
            () = sleep_until(commit_due), if !is_paced && self.lanes.progress.cursor() > self.committed => {}
            () = sleep_until(keep_due.unwrap_or(round_end)), if !is_paced && keep_due.is_some() => {}
            () = sleep_until(waiting_until.unwrap_or(round_end)), if waiting_until.is_some() => {}
            () = sleep_until(transaction_due.unwrap_or(round_end)), if !is_paced && transaction_due.is_some() => {}
            () = sleep_until(pace_opens.unwrap_or(round_end)), if !is_paced && pace_opens.is_some() => {}
            () = sleep_until(stop_times.unwrap_or(round_end)), if is_stopping => {}
            () = async { if let Some(pings) = pings { pings.hand_over().await } }, if has_pings => {}
            () = self.formatter.ready(), if self.is_unready => self.is_unready = false,
            question = self.alive.asked() => question.answer(),
            () = stop.cancelled(), if !is_stopping => {
                let now = Instant::now();
                let grace = self.options.stop_grace;
                self.stop = Some(Stop { send_until: now + grace / 2, end: now + grace });
            }
        }
        if is_reported && is_held {
            // Reports come one by one from another thread: the first one that wakes brings hundreds.
            sleep(REPORTS_GATHER).await;
        }
        if may_send && !is_busy && !is_live_held && self.stop.is_none() {
            // Woken early by news: the round still sets the pace.
            sleep_until(live_round_end).await;
        }
    }
}
