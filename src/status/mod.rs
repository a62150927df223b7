//! How the agent is: one snapshot, made from counters, buffer and links, for the status line, `/status` and the metrics.
//!
//! A look takes two short locks of the buffer's published figures and otherwise reads atomics: nobody on the way of an
//! event waits for it. What asks the operating system (memory, free disk, device) is asked at each look and by nobody else.

pub mod brief;
mod snapshot;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use self::brief::{Brief, BriefBuffer, BriefFigures};
use crate::buffer::{Buffer, Figures};
use crate::event::rfc3339;
use crate::stats::{self, Link, LinkState, Stats};
use crate::system::{self, Clock, DeviceWrites};
pub use snapshot::{
    Disk, Dropped, History, Inputs, Kafka, LastError, Left, LinkStatus, Losses, Memory, Past, Redis, Status,
    Uplink, VERSION, Waiting,
};

/// Samples that are kept; the agent takes one every ten seconds, so that these are the last hour.
const SAMPLES: usize = 361;

/// Samples of which rates are made: a rate is that of the last minute.
const SAMPLES_OF_RATE: usize = 7;

/// What of the configuration belongs to a status.
#[derive(Debug, Clone)]
pub struct Facts {
    /// `agent.id`.
    pub agent: String,
    /// The buffer's directory.
    pub dir: PathBuf,
    /// `buffer.max_bytes`.
    pub bytes_max: u64,
    /// `buffer.min_free`.
    pub free_min: u64,
}

/// Looks at the agent; shared by whoever shows it.
#[derive(Debug)]
pub struct Overview {
    facts: Facts,
    stats: Arc<Stats>,
    buffer: Buffer,
    device: DeviceWrites,
    clock: Clock,
    started_boot_us: u64,
    samples: Mutex<VecDeque<Sample>>,
}

/// Counters at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    boot_us: u64,
    received: u64,
    sent: u64,
    waiting: u64,
}

impl Overview {
    /// Of an agent that has just started.
    pub fn new(facts: Facts, stats: Arc<Stats>, buffer: Buffer) -> Self {
        let clock = Clock::default();
        let this = Self {
            device: DeviceWrites::new(&facts.dir),
            started_boot_us: clock.now().boot_us,
            samples: Mutex::new(VecDeque::with_capacity(SAMPLES)),
            facts,
            stats,
            buffer,
            clock,
        };
        this.sample();
        this
    }

