//! The handle, on the real store and on one whose failures and syncs are scripted.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "small numbers of a test"
)]

mod lanes;

use super::memory::{Cut, MemoryShelf};
use super::*;
use crate::event::{Event, EventId, Payload, Stamp, Way};

const BOOT: [u8; 16] = [1; 16];

/// Longer than [`at_once`] waits.
const LONG: Wait = Wait::AtMost(Duration::from_secs(600));

/// The answer, which must not take until the end of a [`LONG`] wait.
async fn at_once<T>(answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), answer).await.expect("it is answered at once")
}

fn options(dir: &Path) -> Options {
    Options { bytes_max: 64 * 1024 * 1024, ..Options::new(dir) }
}

fn open(options: &Options) -> (Buffer, WriterThread) {
    Buffer::open(options, BOOT, Arc::default()).unwrap()
}

async fn close(buffer: Buffer, thread: WriterThread) {
    buffer.close().await;
    thread.ended().await.unwrap();
}

fn batch(from: u64, count: u64, payload: &str) -> Batch {
    batch_on(WhenFull::Block, from, count, payload)
}

fn batch_on(when_full: WhenFull, from: u64, count: u64, payload: &str) -> Batch {
    batch_of(Terms { when_full, priority: 0 }, from, count, payload)
}

fn batch_of(terms: Terms, from: u64, count: u64, payload: &str) -> Batch {
    let mut batch = Batch::new();
    batch.set_terms(terms);
    for n in from..from + count {
        push(&mut batch, n, RECEIVED, payload);
    }
    batch
}

const RECEIVED: Stamp = Stamp { wall_us: 1, boot_us: 2, clock_trusted: true };

fn push(batch: &mut Batch, id: u64, received: Stamp, payload: &str) {
    let id = id.to_string();
    let event = Event {
        id: EventId::Given(&id),
        kind: "reading",
        source_type: "meter",
        source_id: "m-1",
        timestamp: None,
        received,
        payload: Payload::Json(payload),
        way: Way::USUAL,
    };
    batch.push(&event, usize::MAX).unwrap();
}

async fn read_ids(buffer: &Buffer, mut after: Seq) -> Vec<u64> {
    let mut ids = Vec::new();
    let durable = *buffer.durable().borrow();
    while after < durable {
        let run = buffer.read(after, 100_000, Run::default()).await.unwrap();
        for (_, _, event) in run.events() {
            ids.push(event.id.text(&mut [0; 36]).parse().unwrap());
        }
        assert!(run.end() > after);
        after = run.end();
    }
    ids
}

#[tokio::test]
async fn what_was_appended_is_there_after_a_restart_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, thread) = open(&options(dir.path()));
    let large = format!("\"{}\"", "x".repeat(100_000));
    let mut next = 1;
    for count in [1, 100, 1, 1000] {
        let payload = if count == 1 { large.as_str() } else { "{\"v\":1}" };
        let appended = buffer.append(batch(next, count, payload), Wait::Forever).await.unwrap();
        assert_eq!(appended.first, Seq(next));
        next += count;
    }
    assert_eq!(read_ids(&buffer, Seq(0)).await, (1..next).collect::<Vec<_>>());
    buffer.commit_durable(Seq(50)).await.unwrap();
    close(buffer, thread).await;

    let (buffer, thread) = open(&options(dir.path()));
    assert_eq!(buffer.figures().cursor, Seq(50));
    assert_eq!(buffer.log().epoch, 2);
    assert_eq!(read_ids(&buffer, Seq(50)).await, (51..next).collect::<Vec<_>>());
    let appended = buffer.append(batch(next, 1, "1"), Wait::Forever).await.unwrap();
    assert_eq!(appended.first, Seq(next));
    close(buffer, thread).await;
}

