//! When another client is to look for Kafka.
//!
//! librdkafka forgets all brokers when one of them answers that there are none, as a broker may while it finds its way
//! back into its cluster, and then never connects again (confluentinc/librdkafka#5301). From outside that is like an outage.
//! So in a long one another client is made, from the configured addresses; where it is connected and the one in use is
//! not, it takes over. While Kafka is truly away it costs one client more, made anew from time to time, because it may
//! lose its way too.

use std::time::{Duration, Instant};

/// Length of an outage before there is another client: brokers restart within it.
const FIRST: Duration = Duration::from_secs(60);

/// Longest time between two of them.
const LONGEST: Duration = Duration::from_secs(600);

/// The outage that lasts, if one does.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// When another client is due, and how long ago the last one was.
    due: Option<(Instant, Duration)>,
}

impl Outage {
    /// Looks at the link. Whether another client is to be made now.
    pub(super) fn look(&mut self, is_up: bool, now: Instant) -> bool {
        if is_up {
            self.due = None;
            return false;
        }
        let (due, pause) = *self.due.get_or_insert((now + FIRST, FIRST));
        if now < due {
            return false;
        }
        let pause = (pause * 2).min(LONGEST);
        self.due = Some((now + pause, pause));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_outage_wants_another_client_and_rarer_and_rarer() {
        let mut outage = Outage::default();
        let begun = Instant::now();
        let mut made = Vec::new();
        for second in (0..3600).step_by(2) {
            if outage.look(false, begun + Duration::from_secs(second)) {
                made.push(second);
            }
        }
        assert_eq!(made, [60, 180, 420, 900, 1500, 2100, 2700, 3300]);
        assert!(!outage.look(true, begun + Duration::from_secs(3600)));
        assert!(!outage.look(false, begun + Duration::from_secs(3602)), "a new one begins");
        assert!(!outage.look(false, begun + Duration::from_secs(3650)));
        assert!(outage.look(false, begun + Duration::from_secs(3662)));
    }
}
