//! The drain's states against a scripted producer and the real buffer.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::flow::HAND_OVER_WAIT;
use super::*;
use crate::buffer::{Batch, Options as BufferOptions, Wait, WriterThread};
use crate::dead_letter::{Folder, Options as StoreOptions, Store};
use crate::event::{Event, EventId, Payload, Stamp, Way};
use crate::sink::record;
use crate::sink::record::templates::{Field, Template};
use crate::sink::registry::Schemas;
use crate::sink::transaction::{Cursor, Kept, StepEnd, StepError};
use crate::sink::{Fatal, Outcome, Record, Rejection, SendError};
use crate::stats::LinkState;

mod lanes;

/// What the scripted producer does with the records of one hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Deliver,
    Reject,
    Misconfigured,
    /// Reported only when the test says so.
    Hold,
}

#[derive(Default)]
struct Script {
    /// Fate of each record by event id; `Deliver` unless named here. Used up once.
    fates: VecDeque<(String, Fate)>,
    /// Ids in the order in which they were sent, with how many were in flight by then.
    sent: Vec<(String, usize)>,
    /// Ids in the order in which they were delivered.
    delivered: Vec<String>,
    /// Ids in the order in which they were sent, with whether that was in the backlog lane.
    lanes: Vec<(String, bool)>,
    held: Vec<(usize, String)>,
    /// What is held holds up everything behind it.
    is_one_partition: bool,
    reports: Vec<Report>,
    fatal: Option<Fatal>,
    restarts: usize,
    /// A successor made from changed files stands ready.
    has_successor: bool,
    queue_max: usize,
    /// Dead letters that were sent: id, code and original topic.
    letters: Vec<[String; 3]>,
    transactions: Transactions,
}

/// What a transactional broker knows.
#[derive(Default)]
struct Transactions {
    /// What the steps to come end with; success when there is none.
    fates: VecDeque<StepError>,
    /// What the brokers have as the cursor.
    kept: Option<Kept>,
    steps: Vec<Step>,
    ended: Option<Result<StepEnd, StepError>>,
    is_begun: bool,
    /// Ids in the open transaction, and the committed ones of each.
    open: Vec<String>,
    committed: Vec<Vec<String>>,
}

impl Transactions {
    fn end(&mut self, step: Step) -> Result<StepEnd, StepError> {
        self.steps.push(step.clone());
        if let Some(error) = self.fates.pop_front() {
            return Err(error);
        }
        Ok(match step {
            Step::Open => StepEnd::Opened(self.kept.clone().unwrap_or(Kept::None)),
            Step::Commit(cursor) => {
                assert!(std::mem::take(&mut self.is_begun), "nothing was begun");
                self.kept = Some(Kept::Cursor(cursor));
                self.committed.push(std::mem::take(&mut self.open));
                StepEnd::Committed
            }
            Step::Abort => {
                assert!(std::mem::take(&mut self.is_begun), "nothing was begun");
                self.open.clear();
                StepEnd::Aborted
            }
        })
    }

    fn committed_ids(&self) -> Vec<String> {
        self.committed.concat()
    }
}

#[derive(Clone, Default)]
struct Scripted {
    script: Arc<Mutex<Script>>,
    reported: Arc<Notify>,
}

impl Scripted {
    fn with<T>(&self, look: impl FnOnce(&mut Script) -> T) -> T {
        look(&mut self.script.lock().unwrap())
    }

    fn release(&self) {
        self.with(|script| {
            for (tag, id) in std::mem::take(&mut script.held) {
                script.delivered.push(id);
                script.reports.push(Report { tag, outcome: Outcome::Delivered });
            }
        });
        self.reported.notify_one();
    }

