//! `fieldpost man`: the manual pages, made of what `--help` knows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::cli::{Cli, exit, load, text};

/// Print the manual page, or write those of all commands into a folder
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost man | man -l -                                      the page of fieldpost, with a list of the others
  fieldpost man buffer status | man -l -                        the page of one command
  fieldpost man --out /usr/local/share/man/man1                 fieldpost.1, fieldpost-run.1, ...

The packages bring them: man fieldpost-buffer-status

Exit codes: 0 done, 64 wrong command line, 74 the folder cannot be written")]
pub struct Args {
    /// The command whose page is printed
    #[arg(conflicts_with = "out")]
    command: Vec<String>,
    /// Writes every page into this folder, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let mut root = Cli::command().disable_help_subcommand(true);
        // Names each command in full: fieldpost-buffer-status.
        root.build();
        if let Some(dir) = self.out {
            return match fs::create_dir_all(&dir).and_then(|()| write_all(&root, &dir)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&format!("cannot write to {}: {error}", dir.display()), exit::STORAGE),
            };
        }
        let mut command = &root;
        for name in &self.command {
            let Some(found) = command.find_subcommand(name) else {
                let of = command.get_bin_name().unwrap_or("fieldpost");
                return failed(&format!("{of} has no command {name:?}: see fieldpost --help"), exit::USAGE);
            };
            command = found;
        }
        match page(command) {
            Ok(text) => load::print(&text),
            Err(error) => failed(&error.to_string(), exit::STORAGE),
        }
    }
}

fn page(command: &clap::Command) -> io::Result<String> {
    let man = Man::new(command.clone())
        .source(concat!("fieldpost ", env!("CARGO_PKG_VERSION")))
        .manual("fieldpost")
        .title(name(command));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(more) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        let more = more.to_string();
        // Lines as they are: examples and tables.
        let mut section = Roff::new();
        section.control("SH", ["EXAMPLES"]).control("nf", []);
        section.text([roman(more.strip_prefix("Examples:\n").unwrap_or(&more))]).control("fi", []);
        section.to_writer(&mut page)?;
    }
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// `fieldpost-buffer-status`.
fn name(command: &clap::Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn write_all(command: &clap::Command, dir: &Path) -> io::Result<()> {
    fs::write(dir.join(format!("{}.1", name(command))), page(command)?)?;
    command.get_subcommands().try_for_each(|command| write_all(command, dir))
}

fn failed(message: &str, code: u8) -> ExitCode {
    text::say("fieldpost", message);
    code.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_its_page() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("man1");
        let args = |command: &[&str], out: Option<&Path>| Args {
            command: command.iter().map(ToString::to_string).collect(),
            out: out.map(PathBuf::from),
        };
        assert_eq!(args(&[], Some(&out)).run(), ExitCode::SUCCESS);
        for (name, words) in [
            ("fieldpost", "fieldpost\\-buffer(1)"),
            ("fieldpost-buffer-status", ".SH EXAMPLES"),
            ("fieldpost-man", "man buffer status"),
        ] {
            let text = fs::read_to_string(out.join(format!("{name}.1"))).unwrap();
            assert!(text.contains(words), "{name}: {text}");
            assert!(text.contains(env!("CARGO_PKG_VERSION")), "{name}");
        }
        let beside = dir.path().join("file");
        fs::write(&beside, "").unwrap();
        assert_eq!(args(&[], Some(&beside)).run(), exit::STORAGE.into());
        assert_eq!(args(&["bufer"], None).run(), exit::USAGE.into());
    }
}
