//! What `fieldpost top` shows, as lines that fit. Pure.

use std::time::Duration;

use indicatif::HumanCount;

use super::screen::{Line, Tone};
use super::spark;
use crate::cli::text;
use crate::config::units::about_bytes;
use crate::status::{LinkStatus, Past, Status};

/// Where the text of a line begins, behind its name.
const NAME_COLUMNS: usize = 9;

/// Where plots begin, if there is room for them.
const PLOT_AT: usize = 44;

/// Least columns of a plot; with fewer there is none.
const PLOT_COLUMNS_MIN: usize = 12;

const BAR_COLUMNS: usize = 20;

/// What is shown.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) place: String,
    /// The last one that came.
    pub(super) status: Option<&'a Status>,
    /// The last hour.
    pub(super) samples: &'a [Past],
    /// The agent does not answer.
    pub(super) silence: Option<Silence<'a>>,
}

/// The agent does not answer.
#[derive(Debug)]
pub(super) struct Silence<'a> {
    pub(super) lasts: Duration,
    pub(super) why: &'a str,
}

/// At most `rows` lines of at most `columns`.
pub(super) fn lines(view: &View<'_>, columns: usize, rows: usize) -> Vec<Line> {
    let mut page = Page { lines: Vec::new(), columns };
    if let Some(Silence { lasts, why }) = &view.silence {
        let what = format!("NO ANSWER for {}: {}", text::age(*lasts), text::plain(why));
        page.add("", vec![(Tone::Bad, what)]);
    }
    match view.status {
        None => page.add("", vec![(Tone::Plain, format!("asking {} …", text::plain(&view.place)))]),
        Some(status) => page.status(status, view.samples),
    }
    page.lines.truncate(rows.max(1));
    page.lines.iter_mut().for_each(|line| fit(line, columns));
    page.lines
}

struct Page {
    lines: Vec<Line>,
    columns: usize,
}

impl Page {
    /// A line with a name in front, or without one.
    fn add(&mut self, name: &str, pieces: Vec<(Tone, String)>) {
        let mut line = Line::new();
        if !name.is_empty() {
            line.push((Tone::Strong, format!("{name:<NAME_COLUMNS$}")));
        }
        line.extend(pieces);
        self.lines.push(line);
    }

    /// A line below a name.
    fn more(&mut self, text: String) {
        self.add("", vec![(Tone::Plain, format!("{:NAME_COLUMNS$}{text}", ""))]);
    }

    /// The same, with a plot behind it where there is room.
    fn add_plotted(&mut self, name: &str, words: String, values: &[f64]) {
        let taken = (NAME_COLUMNS + words.chars().count() + 2).max(PLOT_AT);
        let room = self.columns.saturating_sub(taken);
        let mut pieces = vec![(Tone::Plain, words)];
        if room >= PLOT_COLUMNS_MIN && !values.is_empty() {
            let used = NAME_COLUMNS + pieces.iter().map(|(_, text)| text.chars().count()).sum::<usize>();
            pieces.push((Tone::Plain, " ".repeat(taken - used)));
            pieces.push((Tone::Faint, spark::plot(values, room)));
        }
        self.add(name, pieces);
    }

    fn status(&mut self, status: &Status, samples: &[Past]) {
        let Status { agent, program, uptime_s, epoch, pid, .. } = status;
        let clock = if status.clock_trusted { "" } else { ", clock not trusted" };
        let words = format!(
            "  fieldpost {}, up {}, epoch {epoch}, pid {pid}, {}{clock}",
            text::plain(program),
            seconds(*uptime_s),
            text::plain(status.time.split('.').next().unwrap_or_default())
        );
        self.add("", vec![(Tone::Strong, text::plain(agent)), (Tone::Plain, words)]);
        self.add("", Line::new());
        self.inputs(status, samples);
        self.buffer(status, samples);
        self.kafka(status, samples);
        self.redis(status);
        if status.http.last_error.is_some() || !status.http.is_up() {
            self.link("http", &status.http, String::new());
        }
        self.lost(status);
        self.machine(status);
    }

