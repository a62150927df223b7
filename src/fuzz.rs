//! What the fuzz targets in `fuzz/` call: one function for each place where foreign bytes are read. They panic when
//! something does not hold. The same functions run under `cargo test`, over the committed seeds and random bytes.

use std::convert::Infallible;
use std::sync::Arc;

use serde_json::value::RawValue;

use crate::buffer::block::{Assembly, Block, Encoder, Events, FORMAT, HEADER_BYTES, Origin, RUN_BYTES_MAX};
use crate::buffer::{Batch, Rank};
use crate::event::{Event, Payload, Seq, Stamp};
use crate::ingest::form;
use crate::ingest::topic::TopicTemplate;
use crate::ingest::unix::lines::{Line, Lines};
use crate::sink::record::templates::Template;
use crate::sink::record::{self, Formatter, Lane};

const ORIGIN: Origin = Origin { epoch: 3, boot: [7; 16] };
const RECEIVED: Stamp = Stamp { wall_us: 1_772_362_800_500_000, boot_us: 5, clock_trusted: true };

/// Longest line that [`frame`] allows: small, so that inputs reach it.
const LINE_BYTES_MAX: usize = 200;

/// The socket: however the bytes come in pieces, they are the same lines, and no line brings the form down.
pub fn frame(bytes: &[u8]) {
    let (sizes, stream) = bytes.split_at(bytes.len().min(4));
    let whole = lines(stream, &[stream.len()]);
    let sizes: Vec<usize> = sizes.iter().map(|&size| usize::from(size)).collect();
    assert_eq!(lines(stream, &sizes), whole, "in pieces of {sizes:?}");
    assert_eq!(whole, lines_by_definition(stream));
    for text in whole.0.into_iter().filter_map(|(_, text)| text) {
        if let Ok(draft) = form::parse_event(&text)
            && let Ok(event) = draft.stamped(RECEIVED)
        {
            stored_and_sent(&event);
        }
    }
}

/// Numbers of lines with their text, `None` for one that is too long; and the number of an unfinished one.
type Found = (Vec<(u64, Option<Vec<u8>>)>, Option<u64>);

/// What the splitter finds when the stream comes in pieces of these sizes.
fn lines(stream: &[u8], sizes: &[usize]) -> Found {
    let mut splitter = Lines::new(LINE_BYTES_MAX);
    let mut found = Vec::new();
    let (mut rest, mut sizes) = (stream, sizes.iter().cycle());
    while !rest.is_empty() {
        let size = sizes.next().map_or(1, |&size| size.clamp(1, rest.len()));
        let taken = splitter.read(true, size, |space| {
            let piece = rest.get(..size.min(bytes::BufMut::remaining_mut(space))).unwrap_or_default();
            bytes::BufMut::put_slice(space, piece);
            piece.len()
        });
        rest = rest.get(taken..).unwrap_or_default();
        while let Some(line) = splitter.next_line() {
            found.push(match line {
                Line::Whole { number, text } => (number, Some(text.to_vec())),
                Line::TooLong { number } => (number, None),
            });
        }
        if size % 2 == 1 {
            splitter.idle();
        }
    }
    (found, splitter.unfinished())
}

/// The same in the plainest way.
fn lines_by_definition(stream: &[u8]) -> Found {
    let mut parts: Vec<&[u8]> = stream.split(|&byte| byte == b'\n').collect();
    let last = parts.pop().unwrap_or_default();
    let is_blank = |text: &[u8]| text.iter().all(|byte| b" \t\r".contains(byte));
    let is_long = |text: &[u8]| text.len() > LINE_BYTES_MAX;
    let mut found = Vec::new();
    for (number, part) in (1..).zip(&parts) {
        let text = part.strip_suffix(b"\r").unwrap_or(part);
        if is_long(text) {
            found.push((number, None));
        } else if !is_blank(text) {
            found.push((number, Some(text.to_vec())));
        }
    }
    let number = parts.len() as u64 + 1;
    // Told before its end comes, once even a `\r` as its last byte would not make it short enough.
    if last.len() > LINE_BYTES_MAX + 1 {
        found.push((number, None));
        return (found, None);
    }
    (found, (!is_blank(last)).then_some(number))
}

