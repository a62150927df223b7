//! One connection of the socket against a buffer that takes, refuses and waits: answers, their order, and the memory
//! behind them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Semaphore;

use super::*;
use crate::buffer::Buffer;
use crate::event::Seq;
use crate::ingest::route::{Keep, Pattern, Route, Routes};
use crate::ingest::unix::budget::Budget;
use crate::stats::Stats;

mod crowd;

const EVENT_BYTES_MAX: usize = 1000;

/// How long a half line may take while others wait.
const WAIT: Duration = Duration::from_secs(5);

/// What becomes of a batch.
#[derive(Debug, Clone)]
enum Outcome {
    Durable,
    Refused(AppendError),
}

/// Plays the buffer: answers each append as the script says, one permit each, and remembers what is durable.
struct Store {
    script: RefCell<VecDeque<Outcome>>,
    permits: Semaphore,
    /// Ids of durable events in order.
    durable: RefCell<Vec<String>>,
    appends: Cell<usize>,
    batch_bytes_max: Cell<usize>,
    /// Of batches that are not answered, in memory: now and at most.
    pending_bytes: Cell<usize>,
    pending_bytes_max: Cell<usize>,
}

impl Store {
    /// Everything becomes durable once there is a permit.
    fn waiting() -> Self {
        Self {
            script: RefCell::default(),
            permits: Semaphore::new(0),
            durable: RefCell::default(),
            appends: Cell::new(0),
            batch_bytes_max: Cell::new(0),
            pending_bytes: Cell::new(0),
            pending_bytes_max: Cell::new(0),
        }
    }

    fn scripted(script: impl IntoIterator<Item = Outcome>) -> Self {
        let store = Self { script: RefCell::new(script.into_iter().collect()), ..Self::waiting() };
        store.permits.add_permits(Semaphore::MAX_PERMITS);
        store
    }

    async fn append(&self, batch: Batch) -> Result<Appended, Refused> {
        self.appends.set(self.appends.get() + 1);
        self.batch_bytes_max.set(self.batch_bytes_max.get().max(batch.bytes()));
        self.pending_bytes.set(self.pending_bytes.get() + batch.memory_bytes());
        self.pending_bytes_max.set(self.pending_bytes_max.get().max(self.pending_bytes.get()));
        self.permits.acquire().await.unwrap().forget();
        self.appends.set(self.appends.get() - 1);
        self.pending_bytes.set(self.pending_bytes.get() - batch.memory_bytes());
        match self.script.borrow_mut().pop_front().unwrap_or(Outcome::Durable) {
            Outcome::Durable => {
                let mut durable = self.durable.borrow_mut();
                let mut space = [0; 36];
                durable.extend(batch.events().map(|event| event.id.text(&mut space).to_owned()));
                Ok(Appended { first: Seq(1), batch })
            }
            Outcome::Refused(reason) => Err(Refused { reason, batch: Some(batch) }),
        }
    }
}

/// A real buffer for [`Admission`]; nothing is appended to it, [`Store`] stands in its place.
struct Place {
    buffer: Buffer,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = crate::buffer::Options::new(dir.path());
        let (buffer, _) = Buffer::open(&options, [0; 16], Arc::default()).unwrap();
        Self { buffer, _dir: dir }
    }

    /// With counters at zero.
    fn admission(&self) -> Admission {
        self.admission_by(EVENT_BYTES_MAX, Vec::new())
    }

    fn admission_of(&self, event_bytes_max: usize) -> Admission {
        self.admission_by(event_bytes_max, Vec::new())
    }

    fn admission_by(&self, event_bytes_max: usize, routes: Vec<Route>) -> Admission {
        Admission::new(
            self.buffer.clone(),
            event_bytes_max,
            Routes::new(routes, 100),
            Arc::default(),
            Arc::default(),
            None,
        )
    }
}

fn stats(admission: &Admission) -> &Stats {
    admission.stats()
}

fn event(id: u64) -> String {
    format!(r#"{{"id":"{id}","type":"t","source_type":"s","source_id":"1","payload":{id}}}"#)
}

/// One that a route drops.
fn noise() -> &'static str {
    "{\"type\":\"noise\",\"source_type\":\"s\",\"source_id\":\"1\",\"payload\":0}"
}

