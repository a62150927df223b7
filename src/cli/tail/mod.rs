//! `fieldpost tail`: follows events live, from the agent, from Redis or from Kafka, and prints one line for each.
//!
//! Each place is a `Source`, which remembers how far it has come; `follow` connects, shows, and connects again. Nothing is
//! read ahead of an output that takes nothing: memory is that of one load.

mod agent;
mod entry;
mod follow;
mod kafka;
mod output;
mod pings;
mod streams;

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;

use crate::cli::agent_place::{Nowhere, PlaceArg};
use crate::cli::load::{self, ConfigArg};
use crate::cli::{exit, runtime, text};
use crate::config::{Config, units};
use crate::ingest::route::Pattern;
use crate::sink::kafka_reader::{From, Until};
use entry::{Entry, Filter};
use follow::Follow;

/// Who says it on standard error.
const NAME: &str = "fieldpost tail";

/// Follow events live: from the agent, from Redis, or from Kafka for a replay
///
/// Prints a line for each event: time, position, source, type, payload. `--from agent` asks a running agent's HTTP interface
/// (http.listen) and goes on at the last position when the connection was lost or the agent was started anew; what is not there
/// any more is told as a gap. `--from redis` listens to pings, which say that there is news and not what; those of a lost
/// connection cannot be had. `--from streams` reads Redis' streams, and goes on behind the last entry; with --group as a member
/// of a consumer group, which acknowledges entries once they are printed. `--from kafka` reads a topic's committed records from
/// an offset or a time on, commits nothing and joins no group.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost tail                                               what the agent takes, as it becomes durable
  fieldpost tail --type 'alarm*' --source-type pump            some of it; * is any text
  fieldpost tail --json | jq .payload                          every field, an object a line
  fieldpost tail --json --count 1 --timeout 10s                is anything coming at all?
  fieldpost tail --from redis                                  pings, as a web backend gets them
  fieldpost tail --from streams --after 0                      all that is in the streams, and what comes
  fieldpost tail --from streams --group web --consumer tail-1  as a member of the group web
  fieldpost tail --from kafka --time 10m                       what is in Kafka since ten minutes ago, and what comes
  fieldpost tail --from kafka --offset -100 --until end --json the last hundred records of each partition

Ends with ^C, which tells how many events were shown, at --count or --timeout, at the end of --until, or when nobody reads its
output any more (`| head`).

Exit codes:
  0   done
  64  wrong command line
  69  the agent is not there or refuses, a group or a topic does not exist
  75  Redis or Kafka is not there or refuses; --timeout was over before --count events came
  78  invalid configuration, or the place of --from is not configured")]
