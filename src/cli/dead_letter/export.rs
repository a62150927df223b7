//! `fieldpost dead-letter export`: events as lines that `fieldpost send` takes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::target::{NameArg, Target, name, place};
use crate::cli::load::DataArgs;
use crate::cli::{exit, line, text};
use crate::dead_letter::Entry;

/// How much is gathered before it is written.
const OUTPUT_BYTES: usize = 256 * 1024;

/// Write the events of dead letters to a file or standard output, one as JSON a line
///
/// In the form that `fieldpost send` and the socket take, with their id; the letters stay. The field `fieldpost` says where
/// an event was and, in `dead_letter`, why it was refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost dead-letter export > refused.ndjson
  fieldpost dead-letter export 1000 1001 --output refused.ndjson

Exit codes:
  0   every letter is in the output
  64  wrong command line
  65  a letter is damaged and not in the output, or there is none of that name
  74  the store cannot be read, the output cannot be written, or there is no such data directory
  78  invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Only these, as `list` names them
    #[arg(value_name = "NAME", value_parser = name)]
    names: Vec<NameArg>,
    /// Write to this file, which must not exist yet, instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Why the export ended early.
enum Failure {
    /// It was said.
    Told(ExitCode),
    Output(io::Error),
}

impl Args {
    pub(super) fn export(&self) -> Result<ExitCode, ExitCode> {
        let target = Target::of(&self.data, "export")?;
        let entries = target.named(&self.names)?;
        let mut damaged = 0;
        match self.write(&target, &entries, &mut damaged) {
            Ok(events) if self.output.is_some() => {
                target.say(&format!("{} written", text::count(events, "event")));
            }
            Ok(_) => {}
            // Whoever reads has had enough.
            Err(Failure::Output(error))
                if self.output.is_none() && error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(Failure::Output(error)) => {
                let path = self.output.as_ref().map(|path| path.display().to_string());
                let name = path.unwrap_or_else(|| "standard output".to_owned());
                target.say(&format!("cannot write {name}: {error}"));
                return Err(exit::STORAGE.into());
            }
            Err(Failure::Told(code)) => return Err(code),
        }
        Ok(if damaged > 0 { exit::DATA.into() } else { ExitCode::SUCCESS })
    }

    fn write(&self, target: &Target, entries: &[Entry], damaged: &mut u64) -> Result<u64, Failure> {
        let Some(path) = &self.output else {
            let mut out = BufWriter::with_capacity(OUTPUT_BYTES, io::stdout().lock());
            return copy(target, entries, damaged, &mut out);
        };
        let file = File::create_new(path).map_err(Failure::Output)?;
        let mut out = BufWriter::with_capacity(OUTPUT_BYTES, file);
        let events = copy(target, entries, damaged, &mut out)?;
        // What was exported may be dropped next.
        out.get_ref().sync_all().map_err(Failure::Output)?;
        Ok(events)
    }
}

fn copy(target: &Target, entries: &[Entry], damaged: &mut u64, out: &mut impl Write) -> Result<u64, Failure> {
    let mut events = 0;
    for entry in entries {
        let Some(stored) = target.read(entry, damaged).map_err(Failure::Told)? else { continue };
        line::write(&stored.event(), place(&stored.head), out).map_err(Failure::Output)?;
        events += 1;
    }
    out.flush().map_err(Failure::Output)?;
    Ok(events)
}
