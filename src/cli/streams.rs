//! `fieldpost streams`: what Redis' streams hold, and whether those who read them keep up.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use crate::cli::load::{self, ConfigArg};
use crate::cli::{exit, runtime, text};
use crate::config::{Redis, units};
use crate::sink::redis::streams::{Found, Group, Stream, id_ms, streams};

/// Who says it on standard error.
const NAME: &str = "fieldpost streams status";

/// Without `--max-length` a stream may have so many times `redis.stream_max_len`: `MAXLEN ~` leaves some more, never twice.
const LENGTH_SHARE: u64 = 2;

/// Look at the streams in Redis
///
/// With redis.mode = "streams" or "both" the agent adds an entry for each event to a stream; consumer groups read them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost streams status                  length, age, groups, and whether that is healthy
  fieldpost streams status --max-pending 9  ends with 1 when a group has more than 9 unacknowledged entries")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Status(Status),
}

/// Say how long each stream is, how old, who reads it, and whether that is healthy
///
/// Changes nothing. Looks at the streams that redis.stream can name, also those of other agents. A stream is not healthy when
/// it is longer than it may be (nobody trims it), or when a group has more pending entries than it may (its members have got
/// them and do not acknowledge them). The Redis user needs +scan +time +xinfo and %R~ of the streams.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost streams status
  fieldpost streams status --max-pending 100 || echo look     for a cron job or a monitoring agent
  fieldpost streams status --json | jq '.streams[] | {name, length}'
  fieldpost streams status --pattern 'site-4:*'

Exit codes:
  0   every stream is healthy, or there is none
  1   at least one is not
  64  wrong command line
  75  Redis is not reachable or does not let the user look
  78  invalid configuration, or one without Redis or streams")]
struct Status {
    #[command(flatten)]
    config: ConfigArg,
    /// Print one JSON object for scripts
    #[arg(long)]
    json: bool,
    /// Keys to look at instead of those of redis.stream, with * for any text
    #[arg(long, value_name = "PATTERN")]
    pattern: Option<String>,
    /// More entries are not healthy [default: twice redis.stream_max_len]
    #[arg(long, value_name = "N")]
    max_length: Option<u64>,
    /// More pending entries in one group are not healthy
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_pending: u64,
    /// Most streams to look at
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    max_streams: u64,
    /// Longest wait for all of it
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = units::parse_duration)]
    timeout: Duration,
}

/// What is printed with `--json`; its fields stay.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Report {
    ok: bool,
    /// Whether there are no more streams than these.
    complete: bool,
    streams: Vec<StreamReport>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct StreamReport {
    name: String,
    healthy: bool,
    /// Why it is not.
    problems: Vec<String>,
    length: u64,
    oldest: Option<EntryReport>,
    newest: Option<EntryReport>,
    groups: Vec<GroupReport>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct EntryReport {
    id: String,
    /// By Redis' clock.
    age_s: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct GroupReport {
    name: String,
    consumers: u64,
    pending: u64,
    lag: Option<u64>,
}

/// What is still healthy.
#[derive(Debug, Clone, Copy)]
struct Limits {
    length: u64,
    pending: u64,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let Command::Status(status) = self.command;
        status.run()
    }
}

impl Status {
    fn run(self) -> ExitCode {
        let redis = match self.config.load() {
            Ok(loaded) => loaded.config.redis,
            Err(errors) => return load::refuse(&errors),
        };
        let Some(redis) = redis else { return refuse(exit::CONFIG, "redis.url is not set") };
        let named = redis.plan.stream.as_ref().map(|stream| stream.name.pattern());
        let Some(pattern) = self.pattern.clone().or(named) else {
            return refuse(exit::CONFIG, "redis.mode = \"pubsub\" adds to no stream: name keys by --pattern");
        };
        match runtime::run(NAME, self.ask(&redis, &pattern)) {
            Err(code) => code,
            Ok(Ok(found)) => self.answer(&redis, found, &pattern),
            Ok(Err(problem)) => refuse(exit::TEMPORARY, &format!("{}: {problem}", redis.options.place())),
        }
    }

    async fn ask(&self, redis: &Redis, pattern: &str) -> Result<Found, String> {
        let streams_max = usize::try_from(self.max_streams).unwrap_or(usize::MAX);
        match tokio::time::timeout(self.timeout, streams(&redis.options, pattern, streams_max)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                Err(format!("not all was said within {} (--timeout)", units::format_duration(self.timeout)))
            }
        }
    }

    fn answer(&self, redis: &Redis, found: Found, pattern: &str) -> ExitCode {
        let len_max = redis.options.streams.as_ref().map(|streams| streams.len_max);
        let usual = len_max.map_or(u64::MAX, |len_max| len_max.saturating_mul(LENGTH_SHARE));
        let limits = Limits { length: self.max_length.unwrap_or(usual), pending: self.max_pending };
        let report = Report::of(found, limits);
        let printed = if self.json {
            // A struct of texts and numbers always encodes.
            load::print(&format!("{}\n", serde_json::to_string_pretty(&report).unwrap_or_default()))
        } else {
            load::print(&report.text(pattern))
        };
        match printed {
            ExitCode::SUCCESS if !report.ok => exit::UNHEALTHY.into(),
            code => code,
        }
    }
}