pub struct Args {
    /// Where the events are taken from
    #[arg(long, value_enum, default_value_t = Place::Agent)]
    from: Place,
    #[command(flatten)]
    config: ConfigArg,
    #[command(flatten)]
    place: PlaceArg,
    /// Print each event as a JSON object in a line
    #[arg(long)]
    json: bool,
    /// Only events of this type; * is any text; may be given again
    #[arg(long = "type", value_name = "PATTERN")]
    kinds: Vec<String>,
    /// Only events of this kind of source, as --type; a ping does not tell it
    #[arg(long, value_name = "PATTERN")]
    source_type: Vec<String>,
    /// Only events of this source, as --type
    #[arg(long, value_name = "PATTERN")]
    source_id: Vec<String>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so long, whatever came
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    timeout: Option<Duration>,
    /// `agent`: begin behind this position, 3-1234; `streams`: behind this entry, 0 for all [default: now]
    #[arg(long, value_name = "POSITION", conflicts_with = "time")]
    after: Option<String>,
    /// `streams`, `kafka`: begin at this time, RFC 3339, or so long ago, such as 10m
    #[arg(long, value_name = "TIME", value_parser = time_ms, conflicts_with = "offset")]
    time: Option<i64>,
    /// `redis`: channels to listen to, with * for any text [default: those of redis.channel]
    #[arg(long, value_name = "PATTERN")]
    channel: Option<String>,
    /// `streams`: keys to read, with * for any text [default: those of redis.stream]
    #[arg(long, value_name = "PATTERN")]
    stream: Option<String>,
    /// `streams`: read as a member of this group, which must exist, and acknowledge what was printed
    #[arg(long, value_name = "NAME", conflicts_with_all = ["after", "time"])]
    group: Option<String>,
    /// `streams`: the member's name
    #[arg(long, value_name = "NAME", default_value = "fieldpost-tail")]
    consumer: String,
    /// `kafka`: the topic [default: kafka.topic]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// `kafka`: only this partition; may be given again
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Vec<i32>,
    /// `kafka`: begin at beginning, end, an offset, or so many before the end: -100 [default: end]
    #[arg(long, value_name = "OFFSET", value_parser = offset, allow_hyphen_values = true)]
    offset: Option<From>,
    /// `kafka`: end at end, where the topic ends now, or at a time as --time
    #[arg(long, value_name = "TIME", value_parser = until)]
    until: Option<Until>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Place {
    /// A running agent, over HTTP
    Agent,
    /// Redis Pub/Sub: pings
    Redis,
    /// Redis Streams
    Streams,
    /// A topic
    Kafka,
}

/// Milliseconds since 1970.
fn time_ms(text: &str) -> Result<i64, String> {
    const FORM: &str =
        "a time is RFC 3339, such as 2026-03-01T12:00:00Z, or a duration back from now, such as 10m";
    let now = Timestamp::now().as_millisecond();
    match (text.parse::<Timestamp>(), units::parse_duration(text)) {
        (Ok(time), _) => Ok(time.as_millisecond()),
        (_, Ok(back)) => Ok(now.saturating_sub(i64::try_from(back.as_millis()).unwrap_or(i64::MAX))),
        _ => Err(FORM.to_owned()),
    }
}

fn offset(text: &str) -> Result<From, String> {
    match text {
        "beginning" => Ok(From::Beginning),
        "end" => Ok(From::End),
        text => text.parse().map(From::Offset).map_err(|_| "beginning, end, or a whole number".to_owned()),
    }
}

fn until(text: &str) -> Result<Until, String> {
    if text == "end" { Ok(Until::End) } else { time_ms(text).map(Until::Time) }
}

/// What a source brings.
#[derive(Debug)]
enum Word {
    Event(Box<Entry>),
    /// Told on standard error.
    Note(String),
    /// Some events are not there any more: told, and counted.
    Gap(String),
    /// The connection was lost, and the source itself finds it again.
    Lost(String),
    /// It has.
    Back,
    /// Nothing more comes.
    End,
}

impl Word {
    fn event(entry: Entry) -> Self {
        Self::Event(Box::new(entry))
    }
}

/// Why nothing comes.
#[derive(Debug)]
enum Problem {
    /// The connection was lost: connect again.
    Lost(String),
    /// It will not be otherwise: end with this code.
    Refused(u8, String),
}

/// Where events come from.
trait Source {
    /// Its name, for messages.
    fn name(&self) -> String;

    /// The code to exit with when it is not there at the start.
    fn code(&self) -> u8;

    /// Connects, and goes on where it was; what there is to say about that goes to `words`.
    async fn open(&mut self, words: &mut Vec<Word>) -> Result<(), Problem>;

    /// What is next, at least one word, in a load of bounded size; of events at most `events_max`.
    async fn next(&mut self, words: &mut Vec<Word>, events_max: u64) -> Result<(), Problem>;

    /// What `next` brought has been shown.
    async fn settle(&mut self) -> Result<(), Problem> {
        Ok(())
    }
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        if let Some(problem) = self.misplaced() {
            return refuse(exit::USAGE, problem);
        }
        runtime::run(NAME, self.follow()).unwrap_or_else(|code| code)
    }

