//! What every shelf promises (see `store`): one set of tests, run against sled, memory, and memory that forgets.
#![allow(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::memory::{Cut, MemoryShelf};
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
    the_floor_is_the_greatest_key_at_or_below,
    a_removed_key_is_gone,
    a_second_put_replaces,
    what_was_synced_survives,
    many_large_values_survive,
    two_generations_are_two_stores,
    the_row_is_listed_in_order,
    what_is_set_aside_is_listed_as_such,
    a_deleted_generation_is_gone,
    what_is_not_there_is_damaged_or_already_deleted,
    a_new_generation_survives_empty,
    a_generation_can_be_made_again_where_one_is,
    disk_grows_and_comes_back,
);

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
    assert_eq!(store.floor(&[0xff; 20]), Ok(None));
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

fn the_floor_is_the_greatest_key_at_or_below<M: Medium>(medium: &M) {
    let mut store = medium.shelf().create(Seq(1)).unwrap();
    fill(&mut store, &[b"b", b"b\0", b"d"]);
    for (key, wanted) in
        [("a", None), ("b", Some("b")), ("b\0", Some("b\0")), ("c", Some("b\0")), ("z", Some("d"))]
    {
        assert_eq!(store.floor(key.as_bytes()), Ok(wanted.map(|key| key.as_bytes().to_vec())), "{key}");
    }
}

fn a_removed_key_is_gone<M: Medium>(medium: &M) {
    let mut store = medium.shelf().create(Seq(1)).unwrap();
    fill(&mut store, &[b"a", b"b", b"c"]);
    store.remove(b"b").unwrap();
    store.remove(b"not there").unwrap();
    assert_eq!(keys(&store), [b"a", b"c"]);
    assert_eq!(store.floor(b"b"), Ok(Some(b"a".to_vec())));
    store.sync().unwrap();
    drop(store);
    medium.interrupt();
    assert_eq!(keys(&medium.shelf().open(Seq(1)).unwrap()), [b"a", b"c"]);
}

fn a_second_put_replaces<M: Medium>(medium: &M) {
    let mut store = medium.shelf().create(Seq(1)).unwrap();
    for value in [b"first", b"later"] {
        store.put(b"key", value).unwrap();
        store.sync().unwrap();
    }
    drop(store);
    medium.interrupt();
    let store = medium.shelf().open(Seq(1)).unwrap();
    assert_eq!(entries(&store, &[]), [(b"key".to_vec(), b"later".to_vec())]);
}

fn what_was_synced_survives<M: Medium>(medium: &M) {
    for round in 0..10_u8 {
        let mut shelf = medium.shelf();
        let mut store = if round == 0 { shelf.create(Seq(1)).unwrap() } else { shelf.open(Seq(1)).unwrap() };
        store.remove(&[round, 1]).unwrap();
        store.put(&[round], b"kept").unwrap();
        store.sync().unwrap();
        store.put(&[round + 1, 1], b"perhaps").unwrap();
        drop(store);
        medium.interrupt();
        let store = shelf.open(Seq(1)).unwrap();
        let (sure, unsure): (Vec<_>, Vec<_>) = keys(&store).into_iter().partition(|key| key.len() == 1);
        assert_eq!(sure, (0..=round).map(|n| vec![n]).collect::<Vec<_>>());
        assert!(unsure.iter().all(|key| *key == [round + 1, 1]), "{unsure:?}");
    }
}

fn many_large_values_survive<M: Medium>(medium: &M) {
    const BYTES_MAX: usize = 7_100;
    let mut rng = fastrand::Rng::with_seed(7);
    let noise = noise(&mut rng, 4 * BYTES_MAX);
    let mut store = medium.shelf().create(Seq(1)).unwrap();
    // Mostly small, as 20,000 times 7 KB only test the disk; every 20th is large.
    let value = |n: u64| {
        let bytes = if n.is_multiple_of(20) { BYTES_MAX - (n / 20) as usize % 99 } else { n as usize % 200 };
        noise.get(n as usize..).and_then(|noise| noise.get(..bytes)).unwrap()
    };
    for n in 0..20_000_u64 {
        store.put(&n.to_be_bytes(), value(n)).unwrap();
        if n % 1000 == 999 {
            store.sync().unwrap();
        }
    }
    drop(store);
    medium.interrupt();
    let store = medium.shelf().open(Seq(1)).unwrap();
    let mut seen = 0_u64;
    let visited = store.scan(&[], &mut |key, found| {
        assert_eq!((key, found), (&seen.to_be_bytes()[..], value(seen)));
        seen += 1;
        ControlFlow::Continue(())
    });
    assert_eq!((visited, seen), (Ok(()), 20_000));
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
    let wanted = [1, 7, 99, 1000, u64::MAX >> 1].map(|n| Listed { first: Seq(n), is_aside: false });
    assert_eq!(listed, wanted);
}

fn what_is_set_aside_is_listed_as_such<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    drop(shelf.create(Seq(1)).unwrap());
    for _ in 0..3 {
        // The same position can be damaged again: every copy is kept.
        drop(shelf.create(Seq(5)).unwrap());
        assert!(!shelf.set_aside(Seq(5)).unwrap().is_empty());
    }
    let listed = |(first, is_aside)| Listed { first: Seq(first), is_aside };
    assert_eq!(medium.shelf().list().unwrap(), [(1, false), (5, true), (5, true), (5, true)].map(listed));
    assert!(matches!(shelf.open(Seq(5)), Err(StoreError::Damaged(_))));
}

