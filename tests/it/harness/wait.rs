//! The one way to wait: look again until it is so, within a patience.
//!
//! `FIELDPOST_TEST_PATIENCE` multiplies every patience (`5` under emulation or on a busy machine). A test never
//! sleeps to let something happen: too short fails on a slow day, too long costs on every other.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What most waits are given: far more than they need, so that only a real failure meets it.
pub(crate) const USUAL: Duration = Duration::from_secs(20);

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// `duration` times `FIELDPOST_TEST_PATIENCE`.
pub(crate) fn scaled(duration: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var("FIELDPOST_TEST_PATIENCE") {
        Err(_) => 1.0,
        Ok(text) => {
            text.parse::<f64>().ok().filter(|factor| (0.1..=1000.0).contains(factor)).unwrap_or_else(|| {
                panic!("FIELDPOST_TEST_PATIENCE is a number from 0.1 to 1000, not {text:?}")
            })
        }
    });
    duration.mul_f64(*factor)
}

/// Calls `look` until it gives something, and returns that.
///
/// # Panics
/// When `patience` (scaled) is over, with `what` did not happen.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, patience: Duration, look: impl FnMut() -> Option<T>) -> T {
    let patience = scaled(patience);
    match within(patience, look) {
        Some(found) => found,
        None => panic!("not within {patience:?}: {what}"),
    }
}

/// Calls `look` until it gives something or `limit` (taken as it is) is over. The last look comes after the limit, so
/// that a thread that was not scheduled for long does not report a failure it never saw.
pub(crate) fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let is_last = Instant::now() >= deadline;
        if let Some(found) = look() {
            return Some(found);
        }
        if is_last {
            return None;
        }
        nap(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[allow(clippy::disallowed_methods, reason = "the pause between two looks; nothing relies on its length")]
fn nap(pause: Duration) {
    std::thread::sleep(pause);
}
