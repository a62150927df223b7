//! Cuts a stream of bytes into numbered lines inside a bounded buffer. Pure: whoever owns the socket reads into
//! it by [`Lines::read`] and then takes lines until there is none.
//!
//! A line longer than the bound is announced once, as soon as that is known, and its bytes are thrown away as they
//! come. Memory follows need: nothing while idle, [`FIRST_BYTES`] for a lone line, [`CHUNK_BYTES`] for a burst, and
//! never more than the bound and one chunk.

use std::mem;

use memchr::memchr;

/// What a connection that was idle reads into, and what may stay of an unfinished line without a grant.
pub(super) const FIRST_BYTES: usize = 8 * 1024;

/// What a busy connection reads at once: a few hundred small events, well under a millisecond of work.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// What the stream holds next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// A line without its end.
    Whole {
        /// Counted from 1; blank lines count.
        number: u64,
        /// Its bytes; never blank, never above the bound.
        text: &'a [u8],
    },
    /// A line above the bound, whatever it holds.
    TooLong {
        /// Counted from 1.
        number: u64,
    },
}

/// The part of the stream that was read and not yet handed out.
#[derive(Debug)]
pub(crate) struct Lines {
    buffer: Vec<u8>,
    /// First byte that was not handed out.
    start: usize,
    /// There is no line end in `start..scanned`.
    scanned: usize,
    /// Lines seen so far.
    number: u64,
    /// Longest line without its end.
    bytes_max: usize,
    /// The rest of an announced line is still coming.
    skipping: bool,
    /// The last read used all the space: the peer has more.
    filled: bool,
}