fn drop_noise() -> Vec<Route> {
    vec![Route { kind: Some(Pattern::new("noise")), keep: Keep::Nothing, ..Route::default() }]
}

/// Serves one connection while `peer` plays its other end; both are done when it returns.
async fn served<T>(
    admission: &Admission,
    store: &Store,
    stop: &CancellationToken,
    peer: impl AsyncFnOnce(UnixStream) -> T,
) -> T {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let budget = Budget::new(1 << 20, admission.event_bytes_max());
    let connection = Connection::new(ours, admission, Share::new(&budget), WAIT, |batch| store.append(batch));
    tokio::join!(connection.run(stop), peer(theirs)).1
}

async fn answers(stream: impl tokio::io::AsyncRead + Unpin) -> Vec<Value> {
    let mut text = String::new();
    BufReader::new(stream).read_to_string(&mut text).await.unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A turn for everybody else, as often as it takes.
async fn until(condition: impl Fn() -> bool) {
    let patience = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), patience).await.expect("the condition within 20 s");
}

#[tokio::test]
async fn a_lone_line_is_appended_at_once_and_acknowledged_after() {
    let place = Place::new();
    let (admission, store, stop) = (place.admission(), Store::waiting(), CancellationToken::new());
    served(&admission, &store, &stop, async |stream| {
        let mut stream = BufReader::new(stream);
        let mut answer = String::new();
        for n in 1..=3 {
            stream.write_all((event(n) + "\n").as_bytes()).await.unwrap();
            until(|| store.appends.get() == 1).await;
            assert_eq!(stats(&admission).unix_in.get(), n - 1);
            store.permits.add_permits(1);
            answer.clear();
            stream.read_line(&mut answer).await.unwrap();
            assert_eq!(answer, format!("{{\"ack\":{n}}}\n"));
        }
    })
    .await;
    assert_eq!(*store.durable.borrow(), ["1", "2", "3"]);
    assert_eq!(stats(&admission).unix_in.get(), 3);
}

#[tokio::test]
async fn reading_goes_on_while_appends_wait_and_stops_at_the_bound() {
    let place = Place::new();
    let (admission, store, stop) = (place.admission(), Store::waiting(), CancellationToken::new());
    let sent = served(&admission, &store, &stop, async |mut stream| {
        let mut sent = 0;
        // The peer blocks when nothing more is read.
        for id in 1.. {
            let line = event(id) + "\n";
            let blocked = tokio::time::timeout(Duration::from_millis(200), stream.write_all(line.as_bytes()));
            if blocked.await.is_err() {
                break;
            }
            sent += line.len();
        }
        assert_eq!(store.appends.get(), APPENDS_MAX);
        store.permits.add_permits(Semaphore::MAX_PERMITS);
        stream.shutdown().await.unwrap();
        answers(stream).await;
        sent
    })
    .await;
    assert!(sent < 2 << 20, "{sent} bytes were taken while the buffer took nothing");
    assert!(store.batch_bytes_max.get() <= BATCH_BYTES + EVENT_BYTES_MAX);
}

#[tokio::test]
async fn a_peer_that_reads_only_at_the_end_is_not_waited_for_and_finds_one_number() {
    const EVENTS: u64 = 100_000;
    let place = Place::new();
    let (admission, store, stop) = (place.admission(), Store::scripted([]), CancellationToken::new());
    let answers = served(&admission, &store, &stop, async |mut stream| {
        for id in 1..=EVENTS {
            stream.write_all((event(id) + "\n").as_bytes()).await.unwrap();
        }
        until(|| stats(&admission).unix_in.get() == EVENTS).await;
        stream.shutdown().await.unwrap();
        answers(stream).await
    })
    .await;
    assert_eq!(answers.last().unwrap()["ack"], EVENTS);
    assert_eq!(store.durable.borrow().len() as u64, EVENTS);
}

