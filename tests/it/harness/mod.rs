//! What the tests lean on.
//!
//! - [`services`]: the shared services of this run, and instances of a test's own to crash, pause and restart.
//! - [`agent`]: the real binary with its own folder, configuration and collected log.
//! - [`unix`]: a client of the agent's Unix socket.
//! - [`mqtt`]: publishers, and [`tap`]: what goes between agent and MQTT broker, noted, held or cut.
//! - [`flow`]: producers that send again what was not acknowledged, and what must then be in Kafka.
//! - [`manager`]: a service manager.
//! - [`http`]: a client of the agent's HTTP interface.
//! - [`kafka`]: topics, and reading them back.
//! - [`registry`]: a Schema Registry of the test's own, and [`sentinel`]: a Redis Sentinel.
//! - [`mod@wait`]: the one way to wait for something.
//!
//! Tests run at the same time against the same services, so each takes names of its own ([`unique`]) for
//! topics, channels, clients and sources.
#![allow(dead_code, reason = "a harness offers more than the tests of the day use")]

pub(crate) mod agent;
pub(crate) mod flow;
pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod manager;
pub(crate) mod mqtt;
pub(crate) mod registry;
pub(crate) mod sentinel;
pub(crate) mod services;
pub(crate) mod tap;
pub(crate) mod unix;
pub(crate) mod wait;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The seed of a test with random parts: `FIELDPOST_TEST_SEED`, else a new one. Printed, so that a failure tells it.
pub(crate) fn seed(test: &str) -> u64 {
    let seed = match std::env::var("FIELDPOST_TEST_SEED") {
        Ok(text) => text.parse().expect("FIELDPOST_TEST_SEED is a whole number"),
        Err(_) => fastrand::u64(..1 << 53),
    };
    eprintln!("{test}: FIELDPOST_TEST_SEED={seed}");
    seed
}

/// A name that no other test, and no earlier run against the same services, has used.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let start = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_millis();
    format!("{prefix}-{:x}-{:x}-{count}", std::process::id(), start)
}
