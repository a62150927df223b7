//! Which store a command is about, and which letters.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::exit;
use crate::cli::line::{Place, Refusal};
use crate::cli::load::DataArgs;
use crate::cli::text;
use crate::config::Config;
use crate::dead_letter::{DeadLetterError, Entry, Folder, Head, Name, Stored, Unreadable};
use crate::event::Seq;

/// A store, and the configuration that counts for it.
#[derive(Debug)]
pub(super) struct Target {
    command: &'static str,
    pub(super) folder: Folder,
    /// `None` when only a directory was named.
    pub(super) config: Option<Config>,
}

/// Which letters: of the group `which`, one of which the command asks for.
#[derive(Debug, clap::Args)]
pub(super) struct WhichArgs {
    /// These, as `list` names them
    #[arg(value_name = "NAME", value_parser = name, group = "which")]
    names: Vec<NameArg>,
    /// All there are
    #[arg(long, group = "which")]
    all: bool,
}

/// The name of a letter as somebody writes it: the position, and the beginning of the log where that is not enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NameArg {
    seq: Seq,
    log: String,
}

/// For clap.
pub(super) fn name(text: &str) -> Result<NameArg, String> {
    let (seq, log) = text.strip_suffix(".letter").unwrap_or(text).split_once('-').unwrap_or((text, ""));
    let seq =
        seq.parse().map(Seq).map_err(|_| "a name begins with a position: 1000 or 1000-08e1".to_owned())?;
    if !log.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Err("behind the position stands the beginning of the log's UUID: 1000-08e1".to_owned());
    }
    Ok(NameArg { seq, log: log.to_ascii_lowercase() })
}

impl NameArg {
    fn is(&self, name: Name) -> bool {
        name.seq == self.seq && name.log.to_string().starts_with(&self.log)
    }
}

/// As `list` shows it, and as it can be typed.
pub(super) fn short(name: Name) -> String {
    format!("{}-{:08x}", name.seq, name.log.as_fields().0)
}

impl Target {
    /// Finds the store. That nothing was ever put into it is no error, that there is no data directory is.
    ///
    /// # Errors
    /// The code to exit with, after the reason was said.
    pub(super) fn of(data: &DataArgs, command: &'static str) -> Result<Self, ExitCode> {
        let (data_dir, config) = data.find()?;
        let configured = config.as_ref().map(|config| config.agent.data_dir.as_path());
        let data_dir = data_dir.or(configured).unwrap_or(Path::new("."));
        if !data_dir.is_dir() {
            let dir = data_dir.display();
            say(
                command,
                &format!("there is no directory {dir}; see agent.data_dir, or name one with --data-dir"),
            );
            return Err(exit::STORAGE.into());
        }
        Ok(Self { command, folder: Folder::at(&data_dir.join("dead-letters")), config })
    }

    /// One line on standard error.
    pub(super) fn say(&self, text: &str) {
        say(self.command, text);
    }

    /// All letters, oldest first.
    ///
    /// # Errors
    /// The code to exit with, after the reason was said.
    pub(super) fn all(&self) -> Result<Vec<Entry>, ExitCode> {
        self.folder.entries().map_err(|error| self.refuse(&error))
    }

    /// Those that were chosen, oldest first; all when none was named.
    ///
    /// # Errors
    /// As [`Target::named`].
    pub(super) fn chosen(&self, which: &WhichArgs) -> Result<Vec<Entry>, ExitCode> {
        self.named(&which.names)
    }

    /// The letters that were named, oldest first, each once; all when none was.
    ///
    /// # Errors
    /// The code to exit with, after it was said which name fits no letter or several.
    pub(super) fn named(&self, names: &[NameArg]) -> Result<Vec<Entry>, ExitCode> {
        let mut all = self.all()?;
        if names.is_empty() {
            return Ok(all);
        }
        for wanted in names {
            let mut fitting = all.iter().filter(|entry| wanted.is(entry.name));
            let more = if wanted.log.is_empty() { String::new() } else { format!("-{}", wanted.log) };
            let told = match (fitting.next(), fitting.next()) {
                (Some(_), None) => continue,
                (None, _) => {
                    format!("there is no dead letter {}{more}; see `fieldpost dead-letter list`", wanted.seq)
                }
                (Some(one), Some(other)) => format!(
                    "{}{more} fits more than one dead letter: {}, {}; write more of the log",
                    wanted.seq, one.name, other.name
                ),
            };
            self.say(&told);
            return Err(exit::DATA.into());
        }
        all.retain(|entry| names.iter().any(|wanted| wanted.is(entry.name)));
        Ok(all)
    }

    /// Reads one letter. `None`: it is gone meanwhile, or it cannot be understood, which was said and counted.
    ///
    /// # Errors
    /// The code to exit with, after the reason was said.
    pub(super) fn read(&self, entry: &Entry, unreadable: &mut u64) -> Result<Option<Stored>, ExitCode> {
        match self.look(entry)? {
            Some(Ok(stored)) => Ok(Some(stored)),
            Some(Err(error)) => {
                self.say(&format!("{}: {error}; it stays where it is", short(entry.name)));
                *unreadable += 1;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// As [`Target::read`], and the caller says what cannot be understood.
    ///
    /// # Errors
    /// The code to exit with, after the reason was said.
    pub(super) fn look(&self, entry: &Entry) -> Result<Option<Result<Stored, Unreadable>>, ExitCode> {
        self.folder.read(entry.name).map_err(|error| self.refuse(&error))
    }

    /// Says why the store cannot be used; the code to exit with.
    pub(super) fn refuse(&self, error: &DeadLetterError) -> ExitCode {
        let is_denied = error.source_error().kind() == io::ErrorKind::PermissionDenied;
        let hint = if is_denied { "; run this as the agent's user" } else { "" };
        self.say(&format!("{error}{hint}"));
        exit::STORAGE.into()
    }
}

/// Where the event of a letter was.
pub(super) fn place<'a>(head: &'a Head<'_>) -> Place<'a> {
    Place {
        agent: Some(&head.agent),
        log: Some(head.log),
        epoch: head.epoch,
        seq: head.seq,
        dead_letter: Some(Refusal {
            topic: &head.topic,
            code: head.code,
            reason: &head.reason,
            attempts: head.attempts,
            refused: text::time(head.refused.wall_us),
        }),
    }
}

fn say(command: &str, text: &str) {
    text::say(&format!("fieldpost dead-letter {command}"), text);
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_name_is_a_position_and_as_much_of_the_log_as_it_takes() {
        let log = Uuid::from_u128(0x08e1_dd69_c531_49c0_9c96_4ae6_a69a_ff3b);
        let letter = Name { log, seq: Seq(1000) };
        assert_eq!(short(letter), "1000-08e1dd69");
        for text in ["1000", "1000-08E1", &short(letter), &letter.to_string(), &letter.file_name()] {
            assert!(name(text).unwrap().is(letter), "{text}");
        }
        for text in ["1001", "100", "1000-08e2"] {
            assert!(!name(text).unwrap().is(letter), "{text}");
        }
        for wrong in ["", "x", "-1", "1000-xyz", "08e1dd69-1000", "99999999999999999999999"] {
            let found = name(wrong).map(|wanted| wanted.is(letter));
            assert!(!matches!(found, Ok(true)), "{wrong}");
        }
    }
}
