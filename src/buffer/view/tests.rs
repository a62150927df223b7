//! On directories that the real buffer made.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::buffer::ledger::Reason;
use crate::buffer::{Batch, Buffer, Options, Run, Terms, Wait, WhenFull, WriterThread};
use crate::event::{Event, EventId, Payload, Way};

const BOOT: [u8; 16] = [1; 16];

/// Events so large that some hundreds fill a generation, and two a block.
const PAYLOAD_BYTES: usize = 3400;

struct Home {
    dir: tempfile::TempDir,
    options: Options,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // So that a generation is of half a megabyte.
        let options = Options { bytes_max: 64 << 20, ..Options::new(dir.path()) };
        Self { dir, options }
    }

    fn place(&self) -> Place {
        Place { dir: self.options.dir.clone(), ledger: self.options.ledger.clone() }
    }

    fn open(&self) -> (Buffer, WriterThread) {
        Buffer::open(&self.options, BOOT, Arc::default()).unwrap()
    }

    fn view(&self) -> View {
        View::of(&self.place()).unwrap()
    }

    /// A buffer that was closed in order, with `count` events of which `cursor` are confirmed.
    async fn filled(&self, count: u64, cursor: u64) {
        let (buffer, thread) = self.open();
        append(&buffer, 1, count).await;
        buffer.commit_durable(Seq(cursor)).await.unwrap();
        close(buffer, thread).await;
    }

    fn folder(&self, number: usize) -> PathBuf {
        let view = self.view();
        self.options.dir.join(&view.folders[number].name)
    }

    /// Names and sizes of everything in the data directory, to see that nothing is touched.
    fn listing(&self) -> BTreeMap<PathBuf, u64> {
        fn below(dir: &Path, all: &mut BTreeMap<PathBuf, u64>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    below(&path, all)
                } else {
                    all.insert(path.clone(), fs::metadata(&path).unwrap().len());
                }
            }
        }
        let mut all = BTreeMap::new();
        below(self.dir.path(), &mut all);
        all
    }
}

async fn close(buffer: Buffer, thread: WriterThread) {
    buffer.close().await;
    thread.ended().await.unwrap();
}

async fn append(buffer: &Buffer, from: u64, count: u64) {
    let mut at = from;
    while at < from + count {
        let mut batch = Batch::new();
        batch.set_terms(Terms { when_full: WhenFull::Reject, priority: 0 });
        for n in at..(at + 20).min(from + count) {
            let mut rng = fastrand::Rng::with_seed(n);
            let payload: String = (0..PAYLOAD_BYTES).map(|_| rng.alphanumeric()).collect();
            let received = Stamp {
                wall_us: i64::try_from(n).unwrap() * 1_000_000,
                boot_us: n * 1_000_000,
                clock_trusted: true,
            };
            let id = n.to_string();
            let event = Event {
                id: EventId::Given(&id),
                kind: "reading",
                source_type: "meter",
                source_id: "m-1",
                timestamp: None,
                received,
                payload: Payload::Json(&format!("\"{payload}\"")),
                way: Way::USUAL,
            };
            batch.push(&event, usize::MAX).unwrap();
        }
        at += batch.len() as u64;
        buffer.append(batch, Wait::Forever).await.unwrap();
    }
}

fn ids(mut walk: Walk<'_>) -> (Vec<u64>, Missing) {
    let mut ids = Vec::new();
    while let Some(run) = walk.next().unwrap() {
        for (seq, _, event) in run.events() {
            assert_eq!(event.id, EventId::Given(&seq.0.to_string()));
            ids.push(seq.0);
        }
    }
    (ids, walk.missing().clone())
}

