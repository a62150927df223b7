//! The stored form of events: blocks. Pure codec.
//!
//! A block is one value in a generation: a header and a body. The body is a run of postcard events
//! (`crate::event`), in format 2 with their ways before them (`ways`), lz4-compressed when that makes it smaller. A block
//! whose events all go the usual way is written in format 1, which costs them nothing. An event too large for one block is cut into
//! chunks, each a block of its own with the same sequence number, so that no value ever reaches the size at which
//! sled would move it into a blob file that is never synced (more than `segment_size / 4 / 17` bytes).
//!
//! Header, integers little-endian. The first three fields mean the same in every version, so that a later version's
//! block is known for what it is; everything behind the checksum is inside it, so a raw scan of a file can find a
//! block by its magic and know that it is whole:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 3 | magic `fpB` |
//! | 3 | 1 | format version, up to [`FORMAT`] |
//! | 4 | 4 | CRC-32 (IEEE) of the version and everything behind this field |
//! | 8 | 4 | length of everything behind this field |
//! | 12 | 8 | sequence number of the first event; of a cursor: the cursor |
//! | 20 | 4 | epoch in which the events were stamped |
//! | 24 | 4 | number of events before it that were not synced when it was written |
//! | 28 | 2 | number of events; 1 for a gap or a cursor |
//! | 30 | 2 | index of this chunk, 0 unless the event is chunked |
//! | 32 | 2 | number of chunks, 1 unless the event is chunked |
//! | 34 | 1 | kind: 0 events, 1 lz4-compressed events, 2 gap, 3 cursor |
//! | 35 | 1 | [`Rank`]: bit 7 may be evicted, the others priority |
//! | 36 | 4 | length of the whole run before compression; of a gap: number of positions |
//! | 40 | 16 | boot id under which the events were stamped |

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::event::Seq;

/// The latest version of header and event encoding, of blocks that say where their events go; a later one is not read and
/// not touched.
pub const FORMAT: u8 = 2;

/// The version of all other blocks.
const FORMAT_PLAIN: u8 = 1;

/// Most bytes of events and their ways in one block before compression. With the header a value has at most 7,056 bytes, below the
/// 7,710 that a 512 KiB segment allows (see the module doc).
pub const RUN_BYTES_MAX: usize = 7_000;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 56;

/// Largest block in bytes; a raw scan takes a longer one for chance.
pub const BLOCK_BYTES_MAX: usize = HEADER_BYTES + RUN_BYTES_MAX;

/// Bytes before the field behind which the length counts.
const PRELUDE_BYTES: usize = 12;

/// Largest event that can be chunked; far above the largest allowed `limits.max_event_bytes`.
pub const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How a block begins.
pub const MAGIC: [u8; 3] = *b"fpB";

const KIND_PLAIN: u8 = 0;
const KIND_LZ4: u8 = 1;
const KIND_GAP: u8 = 2;
const KIND_CURSOR: u8 = 3;

/// Bytes from which on the checksum counts.
const CHECKED_FROM: usize = 8;

/// Why a value is not a block that can be served. Class: reject; the caller counts the range as damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlockError {
    /// Shorter than its header says, or without the magic.
    #[error("not a block")]
    NotABlock,
    /// Whole, and written by a later version.
    #[error("block format {0} is newer than this agent's {FORMAT}")]
    Newer(u8),
    /// The checksum does not match.
    #[error("checksum mismatch")]
    Checksum,
    /// The checksum matches but the content contradicts itself.
    #[error("inconsistent block")]
    Inconsistent,
}

/// What every block of one run of the agent shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Counts the starts of the agent on this buffer.
    pub epoch: u32,
    /// The kernel's boot id, so that `boot_us` of two events can be compared.
    pub boot: [u8; 16],
}

/// What a block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Events.
    Events,
    /// Positions that were given up on purpose, and counted when that happened: nothing is missing.
    Gap,
    /// The drain's cursor.
    Cursor,
}

/// Who has to go first when there is no room: stored with the events, decided at admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Rank {
    /// 0 to [`Rank::PRIORITY_MAX`]; the lowest is evicted first.
    pub priority: u8,
    /// Whether they were accepted on the condition that they may be evicted (`when_full = "drop_oldest"`).
    pub evictable: bool,
}

impl Rank {
    /// The highest priority.
    pub const PRIORITY_MAX: u8 = 9;

    fn to_byte(self) -> u8 {
        self.priority.min(Self::PRIORITY_MAX) | if self.evictable { 0x80 } else { 0 }
    }

