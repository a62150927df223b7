//! Unix socket ingest: one JSON event a line in, cumulative acknowledgements and per-line errors out.

use std::path::PathBuf;
use std::time::Duration;

/// Where the socket is and what it may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Path of the socket; ignored when the service manager hands one over.
    pub path: PathBuf,
    /// File mode of the socket, for example `0o660`.
    pub mode: u32,
    /// Most connections at once; one more is told so and closed.
    pub connections_max: usize,
    /// Longest wait of one event for the buffer before the producer gets `buffer_full` or `timeout`.
    pub append_timeout: Duration,
}
