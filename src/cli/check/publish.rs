//! What would become of one publish or one line of the socket: read, routed and formatted as the agent does it, and
//! nothing sent, stored or remembered.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use crate::buffer::block::Origin;
use crate::buffer::{Batch, LogName};
use crate::cli::text::{self, plain};
use crate::cli::{exit, load, routes};
use crate::config::{Config, PingAfter};
use crate::event::{Draft, Event, EventId, Payload, Seq};
use crate::ingest::form::parse_event;
use crate::ingest::route::{Keep, Route};
use crate::ingest::{mqtt, stamped, unix};
use crate::ping::ChannelTemplate;
use crate::sink::record::{Formatter, Lane, Unready};
use crate::system::Clock;

/// Stands for what an event gets at admission.
const LATER: &str = "<at admission>";

/// The headers whose values are known only then.
const LATER_HEADERS: [&str; 6] = [
    "fieldpost-log",
    "fieldpost-epoch",
    "fieldpost-seq",
    "fieldpost-boot",
    "fieldpost-boot-us",
    "fieldpost-clock",
];

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question<'a> {
    /// A publish on this topic with this payload, `{}` without.
    Publish { topic: &'a str, payload: Option<&'a Path> },
    /// A line of the socket.
    Line(&'a Path),
}

/// The answer; its JSON is for scripts.
#[derive(Debug, Default, Serialize)]
struct Answer {
    /// `stored`, `sampled` or `reported` (some are stored), `dropped`, `refused` (it is no event).
    outcome: &'static str,
    /// What that means for the producer, or why it is no event.
    because: String,
    mqtt_topic: Option<String>,
    /// The template of `mqtt.topics` that reads the topic.
    template: Option<String>,
    event: Option<EventView>,
    /// Every route up to the one that matches.
    routes: Vec<Tried>,
    route: Option<String>,
    when_full: Option<&'static str>,
    priority: u8,
    record: Option<RecordView>,
    /// Why there is no record.
    no_record: Option<&'static str>,
    ping: Option<PingView>,
    /// Why there is no ping.
    no_ping: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct EventView {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    source_type: String,
    source_id: String,
    timestamp: Option<String>,
    payload: &'static str,
    payload_bytes: usize,
    stored_bytes: usize,
}

#[derive(Debug, Serialize)]
struct Tried {
    number: usize,
    name: String,
    matches: bool,
    /// The first field that does not fit.
    mismatch: Option<String>,
}

#[derive(Debug, Serialize)]
struct RecordView {
    topic: String,
    /// `None`: without a key.
    key: Option<String>,
    headers: Map<String, Value>,
    value: String,
}

#[derive(Debug, Serialize)]
struct PingView {
    channel: Option<String>,
    aggregate_channel: Option<String>,
    /// The stream that gets an entry.
    stream: Option<String>,
    message: String,
    /// `durable` or `delivered`.
    after: &'static str,
}

/// Answers on standard output; the code to exit with.
pub(super) fn run(config: &Config, question: Question<'_>, is_json: bool) -> ExitCode {
    let answer = match answer(config, question) {
        Ok(answer) => answer,
        Err(code) => return code.into(),
    };
    let text = if is_json {
        // Texts and numbers always encode.
        format!("{:#}\n", serde_json::to_value(&answer).unwrap_or_default())
    } else {
        answer.text()
    };
    match load::print(&text) {
        ExitCode::SUCCESS if answer.event.is_none() => exit::DATA.into(),
        code => code,
    }
}

fn answer(config: &Config, question: Question<'_>) -> Result<Answer, u8> {
    let (mut answer, bytes);
    match question {
        Question::Publish { topic, payload } => {
            let bytes_max = mqtt::packet_bytes_max(config.limits.event_bytes_max);
            bytes = payload.map_or_else(|| Ok(b"{}".to_vec()), |path| read(path, bytes_max))?;
            answer = Answer { mqtt_topic: Some(topic.to_owned()), ..Answer::default() };
            if topic.is_empty() || topic.contains(['+', '#', '\0']) {
                return Ok(answer.refused("nobody can publish there: `+` and `#` stand in filters alone"));
            }
            let Some(mqtt) = &config.mqtt else {
                return Ok(answer.refused("the MQTT input is off: mqtt.url is not set"));
            };
            let template = mqtt.topics.iter().find(|template| template.capture(topic).is_some());
            answer.template = template.map(ToString::to_string);
            match mqtt::draft(&mqtt.topics, topic.as_bytes(), &bytes) {
                Ok(draft) => Ok(answer.follow(config, &draft, Some(topic), mqtt.when_full)),
                Err(unfit) => {
                    Ok(answer.refused(&format!("{unfit}; it is acknowledged, counted and dropped")))
                }
            }
        }
        Question::Line(path) => {
            bytes = read(path, unix::line_bytes_max(config.limits.event_bytes_max))?;
            answer = Answer::default();
            let when_full = config.unix.as_ref().map_or(config.when_full, |unix| unix.when_full);
            match parse_event(&bytes) {
                Ok(draft) => Ok(answer.follow(config, &draft, None, when_full)),
                Err(error) => Ok(answer.refused(&format!("{error}; the producer is told `invalid`"))),
            }
        }
    }
}

/// A file up to a size, or standard input for `-`.
fn read(path: &Path, bytes_max: usize) -> Result<Vec<u8>, u8> {
    let open = || -> io::Result<Box<dyn Read>> {
        Ok(if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path)?) })
    };
    let mut bytes = Vec::new();
    let read = open().and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut bytes));
    let problem = match read {
        Ok(_) if bytes.len() <= bytes_max => return Ok(bytes),
        Ok(_) => format!("has more than {bytes_max} bytes, which the agent does not read either"),
        Err(error) => format!("cannot be read: {error}"),
    };
    text::say("fieldpost", format_args!("{} {problem}", path.display()));
    Err(exit::NO_INPUT)
}

