//! `fieldpost top`: how an agent is, drawn again each second on a terminal. `frame` is pure, `screen` is the terminal.

mod frame;
mod screen;
mod spark;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::cli::agent_place::{Nowhere, PlaceArg};
use crate::cli::load::{self, ConfigArg};
use crate::cli::{exit, runtime, text};
use crate::config::units;
use crate::error::Class;
use crate::http::client::{ClientError, Place};
use crate::status::{History, Past, Status};
use frame::{Silence, View};
use screen::Screen;

/// Who says it on standard error.
const NAME: &str = "fieldpost top";

/// The history has a sample each ten seconds.
const HISTORY_INTERVAL: Duration = Duration::from_secs(10);

/// Columns where there is no terminal.
const COLUMNS_USUAL: usize = 110;

/// Watch a running agent on the terminal: what comes in, waits, goes out, and what is wrong
///
/// Asks the agent over its HTTP interface (http.listen) each second: inputs, buffer with the age of its oldest event and when it
/// will be drained, Kafka, Redis, the links with since when and what went wrong last, losses, disk and memory; small plots show
/// the last hour. An agent that does not answer is told and asked again. Ends with q or ^C. Where standard output is no terminal
/// it prints once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost top                                           the agent of this machine's configuration
  fieldpost top --url http://gateway-17:9480 --token-file http-token
  ssh -t gateway-17 fieldpost top                         over SSH; fits 80 columns and 24 lines
  fieldpost top --once                                    print once and end
  fieldpost top --json | jq .buffer.events                /status as it is, for scripts

Exit codes:
  0   done
  64  wrong command line
  69  no agent answers (with --once or --json), or it refuses
  78  invalid configuration, or one without http.listen")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    #[command(flatten)]
    place: PlaceArg,
    /// Time between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print once and end
    #[arg(long)]
    once: bool,
    /// Print the agent's status once, as one JSON object
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = units::parse_duration(text)?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3600);
    if allowed.contains(&interval) { Ok(interval) } else { Err("from 100ms to 1h".to_owned()) }
}

/// What is known of the agent.
#[derive(Debug, Default)]
struct Known {
    status: Option<Status>,
    samples: Vec<Past>,
    samples_at: Option<Instant>,
    /// Since when it does not answer, and why.
    silent: Option<(Instant, String)>,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let place = match self.place.find(&self.config) {
            Ok(place) => place,
            Err(Nowhere::Invalid(code)) => return code,
            Err(Nowhere::Usage(problem)) => return refuse(exit::USAGE, &problem),
            Err(Nowhere::Unset(problem)) => return refuse(exit::CONFIG, &problem),
        };
        let shown = runtime::run(NAME, async {
            if self.json || self.once || !std::io::stdout().is_terminal() {
                self.print(&place).await
            } else {
                self.watch(&place).await
            }
        });
        match shown {
            Ok(code) | Err(code) => code,
        }
    }

    async fn print(&self, place: &Place) -> ExitCode {
        let mut known = Known::default();
        let body = match known.look(place).await {
            Ok(body) => body,
            Err(error) => return refuse(exit::UNAVAILABLE, &format!("{place}: {error}")),
        };
        if self.json {
            return load::print(&format!("{}\n", String::from_utf8_lossy(&body).trim_end()));
        }
        let columns = screen::size().map_or(COLUMNS_USUAL, |(columns, _)| columns);
        let lines = frame::lines(&known.view(place), columns, usize::MAX);
        load::print(&screen::plain(&lines))
    }

    /// Draws until somebody ends it.
    async fn watch(&self, place: &Place) -> ExitCode {
        let (mut resized, ended) = match (signal(SignalKind::window_change()), Ends::new()) {
            (Ok(resized), Ok(ended)) => (resized, ended),
            (Err(error), _) | (_, Err(error)) => {
                return refuse(exit::TEMPORARY, &format!("cannot listen for signals: {error}"));
            }
        };
        let drawn = {
            let mut screen = Screen::open();
            tokio::select! {
                drawn = self.draw(place, &mut screen, &mut resized) => drawn,
                () = ended.wait() => Ok(()),
            }
        };
        match drawn {
            Ok(()) => ExitCode::SUCCESS,
            // The terminal is gone; nobody is there to be told.
            Err(Over::Terminal) => exit::STORAGE.into(),
            Err(Over::Agent(problem)) => refuse(exit::UNAVAILABLE, &format!("{place}: {problem}")),
        }
    }

    async fn draw(&self, place: &Place, screen: &mut Screen, resized: &mut Signal) -> Result<(), Over> {
        let mut known = Known::default();
        let mut keys = tokio::io::stdin();
        let mut has_keys = screen.has_keys();
        loop {
            let next = Instant::now() + self.interval;
            match known.look(place).await {
                // Somebody has to mend it, and it was never right.
                Err(error) if error.class() != Class::Retry && known.status.is_none() => {
                    return Err(Over::Agent(error.to_string()));
                }
                looked => known.note(looked.err()),
            }
            loop {
                let (columns, rows) = screen::size().unwrap_or((80, 24));
                let lines = frame::lines(&known.view(place), columns, rows);
                screen.draw(&lines).map_err(|_| Over::Terminal)?;
                tokio::select! {
                    () = sleep_until(next) => break,
                    _ = resized.recv() => {}
                    key = keys.read_u8(), if has_keys => match key {
                        Ok(b'q' | b'Q') => return Ok(()),
                        Ok(_) => {}
                        Err(_) => has_keys = false,
                    }
                }
            }
        }
    }
}

/// Why nothing is drawn any more.
enum Over {
    Terminal,
    Agent(String),
}

impl Known {
    /// Asks for the status, and for the history when that is old; the status as it came.
    async fn look(&mut self, place: &Place) -> Result<Vec<u8>, ClientError> {
        let body = place.get("/status").await?;
        let strange = |error: serde_json::Error| ClientError::Strange(error.to_string());
        self.status = Some(serde_json::from_slice(&body).map_err(strange)?);
        if self.samples_at.is_none_or(|at| at.elapsed() >= HISTORY_INTERVAL) {
            let History { samples } =
                serde_json::from_slice(&place.get("/history").await?).map_err(strange)?;
            (self.samples, self.samples_at) = (samples, Some(Instant::now()));
        }
        Ok(body)
    }

    fn note(&mut self, problem: Option<ClientError>) {
        let since = self.silent.take().map_or_else(Instant::now, |(since, _)| since);
        self.silent = problem.map(|problem| (since, problem.to_string()));
    }

    fn view(&self, place: &Place) -> View<'_> {
        View {
            place: place.to_string(),
            status: self.status.as_ref(),
            samples: &self.samples,
            silence: self.silent.as_ref().map(|(since, why)| Silence { lasts: since.elapsed(), why }),
        }
    }
}

/// The signals that end it, after which the terminal is as it was.
struct Ends([Signal; 3]);

impl Ends {
    fn new() -> std::io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn wait(self) {
        let [mut interrupt, mut terminate, mut hangup] = self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

fn refuse(code: u8, problem: &str) -> ExitCode {
    text::say(NAME, problem);
    code.into()
}
