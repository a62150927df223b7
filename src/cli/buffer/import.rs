//! `fieldpost buffer import`: lines into the buffer of an agent that is stopped.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::ProgressBar;
use serde_json::json;

use super::target::{Target, refuse_open, say};
use crate::buffer::{Batch, Buffer, Wait, WhenFull};
use crate::cli::load::{self, DataArgs};
use crate::cli::send::ledger::LineError;
use crate::cli::text;
use crate::cli::{exit, runtime};
use crate::config::Config;
use crate::event::Seq;
use crate::ingest::form::parse_event;
use crate::ingest::route::{Keep, Route, Routes};
use crate::ingest::unix::{is_blank, line_bytes_max};
use crate::ingest::{Admission, Refusal};
use crate::system::{self, Clock};
use crate::{log, stats::Stats};

/// How much input is read at once.
const INPUT_BYTES: usize = 64 * 1024;

/// Events of so many bytes share a sync.
const BATCH_BYTES: usize = 256 * 1024;

/// How many errors a summary repeats.
const ERRORS_SHOWN: usize = 10;

/// Append events from a file, one as JSON a line, to the buffer of an agent that is stopped
///
/// Takes what `fieldpost buffer export` writes and what the socket takes, with the same checks. Each event gets a new
/// position and is delivered when the agent runs. While it runs, use `fieldpost send`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost buffer import events.ndjson
  zcat events.ndjson.gz | fieldpost buffer import -
  fieldpost buffer import --json events.ndjson | jq .next_line    where to go on after a full buffer

Exit codes:
  0   every event is durable
  64  wrong command line
  65  some lines can never be taken (invalid or too large), all others are durable
  66  the input cannot be read; what was read is durable
  74  the buffer cannot be opened
  75  an agent runs, or the buffer is full or cannot be written: the message says from which line on to go on
  78  invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// File with the events, - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print a summary as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// What became of the input.
#[derive(Debug, Default)]
struct Outcome {
    imported: u64,
    refused: u64,
    first: Option<Seq>,
    last: Option<Seq>,
    errors: Vec<LineError>,
    /// Why it ended early, the code to exit with, and the first line that was not decided.
    failure: Option<(String, u8, u64)>,
}

impl Args {
    pub(super) fn run(self) -> ExitCode {
        match self.import() {
            Ok(code) | Err(code) => code,
        }
    }

    fn import(&self) -> Result<ExitCode, ExitCode> {
        let target = Target::of(&self.data)?;
        let (input, bytes) = open_input(&self.file).map_err(|error| {
            say("import", &format!("cannot read {}: {error}", self.file.display()));
            ExitCode::from(exit::NO_INPUT)
        })?;
        show_warnings();
        let outcome = runtime::run("fieldpost buffer import", self.append(&target, input, bytes))??;
        let code = outcome.exit_code();
        if self.json {
            load::print(&format!("{}\n", outcome.json()));
        } else {
            outcome.report();
        }
        Ok(code.into())
    }

    async fn append(
        &self,
        target: &Target,
        input: Box<dyn BufRead>,
        bytes: u64,
    ) -> Result<Outcome, ExitCode> {
        let options = target.options();
        let (buffer, writer) =
            Buffer::open(&options, system::boot_id(), Arc::default()).map_err(|error| {
                let way = "stop it first, or hand the events to it with `fieldpost send --file FILE`";
                refuse_open("import", &error, way)
            })?;
        let batch_bytes = BATCH_BYTES.min(options.batch_bytes_max() / 2);
        let bar = text::bar(bytes);
        let admission = admission(target.config.as_ref(), buffer.clone());
        let mut work =
            Work { admission, batch_bytes, bar, outcome: Outcome::default(), batch: Batch::new(), from: 1 };
        work.lines(input).await;
        work.bar.finish_and_clear();
        buffer.close().await;
        let mut outcome = work.outcome;
        if let Err(error) = writer.ended().await {
            let next = outcome.failure.as_ref().map_or(work.from, |failure| failure.2);
            outcome.failure = Some((error.to_string(), exit::STORAGE, next));
        }
        Ok(outcome)
    }
}

/// The buffer's log lines that matter, on standard error.
pub(super) fn show_warnings() {
    // It cannot fail with a level of our own, but for a second call.
    let _ = log::init(&log::Options { level: "warn".to_owned(), format: log::Format::Text });
    log::log_panics();
}

/// As the socket's, but that nobody waits for room, since nothing drains the buffer meanwhile, and that everything is
/// taken: what a route leaves out was left out before.
fn admission(config: Option<&Config>, buffer: Buffer) -> Admission {
    let defaults = Config::load(None, std::iter::empty()).ok().map(|loaded| loaded.config);
    let limits = config.or(defaults.as_ref()).map(|config| config.limits);
    let when_full = without_wait(config.map_or(WhenFull::Reject, |config| config.when_full));
    let routes = config.map_or(&[][..], |config| config.routes.all()).iter().cloned();
    let routes =
        routes.map(|route| Route { when_full: route.when_full.map(without_wait), keep: Keep::All, ..route });
    let event_bytes_max = limits.map_or(BATCH_BYTES, |limits| limits.event_bytes_max);
    let stats = Arc::<Stats>::default();
    let routes = Routes::new(routes.collect(), 0);
    let admission = Admission::new(buffer, event_bytes_max, routes, Arc::<Clock>::default(), stats, None);
    admission.under(when_full).with_own()
}

