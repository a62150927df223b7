//! What reached Kafka, held against what was acknowledged.
//!
//! Records are taken in as they come and forgotten but for their numbers, so that long runs cost little. Noted is what
//! a consumer would suffer from: a position that stands for two events, an event that is there only at a position which
//! was passed already, and events of one source out of order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::harness::flow::{Stored, padding};
use crate::harness::kafka::{Follower, Record};
use crate::harness::wait::{USUAL, scaled, within};

/// Acknowledged events: numbers of each source.
pub(crate) type Acked = BTreeMap<String, BTreeSet<u64>>;

/// Events `0..count` of one source.
pub(crate) fn up_to(source: &str, count: u64) -> Acked {
    Acked::from([(source.to_owned(), (0..count).collect())])
}

/// Most violations that are kept; more say nothing new.
const WRONG_MAX: usize = 10;

/// Reads a topic for as long as it lives.
pub(crate) struct Tally {
    state: Arc<Mutex<State>>,
    _follower: Follower,
}

/// An event's identity, with the names as small numbers.
type Position = (usize, u64, u64);

#[derive(Default)]
struct State {
    /// Agents with their logs, and sources; a name's place stands for it.
    logs: Names,
    sources: Names,
    /// By source: the numbers that came, and the last first occurrence.
    seen: Vec<Seen>,
    /// What a consumer remembers: the last position of each partition and log.
    last: HashMap<(i32, usize), (u64, u64)>,
    events: HashMap<Position, (usize, u64)>,
    records: u64,
    different: u64,
    out_of_order: u64,
    wrong: Vec<String>,
    /// Payloads are compared with what was sent.
    compares: bool,
}

#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    fn place_of(&mut self, name: &str) -> usize {
        self.0.iter().position(|known| known == name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }
}

#[derive(Default)]
struct Seen {
    numbers: BTreeSet<u64>,
    last: Option<u64>,
}

/// What came of a comparison.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) acknowledged: u64,
    /// Acknowledged and not in Kafka.
    pub(crate) lost: Vec<(String, u64)>,
    /// Records beyond the first of each event.
    pub(crate) duplicates: u64,
    /// First occurrences that came behind a later event of their source.
    pub(crate) out_of_order: u64,
    /// See the module's description.
    pub(crate) wrong: Vec<String>,
}

impl Verdict {
    /// Nothing is lost, and no position misleads a consumer.
    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        let first: Vec<_> = self.lost.iter().take(5).collect();
        let last: Vec<_> = self.lost.iter().rev().take(5).collect();
        assert!(self.lost.is_empty(), "lost {} events, from {first:?} to {last:?}", self.lost.len());
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }

    /// As [`Verdict::assert_sound`], and events of one source are in order.
    #[track_caller]
    pub(crate) fn assert_sound_and_in_order(&self) {
        self.assert_sound();
        assert_eq!(self.out_of_order, 0, "events out of order within their source");
    }
}

impl Tally {
    /// Begins at the beginning of `topic`, which must exist.
    pub(crate) fn start(brokers: &str, topic: &str) -> Self {
        Self::of(brokers, topic, State::default())
    }

    /// As [`Tally::start`], and every byte of each payload has to be what a [`Producer`](crate::harness::flow::Producer)
    /// has sent.
    pub(crate) fn start_comparing(brokers: &str, topic: &str) -> Self {
        Self::of(brokers, topic, State { compares: true, ..State::default() })
    }

    fn of(brokers: &str, topic: &str, state: State) -> Self {
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let follower = Follower::start(brokers, topic, move |record| {
            shared.lock().unwrap_or_else(PoisonError::into_inner).take(&record);
        });
        Self { state, _follower: follower }
    }

    /// How many different events came so far.
    pub(crate) fn different(&self) -> u64 {
        self.with(|state| state.different)
    }

    /// Whether everything of `acked` came.
    pub(crate) fn has(&self, acked: &Acked) -> bool {
        self.with(|state| state.missing(acked).next().is_none())
    }

    /// By source number, the sequence numbers at which its events came, with the epoch.
    pub(crate) fn positions_of(&self, source: &str) -> BTreeMap<u64, (u64, u64)> {
        self.with(|state| {
            let source = state.sources.place_of(source);
            let found = state.events.iter().filter(|(_, event)| event.0 == source);
            found.map(|(&(_, epoch, seq), &(_, n))| (n, (epoch, seq))).collect()
        })
    }

    /// Waits until everything of `acked` has come, and says what did not.
    pub(crate) fn verdict(&self, acked: &Acked) -> Verdict {
        self.verdict_within(acked, USUAL * 3)
    }

    /// As [`Tally::verdict`], with a patience of the caller's.
    pub(crate) fn verdict_within(&self, acked: &Acked, patience: Duration) -> Verdict {
        let _all: Option<()> = within(scaled(patience), || self.has(acked).then_some(()));
        self.with(|state| Verdict {
            acknowledged: acked.values().map(|numbers| numbers.len() as u64).sum(),
            lost: state.missing(acked).collect(),
            duplicates: state.records - state.different,
            out_of_order: state.out_of_order,
            wrong: state.wrong.clone(),
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn take(&mut self, record: &Record) {
        let stored = Stored::of(record);
        let agent = record.header("fieldpost-agent").expect("every record names its agent");
        let log = self.logs.place_of(&format!("{agent} {}", stored.log));
        if self.compares && !is_whole(record, stored.n) {
            self.note(format!("{}-{} came with other bytes than it was sent with", stored.source, stored.n));
        }
        let source = self.sources.place_of(&stored.source);
        self.seen.resize_with(self.seen.len().max(source + 1), Seen::default);
        self.records += 1;
        let event = (source, stored.n);
        let (epoch, seq) = stored.position;
        match self.events.insert((log, epoch, seq), event) {
            Some(before) if before != event => {
                let before = format!("{}-{}", self.sources.0[before.0], before.1);
                self.note(format!(
                    "epoch {epoch}, seq {seq} stands for {before} and for {}-{}",
                    stored.source, stored.n
                ));
            }
            // The same again: a consumer by position drops it.
            Some(_) => return,
            None => {}
        }
        let last = self.last.entry((stored.partition, log)).or_default();
        if stored.position <= *last {
            let passed = *last;
            self.note(format!(
                "{}-{} came at {:?}, behind {passed:?}: a consumer by position never sees it",
                stored.source, stored.n, stored.position
            ));
        } else {
            *last = stored.position;
        }
        let seen = &mut self.seen[source];
        if seen.numbers.insert(stored.n) {
            self.different += 1;
            self.out_of_order += u64::from(seen.last.is_some_and(|last| last > stored.n));
            seen.last = Some(stored.n);
        }
    }

    fn note(&mut self, what: String) {
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(what);
        }
    }

    fn missing<'a>(&'a self, acked: &'a Acked) -> impl Iterator<Item = (String, u64)> + 'a {
        acked.iter().flat_map(|(source, numbers)| {
            let place = self.sources.0.iter().position(|known| known == source);
            let seen = place.and_then(|place| self.seen.get(place));
            let is_missing = move |n: &u64| !seen.is_some_and(|seen| seen.numbers.contains(n));
            numbers.iter().copied().filter(is_missing).map(|n| (source.clone(), n))
        })
    }
}

fn is_whole(record: &Record, n: u64) -> bool {
    record.json()["payload"]["x"].as_str().is_some_and(|found| found == padding(n, found.len()))
}