/// Overwrites a byte in the middle of each of a folder's blocks that `is_hit` picks by position.
fn damage(folder: &Path, is_hit: impl Fn(u64) -> bool) -> Vec<u64> {
    let path = folder.join(BLOCKS);
    let mut bytes = fs::read(&path).unwrap();
    let mut hits = BTreeMap::new();
    crate::buffer::scan::scan(&bytes.clone(), |offset, block| {
        if block.kind == crate::buffer::block::Kind::Events && is_hit(block.first.0) {
            let at = usize::try_from(offset).unwrap() + block.bytes() / 2;
            bytes[at] ^= 1;
            hits.extend((block.first.0..=block.last().0).map(|seq| (seq, ())));
        }
    })
    .unwrap();
    fs::write(&path, bytes).unwrap();
    hits.into_keys().collect()
}

#[tokio::test]
async fn what_waits_is_told_and_nothing_is_touched() {
    let home = Home::new();
    assert!(matches!(View::of(&home.place()), Err(ViewError::Missing(_))));
    assert!(!home.options.dir.exists());
    home.filled(1500, 700).await;
    let before = home.listing();
    let view = home.view();
    assert_eq!((view.cursor, view.durable, view.acknowledged), (Seq(700), Seq(1500), Seq(1500)));
    assert_eq!((view.waiting(), view.owner, view.epoch), (800, Owner::Nobody, 1));
    assert_eq!(view.ledger.as_ref().map(Entries::len), Some(0));
    assert!(view.folders.len() > 1 && view.folders.iter().all(|f| !f.is_aside && !f.is_spare));
    let now = Stamp { wall_us: 801_000_000, boot_us: 801_000_000, clock_trusted: false };
    let oldest = view.oldest(BOOT, now).unwrap().unwrap();
    assert_eq!((oldest.seq, oldest.age), (Seq(701), Some(Duration::from_secs(100))));
    assert_eq!(view.oldest([2; 16], now).unwrap().unwrap().age, None, "another boot, and no clock to trust");
    assert_eq!(ids(view.walk(view.cursor.next())), ((701..=1500).collect(), Missing::default()));
    assert_eq!(ids(view.walk(Seq(1400))).0, (1400..=1500).collect::<Vec<_>>());
    let report = view.verify(|_| {}).unwrap();
    assert_eq!((report.events, report.missing, report.is_damaged()), (800, 0, false));
    assert_eq!(home.listing(), before);
}

#[tokio::test]
async fn an_empty_buffer_has_nothing_waiting() {
    let home = Home::new();
    home.filled(40, 40).await;
    let view = home.view();
    assert_eq!((view.waiting(), view.cursor, view.durable), (0, Seq(40), Seq(40)));
    let now = Stamp { wall_us: 0, boot_us: 0, clock_trusted: false };
    assert_eq!(view.oldest(BOOT, now).unwrap(), None);
    assert!(!view.verify(|_| {}).unwrap().is_damaged());
}

#[tokio::test]
async fn damage_is_found_where_it_is() {
    let home = Home::new();
    home.filled(1500, 100).await;
    let report = home.view().verify(|_| {}).unwrap();
    assert_eq!((report.events, report.missing), (1400, 0));
    let hits = damage(&home.folder(0), |seq| (300..310).contains(&seq));
    assert!(hits.len() >= 10, "{hits:?}");
    let view = home.view();
    let mut damaged = Vec::new();
    let report =
        view.verify(|folder| damaged.extend(folder.is_damaged().then(|| folder.name.clone()))).unwrap();
    assert_eq!(
        (report.missing, report.counted, report.events),
        (hits.len() as u64, 0, 1400 - hits.len() as u64)
    );
    assert_eq!(report.holes, [(Seq(hits[0]), Seq(*hits.last().unwrap()))]);
    assert_eq!(damaged, [view.folders[0].name.clone()]);
    let (found, missing) = ids(view.walk(Seq(101)));
    assert_eq!(found, (101..=1500).filter(|seq| !hits.contains(seq)).collect::<Vec<_>>());
    assert_eq!((missing.events, missing.first), (hits.len() as u64, Some(Seq(hits[0]))));

    // An agent that reads it counts the same, and sets the folder aside; both is seen.
    let (buffer, thread) = home.open();
    buffer.read(Seq(100), usize::MAX, Run::default()).await.unwrap();
    close(buffer, thread).await;
    let view = home.view();
    assert!(view.folders[0].is_aside, "{:?}", view.folders);
    assert_eq!(view.ledger.as_ref().unwrap()[&Reason::Corrupt].events, hits.len() as u64);
    assert_eq!(view.waiting(), 1400 - hits.len() as u64);
    let again = view.verify(|_| {}).unwrap();
    assert_eq!((again.missing, again.counted), (hits.len() as u64, hits.len() as u64));
    assert_eq!(ids(view.walk(Seq(101))).0, found);
}

