//! On the real buffer, with a faster pace.

use std::path::Path;

use serde_json::Value;

use super::*;
use crate::buffer::{Run, WriterThread};
use crate::event::Seq;

const PACE: Pace = Pace { gather: Duration::from_millis(20), announce_interval: Duration::from_millis(500) };

struct Bench {
    dir: tempfile::TempDir,
    stats: Arc<Stats>,
}

/// The stage at work on an open buffer.
struct Work {
    buffer: Buffer,
    writer: WriterThread,
    stop: CancellationToken,
    stage: tokio::task::JoinHandle<()>,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), stats: Arc::default() }
    }

    fn start(&self, announces: bool) -> Work {
        let options = crate::buffer::Options::new(self.dir.path());
        let (buffer, writer) = Buffer::open(&options, [1; 16], Arc::default()).unwrap();
        let stop = CancellationToken::new();
        let losses = Losses::new(buffer.clone(), Arc::clone(&self.stats), Arc::default(), "gw", announces);
        let losses = Losses { pace: PACE, ..losses };
        let stage = tokio::spawn(losses.run(stop.clone()));
        Work { buffer, writer, stop, stage }
    }

    fn ledger_file(&self) -> Option<Vec<u8>> {
        std::fs::read(ledger(self.dir.path())).ok()
    }
}

fn ledger(dir: &Path) -> std::path::PathBuf {
    dir.join("LEDGER")
}

impl Work {
    async fn stop(self) {
        self.stop.cancel();
        self.stage.await.unwrap();
        self.buffer.close().await;
        self.writer.ended().await.unwrap();
    }

    /// The announcements in the buffer.
    async fn words(&self) -> Vec<Value> {
        let run = self.buffer.read(Seq(0), usize::MAX, Run::default()).await.unwrap();
        let word = |event: Event<'_>| {
            assert_eq!(
                (event.kind, event.source_type, event.source_id),
                ("fieldpost.loss", "fieldpost", "gw")
            );
            let Payload::Json(text) = event.payload else { panic!("{event:?}") };
            serde_json::from_str(text).unwrap()
        };
        run.events().map(|(_, _, event)| word(event)).collect()
    }

    /// Waits until there are `count` announcements.
    async fn until(&self, count: usize) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let words = self.words().await;
            if words.len() >= count {
                return words;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{words:?} instead of {count}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets the stage do what it does in the time of three announcements, and then there are `count`.
    async fn still(&self, count: usize) {
        let begun = Instant::now();
        while begun.elapsed() < PACE.announce_interval * 3 {
            assert_eq!(self.words().await.len(), count);
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What is told of a reason in short.
fn short(word: &Value) -> (&str, u64, u64) {
    (word["reason"].as_str().unwrap(), word["events"].as_u64().unwrap(), word["total"].as_u64().unwrap())
}

#[tokio::test]
async fn what_was_refused_is_in_the_ledger_and_announced_once() {
    let bench = Bench::new();
    let work = bench.start(true);
    bench.stats.refused.add(2);
    bench.stats.mqtt_qos0_dropped.add(3);
    bench.stats.invalid.add(1);
    let words = work.until(2).await;
    let mut told: Vec<_> = words.iter().map(short).collect();
    told.sort_unstable();
    assert_eq!(told, [("invalid", 1, 1), ("rejected", 5, 5)]);
    assert!(
        words.iter().all(|word| word["first"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok()),
        "{words:?}"
    );
    let entries = work.buffer.ledger();
    assert_eq!((entries[&Reason::Rejected].events, entries[&Reason::Invalid].events), (5, 1));
    work.stop().await;

    // Nothing new: nothing is told after a restart, and no file is written.
    let work = bench.start(true);
    let before = bench.ledger_file();
    work.still(2).await;
    assert_eq!(bench.ledger_file(), before);
    bench.stats.invalid.add(4);
    let words = work.until(3).await;
    assert_eq!(short(&words[2]), ("invalid", 4, 5));
    work.stop().await;
}

#[tokio::test]
async fn one_reason_is_announced_at_most_once_in_its_time() {
    let bench = Bench::new();
    let work = bench.start(true);
    let begun = Instant::now();
    let mut announced = Vec::new();
    while announced.len() < 4 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{announced:?}");
        bench.stats.kafka_lost.add(1);
        sleep(Duration::from_millis(5)).await;
        if work.words().await.len() > announced.len() {
            announced.push(begun.elapsed());
        }
    }
    let first_to_last = announced[3] - announced[0];
    // The first one may have been seen late.
    assert!(first_to_last > PACE.announce_interval * 2, "{announced:?}");
    let words = work.words().await;
    // One that was stored and not confirmed in time is told again, which a slow disk may cause here.
    let told: u64 = words.iter().map(|word| short(word).1).sum();
    let total = short(&words[words.len() - 1]).2;
    let is_slow = announced.windows(2).any(|pair| pair[1] - pair[0] > Duration::from_secs(2));
    assert!(told == total || is_slow, "what is new does not add up to the total: {words:?}");
    bench.stats.kafka_lost.add(1);
    work.stop().await;
    // What was counted last is in the ledger all the same, and is told after the next start.
    let work = bench.start(true);
    let lost = bench.stats.kafka_lost.get();
    assert_eq!(work.buffer.ledger()[&Reason::Undelivered].events, lost);
    let words = work.until(words.len() + 1).await;
    assert_eq!(short(&words[words.len() - 1]).2, lost);
    work.stop().await;
}

#[tokio::test]
async fn who_wants_no_announcements_gets_none() {
    let bench = Bench::new();
    let work = bench.start(false);
    bench.stats.too_large.add(7);
    work.still(0).await;
    work.stop().await;
    let work = bench.start(false);
    assert_eq!(work.buffer.ledger()[&Reason::TooLarge].events, 7);
    work.stop().await;
}

#[test]
fn a_long_list_of_positions_is_cut() {
    let entry = Entry {
        events: 500,
        announced: 100,
        first_us: 0,
        last_us: 1_772_366_400_000_000,
        ranges: (0..200).map(|n| (Seq(n * 3), Seq(n * 3 + 1))).collect(),
    };
    let word: Value = serde_json::from_str(&word(Reason::Evicted, &entry)).unwrap();
    assert_eq!(short(&word), ("evicted", 400, 500));
    assert_eq!(word["last"], "2026-03-01T12:00:00.000000Z");
    let ranges = word["ranges"].as_array().unwrap();
    assert_eq!((ranges.len(), &ranges[RANGES_MAX - 1]), (RANGES_MAX, &json!([597, 598])));
}
