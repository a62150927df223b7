//! MQTT topic templates: a subscription's filter that also says what the levels of a topic mean, for example
//! `sensors/{source_type}/{source_id}/{type}`. Pure.
//!
//! A level is one of: text; `{type}`, `{source_type}` or `{source_id}` (each at most once, always a whole level);
//! `+` for a level that means nothing; `#`, last only, for all levels that follow. The broker is given the filter,
//! in which a capture is a `+`. `$share/group/` in front makes the subscription a shared one; it belongs to the
//! filter and to no topic.

use std::fmt;

use thiserror::Error;

/// Longest template in bytes: the longest text MQTT can carry.
pub const TEMPLATE_BYTES_MAX: usize = 65_535;

/// A template, its filter, and how it reads a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    template: String,
    filter: String,
    levels: Vec<Level>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Text(String),
    /// `+`
    Any,
    /// `#`
    Rest,
    Capture(Name),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Kind,
    SourceType,
    SourceId,
}

/// What a topic says about its event. A name that the template does not capture is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Captures<'t> {
    /// `type`.
    pub kind: Option<&'t str>,
    /// `source_type`.
    pub source_type: Option<&'t str>,
    /// `source_id`.
    pub source_id: Option<&'t str>,
}

/// A template that is not a filter or captures what is not known. The message says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{what}; a level is text, {{type}}, {{source_type}} or {{source_id}} (each at most once), `+`, or a last `#`"
)]
pub struct TopicTemplateError {
    what: String,
}

impl TopicTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`TopicTemplateError`]: a configuration error.
    pub fn parse(template: &str) -> Result<Self, TopicTemplateError> {
        let error = |what: String| TopicTemplateError { what };
        if template.len() > TEMPLATE_BYTES_MAX {
            let bytes = template.len();
            return Err(error(format!(
                "the template has {bytes} bytes, at most {TEMPLATE_BYTES_MAX} are allowed"
            )));
        }
        if template.contains('\0') {
            return Err(error("the template holds a NUL character".into()));
        }
        let (share, pattern) = split_share(template).map_err(|what| error(what.into()))?;
        if pattern.is_empty() {
            return Err(error("the template is empty".into()));
        }
        let mut levels = Vec::new();
        for text in pattern.split('/') {
            if levels.last() == Some(&Level::Rest) {
                return Err(error("`#` is not the last level".into()));
            }
            let level = Level::parse(text).map_err(error)?;
            if matches!(level, Level::Capture(_)) && levels.contains(&level) {
                return Err(error(format!("`{text}` is there twice")));
            }
            levels.push(level);
        }
        let filter = levels.iter().map(Level::filter).collect::<Vec<_>>().join("/");
        Ok(Self { template: template.to_owned(), filter: format!("{share}{filter}"), levels })
    }

    /// The topic filter to subscribe with.
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// A topic that the filter matches and that says this of its event; `fill` stands where a level means nothing.
    pub fn topic(&self, captures: Captures<'_>, fill: &str) -> String {
        let levels = self.levels.iter().map(|level| match level {
            Level::Text(text) => text,
            Level::Any | Level::Rest => fill,
            Level::Capture(Name::Kind) => captures.kind.unwrap_or(fill),
            Level::Capture(Name::SourceType) => captures.source_type.unwrap_or(fill),
            Level::Capture(Name::SourceId) => captures.source_id.unwrap_or(fill),
        });
        levels.collect::<Vec<&str>>().join("/")
    }

    /// What `topic` says, or `None` when the filter does not match it.
    pub fn capture<'t>(&self, topic: &'t str) -> Option<Captures<'t>> {
        // MQTT 4.7.2: a leading wildcard does not match the broker's own topics ($SYS and the like).
        if topic.starts_with('$') && !matches!(self.levels.first(), Some(Level::Text(_))) {
            return None;
        }
        let mut captures = Captures::default();
        let mut topic = topic.split('/');
        for level in &self.levels {
            // `#` stands for no level too: `a/#` matches `a`.
            if *level == Level::Rest {
                return Some(captures);
            }
            let text = topic.next()?;
            match level {
                Level::Text(wanted) if wanted == text => {}
                Level::Text(_) => return None,
                Level::Any | Level::Rest => {}
                Level::Capture(name) => *captures.slot(*name) = Some(text),
            }
        }
        topic.next().is_none().then_some(captures)
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.template)
    }
}

