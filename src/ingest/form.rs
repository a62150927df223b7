//! The JSON event form, the one way to say a whole event in text: the Unix socket takes nothing else, and an MQTT
//! payload may have this form.
//!
//! ```json
//! {"id": "e-1", "type": "reading", "source_type": "thermometer", "source_id": "t-1",
//!  "timestamp": "2026-03-01T12:00:00Z", "payload": {"celsius": 21.5}}
//! ```
//!
//! `payload` is any JSON, `null` included, and passes through byte for byte; `payload_base64` stands in its place
//! for bytes (standard alphabet, padding optional). `id` and `timestamp` may be missing or `null`. A field that is
//! not known or comes twice is refused by name: what cannot be kept must not be dropped in silence. Only `fieldpost`, in
//! which an export (`fieldpost buffer export`) or a dead letter says where an event was, may hold anything and is not kept:
//! the event gets a position of its own, and its route leaves nothing of it out.
//!
//! Texts are borrowed from the input unless they hold an escape, and the payload is skipped over without recursion,
//! so that nesting costs no stack.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::event::{Draft, DraftPayload};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Longest name of an unknown field that a message repeats, in characters: messages go to logs and to producers.
const SHOWN_CHARS_MAX: usize = 40;

/// Why a text is not an event in this form. The message is for the producer; it never holds payload content.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum FormError {
    /// Not JSON, not an object, a field that is unknown, doubled or of the wrong kind.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A name that every event needs is not there.
    #[error("`{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// No payload, or two.
    #[error("exactly one of `payload` and `payload_base64` is needed")]
    Payload,
    /// `payload_base64` cannot be decoded.
    #[error("`payload_base64` is not standard base64")]
    Base64,
}

/// Reads one event from JSON text.
///
/// # Errors
/// [`FormError`], class reject: this text can never become an event; tell the producer.
pub(crate) fn parse_event(text: &[u8]) -> Result<Draft<'_>, FormError> {
    let form = Form::parse(text)?;
    let required = |field, value: Option<_>| value.ok_or(FormError::Missing { field });
    Ok(Draft {
        id: form.id,
        kind: required("type", form.kind)?,
        source_type: required("source_type", form.source_type)?,
        source_id: required("source_id", form.source_id)?,
        timestamp: form.timestamp,
        payload: form.payload.decode()?,
        was_taken: form.was_taken,
    })
}

/// The form as it was written, before anybody asked which names are there.
#[derive(Debug)]
pub(crate) struct Form<'a> {
    pub(crate) id: Option<Cow<'a, str>>,
    pub(crate) kind: Option<Cow<'a, str>>,
    pub(crate) source_type: Option<Cow<'a, str>>,
    pub(crate) source_id: Option<Cow<'a, str>>,
    pub(crate) timestamp: Option<Cow<'a, str>>,
    pub(crate) payload: FormPayload<'a>,
    /// It says where it was before.
    pub(crate) was_taken: bool,
}

/// The payload as it was written.
#[derive(Debug)]
pub(crate) enum FormPayload<'a> {
    /// `payload`.
    Json(&'a RawValue),
    /// `payload_base64`, still encoded.
    Base64(Cow<'a, str>),
}

impl<'a> FormPayload<'a> {
    /// The content.
    ///
    /// # Errors
    /// [`FormError::Base64`].
    pub(crate) fn decode(self) -> Result<DraftPayload<'a>, FormError> {
        match self {
            Self::Json(raw) => Ok(DraftPayload::Json(raw.get())),
            Self::Base64(text) => {
                let bytes = BASE64.decode(text.as_bytes()).map_err(|_| FormError::Base64)?;
                Ok(DraftPayload::Bytes(bytes.into()))
            }
        }
    }
}

impl<'a> Form<'a> {
    /// Reads the form; which names must be there is the caller's business.
    ///
    /// # Errors
    /// [`FormError::Json`] or [`FormError::Payload`]: the text does not have this form.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, FormError> {
        let Fields { id, kind, source_type, source_id, timestamp, payload, payload_base64, was_taken } =
            serde_json::from_slice(text)?;
        let payload = match (payload, payload_base64) {
            (Some(raw), None) => FormPayload::Json(raw),
            (None, Some(text)) => FormPayload::Base64(text),
            _ => return Err(FormError::Payload),
        };
        Ok(Self { id, kind, source_type, source_id, timestamp, payload, was_taken })
    }

    /// Whether `text` may have this form, by the name of its first field: a sensor's own object mostly differs there, and
    /// to see that costs a tenth of an error that nobody reads.
    pub(crate) fn may_be(text: &[u8]) -> bool {
        let first = text.trim_ascii_start().strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
        let Some(name) = first.and_then(|rest| rest.strip_prefix(b"\"")) else { return first.is_some() };
        let end = memchr::memchr2(b'"', b'\\', name).unwrap_or(name.len());
        let (name, rest) = name.split_at(end);
        // A name with an escape is left to the parser.
        rest.first() == Some(&b'\\') || NAMES.iter().any(|known| known.as_bytes() == name)
    }

    /// Whether it says anything besides its payload.
    pub(crate) fn names_anything(&self) -> bool {
        [&self.id, &self.kind, &self.source_type, &self.source_id, &self.timestamp]
            .into_iter()
            .any(Option::is_some)
    }
}