#[tokio::test]
async fn a_peer_that_leaves_without_reading_loses_nothing() {
    let place = Place::new();
    let (admission, store, stop) = (place.admission(), Store::waiting(), CancellationToken::new());
    served(&admission, &store, &stop, async |mut stream| {
        for id in 1..=1000 {
            stream.write_all((event(id) + "\nrubbish\n").as_bytes()).await.unwrap();
        }
        drop(stream);
        store.permits.add_permits(Semaphore::MAX_PERMITS);
    })
    .await;
    assert_eq!(store.durable.borrow().len(), 1000);
}

#[tokio::test]
async fn an_endless_line_is_refused_once_and_the_connection_lives_on() {
    let place = Place::new();
    let (admission, store, stop) = (place.admission(), Store::scripted([]), CancellationToken::new());
    let answers = served(&admission, &store, &stop, async |mut stream| {
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..50 {
            stream.write_all(&chunk).await.unwrap();
        }
        stream.write_all(format!("\n{}\nhalf", event(1)).as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        answers(stream).await
    })
    .await;
    let [too_large, .., half] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((&too_large["code"], &too_large["line"]), (&"too_large".into(), &1.into()));
    assert_eq!((&half["code"], &half["line"]), (&"invalid".into(), &3.into()), "{answers:?}");
    assert!(answers.contains(&serde_json::json!({"ack": 1})), "{answers:?}");
    assert_eq!((stats(&admission).too_large.get(), stats(&admission).invalid.get()), (1, 1));
}

#[tokio::test]
async fn a_refused_batch_is_told_line_by_line_and_the_connection_goes_on() {
    let reasons = [AppendError::Full, AppendError::TimedOut, AppendError::Storage("EIO".into())];
    for (reason, code) in reasons.into_iter().zip(["buffer_full", "timeout", "storage"]) {
        let script = [Outcome::Durable, Outcome::Refused(reason)];
        let place = Place::new();
        let (admission, store, stop) = (place.admission(), Store::scripted(script), CancellationToken::new());
        let answers = served(&admission, &store, &stop, async |mut stream| {
            for batch in [&[1][..], &[2, 3], &[4]] {
                let lines: String = batch.iter().map(|&id| event(id) + "\n").collect();
                let settled = || stats(&admission).unix_in.get() + stats(&admission).refused.get();
                stream.write_all(lines.as_bytes()).await.unwrap();
                until(|| settled() == *batch.last().unwrap()).await;
            }
            stream.shutdown().await.unwrap();
            answers(stream).await
        })
        .await;
        let told: Vec<_> =
            answers.iter().map(|answer| (&answer["ack"], &answer["code"], &answer["line"])).collect();
        let (null, code) = (Value::Null, Value::from(code));
        let (one, two, three) = (1.into(), 2.into(), 3.into());
        let wanted =
            [(&one, &null, &null), (&null, &code, &two), (&null, &code, &three), (&two, &null, &null)];
        assert_eq!(told, wanted);
        assert_eq!((stats(&admission).unix_in.get(), stats(&admission).refused.get()), (2, 2));
    }
}

#[tokio::test]
async fn a_closed_buffer_ends_the_connection_with_an_answer() {
    let script = [Outcome::Refused(AppendError::Closed)];
    let place = Place::new();
    let (admission, store, stop) = (place.admission(), Store::scripted(script), CancellationToken::new());
    let answers = served(&admission, &store, &stop, async |mut stream| {
        stream.write_all((event(1) + "\n").as_bytes()).await.unwrap();
        answers(stream).await
    })
    .await;
    assert_eq!((answers.len(), &answers[0]["code"]), (1, &"closing".into()));
}

#[tokio::test]
async fn a_stop_settles_what_was_read_and_answers_nothing_else() {
    let place = Place::new();
    let (admission, store, stop) = (place.admission(), Store::waiting(), CancellationToken::new());
    let answer = served(&admission, &store, &stop, async |mut stream| {
        stream.write_all((event(1) + "\n" + &event(2) + "\nha").as_bytes()).await.unwrap();
        until(|| store.appends.get() == 1).await;
        stop.cancel();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.appends.get(), 1);
        stream.write_all(b"lf\n").await.unwrap();
        store.permits.add_permits(1);
        let mut stream = BufReader::new(stream);
        let mut answer = String::new();
        stream.read_line(&mut answer).await.unwrap();
        // Bytes that nobody read turn the end into a reset, behind the answers.
        let end = stream.read(&mut [0]).await;
        assert!(matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{end:?}");
        answer
    })
    .await;
    assert_eq!(answer, "{\"ack\":2}\n");
    assert_eq!(*store.durable.borrow(), ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_a_second_for_a_peer_that_does_not_read() {
    let place = Place::new();
    let (admission, store, stop) = (place.admission(), Store::scripted([]), CancellationToken::new());
    let began = tokio::time::Instant::now();
    served(&admission, &store, &stop, async |mut stream| {
        // More answers than the socket holds.
        for _ in 0..20_000 {
            stream.write_all(b"1\n\n").await.unwrap();
        }
        until(|| stats(&admission).invalid.get() == 20_000).await;
        stop.cancel();
        tokio::time::sleep(2 * STOP_WAIT).await;
    })
    .await;
    assert!(began.elapsed() <= 2 * STOP_WAIT);
}

/// A line as the property test makes it.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Good,
    Blank,
    Invalid,
    TooLong,
    TooLarge,
}

impl Kind {
    fn text(self, number: u64) -> String {
        match self {
            Self::Good => event(number),
            Self::Blank => " \r".into(),
            Self::Invalid => format!("{{\"id\":{number}"),
            Self::TooLong => "x".repeat(line_bytes_max(EVENT_BYTES_MAX) + 1),
            Self::TooLarge => {
                let payload = "y".repeat(EVENT_BYTES_MAX);
                format!(r#"{{"type":"t","source_type":"s","source_id":"1","payload":"{payload}"}}"#)
            }
        }
    }
}

fn kinds() -> impl Strategy<Value = Vec<Kind>> {
    let kind = prop_oneof![
        10 => Just(Kind::Good),
        2 => Just(Kind::Blank),
        2 => Just(Kind::Invalid),
        1 => Just(Kind::TooLong),
        1 => Just(Kind::TooLarge),
    ];
    proptest::collection::vec(kind, 0..120)
}

fn outcomes() -> impl Strategy<Value = Vec<Outcome>> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Durable),
        1 => Just(Outcome::Refused(AppendError::Full)),
        1 => Just(Outcome::Refused(AppendError::TimedOut)),
    ];
    proptest::collection::vec(outcome, 0..40)
}

