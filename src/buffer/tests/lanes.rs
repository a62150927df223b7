//! Two lanes in one row: what is served, what is counted, what may go.

use super::*;

fn lanes(ahead: &[(u64, u64)], live_from: u64, claimed: u64) -> Lanes {
    let ahead = ahead.iter().map(|&(a, b)| (Seq(a), Seq(b))).collect();
    Lanes { ahead, live_from: Seq(live_from), claimed: Seq(claimed) }
}

/// What one read behind `after` serves, and where it ends.
async fn read(buffer: &Buffer, after: u64) -> (Vec<u64>, u64) {
    let run = buffer.read(Seq(after), 1 << 20, Run::default()).await.unwrap();
    (run.events().map(|(seq, ..)| seq.0).collect(), run.end().0)
}

fn all(ranges: &[(u64, u64)]) -> Vec<u64> {
    ranges.iter().flat_map(|&(first, last)| first..=last).collect()
}

fn ranges(buffer: &Buffer, reason: Reason) -> Vec<(u64, u64)> {
    let ledger = buffer.ledger();
    ledger.get(&reason).map_or(Vec::new(), |entry| entry.ranges.iter().map(|(a, b)| (a.0, b.0)).collect())
}

#[tokio::test]
async fn each_lane_is_read_to_its_end_and_what_is_ahead_is_passed() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, thread) = open(&options(dir.path()));
    assert_eq!(buffer.lanes(), None);
    for from in [1, 16] {
        buffer.append(batch(from, 15, "1"), Wait::Forever).await.unwrap();
    }
    assert!(!options(dir.path()).dir.join("LANES").exists(), "one lane writes nothing");
    let set = lanes(&[(11, 14), (18, 20)], 26, 30);
    buffer.set_lanes(set.clone()).await.unwrap();
    let mut handle = (buffer, thread);
    // The newest generation, and the same sealed by a start.
    for _ in 0..2 {
        let (buffer, thread) = handle;
        assert_eq!(buffer.lanes().as_ref(), Some(&set));
        assert_eq!(read(&buffer, 0).await, (all(&[(1, 10)]), 10), "up to what was delivered");
        assert_eq!(read(&buffer, 10).await, (all(&[(15, 17)]), 17));
        assert_eq!(read(&buffer, 12).await, (all(&[(15, 17)]), 17), "begun inside goes on behind");
        assert_eq!(read(&buffer, 17).await, (all(&[(21, 25)]), 25), "not into the live lane");
        assert_eq!(read(&buffer, 25).await, (all(&[(26, 30)]), 30));
        let figures = buffer.figures();
        assert_eq!((figures.ahead, figures.waiting(), figures.backlog), (7, 23, 18));
        close(buffer, thread).await;
        handle = open(&options(dir.path()));
    }
    let (buffer, thread) = handle;
    buffer.commit_durable(Seq(19)).await.unwrap();
    let figures = buffer.figures();
    assert_eq!((figures.ahead, figures.waiting(), figures.backlog), (1, 10, 5));
    buffer.commit_durable(Seq(25)).await.unwrap();
    assert_eq!(buffer.figures().backlog, 0, "one lane again");
    close(buffer, thread).await;
    let (buffer, thread) = open(&options(dir.path()));
    assert_eq!(buffer.lanes(), Some(lanes(&[], 26, 30)));
    close(buffer, thread).await;
}

#[tokio::test]
async fn what_cannot_be_stored_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, thread) = open(&options(dir.path()));
    buffer.append(batch(1, 9, "1"), Wait::Forever).await.unwrap();
    let blocker = options(dir.path()).dir.join("LANES.new");
    std::fs::create_dir(&blocker).unwrap();
    let refused = buffer.set_lanes(lanes(&[(2, 3)], 5, 9)).await.unwrap_err();
    assert!(matches!(&refused, ReadError::Storage(text) if text.contains("LANES")), "{refused}");
    assert_eq!((buffer.lanes(), read(&buffer, 0).await.0.len()), (None, 9));
    std::fs::remove_dir(&blocker).unwrap();
    buffer.set_lanes(lanes(&[(2, 3)], 5, 9)).await.unwrap();
    assert_eq!(read(&buffer, 0).await.0, [1]);
    buffer.close().await;
    assert_eq!(buffer.set_lanes(lanes(&[], 5, 9)).await, Err(ReadError::Closed));
    thread.ended().await.unwrap();
}

#[tokio::test]
async fn damage_is_not_counted_where_it_was_delivered() {
    let bench = Bench::new();
    let (buffer, thread) = bench.open();
    buffer.append(batch(1, 30, "1"), Wait::Forever).await.unwrap();
    buffer.set_lanes(lanes(&[(11, 20)], 25, 30)).await.unwrap();
    close(buffer, thread).await;
    bench.shelf.damage(Seq(1));
    let (buffer, thread) = bench.open();
    for after in [0, 12, 24] {
        assert_eq!(read(&buffer, after).await.0, [0; 0]);
    }
    buffer.commit_durable(Seq(0)).await.unwrap();
    assert_eq!(counted(&buffer, Reason::Corrupt), 20);
    assert_eq!(ranges(&buffer, Reason::Corrupt), [(1, 10), (21, 30)]);
    close(buffer, thread).await;
}

