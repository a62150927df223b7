//! What routes that let only a part through remember of each source: how many events went by, or what was sent last.
//!
//! Kept in memory alone: a restart begins anew, so that the first event of each source is sent. It is bounded: at the
//! limit the sources that were silent longest are forgotten, and their next event is sent. What is not known is never a
//! reason to keep an event back.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::mem;
use std::time::Duration;

use super::pointer::Pointer;
use super::{Keep, Route};
use crate::event::{Event, Payload};

/// When a value is a new one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The number that counts; `None`: the whole payload does, byte for byte.
    pub value: Option<Pointer>,
    /// By how much the number must differ from the one that was sent last; at this difference it is not sent yet.
    pub deadband: Deadband,
    /// After so much time a value is sent although it is the same.
    pub max_silence: Option<Duration>,
}

/// A difference: never negative, always a number.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Deadband(f64);

// It is never NaN.
impl Eq for Deadband {}

impl Deadband {
    /// `None` if it is negative or not a number.
    pub fn new(width: f64) -> Option<Self> {
        (width.is_finite() && width >= 0.0).then_some(Self(width))
    }

    /// The difference.
    pub fn width(self) -> f64 {
        self.0
    }
}

/// What becomes of an event by its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingest) enum Verdict {
    Kept,
    SampledOut,
    Unchanged,
}

/// What was sent of a source, or how often nothing was.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Last {
    /// Events since one was kept, that one included.
    Events(u32),
    Number(f64),
    /// Of the payload: 128 bits by hashes with keys of their own, so that no two payloads look the same by chance or by
    /// design.
    Print(u64, u64),
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    last: Last,
    boot_us: u64,
}

/// The memory of all routes.
#[derive(Debug)]
pub(in crate::ingest) struct Memory {
    /// By route, `source_type`, `source_id` and `type`. Those heard of since `old` was made, and those before: what is in
    /// `old` when `young` has half of the limit is forgotten.
    young: HashMap<Box<str>, Seen>,
    old: HashMap<Box<str>, Seen>,
    half_max: usize,
    /// Space for a key, so that to look one up takes no allocation.
    key: String,
    prints: [RandomState; 2],
}

