//! Structured logs: set-up and rate limits.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter such as `info,fieldpost::drain=debug`.
    pub level: String,
    /// The form of a line.
    pub format: Format,
}

/// Keeps a line that outside input can cause from filling the disk: one per `interval`, the others are counted.
///
/// Const, so that it sits in a `static` beside the line it limits.
#[derive(Debug)]
pub struct Limited {
    interval: Duration,
    state: Mutex<LimitedState>,
}

#[derive(Debug)]
struct LimitedState {
    allowed: Option<Instant>,
    suppressed: u64,
}

impl Limited {
    /// At most one line per `interval`; the first one at once.
    pub const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(LimitedState { allowed: None, suppressed: 0 }) }
    }

    /// Whether a line may be logged now: `Some` of the number kept back since the last one, else `None`.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.allowed.is_some_and(|allowed| now.saturating_duration_since(allowed) < self.interval) {
            state.suppressed = state.suppressed.saturating_add(1);
            return None;
        }
        state.allowed = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_line_appears_once_per_interval_and_tells_how_many_were_kept_back() {
        let limited = Limited::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| limited.allow_at(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(2), at(9)), (None, None, None));
        assert_eq!(at(10), Some(3));
        assert_eq!(at(19), None);
        assert_eq!(at(40), Some(1));
        assert_eq!(at(50), Some(0));
    }

    #[test]
    fn a_limit_sits_in_a_static() {
        static LIMITED: Limited = Limited::new(Duration::from_secs(3600));
        assert_eq!(LIMITED.allow(), Some(0));
        assert_eq!(LIMITED.allow(), None);
    }
}
