//! The ids of the envelope's schema in a Schema Registry: asked for once per topic, kept on disk, handed to the formatter.
//!
//! The promise: once an id is known it is known for good, also over restarts, so that an outage of the registry stops
//! nothing that ran before. While the id of a topic is not known, the drain waits and events stay in the buffer; the
//! registry is asked again with a backoff, without end, and the log says so. Nothing is given up for it.
//!
//! The subject of a topic is `<topic>-value`. The schema is looked up there first, so that an agent whose schema somebody has
//! registered needs no right to write.

mod client;
mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::Class;
use crate::files::FileError;
use crate::log::Limited;
use crate::secret::Password;

/// Most topics whose ids are known. Behind that all are forgotten and asked for again as they come.
pub const TOPICS_MAX: usize = 1000;

/// First and longest wait before the registry is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How often it is said that a schema's id is missing.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How the registry is reached and where the ids are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// TLS (`https://`), server name verified.
    pub tls: bool,
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What stands in front of `/subjects`, without a slash at its end.
    pub path: String,
    /// User of HTTP's basic authentication.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Password>,
    /// Certificates (PEM) to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for an answer, connecting included.
    pub timeout: Duration,
    /// Where the ids are kept.
    pub file: PathBuf,
}

impl Options {
    /// The URL, without secrets.
    pub fn url(&self) -> String {
        let Self { tls, host, port, path, .. } = self;
        let scheme = if *tls { "https" } else { "http" };
        // An IPv6 address stands in brackets.
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!("{scheme}://{host}:{port}{path}")
    }
}

/// Why there is no id. Class: always [`Class::Retry`]; events wait in the buffer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No connection, or it was lost.
    #[error("cannot reach it: {0}")]
    Link(String),
    /// No TLS: the certificate is not trusted, is for another name, or `ca_file` cannot be used.
    #[error("no TLS: {0}; see schema_registry.ca_file")]
    Tls(String),
    /// The password's file cannot be used: a human is needed.
    #[error(transparent)]
    Password(#[from] FileError),
    /// No answer in time.
    #[error("no answer within {} ms (schema_registry.timeout)", .0.as_millis())]
    NoAnswer(Duration),
    /// It answered something else than an id: a human is needed.
    #[error("it answers {status}: {message}{}", hint(*.status))]
    Refused {
        /// The status of HTTP.
        status: u16,
        /// What it said.
        message: String,
    },
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => "; see schema_registry.username and schema_registry.password_file",
        409 => "; the subject holds a schema that does not fit: delete it or use another topic",
        _ => "; see schema_registry.url",
    }
}

impl RegistryError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        Class::Retry
    }
}

/// By topic.
type Ids = Arc<BTreeMap<String, u32>>;

/// What the formatter knows of the ids, and its way to ask for more.
#[derive(Debug)]
pub struct Schemas {
    ids: Ids,
    known: watch::Receiver<Ids>,
    wanted: watch::Sender<Option<String>>,
}

impl Schemas {
    /// The id for records in `topic`. If it is not known, it is asked for: see [`Schemas::changed`].
    pub fn id(&mut self, topic: &str) -> Option<u32> {
        if let Some(id) = self.ids.get(topic) {
            return Some(*id);
        }
        self.ids = Arc::clone(&self.known.borrow_and_update());
        let id = self.ids.get(topic).copied();
        if id.is_none() {
            self.wanted.send_replace(Some(topic.to_owned()));
        }
        id
    }

    /// Returns when ids became known since the last look.
    ///
    /// Cancel safe: yes.
    pub async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            // The stage has ended, and with it the agent ends.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
impl Schemas {
    /// Ids that a test makes known.
    pub(crate) fn scripted() -> (watch::Sender<Ids>, Self) {
        let (known, receiver) = watch::channel(Ids::default());
        let schemas = Self { ids: Ids::default(), known: receiver, wanted: watch::channel(None).0 };
        (known, schemas)
    }
}

/// The stage that asks.
#[derive(Debug)]
pub struct Registry {
    options: Options,
    known: watch::Sender<Ids>,
    wanted: watch::Receiver<Option<String>>,
    log: Limited,
}

impl Registry {
    /// Reads the ids that were kept, and asks nothing yet.
    pub fn open(options: Options) -> (Self, Schemas) {
        let ids = Arc::new(file::load(&options));
        let (wanted_sender, wanted) = watch::channel(None);
        let (known, known_receiver) = watch::channel(Arc::clone(&ids));
        let schemas = Schemas { ids, known: known_receiver, wanted: wanted_sender };
        (Self { options, known, wanted, log: Limited::new(LOG_INTERVAL) }, schemas)
    }

    /// Asks for what is wanted, until `stop`.
    ///
    /// Cancel safe: no; ids that are being written are asked for again after the next start.
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.serve() => {}
        }
    }

    /// Ends when nobody can want anything any more.
    async fn serve(&mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while self.wanted.changed().await.is_ok() {
            backoff.reset();
            loop {
                let Some(topic) = self.wanted.borrow_and_update().clone() else { break };
                if self.known.borrow().contains_key(&topic) {
                    break;
                }
                match client::schema_id(&self.options, &subject(&topic)).await {
                    Ok(id) => self.keep(topic, id).await,
                    Err(error) => {
                        if let Some(suppressed) = self.log.allow() {
                            tracing::error!(
                                %error, topic, suppressed, url = self.options.url(),
                                "the schema registry gives no id for a topic: its events and those behind them wait in the \
                                 buffer, nothing is lost"
                            );
                        }
                        tokio::time::sleep(backoff.delay()).await;
                    }
                }
            }
        }
    }

    async fn keep(&mut self, topic: String, id: u32) {
        let mut ids = BTreeMap::clone(&self.known.borrow());
        if ids.len() >= TOPICS_MAX {
            ids.clear();
        }
        tracing::info!(topic, id, "the schema registry has the envelope's schema");
        ids.insert(topic, id);
        let ids = Arc::new(ids);
        let (options, kept) = (self.options.clone(), Arc::clone(&ids));
        let saved = tokio::task::spawn_blocking(move || file::save(&options, &kept)).await;
        if let Err(error) = saved.unwrap_or_else(|died| Err(std::io::Error::other(died))) {
            // Known for this run all the same: what waits must not wait for a small file.
            tracing::warn!(
                %error, file = %self.options.file.display(),
                "the schemas' ids cannot be kept: the next start needs the schema registry"
            );
        }
        self.known.send_replace(ids);
    }
}

/// How the envelope's schema stands with the subject of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is there, with this id.
    Registered(u32),
    /// It is not there, and the registry would take it.
    Unregistered,
    /// Another schema is there that it does not fit.
    Clashing,
}

/// Asks how the envelope's schema stands with the subject of `topic`; changes nothing there.
///
/// # Errors
/// [`RegistryError`], as the stage would meet it.
///
/// Cancel safe: yes.
pub async fn standing(options: &Options, topic: &str) -> Result<Standing, RegistryError> {
    client::standing(options, &subject(topic)).await
}

/// Under what a topic's schema is registered.
pub fn subject(topic: &str) -> String {
    format!("{topic}-value")
}
