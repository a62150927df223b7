//! Memory against `limits.memory` in the three cases that stretch it: a backlog of many small events, one of the largest
//! events, and many connections at once; Kafka is away all the time.

use std::io::Write as _;

use crate::process::Agent;
use crate::report::{Arguments, Row, Target};
use crate::socket;

const CONFIG: &str = "\
[kafka]
brokers = \"127.0.0.1:1\"
[buffer]
max_bytes = \"16 GiB\"
";

/// `[unix]` is open when this is appended to the file's beginning.
const CONNECTIONS: u64 = 500;

/// Largest payload below `limits.max_event_bytes` (256 KiB) with its names.
const LARGE_BYTES: usize = 256 * 1024 - 200;

pub(crate) fn run(arguments: &Arguments) -> Vec<Row> {
    let small = arguments.events * 5;
    let large = arguments.events / 50;
    let connected = arguments.events / 5;
    vec![
        row(arguments, &format!("memory: peak, {small} small events waiting"), "", |agent| {
            socket::send(&agent.socket(), small);
        }),
        row(arguments, &format!("memory: peak, {large} events of 256 KiB waiting"), "", |agent| {
            send_large(agent, large);
        }),
        row(
            arguments,
            &format!("memory: peak, {CONNECTIONS} connections at full speed"),
            "max_connections = 600\n",
            |agent| {
                std::thread::scope(|scope| {
                    for _ in 0..CONNECTIONS {
                        scope.spawn(|| socket::send(&agent.socket(), connected / CONNECTIONS));
                    }
                });
            },
        ),
    ]
}

fn row(arguments: &Arguments, what: &str, unix: &str, send: impl Fn(&Agent)) -> Row {
    let agent = Agent::new(arguments, &format!("{unix}{CONFIG}"));
    let process = agent.start(&["ready"]);
    send(&agent);
    let (_, peak) = process.memory();
    process.terminate();
    Row::single(what, "MB", peak, Target::None)
}

/// Incompressible text, one event after the other without waiting for each answer.
fn send_large(agent: &Agent, events: u64) {
    let mut random = fastrand::Rng::with_seed(1);
    let noise: String = std::iter::repeat_with(|| random.alphanumeric()).take(2 * LARGE_BYTES).collect();
    socket::send_written(&agent.socket(), events, |stream| {
        for _ in 0..events {
            let start = random.usize(0..LARGE_BYTES);
            let payload = &noise[start..start + LARGE_BYTES];
            let line = format!(
                "{{\"type\":\"image\",\"source_type\":\"camera\",\"source_id\":\"c\",\"payload\":\"{payload}\"}}\n"
            );
            stream.write_all(line.as_bytes()).unwrap();
        }
    });
}
