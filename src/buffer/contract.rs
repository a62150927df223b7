//! What every shelf promises (see `store`): one set of tests, run against sled, memory, and memory that forgets.
#![allow(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::block::{Encoder, Events, Origin, Rank};
use super::memory::{Cut, MemoryShelf};
use super::scan::scan;
use super::sled::SledShelf;
use super::store::{Listed, Shelf, Store, StoreError};
use crate::event::Seq;

/// A medium on which shelves can be opened again and again.
trait Medium {
    type Shelf: Shelf;

    fn shelf(&self) -> Self::Shelf;

    /// The process ends, or the power goes where the medium can play that.
    fn interrupt(&self) {}
}

struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Medium for Disk {
    type Shelf = SledShelf;

    fn shelf(&self) -> SledShelf {
        SledShelf::new(self.0.path().to_owned())
    }
}

impl Medium for MemoryShelf {
    type Shelf = Self;

    fn shelf(&self) -> Self {
        self.clone()
    }

    fn interrupt(&self) {
        self.power_cut();
    }
}

macro_rules! contract {
    ($($test:ident),+ $(,)?) => {
        mod sled {
            $(#[test] fn $test() { super::$test(&super::Disk::new()); })+
        }
        mod memory {
            $(#[test] fn $test() { super::$test(&super::MemoryShelf::new(super::Cut::Nothing, 1)); })+
        }
        mod forgetful {
            $(#[test] fn $test() {
                for seed in 0..4 {
                    super::$test(&super::MemoryShelf::new(super::Cut::Any, seed));
                }
            })+
        }
    };
}

contract!(
    entries_come_in_the_order_of_their_keys,
    an_empty_store_has_nothing,
    a_scan_ends_where_it_is_told,
    a_removed_key_is_gone,
    a_second_put_replaces,
    what_was_synced_is_found_in_the_file,
    many_blocks_are_found_whatever_was_removed_between_them,
    two_generations_are_two_stores,
    the_row_is_listed_in_order,
    what_is_set_aside_is_listed_as_such_and_can_be_read,
    a_deleted_generation_is_gone,
    what_is_not_there_is_damaged_or_already_deleted,
    a_new_generation_survives_empty,
    a_generation_is_not_made_where_one_is,
    disk_grows_and_comes_back,
    a_note_stays_with_its_generation,
    a_replacement_comes_in_whole,
    an_interrupted_replacement_can_be_finished_or_dropped,
);

fn row(first: u64) -> Listed {
    Listed { first: Seq(first), is_aside: false }
}

/// A block of one event, whose position is `first` and whose content follows from `seed`.
fn block(first: u64, bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let run = noise(&mut rng, bytes.max(1));
    let mut value = Vec::new();
    let put = |_, block: &[u8]| {
        value = block.to_vec();
        Ok::<_, std::convert::Infallible>(())
    };
    let origin = Origin { epoch: 1, boot: [0; 16] };
    let events = Events { rank: Rank::default(), count: 1, ways: &[], bytes: &run };
    assert_eq!(Encoder::new(origin).encode(Seq(first), 0, events, put), Ok(()));
    value
}

/// Every whole block in a generation's file: position and bytes, in any order, copies included.
fn found<H: Shelf>(shelf: &H, listed: Listed) -> Vec<(u64, Vec<u8>)> {
    let source = shelf.source(listed).unwrap();
    let mut blocks = Vec::new();
    scan(&*source, |offset, block| {
        let mut bytes = vec![0; block.bytes()];
        assert_eq!(source.read_at(&mut bytes, offset).unwrap(), bytes.len());
        blocks.push((block.first.0, bytes));
    })
    .unwrap();
    blocks
}

fn positions<H: Shelf>(shelf: &H, listed: Listed) -> Vec<u64> {
    let mut positions: Vec<_> = found(shelf, listed).into_iter().map(|(first, _)| first).collect();
    positions.sort_unstable();
    positions.dedup();
    positions
}

fn entries<S: Store>(store: &S, from: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut entries = Vec::new();
    let visited = store.scan(from, &mut |key, value| {
        entries.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    });
    visited.unwrap();
    entries
}

fn keys<S: Store>(store: &S) -> Vec<Vec<u8>> {
    entries(store, &[]).into_iter().map(|(key, _)| key).collect()
}

fn fill<S: Store>(store: &mut S, keys: &[&[u8]]) {
    for key in keys {
        store.put(key, key).unwrap();
    }
}

fn noise(rng: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| rng.u8(..)).collect()
}

