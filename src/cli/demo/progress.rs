//! What the demo says while it runs, on standard error: a live line on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Figures, Plan};
use crate::cli::text;

/// Time between two lines of figures where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

/// The terminal, or whatever standard error is.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    began: Instant,
    said: Instant,
}

impl Progress {
    pub(super) fn new(plan: &Plan) -> Self {
        // Draws on standard error, and only on a terminal.
        let bar = ProgressBar::new(u64::try_from(plan.sending.as_millis()).unwrap_or(u64::MAX));
        let bar = match ProgressStyle::with_template("{spinner} [{bar:24}] {msg}") {
            Ok(style) => bar.with_style(style.progress_chars("=> ")),
            Err(_) => bar,
        };
        Self { bar, began: Instant::now(), said: Instant::now() }
    }

    /// One line that stays.
    pub(super) fn say(&self, text: &str) {
        let line = format!("{:5.1} s  {text}", self.began.elapsed().as_secs_f32());
        if self.bar.is_hidden() { text::say_plainly(line) } else { self.bar.println(line) }
    }

    /// The figures now; `sending` is how long the sensors have been sending.
    pub(super) fn show(&mut self, figures: &Figures, sending: Duration, has_pings: bool) {
        if self.bar.is_hidden() {
            if self.said.elapsed() >= PLAIN_INTERVAL {
                self.said = Instant::now();
                self.say(&format!("  {}", line(figures, has_pings)));
            }
            return;
        }
        self.bar.set_message(line(figures, has_pings));
        self.bar.set_position(u64::try_from(sending.as_millis()).unwrap_or(u64::MAX));
        self.bar.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn line(figures: &Figures, has_pings: bool) -> String {
    let (sent, acknowledged, events) = (figures.sent.get(), figures.acknowledged.get(), figures.events.get());
    let buffered = acknowledged.saturating_sub(events);
    let mut line =
        format!("sent {sent}  acknowledged {acknowledged}  buffered {buffered}  in Kafka {events}");
    if has_pings {
        line += &format!("  pings {}", figures.pings.get());
    }
    line
}
