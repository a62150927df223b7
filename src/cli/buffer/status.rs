//! `fieldpost buffer status`: what waits, since when, what it takes, what was lost.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::target::{Target, refuse};
use crate::buffer::ledger::Entry;
use crate::buffer::probe::Owner;
use crate::buffer::view::{Oldest, View};
use crate::cli::load::{self, DataArgs};
use crate::cli::text;
use crate::config::units::about_bytes;
use crate::system::{self, Clock};

/// How many ranges of positions a line for people shows.
const RANGES_SHOWN: usize = 3;

/// Say what waits in the buffer, since when, what it takes, and what was lost
///
/// Changes nothing, works beside a running agent, and reads little: the small files, the oldest and the newest part.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost buffer status
  fieldpost buffer status --data-dir /mnt/rescued/fieldpost
  fieldpost buffer status --json | jq '.oldest.age_s'          alert when the oldest event gets too old
  fieldpost buffer status --json | jq '.ledger | map_values(.events)'

Exit codes: 0 done, 64 wrong command line, 74 there is no buffer or it cannot be read, 78 invalid configuration")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Print one JSON object for scripts
    #[arg(long)]
    json: bool,
}

/// What is printed with `--json`; its fields stay.
#[derive(Debug, Serialize)]
struct Status {
    dir: String,
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    agent: Option<String>,
    log: Option<String>,
    epoch: u32,
    events: u64,
    /// Whether that is all: the ledger keeps so many ranges apart and then counts too much as gone.
    events_exact: bool,
    /// Of `events`, while there are two lanes.
    #[serde(skip_serializing_if = "Option::is_none")]
    lanes: Option<LaneEvents>,
    cursor: u64,
    durable: u64,
    /// Last acknowledged event; above `durable` when the end of the buffer is missing.
    acknowledged: u64,
    bytes: u64,
    max_bytes: Option<u64>,
    free_bytes: Option<u64>,
    min_free: Option<u64>,
    generations: usize,
    damaged: usize,
    oldest: Option<OldestEvent>,
    /// `None` when it cannot be read.
    ledger: Option<std::collections::BTreeMap<&'static str, Losses>>,
}

#[derive(Debug, Serialize)]
struct LaneEvents {
    backlog: u64,
    live: u64,
}

#[derive(Debug, Serialize)]
struct OldestEvent {
    seq: u64,
    #[serde(rename = "type")]
    kind: String,
    source_type: String,
    source_id: String,
    received: String,
    clock: &'static str,
    /// `None`: nobody knows.
    age_s: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Losses {
    events: u64,
    acknowledged: bool,
    announced: u64,
    first: String,
    last: String,
    ranges: Vec<(u64, u64)>,
}

impl Args {
    pub(super) fn run(self) -> ExitCode {
        let status = match self.status() {
            Ok(status) => status,
            Err(code) => return code,
        };
        if self.json {
            // A struct of texts and numbers always encodes.
            let text = serde_json::to_string_pretty(&status).unwrap_or_default();
            return load::print(&format!("{text}\n"));
        }
        load::print(&status.text())
    }

