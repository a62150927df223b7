//! Pings: the light messages for realtime views, and the bounded way to them. Best effort, never waited for.

use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;
use tokio::sync::mpsc;
use uuid::fmt::Hyphenated;

use crate::event::Event;
use crate::stats::Stats;

/// The light message to Redis: three fields and the channel they go to. Nothing of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// Where it is published.
    pub channel: String,
    /// `{"id":…,"type":…,"source_id":…}`, encoded.
    pub message: String,
}

/// The Redis channel of an event, for example `events:{source_type}:{source_id}`. Placeholders: `{type}`,
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

    /// The channel of `event`.
    pub fn channel(&self, event: &Event<'_>) -> String {
        self.0
            .iter()
            .map(|part| match part {
                ChannelPart::Text(text) => text.as_str(),
                ChannelPart::Kind => event.kind,
                ChannelPart::SourceType => event.source_type,
                ChannelPart::SourceId => event.source_id,
            })
            .collect()
    }

    /// The ping of `event`: exactly `id`, `type` and `source_id`.
    pub fn ping(&self, event: &Event<'_>) -> Ping {
        #[derive(Serialize)]
        struct Message<'a> {
            id: &'a str,
            #[serde(rename = "type")]
            kind: &'a str,
            source_id: &'a str,
        }
        let mut space = [0; Hyphenated::LENGTH];
        let message = Message { id: event.id.text(&mut space), kind: event.kind, source_id: event.source_id };
        // Three strings always encode; an empty message would only be a useless ping.
        Ping { channel: self.channel(event), message: serde_json::to_string(&message).unwrap_or_default() }
    }
}

/// Where pings go, of events whose way is not quiet: cloned into the stage that offers them (`redis.ping_after`).
#[derive(Debug, Clone)]
pub struct Pings {
    /// The sink's bounded queue.
    pub queue: mpsc::Sender<Ping>,
    /// How channels are named.
    pub channel: ChannelTemplate,
    /// Where dropped pings are counted.
    pub stats: Arc<Stats>,
}

impl Pings {
    /// Offers a ping for each event. What does not fit is dropped and counted; nothing waits.
    pub fn offer<'e>(&self, events: impl Iterator<Item = Event<'e>>) {
        for event in events.filter(|event| !event.way.is_quiet) {
            // Order: a place first, so that a full queue costs no rendering.
            match self.queue.try_reserve() {
                Ok(place) => place.send(self.channel.ping(&event)),
                Err(_) => self.stats.pings_dropped.add(1),
            }
        }
    }

    /// The ping of an event to be offered later, if it is to have one.
    pub fn make(&self, event: &Event<'_>) -> Option<Ping> {
        (!event.way.is_quiet).then(|| self.channel.ping(event))
    }

    /// Offers a ping that was made earlier.
    pub fn offer_made(&self, ping: Ping) {
        if self.queue.try_send(ping).is_err() {
            self.stats.pings_dropped.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventId, Payload, Stamp, Way};

    fn event() -> Event<'static> {
        Event {
            id: EventId::Given("e \"1\""),
            kind: "reading",
            source_type: "thermometer",
            source_id: "t-1",
            timestamp: None,
            received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: true },
            payload: Payload::Json("1"),
            way: Way::USUAL,
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let stats = Arc::new(Stats::default());
        let (queue, mut received) = mpsc::channel(2);
        let channel = ChannelTemplate::parse("c").unwrap();
        let pings = Pings { queue, channel, stats: Arc::clone(&stats) };
        pings.offer([event(), event(), event(), event()].into_iter());
        assert_eq!(stats.pings_dropped.get(), 2);
        assert_eq!(received.try_recv().unwrap().channel, "c");
    }

    #[test]
    fn a_quiet_event_has_no_ping() {
        let (queue, mut received) = mpsc::channel(2);
        let stats = Arc::new(Stats::default());
        let pings = Pings { queue, channel: ChannelTemplate::parse("{type}").unwrap(), stats };
        let quiet = Event { kind: "quiet", way: Way { topic: None, is_quiet: true }, ..event() };
        pings.offer([quiet, event(), quiet].into_iter());
        assert_eq!(received.try_recv().unwrap().channel, "reading");
        assert!(received.try_recv().is_err() && pings.stats.pings_dropped.get() == 0);
        assert_eq!((pings.make(&quiet), pings.make(&event()).is_some()), (None, true));
    }

    #[test]
    fn a_ping_is_three_fields_on_the_events_channel() {
        let event = event();
        let ping = ChannelTemplate::parse("events:{source_type}:{source_id}").unwrap().ping(&event);
        assert_eq!(ping.channel, "events:thermometer:t-1");
        assert_eq!(ping.message, r#"{"id":"e \"1\"","type":"reading","source_id":"t-1"}"#);
        assert_eq!(ChannelTemplate::parse("all.{type}.x").unwrap().channel(&event), "all.reading.x");
    }

    #[test]
    fn channel_templates_are_checked() {
        for bad in ["", "events:{id}", "events:{source_id", "{}"] {
            assert!(ChannelTemplate::parse(bad).is_err(), "{bad}");
        }
    }
}