#[tokio::test]
async fn reading_begins_anywhere_in_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, thread) = open(&options(dir.path()));
    // The first is a block of its own, in several pieces; the others are some hundred to a block.
    buffer.append(batch(1, 1, &noise(1, 20_000)), LONG).await.unwrap();
    buffer.append(batch(2, 2_000, "1"), LONG).await.unwrap();
    let mut blocks = std::collections::BTreeSet::new();
    for after in 0..2_001 {
        let run = buffer.read(Seq(after), 1, Run::default()).await.unwrap();
        let ids: Vec<String> =
            run.events().map(|(_, _, event)| event.id.text(&mut [0; 36]).to_owned()).collect();
        assert_eq!(ids.first(), Some(&(after + 1).to_string()));
        blocks.insert(run.end());
    }
    assert!((4..40).contains(&blocks.len()), "{blocks:?}");
    close(buffer, thread).await;
}

#[tokio::test]
async fn space_comes_back_behind_the_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, thread) = open(&options(dir.path()));
    let mut rng = fastrand::Rng::with_seed(3);
    let noise: String = (0..1000).map(|_| rng.alphanumeric()).collect();
    let mut next = 1;
    for _ in 0..30 {
        buffer.append(batch(next, 1000, &format!("\"{noise}\"")), Wait::Forever).await.unwrap();
        next += 1000;
    }

    for _ in 0..300 {
        let payload: String = (0..7000).map(|_| rng.alphanumeric()).collect();
        buffer.append(batch(next, 10, &format!("\"{payload}\"")), Wait::Forever).await.unwrap();
        next += 10;
    }
    let full = buffer.figures();
    assert!(full.generations > 2, "{full:?}");
    buffer.commit_durable(Seq(next - 1)).await.unwrap();
    let empty = buffer.figures();
    assert_eq!(empty.generations, 1);
    assert!(empty.disk_bytes <= 12 * 1024 * 1024, "one generation and the reserve: {empty:?}");
    close(buffer, thread).await;
}

/// A buffer on a scripted shelf.
struct Bench {
    _dir: tempfile::TempDir,
    shelf: MemoryShelf,
    options: Options,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        Self { _dir: dir, shelf: MemoryShelf::new(Cut::Any, 9), options }
    }

    /// Room for a few megabytes.
    fn small() -> Self {
        let mut bench = Self::new();
        bench.options.bytes_max = 6 * 1024 * 1024;
        bench
    }

    fn open(&self) -> (Buffer, WriterThread) {
        std::fs::create_dir_all(&self.options.dir).unwrap();
        let lock = identity::Lock::take(&self.options.dir).unwrap();
        Buffer::open_on(self.shelf.clone(), &self.options, BOOT, Arc::default(), lock).unwrap()
    }
}

/// Appends as often as it is refused: while nothing can be written that is at once.
async fn until_taken(buffer: &Buffer, batch: &Batch) -> Appended {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match buffer.append(batch.clone(), Wait::AtMost(Duration::from_secs(5))).await {
            Ok(appended) => return appended,
            Err(refused) => assert!(Instant::now() < deadline, "{refused}"),
        }
    }
}

fn noise(seed: u64, bytes: usize) -> String {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| rng.alphanumeric()).collect()
}

/// Appends until there is no room; answers the number of events.
async fn fill(buffer: &Buffer) -> u64 {
    for n in 1.. {
        match buffer.append(batch_on(WhenFull::Reject, n, 1, &noise(n, 100_000)), LONG).await {
            Ok(appended) => assert_eq!(appended.first, Seq(n)),
            Err(refused) => {
                assert_eq!(refused.reason, AppendError::Full);
                return n - 1;
            }
        }
    }
    unreachable!()
}

/// Starts an append and returns once the writer has it, unless the writer is held.
async fn started(
    buffer: &Buffer,
    batch: Batch,
    wait: Wait,
) -> tokio::task::JoinHandle<Result<Appended, Refused>> {
    let task = tokio::spawn({
        let buffer = buffer.clone();
        async move { buffer.append(batch, wait).await }
    });
    // One thread, and nothing in an append waits before it is queued.
    tokio::task::yield_now().await;
    task
}

