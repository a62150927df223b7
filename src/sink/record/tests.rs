//! Every format against its definition, field by field.

use ::cloudevents::AttributesReader as _;
use ::cloudevents::event::{AttributeValue, Data, SpecVersion};
use ::cloudevents::message::{self, BinaryDeserializer, BinarySerializer, MessageAttributeValue};
use proptest::prelude::*;

use super::templates::{KEY_FIELDS, TOPIC_FIELDS};
use super::*;
use crate::event::{EventId, NAME_BYTES_MAX, Payload, Stamp, Way};

const ORIGIN: Origin = Origin { epoch: 4, boot: [9; 16] };

fn event<'a>(payload: Payload<'a>, timestamp: Option<&'a str>) -> Event<'a> {
    Event {
        id: EventId::Given("e\"1"),
        kind: "reading",
        source_type: "meter/é",
        source_id: "m-1",
        timestamp,
        received: Stamp { wall_us: 1_772_366_400_000_001, boot_us: 77, clock_trusted: false },
        payload,
        way: crate::event::Way::USUAL,
    }
}

fn options(topic: &str) -> Options {
    Options::new(Template::parse(topic, TOPIC_FIELDS).unwrap())
}

fn formatter(options: Options) -> Formatter {
    let name =
        |epoch, log, agent: &str| LogName { epoch, log: Uuid::from_u128(log), agent: agent.to_owned() };
    let names = [name(0, 0, "old"), name(3, 5, "gw-7"), name(5, 0, "new")];
    Formatter::new(options, &names, Arc::default())
}

/// A record that outlives its formatter.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Owned {
    pub(super) topic: String,
    pub(super) key: Option<Vec<u8>>,
    pub(super) payload: Vec<u8>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) timestamp_ms: Option<i64>,
}

pub(super) fn format(formatter: &mut Formatter, event: &Event<'_>) -> Owned {
    format_at(formatter, 12, event)
}

fn format_at(formatter: &mut Formatter, seq: u64, event: &Event<'_>) -> Owned {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    formatter
        .format(Seq(seq), ORIGIN, Lane::Live, event, |record| Owned {
            topic: record.topic.to_owned(),
            key: record.key.map(<[u8]>::to_vec),
            payload: record.payload.to_vec(),
            headers: record.headers.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect(),
            timestamp_ms: record.timestamp_ms,
        })
        .unwrap()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const OWN_HEADERS: [(&str, &str); 9] = [
    ("fieldpost-id", "e\"1"),
    ("fieldpost-timestamp", "2026-03-01T12:00:00.000001Z"),
    ("fieldpost-agent", "gw-7"),
    ("fieldpost-log", "00000000-0000-0000-0000-000000000005"),
    ("fieldpost-epoch", "4"),
    ("fieldpost-seq", "12"),
    ("fieldpost-boot", "09090909-0909-0909-0909-090909090909"),
    ("fieldpost-boot-us", "77"),
    ("fieldpost-clock", "untrusted"),
];

#[test]
fn the_envelope_and_the_headers_carry_every_field() {
    let record = format(&mut formatter(options("events")), &event(Payload::Json("{ \"c\": 1 }"), None));
    assert_eq!((record.topic.as_str(), record.key.as_deref()), ("events", Some(&b"m-1"[..])));
    assert_eq!(
        String::from_utf8(record.payload).unwrap(),
        "{\"version\":1,\"id\":\"e\\\"1\",\"type\":\"reading\",\"source_type\":\"meter/é\",\"source_id\":\"m-1\",\
         \"timestamp\":\"2026-03-01T12:00:00.000001Z\",\"payload\":{ \"c\": 1 }}"
    );
    assert_eq!(record.headers, pairs(&OWN_HEADERS));
    assert_eq!(record.timestamp_ms, None);
}

#[test]
fn bytes_become_base64_and_the_event_time_can_be_the_record_time() {
    let options = Options { timestamp: Timestamp::Event, ..options("e.{source_type}") };
    let event = event(Payload::Bytes(&[0, 255, 1, 2]), Some("1970-01-01T01:00:01+01:00"));
    let record = format(&mut formatter(options), &event);
    assert_eq!(record.topic, "e.meter__");
    let payload = String::from_utf8(record.payload).unwrap();
    assert!(
        payload.ends_with("\"timestamp\":\"1970-01-01T01:00:01+01:00\",\"payload_base64\":\"AP8BAg==\"}")
    );
    assert!(serde_json::from_str::<serde_json::Value>(&payload).is_ok());
    assert_eq!(record.timestamp_ms, Some(1000));
}

#[test]
fn a_raw_record_is_the_payload_and_the_headers_say_the_rest() {
    let mut formatter = formatter(Options { format: Format::Raw, ..options("events") });
    for (payload, value, media_type) in [
        (Payload::Json("{ \"c\": 1 }"), &b"{ \"c\": 1 }"[..], "application/json"),
        (Payload::Bytes(&[0, 255]), &[0, 255], "application/octet-stream"),
        (Payload::Bytes(&[]), &[], "application/octet-stream"),
    ] {
        let record = format(&mut formatter, &event(payload, None));
        assert_eq!(record.payload, value);
        let own = pairs(&[
            ("content-type", media_type),
            ("fieldpost-type", "reading"),
            ("fieldpost-source-type", "meter/é"),
            ("fieldpost-source-id", "m-1"),
        ]);
        assert_eq!(record.headers, [pairs(&OWN_HEADERS), own].concat());
    }
}

#[test]
fn a_cloudevent_has_its_attributes_in_headers() {
    let mut formatter = formatter(Options { format: Format::CloudEvents, ..options("events") });
    let record = format(&mut formatter, &event(Payload::Json("{ \"c\": 1 }"), None));
    assert_eq!(record.payload, b"{ \"c\": 1 }");
    // The names and values of the binding's sections 3.2.1 to 3.2.5.
    let attributes = pairs(&[
        ("content-type", "application/json"),
        ("ce_specversion", "1.0"),
        ("ce_id", "e\"1"),
        ("ce_source", "fieldpost://gw-7/meter%2F%C3%A9/m-1"),
        ("ce_type", "reading"),
        ("ce_time", "2026-03-01T12:00:00.000001Z"),
        ("ce_sourcetype", "meter/é"),
        ("ce_sourceid", "m-1"),
    ]);
    assert_eq!(record.headers, [pairs(&OWN_HEADERS), attributes].concat());
}

/// The record as the official SDK's readers want it.
struct Message<'a>(&'a Owned);

