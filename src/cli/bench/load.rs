//! The events of the load, and when each is due. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Type and kind of source of every event.
pub(super) const KIND: &str = "bench";

/// What the events look like.
#[derive(Debug)]
pub(super) struct Load {
    sources: u32,
    /// Letters, as many as a payload needs at most.
    filling: String,
    payload_bytes: usize,
}

impl Load {
    pub(super) fn new(sources: u32, payload_bytes: usize) -> Self {
        // Not one letter over and over: what comes after would compress it to nothing.
        let mut random = fastrand::Rng::with_seed(1);
        let filling = std::iter::repeat_with(|| random.lowercase()).take(payload_bytes).collect();
        Self { sources, filling, payload_bytes }
    }

    /// `bench-00017`.
    pub(super) fn source_id(&self, number: u64) -> String {
        format!("{KIND}-{:05}", number % u64::from(self.sources))
    }

    /// JSON of as many bytes as was asked for; a few more when the number alone takes them.
    pub(super) fn payload(&self, number: u64) -> String {
        let frame = r#"{"n":,"x":""}"#.len() + number.checked_ilog10().map_or(1, |log| log as usize + 1);
        let fill = self.payload_bytes.saturating_sub(frame);
        let filling = self.filling.get(..fill).unwrap_or(&self.filling);
        format!(r#"{{"n":{number},"x":"{filling}"}}"#)
    }
}

/// When events are due.
#[derive(Debug)]
pub(super) struct Pace {
    begun: Instant,
    /// Zero: all at once.
    rate: u32,
    events: u64,
    time: Duration,
}

impl Pace {
    pub(super) fn new(rate: u32, events: u64, time: Duration) -> Self {
        Self { begun: Instant::now(), rate, events, time }
    }

    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// When no more is sent, if the number of events has not ended it before.
    pub(super) fn end(&self) -> Instant {
        self.begun + self.time
    }

    /// Events that are to be sent by now.
    pub(super) fn due(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.begun).min(self.time);
        match self.rate {
            0 => self.events,
            rate => {
                let due = elapsed.as_nanos() * u128::from(rate) / 1_000_000_000 + 1;
                u64::try_from(due).unwrap_or(u64::MAX).min(self.events)
            }
        }
    }

    /// From when on the event of this number counts.
    pub(super) fn since(&self, number: u64, now: Instant) -> Instant {
        self.time_of(number).unwrap_or(now)
    }

    /// When the event of this number is due, if that is not at once.
    pub(super) fn next(&self, number: u64) -> Option<Instant> {
        self.time_of(number).filter(|_| number < self.events)
    }

    pub(super) fn is_over(&self, sent: u64, now: Instant) -> bool {
        sent >= self.events || now >= self.begun + self.time
    }

    fn time_of(&self, number: u64) -> Option<Instant> {
        let nanos = (u128::from(number) * 1_000_000_000).checked_div(u128::from(self.rate))?;
        Some(self.begun + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_json_of_the_size_that_was_asked_for() {
        for (bytes, number) in [(16, 0), (16, 123_456), (200, 9), (200, 10), (5000, 99_999)] {
            let load = Load::new(7, bytes);
            let payload = load.payload(number);
            let value: serde_json::Value = serde_json::from_str(&payload).unwrap();
            assert_eq!(value["n"], number);
            assert_eq!(payload.len(), bytes.max(13 + number.to_string().len()), "{payload}");
            assert_eq!(load.source_id(number), format!("bench-{:05}", number % 7));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_counts_from_when_it_was_due() {
        let pace = Pace::new(100, 1000, Duration::from_secs(5));
        assert_eq!(pace.due(pace.begun()), 1, "the first at once");
        let later = pace.begun() + Duration::from_millis(995);
        assert_eq!(pace.due(later), 100);
        assert_eq!(pace.since(50, later), pace.begun() + Duration::from_millis(500));
        assert_eq!(pace.due(pace.begun() + Duration::from_secs(60)), 501, "not beyond its time");
        assert!(pace.is_over(501, pace.begun() + Duration::from_secs(5)) && !pace.is_over(400, later));
        let at_once = Pace::new(0, 1000, Duration::from_secs(5));
        assert_eq!((at_once.due(later), at_once.since(7, later), at_once.next(7)), (1000, later, None));
        assert_eq!(pace.next(1000), None, "nothing comes behind the last");
    }
}
