//! A steady 2,000 events a second, by MQTT and by the socket: how long until a consumer has an event, and what the agent
//! uses for it.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use rdkafka::Message as _;
use rdkafka::consumer::BaseConsumer;

use crate::kafka::Topic;
use crate::mqtt;
use crate::process::{Agent, unique};
use crate::report::{Arguments, Row, Target, median};
use crate::socket::{self, SOURCES, source_id};

/// Events a second.
const PACE: u64 = 2000;

/// Not measured: connections, first segments, warm caches.
const WARM_UP: Duration = Duration::from_secs(3);

/// `kafka.round_interval` as it is by default: how long an event may wait for others.
const ROUND_INTERVAL_MS: f64 = 5.0;

/// What the socket's sender puts between two portions.
const PORTION: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy)]
enum Input {
    Mqtt,
    Socket,
}

/// Of one round.
struct Round {
    /// From the producer to a Kafka consumer's hands, milliseconds.
    p50: f64,
    p99: f64,
    maximum: f64,
    /// CPU seconds for a million events.
    cpu: f64,
    /// Of threads, for each event.
    wakeups: f64,
    /// Events a second.
    rate: f64,
    /// Resident memory, MB.
    peak: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Vec<Row> {
    let socket = rounds(arguments, Input::Socket);
    let mqtt = rounds(arguments, Input::Mqtt);
    let row = |name, unit, rounds: &[Round], figure: fn(&Round) -> f64, target| {
        Row::single(name, unit, median(rounds.iter().map(figure)), target)
    };
    vec![
        row("socket 2,000/s: to the consumer p50", "ms", &socket, |round| round.p50, Target::None),
        row(
            "socket 2,000/s: to the consumer p99",
            "ms",
            &socket,
            |round| round.p99,
            Target::Max(ROUND_INTERVAL_MS + 20.0),
        ),
        row("socket 2,000/s: to the consumer, maximum", "ms", &socket, |round| round.maximum, Target::None),
        row("socket 2,000/s: CPU per million events", "s", &socket, |round| round.cpu, Target::None),
        row("MQTT 2,000/s: end to end p50", "ms", &mqtt, |round| round.p50, Target::Max(15.0)),
        row("MQTT 2,000/s: end to end p99", "ms", &mqtt, |round| round.p99, Target::Max(150.0)),
        row("MQTT 2,000/s: end to end maximum", "ms", &mqtt, |round| round.maximum, Target::None),
        row("MQTT 2,000/s: CPU per million events", "s", &mqtt, |round| round.cpu, Target::Max(40.0)),
        row("MQTT 2,000/s: thread wake-ups per event", "", &mqtt, |round| round.wakeups, Target::None),
        row("MQTT 2,000/s: events a second seen", "events/s", &mqtt, |round| round.rate, Target::None),
        row("memory: peak at 2,000 events/s", "MB", &mqtt, |round| round.peak, Target::Max(24.0)),
    ]
}

fn rounds(arguments: &Arguments, input: Input) -> Vec<Round> {
    let all = (1..=arguments.rounds).map(|number| {
        let round = round(arguments, input);
        println!(
            "{input:?} 2,000/s round {number}: p50 {:.1} ms, p99 {:.1} ms, maximum {:.1} ms; {:.1} CPU s per million",
            round.p50, round.p99, round.maximum, round.cpu
        );
        round
    });
    all.collect()
}

fn round(arguments: &Arguments, input: Input) -> Round {
    let (topic, root) = (Topic::create(), unique("bench"));
    let (toml, ready): (_, &[&str]) = match input {
        Input::Mqtt => (mqtt::toml(&topic, &root, &root), &["ready", "MQTT link up"]),
        Input::Socket => (topic.toml(), &["ready", "Kafka link up"]),
    };
    let agent = Agent::new(arguments, &toml);
    let process = agent.start(ready);
    // The subscription follows the connection at once; nothing says so.
    std::thread::sleep(Duration::from_millis(500));
    let total = PACE * (WARM_UP + arguments.pace).as_secs();
    let producer = std::thread::spawn({
        let socket = agent.socket();
        move || match input {
            Input::Mqtt => mqtt::publish(&root, total, Some(PACE)),
            Input::Socket => send(&socket, total),
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let reader = follow(topic.follow(), micros() + micros_of(WARM_UP), Arc::clone(&stop));
    std::thread::sleep(WARM_UP);
    let (before, start) = (process.usage(), Instant::now());
    let first = topic.count();
    std::thread::sleep(arguments.pace.saturating_sub(Duration::from_secs(1)));
    let (after, elapsed) = (process.usage(), start.elapsed());
    let events = (topic.count() - first) as f64;
    producer.join().unwrap();
    topic.wait_count(total, Duration::from_millis(50));
    std::thread::sleep(Duration::from_millis(200));
    stop.store(true, Ordering::Relaxed);
    let latencies = reader.join().unwrap();
    let (_, peak) = process.memory();
    process.terminate();
    let ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Round {
        p50: ms(0.5),
        p99: ms(0.99),
        maximum: ms(1.0),
        cpu: (after.cpu - before.cpu).as_secs_f64() * 1e6 / events,
        wakeups: (after.wakeups - before.wakeups) as f64 / events,
        rate: events / elapsed.as_secs_f64(),
        peak,
    }
}

/// `events` lines over the socket at [`PACE`].
fn send(path: &Path, events: u64) {
    let note = socket::payload(1);
    let portion = PACE * micros_of(PORTION) / 1_000_000;
    socket::send_written(path, events, |stream| {
        let begun = Instant::now();
        for n in 0..events / portion {
            let due = PORTION * u32::try_from(n).unwrap();
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let lines: String = (n * portion..(n + 1) * portion)
                .map(|n| {
                    format!(
                        "{{\"type\":\"reading\",\"source_type\":\"energy-meter\",\"source_id\":\"{}\",\"payload\":{{\"sent\":{},\"values\":{note}}}}}\n",
                        source_id(n % SOURCES),
                        micros()
                    )
                })
                .collect();
            stream.write_all(lines.as_bytes()).unwrap();
        }
    });
}

pub(crate) fn micros() -> u64 {
    micros_of(SystemTime::UNIX_EPOCH.elapsed().unwrap())
}

fn micros_of(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap()
}

/// From publishing to a Kafka consumer's hands, microseconds, for what was published at `from` or later.
fn follow(consumer: BaseConsumer, from: u64, stop: Arc<AtomicBool>) -> JoinHandle<Histogram<u64>> {
    std::thread::spawn(move || {
        let mut latencies = Histogram::new(3).unwrap();
        while !stop.load(Ordering::Relaxed) {
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
            let now = micros();
            let text = std::str::from_utf8(message.payload().unwrap()).unwrap();
            let (_, sent) = text.split_once("\"sent\":").unwrap();
            let sent: u64 = sent.split(',').next().unwrap().parse().unwrap();
            if sent >= from {
                latencies.record(now.saturating_sub(sent)).unwrap();
            }
        }
        latencies
    })
}
