//! The writer thread: takes what waits, stores it, syncs once, answers everybody.
//!
//! Appends keep the order in which they came. While the buffer is full they wait in that order (or are refused, by
//! policy, or older events go for them, by the highest priority in the line); the drain's reads and commits go on. After
//! a failed write nothing is acknowledged until a new generation could be made, which is tried once a second; reads and
//! commits go on then too.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::generations::{Age, Generations};
use super::ledger::Reason;
use super::store::{Shelf, StoreError};
use super::{AppendError, Appended, Batch, Lanes, Published, ReadError, Refused, Run};
use crate::event::Seq;
use crate::log::Limited;
use crate::system::Clock;

/// Time between two tries to open the buffer again after a failed write.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// How long a cursor waits for a group of appends to become durable with it, before it gets a sync of its own: nobody
/// waits for that sync, and a cursor that is late only sends some events again after a crash.
const CURSOR_INTERVAL: Duration = Duration::from_millis(500);

/// Longest time between two looks for expired events.
const EXPIRY_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Shortest time between two lines that say that the buffer is full.
const FULL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A batch on its way to the disk.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) batch: Batch,
    /// Whether it waits for room: an event in it does, or its producer is held back for as long as it takes.
    pub(super) is_patient: bool,
    /// When it must be answered, room or not.
    pub(super) deadline: Option<Instant>,
    pub(super) reply: oneshot::Sender<Result<Appended, Refused>>,
    /// Its place in the queue, free for the next one when it is answered.
    pub(super) permit: OwnedSemaphorePermit,
}

impl Append {
    fn refuse(self, reason: AppendError) {
        drop(self.permit);
        // A caller that has gone away does not want to know.
        let _ = self.reply.send(Err(Refused { reason, batch: Some(self.batch) }));
    }

    fn accept(self, first: Seq) {
        drop(self.permit);
        let _ = self.reply.send(Ok(Appended { first, batch: self.batch }));
    }
}

