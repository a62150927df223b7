//! The dead-letter store: what it promises over crashes, damage and its limits.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::*;
use crate::event::{EventId, Payload, Way};

const LOG: Uuid = Uuid::from_u128(0x08e1_dd69_c531_49c0_9c96_4ae6_a69a_ff3b);
const REFUSED: Stamp = Stamp { wall_us: 1_772_366_400_000_000, boot_us: 9, clock_trusted: true };
const EVENT: Event<'static> = Event {
    id: EventId::Generated([7; 16]),
    kind: "reading",
    source_type: "thermometer",
    source_id: "t \"1\"\\ü",
    timestamp: Some("2026-03-01T12:00:00+01:00"),
    received: Stamp { wall_us: 1_772_366_300_000_000, boot_us: 7, clock_trusted: false },
    payload: Payload::Json("{\"c\":\n21.50}"),
    way: Way::USUAL,
};

fn letter(seq: u64) -> Letter<'static> {
    Letter {
        event: &EVENT,
        seq: Seq(seq),
        epoch: 3,
        agent: "gateway-17",
        log: LOG,
        topic: "readings",
        reason: "Broker: Message size too large",
        code: 10,
        attempts: 2,
        refused_at: REFUSED,
    }
}

struct Bench {
    home: tempfile::TempDir,
    bytes_max: u64,
}

impl Bench {
    fn new(bytes_max: u64) -> Self {
        Self { home: tempfile::tempdir().unwrap(), bytes_max }
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("data/dead-letters")
    }

    /// A start of the agent.
    fn open(&self) -> Store {
        Store::open(Options { dir: self.dir(), bytes_max: self.bytes_max })
    }

    fn folder(&self) -> Folder {
        Folder::at(&self.dir())
    }

    fn path(&self, seq: u64) -> PathBuf {
        self.dir().join(name(seq).file_name())
    }

    fn read(&self, seq: u64) -> Result<Stored, Unreadable> {
        self.folder().read(name(seq)).unwrap().expect("it is there")
    }

    fn seqs(&self) -> Vec<u64> {
        self.folder().entries().unwrap().iter().map(|entry| entry.name.seq.0).collect()
    }
}

fn name(seq: u64) -> Name {
    Name { log: LOG, seq: Seq(seq) }
}

const NEW_ONE: Put = Put { is_new: true, evicted: 0 };

#[test]
fn a_letter_comes_back_as_it_was_put() {
    let bench = Bench::new(1 << 20);
    let mut store = bench.open();
    assert!(!bench.dir().exists(), "made with the first letter only");
    assert_eq!(bench.seqs(), [0; 0]);
    let bytes: Vec<u8> = (0..=255).collect();
    let given =
        Event { id: EventId::Given("e-1"), timestamp: None, payload: Payload::Bytes(&bytes), ..EVENT };
    let empty = Event { payload: Payload::Bytes(&[]), ..given };
    for (seq, event) in [(1, EVENT), (2, given), (3, empty)] {
        assert_eq!(store.put(&Letter { event: &event, ..letter(seq) }).unwrap(), NEW_ONE);
        let stored = bench.read(seq).unwrap();
        let mut space = [0; 36];
        assert_eq!(stored.event(), Event { id: EventId::Given(event.id.text(&mut space)), ..event });
        let head = &stored.head;
        assert_eq!((head.log, head.epoch, head.seq, &*head.agent), (LOG, 3, Seq(seq), "gateway-17"));
        assert_eq!((&*head.topic, &*head.reason), ("readings", "Broker: Message size too large"));
        assert_eq!((head.code, head.attempts, head.refused), (10, 2, REFUSED));
    }
    assert_eq!(bench.seqs(), [1, 2, 3]);
    assert_eq!(fs::read_dir(bench.dir()).unwrap().count(), 3);
    let text = fs::read_to_string(bench.path(1)).unwrap();
    assert!(text.starts_with("fieldpost letter 1 ") && text.ends_with("\n{\"c\":\n21.50}"), "{text}");
}