    async fn until(&self, is_so: impl Fn(&mut Script) -> bool) {
        let wait = async {
            while !self.with(&is_so) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the script did not come true");
    }
}

impl Producer for Scripted {
    fn send(&mut self, record: &Record<'_>, tag: usize) -> Result<(), SendError> {
        let header = |name: &str| record.headers.iter().find(|(n, _)| *n == name).unwrap().1;
        let text = |name| String::from_utf8(header(name).to_vec()).unwrap();
        let id = text("fieldpost-id");
        let result = self.with(|script| {
            if script.fatal.is_some() {
                return Err(SendError::Fatal("broken".into()));
            }
            if script.queue_max > 0 && script.held.len() >= script.queue_max {
                return Err(SendError::QueueFull);
            }
            if record.topic == DEAD_LETTER_TOPIC {
                assert_eq!(text("fieldpost-dead-letter-reason"), "too large");
                assert_eq!(
                    (text("fieldpost-dead-letter-attempts").as_str(), record.timestamp_ms),
                    ("2", None)
                );
                let (code, topic) = (text("fieldpost-dead-letter-code"), text("fieldpost-dead-letter-topic"));
                script.letters.push([id.clone(), code, topic]);
            }
            let in_flight = script.held.len();
            script.sent.push((id.clone(), in_flight));
            let backlog = record.headers.iter().find(|(name, _)| *name == "fieldpost-backlog");
            assert!(backlog.is_none_or(|(_, value)| *value == b"1"));
            script.lanes.push((id.clone(), backlog.is_some()));
            if script.transactions.is_begun {
                script.transactions.open.push(id.clone());
            }
            let at = script.fates.iter().position(|(wanted, _)| *wanted == id);
            let fate = at.and_then(|at| script.fates.remove(at)).map_or(Fate::Deliver, |(_, fate)| fate);
            let is_held_up = script.is_one_partition && !script.held.is_empty();
            let fate = if is_held_up { Fate::Hold } else { fate };
            let outcome = match fate {
                Fate::Deliver => {
                    script.delivered.push(id);
                    Outcome::Delivered
                }
                Fate::Reject => Outcome::Rejected(Rejection { code: 10, reason: "too large".into() }),
                Fate::Misconfigured => Outcome::Misconfigured("not authorised".into()),
                Fate::Hold => {
                    script.held.push((tag, id));
                    return Ok(());
                }
            };
            script.reports.push(Report { tag, outcome });
            Ok(())
        });
        self.reported.notify_one();
        result
    }

    fn take_reports(&mut self, reports: &mut Vec<Report>) {
        self.with(|script| reports.append(&mut script.reports));
    }

    async fn reported(&self) {
        self.reported.notified().await;
    }

    fn fatal(&self) -> Option<Fatal> {
        self.with(|script| script.fatal.clone())
    }

    fn begin(&mut self) -> Result<(), StepError> {
        self.with(|script| assert!(!std::mem::replace(&mut script.transactions.is_begun, true)));
        Ok(())
    }

    fn start_step(&mut self, step: Step) {
        self.with(|script| {
            assert!(script.held.is_empty(), "{step:?} with records in flight");
            let ended = script.transactions.end(step);
            script.transactions.ended = Some(ended);
        });
        self.reported.notify_one();
    }

    fn take_step(&mut self) -> Option<Result<StepEnd, StepError>> {
        self.with(|script| script.transactions.ended.take())
    }

    fn purge(&mut self) {
        self.with(|script| {
            for (tag, _) in std::mem::take(&mut script.held) {
                script.reports.push(Report { tag, outcome: Outcome::Failed("purged".into()) });
            }
        });
        self.reported.notify_one();
    }

    fn has_successor(&mut self) -> bool {
        self.with(|script| script.has_successor)
    }

    fn restart(&mut self) -> Result<(), ProducerError> {
        self.with(|script| {
            script.fatal = None;
            script.has_successor = false;
            script.restarts += 1;
            script.reports.clear();
            script.held.clear();
            // What a producer before this one left open is aborted as this one opens.
            script.transactions.is_begun = false;
            script.transactions.open.clear();
        });
        Ok(())
    }

    fn close(self, _timeout: Duration) {}
}

const DEAD_LETTER_TOPIC: &str = "refused";

struct Bench {
    dir: tempfile::TempDir,
    dead_letter_topic: Option<String>,
    buffer: Buffer,
    writer: WriterThread,
    producer: Scripted,
    stats: Arc<Stats>,
    stop: CancellationToken,
    stop_grace: Duration,
    order: Order,
    rates: Rates,
    /// Set where the records need a schema.
    schemas: Cell<Option<Schemas>>,
}

impl Bench {
    fn new() -> Self {
        Self::in_dir(tempfile::tempdir().unwrap())
    }

    fn in_dir(dir: tempfile::TempDir) -> Self {
        let options = BufferOptions::new(dir.path());
        let (buffer, writer) = Buffer::open(&options, [0; 16], Arc::default()).unwrap();
        Self {
            dir,
            dead_letter_topic: Some(DEAD_LETTER_TOPIC.to_owned()),
            buffer,
            writer,
            producer: Scripted::default(),
            stats: Arc::default(),
            stop: CancellationToken::new(),
            stop_grace: Duration::from_secs(2),
            order: Order::Fifo,
            rates: Rates::default(),
            schemas: Cell::new(None),
        }
    }

