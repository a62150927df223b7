//! How fast the drain may be, so that a backlog does not take the whole line: `kafka.max_rate` and `kafka.max_event_rate`.
//!
//! Every event puts off the next one by what it costs; what was not used in a tenth of a second is not saved up. So the
//! rate holds over any time that is longer, whatever the sizes.

use std::time::Duration;

use tokio::time::Instant;

/// What may be saved up while nothing is sent: as much as a line smooths out by itself.
const SAVED_MAX: Duration = Duration::from_millis(100);

/// The most that may go out; `None` where there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes a second of keys, values and headers, before compression.
    pub bytes: Option<u64>,
    /// Events a second.
    pub events: Option<u64>,
}

/// Holds the drain to its rates.
#[derive(Debug)]
pub(super) struct Pace {
    rates: Rates,
    /// When the next event may go.
    next: Instant,
}

impl Pace {
    pub(super) fn new(rates: Rates) -> Self {
        Self { rates, next: Instant::now() }
    }

    /// When the next event may go, if not now.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        // Asked for each event: without a rate not even the time is.
        (self.rates != Rates::default() && self.next > Instant::now()).then_some(self.next)
    }

    /// An event of `bytes` went out.
    pub(super) fn take(&mut self, bytes: usize) {
        let by_bytes = self.rates.bytes.map(|rate| bytes as f64 / rate.max(1) as f64);
        let by_events = self.rates.events.map(|rate| 1.0 / rate.max(1) as f64);
        let Some(cost) = by_bytes.into_iter().chain(by_events).reduce(f64::max) else { return };
        let now = Instant::now();
        let earliest = now.checked_sub(SAVED_MAX).unwrap_or(now);
        self.next = self.next.max(earliest) + Duration::from_secs_f64(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events of `bytes` that go out within `seconds`, when it is looked every 5 ms.
    async fn sent(rates: Rates, bytes: usize, seconds: u64) -> u64 {
        let mut pace = Pace::new(rates);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut events = 0;
        while Instant::now() < end {
            while pace.opens_at().is_none() && events < 1_000_000 {
                pace.take(bytes);
                events += 1;
            }
            tokio::time::advance(Duration::from_millis(5)).await;
        }
        events
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_holds_whatever_the_sizes() {
        let bytes = |rate| Rates { bytes: Some(rate), events: None };
        let events = |rate| Rates { bytes: None, events: Some(rate) };
        for (rates, size, wanted) in [
            (bytes(10_000), 100, 1000),
            (bytes(10_000), 1, 100_000),
            // One of them takes longer than the whole time that is saved up.
            (bytes(10_000), 20_000, 5),
            (events(7), 1_000_000, 70),
            (events(20_000), 1, 200_000),
            (Rates { bytes: Some(1000), events: Some(50) }, 10, 500),
            (Rates { bytes: Some(1000), events: Some(50) }, 100, 100),
        ] {
            let found = sent(rates, size, 10).await;
            assert!(
                found.abs_diff(wanted) <= wanted / 50 + 1,
                "{rates:?} with {size} bytes: {found}, not {wanted}"
            );
        }
        assert_eq!(sent(Rates::default(), 100, 1).await, 1_000_000, "no limit");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_not_saved_up() {
        let mut pace = Pace::new(Rates { bytes: None, events: Some(100) });
        tokio::time::advance(Duration::from_secs(3600)).await;
        let mut burst = 0;
        while pace.opens_at().is_none() {
            pace.take(1);
            burst += 1;
        }
        assert!((10..=12).contains(&burst), "{burst}");
    }
}