/// What a client knows from the protocol alone.
#[derive(Default)]
struct Client {
    /// Lines sent and not decided, in order.
    open: VecDeque<u64>,
    durable: Vec<String>,
    refused: BTreeMap<u64, String>,
}

impl Client {
    fn hear(&mut self, answer: &Value) {
        if let Some(ack) = answer["ack"].as_u64() {
            while (self.durable.len() as u64) < ack {
                self.durable.push(self.open.pop_front().unwrap().to_string());
            }
        } else {
            let line = answer["line"].as_u64().unwrap();
            let index = self.open.iter().position(|&open| open == line).unwrap();
            self.open.remove(index);
            let code = answer["code"].as_str().unwrap().to_owned();
            assert_eq!(self.refused.insert(line, code), None);
        }
    }
}

/// One run of the property below.
type Case = (Vec<Kind>, Vec<Outcome>, usize, usize);

fn every_line_has_one_outcome(place: &Place, (kinds, outcomes, chunk, permits_each): Case) {
    let (admission, stop) = (place.admission(), CancellationToken::new());
    let store = Store { script: RefCell::new(outcomes.into()), ..Store::waiting() };
    let mut client = Client::default();
    let mut stream = String::new();
    for (kind, number) in kinds.iter().zip(1..) {
        stream += &kind.text(number);
        stream += "\n";
        if !matches!(kind, Kind::Blank) {
            client.open.push_back(number);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(served(&admission, &store, &stop, async |peer| {
        let (answers, mut out) = peer.into_split();
        let send = async {
            for chunk in stream.as_bytes().chunks(chunk) {
                out.write_all(chunk).await.unwrap();
                tokio::task::yield_now().await;
                store.permits.add_permits(permits_each);
            }
            drop(out);
            store.permits.add_permits(1000);
        };
        let hear = async {
            let mut answers = BufReader::new(answers).lines();
            while let Some(answer) = answers.next_line().await.unwrap() {
                client.hear(&serde_json::from_str(&answer).unwrap());
                // At every moment what the client holds durable is durable.
                assert!(store.durable.borrow().starts_with(&client.durable));
            }
        };
        tokio::join!(send, hear);
    }));
    assert!(client.open.is_empty());
    assert_eq!(client.durable, *store.durable.borrow());
    for (kind, number) in kinds.iter().zip(1..) {
        let code = client.refused.get(&number).map(String::as_str);
        let fits = match kind {
            Kind::Good => matches!(code, None | Some("buffer_full" | "timeout")),
            Kind::Blank => code.is_none(),
            Kind::Invalid => code == Some("invalid"),
            Kind::TooLong | Kind::TooLarge => code == Some("too_large"),
        };
        assert!(fits, "line {number}: {kind:?} {code:?}");
    }
    let stats = stats(&admission);
    let refused = client.refused.len() as u64;
    assert_eq!(stats.unix_in.get(), client.durable.len() as u64);
    assert_eq!(stats.invalid.get() + stats.too_large.get() + stats.refused.get(), refused);
}

#[test]
fn a_client_knows_exactly_one_outcome_of_every_line() {
    let place = Place::new();
    let cases = (kinds(), outcomes(), 1_usize..3000, 0_usize..3);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(128));
    let run = runner.run(&cases, |case| {
        every_line_has_one_outcome(&place, case);
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn what_a_route_leaves_out_is_acknowledged_at_once_and_in_its_turn() {
    let place = Place::new();
    let admission = place.admission_by(EVENT_BYTES_MAX, drop_noise());
    let (store, stop) = (Store::waiting(), CancellationToken::new());
    served(&admission, &store, &stop, async |stream| {
        let mut stream = BufReader::new(stream);
        let mut answer = String::new();
        for n in 1..=2 {
            stream.write_all(format!("{}\n", noise()).as_bytes()).await.unwrap();
            stream.read_line(&mut answer).await.unwrap();
            assert_eq!(answer, format!("{{\"ack\":{n}}}\n"));
            answer.clear();
        }
        // Behind an event that waits for its sync it waits as well: an acknowledgement counts.
        stream.write_all(format!("{}\n", event(1)).as_bytes()).await.unwrap();
        until(|| store.appends.get() == 1).await;
        stream.write_all(format!("{}\n{}\n", noise(), noise()).as_bytes()).await.unwrap();
        until(|| stats(&admission).dropped.get() == 4).await;
        tokio::time::timeout(Duration::from_millis(50), stream.read_line(&mut answer)).await.unwrap_err();
        store.permits.add_permits(1);
        stream.read_line(&mut answer).await.unwrap();
        assert_eq!(answer, "{\"ack\":5}\n");
    })
    .await;
    assert_eq!((store.durable.borrow().len(), stats(&admission).unix_in.get()), (1, 1));
}

#[tokio::test]
async fn what_a_route_leaves_out_is_taken_although_its_neighbour_is_refused() {
    let place = Place::new();
    let admission = place.admission_by(EVENT_BYTES_MAX, drop_noise());
    let store = Store::scripted([Outcome::Refused(AppendError::Full)]);
    let stop = CancellationToken::new();
    let answers = served(&admission, &store, &stop, async |mut stream| {
        let lines = format!("{}\n{}\n{}\n", noise(), event(1), noise());
        stream.write_all(lines.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        answers(stream).await
    })
    .await;
    assert_eq!((answers[0]["code"].as_str(), answers[0]["line"].as_u64()), (Some("buffer_full"), Some(2)));
    assert_eq!(answers[1..], [serde_json::json!({ "ack": 2 })]);
    assert_eq!((stats(&admission).refused.get(), stats(&admission).dropped.get()), (1, 2));
}
