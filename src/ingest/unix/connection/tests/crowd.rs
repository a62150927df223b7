//! Many connections and one budget.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use super::*;
use crate::ingest::unix::budget::bytes_min;

/// Larger than a chunk, as its line is, too.
const LARGE: usize = 150_000;

/// Waits for all of `parts`.
async fn all(mut parts: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    poll_fn(|context| {
        parts.retain_mut(|part| part.as_mut().poll(context).is_pending());
        if parts.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Serves `peers` connections while `peer` plays the other end of each.
async fn crowd(
    admission: &Admission,
    store: &Store,
    budget: &Budget,
    peers: u64,
    peer: impl AsyncFn(u64, UnixStream),
) {
    let stop = CancellationToken::new();
    let mut parts: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
    for n in 0..peers {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let append = |batch| store.append(batch);
        parts.push(Box::pin(Connection::new(ours, admission, Share::new(budget), WAIT, append).run(&stop)));
        parts.push(Box::pin(peer(n, theirs)));
    }
    all(parts).await;
}

fn large_admission(place: &Place) -> Admission {
    place.admission_of(LARGE)
}

/// An event near the limit, its payload in base64 or as JSON text.
fn large_event(id: u64, is_base64: bool) -> String {
    let bytes = LARGE - 100;
    let (field, bytes) = if is_base64 { ("payload_base64", bytes / 3 * 4) } else { ("payload", bytes) };
    let text = "A".repeat(bytes);
    format!(
        "{{\"id\":\"{id}\",\"type\":\"t\",\"source_type\":\"s\",\"source_id\":\"1\",\"{field}\":\"{text}\"}}\n"
    )
}

async fn ack(stream: &mut BufReader<UnixStream>) -> String {
    let mut answer = String::new();
    stream.read_line(&mut answer).await.unwrap();
    answer
}

#[tokio::test(start_paused = true)]
async fn connections_take_turns_within_the_budget() {
    const PEERS: u64 = 40;
    const EVENTS: u64 = 4000;
    const BYTES_MAX: usize = 1 << 20;
    let place = Place::new();
    let (admission, store) = (place.admission(), Store::waiting());
    let budget = Budget::new(BYTES_MAX, EVENT_BYTES_MAX);
    assert_eq!(budget.free(), BYTES_MAX);
    let release = async {
        // The paused clock moves when everybody had a turn; at the end as much is on its way as may be.
        let mut before = usize::MAX;
        while mem::replace(&mut before, store.pending_bytes.get()) != store.pending_bytes.get() {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(store.pending_bytes.get() > BYTES_MAX / 8, "{}", store.pending_bytes.get());
        assert!(budget.free() <= BYTES_MAX / 2, "{}", budget.free());
        while store.durable.borrow().len() < usize::try_from(PEERS * EVENTS).unwrap() {
            store.permits.add_permits(1);
            tokio::task::yield_now().await;
        }
    };
    let serve = crowd(&admission, &store, &budget, PEERS, async |n, stream| {
        let (answers, mut out) = stream.into_split();
        let send = async {
            let lines: String = (0..EVENTS).map(|id| event(n * EVENTS + id) + "\n").collect();
            out.write_all(lines.as_bytes()).await.unwrap();
            drop(out);
        };
        let (answers, ()) = tokio::join!(super::answers(answers), send);
        assert_eq!(answers.last().unwrap()["ack"], EVENTS);
    });
    tokio::join!(serve, release);
    let most = store.pending_bytes_max.get();
    assert!(most <= BYTES_MAX, "{most}");
    assert_eq!(budget.free(), BYTES_MAX);
    // Everybody had a turn before anybody was through.
    let durable = store.durable.borrow();
    let peers: Vec<u64> = durable.iter().map(|id| id.parse::<u64>().unwrap() / EVENTS).collect();
    let first = |n| peers.iter().position(|&peer| peer == n).unwrap();
    let through = |n| peers.iter().rposition(|&peer| peer == n).unwrap();
    let (last_first, first_through) = ((0..PEERS).map(first).max(), (0..PEERS).map(through).min());
    assert!(last_first < first_through, "{last_first:?} {first_through:?}");
}

#[tokio::test]
async fn a_connection_that_waits_for_nothing_holds_nothing() {
    let place = Place::new();
    let (admission, store) = (place.admission(), Store::scripted([]));
    let budget = Budget::new(0, EVENT_BYTES_MAX);
    let all = budget.free();
    crowd(&admission, &store, &budget, 3, async |n, stream| {
        let mut stream = BufReader::new(stream);
        stream.write_all((event(n) + "\nhalf").as_bytes()).await.unwrap();
        assert_eq!(ack(&mut stream).await, "{\"ack\":1}\n");
        until(|| budget.free() == all).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn half_a_line_harms_nobody() {
    for half in [20_000, 2 * CHUNK_BYTES] {
        let place = Place::new();
        let (admission, store) = (large_admission(&place), Store::scripted([]));
        let budget = Budget::new(0, LARGE);
        let all = budget.free();
        let began = Instant::now();
        let is_held = Cell::new(false);
        let served = crowd(&admission, &store, &budget, 3, async |n, stream| {
            let mut stream = BufReader::new(stream);
            if n == 0 {
                stream.write_all(&vec![b'x'; half]).await.unwrap();
                until(|| budget.free() < all).await;
                is_held.set(true);
                let refused: Value = serde_json::from_str(&ack(&mut stream).await).unwrap();
                assert_eq!((&refused["code"], &refused["line"]), (&"timeout".into(), &1.into()), "{refused}");
                // What still comes of it is passed over.
                stream.write_all(format!("xx\n{}\n", event(1)).as_bytes()).await.unwrap();
            } else {
                until(|| is_held.get()).await;
                stream.write_all(large_event(n, n == 1).as_bytes()).await.unwrap();
            }
            assert_eq!(ack(&mut stream).await, "{\"ack\":1}\n");
        });
        tokio::time::timeout(10 * WAIT, served).await.expect("the half line gives way");
        assert_eq!(budget.free(), all);
        assert!(began.elapsed() >= WAIT && began.elapsed() < 2 * WAIT, "{:?}", began.elapsed());
        assert_eq!(stats(&admission).refused.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_line_that_nobody_waits_for_has_all_the_time() {
    let place = Place::new();
    let (admission, store) = (large_admission(&place), Store::scripted([]));
    let budget = Budget::new(2 << 20, LARGE);
    crowd(&admission, &store, &budget, 2, async |n, stream| {
        let mut stream = BufReader::new(stream);
        let line = large_event(n, false);
        let (one, two) = line.split_at(2 * CHUNK_BYTES);
        stream.write_all(one.as_bytes()).await.unwrap();
        tokio::time::sleep(10 * WAIT).await;
        stream.write_all(two.as_bytes()).await.unwrap();
        assert_eq!(ack(&mut stream).await, "{\"ack\":1}\n");
    })
    .await;
}

#[tokio::test]
async fn the_largest_events_get_through_on_many_connections() {
    const PEERS: u64 = 8;
    const EVENTS: u64 = 10;
    for bytes_max in [bytes_min(LARGE), 2 * bytes_min(LARGE)] {
        let place = Place::new();
        let (admission, store) = (large_admission(&place), Store::waiting());
        let budget = Budget::new(bytes_max, LARGE);
        let release = async {
            while store.durable.borrow().len() < usize::try_from(PEERS * EVENTS * 2).unwrap() {
                tokio::task::yield_now().await;
                store.permits.add_permits(usize::from(store.permits.available_permits() == 0));
            }
        };
        let serve = crowd(&admission, &store, &budget, PEERS, async |n, stream| {
            let (answers, mut out) = stream.into_split();
            let send = async {
                for id in 0..EVENTS {
                    // Small ones between them, so that a chunk holds an end, a whole and a beginning.
                    let lines = large_event(id, n % 2 == 0) + &event(id) + "\n";
                    out.write_all(lines.as_bytes()).await.unwrap();
                }
                drop(out);
            };
            let (answers, ()) = tokio::join!(super::answers(answers), send);
            assert_eq!(answers.last().unwrap()["ack"], 2 * EVENTS);
        });
        let both = async { tokio::join!(serve, release) };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("no connection waits for ever");
        assert!(store.pending_bytes_max.get() <= bytes_max);
        assert_eq!(budget.free(), bytes_max);
    }
}

#[test]
fn an_event_takes_no_more_memory_than_its_line() {
    let place = Place::new();
    let admission = place.admission();
    for line in [
        r#"{"type":"t","source_type":"s","source_id":"1","payload":1}"#,
        r#"{"type":"t","source_type":"s","source_id":"1","payload_base64":""}"#,
        r#"{"id":"1","type":"t","source_type":"s","source_id":"1","payload":1}"#,
        &event(12345),
    ] {
        let mut batch = Batch::new();
        for _ in 0..1000 {
            admission.admit(&parse_event(line.as_bytes()).unwrap(), None, &mut batch).unwrap();
        }
        let bytes = batch.memory_bytes() / 1000;
        assert!(bytes <= line.len() + 1, "{bytes} bytes of {line}");
    }
}
