//! Test doubles of the shelf: ordered maps shared by every handle on the same medium, so that they can be opened
//! again, with a power cut, scripted faults and a gate that holds a sync back.
//!
//! A write goes from `unsynced` to `synced` with a sync. A failed sync leaves each write lost at once or *in limbo*:
//! still readable, and no later sync makes it durable, as it is with a page cache that dropped the dirty mark. What was
//! removed or lost may stay in a file as long as nothing needs its place, so a scan meets half of it again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::scan::Source;
use super::store::{Fill, Listed, Shelf, Store, StoreError, Visit};
use crate::event::Seq;

/// Disk of an empty generation.
const EMPTY_BYTES: u64 = 16 * 1024;

type Value = Arc<[u8]>;
type Map = BTreeMap<Vec<u8>, Value>;

/// A put, or a removal (`None`).
type Write = (Vec<u8>, Option<Value>);

/// What a power cut leaves of the writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Everything: it was memory with a battery.
    Nothing,
    /// The first few: a log that is written in order.
    Tail,
    /// Any of them: all that the contract promises.
    Any,
}

#[derive(Debug, Default, Clone)]
struct Medium {
    synced: Map,
    /// Survived a failed sync so far, durable never.
    limbo: Vec<Write>,
    unsynced: Vec<Write>,
    /// What is read: the three above in their order.
    now: Map,
    /// Removed or lost, and still in the file.
    remains: Vec<Value>,
    note: Option<Vec<u8>>,
    live_bytes: u64,
    /// A file only grows.
    disk_bytes: u64,
    is_open: bool,
}

fn apply(map: &mut Map, (key, value): &Write) {
    match value {
        Some(value) => map.insert(key.clone(), Arc::clone(value)),
        None => map.remove(key),
    };
}

impl Medium {
    fn write(&mut self, write: Write) {
        let (key, value) = &write;
        if let Some(old) = self.now.get(key).filter(|old| old.len() % 2 == 0) {
            self.remains.push(Arc::clone(old));
        }
        self.live_bytes += value.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
        self.live_bytes -= self.now.get(key).map_or(0, |value| (key.len() + value.len()) as u64);
        self.disk_bytes = self.disk_bytes.max(EMPTY_BYTES + self.live_bytes);
        apply(&mut self.now, &write);
        self.unsynced.push(write);
    }

    fn sync(&mut self) {
        for write in std::mem::take(&mut self.unsynced) {
            self.limbo.retain(|(key, _)| *key != write.0);
            apply(&mut self.synced, &write);
        }
    }

    fn fail_sync(&mut self, cut: Cut, rng: &mut fastrand::Rng) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let kept = [0, unsynced.len(), rng.usize(0..=unsynced.len())][rng.usize(0..3)];
        for (index, write) in unsynced.into_iter().enumerate() {
            if if cut == Cut::Any { rng.bool() } else { index < kept } {
                self.limbo.push(write);
            } else {
                self.lose(write, rng);
            }
        }
        self.load();
    }

    fn lose(&mut self, (_, value): Write, rng: &mut fastrand::Rng) {
        self.remains.extend(value.filter(|_| rng.bool()));
    }

    fn load(&mut self) {
        self.now = self.synced.clone();
        for write in &self.limbo {
            apply(&mut self.now, write);
        }
        self.live_bytes = self.now.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
    }

    fn cut(&mut self, cut: Cut, rng: &mut fastrand::Rng) {
        if cut == Cut::Nothing {
            return self.sync();
        }
        self.limbo.append(&mut self.unsynced);
        let kept = rng.usize(0..=self.limbo.len());
        for (index, write) in std::mem::take(&mut self.limbo).into_iter().enumerate() {
            if if cut == Cut::Tail { index < kept } else { rng.bool() } {
                apply(&mut self.synced, &write);
            } else {
                self.lose(write, rng);
            }
        }
        self.load();
    }

    fn file(&self) -> Vec<u8> {
        let mut file = Vec::new();
        for value in self.now.values().chain(&self.remains) {
            file.extend_from_slice(value);
        }
        file
    }
}