fn entries_come_in_the_order_of_their_keys<M: Medium>(medium: &M) {
    let mut store = medium.shelf().create(Seq(1)).unwrap();
    fill(&mut store, &[b"b", b"\xffcursor", b"a", &[0, 1], b"ab", b"b\0"]);
    let wanted: [&[u8]; 6] = [&[0, 1], b"a", b"ab", b"b", b"b\0", b"\xffcursor"];
    assert_eq!(keys(&store), wanted);
    assert_eq!(entries(&store, b"ab").len(), 4);
    assert_eq!(entries(&store, b"aa").len(), 4);
    assert_eq!(entries(&store, b"\xffz").len(), 0);
}

fn an_empty_store_has_nothing<M: Medium>(medium: &M) {
    let store = medium.shelf().create(Seq(1)).unwrap();
    assert!(keys(&store).is_empty());
}

fn a_scan_ends_where_it_is_told<M: Medium>(medium: &M) {
    let mut store = medium.shelf().create(Seq(1)).unwrap();
    fill(&mut store, &[b"a", b"b", b"c"]);
    let mut seen = 0;
    let visited = store.scan(&[], &mut |key, _| {
        seen += 1;
        if key == b"b" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((visited, seen), (Ok(()), 2));
}

fn a_removed_key_is_gone<M: Medium>(medium: &M) {
    let mut store = medium.shelf().create(Seq(1)).unwrap();
    fill(&mut store, &[b"a", b"b", b"c"]);
    store.remove(b"b").unwrap();
    store.remove(b"not there").unwrap();
    assert_eq!(keys(&store), [b"a", b"c"]);
    store.sync().unwrap();
    assert_eq!(keys(&store), [b"a", b"c"]);
}

fn a_second_put_replaces<M: Medium>(medium: &M) {
    let mut store = medium.shelf().create(Seq(1)).unwrap();
    for value in [b"first", b"later"] {
        store.put(b"key", value).unwrap();
        store.sync().unwrap();
    }
    assert_eq!(entries(&store, &[]), [(b"key".to_vec(), b"later".to_vec())]);
}

fn what_was_synced_is_found_in_the_file<M: Medium>(medium: &M) {
    for round in 0..10_u64 {
        let mut shelf = medium.shelf();
        let first = round * 100 + 1;
        let mut store = shelf.create(Seq(first)).unwrap();
        for n in 0..round {
            store.put(&n.to_be_bytes(), &block(first + n, 300, n)).unwrap();
            store.sync().unwrap();
        }
        store.put(b"later", &block(first + 50, 300, 0)).unwrap();
        drop(store);
        medium.interrupt();
        let (sure, unsure): (Vec<_>, Vec<_>) =
            positions(&medium.shelf(), row(first)).into_iter().partition(|seq| *seq < first + 50);
        assert_eq!(sure, (first..first + round).collect::<Vec<_>>());
        assert!(unsure.is_empty() || unsure == [first + 50], "{unsure:?}");
    }
}

fn many_blocks_are_found_whatever_was_removed_between_them<M: Medium>(medium: &M) {
    for seed in 0..3 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut shelf = medium.shelf();
        let first = seed * 1_000_000 + 1;
        let mut store = shelf.create(Seq(first)).unwrap();
        let mut live = BTreeMap::new();
        let mut next = first;
        for _ in 0..60 {
            for _ in 0..rng.u64(1..60) {
                let bytes = if rng.u8(0..8) == 0 { rng.usize(1..7_000) } else { rng.usize(1..400) };
                let value = block(next, bytes, next);
                store.put(&next.to_be_bytes(), &value).unwrap();
                live.insert(next, value);
                next += 1;
            }
            // From the front, as a drain does, in some laps everything.
            for _ in 0..[0, 30, live.len()][rng.usize(0..3)].min(live.len()) {
                let (seq, _) = live.pop_first().unwrap();
                store.remove(&seq.to_be_bytes()).unwrap();
            }
            store.sync().unwrap();
        }
        drop(store);
        medium.interrupt();
        let found = found(&medium.shelf(), row(first));
        for (seq, value) in &live {
            assert!(found.iter().any(|(at, bytes)| at == seq && bytes == value), "seed {seed}: {seq}");
        }
        assert!(found.iter().all(|(seq, _)| (first..next).contains(seq)));
    }
}

fn two_generations_are_two_stores<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    let (mut one, mut two) = (shelf.create(Seq(1)).unwrap(), shelf.create(Seq(2)).unwrap());
    fill(&mut one, &[b"a"]);
    fill(&mut two, &[b"b"]);
    one.sync().unwrap();
    two.sync().unwrap();
    assert_eq!((keys(&one), keys(&two)), (vec![b"a".to_vec()], vec![b"b".to_vec()]));
}

