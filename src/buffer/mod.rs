//! The durable buffer: what was appended and answered is on disk, in order, until it is committed.
//!
//! The promise: [`Buffer::append`] returns only after the events were synced; [`Buffer::read`] returns only synced
//! events, in order, each with its position; space is given back only behind [`Buffer::commit`]. The handle is
//! cheap to clone; all work is done by one writer thread (`writer`), which answers every waiter of a group after
//! one sync.
//!
//! It knows nothing of MQTT, Kafka, Redis or the configuration file.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use uuid::Uuid;

use crate::error::Class;
use crate::event::Seq;
use crate::system::Clock;

mod batch;
pub mod block;
mod generations;
mod identity;
mod lanes;
pub mod ledger;
pub mod probe;
mod ranges;
pub mod recent;
mod reserve;
mod run;
pub mod scan;
mod sled;
pub mod store;
pub mod view;
mod ways;
mod writer;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Terms, WhenFull};
pub use block::Rank;
pub use generations::Figures;
pub use identity::LogName;
pub use lanes::{AHEAD_MAX, Lanes};
pub use recent::{Recent, RecentLimits};
pub use run::Run;
pub use ways::{TOPIC_BYTES_MAX, TOPICS_MAX};

use generations::{Files, Generations, Limits};
use identity::{HighWater, Identity};
use lanes::LanesFile;
use ledger::{Entries, Ledger, Reason};
use reserve::Reserve;
use store::{Shelf, StoreError};
use writer::{Ages, Append, Command, Writer};

/// Most appends waiting for the writer; their bytes have a limit of their own. Ten thousand small waiters share one
/// sync as well as a thousand, so this only bounds bookkeeping.
const QUEUE_APPENDS_MAX: usize = 1024;

/// Places in the command queue beyond the appends: a read and a commit of the drain, what it says of its
/// lanes, and the close.
const QUEUE_OTHERS_MAX: usize = 16;

/// How much longer than its deadline an append waits for the writer to say what became of it.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// How the buffer is opened. Every limit has its key in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The buffer's own directory, made when it is missing; one owner at a time.
    pub dir: PathBuf,
    /// The loss ledger, beside the directory: a wiped buffer does not take it along.
    pub ledger: PathBuf,
    /// The agent's name, which belongs to the position of an event.
    pub agent: String,
    /// Most bytes of disk, everything in the directory counted.
    pub bytes_max: u64,
    /// Bytes of the file system that are left to others; 0 for no such floor.
    pub free_min: u64,
    /// Events older than this are given up and counted.
    pub age_max: Option<Duration>,
    /// Shortest time between two syncs; zero: the next group starts when the last one is synced.
    pub commit_interval: Duration,
    /// Most bytes of encoded events waiting for the writer.
    pub queue_bytes_max: usize,
}

/// How long an append may wait for room and for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Up to this long, then [`AppendError::Full`] or [`AppendError::TimedOut`].
    AtMost(Duration),
    /// Without a deadline; what does not wait by its terms is refused all the same.
    Forever,
    /// Until there is room, whatever the terms: for a producer that is held back by not being acknowledged.
    UntilTaken,
}

/// A batch that became durable.
#[derive(Debug)]
pub struct Appended {
    /// Position of its first event; the others follow without a gap.
    pub first: Seq,
    /// The batch, for pings and for its memory.
    pub batch: Batch,
}

/// An append that was not taken.
#[derive(Debug, Error)]
#[error("{reason}")]
pub struct Refused {
    /// Why.
    #[source]
    pub reason: AppendError,
    /// The batch, unless the writer still holds it (then the outcome is unknown and the producer sends again).
    pub batch: Option<Batch>,
}

/// Why an append was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The buffer is at its limit and the policy or the wait is over: tell the producer to come back later.
    #[error("the buffer is full")]
    Full,
    /// The disk did not answer in time; the events may or may not be stored: tell the producer to send again.
    #[error("the buffer did not become durable in time")]
    TimedOut,
    /// Writing or syncing failed; nothing of the batch is acknowledged: tell the producer, the writer reopens.
    #[error("the buffer cannot be written: {0}")]
    Storage(String),
    /// The buffer is closed: the agent is stopping.
    #[error("the buffer is closed")]
    Closed,
}

