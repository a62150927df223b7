//! The handle on the real store.

use super::*;
use crate::event::{Event, EventId, Payload, Stamp};

const BOOT: [u8; 16] = [1; 16];

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        bytes_max: 64 * 1024 * 1024,
        when_full: WhenFull::Block,
        commit_interval: Duration::ZERO,
        queue_bytes_max: 4 * 1024 * 1024,
    }
}

fn batch(from: u64, count: u64, payload: &str) -> Batch {
    let mut batch = Batch::new();
    for n in from..from + count {
        let id = n.to_string();
        let received = Stamp { wall_us: 1, boot_us: 2, clock_trusted: true };
        let event = Event {
            id: EventId::Given(&id),
            kind: "reading",
            source_type: "meter",
            source_id: "m-1",
            timestamp: None,
            received,
            payload: Payload::Json(payload),
        };
        batch.push(&event, usize::MAX).unwrap();
    }
    batch
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
    let (buffer, thread) = Buffer::open(&options(dir.path()), BOOT).unwrap();
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
    buffer.close().await;
    thread.ended().await.unwrap();

    let (buffer, thread) = Buffer::open(&options(dir.path()), BOOT).unwrap();
    assert_eq!(buffer.figures().cursor, Seq(50));
    assert_eq!(buffer.log().epoch, 2);
    assert_eq!(read_ids(&buffer, Seq(50)).await, (51..next).collect::<Vec<_>>());
    let appended = buffer.append(batch(next, 1, "1"), Wait::Forever).await.unwrap();
    assert_eq!(appended.first, Seq(next));
    buffer.close().await;
    thread.ended().await.unwrap();
}

#[tokio::test]
async fn space_comes_back_behind_the_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let (buffer, thread) = Buffer::open(&options(dir.path()), BOOT).unwrap();
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
    assert!(empty.disk_bytes < 16 * 1024 * 1024);
    buffer.close().await;
    thread.ended().await.unwrap();
}
