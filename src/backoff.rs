//! Jittered exponential backoff for links: a fleet that lost its broker must not come back in one beat.

use std::time::Duration;

/// Delays that double from `first` to `max`, each shortened at random to between half and all of itself.
///
/// The jitter only shortens, so `max` is a promise: no wait is ever longer.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// A backoff that starts at `first` and never waits longer than `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        let first = first.min(max);
        Self { first, max, next: first }
    }

    /// The delay before the next try; each call doubles the following one up to the maximum.
    pub fn delay(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.max);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// To be called when the link works again: the next delay is the first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum_and_starts_again() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(first, max);
        for expected_ms in [100, 200, 400, 800, 1600, 2000, 2000] {
            let delay = backoff.delay();
            let full = Duration::from_millis(expected_ms);
            assert!(delay >= full / 2 && delay <= full, "{delay:?} for {full:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= first);
    }

    #[test]
    fn a_maximum_below_the_first_delay_wins() {
        let mut backoff = Backoff::new(Duration::from_secs(9), Duration::from_secs(1));
        assert!(backoff.delay() <= Duration::from_secs(1));
    }
}
