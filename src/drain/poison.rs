//! Poison: an event that Kafka rejects for its content, alone, so that it is not for a neighbour in its batch.
//!
//! It goes to the dead-letter topic in its place in the row, with the reason in headers, and into the dead-letter store
//! when there is no such topic or Kafka refuses that too. Nothing passes it: the order of its source is kept.
//! Settings that somebody can mend (rights, a topic that is missing) are not poison; they hold the line.

use std::collections::BTreeMap;

use tokio::task::spawn_blocking;

use super::{Drain, DrainError};
use crate::buffer::{LogName, Run};
use crate::dead_letter::{DeadLetterError, Letter, Put, Store};
use crate::event::{Seq, Stamp, rfc3339};
use crate::sink::record::Lane;
use crate::sink::{Producer, Record, Rejection};
use crate::system::Clock;

/// Where poison goes.
#[derive(Debug)]
pub struct DeadLetters {
    /// `kafka.dead_letter_topic`.
    pub topic: Option<String>,
    /// For what the topic does not take.
    pub store: Store,
}

/// Times that a poisoned event was sent before it counts as that: with its neighbours, and alone.
const ATTEMPTS: u32 = 2;

/// Where one event goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Topic,
    Store,
}

/// Why it goes there.
#[derive(Debug, Clone)]
pub(super) struct Poison {
    place: Place,
    rejection: Rejection,
    at: Stamp,
    texts: [String; 3],
}

/// The poison between the cursor and what is sent, and where it goes.
#[derive(Debug)]
pub(super) struct Poisons {
    topic: Option<String>,
    /// Away while a letter is written.
    store: Option<Store>,
    clock: Clock,
    known: BTreeMap<Seq, Poison>,
    /// The next event goes into the store.
    pub(super) is_letter_due: bool,
}

impl Poisons {
    pub(super) fn new(dead_letters: DeadLetters) -> Self {
        let DeadLetters { topic, store } = dead_letters;
        Self {
            topic,
            store: Some(store),
            clock: Clock::default(),
            known: BTreeMap::new(),
            is_letter_due: false,
        }
    }

    /// Where the event goes, if it is poison.
    pub(super) fn place_of(&self, seq: Seq) -> Option<Place> {
        self.known.get(&seq).map(|poison| poison.place)
    }

    /// The event was rejected alone, or its dead letter was.
    pub(super) fn rejected(&mut self, seq: Seq, rejection: &Rejection) {
        if self.known.contains_key(&seq) {
            return self.refused_as_dead_letter(seq, &rejection.reason);
        }
        let place = if self.topic.is_some() { Place::Topic } else { Place::Store };
        let at = self.clock.now();
        let texts = [rejection.code.to_string(), ATTEMPTS.to_string(), rfc3339(at.wall_us)];
        tracing::error!(
            seq = seq.0, reason = %rejection.reason, place = place.word(),
            "Kafka rejects an event alone: it becomes a dead letter (fieldpost dead-letter)"
        );
        self.known.insert(seq, Poison { place, rejection: rejection.clone(), at, texts });
    }

    /// Kafka does not take it as a dead letter either.
    pub(super) fn refused_as_dead_letter(&mut self, seq: Seq, reason: &str) {
        if let Some(poison) = self.known.get_mut(&seq)
            && poison.place == Place::Topic
        {
            tracing::error!(seq = seq.0, %reason, "kafka.dead_letter_topic does not take a dead letter: it is kept on disk");
            poison.place = Place::Store;
        }
    }