impl Lines {
    /// The start of a stream whose lines have at most `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            number: 0,
            bytes_max,
            skipping: false,
            filled: false,
        }
    }

    /// Reads with `read` into at most `space_max` and [`CHUNK_BYTES`] of free space behind what is already there and
    /// returns its result. The buffer stays within [`CHUNK_BYTES`] unless it `may_grow`; when it may not, `space_max` and
    /// [`Lines::rest`] together are at most that much.
    pub(crate) fn read<T>(
        &mut self,
        may_grow: bool,
        space_max: usize,
        read: impl FnOnce(&mut bytes::buf::Limit<&mut Vec<u8>>) -> T,
    ) -> T {
        self.make_space(if may_grow { self.bytes_max + 1 + CHUNK_BYTES } else { CHUNK_BYTES });
        let before = self.buffer.len();
        let space = (self.buffer.capacity() - before).min(CHUNK_BYTES).min(space_max);
        let result = read(&mut bytes::BufMut::limit(&mut self.buffer, space));
        self.filled = self.buffer.len() - before == space;
        result
    }

    /// The next line, or `None` when more has to be read first.
    pub(crate) fn next_line(&mut self) -> Option<Line<'_>> {
        let (start, end) = loop {
            let unscanned = self.buffer.get(self.scanned..).unwrap_or_default();
            let Some(length) = memchr(b'\n', unscanned) else {
                return self.without_end().map(|number| Line::TooLong { number });
            };
            let end = self.scanned + length;
            let start = mem::replace(&mut self.start, end + 1);
            self.scanned = end + 1;
            if mem::take(&mut self.skipping) {
                continue;
            }
            self.number += 1;
            let line = self.buffer.get(start..end).unwrap_or_default();
            let end = end - usize::from(line.ends_with(b"\r"));
            if end - start > self.bytes_max {
                return Some(Line::TooLong { number: self.number });
            }
            if !is_blank(line) {
                break (start, end);
            }
        };
        Some(Line::Whole { number: self.number, text: self.buffer.get(start..end).unwrap_or_default() })
    }

    /// To be called when the stream ended: the number of the line that lacks its end, if there is one.
    pub(crate) fn unfinished(&self) -> Option<u64> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        (!self.skipping && !is_blank(rest)).then_some(self.number + 1)
    }

    /// Bytes that were read and not handed out: once there is no next line, those of an unfinished one.
    pub(crate) fn rest(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The number of the line that comes next or is unfinished.
    pub(crate) fn next_number(&self) -> u64 {
        self.number + 1
    }

    /// Throws the unfinished line away, with what is still to come of it, and returns its number.
    pub(crate) fn give_up(&mut self) -> u64 {
        self.scanned = self.buffer.len();
        self.start = self.scanned;
        self.number += 1;
        self.skipping = true;
        self.number
    }

    /// To be called when a long line was taken: gives back what only it needed.
    pub(crate) fn shrink(&mut self) {
        if self.buffer.capacity() > CHUNK_BYTES {
            self.compact();
            self.buffer.shrink_to(CHUNK_BYTES);
        }
    }

    /// To be called when nothing more is there for now: gives back memory that only a burst needed.
    pub(crate) fn idle(&mut self) {
        self.filled = false;
        self.keep_rest();
    }

    /// To be called when others need the memory: gives it back, but the next read takes as much again.
    pub(crate) fn keep_rest(&mut self) {
        self.compact();
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        } else if self.buffer.len() <= FIRST_BYTES && self.buffer.capacity() > FIRST_BYTES {
            // Not for a long line: one that comes byte by byte would be copied to and fro each time. And not by
            // shrinking: the allocator would cut the block, and no other connection's chunk fits into what is left of it.
            self.buffer = self.buffer.as_slice().to_vec();
        }
    }

    /// Bytes of memory held.
    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// No line end was found: announces the line once it is longer than the bound and its possible `\r`.
    fn without_end(&mut self) -> Option<u64> {
        self.scanned = self.buffer.len();
        let too_long = !self.skipping && self.scanned - self.start > self.bytes_max + 1;
        if too_long {
            self.number += 1;
            self.skipping = true;
        }
        if self.skipping {
            self.start = self.scanned;
        }
        too_long.then_some(self.number)
    }

    fn make_space(&mut self, limit: usize) {
        self.compact();
        let capacity = self.buffer.capacity();
        let wanted = if self.buffer.len() > capacity / 2 || (self.filled && capacity < CHUNK_BYTES) {
            (2 * capacity).max(CHUNK_BYTES)
        } else if capacity < FIRST_BYTES {
            FIRST_BYTES
        } else {
            return;
        };
        self.buffer.reserve_exact(wanted.min(limit).saturating_sub(self.buffer.len()));
    }

    /// Moves the rest, less than a line, to the front.
    fn compact(&mut self) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        if self.buffer.capacity() > 2 * CHUNK_BYTES && self.buffer.len() < FIRST_BYTES {
            self.buffer.shrink_to(CHUNK_BYTES);
        }
    }
}