    fn inputs(&mut self, status: &Status, samples: &[Past]) {
        let inputs = &status.inputs;
        let words = format!("{} events, {:.1}/s", HumanCount(inputs.events), inputs.events_per_s);
        self.add_plotted("in", words, &spark::rates(samples, |past| past.received));
        let connections = text::count(inputs.unix_connections, "connection");
        self.more(format!("socket {} from {connections} now", HumanCount(inputs.unix_events)));
        if inputs.mqtt.is_on() {
            self.link("  mqtt", &inputs.mqtt, format!("{} events", HumanCount(inputs.mqtt_events)));
        }
        let left = &status.routes;
        let counts = [
            ("refused", inputs.refused),
            ("invalid", inputs.invalid),
            ("too large", inputs.too_large),
            ("QoS 0 dropped", inputs.mqtt_qos0_dropped),
            ("dropped by a route", left.dropped),
            ("sampled out", left.sampled_out),
            ("filtered", left.filtered),
        ];
        self.counts("not taken ", &counts);
    }

    fn buffer(&mut self, status: &Status, samples: &[Past]) {
        let buffer = &status.buffer;
        let backlog = match buffer.backlog_events {
            0 => String::new(),
            events => format!(" ({} backlog)", HumanCount(events)),
        };
        #[allow(clippy::cast_precision_loss, reason = "a plot")]
        let waiting: Vec<f64> = samples.iter().map(|past| past.waiting as f64).collect();
        self.add_plotted("waiting", format!("{} events{backlog}", HumanCount(buffer.events)), &waiting);
        let oldest = buffer.oldest_age_s.map_or_else(String::new, |age| format!("oldest {}, ", seconds(age)));
        let drained = match buffer.drained_in_s {
            Some(0) => "drained".to_owned(),
            Some(left) => format!("drained in about {}", seconds(left)),
            None => "not drained at this pace".to_owned(),
        };
        self.more(format!("{oldest}{drained}"));
        let bar = spark::bar(buffer.bytes, buffer.max_bytes, BAR_COLUMNS);
        let mut pieces = vec![(
            Tone::Plain,
            format!(
                "{:NAME_COLUMNS$}{bar} {} of {}, {}",
                "",
                about_bytes(buffer.bytes),
                about_bytes(buffer.max_bytes),
                text::count(buffer.generations, "generation"),
            ),
        )];
        for (is_bad, word) in [(buffer.is_full, " FULL"), (!buffer.is_writable, " NOT WRITABLE")] {
            if is_bad {
                pieces.push((Tone::Bad, word.to_owned()));
            }
        }
        self.add("", pieces);
    }

    fn kafka(&mut self, status: &Status, samples: &[Past]) {
        let kafka = &status.kafka;
        let words = format!("{} events, {:.1}/s", HumanCount(kafka.events), kafka.events_per_s);
        self.add_plotted("kafka", words, &spark::rates(samples, |past| past.delivered));
        self.link("", &kafka.link, String::new());
        let counts = [
            ("sent again", kafka.rewinds),
            ("transactions", kafka.transactions),
            ("to the fallback topic", kafka.fallback_topic_events),
            ("dead letters", kafka.dead_lettered),
            ("dead letters gone", kafka.dead_letters_evicted),
        ];
        self.counts("", &counts);
    }

    fn redis(&mut self, status: &Status) {
        let redis = &status.redis;
        if !redis.link.is_on() {
            return;
        }
        let mut words = format!("{} pings", HumanCount(redis.pings));
        if redis.stream_entries > 0 {
            words += &format!(", {} stream entries", HumanCount(redis.stream_entries));
        }
        self.link("redis", &redis.link, words);
        let counts = [
            ("pings dropped", redis.pings_dropped),
            ("coalesced", redis.pings_coalesced),
            ("stale", redis.pings_stale),
            ("entries dropped", redis.stream_entries_dropped),
            ("entries stale", redis.stream_entries_stale),
        ];
        self.counts("", &counts);
    }