#[tokio::test]
async fn a_generation_that_is_gone_is_missed() {
    for number in 0..3 {
        let home = Home::new();
        home.filled(4500, 0).await;
        let view = home.view();
        assert!(view.folders.len() > 3);
        let Folder { first, bound, .. } = view.folders[number].clone();
        fs::remove_dir_all(home.folder(number)).unwrap();
        let view = home.view();
        let report = view.verify(|_| {}).unwrap();
        assert_eq!(report.holes, [(first, bound)]);
        assert_eq!(report.events + report.missing, 4500);
        let (found, missing) = ids(view.walk(Seq(1)));
        assert_eq!((found.len() as u64, missing.events), (report.events, report.missing));
    }
}

#[tokio::test]
async fn a_lost_end_is_missed_and_a_jump_is_not() {
    let home = Home::new();
    home.filled(1500, 10).await;
    let last = home.view().folders.len() - 1;
    let Folder { first, .. } = home.view().folders[last].clone();
    fs::remove_dir_all(home.folder(last)).unwrap();
    let view = home.view();
    assert_eq!((view.durable, view.acknowledged), (first.before(), Seq(1500)));
    assert_eq!(view.verify(|_| {}).unwrap().holes, [(first, Seq(1500))]);
    // The agent counts them and goes on far behind.
    let (buffer, thread) = home.open();
    let durable = buffer.durable().borrow().0;
    assert!(durable > 1500, "{durable}");
    append(&buffer, durable + 1, 5).await;
    close(buffer, thread).await;
    let view = home.view();
    assert_eq!(view.waiting(), first.0 - 11 + 5);
    assert_eq!(view.ledger.as_ref().unwrap()[&Reason::Corrupt].events, 1501 - first.0);
    let mut wanted: Vec<u64> = (11..first.0).collect();
    wanted.extend(durable + 1..=durable + 5);
    assert_eq!(ids(view.walk(Seq(11))).0, wanted);
    assert_eq!(view.verify(|_| {}).unwrap().missing, 0, "what is behind a jump was counted");
}

