//! HTTP: status, recent events, live events and metrics, for whoever operates the agent or shows what it sees.
//!
//! The promise: nobody who asks slows down the way of an event. HTTP has a thread of its own with a lower priority and its
//! own runtime, reads what the agent publishes anyway ([`Overview`](crate::status::Overview), [`Recent`](crate::buffer::Recent)), and everything is bounded:
//! connections, headers, time, bytes that wait for a slow reader. It only reads; nothing can be changed through it.
//!
//! ```text
//! buffer writer ──put──> Recent (bounded) <──behind(position)── streams, /events
//! counters, figures ──────> Overview.look() <── /status, /readyz, /metrics
//! ```
//!
//! On loopback the `Host` header must name it, so that no page in a browser reaches the agent by a name of its own; beyond
//! loopback a bearer token is required.

pub mod client;
#[cfg(feature = "http")]
mod events;
#[cfg(feature = "http")]
mod guard;
#[cfg(feature = "http")]
mod metrics;
#[cfg(feature = "http")]
mod page;
#[cfg(feature = "http")]
mod routes;
#[cfg(feature = "http")]
mod server;
#[cfg(feature = "http")]
mod stall;
#[cfg(feature = "http")]
mod stream;
#[cfg(feature = "http")]
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use crate::buffer::RecentLimits;
use crate::secret::Password;
use crate::tls;

#[cfg(feature = "http")]
pub use server::{HttpThread, Sources, start};

/// Of the connections so many are not for streams, so that status and health can always be asked for.
pub const CONNECTIONS_SPARE: usize = 8;

/// How HTTP is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Address and port.
    pub listen: SocketAddr,
    /// Its certificate and key; none: it speaks no TLS.
    pub tls: Option<tls::Options>,
    /// What a request must bring, if anything.
    pub token: Option<Password>,
    /// Most connections; of these [`CONNECTIONS_SPARE`] are never streams.
    pub connections_max: usize,
    /// The events that are kept in memory for readers.
    pub recent: RecentLimits,
    /// The agent is ready as long as no event has waited for longer.
    pub ready_age_max: Duration,
}
