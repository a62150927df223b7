//! The `fieldpost` command: parses the command line, hands over to one command, exits with its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    fieldpost::cli::Cli::parse_or_exit_code(std::env::args_os()).map_or_else(|code| code, |cli| cli.run())
}
