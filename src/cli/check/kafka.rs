//! Asks Kafka: its topics and their settings, the agent's rights, the clocks.

use std::time::Duration;

use super::finding::{Area, Finding, Level};
use super::probes::EXAMPLE_EVENT;
use super::topic::{self, Waiting};
use crate::buffer::probe::{self as buffer_probe, Owner};
use crate::buffer::view::{Place, View};
use crate::cli::{exit, text};
use crate::config::Config;
use crate::event::{Event, LOSS_TYPE, OWN_SOURCE_TYPE};
use crate::sink::kafka::{Options, Transactional};
use crate::sink::kafka_clock::{self, Skew};
use crate::sink::kafka_probe::{self, ProbeError};
use crate::sink::kafka_rights::{self, Refusal};
use crate::sink::kafka_settings;
use crate::sink::record;
use crate::sink::record::templates::Template;
use crate::system::Clock;

/// Everything; `say` hears each finding as soon as it is known.
pub(super) fn findings(config: &Config, timeout: Duration, say: &mut impl FnMut(Finding)) {
    let Some(options) = &config.kafka else {
        return say(Finding::skip(Area::Kafka, "kafka.brokers is not set"));
    };
    let questions =
        Questions { options, timeout, timestamp: config.records.timestamp, waiting: waiting(config) };
    let mut there = Vec::new();
    for (name, key) in topics(config) {
        let (found, partitions) = questions.topic(name.as_deref(), key);
        let is_over = found.iter().any(|finding| !matches!(finding.level, Level::Ok | Level::Warn));
        found.into_iter().for_each(&mut *say);
        if is_over && partitions.is_none() {
            return;
        }
        there.extend(name.zip(partitions));
    }
    let topics: Vec<&str> = there.iter().map(|(name, _)| name.as_str()).collect();
    let mut is_clock_known = false;
    match &options.transactional {
        None => say(questions.may_produce()),
        Some(transactional) => match buffer_probe::owner(&config.buffer.dir) {
            Ok(Owner::Nobody) => {
                let (tried, clock) = questions.transaction(transactional, &topics);
                is_clock_known = clock.is_some();
                say(tried);
                clock.into_iter().for_each(&mut *say);
            }
            _ => say(questions.finding(
                Finding::skip,
                "a running agent has the buffer, so its rights to transactions are not tried; its log says if one is missing",
            )),
        },
    }
    if !is_clock_known && let Some((topic, partitions)) = there.first() {
        say(questions.newest_record(topic, *partitions));
    }
}

/// The key of the topic whose records another topic's schema has.
pub(super) const DEAD_LETTERS: &str = "kafka.dead_letter_topic";

/// The topics that the agent would write, with the key that names each; none: it depends on the event.
pub(super) fn topics(config: &Config) -> Vec<(Option<String>, &'static str)> {
    let records = &config.records;
    let mut topics: Vec<(Option<String>, &str)> = match (records.topic.fixed(), &records.allowed) {
        (Some(topic), _) => vec![(Some(topic.to_owned()), "kafka.topic")],
        (None, None) => vec![(None, "kafka.topic")],
        (None, Some(allowed)) => {
            let key = |topic| {
                if topic == allowed.fallback() { "kafka.fallback_topic" } else { "kafka.topics_allowed" }
            };
            allowed.all().map(|topic| (Some(topic.to_owned()), key(topic))).collect()
        }
    };
    let mut add = |topic: String, key| {
        if topics.iter().all(|(known, _)| known.as_ref() != Some(&topic)) {
            topics.push((Some(topic), key));
        }
    };
    // The agent's own events may have a topic of their own, and hold the line like any other when it is not there.
    if let Some(of_losses) = records.loss_topic.as_ref().filter(|_| config.ledger.announce) {
        let source_id = &config.agent.id;
        let loss = Event { kind: LOSS_TYPE, source_type: OWN_SOURCE_TYPE, source_id, ..EXAMPLE_EVENT };
        add(of_losses.topic_of(&loss), "ledger.topic");
    }
    let of_routes = config.routes.all().iter().filter_map(|route| route.topic.as_deref());
    for of_route in of_routes.filter(|topic| !topic.contains('{')) {
        add(of_route.to_owned(), "route.topic");
    }
    if let Some(of_backlog) = records.backlog_topic.as_ref().and_then(Template::fixed) {
        add(of_backlog.to_owned(), "kafka.backlog_topic");
    }
    if let Some(of_letters) = &config.dead_letters.topic {
        add(of_letters.clone(), DEAD_LETTERS);
    }
    topics
}

