//! Readers of the live stream beside the events: what they cost an acknowledgement.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::kafka::Topic;
use crate::pings::{ms, paced};
use crate::process::{Agent, wait_for};
use crate::report::{Arguments, Row, Target};

/// Events a second.
const RATE: u64 = 2000;

/// Streams that are read as fast as they come, and as many that nobody reads.
const READERS: usize = 100;

pub(crate) fn run(arguments: &Arguments) -> Vec<Row> {
    let (mut p50s, mut p99s) = (Vec::new(), Vec::new());
    for number in 1..=arguments.rounds {
        let (with, without) = (round(arguments, 2 * READERS), round(arguments, 0));
        println!(
            "http round {number}: acknowledgement with {} streams p50 {:.2} ms, p99 {:.2} ms; without p50 {:.2} ms, p99 {:.2} ms",
            2 * READERS,
            with.0,
            with.1,
            without.0,
            without.1
        );
        p50s.push((with.0, without.0));
        p99s.push((with.1, without.1));
    }
    vec![
        Row::paired("200 streams: acknowledgement p50 at 2,000 events/s", "ms", &p50s, Target::RatioMax(1.5)),
        Row::paired("the same: p99", "ms", &p99s, Target::RatioMax(1.5)),
    ]
}

/// Half and 99 of 100 portions are acknowledged within so many milliseconds.
fn round(arguments: &Arguments, streams: usize) -> (f64, f64) {
    let topic = Topic::create();
    let http = format!("[http]\nlisten = \"127.0.0.1:0\"\nmax_connections = {}\n", 4 * READERS);
    let agent = Agent::new(arguments, &(topic.toml() + &http));
    let process = agent.start(&["ready", "Kafka link up", "HTTP is served"]);
    let log = agent.log();
    let (_, served) = log.split_once("HTTP is served").unwrap();
    let (_, address) = served.split_once("127.0.0.1:").unwrap();
    let port: u16 = address.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    let open: Vec<TcpStream> = (0..streams)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /events/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let read: Vec<_> = open
        .iter()
        .take(streams / 2)
        .map(|stream| {
            let mut stream = stream.try_clone().unwrap();
            std::thread::spawn(move || {
                let (mut total, mut bytes) = (0, vec![0; 64 << 10]);
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    total += length;
                }
                total
            })
        })
        .collect();
    wait_for("all streams are open", Duration::from_millis(20), || {
        (process.sockets() > streams).then_some(())
    });
    let (waits, rate) = paced(&agent.socket(), RATE, arguments.pace);
    assert!(rate > 0.9 * RATE as f64, "only {rate:.0} events a second");
    for stream in &open {
        let _ = stream.shutdown(Shutdown::Both);
    }
    let events = RATE as f64 * arguments.pace.as_secs_f64();
    for reader in read {
        let total = reader.join().unwrap();
        assert!(total as f64 > 100.0 * 0.9 * events, "a reader has {total} bytes of {events} events");
    }
    process.terminate();
    (ms(&waits, 0.5), ms(&waits, 0.99))
}
