//! The conversation with the agent: one thread sends, one listens, and a [`Ledger`] between them bounds how far the
//! first may run ahead.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use memchr::memchr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use thiserror::Error;

use super::ledger::{BadAnswer, Ledger, LineError};
use crate::cli::text;
use crate::ingest::unix::is_blank;

/// Longest line of answer; an agent's own are far shorter.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Why the conversation ended before every line was decided.
#[derive(Debug, Error)]
pub(in crate::cli) enum Failure {
    /// The input cannot be read any further: what was read is decided.
    #[error("the input cannot be read: {0}")]
    Input(io::Error),
    /// The agent is gone: the undecided lines may or may not be durable.
    #[error("the connection was lost{}", .0.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Lost(Option<io::Error>),
    /// The agent decided nothing for the whole time-out.
    #[error("the agent answered nothing for {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The agent said something that ends the conversation.
    #[error(transparent)]
    Answer(BadAnswer),
}

/// What was decided and why no more.
#[derive(Debug)]
pub(in crate::cli) struct Outcome {
    pub(in crate::cli) ledger: Ledger,
    pub(in crate::cli) failure: Option<Failure>,
}

/// How the conversation is led.
pub(in crate::cli) struct Client<'a> {
    /// Most lines sent and not decided.
    pub(in crate::cli) window: usize,
    /// Longest time without a decision.
    pub(in crate::cli) timeout: Duration,
    pub(in crate::cli) progress: &'a ProgressBar,
    /// Whether each refused line is told on standard error.
    pub(in crate::cli) tells: bool,
}