    /// The record of a dead letter: as it would have been, to the other topic, with the reason; at the time of sending,
    /// because its own may be what is wrong with it.
    pub(super) fn send<T>(&self, seq: Seq, record: &Record<'_>, send: impl FnOnce(&Record<'_>) -> T) -> T {
        let (Some(topic), Some(poison)) = (&self.topic, self.known.get(&seq)) else { return send(record) };
        let [code, attempts, time] = &poison.texts;
        let mut headers = record.headers.to_vec();
        headers.extend([
            ("fieldpost-dead-letter-reason", poison.rejection.reason.as_bytes()),
            ("fieldpost-dead-letter-code", code.as_bytes()),
            ("fieldpost-dead-letter-topic", record.topic.as_bytes()),
            ("fieldpost-dead-letter-attempts", attempts.as_bytes()),
            ("fieldpost-dead-letter-time", time.as_bytes()),
        ]);
        send(&Record { topic, headers: &headers, timestamp_ms: None, ..*record })
    }

    /// What `is_through` is where it belongs. Answers how many dead letters that were.
    pub(super) fn settle(&mut self, is_through: impl Fn(Seq) -> bool) -> u64 {
        let before = self.known.len();
        self.known.retain(|seq, _| !is_through(*seq));
        (before - self.known.len()) as u64
    }
}

impl Place {
    fn word(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Store => "store",
        }
    }
}

impl<P: Producer> Drain<P> {
    /// Puts the next event, which is poison, into the store, and goes on behind it. With the store out of order the line
    /// waits: the event was acknowledged.
    ///
    /// Cancel safe: no, the store would be gone with the future.
    pub(super) async fn store_letter(&mut self, lane: Lane) -> Result<(), DrainError> {
        self.poisons.is_letter_due = false;
        let flow = self.lanes.flow(lane);
        let next = |seq: Seq| seq > flow.sent && self.lanes.is_of(lane, seq);
        let Some((seq, origin, event)) = flow.run.events().find(|(seq, ..)| next(*seq)) else {
            return Ok(());
        };
        let (Some(poison), Some(mut store)) =
            (self.poisons.known.get(&seq).cloned(), self.poisons.store.take())
        else {
            return Ok(());
        };
        let Ok(topic) = self.formatter.format(seq, origin, lane, &event, |record| record.topic.to_owned())
        else {
            self.poisons.store = Some(store);
            self.is_unready = true;
            return Ok(());
        };
        let name = LogName::of(self.buffer.logs(), origin.epoch).cloned();
        let run = std::mem::take(&mut self.lanes.flow_mut(lane).run);
        let put = spawn_blocking(move || {
            let put = put(&mut store, &run, seq, &poison, &topic, name.as_ref());
            (store, run, put)
        });
        let (store, run, put) =
            put.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        self.poisons.store = Some(store);
        self.lanes.flow_mut(lane).run = run;
        match put {
            Ok(None) => {}
            Ok(Some(Put { evicted, .. })) => {
                if evicted > 0 {
                    self.stats.dead_letters_evicted.add(evicted);
                    tracing::error!(
                        evicted,
                        "the dead-letter store is full: its oldest letters are gone for good"
                    );
                }
                self.lanes.flow_mut(lane).sent = seq;
            }
            Err(error) => {
                if let Some(suppressed) = self.refusal_logs.failed.allow() {
                    tracing::error!(%error, suppressed, "a dead letter cannot be kept: the line waits");
                }
                self.pause_until_tried_again();
            }
        }
        Ok(())
    }
}

/// Puts the event `seq` of `run`; `None` when it is not in there.
fn put(
    store: &mut Store,
    run: &Run,
    seq: Seq,
    poison: &Poison,
    topic: &str,
    name: Option<&LogName>,
) -> Result<Option<Put>, DeadLetterError> {
    let found = run.events().find(|(found, ..)| *found == seq);
    let Some((_, origin, event)) = found else { return Ok(None) };
    let letter = Letter {
        event: &event,
        seq,
        epoch: origin.epoch,
        agent: name.map_or("", |name| &name.agent),
        log: name.map_or(uuid::Uuid::nil(), |name| name.log),
        topic,
        reason: &poison.rejection.reason,
        code: poison.rejection.code,
        attempts: ATTEMPTS,
        refused_at: poison.at,
    };
    store.put(&letter).map(Some)
}