/// Read by hand and not derived: a derived struct also takes an array, reads `"payload": null` as no payload, and
/// repeats an unknown name at any length.
#[derive(Default)]
struct Fields<'a> {
    id: Option<Cow<'a, str>>,
    kind: Option<Cow<'a, str>>,
    source_type: Option<Cow<'a, str>>,
    source_id: Option<Cow<'a, str>>,
    timestamp: Option<Cow<'a, str>>,
    payload: Option<&'a RawValue>,
    payload_base64: Option<Cow<'a, str>>,
    was_taken: bool,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object with the fields of an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        let mut seen = 0_u8;
        while let Some(Key { name, bit }) = map.next_key()? {
            if seen & bit != 0 {
                return Err(A::Error::custom(format_args!("`{name}` is there twice")));
            }
            seen |= bit;
            if name == PAYLOAD {
                fields.payload = Some(map.next_value()?);
                continue;
            }
            if name == ORIGIN {
                map.next_value::<IgnoredAny>()?;
                fields.was_taken = true;
                continue;
            }
            let value = map.next_value::<Option<Text<'de>>>()?.map(|text| text.0);
            match name {
                "id" => fields.id = value,
                "type" => fields.kind = value,
                "source_type" => fields.source_type = value,
                "source_id" => fields.source_id = value,
                "timestamp" => fields.timestamp = value,
                _ => fields.payload_base64 = value,
            }
        }
        Ok(fields)
    }
}

const PAYLOAD: &str = "payload";
/// Where an exported event was.
pub(crate) const ORIGIN: &str = "fieldpost";
const NAMES: [&str; 8] =
    ["id", "type", "source_type", "source_id", "timestamp", PAYLOAD, "payload_base64", ORIGIN];

