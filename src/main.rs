//! The `fieldpost` command: parses the command line and hands over to one command.

use std::process::ExitCode;

use fieldpost::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse_or_exit_code(std::env::args_os()) {
        Ok(cli) => cli.run(),
        Err(code) => code,
    }
}
