//! Pings to Redis: best effort, bounded, counted; nobody ever waits for them.

use std::time::Duration;

use crate::secret::Secret;

/// How Redis is reached and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS (`rediss://`), server name verified.
    pub tls: bool,
    /// Database number; PUBLISH does not depend on it, ACLs of some set-ups do.
    pub database: i64,
    /// ACL user.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Most pings waiting; one more is dropped and counted.
    pub queue_max: usize,
    /// Longest wait for a connection or for the answer to one pipeline.
    pub timeout: Duration,
}
