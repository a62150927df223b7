//! Names that are made from an event: the topic, and the key. Pure.
//!
//! A template is text with placeholders in braces. A topic that it gives and that the list of allowed ones lacks is
//! replaced by the fallback: the event was acknowledged, so it goes somewhere, and to a place that somebody named.

use std::fmt::{self, Display};

use thiserror::Error;

use crate::event::Event;

/// Longest topic name that Kafka takes.
pub const TOPIC_BYTES_MAX: usize = 249;

/// Longest template of a key in bytes.
pub const KEY_TEMPLATE_BYTES_MAX: usize = 256;

/// Most placeholders of a template: each may become as long as the longest name.
pub const PLACEHOLDERS_MAX: usize = 8;

/// A field of the event that a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `{source_type}`
    SourceType,
    /// `{source_id}`
    SourceId,
    /// `{type}`
    Kind,
    /// `{id}`
    Id,
}

impl Field {
    /// The name between the braces.
    fn name(self) -> &'static str {
        match self {
            Self::SourceType => "source_type",
            Self::SourceId => "source_id",
            Self::Kind => "type",
            Self::Id => "id",
        }
    }

    fn value<'e>(self, event: &Event<'e>, id: &'e str) -> &'e str {
        match self {
            Self::SourceType => event.source_type,
            Self::SourceId => event.source_id,
            Self::Kind => event.kind,
            Self::Id => id,
        }
    }
}

/// What a topic may be made from. Not from the id: that would be a topic for each event.
pub const TOPIC_FIELDS: &[Field] = &[Field::SourceType, Field::SourceId, Field::Kind];

/// What a key may be made from.
pub const KEY_FIELDS: &[Field] = &[Field::SourceType, Field::SourceId, Field::Kind, Field::Id];

/// Why a text is no template. Tell whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A brace without its other half, or a placeholder that is none.
    #[error("the only placeholders are {}", names(.0))]
    Placeholder(&'static [Field]),
    /// More than [`PLACEHOLDERS_MAX`].
    #[error("{0} placeholders, at most {PLACEHOLDERS_MAX} are allowed")]
    Placeholders(usize),
}

fn names(fields: &[Field]) -> String {
    let names: Vec<String> = fields.iter().map(|field| format!("{{{}}}", field.name())).collect();
    names.join(", ")
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

/// Text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

impl Template {
    /// This text for every event, whatever it is.
    pub fn literal(text: &str) -> Self {
        Self(vec![Part::Text(text.to_owned())])
    }

    /// This field alone.
    pub fn field(field: Field) -> Self {
        Self(vec![Part::Field(field)])
    }

    /// The template that `text` says, with placeholders of these `fields`.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn parse(text: &str, fields: &'static [Field]) -> Result<Self, TemplateError> {
        let unknown = || TemplateError::Placeholder(fields);
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (name, behind) = behind.split_once('}').ok_or_else(unknown)?;
            let field = fields.iter().find(|field| field.name() == name).ok_or_else(unknown)?;
            parts.extend([Part::Text(before.to_owned()), Part::Field(*field)]);
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        if parts.iter().any(|part| matches!(part, Part::Text(text) if text.contains('}'))) {
            return Err(unknown());
        }
        let placeholders = parts.iter().filter(|part| matches!(part, Part::Field(_))).count();
        if placeholders > PLACEHOLDERS_MAX {
            return Err(TemplateError::Placeholders(placeholders));
        }
        Ok(Self(parts))
    }

    /// The text, when it is the same for every event.
    pub fn fixed(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The characters that stand outside the placeholders.
    pub fn plain_chars(&self) -> impl Iterator<Item = char> {
        self.0.iter().flat_map(|part| match part {
            Part::Text(text) => text.chars(),
            Part::Field(_) => "".chars(),
        })
    }

    /// Writes the key of `event` in place of what `out` held.
    pub(super) fn key(&self, event: &Event<'_>, id: &str, out: &mut String) {
        out.clear();
        for part in &self.0 {
            out.push_str(match part {
                Part::Text(text) => text,
                Part::Field(field) => field.value(event, id),
            });
        }
    }

    /// The topic of `event`.
    pub fn topic_of(&self, event: &Event<'_>) -> String {
        let mut topic = String::new();
        self.topic(event, &mut topic);
        topic
    }

    /// Writes the topic of `event` in place of what `out` held. Characters that Kafka does not allow become `_`, so that
    /// no event is stuck for its name; what is longer than Kafka takes is cut.
    pub(super) fn topic(&self, event: &Event<'_>, out: &mut String) {
        let legal = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        out.clear();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field(field) => out.extend(field.value(event, "").chars().map(legal)),
            }
        }
        out.truncate(TOPIC_BYTES_MAX);
        // Kafka reserves these two.
        if matches!(out.as_str(), "." | "..") {
            out.replace_range(.., "_");
        }
    }
}

