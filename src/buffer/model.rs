//! The row of generations against a model, with crashes and faults; and the quota against the real disk.
//!
//! Invariants: what was acknowledged and not committed is served, whole and in order, unless its generation was
//! damaged or it was delivered ahead of the cursor, which is never counted as lost; a position never stands for two
//! events once it was acknowledged or served; nothing is served that a power cut could still take; the cursor is never
//! ahead of what was committed; the disk stays below its limit.
#![allow(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::batch::{Batch, Terms, WhenFull};
use super::generations::{Figures, Files, GENERATION_COST_BYTES, GROWTH, Generations, Limits as Bounds};
use super::identity::{HighWater, Identity};
use super::lanes::{Lanes, LanesFile};
use super::ledger::{Ledger, Reason};
use super::memory::{Cut, MemoryShelf};
use super::reserve::Reserve;
use super::run::Run;
use super::sled::SledShelf;
use super::store::{Shelf, StoreError};
use crate::event::{Event, EventId, Payload, Seq, Stamp, Way};

#[derive(Debug, Clone, Copy)]
enum Action {
    /// So many events of about this size.
    Append {
        count: u8,
        bytes: u16,
        is_noise: bool,
    },
    /// Appended next: on these terms.
    Terms(Terms),
    /// Events of this priority and below may go.
    Evict(u8),
    Sync,
    /// Up to this part of what is durable, in 255ths.
    Commit(u8),
    Read {
        from: u8,
        bytes_max: u32,
    },
    /// Delivered ahead: from and to, in 255ths of what is durable; the live lane begins there or further.
    Lanes {
        from: u8,
        to: u8,
        live_from: u8,
        end: SetEnd,
    },
    Close,
    /// The process ends without a word.
    Die,
    Fault(Fault),
}

/// How storing the lanes ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SetEnd {
    Stored,
    /// The process ends behind it.
    Dead,
    /// The power goes in the midst of the write.
    Torn,
}

/// What only the memory shelf can play.
#[derive(Debug, Clone, Copy)]
enum Fault {
    PowerCut {
        is_high_water_late: bool,
    },
    Sync {
        is_full: bool,
    },
    Put,
    Create,
    Delete,
    Prepare,
    SwapIn,
    Source(u8),
    /// Damage, and a start that follows at once.
    Damage(u8),
}

fn action() -> impl Strategy<Value = Action> {
    let bytes =
        prop_oneof![5 => 0..300_u16, 2 => 300..6_900_u16, 2 => 6_850..7_150_u16, 1 => 7_000..60_000_u16];
    let append = (1..30_u8, bytes, any::<bool>()).prop_map(|(count, bytes, is_noise)| {
        let count = count.min((100_000 / (u32::from(bytes) + 100)).max(1) as u8);
        Action::Append { count, bytes, is_noise }
    });
    let fault = prop_oneof![
        4 => any::<bool>().prop_map(|is_high_water_late| Fault::PowerCut { is_high_water_late }),
        3 => any::<bool>().prop_map(|is_full| Fault::Sync { is_full }),
        1 => Just(Fault::Put),
        2 => Just(Fault::Create),
        1 => Just(Fault::Delete),
        1 => Just(Fault::Prepare),
        1 => Just(Fault::SwapIn),
        1 => any::<u8>().prop_map(Fault::Source),
        1 => any::<u8>().prop_map(Fault::Damage),
    ];
    let terms = (0..3_u8, any::<bool>()).prop_map(|(priority, evictable)| {
        let when_full = if evictable { WhenFull::DropOldest } else { WhenFull::Block };
        Action::Terms(Terms { when_full, priority })
    });
    let end = prop_oneof![4 => Just(SetEnd::Stored), 1 => Just(SetEnd::Dead), 1 => Just(SetEnd::Torn)];
    let lanes = (any::<u8>(), any::<u8>(), any::<u8>(), end)
        .prop_map(|(from, to, live_from, end)| Action::Lanes { from, to, live_from, end });
    prop_oneof![
        10 => append,
        4 => lanes,
        2 => terms,
        2 => (0..3_u8).prop_map(Action::Evict),
        8 => Just(Action::Sync),
        3 => any::<u8>().prop_map(Action::Commit),
        3 => (any::<u8>(), 1..200_000_u32).prop_map(|(from, bytes_max)| Action::Read { from, bytes_max }),
        1 => Just(Action::Close),
        1 => Just(Action::Die),
        4 => fault.prop_map(Action::Fault),
    ]
}

/// An event of the test: its number is its id and the seed of its payload.
#[derive(Debug, Clone, Copy)]
struct Sample {
    id: u64,
    terms: Terms,
    bytes: usize,
    is_noise: bool,
}