/// A topic filter that only tells which topics are meant: `+` for a level, a last `#` for all that follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFilter(TopicTemplate);

impl TopicFilter {
    /// Parses a filter.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(filter: &str) -> Result<Self, String> {
        let plain = "a level is text, `+`, or a last `#`";
        let template = TopicTemplate::parse(filter).map_err(|error| format!("{}; {plain}", error.what))?;
        if template.filter != filter {
            return Err(format!("nothing is captured here; {plain}"));
        }
        if filter.starts_with(SHARE) {
            return Err(format!("`$share/group/` belongs to a subscription and to no topic; {plain}"));
        }
        Ok(Self(template))
    }

    /// Whether it matches a topic, as the broker has it.
    pub fn matches(&self, topic: &str) -> bool {
        self.0.capture(topic).is_some()
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'t> Captures<'t> {
    fn slot(&mut self, name: Name) -> &mut Option<&'t str> {
        match name {
            Name::Kind => &mut self.kind,
            Name::SourceType => &mut self.source_type,
            Name::SourceId => &mut self.source_id,
        }
    }
}

impl Level {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "+" => return Ok(Self::Any),
            "#" => return Ok(Self::Rest),
            "{type}" => return Ok(Self::Capture(Name::Kind)),
            "{source_type}" => return Ok(Self::Capture(Name::SourceType)),
            "{source_id}" => return Ok(Self::Capture(Name::SourceId)),
            _ => {}
        }
        if text.contains(['+', '#']) {
            return Err(format!("`{text}`: a wildcard must be a whole level"));
        }
        if !text.contains(['{', '}']) {
            return Ok(Self::Text(text.to_owned()));
        }
        match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            Some(name) if !name.contains(['{', '}']) => Err(format!("`{text}` is not known")),
            _ => Err(format!("`{text}`: a capture must be a whole level")),
        }
    }

    fn filter(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Any | Self::Capture(_) => "+",
            Self::Rest => "#",
        }
    }
}

const SHARE: &str = "$share/";