    async fn append(&self, ids: std::ops::RangeInclusive<u64>) {
        self.append_of("t", ids).await;
    }

    /// Events of a type, which is their topic; of long ago.
    async fn append_of(&self, kind: &str, ids: std::ops::RangeInclusive<u64>) {
        self.append_at(1, kind, ids).await;
    }

    async fn append_at(&self, boot_us: u64, kind: &str, ids: std::ops::RangeInclusive<u64>) {
        let mut batch = Batch::new();
        for id in ids {
            let id = id.to_string();
            let event = Event {
                id: EventId::Given(&id),
                kind,
                source_type: "s",
                source_id: "1",
                timestamp: None,
                received: Stamp { wall_us: 0, boot_us, clock_trusted: true },
                payload: Payload::Json("1"),
                way: Way::USUAL,
            };
            batch.push(&event, usize::MAX).unwrap();
        }
        self.buffer.append(batch, Wait::Forever).await.unwrap();
    }

    fn fates(&self, fates: &[(u64, Fate)]) {
        self.producer
            .with(|script| script.fates.extend(fates.iter().map(|&(id, fate)| (id.to_string(), fate))));
    }

    /// Returns when everything up to `seq` may be forgotten.
    async fn until_cursor(&self, seq: u64) {
        self.producer.until(|_| self.buffer.figures().cursor >= Seq(seq)).await;
    }

    fn letter_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("dead-letters")
    }

    fn letters(&self) -> Vec<u64> {
        Folder::at(&self.letter_dir()).entries().unwrap().iter().map(|entry| entry.name.seq.0).collect()
    }

    fn drain(&self, delivery: Delivery) -> Drain<Scripted> {
        let options = Options {
            delivery,
            order: self.order,
            round_interval: Duration::from_millis(1),
            window_bytes_max: 1 << 20,
            transaction: TransactionLimits {
                interval: Duration::from_millis(20),
                bytes_max: 1 << 20,
                events_max: 100,
                timeout: Duration::from_secs(30),
            },
            rates: self.rates,
            start_jitter: Duration::ZERO,
            stop_grace: self.stop_grace,
        };
        let schemas = self.schemas.take();
        let format = if schemas.is_some() { record::Format::Avro } else { record::Format::Envelope };
        let records = record::Options { format, ..record::Options::new(Template::field(Field::Kind)) };
        let formatter = Formatter::new(records, self.buffer.logs(), Arc::default()).with_schemas(schemas);
        // A link that works; down, a stop would not wait for it.
        self.stats.kafka.set(LinkState::Up);
        Drain::new(
            self.buffer.clone(),
            self.producer.clone(),
            options,
            formatter,
            Arc::clone(&self.stats),
            None,
            DeadLetters {
                topic: self.dead_letter_topic.clone(),
                store: Store::open(StoreOptions { dir: self.letter_dir(), bytes_max: 1 << 20 }),
            },
        )
    }

    /// Runs the drain beside `scenario`, stops it, and closes the buffer. Answers the cursor that is left.
    async fn run(self, delivery: Delivery, scenario: impl AsyncFnOnce(&Self)) -> (Seq, Arc<Stats>) {
        let (ended, cursor, stats) = self.run_to_its_end(delivery, scenario).await;
        ended.unwrap();
        (cursor, stats)
    }

    async fn run_to_its_end(
        self,
        delivery: Delivery,
        scenario: impl AsyncFnOnce(&Self),
    ) -> (Result<(), DrainError>, Seq, Arc<Stats>) {
        let drain = self.drain(delivery);
        let running = drain.run(self.stop.clone());
        let beside = async {
            scenario(&self).await;
            self.stop.cancel();
        };
        let (ended, ()) = tokio::join!(running, beside);
        let cursor = self.buffer.figures().cursor;
        self.buffer.close().await;
        self.writer.ended().await.unwrap();
        (ended, cursor, self.stats)
    }
}

fn ids(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|id| id.to_string()).collect()
}

#[tokio::test]
async fn everything_goes_out_in_order_and_is_committed() {
    let bench = Bench::new();
    bench.append(1..=500).await;
    let (cursor, stats) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.delivered.len() == 500).await;
            bench.append(501..=510).await;
            bench.producer.until(|script| script.delivered.len() == 510).await;
            bench.producer.with(|script| assert_eq!(script.delivered, ids(1..=510)));
        })
        .await;
    assert_eq!((cursor, stats.kafka_out.get()), (Seq(510), 510));
}