impl BinaryDeserializer for Message<'_> {
    fn deserialize_binary<R: Sized, V: BinarySerializer<R>>(self, visitor: V) -> message::Result<R> {
        let header = |name: &str| self.0.headers.iter().find(|(found, _)| found == name);
        let version = SpecVersion::try_from(header("ce_specversion").unwrap().1.as_str())?;
        let mut visitor = visitor.set_spec_version(version)?;
        let value = |text: &String| MessageAttributeValue::String(text.clone());
        if let Some((_, text)) = header("content-type") {
            visitor = visitor.set_attribute("datacontenttype", value(text))?;
        }
        for (name, text) in &self.0.headers {
            match name.strip_prefix("ce_") {
                None | Some("specversion") => {}
                Some(name) if SpecVersion::V10.attribute_names().contains(&name) => {
                    visitor = visitor.set_attribute(name, value(text))?;
                }
                Some(name) => visitor = visitor.set_extension(name, value(text))?,
            }
        }
        visitor.end_with_data(self.0.payload.clone())
    }
}

/// Names as admission lets them through.
pub(super) fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("e-1".to_owned()), "[a-zA-Z0-9 _.:/\\\\\"%é€😀-]{1,12}", "\\PC{1,40}"]
}

pub(super) fn time() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![
        Just(None),
        Just(Some("2026-03-01T12:00:00Z")),
        Just(Some("2026-03-01t12:00:00.123456789z")),
        Just(Some("0001-01-01T00:00:00-05:30"))
    ]
}

/// JSON whose numbers are doubles, as protobuf's are.
pub(super) fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let number = prop_oneof![
        (-(1_i64 << 53)..1 << 53).prop_map(Value::from),
        (-1e30..1e30).prop_map(|number: f64| Value::from(number)),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        any::<String>().prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::from_iter(map.into_iter().collect::<Vec<_>>())),
        ]
    })
}