#[tokio::test]
async fn reject_refuses_at_once_and_gives_the_batch_back() {
    let bench = Bench::small();
    let (buffer, thread) = bench.open();
    let count = fill(&buffer).await;
    assert!(count > 5 && buffer.is_full());
    let large = batch_on(WhenFull::Reject, count + 1, 1, &noise(0, 100_000));
    let refused = at_once(buffer.append(large.clone(), LONG)).await.unwrap_err();
    assert_eq!((refused.reason, refused.batch), (AppendError::Full, Some(large.clone())));
    let refused = at_once(buffer.append(large.clone(), Wait::Forever)).await.unwrap_err();
    assert_eq!(refused.reason, AppendError::Full);
    let held_back = started(&buffer, large, Wait::UntilTaken).await;
    buffer.commit_durable(Seq(0)).await.unwrap();
    assert!(!held_back.is_finished(), "its producer is not told anything else");
    buffer.commit_durable(Seq(count)).await.unwrap();
    assert_eq!(held_back.await.unwrap().unwrap().first, Seq(count + 1));
    assert!(!buffer.is_full());
    close(buffer, thread).await;
}

fn large_on(when_full: WhenFull, priority: u8, n: u64) -> Batch {
    batch_of(Terms { when_full, priority }, n, 1, &noise(n, 100_000))
}

#[tokio::test]
async fn whoever_does_not_wait_is_refused_at_once_behind_one_who_does() {
    let mut bench = Bench::small();
    bench.options.queue_bytes_max = 250_000;
    let (buffer, thread) = bench.open();
    let count = fill(&buffer).await;
    let first = started(&buffer, large_on(WhenFull::Block, 0, count + 1), LONG).await;
    buffer.commit_durable(Seq(0)).await.unwrap();
    for when_full in [WhenFull::Reject, WhenFull::DropOldest] {
        let refused = at_once(buffer.append(large_on(when_full, 9, 0), LONG)).await.unwrap_err();
        assert_eq!(refused.reason, AppendError::Full);
    }
    // The queue itself is full of those who wait.
    let second = started(&buffer, large_on(WhenFull::Block, 0, count + 2), LONG).await;
    let refused = at_once(buffer.append(large_on(WhenFull::Reject, 0, 0), LONG)).await.unwrap_err();
    assert_eq!(refused.reason, AppendError::Full);
    assert!(!first.is_finished() && !second.is_finished());
    buffer.commit(Seq(count));
    assert_eq!(first.await.unwrap().unwrap().first, Seq(count + 1));
    assert_eq!(second.await.unwrap().unwrap().first, Seq(count + 2));
    close(buffer, thread).await;
}

#[tokio::test]
async fn the_first_in_line_goes_by_the_highest_priority_behind_it() {
    let bench = Bench::small();
    let (buffer, thread) = bench.open();
    let mut next = 1;
    while buffer.ledger().is_empty() {
        buffer.append(large_on(WhenFull::DropOldest, 3, next), LONG).await.unwrap();
        next += 1;
    }
    // Enough of them to be in need of room, of which nothing of priority 3 may go for them.
    let mut patient = Vec::new();
    while !buffer.is_full() {
        patient.push(started(&buffer, large_on(WhenFull::Block, 2, next), LONG).await);
        buffer.commit_durable(Seq(0)).await.unwrap();
        next += 1;
    }
    let behind = at_once(buffer.append(large_on(WhenFull::DropOldest, 3, next), LONG)).await;
    let behind = behind.map_err(|refused| refused.reason).unwrap();
    assert_eq!(behind.first, Seq(next));
    for task in patient {
        assert!(task.await.unwrap().unwrap().first < behind.first, "nothing overtakes");
    }
    close(buffer, thread).await;
}

#[tokio::test]
async fn block_waits_for_room_up_to_the_deadline() {
    let bench = Bench::small();
    let (buffer, thread) = bench.open();
    let count = fill(&buffer).await;
    let large = batch(count + 1, 1, &noise(0, 100_000));
    let (start, wait) = (Instant::now(), Duration::from_millis(60));
    let refused = buffer.append(large.clone(), Wait::AtMost(wait)).await.unwrap_err();
    assert_eq!((refused.reason, refused.batch), (AppendError::Full, Some(large)));
    assert!(start.elapsed() >= wait);
    close(buffer, thread).await;
}