    fn status(&self) -> Result<Status, ExitCode> {
        let target = Target::of(&self.data)?;
        let view = target.view("status")?;
        let now = Clock::default().now();
        let oldest = view.oldest(system::boot_id(), now).map_err(|error| refuse("status", &error))?;
        Ok(Status::of(&target, &view, oldest))
    }
}

impl Status {
    fn of(target: &Target, view: &View, oldest: Option<Oldest>) -> Self {
        let name = view.logs.last();
        let options = target.config.as_ref().map(|config| &config.buffer);
        let aside = view.folders.iter().filter(|folder| folder.is_aside).count();
        let oldest = oldest.map(|oldest| OldestEvent {
            seq: oldest.seq.0,
            received: text::time(oldest.received.wall_us),
            clock: text::clock(oldest.received),
            age_s: oldest.age.map(|age| age.as_secs()),
            kind: oldest.kind,
            source_type: oldest.source_type,
            source_id: oldest.source_id,
        });
        let events = if oldest.is_some() { view.waiting().max(1) } else { 0 };
        let lanes = view.backlog().map(|backlog| backlog.min(events));
        Self {
            dir: target.place.dir.display().to_string(),
            running: view.is_open(),
            pid: if let Owner::Process(pid) = view.owner { pid } else { None },
            agent: name.map(|name| name.agent.clone()),
            log: name.map(|name| name.log.to_string()),
            epoch: view.epoch,
            events,
            lanes: lanes.map(|backlog| LaneEvents { backlog, live: events - backlog }),
            events_exact: oldest.is_none() || view.is_waiting_exact(),
            cursor: view.cursor.0,
            durable: view.durable.0,
            acknowledged: view.acknowledged.0,
            bytes: view.disk_bytes,
            max_bytes: options.map(|options| options.bytes_max),
            free_bytes: system::free_bytes(&target.place.dir).ok(),
            min_free: options.map(|options| options.free_min),
            generations: view.folders.len() - aside,
            damaged: aside,
            oldest,
            ledger: view.ledger.as_ref().map(|entries| {
                entries
                    .iter()
                    .map(|(reason, entry)| (reason.word(), Losses::of(reason.is_acknowledged(), entry)))
                    .collect()
            }),
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, text: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:<9} {text}");
        };
        line("buffer", &self.dir);
        line("agent", &self.agent_text());
        let at_least = if self.events_exact { "" } else { "at least " };
        let lanes = self.lanes.as_ref().map_or_else(String::new, |lanes| {
            let LaneEvents { backlog, live } = lanes;
            format!("; {backlog} of them backlog, {live} live")
        });
        line("waiting", &format!("{at_least}{}{lanes}", text::count(self.events, "event")));
        if let Some(oldest) = &self.oldest {
            line("oldest", &oldest.text());
        }
        let missing = self.acknowledged.saturating_sub(self.durable);
        line("cursor", &format!("{}; nothing up to here waits any more", self.cursor));
        line(
            "durable",
            &match missing {
                0 => self.durable.to_string(),
                missing => format!(
                    "{}; the last {} acknowledged after it are missing, see `fieldpost buffer verify`",
                    self.durable,
                    text::count(missing, "event")
                ),
            },
        );
        line("disk", &self.disk_text());
        if self.damaged > 0 {
            let copies = format!("{} set aside (.bad)", text::count(self.damaged as u64, "damaged part"));
            line(
                "damaged",
                &format!(
                    "{copies}; what is whole in it is delivered, `fieldpost buffer export --bad` shows it"
                ),
            );
        }
        match &self.ledger {
            None => line("ledger", "cannot be read"),
            Some(ledger) if ledger.is_empty() => line("ledger", "nothing was lost or refused"),
            Some(ledger) => {
                for (name, acknowledged) in [("lost", true), ("not taken", false)] {
                    let rows = ledger.iter().filter(|(_, losses)| losses.acknowledged == acknowledged);
                    let events: u64 = rows.clone().map(|(_, losses)| losses.events).sum();
                    if events > 0 {
                        line(name, &text::count(events, "event"));
                        rows.for_each(|(reason, losses)| line("", &losses.text(reason)));
                    }
                }
            }
        }
        out
    }

    fn agent_text(&self) -> String {
        let state = match (self.running, self.pid) {
            (false, _) => "not running".to_owned(),
            (true, None) => "running".to_owned(),
            (true, Some(pid)) => format!("running, process {pid}"),
        };
        match (&self.agent, &self.log) {
            (Some(agent), Some(log)) => format!("{agent}, {state}; log {log}, epoch {}", self.epoch),
            _ => format!("{state}; IDENTITY is missing or damaged"),
        }
    }

    fn disk_text(&self) -> String {
        let of = self.max_bytes.map_or_else(String::new, |max| format!(" of {}", about_bytes(max)));
        let mut text = format!(
            "{}{of} in {}",
            about_bytes(self.bytes),
            text::count(self.generations as u64, "generation")
        );
        if let Some(free) = self.free_bytes {
            let _ = write!(text, "; {} free on its file system", about_bytes(free));
        }
        if let Some(floor) = self.min_free.filter(|floor| *floor > 0) {
            let _ = write!(text, ", {} of that left to others", about_bytes(floor));
        }
        text
    }
}

impl OldestEvent {
    fn text(&self) -> String {
        let age = match self.age_s {
            Some(seconds) => format!("{} ago", text::age(std::time::Duration::from_secs(seconds))),
            None => "nobody knows how long ago".to_owned(),
        };
        let clock = if self.clock == "trusted" { "" } else { " by a clock that was not known to be right" };
        let received = self.received.parse().map_or(0, jiff::Timestamp::as_microsecond);
        format!(
            "{age}: {} of {}/{}, position {}, taken {}{clock}",
            self.kind,
            self.source_type,
            self.source_id,
            self.seq,
            text::short_time(received)
        )
    }
}

impl Losses {
    fn of(acknowledged: bool, entry: &Entry) -> Self {
        Self {
            events: entry.events,
            acknowledged,
            announced: entry.announced,
            first: text::time(entry.first_us),
            last: text::time(entry.last_us),
            ranges: entry.ranges.iter().map(|(first, last)| (first.0, last.0)).collect(),
        }
    }

    fn text(&self, reason: &str) -> String {
        let short = |time: &str| text::short_time(time.parse().map_or(0, jiff::Timestamp::as_microsecond));
        let (first, last) = (short(&self.first), short(&self.last));
        let when = if first == last { first } else { format!("{first} to {last}") };
        let mut text = format!("{reason:<14}{:>9}  {when}", self.events);
        let ranges: Vec<_> =
            self.ranges.iter().rev().map(|&(a, b)| (crate::event::Seq(a), crate::event::Seq(b))).collect();
        if !ranges.is_empty() {
            let _ = write!(text, "  positions {}", text::ranges(&ranges, RANGES_SHOWN));
        }
        text
    }
}
