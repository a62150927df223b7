//! Configuration: a TOML file and environment variables `FIELDPOST_<SECTION>__<KEY>` become one [`Config`].
//!
//! The promise: what [`Config::load`] returns is complete and in range, relations between keys included, so that no
//! code behind it checks configuration again; what it refuses is told with key, value, place and what is allowed,
//! everything at once. Nothing is clamped, nothing unknown is passed over, no secret is ever shown.
//!
//! Each key is declared once, in `keys`, those of a route too; the example file and the table in the manual are generated from there.
//!
//! `limits.memory` is split into four equal parts, one for each place where events wait: the MQTT input, the socket, the
//! window read ahead for Kafka, and librdkafka's queue. The append queue between them has a quarter as its limit too, but
//! what is in it still counts where it came from.

mod keys;
mod nearest;
mod parse;
mod problem;
mod reader;
mod render;
mod source;
#[cfg(test)]
pub(crate) mod tests;
pub mod units;
mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ingest::route::Routes;
use crate::ingest::{mqtt, unix};
use crate::ping::Plan;
use crate::secret::Password;
use crate::sink::{kafka, record, redis, registry};
use crate::{buffer, dead_letter, drain, http, log, losses, uplink};

pub use problem::{ConfigErrors, Problem, Source};
pub use reader::Effective;
pub use render::{effective_json, effective_toml};
pub use value::Shown;

/// The agent itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Name of the gateway in every record.
    pub id: String,
    /// Folder of everything the agent keeps.
    pub data_dir: PathBuf,
    /// How long a stop may go on with Kafka: half of it sending what waits, all of it waiting for confirmations.
    pub stop_grace: Duration,
}

/// What events may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest encoded event in bytes.
    pub event_bytes_max: usize,
    /// Memory for events on their way; already split over the stages' options.
    pub memory_bytes_max: usize,
    /// Longest wait of a socket's event for the buffer; also in [`unix::Options`].
    pub append_timeout: Duration,
    /// Most sources and types that routes remember; also in [`Routes`].
    pub sources_max: usize,
}

/// When a ping goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PingAfter {
    /// Right after the sync.
    Durable,
    /// Once Kafka confirmed the event.
    Delivered,
}

/// Pings: the sink's options and how the agent wires it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// How Redis is reached.
    pub options: redis::Options,
    /// What a ping is made of.
    pub plan: Plan,
    /// When the ping goes.
    pub ping_after: PingAfter,
}

/// Where events go that Kafka refuses for their content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetters {
    /// Their topic, another one than a fixed [`record::Options::topic`]; `None`: the store at once.
    pub topic: Option<String>,
    /// The store beside the buffer.
    pub store: dead_letter::Options,
}

/// The whole configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The agent itself.
    pub agent: Agent,
    /// The MQTT input, if it is on.
    pub mqtt: Option<mqtt::Options>,
    /// The socket input, if it is on.
    pub unix: Option<unix::Options>,
    /// What is agreed about events by what they are.
    pub routes: Routes,
    /// What events may cost.
    pub limits: Limits,
    /// The buffer.
    pub buffer: buffer::Options,
    /// What to do with events that find no room, where neither a route nor their input has it otherwise.
    pub when_full: buffer::WhenFull,
    /// The pace and guarantee of the drain.
    pub drain: drain::Options,
    /// Kafka; `None` only where nothing is run, see [`Config::kafka`].
    pub kafka: Option<kafka::Options>,
    /// Where events go that Kafka refuses for their content.
    pub dead_letters: DeadLetters,
    /// What Kafka's records look like and where they go.
    pub records: record::Options,
    /// The schema registry, if the format of the records needs one.
    pub registry: Option<registry::Options>,
    /// Pings, if they are on.
    pub redis: Option<Redis>,
    /// HTTP, if it is on.
    pub http: Option<http::Options>,
    /// The command of a long outage, if there is one.
    pub uplink: Option<uplink::Options>,
    /// What is told of losses.
    pub ledger: losses::Options,
    /// Log lines.
    pub log: log::Options,
}

/// A configuration and where each value of it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every key in the order of the example file, secrets that are set included.
    pub effective: Vec<Effective>,
    /// Every secret that is set, for who has to keep it out of a text.
    pub secrets: Vec<Password>,
}

impl Config {
    /// Reads the file (none: defaults alone) and lets the environment override it. Variables that do not start with
    /// `FIELDPOST_` or hold no `__` are no configuration; `CREDENTIALS_DIRECTORY` says where relative secret files are.
    ///
    /// # Errors
    /// [`ConfigErrors`] with all problems: print it and exit with 78.
    pub fn load(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigErrors> {
        load_on(&crate::system::hostname(), path, environment)
    }

    /// Kafka's options, for a command that cannot do without.
    ///
    /// # Errors
    /// [`ConfigErrors`]: no brokers are configured; print it and exit with 78.
    pub fn kafka(&self) -> Result<&kafka::Options, ConfigErrors> {
        self.kafka.as_ref().ok_or_else(|| {
            let what = format!(
                "is required: name the brokers in the file or set the variable {}",
                source::variable_of("kafka.brokers")
            );
            ConfigErrors::new(vec![Problem::of("kafka.brokers", None, what)])
        })
    }
}

/// The example file: every key with meaning, range and default, commented out.
pub fn example() -> String {
    render::example_file(&declared())
}

/// The declarations of all keys.
fn declared() -> reader::Outcome {
    let mut reader = reader::Reader::new(source::Sources::default());
    keys::config(&mut reader, "example");
    reader.into_outcome()
}

fn load_on(
    host_name: &str,
    path: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigErrors> {
    let sources = source::Sources::read(path, environment).map_err(ConfigErrors::new)?;
    let mut reader = reader::Reader::new(sources);
    let config = keys::config(&mut reader, host_name);
    let read = reader.finish().map_err(ConfigErrors::new)?;
    Ok(Loaded { config, effective: read.effective, secrets: read.secrets })
}
