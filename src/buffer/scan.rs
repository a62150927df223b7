//! Finding whole blocks in the bytes of a file, whatever else is in it: how sealed generations are read, and all that
//! is needed after damage, since a block says itself where it belongs and whether it is whole.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memchr::memmem::Finder;

use super::block::{BLOCK_BYTES_MAX, Block, BlockError, MAGIC};

/// Bytes of one read; large enough that a whole block nearly always is inside.
const WINDOW_BYTES: usize = 256 * 1024;

/// What is skipped where the disk cannot be read: one page.
const UNREADABLE_BYTES: u64 = 4096;

/// Bytes that can be read anywhere.
pub trait Source: Send + Debug {
    /// Reads into `space` from `offset` on and answers how many bytes; 0 at the end.
    ///
    /// # Errors
    /// The disk cannot be read there.
    fn read_at(&self, space: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Number of bytes.
    ///
    /// # Errors
    /// The disk cannot tell.
    fn bytes(&self) -> io::Result<u64>;
}

impl Source for File {
    fn read_at(&self, space: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, space, offset)
    }

    fn bytes(&self) -> io::Result<u64> {
        self.metadata().map(|meta| meta.len())
    }
}

/// What a scan came across beside whole blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes that were looked at.
    pub bytes: u64,
    /// Bytes that the disk could not give.
    pub unreadable: u64,
    /// There are whole blocks of a later format, of this one.
    pub newer: Option<u8>,
}

/// How a window ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    More,
    File,
    Unreadable,
}