#[tokio::test]
async fn block_goes_on_in_order_when_a_commit_makes_room() {
    let bench = Bench::small();
    let (buffer, thread) = bench.open();
    let count = fill(&buffer).await;
    let first = started(&buffer, batch(count + 1, 1, &noise(0, 100_000)), Wait::Forever).await;
    let second = started(&buffer, batch(count + 2, 1, "1"), Wait::AtMost(Duration::from_secs(60))).await;
    assert_eq!(read_ids(&buffer, Seq(count - 1)).await, [count]);
    assert!(!first.is_finished() && !second.is_finished() && buffer.is_full());
    buffer.commit(Seq(count));
    assert_eq!(first.await.unwrap().unwrap().first, Seq(count + 1));
    assert_eq!(second.await.unwrap().unwrap().first, Seq(count + 2));
    close(buffer, thread).await;
}

#[tokio::test]
async fn what_waits_for_the_writer_has_a_limit_in_bytes() {
    let mut bench = Bench::new();
    bench.options.queue_bytes_max = 100_000;
    let (buffer, thread) = bench.open();
    bench.shelf.hold();
    let first = started(&buffer, batch(1, 1, &noise(1, 80_000)), Wait::Forever).await;
    bench.shelf.wait_until_held();
    let large = batch(2, 1, &noise(2, 80_000));
    let refused = buffer.append(large.clone(), Wait::AtMost(Duration::from_millis(20))).await.unwrap_err();
    assert_eq!((refused.reason, refused.batch), (AppendError::TimedOut, Some(large.clone())));
    let second = started(&buffer, large, Wait::Forever).await;
    let small = started(&buffer, batch(3, 1, "1"), Wait::Forever).await;
    bench.shelf.release();
    for (task, seq) in [(first, 1), (second, 2), (small, 3)] {
        assert_eq!(task.await.unwrap().unwrap().first, Seq(seq), "in the order of asking");
    }
    let larger_than_the_queue = batch(4, 1, &noise(3, 300_000));
    assert_eq!(buffer.append(larger_than_the_queue, Wait::Forever).await.unwrap().first, Seq(4));
    close(buffer, thread).await;
}

#[tokio::test]
async fn a_failed_sync_refuses_its_group_and_the_buffer_recovers() {
    let io = || StoreError::Io("scripted".into());
    for seed in 0..20 {
        let bench = Bench { shelf: MemoryShelf::new(Cut::Any, seed), ..Bench::new() };
        let (buffer, thread) = bench.open();
        let mut acked = Vec::new();
        let mut next = 1;
        for round in 0..6_u64 {
            match round {
                1 => bench.shelf.fail_next_sync(io()),
                3 => bench.shelf.fail_next_sync(StoreError::NoSpace("scripted".into())),
                4 => bench.shelf.fail_next_put(io()),
                _ => {}
            }
            let mut tasks = Vec::new();
            for _ in 0..5 {
                tasks.push((next, started(&buffer, batch(next, 3, "1"), Wait::Forever).await));
                next += 3;
            }
            let mut refused = 0;
            for (from, task) in tasks {
                match task.await.unwrap() {
                    Ok(appended) => acked.extend((0..3).map(|n| (appended.first.0 + n, from + n))),
                    Err(Refused { reason: AppendError::Storage(_), batch: Some(_) }) => refused += 1,
                    Err(other) => panic!("{other:?}"),
                }
            }
            assert_eq!(refused > 0, matches!(round, 1 | 3 | 4), "round {round}");
            // The writer opens again on its own; the next failure is to meet a sound buffer.
            let appended = until_taken(&buffer, &batch(next, 1, "1")).await;
            acked.push((appended.first.0, next));
            next += 1;
        }
        drop(buffer);
        thread.ended().await.unwrap();
        bench.shelf.power_cut();
        let (buffer, thread) = bench.open();
        let found = read_ids(&buffer, Seq(0)).await;
        let mut found = found.iter();
        assert!(acked.is_sorted());
        assert!(
            acked.iter().all(|(_, id)| found.any(|it| it == id)),
            "seed {seed}: in order and not missing"
        );
        close(buffer, thread).await;
    }
}