#[tokio::test]
async fn salvage_reads_copies_and_what_was_delivered() {
    let home = Home::new();
    home.filled(1500, 0).await;
    let folder = home.folder(0);
    let bound = home.view().folders[0].bound.0;
    // Two copies of the first generation, each with another part of it.
    let aside = home.options.dir.join(format!("{:020}.bad", 1));
    let other = home.options.dir.join(format!("{:020}.2.bad", 1));
    for copy in [&aside, &other] {
        fs::create_dir(copy).unwrap();
        fs::copy(folder.join(BLOCKS), copy.join(BLOCKS)).unwrap();
    }
    fs::remove_dir_all(&folder).unwrap();
    let first = damage(&aside, |seq| seq < 200);
    damage(&other, |seq| seq > 100);
    let view = home.view();
    assert_eq!(view.folders.iter().map(|f| f.is_spare).collect::<Vec<_>>()[..2], [false, true]);
    let wanted: Vec<u64> = (1..=1500).filter(|seq| *seq <= 100 || !first.contains(seq)).collect();
    let (found, missing) = ids(view.salvage(Seq(1)));
    assert_eq!((found, missing), (wanted.clone(), Missing::default()));
    // As the agent sees it.
    assert_eq!(ids(view.walk(Seq(1))).1.events, first.len() as u64);

    // Delivered, and still there.
    let (buffer, thread) = home.open();
    buffer.commit_durable(Seq(bound - 10)).await.unwrap();
    close(buffer, thread).await;
    let view = home.view();
    assert_eq!(view.cursor, Seq(bound - 10));
    assert_eq!(ids(view.salvage(Seq(1))).0, wanted);
    assert_eq!(ids(view.walk(view.cursor.next())).0, (bound - 9..=1500).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_replacement_that_is_not_in_place_yet_counts() {
    let home = Home::new();
    home.filled(1500, 0).await;
    let view = home.view();
    let (first, second) = (view.folders[0].clone(), view.folders[1].clone());
    // As it is after a crash between writing the replacement and bringing it in.
    let new = home.options.dir.join(format!("{:020}.new", 1));
    fs::create_dir(&new).unwrap();
    let both = [first.path.join(BLOCKS), second.path.join(BLOCKS)].map(|path| fs::read(path).unwrap());
    fs::write(new.join(BLOCKS), both.concat()).unwrap();
    fs::remove_dir_all(&first.path).unwrap();
    let text = fs::read_to_string(&home.options.ledger).unwrap();
    let replacement = format!("\"replacement\":{{\"first\":1,\"last\":{}}}", second.bound);
    assert!(text.contains("\"replacement\":null"), "{text}");
    fs::write(&home.options.ledger, text.replace("\"replacement\":null", &replacement)).unwrap();
    let view = home.view();
    assert_eq!(view.folders[0].name, format!("{:020}.new", 1));
    assert_eq!(ids(view.walk(Seq(1))), ((1..=1500).collect(), Missing::default()));
    assert!(!view.verify(|_| {}).unwrap().is_damaged());
}

/// What a writer does at the same time never looks like damage, and what was acknowledged before is served.
#[tokio::test]
async fn an_agent_at_work_is_not_damage() {
    let home = Home::new();
    let (buffer, thread) = home.open();
    append(&buffer, 1, 100).await;
    let place = home.place();
    let is_done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let looks = std::thread::spawn({
        let is_done = Arc::clone(&is_done);
        move || {
            let mut looks = 0;
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) || looks < 3 {
                let view = View::of(&place).unwrap();
                assert!(view.is_open());
                let report = view.verify(|_| {}).unwrap();
                assert_eq!(report.missing, 0, "{report:?}");
                let (found, missing) = ids(view.walk(view.cursor.next()));
                assert_eq!(missing, Missing::default(), "{view:?}");
                assert!(found.is_sorted(), "{found:?}");
                let waits = view.cursor_now().0 + 1..=view.durable.0;
                assert!(waits.clone().all(|seq| found.binary_search(&seq).is_ok()), "{waits:?} {found:?}");
                looks += 1;
            }
            looks
        }
    });
    for n in 1..40 {
        append(&buffer, n * 100 + 1, 100).await;
        buffer.commit_durable(Seq(n * 100 - 50)).await.unwrap();
    }
    is_done.store(true, std::sync::atomic::Ordering::Relaxed);
    let looks = looks.join().unwrap();
    eprintln!("{looks} looks");
    close(buffer, thread).await;
}

#[tokio::test]
async fn a_purge_is_counted_before_it_is_gone() {
    let home = Home::new();
    home.filled(1500, 100).await;
    let hits = damage(&home.folder(0), |seq| (300..310).contains(&seq));
    let (buffer, thread) = home.open();
    let ranges = vec![(Seq(101), Seq(hits[0] - 1)), (Seq(hits[hits.len() - 1] + 1), Seq(1200))];
    buffer.read(Seq(100), usize::MAX, Run::default()).await.unwrap();
    let purged = buffer.purge(ranges.clone(), Seq(1200)).await.unwrap();
    assert_eq!(purged, 1100 - hits.len() as u64);
    assert_eq!(buffer.purge(ranges.clone(), Seq(1200)).await.unwrap(), 0);
    close(buffer, thread).await;
    let view = home.view();
    assert_eq!((view.cursor, view.waiting()), (Seq(1200), 300));
    let ledger = view.ledger.as_ref().unwrap();
    assert_eq!((ledger[&Reason::Purged].events, &ledger[&Reason::Purged].ranges), (purged, &ranges));
    assert_eq!(ledger[&Reason::Corrupt].events, hits.len() as u64);
    assert_eq!(ids(view.walk(view.cursor.next())).0, (1201..=1500).collect::<Vec<_>>());

    // Without the ledger nothing goes.
    let (buffer, thread) = home.open();
    fs::create_dir(home.options.ledger.with_extension("new")).unwrap();
    buffer.purge(vec![(Seq(1201), Seq(1300))], Seq(1300)).await.unwrap_err();
    assert_eq!(buffer.figures().cursor, Seq(1200));
    fs::remove_dir(home.options.ledger.with_extension("new")).unwrap();
    close(buffer, thread).await;
    let view = home.view();
    assert_eq!((view.cursor, view.ledger.unwrap()[&Reason::Purged].events), (Seq(1200), purged));
}

#[tokio::test]
async fn what_was_delivered_ahead_does_not_wait_and_is_not_missed() {
    let home = Home::new();
    let (buffer, thread) = home.open();
    append(&buffer, 1, 1500).await;
    let lanes = Lanes { ahead: vec![(Seq(308), Seq(1100))], live_from: Seq(1301), claimed: Seq(1500) };
    buffer.commit_durable(Seq(100)).await.unwrap();
    buffer.set_lanes(lanes.clone()).await.unwrap();
    close(buffer, thread).await;
    let view = home.view();
    assert_eq!((view.lanes.as_ref(), view.waiting(), view.backlog()), (Some(&lanes), 607, Some(407)));
    let wanted: Vec<u64> = (101..=307).chain(1101..=1500).collect();
    assert_eq!(ids(view.walk(view.cursor.next())), (wanted.clone(), Missing::default()));
    assert_eq!(ids(view.walk(Seq(700))).0, wanted[207..]);
    let salvaged = ids(view.salvage(Seq(101))).0;
    assert_eq!(salvaged, (101..=1500).collect::<Vec<_>>(), "whatever is there");
    let report = view.verify(|_| {}).unwrap();
    assert_eq!((report.events, report.missing, view.are_lanes_damaged), (607, 0, false));

    // Damage in the midst of it costs nothing, at its edges what waits there.
    let folders: Vec<PathBuf> = (0..view.folders.len()).map(|number| home.folder(number)).collect();
    let hit: Vec<u64> =
        folders.iter().flat_map(|folder| damage(folder, |seq| (290..1120).contains(&seq))).collect();
    let view = home.view();
    let kept: Vec<u64> = wanted.iter().copied().filter(|seq| !hit.contains(seq)).collect();
    let (found, missing) = ids(view.walk(view.cursor.next()));
    assert_eq!((&found, missing.events), (&kept, (wanted.len() - kept.len()) as u64));
    assert!(missing.events > 0 && missing.events < 60, "{missing:?}");
    let report = view.verify(|_| {}).unwrap();
    assert_eq!((report.events, report.missing), (found.len() as u64, missing.events));

    // Without LANES nobody knows.
    fs::write(home.options.dir.join("LANES"), [0xff; 8192]).unwrap();
    let view = home.view();
    assert!(view.are_lanes_damaged && view.lanes.is_none());
    assert_eq!((view.waiting(), view.backlog()), (1400, None));
}
