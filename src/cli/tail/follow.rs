//! Connects to a source, shows what comes, and connects again when the connection is lost.

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use super::entry::Filter;
use super::output::{self, Output};
use super::{Problem, Source, Word, say};
use crate::backoff::Backoff;
use crate::cli::{exit, text};

/// Between two tries to connect.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// What is shown, and how far it has come.
pub(super) struct Follow {
    is_json: bool,
    filter: Filter,
    count_max: Option<u64>,
    timeout: Option<Duration>,
    tally: Tally,
    output: Output,
}

#[derive(Debug, Default)]
struct Tally {
    shown: u64,
    left_out: u64,
    losses: u64,
    gaps: u64,
    /// Since when the connection is away.
    lost_at: Option<Instant>,
    /// There was a connection.
    was_there: bool,
}

/// How it ended.
enum End {
    /// So many events as were wanted, or all there are.
    Done,
    Interrupted,
    TimedOut,
    /// Nobody reads the output.
    Closed,
    Refused(u8, String),
}

impl Follow {
    pub(super) fn new(
        is_json: bool,
        filter: Filter,
        count_max: Option<u64>,
        timeout: Option<Duration>,
    ) -> Self {
        Self { is_json, filter, count_max, timeout, tally: Tally::default(), output: Output::new() }
    }

    /// Follows until an end; the code to exit with.
    pub(super) async fn run(mut self, mut source: impl Source) -> ExitCode {
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let name = source.name();
        let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
            return super::refuse(exit::TEMPORARY, "cannot listen for signals");
        };
        let end = tokio::select! {
            end = Box::pin(self.follow(&mut source)) => end,
            _ = interrupt.recv() => End::Interrupted,
            _ = terminate.recv() => End::Interrupted,
            () = output::closed() => End::Closed,
            () = async { sleep_until(deadline.unwrap_or_else(Instant::now)).await }, if deadline.is_some() => End::TimedOut,
        };
        match end {
            End::Done | End::Closed => ExitCode::SUCCESS,
            End::Interrupted => {
                say(&self.tally.words());
                ExitCode::SUCCESS
            }
            End::TimedOut if !self.tally.was_there => {
                super::refuse(source.code(), &format!("{name}: no connection within --timeout"))
            }
            End::TimedOut => {
                say(&self.tally.words());
                if self.count_max.is_some() { exit::TEMPORARY.into() } else { ExitCode::SUCCESS }
            }
            End::Refused(code, problem) => super::refuse(code, &format!("{name}: {problem}")),
        }
    }

    async fn follow(&mut self, source: &mut impl Source) -> End {
        let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
        let mut words = Vec::new();
        loop {
            words.clear();
            let problem = match source.open(&mut words).await {
                Ok(()) => {
                    self.tally.was_there = true;
                    self.tally.back();
                    match self.show_all(source, &mut words, &mut backoff).await {
                        Ok(end) => return end,
                        Err(problem) => problem,
                    }
                }
                Err(Problem::Lost(why)) if !self.tally.was_there => return End::Refused(source.code(), why),
                Err(problem) => problem,
            };
            match problem {
                Problem::Refused(code, what) => return End::Refused(code, what),
                Problem::Lost(why) => self.tally.lost(&source.name(), &why),
            }
            sleep(backoff.delay()).await;
        }
    }

    /// Shows what comes on one connection.
    async fn show_all(
        &mut self,
        source: &mut impl Source,
        words: &mut Vec<Word>,
        backoff: &mut Backoff,
    ) -> Result<End, Problem> {
        let mut lines = Vec::new();
        loop {
            let is_over = self.take(words, &mut lines, &source.name());
            if !lines.is_empty() && self.output.write(&lines).await.is_err() {
                return Ok(End::Closed);
            }
            lines.clear();
            source.settle().await?;
            if is_over {
                return Ok(End::Done);
            }
            words.clear();
            let left = self.count_max.map_or(u64::MAX, |count| count - self.tally.shown);
            source.next(words, left).await?;
            backoff.reset();
        }
    }

    /// Makes lines of what came; whether that was all.
    fn take(&mut self, words: &mut Vec<Word>, lines: &mut Vec<u8>, name: &str) -> bool {
        for word in words.drain(..) {
            match word {
                Word::Event(entry) if !self.filter.wants(&entry) => self.tally.left_out += 1,
                Word::Event(entry) => {
                    if self.is_json {
                        entry.write_json(lines);
                    } else {
                        entry.write_text(lines);
                    }
                    self.tally.shown += 1;
                    if self.count_max == Some(self.tally.shown) {
                        return true;
                    }
                }
                Word::Note(what) => say(&what),
                Word::Gap(what) => {
                    self.tally.gaps += 1;
                    say(&what);
                }
                Word::Lost(why) => self.tally.lost(name, &why),
                Word::Back => self.tally.back(),
                Word::End => return true,
            }
        }
        false
    }
}

impl Tally {
    /// Says it once, however often it is tried in vain to connect again.
    fn lost(&mut self, name: &str, why: &str) {
        if self.lost_at.is_none() {
            self.lost_at = Some(Instant::now());
            self.losses += 1;
            say(&format!("{name}: {}; trying again", text::plain(why)));
        }
    }

    fn back(&mut self) {
        if let Some(at) = self.lost_at.take() {
            say(&format!("connected again after {}", text::age(at.elapsed())));
        }
    }

    fn words(&self) -> String {
        let mut words = format!("{} shown", text::count(self.shown, "event"));
        if self.left_out > 0 {
            words += &format!(", {} left out by the filter", self.left_out);
        }
        for (count, word) in [(self.losses, "lost connection"), (self.gaps, "gap")] {
            if count > 0 {
                words += &format!(", {}", text::count(count, word));
            }
        }
        words
    }
}
