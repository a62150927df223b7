//! Events on their way out: a run of decompressed blocks.

use super::block::Origin;
use crate::event::{Event, Seq};

/// Events in order, each with its position, decoded without a copy. Made once and filled again and again.
#[derive(Debug, Default)]
pub struct Run {
    bytes: Vec<u8>,
    blocks: Vec<Span>,
    /// Events up to here are in the first block but were not asked for.
    after: Seq,
    end: Seq,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    first: Seq,
    count: u16,
    origin: Origin,
    start: usize,
    end: usize,
}

impl Run {
    /// Makes it empty for events behind `after`.
    pub(super) fn restart(&mut self, after: Seq) {
        self.bytes.clear();
        self.blocks.clear();
        (self.after, self.end) = (after, after);
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

    /// Takes what was unpacked since the last call as the `count` events from `first` on.
    pub(super) fn close(&mut self, first: Seq, count: u16, origin: Origin) {
        let start = self.blocks.last().map_or(0, |span| span.end);
        self.blocks.push(Span { first, count, origin, start, end: self.bytes.len() });
    }

    /// Drops what was unpacked since the last [`Run::close`].
    pub(super) fn forget(&mut self) {
        self.bytes.truncate(self.blocks.last().map_or(0, |span| span.end));
    }

    /// Bytes of the encoded events in it.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no event in it.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The events one by one, from the first one that was asked for.
    pub fn events(&self) -> impl Iterator<Item = (Seq, Origin, Event<'_>)> {
        self.blocks
            .iter()
            .flat_map(move |span| {
                let mut rest = self.bytes.get(span.start..span.end).unwrap_or_default();
                (0..u64::from(span.count)).map_while(move |index| {
                    // The block's checksum held, so a decoding error would be a bug of the same version's encoder; the
                    // events behind it in this block could not be told apart any more.
                    let (event, tail) = postcard::take_from_bytes::<Event<'_>>(rest).ok()?;
                    rest = tail;
                    Some((span.first.plus(index), span.origin, event))
                })
            })
            .filter(|(seq, ..)| *seq > self.after)
    }
}
