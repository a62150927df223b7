//! `fieldpost buffer purge`: gives events up that nobody wants any more, counted.

use std::process::ExitCode;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use super::import::show_warnings;
use super::target::{Target, refuse_open, say};
use crate::buffer::{Buffer, ReadError, Run};
use crate::cli::load::{self, DataArgs};
use crate::cli::text;
use crate::cli::{ask, exit, runtime};
use crate::event::{Event, Seq};
use crate::system;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// Give up events that wait, oldest first, before a position or a time
///
/// They will never reach Kafka. Each is counted in the loss ledger as `purged`, with its position, before it is gone. Asks
/// on a terminal. The agent must be stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost buffer purge --before 2026-03-01T00:00:00Z    up to the first event that was taken then or later
  fieldpost buffer purge --before 120500                  everything in front of that position
  fieldpost buffer purge --before 120500 --yes --json     for scripts

`fieldpost buffer export` before it keeps a copy.

Exit codes:
  0   done, or nothing to do
  64  wrong command line, or neither a terminal nor --yes
  74  the buffer cannot be opened, read or written
  75  an agent runs, or the answer was no: nothing was given up
  78  invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Position or RFC 3339 time: everything in front of it goes
    #[arg(long, value_name = "SEQ|TIME", value_parser = before)]
    before: Before,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print what was given up as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Where the events begin that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Seq(Seq),
    Time(Timestamp),
}

fn before(text: &str) -> Result<Before, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text
            .parse()
            .map(|n| Before::Seq(Seq(n)))
            .map_err(|_| "a position is a whole number".to_owned());
    }
    let time = text.parse().map(Before::Time);
    time.map_err(|_| "neither a position nor an RFC 3339 time such as 2026-03-01T12:00:00Z".to_owned())
}

impl Before {
    fn stays(self, seq: Seq, event: &Event<'_>) -> bool {
        match self {
            Self::Seq(first) => seq >= first,
            Self::Time(first) => event.received.wall_us >= first.as_microsecond(),
        }
    }
}

/// What would go.
#[derive(Debug, Default)]
struct Plan {
    /// Positions of the events, first and last of each range.
    ranges: Vec<(Seq, Seq)>,
    events: u64,
    /// Everything up to here.
    to: Seq,
    /// Times of the first and the last one.
    times_us: Option<(i64, i64)>,
    /// Taken while the clock was not known to be right.
    doubtful: u64,
}

impl Args {
    pub(super) fn run(self) -> ExitCode {
        match self.purge() {
            Ok(code) | Err(code) => code,
        }
    }

    fn purge(&self) -> Result<ExitCode, ExitCode> {
        if !self.yes && !ask::is_possible() {
            say("purge", "there is no terminal to ask on: say --yes");
            return Err(exit::USAGE.into());
        }
        let target = Target::of(&self.data)?;
        // It is not made for this.
        target.view("purge")?;
        show_warnings();
        runtime::run("fieldpost buffer purge", async {
            let (buffer, writer) = Buffer::open(&target.options(), system::boot_id(), Arc::default())
                .map_err(|error| refuse_open("purge", &error, "stop it first"))?;
            let purged = self.give_up(&buffer).await;
            buffer.close().await;
            let closed = writer.ended().await;
            let purged = purged.map_err(|error| failed(&error.to_string()))?;
            closed.map_err(|error| failed(&error.to_string()))?;
            Ok(match purged {
                Some((plan, events)) => self.report(&plan, events),
                None => {
                    say("purge", "nothing was given up");
                    exit::TEMPORARY.into()
                }
            })
        })?
    }

    /// `None`: the answer was no.
    async fn give_up(&self, buffer: &Buffer) -> Result<Option<(Plan, u64)>, ReadError> {
        let plan = self.plan(buffer).await?;
        if plan.events == 0 {
            return Ok(Some((plan, 0)));
        }
        if !self.yes && !plan.is_agreed() {
            return Ok(None);
        }
        let events = buffer.purge(plan.ranges.clone(), plan.to).await?;
        Ok(Some((plan, events)))
    }

    /// Reads up to the first event that stays.
    async fn plan(&self, buffer: &Buffer) -> Result<Plan, ReadError> {
        let figures = buffer.figures();
        let mut plan = Plan { to: figures.cursor, ..Plan::default() };
        let bar = text::bar(figures.disk_bytes);
        let mut run = Run::default();
        while plan.to < figures.durable {
            run = buffer.read(plan.to, READ_BYTES, run).await?;
            bar.inc(run.bytes() as u64);
            bar.set_message(text::count(plan.events, "event"));
            for (seq, _, event) in run.events() {
                if self.before.stays(seq, &event) {
                    bar.finish_and_clear();
                    return Ok(plan);
                }
                plan.add(seq, &event);
            }
            plan.to = run.end().max(plan.to);
        }
        bar.finish_and_clear();
        Ok(plan)
    }

    fn report(&self, plan: &Plan, events: u64) -> ExitCode {
        if self.json {
            let first = plan.ranges.first().map(|range| range.0);
            let last = plan.ranges.last().map(|range| range.1);
            return load::print(&format!("{}\n", json!({ "events": events, "first": first, "last": last })));
        }
        say(
            "purge",
            &match events {
                0 => "nothing to give up".to_owned(),
                events => format!("{} given up and counted in the loss ledger", text::count(events, "event")),
            },
        );
        ExitCode::SUCCESS
    }
}

impl Plan {
    fn add(&mut self, seq: Seq, event: &Event<'_>) {
        match self.ranges.last_mut() {
            Some((_, last)) if last.next() == seq => *last = seq,
            _ => self.ranges.push((seq, seq)),
        }
        let time_us = event.received.wall_us;
        self.times_us = Some((self.times_us.map_or(time_us, |(first_us, _)| first_us), time_us));
        self.events += 1;
        self.doubtful += u64::from(!event.received.clock_trusted);
        self.to = seq;
    }

    /// Asks on the terminal.
    fn is_agreed(&self) -> bool {
        let (first_us, last_us) = self.times_us.unwrap_or_default();
        let doubt = match self.doubtful {
            0 => String::new(),
            n => format!(" ({n} of them by a clock that was not known to be right)"),
        };
        let question = format!(
            "Give up {} up to position {}, taken {} to {}{doubt}? They will not reach Kafka.",
            text::count(self.events, "event"),
            self.to,
            text::short_time(first_us),
            text::short_time(last_us),
        );
        ask::is_agreed(&question)
    }
}

fn failed(error: &str) -> ExitCode {
    say("purge", error);
    exit::STORAGE.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_position_or_a_time() {
        assert_eq!(before("17"), Ok(Before::Seq(Seq(17))));
        assert_eq!(
            before("2026-03-01T12:00:00Z"),
            Ok(Before::Time(Timestamp::from_second(1_772_366_400).unwrap()))
        );
        for wrong in ["", "yesterday", "2026-03-01", "-1", "99999999999999999999999"] {
            before(wrong).expect_err(wrong);
        }
    }
}