impl Sample {
    fn payload(self) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(self.id);
        let mut payload = vec![self.id as u8; self.bytes];
        if self.is_noise {
            rng.fill(&mut payload);
        }
        payload
    }

    /// Every other five events have ways of their own.
    fn way(self) -> Way<'static> {
        let topic = match self.id % 10 {
            2 | 3 => Some("alarms"),
            4 => Some("events.{source_type}"),
            _ => None,
        };
        Way { topic, is_quiet: self.id % 10 == 1 || self.id % 10 == 3 }
    }
}

fn batch(samples: &[Sample]) -> Batch {
    let mut batch = Batch::new();
    for sample in samples {
        batch.set_terms(sample.terms);
        let (id, payload) = (sample.id.to_string(), sample.payload());
        let event = Event {
            id: EventId::Given(&id),
            kind: "k",
            source_type: "t",
            source_id: "s",
            timestamp: None,
            received: Stamp { wall_us: 1, boot_us: 2, clock_trusted: true },
            payload: Payload::Bytes(&payload),
            way: sample.way(),
        };
        batch.push(&event, usize::MAX).unwrap();
    }
    batch
}

/// Where the generations are.
trait Medium {
    type Shelf: Shelf;

    fn shelf(&self) -> Self::Shelf;

    fn memory(&self) -> Option<&MemoryShelf>;
}

impl Medium for MemoryShelf {
    type Shelf = Self;

    fn shelf(&self) -> Self {
        self.clone()
    }

    fn memory(&self) -> Option<&MemoryShelf> {
        Some(self)
    }
}

#[derive(Debug)]
struct Disk<'a>(&'a Path);

impl Medium for Disk<'_> {
    type Shelf = SledShelf;

    fn shelf(&self) -> SledShelf {
        SledShelf::new(self.0.to_owned())
    }

    fn memory(&self) -> Option<&MemoryShelf> {
        None
    }
}

struct Limits {
    bytes_max: u64,
    generation_bytes: u64,
}

fn open<M: Medium>(medium: &M, dir: &Path, limits: &Limits) -> Generations<M::Shelf> {
    // Scripted faults happen once, so that it opens after a few tries.
    for _ in 0..6 {
        let ledger = Ledger::open(&dir.join("LEDGER"));
        let identity = Identity::open(dir, "gw", ledger.witness()).unwrap();
        let (high_water, lanes) = (HighWater::open(dir).unwrap(), LanesFile::open(dir).unwrap());
        let files = Files { identity, high_water, lanes, ledger, reserve: Reserve::new(dir, 0) };
        let bounds = Bounds { bytes_max: limits.bytes_max, free_min: 0, age_max: None };
        match Generations::open(medium.shelf(), files, [7; 16], bounds) {
            Ok(generations) => return generations.with_generation_bytes(limits.generation_bytes),
            Err(error) => assert!(medium.memory().is_some(), "{error}"),
        }
    }
    panic!("does not open");
}

struct Model<'a, M: Medium> {
    medium: M,
    dir: &'a Path,
    limits: Limits,
    /// `None` only while it is replaced.
    generations: Option<Generations<M::Shelf>>,
    samples: Vec<Sample>,
    terms: Terms,
    /// Put and not synced, with first positions.
    pending: Vec<(Seq, Vec<u64>)>,
    /// Acknowledged and to be served: position and sample.
    acked: BTreeMap<u64, u64>,
    /// Every position that was ever acknowledged or served.
    known: BTreeMap<u64, u64>,
    /// What was stored last.
    lanes: Option<Lanes>,
    /// Positions that were delivered ahead of the cursor when they were still there: never counted.
    delivered: BTreeSet<u64>,
    /// Last commit that was asked for.
    asked: Seq,
    /// `HIGHWATER` as it was synced last, and the newest generation then.
    high_water: (Vec<u8>, Option<Seq>),
    /// A count of damage may be right or not any more.
    has_failed: bool,
    rng: fastrand::Rng,
}

