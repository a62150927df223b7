//! Integration tests: the real binary against a real Kafka, Redis and Mosquitto.
//!
//! One binary for all of them, because each further one links everything again. `make test` starts the shared
//! services and runs this; `harness` says what a test can lean on.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot go on fails by panicking, with the place and the reason"
)]

mod bench;
mod buffer;
mod check;
mod consumers;
mod crash;
mod dead_letter;
mod delivery;
mod demo;
mod diag;
mod exactly_once;
mod foreign;
mod formats;
mod full;
mod guarantees;
mod harness;
#[cfg(feature = "http")]
mod http;
mod live_first;
mod losses;
mod mqtt;
mod outage;
mod pace;
mod poison;
mod process;
mod redis;
mod release;
mod routes;
mod security;
mod services_obey;
mod supply;
mod systemd;
mod tail;
#[cfg(feature = "http")]
mod top;
mod troubleshooting;
mod unix;
mod upgrade;
mod uplink;
