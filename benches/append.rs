//! The durable append through the buffer's public handle beside a raw log: a file, one `write` and one `fdatasync`
//! for each group. That log is the limit of what the machine can promise; it has no checksums, no reads, no space
//! that comes back.
//!
//! Both sides store the same events (about 196 bytes in postcard) encoded by the same code inside the measured time,
//! in turns within one run.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    dead_code,
    reason = "a benchmark that cannot go on ends with the place and the reason"
)]

mod report;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use fieldpost::buffer::{Batch, Buffer, Options, Wait};
use fieldpost::event::{Event, EventId, Payload, Stamp, Way};
use report::{Arguments, Row, Target, median, print};

const GROUP: u64 = 1000;
const LONE_ACKS: u64 = 500;

fn main() {
    let arguments = Arguments::parse();
    if !arguments.wants("append") {
        return;
    }
    let groups = (arguments.events / 2 / GROUP / arguments.rounds as u64).max(10);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut rates, mut piped, mut acks) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut raw = RawLog::create(&dir.path().join("raw.log"));
        let (buffer, writer) = Buffer::open(&options(dir.path()), [0; 16], Arc::default()).unwrap();
        let raw_rate = rate(groups, |group| raw.append(&batch(group, GROUP)));
        let rate_one = rate(groups, |group| runtime.block_on(append(&buffer, batch(group, GROUP))));
        let rate_two = rate_ahead(&runtime, &buffer, groups);
        let (raw_acks, buffer_acks) = lone_acks(&runtime, &mut raw, &buffer);
        println!(
            "round {}: groups/s raw {:.0}, buffer {:.0}, one ahead {:.0}; ack p50 raw {raw_acks:.3} ms, buffer {buffer_acks:.3} ms",
            round + 1,
            raw_rate / GROUP as f64,
            rate_one / GROUP as f64,
            rate_two / GROUP as f64,
        );
        rates.push((rate_one, raw_rate));
        piped.push((rate_two, raw_rate));
        acks.push((buffer_acks, raw_acks));
        runtime.block_on(async {
            buffer.close().await;
            writer.ended().await.unwrap();
        });
    }
    print(&[
        Row::paired(
            "durable append, groups of 1000, one at a time",
            "events/s",
            &rates,
            Target::RatioMin(0.5),
        ),
        Row::paired("durable append, groups of 1000, one ahead", "events/s", &piped, Target::RatioMin(0.5)),
        Row::paired("ack of one waiting writer, p50", "ms", &acks, Target::RatioMax(1.5)),
    ]);
}

fn options(dir: &Path) -> Options {
    Options { bytes_max: 4 << 30, ..Options::new(dir) }
}

struct RawLog(File);

impl RawLog {
    fn create(path: &Path) -> Self {
        let file = File::create(path).unwrap();
        File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
        Self(file)
    }

    fn append(&mut self, batch: &Batch) {
        let bytes: Vec<u8> = batch.encoded().flatten().copied().collect();
        self.0.write_all(&bytes).unwrap();
        self.0.sync_data().unwrap();
    }
}

/// `count` events as the agent stores them, different from each other as sensors' are.
fn batch(group: u64, count: u64) -> Batch {
    let mut batch = Batch::new();
    for index in 0..count {
        let n = group * count + index;
        let source_id = format!("meter-{:04}", n % 997);
        let payload = format!(
            r#"{{"n":{n},"celsius":{}.{},"volt":{}.{:02},"state":"ok","place":"hall {}, line {}, cell {}"}}"#,
            n % 40,
            n % 10,
            220 + n % 20,
            n * 7 % 100,
            n % 13,
            n % 31,
            n * 31 % 1009,
        );
        let event = Event {
            id: EventId::Generated(uuid::Uuid::now_v7().into_bytes()),
            kind: "reading",
            source_type: "energy-meter",
            source_id: &source_id,
            timestamp: Some("2026-03-01T12:00:00.123456Z"),
            received: Stamp {
                wall_us: 1_772_366_400_000_000 + i64::try_from(n).unwrap(),
                boot_us: n,
                clock_trusted: true,
            },
            payload: Payload::Json(&payload),
            way: Way::USUAL,
        };
        batch.push(&event, 1 << 20).unwrap();
    }
    batch
}

async fn append(buffer: &Buffer, batch: Batch) {
    buffer.append(batch, Wait::Forever).await.expect("the buffer takes it");
}

/// Events a second.
fn rate(groups: u64, mut append: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    for group in 0..groups {
        append(group);
    }
    (groups * GROUP) as f64 / start.elapsed().as_secs_f64()
}

/// The same with the next group on its way while one is synced, as the inputs do it.
fn rate_ahead(runtime: &tokio::runtime::Runtime, buffer: &Buffer, groups: u64) -> f64 {
    runtime.block_on(async {
        let start = Instant::now();
        let mut waiting: Option<tokio::task::JoinHandle<()>> = None;
        let tasks = tokio::task::LocalSet::new();
        tasks
            .run_until(async {
                for group in 0..groups {
                    let (buffer, batch) = (buffer.clone(), batch(group, GROUP));
                    let next = tokio::task::spawn_local(async move { append(&buffer, batch).await });
                    tokio::task::yield_now().await;
                    if let Some(before) = waiting.replace(next) {
                        before.await.unwrap();
                    }
                }
                waiting.unwrap().await.unwrap();
            })
            .await;
        (groups * GROUP) as f64 / start.elapsed().as_secs_f64()
    })
}

/// Medians in milliseconds, raw and buffer, in turns.
fn lone_acks(runtime: &tokio::runtime::Runtime, raw: &mut RawLog, buffer: &Buffer) -> (f64, f64) {
    let (mut raw_ms, mut buffer_ms) = (Vec::new(), Vec::new());
    let ms = |start: Instant| start.elapsed().as_secs_f64() * 1000.0;
    for n in 0..LONE_ACKS {
        let event = batch(n, 1);
        let start = Instant::now();
        raw.append(&event);
        raw_ms.push(ms(start));
        let start = Instant::now();
        runtime.block_on(append(buffer, event));
        buffer_ms.push(ms(start));
    }
    (median(raw_ms.into_iter()), median(buffer_ms.into_iter()))
}
