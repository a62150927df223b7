//! How fast it goes, from the counters at two moments.

/// Counters at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) boot_us: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) waiting: u64,
}

/// How fast it went between two samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    pub(super) received_per_s: f64,
    pub(super) sent_per_s: f64,
    /// By how much less waits with each second; negative while the backlog grows.
    drained_per_s: f64,
}

impl Pace {
    #[allow(clippy::cast_precision_loss, reason = "rates are shown to a tenth")]
    pub(super) fn between(first: Sample, last: Sample) -> Self {
        // Less than a second says nothing of a rate.
        let seconds = (last.boot_us.saturating_sub(first.boot_us) as f64 / 1e6).max(1.0);
        let rate = |from: u64, to: u64| ((to as f64 - from as f64) / seconds * 10.0).round() / 10.0;
        Self {
            received_per_s: rate(first.received, last.received),
            sent_per_s: rate(first.sent, last.sent),
            drained_per_s: rate(last.waiting, first.waiting),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and a float that is too large becomes the largest number"
    )]
    pub(super) fn drained_in_s(self, waiting: u64) -> Option<u64> {
        match waiting {
            0 => Some(0),
            _ => (self.drained_per_s > 0.0).then(|| (waiting as f64 / self.drained_per_s).ceil() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_that_shrinks_has_an_end() {
        let at = |s: u64, received, sent, waiting| Sample { boot_us: s * 1_000_000, received, sent, waiting };
        let pace = Pace::between(at(0, 0, 0, 1000), at(10, 100, 600, 500));
        assert_eq!((pace.received_per_s, pace.sent_per_s, pace.drained_per_s), (10.0, 60.0, 50.0));
        assert_eq!((pace.drained_in_s(500), pace.drained_in_s(0)), (Some(10), Some(0)));
        let growing = Pace::between(at(0, 0, 0, 0), at(10, 100, 0, 100));
        assert_eq!(growing.drained_in_s(100), None);
        assert_eq!(Pace::between(at(5, 7, 7, 7), at(5, 7, 7, 7)).sent_per_s, 0.0);
    }
}
