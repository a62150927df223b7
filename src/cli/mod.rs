//! The command line: one file per command, each with its `Args` and a `run` that returns the exit code.

pub mod demo;
pub mod exit;
pub mod load;
pub mod run;
pub mod send;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

/// Edge publisher agent.
#[derive(Debug, Parser)]
#[command(name = "fieldpost", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(run::Args),
    Demo(demo::Args),
}

impl Cli {
    /// Parses the arguments.
    ///
    /// # Errors
    /// The code to exit with.
    pub fn parse_or_exit_code(arguments: impl Iterator<Item = OsString>) -> Result<Self, ExitCode> {
        Self::try_parse_from(arguments).map_err(|answer| {
            let _ = answer.print();
            match answer.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => exit::USAGE.into(),
            }
        })
    }

    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Run(args) => args.run(),
            Command::Demo(args) => args.run(),
        }
    }
}
