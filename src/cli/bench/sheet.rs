//! What was measured.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

use super::Fate;
use crate::cli::exit;

/// Latencies up to a day, in microseconds, to three digits.
const LATENCY_US_MAX: u64 = 86_400_000_000;
const DIGITS: u8 = 3;

/// The account of one measurement. Memory follows the window.
#[derive(Debug)]
pub(super) struct Sheet {
    target: &'static str,
    rate: u32,
    payload_bytes: u32,
    /// Since when each event counts that nothing was heard of, from `first_open` on; none: heard already.
    since: VecDeque<Option<Instant>>,
    first_open: u64,
    taken: u64,
    refused_for_good: u64,
    refused_for_now: u64,
    latencies_us: Option<Histogram<u64>>,
    took: Duration,
}

impl Sheet {
    pub(super) fn new(target: &'static str, rate: u32, payload_bytes: u32) -> Self {
        Self {
            target,
            rate,
            payload_bytes,
            since: VecDeque::new(),
            first_open: 0,
            taken: 0,
            refused_for_good: 0,
            refused_for_now: 0,
            // Its bounds are right, so there always is one.
            latencies_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).ok(),
            took: Duration::ZERO,
        }
    }

    pub(super) fn sent(&self) -> u64 {
        self.first_open + self.since.len() as u64
    }

    /// Events that nothing was heard of.
    pub(super) fn open(&self) -> u64 {
        self.sent() - self.decided()
    }

    pub(super) fn decided(&self) -> u64 {
        self.taken + self.refused_for_good + self.refused_for_now
    }

    /// The next event was sent.
    pub(super) fn send(&mut self, since: Instant) {
        self.since.push_back(Some(since));
    }

    /// What became of an event. Something said twice counts once.
    pub(super) fn hear(&mut self, number: u64, fate: Fate, now: Instant) {
        let at = number.checked_sub(self.first_open).and_then(|at| usize::try_from(at).ok());
        let Some(since) = at.and_then(|at| self.since.get_mut(at)).and_then(Option::take) else { return };
        while self.since.pop_front_if(|since| since.is_none()).is_some() {
            self.first_open += 1;
        }
        match fate {
            Fate::Taken => {
                self.taken += 1;
                let us = u64::try_from(now.saturating_duration_since(since).as_micros()).unwrap_or(u64::MAX);
                if let Some(latencies) = &mut self.latencies_us {
                    latencies.saturating_record(us.max(1));
                }
            }
            Fate::RefusedForGood => self.refused_for_good += 1,
            Fate::RefusedForNow => self.refused_for_now += 1,
        }
    }

    pub(super) fn end(&mut self, took: Duration) {
        self.took = took;
    }

    pub(super) fn quantile_us(&self, quantile: f64) -> u64 {
        self.latencies_us.as_ref().map_or(0, |latencies| latencies.value_at_quantile(quantile))
    }

    fn max_us(&self) -> u64 {
        self.latencies_us.as_ref().map_or(0, Histogram::max)
    }

    fn rate_reached(&self) -> f64 {
        self.taken as f64 / self.took.as_secs_f64().max(1e-6)
    }

    /// The code to exit with; `is_broken`: it ended before everything was heard of.
    pub(super) fn exit_code(&self, is_broken: bool) -> u8 {
        if is_broken || self.refused_for_now > 0 || self.open() > 0 {
            exit::TEMPORARY
        } else if self.refused_for_good > 0 {
            exit::DATA
        } else {
            0
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let rate = self.rate_reached();
        let mut text = format!(
            "{} of {} events taken in {:.1} s: {rate:.0} events/s, {:.2} MB/s of payload\n",
            self.taken,
            self.sent(),
            self.took.as_secs_f64(),
            rate * f64::from(self.payload_bytes) / 1e6
        );
        let answers = match self.target {
            "mqtt" => "with the broker",
            "kafka" => "confirmed by Kafka",
            _ => "durable",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{answers} after: p50 {}, p90 {}, p99 {}, p99.9 {}, longest {}",
            time(self.quantile_us(0.5)),
            time(self.quantile_us(0.9)),
            time(self.quantile_us(0.99)),
            time(self.quantile_us(0.999)),
            time(self.max_us())
        );
        for (events, what) in [
            (self.refused_for_now, "not taken now (buffer full, time-out)"),
            (self.refused_for_good, "refused for good (invalid, too large)"),
            (self.open(), "without an answer"),
        ] {
            if events > 0 {
                let _ = writeln!(text, "{events} {what}");
            }
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Latency {
            p50: f64,
            p90: f64,
            p99: f64,
            p99_9: f64,
            max: f64,
        }
        #[derive(Serialize)]
        struct Report {
            target: &'static str,
            rate_wanted: u32,
            payload_bytes: u32,
            seconds: f64,
            sent: u64,
            taken: u64,
            refused_for_now: u64,
            refused_for_good: u64,
            without_answer: u64,
            events_per_second: f64,
            latency_ms: Latency,
        }
        let ms = |us: u64| us as f64 / 1000.0;
        let report = Report {
            target: self.target,
            rate_wanted: self.rate,
            payload_bytes: self.payload_bytes,
            seconds: self.took.as_secs_f64(),
            sent: self.sent(),
            taken: self.taken,
            refused_for_now: self.refused_for_now,
            refused_for_good: self.refused_for_good,
            without_answer: self.open(),
            events_per_second: self.rate_reached(),
            latency_ms: Latency {
                p50: ms(self.quantile_us(0.5)),
                p90: ms(self.quantile_us(0.9)),
                p99: ms(self.quantile_us(0.99)),
                p99_9: ms(self.quantile_us(0.999)),
                max: ms(self.max_us()),
            },
        };
        // Numbers and one word always have a JSON form.
        serde_json::to_string(&report).unwrap_or_default() + "\n"
    }
}

/// `0.284 ms`, `15.8 ms`, `1435 ms`.
pub(super) fn time(us: u64) -> String {
    let ms = us as f64 / 1000.0;
    match us {
        0..10_000 => format!("{ms:.3} ms"),
        10_000..1_000_000 => format!("{ms:.1} ms"),
        _ => format!("{ms:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_counts_once_and_from_its_own_time() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut sheet = Sheet::new("unix", 0, 100);
        for n in 0..4 {
            sheet.send(at(n));
        }
        sheet.hear(2, Fate::Taken, at(12));
        sheet.hear(2, Fate::Taken, at(90));
        sheet.hear(0, Fate::Taken, at(20));
        assert_eq!((sheet.open(), sheet.decided(), sheet.first_open), (2, 2, 1));
        sheet.hear(1, Fate::RefusedForGood, at(30));
        assert_eq!((sheet.open(), sheet.first_open), (1, 3));
        assert_eq!(sheet.exit_code(false), exit::TEMPORARY, "one is open");
        sheet.hear(3, Fate::Taken, at(33));
        sheet.hear(77, Fate::Taken, at(33));
        assert_eq!((sheet.open(), sheet.taken, sheet.refused_for_good), (0, 3, 1));
        assert_eq!((sheet.exit_code(false), sheet.exit_code(true)), (exit::DATA, exit::TEMPORARY));
        sheet.end(Duration::from_secs(2));
        let json: serde_json::Value = serde_json::from_str(&sheet.json()).unwrap();
        assert_eq!((&json["taken"], &json["events_per_second"]), (&3.into(), &1.5.into()));
        assert!((29.9..30.1).contains(&json["latency_ms"]["max"].as_f64().unwrap()), "{json}");
        assert!(
            sheet.text().contains("p50 20.0 ms") && sheet.text().contains("refused for good"),
            "{}",
            sheet.text()
        );
    }
}