#[tokio::test]
async fn the_cursor_stays_before_what_is_not_confirmed() {
    let bench = Bench::new();
    bench.append(1..=10).await;
    bench.fates(&[(4, Fate::Hold)]);
    let (cursor, _) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.sent.len() == 10).await;
        })
        .await;
    assert_eq!(cursor, Seq(3), "4 was not confirmed before the grace was over");
}

#[tokio::test]
async fn a_stop_waits_for_what_is_in_flight() {
    let bench = Bench::new();
    bench.append(1..=3).await;
    bench.fates(&[(3, Fate::Hold)]);
    let producer = bench.producer.clone();
    let stop = bench.stop.clone();
    let run = bench.run(Delivery::AtLeastOnce, async |bench| {
        bench.producer.until(|script| script.held.len() == 1).await;
    });
    let release = async {
        stop.cancelled().await;
        producer.release();
    };
    let ((cursor, _), ()) = tokio::join!(run, release);
    assert_eq!(cursor, Seq(3));
}

#[tokio::test]
async fn a_refused_event_goes_out_again_alone_and_nothing_is_lost() {
    let bench = Bench::new();
    bench.append(1..=20).await;
    bench.fates(&[(5, Fate::Misconfigured), (6, Fate::Misconfigured), (5, Fate::Reject)]);
    let (cursor, stats) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.delivered.ends_with(&ids(5..=20))).await;
        })
        .await;
    assert_eq!(cursor, Seq(20));
    assert!(stats.kafka_rewinds.get() >= 2);
}

#[tokio::test]
async fn a_link_that_is_refused_for_a_setting_says_so_until_that_is_mended() {
    let bench = Bench::new();
    bench.append(1..=3).await;
    bench.fates(&[(2, Fate::Misconfigured)]);
    bench
        .run(Delivery::AtLeastOnce, async |bench| {
            let is = |wanted| bench.stats.kafka.get() == wanted;
            bench.producer.until(|_| is(LinkState::Misconfigured)).await;
            bench.until_cursor(3).await;
            assert!(is(LinkState::Up));
        })
        .await;
}

#[tokio::test]
async fn behind_a_refusal_events_go_one_by_one_until_it_is_through() {
    let bench = Bench::new();
    bench.append(1..=10).await;
    // 5 and 6 are refused once; the second time everything up to 6 has to go out alone.
    bench.fates(&[(5, Fate::Reject), (6, Fate::Reject), (5, Fate::Hold)]);
    let (cursor, _) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.held.len() == 1).await;
            bench.producer.with(|script| {
                let (last, in_flight) = script.sent.last().unwrap().clone();
                assert_eq!((last.as_str(), in_flight), ("5", 0), "5 goes out alone and 6 waits for it");
            });
            bench.producer.release();
            bench.producer.until(|script| script.delivered.ends_with(&ids(5..=10))).await;
        })
        .await;
    assert_eq!(cursor, Seq(10));
}

#[tokio::test]
async fn nothing_passes_a_refused_event_while_it_is_in_flight_again() {
    let bench = Bench::new();
    bench.append(1..=10).await;
    bench.fates(&[(5, Fate::Reject), (5, Fate::Hold)]);
    bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.held.len() == 1).await;
            // Many rounds: 6 would have gone out by now.
            tokio::time::sleep(Duration::from_millis(100)).await;
            bench.producer.with(|script| assert_eq!(script.sent.last().unwrap().0, "5"));
            bench.producer.release();
            bench.producer.until(|script| script.delivered.ends_with(&ids(5..=10))).await;
        })
        .await;
}