/// A topic template and a topic, with a line end between them: it matches as the broker does, and captures levels.
pub fn topic(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (template, topic) = text.split_once('\n').unwrap_or((text, text));
    let Ok(parsed) = TopicTemplate::parse(template) else { return };
    assert_eq!(parsed.to_string(), template);
    assert_eq!(
        TopicTemplate::parse(parsed.filter()).map(|again| again.filter().to_owned()).as_deref(),
        Ok(parsed.filter())
    );
    let filter = match parsed.filter().strip_prefix("$share/") {
        Some(rest) => rest.split_once('/').map_or("", |(_, filter)| filter),
        None => parsed.filter(),
    };
    assert!(rumqttc::valid_filter(filter), "{filter}");
    let captures = parsed.capture(topic);
    if !topic.starts_with('$') {
        assert_eq!(captures.is_some(), matches(topic, filter), "{filter} {topic}");
    }
    let captures = captures.unwrap_or_default();
    for level in [captures.kind, captures.source_type, captures.source_id].into_iter().flatten() {
        assert!(topic.split('/').any(|found| found == level));
    }
}

/// MQTT 4.7 for topics that do not begin with `$`.
fn matches(topic: &str, filter: &str) -> bool {
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        match (level, topic.next()) {
            ("#", _) => return true,
            (_, None) => return false,
            ("+", Some(_)) => {}
            (level, Some(found)) if level == found => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

/// Stored events: whatever decodes is stored, read and sent as the same event.
pub fn event(bytes: &[u8]) {
    if let Ok(event) = postcard::from_bytes::<Event<'_>>(bytes) {
        stored_and_sent(&event);
    }
    if let Ok(draft) = form::parse_event(bytes)
        && let Ok(event) = draft.stamped(RECEIVED)
    {
        stored_and_sent(&event);
    }
}

fn stored_and_sent(event: &Event<'_>) {
    let mut batch = Batch::new();
    batch.push(event, usize::MAX).expect("it has no limit");
    assert_eq!(batch.events().collect::<Vec<_>>(), [*event]);
    let options = record::Options::new(Template::literal("t"));
    let options = record::Options { timestamp: record::Timestamp::Event, ..options };
    let mut formatter = Formatter::new(options, &[], Arc::default());
    let formatted = formatter.format(Seq(9), ORIGIN, Lane::Live, event, |record| {
        assert_eq!(record.key, Some(event.source_id.as_bytes()));
        // A payload that a later or damaged agent has stored need not be JSON; everything else is.
        if let Payload::Json(json) = event.payload
            && serde_json::from_str::<&RawValue>(json).is_err()
        {
            return;
        }
        let envelope: Envelope<'_> = serde_json::from_slice(record.payload).expect("the envelope is JSON");
        assert_eq!(
            (envelope.kind.as_str(), envelope.source_type.as_str(), envelope.source_id.as_str()),
            (event.kind, event.source_type, event.source_id)
        );
        assert_eq!(envelope.payload.is_some(), matches!(event.payload, Payload::Json(_)));
    });
    formatted.expect("the format needs no schema");
}

#[derive(serde::Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type")]
    kind: String,
    source_type: String,
    source_id: String,
    #[serde(borrow, default, deserialize_with = "some")]
    payload: Option<&'a RawValue>,
}

/// `null` is a payload too.
fn some<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    serde::Deserialize::deserialize(from).map(Some)
}

