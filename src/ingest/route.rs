//! Routes: what is agreed about an event by what it is, whichever way it came. Pure.
//!
//! A route names events by `type`, `source_type` and `source_id`; a field that it leaves out matches every event. Of
//! several routes the first that matches counts, an event that no route matches has its input's terms. A route is
//! looked up once, at admission ([`super::Admission::admit`]), without an allocation; whatever a route decides about
//! an event is decided from that one look.

use std::sync::Arc;

use crate::buffer::{Terms, WhenFull};
use crate::event::Event;

/// Longest pattern in bytes, as long as the longest name that it can match.
pub const PATTERN_BYTES_MAX: usize = crate::event::NAME_BYTES_MAX;

/// Most routes: an event is compared with each of them, one after the other.
pub const ROUTES_MAX: usize = 64;

/// A name, or several: each `*` stands for any text, an empty one included. There is no escape: `*` matches a `*` too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern that `text` says; every text is one.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether it matches the whole of `name`.
    pub fn matches(&self, name: &str) -> bool {
        let Some((start, rest)) = self.0.split_once('*') else { return self.0 == name };
        let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
        let between = name.strip_prefix(start).and_then(|name| name.strip_suffix(end));
        let Some(mut name) = between else { return false };
        // The first place where a part fits is the best one: it leaves the most to those behind it.
        middle.split('*').all(|part| {
            let found = name.split_once(part);
            name = found.map_or("", |(_, behind)| behind);
            found.is_some()
        })
    }

    /// Whether it matches every name.
    fn is_any(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte == b'*')
    }
}

/// Which events, and what is agreed about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// For people.
    pub name: String,
    /// Of `type`; none matches every event, here and below.
    pub kind: Option<Pattern>,
    /// Of `source_type`.
    pub source_type: Option<Pattern>,
    /// Of `source_id`.
    pub source_id: Option<Pattern>,
    /// What to do with them when there is no room; `None`: as the input has it.
    pub when_full: Option<WhenFull>,
    /// Their priority, up to [`Rank::PRIORITY_MAX`](crate::buffer::Rank::PRIORITY_MAX).
    pub priority: u8,
}

impl Route {
    /// Whether it is for this event.
    pub fn matches(&self, event: &Event<'_>) -> bool {
        let fits = |pattern: &Option<Pattern>, name| pattern.as_ref().is_none_or(|p| p.matches(name));
        fits(&self.kind, event.kind)
            && fits(&self.source_type, event.source_type)
            && fits(&self.source_id, event.source_id)
    }

    /// What is agreed about its events when they come over an input with the policy `when_full`.
    pub fn terms(&self, when_full: WhenFull) -> Terms {
        Terms { when_full: self.when_full.unwrap_or(when_full), priority: self.priority }
    }

    /// Whether it leaves nothing to a later route `other`, as far as that is plain to see: each of its fields is left
    /// out, matches every name, or is the other's.
    pub fn covers(&self, other: &Self) -> bool {
        let covers = |own: &Option<Pattern>, other| {
            own.as_ref().is_none_or(|pattern| pattern.is_any() || Some(pattern) == other)
        };
        covers(&self.kind, other.kind.as_ref())
            && covers(&self.source_type, other.source_type.as_ref())
            && covers(&self.source_id, other.source_id.as_ref())
    }
}

/// The routes, in the order in which they are tried. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes(Arc<[Route]>);

impl Routes {
    /// These routes, tried in this order.
    pub fn new(routes: Vec<Route>) -> Self {
        Self(routes.into())
    }

    /// The route of `event`: the first that matches.
    pub fn of(&self, event: &Event<'_>) -> Option<&Route> {
        self.0.iter().find(|route| route.matches(event))
    }

