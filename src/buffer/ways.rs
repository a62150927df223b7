//! Where events go ([`Way`]), stored once for many events. Pure codec.
//!
//! A way belongs to the route of an event and so there are few of them: a batch keeps a table of topics and where the way
//! changes, and a block of format 2 begins its run with the part of it that its events need. An event costs nothing as long
//! as its neighbours go the same way; a block whose events all go the usual way is one of format 1 and costs nothing at all.
//!
//! What stands before the events, in bytes: the number of topics, for each its length and its text; then spans of events
//! that go one way, each the number of its events (1 to 255; together those of the block) and a code: bit 7 for no ping,
//! the others the number of the topic in the table before, from 1, or 0 for the topic of the configuration.

use crate::event::Way;

/// Most topics in one batch: a code has seven bits for their number.
pub const TOPICS_MAX: usize = 127;

/// Longest topic, or template of one, in bytes.
pub const TOPIC_BYTES_MAX: usize = 255;

const QUIET: u8 = 0x80;

/// A way as it is stored: see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Code(u8);

impl Code {
    /// The usual way.
    const PLAIN: Self = Self(0);

    fn new(topic: u8, is_quiet: bool) -> Self {
        Self(topic & !QUIET | if is_quiet { QUIET } else { 0 })
    }

    /// Number of the topic, from 1; 0 for none.
    fn topic(self) -> u8 {
        self.0 & !QUIET
    }

    fn is_quiet(self) -> bool {
        self.0 & QUIET != 0
    }
}

/// The ways of a batch's events. Takes no memory while all go the usual way.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Ways(Option<Box<Table>>);

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Table {
    /// By number, from 1. Kept when the batch is cleared: the next one has the same routes.
    topics: Vec<Box<str>>,
    /// Where the way changes: number of events up to there, and their code. The events behind go the usual way.
    spans: Vec<(usize, Code)>,
}

impl Ways {
    /// Notes the way of the event that makes the batch `count` events long. `false`: it cannot be stored, because there are
    /// too many topics, or one is too long; nothing was noted.
    pub(super) fn push(&mut self, way: Way<'_>, count: usize) -> bool {
        if way == Way::USUAL {
            return true;
        }
        let table = self.0.get_or_insert_default();
        let Some(topic) = way.topic.map_or(Some(0), |topic| table.number_of(topic)) else { return false };
        let code = Code::new(topic, way.is_quiet);
        let (end, last) = table.spans.last().copied().unwrap_or_default();
        let before = count.saturating_sub(1);
        if end < before {
            table.spans.push((before, Code::PLAIN));
        }
        match table.spans.last_mut().filter(|_| end == before && last == code && end > 0) {
            Some((end, _)) => *end = count,
            None => table.spans.push((count, code)),
        }
        true
    }

    /// Forgets the events, not the topics.
    pub(super) fn clear(&mut self) {
        self.0.iter_mut().for_each(|table| table.spans.clear());
    }

    /// The ways from the `at`th event on, without end.
    pub(super) fn iter(&self, at: usize) -> impl Iterator<Item = Way<'_>> {
        self.codes(at).map(|code| {
            let topic = usize::from(code.topic()).checked_sub(1).and_then(|index| self.topics().get(index));
            Way { topic: topic.map(AsRef::as_ref), is_quiet: code.is_quiet() }
        })
    }

    fn topics(&self) -> &[Box<str>] {
        self.0.as_ref().map_or(&[], |table| &table.topics)
    }

    fn codes(&self, at: usize) -> impl Iterator<Item = Code> {
        let spans = self.0.as_ref().map_or(&[][..], |table| &table.spans);
        let spans = spans.get(spans.partition_point(|(end, _)| *end <= at)..).unwrap_or_default();
        let counted = spans.iter().scan(at, |from, &(end, code)| {
            let count = end - std::mem::replace(from, end);
            Some(std::iter::repeat_n(code, count))
        });
        counted.flatten().chain(std::iter::repeat(Code::PLAIN))
    }

    /// How many bytes stand before the events from the `at`th on when so many of them are in a block, for 1, 2, 3 and so
    /// on.
    pub(super) fn costs(&self, at: usize) -> impl Iterator<Item = usize> {
        let mut plan = Plan::default();
        self.codes(at).map(move |code| {
            plan.add(code, self.topics());
            plan.bytes()
        })
    }

    /// Writes what stands before the `count` events from the `at`th on into `out`: nothing when all go the usual way.
    pub(super) fn write(&self, at: usize, count: usize, out: &mut Vec<u8>) {
        out.clear();
        let mut plan = Plan::default();
        self.codes(at).take(count).for_each(|code| plan.add(code, self.topics()));
        if !plan.is_needed {
            return;
        }
        out.push(0);
        for (number, topic) in (1_u8..).zip(self.topics()).filter(|(number, _)| plan.has(*number)) {
            let bytes = u8::try_from(topic.len()).unwrap_or(u8::MAX);
            out.push(bytes);
            out.extend_from_slice(topic.as_bytes());
            if let Some(count) = out.first_mut() {
                *count = plan.place_of(number);
            }
        }
        let mut span: Option<(Code, u8)> = None;
        for code in self.codes(at).take(count) {
            span = match span {
                Some((last, events)) if last == code && events < u8::MAX => Some((last, events + 1)),
                last => {
                    plan.write_span(last, out);
                    Some((code, 1))
                }
            };
        }
        plan.write_span(span, out);
    }
}