    /// The agent's counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The agent's buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Notes the counters of this moment, for the rates and the history.
    pub fn sample(&self) {
        let sample = self.sample_now();
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    fn sample_now(&self) -> Sample {
        Sample {
            boot_us: self.clock.now().boot_us,
            received: self.stats.mqtt_in.get() + self.stats.unix_in.get(),
            sent: self.stats.kafka_out.get(),
            waiting: self.buffer.figures().waiting(),
        }
    }

    /// How the agent is now.
    pub fn look(&self) -> Status {
        let (stats, figures, now) = (&*self.stats, self.buffer.figures(), self.clock.now());
        let oldest = {
            let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
            samples.get(samples.len().saturating_sub(SAMPLES_OF_RATE)).copied()
        };
        let last = self.sample_now();
        let pace = Pace::between(oldest.unwrap_or(last), last);
        let age_s = |boot_us: u64| now.boot_us.saturating_sub(boot_us) / 1_000_000;
        let link = |link: &Link| LinkStatus::of(link, age_s);
        let log = self.buffer.log();
        let received = stats.mqtt_in.get() + stats.unix_in.get();
        Status {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            agent: self.facts.agent.clone(),
            log: log.id.to_string(),
            epoch: log.epoch,
            pid: std::process::id(),
            time: rfc3339(now.wall_us),
            clock_trusted: now.clock_trusted,
            uptime_s: age_s(self.started_boot_us),
            inputs: Inputs {
                events: received,
                mqtt_events: stats.mqtt_in.get(),
                unix_events: stats.unix_in.get(),
                events_per_s: pace.received_per_s,
                invalid: stats.invalid.get(),
                too_large: stats.too_large.get(),
                refused: stats.refused.get(),
                mqtt_qos0_dropped: stats.mqtt_qos0_dropped.get(),
                unix_connections: stats.unix_opened.get().saturating_sub(stats.unix_closed.get()),
                mqtt: link(&stats.mqtt),
            },
            routes: Left::of(stats),
            buffer: self.waiting(figures, pace.drained_in_s(figures.waiting())),
            kafka: Kafka {
                events: stats.kafka_out.get(),
                events_per_s: pace.sent_per_s,
                rewinds: stats.kafka_rewinds.get(),
                transactions: stats.kafka_transactions.get(),
                fallback_topic_events: stats.fallback_topic.get(),
                dead_lettered: stats.dead_lettered.get(),
                dead_letters_evicted: stats.dead_letters_evicted.get(),
                link: link(&stats.kafka),
            },
            redis: Redis::of(stats, link(&stats.redis)),
            uplink: Uplink { commands: stats.uplink_runs.get(), failed: stats.uplink_failures.get() },
            http: link(&stats.http),
            ledger: self.ledger(),
            lost: self.lost(figures),
            disk: self.disk(figures),
            memory: Memory::now(),
        }
    }

    /// How the agent is now, in a few words; asks the operating system for nothing but the time.
    pub fn brief(&self) -> Brief {
        let (stats, figures, now) = (&*self.stats, self.buffer.figures(), self.clock.now());
        let up_us = now.boot_us.saturating_sub(self.started_boot_us);
        let buffer = self.waiting(figures, None);
        let links = [("kafka", &stats.kafka), ("redis", &stats.redis)];
        let figures = BriefFigures {
            time: to_the_second(now.wall_us),
            buffer: BriefBuffer {
                events: buffer.events,
                bytes: buffer.bytes,
                max_bytes: buffer.max_bytes,
                oldest_age_s: buffer.oldest_age_s,
                is_full: buffer.is_full,
                is_writable: buffer.is_writable,
            },
            links: links.map(|(name, link)| (name.to_owned(), link.get().word().to_owned())).into(),
            lost: self.lost(figures),
        };
        Brief {
            version: brief::VERSION,
            agent: self.facts.agent.clone(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            state: brief::State::Up,
            // By today's clock, which may not have been set at the start.
            since: to_the_second(now.wall_us.saturating_sub(i64::try_from(up_us).unwrap_or(i64::MAX))),
            figures: Some(figures),
        }
    }

    fn waiting(&self, figures: Figures, drained_in_s: Option<u64>) -> Waiting {
        let now = self.clock.now();
        let age_s = |boot_us: u64| now.boot_us.saturating_sub(boot_us) / 1_000_000;
        Waiting {
            events: figures.waiting(),
            backlog_events: figures.backlog,
            durable_seq: figures.durable.0,
            cursor_seq: figures.cursor.0,
            bytes: figures.disk_bytes,
            max_bytes: self.facts.bytes_max,
            generations: figures.generations as u64,
            oldest_age_s: Some(self.stats.oldest_boot_us.get()).filter(|us| *us > 0).map(age_s),
            drained_in_s,
            is_full: self.buffer.is_full(),
            is_writable: figures.is_writable,
        }
    }

    fn lost(&self, figures: Figures) -> u64 {
        // What is not in the ledger yet counts too.
        self.stats.kafka_lost.unsettled() + figures.lost
    }

    /// The last hour, oldest first.
    pub fn history(&self) -> History {
        let now = self.sample_now();
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = samples.iter().chain([&now]).map(|sample| Past {
            at_s: sample.boot_us / 1_000_000,
            received: sample.received,
            delivered: sample.sent,
            waiting: sample.waiting,
        });
        History { samples: samples.collect() }
    }

    fn disk(&self, figures: Figures) -> Disk {
        Disk {
            free_bytes: system::free_bytes(&self.facts.dir).ok(),
            min_free: self.facts.free_min,
            stored_bytes: figures.stored_bytes,
            device_bytes: self.device.bytes(),
        }
    }

    fn ledger(&self) -> BTreeMap<String, Losses> {
        let entries = self.buffer.ledger();
        let counted = entries.iter().filter(|(_, entry)| entry.events > 0);
        counted
            .map(|(reason, entry)| {
                let losses = Losses {
                    events: entry.events,
                    acknowledged: reason.is_acknowledged(),
                    first: rfc3339(entry.first_us),
                    last: rfc3339(entry.last_us),
                };
                (reason.word().to_owned(), losses)
            })
            .collect()
    }
}

fn to_the_second(wall_us: i64) -> String {
    jiff::Timestamp::from_second(wall_us.div_euclid(1_000_000)).unwrap_or_default().to_string()
}

/// How fast it went between two samples.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pace {
    received_per_s: f64,
    sent_per_s: f64,
    /// By how much less waits with each second; negative while the backlog grows.
    drained_per_s: f64,
}

impl Pace {
    #[allow(clippy::cast_precision_loss, reason = "rates are shown to a tenth")]
    fn between(first: Sample, last: Sample) -> Self {
        // Less than a second says nothing of a rate.
        let seconds = (last.boot_us.saturating_sub(first.boot_us) as f64 / 1e6).max(1.0);
        let rate = |from: u64, to: u64| ((to as f64 - from as f64) / seconds * 10.0).round() / 10.0;
        Self {
            received_per_s: rate(first.received, last.received),
            sent_per_s: rate(first.sent, last.sent),
            drained_per_s: rate(last.waiting, first.waiting),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and a float that is too large becomes the largest number"
    )]
    fn drained_in_s(self, waiting: u64) -> Option<u64> {
        match waiting {
            0 => Some(0),
            _ => (self.drained_per_s > 0.0).then(|| (waiting as f64 / self.drained_per_s).ceil() as u64),
        }
    }
}

impl Dropped {
    fn of(dropped: &stats::Dropped) -> Self {
        Self {
            queue_full: dropped.queue_full.get(),
            link_down: dropped.link_down.get(),
            refused: dropped.refused.get(),
            too_many_streams: dropped.too_many_streams.get(),
        }
    }
}

impl Redis {
    fn of(stats: &Stats, link: LinkStatus) -> Self {
        Self {
            pings: stats.pings_out.get(),
            pings_dropped: stats.pings_dropped.get(),
            pings_dropped_by: Dropped::of(&stats.pings_dropped),
            pings_coalesced: stats.pings_coalesced.get(),
            pings_stale: stats.pings_stale.get(),
            stream_entries: stats.stream_entries_out.get(),
            stream_entries_dropped: stats.stream_entries_dropped.get(),
            stream_entries_dropped_by: Dropped::of(&stats.stream_entries_dropped),
            stream_entries_stale: stats.stream_entries_stale.get(),
            link,
        }
    }

