//! Unix socket to Kafka at full speed, acknowledgements read, beside a bare producer of the same records.

use std::io::{BufRead, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::kafka::{self, Topic};
use crate::process::Agent;
use crate::report::{Arguments, Row, Target, median};

/// Different lines; sent again and again.
pub(crate) const SOURCES: u64 = 1000;

const PAYLOAD_BYTES: usize = 200;

pub(crate) fn source_id(n: u64) -> String {
    format!("meter-{n:04}")
}

/// 200 bytes of JSON, different for each source.
pub(crate) fn payload(n: u64) -> String {
    let values = format!(
        r#"{{"n":{n},"celsius":{}.{},"volt":{}.{:02},"ampere":{}.{:03},"place":"hall {}, line {}","note":""#,
        n % 40,
        n % 10,
        220 + n % 20,
        n * 7 % 100,
        n % 16,
        n * 31 % 1000,
        n % 13,
        n % 31
    );
    let mut random = fastrand::Rng::with_seed(n);
    let fill = PAYLOAD_BYTES - values.len() - 2;
    let note: String = std::iter::repeat_with(|| random.lowercase()).take(fill).collect();
    format!("{values}{note}\"}}")
}

/// Sends `events` lines and returns when all of them are acknowledged.
pub(crate) fn send(socket: &Path, events: u64) -> Instant {
    let lines: Vec<String> = (0..SOURCES)
        .map(|n| {
            format!(
                "{{\"type\":\"reading\",\"source_type\":\"energy-meter\",\"source_id\":\"{}\",\"payload\":{}}}\n",
                source_id(n),
                payload(n)
            )
        })
        .collect();
    let all = lines.concat();
    send_written(socket, events, |stream| {
        for _ in 0..events / SOURCES {
            stream.write_all(all.as_bytes()).unwrap();
        }
        let rest = usize::try_from(events % SOURCES).unwrap();
        stream.write_all(lines[..rest].concat().as_bytes()).unwrap();
    })
}

/// Lets `write` send `events` lines over a connection and returns when all of them are acknowledged. The answers are
/// read meanwhile, as the agent expects of a client that does not wait for each.
pub(crate) fn send_written(socket: &Path, events: u64, write: impl FnOnce(&mut UnixStream)) -> Instant {
    let mut stream = UnixStream::connect(socket).expect("the agent listens");
    let replies = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut last = String::new();
        for line in BufReader::new(replies).lines() {
            last = line.unwrap();
            assert!(last.starts_with("{\"ack\""), "{last}");
        }
        (last, Instant::now())
    });
    write(&mut stream);
    stream.shutdown(Shutdown::Write).unwrap();
    let (last, end) = reader.join().unwrap();
    assert_eq!(last, format!("{{\"ack\":{events}}}"));
    end
}

pub(crate) fn run(arguments: &Arguments) -> Vec<Row> {
    let events = arguments.events;
    let (mut rates, mut cpus, mut acked, mut peaks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        let (bare_rate, bare_cpu) = kafka::bare_producer(events);
        let topic = Topic::create();
        let agent = Agent::new(arguments, &topic.toml());
        let process = agent.start(&["ready"]);
        let before = process.usage();
        let start = Instant::now();
        let all_acked = send(&agent.socket(), events);
        let end = topic.wait_count(events, Duration::from_millis(10));
        let cpu = (process.usage().cpu - before.cpu).as_secs_f64() * 1e6 / events as f64;
        let rate = events as f64 / (end - start).as_secs_f64();
        let peak = process.memory().1;
        println!(
            "socket round {}: {rate:.0} events/s ({:.0} acknowledged), {cpu:.2} CPU s per million, peak {peak:.1} MB; bare {bare_rate:.0}, {bare_cpu:.2}",
            round + 1,
            events as f64 / (all_acked - start).as_secs_f64(),
        );
        rates.push((rate, bare_rate));
        cpus.push((cpu, bare_cpu));
        acked.push(events as f64 / (all_acked - start).as_secs_f64());
        peaks.push(peak);
        process.terminate();
    }
    let cpu = Row {
        target: Target::Max(7.0),
        ..Row::paired("socket: CPU per million events", "s", &cpus, Target::None)
    };
    vec![
        Row::paired("socket to Kafka, 200-byte payloads", "events/s", &rates, Target::RatioMin(0.4)),
        Row::single("socket: acknowledged", "events/s", median(acked.into_iter()), Target::None),
        cpu,
        Row::single("socket: peak memory", "MB", median(peaks.into_iter()), Target::None),
    ]
}