#[tokio::test]
async fn a_broken_producer_is_made_again_and_the_unconfirmed_goes_out_again() {
    let bench = Bench::new();
    bench.append(1..=5).await;
    bench.fates(&[(3, Fate::Hold)]);
    let (cursor, stats) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.held.len() == 1 && script.sent.len() == 5).await;
            bench.producer.with(|script| script.fatal = Some(Fatal::Broken("gone".into())));
            bench.producer.reported.notify_one();
            bench
                .producer
                .until(|script| script.restarts == 1 && script.delivered.ends_with(&ids(3..=5)))
                .await;
        })
        .await;
    assert_eq!(cursor, Seq(5));
    assert_eq!(stats.kafka_rewinds.get(), 1);
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let bench = Bench::new();
    bench.append(1..=10).await;
    bench.fates(&(1..=10).map(|id| (id, Fate::Hold)).collect::<Vec<_>>());
    bench.producer.with(|script| script.queue_max = 4);
    let (cursor, _) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            for held in [4, 4, 2] {
                bench.producer.until(|script| script.held.len() == held).await;
                bench.producer.release();
            }
            bench.producer.until(|script| script.delivered.len() == 10).await;
            bench.producer.with(|script| assert_eq!(script.delivered, ids(1..=10)));
        })
        .await;
    assert_eq!(cursor, Seq(10));
}

#[tokio::test]
async fn at_most_once_commits_before_it_sends_and_never_sends_again() {
    let bench = Bench::new();
    bench.append(1..=10).await;
    bench.fates(&[(2, Fate::Reject), (7, Fate::Hold)]);
    let (cursor, stats) = bench
        .run(Delivery::AtMostOnce, async |bench| {
            bench.producer.until(|script| script.sent.len() == 10).await;
            assert_eq!(bench.buffer.figures().cursor, Seq(10), "durable although 7 is still in flight");
        })
        .await;
    // 2 was refused, and nobody said by the end of the grace what became of 7.
    assert_eq!((cursor, stats.kafka_lost.get(), stats.kafka_rewinds.get()), (Seq(10), 2, 0));
}

#[tokio::test]
async fn exactly_once_commits_events_and_cursor_together_and_only_then_lets_them_go() {
    let bench = Bench::new();
    bench.append(1..=250).await;
    bench.fates(&[(3, Fate::Hold)]);
    let log = bench.buffer.log();
    let producer = bench.producer.clone();
    let (cursor, stats) = bench
        .run(Delivery::ExactlyOnce, async |bench| {
            bench.producer.until(|script| script.held.len() == 1).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(bench.buffer.figures().cursor, Seq(0), "3 is not confirmed, nothing is committed");
            bench.producer.with(|script| assert_eq!(script.transactions.steps, [Step::Open]));
            bench.producer.release();
            bench.producer.until(|script| script.transactions.committed_ids().len() == 250).await;
        })
        .await;
    assert_eq!((cursor, stats.kafka_out.get()), (Seq(250), 250));
    assert!(stats.kafka_transactions.get() >= 3, "a hundred events in each at most");
    let last = Cursor { log: log.id, epoch: log.epoch, seq: Seq(250), live: None };
    producer.with(|script| assert_eq!(script.transactions.kept, Some(Kept::Cursor(last))));
}

#[tokio::test]
async fn exactly_once_goes_on_behind_the_cursor_that_kafka_has() {
    let bench = Bench::new();
    bench.append(1..=10).await;
    let log = bench.buffer.log();
    let kept = Kept::Cursor(Cursor { log: log.id, epoch: log.epoch, seq: Seq(7), live: None });
    bench.producer.with(|script| script.transactions.kept = Some(kept));
    let (cursor, _) = bench
        .run(Delivery::ExactlyOnce, async |bench| {
            bench.producer.until(|script| script.transactions.committed_ids() == ids(8..=10)).await;
        })
        .await;
    assert_eq!(cursor, Seq(10));
}

#[tokio::test]
async fn a_cursor_that_proves_nothing_about_this_buffer_is_not_used() {
    let log = uuid::Uuid::from_u128(9);
    let others = [
        None,
        Some(Kept::Foreign("offset 5".into())),
        Some(Kept::Cursor(Cursor { log, epoch: 1, seq: Seq(7), live: None })),
    ];
    for kept in others {
        let bench = Bench::new();
        bench.append(1..=10).await;
        bench.producer.with(|script| script.transactions.kept = kept);
        bench
            .run(Delivery::ExactlyOnce, async |bench| {
                bench.producer.until(|script| script.transactions.committed_ids() == ids(1..=10)).await;
            })
            .await;
    }
    // Of this buffer, but of a later start than it has had: an older copy was put back.
    let bench = Bench::new();
    bench.append(1..=10).await;
    let own = bench.buffer.log();
    let kept = Kept::Cursor(Cursor { log: own.id, epoch: own.epoch + 1, seq: Seq(7), live: None });
    bench.producer.with(|script| script.transactions.kept = Some(kept));
    bench
        .run(Delivery::ExactlyOnce, async |bench| {
            bench.producer.until(|script| script.transactions.committed_ids() == ids(1..=10)).await;
        })
        .await;
}

