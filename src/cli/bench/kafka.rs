//! Load straight on Kafka, with the producer of the agent and its settings: an event is taken once Kafka confirmed it.

use std::sync::Arc;
use std::time::Duration;

use super::load::{KIND, Load};
use super::{Failure, Fate, Target};
use crate::sink::kafka::{KafkaProducer, Options};
use crate::sink::{Outcome, Producer as _, Record, Report, SendError};
use crate::stats::Stats;

/// How long the end may wait for the library's threads.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// A producer.
pub(super) struct Line {
    producer: KafkaProducer,
    topic: String,
    reports: Vec<Report>,
}

impl Line {
    pub(super) fn open(options: Option<&Options>, topic: &str) -> Result<Self, Failure> {
        let unavailable = |what: String| Failure::Unavailable(what);
        let options = options.ok_or_else(|| {
            unavailable("no Kafka is configured: set kafka.brokers, or name a file with --config".into())
        })?;
        // Under the agent's transactional id it would fence the agent.
        let options = Options { transactional: None, ..options.clone() };
        let producer = KafkaProducer::start(options, Arc::new(Stats::default()))
            .map_err(|error| unavailable(error.to_string()))?;
        Ok(Self { producer, topic: topic.to_owned(), reports: Vec::new() })
    }
}

impl Target for Line {
    fn send(&mut self, number: u64, load: &Load) -> Result<bool, Failure> {
        let (source_id, payload) = (load.source_id(number), load.payload(number));
        let record = Record {
            topic: &self.topic,
            key: Some(source_id.as_bytes()),
            payload: payload.as_bytes(),
            headers: &[("fieldpost-type", KIND.as_bytes())],
            timestamp_ms: None,
        };
        match self.producer.send(&record, usize::try_from(number).unwrap_or(usize::MAX)) {
            Ok(()) => Ok(true),
            Err(SendError::QueueFull) => Ok(false),
            Err(error) => Err(Failure::Lost(error.to_string())),
        }
    }

    async fn heard(&mut self, fates: &mut Vec<(u64, Fate)>) -> Result<(), Failure> {
        self.producer.reported().await;
        self.producer.take_reports(&mut self.reports);
        for Report { tag, outcome } in self.reports.drain(..) {
            let fate = match outcome {
                Outcome::Delivered => Fate::Taken,
                Outcome::Rejected(_) => Fate::RefusedForGood,
                Outcome::Misconfigured(reason) => return Err(Failure::Lost(reason)),
                Outcome::Failed(_) => Fate::RefusedForNow,
            };
            fates.push((tag as u64, fate));
        }
        match self.producer.fatal() {
            Some(fatal) if fates.is_empty() => Err(Failure::Lost(fatal.to_string())),
            _ => Ok(()),
        }
    }

    fn silence(&self) -> &'static str {
        "; is kafka.brokers right, and does the topic exist? See fieldpost check"
    }

    fn close(self) {
        self.producer.close(CLOSE_TIME);
    }
}
