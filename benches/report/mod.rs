//! What both benchmark programs share: their arguments, medians, and the table they print.
#![allow(dead_code, reason = "each of the two programs uses a part of it")]

use std::time::Duration;

/// What to run and how much of it.
#[derive(Debug, Clone)]
pub(crate) struct Arguments {
    /// Names of parts; empty: all of them.
    pub(crate) parts: Vec<String>,
    /// Scale: events through the socket; other parts take a multiple or a fraction of it.
    pub(crate) events: u64,
    /// Rounds of each comparison; the median counts.
    pub(crate) rounds: usize,
    /// Length of what is measured at a steady pace.
    pub(crate) pace: Duration,
    /// The agent's binary, if it is not the one that was built with this program.
    pub(crate) binary: Option<String>,
    /// With pings to Redis.
    pub(crate) has_redis: bool,
}

pub(crate) const USAGE: &str = "\
Side by side figures, printed and never asserted. Options behind `--`:
  PART...          append, socket, pace, mqtt, delivery, pings, http, memory; default: these. On demand: bounds,
                   wear
  --events N       scale, default 1000000 (socket: N, backlog: 2 N, MQTT drain: N / 5, append: N / 2, bounds: 5 N)
  --rounds N       rounds of each comparison, default 3; the median counts
  --seconds N      length of the steady runs (pace, pings, http) and of the idle run, default 30
  --binary PATH    measure this agent instead of the one built with the benchmark
  --redis          with pings to Redis in all runs";

impl Arguments {
    /// Reads the command line. Cargo's own `--bench` is skipped; anything unknown ends the program.
    pub(crate) fn parse() -> Self {
        let mut arguments = Self {
            parts: Vec::new(),
            events: 1_000_000,
            rounds: 3,
            pace: Duration::from_secs(30),
            binary: None,
            has_redis: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|n| n.parse::<u64>().ok()).filter(|n| *n > 0);
            match word.as_str() {
                "--bench" => {}
                "--redis" => arguments.has_redis = true,
                "--events" => arguments.events = number().unwrap_or_else(|| misused("--events N")),
                "--rounds" => {
                    arguments.rounds =
                        number().and_then(|n| n.try_into().ok()).unwrap_or_else(|| misused("--rounds N"));
                }
                "--seconds" => {
                    arguments.pace = Duration::from_secs(number().unwrap_or_else(|| misused("--seconds N")));
                }
                "--binary" => {
                    arguments.binary = Some(words.next().unwrap_or_else(|| misused("--binary PATH")));
                }
                part @ ("append" | "socket" | "pace" | "mqtt" | "delivery" | "pings" | "http" | "memory"
                | "bounds" | "wear") => arguments.parts.push(part.to_owned()),
                other => misused(other),
            }
        }
        arguments
    }

    /// Whether `part` was asked for; the long ones only by name.
    pub(crate) fn wants(&self, part: &str) -> bool {
        let is_long = matches!(part, "bounds" | "wear");
        (self.parts.is_empty() && !is_long) || self.parts.iter().any(|wanted| wanted == part)
    }
}

fn misused(what: &str) -> ! {
    eprintln!("not understood: {what}\n{USAGE}");
    std::process::exit(64);
}

/// Where a figure has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// The ratio of fieldpost to the reference, at least.
    RatioMin(f64),
    /// The same, at most.
    RatioMax(f64),
    /// Fieldpost's own value, at most.
    Max(f64),
    /// Shown for scale.
    None,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) figure: String,
    pub(crate) unit: &'static str,
    pub(crate) fieldpost: f64,
    pub(crate) reference: Option<f64>,
    /// Set where the median of the rounds' ratios is not the ratio of the medians.
    pub(crate) ratio: Option<f64>,
    pub(crate) target: Target,
}

impl Row {
    /// A figure without a reference.
    pub(crate) fn single(figure: impl Into<String>, unit: &'static str, value: f64, target: Target) -> Self {
        Self { figure: figure.into(), unit, fieldpost: value, reference: None, ratio: None, target }
    }

    /// Medians of rounds in which both ran one after the other; the ratio is the median of the rounds' ratios.
    pub(crate) fn paired(
        figure: impl Into<String>,
        unit: &'static str,
        rounds: &[(f64, f64)],
        target: Target,
    ) -> Self {
        Self {
            figure: figure.into(),
            unit,
            fieldpost: median(rounds.iter().map(|round| round.0)),
            reference: Some(median(rounds.iter().map(|round| round.1))),
            ratio: Some(median(rounds.iter().map(|round| round.0 / round.1))),
            target,
        }
    }

    fn is_reached(&self) -> Option<bool> {
        match self.target {
            Target::RatioMin(min) => self.ratio.map(|ratio| ratio >= min),
            Target::RatioMax(max) => self.ratio.map(|ratio| ratio <= max),
            Target::Max(max) => Some(self.fieldpost <= max),
            Target::None => None,
        }
    }
}

/// The middle one; of an even number the mean of the two in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Prints the rows as a table that Markdown takes too.
pub(crate) fn print(rows: &[Row]) {
    println!("\n| figure | fieldpost | reference | ratio | target | reached |");
    println!("|---|---:|---:|---:|---:|---|");
    for row in rows {
        let reference = row.reference.map_or(String::new(), |value| number(value, row.unit));
        let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let target = match row.target {
            Target::RatioMin(min) => format!("ratio >= {min}"),
            Target::RatioMax(max) => format!("ratio <= {max}"),
            Target::Max(max) => format!("<= {}", number(max, row.unit)),
            Target::None => String::new(),
        };
        let reached = row.is_reached().map_or("", |yes| if yes { "yes" } else { "NO" });
        println!(
            "| {} | {} | {reference} | {ratio} | {target} | {reached} |",
            row.figure,
            number(row.fieldpost, row.unit)
        );
    }
    println!();
}

fn number(value: f64, unit: &str) -> String {
    match value.abs() {
        v if v >= 10_000.0 => format!("{:.0} k {unit}", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0} {unit}"),
        v if v >= 10.0 => format!("{value:.1} {unit}"),
        v if v >= 1.0 => format!("{value:.2} {unit}"),
        _ => format!("{value:.3} {unit}"),
    }
}