/// Whether a line holds nothing: it is counted and otherwise ignored.
pub(crate) fn is_blank(line: &[u8]) -> bool {
    // RFC 8259, section 2: what JSON takes for white space.
    line.iter().all(|byte| b" \t\r\n".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES_MAX: usize = 10;

    /// What a stream holds, with owned texts.
    #[derive(Debug, PartialEq, Eq)]
    enum Seen {
        Whole(u64, Vec<u8>),
        TooLong(u64),
        Unfinished(u64),
    }

    fn whole(number: u64, text: &str) -> Seen {
        Seen::Whole(number, text.into())
    }

    fn feed(lines: &mut Lines, mut chunk: &[u8], seen: &mut Vec<Seen>) {
        while !chunk.is_empty() {
            let taken = lines.read(true, CHUNK_BYTES, |space| {
                let taken = chunk.len().min(bytes::BufMut::remaining_mut(space));
                bytes::BufMut::put_slice(space, &chunk[..taken]);
                taken
            });
            chunk = &chunk[taken..];
            while let Some(line) = lines.next_line() {
                seen.push(match line {
                    Line::Whole { number, text } => Seen::Whole(number, text.to_vec()),
                    Line::TooLong { number } => Seen::TooLong(number),
                });
            }
        }
    }

    fn split<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Seen> {
        let mut lines = Lines::new(BYTES_MAX);
        let mut seen = Vec::new();
        for chunk in chunks {
            feed(&mut lines, chunk, &mut seen);
            if chunk.len() % 2 == 0 {
                lines.idle();
            }
        }
        seen.extend(lines.unfinished().map(Seen::Unfinished));
        seen
    }

    #[test]
    fn lines_are_the_same_wherever_the_stream_is_cut() {
        let stream = b"one\r\n\n \r\ntwo\n0123456789\r\n01234567890\n0123456789abcdefgh\nthree\nhalf";
        let wanted = [
            whole(1, "one"),
            whole(4, "two"),
            whole(5, "0123456789"),
            Seen::TooLong(6),
            Seen::TooLong(7),
            whole(8, "three"),
            Seen::Unfinished(9),
        ];
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let chunks = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(split(chunks), wanted, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn an_end_without_half_a_line_is_no_line() {
        assert_eq!(split([&b"a\n"[..]]), [whole(1, "a")]);
        assert_eq!(split([&b"a\n \r"[..]]), [whole(1, "a")]);
        assert_eq!(split([&b""[..]]), []);
        let too_long = [b'x'; 3 * BYTES_MAX];
        assert_eq!(split([&too_long[..]]), [Seen::TooLong(1)]);
    }

    #[test]
    fn an_endless_line_costs_no_memory() {
        let mut lines = Lines::new(100_000);
        let mut seen = Vec::new();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..100 {
            feed(&mut lines, &chunk, &mut seen);
            assert!(lines.capacity() <= 100_001 + CHUNK_BYTES, "{}", lines.capacity());
        }
        feed(&mut lines, b"\nnext\n", &mut seen);
        assert_eq!(seen, [Seen::TooLong(1), whole(2, "next")]);
    }

    #[test]
    fn memory_grows_for_a_line_that_needs_it_and_is_given_back() {
        let mut lines = Lines::new(1 << 20);
        let mut seen = Vec::new();
        assert_eq!(lines.capacity(), 0);
        feed(&mut lines, b"short\n", &mut seen);
        assert_eq!(lines.capacity(), FIRST_BYTES);
        feed(&mut lines, &vec![b'x'; 1 << 20], &mut seen);
        assert!(lines.capacity() >= 1 << 20 && lines.capacity() <= (1 << 20) + 1 + CHUNK_BYTES);
        feed(&mut lines, b"\n", &mut seen);
        feed(&mut lines, b"half", &mut seen);
        assert!(lines.capacity() <= CHUNK_BYTES);
        lines.idle();
        assert_eq!(lines.capacity(), 4);
        feed(&mut lines, b"\n", &mut seen);
        lines.idle();
        assert_eq!(lines.capacity(), 0);
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn a_long_line_that_comes_in_drops_is_not_copied_each_time() {
        let mut lines = Lines::new(1 << 20);
        let mut seen = Vec::new();
        feed(&mut lines, &vec![b'x'; 1 << 19], &mut seen);
        let mut moves = 0;
        for _ in 0..10_000 {
            let before = lines.buffer.as_ptr();
            lines.idle();
            feed(&mut lines, b"x", &mut seen);
            moves += usize::from(lines.buffer.as_ptr() != before);
        }
        assert!(moves <= 2, "{moves}");
    }

    proptest! {
        #[test]
        fn any_stream_in_any_chunks_reads_like_the_whole(
            stream in proptest::collection::vec(prop_oneof![3 => Just(b'a'), 1 => Just(b'\n'), 1 => Just(b'\r')], 0..200),
            chunk in 1_usize..20,
        ) {
            let mut wanted = Vec::new();
            let mut number = 0;
            let mut rest = &stream[..];
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                number += 1;
                let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
                rest = &rest[end + 1..];
                if line.len() > BYTES_MAX {
                    wanted.push(Seen::TooLong(number));
                } else if !is_blank(line) {
                    wanted.push(Seen::Whole(number, line.to_vec()));
                }
            }
            if rest.len() > BYTES_MAX + 1 {
                wanted.push(Seen::TooLong(number + 1));
            } else if !is_blank(rest) {
                wanted.push(Seen::Unfinished(number + 1));
            }
            prop_assert_eq!(split(stream.chunks(chunk)), wanted);
        }
    }
}