    fn lost(&mut self, status: &Status) {
        let tone = if status.lost > 0 { Tone::Bad } else { Tone::Good };
        let words = format!("{} acknowledged events", HumanCount(status.lost));
        self.add("lost", vec![(tone, words)]);
        for (reason, losses) in &status.ledger {
            let (reason, last) = (text::plain(reason), text::plain(&losses.last));
            self.more(format!("{reason} {}, last {last}", HumanCount(losses.events)));
        }
    }

    fn machine(&mut self, status: &Status) {
        let bytes = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), about_bytes);
        let (disk, memory) = (&status.disk, &status.memory);
        let words = format!(
            "{} free ({} kept free), stored {}, device wrote {}",
            bytes(disk.free_bytes),
            about_bytes(disk.min_free),
            about_bytes(disk.stored_bytes),
            bytes(disk.device_bytes)
        );
        self.add("disk", vec![(Tone::Plain, words)]);
        let memory = format!("{}, at most {}", bytes(memory.resident_bytes), bytes(memory.peak_bytes));
        self.add("memory", vec![(Tone::Plain, memory)]);
    }

    /// A link with its state, since when, and what went wrong last.
    fn link(&mut self, name: &str, link: &LinkStatus, words: String) {
        let tone = if link.is_up() { Tone::Good } else { Tone::Bad };
        let since = link.state_for_s.map_or_else(String::new, |age| format!(" for {}", seconds(age)));
        let separator = if words.is_empty() { "" } else { ", " };
        let mut pieces =
            vec![(tone, text::plain(&link.state)), (Tone::Plain, format!("{since}{separator}{words}"))];
        if name.is_empty() {
            pieces.insert(0, (Tone::Plain, " ".repeat(NAME_COLUMNS)));
        }
        self.add(name, pieces);
        if let Some(error) = &link.last_error {
            let what = format!("{} ago: {}", seconds(error.ago_s), text::plain(&error.what));
            self.add("", vec![(Tone::Faint, format!("{:NAME_COLUMNS$}{what}", ""))]);
        }
    }

    /// Those that are above zero.
    fn counts(&mut self, before: &str, counts: &[(&str, u64)]) {
        let counts: Vec<_> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(word, count)| format!("{word} {}", HumanCount(*count)))
            .collect();
        if !counts.is_empty() {
            self.more(format!("{before}{}", counts.join(", ")));
        }
    }
}

fn seconds(seconds: u64) -> String {
    text::age(Duration::from_secs(seconds))
}

/// Cuts a line that is too long; its last character then says so.
fn fit(line: &mut Line, columns: usize) {
    let length: usize = line.iter().map(|(_, text)| text.chars().count()).sum();
    if length <= columns {
        return;
    }
    let mut left = columns.saturating_sub(1);
    for (_, text) in line.iter_mut() {
        let kept: String = text.chars().take(left).collect();
        left -= kept.chars().count();
        *text = kept;
    }
    line.push((Tone::Plain, "…".repeat(columns.min(1))));
}

#[cfg(test)]
mod tests {
    use super::super::screen::plain;
    use super::*;

