//! `fieldpost diag`: everything that a bug report needs, in one file without secrets.
//!
//! One text, not an archive: who sends it can read before what is in it. Each part is made by itself within its own bounds;
//! one that fails says so in its place.

mod machine;
mod parts;
mod redact;

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::parts::Scene;
use crate::cli::load::{self, ConfigArg};
use crate::cli::{exit, runtime, text};
use crate::secret::{Password, Secret};
use crate::system::Clock;

/// Who says it on standard error.
const NAME: &str = "fieldpost diag";

/// Write one file for a bug report: versions, configuration, status, ledger, log, limits, the buffer's state; no secrets
///
/// Works beside a running agent and with a dead one, as root or as the agent's user, and changes nothing. What cannot be
/// found out is named in the file. It holds names of hosts, topics and sources, and no payload: read it before you send it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo CREDENTIALS_DIRECTORY=/etc/credstore fieldpost diag   everything, also what only root may read
  fieldpost diag --output report.txt                         under a name of your choice
  fieldpost diag --no-verify --output - | less               on standard output, without reading the whole buffer

Exit codes: 0 done, also where a part is missing; 64 wrong command line, 74 the file cannot be written")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Directory of the agent's data, instead of the configured one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// File to write, which must not exist yet; - for standard output [default: fieldpost-diag-TIME.txt]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Do not read and check the whole buffer (at most a minute)
    #[arg(long)]
    no_verify: bool,
    /// The agent's unit, for its log and limits
    #[arg(long, value_name = "NAME", default_value = "fieldpost.service")]
    unit: String,
}

/// A part of the bundle: its name, and what it says or why it cannot.
type Part = (&'static str, Result<String, String>);

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let loaded = self.config.load();
        let passwords = loaded.as_ref().map(|loaded| loaded.secrets.clone()).unwrap_or_default();
        let secrets: Vec<Secret> =
            passwords.iter().filter_map(|password| Password::read(password).ok()).collect();
        let scene = Scene {
            config: loaded.ok().map(|loaded| loaded.config),
            file: self.config.path(),
            data_dir: self.data_dir,
            unit: self.unit,
            verify: !self.no_verify,
        };
        let asked = runtime::run(NAME, parts::all(&scene, &mut |name| say(&format!("{name} ..."))));
        let parts = match asked {
            Ok(parts) => parts,
            Err(code) => return code,
        };
        let text = redact::redacted(&bundle(&parts), &secrets);
        let written = match &self.output {
            Some(path) if path.as_os_str() == "-" => {
                let printed = load::print(&text);
                if printed != ExitCode::SUCCESS {
                    return printed;
                }
                "standard output".to_owned()
            }
            path => {
                let path = path.clone().unwrap_or_else(usual_name);
                if let Err(error) = write_new(&path, &text) {
                    say(&format!("{}: {error}", path.display()));
                    return exit::STORAGE.into();
                }
                path.display().to_string()
            }
        };
        say(&summary(&written, &parts));
        ExitCode::SUCCESS
    }
}

fn usual_name() -> PathBuf {
    let time = jiff::Timestamp::from_microsecond(Clock::default().now().wall_us).unwrap_or_default();
    format!("fieldpost-diag-{}.txt", time.strftime("%Y%m%dT%H%M%SZ")).into()
}

/// For its owner's eyes, and never over another file.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn bundle(parts: &[Part]) -> String {
    let mut out = String::from(
        "fieldpost diag\nWithout secrets and payloads. It names hosts, topics, sources and paths.\n",
    );
    for (name, part) in parts {
        // Writing to a String cannot fail.
        let _ = match part {
            Ok(text) => write!(out, "\n==== {name} ====\n{}\n", text.trim_end()),
            Err(why) => write!(out, "\n==== {name} ====\nNOT AVAILABLE: {}\n", why.trim_end()),
        };
    }
    out
}

fn summary(written: &str, parts: &[Part]) -> String {
    let names = |wanted: bool| {
        let names = parts.iter().filter(|(_, part)| part.is_ok() == wanted).map(|(name, _)| *name);
        names.collect::<Vec<_>>().join(", ")
    };
    let missing = match names(false) {
        names if names.is_empty() => String::new(),
        names => format!("; not available, the file says why: {names}"),
    };
    format!(
        "{written} holds: {}{missing}\nIt names hosts, topics, sources and paths; no secrets, no payloads. Read it before you \
         send it.",
        names(true)
    )
}

fn say(what: &str) {
    text::say(NAME, what);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_part_that_fails_is_named_and_does_not_end_it() {
        let parts: [Part; 2] = [("one", Ok("fine\n".into())), ("two", Err("no right to it".into()))];
        let text = bundle(&parts);
        assert!(
            text.ends_with("\n==== one ====\nfine\n\n==== two ====\nNOT AVAILABLE: no right to it\n"),
            "{text}"
        );
        let summary = summary("x", &parts);
        assert!(summary.starts_with("x holds: one; not available, the file says why: two\n"), "{summary}");
    }

    #[test]
    fn the_file_is_its_owners_and_no_other_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        write_new(&path, "text").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(write_new(&path, "other").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    }
}
