//! Unix socket ingest: one JSON event a line in, cumulative acknowledgements and per-line errors out.
//!
//! # Protocol
//! In: one event in the JSON form (`ingest::form`) a line. `\n` ends a line, a `\r` before it is ignored, and so are
//! blank lines, which count. Lines are numbered from 1 per connection.
//!
//! Out, each a line:
//! - `{"ack":n}`: the first n events taken on this connection are durable, or left out by a route as the operator wants
//!   it. Cumulative: a slow reader finds only the newest.
//! - `{"error":"…","code":"…","line":k}`: line k was not taken. Codes: `invalid` and `too_large` (sending it again is
//!   of no use), `buffer_full`, `timeout`, `storage` and `closing` (send it again; after `timeout` it may come
//!   twice).
//! - `{"error":"…","code":"…","line":k,"first":j,"lines":n}`: only for a peer that does not read: n lines from j to k
//!   were not taken. Which ones is not known any more; a peer that needs to know connects again and sends again what
//!   was not acknowledged before.
//! - `{"error":"…","code":"busy"}`: `unix.max_connections` is reached, the connection is closed.
//!
//! The error of a line always leaves before an acknowledgement that covers an event behind it. Errors among
//! themselves are not in the order of their lines: what is wrong with a line is known before its neighbours are
//! stored.
//!
//! # Promise
//! An acknowledged event is durable. All connections together hold [`Options::pending_bytes_max`] for lines and events:
//! at that limit they are read in turn, and answered all the time. Half a line may hold its part for
//! [`Options::append_timeout`]; if others wait for it then, the line is refused with `timeout` and what still comes of it
//! is passed over. Beside that a peer costs a small bounded amount of memory and is never waited for; what it does harms
//! no other peer. At a stop what was read is settled and answered, what was not read stays unanswered.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::buffer::{Wait, WhenFull};
use crate::error::Class;
use crate::ingest::Admission;

mod budget;
mod connection;
mod in_flight;
pub(crate) mod lines;
mod listener;
mod note;
mod reply;

#[cfg(test)]
pub(crate) use budget::bytes_min as pending_bytes_min;
use budget::{Budget, Share};
pub(crate) use connection::BATCH_BYTES;
use connection::Connection;
pub(crate) use connection::line_bytes_max;
pub(crate) use lines::is_blank;
pub use listener::{Listener, bind_socket as bind, leave_unserved};
use reply::{Code, Reply};

/// Where the socket is and what it may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Path of the socket; ignored when the service manager hands one over.
    pub path: PathBuf,
    /// File mode of the socket, for example `0o660`.
    pub mode: u32,
    /// Most connections at once; one more is told so and closed.
    pub connections_max: usize,
    /// Most bytes that all connections together hold for lines that were read and events that are not durable yet.
    pub pending_bytes_max: usize,
    /// Longest wait of one event for the buffer before the producer gets `buffer_full` or `timeout`, and of others for
    /// the bytes of an unfinished line.
    pub append_timeout: Duration,
    /// What to do with events that find no room, where no route has it otherwise.
    pub when_full: WhenFull,
}

/// Why the socket cannot be served. Peers never cause one of these.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UnixError {
    /// Somebody listens there: do not start, the operator decides which of the two is wanted.
    #[error(
        "another process listens on {}: stop it, or give this agent a path of its own with unix.path",
        path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else has the name and is not touched: do not start, the operator looks at it.
    #[error("{} is not a socket and is left alone: move it away or set unix.path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// There is no directory for it: do not start, the operator makes it.
    #[error(
        "the directory of {} does not exist: make it (RuntimeDirectory= of the service does so) or set unix.path",
        path.display()
    )]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
    /// Longer than the kernel allows: do not start, the operator shortens it.
    #[error(
        "{} has {bytes} bytes, a socket path may have {bytes_max}: set unix.path to a shorter one",
        path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// The kernel's limit.
        bytes_max: usize,
    },
    /// The operating system refused: do not start; the message names the step and the file.
    #[error(
        "cannot {action} {}: {source}; check that the agent's user may write to its directory, or set unix.path",
        path.display()
    )]
    Socket {
        /// The step.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl UnixError {
    /// The caller's reaction: without its socket the agent does not run.
    pub fn class(&self) -> Class {
        Class::Fatal
    }
}

