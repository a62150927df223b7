//! Events in flow: a producer on the socket that sends again what was not acknowledged, and the rules that what is
//! then in Kafka must keep.
//!
//! Every event says who sent it and its number there: `source_id` is the source, `id` is `{source}-{n}`, and the
//! payload is `{"n":n,...}`. So a record alone tells which event it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::agent::Agent;
use super::kafka::Record;
use super::unique;
use super::unix::{NoReply, Refusal, Reply, UnixClient};
use super::wait::{scaled, within};

/// How long one look for replies may take; also the pace of the sending.
const LOOK: Duration = Duration::from_millis(2);

/// A polite producer lets this much time go by behind a refusal.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// How a producer behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Events a second; `None`: as fast as `window` allows.
    pub(crate) rate: Option<u32>,
    /// Most events without an answer.
    pub(crate) window: usize,
    /// Bytes of padding in the payload; with `is_mixed` the most of them.
    pub(crate) padding: usize,
    /// Each event has a size of its own, from all orders of magnitude below `padding`.
    pub(crate) is_mixed: bool,
    /// Most events; `u64::MAX` for no end.
    pub(crate) count: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rate: None, window: 500, padding: 0, is_mixed: false, count: u64::MAX }
    }
}

impl Pace {
    /// Bytes of padding in event `n`.
    fn padding_of(&self, n: u64) -> usize {
        if !self.is_mixed {
            return self.padding;
        }
        let mut random = fastrand::Rng::with_seed(n);
        let most = self.padding >> random.u32(..8);
        random.usize(..=most)
    }
}

/// The padding of event `n`: different in each, so that compression does not make the buffer's limits unreachable.
pub(crate) fn padding(n: u64, bytes: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut noise = vec![0; bytes];
    fastrand::Rng::with_seed(n).fill(&mut noise);
    for byte in &mut noise {
        *byte = LETTERS[usize::from(*byte % 64)];
    }
    String::from_utf8(noise).expect("letters")
}

/// The line of event `n` of `source`.
pub(crate) fn line_of(source: &str, n: u64, padding_bytes: usize) -> String {
    let padding = padding(n, padding_bytes);
    format!(
        r#"{{"id":"{source}-{n}","type":"reading","source_type":"probe","source_id":"{source}","payload":{{"n":{n},"x":"{padding}"}}}}"#
    )
}

/// `count` producers on the agent's socket, with names that begin with `name`.
pub(crate) fn start_producers(agent: &Agent, name: &str, count: usize, pace: Pace) -> Vec<Producer> {
    (0..count).map(|_| Producer::start(&agent.socket(), &unique(name), pace)).collect()
}

/// Ends them once everything that they sent is acknowledged. Answers how many events that were, by source.
#[track_caller]
pub(crate) fn finish(producers: Vec<Producer>) -> BTreeMap<String, u64> {
    producers
        .into_iter()
        .map(|producer| (producer.source().to_owned(), producer.finish(super::wait::USUAL * 4)))
        .collect()
}

/// A producer on a thread of its own. It goes on over lost connections and refused lines.
pub(crate) struct Producer {
    source: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    abandon: AtomicBool,
    sent: AtomicU64,
    acked: Mutex<BTreeSet<u64>>,
    refused: Mutex<Vec<Refusal>>,
    /// Longest time without an acknowledgement while something waited for one, in milliseconds.
    longest_ms: AtomicU64,
}

impl Producer {
    pub(crate) fn start(socket: &Path, source: &str, pace: Pace) -> Self {
        let shared = Arc::<Shared>::default();
        let work = Work {
            socket: socket.to_owned(),
            source: source.to_owned(),
            pace,
            shared: Arc::clone(&shared),
            begun: Instant::now(),
            next: 0,
            again: BTreeSet::new(),
        };
        let thread = Some(std::thread::spawn(move || work.run()));
        Self { source: source.to_owned(), shared, thread }
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// How many different events it has sent at least once.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How many events are acknowledged.
    pub(crate) fn acked(&self) -> u64 {
        self.shared.acked.lock().unwrap().len() as u64
    }

    /// The numbers of the acknowledged events.
    pub(crate) fn acked_numbers(&self) -> BTreeSet<u64> {
        self.shared.acked.lock().unwrap().clone()
    }

    /// The refusals so far.
    pub(crate) fn refused(&self) -> Vec<Refusal> {
        self.shared.refused.lock().unwrap().clone()
    }

    /// Longest time that it waited for an acknowledgement.
    pub(crate) fn longest_wait(&self) -> Duration {
        Duration::from_millis(self.shared.longest_ms.load(Ordering::Relaxed))
    }

    /// Forgets the longest wait so far.
    pub(crate) fn reset_longest_wait(&self) {
        self.shared.longest_ms.store(0, Ordering::Relaxed);
    }

    /// Sends nothing new any more (but a producer with a count all of that), waits until everything sent is acknowledged, and answers how much that is: events
    /// `0..n`.
    #[track_caller]
    pub(crate) fn finish(mut self, patience: Duration) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it runs");
        let ended = within(scaled(patience), || thread.is_finished().then_some(()));
        let (acked, sent) = (self.acked(), self.sent());
        assert!(ended.is_some(), "{acked} of {sent} events of {} are acknowledged", self.source);
        thread.join().expect("the producer does not panic");
        assert_eq!(acked, sent, "{}", self.source);
        acked
    }

