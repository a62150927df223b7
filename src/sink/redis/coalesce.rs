//! Fewer pings above a rate: of each window the first go out at once, and of what comes beyond only the latest of each
//! source and type, at the window's end. Pure; the time is given.
//!
//! Of a source *and type*, because an alarm is not told by the reading that follows it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use tokio::time::Instant;

use crate::ping::{Ping, Subject};

/// When pings are coalesced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coalesce {
    /// Length of a window; zero: never.
    pub window: Duration,
    /// Pings of each window that go out at once.
    pub above: usize,
}

/// What became of a ping.
#[derive(Debug)]
pub(super) enum Taken {
    /// It goes out now.
    Now(Ping),
    /// It waits for the end of the window.
    Held,
    /// So it does, in place of an older one.
    Replaced,
    /// Too many wait.
    NoRoom,
}

/// What waits for the end of the window.
#[derive(Debug)]
pub(super) struct Coalescer {
    terms: Coalesce,
    /// Most that wait.
    held_max: usize,
    begun: Option<Instant>,
    passed: usize,
    held: Vec<Ping>,
    places: HashMap<Subject, usize>,
}

impl Coalescer {
    pub(super) fn new(terms: Coalesce, held_max: usize) -> Self {
        Self { terms, held_max, begun: None, passed: 0, held: Vec::new(), places: HashMap::new() }
    }

    /// When [`Coalescer::release`] is due; `None`: nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        self.begun.filter(|_| !self.held.is_empty()).map(|begun| begun + self.terms.window)
    }

    /// Takes a ping that came at `now`. What is due has been released before.
    pub(super) fn take(&mut self, ping: Ping, now: Instant) -> Taken {
        if self.terms.window.is_zero() {
            return Taken::Now(ping);
        }
        if self.held.is_empty() && self.begun.is_none_or(|begun| now >= begun + self.terms.window) {
            (self.begun, self.passed) = (Some(now), 0);
        }
        if self.passed < self.terms.above {
            self.passed += 1;
            return Taken::Now(ping);
        }
        match self.places.entry(ping.subject()) {
            Entry::Occupied(place) => {
                if let Some(older) = self.held.get_mut(*place.get()) {
                    *older = ping;
                }
                Taken::Replaced
            }
            Entry::Vacant(_) if self.held.len() >= self.held_max => Taken::NoRoom,
            Entry::Vacant(place) => {
                place.insert(self.held.len());
                self.held.push(ping);
                Taken::Held
            }
        }
    }

    /// What waits, in the order in which each subject was first held. A new window begins; what is released counts in
    /// it, so that no window has more than it may because of the one before.
    pub(super) fn release(&mut self, now: Instant) -> Vec<Ping> {
        self.places.clear();
        let released = std::mem::take(&mut self.held);
        (self.begun, self.passed) = (Some(now), released.len());
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::redis::tests::ping_of;

    const WINDOW: Duration = Duration::from_millis(100);

    fn coalescer(above: usize, held_max: usize) -> Coalescer {
        Coalescer::new(Coalesce { window: WINDOW, above }, held_max)
    }

    fn ids(pings: &[Ping]) -> Vec<String> {
        pings.iter().map(|ping| String::from_utf8_lossy(ping.message()).into_owned()).collect()
    }

    #[test]
    fn of_what_is_beyond_the_latest_of_each_source_and_type_is_kept_in_order() {
        let (mut coalescer, now) = (coalescer(1, 10), Instant::now());
        assert!(matches!(coalescer.take(ping_of("a", "t", "1"), now), Taken::Now(_)));
        assert_eq!(coalescer.due(), None);
        assert!(matches!(coalescer.take(ping_of("a", "t", "2"), now), Taken::Held));
        assert!(matches!(coalescer.take(ping_of("b", "t", "3"), now), Taken::Held));
        assert!(matches!(coalescer.take(ping_of("a", "alarm", "4"), now), Taken::Held));
        assert!(matches!(coalescer.take(ping_of("a", "t", "5"), now + WINDOW / 2), Taken::Replaced));
        assert_eq!(coalescer.due(), Some(now + WINDOW));
        let released = ids(&coalescer.release(now + WINDOW));
        for (text, wanted) in released.iter().zip(["5", "3", "4"]) {
            assert!(text.contains(&format!("\"id\":\"{wanted}\"")), "{released:?}");
        }
        assert_eq!((released.len(), coalescer.due()), (3, None));
    }

    #[test]
    fn below_the_rate_nothing_waits_and_a_window_ends_by_itself() {
        let (mut coalescer, mut now) = (coalescer(2, 10), Instant::now());
        for n in 0..10 {
            let taken = coalescer.take(ping_of("a", "t", &n.to_string()), now);
            assert!(matches!(taken, Taken::Now(_)), "{n}");
            now += WINDOW / 2;
        }
    }

    #[test]
    fn what_was_released_counts_in_the_next_window() {
        let (mut coalescer, now) = (coalescer(1, 10), Instant::now());
        for source in ["a", "b", "c"] {
            coalescer.take(ping_of(source, "t", "1"), now);
        }
        assert_eq!(coalescer.release(now + WINDOW).len(), 2);
        assert!(matches!(coalescer.take(ping_of("a", "t", "2"), now + WINDOW), Taken::Held));
    }

    #[test]
    fn no_more_wait_than_may() {
        let (mut coalescer, now) = (coalescer(0, 2), Instant::now());
        for source in ["a", "b"] {
            assert!(matches!(coalescer.take(ping_of(source, "t", "1"), now), Taken::Held));
        }
        assert!(matches!(coalescer.take(ping_of("c", "t", "1"), now), Taken::NoRoom));
        assert!(matches!(coalescer.take(ping_of("a", "t", "2"), now), Taken::Replaced));
    }
}