/// First and longest pause after a connection could not be accepted, for example because descriptors ran out.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Serves `listener` until `stop`, then removes the socket file, settles and answers what was read, and returns.
///
/// # Errors
/// [`UnixError::Socket`], class [`Class::Fatal`]: the listener cannot be used. Nothing a peer does is an error.
///
/// # Panics
/// Passes on the panic of a connection, which is a bug.
///
/// Cancel safe: no. Dropping it closes every connection at once and leaves appends on their way without an answer.
pub async fn run(
    options: Options,
    listener: Listener,
    admission: Admission,
    stop: CancellationToken,
) -> Result<(), UnixError> {
    let (socket, file) = listener.into_parts();
    let inherited = file.is_none();
    let socket = tokio::net::UnixListener::from_std(socket).map_err(|source| UnixError::Socket {
        action: "serve",
        path: options.path.clone(),
        source,
    })?;
    tracing::info!(path = %options.path.display(), inherited, "listening on the Unix socket");
    let mut door = Door { socket, pause: Backoff::new(ACCEPT_PAUSE.0, ACCEPT_PAUSE.1), closed_until: None };
    let admission = Arc::new(admission.under(options.when_full));
    let budget = Budget::new(options.pending_bytes_max, admission.event_bytes_max());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => pass_on_panic(ended),
            stream = door.accept() => match stream {
                Ok(stream) if connections.len() >= options.connections_max => {
                    turn_away(stream, options.connections_max);
                }
                Ok(stream) => {
                    let share = Share::new(&budget);
                    let admission = Arc::clone(&admission);
                    connections.spawn(serve(stream, admission, share, options.append_timeout, stop.clone()));
                }
                Err(error) => door.close_for_a_while(&error),
            }
        }
    }
    // Order: the file goes before the socket, so that a new peer never meets a name that leads nowhere.
    drop(file);
    drop(door);
    while let Some(ended) = connections.join_next().await {
        pass_on_panic(ended);
    }
    Ok(())
}

async fn serve(
    stream: tokio::net::UnixStream,
    admission: Arc<Admission>,
    share: Share,
    append_timeout: Duration,
    stop: CancellationToken,
) {
    admission.stats().unix_opened.add(1);
    let append = |batch| admission.append(batch, Wait::AtMost(append_timeout));
    Connection::new(stream, &admission, share, append_timeout, append).run(&stop).await;
    admission.stats().unix_closed.add(1);
}

fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
        std::panic::resume_unwind(panic);
    }
}

/// One line to a peer that cannot be served. It fits any socket buffer, so nobody waits.
fn turn_away(stream: tokio::net::UnixStream, connections_max: usize) {
    note::busy(connections_max);
    let error = format!("too many connections, unix.max_connections allows {connections_max}").into();
    let mut line = Vec::new();
    Reply::Error { error, code: Code::Busy, line: None, first: None, lines: None }.write_to(&mut line);
    let told = stream.into_std().and_then(|mut stream| io::Write::write_all(&mut stream, &line));
    if let Err(error) = told {
        tracing::debug!(%error, "a connection above the limit was closed without a word");
    }
}

/// The listening side. It closes for a growing while when accepting fails: descriptors come back when peers leave,
/// and trying at once would only burn power.
struct Door {
    socket: tokio::net::UnixListener,
    pause: Backoff,
    closed_until: Option<Instant>,
}

impl Door {
    /// Cancel safe: yes, the pause is kept and an accepted connection is always returned.
    async fn accept(&mut self) -> io::Result<tokio::net::UnixStream> {
        if let Some(until) = self.closed_until {
            sleep_until(until).await;
            self.closed_until = None;
        }
        let (stream, _) = self.socket.accept().await?;
        self.pause.reset();
        Ok(stream)
    }

