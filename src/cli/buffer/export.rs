//! `fieldpost buffer export`: events as lines that `import` and `send` take.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::json;

use super::target::{Target, refuse, say};
use crate::buffer::block::Origin;
use crate::buffer::view::{View, Walk};
use crate::cli::exit;
use crate::cli::line::{self, Place};
use crate::cli::load::DataArgs;
use crate::cli::text;
use crate::event::Seq;

/// How much is gathered before it is written.
const OUTPUT_BYTES: usize = 256 * 1024;

/// Write the events that wait to a file or standard output, one as JSON a line
///
/// Changes nothing and works beside a running agent; then up to the event that is the newest when it begins. Events come
/// in order, each once, in the form that `fieldpost buffer import` and `fieldpost send` take. The field `fieldpost` says
/// where an event was: agent, log, epoch, seq, time of receipt.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost buffer export > events.ndjson
  fieldpost buffer export --since 2026-03-01T00:00:00Z --output events.ndjson
  fieldpost buffer export --from 120500 | head -1 | jq .
  fieldpost buffer export --bad --output salvaged.ndjson    all that is whole on the disk

Without --from: from the oldest event that Kafka has not confirmed. With an earlier position, what is still on the disk of
the events before that comes too. What Kafka has confirmed ahead of older events is left out, but for --bad.

Exit codes:
  0   everything that waits is in the output
  64  wrong command line
  65  some events that wait are damaged and not in the output; without --bad
  74  there is no buffer, it cannot be read, or the output cannot be written
  78  invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Begin at this position
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// Leave out events that were taken before this RFC 3339 time, by the clock of then
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Salvage: also what is whole in damaged parts that were set aside, and what Kafka has confirmed and is still there
    #[arg(long)]
    bad: bool,
    /// Write to this file, which must not exist yet, instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print a summary as JSON: on standard output, or on standard error when the events go there
    #[arg(long)]
    json: bool,
}

/// What was written.
#[derive(Debug, Default)]
struct Outcome {
    events: u64,
    first: Option<Seq>,
    last: Option<Seq>,
    /// Left out for their time.
    earlier: u64,
    /// Of those, taken while the clock was not known to be right.
    doubtful: u64,
    missing: u64,
    /// Whoever reads has had enough.
    is_cut: bool,
}

/// Why the export ended early.
enum Failure {
    View(crate::buffer::view::ViewError),
    Output(io::Error),
}

impl Args {
    pub(super) fn run(self) -> ExitCode {
        match self.export() {
            Ok(code) | Err(code) => code,
        }
    }

    fn export(&self) -> Result<ExitCode, ExitCode> {
        let view = Target::of(&self.data)?.view("export")?;
        let first = if self.bad { Seq(1) } else { view.cursor.next() };
        let from = self.from.map_or(first, Seq);
        let walk = if self.bad { view.salvage(from) } else { view.walk(from) };
        let outcome = self.write(&view, walk).map_err(|failure| match failure {
            Failure::View(error) => refuse("export", &error),
            Failure::Output(error) => {
                let name =
                    self.output.as_ref().map_or("standard output".into(), |path| path.display().to_string());
                say("export", &format!("cannot write {name}: {error}"));
                exit::STORAGE.into()
            }
        })?;
        self.report(&outcome);
        Ok(if outcome.missing > 0 && !outcome.is_cut { exit::DATA.into() } else { ExitCode::SUCCESS })
    }

    fn write(&self, view: &View, walk: Walk<'_>) -> Result<Outcome, Failure> {
        let Some(path) = &self.output else {
            let mut out = BufWriter::with_capacity(OUTPUT_BYTES, io::stdout().lock());
            return match self.copy(view, walk, &mut out) {
                Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    Ok(Outcome { is_cut: true, ..Outcome::default() })
                }
                done => done,
            };
        };
        let file = File::create_new(path).map_err(Failure::Output)?;
        let mut out = BufWriter::with_capacity(OUTPUT_BYTES, file);
        let outcome = self.copy(view, walk, &mut out)?;
        // What was exported may be purged next.
        out.get_ref().sync_all().map_err(Failure::Output)?;
        Ok(outcome)
    }

    fn copy(&self, view: &View, mut walk: Walk<'_>, out: &mut impl Write) -> Result<Outcome, Failure> {
        let since_us = self.since.map(Timestamp::as_microsecond);
        let bar = text::bar(view.bytes_to_verify());
        let mut outcome = Outcome::default();
        while let Some(run) = walk.next().map_err(Failure::View)? {
            for (seq, origin, event) in run.events() {
                if since_us.is_some_and(|since_us| event.received.wall_us < since_us) {
                    outcome.earlier += 1;
                    outcome.doubtful += u64::from(!event.received.clock_trusted);
                    continue;
                }
                line::write(&event, place(view, seq, origin), out).map_err(Failure::Output)?;
                outcome.events += 1;
                outcome.first.get_or_insert(seq);
                outcome.last = Some(seq);
            }
            if !bar.is_hidden() {
                bar.set_position(walk.bytes());
                bar.set_message(text::count(outcome.events, "event"));
            }
        }
        out.flush().map_err(Failure::Output)?;
        bar.finish_and_clear();
        outcome.missing = walk.missing().events;
        Ok(outcome)
    }

    fn report(&self, outcome: &Outcome) {
        if self.json {
            let summary = json!({
                "events": outcome.events, "first": outcome.first, "last": outcome.last, "earlier": outcome.earlier,
                "earlier_untrusted": outcome.doubtful, "missing": outcome.missing,
            });
            match self.output {
                Some(_) => {
                    // Nobody is there to be told of a failure.
                    let _ = writeln!(io::stdout().lock(), "{summary}");
                }
                None => text::say_plainly(summary),
            }
            return;
        }
        if outcome.doubtful > 0 {
            let events = text::count(outcome.doubtful, "event");
            say(
                "export",
                &format!("{events} left out by --since were taken by a clock that was not known to be right"),
            );
        }
        if outcome.missing > 0 {
            let events = text::count(outcome.missing, "event");
            say(
                "export",
                &format!(
                    "{events} are damaged or missing and not in the output; see `fieldpost buffer verify`"
                ),
            );
        }
        if self.output.is_some() {
            say("export", &format!("{} written", text::count(outcome.events, "event")));
        }
    }
}

fn place(view: &View, seq: Seq, origin: Origin) -> Place<'_> {
    let name = view.log_of(origin.epoch);
    Place {
        agent: name.map(|name| name.agent.as_str()),
        log: name.map(|name| name.log),
        epoch: origin.epoch,
        seq,
        dead_letter: None,
    }
}
