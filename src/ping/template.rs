//! How a channel or a stream is named after an event.

use thiserror::Error;

use crate::event::Event;

/// The Redis channel or stream of an event, for example `events:{source_type}:{source_id}`. Placeholders: `{type}`,
/// `{source_type}`, `{source_id}`; anything else in braces is refused, and so is `{id}`: a channel per event would
/// leave nobody listening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelTemplate(Vec<ChannelPart>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum ChannelPart {
    Text(String),
    Kind,
    SourceType,
    SourceId,
}

/// A template that names no placeholder known here. The message says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what}; allowed placeholders are {{type}}, {{source_type}}, {{source_id}}")]
pub struct ChannelTemplateError {
    what: String,
}

impl ChannelTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// An unknown placeholder, an unclosed brace, or an empty template: a configuration error.
    pub fn parse(template: &str) -> Result<Self, ChannelTemplateError> {
        let error = |what: String| ChannelTemplateError { what };
        if template.is_empty() {
            return Err(error("the template is empty".into()));
        }
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some((text, tail)) = rest.split_once('{') {
            let (placeholder, tail) =
                tail.split_once('}').ok_or_else(|| error(format!("`{{{tail}` has no closing brace")))?;
            if !text.is_empty() {
                parts.push(ChannelPart::Text(text.to_owned()));
            }
            parts.push(match placeholder {
                "type" => ChannelPart::Kind,
                "source_type" => ChannelPart::SourceType,
                "source_id" => ChannelPart::SourceId,
                other => return Err(error(format!("`{{{other}}}` is not known"))),
            });
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(ChannelPart::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The channel or stream of `event`.
    pub fn channel(&self, event: &Event<'_>) -> String {
        self.parts(event).collect()
    }

    /// The same in parts, which are never all empty.
    pub(super) fn parts<'a>(&'a self, event: &Event<'a>) -> impl Iterator<Item = &'a str> {
        let Event { kind, source_type, source_id, .. } = *event;
        self.0.iter().map(move |part| match part {
            ChannelPart::Text(text) => text.as_str(),
            ChannelPart::Kind => kind,
            ChannelPart::SourceType => source_type,
            ChannelPart::SourceId => source_id,
        })
    }

    /// What all of them match, for `SCAN`: a `*` for each placeholder.
    pub fn pattern(&self) -> String {
        let mut pattern = String::new();
        for part in &self.0 {
            let ChannelPart::Text(text) = part else {
                pattern.push('*');
                continue;
            };
            for c in text.chars() {
                if matches!(c, '*' | '?' | '[' | ']' | '\\') {
                    pattern.push('\\');
                }
                pattern.push(c);
            }
        }
        pattern
    }
}
