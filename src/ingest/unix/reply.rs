//! What a connection answers: acknowledgements and refused lines, in an order a client can rely on, in bounded
//! memory however slowly it is read. Pure.
//!
//! The promise: the error of a line leaves before any acknowledgement that covers an event behind that line. So a
//! client that numbers its lines and strikes out those named by errors knows at every `{"ack":n}` which n lines are
//! durable.
//!
//! Answers wait in a queue of short entries: an acknowledgement replaces one that still waits right before it,
//! neighbouring lines refused for the same reason share an entry and become text only when the peer reads. When the
//! queue is at its bound, later errors are only counted, one sum per code, and the newest acknowledgement goes behind
//! the sums.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::RangeInclusive;

use serde::Serialize;

/// Most bytes of waiting entries.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

/// How much text is made at once.
const TEXT_BYTES: usize = 16 * 1024;

/// What a connection keeps between answers: enough for an acknowledgement each time.
const IDLE_TEXT_BYTES: usize = 128;
const IDLE_ENTRIES: usize = 4;

/// Why a line was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Code {
    /// Not an event: sending it again is of no use.
    Invalid,
    /// Above `limits.max_event_bytes`: sending it again is of no use.
    TooLarge,
    /// The buffer is at its limit: send it again later.
    BufferFull,
    /// The disk did not answer in time, the event may or may not be stored: send it again.
    Timeout,
    /// The disk cannot be written: send it again later.
    Storage,
    /// The agent is stopping: send it again to the next one.
    Closing,
    /// Too many connections; names no line.
    Busy,
}

/// One answer: a line of JSON.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Reply<'a> {
    /// The first n events taken on this connection are durable.
    Ack {
        /// How many.
        ack: u64,
    },
    /// Lines that were not taken, or a connection that was not.
    Error {
        /// For people.
        error: Cow<'a, str>,
        /// For programs.
        code: Code,
        /// The line; the last one when there are many.
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<u64>,
        /// Only in a sum: the first line.
        #[serde(skip_serializing_if = "Option::is_none")]
        first: Option<u64>,
        /// Only in a sum: how many lines from the first to the last one were not taken.
        #[serde(skip_serializing_if = "Option::is_none")]
        lines: Option<u64>,
    },
}

impl Reply<'_> {
    /// Writes the answer as one line.
    pub(super) fn write_to(&self, text: &mut Vec<u8>) {
        // Writing JSON of numbers and text to a Vec cannot fail.
        if serde_json::to_writer(&mut *text, self).is_ok() {
            text.push(b'\n');
        }
    }
}

/// An answer that waits.
#[derive(Debug)]
enum Entry {
    Ack(u64),
    Refused { lines: RangeInclusive<u64>, code: Code, error: Cow<'static, str> },
}

impl Entry {
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Ack(_) => 0,
                Self::Refused { error, .. } => error.len(),
            }
    }
}

/// The errors of one code that found no place in the queue.
#[derive(Debug, Clone, Copy)]
struct Sum {
    code: Code,
    first: u64,
    last: u64,
    lines: u64,
}

/// The answers of one connection that its peer did not take yet.
#[derive(Debug, Default)]
pub(super) struct Replies {
    queue: VecDeque<Entry>,
    queue_bytes: usize,
    /// One per code at most; as long as there is one, nothing joins the queue.
    sums: Vec<Sum>,
    /// The newest acknowledgement behind the sums.
    ack: Option<u64>,
    text: Vec<u8>,
    /// How much of `text` the peer took.
    written: usize,
    /// Nobody will ever read: everything is dropped.
    gone: bool,
}

impl Replies {
    /// The first `events` events taken are durable.
    pub(super) fn ack(&mut self, events: u64) {
        if self.gone {
            return;
        }
        if !self.sums.is_empty() {
            self.ack = Some(events);
        } else if let Some(Entry::Ack(newest)) = self.queue.back_mut() {
            *newest = events;
        } else {
            // Joins a queue at its bound too: the next error starts a sum, so there is one such entry at most.
            self.push(Entry::Ack(events));
        }
    }

    /// `lines` were not taken. `error` is asked for only if it will be read.
    pub(super) fn refuse(
        &mut self,
        lines: RangeInclusive<u64>,
        code: Code,
        error: impl FnOnce() -> Cow<'static, str>,
    ) {
        if self.gone {
            return;
        }
        if !self.sums.is_empty() || self.queue_bytes >= QUEUE_BYTES_MAX {
            self.sum_up(lines, code);
            return;
        }
        let error = error();
        if let Some(Entry::Refused { lines: before, code: same, error: text }) = self.queue.back_mut()
            && *same == code
            && *text == error
            && before.end() + 1 == *lines.start()
        {
            *before = *before.start()..=*lines.end();
            return;
        }
        self.push(Entry::Refused { lines, code, error });
    }

