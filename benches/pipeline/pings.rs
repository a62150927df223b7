//! Pings beside the events: what they cost an acknowledgement, and how soon after the sync a subscriber has one.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::kafka::Topic;
use crate::process::{Agent, service};
use crate::report::{Arguments, Row, Target, median};

/// Events a second, each with a ping.
const RATE: u64 = 50_000;
/// Time between two portions of them.
const PORTION: Duration = Duration::from_millis(5);
/// One by one, for the time between the sync and the ping.
const SINGLES: u64 = 2000;
const SINGLE_PAUSE: Duration = Duration::from_millis(5);

fn line(n: u64, source: u64) -> String {
    format!(
        "{{\"id\":\"{n}\",\"type\":\"reading\",\"source_type\":\"meter\",\"source_id\":\"m-{source}\",\"payload\":{{\"n\":{n}}}}}\n"
    )
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).unwrap()
}

/// Sends `rate` events a second for `time`; how long each portion waited for the acknowledgement of its last event, in
/// microseconds, and the rate that it was.
pub(crate) fn paced(socket: &Path, rate: u64, time: Duration) -> (Histogram<u64>, f64) {
    let per_portion = rate * u64::try_from(PORTION.as_micros()).unwrap() / 1_000_000;
    let portions = u64::try_from(time.as_micros() / PORTION.as_micros()).unwrap();
    let mut stream = UnixStream::connect(socket).expect("the agent listens");
    let replies = stream.try_clone().unwrap();
    let (sent, portions_sent) = sync_channel::<(u64, Instant)>(100_000);
    let reader = std::thread::spawn(move || {
        let mut waits = histogram();
        let mut waiting = portions_sent.recv().ok();
        for reply in BufReader::new(replies).lines() {
            let reply = reply.unwrap();
            let acked = reply.strip_prefix("{\"ack\":").and_then(|rest| rest.strip_suffix('}'));
            let acked: u64 = acked.unwrap_or_else(|| panic!("{reply}")).parse().unwrap();
            let now = Instant::now();
            while let Some((_, at)) = waiting.filter(|(last, _)| *last <= acked) {
                waits.record(u64::try_from((now - at).as_micros()).unwrap()).unwrap();
                waiting = portions_sent.recv().ok();
            }
            if waiting.is_none() {
                break;
            }
        }
        waits
    });
    let begun = Instant::now();
    let mut n = 0;
    for portion in 0..portions {
        let due = begun + PORTION * u32::try_from(portion).unwrap();
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let lines: String = (n..n + per_portion).map(|n| line(n, n % 1000)).collect();
        n += per_portion;
        stream.write_all(lines.as_bytes()).unwrap();
        // From when it was due, so that a wait for the socket counts.
        sent.send((n, due)).unwrap();
    }
    drop(sent);
    let waits = reader.join().unwrap();
    (waits, n as f64 / begun.elapsed().as_secs_f64())
}

/// Milliseconds at a quantile.
pub(crate) fn ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1000.0
}

/// One event after the other: how much later than its acknowledgement its ping is at a subscriber, in microseconds; a
/// ping that comes first counts as 0.
fn beyond_the_sync(socket: &Path, url: &str) -> Histogram<u64> {
    let mut subscriber = redis::Client::open(url).unwrap().get_connection().unwrap();
    let subscribe = redis::cmd("PSUBSCRIBE").arg("events:meter:*").get_packed_command();
    subscriber.send_packed_command(&subscribe).unwrap();
    subscriber.recv_response().expect("the subscription is confirmed");
    let (heard, pings) = sync_channel(16);
    let listening = std::thread::spawn(move || {
        for _ in 0..SINGLES {
            subscriber.recv_response().expect("a ping comes");
            heard.send(Instant::now()).unwrap();
        }
    });
    let mut stream = UnixStream::connect(socket).expect("the agent listens");
    let mut replies = BufReader::new(stream.try_clone().unwrap());
    let (mut later, mut reply) = (histogram(), String::new());
    for n in 0..SINGLES {
        stream.write_all(line(n, n % 10).as_bytes()).unwrap();
        reply.clear();
        replies.read_line(&mut reply).unwrap();
        let acked = Instant::now();
        let pinged = pings.recv().unwrap();
        let wait = pinged.saturating_duration_since(acked);
        later.record(u64::try_from(wait.as_micros()).unwrap()).unwrap();
        std::thread::sleep(SINGLE_PAUSE);
    }
    listening.join().unwrap();
    later
}

fn agent(arguments: &Arguments, topic: &Topic, redis: &str) -> Agent {
    Agent::new(&Arguments { has_redis: false, ..arguments.clone() }, &(topic.toml() + redis))
}

pub(crate) fn run(arguments: &Arguments) -> Vec<Row> {
    let url = service("REDIS");
    let with = format!("[redis]\nurl = \"{url}\"\nqueue = 100000\n");
    let (mut acks, mut pings) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        let mut p99 = [0.0; 2];
        for (p99, redis) in p99.iter_mut().zip([with.as_str(), ""]) {
            let topic = Topic::create();
            let agent = agent(arguments, &topic, redis);
            let process =
                agent.start(if redis.is_empty() { &["ready"] } else { &["ready", "Redis link up"] });
            let (waits, rate) = paced(&agent.socket(), RATE, arguments.pace);
            process.terminate();
            let log = agent.log();
            let status = log.lines().rfind(|line| line.contains("stored")).unwrap_or_default();
            let counted = status
                .split_once("pings ")
                .map_or("none", |(_, rest)| rest.find(')').map_or(rest, |end| &rest[..=end]));
            println!(
                "pings round {}: {rate:.0} events/s, ack p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms; pings {counted}",
                round + 1,
                ms(&waits, 0.5),
                ms(&waits, 0.99),
                ms(&waits, 0.999),
            );
            *p99 = ms(&waits, 0.99);
        }
        acks.push((p99[0], p99[1]));
        let topic = Topic::create();
        let agent = agent(arguments, &topic, &with);
        let process = agent.start(&["ready", "Redis link up"]);
        let later = beyond_the_sync(&agent.socket(), &url);
        process.terminate();
        println!(
            "pings round {}: behind the acknowledgement p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
            round + 1,
            ms(&later, 0.5),
            ms(&later, 0.99),
            ms(&later, 0.999),
        );
        pings.push(ms(&later, 0.99));
    }
    vec![
        Row::paired(
            "pings: acknowledgement p99 at 50,000 events/s, with and without",
            "ms",
            &acks,
            Target::RatioMax(1.5),
        ),
        Row::single(
            "pings: subscriber behind the acknowledgement, p99",
            "ms",
            median(pings.into_iter()),
            Target::Max(5.0),
        ),
    ]
}
