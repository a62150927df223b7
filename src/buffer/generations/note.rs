//! What is noted of a sealed generation, so that eviction need not read it.

use serde::{Deserialize, Serialize};

use super::Index;
use crate::buffer::block::Rank;
use crate::buffer::store::Shelf;
use crate::event::Seq;

/// What is known of a generation without reading it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Bytes of its blocks by rank, drained ones included.
    ranks: Vec<(Rank, u64)>,
}

impl Note {
    /// Of what was found in a generation.
    pub(super) fn of(index: &Index) -> Self {
        let mut note = Self::default();
        for piece in &index.pieces {
            note.add(piece.rank, piece.bytes);
        }
        note
    }

    /// Of what was written beside a generation; `None` if that cannot be read.
    pub(super) fn read(shelf: &impl Shelf, first: Seq) -> Option<Self> {
        serde_json::from_slice(&shelf.noted(first)?).ok()
    }

    /// Writes it beside a generation; it may be lost.
    pub(super) fn write(&self, shelf: &impl Shelf, first: Seq) {
        if let Ok(text) = serde_json::to_vec(self) {
            shelf.note(first, &text);
        }
    }

    pub(super) fn add(&mut self, rank: Rank, bytes: u64) {
        match self.ranks.iter_mut().find(|(known, _)| *known == rank) {
            Some((_, sum)) => *sum += bytes,
            None => self.ranks.push((rank, bytes)),
        }
    }

    /// Bytes of the ranks for which `is_meant` holds.
    pub(super) fn bytes_of(&self, is_meant: impl Fn(Rank) -> bool) -> u64 {
        self.ranks.iter().filter(|(rank, _)| is_meant(*rank)).map(|(_, bytes)| bytes).sum()
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_of(|_| true)
    }
}