impl AppendError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        match self {
            Self::Full | Self::TimedOut | Self::Storage(_) => Class::Retry,
            Self::Closed => Class::Fatal,
        }
    }
}

/// Why the buffer cannot be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process owns the directory. Stop it, or give this agent a directory of its own.
    #[error("{} is in use by process {}", dir.display(), owner.map_or("(unknown)".into(), |pid| pid.to_string()))]
    Locked {
        /// The buffer's directory.
        dir: PathBuf,
        /// The owner's process id, if its lock file tells.
        owner: Option<u32>,
    },
    /// A later version wrote the directory. Install that version again, or move the directory away.
    #[error("{} has layout version {format}, which this agent does not know; it was not touched", dir.display())]
    Newer {
        /// The buffer's directory.
        dir: PathBuf,
        /// Its layout version.
        format: u32,
    },
    /// A later version wrote a part of it. Install that version again, or move the directory away.
    #[error(
        "generation {first} was written in block format {format}, which this agent does not know; it was not touched"
    )]
    NewerBlocks {
        /// The generation.
        first: Seq,
        /// Its format.
        format: u8,
    },
    /// The directory belongs to something else. Give the buffer one of its own.
    #[error("{} is not a fieldpost buffer: it holds {found}; set agent.data_dir to a directory of its own", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Something in it.
        found: String,
    },
    /// The directory or a file in it cannot be made, read or written.
    #[error("{0}")]
    Io(String),
    /// A generation cannot be opened or made now, for another reason than damage.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OpenError {
    fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::Io(format!("{}: {error}", path.display()))
    }

    /// The caller's reaction: the agent cannot run without its buffer.
    pub fn class(&self) -> Class {
        Class::Fatal
    }
}

/// Why a read or a commit has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The disk cannot be read now: wait and ask again.
    #[error("the buffer cannot be read: {0}")]
    Storage(String),
    /// The buffer is closed.
    #[error("the buffer is closed")]
    Closed,
}

impl ReadError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        match self {
            Self::Storage(_) => Class::Retry,
            Self::Closed => Class::Fatal,
        }
    }
}

/// How the writer thread ended. Class: fatal.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CloseError {
    /// The last sync failed: what was acknowledged is safe, the cursor may be late and some events go out again.
    #[error("the buffer could not be closed in order: {0}")]
    Storage(#[from] StoreError),
    /// The thread panicked; the log has the message.
    #[error("the buffer's writer died")]
    Died,
}

/// What identifies the events of this buffer: see `identity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// UUID made with the directory.
    pub id: Uuid,
    /// How often it was opened, this time included.
    pub epoch: u32,
}

/// The handle: clone it for every stage. [`Buffer::close`] ends the writer.
#[derive(Debug, Clone)]
pub struct Buffer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    commands: SyncSender<Command>,
    /// Bytes that may still be queued. One semaphore for bytes and count (see [`Buffer::cost`]), because it is served
    /// first come, first served: that keeps appends in the order in which they were first polled.
    room: Arc<Semaphore>,
    queue_bytes_max: usize,
    log: Log,
    boot: [u8; 16],
    are_lanes_damaged: bool,
    logs: Vec<LogName>,
    published: Arc<Published>,
}

/// What the writer shows to the handles.
#[derive(Debug)]
struct Published {
    durable: watch::Sender<Seq>,
    figures: Mutex<Figures>,
    ledger: Mutex<Entries>,
    lanes: Mutex<Option<Lanes>>,
    ledger_changed: Notify,
    is_full: AtomicBool,
    cursor_asked: AtomicU64,
    is_commit_queued: AtomicBool,
    recent: OnceLock<Arc<Recent>>,
}

/// The writer thread; to be awaited beside the stages.
#[derive(Debug)]
pub struct WriterThread {
    thread: JoinHandle<Result<(), StoreError>>,
    ended: oneshot::Receiver<()>,
}

impl WriterThread {
    /// Returns when the writer has ended: after [`Buffer::close`], or because it died.
    ///
    /// # Errors
    /// See [`CloseError`].
    ///
    /// Cancel safe: no, it owns the thread.
    pub async fn ended(self) -> Result<(), CloseError> {
        // Both an answer and a dropped sender mean that the thread is at its end, so that the join does not block.
        let _ = self.ended.await;
        self.thread.join().map_err(|_| CloseError::Died)?.map_err(CloseError::from)
    }
}

