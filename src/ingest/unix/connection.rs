//! One connection: reads lines, appends their events in batches, answers what became of them.
//!
//! While appends are on their way the next lines are read and parsed, up to [`BATCH_BYTES`] and [`APPENDS_MAX`]; then
//! reading stops and the peer's own writes block. The same happens while the connections together hold all bytes of the
//! [`Budget`]; answers go on leaving. A lone line is appended at once; in a burst all whole lines of a
//! chunk are one batch, or a few. A turn works on one chunk at most, so no peer can keep the others waiting.

use std::future::{Future, pending};
use std::io::{self, ErrorKind};
use std::mem;
use std::pin::pin;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

#[cfg(doc)]
use super::budget::Budget;
use super::budget::Share;
use super::in_flight::{InFlight, Runs, Settled};
use super::lines::{CHUNK_BYTES, FIRST_BYTES, Line, Lines};
use super::note;
use super::reply::{Code, Replies};
use crate::buffer::{AppendError, Appended, Batch, Refused};
use crate::error::Class;
use crate::event::NAME_BYTES_MAX;
use crate::ingest::form::parse_event;
use crate::ingest::{Admission, Admitted};

/// Lines are taken until this much waits for its append; the last event comes on top. A batch must not be larger than
/// what the smallest buffer takes once it is drained, or it would be refused for ever.
pub(crate) const BATCH_BYTES: usize = 64 * 1024;

/// Most appends on their way: one being synced and the next ones collecting.
const APPENDS_MAX: usize = 4;

/// How long a peer that sent its last byte may take to read its answers.
const ANSWERS_WAIT: Duration = Duration::from_secs(30);

/// The same when the agent stops.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// Longest line for events of at most `event_bytes_max` stored bytes: a payload of bytes grows by a third in base64,
/// names may be written with escapes, and field names and spaces take some.
pub(crate) fn line_bytes_max(event_bytes_max: usize) -> usize {
    (event_bytes_max / 3).saturating_mul(4).saturating_add(4 * NAME_BYTES_MAX + 4 * 1024)
}

/// A connection and everything it holds in memory.
pub(super) struct Connection<'a, A, F> {
    stream: UnixStream,
    append: A,
    lines: Lines,
    share: Share,
    intake: Intake<'a>,
    in_flight: InFlight<F>,
    replies: Replies,
    /// Events that became durable or were left out by their routes: all that were taken and are settled.
    taken: u64,
    /// A line of which more came than a connection holds by itself.
    half_line: Option<HalfLine>,
    /// How long it may take when others wait for its bytes.
    half_line_wait: Duration,
    /// The last look found nothing to read.
    is_quiet: bool,
    /// Bytes read since the others had their turn.
    turn_bytes: usize,
}

/// An unfinished line that holds bytes of the budget.
#[derive(Debug, Clone, Copy)]
struct HalfLine {
    number: u64,
    /// When it is asked next whether others wait.
    until: Instant,
}

/// What a look at the stream found.
#[derive(Debug, PartialEq, Eq)]
enum Stream {
    Open,
    Ended,
}

