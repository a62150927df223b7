//! `fieldpost send`: hands events to the agent's Unix socket and tells which of them are durable.
//!
//! The promise: exit code 0 means that every event of the input is durable. Otherwise each line is named that was
//! refused, and the line from which to send again if the connection ended early. Memory is bounded by the window,
//! whatever the size of the input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base64::Engine as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::value::RawValue;
use thiserror::Error;

pub(super) mod client;
pub(super) mod ledger;

use crate::cli::{exit, text};
use client::{Client, Failure, Outcome};
use ledger::LineError;

/// The agent's default.
const SOCKET: &str = "/run/fieldpost/fieldpost.sock";

/// The agent's own variable for its socket.
const SOCKET_VARIABLE: &str = "FIELDPOST_UNIX__PATH";

/// How much input is read at once.
const INPUT_BYTES: usize = 64 * 1024;

/// Largest `--payload-file`: far above any `limits.max_event_bytes` that makes sense, and no reason to swap.
const PAYLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024;

const EXAMPLES: &str = r#"Examples:
  One event, put together from options:
    fieldpost send --type reading --source-type thermometer --source-id t-1 \
      --payload '{"celsius":21.5}'

  Events from a file or a pipe, one JSON object a line:
    fieldpost send --file events.ndjson
    tail -F measurements.ndjson | fieldpost send

  A line has the form (id and timestamp may be left out, payload_base64 stands in for payload):
    {"type":"reading","source_type":"thermometer","source_id":"t-1","payload":{"celsius":21.5}}

  From a program: read the summary and send again from the first line that is not decided:
    fieldpost send --json --file events.ndjson

Exit codes:
  0   every event is durable
  64  wrong use of this command
  65  some lines can never be taken (invalid or too large), all others are durable
  66  the input cannot be read
  69  the agent cannot be reached
  75  some events are not durable for certain, send them again (buffer full, time-out,
      disk, connection lost, too many connections)"#;

/// Hand events to the agent and wait until they are durable.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Send {
    /// Socket of the agent [default: $FIELDPOST_UNIX__PATH, else /run/fieldpost/fieldpost.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// File with one event as JSON a line, instead of standard input
    #[arg(long, value_name = "FILE", conflicts_with = "kind")]
    file: Option<PathBuf>,
    #[command(flatten)]
    event: EventArgs,
    /// Most lines sent ahead of their acknowledgement
    #[arg(long, value_name = "LINES", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    window: u32,
    /// Give up after this many seconds without any answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,
    /// Print a summary as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// One event from options; `--type` asks for it.
#[derive(Debug, Args)]
struct EventArgs {
    /// Send one event of this type, put together from options
    #[arg(long = "type", value_name = "TYPE", requires_all = ["source_type", "source_id", "content"])]
    kind: Option<String>,
    /// The kind of thing that measured
    #[arg(long, requires = "kind")]
    source_type: Option<String>,
    /// The one thing that measured; events of one source stay in order
    #[arg(long, requires = "kind")]
    source_id: Option<String>,
    /// Name of the event; made by the agent if left out
    #[arg(long, requires = "kind")]
    id: Option<String>,
    /// RFC 3339 time, such as 2026-03-01T12:00:00Z; the time of arrival if left out
    #[arg(long, requires = "kind")]
    timestamp: Option<String>,
    #[command(flatten)]
    content: ContentArgs,
}

#[derive(Debug, Args)]
#[group(id = "content", multiple = false)]
struct ContentArgs {
    /// Payload as JSON; text needs its quotes: '"on"'
    #[arg(long, value_name = "JSON", requires = "kind")]
    payload: Option<String>,
    /// Payload as bytes in base64
    #[arg(long, value_name = "BASE64", requires = "kind")]
    payload_base64: Option<String>,
    /// File whose bytes are the payload
    #[arg(long, value_name = "FILE", requires = "kind")]
    payload_file: Option<PathBuf>,
}

/// Why nothing was sent. The message goes to the person at the terminal.
#[derive(Debug, Error)]
#[non_exhaustive]
enum SendError {
    /// Exit code 64.
    #[error("--payload is not JSON ({0}); text needs its quotes: --payload '\"on\"'")]
    Payload(serde_json::Error),
    /// Exit code 64.
    #[error("{} is larger than {} MiB", path.display(), PAYLOAD_BYTES_MAX >> 20)]
    PayloadTooLarge { path: PathBuf },
    /// Exit code 66.
    #[error("cannot read {}: {source}", path.display())]
    Input { path: PathBuf, source: io::Error },
    /// Exit code 69.
    #[error(
        "cannot reach the agent at {}: {source}; is it running, with [unix] configured, and may this user use it?",
        path.display()
    )]
    Unreachable { path: PathBuf, source: io::Error },
}

impl SendError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Payload(_) | Self::PayloadTooLarge { .. } => exit::USAGE,
            Self::Input { .. } => exit::NO_INPUT,
            Self::Unreachable { .. } => exit::UNAVAILABLE,
        }
    }
}

impl Send {
    /// Sends, waits, reports; the result is the command's exit code.
    pub fn run(self) -> ExitCode {
        let began = Instant::now();
        let code = match self.deliver() {
            Ok(outcome) => {
                outcome.report(began.elapsed());
                if self.json && outcome.print_json().is_err() { exit::TEMPORARY } else { outcome.exit_code() }
            }
            Err(error) => {
                text::say("fieldpost send", &error);
                error.exit_code()
            }
        };
        ExitCode::from(code)
    }

