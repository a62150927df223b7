//! `fieldpost dead-letter show`: everything about one letter.

use std::fmt::Write as _;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use super::list::{Row, plain, when};
use super::pretty::pretty;
use super::target::{NameArg, Target, name};
use crate::cli::load::{self, DataArgs};
use crate::cli::{exit, text};
use crate::dead_letter::{Entry, Stored};
use crate::event::Payload;

/// Show a dead letter with its payload: JSON indented, bytes in base64
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost dead-letter show 1000
  fieldpost dead-letter show 1000 --json | jq .payload

Exit codes:
  0   done
  64  wrong command line
  65  there is no such letter, there are several, or it is damaged
  74  the store cannot be read, or there is no such data directory
  78  invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// The letter, as `list` names it
    #[arg(value_parser = name)]
    name: NameArg,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    row: Row,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl Args {
    pub(super) fn show(&self) -> Result<ExitCode, ExitCode> {
        let target = Target::of(&self.data, "show")?;
        let entries = target.named(std::slice::from_ref(&self.name))?;
        let damaged = || ExitCode::from(exit::DATA);
        let entry = entries.first().ok_or_else(damaged)?;
        let stored = target.read(entry, &mut 0)?.ok_or_else(damaged)?;
        let text = if self.json { json(entry, stored).ok_or_else(damaged)? } else { text(entry, &stored) };
        Ok(load::print(&text))
    }
}

/// One line; `None` would mean that its payload is not JSON, which reading has ruled out.
fn json(entry: &Entry, stored: Stored) -> Option<String> {
    let found = Ok(stored);
    let row = Row::of(entry, &found);
    let stored = found.ok()?;
    let line;
    let (payload, payload_base64) = match stored.event().payload {
        Payload::Json(text) => {
            // A line end in valid JSON is a space between tokens.
            line = text.replace(['\n', '\r'], " ");
            (Some(serde_json::from_str(&line).ok()?), None)
        }
        Payload::Bytes(bytes) => (None, Some(STANDARD.encode(bytes))),
    };
    let text = serde_json::to_string(&Shown { row, payload, payload_base64 }).ok()?;
    Some(text + "\n")
}

fn text(entry: &Entry, stored: &Stored) -> String {
    let head = &stored.head;
    let mut out = String::new();
    let mut line = |name: &str, text: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<9} {text}");
    };
    line("letter", &entry.name.to_string());
    let attempts = text::count(head.attempts.into(), "attempt");
    line("refused", &format!("{}, after {attempts}", when(head.refused)));
    line("topic", &head.topic);
    line("reason", &format!("{} (code {})", plain(&head.reason), head.code));
    line("agent", &format!("{}; log {}, epoch {}, position {}", head.agent, head.log, head.epoch, head.seq));
    line("id", &head.id);
    line("type", &head.kind);
    line("source", &format!("{}/{}", head.source_type, head.source_id));
    line("time", head.timestamp.as_deref().unwrap_or("not given: the time at which it was taken"));
    line("taken", &when(head.received));
    let (kind, bytes, shown) = match stored.event().payload {
        Payload::Json(text) => ("of JSON", text.len(), pretty(text)),
        Payload::Bytes(bytes) => ("in base64", bytes.len(), STANDARD.encode(bytes)),
    };
    line("payload", &format!("{} {kind}", text::count(bytes as u64, "byte")));
    out + &shown + "\n"
}
