//! A client of the agent's Unix socket: one JSON event a line out, `{"ack": n}` and `{"error": ...}` lines back.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::wait::scaled;

/// One line from the agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    /// The first `ack` events of this connection are durable.
    Ack { ack: u64 },
    /// One line was not taken.
    Refused(Refusal),
}

/// Why the agent did not take a line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) error: String,
    pub(crate) code: String,
    /// Missing when the whole connection was refused (`busy`).
    pub(crate) line: Option<u64>,
    /// Only in a sum: its first line.
    pub(crate) first: Option<u64>,
    /// Only in a sum: how many lines from the first one to `line` were not taken.
    pub(crate) lines: Option<u64>,
}

/// A blocking connection. Every call that waits has a patience, scaled by `FIELDPOST_TEST_PATIENCE`.
pub(crate) struct UnixClient {
    stream: UnixStream,
    replies: BufReader<UnixStream>,
    /// The beginning of a reply whose end had not come when an earlier wait was over.
    begun: Vec<u8>,
    acked: u64,
    refused: Vec<Refusal>,
}

impl UnixClient {
    pub(crate) fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        // Writing waits when the agent holds back its producers; a test that expects that uses `try_send_raw`.
        stream.set_write_timeout(Some(scaled(Duration::from_secs(30))))?;
        let replies = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, replies, begun: Vec::new(), acked: 0, refused: Vec::new() })
    }

    /// Sends `line` and a newline.
    #[track_caller]
    pub(crate) fn send_line(&mut self, line: &str) {
        self.try_send_raw(format!("{line}\n").as_bytes()).expect("the agent takes the line");
    }

    #[track_caller]
    pub(crate) fn send(&mut self, event: &serde_json::Value) {
        self.send_line(&event.to_string());
    }

    /// Sends bytes as they are, for half lines, lines that are no UTF-8 and agents that do not read.
    pub(crate) fn try_send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be sent; replies can still be read.
    pub(crate) fn end_sending(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection is open");
    }

    /// The next reply; `None` when none came in time or the agent closed the connection (see
    /// [`UnixClient::is_closed`]).
    ///
    /// # Panics
    /// When the agent sends a line that the protocol does not have, or an ack that does not grow.
    #[track_caller]
    pub(crate) fn read_reply(&mut self, patience: Duration) -> Option<Reply> {
        self.try_reply(patience).ok()
    }

    /// As [`UnixClient::read_reply`], and says why there is none.
    #[track_caller]
    pub(crate) fn try_reply(&mut self, patience: Duration) -> Result<Reply, NoReply> {
        self.reply_before(Instant::now() + scaled(patience))
    }

    /// Reads replies until the first `count` events are acknowledged. Refusals on the way are kept in
    /// [`UnixClient::refused`].
    #[track_caller]
    pub(crate) fn wait_ack(&mut self, count: u64, patience: Duration) {
        let deadline = Instant::now() + scaled(patience);
        while self.acked < count {
            if let Err(none) = self.reply_before(deadline) {
                panic!(
                    "acknowledged {} of {count} events, refused {:?}, then: {none:?}",
                    self.acked, self.refused
                );
            }
        }
    }

    /// Reads replies until the agent refuses a line.
    #[track_caller]
    pub(crate) fn wait_refused(&mut self, patience: Duration) -> Refusal {
        let deadline = Instant::now() + scaled(patience);
        loop {
            match self.reply_before(deadline) {
                Ok(Reply::Refused(refusal)) => return refusal,
                Ok(Reply::Ack { .. }) => {}
                Err(none) => panic!("nothing was refused, acknowledged {}, then: {none:?}", self.acked),
            }
        }
    }

    /// Whether the agent closes the connection within `patience`. Replies that come first are read and kept.
    #[track_caller]
    pub(crate) fn is_closed(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + scaled(patience);
        loop {
            match self.reply_before(deadline) {
                Ok(_) => {}
                Err(NoReply::Closed) => return true,
                Err(NoReply::Late) => return false,
            }
        }
    }

    /// How many events of this connection the agent has acknowledged in the replies read so far.
    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// The refusals read so far.
    pub(crate) fn refused(&self) -> &[Refusal] {
        &self.refused
    }

    #[track_caller]
    fn reply_before(&mut self, deadline: Instant) -> Result<Reply, NoReply> {
        while !self.begun.ends_with(b"\n") {
            let left = deadline.saturating_duration_since(Instant::now());
            // A time-out of zero means for ever to the socket.
            let timeout = left.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(timeout)).expect("it is above zero");
            match self.replies.read_until(b'\n', &mut self.begun).map_err(|problem| problem.kind()) {
                Ok(0) | Err(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return Err(NoReply::Closed);
                }
                Ok(_) | Err(ErrorKind::Interrupted) => {}
                Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(NoReply::Late),
                Err(kind) => panic!("reading the agent's reply: {kind}"),
            }
        }
        let line = std::mem::take(&mut self.begun);
        let reply = match serde_json::from_slice(&line) {
            Ok(reply) => reply,
            Err(problem) => {
                panic!("{problem} in the agent's reply {:?}", String::from_utf8_lossy(&line));
            }
        };
        match &reply {
            Reply::Ack { ack } => {
                assert!(*ack > self.acked, "an ack only grows: {ack} after {}", self.acked);
                self.acked = *ack;
            }
            Reply::Refused(refusal) => self.refused.push(refusal.clone()),
        }
        Ok(reply)
    }
}

/// Why there is no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoReply {
    /// The agent has closed the connection.
    Closed,
    /// The patience is over.
    Late,
}
