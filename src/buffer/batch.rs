//! A run of encoded events on its way into the buffer.

use super::block::{Events, Rank};
use super::ways::Ways;
use crate::event::Event;

/// What to do with events that find no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// They wait for room, as long as their producer allows.
    #[default]
    Block,
    /// They are refused at once.
    Reject,
    /// The oldest events that came under this policy go for them, those of lower priority first.
    DropOldest,
}

impl WhenFull {
    /// As it is written in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Reject => "reject",
            Self::DropOldest => "drop_oldest",
        }
    }
}

/// What was agreed about events when they came: how they behave when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// The policy.
    pub when_full: WhenFull,
    /// 0 to [`Rank::PRIORITY_MAX`]: among events that may be evicted, the lowest go first.
    pub priority: u8,
}

impl Terms {
    /// What is stored of them.
    pub fn rank(self) -> Rank {
        Rank { priority: self.priority, evictable: self.when_full == WhenFull::DropOldest }
    }
}

/// Events in the order they are to be stored, already encoded: one allocation for many events.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Vec<u8>,
    /// End of each event in `bytes`.
    ends: Vec<usize>,
    /// Of the next events.
    terms: Terms,
    /// Where the rank changes: number of events up to there, and their rank.
    ranks: Vec<(usize, Rank)>,
    /// Where they go.
    ways: Ways,
    /// Whether an event in it waits for room.
    is_patient: bool,
    /// The highest priority in it.
    priority: u8,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes `event` behind the others and returns its encoded size in bytes.
    ///
    /// # Errors
    /// The encoded event is larger than `bytes_max`, or its way cannot be stored ([`TOPICS_MAX`](super::TOPICS_MAX),
    /// [`TOPIC_BYTES_MAX`](super::TOPIC_BYTES_MAX)): the batch is as it was, the error is the size.
    pub fn push(&mut self, event: &Event<'_>, bytes_max: usize) -> Result<usize, usize> {
        let start = self.bytes.len();
        // Writing to a Vec cannot fail and an Event holds only what postcard can encode; a failure would leave a
        // torn event behind, so it is taken back like one that is too large.
        let encoded = postcard::to_io(event, &mut self.bytes).is_ok();
        let size = self.bytes.len() - start;
        if !encoded || size > bytes_max || !self.ways.push(event.way, self.ends.len() + 1) {
            self.bytes.truncate(start);
            return Err(size);
        }
        self.ends.push(self.bytes.len());
        let (count, rank) = (self.ends.len(), self.terms.rank());
        match self.ranks.last_mut().filter(|(_, last)| *last == rank) {
            Some((end, _)) => *end = count,
            None => self.ranks.push((count, rank)),
        }
        self.is_patient |= self.terms.when_full == WhenFull::Block;
        self.priority = self.priority.max(self.terms.priority);
        Ok(size)
    }

    /// The terms of the events that are pushed from now on.
    pub fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// Whether it waits for room: one event of it does, and they are taken together.
    pub fn is_patient(&self) -> bool {
        self.is_patient
    }

    /// The highest priority of an event in it: what may be evicted for it.
    pub fn priority(&self) -> u8 {
        self.priority
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no event in it.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Encoded size of all events in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of memory that its events take, without what neighbours share: their rank and their way.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.ends.len() * size_of::<usize>()
    }

    /// Gives back memory that was taken for more events.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// The encoded events one by one.
    pub fn encoded(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).filter_map(|(start, &end)| self.bytes.get(start..end))
    }

    /// The encoded events from the `at`th on that have one rank and together, with their ways, stay within `bytes_max` and
    /// `count_max`, at least one; `None` behind the last. `ways` is space for their ways.
    pub(super) fn run<'s>(
        &'s self,
        at: usize,
        bytes_max: usize,
        count_max: u16,
        ways: &'s mut Vec<u8>,
    ) -> Option<Events<'s>> {
        let &(same_until, rank) = self.ranks.iter().find(|(end, _)| *end > at)?;
        let start = at.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        let ends = self.ends.get(at..same_until)?.iter().copied().zip(self.ways.costs(at)).zip(1..=count_max);
        let mut fitting =
            ends.take_while(|&((end, cost), count)| count == 1 || end - start + cost <= bytes_max);
        let ((end, _), count) = fitting.by_ref().last()?;
        self.ways.write(at, count.into(), ways);
        Some(Events { rank, count, ways, bytes: self.bytes.get(start..end)? })
    }

    /// The events one by one, decoded without copying.
    pub fn events(&self) -> impl Iterator<Item = Event<'_>> {
        let decoded = self.encoded().zip(self.ways.iter(0));
        decoded.filter_map(|(bytes, way)| Some(Event { way, ..postcard::from_bytes(bytes).ok()? }))
    }

    /// Forgets the events and keeps the memory for the next ones.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.ranks.clear();
        self.ways.clear();
        (self.is_patient, self.priority) = (false, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventId, Payload, Stamp, Way};

    fn event(payload: &str) -> Event<'_> {
        Event {
            id: EventId::Given("e"),
            kind: "t",
            source_type: "s",
            source_id: "1",
            timestamp: None,
            received: Stamp { wall_us: -1, boot_us: 2, clock_trusted: false },
            payload: Payload::Json(payload),
            way: Way::default(),
        }
    }

    #[test]
    fn keeps_events_apart_and_in_order() {
        let mut batch = Batch::new();
        for payload in ["1", "22", "333"] {
            batch.push(&event(payload), 1000).unwrap();
        }
        assert_eq!(batch.len(), 3);
        assert_eq!(batch.events().collect::<Vec<_>>(), [event("1"), event("22"), event("333")]);
        assert_eq!(batch.encoded().map(<[u8]>::len).sum::<usize>(), batch.bytes());
        batch.clear();
        assert!(batch.is_empty() && batch.bytes() == 0);
    }

    #[test]
    fn a_run_ends_where_the_rank_changes() {
        let mut batch = Batch::new();
        let alarm = Terms { when_full: WhenFull::Block, priority: 7 };
        let telemetry = Terms { when_full: WhenFull::DropOldest, priority: 1 };
        for terms in [telemetry, telemetry, alarm, telemetry] {
            batch.set_terms(terms);
            batch.push(&event("1"), 1000).unwrap();
        }
        let (mut at, mut runs) = (0, Vec::new());
        let mut ways = Vec::new();
        while let Some(Events { count, rank, .. }) = batch.run(at, 1000, 10, &mut ways) {
            at += usize::from(count);
            runs.push((count, rank));
        }
        assert_eq!(runs, [(2, telemetry.rank()), (1, alarm.rank()), (1, telemetry.rank())]);
        assert!(batch.is_patient() && batch.priority() == 7);
        batch.clear();
        assert!(!batch.is_patient() && batch.priority() == 0);
    }

    #[test]
    fn a_run_leaves_room_for_the_ways_of_its_events() {
        let mut batch = Batch::new();
        let topics = ["a".repeat(100), "b".repeat(100)];
        let way =
            |n: usize| Way { topic: topics.get(n % 3).map(String::as_str), is_quiet: n.is_multiple_of(5) };
        for n in 0..30 {
            batch.push(&Event { way: way(n), ..event("12345678") }, 1000).unwrap();
        }
        assert!(batch.events().enumerate().all(|(n, event)| event.way == way(n)));
        let (mut at, mut space, mut runs) = (0, Vec::new(), 0);
        while let Some(Events { count, ways, bytes, .. }) = batch.run(at, 500, 1000, &mut space) {
            assert!(ways.len() + bytes.len() <= 500 && ways.len() > 200 && count > 3);
            (at, runs) = (at + usize::from(count), runs + 1);
        }
        assert!(at == 30 && runs > 1);
        let used = batch.ways.clone();
        batch.clear();
        assert_ne!(batch.ways, used);
        batch.push(&event("1"), 1000).unwrap();
        assert!(batch.run(0, 500, 1000, &mut space).unwrap().ways.is_empty());
    }

    #[test]
    fn refuses_an_event_above_the_limit_and_is_unchanged() {
        let mut batch = Batch::new();
        let size = batch.push(&event("1"), 1000).unwrap();
        let before = batch.clone();
        assert_eq!(batch.push(&event("12"), size), Err(size + 1));
        assert_eq!(batch, before);
    }
}
