//! From a running agent: server-sent events over HTTP, which go on at the last position.

use serde::Deserialize;

use super::entry::Entry;
use super::{Problem, Source, Word};
use crate::cli::exit;
use crate::error::Class;
use crate::http::client::{ClientError, Place, Stream};

/// Most words in a load.
const LOAD_MAX: usize = 1000;

/// An agent's stream of events.
pub(super) struct Agent {
    place: Place,
    /// Everything up to here was shown, or is told to be gone.
    at: Option<String>,
    stream: Option<Stream>,
}

/// The answer of `/events`, as far as it counts here.
#[derive(Deserialize)]
struct Page {
    next: String,
}

/// What a gap says.
#[derive(Deserialize)]
struct Gap {
    after: String,
    to: String,
    #[serde(default)]
    why: String,
}

impl Agent {
    pub(super) fn new(place: Place, after: Option<String>) -> Self {
        Self { place, at: after, stream: None }
    }

    /// Where the agent's events end now. To begin there and not just now makes a connection that is lost before the first
    /// event as good as any other.
    async fn now(&self) -> Result<String, Problem> {
        let body = self.place.get("/events?limit=1").await.map_err(problem)?;
        let page = serde_json::from_slice::<Page>(&body);
        page.map(|page| page.next).map_err(|error| problem(ClientError::Strange(error.to_string())))
    }

    fn understood(&mut self, kind: &str, id: Option<String>, data: &str) -> Option<Word> {
        match kind {
            "message" => {
                self.at = id.or(self.at.take());
                Some(match Entry::of_agent(data) {
                    Some(entry) => Word::event(entry),
                    None => Word::Note("the agent sent an event that is not understood".to_owned()),
                })
            }
            "gap" => {
                let Gap { after, to, why } = serde_json::from_str(data).ok()?;
                let what = format!("gap: not all between {after} and {to} is there any more: {why}");
                self.at = Some(to);
                Some(Word::Gap(what))
            }
            // The stream ends, and is opened again at the last position; `lagged` says why, and nothing is missing.
            _ => None,
        }
    }
}

impl Source for Agent {
    fn name(&self) -> String {
        self.place.to_string()
    }

    fn code(&self) -> u8 {
        exit::UNAVAILABLE
    }

    async fn open(&mut self, _: &mut Vec<Word>) -> Result<(), Problem> {
        self.stream = None;
        let at = match self.at.take() {
            Some(at) => at,
            None => self.now().await?,
        };
        let stream = self.place.follow("/events/stream", Some(&at)).await;
        self.at = Some(at);
        self.stream = Some(stream.map_err(problem)?);
        Ok(())
    }

    async fn next(&mut self, words: &mut Vec<Word>, _: u64) -> Result<(), Problem> {
        let closed = || Problem::Lost("the agent ended the stream".to_owned());
        loop {
            let stream = self.stream.as_mut().ok_or_else(closed)?;
            let word = stream.next().await.map_err(problem)?.ok_or_else(closed)?;
            let has_more = stream.has_more();
            words.extend(self.understood(&word.kind, word.id, &word.data));
            if !words.is_empty() && (!has_more || words.len() >= LOAD_MAX) {
                return Ok(());
            }
        }
    }
}

fn problem(error: ClientError) -> Problem {
    match error.class() {
        Class::Retry => Problem::Lost(error.to_string()),
        Class::Reject | Class::Fatal => Problem::Refused(exit::UNAVAILABLE, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_told_once_and_the_position_goes_on() {
        let mut agent = Agent::new(Place::at("http://127.0.0.1:1", None, None).unwrap(), Some("1-5".into()));
        let word = agent.understood("gap", None, r#"{"after":"1-5","to":"1-9","why":"Kafka has these"}"#);
        assert!(
            matches!(word, Some(Word::Gap(what)) if what == "gap: not all between 1-5 and 1-9 is there any more: Kafka has these")
        );
        assert_eq!(agent.at.as_deref(), Some("1-9"));
        let word = agent.understood("message", Some("1-10".into()), r#"{"id":"e"}"#);
        assert!(matches!(word, Some(Word::Event(_))) && agent.at.as_deref() == Some("1-10"));
        assert!(agent.understood("lagged", None, "{}").is_none());
        assert_eq!(agent.at.as_deref(), Some("1-10"), "what it lags behind comes again");
    }
}