impl Answer {
    fn refused(self, because: &str) -> Self {
        Self { outcome: "refused", because: because.to_owned(), ..self }
    }

    /// What becomes of a draft.
    fn follow(
        mut self,
        config: &Config,
        draft: &Draft<'_>,
        mqtt_topic: Option<&str>,
        when_full: crate::buffer::WhenFull,
    ) -> Self {
        let event = match stamped(draft, Clock::default().now(), false) {
            Ok(event) => event,
            Err(error) => return self.refused(&error.to_string()),
        };
        let bytes_max = config.limits.event_bytes_max;
        let stored_bytes = match Batch::new().push(&event, bytes_max) {
            Ok(bytes) => bytes,
            Err(bytes) => {
                let because = format!(
                    "the event has {bytes} bytes as stored, limits.max_event_bytes allows {bytes_max}"
                );
                return self.refused(&because);
            }
        };
        self.event = Some(EventView::of(&event, stored_bytes));
        let usual = Route { name: String::new(), ..Route::default() };
        let found = config.routes.of(&event, mqtt_topic);
        let asked = found.map_or(usize::MAX, |(number, _)| number.saturating_add(1));
        self.routes = (1..)
            .zip(config.routes.all())
            .take(asked)
            .map(|(number, route)| {
                let mismatch = route.mismatch(&event, mqtt_topic);
                let (name, matches) = (route.name.clone(), mismatch.is_none());
                Tried { number, name, matches, mismatch: mismatch.map(|mismatch| mismatch.to_string()) }
            })
            .collect();
        self.route = found.map(|(_, route)| route.name.clone());
        let route = found.map_or(&usual, |(_, route)| route);
        let terms = route.terms(when_full);
        (self.when_full, self.priority) = (Some(terms.when_full.word()), terms.priority);
        let keep = routes::keep(&route.keep);
        (self.outcome, self.because) = match &route.keep {
            _ if draft.was_taken => (
                "stored",
                "it says where it was before, so that its route leaves nothing of it out".to_owned(),
            ),
            Keep::All => ("stored", "acknowledged once it is durable".to_owned()),
            Keep::Nothing => {
                let because =
                    "acknowledged in its turn, counted as dropped, and neither stored nor sent".to_owned();
                (self.outcome, self.because) = ("dropped", because);
                return self;
            }
            Keep::OneIn(_) => {
                ("sampled", format!("{keep}; the others are acknowledged and counted as sampled out"))
            }
            Keep::Changes(report) => {
                let number = match (&report.value, event.payload) {
                    (None, _) => String::new(),
                    (Some(pointer), Payload::Json(json)) if let Some(number) = pointer.number_in(json) => {
                        format!(", here {number}")
                    }
                    _ => ", here no number, so that it is sent".to_owned(),
                };
                let rest =
                    "the first of a source is sent; the others are acknowledged and counted as filtered";
                ("reported", format!("{keep}{number}; {rest}"))
            }
        };
        self.send(config, &Event { way: route.way(), ..event })
    }