    fn status() -> Status {
        serde_json::from_value(serde_json::json!({
            "version": 1, "program": "0.1.0", "agent": "gw-17", "log": "x", "epoch": 3, "pid": 77,
            "time": "2026-03-01T12:00:00.000000Z", "clock_trusted": false, "uptime_s": 7260,
            "inputs": {"events": 12345, "mqtt_events": 12000, "unix_events": 345, "events_per_s": 20.0, "invalid": 2,
                "too_large": 0, "refused": 1, "mqtt_qos0_dropped": 0, "unix_connections": 1,
                "mqtt": {"state": "up", "state_for_s": 7200, "last_error": null}},
            "routes": {"dropped": 0, "sampled_out": 0, "filtered": 5},
            "buffer": {"events": 1234, "backlog_events": 0, "durable_seq": 9, "cursor_seq": 1, "bytes": 1_073_741_824_u64,
                "max_bytes": 4_294_967_296_u64, "generations": 3, "oldest_age_s": 75, "drained_in_s": null,
                "is_full": true, "is_writable": true},
            "kafka": {"events": 11111, "events_per_s": 0.0, "rewinds": 2, "transactions": 0, "fallback_topic_events": 0,
                "dead_lettered": 0, "dead_letters_evicted": 0, "state": "down", "state_for_s": 75,
                "last_error": {"what": "Connect to ipv4#192.0.2.1:9092 failed: \u{1b}[31mConnection refused, and this goes on and on",
                    "at": "x", "ago_s": 3}},
            "redis": {"pings": 120, "pings_dropped": 3, "pings_coalesced": 0, "pings_stale": 0, "stream_entries": 7,
                "stream_entries_dropped": 0, "stream_entries_stale": 0, "state": "up", "state_for_s": 7200, "last_error": null},
            "http": {"state": "up", "state_for_s": 7260, "last_error": null},
            "ledger": {"evicted": {"events": 5, "acknowledged": true, "first": "a", "last": "2026-03-01T11:00:00Z"}},
            "lost": 5,
            "disk": {"free_bytes": 3_650_722_201_u64, "min_free": 16_777_216, "stored_bytes": 12_582_912, "device_bytes": null},
            "memory": {"resident_bytes": 13_631_488, "peak_bytes": 20_971_520},
        }))
        .unwrap()
    }

    fn samples() -> Vec<Past> {
        (0..361).map(|n| Past { at_s: n * 10, received: n * n, delivered: n, waiting: n }).collect()
    }

    fn shown(columns: usize, rows: usize) -> String {
        let (status, samples) = (status(), samples());
        let silence = Some(Silence { lasts: Duration::from_secs(5), why: "cannot connect" });
        let view = View { place: "http://x".into(), status: Some(&status), samples: &samples, silence };
        plain(&lines(&view, columns, rows))
    }

    #[test]
    fn everything_is_on_a_small_terminal() {
        let text = shown(80, 24);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() <= 24 && lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        for part in [
            "NO ANSWER for 5 s: cannot connect",
            "gw-17  fieldpost 0.1.0, up 2 h 1 min, epoch 3, pid 77",
            "in       12,345 events, 20.0/s",
            "socket 345 from 1 connection now",
            "  mqtt   up for 2 h 0 min, 12,000 events",
            "not taken refused 1, invalid 2, filtered 5",
            "waiting  1,234 events",
            "oldest 1 min 15 s, not drained at this pace",
            "[#####---------------] 1 GiB of 4 GiB, 3 generations FULL",
            "down for 1 min 15 s\n         3 s ago: Connect to ipv4#192.0.2.1:9092 failed: \\u{1b}[31mConn",
            "sent again 2",
            "redis    up for 2 h 0 min, 120 pings, 7 stream entries\n         pings dropped 3",
            "lost     5 acknowledged events\n         evicted 5, last 2026-03-01T11:00:00Z",
            "disk     3.3 GiB free (16 MiB kept free), stored 12 MiB, device wrote unknown",
            "memory   13 MiB, at most 20 MiB",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(text.contains('█') && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn it_fits_whatever_the_size() {
        for (columns, rows) in [(1, 1), (10, 3), (40, 10), (200, 50)] {
            let text = shown(columns, rows);
            assert!(text.lines().count() <= rows, "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}: {text}");
        }
        assert!(!shown(40, 24).contains('█'), "no room for a plot");
    }

    #[test]
    fn before_the_first_answer_it_says_whom_it_asks() {
        let view = View { place: "http://x:1".into(), status: None, samples: &[], silence: None };
        assert_eq!(plain(&lines(&view, 80, 24)), "asking http://x:1 …\n");
    }
}