/// A text that is borrowed where the JSON has no escape. (serde borrows a bare `Cow` field only, not one in an
/// `Option`.)
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A known field: its name and its own bit.
struct Key {
    name: &'static str,
    bit: u8,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(KeyVisitor)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Key, E> {
        let known = NAMES.into_iter().enumerate().find(|(_, name)| *name == key);
        known.map(|(index, name)| Key { name, bit: 1 << index }).ok_or_else(|| {
            let shown: String = key.chars().take(SHOWN_CHARS_MAX).collect();
            E::custom(format_args!("unknown field {shown:?}; known are {}", NAMES.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: &str = r#"{"id":"e-1","type":"reading","source_type":"thermometer","source_id":"t-1",
        "timestamp":"2026-03-01T12:00:00Z","payload":{"celsius": 21.50}}"#;

    #[test]
    fn the_first_name_tells_what_cannot_be_an_event() {
        for text in [FULL, " {\n\"payload\" : 1}", "{}", "{", r#"{"\u0069d":"1","payload":2}"#, r#"{"id"#] {
            assert!(Form::may_be(text.as_bytes()), "{text}");
        }
        for text in ["", "21.5", "[1]", r#"{"celsius":1}"#, r#"{ "ids":1}"#, r#"{"":1}"#, r#"{"i"#] {
            assert!(!Form::may_be(text.as_bytes()) && Form::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    fn refused(text: &str) -> String {
        parse_event(text.as_bytes()).unwrap_err().to_string()
    }

    /// An event with `payload` and nothing that is optional.
    fn with(field: &str) -> String {
        format!(r#"{{"type":"t","source_type":"s","source_id":"1",{field}}}"#)
    }

    #[test]
    fn reads_every_field_without_copying() {
        let draft = parse_event(FULL.as_bytes()).unwrap();
        let wanted = Draft {
            id: Some("e-1".into()),
            kind: "reading".into(),
            source_type: "thermometer".into(),
            source_id: "t-1".into(),
            timestamp: Some("2026-03-01T12:00:00Z".into()),
            payload: DraftPayload::Json(r#"{"celsius": 21.50}"#),
            was_taken: false,
        };
        assert_eq!(draft, wanted);
        for text in
            [&draft.kind, &draft.source_type, &draft.source_id, &draft.id.unwrap(), &draft.timestamp.unwrap()]
        {
            assert!(matches!(text, Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn escapes_are_decoded() {
        let text = with(r#""id":"a\u00e9\n","payload":0"#);
        assert_eq!(parse_event(text.as_bytes()).unwrap().id.as_deref(), Some("aé\n"));
    }

    #[test]
    fn id_and_timestamp_may_be_missing_or_null() {
        for field in
            [r#""payload":null"#, r#""id":null,"timestamp":null,"payload_base64":null,"payload":null"#]
        {
            let text = with(field);
            let draft = parse_event(text.as_bytes()).unwrap();
            assert_eq!((draft.id, draft.timestamp), (None, None));
            assert_eq!(draft.payload, DraftPayload::Json("null"));
        }
    }

    #[test]
    fn where_an_event_was_is_not_kept() {
        for origin in ["null", "7", r#"{"seq":7,"seq":[[{}]]}"#] {
            let text = with(&format!(r#""payload":1,"fieldpost":{origin}"#));
            let draft = parse_event(text.as_bytes()).unwrap();
            assert_eq!((draft.payload, draft.was_taken), (DraftPayload::Json("1"), true));
        }
        assert!(refused(&with(r#""payload":1,"fieldpost":1,"fieldpost":1"#)).contains("twice"));
        let deep =
            with(&format!(r#""payload":1,"fieldpost":{}{}"#, "[".repeat(100_000), "]".repeat(100_000)));
        parse_event(deep.as_bytes()).unwrap();
    }

    #[test]
    fn bytes_come_as_base64_with_or_without_padding() {
        for (text, wanted) in
            [("AP8=", &[0, 255][..]), ("AP8", &[0, 255]), ("+/+/", &[251, 255, 191]), ("", &[])]
        {
            let text = with(&format!(r#""payload_base64":"{text}""#));
            let payload = parse_event(text.as_bytes()).unwrap().payload;
            assert_eq!(payload, DraftPayload::Bytes(wanted.into()));
        }
        for bad in ["A", "-_-_", "AP8=AP8=", "A P8"] {
            assert!(refused(&with(&format!(r#""payload_base64":"{bad}""#))).contains("base64"), "{bad}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, wanted) in [
            (r#"{"source_type":"s","source_id":"1","payload":1}"#.to_owned(), "`type` is missing"),
            (r#"{"type":"t","source_id":"1","payload":1}"#.to_owned(), "`source_type` is missing"),
            (
                r#"{"type":"t","source_type":"s","payload":1,"source_id":null}"#.to_owned(),
                "`source_id` is missing",
            ),
            (with(r#""id":"1""#), "exactly one of `payload` and `payload_base64`"),
            (with(r#""payload":1,"payload_base64":"""#), "exactly one of `payload` and `payload_base64`"),
            (with(r#""payload":1,"temprature":2"#), "unknown field \"temprature\"; known are id, type,"),
            (with(r#""payload":1,"payload":2"#), "`payload` is there twice"),
            (with(r#""payload":1,"type":"u""#), "`type` is there twice"),
            (with(r#""payload":1,"id":7"#), "expected a string"),
            (with(r#""payload":{"a":}"#), "at line 1 column"),
            (with(r#""payload":1"#) + "x", "trailing characters"),
            ("[]".to_owned(), "expected a JSON object"),
            ("\"x\"".to_owned(), "expected a JSON object"),
            (String::new(), "EOF"),
        ] {
            let message = refused(&text);
            assert!(message.contains(wanted), "{text}: {message}");
        }
    }

    #[test]
    fn a_message_is_short_and_printable() {
        let message = refused(&with(&format!(r#""payload":1,"a\n{}":2"#, "x".repeat(100_000))));
        assert!(message.len() < 300 && !message.contains('\n'), "{message}");
    }

    #[test]
    fn nesting_costs_no_stack() {
        let deep = 100_000;
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let payload = format!("{}1{}", open.repeat(deep), close.repeat(deep));
            let text = with(&format!(r#""payload":{payload}"#));
            assert_eq!(parse_event(text.as_bytes()).unwrap().payload, DraftPayload::Json(&payload));
            let unclosed = with(&format!(r#""payload":{}"#, open.repeat(deep)));
            parse_event(unclosed.as_bytes()).unwrap_err();
            parse_event(open.repeat(deep).as_bytes()).unwrap_err();
            parse_event(with(&format!(r#""id":{payload},"payload":1"#)).as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        let mut text = with(r#""payload":"x""#).into_bytes();
        let at = text.iter().position(|&byte| byte == b'x').unwrap();
        text[at] = 0xff;
        parse_event(&text).unwrap_err();
    }

    proptest! {
        #[test]
        fn arbitrary_input_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(parse_event(&bytes));
        }

        #[test]
        fn what_was_written_is_read(
            id in proptest::option::of(".{0,20}"), kind in ".{0,20}", source_id in ".{0,20}", payload in ".{0,50}",
        ) {
            let payload = serde_json::to_string(&payload).unwrap();
            let mut object = serde_json::json!({"type": kind, "source_type": "s", "source_id": source_id});
            if let Some(id) = &id {
                object["id"] = id.as_str().into();
            }
            object["payload"] = serde_json::from_str(&payload).unwrap();
            let text = object.to_string();
            let draft = parse_event(text.as_bytes()).unwrap();
            prop_assert_eq!(draft.id.as_deref(), id.as_deref());
            prop_assert_eq!(draft.kind, kind);
            prop_assert_eq!(draft.source_id, source_id);
            prop_assert_eq!(draft.payload, DraftPayload::Json(&payload));
        }
    }
}