#[tokio::test]
async fn the_commit_interval_gathers_a_group() {
    let mut bench = Bench::new();
    bench.options.commit_interval = Duration::from_millis(300);
    let (buffer, thread) = bench.open();
    buffer.append(batch(1, 1, "1"), Wait::Forever).await.unwrap();
    let (before, start) = (bench.shelf.syncs(), Instant::now());
    let mut tasks = Vec::new();
    for n in 2..22 {
        tasks.push(started(&buffer, batch(n, 1, "1"), Wait::Forever).await);
    }
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(bench.shelf.syncs() - before, 1);
    assert!(start.elapsed() > Duration::from_millis(100));
    // Nobody is held back past the time he gave.
    let hasty = batch(22, 1, "1");
    buffer.append(hasty, Wait::AtMost(Duration::from_millis(10))).await.unwrap();
    assert_eq!(bench.shelf.syncs() - before, 2);
    close(buffer, thread).await;
}

#[tokio::test]
async fn close_answers_what_was_accepted_and_takes_no_more() {
    let bench = Bench::new();
    let (buffer, thread) = bench.open();
    bench.shelf.hold();
    let first = started(&buffer, batch(1, 1, "1"), Wait::Forever).await;
    bench.shelf.wait_until_held();
    let second = started(&buffer, batch(2, 1, "1"), Wait::Forever).await;
    let closing = tokio::spawn({
        let buffer = buffer.clone();
        async move { buffer.close().await }
    });
    tokio::task::yield_now().await;
    let late = batch(3, 1, "1");
    let refused = buffer.append(late.clone(), Wait::Forever).await.unwrap_err();
    assert_eq!((refused.reason, refused.batch), (AppendError::Closed, Some(late)));
    bench.shelf.release();
    assert_eq!(first.await.unwrap().unwrap().first, Seq(1));
    assert_eq!(second.await.unwrap().unwrap().first, Seq(2));
    closing.await.unwrap();
    thread.ended().await.unwrap();
    assert_eq!(buffer.read(Seq(0), 1, Run::default()).await.unwrap_err(), ReadError::Closed);
    buffer.close().await;
    bench.shelf.power_cut();
    let (buffer, _) = bench.open();
    assert_eq!(read_ids(&buffer, Seq(0)).await, [1, 2]);
}

#[tokio::test]
async fn a_commit_that_was_not_waited_for_is_durable_after_close() {
    let bench = Bench::new();
    let (buffer, thread) = bench.open();
    buffer.append(batch(1, 10, "1"), Wait::Forever).await.unwrap();
    for seq in 1..=7 {
        buffer.commit(Seq(seq));
    }
    close(buffer, thread).await;
    bench.shelf.power_cut();
    assert_eq!(bench.open().0.figures().cursor, Seq(7));
}