    /// An option of another place, in words.
    fn misplaced(&self) -> Option<&'static str> {
        let (kafka, streams) = (self.from == Place::Kafka, self.from == Place::Streams);
        let (agent, redis) = (self.from == Place::Agent, self.from == Place::Redis);
        let is_id = self.after.as_deref().is_none_or(streams::is_id);
        let rules = [
            (streams && !is_id, "--after takes the id of an entry, such as 1772366400000-0, or 0 for all"),
            (self.after.is_some() && !agent && !streams, "--after goes with --from agent and --from streams"),
            (self.time.is_some() && !kafka && !streams, "--time goes with --from kafka and --from streams"),
            (self.channel.is_some() && !redis, "--channel goes with --from redis"),
            (self.stream.is_some() && !streams, "--stream goes with --from streams"),
            (self.group.is_some() && !streams, "--group goes with --from streams"),
            (self.topic.is_some() && !kafka, "--topic goes with --from kafka"),
            (!self.partition.is_empty() && !kafka, "--partition goes with --from kafka"),
            (self.offset.is_some() && !kafka, "--offset goes with --from kafka"),
            (self.until.is_some() && !kafka, "--until goes with --from kafka"),
            (
                !self.source_type.is_empty() && redis,
                "a ping does not tell the kind of its source: name its channels by --channel, or take --from agent",
            ),
        ];
        rules.into_iter().find_map(|(is_wrong, what)| is_wrong.then_some(what))
    }

    fn filter(&self) -> Filter {
        let patterns = |texts: &[String]| texts.iter().map(Pattern::new).collect();
        Filter {
            kinds: patterns(&self.kinds),
            source_types: patterns(&self.source_type),
            source_ids: patterns(&self.source_id),
        }
    }

    async fn follow(&self) -> ExitCode {
        let follow = Follow::new(self.json, self.filter(), self.count, self.timeout);
        if self.from == Place::Agent {
            return match self.place.find(&self.config) {
                Ok(place) => follow.run(agent::Agent::new(place, self.after.clone())).await,
                Err(Nowhere::Invalid(code)) => code,
                Err(Nowhere::Usage(problem)) => refuse(exit::USAGE, &problem),
                Err(Nowhere::Unset(problem)) => {
                    let others = "; or take --from redis, --from streams or --from kafka";
                    refuse(exit::CONFIG, &format!("{problem}{others}"))
                }
            };
        }
        let config = match self.config.load() {
            Ok(loaded) => loaded.config,
            Err(errors) => return load::refuse(&errors),
        };
        let unset = |problem: String| refuse(exit::CONFIG, &problem);
        match self.from {
            Place::Kafka => match self.kafka(&config) {
                Ok(source) => follow.run(source).await,
                Err(problem) => unset(problem),
            },
            Place::Streams => match self.streams(config) {
                Ok(source) => follow.run(source).await,
                Err(problem) => unset(problem),
            },
            Place::Redis | Place::Agent => match self.pings(config) {
                Ok(source) => follow.run(source).await,
                Err(problem) => unset(problem),
            },
        }
    }

    fn kafka(&self, config: &Config) -> Result<kafka::Kafka, String> {
        let Some(options) = &config.kafka else { return Err("kafka.brokers is not set".to_owned()) };
        let topic = self.topic.clone().or_else(|| config.records.topic.fixed().map(str::to_owned));
        let topic = topic.ok_or("kafka.topic depends on the event: name a topic by --topic")?;
        let from = self.time.map(From::Time).or(self.offset).unwrap_or(From::End);
        let plan = crate::sink::kafka_reader::Plan {
            topic,
            partitions: self.partition.clone(),
            from,
            until: self.until,
        };
        Ok(kafka::Kafka::new(options.clone(), plan))
    }

    fn streams(&self, config: Config) -> Result<streams::Streams, String> {
        let redis = config.redis.ok_or("redis.url is not set")?;
        let named = redis.plan.stream.as_ref().map(|stream| stream.name.pattern());
        let pattern = self.stream.clone().or(named);
        let pattern = pattern.ok_or("redis.mode = \"pubsub\" adds to no stream: name keys by --stream")?;
        let begin = match (self.time, &self.after) {
            (Some(ms), _) => streams::Begin::after_time(ms),
            (None, Some(id)) => streams::Begin::After(id.clone()),
            (None, None) => streams::Begin::Now,
        };
        let member = self.group.as_ref().map(|group| crate::sink::redis::reading::Member {
            group: group.clone(),
            consumer: self.consumer.clone(),
        });
        Ok(streams::Streams::new(redis.options, pattern, begin, member))
    }

    fn pings(&self, config: Config) -> Result<pings::Pings, String> {
        let redis = config.redis.ok_or("redis.url is not set")?;
        // Not both: what is published on the one is published on the other again.
        let named =
            redis.plan.channel.as_ref().or(redis.plan.aggregate.as_ref()).map(|channel| channel.pattern());
        let pattern = self.channel.clone().or(named);
        let pattern = pattern.ok_or("redis.mode = \"streams\" publishes nothing: take --from streams")?;
        Ok(pings::Pings::new(redis.options, pattern))
    }
}

fn refuse(code: u8, problem: &str) -> ExitCode {
    say(problem);
    code.into()
}

/// On standard error, beside the events.
fn say(what: &str) {
    text::say(NAME, what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_refused() {
        assert_eq!(time_ms("1970-01-01T00:00:01.5Z"), Ok(1500));
        let back = time_ms("10m").unwrap();
        let ago = Timestamp::now().as_millisecond() - back;
        assert!((600_000..660_000).contains(&ago), "{ago}");
        assert!(time_ms("yesterday").is_err() && time_ms("10").is_err());
        assert_eq!((offset("-100"), offset("end")), (Ok(From::Offset(-100)), Ok(From::End)));
        assert!(offset("latest").is_err());
        assert_eq!((until("end"), until("1970-01-01T00:00:00Z")), (Ok(Until::End), Ok(Until::Time(0))));
    }
}
