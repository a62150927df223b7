//! `fieldpost dead-letter list`: what was refused, a line each.

use std::process::ExitCode;

use serde::Serialize;
use uuid::Uuid;

use super::target::{Target, short};
use crate::cli::load::{self, DataArgs};
use crate::cli::text;
use crate::config::units::format_bytes;
use crate::dead_letter::{Entry, Stored, Unreadable};
use crate::event::{Payload, Seq, Stamp};

/// List the dead letters, oldest first
///
/// A time with a question mark is by a clock that was not known to be right. Every letter is read and checked, one at a
/// time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost dead-letter list
  fieldpost dead-letter list --json | jq -r .reason | sort | uniq -c    how often each reason

Exit codes:
  0   done; damaged letters are listed as such
  64  wrong command line
  74  the store cannot be read, or there is no such data directory
  78  invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// A letter as `--json` prints it, here and in `show`.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    name: String,
    log: Uuid,
    seq: Seq,
    /// On disk.
    bytes: u64,
    /// Why nothing more is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<String>,
    #[serde(flatten)]
    known: Option<Known>,
}

#[derive(Debug, Serialize)]
struct Known {
    refused: String,
    clock: &'static str,
    topic: String,
    code: i32,
    reason: String,
    attempts: u32,
    agent: String,
    epoch: u32,
    id: String,
    #[serde(rename = "type")]
    kind: String,
    source_type: String,
    source_id: String,
    timestamp: Option<String>,
    received: String,
    received_clock: &'static str,
    payload_bytes: usize,
}

impl Row {
    pub(super) fn of(entry: &Entry, found: &Result<Stored, Unreadable>) -> Self {
        let (damaged, known) = match found {
            Ok(stored) => (None, Some(Known::of(stored))),
            Err(error) => (Some(error.to_string()), None),
        };
        Self {
            name: entry.name.to_string(),
            log: entry.name.log,
            seq: entry.name.seq,
            bytes: entry.bytes,
            damaged,
            known,
        }
    }
}

impl Known {
    fn of(stored: &Stored) -> Self {
        let head = &stored.head;
        Self {
            refused: text::time(head.refused.wall_us),
            clock: text::clock(head.refused),
            topic: head.topic.to_string(),
            code: head.code,
            reason: head.reason.to_string(),
            attempts: head.attempts,
            agent: head.agent.to_string(),
            epoch: head.epoch,
            id: head.id.to_string(),
            kind: head.kind.to_string(),
            source_type: head.source_type.to_string(),
            source_id: head.source_id.to_string(),
            timestamp: head.timestamp.as_deref().map(str::to_owned),
            received: text::time(head.received.wall_us),
            received_clock: text::clock(head.received),
            payload_bytes: match stored.event().payload {
                Payload::Json(text) => text.len(),
                Payload::Bytes(bytes) => bytes.len(),
            },
        }
    }
}

/// To the second, with a mark when nobody knows whether it is right.
pub(super) fn when(stamp: Stamp) -> String {
    format!("{}{}", text::short_time(stamp.wall_us), if stamp.clock_trusted { "" } else { "?" })
}

/// Text from outside on one line of a terminal.
pub(super) fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl Args {
    pub(super) fn list(&self) -> Result<ExitCode, ExitCode> {
        let target = Target::of(&self.data, "list")?;
        let entries = target.all()?;
        let mut is_headed = self.json;
        let (mut letters, mut damaged, mut bytes) = (0, 0, 0);
        for entry in &entries {
            let Some(found) = target.look(entry)? else { continue };
            letters += 1;
            damaged += u64::from(found.is_err());
            bytes += entry.bytes;
            let mut out = String::new();
            if !std::mem::replace(&mut is_headed, true) {
                out += &line(["NAME", "REFUSED", "SOURCE", "TYPE", "TOPIC", "CODE", "REASON"]);
            }
            if self.json {
                // A struct of texts and numbers always encodes.
                out += &serde_json::to_string(&Row::of(entry, &found)).unwrap_or_default();
                out.push('\n');
            } else {
                out += &text_row(entry, &found);
            }
            if load::print(&out) != ExitCode::SUCCESS {
                return Err(crate::cli::exit::STORAGE.into());
            }
        }
        if !self.json {
            sum_up(&target, letters, damaged, bytes);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn sum_up(target: &Target, letters: u64, damaged: u64, bytes: u64) {
    if letters == 0 {
        return target.say("no dead letters");
    }
    let of = target.config.as_ref().map_or_else(String::new, |config| {
        format!(" of {}", format_bytes(config.dead_letters.store.bytes_max))
    });
    let damaged = if damaged == 0 { String::new() } else { format!("; {damaged} damaged") };
    let letters = text::count(letters, "dead letter");
    target.say(&format!("{letters}, {}{of}{damaged}", format_bytes(bytes)));
}

fn text_row(entry: &Entry, found: &Result<Stored, Unreadable>) -> String {
    let name = short(entry.name);
    match found {
        Ok(Stored { head, .. }) => line([
            &name,
            &when(head.refused),
            &format!("{}/{}", head.source_type, head.source_id),
            &head.kind,
            &head.topic,
            &head.code.to_string(),
            &plain(&head.reason),
        ]),
        Err(error) => format!("{name:<18}  {error}\n"),
    }
}

/// Widths of usual names; a longer one shifts the rest of its line, because nothing is cut and nothing kept in memory.
fn line([name, time, source, kind, topic, code, reason]: [&str; 7]) -> String {
    format!("{name:<18}  {time:<21}  {source:<24}  {kind:<14}  {topic:<16}  {code:>4}  {reason}\n")
}
