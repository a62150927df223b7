//! Routes: what is agreed about an event by what it is and, for MQTT, by where it was published. Pure but for what they
//! remember (`memory`).
//!
//! A route names events by `mqtt_topic`, `type`, `source_type` and `source_id`; a field that it leaves out matches every
//! event. The Unix socket has no topic, so a route with `mqtt_topic` matches MQTT publishes alone. Of several routes the
//! first that matches counts, an event that no route matches has its input's terms. A route is looked up once, at
//! admission ([`super::Admission::admit`]), without an allocation; whatever a route decides about an event is decided from
//! that one look, and what has to be known later is stored with the event ([`Way`]).

mod memory;
mod pattern;
mod pointer;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::topic::TopicFilter;
use crate::buffer::{TOPICS_MAX, Terms, WhenFull};
use crate::event::{Event, Way};
pub use memory::{Deadband, Report};
pub(super) use memory::{Memory, Verdict};
pub use pattern::{PATTERN_BYTES_MAX, Pattern};
pub use pointer::{POINTER_BYTES_MAX, Pointer};

/// Most routes: an event is compared with each of them, one after the other.
pub const ROUTES_MAX: usize = 64;

// Each may have a topic of its own.
const _: () = assert!(ROUTES_MAX <= TOPICS_MAX);

/// How many of a route's events go on. What does not is acknowledged to its producer and counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Keep {
    /// All of them.
    #[default]
    All,
    /// None.
    Nothing,
    /// One in so many of each source and type, beginning with the first.
    OneIn(NonZeroU32),
    /// Report by exception: of each source and type those whose value is a new one.
    Changes(Report),
}

impl Keep {
    /// Whether it rests on what was there before.
    fn remembers(&self) -> bool {
        matches!(self, Self::OneIn(_) | Self::Changes(_))
    }
}

/// Which events, and what is agreed about them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    /// For people.
    pub name: String,
    /// Of the MQTT topic; none matches every event, here and below.
    pub mqtt_topic: Option<TopicFilter>,
    /// Of `type`.
    pub kind: Option<Pattern>,
    /// Of `source_type`.
    pub source_type: Option<Pattern>,
    /// Of `source_id`.
    pub source_id: Option<Pattern>,
    /// What to do with them when there is no room; `None`: as the input has it.
    pub when_full: Option<WhenFull>,
    /// Their priority, up to [`Rank::PRIORITY_MAX`](crate::buffer::Rank::PRIORITY_MAX).
    pub priority: u8,
    /// Their Kafka topic, in which `{source_type}` may stand; `None`: that of the configuration.
    pub topic: Option<String>,
    /// Whether no ping tells of them.
    pub is_quiet: bool,
    /// How many of them go on.
    pub keep: Keep,
}

/// Why a route is not for an event: the first of its fields that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The event has no MQTT topic.
    NotMqtt,
    /// `mqtt_topic`.
    MqttTopic,
    /// `type`.
    Kind,
    /// `source_type`.
    SourceType,
    /// `source_id`.
    SourceId,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMqtt => "not an MQTT publish",
            Self::MqttTopic => "mqtt_topic",
            Self::Kind => "type",
            Self::SourceType => "source_type",
            Self::SourceId => "source_id",
        })
    }
}

impl Route {
    /// Whether it is for this event, which came by this MQTT topic if by any.
    pub fn matches(&self, event: &Event<'_>, mqtt_topic: Option<&str>) -> bool {
        self.mismatch(event, mqtt_topic).is_none()
    }

    /// Why it is not for this event, if so.
    pub fn mismatch(&self, event: &Event<'_>, mqtt_topic: Option<&str>) -> Option<Mismatch> {
        match (&self.mqtt_topic, mqtt_topic) {
            (Some(_), None) => return Some(Mismatch::NotMqtt),
            (Some(filter), Some(topic)) if !filter.matches(topic) => return Some(Mismatch::MqttTopic),
            _ => {}
        }
        self.name_mismatch(event)
    }

    /// Whether it is for this event by some MQTT topic or none.
    fn may_match(&self, event: &Event<'_>) -> bool {
        self.name_mismatch(event).is_none()
    }

    fn name_mismatch(&self, event: &Event<'_>) -> Option<Mismatch> {
        let fits = |pattern: &Option<Pattern>, name| pattern.as_ref().is_none_or(|p| p.matches(name));
        if !fits(&self.kind, event.kind) {
            Some(Mismatch::Kind)
        } else if !fits(&self.source_type, event.source_type) {
            Some(Mismatch::SourceType)
        } else if !fits(&self.source_id, event.source_id) {
            Some(Mismatch::SourceId)
        } else {
            None
        }
    }

    /// What is agreed about its events when they come over an input with the policy `when_full`.
    pub fn terms(&self, when_full: WhenFull) -> Terms {
        Terms { when_full: self.when_full.unwrap_or(when_full), priority: self.priority }
    }

    /// Where its events go.
    pub fn way(&self) -> Way<'_> {
        Way { topic: self.topic.as_deref(), is_quiet: self.is_quiet }
    }

    /// Whether it leaves nothing to a later route `other`, as far as that is plain to see: each of its fields is left
    /// out, matches every name, or is the other's.
    pub fn covers(&self, other: &Self) -> bool {
        let covers = |own: &Option<Pattern>, other| {
            own.as_ref().is_none_or(|pattern| pattern.is_any() || Some(pattern) == other)
        };
        (self.mqtt_topic.is_none() || self.mqtt_topic == other.mqtt_topic)
            && covers(&self.kind, other.kind.as_ref())
            && covers(&self.source_type, other.source_type.as_ref())
            && covers(&self.source_id, other.source_id.as_ref())
    }
}