impl Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Field(field) => write!(f, "{{{}}}", field.name()),
        })
    }
}

/// The topics that a template may give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// In alphabetical order.
    topics: Vec<String>,
    fallback: String,
}

impl Allowed {
    /// These `topics`; the events of any other go to `fallback`.
    pub fn new(mut topics: Vec<String>, fallback: String) -> Self {
        topics.sort_unstable();
        Self { topics, fallback }
    }

    /// Where the events of other topics go.
    pub fn fallback(&self) -> &str {
        &self.fallback
    }

    /// Whether events may go to `topic` for their own sake.
    pub fn contains(&self, topic: &str) -> bool {
        self.topics.binary_search_by(|allowed| allowed.as_str().cmp(topic)).is_ok()
    }

    /// Every topic that events may go to, the fallback last.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        let topics = self.topics.iter().filter(|topic| **topic != self.fallback);
        topics.chain([&self.fallback]).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventId, Payload, Stamp};

    fn event<'a>(source_type: &'a str, source_id: &'a str, kind: &'a str) -> Event<'a> {
        Event {
            id: EventId::Given("e-1"),
            kind,
            source_type,
            source_id,
            timestamp: None,
            received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: true },
            payload: Payload::Json("1"),
            way: crate::event::Way::USUAL,
        }
    }

    fn topic(template: &str, event: &Event<'_>) -> String {
        let mut out = "before".to_owned();
        Template::parse(template, TOPIC_FIELDS).unwrap().topic(event, &mut out);
        out
    }

    #[test]
    fn placeholders_stand_for_the_fields_of_the_event() {
        let event = event("meter/é", "m-1", "reading");
        assert_eq!(topic("e.{source_type}.{type}-{source_id}_x", &event), "e.meter__.reading-m-1_x");
        let template = Template::parse("{source_type}/{source_id}:{type}#{id}", KEY_FIELDS).unwrap();
        let mut key = "before".to_owned();
        template.key(&event, "e-1", &mut key);
        assert_eq!(key, "meter/é/m-1:reading#e-1");
        assert_eq!(template.to_string(), "{source_type}/{source_id}:{type}#{id}");
    }

    #[test]
    fn a_topic_is_one_that_kafka_takes() {
        assert_eq!(topic("{source_type}.x", &event(&"y".repeat(300), "1", "t")).len(), TOPIC_BYTES_MAX);
        assert_eq!(topic("{source_type}", &event(".", "1", "t")), "_");
        assert_eq!(topic(".{source_type}", &event(".", "1", "t")), "_");
        assert_eq!(topic("{source_type}", &event("...", "1", "t")), "...");
    }

    #[test]
    fn what_is_no_template_is_refused() {
        let fixed = |text: &str| Template::parse(text, TOPIC_FIELDS).unwrap().fixed().map(str::to_owned);
        assert_eq!(fixed("events"), Some("events".to_owned()));
        assert_eq!(fixed(""), Some(String::new()));
        assert_eq!(fixed("{type}"), None);
        for text in ["{", "}", "{type", "type}", "{id}", "{}", "{{type}}", "{type}}"] {
            let error = Template::parse(text, TOPIC_FIELDS).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the only placeholders are {source_type}, {source_id}, {type}",
                "{text}"
            );
        }
        assert!(Template::parse(&"{id}".repeat(PLACEHOLDERS_MAX), KEY_FIELDS).is_ok());
        let many = Template::parse(&"{id}".repeat(PLACEHOLDERS_MAX + 1), KEY_FIELDS);
        assert_eq!(many, Err(TemplateError::Placeholders(9)));
    }

    #[test]
    fn the_list_knows_its_topics() {
        let allowed = Allowed::new(vec!["c".into(), "a".into(), "b".into()], "b".into());
        assert!(["a", "b", "c"].into_iter().all(|topic| allowed.contains(topic)));
        assert!(!allowed.contains("d"));
        assert_eq!(allowed.all().collect::<Vec<_>>(), ["a", "c", "b"]);
    }
}
