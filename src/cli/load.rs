//! What commands share: finding and loading the configuration, and printing.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::{exit, text};
use crate::config::{Config, ConfigErrors, Loaded};

/// Where the configuration is when nobody says.
pub const DEFAULT_PATH: &str = "/etc/fieldpost/fieldpost.toml";

/// Which configuration a command works with.
#[derive(Debug, clap::Args)]
pub struct ConfigArg {
    /// Configuration file [default: $FIELDPOST_CONFIG, else /etc/fieldpost/fieldpost.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArg {
    /// Whether a file was named on the command line.
    pub fn is_named(&self) -> bool {
        self.config.is_some()
    }

    /// The file to read; `None` when nobody named one and there is none in the usual place.
    pub fn path(&self) -> Option<PathBuf> {
        let named =
            || std::env::var_os("FIELDPOST_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        self.config.clone().or_else(named).or_else(|| {
            let usual = PathBuf::from(DEFAULT_PATH);
            // A file that is there and cannot be looked at is to be complained about, not passed over.
            usual.try_exists().unwrap_or(true).then_some(usual)
        })
    }

    /// Loads the configuration with the environment of this process.
    ///
    /// # Errors
    /// [`ConfigErrors`]: see [`refuse`].
    pub fn load(&self) -> Result<Loaded, ConfigErrors> {
        // A variable that is not text is refused for its replacement characters where its key does not allow them.
        let environment = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
        Config::load(self.path().as_deref(), environment)
    }
}

/// Which agent's data a command works with: the configuration says where they are, unless somebody names a directory.
#[derive(Debug, clap::Args)]
pub struct DataArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Directory of an agent's data, instead of the configured one; then no configuration is needed
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl DataArgs {
    /// The directory, if one was named, and the configuration; there is none when only a directory was named.
    ///
    /// # Errors
    /// The code to exit with; what is wrong with the configuration was said.
    pub fn find(&self) -> Result<(Option<&Path>, Option<Config>), ExitCode> {
        let config = match &self.data_dir {
            Some(_) if !self.config.is_named() => None,
            _ => Some(self.config.load().map_err(|errors| refuse(&errors))?.config),
        };
        Ok((self.data_dir.as_deref(), config))
    }
}

/// Prints what is wrong with the configuration to standard error; the code to exit with.
pub fn refuse(errors: &ConfigErrors) -> ExitCode {
    text::say("fieldpost", errors);
    exit::CONFIG.into()
}

/// Prints to standard output; the code to exit with. A reader that went away (`| head`) had what it wanted.
pub fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            text::say("fieldpost", format_args!("cannot write to standard output: {error}"));
            exit::STORAGE.into()
        }
        _ => ExitCode::SUCCESS,
    }
}