fn without_wait(when_full: WhenFull) -> WhenFull {
    if when_full == WhenFull::Block { WhenFull::Reject } else { when_full }
}

fn open_input(path: &Path) -> io::Result<(Box<dyn BufRead>, u64)> {
    if path == Path::new("-") {
        return Ok((Box::new(BufReader::with_capacity(INPUT_BYTES, io::stdin())), 0));
    }
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    Ok((Box::new(BufReader::with_capacity(INPUT_BYTES, file)), bytes))
}

struct Work {
    admission: Admission,
    batch_bytes: usize,
    bar: ProgressBar,
    outcome: Outcome,
    batch: Batch,
    /// The first line of the batch.
    from: u64,
}

impl Work {
    async fn lines(&mut self, mut input: Box<dyn BufRead>) {
        let bytes_max = line_bytes_max(self.admission.event_bytes_max());
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = (&mut input).take(bytes_max as u64 + 1).read_until(b'\n', &mut line);
            let end = match read {
                Ok(0) => break,
                Ok(_) if line.last() == Some(&b'\n') => Ok(()),
                Ok(bytes) if bytes > bytes_max => {
                    self.refuse(number, "too_large", format!("the line is longer than {bytes_max} bytes"));
                    line.clear();
                    skip_line(&mut input)
                }
                // The last line may lack its end.
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            self.bar.inc(line.len() as u64);
            if let Err(error) = end {
                self.flush(number).await;
                self.fail(format!("the input cannot be read: {error}"), exit::NO_INPUT, number);
                return;
            }
            if !is_blank(&line) {
                self.take(number, &line);
            }
            if self.batch.bytes() >= self.batch_bytes {
                self.flush(number + 1).await;
            }
            if self.outcome.failure.is_some() {
                return;
            }
        }
        self.flush(u64::MAX).await;
    }

    fn take(&mut self, number: u64, line: &[u8]) {
        let draft = match parse_event(line) {
            Ok(draft) => draft,
            Err(error) => return self.refuse(number, "invalid", error.to_string()),
        };
        match self.admission.admit(&draft, None, &mut self.batch) {
            Ok(_) => {}
            Err(error @ Refusal::TooLarge { .. }) => self.refuse(number, "too_large", error.to_string()),
            Err(error @ Refusal::Invalid(_)) => self.refuse(number, "invalid", error.to_string()),
        }
    }

    /// Makes the batch durable; the next one begins at line `next`.
    async fn flush(&mut self, next: u64) {
        if !self.batch.is_empty() && self.outcome.failure.is_none() {
            let batch = std::mem::take(&mut self.batch);
            let events = batch.len() as u64;
            match self.admission.append(batch, Wait::Forever).await {
                Ok(appended) => {
                    let outcome = &mut self.outcome;
                    outcome.imported += events;
                    outcome.first.get_or_insert(appended.first);
                    outcome.last = Some(appended.first.plus(events).before());
                    self.bar.set_message(text::count(outcome.imported, "event"));
                    self.batch = appended.batch;
                    self.batch.clear();
                }
                Err(refused) => {
                    self.fail(refused.reason.to_string(), exit::TEMPORARY, self.from);
                    return;
                }
            }
        }
        self.from = next;
    }

    fn fail(&mut self, what: String, code: u8, line: u64) {
        self.outcome.failure.get_or_insert((what, code, line));
    }

    fn refuse(&mut self, line: u64, code: &str, error: String) {
        self.bar.suspend(|| say("import", &format!("line {line}: {code}: {error}")));
        self.outcome.refused += 1;
        if self.outcome.errors.len() < ERRORS_SHOWN {
            self.outcome.errors.push(LineError { line, lines: None, code: code.to_owned(), error });
        }
    }
}

/// Reads on to the end of a line without keeping it.
fn skip_line(input: &mut dyn BufRead) -> io::Result<()> {
    input.skip_until(b'\n').map(drop)
}

impl Outcome {
    fn exit_code(&self) -> u8 {
        match &self.failure {
            Some((_, code, _)) => *code,
            None if self.refused > 0 => exit::DATA,
            None => 0,
        }
    }

    fn report(&self) {
        let imported = text::count(self.imported, "event");
        let positions = match (self.first, self.last) {
            (Some(first), Some(last)) => format!(", positions {first}-{last}"),
            _ => String::new(),
        };
        let refused = match self.refused {
            0 => String::new(),
            refused => format!("; {} refused", text::count(refused, "line")),
        };
        say("import", &format!("{imported} imported{positions}{refused}"));
        if let Some((failure, _, line)) = &self.failure {
            say("import", &format!("{failure}; go on from line {line}"));
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "imported": self.imported, "refused": self.refused, "first": self.first, "last": self.last,
            "failure": self.failure.as_ref().map(|(what, ..)| what),
            "next_line": self.failure.as_ref().map(|(_, _, line)| line),
            "errors": self.errors,
        })
    }
}