#[tokio::test]
async fn a_refusal_aborts_the_transaction_and_everything_in_it_goes_out_again() {
    let bench = Bench::new();
    bench.append(1..=20).await;
    bench.fates(&[(5, Fate::Misconfigured), (9, Fate::Hold)]);
    let (cursor, stats) = bench
        .run(Delivery::ExactlyOnce, async |bench| {
            bench.producer.until(|script| script.transactions.committed_ids() == ids(1..=20)).await;
            bench.producer.with(|script| {
                assert!(script.transactions.steps.contains(&Step::Abort));
                let again = script.sent.iter().rev().find(|(id, _)| id == "5").unwrap();
                assert_eq!(again.1, 0, "alone");
            });
        })
        .await;
    assert_eq!((cursor, stats.kafka_out.get()), (Seq(20), 20), "what was aborted does not count");
}

#[tokio::test]
async fn steps_that_fail_are_made_up_for() {
    for (fate, restarts) in [
        (StepError::Abort("timed out".into()), 0),
        (StepError::Broken("gone".into()), 1),
        (StepError::Misconfigured("not authorised".into()), 1),
    ] {
        let bench = Bench::new();
        let (cursor, _) = bench
            .run(Delivery::ExactlyOnce, async |bench| {
                bench.producer.until(|script| script.transactions.steps == [Step::Open]).await;
                bench.producer.with(|script| script.transactions.fates.push_back(fate.clone()));
                bench.append(1..=10).await;
                bench.producer.until(|script| script.transactions.committed_ids() == ids(1..=10)).await;
                bench.producer.with(|script| assert_eq!(script.restarts, restarts, "{fate:?}"));
            })
            .await;
        assert_eq!(cursor, Seq(10));
    }
}

#[tokio::test]
async fn a_twin_ends_the_drain_and_a_transaction_that_was_too_old_does_not() {
    let fenced = || StepError::Fenced("fenced".into());
    let bench = Bench::new();
    bench.append(1..=10).await;
    bench.producer.with(|script| script.transactions.fates.push_back(fenced()));
    let (ended, cursor, _) = bench.run_to_its_end(Delivery::ExactlyOnce, async |_| {}).await;
    assert!(matches!(ended, Err(DrainError::Fenced(_))), "{ended:?}");
    assert_eq!(cursor, Seq(0));

    let bench = Bench::new();
    let mut drain = bench.drain(Delivery::ExactlyOnce);
    drain.options.transaction.timeout = Duration::ZERO;
    drain.transaction = Some(Transaction::new(drain.options.transaction));
    let running = drain.run(bench.stop.clone());
    let beside = async {
        bench.producer.until(|script| script.transactions.steps == [Step::Open]).await;
        bench.producer.with(|script| script.transactions.fates.push_back(fenced()));
        bench.append(1..=10).await;
        bench.producer.until(|script| script.transactions.committed_ids() == ids(1..=10)).await;
        bench.stop.cancel();
    };
    let (ended, ()) = tokio::join!(running, beside);
    ended.unwrap();
    bench.producer.with(|script| assert_eq!(script.restarts, 1));
}

#[tokio::test]
async fn while_nobody_answers_one_event_asks_whether_kafka_is_back() {
    let bench = Bench::new();
    bench.fates(&[(1, Fate::Hold)]);
    bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.stats.kafka.set(LinkState::Down);
            bench.append(1..=100).await;
            bench.producer.until(|script| script.held.len() == 1).await;
            // Longer than a hand-over waits for its confirmations: 2 would have gone out by now.
            tokio::time::sleep(HAND_OVER_WAIT + Duration::from_millis(200)).await;
            bench.producer.with(|script| assert_eq!(script.sent.len(), 1));
            bench.producer.release();
            bench.producer.until(|script| script.delivered == ids(1..=100)).await;
            bench.producer.with(|script| assert!(script.sent.len() == 100));
        })
        .await;
}

