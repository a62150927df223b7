//! Simulated sensors: local programs that send readings to the agent's Unix socket, as the manual tells them to.
//!
//! Each thread is one program with one connection and several sources. It keeps what is not acknowledged; when the
//! agent is gone it connects again and sends that first, in the old order and with the old ids. What an
//! acknowledgement means is taken from the code of `fieldpost send`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use memchr::memchr;

use super::consumer::EventName;
use super::{Plan, Shared};
use crate::cli::send::ledger::Ledger;

/// Time between two looks at what is due.
const TICK: Duration = Duration::from_millis(10);

/// Pause before a sensor connects again.
const RECONNECT: Duration = Duration::from_millis(50);

/// Longest wait for the agent to take what is written; then the connection counts as lost.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most events on the way without an acknowledgement; at the limit the sensor waits.
const WINDOW: usize = 1000;

/// Longest answer without a line end.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long after its last reading a sensor waits for acknowledgements.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// The payload of an event, the same whenever it is asked for, so that a consumer can tell a changed one.
pub(super) fn payload(EventName { source, number }: EventName) -> String {
    let tenths = 180 + (number * 7 + source * 13) % 90;
    format!(r#"{{"n":{number},"celsius":{}.{},"battery_volt":2.9}}"#, tenths / 10, tenths % 10)
}

/// What became of an event, as its sensor knows it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fate {
    pub(super) is_acknowledged: bool,
    /// It was on its way when a connection broke, so that it may be stored twice.
    pub(super) is_repeated: bool,
    /// The agent answered that it did not take it, so that it comes behind its neighbours.
    pub(super) is_refused: bool,
}

/// The events of one source, in the order of their numbers from 1.
pub(super) type Diary = Vec<Fate>;

/// What one sensor program knows at its end.
#[derive(Debug)]
pub(super) struct Diaries {
    /// Index of the first source.
    pub(super) first: usize,
    pub(super) sources: Vec<Diary>,
    /// Why events were not taken, in the agent's words.
    pub(super) complaints: Vec<String>,
}

/// One program.
pub(super) struct Sensor<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    socket: &'a Path,
    first: usize,
    diaries: Diaries,
    started: Instant,
    /// Readings so far; they go round the sources.
    readings: usize,
    /// To be sent again before anything new.
    again: VecDeque<EventName>,
}

/// What is known of one connection.
#[derive(Default)]
struct Connection {
    ledger: Ledger,
    /// Lines sent and not decided.
    open: VecDeque<(u64, EventName)>,
    lines: u64,
    /// Lines that were not taken, and whether they never can be.
    refused: BTreeMap<u64, bool>,
    answers: Vec<u8>,
}

impl<'a> Sensor<'a> {
    pub(super) fn new(plan: &'a Plan, shared: &'a Shared, socket: &'a Path, sources: Range<usize>) -> Self {
        let diaries = Diaries {
            first: sources.start,
            sources: vec![Diary::new(); sources.len()],
            complaints: Vec::new(),
        };
        let (started, again) = (Instant::now(), VecDeque::new());
        Self { plan, shared, socket, first: sources.start, diaries, started, readings: 0, again }
    }

    /// Sends until the time is up and everything is acknowledged, or the demo stops.
    pub(super) fn run(mut self) -> Diaries {
        while !self.shared.stop.is_set() && self.started.elapsed() < self.plan.sending + LAST_WORDS {
            let mut connection = Connection::default();
            let talked = UnixStream::connect(self.socket).and_then(|s| self.talk(&s, &mut connection));
            if let Ok(()) = talked {
                break;
            }
            self.lost(connection);
            self.shared.stop.wait(RECONNECT);
        }
        self.diaries
    }

    /// Everything that is undecided goes out again, before what waits already and in its old order.
    fn lost(&mut self, connection: Connection) {
        self.shared.figures.in_flight.add(connection.open.len() as u64);
        for (_, event) in connection.open.into_iter().rev() {
            if let Some(fate) = self.fate(event) {
                fate.is_repeated = true;
            }
            self.again.push_front(event);
        }
    }