    fn close_for_a_while(&mut self, error: &io::Error) {
        let pause = self.pause.delay();
        self.closed_until = Some(Instant::now() + pause);
        note::accept(error, pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{Buffer, Run, WriterThread};
    use crate::event::{EventId, Seq};
    use crate::ingest::route::Routes;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;

    fn options(path: &std::path::Path, append_timeout: Duration) -> Options {
        let when_full = WhenFull::Block;
        Options {
            path: path.to_owned(),
            mode: 0o600,
            connections_max: 2,
            pending_bytes_max: 1 << 20,
            append_timeout,
            when_full,
        }
    }

    fn buffer(dir: &std::path::Path) -> (Buffer, WriterThread) {
        let options = crate::buffer::Options::new(dir);
        Buffer::open(&options, [0; 16], Arc::default()).unwrap()
    }

    #[tokio::test]
    async fn one_connection_too_many_is_told_so_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let options = options(&path, Duration::from_secs(1));
        let listener = bind(&options).unwrap();
        let stats = Arc::<crate::stats::Stats>::default();
        let (buffer, writer) = buffer(dir.path());
        let admission =
            Admission::new(buffer.clone(), 1000, Routes::default(), Arc::default(), Arc::clone(&stats), None);
        let stop = CancellationToken::new();
        let peers = async {
            let mut text = String::new();
            let mut first = UnixStream::connect(&path).await.unwrap();
            let second = UnixStream::connect(&path).await.unwrap();
            UnixStream::connect(&path).await.unwrap().read_to_string(&mut text).await.unwrap();
            let busy = "too many connections, unix.max_connections allows 2";
            assert_eq!(text, format!("{{\"error\":\"{busy}\",\"code\":\"busy\"}}\n"));
            // A place that becomes free is given away again.
            drop(second);
            let mut third = loop {
                let mut stream = UnixStream::connect(&path).await.unwrap();
                // One that was turned away may be closed before it writes.
                if stream.write_all(b"x\n").await.is_ok() && stream.read_u8().await.is_ok() {
                    let mut answer = [0; 40];
                    let bytes = stream.read(&mut answer).await.unwrap();
                    if !String::from_utf8_lossy(&answer[..bytes]).contains("too many") {
                        break stream;
                    }
                }
            };
            assert_eq!((stats.unix_opened.get(), stats.unix_closed.get()), (3, 1));
            stop.cancel();
            let mut rest = Vec::new();
            third.read_to_end(&mut rest).await.unwrap();
            assert_eq!(first.read_to_end(&mut rest).await.unwrap(), 0);
        };
        let (ended, ()) = tokio::join!(run(options, listener, admission, stop.clone()), peers);
        ended.unwrap();
        assert!(!path.exists());
        assert_eq!(stats.unix_closed.get(), 3);
        buffer.close().await;
        writer.ended().await.unwrap();
    }

    #[tokio::test]
    async fn events_are_in_the_buffer_in_order_when_they_are_acknowledged() {
        const EVENTS: u64 = 20_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let options = options(&path, Duration::from_secs(20));
        let listener = bind(&options).unwrap();
        let (buffer, writer) = buffer(dir.path());
        let admission =
            Admission::new(buffer.clone(), 1000, Routes::default(), Arc::default(), Arc::default(), None);
        let stop = CancellationToken::new();
        let peer = async {
            let (answers, mut out) = UnixStream::connect(&path).await.unwrap().into_split();
            let send = async {
                for id in 1..=EVENTS {
                    let names = r#""type":"t","source_type":"s","source_id":"1""#;
                    let line = format!("{{\"id\":\"{id}\",{names},\"payload\":{id}}}\n");
                    out.write_all(line.as_bytes()).await.unwrap();
                }
                drop(out);
            };
            let hear = async {
                let mut answers = BufReader::new(answers).lines();
                let mut newest = 0;
                while let Some(answer) = answers.next_line().await.unwrap() {
                    newest =
                        serde_json::from_str::<serde_json::Value>(&answer).unwrap()["ack"].as_u64().unwrap();
                    assert!(buffer.durable().borrow().0 >= newest);
                }
                newest
            };
            let (newest, ()) = tokio::join!(hear, send);
            assert_eq!(newest, EVENTS);
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(run(options, listener, admission, stop.clone()), peer);
        ended.unwrap();
        let mut seen = 0;
        let mut run = Run::default();
        while seen < EVENTS {
            run = buffer.read(Seq(seen), 1 << 20, run).await.unwrap();
            for (seq, _, event) in run.events() {
                seen += 1;
                assert_eq!((seq, event.id), (Seq(seen), EventId::Given(&seen.to_string())));
            }
        }
        buffer.close().await;
        writer.ended().await.unwrap();
    }
}