#[tokio::test]
async fn what_is_rejected_alone_goes_to_the_dead_letter_topic_in_its_place() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let bench = Bench::new();
        bench.append(1..=20).await;
        // 5 is poison, 6 was its neighbour; later two in one hand-over.
        let twice = |id| [(id, Fate::Reject), (id, Fate::Reject)];
        bench.fates(&[twice(5).as_slice(), &[(6, Fate::Reject)], &twice(11), &twice(13)].concat());
        let producer = bench.producer.clone();
        let (cursor, stats) = bench
            .run(delivery, async |bench| {
                bench.until_cursor(20).await;
                assert_eq!(bench.letters(), [0; 0]);
            })
            .await;
        assert_eq!((cursor, stats.dead_lettered.get()), (Seq(20), 3), "{delivery:?}");
        producer.with(|script| {
            let mut letters: Vec<_> = script
                .letters
                .iter()
                .map(|[id, code, topic]| (id.as_str(), code.as_str(), topic.as_str()))
                .collect();
            letters.dedup();
            letters.sort_unstable();
            letters.dedup();
            assert_eq!(letters, [("11", "10", "t"), ("13", "10", "t"), ("5", "10", "t")]);
            if delivery == Delivery::ExactlyOnce {
                assert_eq!(script.transactions.committed_ids(), ids(1..=20));
                assert_eq!(stats.kafka_out.get(), 20);
            }
        });
    }
}

#[tokio::test]
async fn what_the_dead_letter_topic_refuses_too_is_kept_on_disk() {
    for (delivery, last) in [
        (Delivery::AtLeastOnce, Fate::Reject),
        (Delivery::AtLeastOnce, Fate::Misconfigured),
        (Delivery::ExactlyOnce, Fate::Reject),
    ] {
        let bench = Bench::new();
        bench.append(1..=10).await;
        bench.fates(&[(5, Fate::Reject), (5, Fate::Reject), (5, last)]);
        let producer = bench.producer.clone();
        let (cursor, stats) = bench
            .run(delivery, async |bench| {
                bench.until_cursor(10).await;
                assert_eq!(bench.letters(), [5]);
            })
            .await;
        assert_eq!((cursor, stats.dead_lettered.get()), (Seq(10), 1));
        producer.with(|script| assert!(!script.delivered.contains(&"5".to_owned())));
    }
}

#[tokio::test]
async fn without_a_topic_a_dead_letter_is_kept_on_disk_and_without_a_disk_the_line_waits() {
    let mut bench = Bench::new();
    bench.dead_letter_topic = None;
    bench.append(1..=10).await;
    bench.fates(&[(5, Fate::Reject), (5, Fate::Reject)]);
    // Something else in the way of the store.
    std::fs::write(bench.letter_dir(), "").unwrap();
    let (cursor, stats) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.sent.iter().filter(|(id, _)| id == "5").count() == 2).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(bench.buffer.figures().cursor < Seq(5));
            std::fs::remove_file(bench.letter_dir()).unwrap();
            bench.until_cursor(10).await;
            assert_eq!(bench.letters(), [5]);
        })
        .await;
    assert_eq!((cursor, stats.dead_lettered.get()), (Seq(10), 1));
}

#[tokio::test]
async fn what_has_no_schema_yet_holds_the_line_and_what_went_before_it_is_committed() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let mut bench = Bench::new();
        let (known, schemas) = Schemas::scripted();
        bench.schemas = Cell::new(Some(schemas));
        bench.append(1..=3).await;
        bench.append_of("other", 4..=4).await;
        bench.append(5..=6).await;
        let ids_of =
            |topics: &[&str]| Arc::new(topics.iter().map(|topic| ((*topic).to_owned(), 7)).collect());
        let (cursor, stats) = bench
            .run(delivery, async |bench| {
                known.send_replace(ids_of(&["t"]));
                bench.until_cursor(3).await;
                // News of a third topic changes nothing.
                known.send_replace(ids_of(&["t", "third"]));
                bench.append(7..=7).await;
                bench.producer.with(|script| assert_eq!(script.sent.len(), 3));
                known.send_replace(ids_of(&["t", "other"]));
                bench.until_cursor(7).await;
            })
            .await;
        assert_eq!(
            (cursor, stats.kafka_out.get(), stats.kafka_rewinds.get()),
            (Seq(7), 7, 0),
            "{delivery:?}"
        );
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_schema() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let mut bench = Bench::new();
        let (_known, schemas) = Schemas::scripted();
        bench.schemas = Cell::new(Some(schemas));
        bench.append(1..=3).await;
        bench.stop_grace = Duration::from_secs(3600);
        let stopped = bench.run(delivery, async |_| tokio::task::yield_now().await);
        let (cursor, _) = tokio::time::timeout(Duration::from_secs(60), stopped).await.unwrap();
        assert_eq!(cursor, Seq(0));
    }
}

