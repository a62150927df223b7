//! `fieldpost completions`: a script by which a shell completes commands and options.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::{Cli, load};

/// Print a script that completes fieldpost's commands and options in a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost completions bash > /etc/bash_completion.d/fieldpost
  fieldpost completions zsh > /usr/local/share/zsh/site-functions/_fieldpost
  fieldpost completions fish > ~/.config/fish/completions/fieldpost.fish
  source <(fieldpost completions bash)                          for this shell alone

The packages bring them for bash, zsh and fish.

Exit codes: 0 done, 64 wrong command line")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "fieldpost", &mut script);
        load::print(&String::from_utf8_lossy(&script))
    }
}