#[test]
fn a_letter_that_is_put_again_stays_as_it_is() {
    let bench = Bench::new(1 << 20);
    assert_eq!(bench.open().put(&letter(5)).unwrap(), NEW_ONE);
    let before = fs::read(bench.path(5)).unwrap();
    let again = Letter { attempts: 9, reason: "another", ..letter(5) };
    let mut store = bench.open();
    for _ in 0..2 {
        assert_eq!(store.put(&again).unwrap(), Put { is_new: false, evicted: 0 });
    }
    assert_eq!(fs::read(bench.path(5)).unwrap(), before);
    // The same position of another buffer is another letter.
    let other = Letter { log: Uuid::from_u128(1), ..letter(5) };
    assert_eq!(store.put(&other).unwrap(), NEW_ONE);
    assert_eq!(bench.seqs(), [5, 5]);
}

/// Killed at every byte of the file and before the rename: what is left is never taken for a letter, and the next start
/// puts it.
#[test]
fn a_crash_while_a_letter_is_written_leaves_no_letter() {
    let bench = Bench::new(1 << 20);
    bench.open().put(&letter(1)).unwrap();
    let whole = fs::read(bench.path(1)).unwrap();
    for cut in 0..=whole.len() {
        fs::remove_file(bench.path(1)).unwrap();
        fs::write(bench.dir().join(NEW), &whole[..cut]).unwrap();
        assert_eq!(bench.seqs(), [0; 0]);
        let mut store = bench.open();
        assert!(!bench.dir().join(NEW).exists());
        assert_eq!(store.put(&letter(1)).unwrap(), NEW_ONE);
        assert_eq!(fs::read(bench.path(1)).unwrap(), whole);
    }
}

/// Tells which calls a put makes, and refuses the one at `end` and all behind it, as if the power had gone.
#[derive(Debug, Default)]
struct Script {
    calls: Arc<Mutex<Vec<String>>>,
    end: Option<usize>,
}

impl Script {
    fn call(&self, what: &str, path: &Path) -> io::Result<()> {
        let mut calls = self.calls.lock().unwrap();
        calls.push(format!("{what} {}", path.file_name().unwrap().to_string_lossy()));
        if self.end.is_some_and(|end| calls.len() > end) {
            Err(io::Error::other("the power is gone"))
        } else {
            Ok(())
        }
    }
}

impl Disk for Script {
    fn sync_file(&mut self, file: &File) -> io::Result<()> {
        assert!(file.metadata()?.len() > 0, "synced before it was written");
        self.call("sync", Path::new(NEW)).and_then(|()| System.sync_file(file))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename", from).and_then(|()| System.rename(from, to))
    }

    fn sync_folder(&mut self, dir: &Path) -> io::Result<()> {
        self.call("sync", dir).and_then(|()| System.sync_folder(dir))
    }
}

/// The order on which durability rests: content, name, the folder's names; and at a start first the folder's own name.
#[test]
fn every_put_syncs_what_it_answers_for_in_order() {
    let bench = Bench::new(1 << 20);
    let script = Script::default();
    let calls = Arc::clone(&script.calls);
    let options = Options { dir: bench.dir(), bytes_max: 1 << 20 };
    let mut store = Store::on(Box::new(script), options);
    let mut put = |seq| {
        store.put(&letter(seq)).unwrap();
        std::mem::take(&mut *calls.lock().unwrap())
    };
    assert_eq!(put(1), ["sync data", "sync NEW", "rename NEW", "sync dead-letters"]);
    assert_eq!(put(2), ["sync NEW", "rename NEW", "sync dead-letters"]);
    assert_eq!(put(1), ["sync dead-letters"], "the one before may have been killed in front of this sync");
    fs::remove_dir_all(bench.dir()).unwrap();
    assert_eq!(put(2), ["sync data", "sync NEW", "rename NEW", "sync dead-letters"]);
}