    fn deliver(&self) -> Result<Outcome, SendError> {
        let mut input = self.input()?;
        let timeout = Duration::from_secs(self.timeout.into());
        let path = self.socket();
        let stream =
            client::open(&path, timeout).map_err(|source| SendError::Unreachable { path, source })?;
        let progress = progress();
        let window = usize::try_from(self.window).unwrap_or(usize::MAX);
        let outcome =
            Client { window, timeout, progress: &progress, tells: true }.deliver(&stream, &mut input);
        progress.finish_and_clear();
        Ok(outcome)
    }

    fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(usual_socket)
    }

    fn input(&self) -> Result<Box<dyn BufRead>, SendError> {
        if let Some(line) = self.event.line()? {
            return Ok(Box::new(io::Cursor::new(line)));
        }
        if let Some(path) = &self.file {
            let file = open_input(path)?;
            return Ok(Box::new(BufReader::with_capacity(INPUT_BYTES, file)));
        }
        if io::stdin().is_terminal() {
            text::say_plainly("one event as JSON a line; Ctrl-D ends, --help shows the form");
        }
        Ok(Box::new(BufReader::with_capacity(INPUT_BYTES, io::stdin())))
    }
}

/// Where the agent listens when neither the command line nor a configuration says.
pub(super) fn usual_socket() -> PathBuf {
    std::env::var_os(SOCKET_VARIABLE).map_or_else(|| PathBuf::from(SOCKET), PathBuf::from)
}

fn open_input(path: &Path) -> Result<File, SendError> {
    File::open(path).map_err(|source| SendError::Input { path: path.to_owned(), source })
}

fn progress() -> ProgressBar {
    // Draws on standard error, and only on a terminal.
    let bar = ProgressBar::new_spinner();
    match ProgressStyle::with_template("{spinner} {msg}, {per_sec}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

impl EventArgs {
    /// The event as a line, if one is asked for.
    fn line(&self) -> Result<Option<Vec<u8>>, SendError> {
        #[derive(Serialize)]
        struct Form<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            id: Option<&'a str>,
            #[serde(rename = "type")]
            kind: &'a str,
            source_type: Option<&'a str>,
            source_id: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            timestamp: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            payload: Option<&'a RawValue>,
            #[serde(skip_serializing_if = "Option::is_none")]
            payload_base64: Option<String>,
        }
        let Some(kind) = self.kind.as_deref() else { return Ok(None) };
        // A line end in valid JSON is a space between tokens, and on the socket it would end the event.
        let payload = self.content.payload.as_deref().map(|text| text.replace(['\n', '\r'], " "));
        let payload = payload.as_deref().map(serde_json::from_str).transpose().map_err(SendError::Payload)?;
        let form = Form {
            id: self.id.as_deref(),
            kind,
            source_type: self.source_type.as_deref(),
            source_id: self.source_id.as_deref(),
            timestamp: self.timestamp.as_deref(),
            payload,
            payload_base64: self.content.base64()?,
        };
        let mut line = serde_json::to_vec(&form).map_err(SendError::Payload)?;
        line.push(b'\n');
        Ok(Some(line))
    }
}

impl ContentArgs {
    fn base64(&self) -> Result<Option<String>, SendError> {
        let Some(path) = &self.payload_file else { return Ok(self.payload_base64.clone()) };
        let mut bytes = Vec::new();
        let read = open_input(path)?.take(PAYLOAD_BYTES_MAX + 1).read_to_end(&mut bytes);
        let length = read.map_err(|source| SendError::Input { path: path.clone(), source })?;
        if u64::try_from(length).unwrap_or(u64::MAX) > PAYLOAD_BYTES_MAX {
            return Err(SendError::PayloadTooLarge { path: path.clone() });
        }
        Ok(Some(base64::engine::general_purpose::STANDARD.encode(bytes)))
    }
}

impl Outcome {
    fn exit_code(&self) -> u8 {
        match &self.failure {
            Some(Failure::Input(_)) => exit::NO_INPUT,
            Some(_) => exit::TEMPORARY,
            None if self.ledger.refused_for_now > 0 => exit::TEMPORARY,
            None if self.ledger.refused_for_good > 0 => exit::DATA,
            None => 0,
        }
    }

    /// A short summary for people on standard error.
    fn report(&self, took: Duration) {
        let ledger = &self.ledger;
        if let Some(failure) = &self.failure {
            text::say("fieldpost send", failure);
        }
        let refused = match ledger.refused() {
            0 => String::new(),
            refused => format!(", {refused} refused"),
        };
        let (sent, durable) = (ledger.sent, ledger.acknowledged);
        text::say_plainly(format_args!(
            "{durable} of {sent} events are durable for certain{refused} ({:.1} s)",
            took.as_secs_f32()
        ));
        if let Some(line) = ledger.first_undecided() {
            text::say_plainly(format_args!("send again from input line {line}"));
        }
    }

    /// The summary for programs on standard output.
    fn print_json(&self) -> io::Result<()> {
        #[derive(Serialize)]
        struct Summary<'a> {
            sent: u64,
            acknowledged: u64,
            refused: u64,
            undecided: usize,
            #[serde(skip_serializing_if = "Option::is_none")]
            first_undecided_line: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            failure: Option<String>,
            errors: &'a [LineError],
        }
        let ledger = &self.ledger;
        let summary = Summary {
            sent: ledger.sent,
            acknowledged: ledger.acknowledged,
            refused: ledger.refused(),
            undecided: ledger.undecided(),
            first_undecided_line: ledger.first_undecided(),
            failure: self.failure.as_ref().map(Failure::to_string),
            errors: &ledger.errors,
        };
        let mut text = serde_json::to_vec(&summary)?;
        text.push(b'\n');
        io::stdout().lock().write_all(&text)
    }
}

#[cfg(test)]
mod tests;
