//! Which running agent a command asks over HTTP.

use std::path::PathBuf;

use crate::cli::load::ConfigArg;
use crate::config::Config;
use crate::http::client::Place;
use crate::secret::Password;

/// The agent's HTTP interface: that of the configuration, unless somebody names another one.
#[derive(Debug, clap::Args)]
pub(super) struct PlaceArg {
    /// The agent's HTTP interface, http://HOST:PORT [default: http.listen of the configuration, on this machine]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Certificates of who signed that of an https:// --url, PEM, beside those that the system trusts
    #[arg(long, value_name = "FILE", requires = "url")]
    ca_file: Option<PathBuf>,
    /// File that holds the token of the agent at --url
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
}

/// Why no agent can be asked.
#[derive(Debug)]
pub(super) enum Nowhere {
    /// The configuration is invalid; it was said.
    Invalid(std::process::ExitCode),
    /// The address is none.
    Usage(String),
    /// The configuration names none.
    Unset(String),
}

impl PlaceArg {
    /// Where the agent is. An address that is named needs no configuration, and never gets the configured token.
    ///
    /// # Errors
    /// [`Nowhere`].
    pub(super) fn find(&self, config: &ConfigArg) -> Result<Place, Nowhere> {
        if let Some(url) = &self.url {
            let token = self.token_file.clone().map(Password::File);
            return Place::at(url, self.ca_file.clone(), token)
                .map_err(|problem| Nowhere::Usage(format!("--url {url}: {problem}")));
        }
        let config = config.load().map_err(|errors| Nowhere::Invalid(super::load::refuse(&errors)))?.config;
        Self::of(&config)
    }

    fn of(config: &Config) -> Result<Place, Nowhere> {
        let Some(http) = &config.http else {
            let what = "http.listen is not set, so the agent answers nobody: set it (docs/http.md), or name an agent by --url";
            return Err(Nowhere::Unset(what.to_owned()));
        };
        Place::of(http).map_err(Nowhere::Unset)
    }
}