impl Table {
    fn number_of(&mut self, topic: &str) -> Option<u8> {
        let known = self.topics.iter().position(|known| **known == *topic);
        let index = known.or_else(|| {
            let fits = self.topics.len() < TOPICS_MAX && topic.len() <= TOPIC_BYTES_MAX;
            fits.then(|| {
                self.topics.push(topic.into());
                self.topics.len() - 1
            })
        })?;
        u8::try_from(index + 1).ok()
    }
}

/// What the ways of some events take, counted event by event.
#[derive(Debug, Clone, Copy, Default)]
struct Plan {
    /// Bit n - 1: topic n is used.
    topics: u128,
    topics_bytes: usize,
    spans: usize,
    last: Option<(Code, u8)>,
    is_needed: bool,
}

impl Plan {
    fn add(&mut self, code: Code, topics: &[Box<str>]) {
        self.is_needed |= code != Code::PLAIN;
        if let Some(index) = code.topic().checked_sub(1)
            && !self.has(code.topic())
        {
            self.topics |= 1 << index;
            self.topics_bytes += 1 + topics.get(usize::from(index)).map_or(0, |topic| topic.len());
        }
        self.last = match self.last {
            Some((last, events)) if last == code && events < u8::MAX => Some((last, events + 1)),
            _ => {
                self.spans += 1;
                Some((code, 1))
            }
        };
    }

    fn bytes(&self) -> usize {
        if self.is_needed { 1 + self.topics_bytes + 2 * self.spans } else { 0 }
    }

    fn has(&self, number: u8) -> bool {
        number > 0 && self.topics >> (number - 1) & 1 == 1
    }

    /// The number of a topic in the block's table, which holds only what is used.
    fn place_of(&self, number: u8) -> u8 {
        let before = if number == 0 { 0 } else { self.topics & (u128::MAX >> (128 - u32::from(number))) };
        // At most 127 bits.
        u8::try_from(before.count_ones()).unwrap_or_default()
    }

    fn write_span(&self, span: Option<(Code, u8)>, out: &mut Vec<u8>) {
        if let Some((code, events)) = span {
            out.extend([events, Code::new(self.place_of(code.topic()), code.is_quiet()).0]);
        }
    }
}

/// The ways of a block's events, one by one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stored<'a> {
    topics: &'a [u8],
    spans: &'a [u8],
    /// Of the span at hand: events left, and their way.
    left: u8,
    way: Way<'a>,
}

impl<'a> Stored<'a> {
    /// Splits the run of a block of `count` events: their ways, and the events. `None`: it is not such a run.
    pub(super) fn split(run: &'a [u8], count: u16) -> Option<(Self, &'a [u8])> {
        let (&number, topics) = run.split_first()?;
        let mut rest = topics;
        for _ in 0..number {
            let (_, behind) = text(rest)?;
            rest = behind;
        }
        let (topics, spans) = topics.split_at_checked(topics.len() - rest.len())?;
        let (mut events, mut rest) = (0, spans);
        while events < count {
            let (&[span, _], behind) = rest.split_first_chunk()?;
            events += u16::from(span);
            rest = if span == 0 { return None } else { behind };
        }
        let (spans, rest) = spans.split_at_checked(spans.len() - rest.len())?;
        let stored = Self { topics, spans, left: 0, way: Way::USUAL };
        (events == count).then_some((stored, rest))
    }

    /// The way of the next event; the usual one behind the last.
    pub(super) fn next_way(&mut self) -> Way<'a> {
        if self.left == 0 {
            let Some((&[events, code], rest)) = self.spans.split_first_chunk() else { return Way::USUAL };
            let code = Code(code);
            (self.spans, self.left) = (rest, events);
            self.way = Way { topic: self.topic(code.topic()), is_quiet: code.is_quiet() };
        }
        self.left = self.left.saturating_sub(1);
        self.way
    }

    fn topic(&self, number: u8) -> Option<&'a str> {
        let mut rest = self.topics;
        for _ in 1..number {
            rest = text(rest)?.1;
        }
        // Order: not before the table, for 0 is no topic.
        if number == 0 { None } else { std::str::from_utf8(text(rest)?.0).ok() }
    }
}

