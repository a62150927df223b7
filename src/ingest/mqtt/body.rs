//! What a publish says: topic and payload become a [`Draft`]. Pure.
//!
//! The rule, in this order:
//! 1. What the topic template captures is the event's `type`, `source_type`, `source_id`. Nothing overrides it: a
//!    producer that may only publish below its own topic cannot speak for another one by its payload.
//! 2. A payload that is exactly an event form ([`crate::ingest::form`]: only fields of the form, `payload` or
//!    `payload_base64`, and at least one of `id`, `type`, `source_type`, `source_id`, `timestamp`) fills in the rest.
//! 3. Any other JSON is the payload as it is, an object with one unknown field included: a sensor's own object that
//!    happens to have an `id` and a `payload` must not lose its other fields.
//! 4. Anything else is the payload as bytes.

use std::borrow::Cow;

use serde_json::value::RawValue;
use thiserror::Error;

use crate::event::{Draft, DraftPayload};
use crate::ingest::form::{Form, FormError};
use crate::ingest::topic::{Captures, TopicTemplate};

/// Why a publish is not an event. It is acknowledged and counted, since it would be the same after a redelivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Unfit {
    /// No template matches: a subscription that an earlier configuration left in the broker's session, mostly.
    #[error("the topic matches no template of mqtt.topics")]
    Topic,
    /// Neither the topic nor the payload has a name that every event needs.
    #[error("`{field}` is neither captured by mqtt.topics nor in the payload")]
    Missing {
        /// The event's field.
        field: &'static str,
    },
    /// `payload_base64` of an event form cannot be decoded.
    #[error("`payload_base64` is not standard base64")]
    Base64,
}

/// Reads a publish.
///
/// # Errors
/// [`Unfit`]: acknowledge, count, go on.
pub(crate) fn draft<'a>(
    templates: &[TopicTemplate],
    topic: &'a [u8],
    payload: &'a [u8],
) -> Result<Draft<'a>, Unfit> {
    let topic = std::str::from_utf8(topic).map_err(|_| Unfit::Topic)?;
    let captures = templates.iter().find_map(|template| template.capture(topic)).ok_or(Unfit::Topic)?;
    match event_form(payload) {
        Some(form) => named(captures, form),
        None => Ok(Draft {
            id: None,
            kind: required("type", captures.kind.map(Cow::Borrowed))?,
            source_type: required("source_type", captures.source_type.map(Cow::Borrowed))?,
            source_id: required("source_id", captures.source_id.map(Cow::Borrowed))?,
            timestamp: None,
            payload: as_it_is(payload),
            was_taken: false,
        }),
    }
}

fn event_form(payload: &[u8]) -> Option<Form<'_>> {
    let form = Form::may_be(payload).then(|| Form::parse(payload).ok()).flatten()?;
    form.names_anything().then_some(form)
}

fn named<'a>(captures: Captures<'a>, form: Form<'a>) -> Result<Draft<'a>, Unfit> {
    let first = |captured: Option<&'a str>, written| captured.map(Cow::Borrowed).or(written);
    Ok(Draft {
        id: form.id,
        kind: required("type", first(captures.kind, form.kind))?,
        source_type: required("source_type", first(captures.source_type, form.source_type))?,
        source_id: required("source_id", first(captures.source_id, form.source_id))?,
        timestamp: form.timestamp,
        payload: form.payload.decode().map_err(|_: FormError| Unfit::Base64)?,
        // No command of ours publishes what was taken before.
        was_taken: false,
    })
}

fn required<'a>(field: &'static str, name: Option<Cow<'a, str>>) -> Result<Cow<'a, str>, Unfit> {
    name.ok_or(Unfit::Missing { field })
}