proptest! {
    #[test]
    fn the_official_reader_finds_the_event_in_a_cloudevent(
        id in name(), kind in name(), source_type in name(), source_id in name(), time in time(),
        bytes in prop::collection::vec(any::<u8>(), 0..50), is_json in any::<bool>(),
    ) {
        let payload = if is_json { Payload::Json("[1]") } else { Payload::Bytes(&bytes) };
        let (kind, source_type, source_id) = (kind.as_str(), source_type.as_str(), source_id.as_str());
        let event = Event { id: EventId::Given(&id), kind, source_type, source_id, ..event(payload, time) };
        let record = format(&mut formatter(Options { format: Format::CloudEvents, ..options("t") }), &event);
        let found = Message(&record).into_event().unwrap();
        prop_assert_eq!((found.id(), found.ty(), found.specversion()), (id.as_str(), kind, SpecVersion::V10));
        let media_type = if is_json { "application/json" } else { "application/octet-stream" };
        prop_assert_eq!(found.datacontenttype(), Some(media_type));
        let data: &[u8] = if is_json { b"[1]" } else { &bytes };
        prop_assert_eq!(found.data(), Some(&Data::Binary(data.to_vec())));
        let expected = time.unwrap_or("2026-03-01T12:00:00.000001Z").parse::<jiff::Timestamp>().unwrap();
        let found_time = found.time().unwrap();
        prop_assert_eq!(
            (found_time.timestamp(), found_time.timestamp_subsec_nanos()),
            (expected.as_second(), u32::try_from(expected.subsec_nanosecond().rem_euclid(1_000_000_000)).unwrap())
        );
        for (name, value) in [("sourcetype", source_type), ("sourceid", source_id)] {
            prop_assert_eq!(found.extension(name).unwrap().to_string(), value);
        }
        // The source is a URI whose path is the two names.
        let Some((_, AttributeValue::URIRef(uri))) = found.iter().find(|(name, _)| *name == "source") else {
            return Err(TestCaseError::fail("no source"));
        };
        prop_assert!(uri.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%:/".contains(&byte)));
        let path = uri.strip_prefix("fieldpost://gw-7/").unwrap();
        let names: Vec<String> = path.split('/').map(decoded).collect();
        prop_assert_eq!(names, [source_type, source_id]);
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex: Vec<u8> = rest.by_ref().take(2).collect();
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_key_follows_its_template() {
    for (template, key) in [
        (Some("{source_type}/{source_id}"), Some("meter/é/m-1")),
        (Some("{id}"), Some("e\"1")),
        (Some("all"), Some("all")),
        (None, None),
    ] {
        let template = template.map(|text| Template::parse(text, KEY_FIELDS).unwrap());
        let options = Options { key: template, ..options("events") };
        let record = format(&mut formatter(options), &event(Payload::Json("1"), None));
        assert_eq!(record.key.as_deref(), key.map(str::as_bytes));
    }
}

#[test]
fn static_headers_are_in_every_format() {
    for format in [Format::Envelope, Format::CloudEvents, Format::Raw] {
        let headers = pairs(&[("site", "plant-4"), ("line", "")]);
        let options = Options { format, headers: headers.clone(), ..options("events") };
        let record = super::tests::format(&mut formatter(options), &event(Payload::Json("1"), None));
        assert_eq!(record.headers[..9], pairs(&OWN_HEADERS));
        assert!(record.headers.ends_with(&headers), "{format:?}");
    }
}

#[test]
fn word_of_losses_has_a_topic_of_its_own_when_it_is_given_one() {
    let mut losses = event(Payload::Json("1"), None);
    (losses.kind, losses.source_type) = (LOSS_TYPE, OWN_SOURCE_TYPE);
    let topics = |topic: Option<&str>, allowed: Option<Allowed>| {
        let loss_topic = topic.map(|topic| Template::parse(topic, TOPIC_FIELDS).unwrap());
        let mut formatter = formatter(Options { loss_topic, allowed, ..options("e.{source_type}") });
        let other = Event { kind: LOSS_TYPE, ..event(Payload::Json("1"), None) };
        [losses, other].map(|event| format(&mut formatter, &event).topic)
    };
    assert_eq!(topics(None, None), ["e.fieldpost", "e.meter__"]);
    assert_eq!(topics(Some("l.{source_type}"), None), ["l.fieldpost", "e.meter__"]);
    let allowed = || Some(Allowed::new(Vec::new(), "other".into()));
    assert_eq!(topics(Some("l"), allowed()), ["l", "other"]);
    assert_eq!(topics(None, allowed()), ["other", "other"]);
}

#[test]
fn a_record_of_the_backlog_says_so_and_may_have_a_topic_of_its_own() {
    let routed =
        Event { way: Way { topic: Some("alarms"), is_quiet: false }, ..event(Payload::Json("1"), None) };
    let mut losses = event(Payload::Json("1"), None);
    (losses.kind, losses.source_type) = (LOSS_TYPE, OWN_SOURCE_TYPE);
    for (backlog_topic, wanted) in
        [(None, ["e.meter__", "alarms", "l"]), (Some("late.{type}"), ["late.reading", "late.reading", "l"])]
    {
        let template = |topic| Template::parse(topic, TOPIC_FIELDS).unwrap();
        let options = Options {
            backlog_topic: backlog_topic.map(template),
            loss_topic: Some(template("l")),
            ..options("e.{source_type}")
        };
        let mut formatter = formatter(options);
        for (event, wanted) in [event(Payload::Json("1"), None), routed, losses].iter().zip(wanted) {
            let mut look = |lane| {
                let seen = |record: &Record<'_>| {
                    let header = record.headers.iter().find(|(name, _)| *name == "fieldpost-backlog");
                    (record.topic.to_owned(), header.map(|(_, value)| value.to_vec()))
                };
                formatter.format(Seq(1), ORIGIN, lane, event, seen).unwrap()
            };
            assert_eq!(look(Lane::Backlog), (wanted.to_owned(), Some(b"1".to_vec())));
            assert_eq!(look(Lane::Live).1, None);
        }
    }
}

#[test]
fn what_the_list_lacks_goes_to_the_fallback_and_is_counted_once() {
    let allowed = Some(Allowed::new(vec!["e.b".into(), "e.a".into()], "e.other".into()));
    let mut formatter = formatter(Options { allowed, ..options("e.{source_type}") });
    let mut topic = |seq, source_type| {
        let event = Event { source_type, ..event(Payload::Json("1"), None) };
        format_at(&mut formatter, seq, &event).topic
    };
    assert_eq!(topic(1, "a"), "e.a");
    assert_eq!(topic(2, "x"), "e.other");
    assert_eq!(topic(3, "b"), "e.b");
    // Sent again.
    assert_eq!(topic(2, "x"), "e.other");
    assert_eq!(topic(4, "y"), "e.other");
    assert_eq!(formatter.stats.fallback_topic.get(), 2);
}

#[test]
fn nothing_is_allocated_per_event() {
    let headers =
        (0..headers::STATIC_COUNT_MAX).map(|n| (format!("h{n}"), "x".to_owned())).collect::<Vec<_>>();
    for format in [Format::Envelope, Format::CloudEvents, Format::Raw] {
        let allowed = Some(Allowed::new(vec!["e.meter__.reading".into()], "o".into()));
        let key = Some(Template::parse("{source_type}/{source_id}", KEY_FIELDS).unwrap());
        let options =
            Options { format, allowed, key, headers: headers.clone(), ..options("e.{source_type}.{type}") };
        let mut formatter = formatter(options);
        let event = event(Payload::Json("{\"c\":1}"), None);
        // Whatever a buffer holds for the second time, it holds in the same place.
        let mut places = |seq| {
            formatter
                .format(Seq(seq), ORIGIN, Lane::Live, &event, |record| {
                    let values = record.headers.iter().map(|(_, value)| value.as_ptr());
                    let names = [record.topic.as_ptr(), record.payload.as_ptr()].into_iter();
                    names.chain(record.key.map(<[u8]>::as_ptr)).chain(values).collect::<Vec<_>>()
                })
                .unwrap()
        };
        assert_eq!(places(10), places(11), "{format:?}");
    }
}

#[test]
fn the_largest_record_of_a_small_event_leaves_room() {
    // What `Limits::record_bytes_max` adds to one and a half times the event.
    const ROOM: usize = 16 << 10;
    let longest = "\"".repeat(NAME_BYTES_MAX);
    let header = |n: usize| {
        (format!("{n:0>12}"), "x".repeat(headers::STATIC_BYTES_MAX / headers::STATIC_COUNT_MAX - 12))
    };
    for format in [Format::Envelope, Format::CloudEvents, Format::Raw] {
        let options = Options {
            format,
            key: Some(Template::parse(&"{id}".repeat(templates::PLACEHOLDERS_MAX), KEY_FIELDS).unwrap()),
            headers: (0..headers::STATIC_COUNT_MAX).map(header).collect(),
            ..options("t")
        };
        let event = Event {
            id: EventId::Given(&longest),
            kind: &longest,
            source_type: &longest,
            source_id: &longest,
            ..event(Payload::Bytes(b"12"), None)
        };
        let record = super::tests::format(&mut formatter(options), &event);
        let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let bytes = record.key.unwrap().len() + record.payload.len() + headers;
        assert!(bytes < ROOM, "{format:?}: {bytes}");
    }
}

#[test]
fn the_topic_of_an_events_route_comes_before_that_of_the_configuration() {
    let mut formatter = formatter(Options::new(Template::literal("events")));
    let mut topic = |topic| {
        let way = crate::event::Way { topic, is_quiet: false };
        let event = Event { way, ..event(Payload::Json("1"), None) };
        formatter.format(Seq(1), ORIGIN, Lane::Live, &event, |record| record.topic.to_owned()).unwrap()
    };
    let found =
        [Some("alarms"), None, Some("a.{source_type}.{type}"), Some("b.{type}"), None].map(&mut topic);
    assert_eq!(found, ["alarms", "events", "a.meter__.reading", "b.reading", "events"]);
}