impl Options {
    /// A buffer of 1 GiB in `data_dir`, with nothing else limited.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("buffer"),
            ledger: data_dir.join("LEDGER"),
            agent: "agent".into(),
            bytes_max: 1 << 30,
            free_min: 0,
            age_max: None,
            commit_interval: Duration::ZERO,
            queue_bytes_max: 4 << 20,
        }
    }

    /// The largest batch, in bytes as it is stored, that the buffer takes for certain once it is drained: on disk it
    /// costs more than its size. With [`Wait::Forever`] a larger one may wait for ever.
    pub fn batch_bytes_max(&self) -> usize {
        usize::try_from(generations::batch_bytes_max(self.bytes_max)).unwrap_or(usize::MAX)
    }
}

impl Buffer {
    /// Opens or makes the buffer and starts its writer. Blocks for the time of the recovery.
    ///
    /// # Errors
    /// [`OpenError`]: the agent cannot start; nothing was lost.
    pub fn open(
        options: &Options,
        boot: [u8; 16],
        clock: Arc<Clock>,
    ) -> Result<(Self, WriterThread), OpenError> {
        let dir = &options.dir;
        std::fs::create_dir_all(dir).map_err(|e| OpenError::io(dir, &e))?;
        identity::refuse_foreign(dir)?;
        let lock = identity::Lock::take(dir)?;
        Self::open_on(sled::SledShelf::new(dir.clone()), options, boot, clock, lock)
    }