#[tokio::test]
async fn a_lost_tail_is_not_counted_where_it_was_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    for from in [1, 11] {
        let (buffer, thread) = open(&options);
        buffer.append(batch(from, 10, "1"), Wait::Forever).await.unwrap();
        buffer.set_lanes(lanes(&[(13, 18)], 19, 20)).await.unwrap();
        close(buffer, thread).await;
    }
    std::fs::remove_dir_all(options.dir.join("00000000000000000011.gen")).unwrap();
    let (buffer, thread) = open(&options);
    assert_eq!(ranges(&buffer, Reason::Corrupt), [(11, 12), (19, 20)]);
    let appended = buffer.append(batch(21, 1, "1"), Wait::Forever).await.unwrap();
    assert!(appended.first > Seq(20));
    assert_eq!(read_ids(&buffer, Seq(0)).await, all(&[(1, 10), (21, 21)]));
    assert_eq!(counted(&buffer, Reason::Corrupt), 4);
    close(buffer, thread).await;
}

#[tokio::test]
async fn what_is_too_old_is_not_counted_where_it_was_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { age_max: Some(Duration::from_millis(500)), ..options(dir.path()) };
    let (buffer, thread) = open(&options);
    let mut old = Batch::new();
    for id in 1..=20 {
        push(&mut old, id, before(Duration::from_secs(1), true), "1");
    }
    buffer.append(old, Wait::Forever).await.unwrap();
    buffer.set_lanes(lanes(&[(6, 9)], 16, 20)).await.unwrap();
    assert_eq!(read(&buffer, 0).await, (vec![], 15));
    buffer.commit_durable(Seq(0)).await.unwrap();
    let backlog = [(1, 5), (10, 15)];
    assert_eq!(ranges(&buffer, Reason::Expired), backlog, "what was asked for, though it is one block");
    assert_eq!(read(&buffer, 15).await, (vec![], 20));
    buffer.commit_durable(Seq(0)).await.unwrap();
    assert_eq!(ranges(&buffer, Reason::Expired), [(1, 5), (10, 20)]);
    close(buffer, thread).await;
}

#[tokio::test]
async fn a_purge_counts_what_was_not_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, thread) = open(&options(dir.path()));
    buffer.append(batch(1, 30, "1"), Wait::Forever).await.unwrap();
    buffer.set_lanes(lanes(&[(11, 20)], 25, 30)).await.unwrap();
    assert_eq!(buffer.purge(vec![(Seq(1), Seq(30))], Seq(27)).await.unwrap(), 17);
    assert_eq!(ranges(&buffer, Reason::Purged), [(1, 10), (21, 27)]);
    assert_eq!(buffer.figures().waiting(), 3);
    assert_eq!(read_ids(&buffer, Seq(27)).await, [28, 29, 30]);
    close(buffer, thread).await;
}

#[tokio::test]
async fn a_purge_is_to_be_seen_once_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    // A group that gathers keeps the writer from showing anything by itself.
    let (buffer, thread) =
        open(&Options { commit_interval: Duration::from_secs(600), ..options(dir.path()) });
    buffer.append(batch(1, 30, "1"), Wait::Forever).await.unwrap();
    let gathers = started(&buffer, batch(31, 1, "1"), Wait::Forever).await;
    assert_eq!(buffer.purge(vec![(Seq(1), Seq(10))], Seq(10)).await.unwrap(), 10);
    assert_eq!(ranges(&buffer, Reason::Purged), [(1, 10)]);
    assert_eq!(buffer.figures().waiting(), 20);
    close(buffer, thread).await;
    gathers.await.unwrap().unwrap();
}