    fn from_byte(byte: u8) -> Self {
        Self { priority: byte & 0x7f, evictable: byte & 0x80 != 0 }
    }
}

/// A block's header and body, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// What it is.
    pub kind: Kind,
    /// Position of the first event.
    pub first: Seq,
    /// When and where its events were stamped.
    pub origin: Origin,
    /// Events before it that were not synced when it was written: everything else before it was.
    pub unsynced: u32,
    /// Number of events; 1 for a gap or a cursor.
    pub count: u16,
    /// Which part of a chunked event this is, counted from 0.
    pub chunk: u16,
    /// Number of parts.
    pub chunks: u16,
    /// Who goes first when there is no room.
    pub rank: Rank,
    /// Length of the whole run before compression; of a gap: number of positions.
    pub run_bytes: u32,
    /// Whether the run begins with the ways of its events.
    pub has_ways: bool,
    is_lz4: bool,
    body: &'a [u8],
}

/// Events that share a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Events<'a> {
    /// Who goes first when there is no room.
    pub rank: Rank,
    /// How many there are.
    pub count: u16,
    /// Where they go; empty when all go the usual way.
    pub ways: &'a [u8],
    /// The events, encoded.
    pub bytes: &'a [u8],
}

impl<'a> Block<'a> {
    /// Reads a value; what stands behind the block does not matter.
    ///
    /// # Errors
    /// [`BlockError`]; never panics, whatever the bytes.
    pub fn parse(value: &'a [u8]) -> Result<Self, BlockError> {
        let mut fields = Fields(value);
        if fields.take::<3>()? != MAGIC {
            return Err(BlockError::NotABlock);
        }
        let [format] = fields.take()?;
        let crc = u32::from_le_bytes(fields.take()?);
        let rest_bytes = u32::from_le_bytes(fields.take()?) as usize;
        let checked = value.get(CHECKED_FROM..PRELUDE_BYTES.saturating_add(rest_bytes));
        if checksum(format, checked.ok_or(BlockError::NotABlock)?) != crc {
            return Err(BlockError::Checksum);
        }
        let has_ways = match format {
            FORMAT_PLAIN => false,
            FORMAT => true,
            _ => return Err(BlockError::Newer(format)),
        };
        fields.0 = fields.0.get(..rest_bytes).ok_or(BlockError::NotABlock)?;
        let first = Seq(u64::from_le_bytes(fields.take()?));
        let epoch = u32::from_le_bytes(fields.take()?);
        let unsynced = u32::from_le_bytes(fields.take()?);
        let count = u16::from_le_bytes(fields.take()?);
        let chunk = u16::from_le_bytes(fields.take()?);
        let chunks = u16::from_le_bytes(fields.take()?);
        let [kind, rank] = fields.take()?;
        let run_bytes = u32::from_le_bytes(fields.take()?);
        let boot = fields.take()?;
        let (kind, is_lz4) = match kind {
            KIND_PLAIN => (Kind::Events, false),
            KIND_LZ4 => (Kind::Events, true),
            KIND_GAP => (Kind::Gap, false),
            KIND_CURSOR => (Kind::Cursor, false),
            _ => return Err(BlockError::Inconsistent),
        };
        let is_sane = match kind {
            Kind::Events => {
                let run_bytes_max = if count == 1 { EVENT_BYTES_MAX } else { RUN_BYTES_MAX };
                count > 0
                    && chunk < chunks
                    && (chunks == 1 || count == 1)
                    && run_bytes as usize <= run_bytes_max
            }
            Kind::Gap => run_bytes > 0,
            Kind::Cursor => true,
        };
        if !is_sane || first > Seq::MAX {
            return Err(BlockError::Inconsistent);
        }
        let (origin, rank, body) = (Origin { epoch, boot }, Rank::from_byte(rank), fields.0);
        Ok(Self {
            kind,
            first,
            origin,
            unsynced,
            count,
            chunk,
            chunks,
            rank,
            run_bytes,
            has_ways,
            is_lz4,
            body,
        })
    }

    /// Bytes of the whole block.
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// Position of the last event.
    pub fn last(&self) -> Seq {
        self.first.plus(self.positions() - 1)
    }

    /// Number of positions that it stands for.
    pub fn positions(&self) -> u64 {
        if self.kind == Kind::Gap { u64::from(self.run_bytes) } else { u64::from(self.count) }
    }

    /// Whether it is the chunk behind `before`.
    pub fn follows(&self, before: &Block<'_>) -> bool {
        let bodyless = |block: &Block<'_>, chunk| Block { body: &[], chunk, ..*block };
        before.chunk.checked_add(1) == Some(self.chunk) && bodyless(self, 0) == bodyless(before, 0)
    }