    fn open_on<H: Shelf + 'static>(
        shelf: H,
        options: &Options,
        boot: [u8; 16],
        clock: Arc<Clock>,
        lock: identity::Lock,
    ) -> Result<(Self, WriterThread), OpenError> {
        let ledger = Ledger::open(&options.ledger);
        let identity = Identity::open(&options.dir, &options.agent, ledger.witness())?;
        let high_water = HighWater::open(&options.dir)?;
        let lanes = LanesFile::open(&options.dir)?;
        let are_lanes_damaged = lanes.is_damaged();
        let reserve = Reserve::new(&options.dir, options.bytes_max);
        let log = Log { id: identity.log(), epoch: identity.epoch() };
        let logs = identity.logs().to_vec();
        let Options { bytes_max, free_min, age_max, .. } = *options;
        let limits = Limits { bytes_max, free_min, age_max };
        let files = Files { identity, high_water, lanes, ledger, reserve };
        let generations = Generations::open(shelf, files, boot, limits)?;
        let figures = generations.figures();
        let (commands, received) = sync_channel(QUEUE_APPENDS_MAX + QUEUE_OTHERS_MAX);
        let published = Arc::new(Published {
            durable: watch::Sender::new(figures.durable),
            figures: Mutex::new(figures),
            ledger: Mutex::new(generations.ledger().clone()),
            lanes: Mutex::new(generations.lanes().cloned()),
            ledger_changed: Notify::new(),
            is_full: AtomicBool::new(false),
            cursor_asked: AtomicU64::new(figures.cursor.0),
            is_commit_queued: AtomicBool::new(false),
            recent: OnceLock::new(),
        });
        let ages = options.age_max.map(|age_max| Ages::new(boot, clock, age_max));
        let writer =
            Writer::new(generations, received, Arc::clone(&published), options.commit_interval, ages);
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("buffer-writer".into())
            .spawn(move || {
                let _end: oneshot::Sender<()> = end;
                let _lock = lock;
                writer.run()
            })
            .map_err(|e| OpenError::Io(format!("cannot start the writer thread: {e}")))?;
        let inner = Inner {
            commands,
            room: Arc::new(Semaphore::new(options.queue_bytes_max)),
            queue_bytes_max: options.queue_bytes_max,
            log,
            boot,
            are_lanes_damaged,
            logs,
            published,
        };
        Ok((Self { inner: Arc::new(inner) }, WriterThread { thread, ended }))
    }

    /// The boot id under which it was opened: that of the events that are taken now.
    pub fn boot(&self) -> [u8; 16] {
        self.inner.boot
    }

    /// What identifies the events of this buffer.
    pub fn log(&self) -> Log {
        self.inner.log
    }

    /// The names of the events in it, by ascending epoch: an event has the last one that begins at or before its epoch.
    pub fn logs(&self) -> &[LogName] {
        &self.inner.logs
    }

    /// What was lost or refused, by reason, since the ledger began.
    pub fn ledger(&self) -> Entries {
        self.inner.published.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when [`Self::ledger`] has changed since the last time it returned. For one waiter.
    ///
    /// Cancel safe: yes.
    pub async fn ledger_changed(&self) {
        self.inner.published.ledger_changed.notified().await;
    }

    /// Counts events that were not taken, or were lost behind the buffer, in the ledger; durable soon. Does not wait;
    /// `false` when the writer has no time for it now: count them again later.
    pub fn count(&self, reason: Reason, events: u64) -> bool {
        self.inner.commands.try_send(Command::Count { reason, events }).is_ok()
    }

    /// Remembers that the first `events` of `reason` were announced; as [`Self::count`].
    pub fn announced(&self, reason: Reason, events: u64) -> bool {
        self.inner.commands.try_send(Command::Announced { reason, events }).is_ok()
    }

    /// Keeps what becomes durable from now on in memory too, within `limits`, for whoever looks. The limits of the first call
    /// count.
    pub fn keep_recent(&self, limits: RecentLimits) -> Arc<Recent> {
        let published = &self.inner.published;
        let durable = *published.durable.borrow();
        Arc::clone(published.recent.get_or_init(|| Arc::new(Recent::new(limits, durable))))
    }

    /// The numbers after the last commit.
    pub fn figures(&self) -> Figures {
        *self.inner.published.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an append was held back or refused for want of room and nothing was freed since.
    pub fn is_full(&self) -> bool {
        self.inner.published.is_full.load(Ordering::Relaxed)
    }

    /// The last durable position, and word whenever it grows.
    pub fn durable(&self) -> watch::Receiver<Seq> {
        self.inner.published.durable.subscribe()
    }

    /// Appends `batch` behind everything accepted before it and returns when it is durable.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing of a refused batch was acknowledged.
    ///
    /// Cancel safe: no. Dropping the future after the writer took the batch leaves it stored without an answer.
    pub async fn append(&self, batch: Batch, wait: Wait) -> Result<Appended, Refused> {
        let deadline = match wait {
            Wait::AtMost(time) => Some(Instant::now() + time),
            Wait::Forever | Wait::UntilTaken => None,
        };
        let room = Arc::clone(&self.inner.room).acquire_many_owned(self.cost(batch.bytes()));
        // Behind those who fill the queue because they wait for room, whoever does not wait is refused, too.
        let is_patient = batch.is_patient() || wait == Wait::UntilTaken;
        let queued_by = if is_patient || !self.is_full() { deadline } else { Some(Instant::now()) };
        let permit = match within(queued_by, room).await {
            Some(Ok(permit)) => permit,
            Some(Err(_)) => return Err(Refused { reason: AppendError::Closed, batch: Some(batch) }),
            None => {
                let reason = if self.is_full() { AppendError::Full } else { AppendError::TimedOut };
                return Err(Refused { reason, batch: Some(batch) });
            }
        };
        let (reply, answer) = oneshot::channel();
        let append = Append { batch, is_patient, deadline, reply, permit };
        if let Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) =
            self.inner.commands.try_send(Command::Append(append))
        {
            // The permit keeps the queue from being full, so the writer is gone.
            let batch = if let Command::Append(append) = command { Some(append.batch) } else { None };
            return Err(Refused { reason: AppendError::Closed, batch });
        }
        match within(deadline.map(|d| d + ANSWER_GRACE), answer).await {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Refused { reason: AppendError::Closed, batch: None }),
            None => Err(Refused { reason: AppendError::TimedOut, batch: None }),
        }
    }

    /// What an append of `bytes` takes of the queue. The least cost bounds the number of appends.
    fn cost(&self, bytes: usize) -> u32 {
        let bytes_max = self.inner.queue_bytes_max;
        let least = bytes_max.div_ceil(QUEUE_APPENDS_MAX);
        u32::try_from(bytes.clamp(least, bytes_max)).unwrap_or(u32::MAX)
    }

    /// Reads durable events behind `after` into `run`: whole blocks, at least one, up to about `bytes_max`. Empty
    /// when there is none yet (wait for [`Buffer::durable`]). Go on from [`Run::end`].
    ///
    /// # Errors
    /// See [`ReadError`].
    ///
    /// Cancel safe: yes, only `run`'s memory is lost.
    pub async fn read(&self, after: Seq, bytes_max: usize, run: Run) -> Result<Run, ReadError> {
        self.ask(|reply| Command::Read { after, bytes_max, run, reply }).await?
    }

    /// Lets everything up to `seq` be forgotten, with the next sync. Does not wait, never fails: a later call or
    /// [`Buffer::close`] makes up for one that was lost.
    pub fn commit(&self, seq: Seq) {
        let published = &self.inner.published;
        published.cursor_asked.fetch_max(seq.0, Ordering::AcqRel);
        if !published.is_commit_queued.swap(true, Ordering::AcqRel)
            && self.inner.commands.try_send(Command::Commit { reply: None }).is_err()
        {
            published.is_commit_queued.store(false, Ordering::Release);
        }
    }

    /// As [`Buffer::commit`], and returns when that is durable.
    ///
    /// # Errors
    /// See [`ReadError`].
    ///
    /// Cancel safe: yes, the commit happens all the same.
    pub async fn commit_durable(&self, seq: Seq) -> Result<(), ReadError> {
        self.inner.published.cursor_asked.fetch_max(seq.0, Ordering::AcqRel);
        self.ask(|reply| Command::Commit { reply: Some(reply) }).await?
    }

    /// Whether lanes were stored and could not be read at the opening: what went out ahead of the cursor is not known.
    pub fn are_lanes_damaged(&self) -> bool {
        self.inner.are_lanes_damaged
    }

    /// What was stored last, as of the opening or the last [`Buffer::set_lanes`]. `None`: nothing was ever stored, or it
    /// cannot be read any more; then an ERROR has said so.
    pub fn lanes(&self) -> Option<Lanes> {
        self.inner.published.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores what went out ahead of the cursor, returns when that is durable, and reckons with it from then on: what
    /// is in [`Lanes::ahead`] is not served again and counts as nothing when it goes, and while the row is split the
    /// backlog and the live lane are read apart (see [`Buffer::read`]).
    ///
    /// # Errors
    /// See [`ReadError`]; after [`ReadError::Storage`] what was stored before counts, and after a start either.
    ///
    /// Cancel safe: yes, it happens all the same.
    pub async fn set_lanes(&self, lanes: Lanes) -> Result<(), ReadError> {
        self.ask(|reply| Command::SetLanes { lanes, reply }).await?
    }

    /// Gives up everything up to `to`, which nobody may read meanwhile, and answers how many events that were: `events`
    /// are the positions of those in it, first and last of each range. They are counted as [`Reason::Purged`] before they
    /// are gone.
    ///
    /// # Errors
    /// See [`ReadError`].
    ///
    /// Cancel safe: yes, it happens all the same.
    pub async fn purge(&self, events: Vec<(Seq, Seq)>, to: Seq) -> Result<u64, ReadError> {
        self.ask(|reply| Command::Purge { events, to, reply }).await?
    }

    /// Takes no more appends, finishes the accepted ones, syncs, and lets the directory go; [`WriterThread::ended`]
    /// returns then.
    ///
    /// Cancel safe: yes, the writer closes all the same.
    pub async fn close(&self) {
        self.inner.room.close();
        // An error means that the writer is closed already.
        let _ = self.ask(|reply| Command::Close { reply }).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, ReadError> {
        let (reply, answer) = oneshot::channel();
        match self.inner.commands.try_send(command(reply)) {
            Ok(()) => answer.await.map_err(|_| ReadError::Closed),
            Err(TrySendError::Full(_)) => Err(ReadError::Storage("the writer is not answering".into())),
            Err(TrySendError::Disconnected(_)) => Err(ReadError::Closed),
        }
    }
}

/// `None`: the deadline came first.
async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await.ok(),
        None => Some(future.await),
    }
}
