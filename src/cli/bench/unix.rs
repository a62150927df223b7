//! Load on the agent's socket: an event is taken once it is durable.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use memchr::memchr;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::load::{KIND, Load};
use super::{Failure, Fate, Target};
use crate::cli::send::client;
use crate::cli::send::ledger::{Ledger, LineError};

/// Bytes that wait to be written: more than the kernel takes at once.
const UNWRITTEN_BYTES_MAX: usize = 256 * 1024;

/// Longest line of answer; an agent's own are far shorter.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A connection to the agent.
pub(super) struct Socket {
    stream: UnixStream,
    unwritten: BytesMut,
    answers: Vec<u8>,
    ledger: Ledger,
    /// Lines that were refused and are not told yet.
    refused: BTreeMap<u64, Fate>,
    /// The next line whose fate is to be told.
    next: u64,
}

impl Socket {
    pub(super) async fn open(path: &Path, timeout: Duration) -> Result<Self, Failure> {
        let nobody = |error: io::Error| {
            Failure::Unavailable(format!(
                "no agent answers on {}: {error}; start it, see that unix.path is set and this user may use it, or name \
                 another socket with --socket",
                path.display()
            ))
        };
        let stream = client::open(path, timeout).map_err(nobody)?;
        stream.set_nonblocking(true).map_err(nobody)?;
        let stream = UnixStream::from_std(stream).map_err(nobody)?;
        Ok(Self {
            stream,
            unwritten: BytesMut::new(),
            answers: Vec::new(),
            ledger: Ledger::default(),
            refused: BTreeMap::new(),
            next: 1,
        })
    }

    fn is_full(&self) -> bool {
        self.unwritten.len() > UNWRITTEN_BYTES_MAX
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.unwritten.is_empty() {
            let bytes = self.stream.try_write(&self.unwritten)?;
            self.unwritten.advance(bytes);
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        let bytes = self.stream.try_read(&mut chunk)?;
        if bytes == 0 || self.answers.len() > ANSWER_BYTES_MAX {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.answers.extend_from_slice(chunk.get(..bytes).unwrap_or_default());
        Ok(())
    }

    fn tell(&mut self, fates: &mut Vec<(u64, Fate)>) -> Result<(), Failure> {
        while let Some(end) = memchr(b'\n', &self.answers) {
            let answer: Vec<u8> = self.answers.drain(..=end).collect();
            let heard = self.ledger.hear(&answer).map_err(|bad| Failure::Lost(bad.to_string()))?;
            if let Some(LineError { line, lines, code, .. }) = heard {
                let fate = match code.as_str() {
                    "invalid" | "too_large" => Fate::RefusedForGood,
                    _ => Fate::RefusedForNow,
                };
                let first = line.saturating_sub(lines.unwrap_or(1).saturating_sub(1)).max(self.next);
                self.refused.extend((first..=line).map(|line| (line, fate)));
            }
            let undecided = self.ledger.first_undecided().unwrap_or(self.ledger.sent + 1);
            for line in self.next..undecided {
                fates.push((line - 1, self.refused.remove(&line).unwrap_or(Fate::Taken)));
            }
            self.next = undecided.max(self.next);
        }
        Ok(())
    }
}

impl Target for Socket {
    fn send(&mut self, number: u64, load: &Load) -> Result<bool, Failure> {
        if self.is_full() {
            return Ok(false);
        }
        let (source_id, payload) = (load.source_id(number), load.payload(number));
        self.unwritten.extend_from_slice(
            format!(
                "{{\"type\":\"{KIND}\",\"source_type\":\"{KIND}\",\"source_id\":\"{source_id}\",\"payload\":{payload}}}\n"
            )
            .as_bytes(),
        );
        self.ledger.sending(number + 1);
        Ok(true)
    }

    async fn heard(&mut self, fates: &mut Vec<(u64, Fate)>) -> Result<(), Failure> {
        let lost = |error: io::Error| Failure::Lost(format!("the connection was lost: {error}"));
        let unless_later = |done: io::Result<()>| match done {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            done => done,
        };
        loop {
            let was_full = self.is_full();
            let wrote = unless_later(self.write());
            if was_full && !self.is_full() {
                return Ok(());
            }
            let interest = match (&wrote, self.unwritten.is_empty()) {
                (Ok(()), false) => Interest::READABLE | Interest::WRITABLE,
                // What the agent said before it went counts.
                _ => Interest::READABLE,
            };
            if self.stream.ready(interest).await.map_err(lost)?.is_readable() {
                unless_later(self.read()).map_err(lost)?;
                self.tell(fates)?;
            }
            if !fates.is_empty() {
                return Ok(());
            }
            wrote.map_err(lost)?;
        }
    }

    fn close(self) {}
}