/// Splits `$share/group/` off.
fn split_share(template: &str) -> Result<(&str, &str), &'static str> {
    let Some(rest) = template.strip_prefix(SHARE) else { return Ok(("", template)) };
    let (group, pattern) = rest.split_once('/').ok_or("`$share/group/` has no filter behind it")?;
    if group.is_empty() || group.contains(['+', '#', '{', '}']) {
        return Err("the group of `$share/group/` is plain text");
    }
    let prefix = template.len() - pattern.len();
    Ok(template.split_at(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(template: &str) -> TopicTemplate {
        TopicTemplate::parse(template).unwrap()
    }

    #[test]
    fn captures_become_plus_in_the_filter() {
        for (template, filter) in [
            ("sensors/{source_type}/{source_id}/{type}", "sensors/+/+/+"),
            ("{type}", "+"),
            ("a/+/{type}/#", "a/+/+/#"),
            ("#", "#"),
            ("/a//b/", "/a//b/"),
            ("$share/gateway/a/{type}", "$share/gateway/a/+"),
            ("$SYS/broker/{type}", "$SYS/broker/+"),
        ] {
            assert_eq!(parsed(template).filter(), filter);
            assert_eq!(parsed(template).to_string(), template);
        }
    }

    #[test]
    fn a_topic_gives_what_the_template_names() {
        let captures = |template, topic| parsed(template).capture(topic);
        let all = Captures { kind: Some("reading"), source_type: Some("thermo"), source_id: Some("t 1") };
        assert_eq!(captures("s/{source_type}/{source_id}/{type}", "s/thermo/t 1/reading"), Some(all));
        assert_eq!(captures("{type}/+/{source_id}/x/{source_type}", "reading/-/t 1/x/thermo"), Some(all));
        let kind = |kind| Some(Captures { kind: Some(kind), ..Captures::default() });
        assert_eq!(captures("$share/g/a/{type}", "a/b"), kind("b"));
        assert_eq!(captures("a/{type}/#", "a/b"), kind("b"));
        assert_eq!(captures("a/{type}/#", "a/b/c/d"), kind("b"));
        assert_eq!(captures("a/{type}", "a/"), kind(""));
        assert_eq!(captures("#", "any/thing"), Some(Captures::default()));
    }

    #[test]
    fn other_topics_do_not_match() {
        for (template, topic) in [
            ("a/{type}", "a"),
            ("a/{type}", "a/b/c"),
            ("a/{type}", "b/b"),
            ("a/{type}/#", "a"),
            ("a/{type}", ""),
            ("$share/g/a/{type}", "$share/g/a/b"),
            ("{type}/#", "$SYS/broker"),
            ("#", "$SYS"),
            ("+/broker", "$SYS/broker"),
        ] {
            assert_eq!(parsed(template).capture(topic), None, "{template} {topic}");
        }
    }

    #[test]
    fn a_wrong_template_says_what_is_allowed() {
        for (template, wanted) in [
            ("", "is empty"),
            ("a/{id}", "`{id}` is not known"),
            ("a/{}", "`{}` is not known"),
            ("a/x{type}", "`x{type}`: a capture must be a whole level"),
            ("a/{type}{source_id}", "a capture must be a whole level"),
            ("a/{type", "a capture must be a whole level"),
            ("{type}/{type}", "`{type}` is there twice"),
            ("a/#/b", "`#` is not the last level"),
            ("a/b#", "a wildcard must be a whole level"),
            ("a/b+/c", "a wildcard must be a whole level"),
            ("a\0b", "NUL"),
            ("$share/g", "has no filter"),
            ("$share//a", "the group"),
            ("$share/+/a", "the group"),
            ("$share/g/", "is empty"),
        ] {
            let message = TopicTemplate::parse(template).unwrap_err().to_string();
            assert!(message.contains(wanted), "{template}: {message}");
            assert!(message.contains("{type}, {source_type} or {source_id}"), "{message}");
        }
        assert!(TopicTemplate::parse(&"x".repeat(TEMPLATE_BYTES_MAX)).is_ok());
        let message = TopicTemplate::parse(&"x".repeat(TEMPLATE_BYTES_MAX + 1)).unwrap_err().to_string();
        assert!(message.contains("65536 bytes"), "{message}");
    }

    #[test]
    fn a_filter_captures_nothing() {
        let parsed = TopicFilter::parse("a/+/#").unwrap();
        assert!(parsed.matches("a/b") && parsed.matches("a/b/c/d") && !parsed.matches("a"));
        assert_eq!(parsed.to_string(), "a/+/#");
        for (bad, why) in [
            ("a/{type}", "nothing is captured here"),
            ("$share/g/a", "belongs to a subscription"),
            ("a/#/b", "`#` is not the last level"),
            ("", "is empty"),
        ] {
            let error = TopicFilter::parse(bad).unwrap_err();
            assert!(error.contains(why) && error.ends_with("or a last `#`"), "{error}");
        }
    }

    /// A level of a template and the level of a topic that belongs to it.
    fn level() -> impl Strategy<Value = (String, String)> {
        prop_oneof![
            "[a-z$ ]{0,4}".prop_map(|text| (text.clone(), text)),
            "[a-z$ ]{0,4}".prop_map(|text| ("+".to_owned(), text)),
            ("\\{(type|source_type|source_id)\\}", "[a-zé]{0,4}"),
        ]
    }

    proptest! {
        #[test]
        fn a_template_matches_the_topic_made_from_it(levels in proptest::collection::vec(level(), 0..6), rest in 0..3) {
            let mut template = vec!["x".to_owned()];
            let mut topic = template.clone();
            let mut wanted = Captures::default();
            for (level, text) in &levels {
                if level.starts_with('{') {
                    if template.contains(level) {
                        continue;
                    }
                    match level.as_str() {
                        "{type}" => wanted.kind = Some(text),
                        "{source_type}" => wanted.source_type = Some(text),
                        _ => wanted.source_id = Some(text),
                    }
                }
                template.push(level.clone());
                topic.push(text.clone());
            }
            if rest > 0 {
                template.push("#".into());
                topic.extend((1..rest).map(|n| n.to_string()));
            }
            let template = parsed(&template.join("/"));
            let topic = topic.join("/");
            prop_assert_eq!(template.capture(&topic), Some(wanted));
            prop_assert!(rumqttc::valid_filter(template.filter()));
            prop_assert!(rumqttc::matches(&topic, template.filter()));
        }

        #[test]
        fn arbitrary_input_never_panics(template in ".{0,30}", near in "[a{}typ/+#$]{0,20}", topic in ".{0,30}") {
            for template in [&template, &near] {
                if let Ok(template) = TopicTemplate::parse(template) {
                    template.capture(&topic);
                    prop_assert!(rumqttc::valid_filter(template.filter()));
                }
            }
        }
    }
}
