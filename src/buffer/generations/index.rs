//! What is in a sealed generation: an index over the whole blocks that a raw scan finds in its file.
//!
//! The file may hold more than belongs to the generation: older copies, drained blocks, events that were written and
//! never acknowledged. Each position is taken once: gaps before events, a later epoch before an earlier one.

use std::collections::BTreeMap;
use std::io;

use crate::buffer::block::{Block, Kind, Origin, Rank};
use crate::buffer::scan::{Scanned, Source, scan};
use crate::event::Seq;

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::buffer) struct Place {
    pub(in crate::buffer) offset: u64,
    pub(in crate::buffer) bytes: u32,
}

/// Positions that were written together: one block, or all chunks of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::buffer) struct Piece {
    pub(in crate::buffer) first: Seq,
    pub(in crate::buffer) last: Seq,
    pub(in crate::buffer) kind: Kind,
    pub(in crate::buffer) rank: Rank,
    /// Bytes of its blocks.
    pub(in crate::buffer) bytes: u64,
    /// Where in [`Index::places`].
    places: (u32, u32),
}

/// The index of one generation.
#[derive(Debug, Default)]
pub(in crate::buffer) struct Index {
    /// By position, without overlaps.
    pub(in crate::buffer) pieces: Vec<Piece>,
    places: Vec<Place>,
    /// The largest cursor that was written.
    pub(in crate::buffer) cursor: Seq,
    /// Everything up to here was synced once.
    pub(in crate::buffer) synced: Seq,
    pub(in crate::buffer) scanned: Scanned,
}

/// A block as it was found.
#[derive(Debug, Clone, Copy)]
struct Found {
    first: Seq,
    last: Seq,
    kind: Kind,
    rank: Rank,
    origin: Origin,
    chunk: u16,
    chunks: u16,
    run_bytes: u32,
    place: Place,
}

impl Index {
    /// Reads through `source` and keeps what lies in `first..=last` and is not wholly up to `after`.
    ///
    /// # Errors
    /// The disk cannot tell how long the file is.
    pub(in crate::buffer) fn build(
        source: &dyn Source,
        (first, last): (Seq, Seq),
        after: Seq,
    ) -> io::Result<Self> {
        let mut this = Self::default();
        let mut found = Vec::new();
        this.scanned = scan(source, |offset, block| this.note(offset, block, &mut found))?;
        found.retain(|block| block.first >= first && block.last <= last && block.last > after);
        this.choose(found);
        Ok(this)
    }

    fn note(&mut self, offset: u64, block: &Block<'_>, found: &mut Vec<Found>) {
        match block.kind {
            Kind::Cursor => self.cursor = self.cursor.max(block.first),
            Kind::Events => {
                let before = block.first.before().0.saturating_sub(u64::from(block.unsynced));
                self.synced = self.synced.max(Seq(before));
            }
            Kind::Gap => self.synced = self.synced.max(block.last()),
        }
        if block.kind == Kind::Cursor {
            return;
        }
        let bytes = u32::try_from(block.bytes()).unwrap_or(u32::MAX);
        found.push(Found {
            first: block.first,
            last: block.last(),
            kind: block.kind,
            rank: block.rank,
            origin: block.origin,
            chunk: block.chunk,
            chunks: block.chunks,
            run_bytes: block.run_bytes,
            place: Place { offset, bytes },
        });
    }

    fn choose(&mut self, mut found: Vec<Found>) {
        // The order in which positions are given away; copies of one chunk stand together.
        let order = |block: &Found| {
            (
                block.kind != Kind::Gap,
                u32::MAX - block.origin.epoch,
                block.first,
                u32::MAX - block.run_bytes,
                block.chunks,
                block.chunk,
            )
        };
        found.sort_unstable_by_key(|block| (order(block), block.place.offset));
        found.dedup_by_key(|block| order(block));
        let mut taken: BTreeMap<Seq, Piece> = BTreeMap::new();
        let mut rest = found.as_slice();
        while let Some(head) = rest.first() {
            let (group, others) = rest.split_at(event_blocks(rest));
            rest = others;
            if group.len() != usize::from(head.chunks) {
                continue;
            }
            let before = taken.range(..=head.last).next_back();
            if before.is_some_and(|(_, piece)| piece.last >= head.first) {
                continue;
            }
            let start = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
            self.places.extend(group.iter().map(|block| block.place));
            let end = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
            taken.insert(
                head.first,
                Piece {
                    first: head.first,
                    last: head.last,
                    kind: head.kind,
                    rank: head.rank,
                    bytes: group.iter().map(|block| u64::from(block.place.bytes)).sum(),
                    places: (start, end),
                },
            );
        }
        self.pieces = taken.into_values().collect();
    }

    /// Where the blocks of `piece` are, in order.
    pub(in crate::buffer) fn places(&self, piece: &Piece) -> &[Place] {
        let (start, end) = piece.places;
        self.places.get(start as usize..end as usize).unwrap_or_default()
    }

    /// The number of the first piece that ends behind `after`.
    pub(in crate::buffer) fn from(&self, after: Seq) -> usize {
        self.pieces.partition_point(|piece| piece.last <= after)
    }

    /// Of the newest generation, which begins at `first`: cuts off what follows the first hole behind `cursor` that need
    /// not have been acknowledged, because a crash tore it while it was written. Everything up to `known`, and what
    /// was synced by its own account, was acknowledged, so a hole before it is damage and stays.
    pub(in crate::buffer) fn cut_torn_tail(&mut self, first: Seq, cursor: Seq, known: Seq) {
        let (mut end, synced) = (first.before().max(cursor), self.synced.max(known));
        let whole = self.pieces.iter().take_while(|piece| {
            let is_next = piece.first <= end.next() || piece.first <= synced;
            end = end.max(piece.last);
            is_next
        });
        let whole = whole.count();
        self.pieces.truncate(whole);
    }

    /// Whether the end of the row and the cursor can be told from it; else the generation before it is asked.
    pub(in crate::buffer) fn tells_end(&self) -> bool {
        self.cursor > Seq(0) || !self.pieces.is_empty()
    }

    /// The last position that is there.
    pub(in crate::buffer) fn last(&self) -> Option<Seq> {
        self.pieces.last().map(|piece| piece.last)
    }

    /// Ranges of positions in `first..=last` that nothing stands for.
    pub(in crate::buffer) fn holes(&self, first: Seq, last: Seq) -> Vec<(Seq, Seq)> {
        let mut holes = Vec::new();
        let mut wanted = first;
        for piece in self.pieces.iter().take_while(|piece| piece.first <= last) {
            if piece.first > wanted {
                holes.push((wanted, piece.first.before()));
            }
            wanted = wanted.max(piece.last.next());
        }
        if wanted <= last {
            holes.push((wanted, last));
        }
        holes
    }
}

/// How many of the blocks at the beginning belong to the same event: 1, or the chunks 0, 1, … in a row.
fn event_blocks(found: &[Found]) -> usize {
    let Some(head) = found.first() else { return 0 };
    let same = found.iter().zip(0_u32..).take_while(|(block, index)| {
        u32::from(block.chunk) == *index
            && (block.first, block.chunks, block.run_bytes) == (head.first, head.chunks, head.run_bytes)
            && block.origin == head.origin
    });
    same.count().max(1)
}