    /// The next bytes for the peer; empty when there are none.
    pub(super) fn unsent(&mut self) -> &[u8] {
        if self.written == self.text.len() {
            self.text.clear();
            self.written = 0;
            self.make_text();
        }
        self.text.get(self.written..).unwrap_or_default()
    }

    /// The peer took `bytes` of them.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.written = (self.written + bytes).min(self.text.len());
        if self.is_empty() {
            self.text.clear();
            self.text.shrink_to(IDLE_TEXT_BYTES);
            self.queue.shrink_to(IDLE_ENTRIES);
            self.written = 0;
        }
    }

    /// Whether the peer has everything.
    pub(super) fn is_empty(&self) -> bool {
        self.written == self.text.len() && self.queue.is_empty() && self.sums.is_empty() && self.ack.is_none()
    }

    /// The peer will never read again.
    pub(super) fn discard(&mut self) {
        *self = Self { gone: true, ..Self::default() };
    }

    fn push(&mut self, entry: Entry) {
        self.queue_bytes += entry.bytes();
        self.queue.push_back(entry);
    }

    fn sum_up(&mut self, lines: RangeInclusive<u64>, code: Code) {
        let (first, last) = lines.into_inner();
        let count = last - first + 1;
        match self.sums.iter_mut().find(|sum| sum.code == code) {
            Some(sum) => {
                // A batch is refused after lines behind it were found invalid: the order of lines is not given.
                (sum.first, sum.last) = (sum.first.min(first), sum.last.max(last));
                sum.lines += count;
            }
            None => self.sums.push(Sum { code, first, last, lines: count }),
        }
    }

    fn make_text(&mut self) {
        while self.text.len() < TEXT_BYTES
            && let Some(entry) = self.queue.front_mut()
        {
            let whole = write_entry(entry, &mut self.text);
            if whole && let Some(entry) = self.queue.pop_front() {
                self.queue_bytes -= entry.bytes();
            }
        }
        if self.queue.is_empty() {
            // Order: sums before the acknowledgement that came after them.
            for sum in self.sums.drain(..) {
                sum.reply().write_to(&mut self.text);
            }
            if let Some(ack) = self.ack.take() {
                Reply::Ack { ack }.write_to(&mut self.text);
            }
        }
    }
}

impl Sum {
    fn reply(&self) -> Reply<'static> {
        Reply::Error {
            error: "these many lines were not taken while their answers were not read".into(),
            code: self.code,
            line: Some(self.last),
            first: Some(self.first),
            lines: Some(self.lines),
        }
    }
}