impl<'a, A, F> Connection<'a, A, F>
where
    A: Fn(Batch) -> F,
    F: Future<Output = Result<Appended, Refused>>,
{
    /// A connection that holds its lines and batches by `share` and hands the batches to `append`. While others wait
    /// for the bytes of a half line it is refused after `half_line_wait`.
    pub(super) fn new(
        stream: UnixStream,
        admission: &'a Admission,
        share: Share,
        half_line_wait: Duration,
        append: A,
    ) -> Self {
        let bytes_max = line_bytes_max(admission.event_bytes_max());
        let peer = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
        Self {
            stream,
            append,
            lines: Lines::new(bytes_max),
            share,
            intake: Intake {
                admission,
                bytes_max,
                peer,
                batch: Batch::new(),
                lines: Runs::default(),
                left_out: 0,
            },
            in_flight: InFlight::new(),
            replies: Replies::default(),
            taken: 0,
            half_line: None,
            half_line_wait,
            is_quiet: true,
            turn_bytes: 0,
        }
    }

    /// Serves the peer until it has sent everything or `stop`, settles what was read, answers, and closes.
    ///
    /// Cancel safe: no, appends on their way would be stored without an answer.
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        self.read_lines(stop).await;
        self.settle_all().await;
        let answered = tokio::select! {
            () = self.write_all() => true,
            () = tokio::time::sleep(ANSWERS_WAIT) => false,
            () = async { stop.cancelled().await; tokio::time::sleep(STOP_WAIT).await } => false,
        };
        tracing::debug!(peer = self.intake.peer, taken = self.taken, answered, "connection closed");
    }

    async fn read_lines(&mut self, stop: &CancellationToken) {
        let mut stopped = pin!(stop.cancelled());
        loop {
            self.hand_on();
            self.give_back();
            let has_answers = !self.replies.is_empty();
            // What was read is taken then, too.
            let has_room = self.intake.has_room();
            let rest = self.lines.rest();
            let stream = tokio::select! {
                biased;
                () = &mut stopped => Stream::Ended,
                settled = self.in_flight.settled() => self.settle(settled),
                ready = self.stream.writable(), if has_answers => match ready {
                    Ok(()) => { self.write(); Stream::Open }
                    Err(_) => Stream::Ended,
                },
                () = time_of(self.half_line), if has_room => self.hurry(),
                ready = may_read(&self.stream, &mut self.share, rest), if has_room => match ready {
                    Ok(()) => self.read(),
                    Err(_) => Stream::Ended,
                },
            };
            if stream == Stream::Ended {
                return;
            }
            if self.turn_bytes >= CHUNK_BYTES {
                self.turn_bytes = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Brings everything that was read to an end. Takes as long as the appends, which have a limit of their own.
    async fn settle_all(&mut self) {
        self.share.leave_line();
        self.hand_on();
        while !self.in_flight.is_empty() {
            let has_answers = !self.replies.is_empty();
            tokio::select! {
                biased;
                settled = self.in_flight.settled() => { self.settle(settled); }
                ready = self.stream.writable(), if has_answers => match ready {
                    Ok(()) => self.write(),
                    Err(_) => self.replies.discard(),
                }
            }
            self.hand_on();
        }
        // The peer may take its time over the answers.
        self.lines = Lines::new(self.intake.bytes_max);
        self.share.release();
    }

    async fn write_all(&mut self) {
        while !self.replies.is_empty() && self.stream.writable().await.is_ok() {
            self.write();
        }
    }

    fn read(&mut self) -> Stream {
        let (may_grow, space_max) = (self.share.is_long(), self.share.space(self.lines.rest()));
        match self.lines.read(may_grow, space_max, |space| self.stream.try_read_buf(space)) {
            Ok(0) => {
                if let Some(line) = self.lines.unfinished() {
                    self.intake.refuse_half_line(line, &mut self.replies);
                }
                return Stream::Ended;
            }
            Ok(bytes) => {
                self.is_quiet = false;
                self.turn_bytes += bytes;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_quiet = true,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A peer that closed without reading its answers.
            Err(_) => return Stream::Ended,
        }
        Stream::Open
    }

    /// A peer that does not read never ends the connection here: what it sent before it left still counts.
    fn write(&mut self) {
        match self.stream.try_write(self.replies.unsent()) {
            Ok(bytes) => self.replies.sent(bytes),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.replies.discard(),
        }
    }

    /// Takes the lines that were read and begins appends, as far as there is room for them.
    fn hand_on(&mut self) {
        loop {
            while self.intake.has_room()
                && let Some(line) = self.lines.next_line()
            {
                self.intake.take(line, &mut self.replies);
            }
            self.share.charge(self.intake.batch.memory_bytes());
            if self.intake.batch.is_empty() {
                self.settle_left_out();
                return;
            }
            if self.in_flight.len() == APPENDS_MAX {
                return;
            }
            let (mut batch, lines) = (mem::take(&mut self.intake.batch), mem::take(&mut self.intake.lines));
            let left_out = mem::take(&mut self.intake.left_out);
            batch.shrink();
            self.in_flight.push(lines, left_out, self.share.hand_over(), (self.append)(batch));
        }
    }

    /// Acknowledges what routes left out. Order: not before the appends in front of it, because an acknowledgement counts.
    fn settle_left_out(&mut self) {
        let left_out = mem::take(&mut self.intake.left_out);
        if left_out > 0 && !self.in_flight.add_left_out(left_out) {
            self.taken += left_out;
            self.replies.ack(self.taken);
        }
    }

    /// Gives back bytes of the budget, and the memory they stand for, that what was read does not need. A busy
    /// connection keeps them as long as nobody waits for them.
    fn give_back(&mut self) {
        let rest = self.lines.rest();
        if rest > 0 && !self.intake.has_room() {
            // Whole lines may be among it.
            return;
        }
        if rest > FIRST_BYTES {
            let number = self.lines.next_number();
            if self.half_line.is_none_or(|half_line| half_line.number != number) {
                self.half_line = Some(HalfLine { number, until: Instant::now() + self.half_line_wait });
                self.lines.shrink();
                self.share.release_long();
            }
            self.share.top_up();
            return;
        }
        self.half_line = None;
        self.lines.shrink();
        self.share.release_long();
        if self.is_quiet {
            self.lines.idle();
            self.share.release();
        } else if !self.intake.has_room() || !self.share.top_up() {
            self.lines.keep_rest();
            self.share.release();
        }
    }

    /// The half line had its time: refuses it if others wait for its bytes.
    fn hurry(&mut self) -> Stream {
        let until = Instant::now() + self.half_line_wait;
        self.half_line = self.half_line.map(|half_line| HalfLine { until, ..half_line });
        if self.share.is_wanted() {
            let (number, wait) = (self.lines.give_up(), self.half_line_wait);
            self.intake.refuse_late_line(number, wait, &mut self.replies);
        }
        Stream::Open
    }

    fn settle(&mut self, settled: Settled) -> Stream {
        let Settled { lines, left_out, outcome, held } = settled;
        let events = lines.lines();
        self.taken += left_out;
        let stream = match outcome {
            Ok(_) => {
                self.taken += events;
                self.intake.admission.stats().unix_in.add(events);
                self.replies.ack(self.taken);
                Stream::Open
            }
            Err(Refused { reason, .. }) => {
                self.intake.admission.stats().refused.add(events);
                let code = code(&reason);
                note::refused(code, &reason, events, self.intake.peer);
                for lines in lines {
                    self.replies.refuse(lines, code, || reason.to_string().into());
                }
                // Order: behind the errors, which concern events before.
                if left_out > 0 {
                    self.replies.ack(self.taken);
                }
                // Nothing will be taken any more: reading on would only refuse.
                if reason.class() == Class::Fatal { Stream::Ended } else { Stream::Open }
            }
        };
        // Order: behind the batch, or others would take its bytes while it still has them.
        drop(held);
        stream
    }
}

/// Waits until there is something to read and the bytes to read it into.
///
/// Cancel safe: yes, see [`Share::granted`].
async fn may_read(stream: &UnixStream, share: &mut Share, rest: usize) -> io::Result<()> {
    stream.readable().await?;
    share.granted(rest).await;
    Ok(())
}

async fn time_of(half_line: Option<HalfLine>) {
    match half_line {
        Some(half_line) => sleep_until(half_line.until).await,
        None => pending().await,
    }
}

fn code(reason: &AppendError) -> Code {
    match reason {
        AppendError::Full => Code::BufferFull,
        AppendError::TimedOut => Code::Timeout,
        AppendError::Storage(_) => Code::Storage,
        AppendError::Closed => Code::Closing,
    }
}

/// The next batch and the lines behind its events.
struct Intake<'a> {
    admission: &'a Admission,
    /// Longest line.
    bytes_max: usize,
    /// Process id of the peer, for the log.
    peer: Option<i32>,
    batch: Batch,
    lines: Runs,
    /// Events that routes left out, since the batch was begun.
    left_out: u64,
}

impl Intake<'_> {
    fn has_room(&self) -> bool {
        self.batch.bytes() < BATCH_BYTES
    }

    fn take(&mut self, line: Line<'_>, replies: &mut Replies) {
        let stats = self.admission.stats();
        let (number, text) = match line {
            Line::Whole { number, text } => (number, text),
            Line::TooLong { number } => {
                stats.too_large.add(1);
                note::line(Code::TooLarge, number, self.peer);
                let bytes_max = self.bytes_max;
                replies.refuse(number..=number, Code::TooLarge, || {
                    format!(
                        "the line is longer than {bytes_max} bytes, which follow from limits.max_event_bytes"
                    )
                    .into()
                });
                return;
            }
        };
        let draft = match parse_event(text) {
            Ok(draft) => draft,
            Err(error) => {
                stats.invalid.add(1);
                note::line(Code::Invalid, number, self.peer);
                return replies.refuse(number..=number, Code::Invalid, || error.to_string().into());
            }
        };
        match self.admission.admit(&draft, None, &mut self.batch) {
            Ok(Admitted::Taken) => self.lines.push(number),
            Ok(Admitted::LeftOut) => self.left_out += 1,
            Err(refusal) => {
                let code = match refusal {
                    crate::ingest::Refusal::Invalid(_) => Code::Invalid,
                    crate::ingest::Refusal::TooLarge { .. } => Code::TooLarge,
                };
                note::line(code, number, self.peer);
                replies.refuse(number..=number, code, || refusal.to_string().into());
            }
        }
    }

    fn refuse_late_line(&mut self, number: u64, wait: Duration, replies: &mut Replies) {
        self.admission.stats().refused.add(1);
        note::line(Code::Timeout, number, self.peer);
        replies.refuse(number..=number, Code::Timeout, || {
            format!("the line did not end within {wait:?}, and other connections wait for its memory").into()
        });
    }

    fn refuse_half_line(&mut self, number: u64, replies: &mut Replies) {
        self.admission.stats().invalid.add(1);
        note::line(Code::Invalid, number, self.peer);
        replies.refuse(number..=number, Code::Invalid, || "the last line has no line end".into());
    }
}

#[cfg(test)]
mod tests;
