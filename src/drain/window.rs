//! What is in flight to Kafka: which events are confirmed, and up to where without a gap. Pure.

use std::collections::VecDeque;

use crate::event::Seq;
use crate::ping::Ping;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Confirmed,
    Refused,
}

/// An event in flight.
#[derive(Debug)]
struct Entry {
    seq: Seq,
    bytes: usize,
    boot_us: Option<u64>,
    state: State,
    ping: Option<Ping>,
}

/// What an event leaves when Kafka has it.
#[derive(Debug)]
pub(super) struct Confirmed {
    /// Its ping, if one waited.
    pub(super) ping: Option<Ping>,
    /// When it was taken, microseconds since boot; `None`: in another boot.
    pub(super) boot_us: Option<u64>,
}

/// Events in flight in one lane, in order. Tags count up in twos, with the lane as their lowest bit, and wrap, so that 32
/// bits are enough.
#[derive(Debug)]
pub(super) struct Window {
    entries: VecDeque<Entry>,
    /// Tag of the first entry.
    base: usize,
    bytes: usize,
    /// Entries without a report.
    open: usize,
}

impl Window {
    /// An empty one whose tags have `lane_bit` as their lowest bit.
    pub(super) fn new(lane_bit: usize) -> Self {
        Self { entries: VecDeque::new(), base: lane_bit & 1, bytes: 0, open: 0 }
    }

    /// The tag of the next event.
    pub(super) fn next_tag(&self) -> usize {
        self.base.wrapping_add(self.entries.len().wrapping_mul(2))
    }

    /// Notes that an event went out under [`Window::next_tag`]. `boot_us`: when it was taken; `None`: in
    /// another boot.
    pub(super) fn push(&mut self, seq: Seq, bytes: usize, boot_us: Option<u64>, ping: Option<Ping>) {
        self.entries.push_back(Entry { seq, bytes, boot_us, state: State::Open, ping });
        self.bytes += bytes;
        self.open += 1;
    }

    /// Notes that nothing more needs to be done for the event with `tag`. `None`: the tag is not in flight.
    pub(super) fn confirm(&mut self, tag: usize) -> Option<Confirmed> {
        let entry = self.report(tag, State::Confirmed)?;
        Some(Confirmed { ping: entry.ping.take(), boot_us: entry.boot_us })
    }

    /// Notes that the event with `tag` was refused and has to go out again. `None`: the tag is not in flight.
    pub(super) fn refuse(&mut self, tag: usize) -> Option<Seq> {
        self.report(tag, State::Refused).map(|entry| entry.seq)
    }

    fn report(&mut self, tag: usize, state: State) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(tag.wrapping_sub(self.base) / 2)?;
        if entry.state == State::Open {
            self.open -= 1;
        }
        entry.state = state;
        Some(entry)
    }

    /// Takes the confirmed events off the front and answers the last of them.
    pub(super) fn advance(&mut self) -> Option<Seq> {
        let mut last = None;
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.state == State::Confirmed) {
            self.base = self.base.wrapping_add(2);
            self.bytes -= entry.bytes;
            last = Some(entry.seq);
        }
        last
    }

    /// Forgets everything; tags go on, so that a late report of a forgotten event is not taken for another one.
    pub(super) fn clear(&mut self) {
        self.base = self.next_tag();
        self.entries.clear();
        (self.bytes, self.open) = (0, 0);
    }

    /// Number of events, confirmed ones behind a gap included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Events without a report.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Bytes of all its events.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest event was taken, microseconds since boot; `None` also when that was in another boot.
    pub(super) fn oldest_boot_us(&self) -> Option<u64> {
        self.entries.front().and_then(|entry| entry.boot_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_waits_for_the_first_gap() {
        let mut window = Window { base: usize::MAX - 2, ..Window::new(1) };
        let tags: Vec<usize> = (1..=4)
            .map(|n| {
                let tag = window.next_tag();
                window.push(Seq(n), 10, Some(n), None);
                tag
            })
            .collect();
        assert_eq!(tags, [usize::MAX - 2, usize::MAX, 1, 3], "the lane's bit stays over the wrap");
        for tag in [tags[1], tags[3]] {
            window.confirm(tag).unwrap();
        }
        assert_eq!(window.advance(), None);
        window.confirm(tags[0]).unwrap();
        assert_eq!(window.advance(), Some(Seq(2)));
        assert_eq!(
            (window.len(), window.open(), window.bytes(), window.oldest_boot_us()),
            (2, 1, 20, Some(3))
        );
        assert_eq!(window.refuse(tags[2]), Some(Seq(3)));
        assert_eq!((window.advance(), window.open()), (None, 0));
        window.confirm(tags[2]).unwrap();
        assert_eq!(window.advance(), Some(Seq(4)));
        assert!(window.is_empty());
    }

    #[test]
    fn a_late_report_of_a_forgotten_event_is_nobody() {
        let mut window = Window::new(0);
        let old = window.next_tag();
        window.push(Seq(1), 10, Some(0), None);
        window.clear();
        window.push(Seq(1), 10, Some(0), None);
        assert!(window.confirm(old).is_none());
        assert_eq!(window.open(), 1);
    }
}