impl<'a, M: Medium> Model<'a, M> {
    fn new(medium: M, dir: &'a Path, limits: Limits, seed: u64) -> Self {
        let generations = Some(open(&medium, dir, &limits));
        Self {
            medium,
            dir,
            limits,
            generations,
            samples: Vec::new(),
            terms: Terms::default(),
            pending: Vec::new(),
            acked: BTreeMap::new(),
            known: BTreeMap::new(),
            lanes: None,
            delivered: BTreeSet::new(),
            asked: Seq(0),
            high_water: (Vec::new(), None),
            has_failed: false,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    fn generations(&mut self) -> &mut Generations<M::Shelf> {
        self.generations.as_mut().unwrap()
    }

    fn act(&mut self, action: Action) -> TestCaseResult {
        match action {
            Action::Append { count, bytes, is_noise } => self.append(count, usize::from(bytes), is_noise),
            Action::Terms(terms) => {
                self.terms = terms;
                Ok(())
            }
            Action::Evict(priority) => self.evict(priority),
            Action::Sync => self.sync(),
            Action::Commit(part) => {
                let durable = self.generations().figures().durable;
                let seq = Seq(durable.0 * u64::from(part) / 255);
                self.asked = self.asked.max(seq);
                self.generations().advance(seq);
                Ok(())
            }
            Action::Read { from, bytes_max } => {
                let durable = self.generations().figures().durable;
                self.read(Seq(durable.0 * u64::from(from) / 255), bytes_max as usize).map(drop)
            }
            Action::Lanes { from, to, live_from, end } => self.set_lanes([from, to, live_from], end),
            Action::Close => {
                if let Some(generations) = self.generations.take()
                    && generations.close().is_ok()
                {
                    self.acknowledge()?;
                }
                self.start()
            }
            Action::Die => {
                self.generations = None;
                self.start()
            }
            Action::Fault(fault) => match self.medium.memory().cloned() {
                Some(memory) => self.fault(&memory, fault),
                None => Ok(()),
            },
        }?;
        self.note_high_water();
        let ledger = self.generations.as_ref().map(|generations| generations.ledger().clone());
        for (reason, entry) in ledger.iter().flatten() {
            let counted =
                |&(a, b): &(Seq, Seq)| self.delivered.range(a.0..=b.0).find(|seq| **seq > self.asked.0);
            let counted: Vec<_> = entry.ranges.iter().filter_map(counted).collect();
            prop_assert!(counted.is_empty(), "delivered and {}: {:?}", reason.word(), counted);
        }
        Ok(())
    }

    /// Says that a range was delivered ahead, beside those that were before.
    fn set_lanes(&mut self, parts: [u8; 3], end: SetEnd) -> TestCaseResult {
        let Figures { durable, cursor, .. } = self.generations().figures();
        let [a, b, live_from] = parts.map(|part| Seq(durable.0 * u64::from(part) / 255));
        let (first, last) = (a.min(b).max(cursor.next()), a.max(b));
        let mut covered: BTreeSet<u64> = (first.0..=last.0).collect();
        let before = self.generations().lanes().cloned();
        for &(first, last) in before.iter().flat_map(|lanes| &lanes.ahead) {
            covered.extend(first.0..=last.0);
        }
        let mut ahead: Vec<(Seq, Seq)> = Vec::new();
        for &seq in &covered {
            match ahead.last_mut() {
                Some((_, last)) if last.0 + 1 == seq => *last = Seq(seq),
                _ => ahead.push((Seq(seq), Seq(seq))),
            }
        }
        let lanes = Lanes { ahead, live_from: live_from.next(), claimed: durable.max(live_from) };
        let path = self.dir.join("LANES");
        let file = fs::read(&path).ok();
        prop_assert!(self.generations().set_lanes(lanes.clone()).is_ok());
        if end == SetEnd::Torn {
            self.generations = None;
            let mut torn = fs::read(&path).unwrap();
            let same = |at: usize| file.as_ref().is_some_and(|file| file.get(at) == torn.get(at));
            let changed: Vec<_> = (0..torn.len()).filter(|&at| !same(at)).collect();
            let kept = self.rng.usize(0..=changed.len());
            for &at in &changed[kept..] {
                torn[at] = file.as_ref().map_or(0, |file| file[at]);
            }
            // It is made under another name, so that there is none or a whole one.
            match file {
                Some(_) => fs::write(&path, torn).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            self.generations = Some(open(&self.medium, self.dir, &self.limits));
            let mut found = self.generations().lanes().cloned();
            let mut allowed = [Some(lanes.clone()), self.lanes.clone()];
            let cursor = self.generations().figures().cursor;
            found.iter_mut().chain(allowed.iter_mut().flatten()).for_each(|lanes| lanes.forget(cursor));
            prop_assert!(allowed.contains(&found), "{found:?} of {allowed:?}");
            if found != allowed[0] {
                self.generations = None;
                return self.start();
            }
        }
        self.lanes = Some(lanes);
        // What is delivered need not be served any more.
        let gone: Vec<_> = covered.into_iter().filter(|seq| self.acked.remove(seq).is_some()).collect();
        self.delivered.extend(gone);
        if end == SetEnd::Stored {
            return self.check();
        }
        self.generations = None;
        self.start()
    }

    fn fault(&mut self, memory: &MemoryShelf, fault: Fault) -> TestCaseResult {
        let io = || StoreError::Io("scripted".into());
        match fault {
            Fault::PowerCut { is_high_water_late } => {
                memory.power_cut();
                self.generations = None;
                if is_high_water_late && self.high_water.1.is_some() {
                    fs::write(self.dir.join("HIGHWATER"), &self.high_water.0).unwrap();
                }
                return self.start();
            }
            Fault::Sync { is_full: true } => memory.fail_next_sync(StoreError::NoSpace("scripted".into())),
            Fault::Sync { is_full: false } => memory.fail_next_sync(io()),
            Fault::Put => memory.fail_next_put(io()),
            Fault::Create => memory.fail_next_create(StoreError::NoSpace("scripted".into())),
            Fault::Delete => memory.fail_next_delete(io()),
            Fault::Prepare => memory.fail_next_prepare(StoreError::NoSpace("scripted".into())),
            Fault::SwapIn => memory.fail_next_swap_in(io()),
            Fault::Source(which) => {
                let row = memory.row();
                if let Some(first) = row.get(usize::from(which) % row.len().max(1)) {
                    memory.fail_next_source(*first, io());
                }
            }
            Fault::Damage(which) => {
                let row = memory.row();
                if row.is_empty() {
                    return Ok(());
                }
                let index = usize::from(which) % row.len();
                memory.damage(row[index]);
                let end = row.get(index + 1).map_or(u64::MAX, |next| next.0);
                self.acked.retain(|seq, _| !(row[index].0..end).contains(seq));
                self.has_failed = true;
                self.generations = None;
                return self.start();
            }
        }
        self.has_failed = true;
        Ok(())
    }

    /// The process starts again.
    fn start(&mut self) -> TestCaseResult {
        self.pending.clear();
        let newest = self.medium.memory().and_then(|memory| memory.row().last().copied());
        self.generations = Some(open(&self.medium, self.dir, &self.limits));
        if let (Some(memory), Some(newest)) = (self.medium.memory(), newest) {
            prop_assert!(!memory.is_dirty(newest), "what was found is served and could still be lost");
        }
        let figures = self.generations().figures();
        prop_assert!(figures.cursor <= self.asked, "{figures:?} {:?}", self.asked);
        let (mut found, mut lanes) = (self.generations().lanes().cloned(), self.lanes.clone());
        found.iter_mut().chain(&mut lanes).for_each(|lanes| lanes.forget(figures.cursor));
        prop_assert_eq!(found, lanes, "what was stored is there");
        self.check()
    }

    /// A write failed.
    fn reopen(&mut self) -> TestCaseResult {
        self.pending.clear();
        self.has_failed = true;
        for _ in 0..6 {
            if self.generations().reopen().is_ok() {
                let asked = self.asked;
                self.generations().advance(asked);
                return self.check();
            }
        }
        Err(TestCaseError::fail("does not open again"))
    }

    fn append(&mut self, count: u8, bytes: usize, is_noise: bool) -> TestCaseResult {
        let from = self.samples.len() as u64;
        let samples =
            (from..from + u64::from(count)).map(|id| Sample { id, terms: self.terms, bytes, is_noise });
        self.samples.extend(samples);
        let batch = batch(&self.samples[from as usize..]);
        match self.generations().has_room(batch.bytes()) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(_) => return self.reopen(),
        }
        match self.generations().put(&batch) {
            Ok(first) => self.pending.push((first, (from..from + u64::from(count)).collect())),
            Err(_) => return self.reopen(),
        }
        Ok(())
    }

    /// Gives up what may go, and looks whether only that went.
    fn evict(&mut self, priority: u8) -> TestCaseResult {
        self.sync()?;
        if self.generations().seal_evictable(priority).is_err() {
            return self.reopen();
        }
        // What was delivered goes first, and nothing else with it.
        self.has_failed |= self.generations().free_delivered().is_err();
        if !self.generations().is_writable() {
            return self.reopen();
        }
        self.check()?;
        let evicted = self.generations().evict(priority);
        let entry = self.generations().ledger().get(&Reason::Evicted).cloned().unwrap_or_default();
        let positions = entry.ranges.iter().map(|(first, last)| last.0 + 1 - first.0).sum::<u64>();
        prop_assert_eq!(entry.events, positions, "counted once: {:?}", entry.ranges);
        let is_gone = |seq: u64| entry.ranges.iter().any(|(a, b)| (a.0..=b.0).contains(&seq));
        let mut allowed = true;
        self.acked.retain(|&seq, &mut id| {
            let terms = self.samples[id as usize].terms;
            allowed &= !is_gone(seq) || terms.when_full == WhenFull::DropOldest;
            !is_gone(seq)
        });
        prop_assert!(allowed, "evicted and not agreed: {:?}", entry.ranges);
        match evicted {
            Ok(_) => self.check(),
            Err(_) => {
                // A replacement was interrupted: whoever comes next goes on with it.
                self.has_failed = true;
                self.check()
            }
        }
    }

    fn sync(&mut self) -> TestCaseResult {
        if self.generations().sync().is_err() {
            return self.reopen();
        }
        self.acknowledge()?;
        if !self.generations().is_writable() {
            return self.reopen();
        }
        let figures = self.generations().figures();
        if !self.has_failed {
            prop_assert!(figures.disk_bytes <= self.limits.bytes_max, "{figures:?}");
            if self.medium.memory().is_none() {
                prop_assert!(bytes_on_disk(self.dir) <= self.limits.bytes_max, "{figures:?}");
            }
        }
        prop_assert!(figures.cursor <= self.asked);
        Ok(())
    }

    fn acknowledge(&mut self) -> TestCaseResult {
        for (first, ids) in std::mem::take(&mut self.pending) {
            for (seq, id) in (first.0..).zip(ids) {
                prop_assert!(self.known.range(seq..).next().is_none(), "{seq} does not grow");
                self.known.insert(seq, id);
                self.acked.insert(seq, id);
            }
        }
        Ok(())
    }

    /// Reads once and checks what comes; answers the positions and where it ended.
    fn read(&mut self, after: Seq, bytes_max: usize) -> Result<(Vec<u64>, Seq), TestCaseError> {
        let mut run = Run::default();
        if self.generations().read(after, bytes_max, None, &mut run).is_err() {
            // A scripted failure to open; the next time is another one.
            prop_assert!(self.has_failed);
            return Ok((Vec::new(), after));
        }
        let durable = self.generations().figures().durable;
        prop_assert!(run.end() <= durable.max(after));
        let (mut seen, mut last) = (Vec::new(), after);
        for (seq, _, event) in run.events() {
            prop_assert!(seq > last && seq <= run.end());
            last = seq;
            let id: u64 = event.id.text(&mut [0; 36]).parse().unwrap();
            let payload = self.samples[id as usize].payload();
            assert_eq!(event.way, self.samples[id as usize].way());
            prop_assert_eq!(event.payload, Payload::Bytes(&payload));
            let known = *self.known.entry(seq.0).or_insert(id);
            prop_assert_eq!(known, id, "position {} stands for two events", seq);
            seen.push(seq.0);
        }
        if let Some(memory) = self.medium.memory() {
            prop_assert!(memory.open_count() <= 1, "{} are open", memory.open_count());
        }
        Ok((seen, run.end()))
    }

    /// Reads everything behind the cursor and looks whether all of it is there.
    fn check(&mut self) -> TestCaseResult {
        let figures = self.generations().figures();
        let (mut after, mut seen) = (figures.cursor, Vec::new());
        let mut failures = 0;
        while after < figures.durable {
            let bytes_max = self.rng.usize(1..100_000);
            let (positions, end) = self.read(after, bytes_max)?;
            failures += u8::from(end == after);
            prop_assert!(failures < 9, "the read at {} gets no further", after);
            seen.extend(positions);
            after = end;
        }
        let wanted = self.acked.range(self.asked.0 + 1..).map(|(seq, _)| *seq);
        let missing: Vec<_> = wanted.filter(|seq| seen.binary_search(seq).is_err()).collect();
        prop_assert!(missing.is_empty(), "acknowledged and missing: {:?} {:?}", missing, figures);
        // Where anything unsynced may be lost, the rest has holes that were never acknowledged and are counted.
        let is_exact = self.medium.memory().is_none_or(|memory| memory.cut() != Cut::Any);
        if is_exact && !self.has_failed {
            prop_assert_eq!(self.corrupt(), 0);
        }
        Ok(())
    }

    fn corrupt(&mut self) -> u64 {
        self.generations().ledger().get(&Reason::Corrupt).map_or(0, |entry| entry.events)
    }

    fn note_high_water(&mut self) {
        let Some(memory) = self.medium.memory() else { return };
        let newest = memory.row().last().copied();
        // A start or a commit that could make no generation has synced it instead.
        let is_alone = self.generations.as_ref().is_some_and(|generations| !generations.is_writable());
        if is_alone || self.high_water.1 != newest {
            self.high_water = (fs::read(self.dir.join("HIGHWATER")).unwrap_or_default(), newest);
        }
    }

    /// No more faults: everything is drained, one generation is left, and there is room again.
    fn finish(&mut self) -> TestCaseResult {
        if let Some(memory) = self.medium.memory() {
            memory.heal();
        }
        self.sync()?;
        self.check()?;
        let durable = self.generations().figures().durable;
        self.asked = durable;
        self.generations().advance(durable);
        self.sync()?;
        let figures = self.generations().figures();
        prop_assert_eq!((figures.cursor, figures.generations), (durable, 1), "{:?}", figures);
        self.append(1, 100, false)?;
        prop_assert_eq!(self.pending.len(), 1, "there is room: {:?}", self.generations().figures());
        self.sync()?;
        self.check()?;
        prop_assert_eq!(self.acked.range(durable.0 + 1..).count(), 1);
        Ok(())
    }
}

/// A folder in memory, where there is such a thing: what syncs do is not the question here, and there are thousands.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn bytes_on_disk(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                bytes_on_disk(&entry.path())
            } else {
                entry.metadata().unwrap().len()
            }
        })
        .sum()
}

