//! What Kafka has of the buffer: everything up to the cursor and, with two lanes, ranges ahead of it. Pure.
//!
//! ```text
//! positions   ...........|#######....####...........|>>>>>>>>
//!                     cursor  ahead   ahead      live_from
//!                        |- backlog: what is not ahead -|- live
//! ```
//!
//! A split makes backlog of what waits; the lanes join when the backlog lane has come to where the live lane began.

use crate::buffer::{AHEAD_MAX, Lanes};
use crate::event::Seq;
use crate::sink::transaction::Live;

/// Up to where each lane has delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    cursor: Seq,
    /// Delivered ahead of the cursor: first and last, ascending, not touching each other.
    ahead: Vec<(Seq, Seq)>,
    live_from: Seq,
}

impl Progress {
    /// One lane that goes on behind `cursor`.
    pub(super) fn at(cursor: Seq) -> Self {
        Self { cursor, ahead: Vec::new(), live_from: cursor.next() }
    }

    /// As it was kept, with a cursor that may have moved since.
    pub(super) fn restored(cursor: Seq, ahead: &[(Seq, Seq)], live_from: Seq) -> Self {
        let ahead = ahead.iter().copied().filter(|&(_, last)| last > cursor && last < live_from).collect();
        let mut this = Self { cursor, ahead, live_from: live_from.max(cursor.next()) };
        this.backlog(cursor);
        this
    }

    /// Itself, or what Kafka has with the events, whichever is further: the lanes of the one whose live lane is, and the
    /// later cursor.
    pub(super) fn or_later(&self, cursor: Seq, live: Option<&Live>, durable: Seq) -> Self {
        let kept = match live {
            Some((live_from, ahead)) => Self::restored(cursor, ahead, (*live_from).min(durable.next())),
            None => Self::at(cursor),
        };
        let cursor = self.cursor.max(kept.cursor);
        let later = if self.live_from > kept.live_from { self } else { &kept };
        Self::restored(cursor, &later.ahead, later.live_from)
    }

    /// Everything up to here may be forgotten.
    pub(super) fn cursor(&self) -> Seq {
        self.cursor
    }

    /// Where the live lane goes on; behind the cursor while there is one lane.
    pub(super) fn live_from(&self) -> Seq {
        self.live_from
    }

    /// What is delivered ahead of the cursor.
    pub(super) fn ahead(&self) -> &[(Seq, Seq)] {
        &self.ahead
    }

    /// Changes when anything does.
    pub(super) fn mark(&self) -> (Seq, Seq) {
        (self.cursor, self.live_from)
    }

    /// Whether there are two lanes.
    pub(super) fn is_split(&self) -> bool {
        self.live_from > self.cursor.next()
    }

    /// The live lane has delivered everything up to `last`.
    pub(super) fn live(&mut self, last: Seq) {
        if last < self.live_from {
            return;
        }
        if !self.is_split() {
            self.cursor = last;
        } else if let Some((_, end)) = self.ahead.last_mut().filter(|(_, end)| end.next() == self.live_from) {
            *end = last;
        } else {
            self.ahead.push((self.live_from, last));
        }
        self.live_from = last.next();
    }

    /// The backlog lane has delivered everything up to `last`.
    pub(super) fn backlog(&mut self, last: Seq) {
        if !self.is_split() {
            return;
        }
        self.cursor = self.skip(self.cursor.max(last.min(self.live_from.before())));
        self.ahead.retain(|(_, last)| *last > self.cursor);
    }

    /// Whether no more ranges can be remembered; one is left for a cursor that is late.
    pub(super) fn is_at_its_limit(&self) -> bool {
        self.ahead.len() + 1 >= AHEAD_MAX
    }

    /// What the live lane has not delivered up to `durable` becomes backlog; nothing of it may be in flight. `false`:
    /// there are as many ranges ahead as can be remembered.
    pub(super) fn split(&mut self, durable: Seq) -> bool {
        if self.is_at_its_limit() {
            return false;
        }
        self.live_from = self.live_from.max(durable.next());
        true
    }

    /// The last event behind `seq` without a gap that the backlog lane need not deliver: it goes on behind it.
    pub(super) fn skip(&self, seq: Seq) -> Seq {
        let mut seq = seq;
        for &(first, last) in &self.ahead {
            if first <= seq.next() {
                seq = seq.max(last);
            }
        }
        seq
    }

    /// Whether the event was delivered.
    pub(super) fn has(&self, seq: Seq) -> bool {
        seq <= self.cursor || self.ahead.iter().any(|&(first, last)| (first..=last).contains(&seq))
    }

