//! `fieldpost dead-letter retry`: letters into the buffer of the running agent again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;

use super::target::{Target, WhichArgs, place, short};
use crate::cli::load::DataArgs;
use crate::cli::send::client::{self, Client};
use crate::cli::send::usual_socket;
use crate::cli::{exit, line, text};
use crate::dead_letter::{Entry, Stored};

/// Hand dead letters to the running agent again
///
/// Through its Unix socket, one after the other, oldest first. A letter leaves the store only after the agent acknowledged
/// it, which means that it is durable in the buffer. The event keeps its id and gets a new position, at the end of the line.
/// Mend first what Kafka refused it for, or it comes back.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("which").required(true),
    after_help = "\
Examples:
  fieldpost dead-letter retry 1000          try one
  fieldpost dead-letter retry --all         then the others

A crash between the acknowledgement and the end of this command may leave letters in the store whose events are in the buffer,
too: a consumer tells the second copy by its id.

Exit codes:
  0   all are durable in the buffer, or there was nothing to retry
  64  wrong command line
  65  the agent can never take a letter (invalid, too large), one is damaged, or there is none of that name; all others went
  69  no agent answers on the socket, or none is configured
  74  the store cannot be read or written, or there is no such data directory
  75  the agent cannot take them now (buffer full, time-out, connection lost): what is left stays in the store
  78  invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    which: WhichArgs,
    /// Socket of the agent [default: unix.path of the configuration, else $FIELDPOST_UNIX__PATH, else
    /// /run/fieldpost/fieldpost.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Give up after this many seconds without any answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,
}

/// What became of a letter.
enum Answer {
    Durable,
    /// Never, with code and reason.
    Refused(String),
    /// Not now, nor what comes behind it.
    Later(String),
    /// Nobody is there.
    Nobody(std::io::Error),
}

impl Args {
    pub(super) fn retry(&self) -> Result<ExitCode, ExitCode> {
        let target = Target::of(&self.data, "retry")?;
        let entries = target.chosen(&self.which)?;
        if entries.is_empty() {
            target.say("nothing to retry");
            return Ok(ExitCode::SUCCESS);
        }
        let socket = self.socket(&target)?;
        let mut kept = 0;
        let mut durable = 0;
        let ended = self.hand_in(&target, &entries, &socket, &mut durable, &mut kept);
        let synced = if durable > 0 { target.folder.sync() } else { Ok(()) };
        let letters = text::count(entries.len() as u64, "dead letter");
        target.say(&format!("{durable} of {letters} durable in the agent's buffer and gone from the store"));
        synced.map_err(|error| target.refuse(&error))?;
        ended?;
        Ok(if kept > 0 { exit::DATA.into() } else { ExitCode::SUCCESS })
    }

    fn hand_in(
        &self,
        target: &Target,
        entries: &[Entry],
        socket: &Path,
        durable: &mut u64,
        kept: &mut u64,
    ) -> Result<(), ExitCode> {
        for entry in entries {
            let Some(stored) = target.read(entry, kept)? else { continue };
            let name = short(entry.name);
            match self.send(&stored, socket) {
                Answer::Durable => {
                    *durable += 1;
                    // Order: only behind the acknowledgement, or a crash would lose the event.
                    target.folder.remove(entry.name).map_err(|error| target.refuse(&error))?;
                }
                Answer::Refused(why) => {
                    target.say(&format!("{name}: {why}; it stays in the store"));
                    *kept += 1;
                }
                Answer::Later(why) => {
                    target.say(&format!(
                        "{name}: {why}; it and what comes behind it stay in the store: try again later"
                    ));
                    return Err(exit::TEMPORARY.into());
                }
                Answer::Nobody(error) => {
                    target.say(&format!(
                        "no agent answers on {}: {error}; start it (`systemctl start fieldpost`), see that unix.path is \
                         set and this user may use it, or name another socket with --socket",
                        socket.display()
                    ));
                    return Err(exit::UNAVAILABLE.into());
                }
            }
        }
        Ok(())
    }

    /// A connection a letter: its acknowledgement cannot be taken for that of another one.
    fn send(&self, stored: &Stored, socket: &Path) -> Answer {
        let mut event = Vec::new();
        if let Err(error) = line::write(&stored.event(), place(&stored.head), &mut event) {
            return Answer::Refused(format!("its payload is not JSON, which it should be: {error}"));
        }
        let timeout = Duration::from_secs(self.timeout.into());
        let stream = match client::open(socket, timeout) {
            Ok(stream) => stream,
            Err(error) => return Answer::Nobody(error),
        };
        let client = Client { window: 1, timeout, progress: &ProgressBar::hidden(), tells: false };
        let outcome = client.deliver(&stream, &mut event.as_slice());
        let refused =
            outcome.ledger.errors.first().map(|refused| format!("{}: {}", refused.code, refused.error));
        match (outcome.ledger.acknowledged, outcome.ledger.refused_for_good, refused, outcome.failure) {
            (1, ..) => Answer::Durable,
            (_, 1, Some(why), _) => Answer::Refused(why),
            (_, _, Some(why), _) => Answer::Later(why),
            (_, _, None, Some(failure)) => Answer::Later(failure.to_string()),
            (_, _, None, None) => Answer::Later("it was not acknowledged".to_owned()),
        }
    }

    fn socket(&self, target: &Target) -> Result<PathBuf, ExitCode> {
        if let Some(path) = &self.socket {
            return Ok(path.clone());
        }
        if let Some(config) = &target.config {
            return config.unix.as_ref().map(|unix| unix.path.clone()).ok_or_else(|| {
                target.say(
                    "the agent has no Unix socket: set unix.path in its configuration and restart it, or name a socket \
                     with --socket",
                );
                exit::UNAVAILABLE.into()
            });
        }
        Ok(usual_socket())
    }
}