/// A text with its length before it, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    rest.split_at_checked(length.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ways(of: &[Way<'_>]) -> Ways {
        let mut ways = Ways::default();
        assert!(of.iter().zip(1..).all(|(way, count)| ways.push(*way, count)));
        ways
    }

    fn to(topic: &str) -> Way<'_> {
        Way { topic: Some(topic), is_quiet: false }
    }

    const QUIET_ONE: Way<'static> = Way { topic: None, is_quiet: true };

    #[test]
    fn the_usual_way_costs_nothing_and_one_topic_a_few_bytes() {
        let mut out = b"before".to_vec();
        ways(&[Way::USUAL; 1000]).write(0, 1000, &mut out);
        assert!(out.is_empty());
        ways(&[to("alarms"); 200]).write(0, 200, &mut out);
        assert_eq!(out, b"\x01\x06alarms\xc8\x01");
        ways(&[to("x"), to("alarms"), Way::USUAL, QUIET_ONE]).write(1, 3, &mut out);
        assert_eq!(out, b"\x01\x06alarms\x01\x01\x01\x00\x01\x80");
    }

    #[test]
    fn what_cannot_be_stored_is_refused_and_leaves_nothing() {
        let mut full = Ways::default();
        for n in 0..TOPICS_MAX {
            assert!(full.push(to(&n.to_string()), n + 1));
        }
        let before = full.clone();
        assert!(!full.push(to("one more"), TOPICS_MAX + 1));
        assert_eq!(full, before);
        assert!(full.push(to("126"), TOPICS_MAX + 1));
        let (short, long) = ("x".repeat(TOPIC_BYTES_MAX), "x".repeat(TOPIC_BYTES_MAX + 1));
        assert!(Ways::default().push(to(&short), 1) && !Ways::default().push(to(&long), 1));
        let mut out = Vec::new();
        full.write(0, TOPICS_MAX + 1, &mut out);
        let (mut stored, rest) = Stored::split(&out, 128).unwrap();
        assert!(rest.is_empty());
        let topics: Vec<_> = (0..128).map(|_| stored.next_way().topic.unwrap()).collect();
        assert_eq!((topics[0], topics[126], topics[127]), ("0", "126", "126"));
    }

    #[test]
    fn a_run_that_says_something_else_is_refused() {
        for (run, count) in [
            (&b""[..], 1),
            (b"\x01\x06alar", 1),
            (b"\x00\x02\x00", 1),
            (b"\x00\x00\x00", 1),
            (b"\x00\x01\x00", 2),
            (b"\x00\x01", 1),
        ] {
            assert!(Stored::split(run, count).is_none(), "{run:?}");
        }
    }

    fn way() -> impl Strategy<Value = (Option<String>, bool)> {
        (proptest::option::weighted(0.7, "[ab]{1,2}"), proptest::bool::weighted(0.2))
    }

    proptest! {
        #[test]
        fn every_way_comes_back(
            of in prop::collection::vec((way(), 1_usize..400), 1..12), from in 0_usize..20, rest in "[a-z]{0,9}",
        ) {
            let all: Vec<_> = of.iter().flat_map(|(way, times)| std::iter::repeat_n(way, *times)).collect();
            let all: Vec<_> = all.iter()
                .map(|(topic, is_quiet)| Way { topic: topic.as_deref(), is_quiet: *is_quiet }).collect();
            let ways = ways(&all);
            let from = from.min(all.len() - 1);
            let wanted = &all[from..];
            prop_assert_eq!(ways.iter(from).take(wanted.len()).collect::<Vec<_>>(), wanted);
            let mut out = Vec::new();
            ways.write(from, wanted.len(), &mut out);
            prop_assert_eq!(ways.costs(from).nth(wanted.len() - 1), Some(out.len()));
            prop_assert_eq!(out.is_empty(), wanted.iter().all(|way| *way == Way::USUAL));
            if !out.is_empty() {
                out.extend(rest.as_bytes());
                let (mut stored, behind) = Stored::split(&out, u16::try_from(wanted.len()).unwrap()).unwrap();
                prop_assert_eq!(behind, rest.as_bytes());
                for way in wanted {
                    prop_assert_eq!(stored.next_way(), *way);
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(run in prop::collection::vec(any::<u8>(), 0..60), count in 0_u16..300) {
            if let Some((mut stored, _)) = Stored::split(&run, count) {
                (0..count).for_each(|_| { stored.next_way(); });
            }
        }
    }
}