fn play<M: Medium>(medium: M, limits: Limits, actions: &[Action], seed: u64) -> TestCaseResult {
    let dir = scratch();
    let mut model = Model::new(medium, dir.path(), limits, seed);
    for &action in actions {
        model.act(action)?;
    }
    model.finish()
}

const MEMORY: Limits = Limits { bytes_max: 3 * 1024 * 1024, generation_bytes: 64 * 1024 };

/// So many cases, unless `PROPTEST_CASES` asks for a longer run.
fn cases(cases: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let config = ProptestConfig::default();
    if asked { config } else { ProptestConfig { cases, ..config } }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn a_log_that_loses_its_tail(actions in prop::collection::vec(action(), 1..80), seed: u64) {
        play(MemoryShelf::new(Cut::Tail, seed), MEMORY, &actions, seed)?;
    }

    #[test]
    fn a_store_that_loses_anything_unsynced(actions in prop::collection::vec(action(), 1..80), seed: u64) {
        play(MemoryShelf::new(Cut::Any, seed), MEMORY, &actions, seed)?;
    }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn sled_with_starts_in_between(actions in prop::collection::vec(action(), 1..80), seed: u64) {
        let limits = Limits { bytes_max: 24 * 1024 * 1024, generation_bytes: 256 * 1024 };
        let dir = scratch();
        let mut model = Model::new(Disk(dir.path()), dir.path(), limits, seed);
        for action in actions {
            model.act(action)?;
        }
        model.finish()?;
    }
}

