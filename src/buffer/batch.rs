//! A run of encoded events on its way into the buffer.

use crate::event::Event;

/// Events in the order they are to be stored, already encoded: one allocation for many events.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Vec<u8>,
    /// End of each event in `bytes`.
    ends: Vec<usize>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes `event` behind the others and returns its encoded size in bytes.
    ///
    /// # Errors
    /// The encoded event is larger than `bytes_max`: the batch is as it was, the error is the size.
    pub fn push(&mut self, event: &Event<'_>, bytes_max: usize) -> Result<usize, usize> {
        let start = self.bytes.len();
        // Writing to a Vec cannot fail and an Event holds only what postcard can encode; a failure would leave a
        // torn event behind, so it is taken back like one that is too large.
        let encoded = postcard::to_io(event, &mut self.bytes).is_ok();
        let size = self.bytes.len() - start;
        if !encoded || size > bytes_max {
            self.bytes.truncate(start);
            return Err(size);
        }
        self.ends.push(self.bytes.len());
        Ok(size)
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

    /// The encoded events one by one.
    pub fn encoded(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).filter_map(|(start, &end)| self.bytes.get(start..end))
    }

    /// The encoded events from the `at`th on that together stay within `bytes_max` and `count_max`, at least one;
    /// `None` behind the last.
    pub(super) fn run(&self, at: usize, bytes_max: usize, count_max: u16) -> Option<(&[u8], u16)> {
        let start = at.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        let ends = self.ends.get(at..)?.iter().copied().zip(1..=count_max);
        let mut fitting = ends.take_while(|&(end, count)| count == 1 || end - start <= bytes_max);
        let (end, count) = fitting.by_ref().last()?;
        Some((self.bytes.get(start..end)?, count))
    }

    /// The events one by one, decoded without copying.
    pub fn events(&self) -> impl Iterator<Item = Event<'_>> {
        self.encoded().filter_map(|bytes| postcard::from_bytes(bytes).ok())
    }

    /// Forgets the events and keeps the memory for the next ones.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventId, Payload, Stamp};

    fn event(payload: &str) -> Event<'_> {
        Event {
            id: EventId::Given("e"),
            kind: "t",
            source_type: "s",
            source_id: "1",
            timestamp: None,
            received: Stamp { wall_us: -1, boot_us: 2, clock_trusted: false },
            payload: Payload::Json(payload),
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
    fn refuses_an_event_above_the_limit_and_is_unchanged() {
        let mut batch = Batch::new();
        let size = batch.push(&event("1"), 1000).unwrap();
        let before = batch.clone();
        assert_eq!(batch.push(&event("12"), size), Err(size + 1));
        assert_eq!(batch, before);
    }
}
