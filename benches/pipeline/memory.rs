//! Memory and idleness: nothing to do, a backlog while Kafka is away, and the start with that backlog.

use std::time::{Duration, Instant};

use crate::kafka::Topic;
use crate::process::{Agent, service, unique};
use crate::report::{Arguments, Row, Target};
use crate::socket;

/// Nobody listens on this port.
const NO_KAFKA: &str = "[kafka]\nbrokers = \"127.0.0.1:1\"\n";

pub(crate) fn run(arguments: &Arguments) -> Vec<Row> {
    let mut rows = idle(arguments);
    rows.extend(backlog(arguments));
    rows
}

/// All inputs and outputs connected and nothing to do.
fn idle(arguments: &Arguments) -> Vec<Row> {
    let (topic, root) = (Topic::create(), unique("bench"));
    let mqtt = format!("[mqtt]\nurl = \"{}\"\nclient_id = \"{root}\"\n", service("MQTT"));
    let agent = Agent::new(arguments, &(topic.toml() + &mqtt));
    let process = agent.start(&["ready", "MQTT link up"]);
    std::thread::sleep(Duration::from_secs(5));
    let (before, start) = (process.usage(), Instant::now());
    std::thread::sleep(arguments.pace);
    let (after, elapsed) = (process.usage(), start.elapsed().as_secs_f64());
    let (resident, _) = process.memory();
    process.terminate();
    vec![
        Row::single("memory: idle", "MB", resident, Target::Max(10.0)),
        Row::single(
            "idle: CPU of one core",
            "%",
            (after.cpu - before.cpu).as_secs_f64() / elapsed * 100.0,
            Target::Max(0.2),
        ),
        Row::single(
            "idle: thread wake-ups",
            "/s",
            (after.wakeups - before.wakeups) as f64 / elapsed,
            Target::None,
        ),
    ]
}

fn backlog(arguments: &Arguments) -> Vec<Row> {
    let events = arguments.events * 2;
    let agent = Agent::new(arguments, NO_KAFKA);
    let process = agent.start(&["ready"]);
    socket::send(&agent.socket(), events);
    let (_, peak) = process.memory();
    process.terminate();

    let topic = Topic::create();
    agent.configure(&topic.toml());
    let start = Instant::now();
    let process = agent.spawn();
    let first = topic.wait_count(1, Duration::from_millis(2)) - start;
    let resident_then = process.memory().0;
    let drained = topic.wait_count(events, Duration::from_millis(20)) - start - first;
    let (_, drain_peak) = process.memory();
    process.terminate();
    vec![
        Row::single("memory: peak with 2 M events of backlog", "MB", peak, Target::Max(48.0)),
        Row::single(
            "start with that backlog to the first event in Kafka",
            "s",
            first.as_secs_f64(),
            Target::Max(1.0),
        ),
        Row::single("memory: after that start", "MB", resident_then, Target::None),
        Row::single("memory: peak while that backlog drains", "MB", drain_peak, Target::None),
        Row::single("drain of that backlog", "events/s", events as f64 / drained.as_secs_f64(), Target::None),
    ]
}