    /// All of them.
    pub fn all(&self) -> &[Route] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventId, Payload, Stamp, Way};
    use proptest::prelude::*;

    fn event<'a>(kind: &'a str, source_type: &'a str, source_id: &'a str) -> Event<'a> {
        Event {
            id: EventId::Given("e"),
            kind,
            source_type,
            source_id,
            timestamp: None,
            received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: true },
            payload: Payload::Json("1"),
            way: Way::USUAL,
        }
    }

    fn route(kind: Option<&str>, source_type: Option<&str>, source_id: Option<&str>) -> Route {
        Route {
            name: "r".into(),
            kind: kind.map(Pattern::new),
            source_type: source_type.map(Pattern::new),
            source_id: source_id.map(Pattern::new),
            when_full: None,
            priority: 0,
        }
    }

    #[test]
    fn a_star_is_any_text() {
        for (pattern, matched, others) in [
            ("alarm", &["alarm"][..], &["", "alarm2", "Alarm", "an alarm"][..]),
            ("*", &["", "a", "a*b"], &[]),
            ("**", &["", "a"], &[]),
            ("pump-*", &["pump-", "pump-7", "pump-*"], &["pump", "a pump-7"]),
            ("*-7", &["-7", "pump-7"], &["pump-77"]),
            ("a*a", &["aa", "aba", "aaa"], &["a", "ab"]),
            ("a*b*c", &["abc", "axxbyyc", "abcbc"], &["acb", "ab", "acc", "ac"]),
            ("*ab*ab*", &["abab", "xabyabz"], &["ab", "aba", "abba"]),
            ("*é*", &["é", "aéb"], &["e"]),
        ] {
            let parsed = Pattern::new(pattern);
            assert!(matched.iter().all(|name| parsed.matches(name)), "{pattern}");
            assert!(!others.iter().any(|name| parsed.matches(name)), "{pattern}");
        }
    }

    #[test]
    fn the_first_route_that_matches_counts() {
        let routes = Routes::new(vec![
            Route { priority: 9, ..route(Some("alarm"), None, Some("pump-*")) },
            Route { priority: 5, when_full: Some(WhenFull::Reject), ..route(Some("alarm"), None, None) },
            Route { priority: 1, ..route(None, Some("meter"), None) },
        ]);
        let terms = |event| routes.of(&event).map(|route| route.terms(WhenFull::DropOldest));
        let on = |when_full, priority| Some(Terms { when_full, priority });
        assert_eq!(terms(event("alarm", "meter", "pump-1")), on(WhenFull::DropOldest, 9));
        assert_eq!(terms(event("alarm", "meter", "fan-1")), on(WhenFull::Reject, 5));
        assert_eq!(terms(event("reading", "meter", "pump-1")), on(WhenFull::DropOldest, 1));
        assert_eq!(terms(event("reading", "camera", "pump-1")), None);
        assert_eq!(Routes::default().of(&event("alarm", "meter", "pump-1")), None);
    }

    #[test]
    fn a_route_that_is_never_reached_is_known() {
        let alarm = route(Some("alarm"), None, None);
        assert!(route(None, None, None).covers(&alarm));
        assert!(route(Some("**"), None, None).covers(&alarm));
        assert!(alarm.covers(&route(Some("alarm"), Some("meter"), None)));
        assert!(!alarm.covers(&route(None, Some("meter"), None)));
        assert!(!alarm.covers(&route(Some("alarm*"), None, None)));
        assert!(!route(Some("alarm"), Some("meter"), None).covers(&alarm));
    }

    /// The definition: a star stands for nothing, or for a character and whatever it stands for behind that.
    fn matches_by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => matches_by_definition(rest, name),
            (Some((b'*', rest)), Some((_, behind))) => {
                matches_by_definition(rest, name) || matches_by_definition(pattern, behind)
            }
            (Some((wanted, rest)), Some((found, behind))) => {
                wanted == found && matches_by_definition(rest, behind)
            }
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        #[test]
        fn a_pattern_matches_as_it_is_defined(pattern in "[ab*é]{0,8}", name in "[abé*]{0,10}") {
            prop_assert_eq!(
                Pattern::new(pattern.clone()).matches(&name),
                matches_by_definition(pattern.as_bytes(), name.as_bytes())
            );
        }

        #[test]
        fn what_a_covering_route_leaves_is_nothing(
            own in proptest::option::of("[a*]{1,2}"), other in proptest::option::of("[a*]{1,2}"), name in "[ab]{0,3}",
        ) {
            let (own, other) = (route(own.as_deref(), None, None), route(other.as_deref(), None, None));
            let event = event(&name, "s", "1");
            prop_assert!(!own.covers(&other) || !other.matches(&event) || own.matches(&event));
        }
    }
}
