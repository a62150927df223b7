//! From the buffer to Kafka: reads in order, hands over a bounded window, commits what was confirmed.

use std::time::Duration;

/// What a restart or an outage may do to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Removed after Kafka confirmed it: duplicates after a kill, never a loss.
    AtLeastOnce,
    /// Removed before it is sent: losses after a kill, never a duplicate.
    AtMostOnce,
}

/// The pace and the guarantee of the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The guarantee.
    pub delivery: Delivery,
    /// Time between two hand-overs to Kafka: latency against CPU.
    pub round_interval: Duration,
    /// Most bytes of events read from the buffer and not yet confirmed by Kafka.
    pub window_bytes_max: usize,
}
