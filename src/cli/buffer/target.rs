//! Which buffer a command is about.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use crate::buffer::view::{Place, View, ViewError};
use crate::buffer::{self, OpenError};
use crate::cli::load::DataArgs;
use crate::cli::{exit, text};
use crate::config::Config;

/// A buffer, and the configuration that counts for it.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) place: Place,
    /// `None` when only a directory was named.
    pub(super) config: Option<Config>,
}

/// The buffer below a data directory; the buffer's own directory is taken for what it is.
fn place(dir: &Path) -> Place {
    let is_buffer = ["IDENTITY", "HIGHWATER", "LOCK"].iter().any(|file| dir.join(file).is_file());
    if is_buffer && !dir.join("buffer").is_dir() {
        Place { dir: dir.to_owned(), ledger: dir.join("../LEDGER") }
    } else {
        Place { dir: dir.join("buffer"), ledger: dir.join("LEDGER") }
    }
}

impl Target {
    /// Finds the buffer.
    ///
    /// # Errors
    /// The code to exit with; what is wrong with the configuration was said.
    pub(super) fn of(data: &DataArgs) -> Result<Self, ExitCode> {
        let (data_dir, config) = data.find()?;
        let place = match (data_dir, &config) {
            (Some(dir), _) => place(dir),
            (None, Some(config)) => {
                Place { dir: config.buffer.dir.clone(), ledger: config.buffer.ledger.clone() }
            }
            (None, None) => place(Path::new(".")),
        };
        Ok(Self { place, config })
    }

    /// Looks at it.
    ///
    /// # Errors
    /// The code to exit with, after the reason was said.
    pub(super) fn view(&self, command: &str) -> Result<View, ExitCode> {
        let view = View::of(&self.place).map_err(|error| refuse(command, &error))?;
        if let Some(format) = view.newer {
            say(
                command,
                &format!("a part of it is in block format {format}, which this version does not know"),
            );
        }
        Ok(view)
    }

    /// How the buffer is opened for good: as the agent would, but nothing expires meanwhile and its name stays.
    pub(super) fn options(&self) -> buffer::Options {
        let data_dir = self.place.ledger.parent().unwrap_or(Path::new("."));
        let configured = self.config.as_ref().map(|config| config.buffer.clone());
        let mut options = configured.unwrap_or_else(|| buffer::Options::new(data_dir));
        options.dir.clone_from(&self.place.dir);
        options.ledger.clone_from(&self.place.ledger);
        options.age_max = None;
        if let Some(name) = View::of(&self.place).ok().and_then(|view| view.logs.last().cloned()) {
            options.agent = name.agent;
        }
        options
    }
}

/// Says why a buffer cannot be looked at; the code to exit with.
pub(super) fn refuse(command: &str, error: &ViewError) -> ExitCode {
    let hint = match error {
        ViewError::Missing(_) => "; see agent.data_dir, or name one with --data-dir",
        ViewError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "; run this as the agent's user"
        }
        _ => "",
    };
    say(command, &format!("{error}{hint}"));
    exit::STORAGE.into()
}

/// Says why the buffer cannot be opened for writing; the code to exit with.
pub(super) fn refuse_open(command: &str, error: &OpenError, otherwise: &str) -> ExitCode {
    match error {
        OpenError::Locked { .. } => {
            say(command, &format!("{error}: {otherwise}"));
            exit::TEMPORARY.into()
        }
        error => {
            say(command, &error.to_string());
            exit::STORAGE.into()
        }
    }
}

/// One line on standard error.
pub(super) fn say(command: &str, what: &str) {
    text::say(&format!("fieldpost buffer {command}"), what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_and_the_buffer_in_it_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("buffer");
        assert_eq!(place(dir.path()), Place { dir: inner.clone(), ledger: dir.path().join("LEDGER") });
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("LOCK"), "").unwrap();
        assert_eq!(place(dir.path()).dir, inner);
        assert_eq!(place(&inner), Place { dir: inner.clone(), ledger: inner.join("../LEDGER") });
    }
}