#[tokio::test]
async fn a_second_owner_is_told_who_the_first_is() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, thread) = open(&options(dir.path()));
    match Buffer::open(&options(dir.path()), BOOT, Arc::default()) {
        Err(OpenError::Locked { owner, .. }) => assert_eq!(owner, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    close(buffer, thread).await;
    open(&options(dir.path()));
}

#[tokio::test]
async fn each_of_many_producers_keeps_its_order() {
    let bench = Bench::new();
    let (buffer, thread) = bench.open();
    let producers = (0..50).map(|producer| {
        let buffer = buffer.clone();
        tokio::spawn(async move {
            for n in 0..20 {
                buffer.append(batch(producer * 1000 + n * 2, 2, "1"), Wait::Forever).await.unwrap();
            }
        })
    });
    for producer in producers.collect::<Vec<_>>() {
        producer.await.unwrap();
    }
    let ids = read_ids(&buffer, Seq(0)).await;
    assert_eq!(ids.len(), 2000);
    for producer in 0..50 {
        let own: Vec<_> = ids.iter().copied().filter(|id| id / 1000 == producer).collect();
        assert_eq!(own, (producer * 1000..producer * 1000 + 40).collect::<Vec<_>>());
    }
    close(buffer, thread).await;
}

#[tokio::test]
async fn an_append_that_is_given_up_harms_nobody() {
    let mut bench = Bench::new();
    bench.options.queue_bytes_max = 10_000;
    let (buffer, thread) = bench.open();
    for round in 0..20 {
        bench.shelf.hold();
        let mut tasks = Vec::new();
        for n in 0..30 {
            tasks.push(started(&buffer, batch(round * 100 + n, 1, &noise(n, 900)), Wait::Forever).await);
        }
        for task in &tasks {
            task.abort();
        }
        bench.shelf.release();
        let id = round * 100 + 99;
        let appended = buffer.append(batch(id, 1, "1"), Wait::Forever).await.unwrap();
        assert_eq!(read_ids(&buffer, appended.first.before()).await, [id]);
    }
    assert!(read_ids(&buffer, Seq(0)).await.is_sorted());
    close(buffer, thread).await;
}

#[tokio::test]
async fn a_dead_writer_is_noticed() {
    let bench = Bench::new();
    let (buffer, thread) = bench.open();
    buffer.append(batch(1, 1, "1"), Wait::Forever).await.unwrap();
    bench.shelf.panic_at_next_put();
    let refused = buffer.append(batch(2, 1, "1"), Wait::Forever).await.unwrap_err();
    assert_eq!(refused.reason, AppendError::Closed);
    assert!(matches!(thread.ended().await, Err(CloseError::Died)));
    let refused = buffer.append(batch(3, 1, "1"), Wait::Forever).await.unwrap_err();
    assert_eq!((refused.reason, refused.batch.is_some()), (AppendError::Closed, true));
    assert_eq!(buffer.read(Seq(0), 1, Run::default()).await.unwrap_err(), ReadError::Closed);
    buffer.commit(Seq(1));
    buffer.close().await;
}

fn terms(when_full: WhenFull, priority: u8) -> Terms {
    Terms { when_full, priority }
}

/// `count` events of about 100 KB of noise, one append each, on these terms; the ids go on from `from`.
async fn append_large(buffer: &Buffer, terms: Terms, from: u64, count: u64) {
    for n in from..from + count {
        let mut large = Batch::new();
        large.set_terms(terms);
        push(&mut large, n, RECEIVED, &noise(n, 100_000));
        buffer.append(large, Wait::AtMost(Duration::from_secs(20))).await.unwrap();
    }
}

fn counted(buffer: &Buffer, reason: Reason) -> u64 {
    buffer.ledger().get(&reason).map_or(0, |entry| entry.events)
}

#[tokio::test]
async fn drop_oldest_gives_up_the_oldest_and_counts_every_one() {
    let dir = tempfile::tempdir().unwrap();
    for bytes_max in [4 << 20, 20 << 20] {
        let options = Options { bytes_max, ..Options::new(&dir.path().join(bytes_max.to_string())) };
        let (buffer, thread) = open(&options);
        let count = 3 * bytes_max / 100_000;
        append_large(&buffer, terms(WhenFull::DropOldest, 0), 1, count).await;
        assert!(buffer.figures().disk_bytes <= bytes_max);
        let kept = read_ids(&buffer, Seq(0)).await;
        let evicted = counted(&buffer, Reason::Evicted);
        assert_eq!(kept, (evicted + 1..=count).collect::<Vec<_>>(), "{:?}", buffer.ledger());
        assert!(kept.len() as u64 * 100_000 >= bytes_max / 9, "{} of {bytes_max} are used", kept.len());
        assert_eq!(buffer.ledger()[&Reason::Evicted].ranges, [(Seq(1), Seq(evicted))]);
        close(buffer, thread).await;

        let (buffer, thread) = open(&options);
        assert_eq!(read_ids(&buffer, Seq(0)).await, kept, "gaps survive");
        assert_eq!((counted(&buffer, Reason::Evicted), counted(&buffer, Reason::Corrupt)), (evicted, 0));
        close(buffer, thread).await;
    }
}

#[tokio::test]
async fn the_lowest_priority_goes_first_and_what_was_promised_stays() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { bytes_max: 24 << 20, ..Options::new(dir.path()) };
    let (buffer, thread) = open(&options);
    let (telemetry, state, alarm) =
        (terms(WhenFull::DropOldest, 1), terms(WhenFull::DropOldest, 5), terms(WhenFull::Block, 9));
    let mut next = 1;
    let (mut states, mut alarms) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        append_large(&buffer, telemetry, next, 4).await;
        append_large(&buffer, state, next + 4, 1).await;
        states.push(next + 4);
        if alarms.len() < 30 {
            append_large(&buffer, alarm, next + 5, 1).await;
            alarms.push(next + 5);
            next += 1;
        }
        next += 5;
    }
    let kept = read_ids(&buffer, Seq(0)).await;
    assert!(kept.is_sorted());
    assert!(alarms.iter().all(|id| kept.contains(id)), "no alarm is given up");
    let is_telemetry = |id: &&u64| !states.contains(id) && !alarms.contains(id);
    let telemetry_kept = kept.iter().filter(is_telemetry).count();
    let states_kept = kept.iter().filter(|id| states.contains(id)).count();
    assert!(telemetry_kept < 100 && states_kept == 100, "{telemetry_kept} and {states_kept}");
    assert_eq!(counted(&buffer, Reason::Evicted), next - 1 - kept.len() as u64);
    close(buffer, thread).await;
}