/// Shows every whole block in `source` with its offset. A block inside another one's body is not looked at.
///
/// # Errors
/// The disk cannot even tell how long the source is.
pub fn scan(source: &dyn Source, mut visit: impl FnMut(u64, &Block<'_>)) -> io::Result<Scanned> {
    let finder = Finder::new(&MAGIC);
    let total = source.bytes()?;
    let mut found = Scanned { bytes: total, ..Scanned::default() };
    let (mut window, mut start) = (Vec::new(), 0);
    while start < total {
        let end = fill(source, start, WINDOW_BYTES, &mut window);
        let mut at = 0;
        let left = loop {
            let Some(candidate) = window.get(at..).and_then(|rest| finder.find(rest)).map(|n| at + n) else {
                // The magic may have begun.
                break window.len().saturating_sub(MAGIC.len() - 1).max(at);
            };
            let rest = window.get(candidate..).unwrap_or_default();
            if rest.len() < BLOCK_BYTES_MAX && end == End::More {
                break candidate;
            }
            at = candidate
                + match Block::parse(rest) {
                    Ok(block) if block.bytes() <= BLOCK_BYTES_MAX => {
                        visit(start + candidate as u64, &block);
                        block.bytes()
                    }
                    Err(BlockError::Newer(format)) => {
                        found.newer = Some(format);
                        1
                    }
                    _ => 1,
                };
        };
        match end {
            End::More => start += left as u64,
            End::File => break,
            End::Unreadable => {
                let bad = (start + window.len() as u64) / UNREADABLE_BYTES * UNREADABLE_BYTES;
                start = bad + UNREADABLE_BYTES;
                found.unreadable += UNREADABLE_BYTES;
            }
        }
    }
    Ok(found)
}

/// Reads `bytes` from `offset` on into `space`; `false` if there are not so many, or they cannot be read.
pub(super) fn read_exactly(source: &dyn Source, offset: u64, bytes: usize, space: &mut Vec<u8>) -> bool {
    fill(source, offset, bytes, space) == End::More
}

/// Reads up to `bytes` from `start` on into `window` and says why it ends.
fn fill(source: &dyn Source, start: u64, bytes: usize, window: &mut Vec<u8>) -> End {
    window.resize(bytes, 0);
    let mut filled = 0;
    let end = loop {
        let Some(space) = window.get_mut(filled..).filter(|space| !space.is_empty()) else { break End::More };
        match source.read_at(space, start + filled as u64) {
            Ok(0) => break End::File,
            Ok(bytes) => filled += bytes,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break End::Unreadable,
        }
    };
    window.truncate(filled);
    end
}

/// Bytes in memory, for what was read once and for tests.
impl Source for Vec<u8> {
    fn read_at(&self, space: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let bytes = rest.len().min(space.len());
        for (to, from) in space.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::buffer::block::{Encoder, Events, Origin, Rank};
    use crate::event::Seq;

    fn blocks(seed: u64, count: u64) -> Vec<Vec<u8>> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut encoder = Encoder::new(Origin { epoch: 1, boot: [1; 16] });
        let mut values = Vec::new();
        for n in 0..count {
            let run: Vec<u8> = (0..rng.usize(1..7_000)).map(|_| rng.u8(..)).collect();
            let put = |_, value: &[u8]| {
                values.push(value.to_vec());
                Ok::<_, Infallible>(())
            };
            let events = Events { rank: Rank::default(), count: 1, ways: &[], bytes: &run };
            assert_eq!(encoder.encode(Seq(n + 1), 0, events, put), Ok(()));
        }
        values
    }

    fn found(source: &dyn Source) -> (Vec<u64>, Scanned) {
        let mut seen = Vec::new();
        let scanned = scan(source, |offset, block| {
            let mut header = [0; 56];
            assert_eq!(source.read_at(&mut header, offset).unwrap(), 56);
            assert_eq!(&header[..3], MAGIC);
            seen.push(block.first.0);
        });
        (seen, scanned.unwrap())
    }

    #[test]
    fn every_block_is_found_between_anything() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut bytes = Vec::new();
            for block in blocks(seed, 300) {
                bytes.extend((0..rng.usize(0..900)).map(|_| b"fpB\x01x"[rng.usize(0..5)]));
                bytes.extend(block);
            }
            assert_eq!(found(&bytes).0, (1..=300).collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn a_damaged_block_costs_only_itself() {
        let values = blocks(3, 100);
        let mut bytes = values.concat();
        let at = values[..50].concat().len() + 40;
        bytes[at] ^= 1;
        let wanted: Vec<_> = (1..=100).filter(|&n| n != 51).collect();
        assert_eq!(found(&bytes).0, wanted);
    }

    #[test]
    fn a_block_in_the_body_of_another_is_not_taken() {
        let inner = blocks(5, 1).remove(0);
        let mut encoder = Encoder::new(Origin { epoch: 1, boot: [1; 16] });
        let mut outer = Vec::new();
        let put = |_, value: &[u8]| {
            outer.extend_from_slice(value);
            Ok::<_, Infallible>(())
        };
        let run: Vec<u8> = inner.iter().copied().take(6_900).collect();
        let events = Events { rank: Rank::default(), count: 1, ways: &[], bytes: &run };
        assert_eq!(encoder.encode(Seq(77), 0, events, put), Ok(()));
        assert_eq!(found(&outer).0, [77]);
    }

    /// Some pages cannot be read.
    #[derive(Debug)]
    struct Bad(Vec<u8>, Vec<u64>);

    impl Source for Bad {
        fn read_at(&self, space: &mut [u8], offset: u64) -> io::Result<usize> {
            let page = UNREADABLE_BYTES;
            if self.1.contains(&(offset / page)) {
                return Err(io::Error::from_raw_os_error(5));
            }
            let bad = self.1.iter().map(|n| n * page).find(|&start| start > offset).unwrap_or(u64::MAX);
            let most = usize::try_from(bad - offset).unwrap_or(usize::MAX).min(space.len());
            self.0.read_at(&mut space[..most], offset)
        }

        fn bytes(&self) -> io::Result<u64> {
            self.0.bytes()
        }
    }

    #[test]
    fn what_the_disk_cannot_read_costs_only_the_blocks_on_it() {
        let values = blocks(9, 200);
        let bytes = values.concat();
        let bad = vec![0, 20, 21, 90];
        let (mut start, mut wanted) = (0_u64, Vec::new());
        for (n, value) in (1_u64..).zip(&values) {
            let pages = start / 4096..=(start + value.len() as u64 - 1) / 4096;
            if !bad.iter().any(|page| pages.contains(page)) {
                wanted.push(n);
            }
            start += value.len() as u64;
        }
        let (seen, scanned) = found(&Bad(bytes, bad));
        assert_eq!((seen, scanned.unreadable), (wanted, 4 * 4096));
    }
}
