//! Buffer directories as each format of blocks wrote them: every later version has to read them.
//!
//! `tests/fixtures/buffer-1` and `buffer-2` were written by [`write`] (`FIELDPOST_WRITE_FIXTURE=1 cargo test --lib
//! buffer::fixture`), once. They are never written again: a later format gets a fixture of its own beside them.

use std::fs;
use std::path::{Path, PathBuf};

use super::block::{FORMAT, MAGIC};
use super::generations::{Files, Generations, Limits};
use super::identity::{HighWater, Identity};
use super::lanes::LanesFile;
use super::ledger::{Ledger, Reason};
use super::model::copy;
use super::reserve::Reserve;
use super::run::Run;
use super::sled::SledShelf;
use super::{Batch, Terms, WhenFull};
use crate::event::{Event, EventId, Payload, Seq, Stamp, Way};

/// The folder of a format's fixture.
fn fixture(format: u8) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/buffer-{format}"))
}

fn open(dir: &Path) -> Generations<SledShelf> {
    let ledger = Ledger::open(&dir.join("LEDGER"));
    let buffer = dir.join("buffer");
    fs::create_dir_all(&buffer).unwrap();
    let identity = Identity::open(&buffer, "gw-1", ledger.witness()).unwrap();
    let (high_water, lanes) = (HighWater::open(&buffer).unwrap(), LanesFile::open(&buffer).unwrap());
    let files = Files { identity, high_water, lanes, ledger, reserve: Reserve::new(&buffer, 0) };
    let limits = Limits { bytes_max: 64 << 20, free_min: 0, age_max: None };
    let shelf = SledShelf::new(buffer.clone());
    Generations::open(shelf, files, [7; 16], limits).unwrap()
}

/// The payload of event `n`: every seventh is larger than a block and does not compress.
fn payload(n: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(n);
    let bytes = if n.is_multiple_of(7) { 20_000 } else { 300 };
    (0..bytes).map(|_| rng.u8(..)).collect()
}

/// The way of event `n`: the first format has none but the usual one.
fn way(format: u8, n: u64) -> Way<'static> {
    match n % 5 {
        _ if format == 1 => Way::USUAL,
        0 => Way { topic: Some("alarms"), is_quiet: false },
        1 => Way { topic: Some("readings.{source_type}"), is_quiet: true },
        2 => Way { topic: None, is_quiet: true },
        _ => Way::USUAL,
    }
}

fn batch(format: u8, from: u64, count: u64, terms: Terms) -> Batch {
    let mut batch = Batch::new();
    batch.set_terms(terms);
    for n in from..from + count {
        let (id, payload, text) = (n.to_string(), payload(n), n.to_string());
        let is_json = n.is_multiple_of(2) && !n.is_multiple_of(7);
        let event = Event {
            id: if n == 1 { EventId::Generated([3; 16]) } else { EventId::Given(&id) },
            kind: "reading",
            source_type: "meter",
            source_id: "m-1",
            timestamp: (n == 2).then_some("2026-11-21T10:00:00Z"),
            received: Stamp { wall_us: 1_795_000_000_000_000, boot_us: n, clock_trusted: true },
            payload: if is_json { Payload::Json(&text) } else { Payload::Bytes(&payload) },
            way: way(format, n),
        };
        batch.push(&event, usize::MAX).unwrap();
    }
    batch
}

/// Three lives: promised events, droppable ones of which some were evicted, and a newest generation; cursor at 3.
fn write(format: u8, dir: &Path) {
    let droppable = Terms { when_full: WhenFull::DropOldest, priority: 2 };
    let mut first = open(dir);
    first.put(&batch(format, 1, 20, Terms::default())).unwrap();
    first.sync().unwrap();
    first.advance(Seq(3));
    first.close().unwrap();
    let mut second = open(dir);
    second.put(&batch(format, 21, 20, droppable)).unwrap();
    second.put(&batch(format, 41, 10, Terms::default())).unwrap();
    second.close().unwrap();
    let mut third = open(dir);
    assert!(third.evict(2).unwrap());
    third.count(Reason::TooLarge, 2);
    third.put(&batch(format, 51, 10, Terms::default())).unwrap();
    third.close().unwrap();
}

#[test]
fn a_buffer_of_each_format_is_read_whole() {
    for format in 1..=FORMAT {
        let fixture = fixture(format);
        if std::env::var_os("FIELDPOST_WRITE_FIXTURE").is_some() && !fixture.exists() {
            write(format, &fixture);
        }
        is_read_whole(format, &fixture);
    }
}

fn is_read_whole(format: u8, fixture: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    copy(fixture, scratch.path());
    let mut formats: Vec<u8> = Vec::new();
    for generation in fs::read_dir(scratch.path().join("buffer")).unwrap().flatten() {
        let Ok(file) = fs::read(generation.path().join("db")) else { continue };
        formats.extend(file.windows(4).filter(|four| four.starts_with(&MAGIC)).map(|four| four[3]));
    }
    assert_eq!(formats.iter().max(), Some(&format));
    let mut generations = open(scratch.path());
    let figures = generations.figures();
    assert_eq!((figures.cursor, figures.durable), (Seq(3), Seq(60)));
    assert_eq!((generations.ledger()[&Reason::Evicted].events, figures.lost), (20, 20));
    assert_eq!(generations.ledger()[&Reason::TooLarge].events, 2);
    let (mut seen, mut after) = (Vec::new(), figures.cursor);
    let mut epochs = Vec::new();
    while after < figures.durable {
        let mut run = Run::default();
        generations.read(after, 100_000, None, &mut run).unwrap();
        for (seq, origin, event) in run.events() {
            let wanted = batch(format, seq.0, 1, Terms::default());
            assert_eq!(wanted.events().next(), Some(event));
            epochs.push(origin.epoch);
            seen.push(seq.0);
        }
        after = run.end();
    }
    assert_eq!(seen, (4..=20).chain(41..=60).collect::<Vec<_>>());
    epochs.dedup();
    assert_eq!(epochs, [1, 2, 3]);
    generations.put(&batch(format, 61, 1, Terms::default())).unwrap();
    generations.close().unwrap();
}