/// Connects within `timeout`, also to an agent that hangs.
pub(in crate::cli) fn open(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// What both threads share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// The listening side ended, with its reason if it was not the plain end of the stream.
    ended: Option<Option<Failure>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `condition`, the end of the listening side, or `timeout` without a decision.
    fn wait(&self, timeout: Duration, condition: impl Fn(&Ledger) -> bool) -> Result<(), Failure> {
        let mut state = self.lock();
        let mut decided = state.ledger.decided();
        let mut since = Instant::now();
        while !condition(&state.ledger) && state.ended.is_none() {
            if state.ledger.decided() != decided {
                decided = state.ledger.decided();
                since = Instant::now();
            }
            let Some(left) = timeout.checked_sub(since.elapsed()) else {
                return Err(Failure::TimedOut(timeout));
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Client<'_> {
    /// Sends every line of `input` and waits until all are decided.
    pub(in crate::cli) fn deliver(&self, stream: &UnixStream, input: &mut dyn BufRead) -> Outcome {
        let shared = Shared::default();
        let failure = thread::scope(|threads| {
            threads.spawn(|| self.listen(stream, &shared));
            let sent = self.send(stream, input, &shared);
            // Answers to what was sent are worth waiting for, whatever ended the sending.
            let closed = stream.shutdown(Shutdown::Write);
            let waited = shared.wait(self.timeout, |ledger| ledger.undecided() == 0);
            // Order: this ends the listening thread, which the scope joins.
            let _ = stream.shutdown(Shutdown::Both);
            sent.and(waited).and(closed.map_err(|error| Failure::Lost(Some(error)))).err()
        });
        let State { ledger, ended } = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let complete = ledger.undecided() == 0;
        let failure = match (failure, ended.flatten()) {
            // What the agent said explains more than a write that failed because of it.
            (Some(Failure::Lost(_)) | None, Some(told @ Failure::Answer(_))) => Some(told),
            (Some(Failure::Lost(_)), Some(heard)) => Some(heard),
            (None, heard) if !complete => Some(heard.unwrap_or(Failure::Lost(None))),
            (failure, _) => failure,
        };
        Outcome { ledger, failure }
    }

    /// Copies the input as it is, so that a line has the same number here and there. A line is never held in memory,
    /// and none begins while the window is full.
    fn send(&self, mut stream: &UnixStream, input: &mut dyn BufRead, shared: &Shared) -> Result<(), Failure> {
        let lost = |error| Failure::Lost(Some(error));
        let mut cursor = Cursor { line: 1, is_event: false };
        loop {
            let chunk = match input.fill_buf() {
                Ok([]) => break,
                Ok(chunk) => chunk,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Input(error)),
            };
            shared.wait(self.timeout, |ledger| ledger.undecided() < self.window)?;
            let mut state = shared.lock();
            if state.ended.is_some() {
                return Err(Failure::Lost(None));
            }
            // Order: in the ledger before it is sent, because the answer may be faster than this thread.
            let bytes = cursor.advance(chunk, &mut state.ledger, self.window);
            drop(state);
            stream.write_all(chunk.get(..bytes).unwrap_or_default()).map_err(lost)?;
            input.consume(bytes);
        }
        if cursor.is_event {
            stream.write_all(b"\n").map_err(lost)?;
        }
        Ok(())
    }

    fn listen(&self, stream: &UnixStream, shared: &Shared) {
        let mut answers = BufReader::new(stream);
        let mut answer = Vec::new();
        let ended = loop {
            answer.clear();
            match answers.by_ref().take(ANSWER_BYTES_MAX).read_until(b'\n', &mut answer) {
                Ok(0) => break None,
                Ok(_) => {}
                // An agent that stops resets what it did not read; every answer came before.
                Err(error) => break Some(Failure::Lost(Some(error))),
            }
            let mut state = shared.lock();
            let heard = state.ledger.hear(&answer);
            self.show(&state.ledger);
            drop(state);
            shared.changed.notify_all();
            match heard {
                Ok(Some(refused)) if self.tells => self.tell(&refused),
                Ok(_) => {}
                Err(bad) => break Some(Failure::Answer(bad)),
            }
        };
        shared.lock().ended = Some(ended);
        shared.changed.notify_all();
    }

    fn tell(&self, LineError { line, lines, code, error }: &LineError) {
        self.progress.suspend(|| match lines {
            None => text::say_plainly(format_args!("line {line}: {code}: {error}")),
            Some(lines) => {
                text::say_plainly(format_args!("{lines} lines up to line {line}: {code}: {error}"));
            }
        });
    }

    fn show(&self, ledger: &Ledger) {
        if !self.progress.is_hidden() {
            let (acknowledged, sent) = (ledger.acknowledged, ledger.sent);
            self.progress.set_position(acknowledged);
            self.progress.set_message(format!("{acknowledged} acknowledged / {sent} sent"));
        }
    }
}

/// Where in the input the next byte is.
#[derive(Debug)]
struct Cursor {
    line: u64,
    /// The line holds more than spaces so far.
    is_event: bool,
}

impl Cursor {
    /// Goes through `chunk` until an event would begin that finds the window full, enters the events that begin, and
    /// returns how many bytes may be sent.
    fn advance(&mut self, chunk: &[u8], ledger: &mut Ledger, window: usize) -> usize {
        let mut bytes = 0;
        while let Some(rest) = chunk.get(bytes..).filter(|rest| !rest.is_empty()) {
            let end = memchr(b'\n', rest).map(|at| at + 1);
            let part = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            if !self.is_event && !is_blank(part) {
                if ledger.undecided() >= window {
                    break;
                }
                self.is_event = true;
                ledger.sending(self.line);
            }
            bytes += part.len();
            if end.is_some() {
                self.line += 1;
                self.is_event = false;
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_counts_as_the_agent_does_and_stops_at_the_window() {
        let input = b"one\n\n  \r\ntwo\r\nthree";
        for chunk in 1..=input.len() {
            let mut ledger = Ledger::default();
            let mut cursor = Cursor { line: 1, is_event: false };
            for chunk in input.chunks(chunk) {
                assert_eq!(cursor.advance(chunk, &mut ledger, 10), chunk.len());
            }
            assert_eq!((cursor.line, cursor.is_event, ledger.sent), (5, true, 3));
            ledger.hear(br#"{"ack":1}"#).unwrap();
            assert_eq!(ledger.first_undecided(), Some(4));
        }
        let mut ledger = Ledger::default();
        let mut cursor = Cursor { line: 1, is_event: false };
        assert_eq!(cursor.advance(input, &mut ledger, 1), b"one\n\n  \r\n".len());
        assert_eq!(cursor.advance(b"two\n", &mut ledger, 1), 0);
    }
}