    /// Appends the run of an unchunked block to `run`: its events, with their ways before them if it has any.
    ///
    /// # Errors
    /// [`BlockError::Inconsistent`]: `run` is as it was.
    pub fn unpack(&self, run: &mut Vec<u8>) -> Result<(), BlockError> {
        unpack(self.body, self.is_lz4, self.run_bytes, run)
    }
}

/// Puts a chunked event together again; chunks come in order.
#[derive(Debug, Default)]
pub struct Assembly {
    /// The chunk that was taken last, without its body. Of two events with one position, of which a crash has left
    /// some chunks each, origin and length tell the chunks apart.
    last: Option<Block<'static>>,
    body: Vec<u8>,
}

impl Assembly {
    /// Takes one chunk. `Ok(true)`: that was the last and the event now stands at the end of `run`.
    ///
    /// # Errors
    /// [`BlockError::Inconsistent`]: a chunk is missing or foreign; the assembly starts afresh with the next chunk 0.
    pub fn take(&mut self, block: &Block<'_>, run: &mut Vec<u8>) -> Result<bool, BlockError> {
        if block.chunk == 0 {
            self.last = None;
            self.body.clear();
        } else if !self.last.is_some_and(|last| block.follows(&last)) {
            *self = Self::default();
            return Err(BlockError::Inconsistent);
        }
        self.body.extend_from_slice(block.body);
        self.last = Some(Block { body: &[], ..*block });
        if block.chunk + 1 < block.chunks {
            return Ok(false);
        }
        let body = std::mem::take(self).body;
        unpack(&body, block.is_lz4, block.run_bytes, run).map(|()| true)
    }

    /// Whether chunks of an event were taken and others are still missing.
    pub fn is_partial(&self) -> bool {
        self.last.is_some()
    }
}

fn unpack(body: &[u8], is_lz4: bool, run_bytes: u32, run: &mut Vec<u8>) -> Result<(), BlockError> {
    let start = run.len();
    let run_bytes = run_bytes as usize;
    if !is_lz4 {
        run.extend_from_slice(body);
        return if body.len() == run_bytes {
            Ok(())
        } else {
            run.truncate(start);
            Err(BlockError::Inconsistent)
        };
    }
    run.resize(start + run_bytes, 0);
    let space = run.get_mut(start..).unwrap_or_default();
    match lz4_flex::block::decompress_into(body, space) {
        Ok(written) if written == run_bytes => Ok(()),
        _ => {
            run.truncate(start);
            Err(BlockError::Inconsistent)
        }
    }
}

fn checksum(format: u8, checked: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[format]);
    hasher.update(checked);
    hasher.finalize()
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BlockError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(BlockError::NotABlock)?;
        self.0 = rest;
        Ok(*field)
    }
}

/// Writes blocks; keeps its buffers between calls.
#[derive(Debug)]
pub struct Encoder {
    origin: Origin,
    run: Vec<u8>,
    packed: Vec<u8>,
    value: Vec<u8>,
}

impl Encoder {
    /// An encoder for one run of the agent.
    pub fn new(origin: Origin) -> Self {
        Self { origin, run: Vec::new(), packed: Vec::new(), value: Vec::new() }
    }

