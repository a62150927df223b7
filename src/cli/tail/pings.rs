//! From Redis Pub/Sub: what is published while it listens, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::entry::Entry;
use super::{Problem, Source, Word};
use crate::cli::{exit, text};
use crate::sink::redis::subscription::{Heard, Subscription};
use crate::sink::redis::{Options, Turns};

/// Pings that wait for the output. More come at once only when they come faster than they are printed.
const QUEUE_MAX: usize = 16_384;

/// Most words in a load.
const LOAD_MAX: usize = 1000;

/// A subscription.
pub(super) struct Pings {
    options: Options,
    pattern: String,
    turns: Turns,
    was_there: bool,
    listening: Option<Listening>,
}

struct Listening {
    subscription: Subscription,
    heard: mpsc::Receiver<Heard>,
    /// Those for which there was no room.
    missed: Arc<AtomicU64>,
}

impl Pings {
    pub(super) fn new(options: Options, pattern: String) -> Self {
        Self { options, pattern, turns: Turns::default(), was_there: false, listening: None }
    }
}

impl Source for Pings {
    fn name(&self) -> String {
        format!("Redis at {}", self.options.place())
    }

    fn code(&self) -> u8 {
        exit::TEMPORARY
    }

    async fn open(&mut self, words: &mut Vec<Word>) -> Result<(), Problem> {
        self.listening = None;
        let ((room, heard), missed) = (mpsc::channel(QUEUE_MAX), Arc::new(AtomicU64::new(0)));
        let take = {
            let missed = Arc::clone(&missed);
            move |ping| {
                if room.try_send(ping).is_err() {
                    missed.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let opened = Subscription::open(&self.options, &mut self.turns, &self.pattern, take);
        let subscription = Box::pin(opened).await.map_err(|error| Problem::Lost(error.to_string()))?;
        if std::mem::replace(&mut self.was_there, true) {
            let what =
                "pings of the time without a connection cannot be had; their events can (--from agent)";
            words.push(Word::Gap(what.to_owned()));
        }
        self.listening = Some(Listening { subscription, heard, missed });
        Ok(())
    }

    async fn next(&mut self, words: &mut Vec<Word>, _: u64) -> Result<(), Problem> {
        let lost = || Problem::Lost("nothing is subscribed".to_owned());
        let Listening { subscription, heard, missed } = self.listening.as_mut().ok_or_else(lost)?;
        let first = tokio::select! {
            biased;
            first = heard.recv() => first.ok_or_else(lost)?,
            error = subscription.ended() => match heard.try_recv() {
                // It had come before the end, which shows again when it is looked at.
                Ok(first) => first,
                Err(_) => return Err(Problem::Lost(error.to_string())),
            },
        };
        words.push(Word::event(Entry::of_ping(first)));
        while words.len() < LOAD_MAX
            && let Ok(ping) = heard.try_recv()
        {
            words.push(Word::event(Entry::of_ping(ping)));
        }
        match missed.swap(0, Ordering::Relaxed) {
            0 => {}
            missed => words.push(Word::Gap(format!(
                "{} came faster than they could be printed and are not shown",
                text::count(missed, "ping")
            ))),
        }
        Ok(())
    }
}
