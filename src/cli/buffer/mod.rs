//! `fieldpost buffer`: what is in the buffer's directory, for people at three in the morning and for scripts.
//!
//! `status`, `verify` and `export` only read, beside a running agent too. `import` and `purge` open the buffer as the
//! agent does, so they want it for themselves.

mod export;
mod import;
mod purge;
mod status;
mod target;
mod verify;

use std::process::ExitCode;

/// Look into the buffer, check it, take events out or in
///
/// `status`, `verify` and `export` change nothing and work beside a running agent; `import` and `purge` need it stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost buffer status                                what waits, since when, what was lost
  fieldpost buffer status --json | jq .events            for scripts
  fieldpost buffer verify                                is everything whole?
  fieldpost buffer export --output events.ndjson         what waits, one JSON event a line
  fieldpost buffer import events.ndjson                  into the buffer of an agent that is stopped
  fieldpost buffer purge --before 2026-03-01T00:00:00Z   give up what is older, counted in the loss ledger")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Status(status::Args),
    Verify(verify::Args),
    Export(export::Args),
    Import(import::Args),
    Purge(purge::Args),
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Status(args) => args.run(),
            Command::Verify(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Import(args) => args.run(),
            Command::Purge(args) => args.run(),
        }
    }
}