    /// Gives up at once, reading what the agent still says on the open connection, and answers the acknowledged
    /// events.
    #[track_caller]
    pub(crate) fn abandon(mut self) -> BTreeSet<u64> {
        self.shared.abandon.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("the producer does not panic");
        self.shared.acked.lock().unwrap().clone()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.abandon.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed; the test's own assertion is what fails it.
            drop(thread.join());
        }
    }
}

struct Work {
    socket: PathBuf,
    source: String,
    pace: Pace,
    shared: Arc<Shared>,
    begun: Instant,
    /// First event never sent.
    next: u64,
    /// Events to send again, the first one first.
    again: BTreeSet<u64>,
}

impl Work {
    fn run(mut self) {
        while !self.is_done() {
            let connected = within(Duration::from_millis(200), || UnixClient::connect(&self.socket).ok());
            if let Some(client) = connected {
                let unanswered = self.serve(client);
                self.again.extend(unanswered.into_iter().map(|(_, n)| n));
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn is_abandoned(&self) -> bool {
        self.shared.abandon.load(Ordering::Relaxed)
    }

    fn is_done(&self) -> bool {
        self.is_abandoned() || (self.again.is_empty() && !self.may_begin_new() && self.is_finished())
    }

    fn is_finished(&self) -> bool {
        self.next >= self.pace.count || (self.pace.count == u64::MAX && self.is_stopping())
    }

    fn may_begin_new(&self) -> bool {
        let is_due = self
            .pace
            .rate
            .is_none_or(|rate| (self.next as f64) < self.begun.elapsed().as_secs_f64() * f64::from(rate));
        !self.is_finished() && is_due
    }

    /// One connection to its end. Returns the lines without an answer.
    fn serve(&mut self, mut client: UnixClient) -> VecDeque<(u64, u64)> {
        let mut pending = VecDeque::new();
        let (mut line, mut acked) = (0_u64, 0);
        let mut waiting_since = Instant::now();
        let mut next_line = Instant::now();
        loop {
            if self.is_abandoned() {
                client.end_sending();
                while let Some(reply) = client.read_reply(Duration::from_secs(3)) {
                    self.take(reply, &mut pending, &mut acked);
                }
                return pending;
            }
            if pending.is_empty() && self.is_done() {
                return pending;
            }
            let mut bytes = Vec::new();
            while pending.len() < self.pace.window && Instant::now() >= next_line {
                let n = match self.again.pop_first() {
                    Some(n) => n,
                    None if self.may_begin_new() => {
                        self.next += 1;
                        self.shared.sent.store(self.next, Ordering::Relaxed);
                        self.next - 1
                    }
                    None => break,
                };
                if pending.is_empty() {
                    waiting_since = Instant::now();
                }
                line += 1;
                pending.push_back((line, n));
                bytes.extend_from_slice(line_of(&self.source, n, self.pace.padding_of(n)).as_bytes());
                bytes.push(b'\n');
            }
            if !bytes.is_empty() && client.try_send_raw(&bytes).is_err() {
                // What was answered before the end still counts.
                while let Some(reply) = client.read_reply(Duration::from_secs(1)) {
                    self.take(reply, &mut pending, &mut acked);
                }
                return pending;
            }
            let reply = client.try_reply(LOOK);
            if !pending.is_empty() {
                let waited = u64::try_from(waiting_since.elapsed().as_millis()).unwrap();
                self.shared.longest_ms.fetch_max(waited, Ordering::Relaxed);
            }
            match reply {
                Ok(reply) => {
                    waiting_since = Instant::now();
                    if matches!(reply, Reply::Refused(_)) {
                        next_line = Instant::now() + REFUSED_PAUSE;
                    }
                    self.take(reply, &mut pending, &mut acked);
                }
                Err(NoReply::Closed) => return pending,
                Err(NoReply::Late) => {}
            }
        }
    }

    fn take(&mut self, reply: Reply, pending: &mut VecDeque<(u64, u64)>, acked: &mut u64) {
        match reply {
            Reply::Ack { ack } => {
                let mut set = self.shared.acked.lock().unwrap();
                for _ in *acked..ack {
                    let (_, n) = pending.pop_front().expect("an ack covers events that were sent");
                    set.insert(n);
                }
                *acked = ack;
            }
            Reply::Refused(refusal) => {
                if let Some(at) = pending.iter().position(|(line, _)| Some(*line) == refusal.line) {
                    let (_, n) = pending.remove(at).expect("it is there");
                    self.again.insert(n);
                }
                self.shared.refused.lock().unwrap().push(refusal);
            }
        }
    }
}

/// An event as it stands in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) source: String,
    pub(crate) n: u64,
    pub(crate) log: String,
    pub(crate) position: (u64, u64),
    pub(crate) partition: i32,
    /// The lane: that of the backlog, or the live one.
    pub(crate) is_backlog: bool,
}

impl Stored {
    #[track_caller]
    pub(crate) fn of(record: &Record) -> Self {
        let event = record.json();
        let source = event["source_id"].as_str().unwrap().to_owned();
        let n = event["payload"]["n"].as_u64().unwrap();
        assert_eq!(event["id"], format!("{source}-{n}"));
        assert_eq!(record.key_text(), source);
        let number = |name| record.header(name).unwrap().parse().unwrap();
        Self {
            source,
            n,
            log: record.header("fieldpost-log").unwrap().to_owned(),
            position: (number("fieldpost-epoch"), number("fieldpost-seq")),
            partition: record.partition,
            is_backlog: record.header("fieldpost-backlog").is_some(),
        }
    }
}

/// What a consumer keeps that remembers one position per partition, log and lane, and drops everything up to it.
///
/// # Panics
/// When that drops an event that it had not seen: then positions do not only grow.
#[track_caller]
pub(crate) fn kept_by_position(records: &[Record]) -> Vec<Stored> {
    let mut last: BTreeMap<(i32, String, bool), (u64, u64)> = BTreeMap::new();
    let mut seen = BTreeMap::new();
    let mut kept = Vec::new();
    for stored in records.iter().map(Stored::of) {
        let last = last.entry((stored.partition, stored.log.clone(), stored.is_backlog)).or_default();
        let what = (stored.source.clone(), stored.n);
        if stored.position <= *last {
            let at = (stored.log.clone(), stored.position);
            assert_eq!(seen.get(&at), Some(&what), "dropped by position {at:?}, but never seen there");
            continue;
        }
        *last = stored.position;
        let before = seen.insert((stored.log.clone(), stored.position), what);
        assert_eq!(before, None, "two events have the position {:?}", stored.position);
        kept.push(stored);
    }
    kept
}

/// Lets `time` pass for what is under test: the length of an outage or of a life. Nothing is waited for.
pub(crate) fn pass(time: Duration) {
    let _never: Option<()> = within(time, || None);
}

/// Numbers of each source in the order in which they first occur.
pub(crate) fn first_occurrences(stored: &[Stored]) -> BTreeMap<String, Vec<u64>> {
    let mut seen = BTreeSet::new();
    let mut order: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in stored {
        if seen.insert((event.source.clone(), event.n)) {
            order.entry(event.source.clone()).or_default().push(event.n);
        }
    }
    order
}

/// Each source's first occurrences are `0..` without a gap and in order, at least as many as were acknowledged.
#[track_caller]
pub(crate) fn assert_whole_and_in_order(stored: &[Stored], acked: &BTreeMap<String, u64>) {
    let order = first_occurrences(stored);
    for (source, count) in acked {
        let found = order.get(source).map_or(&[][..], Vec::as_slice);
        let wanted: Vec<u64> = (0..found.len() as u64).collect();
        if found != wanted {
            let at = found.iter().zip(&wanted).position(|(a, b)| a != b).unwrap();
            panic!(
                "{source} is out of order or has a gap at its event {at}: {:?}",
                &found[at.saturating_sub(3)..found.len().min(at + 5)]
            );
        }
        assert!(found.len() as u64 >= *count, "{source}: {count} acknowledged, {} in Kafka", found.len());
    }
}

/// What the ledger says was evicted is what is missing in Kafka of the first `total` positions, to the event; every
/// source's events are there in order. Answers how many those are.
#[track_caller]
pub(crate) fn assert_missing_is_evicted(agent: &Agent, stored: &[Stored], total: u64) -> u64 {
    let found: BTreeSet<u64> = stored.iter().map(|event| event.position.1).collect();
    let missing: BTreeSet<u64> = (1..=total).filter(|seq| !found.contains(seq)).collect();
    let (events, ranges) = agent.lost("evicted");
    let evicted: BTreeSet<u64> = ranges.iter().flat_map(|&(first, last)| first..=last).collect();
    assert_eq!(evicted, missing, "evicted {ranges:?}");
    assert_eq!(events, missing.len() as u64, "evicted {ranges:?}");
    assert_eq!(found.len() as u64 + events, total);
    for (source, numbers) in first_occurrences(stored) {
        assert!(numbers.is_sorted(), "{source} is out of order");
    }
    events
}

/// No event is there twice, whatever its position.
#[track_caller]
pub(crate) fn assert_no_duplicates(stored: &[Stored]) {
    let mut seen = BTreeMap::new();
    for event in stored {
        if let Some(before) = seen.insert((&event.source, event.n), event.position) {
            panic!("{}-{} is there twice, at {before:?} and {:?}", event.source, event.n, event.position);
        }
    }
}