fn refuse(code: u8, problem: &str) -> ExitCode {
    text::say(NAME, problem);
    code.into()
}

impl Report {
    fn of(found: Found, limits: Limits) -> Self {
        let now_ms = found.now_ms;
        let streams: Vec<_> =
            found.streams.into_iter().map(|stream| StreamReport::of(stream, limits, now_ms)).collect();
        Self { ok: streams.iter().all(|stream| stream.healthy), complete: found.is_complete, streams }
    }

    fn text(&self, pattern: &str) -> String {
        let mut out = String::new();
        if self.streams.is_empty() {
            let _ = writeln!(out, "no stream has a key like {pattern}");
        }
        self.streams.iter().for_each(|stream| stream.show(&mut out));
        if !self.complete {
            let _ = writeln!(out, "there are more streams than were looked at (--max-streams)");
        }
        out
    }
}

impl StreamReport {
    fn of(stream: Stream, limits: Limits, now_ms: u64) -> Self {
        let mut problems = Vec::new();
        if stream.length > limits.length {
            problems.push(format!("longer than {} entries: nobody trims it", limits.length));
        }
        for group in stream.groups.iter().filter(|group| group.pending > limits.pending) {
            let Group { name, pending, .. } = group;
            problems.push(format!("group {name} has {pending} pending, more than {}", limits.pending));
        }
        let entry = |id: String| {
            let age_s = id_ms(&id).map(|ms| now_ms.saturating_sub(ms) / 1000);
            EntryReport { id, age_s }
        };
        let group = |Group { name, consumers, pending, lag }| GroupReport { name, consumers, pending, lag };
        Self {
            name: stream.name,
            healthy: problems.is_empty(),
            problems,
            length: stream.length,
            oldest: stream.oldest.map(entry),
            newest: stream.newest.map(entry),
            groups: stream.groups.into_iter().map(group).collect(),
        }
    }

    fn show(&self, out: &mut String) {
        let age = |entry: &Option<EntryReport>| {
            let age_s = entry.as_ref().and_then(|entry| entry.age_s);
            age_s.map_or("unknown".to_owned(), |age_s| {
                format!("{} ago", text::age(Duration::from_secs(age_s)))
            })
        };
        let _ = write!(out, "{}: {} entries", text::plain(&self.name), self.length);
        if self.length > 0 {
            let _ = write!(out, ", oldest {}, newest {}", age(&self.oldest), age(&self.newest));
        }
        let verdict = if self.healthy { "ok".to_owned() } else { text::plain(&self.problems.join("; ")) };
        let _ = writeln!(out, "; {}{verdict}", if self.healthy { "" } else { "NOT HEALTHY: " });
        for GroupReport { name, consumers, pending, lag } in &self.groups {
            let lag = lag.map_or("unknown".to_owned(), |lag| lag.to_string());
            let consumers = text::count(*consumers, "consumer");
            let _ = writeln!(out, "  group {}: {consumers}, {pending} pending, lag {lag}", text::plain(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(length: u64, pending: u64) -> Stream {
        let groups = vec![Group { name: "web".into(), consumers: 2, pending, lag: None }];
        let (oldest, newest) = (Some("1000-0".into()), Some("61000-3".into()));
        Stream { name: "events:a\n".into(), length, oldest, newest, groups }
    }

    fn report(length: u64, pending: u64) -> Report {
        let found = Found { streams: vec![stream(length, pending)], is_complete: false, now_ms: 62_500 };
        Report::of(found, Limits { length: 10, pending: 5 })
    }

    #[test]
    fn a_stream_is_told_with_its_groups() {
        let report = report(10, 5);
        assert!(report.ok);
        assert_eq!(
            report.text("x"),
            "events:a\\n: 10 entries, oldest 1 min 1 s ago, newest 1 s ago; ok\n  group web: 2 consumers, 5 pending, lag \
             unknown\nthere are more streams than were looked at (--max-streams)\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["streams"][0]["oldest"], serde_json::json!({"id": "1000-0", "age_s": 61}));
    }

    #[test]
    fn length_and_pending_entries_are_judged() {
        for (length, pending, problem) in [
            (11, 5, "longer than 10 entries: nobody trims it"),
            (10, 6, "group web has 6 pending, more than 5"),
        ] {
            let report = report(length, pending);
            assert!(
                !report.ok && report.text("x").contains(&format!("; NOT HEALTHY: {problem}\n")),
                "{report:?}"
            );
        }
    }

    #[test]
    fn no_stream_is_healthy() {
        let found = Found { streams: Vec::new(), is_complete: true, now_ms: 0 };
        let report = Report::of(found, Limits { length: 0, pending: 0 });
        assert!(report.ok);
        assert_eq!(report.text("events:*"), "no stream has a key like events:*\n");
    }
}