    /// For the status line.
    fn words(&self) -> String {
        let mut words = format!(", pings {} (dropped {})", self.pings, self.pings_dropped);
        let (added, dropped) = (self.stream_entries, self.stream_entries_dropped);
        if added + dropped > 0 {
            // Writing to a String cannot fail.
            let _ = write!(words, ", stream entries {added} (dropped {dropped})");
        }
        for (word, count) in [
            ("pings coalesced", self.pings_coalesced),
            ("pings stale", self.pings_stale),
            ("stream entries stale", self.stream_entries_stale),
        ] {
            if count > 0 {
                let _ = write!(words, ", {word} {count}");
            }
        }
        words
    }
}

impl Left {
    fn of(stats: &Stats) -> Self {
        let (dropped, sampled_out) = (stats.dropped.get(), stats.sampled_out.get());
        Self { dropped, sampled_out, filtered: stats.filtered.get() }
    }
}

impl LinkStatus {
    fn of(link: &Link, age_s: impl Fn(u64) -> u64) -> Self {
        Self {
            state: link.get().word().to_owned(),
            state_for_s: link.since_boot_us().map(&age_s),
            last_error: link.failure().map(|failure| LastError {
                at: rfc3339(failure.at.wall_us),
                ago_s: age_s(failure.at.boot_us),
                what: failure.what,
            }),
        }
    }

