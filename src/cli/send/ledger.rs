//! What became of each line that was sent, kept by the protocol of the Unix socket (`ingest::unix`). Pure.
//!
//! Only undecided lines are remembered, so memory follows the window and not the input.

use std::borrow::Cow;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How many errors a summary repeats.
const ERRORS_SHOWN: usize = 10;

/// A line that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct LineError {
    /// Number in the input, from 1; the last one when `lines` is there.
    pub(in crate::cli) line: u64,
    /// How many lines this is about, if not one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) lines: Option<u64>,
    /// For programs.
    pub(in crate::cli) code: String,
    /// For people.
    pub(in crate::cli) error: String,
}

/// An answer that ends the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(in crate::cli) enum BadAnswer {
    /// The agent refused the whole connection.
    #[error("the agent refused the connection: {0}")]
    Connection(String),
    /// Not an answer of the protocol.
    #[error("the answer is not one of an agent: {0}")]
    Protocol(String),
}

/// One line of answer. Lenient: fields and codes of a newer agent are no error.
#[derive(Deserialize)]
struct Answer<'a> {
    ack: Option<u64>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
    #[serde(borrow)]
    code: Option<Cow<'a, str>>,
    line: Option<u64>,
    lines: Option<u64>,
}

/// The account of one connection.
#[derive(Debug, Default)]
pub(in crate::cli) struct Ledger {
    /// Lines with an event that were sent and are not decided, ascending.
    open: VecDeque<u64>,
    /// Events sent.
    pub(in crate::cli) sent: u64,
    /// Events durable for certain.
    pub(in crate::cli) acknowledged: u64,
    /// Events the agent can never take.
    pub(in crate::cli) refused_for_good: u64,
    /// Events the agent could not take now.
    pub(in crate::cli) refused_for_now: u64,
    /// The first errors.
    pub(in crate::cli) errors: Vec<LineError>,
}

impl Ledger {
    /// The event on `line` is about to be sent.
    pub(in crate::cli) fn sending(&mut self, line: u64) {
        self.sent += 1;
        self.open.push_back(line);
    }

    /// Events sent and not decided.
    pub(in crate::cli) fn undecided(&self) -> usize {
        self.open.len()
    }

    /// The first line that is not decided: everything before it is durable or was refused.
    pub(in crate::cli) fn first_undecided(&self) -> Option<u64> {
        self.open.front().copied()
    }

    /// Events refused.
    pub(in crate::cli) fn refused(&self) -> u64 {
        self.refused_for_good + self.refused_for_now
    }

    /// Events decided, for noticing progress.
    pub(in crate::cli) fn decided(&self) -> u64 {
        self.acknowledged + self.refused()
    }

    /// Takes one line of answer; `Some` when it is about lines that were refused.
    ///
    /// # Errors
    /// [`BadAnswer`]: nothing after it can be understood; what was acknowledged before stays so.
    pub(in crate::cli) fn hear(&mut self, answer: &[u8]) -> Result<Option<LineError>, BadAnswer> {
        let protocol = |what: String| BadAnswer::Protocol(what);
        let answer: Answer<'_> =
            serde_json::from_slice(answer).map_err(|error| protocol(error.to_string()))?;
        if let Some(ack) = answer.ack {
            let events = usize::try_from(ack.saturating_sub(self.acknowledged)).unwrap_or(usize::MAX);
            if events > self.open.len() {
                return Err(protocol(format!("it acknowledges {ack} events, fewer were sent")));
            }
            self.open.drain(..events);
            self.acknowledged = self.acknowledged.max(ack);
            return Ok(None);
        }
        let Some(error) = answer.error else {
            return Err(protocol("it is neither an acknowledgement nor an error".into()));
        };
        let Some(line) = answer.line else {
            return Err(BadAnswer::Connection(error.into_owned()));
        };
        let code = answer.code.unwrap_or_default().into_owned();
        let refused = LineError { line, lines: answer.lines, code, error: error.into_owned() };
        self.refuse(&refused);
        Ok(Some(refused))
    }

    fn refuse(&mut self, refused: &LineError) {
        let lines = refused.lines.unwrap_or(1);
        match refused.code.as_str() {
            "invalid" | "too_large" => self.refused_for_good += lines,
            _ => self.refused_for_now += lines,
        }
        // A sum names only its last line. Striking out that and the ones before it keeps the numbers right; which of
        // the lines they were is lost, here as in the agent.
        let end = self.open.partition_point(|&open| open <= refused.line);
        let start = end.saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
        if refused.lines.is_some()
            || end.checked_sub(1).and_then(|at| self.open.get(at)) == Some(&refused.line)
        {
            self.open.drain(start..end);
        }
        if self.errors.len() < ERRORS_SHOWN {
            self.errors.push(refused.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(lines: impl IntoIterator<Item = u64>) -> Ledger {
        let mut ledger = Ledger::default();
        lines.into_iter().for_each(|line| ledger.sending(line));
        ledger
    }

    #[test]
    fn acknowledgements_count_past_refused_lines() {
        let mut ledger = ledger([1, 2, 4, 5, 7]);
        assert_eq!(ledger.hear(br#"{"error":"no","code":"invalid","line":2}"#).unwrap().unwrap().line, 2);
        assert_eq!(ledger.hear(br#"{"ack":2}"#), Ok(None));
        assert_eq!((ledger.acknowledged, ledger.first_undecided()), (2, Some(5)));
        ledger.hear(br#"{"error":"later","code":"buffer_full","line":5}"#).unwrap();
        ledger.hear(br#"{"ack":3,"new":true}"#).unwrap();
        assert_eq!((ledger.undecided(), ledger.refused_for_good, ledger.refused_for_now), (0, 1, 1));
        assert_eq!(ledger.decided(), ledger.sent);
    }

    #[test]
    fn a_sum_keeps_the_numbers_right() {
        let mut ledger = ledger(1..=10);
        ledger.hear(br#"{"error":"many","code":"invalid","line":9,"first":2,"lines":5}"#).unwrap();
        assert_eq!((ledger.undecided(), ledger.refused()), (5, 5));
        ledger.hear(br#"{"ack":5}"#).unwrap();
        assert_eq!(ledger.undecided(), 0);
    }

    #[test]
    fn answers_of_somebody_else_are_told_apart() {
        for (answer, wanted) in [
            (&b"HTTP/1.1 400"[..], "not one of an agent"),
            (br#"{"ack":3}"#, "fewer were sent"),
            (br#"{"ack":18446744073709551615}"#, "fewer were sent"),
            (b"{}", "neither"),
            (br#"{"error":"too many connections","code":"busy"}"#, "refused the connection: too many"),
        ] {
            let error = ledger([1, 2]).hear(answer).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn only_the_first_errors_are_kept() {
        let mut ledger = ledger(1..=100);
        for line in 1..=100 {
            let answer = format!(r#"{{"error":"no","code":"too_large","line":{line}}}"#);
            ledger.hear(answer.as_bytes()).unwrap();
        }
        assert_eq!((ledger.errors.len(), ledger.refused()), (ERRORS_SHOWN, 100));
    }
}