/// Fills the real store to its limit, drains a part, fills it again, lap after lap, with events of one kind.
fn laps_at_the_limit(bytes_max: u64, seed: u64) {
    let dir = scratch();
    let limits = Limits { bytes_max, generation_bytes: (bytes_max / 8).clamp(1024 * 1024, 8 * 1024 * 1024) };
    let mut generations = open(&Disk(dir.path()), dir.path(), &limits);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut id = 0;
    for lap in 0..5 {
        let (is_noise, largest) = (rng.u8(0..5) > 0, [600, 6_000, 60_000][rng.usize(0..3)]);
        loop {
            let samples: Vec<_> = (id..id + rng.u64(1..400))
                .map(|id| Sample { id, terms: Terms::default(), bytes: rng.usize(1..largest), is_noise })
                .scan(0, |bytes, sample| {
                    *bytes += sample.bytes;
                    (*bytes < 400_000).then_some(sample)
                })
                .collect();
            let batch = batch(&samples);
            if !generations.has_room(batch.bytes()).unwrap() {
                break;
            }
            id += samples.len() as u64;
            generations.put(&batch).unwrap();
            if rng.u8(0..8) < 3 {
                generations.sync().unwrap();
                let real = bytes_on_disk(dir.path());
                assert!(real <= bytes_max, "lap {lap}: {real} of {bytes_max}, {:?}", generations.figures());
            }
        }
        generations.sync().unwrap();
        let real = bytes_on_disk(dir.path());
        assert!(real <= bytes_max, "lap {lap}: {real} of {bytes_max}");
        let Figures { durable, cursor, .. } = generations.figures();
        let part = if lap % 2 == 1 { durable.0 - cursor.0 } else { rng.u64(0..=durable.0 - cursor.0) };
        // In steps, as a drain does.
        for step in 1..=10 {
            generations.advance(Seq(cursor.0 + part * step / 10));
            generations.sync().unwrap();
        }
        let real = bytes_on_disk(dir.path());
        assert!(real <= bytes_max, "lap {lap}, drained: {real} of {bytes_max}");
        if part == durable.0 - cursor.0 {
            assert!(
                generations.has_room(400_000).unwrap(),
                "lap {lap}: full and empty, {:?}",
                generations.figures()
            );
        }
    }
}

