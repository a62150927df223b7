//! Events on their way out: a run of decompressed blocks.

use super::block::{Block, Origin};
use super::generations::last_event;
use super::ways::Stored;
use crate::event::{Event, Seq, Stamp};

/// Events in order, each with its position, decoded without a copy. Made once and filled again and again.
#[derive(Debug, Default)]
pub struct Run {
    bytes: Vec<u8>,
    blocks: Vec<Span>,
    /// End of what the blocks took of the bytes.
    closed: usize,
    /// Events up to here are in the first block but were not asked for.
    after: Seq,
    /// Events behind it are in the last block but were not asked for.
    until: Seq,
    end: Seq,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    first: Seq,
    count: u16,
    origin: Origin,
    start: usize,
    end: usize,
    has_ways: bool,
}

impl Span {
    /// Ways and events in `bytes`, those of the whole run.
    fn split<'r>(&self, bytes: &'r [u8]) -> (Stored<'r>, &'r [u8]) {
        let bytes = bytes.get(self.start..self.end).unwrap_or_default();
        if self.has_ways {
            Stored::split(bytes, self.count).unwrap_or_default()
        } else {
            (Stored::default(), bytes)
        }
    }

    fn last_event<'r>(&self, bytes: &'r [u8]) -> Option<Event<'r>> {
        last_event(self.split(bytes).1, self.count)
    }
}

impl Run {
    /// Makes it empty for events behind `after`.
    pub(super) fn restart(&mut self, after: Seq) {
        self.until = Seq::MAX;
        self.bytes.clear();
        self.blocks.clear();
        self.closed = 0;
        (self.after, self.end) = (after, after);
    }

    /// Leaves out what is behind `until`.
    pub(super) fn limit(&mut self, until: Seq) {
        self.until = until;
    }

    /// Notes that everything up to `end` was looked at.
    pub(super) fn reach(&mut self, end: Seq) {
        self.end = end;
    }

    /// Everything up to here is in this run or could not be served: where the next read goes on.
    pub fn end(&self) -> Seq {
        self.end
    }

    /// The bytes to unpack into; [`Run::close`] then says what was unpacked.
    pub(super) fn space(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Takes what was unpacked since the last call as the events of `block`.
    pub(super) fn close(&mut self, block: &Block<'_>) {
        let &Block { first, count, origin, has_ways, .. } = block;
        let start = std::mem::replace(&mut self.closed, self.bytes.len());
        self.blocks.push(Span { first, count, origin, start, end: self.bytes.len(), has_ways });
    }

    /// Drops what was unpacked since the last [`Run::close`].
    pub(super) fn forget(&mut self) {
        self.bytes.truncate(self.closed);
    }

    /// Takes out the blocks for which `is_dropped` holds, by the times of their newest event, and answers their
    /// positions, first and last of what was asked for.
    pub(super) fn drop_blocks(&mut self, is_dropped: impl Fn(Origin, Stamp) -> bool) -> Vec<(Seq, Seq)> {
        let mut dropped = Vec::new();
        let (bytes, after, until) = (&self.bytes, self.after, self.until);
        self.blocks.retain(|span| {
            let newest = span.last_event(bytes);
            let goes = newest.is_some_and(|event| is_dropped(span.origin, event.received));
            if goes {
                let last = span.first.plus(u64::from(span.count)).before();
                dropped.push((span.first.max(after.next()), last.min(until)));
            }
            !goes
        });
        dropped
    }

    /// Origin and time of the last event in it.
    pub(super) fn newest(&self) -> Option<(Origin, Stamp)> {
        let span = self.blocks.last()?;
        let event = span.last_event(&self.bytes)?;
        Some((span.origin, event.received))
    }

    /// Bytes of the encoded events in it.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no event in it.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The events one by one, from the first to the last one that was asked for.
    pub fn events(&self) -> impl Iterator<Item = (Seq, Origin, Event<'_>)> {
        self.blocks
            .iter()
            .flat_map(move |span| {
                let (mut ways, mut rest) = span.split(&self.bytes);
                (0..u64::from(span.count)).map_while(move |index| {
                    // The block's checksum held, so a decoding error would be a bug of the same version's encoder; the
                    // events behind it in this block could not be told apart any more.
                    let (event, tail) = postcard::take_from_bytes::<Event<'_>>(rest).ok()?;
                    rest = tail;
                    Some((span.first.plus(index), span.origin, Event { way: ways.next_way(), ..event }))
                })
            })
            .filter(|(seq, ..)| (self.after.next()..=self.until).contains(seq))
    }
}