fn the_row_is_listed_in_order<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    assert_eq!(shelf.list(), Ok(Vec::new()));
    for first in [7, 1, u64::MAX >> 1, 1000, 99] {
        drop(shelf.create(Seq(first)).unwrap());
    }
    medium.interrupt();
    let listed = medium.shelf().list().unwrap();
    let wanted = [1, 7, 99, 1000, u64::MAX >> 1].map(row);
    assert_eq!(listed, wanted);
}

fn what_is_set_aside_is_listed_as_such_and_can_be_read<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    drop(shelf.create(Seq(1)).unwrap());
    let mut store = shelf.create(Seq(5)).unwrap();
    store.put(b"key", &block(5, 100, 5)).unwrap();
    store.sync().unwrap();
    drop(store);
    assert!(!shelf.set_aside(Seq(5)).unwrap().is_empty());
    let aside = Listed { first: Seq(5), is_aside: true };
    assert_eq!(medium.shelf().list().unwrap(), [row(1), aside]);
    assert_eq!(positions(&shelf, aside), [5]);
    assert!(shelf.disk_bytes(aside) > 0);
    assert!(matches!(shelf.source(row(5)), Err(StoreError::Damaged(_))));
    shelf.delete_aside(Seq(5)).unwrap();
    assert_eq!(medium.shelf().list().unwrap(), [row(1)]);
}

fn a_deleted_generation_is_gone<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    for first in [1, 2] {
        let mut store = shelf.create(Seq(first)).unwrap();
        fill(&mut store, &[b"a"]);
        store.sync().unwrap();
    }
    shelf.delete(Seq(1)).unwrap();
    assert_eq!(medium.shelf().list().unwrap(), [row(2)]);
    assert_eq!((shelf.disk_bytes(row(1)), shelf.disk_bytes(row(2)) > 0), (0, true));
    assert!(keys(&shelf.create(Seq(1)).unwrap()).is_empty());
}

fn what_is_not_there_is_damaged_or_already_deleted<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    assert!(matches!(shelf.source(row(3)), Err(StoreError::Damaged(_))));
    assert_eq!(shelf.list(), Ok(Vec::new()), "looking for it does not make it");
    assert_eq!(shelf.delete(Seq(3)), Ok(()));
    assert!(shelf.set_aside(Seq(3)).is_err());
}

fn a_new_generation_survives_empty<M: Medium>(medium: &M) {
    drop(medium.shelf().create(Seq(9)).unwrap());
    medium.interrupt();
    assert_eq!(medium.shelf().list().unwrap(), [row(9)]);
    assert!(found(&medium.shelf(), row(9)).is_empty());
}

fn a_generation_is_not_made_where_one_is<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    let mut store = shelf.create(Seq(1)).unwrap();
    store.put(b"key", &block(1, 100, 1)).unwrap();
    store.sync().unwrap();
    assert!(matches!(shelf.create(Seq(1)), Err(StoreError::Io(_))), "it is open");
    drop(store);
    assert!(matches!(shelf.create(Seq(1)), Err(StoreError::Io(_))), "it is there");
    assert_eq!(positions(&shelf, row(1)), [1], "nothing was harmed");
}

fn disk_grows_and_comes_back<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    let mut store = shelf.create(Seq(1)).unwrap();
    let (empty, noise) = (store.disk_bytes(), noise(&mut fastrand::Rng::with_seed(1), 7_000));
    for n in 0..1000_u64 {
        store.put(&n.to_be_bytes(), &noise).unwrap();
    }
    store.sync().unwrap();
    let full = store.disk_bytes();
    assert!(full >= empty + 7_000_000, "{empty} {full}");
    drop(store);
    assert!(shelf.disk_bytes(row(1)) >= full);
    shelf.delete(Seq(1)).unwrap();
    assert_eq!(shelf.disk_bytes(row(1)), 0);
}