    /// Encodes `events` whose first is `first` and before which `unsynced` were not synced, and hands each value with its
    /// chunk index to `put`: one value for a run up to [`RUN_BYTES_MAX`], several for a single larger event.
    ///
    /// # Errors
    /// Whatever `put` answers; values before it were put.
    pub fn encode<E>(
        &mut self,
        first: Seq,
        unsynced: u32,
        events: Events<'_>,
        mut put: impl FnMut(u16, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Events { rank, count, ways, bytes } = events;
        self.run.clear();
        let run = if ways.is_empty() {
            bytes
        } else {
            self.run.extend_from_slice(ways);
            self.run.extend_from_slice(bytes);
            &self.run
        };
        self.packed.resize(lz4_flex::block::get_maximum_output_size(run.len()), 0);
        let packed_bytes = lz4_flex::block::compress_into(run, &mut self.packed).unwrap_or(usize::MAX);
        let (body, kind) = match self.packed.get(..packed_bytes) {
            Some(packed) if packed_bytes < run.len() => (packed, KIND_LZ4),
            _ => (run, KIND_PLAIN),
        };
        let chunks = u16::try_from(body.chunks(RUN_BYTES_MAX).len()).unwrap_or(u16::MAX);
        let head = Head {
            format: if ways.is_empty() { FORMAT_PLAIN } else { FORMAT },
            kind,
            first,
            origin: self.origin,
            unsynced,
            count,
            chunk: 0,
            chunks,
            rank,
            run_bytes: u32::try_from(run.len()).unwrap_or(u32::MAX),
        };
        for (chunk, part) in (0..chunks).zip(body.chunks(RUN_BYTES_MAX)) {
            Head { chunk, ..head }.write(part, &mut self.value);
            put(chunk, &self.value)?;
        }
        Ok(())
    }

    /// The record of the drain's cursor.
    pub fn cursor(&mut self, cursor: Seq) -> &[u8] {
        self.bodyless(KIND_CURSOR, cursor, 0)
    }

    /// The record of `positions` from `first` on that were given up and counted.
    pub fn gap(&mut self, first: Seq, positions: u32) -> &[u8] {
        self.bodyless(KIND_GAP, first, positions)
    }

    fn bodyless(&mut self, kind: u8, first: Seq, run_bytes: u32) -> &[u8] {
        let (origin, rank) = (self.origin, Rank::default());
        let format = FORMAT_PLAIN;
        Head { format, kind, first, origin, unsynced: 0, count: 1, chunk: 0, chunks: 1, rank, run_bytes }
            .write(&[], &mut self.value);
        &self.value
    }
}

/// The header's fields behind the length.
#[derive(Debug, Clone, Copy)]
struct Head {
    format: u8,
    kind: u8,
    first: Seq,
    origin: Origin,
    unsynced: u32,
    count: u16,
    chunk: u16,
    chunks: u16,
    rank: Rank,
    run_bytes: u32,
}

impl Head {
    fn write(self, body: &[u8], value: &mut Vec<u8>) {
        value.clear();
        value.extend_from_slice(&MAGIC);
        value.push(self.format);
        value.extend_from_slice(&[0; 4]);
        let rest_bytes = HEADER_BYTES - PRELUDE_BYTES + body.len();
        value.extend_from_slice(&u32::try_from(rest_bytes).unwrap_or(u32::MAX).to_le_bytes());
        value.extend_from_slice(&self.first.0.to_le_bytes());
        value.extend_from_slice(&self.origin.epoch.to_le_bytes());
        value.extend_from_slice(&self.unsynced.to_le_bytes());
        for field in [self.count, self.chunk, self.chunks] {
            value.extend_from_slice(&field.to_le_bytes());
        }
        value.extend_from_slice(&[self.kind, self.rank.to_byte()]);
        value.extend_from_slice(&self.run_bytes.to_le_bytes());
        value.extend_from_slice(&self.origin.boot);
        value.extend_from_slice(body);
        let crc = checksum(self.format, value.get(CHECKED_FROM..).unwrap_or_default());
        if let Some(place) = value.get_mut(4..CHECKED_FROM) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    const ORIGIN: Origin = Origin { epoch: 3, boot: [7; 16] };
    const RANK: Rank = Rank { priority: 4, evictable: true };

    fn values(run: &[u8], count: u16) -> Vec<Vec<u8>> {
        values_of(Events { rank: RANK, count, ways: &[], bytes: run })
    }

    fn values_of(events: Events<'_>) -> Vec<Vec<u8>> {
        let mut values = Vec::new();
        let done = Encoder::new(ORIGIN).encode(Seq(41), 2, events, |chunk, value| {
            assert_eq!(usize::from(chunk), values.len());
            values.push(value.to_vec());
            Ok::<_, Infallible>(())
        });
        assert_eq!(done, Ok(()));
        values
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(1);
        (0..len).map(|_| rng.u8(..)).collect()
    }

    #[test]
    fn a_value_never_reaches_the_size_of_a_sled_blob() {
        const BLOB_BYTES: usize = 512 * 1024 / 4 / 17;
        for run in [noise(RUN_BYTES_MAX), noise(RUN_BYTES_MAX * 40 + 1)] {
            assert!(values(&run, 1).iter().all(|value| value.len() + 10 < BLOB_BYTES));
        }
    }

    #[test]
    fn a_small_run_is_one_block() {
        let run = b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
        let values = values(run, 5);
        assert_eq!(values.len(), 1);
        let block = Block::parse(&values[0]).unwrap();
        assert_eq!((block.first, block.last(), block.origin), (Seq(41), Seq(45), ORIGIN));
        assert_eq!((block.kind, block.unsynced, block.rank), (Kind::Events, 2, RANK));
        let mut out = b"before".to_vec();
        block.unpack(&mut out).unwrap();
        assert_eq!(out, [b"before", run.as_slice()].concat());
        assert!(values[0].len() < HEADER_BYTES + run.len(), "compressed");
    }

    #[test]
    fn a_block_with_ways_is_of_the_second_format_and_others_stay_in_the_first() {
        for bytes in [&b"events"[..], &noise(2 * RUN_BYTES_MAX)] {
            let plain = values(bytes, 1);
            let values = values_of(Events { rank: RANK, count: 1, ways: b"\x00\x01\x80", bytes });
            assert!(plain.iter().all(|value| value[3] == 1) && values.iter().all(|value| value[3] == 2));
            let (mut assembly, mut out) = (Assembly::default(), Vec::new());
            for value in &values {
                let block = Block::parse(value).unwrap();
                assert!(block.has_ways && !Block::parse(&plain[0]).unwrap().has_ways);
                assembly.take(&block, &mut out).unwrap();
            }
            assert_eq!(out, [b"\x00\x01\x80", bytes].concat());
        }
    }

    #[test]
    fn a_large_event_is_chunked_and_comes_back() {
        let run = noise(3 * RUN_BYTES_MAX + 1);
        let values = values(&run, 1);
        assert_eq!(values.len(), 4);
        let (mut assembly, mut out) = (Assembly::default(), Vec::new());
        for (index, value) in values.iter().enumerate() {
            let done = assembly.take(&Block::parse(value).unwrap(), &mut out).unwrap();
            assert_eq!(done, index == 3);
        }
        assert_eq!(out, run);
        assert!(!assembly.is_partial());
    }

    #[test]
    fn a_missing_chunk_is_noticed_and_the_next_event_is_served() {
        let run = noise(3 * RUN_BYTES_MAX);
        let values = values(&run, 1);
        let (mut assembly, mut out) = (Assembly::default(), Vec::new());
        let [first, second, third] = [0, 1, 2].map(|i| Block::parse(&values[i]).unwrap());
        assert_eq!(assembly.take(&first, &mut out), Ok(false));
        assert_eq!(assembly.take(&third, &mut out), Err(BlockError::Inconsistent));
        assert_eq!(assembly.take(&second, &mut out), Err(BlockError::Inconsistent));
        for block in [&first, &second] {
            assert_eq!(assembly.take(block, &mut out), Ok(false));
        }
        assert_eq!(assembly.take(&third, &mut out), Ok(true));
        assert_eq!(out, run);
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_an_error() {
        let value = values(b"some events, some events, some events", 2).remove(0);
        for bit in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Block::parse(&damaged).is_err(), "bit {bit}");
        }
        for len in 0..value.len() {
            assert!(Block::parse(&value[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_later_format_is_named() {
        let mut value = values(b"x", 1).remove(0);
        value[3] = FORMAT + 1;
        let crc = checksum(FORMAT + 1, &value[CHECKED_FROM..]);
        value[4..CHECKED_FROM].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Block::parse(&value), Err(BlockError::Newer(FORMAT + 1)));
    }

    #[test]
    fn a_gap_and_a_cursor_come_back() {
        let mut encoder = Encoder::new(ORIGIN);
        let gap = encoder.gap(Seq(7), 1_000_000).to_vec();
        let gap = Block::parse(&gap).unwrap();
        assert_eq!((gap.kind, gap.first, gap.last()), (Kind::Gap, Seq(7), Seq(1_000_006)));
        let cursor = encoder.cursor(Seq(99)).to_vec();
        let cursor = Block::parse(&cursor).unwrap();
        assert_eq!((cursor.kind, cursor.first, cursor.bytes()), (Kind::Cursor, Seq(99), HEADER_BYTES));
    }

    proptest! {
        #[test]
        fn every_run_comes_back(run in prop::collection::vec(any::<u8>(), 1..30_000)) {
            let (mut assembly, mut out) = (Assembly::default(), Vec::new());
            for value in values(&run, 1) {
                let block = Block::parse(&value).unwrap();
                if block.chunks == 1 { block.unpack(&mut out).unwrap() } else { assembly.take(&block, &mut out).unwrap(); }
            }
            prop_assert_eq!(out, run);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut value = MAGIC.to_vec();
            value.push(FORMAT);
            value.extend(&bytes);
            for value in [&bytes, &value] {
                if let Ok(block) = Block::parse(value) { let _ = block.unpack(&mut Vec::new()); }
            }
        }
    }
}