    /// One connection. `Ok`: everything is said.
    fn talk(&mut self, mut stream: &UnixStream, connection: &mut Connection) -> io::Result<()> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        loop {
            let tick = Instant::now() + TICK;
            let text = self.lines(connection);
            let written = stream.write_all(text.as_bytes());
            while let Some(left) = tick.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
                stream.set_read_timeout(Some(left))?;
                match self.listen(stream, connection) {
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        break;
                    }
                    heard => heard?,
                }
            }
            if let Err(error) = written {
                // Order: what the agent said before it died counts.
                while self.listen(stream, connection).is_ok() {}
                return Err(error);
            }
            let is_said = self.readings >= self.due(self.plan.sending) && self.again.is_empty();
            if (is_said && connection.open.is_empty()) || self.shared.stop.is_set() {
                return Ok(());
            }
        }
    }

    /// How many readings belong to the first `time` of the sending.
    fn due(&self, time: Duration) -> usize {
        let share = self.plan.rate as usize * self.diaries.sources.len() / self.plan.sources;
        usize::try_from(time.as_micros() * share as u128 / 1_000_000).unwrap_or(usize::MAX)
    }

    /// The lines that are due and fit the window.
    fn lines(&mut self, connection: &mut Connection) -> String {
        let due = self.due(self.started.elapsed().min(self.plan.sending));
        let mut text = String::new();
        while connection.open.len() < WINDOW {
            let event = match self.again.pop_front() {
                Some(event) => event,
                None if self.readings < due => self.reading(),
                None => break,
            };
            connection.lines += 1;
            connection.ledger.sending(connection.lines);
            connection.open.push_back((connection.lines, event));
            line(&self.plan.run, event, &mut text);
        }
        text
    }

    fn reading(&mut self) -> EventName {
        let at = self.readings % self.diaries.sources.len();
        self.readings += 1;
        self.shared.figures.sent.add(1);
        let number = self.diaries.sources.get_mut(at).map_or(0, |diary| {
            diary.push(Fate::default());
            diary.len()
        });
        EventName { source: self.first + at, number }
    }

    fn fate(&mut self, event: EventName) -> Option<&mut Fate> {
        let diary = self.diaries.sources.get_mut(event.source.checked_sub(self.first)?)?;
        diary.get_mut(event.number.checked_sub(1)?)
    }

    /// Takes the answers that are there, or waits for the first of them.
    fn listen(&mut self, mut stream: &UnixStream, connection: &mut Connection) -> io::Result<()> {
        let mut chunk = [0; 4096];
        let bytes = stream.read(&mut chunk)?;
        if bytes == 0 || connection.answers.len() > ANSWER_BYTES_MAX {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.shared.acknowledgement_came();
        connection.answers.extend_from_slice(chunk.get(..bytes).unwrap_or_default());
        while let Some(end) = memchr(b'\n', &connection.answers) {
            let answer: Vec<u8> = connection.answers.drain(..=end).collect();
            self.hear(&answer, connection)?;
        }
        Ok(())
    }

    fn hear(&mut self, answer: &[u8], connection: &mut Connection) -> io::Result<()> {
        if let Some(refused) = connection.ledger.hear(answer).map_err(io::Error::other)? {
            self.shared.figures.refused.add(1);
            if refused.lines.is_some() {
                return Err(io::Error::other("the agent does not say which lines it refused"));
            }
            let is_for_good = matches!(refused.code.as_str(), "invalid" | "too_large");
            connection.refused.insert(refused.line, is_for_good);
            self.diaries.complaints.push(format!("{}: {}", refused.code, refused.error));
        }
        let undecided = connection.ledger.first_undecided().unwrap_or(u64::MAX);
        while let Some((line, event)) = connection.open.pop_front_if(|(line, _)| *line < undecided) {
            match connection.refused.remove(&line) {
                None => self.acknowledged(event),
                Some(is_for_good) => self.refused(event, is_for_good),
            }
        }
        Ok(())
    }

    fn acknowledged(&mut self, event: EventName) {
        if let Some(fate) = self.fate(event) {
            fate.is_acknowledged = true;
            self.shared.figures.acknowledged.add(1);
        }
    }

    fn refused(&mut self, event: EventName, is_for_good: bool) {
        if let Some(fate) = self.fate(event) {
            fate.is_refused = true;
        }
        if !is_for_good {
            self.again.push_back(event);
        }
    }
}

fn line(run: &str, event: EventName, text: &mut String) {
    let EventName { source, number } = event;
    let payload = payload(event);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        r#"{{"id":"{run}-{source:02}-{number}","type":"reading","source_type":"thermometer","source_id":"{run}-{source:02}","payload":{payload}}}"#
    );
}