    /// As the buffer keeps it, whose durable cursor may be late: what is between the two is ahead of it. `claimed` is the
    /// last event that may have gone out in the live lane.
    pub(super) fn to_lanes(&self, durable_cursor: Seq, claimed: Seq) -> Lanes {
        // Of one lane, too: without it, what is between the two would be backlog, and it went out live.
        let late = (self.cursor > durable_cursor).then(|| (durable_cursor.next(), self.cursor));
        let ahead = late.into_iter().chain(self.ahead.iter().copied()).collect();
        Lanes { ahead, live_from: self.live_from, claimed: claimed.max(self.live_from.before()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(progress: &Progress) -> Vec<(u64, u64)> {
        progress.ahead().iter().map(|(first, last)| (first.0, last.0)).collect()
    }

    #[test]
    fn one_lane_moves_the_cursor() {
        let mut progress = Progress::at(Seq(10));
        progress.live(Seq(10));
        assert_eq!((progress.cursor(), progress.is_split()), (Seq(10), false));
        progress.live(Seq(15));
        progress.backlog(Seq(99));
        assert_eq!((progress.cursor(), progress.live_from()), (Seq(15), Seq(16)));
        assert!(progress.has(Seq(15)) && !progress.has(Seq(16)));
    }

    #[test]
    fn the_lanes_split_again_and_again_and_join() {
        let mut progress = Progress::at(Seq(0));
        assert!(progress.split(Seq(10)));
        assert!(progress.is_split());
        progress.live(Seq(12));
        progress.live(Seq(14));
        assert_eq!((ranges(&progress), progress.cursor()), (vec![(11, 14)], Seq(0)));
        assert!(progress.has(Seq(11)) && !progress.has(Seq(10)));
        // Nothing new was delivered live: the backlog grows, without another range.
        assert!(progress.split(Seq(20)) && progress.split(Seq(30)));
        progress.live(Seq(31));
        assert_eq!(ranges(&progress), [(11, 14), (31, 31)]);
        progress.backlog(Seq(5));
        assert_eq!((progress.cursor(), progress.skip(Seq(5))), (Seq(5), Seq(5)));
        progress.backlog(Seq(10));
        assert_eq!((progress.cursor(), ranges(&progress)), (Seq(14), vec![(31, 31)]));
        assert_eq!(progress.skip(Seq(30)), Seq(31));
        progress.backlog(Seq(30));
        assert_eq!((progress.cursor(), progress.is_split(), ranges(&progress)), (Seq(31), false, vec![]));
        progress.live(Seq(32));
        assert_eq!(progress.cursor(), Seq(32));
    }

    #[test]
    fn a_backlog_that_is_through_before_anything_live_joins() {
        let mut progress = Progress::at(Seq(3));
        progress.split(Seq(7));
        // What was read may have gone further than the lane.
        progress.backlog(Seq(9));
        assert_eq!((progress.cursor(), progress.is_split()), (Seq(7), false));
    }

    #[test]
    fn there_are_not_more_ranges_than_can_be_remembered() {
        let mut progress = Progress::at(Seq(0));
        let mut durable = 10;
        while progress.split(Seq(durable)) {
            progress.live(Seq(durable + 1));
            durable += 10;
        }
        assert_eq!(progress.ahead().len(), AHEAD_MAX - 1);
        progress.live(Seq(durable));
        assert_eq!(progress.ahead().len(), AHEAD_MAX - 1, "the last one grows on");
    }

    #[test]
    fn the_further_of_two_words_counts() {
        let mut own = Progress::at(Seq(0));
        own.split(Seq(10));
        own.live(Seq(14));
        let durable = Seq(30);
        // Kafka has one more live event, and a little of the backlog.
        let kept = (Seq(16), vec![(Seq(11), Seq(15))]);
        let both = own.or_later(Seq(4), Some(&kept), durable);
        assert_eq!((both.cursor(), both.live_from(), ranges(&both)), (Seq(4), Seq(16), vec![(11, 15)]));
        // It had less when the agent ran in another mode since.
        let both = own.or_later(Seq(4), None, durable);
        assert_eq!((both.cursor(), both.live_from(), ranges(&both)), (Seq(4), Seq(15), vec![(11, 14)]));
        let both = own.or_later(Seq(20), None, durable);
        assert_eq!((both.cursor(), both.is_split()), (Seq(20), false));
        // It has more than the disk.
        let lost = (Seq(90), vec![(Seq(11), Seq(89))]);
        assert_eq!(own.or_later(Seq(4), Some(&lost), durable).live_from(), Seq(31));
    }

    #[test]
    fn one_lane_stays_one_where_the_cursor_on_disk_is_late() {
        let mut progress = Progress::at(Seq(0));
        progress.live(Seq(10));
        for cursor in [0, 4, 10] {
            let Lanes { ahead, live_from, claimed } = progress.to_lanes(Seq(cursor), Seq(50));
            assert_eq!((live_from, claimed), (Seq(11), Seq(50)));
            assert_eq!(Progress::restored(Seq(cursor), &ahead, live_from), progress, "{cursor}");
        }
    }

    #[test]
    fn what_was_kept_comes_back_and_a_later_cursor_counts() {
        let mut progress = Progress::at(Seq(0));
        progress.split(Seq(10));
        progress.live(Seq(14));
        progress.split(Seq(20));
        let Lanes { ahead, live_from, claimed } = progress.to_lanes(Seq(0), Seq(0));
        assert_eq!((live_from, claimed), (Seq(21), Seq(20)));
        assert_eq!(Progress::restored(Seq(0), &ahead, live_from), progress);
        progress.backlog(Seq(5));
        let late = progress.to_lanes(Seq(2), Seq(0));
        assert_eq!(late.ahead, [(Seq(3), Seq(5)), (Seq(11), Seq(14))], "the cursor on disk is late");
        assert_eq!(Progress::restored(Seq(2), &late.ahead, late.live_from), progress);
        for (cursor, wanted) in [(10, 14), (12, 14), (14, 14), (17, 17), (20, 20), (25, 25)] {
            let restored = Progress::restored(Seq(cursor), &ahead, live_from);
            assert_eq!(restored.cursor(), Seq(wanted), "{cursor}");
            assert_eq!(restored.is_split(), wanted < 20, "{cursor}");
        }
    }
}
