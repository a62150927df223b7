//! Keys of a generation's entries.

use crate::event::Seq;

/// Sorts behind every key of a block.
pub(super) const CURSOR_KEY: &[u8] = b"\xffcursor";

/// Key of a block: its first position, and for a later chunk of a large event the chunk's index.
pub(super) fn block_key(first: Seq, chunk: u16) -> ([u8; 10], usize) {
    let mut key = [0; 10];
    let (seq, index) = key.split_at_mut(8);
    seq.copy_from_slice(&first.0.to_be_bytes());
    index.copy_from_slice(&chunk.to_be_bytes());
    (key, if chunk == 0 { 8 } else { 10 })
}

/// Position in a key; `None` for the cursor's.
pub(super) fn key_seq(key: &[u8]) -> Option<Seq> {
    let (seq, chunk) = key.split_first_chunk::<8>()?;
    matches!(chunk.len(), 0 | 2).then(|| Seq(u64::from_be_bytes(*seq))).filter(|_| key != CURSOR_KEY)
}