fn a_deleted_generation_is_gone<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    for first in [1, 2] {
        let mut store = shelf.create(Seq(first)).unwrap();
        fill(&mut store, &[b"a"]);
        store.sync().unwrap();
    }
    shelf.delete(Seq(1)).unwrap();
    assert_eq!(medium.shelf().list().unwrap(), [Listed { first: Seq(2), is_aside: false }]);
    assert_eq!((shelf.disk_bytes(Seq(1)), shelf.disk_bytes(Seq(2)) > 0), (0, true));
    assert!(keys(&shelf.create(Seq(1)).unwrap()).is_empty());
}

fn what_is_not_there_is_damaged_or_already_deleted<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    assert!(matches!(shelf.open(Seq(3)), Err(StoreError::Damaged(_))));
    assert_eq!(shelf.list(), Ok(Vec::new()), "looking for it does not make it");
    assert_eq!(shelf.delete(Seq(3)), Ok(()));
    assert!(shelf.set_aside(Seq(3)).is_err());
}

fn a_new_generation_survives_empty<M: Medium>(medium: &M) {
    drop(medium.shelf().create(Seq(9)).unwrap());
    medium.interrupt();
    assert!(keys(&medium.shelf().open(Seq(9)).unwrap()).is_empty());
}

fn a_generation_can_be_made_again_where_one_is<M: Medium>(medium: &M) {
    let mut shelf = medium.shelf();
    let mut store = shelf.create(Seq(1)).unwrap();
    fill(&mut store, &[b"a"]);
    store.sync().unwrap();
    assert!(matches!(shelf.create(Seq(1)), Err(StoreError::Io(_))), "it is open");
    assert!(matches!(shelf.open(Seq(1)), Err(StoreError::Io(_))), "it is open");
    drop(store);
    assert_eq!(keys(&shelf.create(Seq(1)).unwrap()), [b"a"], "making never destroys");
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
    assert!(shelf.disk_bytes(Seq(1)) >= full);
    shelf.delete(Seq(1)).unwrap();
    assert_eq!(shelf.disk_bytes(Seq(1)), 0);
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
    assert!(shelf.disk_bytes(Seq(1)).abs_diff(real) < 4096);
}

/// What became of a damaged generation.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdicts {
    whole: u32,
    short: u32,
    /// Opened, and a value was not the one that was put: the block's checksum has to find it.
    wrong: u32,
    refused: u32,
    unreadable: u32,
}

fn verdict(disk: &Disk, values: &[Vec<u8>], verdicts: &mut Verdicts) {
    match disk.shelf().open(Seq(1)) {
        Ok(store) => {
            let (mut seen, mut wrong) = (0, false);
            let visited = store.scan(&[], &mut |key, value| {
                let index = u64::from_be_bytes(key.try_into().unwrap()) as usize;
                wrong |= values[index] != value;
                seen += 1;
                ControlFlow::Continue(())
            });
            match visited {
                Err(error) => {
                    verdicts.unreadable += 1;
                    println!("while it is read: {error}");
                }
                Ok(()) if wrong => verdicts.wrong += 1,
                Ok(()) if seen == values.len() => verdicts.whole += 1,
                Ok(()) => verdicts.short += 1,
            }
        }
        Err(StoreError::Damaged(_)) => verdicts.refused += 1,
        Err(error) => panic!("damage was taken for {error:?}"),
    }
}

#[test]
fn sled_with_a_damaged_file_opens_or_says_so() {
    let mut rng = fastrand::Rng::with_seed(5);
    let values: Vec<_> = (0..300).map(|_| noise(&mut rng, 6_500)).collect();
    let sound = Disk::new();
    let mut store = sound.shelf().create(Seq(1)).unwrap();
    for (n, value) in (0_u64..).zip(&values) {
        store.put(&n.to_be_bytes(), value).unwrap();
    }
    store.sync().unwrap();
    drop(store);
    let mut verdicts = Verdicts::default();
    let rounds = std::env::var("FIELDPOST_DAMAGE_ROUNDS").map_or(60, |n| n.parse().unwrap());
    for seed in 0..rounds {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = Disk::new();
        for (path, _) in files(sound.0.path()) {
            let to = disk.0.path().join(path.strip_prefix(sound.0.path()).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(path, to).unwrap();
        }
        let victims = files(disk.0.path());
        let (path, bytes) = match seed % 6 {
            0 => victims.iter().find(|(path, bytes)| !path.ends_with("db") && *bytes > 0).unwrap(),
            _ => victims.iter().find(|(path, _)| path.ends_with("db")).unwrap(),
        };
        let mut content = fs::read(path).unwrap();
        match seed % 3 {
            0 => content[rng.usize(0..*bytes as usize)] ^= 1 << rng.u8(0..8),
            1 => content.truncate(rng.usize(0..*bytes as usize)),
            _ => {
                let start = rng.usize(0..*bytes as usize);
                let end = (start + 4096).min(content.len());
                content[start..end].fill(0);
            }
        }
        fs::write(path, content).unwrap();
        verdict(&disk, &values, &mut verdicts);
    }
    println!("{verdicts:?}");
    assert_eq!(verdicts.wrong, 0, "{verdicts:?}");
}