#[derive(Debug, Default)]
struct Faults {
    put: Option<StoreError>,
    sync: Option<StoreError>,
    create: Option<StoreError>,
    prepare: Option<StoreError>,
    swap_in: Option<StoreError>,
    /// Once each.
    source: BTreeMap<Seq, StoreError>,
    /// For ever.
    damaged: BTreeSet<Seq>,
    delete: Option<StoreError>,
    panic: bool,
}

#[derive(Debug)]
struct State {
    row: BTreeMap<Seq, Medium>,
    aside: BTreeMap<Seq, Medium>,
    prepared: BTreeMap<Seq, Medium>,
    faults: Faults,
    rng: fastrand::Rng,
    cut: Cut,
    syncs: u64,
    /// Generations that were opened to be read.
    sources: u64,
    /// Handles from before a power cut are dead.
    life: u64,
    free_bytes: u64,
    is_held: bool,
    /// Syncs that wait at the gate.
    held: u64,
}

/// The shelf: every clone is the same medium.
#[derive(Debug, Clone)]
pub(super) struct MemoryShelf {
    shared: Arc<(Mutex<State>, Condvar)>,
}

/// One open generation of it.
#[derive(Debug)]
pub(super) struct MemoryStore {
    shelf: MemoryShelf,
    first: Seq,
    life: u64,
}

