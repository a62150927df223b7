//! `fieldpost dead-letter`: what Kafka refused for good, for people at three in the morning and for scripts.
//!
//! All of it works beside a running agent and without one, but `retry`, which hands the events to the running one. A
//! damaged letter is said to be one and never stops the others.

mod discard;
mod export;
mod list;
mod pretty;
mod retry;
mod show;
mod target;

use std::process::ExitCode;

/// Look at events that Kafka refused, hand them in again, take them out or drop them
///
/// An event that Kafka refuses for its content, and that the dead-letter topic does not take either, is kept on this gateway
/// until somebody decides. A NAME is the position that `list` shows, with a part of the log behind it where two letters
/// have the same: 1000, 1000-08e1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost dead-letter list                           what was refused, why
  fieldpost dead-letter show 1000                      everything about one, with its payload
  fieldpost dead-letter retry --all                    the cause is mended: hand them to the running agent again
  fieldpost dead-letter export --output refused.ndjson to mend them by hand, then `fieldpost send --file`
  fieldpost dead-letter drop 1000 1001                 nobody wants them")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(list::Args),
    Show(show::Args),
    Retry(retry::Args),
    Export(export::Args),
    Drop(discard::Args),
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::List(args) => args.list(),
            Command::Show(args) => args.show(),
            Command::Retry(args) => args.retry(),
            Command::Export(args) => args.export(),
            Command::Drop(args) => args.discard(),
        };
        match done {
            Ok(code) | Err(code) => code,
        }
    }
}
