//! The command line: one file per command, each with its `Args` and a `run` that returns the exit code.

// It panics where standard error is a pipe that nobody reads; see `text::say`.
#![deny(clippy::print_stderr)]

mod agent_place;
mod ask;
pub mod bench;
pub mod buffer;
pub mod check;
pub mod completions;
pub mod config;
pub mod dead_letter;
pub mod demo;
pub mod diag;
pub mod exit;
mod line;
pub mod load;
pub mod man;
mod routes;
pub mod run;
mod runtime;
pub mod schema;
pub mod send;
pub mod streams;
pub mod tail;
mod text;
pub mod top;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

/// Edge publisher agent: takes events over MQTT and a Unix socket, keeps them safe, brings them to Kafka and tells
/// watchers through Redis.
#[derive(Debug, Parser)]
#[command(name = "fieldpost", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(run::Args),
    Send(Box<send::Send>),
    Check(check::Args),
    Config(config::Args),
    Buffer(buffer::Args),
    DeadLetter(dead_letter::Args),
    Diag(diag::Args),
    Streams(streams::Args),
    Tail(Box<tail::Args>),
    Top(top::Args),
    Schema(schema::Args),
    Bench(bench::Args),
    Demo(demo::Args),
    Completions(completions::Args),
    Man(man::Args),
}

const AFTER_HELP: &str = "\
Examples:
  fieldpost demo                               see it at work, with nothing installed
  fieldpost config --example > fieldpost.toml  write a file with every key and its default
  fieldpost check --config fieldpost.toml      is it right, and do the services answer?
  fieldpost run --config fieldpost.toml        the agent, until a signal
  fieldpost send < events.ndjson               hand events to a running agent, wait until they are durable
  fieldpost schema --format avro               what consumers get, for their tools
  fieldpost buffer status                      what waits, since when, what was lost
  fieldpost dead-letter list                   what Kafka refused, and why
  fieldpost diag                               one file for a bug report, without secrets
  fieldpost streams status                     how long Redis' streams are, and whether groups keep up
  fieldpost tail --type 'alarm*'               follow events, from the agent, Redis or Kafka
  fieldpost top                                a running agent, drawn again each second

Exit codes:
  0   done                       74  storage cannot be used
  64  wrong command line         75  a service is away: try again later
  65  wrong or damaged data      78  invalid configuration
  70  a bug                      1   not healthy (fieldpost streams status)

Configuration: the file of --config, else of $FIELDPOST_CONFIG, else
/etc/fieldpost/fieldpost.toml. Variables FIELDPOST_<SECTION>__<KEY> override it.";

impl Cli {
    /// Parses the arguments. What is no command, `--help` and `--version` included, is answered here.
    ///
    /// # Errors
    /// The code to exit with: success after help and version, else [`exit::USAGE`].
    pub fn parse_or_exit_code(arguments: impl Iterator<Item = OsString>) -> Result<Self, ExitCode> {
        Self::try_parse_from(arguments).map_err(|answer| {
            // A closed terminal is no reason for another code.
            let _ = answer.print();
            match answer.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => exit::USAGE.into(),
            }
        })
    }

    /// Runs the command.
    pub fn run(self) -> ExitCode {
        // Order: before the configuration is read, and with it passwords.
        if let Err(error) = crate::system::keep_memory_private() {
            text::say("fieldpost", format_args!("core dumps cannot be turned off: {error}"));
        }
        match self.command {
            Command::Run(args) => args.run(),
            Command::Send(args) => args.run(),
            Command::Check(args) => args.run(),
            Command::Config(args) => args.run(),
            Command::Buffer(args) => args.run(),
            Command::DeadLetter(args) => args.run(),
            Command::Diag(args) => args.run(),
            Command::Streams(args) => args.run(),
            Command::Tail(args) => args.run(),
            Command::Top(args) => args.run(),
            Command::Schema(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Demo(args) => args.run(),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn code(arguments: &[&str]) -> Option<ExitCode> {
        let arguments = std::iter::once("fieldpost").chain(arguments.iter().copied()).map(OsString::from);
        Cli::parse_or_exit_code(arguments).err()
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        assert_eq!(code(&["check", "--offline", "--timeout", "500ms"]), None);
        assert_eq!(code(&["--version"]), Some(ExitCode::SUCCESS));
        assert_eq!(code(&["man", "buffer", "status"]), None);
        for wrong in [&[][..], &["chek"], &["check", "--timeout", "5"], &["config", "--example", "--json"]] {
            assert_eq!(code(wrong), Some(exit::USAGE.into()), "{wrong:?}");
        }
    }

    /// `fieldpost buffer status` and every command in it.
    fn each(command: &clap::Command, look: &mut impl FnMut(&clap::Command)) {
        look(command);
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            each(below, look);
        }
    }

    #[test]
    fn each_command_teaches_by_an_example_and_tells_its_exit_codes() {
        let mut root = Cli::command();
        root.build();
        each(&root, &mut |command| {
            let name = command.get_bin_name().unwrap_or("fieldpost");
            let help = command.clone().render_long_help().to_string();
            let (_, below) = help.split_once("Examples:").unwrap_or_else(|| panic!("{name}"));
            let (examples, codes) = below.split_once("Exit codes:").unwrap_or((below, ""));
            assert!(examples.contains(name), "{name} shows another command");
            // `fieldpost buffer` alone only leads to its commands.
            assert!(codes.contains("64") || command.has_subcommands(), "{name}");
            assert!(command.get_about().is_some(), "{name}");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name} {argument}");
            }
        });
    }
}
