//! `fieldpost bench`: load on an input of the agent, or straight on Kafka, and what it did with it.
//!
//! One task hands events over and hears what became of them; each target is a `Target`. With a rate an event counts
//! from when it was due, so that a target that holds up the load does not hide how late everything became.

mod kafka;
mod load;
mod mqtt;
mod sheet;
mod unix;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::cli::send::usual_socket;
use crate::cli::{exit, load as configuration, runtime, text};
use crate::config::Config;
use load::{Load, Pace};
use sheet::Sheet;

/// Who says it on standard error.
const NAME: &str = "fieldpost bench";

/// Measure what an input of the agent takes, or what Kafka takes from here
///
/// Sends events of the type `bench` from sources `bench-00000` and on, and reports events a second and how long each waited
/// for its answer: at the socket, until the event was durable; over MQTT, until the broker had it; at Kafka, until the
/// brokers confirmed it. Events at the socket and over MQTT go the way of all events, to Kafka: a route with
/// `source_type = "bench"` and `drop = true` stops them at the agent, once they are taken.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost bench                                               100,000 events into the agent's socket, as fast as it takes them
  fieldpost bench --rate 2000 --seconds 30                      a steady load, and the time to each acknowledgement
  fieldpost bench --window 1 --events 1000                      one after the other: the cost of a sync
  fieldpost bench --target mqtt --rate 500                      over the configured MQTT broker
  fieldpost bench --target kafka --topic scratch --json         what the line to Kafka gives, for a script

Ends at --events or --seconds, whichever comes first; ^C ends it too, with the report so far.

Exit codes:
  0   every event was taken
  64  wrong command line
  65  some events can never be taken (invalid, too large)
  69  nobody answers, or the target is not configured
  75  some events were not taken, or nothing was heard of them (buffer full, time-out, connection lost)
  78  invalid configuration")]
pub struct Args {
    /// What the load goes to
    #[arg(long, value_enum, default_value_t = TargetName::Unix)]
    target: TargetName,
    #[command(flatten)]
    config: configuration::ConfigArg,
    /// Socket of the agent [default: unix.path of the configuration, else $FIELDPOST_UNIX__PATH, else
    /// /run/fieldpost/fieldpost.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Topic: for `kafka` one that exists and that nobody minds; for `mqtt` another than the first of mqtt.topics
    #[arg(long, value_name = "TOPIC", required_if_eq("target", "kafka"))]
    topic: Option<String>,
    /// Most events
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    events: u64,
    /// Longest time of sending
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Events a second; 0: as fast as they are taken
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    rate: u32,
    /// Bytes of an event's payload, which is JSON
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(16..=8_388_608))]
    bytes: u32,
    /// Different sources, one after the other
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sources: u32,
    /// Most events without an answer; `mqtt`: 65,535 at most
    #[arg(long, value_name = "EVENTS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    window: u32,
    /// Give up after this many seconds without any answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Print the report as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TargetName {
    /// The agent's Unix socket
    Unix,
    /// The MQTT broker of mqtt.url, at QoS 1
    Mqtt,
    /// Kafka, past the agent, with the agent's settings
    Kafka,
}

impl TargetName {
    fn word(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Mqtt => "mqtt",
            Self::Kafka => "kafka",
        }
    }
}

/// Why the measurement ended early.
#[derive(Debug, Error)]
enum Failure {
    /// Nobody is there, or the target is not configured.
    #[error("{0}")]
    Unavailable(String),
    /// The connection broke, or the peer said what no peer says.
    #[error("{0}")]
    Lost(String),
    /// Nothing was heard for the whole time-out.
    #[error("no answer for {} s{}", .0.as_secs(), .1)]
    Silent(Duration, &'static str),
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Durable, with the broker, confirmed.
    Taken,
    /// It never can be.
    RefusedForGood,
    /// Not now.
    RefusedForNow,
}

/// Where the load goes.
trait Target {
    /// Takes the event of this number, from 0 on; false: there is no room before something was heard.
    fn send(&mut self, number: u64, load: &Load) -> Result<bool, Failure>;

    /// Brings out what was taken, and returns when something was heard: the event's number and its fate, one or more.
    ///
    /// Cancel safe: yes.
    fn heard(&mut self, fates: &mut Vec<(u64, Fate)>) -> impl Future<Output = Result<(), Failure>>;

    /// What may be the reason when nothing is heard.
    fn silence(&self) -> &'static str {
        ""
    }