impl MemoryShelf {
    pub(super) fn new(cut: Cut, seed: u64) -> Self {
        let state = State {
            row: BTreeMap::new(),
            aside: BTreeMap::new(),
            prepared: BTreeMap::new(),
            faults: Faults::default(),
            rng: fastrand::Rng::with_seed(seed),
            cut,
            syncs: 0,
            sources: 0,
            life: 0,
            free_bytes: u64::MAX,
            is_held: false,
            held: 0,
        };
        Self { shared: Arc::new((Mutex::new(state), Condvar::new())) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes: unsynced writes are lost as the shelf's [`Cut`] says, open stores are dead.
    pub(super) fn power_cut(&self) {
        let mut state = self.state();
        let State { row, rng, cut, life, faults, .. } = &mut *state;
        for medium in row.values_mut() {
            medium.cut(*cut, rng);
            medium.is_open = false;
        }
        *life += 1;
        *faults = Faults { damaged: std::mem::take(&mut faults.damaged), ..Faults::default() };
    }

    pub(super) fn fail_next_put(&self, error: StoreError) {
        self.state().faults.put = Some(error);
    }

    pub(super) fn fail_next_sync(&self, error: StoreError) {
        self.state().faults.sync = Some(error);
    }

    /// Something of it may exist afterwards all the same.
    pub(super) fn fail_next_create(&self, error: StoreError) {
        self.state().faults.create = Some(error);
    }

    pub(super) fn fail_next_delete(&self, error: StoreError) {
        self.state().faults.delete = Some(error);
    }

    pub(super) fn fail_next_prepare(&self, error: StoreError) {
        self.state().faults.prepare = Some(error);
    }

    pub(super) fn fail_next_swap_in(&self, error: StoreError) {
        self.state().faults.swap_in = Some(error);
    }

    pub(super) fn fail_next_source(&self, first: Seq, error: StoreError) {
        self.state().faults.source.insert(first, error);
    }

    pub(super) fn cut(&self) -> Cut {
        self.state().cut
    }

    /// From now on, the generation cannot be read as a file.
    pub(super) fn damage(&self, first: Seq) {
        self.state().faults.damaged.insert(first);
    }

    pub(super) fn panic_at_next_put(&self) {
        self.state().faults.panic = true;
    }

    /// So much room is left on the disk.
    pub(super) fn set_free_bytes(&self, bytes: u64) {
        self.state().free_bytes = bytes;
    }

    /// No faults any more.
    pub(super) fn heal(&self) {
        self.state().faults = Faults::default();
    }

    /// First positions of the generations in the row.
    pub(super) fn row(&self) -> Vec<Seq> {
        self.state().row.keys().copied().collect()
    }

    /// Whether something of a generation is readable that a power cut may take (limbo aside: a failed sync cannot be
    /// made good).
    pub(super) fn is_dirty(&self, first: Seq) -> bool {
        let state = self.state();
        let is_damaged = state.faults.damaged.contains(&first);
        state.row.get(&first).is_some_and(|medium| !is_damaged && !medium.unsynced.is_empty())
    }

    pub(super) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    pub(super) fn sources(&self) -> u64 {
        self.state().sources
    }

    pub(super) fn open_count(&self) -> usize {
        self.state().row.values().filter(|medium| medium.is_open).count()
    }

    /// From now on every sync waits for [`Self::release`].
    pub(super) fn hold(&self) {
        self.state().is_held = true;
    }

    /// Returns once a sync waits at the gate.
    pub(super) fn wait_until_held(&self) {
        let (_, changed) = &*self.shared;
        let state = changed.wait_while(self.state(), |state| state.held == 0);
        drop(state.unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn release(&self) {
        self.state().is_held = false;
        self.shared.1.notify_all();
    }

    fn start(&self, first: Seq) -> Result<MemoryStore, StoreError> {
        let mut state = self.state();
        let life = state.life;
        if state.row.contains_key(&first) {
            return Err(StoreError::Io(format!("{first} is there already")));
        }
        let medium = Medium { disk_bytes: EMPTY_BYTES, is_open: true, ..Medium::default() };
        state.row.insert(first, medium);
        state.faults.damaged.remove(&first);
        Ok(MemoryStore { shelf: self.clone(), first, life })
    }
}

impl Shelf for MemoryShelf {
    type Store = MemoryStore;

    fn list(&mut self) -> Result<Vec<Listed>, StoreError> {
        let mut state = self.state();
        state.prepared.clear();
        let row = state.row.keys().map(|&first| Listed { first, is_aside: false });
        let aside = state.aside.keys().map(|&first| Listed { first, is_aside: true });
        let mut listed: Vec<_> = row.chain(aside).collect();
        listed.sort_unstable();
        Ok(listed)
    }

    fn create(&mut self, first: Seq) -> Result<MemoryStore, StoreError> {
        if let Some(error) = {
            let mut state = self.state();
            state.faults.create.take().map(|error| (error, state.rng.bool()))
        } {
            if error.1 {
                // An error means that it was there before.
                drop(self.start(first));
            }
            return Err(error.0);
        }
        self.start(first)
    }

    fn source(&self, listed: Listed) -> Result<Box<dyn Source>, StoreError> {
        let mut state = self.state();
        state.sources += 1;
        if let Some(error) = state.faults.source.remove(&listed.first) {
            return Err(error);
        }
        let row = if listed.is_aside { &state.aside } else { &state.row };
        match row.get(&listed.first).filter(|_| !state.faults.damaged.contains(&listed.first)) {
            Some(medium) => Ok(Box::new(medium.file())),
            None => Err(StoreError::Damaged(format!("generation {}", listed.first))),
        }
    }

    fn settle(&self, first: Seq) -> Result<(), StoreError> {
        let mut state = self.state();
        let failure = state.faults.sync.take();
        let (cut, mut rng) = (state.cut, state.rng.fork());
        let medium = state.row.get_mut(&first).ok_or_else(|| StoreError::Io("not there".into()))?;
        match failure {
            Some(error) => {
                medium.fail_sync(cut, &mut rng);
                Err(error)
            }
            None => {
                medium.sync();
                Ok(())
            }
        }
    }

    fn note(&self, first: Seq, note: &[u8]) {
        let mut state = self.state();
        if let Some(medium) = state.row.get_mut(&first) {
            medium.note = Some(note.to_vec());
        }
    }

    fn noted(&self, first: Seq) -> Option<Vec<u8>> {
        self.state().row.get(&first)?.note.clone()
    }

    fn disk_bytes(&self, listed: Listed) -> u64 {
        let state = self.state();
        let row = if listed.is_aside { &state.aside } else { &state.row };
        row.get(&listed.first).map_or(0, |medium| medium.disk_bytes)
    }

    fn free_bytes(&self) -> u64 {
        self.state().free_bytes
    }

    fn delete(&mut self, first: Seq) -> Result<(), StoreError> {
        let mut state = self.state();
        if let Some(error) = state.faults.delete.take() {
            return Err(error);
        }
        let medium = state.row.remove(&first);
        assert!(medium.is_none_or(|medium| !medium.is_open), "an open generation was deleted");
        Ok(())
    }

    fn set_aside(&mut self, first: Seq) -> Result<String, StoreError> {
        let mut state = self.state();
        let Some(medium) = state.row.remove(&first) else {
            return Err(StoreError::Io(format!("there is no generation {first}")));
        };
        assert!(!medium.is_open, "an open generation was set aside");
        state.aside.insert(first, medium);
        Ok(format!("memory:{first}"))
    }

    fn delete_aside(&mut self, first: Seq) -> Result<(), StoreError> {
        self.state().aside.remove(&first);
        Ok(())
    }

    fn prepare(&mut self, first: Seq, fill: &mut Fill<'_>) -> Result<(), StoreError> {
        if let Some(error) = self.state().faults.prepare.take() {
            return Err(error);
        }
        let mut medium = Medium { disk_bytes: EMPTY_BYTES, ..Medium::default() };
        let mut number = 0_u64;
        fill(&mut |block| {
            medium.write((number.to_be_bytes().to_vec(), Some(block.into())));
            number += 1;
            Ok(())
        })?;
        medium.sync();
        self.state().prepared.insert(first, medium);
        Ok(())
    }

    fn swap_in(&mut self, first: Seq, last: Seq) -> Result<(), StoreError> {
        let mut state = self.state();
        let failure = state.faults.swap_in.take();
        let Some(medium) = state.prepared.get(&first).cloned() else { return Ok(()) };
        if let Some(error) = failure {
            // Half of the way.
            let half = first.0.midpoint(last.0);
            state.row.retain(|seq, _| !(first.0..=half).contains(&seq.0));
            return Err(error);
        }
        state.row.retain(|seq, medium| {
            let is_replaced = (first..=last).contains(seq);
            assert!(!(is_replaced && medium.is_open), "an open generation was replaced");
            !is_replaced
        });
        state.prepared.remove(&first);
        state.faults.damaged.remove(&first);
        state.row.insert(first, medium);
        Ok(())
    }
}

impl MemoryStore {
    fn with<T>(&self, work: impl FnOnce(&mut Medium) -> T) -> Result<T, StoreError> {
        let mut state = self.shelf.state();
        if state.life != self.life {
            return Err(StoreError::Io("the power was cut".into()));
        }
        state.row.get_mut(&self.first).map(work).ok_or_else(|| StoreError::Io("deleted".into()))
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        // An error means that there is nothing left to close.
        let _ = self.with(|medium| medium.is_open = false);
    }
}

impl Store for MemoryStore {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let mut state = self.shelf.state();
        if let Some(error) = state.faults.put.take() {
            return Err(error);
        }
        let panics = std::mem::take(&mut state.faults.panic);
        drop(state);
        assert!(!panics, "this panic is part of a test");
        self.with(|medium| medium.write((key.to_vec(), Some(value.into()))))
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.with(|medium| medium.write((key.to_vec(), None)))
    }

    fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let range = (Bound::Included(from), Bound::Unbounded);
        self.with(|medium| {
            for (key, value) in medium.now.range::<[u8], _>(range) {
                if let ControlFlow::Break(()) = visit(key, value) {
                    break;
                }
            }
        })
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let (_, changed) = &*self.shelf.shared;
        let mut state = self.shelf.state();
        state.held += 1;
        changed.notify_all();
        state = changed.wait_while(state, |state| state.is_held).unwrap_or_else(PoisonError::into_inner);
        state.held -= 1;
        state.syncs += 1;
        let failure = state.faults.sync.take();
        let (cut, mut rng) = (state.cut, state.rng.fork());
        drop(state);
        match failure {
            Some(error) => {
                self.with(|medium| medium.fail_sync(cut, &mut rng))?;
                Err(error)
            }
            None => self.with(Medium::sync),
        }
    }

    fn disk_bytes(&self) -> u64 {
        self.with(|medium| medium.disk_bytes).unwrap_or(0)
    }
}
