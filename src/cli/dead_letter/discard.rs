//! `fieldpost dead-letter drop`: letters that nobody wants any more.

use std::process::ExitCode;

use jiff::Timestamp;

use super::target::{Target, WhichArgs, short};
use crate::cli::load::DataArgs;
use crate::cli::{ask, exit, text};
use crate::dead_letter::Entry;

/// Drop dead letters for good
///
/// They were counted in the loss ledger when they were refused. Asks on a terminal. Damaged letters go by name or with
/// --all.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("which").required(true),
    after_help = "\
Examples:
  fieldpost dead-letter drop 1000 1001
  fieldpost dead-letter drop --before 2026-03-01T00:00:00Z --yes

`fieldpost dead-letter export` before it keeps a copy.

Exit codes:
  0   they are gone, or there was nothing to drop
  64  wrong command line, or neither a terminal nor --yes
  65  there is no letter of that name, or there are several: nothing was dropped
  74  the store cannot be read or written, or there is no such data directory
  75  the answer was no: nothing was dropped
  78  invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    which: WhichArgs,
    /// Those that were refused before this RFC 3339 time, by the clock of then
    #[arg(long, value_name = "TIME", group = "which")]
    before: Option<Timestamp>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Args {
    pub(super) fn discard(&self) -> Result<ExitCode, ExitCode> {
        let target = Target::of(&self.data, "drop")?;
        if !self.yes && !ask::is_possible() {
            target.say("there is no terminal to ask on: say --yes");
            return Err(exit::USAGE.into());
        }
        let entries = self.chosen(&target)?;
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            target.say("nothing to drop");
            return Ok(ExitCode::SUCCESS);
        };
        let letters = text::count(entries.len() as u64, "dead letter");
        let range = if first == last {
            short(first.name)
        } else {
            format!("{} to {}", short(first.name), short(last.name))
        };
        if !self.yes && !ask::is_agreed(&format!("Drop {letters}, {range}? They are gone for good.")) {
            target.say("nothing was dropped");
            return Err(exit::TEMPORARY.into());
        }
        let mut dropped = 0;
        for entry in &entries {
            dropped += u64::from(target.folder.remove(entry.name).map_err(|error| target.refuse(&error))?);
        }
        target.folder.sync().map_err(|error| target.refuse(&error))?;
        target.say(&format!("{} dropped", text::count(dropped, "dead letter")));
        Ok(ExitCode::SUCCESS)
    }

    fn chosen(&self, target: &Target) -> Result<Vec<Entry>, ExitCode> {
        let mut entries = target.chosen(&self.which)?;
        let Some(before) = self.before else { return Ok(entries) };
        let mut failure = None;
        entries.retain(|entry| match target.read(entry, &mut 0) {
            Ok(stored) => stored.is_some_and(|stored| stored.head.refused.wall_us < before.as_microsecond()),
            Err(code) => {
                failure.get_or_insert(code);
                false
            }
        });
        failure.map_or(Ok(entries), Err)
    }
}