    /// Whether the link is configured.
    pub fn is_on(&self) -> bool {
        self.state != LinkState::Off.word()
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.state == LinkState::Up.word()
    }
}

impl Memory {
    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
            kib.checked_mul(1024)
        };
        Self { resident_bytes: bytes("VmRSS:"), peak_bytes: bytes("VmHWM:") }
    }
}

impl Status {
    /// The links to the services, by name.
    pub fn links(&self) -> [(&'static str, &LinkStatus); 3] {
        [("mqtt", &self.inputs.mqtt), ("kafka", &self.kafka.link), ("redis", &self.redis.link)]
    }

    /// What goes in, what waits, what went out, in one line: for the log and the service manager.
    pub fn line(&self) -> String {
        let Self { inputs, buffer, kafka, .. } = self;
        let backlog = match buffer.backlog_events {
            0 => String::new(),
            events => format!(" ({events} backlog)"),
        };
        let mut line = format!(
            "in {} (mqtt {}, unix {}), refused {}, buffered {} events{backlog} in {} KiB, oldest {} s, out {}, lost {}",
            inputs.events,
            inputs.mqtt_events,
            inputs.unix_events,
            inputs.refused + inputs.invalid + inputs.too_large,
            buffer.events,
            buffer.bytes / 1024,
            buffer.oldest_age_s.unwrap_or(0),
            kafka.events,
            self.lost,
        );
        // Writing to a String cannot fail.
        let mut add = |text: std::fmt::Arguments<'_>| {
            let _ = line.write_fmt(text);
        };
        let lost = self.ledger.iter().filter(|(_, losses)| losses.acknowledged);
        let reasons: Vec<_> = lost.map(|(reason, losses)| format!("{reason} {}", losses.events)).collect();
        if !reasons.is_empty() {
            add(format_args!(" ({})", reasons.join(", ")));
        }
        if kafka.fallback_topic_events > 0 {
            add(format_args!(", {} to the fallback topic", kafka.fallback_topic_events));
        }
        let Left { dropped, sampled_out, filtered } = self.routes;
        let by_route = [("dropped", dropped), ("sampled out", sampled_out), ("filtered", filtered)];
        for (word, events) in by_route.iter().filter(|(_, events)| *events > 0) {
            add(format_args!(", {word} {events}"));
        }
        if self.disk.stored_bytes > 0 {
            add(format_args!(", stored {} KiB", self.disk.stored_bytes / 1024));
            if let Some(bytes) = self.disk.device_bytes {
                add(format_args!(" (device wrote {} KiB)", bytes / 1024));
            }
        }
        if buffer.is_full {
            add(format_args!(", FULL"));
        }
        if !buffer.is_writable {
            add(format_args!(", NOT WRITABLE"));
        }
        if self.redis.link.is_on() {
            add(format_args!("{}", self.redis.words()));
        }
        for (name, link) in self.links() {
            add(format_args!(", {name} {}", link.state));
        }
        if self.http.is_on() {
            add(format_args!(", http {}", self.http.state));
        }
        line
    }