#[tokio::test]
async fn what_the_drain_has_read_is_not_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { bytes_max: 8 << 20, ..Options::new(dir.path()) };
    let (buffer, thread) = open(&options);
    append_large(&buffer, terms(WhenFull::DropOldest, 0), 1, 8).await;
    let run = buffer.read(Seq(0), 500_000, Run::default()).await.unwrap();
    let handed = run.end().0;
    assert!(handed >= 5);
    append_large(&buffer, terms(WhenFull::DropOldest, 0), 9, 200).await;
    let kept = read_ids(&buffer, Seq(0)).await;
    assert_eq!(kept[..handed as usize], (1..=handed).collect::<Vec<_>>());
    assert!(counted(&buffer, Reason::Evicted) > 50);
    assert_eq!(kept.len() as u64 + counted(&buffer, Reason::Evicted), 208);
    close(buffer, thread).await;
}

#[tokio::test]
async fn a_buffer_full_of_what_was_promised_refuses_what_could_be_dropped() {
    let bench = Bench::small();
    let (buffer, thread) = bench.open();
    let count = fill(&buffer).await;
    let droppable = batch_on(WhenFull::DropOldest, count + 1, 1, &noise(0, 100_000));
    let refused = at_once(buffer.append(droppable, LONG)).await.unwrap_err();
    assert_eq!(refused.reason, AppendError::Full);
    assert_eq!(counted(&buffer, Reason::Evicted), 0);
    close(buffer, thread).await;
}

#[tokio::test]
async fn the_floor_of_free_space_counts_as_full() {
    let mut bench = Bench::new();
    bench.options.free_min = 100 << 20;
    let (buffer, thread) = bench.open();
    buffer.append(batch(1, 1, "1"), Wait::Forever).await.unwrap();
    bench.shelf.set_free_bytes(101 << 20);
    let refused = at_once(buffer.append(batch_on(WhenFull::Reject, 2, 1, "1"), LONG)).await.unwrap_err();
    assert_eq!(refused.reason, AppendError::Full);
    assert!(buffer.is_full());
    bench.shelf.set_free_bytes(1 << 30);
    buffer.append(batch(2, 1, "1"), Wait::Forever).await.unwrap();
    assert!(!buffer.is_full());
    close(buffer, thread).await;
}