#[tokio::test]
async fn at_most_once_counts_what_it_read_and_could_not_send() {
    let mut bench = Bench::new();
    let (_known, schemas) = Schemas::scripted();
    bench.schemas = Cell::new(Some(schemas));
    bench.append(1..=10).await;
    let (cursor, stats) = bench
        .run(Delivery::AtMostOnce, async |bench| {
            while bench.buffer.figures().cursor < Seq(10) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    assert_eq!((cursor, stats.kafka_lost.get()), (Seq(10), 10));
}

#[tokio::test]
async fn the_oldest_event_keeps_its_age_while_the_line_has_to_wait() {
    let mut bench = Bench::new();
    bench.rates = Rates { events: Some(1), ..Rates::default() };
    bench.append_at(7, "t", 1..=2).await;
    let (cursor, stats) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|_| bench.stats.kafka_out.get() == 1).await;
            assert_eq!(
                (bench.producer.with(|script| script.sent.len()), bench.stats.oldest_boot_us.get()),
                (1, 7)
            );
            bench.until_cursor(2).await;
        })
        .await;
    assert_eq!((cursor, stats.oldest_boot_us.get()), (Seq(2), 0));
}

#[tokio::test]
async fn a_successor_takes_over_between_two_hand_overs() {
    let bench = Bench::new();
    bench.append(1..=3).await;
    bench.fates(&[(2, Fate::Hold)]);
    let (cursor, stats) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.held.len() == 1).await;
            bench.producer.with(|script| script.has_successor = true);
            bench.producer.reported.notify_one();
            // 4 goes out once 2 has been waited for long enough, still by the old one.
            bench.append(4..=4).await;
            bench.producer.until(|script| script.delivered.contains(&"4".to_owned())).await;
            bench.producer.with(|script| assert_eq!(script.restarts, 0, "2 is in flight"));
            bench.producer.release();
            bench.producer.until(|script| script.restarts == 1).await;
            bench.append(5..=5).await;
            bench.producer.until(|script| script.delivered.len() == 5).await;
        })
        .await;
    assert_eq!((cursor, stats.kafka_out.get(), stats.kafka_rewinds.get()), (Seq(5), 5, 0));
}

#[tokio::test]
async fn a_successor_sends_again_what_a_dead_link_kept() {
    let bench = Bench::new();
    bench.append(1..=3).await;
    bench.fates(&[(2, Fate::Hold), (3, Fate::Hold)]);
    let (cursor, stats) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.held.len() == 2).await;
            bench.stats.kafka.set(LinkState::Down);
            bench.producer.with(|script| script.has_successor = true);
            bench.producer.reported.notify_one();
            bench.producer.until(|script| script.delivered.len() == 3).await;
            bench.producer.with(|script| assert_eq!(script.delivered, ids(1..=3)));
        })
        .await;
    assert_eq!((cursor, stats.kafka_rewinds.get()), (Seq(3), 1));
}

#[tokio::test]
async fn a_report_that_is_taken_late_ends_no_outage() {
    let bench = Bench::new();
    bench.append(1..=3).await;
    bench.fates(&[(2, Fate::Hold), (3, Fate::Hold)]);
    bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.held.len() == 2).await;
            bench.stats.kafka.set(LinkState::Down);
            bench.producer.release();
            bench.until_cursor(3).await;
            assert_eq!(bench.stats.kafka.get(), LinkState::Down);
        })
        .await;
}

#[tokio::test]
async fn a_successor_takes_over_between_two_transactions() {
    let bench = Bench::new();
    bench.append(1..=10).await;
    let (cursor, stats) = bench
        .run(Delivery::ExactlyOnce, async |bench| {
            bench.producer.until(|script| !script.transactions.open.is_empty()).await;
            bench.producer.with(|script| script.has_successor = true);
            bench.producer.reported.notify_one();
            bench.producer.until(|script| script.restarts == 1).await;
            bench.producer.with(|script| {
                assert_eq!(script.transactions.committed_ids(), ids(1..=10), "committed before");
                assert!(!script.transactions.steps.contains(&Step::Abort));
            });
            bench.append(11..=20).await;
            bench.producer.until(|script| script.transactions.committed_ids() == ids(1..=20)).await;
        })
        .await;
    assert_eq!((cursor, stats.kafka_out.get(), stats.kafka_rewinds.get()), (Seq(20), 20, 0));
}