#[test]
fn a_small_disk_is_never_overrun_nor_stuck() {
    for seed in 0..3 {
        laps_at_the_limit(8 * 1024 * 1024, seed);
    }
}

#[test]
fn a_middling_disk_is_never_overrun_nor_stuck() {
    laps_at_the_limit(20 * 1024 * 1024, 4);
}

/// Puts groups of incompressible events until a few generations are full.
fn groups(event_bytes: usize, group_bytes: usize) {
    let dir = scratch();
    let limits = Limits { bytes_max: 256 * 1024 * 1024, generation_bytes: 8 * 1024 * 1024 };
    let mut generations = open(&Disk(dir.path()), dir.path(), &limits);
    let mut rng = fastrand::Rng::with_seed(event_bytes as u64);
    let (mut id, mut total) = (0, 0);
    while total < 12_000_000 {
        let (before, mut put) = (bytes_on_disk(dir.path()), 0);
        while put < group_bytes {
            let bytes = rng.usize(event_bytes / 2..event_bytes);
            let batch = batch(&[Sample { id, terms: Terms::default(), bytes, is_noise: true }]);
            generations.put(&batch).unwrap();
            id += 1;
            put += batch.bytes();
        }
        generations.sync().unwrap();
        total += put;
        let growth = bytes_on_disk(dir.path()) - before;
        let allowed = GROWTH * put as u64 + GENERATION_COST_BYTES;
        assert!(growth <= allowed, "{event_bytes} {group_bytes}: {put} put, {growth} of {allowed}");
    }
}

#[test]
fn sled_grows_no_more_than_the_quota_allows_for() {
    for (event_bytes, group_bytes) in
        [(900, 100_000), (6_900, 400_000), (60_000, 900_000), (60_000, 4_000_000), (1_000_000, 2_000_000)]
    {
        groups(event_bytes, group_bytes);
    }
}

