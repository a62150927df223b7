//! When the agent's status is to be published again: as soon as it says something of another kind, seldom while only
//! figures change, never while nothing does. Pure but for its clock.
//!
//! One publish is under way at a time and nothing waits for its answer, so that a broker that does not take it costs the
//! status and no acknowledgement of an event.

use std::time::Duration;

use tokio::time::Instant;

use crate::status::brief::Brief;

/// Time between two looks whether there is news.
const LOOK: Duration = Duration::from_secs(2);

/// Shortest time between two publishes on a link that holds: a link to Kafka that comes and goes is not radio traffic of
/// each second, and a broker may keep each retained message on flash.
const SPACING: Duration = Duration::from_secs(10);

/// After the client had no room.
const NO_ROOM: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Bulletin {
    /// Time between two publishes while only figures change.
    interval: Duration,
    /// What was handed over last.
    told: Option<(Brief, Instant)>,
    /// The broker may show something else.
    must: bool,
    /// When to look next; `None` without a connection.
    look_at: Option<Instant>,
    under_way: bool,
    /// The refusal that was logged, until a publish is taken.
    refused: Option<String>,
}

impl Bulletin {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, told: None, must: true, look_at: None, under_way: false, refused: None }
    }

    /// The link is up.
    pub(super) fn connected(&mut self, now: Instant) {
        self.under_way = false;
        let soon = self.told.as_ref().map(|(_, at)| *at + SPACING).filter(|_| !self.must);
        self.look_at = Some(soon.map_or(now, |at| at.max(now)));
        self.must = true;
    }

    /// The link is down. `is_left`: the agent left the broker in order, which therefore shows what was said last.
    pub(super) fn disconnected(&mut self, is_left: bool) {
        self.must = !is_left || self.told.is_none() || self.under_way;
        self.under_way = false;
        self.look_at = None;
    }

    /// When to look next.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.look_at.filter(|_| !self.under_way)
    }

    /// What to publish now, if it is time; `brief` is asked only then.
    pub(super) fn take_due(&mut self, now: Instant, brief: impl FnOnce() -> Brief) -> Option<Brief> {
        self.due_at().filter(|&at| at <= now)?;
        self.look_at = Some(now + LOOK);
        let brief = brief();
        let is_news = self.must
            || self.told.as_ref().is_none_or(|(told, at)| {
                let age = now.saturating_duration_since(*at);
                (brief.differs_in_kind(told) && age >= SPACING)
                    || (brief.differs(told) && age >= self.interval)
            });
        if !is_news {
            return None;
        }
        (self.must, self.under_way) = (false, true);
        self.told = Some((brief.clone(), now));
        Some(brief)
    }

    /// The client had no room for it.
    pub(super) fn postpone(&mut self, now: Instant) {
        (self.must, self.under_way) = (true, false);
        self.look_at = Some(now + NO_ROOM);
    }

    /// The broker answered. Returns the reason of a refusal that was not told yet.
    pub(super) fn answered(&mut self, answer: Result<(), String>, now: Instant) -> Option<String> {
        self.under_way = false;
        match answer {
            Ok(()) => {
                self.refused = None;
                None
            }
            Err(reason) => {
                // The broker's access list may be mended while the link holds.
                self.must = true;
                self.look_at = Some(now + self.interval);
                let is_news = self.refused.as_ref() != Some(&reason);
                self.refused = Some(reason.clone());
                is_news.then_some(reason)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::brief::tests::brief;

    const INTERVAL: Duration = Duration::from_secs(60);

    /// Seconds at which something is published in ten minutes, each answered at once.
    fn published(bulletin: &mut Bulletin, begun: Instant, at: impl Fn(u64) -> Brief) -> Vec<u64> {
        let taken = |second: &u64| {
            let now = begun + Duration::from_secs(*second);
            let taken = bulletin.take_due(now, || at(*second)).is_some();
            assert!(!taken || bulletin.due_at().is_none(), "one is under way");
            assert_eq!(bulletin.answered(Ok(()), now), None);
            taken
        };
        (0..600).filter(taken).collect()
    }

    #[test]
    fn news_goes_soon_figures_seldom_and_nothing_new_never() {
        let begun = Instant::now();
        let start = || {
            let mut bulletin = Bulletin::new(INTERVAL);
            assert_eq!(bulletin.due_at(), None, "not without a link");
            bulletin.connected(begun);
            bulletin
        };
        assert_eq!(published(&mut start(), begun, |_| brief(0, "up")), [0]);
        let figures = published(&mut start(), begun, |second| brief(second, "up"));
        assert_eq!(figures, (0..10).map(|n| n * 60).collect::<Vec<_>>());
        let once = published(&mut start(), begun, |second| brief(0, if second < 31 { "up" } else { "down" }));
        assert_eq!(once, [0, 32]);
        let flapping = published(&mut start(), begun, |second| {
            brief(0, if second / 2 % 2 == 0 { "up" } else { "down" })
        });
        assert!(
            flapping.len() <= 61 && flapping.windows(2).all(|pair| pair[1] - pair[0] >= 10),
            "{flapping:?}"
        );
    }

    #[test]
    fn after_a_lost_link_it_is_said_again_at_once_and_after_one_that_was_left_in_its_time() {
        let begun = Instant::now();
        let mut bulletin = Bulletin::new(INTERVAL);
        bulletin.connected(begun);
        assert!(bulletin.take_due(begun, || brief(0, "up")).is_some());
        bulletin.answered(Ok(()), begun);
        bulletin.disconnected(false);
        let second = Duration::from_secs(1);
        bulletin.connected(begun + second);
        assert!(bulletin.take_due(begun + second, || brief(0, "up")).is_some(), "the will was sent");
        bulletin.answered(Ok(()), begun + second);
        bulletin.disconnected(true);
        bulletin.connected(begun + 2 * second);
        assert_eq!(bulletin.due_at(), Some(begun + second + SPACING));
        assert!(bulletin.take_due(begun + second + SPACING, || brief(0, "up")).is_some(), "to be sure");
    }

    #[test]
    fn a_refusal_is_told_once_and_tried_again() {
        let begun = Instant::now();
        let mut bulletin = Bulletin::new(INTERVAL);
        bulletin.connected(begun);
        let refused = || Err("NotAuthorized".to_owned());
        assert!(bulletin.take_due(begun, || brief(0, "up")).is_some());
        assert_eq!(bulletin.answered(refused(), begun), Some("NotAuthorized".into()));
        assert!(bulletin.take_due(begun + LOOK, || brief(0, "down")).is_none());
        assert!(bulletin.take_due(begun + INTERVAL, || brief(0, "down")).is_some());
        assert_eq!(bulletin.answered(refused(), begun + INTERVAL), None);
        assert!(bulletin.take_due(begun + 2 * INTERVAL, || brief(0, "down")).is_some());
        assert_eq!(bulletin.answered(Ok(()), begun), None);
        bulletin.postpone(begun);
        assert!(bulletin.take_due(begun + NO_ROOM, || brief(0, "down")).is_some());
        assert_eq!(bulletin.answered(refused(), begun), Some("NotAuthorized".into()));
    }
}
