//! fieldpost: an edge publisher agent. Sensors hand it events over MQTT or a Unix socket; they are durable from the
//! moment they are acknowledged, reach Kafka once the line allows, and whoever watches is pinged through Redis.
//!
//! ```text
//! mqtt ─┐                       ┌─ ack to source (only after durable)
//!       ├─> ingest ─append──> buffer ──read──> drain ──> sink::kafka
//! unix ─┘            durable seq ┘  <──commit(seq)── drain   (at least once, order kept)
//!                                └─ try_send ping ──> sink::redis (best effort, dropped when full, counted)
//! ```
//!
//! The one idea: a record is either in the buffer, durable, or it is not ours yet. Read ARCHITECTURE.md next.

pub mod agent;
pub mod alive;
pub mod backoff;
pub mod buffer;
pub mod child;
pub mod cli;
pub mod config;
pub mod dead_letter;
pub mod drain;
pub mod error;
pub mod event;
pub mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::expect_used, reason = "a fuzz target fails by panicking")]
pub mod fuzz;
pub mod http;
pub mod ingest;
pub mod log;
pub mod losses;
pub mod ping;
pub mod secret;
pub mod sink;
pub mod stats;
pub mod status;
pub mod system;
pub mod tls;
pub mod uplink;
