//! Pings to Redis: best effort, bounded, counted; nobody ever waits for them.
//!
//! The promise: a ping goes out within moments or not at all. While the link is up, what waits goes out as one
//! pipeline of `PUBLISH` and `XADD`; while it is down, pings are dropped as they come and counted, because a late ping
//! makes a listener believe in the past (the event itself is in Kafka), and what waited for longer than `redis.max_age`
//! is not sent either. Redis can be away, silent, full or hostile: the agent goes on, and every connect and every
//! pipeline ends within `redis.timeout`.
//!
//! ```text
//!             answered                      error, time-out, closed
//! Connecting ──────────> Connected ─────────────────────────────────> Waiting ──> Connecting
//!     └── error, time-out ───────────────────────────────────────────────┘ (backoff; what a human must mend: slower)
//! ```
//!
//! A try goes through the addresses of `redis.url` until one is of use, from the one behind that which was lost; with Sentinel
//! it is the Sentinels that are asked in turn for the master.
//! Nothing is sent on an idle link and no timer runs, unless there are files to look after, streams to trim, or pings held
//! back until the end of a window (`coalesce`): a peer that closes is noticed at once, one that vanished at the next ping.
//! When a file of a password or certificate changed, a new connection takes the old one's place, if it can be made.
//! The rights that a user for the agent needs: docs/security.md.
//! Not promised: that anybody listens, an answer per ping after a broken pipeline (all of it counts as dropped), and that
//! a Redis that hangs forgets the one pipeline that it had been given before: it may publish that when it goes on.

mod coalesce;
mod connection;
mod error;
mod pipeline;
mod probe;
pub mod reading;
mod sink;
pub mod streams;
pub mod subscription;
#[cfg(test)]
mod tests;
mod turns;

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ping::Ping;
use crate::secret::{Password, Secret};
use crate::stats::Stats;
use crate::tls;

pub use coalesce::Coalesce;
pub use error::RedisError;
pub use probe::{Probed, probe};
pub use turns::Turns;

/// The key of Redis' own password.
const PASSWORD_KEY: &str = "redis.password_file";

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or number.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// How Redis is reached and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where it is, or where its Sentinels are; tried in turn ([`Turns`]). At least one.
    pub addresses: Vec<Address>,
    /// The name under which Sentinels know the master; `None`: the addresses are those of Redis itself.
    pub master: Option<String>,
    /// TLS (`rediss://`), server name verified.
    pub tls: Option<tls::Options>,
    /// Database number; PUBLISH does not depend on it, streams and ACLs of some set-ups do.
    pub database: i64,
    /// How Redis lets the agent in.
    pub login: Login,
    /// How a Sentinel does that asks for it; without anything in it: as Redis.
    pub sentinel_login: Login,
    /// Most pings waiting; one more is dropped and counted.
    pub queue_max: usize,
    /// Most bytes of payloads that wait with them.
    pub payload_queue_bytes_max: usize,
    /// Oldest ping that still goes out.
    pub max_age: Duration,
    /// When several pings become one.
    pub coalesce: Coalesce,
    /// The streams, if entries are added to any.
    pub streams: Option<StreamOptions>,
    /// Longest wait for a connection or for the answer to one pipeline.
    pub timeout: Duration,
}

/// A user and a password; neither: none is sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Login {
    /// ACL user.
    pub username: Option<String>,
    /// Password; read whenever a connection is made.
    pub password: Option<Password>,
}

impl Login {
    /// Whether anything is sent.
    fn is_set(&self) -> bool {
        self.username.is_some() || self.password.is_some()
    }

    /// The password of `key`, if there is one.
    fn read(&self, key: &'static str) -> Result<Option<Secret>, RedisError> {
        let password = self.password.as_ref().map(Password::read).transpose();
        password.map_err(|error| RedisError::File(error.into(), key))
    }
}

/// How long streams become, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// About so many entries each at most.
    pub len_max: u64,
    /// Oldest entry, by Redis' clock; `None`: any.
    pub max_age: Option<Duration>,
    /// Different streams that this agent writes to, since its start.
    pub count_max: usize,
}

impl Options {
    /// The files that are read for each connection.
    fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let passwords = [&self.login, &self.sentinel_login].into_iter().flat_map(|login| &login.password);
        let passwords = passwords.filter_map(Password::path).map(PathBuf::from);
        self.tls.iter().flat_map(tls::Options::paths).chain(passwords)
    }

    /// What a Sentinel gets, and the key of its password.
    fn login_at_sentinel(&self) -> (&Login, &'static str) {
        if self.sentinel_login.is_set() {
            (&self.sentinel_login, "redis.sentinel_password_file")
        } else {
            (&self.login, PASSWORD_KEY)
        }
    }

    /// All addresses, for people.
    pub fn place(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Sends what comes out of `pings` until `stop`, or until nobody can send any more. At the end what waits gets one more
/// `redis.timeout` on a link that is up, so that stopping takes at most twice that.
///
/// # Errors
/// None: without Redis the agent goes on and its counters of dropped pings grow.
///
/// Cancel safe: yes, dropping it closes the connection; queued pings are lost uncounted.
pub async fn run(
    options: Options,
    pings: mpsc::Receiver<Ping>,
    stats: Arc<Stats>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    // Boxed: what is in flight is large, and who awaits this should not have to be.
    Box::pin(sink::Sink::new(options, pings, stats, stop).run()).await;
    Ok(())
}
