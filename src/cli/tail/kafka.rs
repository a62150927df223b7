//! From a topic: what is committed there, from a place on.

use std::time::Duration;

use tokio::task::spawn_blocking;

use super::entry::Entry;
use super::{Problem, Source, Word};
use crate::cli::exit;
use crate::sink::kafka::Options;
use crate::sink::kafka_probe::ProbeError;
use crate::sink::kafka_reader::{Next, Plan, ReadError, Reader};

/// Longest wait for an answer at the start.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most words in a load.
const LOAD_MAX: usize = 500;

/// A topic that is read. Its client finds brokers that were away by itself, and goes on where it was.
pub(super) struct Kafka {
    options: Options,
    plan: Plan,
    reader: Option<Reader>,
}

impl Kafka {
    pub(super) fn new(options: Options, plan: Plan) -> Self {
        Self { options, plan, reader: None }
    }
}

impl Source for Kafka {
    fn name(&self) -> String {
        format!("Kafka at {}", self.options.brokers)
    }

    fn code(&self) -> u8 {
        exit::TEMPORARY
    }

    async fn open(&mut self, _: &mut Vec<Word>) -> Result<(), Problem> {
        let (options, plan) = (self.options.clone(), self.plan.clone());
        let opened = spawn_blocking(move || Reader::open(&options, &plan, TIMEOUT)).await;
        let opened = opened.map_err(|error| Problem::Refused(exit::BUG, error.to_string()))?;
        self.reader = Some(opened.map_err(refused)?);
        Ok(())
    }

    async fn next(&mut self, words: &mut Vec<Word>, _: u64) -> Result<(), Problem> {
        let Some(reader) = &mut self.reader else {
            return Err(Problem::Lost("there is no connection".to_owned()));
        };
        words.push(word(reader.next().await.map_err(refused)?));
        // What is there already goes along.
        while words.len() < LOAD_MAX && matches!(words.last(), Some(Word::Event(_))) {
            let next = tokio::select! {
                biased;
                next = reader.next() => next.map_err(refused)?,
                () = std::future::ready(()) => break,
            };
            words.push(word(next));
        }
        Ok(())
    }
}

fn word(next: Next) -> Word {
    match next {
        Next::Record(record) => Word::event(Entry::of_record(&record)),
        Next::Down(why) => Word::Lost(why),
        Next::Up => Word::Back,
        Next::End => Word::End,
    }
}

fn refused(error: ReadError) -> Problem {
    let code = match &error {
        ReadError::NoTopic(_) | ReadError::NoPartition(..) | ReadError::NoOffset { .. } => exit::UNAVAILABLE,
        ReadError::Kafka(ProbeError::Property(_) | ProbeError::File(_)) => exit::CONFIG,
        _ => exit::TEMPORARY,
    };
    Problem::Refused(code, error.to_string())
}