/// Writes `entry`, or as many of its lines as fit, and says whether nothing of it is left.
fn write_entry(entry: &mut Entry, text: &mut Vec<u8>) -> bool {
    match entry {
        Entry::Ack(ack) => {
            Reply::Ack { ack: *ack }.write_to(text);
            true
        }
        Entry::Refused { lines, code, error } => {
            while text.len() < TEXT_BYTES
                && let Some(line) = lines.next()
            {
                let error = Cow::Borrowed(error.as_ref());
                Reply::Error { error, code: *code, line: Some(line), first: None, lines: None }
                    .write_to(text);
            }
            lines.is_empty()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn full() -> Cow<'static, str> {
        "the buffer is full".into()
    }

    /// What a peer that reads everything now sees.
    fn read_all(replies: &mut Replies) -> Vec<Value> {
        let mut text = Vec::new();
        loop {
            let unsent = replies.unsent().to_vec();
            if unsent.is_empty() {
                break;
            }
            replies.sent(unsent.len());
            text.extend(unsent);
        }
        assert!(replies.is_empty());
        text.split_inclusive(|&byte| byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    #[test]
    fn the_form_of_each_answer() {
        let mut replies = Replies::default();
        replies.refuse(3..=3, Code::Invalid, || "not \"JSON\"".into());
        replies.ack(2);
        assert_eq!(
            replies.unsent(),
            br#"{"error":"not \"JSON\"","code":"invalid","line":3}
{"ack":2}
"#
        );
    }

    #[test]
    fn only_the_newest_acknowledgement_waits() {
        let mut replies = Replies::default();
        for events in 1..1000 {
            replies.ack(events);
        }
        assert_eq!(read_all(&mut replies), [serde_json::json!({"ack": 999})]);
    }

    #[test]
    fn a_long_run_of_refused_lines_is_one_entry_and_reads_line_by_line() {
        let mut replies = Replies::default();
        replies.refuse(1..=60_000, Code::BufferFull, full);
        replies.refuse(60_001..=100_000, Code::BufferFull, full);
        assert_eq!(replies.queue.len(), 1);
        let seen = read_all(&mut replies);
        assert_eq!(seen.len(), 100_000);
        assert!(seen.iter().enumerate().all(|(index, answer)| answer["line"] == index + 1));
        assert!(replies.text.capacity() <= IDLE_TEXT_BYTES);
    }

    #[test]
    fn a_peer_that_never_reads_costs_bounded_memory_and_finds_sums() {
        let mut replies = Replies::default();
        let mut refused = 0;
        for line in 1..=100_000_u64 {
            match line % 4 {
                0 => replies.ack(line / 4),
                code => {
                    let code = if code == 1 { Code::Invalid } else { Code::BufferFull };
                    replies.refuse(line..=line, code, || format!("reason {line}").into());
                    refused += 1;
                }
            }
            assert!(replies.queue_bytes <= QUEUE_BYTES_MAX + 1024);
        }
        let seen = read_all(&mut replies);
        let [.., no_room, invalid, ack] = &seen[..] else { panic!("{}", seen.len()) };
        assert_eq!(ack["ack"], 25_000);
        assert_eq!((&invalid["code"], &invalid["line"]), (&"invalid".into(), &99_997.into()));
        assert_eq!((&no_room["code"], &no_room["line"]), (&"buffer_full".into(), &99_999.into()));
        let told: u64 = seen
            .iter()
            .filter(|answer| answer["ack"].is_null())
            .map(|answer| answer["lines"].as_u64().unwrap_or(1))
            .sum();
        assert_eq!(told, refused);
        replies.refuse(7..=7, Code::Timeout, full);
        assert_eq!(read_all(&mut replies)[0]["line"], 7);
    }

    #[test]
    fn nothing_is_kept_for_a_peer_that_is_gone() {
        let mut replies = Replies::default();
        replies.ack(1);
        replies.discard();
        replies.ack(2);
        replies.refuse(1..=9, Code::Closing, full);
        assert!(replies.is_empty() && replies.unsent().is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ack,
        Refuse(u64),
        Read(usize),
    }

    proptest! {
        /// Whatever the peer reads and when: an error recorded before an acknowledgement is read before it, whether
        /// alone or in a sum.
        #[test]
        fn errors_never_come_after_a_later_acknowledgement(steps in proptest::collection::vec(
            prop_oneof![
                2 => Just(Step::Ack),
                4 => (1_u64..4).prop_map(Step::Refuse),
                1 => (0_usize..200).prop_map(Step::Read),
            ], 0..3000,
        )) {
            let mut replies = Replies::default();
            let mut text = Vec::new();
            let mut line = 0;
            // Refused lines before each acknowledgement.
            let mut before = vec![0];
            let mut refused = 0;
            for step in steps {
                match step {
                    Step::Ack => {
                        replies.ack(before.len() as u64);
                        before.push(refused);
                    }
                    Step::Refuse(lines) => {
                        // Long and different, so that the queue fills.
                        replies.refuse(line + 1..=line + lines, Code::Invalid, || format!("{line:0100}").into());
                        line += lines + 1;
                        refused += lines;
                    }
                    Step::Read(bytes) => {
                        let unsent = replies.unsent();
                        let taken = bytes.min(unsent.len());
                        text.extend_from_slice(&unsent[..taken]);
                        replies.sent(taken);
                    }
                }
            }
            while !replies.unsent().is_empty() {
                text.extend_from_slice(replies.unsent());
                let bytes = replies.unsent().len();
                replies.sent(bytes);
            }
            let mut told = 0;
            let mut newest = 0;
            for answer in text.split_inclusive(|&byte| byte == b'\n') {
                let answer: Value = serde_json::from_slice(answer).unwrap();
                if let Some(ack) = answer["ack"].as_u64() {
                    prop_assert!(ack > newest);
                    newest = ack;
                    prop_assert!(told >= before[usize::try_from(ack).unwrap()]);
                } else {
                    told += answer["lines"].as_u64().unwrap_or(1);
                }
            }
            prop_assert_eq!(told, refused);
            prop_assert_eq!(newest, before.len() as u64 - 1);
        }
    }
}