/// The end comes at each step: no answer, no half letter, and the next start puts it.
#[test]
fn an_end_at_any_step_is_made_good_by_the_next_put() {
    for end in 0..4 {
        let bench = Bench::new(4096);
        bench.open().put(&letter(1)).unwrap();
        let options = Options { dir: bench.dir(), bytes_max: 4096 };
        let script = Script { end: Some(end), ..Script::default() };
        Store::on(Box::new(script), options).put(&letter(2)).unwrap_err();
        let there = bench.seqs();
        assert_eq!(
            there,
            if end < 3 { vec![1] } else { vec![1, 2] },
            "step {end}: nothing is given up for it"
        );
        assert!(there.iter().all(|seq| bench.read(*seq).is_ok()));
        assert_eq!(bench.open().put(&letter(2)).unwrap(), Put { is_new: end < 3, evicted: 1 });
        assert_eq!(bench.seqs(), [2]);
    }
}

/// Killed after the rename, before room was made: the event is still in the buffer and is put again.
#[test]
fn a_crash_behind_the_rename_is_made_good_by_the_next_put() {
    let bench = Bench::new(8192);
    let mut unbounded = Store::open(Options { dir: bench.dir(), bytes_max: 1 << 20 });
    for seq in 1..=3 {
        unbounded.put(&letter(seq)).unwrap();
    }
    assert_eq!(bench.open().put(&letter(3)).unwrap(), Put { is_new: false, evicted: 1 });
    assert_eq!(bench.seqs(), [2, 3]);
}

#[test]
fn a_letter_that_cannot_be_written_costs_no_other() {
    let bench = Bench::new(8192);
    let mut store = bench.open();
    store.put(&letter(1)).unwrap();
    store.put(&letter(2)).unwrap();
    // A rename onto a folder fails as a full or broken disk would.
    fs::create_dir(bench.path(3)).unwrap();
    let error = store.put(&letter(3)).unwrap_err();
    assert_eq!(error.class(), Class::Retry);
    assert!(error.to_string().contains("dead-letters/"), "{error}");
    assert_eq!(bench.seqs(), [1, 2]);
    assert!(!bench.dir().join(NEW).exists(), "its space is given back");
    fs::remove_dir(bench.path(3)).unwrap();
    assert_eq!(store.put(&letter(3)).unwrap(), Put { is_new: true, evicted: 1 });
}

#[test]
fn the_oldest_go_at_the_limit_and_are_counted() {
    let bench = Bench::new(4 * 4096);
    let mut store = bench.open();
    let evicted: Vec<u64> = (1..=9).map(|seq| store.put(&letter(seq)).unwrap().evicted).collect();
    assert_eq!(evicted, [0, 0, 0, 0, 1, 1, 1, 1, 1]);
    assert_eq!(bench.seqs(), [6, 7, 8, 9]);
    // A large one takes the place of several, and one that is larger than everything stays alone.
    let large = "x".repeat(7000);
    let large = Event { payload: Payload::Bytes(large.as_bytes()), ..EVENT };
    assert_eq!(store.put(&Letter { event: &large, ..letter(10) }).unwrap().evicted, 2);
    assert_eq!(bench.seqs(), [8, 9, 10]);
    let huge = vec![0; 20_000];
    let huge = Event { payload: Payload::Bytes(&huge), ..EVENT };
    assert_eq!(store.put(&Letter { event: &huge, ..letter(11) }).unwrap().evicted, 3);
    assert_eq!(bench.seqs(), [11]);
    // What a command took away makes room without costing anything.
    store.put(&letter(12)).unwrap();
    assert_eq!(bench.seqs(), [12]);
    for seq in 13..=15 {
        store.put(&letter(seq)).unwrap();
    }
    assert!(bench.folder().remove(name(14)).unwrap());
    assert_eq!(store.put(&letter(16)).unwrap(), NEW_ONE);
    assert_eq!(bench.seqs(), [12, 13, 15, 16]);
    assert!(!bench.folder().remove(name(14)).unwrap());
}