    /// Why no data moves, or soon will not, each in words; empty when all is well. `age_max_s`: how long an event may wait.
    pub fn troubles(&self, age_max_s: u64) -> Vec<String> {
        let mut troubles = Vec::new();
        let links = [("mqtt", &self.inputs.mqtt), ("kafka", &self.kafka.link)];
        for (name, link) in links.into_iter().filter(|(_, link)| link.is_on() && !link.is_up()) {
            let since = link.state_for_s.map_or_else(String::new, |s| format!(" for {s} s"));
            let why = link.last_error.as_ref().map_or_else(String::new, |error| format!(": {}", error.what));
            troubles.push(format!("{name} is {}{since}{why}", link.state));
        }
        if let Some(age_s) = self.buffer.oldest_age_s.filter(|age_s| *age_s > age_max_s) {
            troubles.push(format!("the oldest event has waited for {age_s} s"));
        }
        if self.buffer.is_full {
            troubles.push("the buffer is full".to_owned());
        }
        if !self.buffer.is_writable {
            troubles.push("the buffer cannot be written".to_owned());
        }
        if let Some(free) = self.disk.free_bytes.filter(|free| *free < self.disk.min_free) {
            troubles.push(format!(
                "{free} bytes are free on the disk, buffer.min_free is {}",
                self.disk.min_free
            ));
        }
        troubles
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::buffer::Options;

    pub(crate) fn overview(dir: &std::path::Path) -> Overview {
        let options = Options::new(dir);
        let (buffer, _) = Buffer::open(&options, [0; 16], Arc::default()).unwrap();
        let facts = Facts { agent: "a".into(), dir: options.dir, bytes_max: options.bytes_max, free_min: 0 };
        Overview::new(facts, Arc::default(), buffer)
    }

    #[tokio::test]
    async fn the_line_says_what_the_status_has() {
        let dir = tempfile::tempdir().unwrap();
        let overview = overview(dir.path());
        let stats = overview.stats();
        stats.mqtt_in.add(3);
        stats.unix_in.add(4);
        stats.invalid.add(1);
        stats.too_large.add(2);
        stats.refused.add(3);
        stats.kafka_out.add(5);
        stats.kafka_lost.add(1);
        stats.sampled_out.add(9);
        stats.kafka.set(LinkState::Up);
        let status = overview.look();
        let line = status.line();
        assert!(line.starts_with("in 7 (mqtt 3, unix 4), refused 6, buffered 0 events in "), "{line}");
        assert!(line.contains(" KiB, oldest 0 s, out 5, lost 1, sampled out 9"), "{line}");
        assert!(line.ends_with(", mqtt off, kafka up, redis off"), "{line}");
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
        assert!(status.memory.resident_bytes.is_some_and(|bytes| bytes > 100_000));
        assert!(status.troubles(60).is_empty());
        overview.buffer().close().await;
    }

    #[tokio::test]
    async fn troubles_are_told_with_their_reason() {
        let dir = tempfile::tempdir().unwrap();
        let overview = overview(dir.path());
        overview.stats().kafka.set(LinkState::Down);
        overview.stats().kafka.failed("connection refused");
        overview.stats().oldest_boot_us.set(1);
        let mut status = overview.look();
        status.buffer.oldest_age_s = Some(61);
        (status.buffer.is_full, status.buffer.is_writable) = (true, false);
        (status.disk.free_bytes, status.disk.min_free) = (Some(1), 2);
        let troubles = status.troubles(60);
        assert_eq!(troubles[0], "kafka is down for 0 s: connection refused");
        assert_eq!(
            troubles[1..],
            [
                "the oldest event has waited for 61 s",
                "the buffer is full",
                "the buffer cannot be written",
                "1 bytes are free on the disk, buffer.min_free is 2"
            ]
        );
        overview.buffer().close().await;
    }

    #[tokio::test]
    async fn the_history_is_an_hour_long_and_rates_are_of_the_last_minute() {
        let dir = tempfile::tempdir().unwrap();
        let overview = overview(dir.path());
        for _ in 0..400 {
            overview.stats().unix_in.add(1);
            overview.sample();
        }
        let history = overview.history().samples;
        assert_eq!(history.len(), SAMPLES + 1, "and how it is now");
        assert_eq!((history[0].received, history[SAMPLES - 1].received), (40, 400));
        let status = overview.look();
        assert_eq!(
            status.inputs.events_per_s, 6.0,
            "{SAMPLES_OF_RATE} samples within a second, which counts as one"
        );
        overview.buffer().close().await;
    }

    #[test]
    fn a_backlog_that_shrinks_has_an_end() {
        let at = |s: u64, received, sent, waiting| Sample { boot_us: s * 1_000_000, received, sent, waiting };
        let pace = Pace::between(at(0, 0, 0, 1000), at(10, 100, 600, 500));
        assert_eq!((pace.received_per_s, pace.sent_per_s, pace.drained_per_s), (10.0, 60.0, 50.0));
        assert_eq!((pace.drained_in_s(500), pace.drained_in_s(0)), (Some(10), Some(0)));
        let growing = Pace::between(at(0, 0, 0, 0), at(10, 100, 0, 100));
        assert_eq!(growing.drained_in_s(100), None);
        assert_eq!(Pace::between(at(5, 7, 7, 7), at(5, 7, 7, 7)).sent_per_s, 0.0);
    }
}