impl Memory {
    /// Remembers at most `sources_max` sources and types.
    pub(in crate::ingest) fn new(sources_max: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            half_max: (sources_max / 2).max(1),
            key: String::new(),
            prints: Default::default(),
        }
    }

    /// Whether `event` of the route with this number is kept. Remembers it if so: [`Memory::forget`] takes that back when
    /// the event is not stored after all.
    pub(in crate::ingest) fn judge(&mut self, number: usize, keep: &Keep, event: &Event<'_>) -> Verdict {
        match keep {
            Keep::All | Keep::Nothing => Verdict::Kept,
            Keep::OneIn(count) => {
                self.name(number, event);
                self.sample(count.get(), event.received.boot_us)
            }
            Keep::Changes(report) => {
                self.name(number, event);
                self.compare(report, event)
            }
        }
    }

    fn sample(&mut self, one_in: u32, boot_us: u64) -> Verdict {
        if let Some(Seen { last: Last::Events(events), .. }) = self.seen()
            && *events < one_in
        {
            *events += 1;
            return Verdict::SampledOut;
        }
        self.remember(Seen { last: Last::Events(1), boot_us });
        Verdict::Kept
    }

    fn compare(&mut self, report: &Report, event: &Event<'_>) -> Verdict {
        let boot_us = event.received.boot_us;
        let Some(last) = self.last_of(report, event) else {
            // What cannot be compared is sent, and whoever has seen it waits for the next number.
            self.remove();
            return Verdict::Kept;
        };
        if let Some(seen) = self.seen() {
            let silence = Duration::from_micros(boot_us.saturating_sub(seen.boot_us));
            let is_same = match (seen.last, last) {
                (Last::Number(sent), Last::Number(number)) => {
                    (number - sent).abs() <= report.deadband.width()
                }
                (sent, last) => sent == last,
            };
            if is_same && report.max_silence.is_none_or(|max| silence < max) {
                return Verdict::Unchanged;
            }
        }
        self.remember(Seen { last, boot_us });
        Verdict::Kept
    }

    fn last_of(&self, report: &Report, event: &Event<'_>) -> Option<Last> {
        match (&report.value, event.payload) {
            (Some(pointer), Payload::Json(json)) => pointer.number_in(json).map(Last::Number),
            (Some(_), Payload::Bytes(_)) => None,
            (None, payload) => {
                let print = |by: &RandomState| match payload {
                    Payload::Json(json) => by.hash_one((true, json.as_bytes())),
                    Payload::Bytes(bytes) => by.hash_one((false, bytes)),
                };
                let [first, second] = &self.prints;
                Some(Last::Print(print(first), print(second)))
            }
        }
    }

    /// `event` was not stored after all: its source is sent anew, whichever of `routes` it came by.
    pub(in crate::ingest) fn forget(&mut self, routes: &[Route], event: &Event<'_>) {
        for (number, route) in routes.iter().enumerate() {
            if route.keep.remembers() && route.may_match(event) {
                self.name(number, event);
                self.remove();
            }
        }
    }

    /// Begins anew.
    pub(in crate::ingest) fn forget_all(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// Makes the key. Names hold no control character, so it stands for nothing else.
    fn name(&mut self, number: usize, event: &Event<'_>) {
        use std::fmt::Write as _;
        self.key.clear();
        let (source_type, source_id, kind) = (event.source_type, event.source_id, event.kind);
        // Writing to a String cannot fail.
        let _ = write!(self.key, "{number}\0{source_type}\0{source_id}\0{kind}");
    }

    fn seen(&mut self) -> Option<&mut Seen> {
        if let Some((key, seen)) = self.old.remove_entry(self.key.as_str()) {
            self.insert(key, seen);
        }
        self.young.get_mut(self.key.as_str())
    }

    fn remember(&mut self, now: Seen) {
        match self.seen() {
            Some(seen) => *seen = now,
            None => {
                let key = self.key.as_str().into();
                self.insert(key, now);
            }
        }
    }

    fn insert(&mut self, key: Box<str>, seen: Seen) {
        if self.young.len() >= self.half_max {
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(key, seen);
    }

    fn remove(&mut self) {
        self.young.remove(self.key.as_str());
        self.old.remove(self.key.as_str());
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::super::Pattern;
    use super::*;
    use crate::event::{EventId, Stamp, Way};
    use proptest::prelude::*;

    fn event<'a>(source_id: &'a str, at_s: u64, payload: &'a str) -> Event<'a> {
        Event {
            id: EventId::Given("e"),
            kind: "reading",
            source_type: "s",
            source_id,
            timestamp: None,
            received: Stamp { wall_us: 0, boot_us: at_s * 1_000_000, clock_trusted: true },
            payload: Payload::Json(payload),
            way: Way::USUAL,
        }
    }

    fn changes(value: Option<&str>, deadband: f64, max_silence_s: Option<u64>) -> Keep {
        Keep::Changes(Report {
            value: value.map(|pointer| Pointer::parse(pointer).unwrap()),
            deadband: Deadband::new(deadband).unwrap(),
            max_silence: max_silence_s.map(Duration::from_secs),
        })
    }

    /// Which of these payloads, one a second, are kept.
    fn kept<'p>(keep: &Keep, payloads: &[&'p str]) -> Vec<&'p str> {
        let mut memory = Memory::new(10);
        let kept = (1..)
            .zip(payloads)
            .filter(|(at_s, payload)| memory.judge(0, keep, &event("1", *at_s, payload)) == Verdict::Kept);
        kept.map(|(_, payload)| *payload).collect()
    }

    #[test]
    fn a_value_is_sent_when_it_leaves_the_dead_band_of_the_one_sent_last() {
        let keep = changes(Some("/c"), 0.5, None);
        let payloads = [
            r#"{"c":20}"#,
            r#"{"c":20.5}"#,
            r#"{"c":19.5,"x":1}"#,
            r#"{"c":20.6}"#,
            r#"{"c":20.2}"#,
            r#"{"c":20.0}"#,
        ];
        assert_eq!(kept(&keep, &payloads), [payloads[0], payloads[3], payloads[5]]);
        assert_eq!(kept(&changes(Some(""), 0.0, None), &["1", "1.0", "2", "2", "1"]), ["1", "2", "1"]);
    }

    #[test]
    fn without_a_value_the_payload_is_compared() {
        let keep = changes(None, 0.0, None);
        assert_eq!(kept(&keep, &["{}", "{}", "{ }", "1", "1", "{}"]), ["{}", "{ }", "1", "{}"]);
        let mut memory = Memory::new(10);
        let bytes = Event { payload: Payload::Bytes(b"1"), ..event("1", 0, "") };
        for (event, wanted) in [
            (event("1", 0, "1"), Verdict::Kept),
            (bytes, Verdict::Kept),
            (bytes, Verdict::Unchanged),
            (event("1", 0, "1"), Verdict::Kept),
        ] {
            assert_eq!(memory.judge(0, &keep, &event), wanted);
        }
    }

    #[test]
    fn what_has_no_number_is_sent_and_so_is_the_next_number() {
        let keep = changes(Some("/c"), 5.0, None);
        let payloads = [r#"{"c":1}"#, r#"{"c":null}"#, r#"{"c":null}"#, r#"{"c":1.5}"#, r#"{"c":2}"#, "7"];
        assert_eq!(kept(&keep, &payloads), [payloads[0], payloads[1], payloads[2], payloads[3], payloads[5]]);
        let mut memory = Memory::new(10);
        let bytes = Event { payload: Payload::Bytes(b"1"), ..event("1", 0, "") };
        assert_eq!([0, 1].map(|_| memory.judge(0, &keep, &bytes)), [Verdict::Kept; 2]);
    }

    #[test]
    fn after_the_longest_silence_a_value_is_sent_all_the_same() {
        let keep = changes(None, 0.0, Some(3));
        let mut memory = Memory::new(10);
        let kept: Vec<u64> =
            (0..10).filter(|&at_s| memory.judge(0, &keep, &event("1", at_s, "1")) == Verdict::Kept).collect();
        assert_eq!(kept, [0, 3, 6, 9]);
    }

    #[test]
    fn one_in_so_many_is_kept_beginning_with_the_first() {
        let one_in = |n| Keep::OneIn(NonZeroU32::new(n).unwrap());
        assert_eq!(kept(&one_in(3), &["1", "2", "3", "4", "5", "6", "7"]), ["1", "4", "7"]);
        assert_eq!(kept(&one_in(1), &["1", "2"]), ["1", "2"]);
    }

    #[test]
    fn sources_types_and_routes_are_apart() {
        let keep = changes(None, 0.0, None);
        let mut memory = Memory::new(10);
        let one = event("1", 0, "1");
        let others = [event("2", 0, "1"), Event { kind: "alarm", ..one }, Event { source_type: "t", ..one }];
        for event in [one].iter().chain(&others) {
            assert_eq!(memory.judge(0, &keep, event), Verdict::Kept);
        }
        assert_eq!(memory.judge(1, &keep, &one), Verdict::Kept);
        for event in [one].iter().chain(&others) {
            assert_eq!(memory.judge(0, &keep, event), Verdict::Unchanged);
        }
    }

    #[test]
    fn what_was_not_stored_is_sent_again() {
        let keep = changes(None, 0.0, None);
        let route = |source_id: &str| Route {
            source_id: Some(Pattern::new(source_id)),
            keep: keep.clone(),
            ..Route::default()
        };
        let routes = [route("other"), route("*")];
        let mut memory = Memory::new(10);
        let judge = |memory: &mut Memory, id| memory.judge(1, &keep, &event(id, 0, "1"));
        for id in ["1", "2"] {
            judge(&mut memory, id);
        }
        memory.forget(&routes, &event("1", 0, "1"));
        assert_eq!(["1", "2"].map(|id| judge(&mut memory, id)), [Verdict::Kept, Verdict::Unchanged]);
        memory.forget_all();
        assert_eq!(["1", "2"].map(|id| judge(&mut memory, id)), [Verdict::Kept; 2]);
    }

    #[test]
    fn at_the_limit_whoever_was_silent_longest_is_forgotten() {
        let keep = changes(None, 0.0, None);
        let mut memory = Memory::new(100);
        for n in 0..10_000_u64 {
            let id = n.to_string();
            assert_eq!(memory.judge(0, &keep, &event(&id, n, "1")), Verdict::Kept);
            // One that goes on speaking is never forgotten.
            let wanted = if n == 0 { Verdict::Kept } else { Verdict::Unchanged };
            assert_eq!(memory.judge(0, &keep, &event("lasting", n, "1")), wanted);
            assert!(memory.young.len() + memory.old.len() <= 100);
        }
        assert_eq!(memory.judge(0, &keep, &event("9990", 0, "1")), Verdict::Unchanged);
        assert_eq!(memory.judge(0, &keep, &event("9000", 0, "1")), Verdict::Kept);
    }

    proptest! {
        /// The promise to whoever sees only what is sent: at any time the last value sent is no further from the true one
        /// than the dead-band, and no older than the longest silence.
        #[test]
        fn what_was_sent_last_is_near_what_is(
            values in proptest::collection::vec((0_usize..3, -20_i32..20, 0_u64..4), 1..200), deadband in 0_u8..10,
            max_silence in proptest::option::of(1_u64..8),
        ) {
            let keep = changes(Some("/v"), f64::from(deadband), max_silence);
            let mut memory = Memory::new(100);
            let mut sent: [Option<(i32, u64)>; 3] = [None; 3];
            let mut now_s = 0;
            for (source, value, step_s) in values {
                now_s += step_s;
                let (id, payload) = (source.to_string(), format!(r#"{{"v":{value}}}"#));
                let verdict = memory.judge(0, &keep, &event(&id, now_s, &payload));
                match sent[source] {
                    Some((last, at_s)) => {
                        let is_new = (value - last).abs() > i32::from(deadband)
                            || max_silence.is_some_and(|max| now_s - at_s >= max);
                        prop_assert_eq!(verdict == Verdict::Kept, is_new);
                    }
                    None => prop_assert_eq!(verdict, Verdict::Kept),
                }
                if verdict == Verdict::Kept {
                    sent[source] = Some((value, now_s));
                }
            }
        }
    }
}