/// Stored blocks: arbitrary bytes, the same with a checksum that holds, and what the encoder makes of them, whole and
/// with one bit turned.
pub fn block(bytes: &[u8]) {
    read_block(bytes);
    (1..=FORMAT).for_each(|format| read_block(&with_checksum(format, bytes)));
    let mut values: Vec<Vec<u8>> = Vec::new();
    let run =
        bytes.repeat(if bytes.first() == Some(&0) { 1 } else { 1 + 2 * RUN_BYTES_MAX / bytes.len().max(1) });
    let put = |_: u16, value: &[u8]| {
        values.push(value.to_vec());
        Ok::<(), Infallible>(())
    };
    let events = Events { rank: Rank::default(), count: 1, ways: &[], bytes: &run };
    let Ok(()) = Encoder::new(ORIGIN).encode(Seq(5), 0, events, put);
    let (mut assembly, mut read) = (Assembly::default(), Vec::new());
    for value in &values {
        let block = Block::parse(value).expect("the encoder's own");
        assert_eq!((block.first, block.count, block.origin), (Seq(5), 1, ORIGIN));
        assembly.take(&block, &mut read).expect("the encoder's own, in order");
    }
    assert!(!assembly.is_partial());
    assert_eq!(read, run);
    if let Some(value) = values.first_mut() {
        let at = bytes.iter().fold(0_usize, |at, &byte| at.wrapping_mul(31).wrapping_add(byte.into()));
        let turned = at / 8 % value.len();
        if let Some(byte) = value.get_mut(turned) {
            *byte ^= 1 << (at % 8);
        }
        assert!(Block::parse(value).is_err(), "a turned bit in byte {turned} is not noticed");
    }
}

fn read_block(value: &[u8]) {
    let Ok(block) = Block::parse(value) else { return };
    let mut run = b"before".to_vec();
    let result = if block.chunks == 1 {
        block.unpack(&mut run)
    } else {
        Assembly::default().take(&block, &mut run).map(drop)
    };
    assert!(run.starts_with(b"before"));
    assert!(result.is_ok() || run.len() == "before".len());
}

/// `bytes` as a block of a format whose outside is right, so that its inside is reached.
fn with_checksum(format: u8, bytes: &[u8]) -> Vec<u8> {
    let mut value = bytes.to_vec();
    value.resize(value.len().max(HEADER_BYTES), 0);
    let rest_bytes = u32::try_from(value.len() - 12).unwrap_or(u32::MAX);
    let mut set = |at: usize, field: &[u8]| {
        value.get_mut(at..at + field.len()).expect("inside the header").copy_from_slice(field);
    };
    set(0, b"fpB");
    set(3, &[format]);
    set(8, &rest_bytes.to_le_bytes());
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&[format]);
    checksum.update(value.get(8..).unwrap_or_default());
    let checksum = checksum.finalize();
    value.get_mut(4..8).expect("inside the header").copy_from_slice(&checksum.to_le_bytes());
    value
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    type Target = fn(&[u8]);
    const TARGETS: [(&str, Target); 4] =
        [("frame", frame), ("topic", topic), ("event", event), ("block", block)];

    #[test]
    fn every_target_has_its_seeds_and_they_hold() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        for (name, target) in TARGETS {
            assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).exists(), "{name}");
            let seeds: Vec<_> = std::fs::read_dir(fuzz.join("seeds").join(name)).unwrap().flatten().collect();
            assert!(!seeds.is_empty(), "{name}");
            for seed in seeds {
                target(&std::fs::read(seed.path()).unwrap());
            }
        }
    }

    /// Bytes, and texts in which what the targets look for is frequent.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let form = r#"(\{"id":"[a-z"\\]{0,3}","type":"[a-zé]{0,2}","source_type":"s","source_id":"[0-9]{0,2}","timestamp":(null|"2026-03-01T12:00:00Z"),"payload":(1|null|\[ 1\])\}[\r\n]{0,3}){0,3}"#;
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..600),
            proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), Just(b'x')], 0..900),
            form.prop_map(|text| [b"\x03\x40\x11\x80".as_slice(), text.as_bytes()].concat()),
            form.prop_map(String::into_bytes),
            "[a{}typ/+#$\n]{0,30}".prop_map(String::into_bytes),
            (
                "(a|\\{type\\}|\\+|\\{source_id\\})(/(a|b|\\{source_type\\}|\\+)){0,3}(/#)?",
                "(a|b)(/(a|b)){0,3}"
            )
                .prop_map(|(template, topic)| format!("{template}\n{topic}").into_bytes()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn every_target_holds_for_random_bytes(input in input()) {
            for (_, target) in TARGETS {
                target(&input);
            }
        }
    }
}