/// The routes, in the order in which they are tried. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    all: Arc<[Route]>,
    sources_max: usize,
}

impl Routes {
    /// These routes, tried in this order. Those that rest on what was there before remember at most `sources_max` sources
    /// and types together.
    pub fn new(routes: Vec<Route>, sources_max: usize) -> Self {
        Self { all: routes.into(), sources_max }
    }

    /// The route of `event`, which came by this MQTT topic if by any, and its number, from 0: the first that matches.
    pub fn of(&self, event: &Event<'_>, mqtt_topic: Option<&str>) -> Option<(usize, &Route)> {
        self.all.iter().enumerate().find(|(_, route)| route.matches(event, mqtt_topic))
    }

    /// All of them.
    pub fn all(&self) -> &[Route] {
        &self.all
    }

    /// Most sources and types that they remember.
    pub(super) fn sources_max(&self) -> usize {
        self.sources_max
    }

    /// Whether one of them rests on what was there before.
    pub(super) fn remember(&self) -> bool {
        self.all.iter().any(|route| route.keep.remembers())
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
            kind: kind.map(Pattern::new),
            source_type: source_type.map(Pattern::new),
            source_id: source_id.map(Pattern::new),
            ..Route::default()
        }
    }

    #[test]
    fn the_first_route_that_matches_counts() {
        let routes = vec![
            Route { priority: 9, ..route(Some("alarm"), None, Some("pump-*")) },
            Route { priority: 5, when_full: Some(WhenFull::Reject), ..route(Some("alarm"), None, None) },
            Route { priority: 1, ..route(None, Some("meter"), None) },
        ];
        let routes = Routes::new(routes, 9);
        let terms = |event| routes.of(&event, None).map(|(_, route)| route.terms(WhenFull::DropOldest));
        let on = |when_full, priority| Some(Terms { when_full, priority });
        assert_eq!(terms(event("alarm", "meter", "pump-1")), on(WhenFull::DropOldest, 9));
        assert_eq!(terms(event("alarm", "meter", "fan-1")), on(WhenFull::Reject, 5));
        assert_eq!(terms(event("reading", "meter", "pump-1")), on(WhenFull::DropOldest, 1));
        assert_eq!(terms(event("reading", "camera", "pump-1")), None);
        assert_eq!(Routes::default().of(&event("alarm", "meter", "pump-1"), None), None);
    }

    fn filter(text: &str) -> Option<TopicFilter> {
        Some(TopicFilter::parse(text).unwrap())
    }

    #[test]
    fn a_route_with_a_topic_is_for_mqtt_alone() {
        let plant = Route { mqtt_topic: filter("plant/+/alarm/#"), ..route(None, Some("meter"), None) };
        let event = event("alarm", "meter", "pump-1");
        for (topic, wanted) in [
            (Some("plant/1/alarm"), None),
            (Some("plant/1/alarm/high/x"), None),
            (Some("plant/1/reading"), Some(Mismatch::MqttTopic)),
            (Some("$SYS/1/alarm"), Some(Mismatch::MqttTopic)),
            (None, Some(Mismatch::NotMqtt)),
        ] {
            assert_eq!(plant.mismatch(&event, topic), wanted, "{topic:?}");
        }
        let other = Event { source_type: "camera", ..event };
        assert_eq!(plant.mismatch(&other, Some("plant/1/alarm")), Some(Mismatch::SourceType));
        assert!(route(None, None, None).matches(&event, Some("any/thing")));
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
        let by_topic = |text| Route { mqtt_topic: filter(text), ..alarm.clone() };
        assert!(alarm.covers(&by_topic("a/#")) && by_topic("a/#").covers(&by_topic("a/#")));
        assert!(!by_topic("#").covers(&alarm) && !by_topic("a/#").covers(&by_topic("a/b")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        #[test]
        fn a_topic_matches_as_the_broker_has_it(
            filter in "(a|b|\\+)(/(a|b|\\+|)){0,3}(/#)?|#", topic in "\\$?(a|b|)(/(a|b|)){0,4}",
        ) {
            let route = Route { mqtt_topic: Some(TopicFilter::parse(&filter).unwrap()), ..Route::default() };
            let event = event("k", "s", "1");
            let is_own = topic.starts_with('$');
            // The library leaves the broker's own topics out of what a wildcard matches only in part.
            let wanted = rumqttc::matches(&topic, &filter) && !(is_own && filter.starts_with(['+', '#']));
            prop_assert_eq!(route.matches(&event, Some(&topic)), wanted);
            prop_assert!(!route.matches(&event, None));
        }

        #[test]
        fn what_a_covering_route_leaves_is_nothing(
            own in proptest::option::of("[a*]{1,2}"), other in proptest::option::of("[a*]{1,2}"), name in "[ab]{0,3}",
        ) {
            let (own, other) = (route(own.as_deref(), None, None), route(other.as_deref(), None, None));
            let event = event(&name, "s", "1");
            prop_assert!(!own.covers(&other) || !other.matches(&event, None) || own.matches(&event, None));
        }
    }
}