/// What waits in the buffer; beside a running agent too. None: nothing, or it cannot be known, which is said elsewhere.
fn waiting(config: &Config) -> Option<Waiting> {
    let place = Place { dir: config.buffer.dir.clone(), ledger: config.buffer.ledger.clone() };
    let view = View::of(&place).ok()?;
    let mut walk = view.walk(view.cursor.next());
    while let Some(run) = walk.next().ok()? {
        if let Some((_, _, event)) = run.events().next() {
            let now_ms = Clock::default().now().wall_us / 1000;
            return Some(Waiting { oldest_ms: record::event_ms(&event), now_ms });
        }
    }
    None
}

struct Questions<'a> {
    options: &'a Options,
    timeout: Duration,
    timestamp: record::Timestamp,
    waiting: Option<Waiting>,
}

impl Questions<'_> {
    /// What is found about a topic, which `key` names, and how many partitions it has if it is there.
    fn topic(&self, name: Option<&str>, key: &str) -> (Vec<Finding>, Option<usize>) {
        let (brokers, topic) = (&self.options.brokers, name.unwrap_or_default());
        let found = match kafka_probe::probe(self.options, name, self.timeout) {
            Ok(found) => found,
            // Said already where the configuration was looked at.
            Err(ProbeError::Property(_) | ProbeError::File(_)) => {
                let message = "not asked: its configuration is of no use";
                return (vec![Finding::skip(Area::Kafka, message)], None);
            }
            Err(error) => {
                let key = if matches!(error, ProbeError::Topic { .. }) { key } else { "kafka.brokers" };
                let message = format!("{brokers}: {error}");
                return (vec![Finding::fail(Area::Kafka, exit::TEMPORARY, message).about(key)], None);
            }
        };
        match found.topic {
            kafka_probe::Topic::PerEvent => {
                let message = "answers; the topic depends on the event and was not looked up";
                (vec![self.finding(Finding::ok, message)], None)
            }
            kafka_probe::Topic::Missing => {
                let message = format!(
                    "answers, but topic {topic} does not exist; create it, unless the brokers do so with the first record \
                     (auto.create.topics.enable)"
                );
                (vec![self.finding(Finding::warn, &message).about(key)], None)
            }
            kafka_probe::Topic::Exists { partitions, leaderless, replicas } => {
                let plural = if partitions == 1 { "" } else { "s" };
                let message = format!("topic {topic}, {partitions} partition{plural}");
                let mut findings = vec![self.finding(Finding::ok, &message)];
                if leaderless > 0 {
                    let message = format!(
                        "topic {topic}: {leaderless} of {partitions} partition{plural} without a leader take no records \
                         until their brokers are back"
                    );
                    findings.push(self.finding(Finding::warn, &message).about(key));
                }
                findings.extend(self.settings(topic, replicas));
                (findings, Some(partitions))
            }
        }
    }

    fn settings(&self, topic: &str, replicas: usize) -> Vec<Finding> {
        match kafka_settings::settings(self.options, topic, self.timeout) {
            Some(settings) => {
                topic::findings(self.options, topic, self.timestamp, &settings, replicas, self.waiting)
            }
            None => {
                let message = format!(
                    "topic {topic}: its settings are not told; DESCRIBE_CONFIGS would let check compare them"
                );
                vec![self.finding(Finding::skip, &message)]
            }
        }
    }

    fn may_produce(&self) -> Finding {
        match kafka_rights::may_produce(self.options, self.timeout) {
            Ok(()) => self.finding(
                Finding::ok,
                "may produce; whether to each of these topics the brokers tell with a record alone (the log says Kafka refuses the topic)",
            ),
            Err(refusal) => self.refused(&refusal),
        }
    }

    /// The dry transaction, and what it says of the clocks.
    fn transaction(&self, transactional: &Transactional, topics: &[&str]) -> (Finding, Option<Finding>) {
        match kafka_rights::try_transaction(self.options, transactional, topics, self.timeout) {
            Err(refusal) => (self.refused(&refusal), None),
            Ok(skew) => {
                let written = if topics.is_empty() {
                    "which topics it may write was not tried".to_owned()
                } else {
                    format!("it may write {}", topics.join(", "))
                };
                let message =
                    format!("a dry transaction was begun and given up; {written}, and keep its cursor");
                let clock = skew.map(|skew| self.clock(skew, "the brokers' clock"));
                (self.finding(Finding::ok, &message), clock)
            }
        }
    }

    fn refused(&self, refusal: &Refusal) -> Finding {
        let rights = match refusal {
            Refusal::Produce => "give its user WRITE and DESCRIBE on its topics".to_owned(),
            Refusal::Id(id) => {
                format!(
                    "exactly_once cannot begin; give its user WRITE and DESCRIBE on transactional ids with the prefix {id}"
                )
            }
            Refusal::AskedId { own, .. } => {
                let message = format!(
                    "{refusal}, so these were not tried; give its user WRITE and DESCRIBE on transactional ids with the \
                     prefix {own} to have them tried"
                );
                return self.finding(Finding::skip, &message);
            }
            Refusal::Group(group) => {
                format!("exactly_once cannot commit; give its user READ on consumer group {group}")
            }
            Refusal::Cursor(topic) => {
                format!(
                    "exactly_once cannot commit; give its user READ and DESCRIBE on topic {topic}, or set kafka.cursor_topic"
                )
            }
            Refusal::Topics(_) => "give its user WRITE and DESCRIBE on it".to_owned(),
            Refusal::Unknown(_) => {
                let message = format!("its rights were not told: {refusal}");
                return self.finding(Finding::skip, &message);
            }
        };
        let key = match refusal {
            Refusal::Id(_) | Refusal::Group(_) => "kafka.delivery",
            Refusal::Cursor(_) => "kafka.cursor_topic",
            _ => "kafka.topic",
        };
        let message =
            format!("{}: the agent {refusal}: its events stay in the buffer; {rights}", self.options.brokers);
        Finding::fail(Area::Kafka, exit::TEMPORARY, message).about(key)
    }

    /// Without a transaction's marker only a clock that is behind shows.
    fn newest_record(&self, topic: &str, partitions: usize) -> Finding {
        match kafka_clock::newest_record(self.options, topic, partitions, self.timeout) {
            Some(Skew::None) => self.finding(
                Finding::ok,
                "no record is ahead of this machine's clock; whether that is ahead of the brokers' only a record would tell",
            ),
            Some(skew) => self.clock(skew, &format!("the newest record of {topic}")),
            None => self.finding(Finding::skip, "how new the topic's records are was not told"),
        }
    }

    fn clock(&self, skew: Skew, what: &str) -> Finding {
        const MEND: &str = "let NTP set the clocks (timedatectl says whether it does)";
        match skew {
            Skew::None => {
                let message =
                    format!("{what} and this machine's agree within {} s", kafka_clock::TOLERANCE.as_secs());
                self.finding(Finding::ok, &message)
            }
            Skew::Ahead(time) => {
                let message = format!(
                    "{what} is {} ahead of this machine's clock: records look older than they are, are deleted early \
                     (retention.ms) and refused where message.timestamp.before.max.ms is short; {MEND}",
                    text::age(time)
                );
                self.finding(Finding::warn, &message)
            }
            Skew::Behind(time) => {
                let message = format!(
                    "{what} is {} behind this machine's clock: records look newer than they are, are kept longer, and \
                     become dead letters above message.timestamp.after.max.ms (1 h by default); {MEND}",
                    text::age(time)
                );
                self.finding(Finding::warn, &message)
            }
        }
    }

    fn finding(&self, level: fn(Area, String) -> Finding, message: &str) -> Finding {
        level(Area::Kafka, format!("{}: {message}", self.options.brokers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_that_is_named_is_looked_for_under_its_key() {
        let variables = [
            ("AGENT__ID", "a"),
            ("KAFKA__BROKERS", "b"),
            ("KAFKA__TOPIC", "events"),
            ("KAFKA__ORDER", "live_first"),
            ("KAFKA__BACKLOG_TOPIC", "late"),
            ("KAFKA__DEAD_LETTER_TOPIC", "letters"),
            ("LEDGER__TOPIC", "losses"),
        ];
        let environment = variables.map(|(name, value)| (format!("FIELDPOST_{name}"), value.to_owned()));
        let config = Config::load(None, environment.into_iter()).unwrap().config;
        let found: Vec<(String, &str)> =
            topics(&config).into_iter().map(|(topic, key)| (topic.unwrap(), key)).collect();
        let wanted = [
            ("events", "kafka.topic"),
            ("losses", "ledger.topic"),
            ("late", "kafka.backlog_topic"),
            ("letters", "kafka.dead_letter_topic"),
        ];
        assert_eq!(found, wanted.map(|(topic, key)| (topic.to_owned(), key)));
    }
}