#[tokio::test]
async fn backlog_is_given_up_though_the_live_lane_was_read_to_its_end() {
    let bench = Bench::small();
    let (buffer, thread) = bench.open();
    let droppable = terms(WhenFull::DropOldest, 0);
    append_large(&buffer, droppable, 1, 30).await;
    buffer.set_lanes(lanes(&[(21, 24)], 31, 30)).await.unwrap();
    let backlog = buffer.read(Seq(0), 150_000, Run::default()).await.unwrap().end().0;
    assert!((1..8).contains(&backlog));
    let mut next = 31;
    while counted(&buffer, Reason::Evicted) == 0 {
        append_large(&buffer, droppable, next, 1).await;
        assert_eq!(read(&buffer, next - 1).await.0, [next], "the live lane keeps up");
        next += 1;
    }
    // Until nothing of it is left to give up.
    let refused = loop {
        match buffer.append(large_on(WhenFull::DropOldest, 0, next), LONG).await {
            Ok(_) => assert_eq!(read(&buffer, next - 1).await.0, [next]),
            Err(refused) => break refused,
        }
        next += 1;
    };
    assert_eq!(refused.reason, AppendError::Full);
    let evicted = ranges(&buffer, Reason::Evicted);
    assert_eq!(counted(&buffer, Reason::Evicted), all(&evicted).len() as u64);
    let is_backlog =
        |&(first, last): &(u64, u64)| backlog < first && last < 31 && !(first <= 24 && last >= 21);
    assert!(evicted.iter().all(is_backlog), "{evicted:?}");
    let is_kept = |seq: &u64| !all(&evicted).contains(seq) && !(21..=24).contains(seq);
    assert_eq!(read_ids(&buffer, Seq(0)).await, (1..next).filter(is_kept).collect::<Vec<_>>());
    close(buffer, thread).await;
}

#[tokio::test]
async fn what_was_read_in_one_lane_stays_protected_when_it_is_split_anew() {
    let bench = Bench::small();
    let (buffer, thread) = bench.open();
    let droppable = terms(WhenFull::DropOldest, 0);
    append_large(&buffer, droppable, 1, 30).await;
    buffer.set_lanes(lanes(&[], 11, 30)).await.unwrap();
    assert_eq!(read_ids(&buffer, Seq(0)).await.len(), 30);
    buffer.commit_durable(Seq(10)).await.unwrap();
    buffer.set_lanes(lanes(&[], 26, 30)).await.unwrap();
    let mut next = 31;
    while buffer.append(large_on(WhenFull::DropOldest, 0, next), LONG).await.is_ok() && next < 200 {
        next += 1;
    }
    assert!(ranges(&buffer, Reason::Evicted).iter().all(|range| range.0 > 30), "{:?}", buffer.ledger());
    assert_eq!(read_ids(&buffer, Seq(10)).await[..20], all(&[(11, 30)]));
    close(buffer, thread).await;
}

#[tokio::test]
async fn what_was_delivered_ahead_gives_its_room_back_before_anything_is_given_up() {
    for when_full in [WhenFull::Block, WhenFull::DropOldest] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { bytes_max: 8 << 20, ..Options::new(dir.path()) };
        let (buffer, thread) = open(&options);
        let count = fill(&buffer).await;
        let waiting = started(&buffer, large_on(WhenFull::Block, 0, count + 1), Wait::Forever).await;
        buffer.commit_durable(Seq(0)).await.unwrap();
        assert!(!waiting.is_finished() && buffer.is_full());
        let backlog = count / 4;
        buffer.set_lanes(lanes(&[(backlog + 1, count)], count + 1, count)).await.unwrap();
        assert_eq!(at_once(waiting).await.unwrap().unwrap().first, Seq(count + 1), "without a commit");
        let more = count / 3;
        for n in count + 2..count + 2 + more {
            at_once(buffer.append(large_on(when_full, 0, n), LONG)).await.unwrap();
        }
        assert!(buffer.figures().disk_bytes <= options.bytes_max);
        assert!(buffer.ledger().is_empty(), "{:?}", buffer.ledger());
        let wanted = all(&[(1, backlog), (count + 1, count + 1 + more)]);
        assert_eq!(read_ids(&buffer, Seq(0)).await, wanted);
        close(buffer, thread).await;
        // Gaps stand for what is gone, whatever becomes of LANES.
        std::fs::remove_file(options.dir.join("LANES")).unwrap();
        let (buffer, thread) = open(&options);
        let found = read_ids(&buffer, Seq(0)).await;
        assert!(wanted.iter().all(|seq| found.contains(seq)) && found.len() < (count + more) as usize);
        assert!(buffer.ledger().is_empty(), "{:?}", buffer.ledger());
        close(buffer, thread).await;
    }
}

#[tokio::test]
async fn two_readers_leave_each_other_the_generation_that_they_read() {
    let bench = Bench::small();
    let (buffer, thread) = bench.open();
    append_large(&buffer, terms(WhenFull::Block, 0), 1, 30).await;
    let rows = bench.shelf.row();
    assert!(rows.len() > 3, "{rows:?}");
    buffer.set_lanes(lanes(&[], 16, 30)).await.unwrap();
    let before = bench.shelf.sources();
    for step in 0..15 {
        for after in [step, step + 15] {
            let run = buffer.read(Seq(after), 1, Run::default()).await.unwrap();
            assert_eq!(run.events().map(|(seq, ..)| seq.0).collect::<Vec<_>>(), [after + 1]);
        }
    }
    // The generation in which the live lane begins may be opened twice.
    let opened = bench.shelf.sources() - before;
    assert!(opened <= rows.len() as u64, "{opened} of {}", rows.len());
    close(buffer, thread).await;
}