/// What earlier versions got wrong, as short as it can be told.
#[test]
fn known_mistakes() {
    use Action::{Append, Close, Commit, Die, Fault as Play, Sync};
    let small = Append { count: 1, bytes: 0, is_noise: false };
    let large = |count| Append { count, bytes: 7_500, is_noise: true };
    let failing = Play(Fault::Sync { is_full: false });
    let cut = |is_high_water_late| Play(Fault::PowerCut { is_high_water_late });
    let mistakes: [&[Action]; 11] = [
        // The first sync of a generation fails: the new one cannot have the same name.
        &[small, failing, Sync, small, Sync, cut(false), failing, Sync, small, Sync],
        // A new, empty generation is damaged: its name is taken.
        &[Play(Fault::Damage(0)), small, Sync, Close],
        // A put fails behind others: what is still there is served, hence synced.
        &[small, Play(Fault::Put), small, Close],
        // A process that dies before its sync leaves events that are served, hence synced.
        &[small, Die, cut(false), small, Sync],
        // The agent ends with a failed sync: the next one does not write behind what the disk may not have.
        &[small, Sync, small, failing, Close, cut(true), small, Sync],
        // The sync at a start fails.
        &[small, Sync, failing, small, Die, cut(true), small, Sync],
        // A generation is made by half and the old one grows on.
        &[large(13), Play(Fault::Create), Sync, small, Sync, Close],
        &[large(13), Play(Fault::Create), Play(Fault::Delete), Sync, small, Sync, Close, Commit(99)],
        // The same, where events are to be given up.
        &[
            Play(Fault::Create),
            Action::Terms(Terms { when_full: WhenFull::DropOldest, priority: 0 }),
            Append { count: 6, bytes: 2_676, is_noise: true },
            Play(Fault::Delete),
            Action::Evict(0),
            small,
            Sync,
            Close,
        ],
        // Chunks without their event lie between later blocks.
        &[
            small,
            Sync,
            large(5),
            cut(false),
            Append { count: 8, bytes: 0, is_noise: false },
            Sync,
            Commit(128),
            Sync,
        ],
        // What a failed sync left is served by a start that cannot write: its numbers are noted all the same.
        &[
            Play(Fault::Create),
            Append { count: 6, bytes: 3_482, is_noise: false },
            Append { count: 8, bytes: 3_485, is_noise: false },
            failing,
            Close,
            cut(true),
            small,
            Sync,
        ],
    ];
    for (index, actions) in mistakes.iter().enumerate() {
        for seed in 0..20 {
            for cut in [Cut::Tail, Cut::Any] {
                let played = play(MemoryShelf::new(cut, seed), MEMORY, actions, seed);
                assert!(played.is_ok(), "{index}, seed {seed}, {cut:?}: {played:?}");
            }
        }
    }
}

/// A directory with several generations, some events of it committed, and what it holds.
struct Sound {
    dir: tempfile::TempDir,
    samples: Vec<Sample>,
    known: BTreeMap<u64, u64>,
    cursor: Seq,
}

fn damage_limits() -> Limits {
    Limits { bytes_max: 64 * 1024 * 1024, generation_bytes: 256 * 1024 }
}

fn sound() -> Sound {
    let dir = scratch();
    let mut model = Model::new(Disk(dir.path()), dir.path(), damage_limits(), 1);
    for n in 0..40_u8 {
        model.append(8, 4_000, true).unwrap();
        if n % 8 == 0 {
            model.append(2, 30_000, true).unwrap();
        }
        model.sync().unwrap();
    }
    model.asked = Seq(21);
    model.generations().advance(Seq(21));
    model.sync().unwrap();
    let cursor = model.generations().figures().cursor;
    assert_eq!(cursor, Seq(21));
    model.generations.take().unwrap().close().unwrap();
    let (samples, known) = (model.samples.clone(), model.known.clone());
    Sound { samples, known, cursor, dir }
}

impl Sound {
    /// A copy of it, to be damaged.
    fn copy(&self) -> tempfile::TempDir {
        let dir = scratch();
        copy(self.dir.path(), dir.path());
        dir
    }