fn as_it_is(payload: &[u8]) -> DraftPayload<'_> {
    match serde_json::from_slice::<&RawValue>(payload) {
        Ok(json) => DraftPayload::Json(json.get()),
        Err(_) => DraftPayload::Bytes(payload.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn templates() -> Vec<TopicTemplate> {
        ["s/{source_type}/{source_id}/{type}", "by-type/{type}/#", "any/#"]
            .map(|template| TopicTemplate::parse(template).unwrap())
            .into()
    }

    fn read<'a>(topic: &'a str, payload: &'a str) -> Result<Draft<'a>, Unfit> {
        draft(&templates(), topic.as_bytes(), payload.as_bytes())
    }

    fn from_topic(payload: DraftPayload<'_>) -> Draft<'_> {
        Draft {
            id: None,
            kind: "reading".into(),
            source_type: "thermo".into(),
            source_id: "t1".into(),
            timestamp: None,
            payload,
            was_taken: false,
        }
    }

    #[test]
    fn the_topic_names_the_event_and_the_payload_stays_as_it_is() {
        for json in ["21.5", "\"x\"", "null", "[1, 2]", "{}", r#"{"c": 1}"#, r#"{"payload": 1}"#] {
            assert_eq!(read("s/thermo/t1/reading", json), Ok(from_topic(DraftPayload::Json(json))), "{json}");
        }
        for text in ["", "21,5", "{", "nul", "\u{1}"] {
            let wanted = from_topic(DraftPayload::Bytes(text.as_bytes().into()));
            assert_eq!(read("s/thermo/t1/reading", text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn an_object_with_a_field_of_its_own_is_no_event_form() {
        for json in [
            r#"{"id":"e","payload":1,"rssi":-70}"#,
            r#"{"id":7,"payload":1}"#,
            r#"{"id":"e","payload":1,"payload_base64":""}"#,
            r#"{"id":"e"}"#,
        ] {
            assert_eq!(read("s/thermo/t1/reading", json), Ok(from_topic(DraftPayload::Json(json))), "{json}");
        }
    }

    #[test]
    fn an_event_form_fills_in_what_the_topic_leaves_open() {
        let json =
            r#" {"id":"e","type":"alarm","source_type":"s","source_id":"1","timestamp":"x","payload":[ 1 ]}"#;
        let draft = read("any/x/y", json).unwrap();
        assert_eq!(
            (draft.kind.as_ref(), draft.source_type.as_ref(), draft.source_id.as_ref()),
            ("alarm", "s", "1")
        );
        assert_eq!((draft.id.as_deref(), draft.timestamp.as_deref()), (Some("e"), Some("x")));
        assert_eq!(draft.payload, DraftPayload::Json("[ 1 ]"));
        let bytes = r#"{"timestamp":"x","source_id":"1","source_type":"s","payload_base64":"AP8"}"#;
        assert_eq!(read("by-type/t", bytes).unwrap().payload, DraftPayload::Bytes(vec![0, 255].into()));
        assert_eq!(read("by-type/t", &bytes.replace("AP8", "-")), Err(Unfit::Base64));
    }

    #[test]
    fn the_payload_cannot_speak_for_another_source() {
        let json = r#"{"type":"no","source_type":"no","source_id":"no","payload":1}"#;
        assert_eq!(read("s/thermo/t1/reading", json), Ok(from_topic(DraftPayload::Json("1"))));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(read("by-type/t", "1"), Err(Unfit::Missing { field: "source_type" }));
        assert_eq!(read("any/t", "1"), Err(Unfit::Missing { field: "type" }));
        let json = r#"{"source_type":"s","payload":1}"#;
        assert_eq!(read("by-type/t", json), Err(Unfit::Missing { field: "source_id" }));
        assert_eq!(read("elsewhere", "1"), Err(Unfit::Topic));
        assert_eq!(draft(&templates(), &[0xff], b"1"), Err(Unfit::Topic));
    }

    #[test]
    fn nesting_costs_no_stack() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read("s/thermo/t1/reading", &deep), Ok(from_topic(DraftPayload::Json(&deep))));
        let open = "[".repeat(100_000);
        assert_eq!(
            read("s/thermo/t1/reading", &open).map(|draft| draft.payload),
            Ok(DraftPayload::Bytes(open.as_bytes().into()))
        );
    }

    proptest! {
        #[test]
        fn arbitrary_input_never_panics(
            topic in proptest::collection::vec(any::<u8>(), 0..40), payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            drop(draft(&templates(), &topic, &payload));
            prop_assert!(draft(&templates(), b"s/a/b/c", &payload).is_ok());
        }
    }
}