/// One event, received at these times of the boot `boot`.
fn aged(id: u64, received: Stamp) -> Batch {
    let mut batch = Batch::new();
    push(&mut batch, id, received, "1");
    batch
}

/// Now, as it was `ago` before.
fn before(ago: Duration, is_trusted: bool) -> Stamp {
    let now = Clock::default().now();
    let ago_us = ago.as_micros() as u64;
    Stamp {
        wall_us: now.wall_us - ago_us as i64,
        boot_us: now.boot_us.saturating_sub(ago_us),
        clock_trusted: is_trusted,
    }
}

#[tokio::test]
async fn what_is_too_old_is_skipped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { age_max: Some(Duration::from_millis(500)), ..Options::new(dir.path()) };
    let (buffer, thread) = open(&options);
    // This machine runs for longer than that.
    let (old, new) = (before(Duration::from_secs(1), true), before(Duration::ZERO, false));
    for (id, received) in [(1, old), (2, old), (3, new)] {
        buffer.append(aged(id, received), Wait::Forever).await.unwrap();
    }
    assert_eq!(read_ids(&buffer, Seq(0)).await, [3], "by the time since boot, whatever the wall clock says");
    buffer.commit_durable(Seq(0)).await.unwrap();
    assert_eq!(counted(&buffer, Reason::Expired), 2);
    assert_eq!(buffer.ledger()[&Reason::Expired].ranges, [(Seq(1), Seq(2))]);
    close(buffer, thread).await;
}

#[test]
fn an_age_is_known_by_the_boot_or_by_trusted_clocks_only() {
    use super::block::Origin;
    use super::generations::Age;
    let (now, then) = (before(Duration::ZERO, true), before(Duration::from_secs(60), true));
    let same = Origin { epoch: 1, boot: BOOT };
    let other = Origin { epoch: 1, boot: [9; 16] };
    let age = Age { boot: BOOT, now };
    let seconds = |age: Option<Duration>| age.map(|age| age.as_secs_f64().round() as u64);
    assert_eq!(seconds(age.of(same, then)), Some(60));
    assert_eq!(seconds(age.of(other, then)), Some(60), "over a restart, by the wall clock");
    let untrusted = Stamp { clock_trusted: false, ..then };
    assert_eq!(seconds(age.of(same, untrusted)), Some(60));
    assert_eq!(age.of(other, untrusted), None, "the clock was not trusted then");
    let doubtful = Age { boot: BOOT, now: Stamp { clock_trusted: false, ..now } };
    assert_eq!(doubtful.of(other, then), None, "the clock is not trusted now");
    let back = Age { boot: BOOT, now: Stamp { wall_us: 0, ..now } };
    assert_eq!(
        seconds(back.of(same, then)),
        Some(60),
        "a clock that stepped back does not matter within a boot"
    );
    assert_eq!(back.of(other, then), None);
}

#[tokio::test]
async fn without_a_disk_that_takes_data_the_drain_goes_on() {
    let bench = Bench::new();
    let (buffer, thread) = bench.open();
    for n in 1..=10 {
        buffer.append(batch(n, 1, "1"), Wait::Forever).await.unwrap();
    }
    // The disk is full from here on: no sync, no new generation.
    bench.shelf.fail_next_sync(StoreError::NoSpace("scripted".into()));
    bench.shelf.fail_next_create(StoreError::NoSpace("scripted".into()));
    let refused = buffer.append(batch(11, 1, "1"), Wait::AtMost(Duration::from_secs(5))).await.unwrap_err();
    assert!(matches!(refused.reason, AppendError::Storage(_)), "{refused:?}");
    assert_eq!(read_ids(&buffer, Seq(0)).await, (1..=10).collect::<Vec<_>>());
    buffer.commit_durable(Seq(7)).await.unwrap();
    assert_eq!(buffer.figures().cursor, Seq(7));
    let appended = until_taken(&buffer, &batch(11, 1, "1")).await;
    assert!(appended.first > Seq(10));
    assert_eq!(read_ids(&buffer, Seq(7)).await, [8, 9, 10, 11]);
    close(buffer, thread).await;
}