    /// Opens a damaged copy: it starts, what is served is right, and the ledger has exactly what is missing. Answers
    /// how much that is.
    fn assess(&self, dir: &Path, what: &str) -> u64 {
        let mut model = Model::new(Disk(dir), dir, damage_limits(), 1);
        (model.samples, model.known) = (self.samples.clone(), self.known.clone());
        (model.has_failed, model.asked) = (true, self.cursor);
        // A cursor that was lost with the files goes back: that costs duplicates, never events.
        let mut after = model.generations().figures().cursor.min(self.cursor);
        let durable = model.generations().figures().durable;
        let mut seen = Vec::new();
        while after < durable {
            let (positions, end) = model.read(after, 100_000).unwrap();
            assert!(end > after, "{what}: stuck at {after}");
            seen.extend(positions);
            after = end;
        }
        let wanted = self.known.range(self.cursor.0 + 1..).map(|(seq, _)| *seq);
        let missing: Vec<_> = wanted.filter(|seq| seen.binary_search(seq).is_err()).collect();
        let entry = model.generations().ledger().get(&Reason::Corrupt).cloned().unwrap_or_default();
        let in_ledger = |seq: &u64| entry.ranges.iter().any(|(a, b)| (a.0..=b.0).contains(seq));
        assert!(missing.iter().all(in_ledger), "{what}: {missing:?} and {entry:?}");
        assert_eq!(entry.events, missing.len() as u64, "{what}: {missing:?} and {entry:?}");
        // A second start finds the same and counts nothing again; new events go on behind everything.
        let next = model.known.keys().last().copied().unwrap_or(0);
        model.generations.take().unwrap().close().unwrap();
        model.generations = Some(open(&model.medium, dir, &model.limits));
        assert_eq!(model.corrupt(), missing.len() as u64, "{what}: counted once");
        model.append(1, 10, false).unwrap();
        model.sync().unwrap();
        let durable = model.generations().figures().durable;
        assert!(durable.0 > next, "{what}: {durable} is used again");
        missing.len() as u64
    }
}

/// Everything in the directory that is a file, by path.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[test]
fn one_flipped_byte_anywhere_costs_at_most_its_block() {
    let sound = sound();
    assert_eq!(sound.assess(sound.copy().path(), "undamaged"), 0);
    let rounds = std::env::var("FIELDPOST_DAMAGE_ROUNDS").map_or(200, |n| n.parse().unwrap());
    for seed in 0..rounds {
        let mut rng = fastrand::Rng::with_seed(seed);
        let dir = sound.copy();
        let files = files(dir.path());
        let sizes: Vec<_> = files.iter().map(|path| fs::metadata(path).unwrap().len()).collect();
        // Every third in a small file, which would else hardly ever be hit.
        let victim = if seed % 3 == 0 {
            rng.usize(0..files.len())
        } else {
            let mut at = rng.u64(0..sizes.iter().sum());
            sizes
                .iter()
                .position(|size| {
                    at < *size || {
                        at -= size;
                        false
                    }
                })
                .unwrap()
        };
        let (path, size) = (&files[victim], sizes[victim] as usize);
        if size == 0 {
            continue;
        }
        let mut content = fs::read(path).unwrap();
        content[rng.usize(0..size)] ^= 1 << rng.u8(0..8);
        fs::write(path, content).unwrap();
        let what = format!("seed {seed}, {}", path.strip_prefix(dir.path()).unwrap().display());
        if path.ends_with("LEDGER") {
            // What was counted is lost with it; the rest has to hold.
            continue;
        }
        let lost = sound.assess(dir.path(), &what);
        // A block of 7,000 bytes holds one such event; a large one is told by its chunks.
        assert!(lost <= 2, "{what}: {lost} lost");
    }
}

#[test]
fn what_is_torn_zeroed_or_gone_is_counted_and_the_rest_is_served() {
    let sound = sound();
    let generations: Vec<_> =
        files(sound.dir.path()).into_iter().filter(|path| path.ends_with("db")).collect();
    assert!(generations.len() > 4);
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let dir = sound.copy();
        let victim = &generations[rng.usize(0..generations.len())];
        let path = dir.path().join(victim.strip_prefix(sound.dir.path()).unwrap());
        let mut content = fs::read(&path).unwrap();
        let at = rng.usize(0..content.len());
        let what = ["truncated", "tail zeroed", "tail garbled", "emptied", "file gone", "folder gone"]
            [seed as usize % 6];
        match what {
            "truncated" => content.truncate(at),
            "tail zeroed" => content[at..].fill(0),
            "tail garbled" => content[at..].iter_mut().for_each(|byte| *byte = rng.u8(..)),
            _ => content.clear(),
        }
        match what {
            "file gone" => fs::remove_file(&path).unwrap(),
            "folder gone" => fs::remove_dir_all(path.parent().unwrap()).unwrap(),
            _ => fs::write(&path, content).unwrap(),
        }
        sound.assess(dir.path(), &format!("seed {seed}, {what}, {}", victim.display()));
    }
}

#[test]
fn without_identity_high_water_or_both_the_events_are_served() {
    let sound = sound();
    for names in
        [&["IDENTITY"][..], &["HIGHWATER"], &["IDENTITY", "HIGHWATER"], &["IDENTITY", "HIGHWATER", "LEDGER"]]
    {
        for is_garbled in [false, true] {
            let dir = sound.copy();
            for name in names {
                let path = dir.path().join(name);
                if is_garbled {
                    fs::write(path, b"nonsense").unwrap();
                } else {
                    fs::remove_file(path).unwrap();
                }
            }
            assert_eq!(sound.assess(dir.path(), &format!("{names:?}")), 0);
        }
    }
}

/// Copies a folder with everything in it.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
