//! `fieldpost config`: the configuration that counts, each value with its source, and the route table.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::load::{self, ConfigArg};
use crate::cli::routes;
use crate::config;

/// Show the configuration that counts, each value with where it came from, and the routes as a table
///
/// The output is a valid configuration file, with the table as a comment at its end. Secrets are shown as ***.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost config                                                       what counts, and why
  fieldpost config | grep -v '# default'                                 only what somebody set
  fieldpost config --json | jq -r '.keys[\"buffer.max_bytes\"].value'      one value for a script
  fieldpost config --json | jq -r '.routes[] | [.name, .topic] | @tsv'    which events go where
  fieldpost config --example > /etc/fieldpost/fieldpost.toml             a file to start from

Exit codes: 0 done, 64 wrong command line, 78 invalid configuration (the problems are on standard error)")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
    /// Print the example file instead: every key with meaning, range and default
    #[arg(long, conflicts_with_all = ["config", "json"])]
    example: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        if self.example {
            return load::print(&config::example());
        }
        let loaded = match self.config.load() {
            Ok(loaded) => loaded,
            Err(errors) => return load::refuse(&errors),
        };
        let file = self.config.path().map(|path| path.display().to_string());
        let version = env!("CARGO_PKG_VERSION");
        let text = if self.json {
            let keys = config::effective_json(&loaded.effective);
            format!(
                "{:#}\n",
                json!({ "version": version, "file": file, "keys": keys, "routes": routes::table_json(&loaded.config) })
            )
        } else {
            let file = file.unwrap_or_else(|| "none; defaults and environment alone".to_owned());
            let values = config::effective_toml(&loaded.effective);
            let routes = routes::table(&loaded.config);
            format!("# fieldpost {version}, configuration file: {file}\n\n{values}\n{routes}")
        };
        load::print(&text)
    }
}