#[test]
fn a_buffer_that_begins_anew_does_not_make_its_letters_the_oldest() {
    let bench = Bench::new(3 * 4096);
    let mut store = bench.open();
    let second = Uuid::from_u128(1);
    store.put(&letter(1000)).unwrap();
    store.put(&letter(1001)).unwrap();
    let earlier = SystemTime::now() - std::time::Duration::from_secs(60);
    for seq in [1000, 1001] {
        fs::File::options().write(true).open(bench.path(seq)).unwrap().set_modified(earlier).unwrap();
    }
    for seq in [1, 2] {
        store.put(&Letter { log: second, ..letter(seq) }).unwrap();
    }
    assert_eq!(bench.seqs(), [1001, 1, 2]);
}

#[test]
fn any_changed_or_missing_byte_is_noticed_and_put_right_by_the_next_put() {
    let bench = Bench::new(1 << 20);
    let mut store = bench.open();
    store.put(&letter(1)).unwrap();
    store.put(&letter(2)).unwrap();
    let whole = fs::read(bench.path(1)).unwrap();
    let is_damaged = |bytes: &[u8]| {
        fs::write(bench.path(1), bytes).unwrap();
        bench.read(1).is_err()
    };
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(is_damaged(&changed), "byte {at}");
        assert!(is_damaged(&whole[..at]), "cut at {at}");
    }
    assert!(is_damaged(&[&whole[..], b" "].concat()));
    assert!(is_damaged(&fs::read(bench.path(2)).unwrap()), "another letter under this name");
    let no_json = Event { payload: Payload::Json("{"), ..EVENT };
    store.put(&Letter { event: &no_json, ..letter(3) }).unwrap();
    assert_eq!(bench.read(3), Err(Unreadable::Damaged("its payload is not JSON")));
    assert!(bench.folder().remove(name(3)).unwrap());
    assert_eq!((bench.seqs(), bench.read(2).is_ok()), (vec![1, 2], true));
    assert_eq!(store.put(&letter(1)).unwrap(), NEW_ONE);
    assert_eq!(fs::read(bench.path(1)).unwrap(), whole);
}

#[test]
fn a_letter_of_a_later_version_is_known_for_what_it_is_and_kept() {
    let bench = Bench::new(1 << 20);
    let mut store = bench.open();
    store.put(&letter(1)).unwrap();
    fs::write(bench.path(1), "fieldpost letter 2 something else\n").unwrap();
    assert_eq!(bench.read(1), Err(Unreadable::Newer(2)));
    assert!(!store.put(&letter(1)).unwrap().is_new);
    assert_eq!(bench.read(1), Err(Unreadable::Newer(2)));
}

#[test]
fn a_reason_is_cut_and_strange_files_are_passed_over() {
    let bench = Bench::new(1 << 20);
    let reason = "ü".repeat(5000);
    bench.open().put(&Letter { reason: &reason, ..letter(1) }).unwrap();
    assert_eq!(bench.read(1).unwrap().head.reason, "ü".repeat(512));
    for strange in ["1-x.letter", "README", &format!("1-{LOG}.letter"), &format!("{:020}-{LOG}", 1)] {
        fs::write(bench.dir().join(strange), "x").unwrap();
    }
    assert_eq!(bench.seqs(), [1]);
}

#[test]
fn something_else_in_the_way_is_told() {
    let bench = Bench::new(1 << 20);
    fs::create_dir(bench.home.path().join("data")).unwrap();
    fs::write(bench.dir(), "").unwrap();
    let error = bench.open().put(&letter(1)).unwrap_err();
    assert!(error.to_string().contains("dead-letters"), "{error}");
}