fn a_note_stays_with_its_generation<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    drop(shelf.create(Seq(1)).unwrap());
    assert_eq!(shelf.noted(Seq(1)), None);
    shelf.note(Seq(1), b"text");
    shelf.note(Seq(2), b"there is no such generation");
    assert_eq!((shelf.noted(Seq(1)), shelf.noted(Seq(2))), (Some(b"text".to_vec()), None));
    shelf.delete(Seq(1)).unwrap();
    assert_eq!(shelf.noted(Seq(1)), None);
}

fn four_generations<M: Medium>(medium: &M) -> M::Shelf {
    let mut shelf = medium.shelf();
    for first in [1, 5, 9, 13] {
        let mut store = shelf.create(Seq(first)).unwrap();
        store.put(b"key", &block(first, 100, first)).unwrap();
        store.sync().unwrap();
    }
    shelf
}

fn prepare<H: Shelf>(shelf: &mut H) {
    let prepared = shelf.prepare(Seq(5), &mut |put| {
        put(&block(5, 100, 5))?;
        put(&block(10, 3_000, 10))
    });
    prepared.unwrap();
}

fn a_replacement_comes_in_whole<M: Medium>(medium: &M) {
    let mut shelf = four_generations(medium);
    prepare(&mut shelf);
    assert_eq!(positions(&shelf, row(5)), [5], "not yet");
    shelf.swap_in(Seq(5), Seq(12)).unwrap();
    medium.interrupt();
    let mut shelf = medium.shelf();
    assert_eq!(shelf.list().unwrap(), [row(1), row(5), row(13)]);
    assert_eq!(positions(&shelf, row(5)), [5, 10]);
    shelf.swap_in(Seq(5), Seq(12)).unwrap();
    assert_eq!(positions(&shelf, row(5)), [5, 10], "it was done already");
}

fn an_interrupted_replacement_can_be_finished_or_dropped<M: Medium>(medium: &M) {
    let mut shelf = four_generations(medium);
    prepare(&mut shelf);
    shelf.delete(Seq(5)).unwrap();
    medium.interrupt();
    let mut shelf = medium.shelf();
    shelf.swap_in(Seq(5), Seq(12)).unwrap();
    assert_eq!(shelf.list().unwrap(), [row(1), row(5), row(13)]);
    assert_eq!(positions(&shelf, row(5)), [5, 10]);
    prepare(&mut shelf);
    medium.interrupt();
    let mut shelf = medium.shelf();
    assert_eq!(shelf.list().unwrap(), [row(1), row(5), row(13)], "nobody asked for it");
    shelf.swap_in(Seq(5), Seq(12)).unwrap();
    assert_eq!(positions(&shelf, row(5)), [5, 10]);
}

fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::metadata(&path).unwrap().len();
            found.push((path, bytes));
        }
    }
    found
}

#[test]
fn sled_never_makes_a_blob_of_a_block() {
    let disk = Disk::new();
    let mut rng = fastrand::Rng::with_seed(11);
    let mut store = disk.shelf().create(Seq(1)).unwrap();
    for lap in 0..6 {
        for n in 0..300_u64 {
            store.put(&(lap * 300 + n).to_be_bytes(), &noise(&mut rng, 7_097)).unwrap();
        }
        store.sync().unwrap();
        for n in 0..300_u64 {
            store.remove(&(lap * 300 + n).to_be_bytes()).unwrap();
        }
        store.sync().unwrap();
    }
    drop(store);
    let blobs: Vec<_> = files(disk.0.path())
        .into_iter()
        .filter(|(path, _)| path.components().any(|part| part.as_os_str() == "blobs"))
        .collect();
    assert!(blobs.is_empty(), "{blobs:?}");
}

#[test]
fn sled_disk_bytes_are_the_real_ones() {
    let disk = Disk::new();
    let mut shelf = disk.shelf();
    let mut store = shelf.create(Seq(1)).unwrap();
    for n in 0..500_u64 {
        store.put(&n.to_be_bytes(), &noise(&mut fastrand::Rng::with_seed(n), 5_000)).unwrap();
    }
    store.sync().unwrap();
    let real: u64 = files(disk.0.path()).iter().map(|(_, bytes)| bytes).sum();
    assert!(store.disk_bytes().abs_diff(real) < 4096, "{} {real}", store.disk_bytes());
    assert!(shelf.disk_bytes(row(1)).abs_diff(real) < 4096);
}