    /// Ends the connection.
    fn close(self);
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let mut sheet = Sheet::new(self.target.word(), self.rate, self.bytes);
        let ended = match runtime::run(NAME, self.measure(&mut sheet)) {
            Ok(Ok(ended)) => ended,
            Ok(Err(code)) | Err(code) => return code,
        };
        if let Err(failure) = &ended {
            text::say(NAME, failure);
        }
        if matches!(ended, Err(Failure::Unavailable(_))) {
            return exit::UNAVAILABLE.into();
        }
        let printed = configuration::print(&if self.json { sheet.json() } else { sheet.text() });
        match sheet.exit_code(ended.is_err()) {
            0 => printed,
            code => code.into(),
        }
    }

    /// Finds the target and puts the load on it. The code to exit with when the configuration is wrong.
    async fn measure(&self, sheet: &mut Sheet) -> Result<Result<(), Failure>, ExitCode> {
        // A socket that is named, on a machine without a configuration, is enough.
        let config = match (self.target, &self.socket) {
            (TargetName::Unix, Some(_)) => None,
            (TargetName::Unix, None) if self.config.path().is_none() => None,
            _ => Some(self.config.load().map_err(|errors| configuration::refuse(&errors))?.config),
        };
        Ok(self.load(config.as_ref(), sheet).await)
    }

    async fn load(&self, config: Option<&Config>, sheet: &mut Sheet) -> Result<(), Failure> {
        let timeout = Duration::from_secs(self.timeout);
        let window = self.window;
        let load = Load::new(self.sources, self.bytes as usize);
        match self.target {
            TargetName::Unix => {
                let of_config = || config?.unix.as_ref().map(|unix| unix.path.clone());
                let path = self.socket.clone().or_else(of_config).unwrap_or_else(usual_socket);
                let target = unix::Socket::open(&path, timeout).await?;
                self.put_on(target, &load, window, sheet).await
            }
            TargetName::Mqtt => {
                let options = config.and_then(|config| config.mqtt.as_ref());
                // MQTT's packet identifiers.
                let window = u16::try_from(window).unwrap_or(u16::MAX);
                let target = mqtt::Broker::open(options, self.topic.as_deref(), window, timeout).await?;
                self.put_on(target, &load, window.into(), sheet).await
            }
            TargetName::Kafka => {
                let options = config.and_then(|config| config.kafka.as_ref());
                let target = kafka::Line::open(options, self.topic.as_deref().unwrap_or_default())?;
                self.put_on(target, &load, window, sheet).await
            }
        }
    }

    /// Sends until the end or ^C, and hears of what was sent; a second ^C does not wait for that.
    async fn put_on(
        &self,
        mut target: impl Target,
        load: &Load,
        window: u32,
        sheet: &mut Sheet,
    ) -> Result<(), Failure> {
        let pace = Pace::new(self.rate, self.events, Duration::from_secs(self.seconds));
        let progress = text::bar_of(self.events, "{human_pos} of {human_len} events, {per_sec}, {msg}");
        let ended = self.converse(&mut target, load, window, sheet, &pace, &progress).await;
        sheet.end(pace.begun().elapsed());
        progress.finish_and_clear();
        target.close();
        ended
    }

    async fn converse(
        &self,
        target: &mut impl Target,
        load: &Load,
        window: u32,
        sheet: &mut Sheet,
        pace: &Pace,
        progress: &ProgressBar,
    ) -> Result<(), Failure> {
        let timeout = Duration::from_secs(self.timeout);
        let mut interrupts = signal(SignalKind::interrupt())
            .map_err(|error| Failure::Unavailable(format!("cannot listen for signals: {error}")))?;
        let mut fates = Vec::new();
        let mut last_heard = Instant::now();
        let mut is_sending = true;
        loop {
            let now = Instant::now();
            is_sending &= !pace.is_over(sheet.sent(), now);
            let due = if is_sending { pace.due(now) } else { 0 };
            while sheet.sent() < due && sheet.open() < window.into() && target.send(sheet.sent(), load)? {
                if sheet.open() == 0 {
                    last_heard = now;
                }
                sheet.send(pace.since(sheet.sent(), now));
            }
            is_sending &= !pace.is_over(sheet.sent(), now);
            if !is_sending && sheet.open() == 0 {
                return Ok(());
            }
            let is_waiting = sheet.open() > 0;
            let next = pace.next(sheet.sent()).filter(|next| *next > now && sheet.open() < window.into());
            tokio::select! {
                heard = target.heard(&mut fates), if is_waiting => {
                    if !fates.is_empty() {
                        last_heard = Instant::now();
                    }
                    for (number, fate) in fates.drain(..) {
                        sheet.hear(number, fate, last_heard);
                    }
                    show(progress, sheet);
                    heard?;
                }
                () = sleep_until(next.unwrap_or(pace.end()).min(pace.end())), if is_sending => {}
                () = sleep_until(last_heard + timeout), if is_waiting => {
                    return Err(Failure::Silent(timeout, target.silence()));
                }
                _ = interrupts.recv() => {
                    if !is_sending {
                        return Err(Failure::Lost("interrupted before everything was answered".to_owned()));
                    }
                    is_sending = false;
                }
            }
        }
    }
}

fn show(progress: &ProgressBar, sheet: &Sheet) {
    if !progress.is_hidden() {
        progress.set_position(sheet.decided());
        progress.set_message(format!("p99 {}", sheet::time(sheet.quantile_us(0.99))));
    }
}
