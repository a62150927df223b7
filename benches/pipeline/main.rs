//! The real agent between real services, beside what the client libraries do alone in the same run.
//!
//! `make bench` starts Kafka, Redis and Mosquitto; the agent is a process of its own, and so is each reference, so
//! that CPU time is read from the kernel in the same way for both. See docs/benchmarks.md for what each line means.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a benchmark that cannot go on ends with the place and the reason; its pacing is its subject"
)]

mod bounds;
mod delivery;
mod http;
mod kafka;
mod memory;
mod mqtt;
mod pace;
mod pings;
mod process;
#[path = "../report/mod.rs"]
mod report;
mod socket;
mod wear;

use report::Arguments;

fn main() {
    // A reference runs as a process of its own: this program, called again.
    let words: Vec<String> = std::env::args().collect();
    match words.get(1).map(String::as_str) {
        Some(kafka::REFERENCE) => return kafka::reference(&words[2..]),
        Some(mqtt::REFERENCE) => return mqtt::reference(&words[2..]),
        _ => {}
    }
    let arguments = Arguments::parse();
    let mut rows = Vec::new();
    if arguments.wants("socket") {
        rows.extend(socket::run(&arguments));
    }
    if arguments.wants("pace") {
        rows.extend(pace::run(&arguments));
    }
    if arguments.wants("mqtt") {
        rows.extend(mqtt::run(&arguments));
    }
    if arguments.wants("delivery") {
        rows.extend(delivery::run(&arguments));
    }
    if arguments.wants("pings") {
        rows.extend(pings::run(&arguments));
    }
    if arguments.wants("http") {
        rows.extend(http::run(&arguments));
    }
    if arguments.wants("memory") {
        rows.extend(memory::run(&arguments));
    }
    if arguments.wants("bounds") {
        rows.extend(bounds::run(&arguments));
    }
    if arguments.wants("wear") {
        rows.extend(wear::run(&arguments));
    }
    if !rows.is_empty() {
        report::print(&rows);
    }
}