    /// Record and ping of an event that is stored.
    fn send(mut self, config: &Config, event: &Event<'_>) -> Self {
        if config.kafka.is_none() {
            self.no_record = Some("kafka.brokers is not set");
        } else {
            let name = LogName { epoch: 0, log: Uuid::nil(), agent: config.agent.id.clone() };
            let mut formatter = Formatter::new(config.records.clone(), &[name], Arc::default());
            let origin = Origin { epoch: 0, boot: [0; 16] };
            let record = formatter.format(Seq(0), origin, Lane::Live, event, |record| RecordView {
                topic: record.topic.to_owned(),
                key: record.key.map(text),
                headers: record
                    .headers
                    .iter()
                    .map(|(name, value)| {
                        let is_later = LATER_HEADERS.contains(name);
                        ((*name).to_owned(), if is_later { LATER.into() } else { text(value).into() })
                    })
                    .collect(),
                value: text(record.payload),
            });
            match record {
                Ok(record) => self.record = Some(record),
                Err(Unready) => {
                    self.no_record =
                        Some("the schema registry, which is not asked here, knows its schema's id")
                }
            }
        }
        match &config.redis {
            None => self.no_ping = Some("redis.url is not set"),
            Some(_) if event.way.is_quiet => self.no_ping = Some("the route has ping = false"),
            Some(redis) => {
                let plan = &redis.plan;
                let room = Arc::new(Semaphore::new(redis.options.payload_queue_bytes_max));
                let ping = plan.ping(event, Instant::now(), &room);
                let named =
                    |template: Option<&ChannelTemplate>| template.map(|template| template.channel(event));
                let after = match redis.ping_after {
                    PingAfter::Durable => "durable",
                    PingAfter::Delivered => "delivered",
                };
                self.ping = Some(PingView {
                    channel: named(plan.channel.as_ref()),
                    aggregate_channel: named(plan.aggregate.as_ref()),
                    stream: named(plan.stream.as_ref().map(|stream| &stream.name)),
                    message: text(ping.message()),
                    after,
                });
            }
        }
        self
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(topic) = &self.mqtt_topic {
            line(&mut text, "publish", topic);
        }
        if let Some(template) = &self.template {
            line(&mut text, "", &format!("read by {template} of mqtt.topics"));
        }
        let Some(event) = &self.event else {
            line(&mut text, "no event", &self.because);
            return text;
        };
        event.show(&mut text);
        let mut title = "route";
        for Tried { number, name, mismatch, .. } in &self.routes {
            let verdict =
                mismatch.as_ref().map_or("matches".to_owned(), |field| format!("does not match ({field})"));
            line(&mut text, std::mem::take(&mut title), &format!("{number} {name}: {verdict}"));
        }
        if self.route.is_none() {
            line(&mut text, title, "none matches: as all other events");
        }
        line(&mut text, self.outcome, &self.because);
        if self.outcome == "dropped" {
            return text;
        }
        let when_full = self.when_full.unwrap_or_default();
        line(&mut text, "", &format!("priority {}, when_full {when_full}", self.priority));
        match &self.record {
            Some(record) => record.show(&mut text),
            None => line(&mut text, "record", &format!("not shown: {}", self.no_record.unwrap_or_default())),
        }
        match &self.ping {
            Some(ping) => ping.show(&mut text),
            None => line(&mut text, "ping", &format!("none: {}", self.no_ping.unwrap_or_default())),
        }
        text
    }
}

impl EventView {
    fn of(event: &Event<'_>, stored_bytes: usize) -> Self {
        let (payload, payload_bytes) = match event.payload {
            Payload::Json(json) => ("JSON", json.len()),
            Payload::Bytes(bytes) => ("bytes", bytes.len()),
        };
        Self {
            id: if let EventId::Given(id) = event.id { Some(id.to_owned()) } else { None },
            kind: event.kind.to_owned(),
            source_type: event.source_type.to_owned(),
            source_id: event.source_id.to_owned(),
            timestamp: event.timestamp.map(str::to_owned),
            payload,
            payload_bytes,
            stored_bytes,
        }
    }

    fn show(&self, out: &mut String) {
        let Self { kind, source_type, source_id, payload, payload_bytes, stored_bytes, .. } = self;
        line(out, "event", &format!("type {kind}, source_type {source_type}, source_id {source_id}"));
        let id = self.id.as_deref().unwrap_or("made at admission");
        let timestamp = self.timestamp.as_deref().unwrap_or("that of admission");
        line(out, "", &format!("id {id}, timestamp {timestamp}"));
        line(out, "", &format!("payload {payload} of {payload_bytes} bytes; {stored_bytes} bytes as stored"));
    }
}

impl PingView {
    fn show(&self, out: &mut String) {
        let channels: Vec<&str> =
            self.channel.iter().chain(&self.aggregate_channel).map(String::as_str).collect();
        if !channels.is_empty() {
            line(out, "ping", &format!("on {}, once it is {}", channels.join(" and "), self.after));
            line(out, "", &self.message);
        }
        if let Some(stream) = &self.stream {
            line(out, "entry", &format!("in the stream {stream}, once it is {}", self.after));
        }
    }
}

impl RecordView {
    fn show(&self, out: &mut String) {
        let key = self.key.as_ref().map_or("no key".to_owned(), |key| format!("key {key}"));
        line(out, "record", &format!("topic {}, {}", self.topic, key));
        for (name, value) in &self.headers {
            line(out, "", &format!("{name}: {}", value.as_str().unwrap_or_default()));
        }
        line(out, "", &self.value);
    }
}

/// One line behind its title; what the outside gave shows its control characters.
fn line(out: &mut String, title: &str, text: &str) {
    let _ = writeln!(out, "{title:<9} {}", plain(text));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
