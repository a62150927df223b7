//! How the agent is: one snapshot, made from counters, buffer and links, for the status line, `/status` and the metrics.
//!
//! A look takes two short locks of the buffer's published figures and otherwise reads atomics: nobody on the way of an
//! event waits for it. What asks the operating system (memory, free disk, device) is asked at each look and by nobody else.

pub mod brief;
mod pace;
mod snapshot;
mod words;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use self::brief::{Brief, BriefBuffer, BriefFigures};
use crate::buffer::{Buffer, Figures};
use crate::event::rfc3339;
use crate::stats::{self, Link, LinkState, Stats};
use crate::system::{self, Clock, DeviceWrites};
use pace::{Pace, Sample};
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
}
