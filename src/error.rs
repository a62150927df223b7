//! What a caller does with a failure.
//!
//! Every error enum of the crate answers `class()`; loops match on the class alone, so that a new variant is a
//! decision made where it is defined and not at each place that meets it.

/// The reaction to an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing is lost: wait (see [`crate::backoff`]) and do the same again.
    Retry,
    /// This one input can never succeed: count it, log it (rate-limited), move on to the next.
    Reject,
    /// The stage cannot go on: the agent stops with this error and the service manager starts it again.
    Fatal,
}
