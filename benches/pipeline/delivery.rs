//! Exactly once beside at least once: the same load over the socket, one after the other.

use std::time::{Duration, Instant};

use crate::kafka::Topic;
use crate::process::Agent;
use crate::report::{Arguments, Row, Target};
use crate::socket;

pub(crate) fn run(arguments: &Arguments) -> Vec<Row> {
    let (mut rates, mut cpus) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        let exactly = once(arguments, "exactly_once");
        let at_least = once(arguments, "at_least_once");
        println!(
            "delivery round {}: exactly once {:.0} events/s, {:.2} CPU s per million; at least once {:.0}, {:.2}",
            round + 1,
            exactly.0,
            exactly.1,
            at_least.0,
            at_least.1
        );
        rates.push((exactly.0, at_least.0));
        cpus.push((exactly.1, at_least.1));
    }
    vec![
        Row::paired("exactly once beside at least once", "events/s", &rates, Target::RatioMin(0.8)),
        Row::paired("the same: CPU per million events", "s", &cpus, Target::None),
    ]
}

/// Events a second until all are in Kafka, committed where that is the mode; CPU seconds per million.
fn once(arguments: &Arguments, delivery: &str) -> (f64, f64) {
    let (events, topic) = (arguments.events, Topic::create());
    let agent = Agent::new(arguments, &format!("{}delivery = \"{delivery}\"\n", topic.toml()));
    let process = agent.start(&["ready", "Kafka link up"]);
    let before = process.usage();
    let start = Instant::now();
    socket::send(&agent.socket(), events);
    let pause = Duration::from_millis(10);
    let end = if delivery == "exactly_once" {
        topic.wait_cursor("fieldpost.bench", events, pause)
    } else {
        topic.wait_count(events, pause)
    };
    let cpu = (process.usage().cpu - before.cpu).as_secs_f64() * 1e6 / events as f64;
    process.terminate();
    (events as f64 / (end - start).as_secs_f64(), cpu)
}