/// What the handle asks of the writer.
#[derive(Debug)]
pub(super) enum Command {
    Append(Append),
    Read {
        after: Seq,
        bytes_max: usize,
        run: Run,
        reply: oneshot::Sender<Result<Run, ReadError>>,
    },
    /// The cursor is in [`Published::cursor_asked`].
    Commit {
        reply: Option<oneshot::Sender<Result<(), ReadError>>>,
    },
    /// See [`super::Buffer::set_lanes`].
    SetLanes {
        lanes: Lanes,
        reply: oneshot::Sender<Result<(), ReadError>>,
    },
    /// Events that have no position were lost or refused.
    Count {
        reason: Reason,
        events: u64,
    },
    /// Losses were announced.
    Announced {
        reason: Reason,
        events: u64,
    },
    /// See [`super::Buffer::purge`].
    Purge {
        events: Vec<(Seq, Seq)>,
        to: Seq,
        reply: oneshot::Sender<Result<u64, ReadError>>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// What is needed to tell how old events are, when they may grow too old.
#[derive(Debug)]
pub(super) struct Ages {
    boot: [u8; 16],
    clock: Arc<Clock>,
    /// Time between two looks at events that nobody reads.
    every: Duration,
    next: Instant,
}

impl Ages {
    /// For events that expire after `age_max`: what nobody reads goes at most a tenth of that late, or a second.
    pub(super) fn new(boot: [u8; 16], clock: Arc<Clock>, age_max: Duration) -> Self {
        let every = (age_max / 10).clamp(Duration::from_secs(1), EXPIRY_INTERVAL_MAX);
        Self { boot, clock, every, next: Instant::now() }
    }

    fn now(&self) -> Age {
        Age { boot: self.boot, now: self.clock.now() }
    }
}

/// Nothing can be written: what the error was and when it is tried again.
#[derive(Debug)]
struct Broken {
    error: StoreError,
    retry: Instant,
}

#[derive(Debug)]
pub(super) struct Writer<H: Shelf> {
    generations: Generations<H>,
    commands: Receiver<Command>,
    published: Arc<Published>,
    /// How often the ledger had changed when it was last shown.
    ledger_shown: u64,
    commit_interval: Duration,
    ages: Option<Ages>,
    /// Accepted and not yet stored, in order.
    waiting: VecDeque<Append>,
    /// Stored and not yet synced, with their first positions.
    stored: Vec<(Seq, Append)>,
    commits: Vec<oneshot::Sender<Result<(), ReadError>>>,
    closing: Option<oneshot::Sender<()>>,
    last_sync: Option<Instant>,
    broken: Option<Broken>,
    /// Whether the last append that asked for room found some.
    had_room: bool,
    full_log: Limited,
    is_full_told: bool,
}

impl<H: Shelf> Writer<H> {
    /// `published` shows what `generations` hold now.
    pub(super) fn new(
        generations: Generations<H>,
        commands: Receiver<Command>,
        published: Arc<Published>,
        commit_interval: Duration,
        ages: Option<Ages>,
    ) -> Self {
        let broken = (!generations.is_writable()).then(|| Broken {
            error: StoreError::Io("it could not be opened for writing".into()),
            retry: Instant::now() + REOPEN_INTERVAL,
        });
        Self {
            ledger_shown: generations.ledger_changes(),
            generations,
            commands,
            published,
            commit_interval,
            ages,
            waiting: VecDeque::new(),
            stored: Vec::new(),
            commits: Vec::new(),
            closing: None,
            last_sync: None,
            broken,
            had_room: true,
            full_log: Limited::new(FULL_LOG_INTERVAL),
            is_full_told: false,
        }
    }

    /// Works until it is closed or every handle is gone.
    pub(super) fn run(mut self) -> Result<(), StoreError> {
        while self.closing.is_none() {
            match self.receive() {
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while let Ok(command) = self.commands.try_recv() {
                self.take(command);
            }
            if self.closing.is_some() || self.held_until().is_none_or(|until| until <= Instant::now()) {
                self.turn();
            }
        }
        for append in self.waiting.drain(..) {
            append.refuse(AppendError::Closed);
        }
        self.generations.advance(Seq(self.published.cursor_asked.load(Ordering::Acquire)));
        let closed = self.generations.close().and(self.broken.map_or(Ok(()), |broken| Err(broken.error)));
        if let Some(reply) = self.closing {
            let _ = reply.send(());
        }
        closed
    }

    /// Waits for the next command, not past the next moment at which something is due without one.
    fn receive(&self) -> Result<Command, RecvTimeoutError> {
        let deadlines = self.waiting.iter().filter_map(|append| append.deadline);
        let retry = self.broken.iter().map(|broken| broken.retry);
        let expiry = self.ages.iter().filter(|_| self.generations.may_expire()).map(|ages| ages.next);
        match deadlines.chain(retry).chain(expiry).chain(self.held_until()).min() {
            Some(due) => self.commands.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// The time before which nothing is to be synced.
    fn held_until(&self) -> Option<Instant> {
        self.gathers_until().or_else(|| self.cursor_until())
    }

    /// While there is only a cursor that nobody waits for: the time at which it is synced without a group.
    fn cursor_until(&self) -> Option<Instant> {
        let is_alone = self.waiting.is_empty() && self.commits.is_empty() && self.broken.is_none();
        let is_room_wanted = self.published.is_full.load(Ordering::Relaxed);
        let is_late = is_alone && !is_room_wanted && self.generations.is_dirty();
        self.last_sync.filter(|_| is_late).map(|last| last + CURSOR_INTERVAL)
    }

    /// While `commit_interval` holds a group back: the time at which it may be synced, not past anyone's deadline.
    fn gathers_until(&self) -> Option<Instant> {
        let is_gathering = !self.commit_interval.is_zero() && self.broken.is_none();
        let has_work = !self.waiting.is_empty() && !self.published.is_full.load(Ordering::Relaxed);
        let until =
            self.last_sync.filter(|_| is_gathering && has_work).map(|last| last + self.commit_interval);
        until.map(|until| self.waiting.iter().filter_map(|append| append.deadline).fold(until, Instant::min))
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Append(append) => self.waiting.push_back(append),
            Command::Read { after, bytes_max, mut run, reply } => {
                let age = self.ages.as_ref().map(Ages::now);
                let read = self.generations.read(after, bytes_max, age, &mut run);
                let _ = reply.send(read.map(|()| run).map_err(|e| ReadError::Storage(e.to_string())));
            }
            Command::Commit { reply } => {
                self.published.is_commit_queued.store(false, Ordering::Release);
                self.generations.advance(Seq(self.published.cursor_asked.load(Ordering::Acquire)));
                self.commits.extend(reply);
            }
            Command::SetLanes { lanes, reply } => {
                let set = self.generations.set_lanes(lanes);
                let mut shown = self.published.lanes.lock().unwrap_or_else(PoisonError::into_inner);
                shown.clone_from(&self.generations.lanes().cloned());
                drop(shown);
                // Order: whoever is answered may look at the figures.
                self.publish();
                // What was delivered gives its space back to whoever asks next.
                self.had_room |= set.is_ok() && self.waiting.is_empty();
                let _ = reply.send(set.map_err(|e| ReadError::Storage(e.to_string())));
            }
            Command::Count { reason, events } => self.generations.count(reason, events),
            Command::Announced { reason, events } => self.generations.announced(reason, events),
            Command::Purge { events, to, reply } => {
                let purged = self.generations.purge(&events, to);
                // Order: whoever is answered may look at the figures and the ledger.
                self.publish();
                let _ = reply.send(purged.map_err(|e| ReadError::Storage(e.to_string())));
            }
            Command::Close { reply } => self.closing = Some(reply),
        }
    }

    /// Brings as much as possible to the disk and answers it.
    fn turn(&mut self) {
        self.expire();
        if !self.is_usable() {
            // What was read before and is confirmed now can go all the same.
            self.commit();
            return;
        }
        loop {
            // Without an append nobody asks for room: a cursor that moves may well have made some.
            self.had_room |= self.waiting.is_empty() && self.generations.is_dirty();
            let stored = self.store_waiting();
            // A cursor that moves may free the room for which appends wait.
            let is_dirty = self.generations.is_dirty();
            if let Err(error) = stored.and_then(|()| self.generations.sync()) {
                self.fail(error);
                break;
            }
            if is_dirty {
                self.last_sync = Some(Instant::now());
            }
            self.publish();
            // Order: whoever is answered may look whether there is room.
            self.note_room();
            // Order: behind the sync, so that nobody is shown what a power cut takes back.
            let recent = self.published.recent.get();
            for (first, append) in self.stored.drain(..) {
                if let Some(recent) = recent {
                    recent.put(first, &append.batch);
                }
                append.accept(first);
            }
            self.answer_commits();
            if self.waiting.is_empty() || !is_dirty {
                break;
            }
        }
        self.note_room();
        self.refuse_expired();
    }

    /// The cursor alone, while nothing can be appended.
    fn commit(&mut self) {
        match self.generations.sync() {
            Ok(()) => {
                self.publish();
                self.answer_commits();
            }
            Err(error) => {
                tracing::debug!(%error, "the cursor cannot be written");
                for reply in self.commits.drain(..) {
                    let _ = reply.send(Err(ReadError::Storage(error.to_string())));
                }
            }
        }
    }

    fn answer_commits(&mut self) {
        for reply in self.commits.drain(..) {
            let _ = reply.send(Ok(()));
        }
    }

    /// Gives up what is too old, if it is time to look.
    fn expire(&mut self) {
        let Some(ages) = self.ages.as_mut().filter(|ages| ages.next <= Instant::now()) else { return };
        ages.next = Instant::now() + ages.every;
        let age = ages.now();
        if let Err(error) = self.generations.expire(age) {
            tracing::warn!(%error, "events that are too old could not be given up");
        }
    }

    /// Shows whether there is room, and logs a change, not more than once a minute: near the limit it comes and goes.
    fn note_room(&mut self) {
        self.published.is_full.store(!self.had_room, Ordering::Relaxed);
        if !self.had_room && !self.is_full_told {
            let Some(suppressed) = self.full_log.allow() else { return };
            let bytes = self.generations.figures().disk_bytes;
            tracing::warn!(
                bytes,
                suppressed,
                "the buffer is full: producers wait or are refused until Kafka has taken some"
            );
            self.is_full_told = true;
        } else if self.had_room && self.is_full_told {
            tracing::info!("the buffer has room again");
            self.is_full_told = false;
        }
    }

    /// Stores waiting appends in order as long as there is room.
    fn store_waiting(&mut self) -> Result<(), StoreError> {
        while let Some(append) = self.waiting.pop_front() {
            let has_room = match self.make_room(&append) {
                Ok(has_room) => has_room,
                Err(error) => {
                    self.waiting.push_front(append);
                    return Err(error);
                }
            };
            self.had_room = has_room;
            if !has_room {
                // What is not synced yet may look larger than it is, and nothing is evicted beside it.
                if self.generations.is_unsynced() {
                    self.waiting.push_front(append);
                    break;
                }
                self.published.is_full.store(true, Ordering::Relaxed);
                if append.is_patient {
                    self.waiting.push_front(append);
                    self.refuse_impatient();
                    break;
                }
                append.refuse(AppendError::Full);
                continue;
            }
            match self.generations.put(&append.batch) {
                Ok(first) => self.stored.push((first, append)),
                Err(error) => {
                    self.waiting.push_front(append);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether there is room for an append, made by giving up older events where they allow it. It has the priority of
    /// the highest in the line behind it, which it would hold up.
    fn make_room(&mut self, append: &Append) -> Result<bool, StoreError> {
        let bytes = append.batch.bytes();
        if self.generations.has_room(bytes)? {
            return Ok(true);
        }
        let line = self.waiting.iter().map(|behind| behind.batch.priority());
        let priority = line.fold(append.batch.priority(), u8::max);
        loop {
            let is_freed = self.generations.free_delivered()?
                || self.generations.compact()?
                || self.generations.evict(priority)?
                || self.generations.seal_evictable(priority)?;
            if !is_freed {
                return Ok(false);
            }
            if self.generations.has_room(bytes)? {
                return Ok(true);
            }
        }
    }

    fn refuse_expired(&mut self) {
        let now = Instant::now();
        self.refuse_if(|append| append.deadline.is_some_and(|deadline| deadline <= now));
    }

    /// The first of the line waits and nothing can be given up for anybody: those that do not wait are not kept either.
    fn refuse_impatient(&mut self) {
        self.refuse_if(|append| !append.is_patient);
    }

    fn refuse_if(&mut self, is_over: impl Fn(&Append) -> bool) {
        let (over, waiting): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(is_over);
        self.waiting.extend(waiting);
        for append in over {
            append.refuse(AppendError::Full);
        }
    }

    /// A write or a sync failed: nothing of this group is acknowledged.
    fn fail(&mut self, error: StoreError) {
        tracing::error!(%error, "the buffer cannot be written; nothing is acknowledged until it can be, what is in it is delivered");
        self.broken = Some(Broken { error, retry: Instant::now() });
        self.refuse_all();
    }

    /// Answers everybody with the failure at hand.
    fn refuse_all(&mut self) {
        let Some(broken) = &self.broken else { return };
        let text = broken.error.to_string();
        let stored = self.stored.drain(..).map(|(_, append)| append);
        for append in stored.chain(self.waiting.drain(..)) {
            append.refuse(AppendError::Storage(text.clone()));
        }
    }

    /// Makes a new generation after a failure, if it is time for it.
    fn is_usable(&mut self) -> bool {
        if self.broken.is_none() && !self.generations.is_writable() {
            let error = StoreError::Io("the newest generation cannot be used any more".into());
            self.broken = Some(Broken { error, retry: Instant::now() });
        }
        let Some(broken) = &mut self.broken else { return true };
        let now = Instant::now();
        if broken.retry > now {
            self.refuse_all();
            return false;
        }
        match self.generations.reopen() {
            Ok(()) => {
                tracing::info!("the buffer can be written again");
                self.broken = None;
                self.publish();
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the buffer cannot be written yet");
                (broken.retry, broken.error) = (now + REOPEN_INTERVAL, error);
                self.refuse_all();
                false
            }
        }
    }

    fn publish(&mut self) {
        let figures = self.generations.figures();
        *self.published.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
        let changes = self.generations.ledger_changes();
        if changes != self.ledger_shown {
            self.ledger_shown = changes;
            let mut ledger = self.published.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.clone_from(self.generations.ledger());
            drop(ledger);
            self.published.ledger_changed.notify_one();
        }
        self.published.durable.send_if_modified(|durable| {
            let grows = figures.durable > *durable;
            *durable = figures.durable;
            grows
        });
    }
}
