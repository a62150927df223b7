//! What the socket tells the log about its peers: at most one line per reason and minute, never what they sent.

use std::time::Duration;

use super::reply::Code;
use crate::buffer::AppendError;
use crate::log::Limited;

const INTERVAL: Duration = Duration::from_secs(60);

static INVALID: Limited = Limited::new(INTERVAL);
static TOO_LARGE: Limited = Limited::new(INTERVAL);
static BUFFER_FULL: Limited = Limited::new(INTERVAL);
static TIMEOUT: Limited = Limited::new(INTERVAL);
static STORAGE: Limited = Limited::new(INTERVAL);
static CLOSING: Limited = Limited::new(INTERVAL);
static BUSY: Limited = Limited::new(INTERVAL);
static ACCEPT: Limited = Limited::new(INTERVAL);

fn limited(code: Code) -> &'static Limited {
    match code {
        Code::Invalid => &INVALID,
        Code::TooLarge => &TOO_LARGE,
        Code::BufferFull => &BUFFER_FULL,
        Code::Timeout => &TIMEOUT,
        Code::Storage => &STORAGE,
        Code::Closing => &CLOSING,
        Code::Busy => &BUSY,
    }
}

/// A line that can never become an event. Its error goes to the peer only: it may quote what was sent.
pub(super) fn line(code: Code, line: u64, peer: Option<i32>) {
    if let Some(suppressed) = limited(code).allow() {
        tracing::warn!(?code, line, peer, suppressed, "a line on the Unix socket is not an event");
    }
}

/// A batch that the buffer did not take.
pub(super) fn refused(code: Code, reason: &AppendError, events: u64, peer: Option<i32>) {
    if let Some(suppressed) = limited(code).allow() {
        tracing::warn!(?code, %reason, events, peer, suppressed, "events on the Unix socket were refused");
    }
}

/// A connection above the limit.
pub(super) fn busy(connections_max: usize) {
    if let Some(suppressed) = limited(Code::Busy).allow() {
        tracing::warn!(
            connections_max,
            suppressed,
            "a connection was refused: unix.max_connections is reached"
        );
    }
}

/// A connection that could not be accepted.
pub(super) fn accept(error: &std::io::Error, pause: Duration) {
    if let Some(suppressed) = ACCEPT.allow() {
        tracing::warn!(%error, ?pause, suppressed, "connections cannot be accepted now, trying again");
    }
}
