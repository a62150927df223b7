//! `fieldpost buffer verify`: reads every block and says what is missing.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::target::{Target, refuse};
use crate::buffer::view::{FolderReport, Report, View};
use crate::cli::exit;
use crate::cli::load::{self, DataArgs};
use crate::cli::text;
use crate::config::units::about_bytes;
use crate::event::Seq;

/// How many ranges of positions a line for people shows.
const RANGES_SHOWN: usize = 5;

/// For a file without which more waits than before.
const LANES_DAMAGED: &str = "DAMAGED: LANES cannot be read: what went to Kafka ahead of the cursor is not known any more and goes out again. ";

/// Read every block of the buffer, compare checksums, and say what is missing
///
/// Changes nothing. Beside a running agent the part that it writes to is read but not judged.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost buffer verify
  fieldpost buffer verify --data-dir /mnt/rescued/fieldpost
  fieldpost buffer verify --json | jq .missing

A line for each generation: ok, or DAMAGED with the positions of the events that are missing or not whole.

Exit codes:
  0   every acknowledged event that waits is there and whole
  64  wrong command line
  65  events are missing or damaged, or nobody knows any more what went to Kafka ahead of the cursor (LANES)
  74  there is no buffer or it cannot be read
  78  invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Print one JSON object for scripts
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> ExitCode {
        match self.verify() {
            Ok(code) | Err(code) => code,
        }
    }

    fn verify(&self) -> Result<ExitCode, ExitCode> {
        let view = Target::of(&self.data)?.view("verify")?;
        let bar = text::bar(view.bytes_to_verify());
        let mut found = Vec::new();
        let report = view.verify(|folder| {
            bar.inc(folder.bytes);
            bar.set_message(folder.name.clone());
            if self.json {
                found.push(folder_json(folder));
            } else if bar.is_hidden() {
                load::print(&line(folder));
            } else {
                // The bar and the lines are on the same terminal.
                bar.suspend(|| load::print(&line(folder)));
            }
        });
        bar.finish_and_clear();
        let report = report.map_err(|error| refuse("verify", &error))?;
        let printed = if self.json {
            load::print(&format!("{:#}\n", report_json(&report, &view, &found)))
        } else {
            load::print(&summary(&report, &view))
        };
        Ok(if report.is_damaged() || view.are_lanes_damaged { exit::DATA.into() } else { printed })
    }
}

fn line(folder: &FolderReport) -> String {
    let state = if folder.is_damaged() { "DAMAGED" } else { "ok" };
    let positions = format!("positions {}-{}", folder.first, folder.last);
    let content = format!(
        "{}, {} in {}",
        about_bytes(folder.bytes),
        text::count(folder.events, "event"),
        text::count(folder.blocks, "block")
    );
    let mut line = format!("{state:<8}{} {positions}: {content}", folder.name);
    if folder.is_damaged() {
        let missing = text::count(folder.missing, "event");
        line += &format!(", {missing} missing: {}", text::ranges(&folder.holes, RANGES_SHOWN));
    }
    if folder.unreadable_bytes > 0 {
        line += &format!(", {} cannot be read from the disk", about_bytes(folder.unreadable_bytes));
    }
    if folder.is_delivered {
        line += ", delivered";
    } else if folder.is_changing {
        line += ", the agent writes to it: not judged";
    } else if folder.is_aside {
        line += ", set aside when damage was found";
    }
    line + "\n"
}

fn summary(report: &Report, view: &View) -> String {
    let parts = text::count(report.folders, "part");
    let whole = text::count(report.events, "event");
    let beside = if view.is_open() { ", beside a running agent" } else { "" };
    if view.are_lanes_damaged && !report.is_damaged() {
        return format!("{LANES_DAMAGED}{whole} whole in {parts}{beside}\n");
    }
    let lanes = if view.are_lanes_damaged { LANES_DAMAGED } else { "" };
    if !report.is_damaged() {
        return format!("all well: {whole} whole in {parts}{beside}\n");
    }
    let missing = text::count(report.missing, "event");
    let counted = match report.missing - report.counted {
        0 => "all of them are in the loss ledger".to_owned(),
        new => format!("{new} of them will be counted in the loss ledger when the agent comes to them"),
    };
    let positions = text::ranges(&report.holes, RANGES_SHOWN);
    format!(
        "{lanes}DAMAGED: {missing} missing or not whole ({positions}); {counted}. {whole} whole in {parts}{beside}\n"
    )
}

fn pairs(ranges: &[(Seq, Seq)]) -> Vec<(u64, u64)> {
    ranges.iter().map(|(first, last)| (first.0, last.0)).collect()
}

fn folder_json(folder: &FolderReport) -> Value {
    json!({
        "name": folder.name, "first": folder.first.0, "last": folder.last.0, "aside": folder.is_aside,
        "delivered": folder.is_delivered, "changing": folder.is_changing, "bytes": folder.bytes,
        "blocks": folder.blocks, "events": folder.events, "missing": folder.missing, "holes": pairs(&folder.holes),
        "unreadable_bytes": folder.unreadable_bytes,
    })
}

fn report_json(report: &Report, view: &View, folders: &[Value]) -> Value {
    json!({
        "ok": !report.is_damaged() && !view.are_lanes_damaged, "running": view.is_open(),
        "lanes_damaged": view.are_lanes_damaged, "blocks": report.blocks, "events": report.events,
        "missing": report.missing, "counted": report.counted, "holes": pairs(&report.holes),
        "unreadable_bytes": report.unreadable_bytes, "generations": folders,
    })
}
