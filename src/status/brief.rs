//! The agent's health in a few words, for neighbours on the gateway's MQTT broker: what the retained status says.
//!
//! Made of the same figures as [`super::Status`], without what only the operating system can tell, so that making one
//! waits for nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of [`Brief`] as JSON. Fields are added without a new one; what is there keeps its name and meaning.
pub const VERSION: u32 = 1;

/// Whether the agent is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It takes events.
    Up,
    /// It was stopped in order. Said when the input leaves the broker: the rest of the stop goes on behind it.
    Stopped,
    /// Its link to the broker was lost: it was killed, hangs, or cannot reach the broker. The broker says so.
    Down,
}

/// The agent in a few words. What is `None` is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    /// [`VERSION`].
    pub version: u32,
    /// `agent.id`.
    pub agent: String,
    /// Version of the program.
    pub program: String,
    /// Whether it is there.
    pub state: State,
    /// When it was started, RFC 3339.
    pub since: String,
    /// The rest; nobody knows it of an agent that is down.
    #[serde(flatten)]
    pub figures: Option<BriefFigures>,
}

/// What is known of an agent that speaks for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BriefFigures {
    /// When this was said, RFC 3339.
    pub time: String,
    /// What waits.
    pub buffer: BriefBuffer,
    /// States of the links, `off`, `up`, `down` or `MISCONFIGURED`, by name; without that to the MQTT broker.
    pub links: BTreeMap<String, String>,
    /// Acknowledged events that were lost.
    pub lost: u64,
}

/// What waits in the buffer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BriefBuffer {
    /// Events that are to be delivered.
    pub events: u64,
    /// Bytes of disk, everything counted.
    pub bytes: u64,
    /// `buffer.max_bytes`.
    pub max_bytes: u64,
    /// How long the oldest has waited, in seconds; `null`: none waits, or it is of an earlier boot.
    pub oldest_age_s: Option<u64>,
    /// There is no room.
    pub is_full: bool,
    /// Events can be appended.
    pub is_writable: bool,
}

impl Brief {
    /// What the broker is to say when the agent is gone without a word.
    #[must_use]
    pub fn down(mut self) -> Self {
        (self.state, self.figures) = (State::Down, None);
        self
    }

    /// What the agent says last.
    #[must_use]
    pub fn stopped(mut self) -> Self {
        self.state = State::Stopped;
        self
    }

    /// As JSON.
    pub fn json(&self) -> Vec<u8> {
        // Texts and numbers always encode.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether it says something of which a neighbour should hear soon, and not only other figures.
    pub fn differs_in_kind(&self, other: &Self) -> bool {
        let kind = |brief: &Self| {
            let figures = brief.figures.as_ref();
            let figures =
                figures.map(|f| (f.buffer.is_full, f.buffer.is_writable, f.links.clone(), f.lost > 0));
            (brief.state, figures)
        };
        kind(self) != kind(other)
    }

    /// Whether it says anything else, but for the time.
    pub fn differs(&self, other: &Self) -> bool {
        let figures =
            |brief: &Self| brief.figures.as_ref().map(|f| (f.buffer.clone(), f.links.clone(), f.lost));
        self.state != other.state || figures(self) != figures(other)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An agent whose buffer holds so many events, with Kafka's link in this state.
    pub(crate) fn brief(events: u64, kafka: &str) -> Brief {
        let buffer = BriefBuffer {
            events,
            bytes: 4096,
            max_bytes: 1 << 30,
            oldest_age_s: None,
            is_full: false,
            is_writable: true,
        };
        let links = BTreeMap::from([("kafka".to_owned(), kafka.to_owned())]);
        Brief {
            version: VERSION,
            agent: "gateway-17".into(),
            program: "1.2.3".into(),
            state: State::Up,
            since: "2026-03-01T00:00:00Z".into(),
            figures: Some(BriefFigures { time: "2026-03-01T00:01:00Z".into(), buffer, links, lost: 0 }),
        }
    }

    #[test]
    fn json_keeps_its_names() {
        let text = |brief: &Brief| String::from_utf8(brief.json()).unwrap();
        assert_eq!(
            text(&brief(3, "up")),
            r#"{"version":1,"agent":"gateway-17","program":"1.2.3","state":"up","since":"2026-03-01T00:00:00Z","#
                .to_owned()
                + r#""time":"2026-03-01T00:01:00Z","buffer":{"events":3,"bytes":4096,"max_bytes":1073741824,"#
                + r#""oldest_age_s":null,"is_full":false,"is_writable":true},"links":{"kafka":"up"},"lost":0}"#
        );
        assert_eq!(
            text(&brief(3, "up").down()),
            r#"{"version":1,"agent":"gateway-17","program":"1.2.3","state":"down","since":"2026-03-01T00:00:00Z"}"#
        );
    }

    #[test]
    fn other_figures_are_no_other_kind_of_news() {
        let first = brief(3, "up");
        assert!(!first.differs(&first) && !first.differs_in_kind(&first));
        let more = brief(4, "up");
        assert!(more.differs(&first) && !more.differs_in_kind(&first));
        assert!(brief(3, "down").differs_in_kind(&first));
        assert!(first.clone().stopped().differs_in_kind(&first));
        let mut lost = first.clone();
        lost.figures.as_mut().unwrap().lost = 1;
        assert!(lost.differs_in_kind(&first));
        let mut later = first.clone();
        later.figures.as_mut().unwrap().time.clear();
        assert!(!later.differs(&first));
    }
}
