//! Pings to Redis: best effort, bounded, counted; nobody ever waits for them.
//!
//! The promise: a ping is published within moments or not at all. While the link is up, what waits goes out as one
//! pipeline of `PUBLISH`; while it is down, pings are dropped as they come and counted, because a late ping makes a
//! listener believe in the past (the event itself is in Kafka). Redis can be away, silent, full or hostile: the agent
//! goes on, and every connect and every pipeline ends within `redis.timeout`.
//!
//! ```text
//!             answered                      error, time-out, closed
//! Connecting ──────────> Connected ─────────────────────────────────> Waiting ──> Connecting
//!     └── error, time-out ───────────────────────────────────────────────┘ (backoff; what a human must mend: slower)
//! ```
//!
//! Nothing is sent on an idle link and no timer runs, unless there are files to look after: a peer that closes is noticed
//! at once, one that vanished at the next ping. When a file of a password or certificate changed, a new connection takes
//! the old one's place, if it can be made. A user for the agent needs `+ping +publish &events:*`, and `+select` with `redis.database`.
//! Not promised: that anybody listens, and an answer per ping after a broken pipeline (all of it counts as dropped).

pub mod subscription;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, ServerError, Value};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::Class;
use crate::files::{self, Watched};
use crate::log::Limited;
use crate::ping::Ping;
use crate::secret::Password;
use crate::stats::{LinkState, Stats};
use crate::tls::{self, TlsError};

/// Most pings in one pipeline: a few hundred fill a network packet many times over, more only delays the first answer.
const BATCH_MAX: usize = 512;
/// First and longest wait before a reconnect; a link that lasted for the longest wait starts again at the first.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// The same after refused credentials and certificates, which only a human mends.
const RECONNECT_DENIED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Longest quote of what Redis answered, in bytes.
const ANSWER_BYTES_MAX: usize = 200;

/// How Redis is reached and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS (`rediss://`), server name verified.
    pub tls: Option<tls::Options>,
    /// Database number; PUBLISH does not depend on it, ACLs of some set-ups do.
    pub database: i64,
    /// ACL user.
    pub username: Option<String>,
    /// Password; read whenever a connection is made.
    pub password: Option<Password>,
    /// Most pings waiting; one more is dropped and counted.
    pub queue_max: usize,
    /// Longest wait for a connection or for the answer to one pipeline.
    pub timeout: Duration,
}

impl Options {
    /// The files that are read for each connection.
    fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let password = self.password.as_ref().and_then(Password::path).map(PathBuf::from);
        self.tls.iter().flat_map(tls::Options::paths).chain(password)
    }
}

/// Why Redis could not be pinged. Class: always [`Class::Retry`]; the pings concerned are dropped and counted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RedisError {
    /// No TCP connection. Reconnect later.
    #[error("cannot connect to {host}:{port}: {source}")]
    Connect {
        /// `redis.url`.
        host: String,
        /// `redis.url`.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// No TLS: the certificate is not trusted, is for another name, or the peer does not speak TLS: a human is needed.
    /// Reconnect slowly.
    #[error("no TLS with {host}: {reason}")]
    Tls {
        /// `redis.url`; the name that the certificate must be for.
        host: String,
        /// What the TLS library said, and what to do about it where that is known.
        reason: String,
    },
    /// A file of a password or of TLS cannot be used: a human is needed. Reconnect slowly, or when it changed.
    #[error("{0}; see {1}")]
    File(TlsError, &'static str),
    /// Redis did not answer in time. Reconnect.
    #[error("no answer within {} ms (redis.timeout)", .after.as_millis())]
    NoAnswer {
        /// `redis.timeout`.
        after: Duration,
    },
    /// The connection ended. Reconnect.
    #[error("connection lost: {reason}")]
    Lost {
        /// What ended it, for example a certificate that Redis wants of its clients.
        reason: String,
    },
    /// Redis does not let this user in or not publish: a human is needed. Reconnect slowly.
    #[error("Redis refuses {command}: {answer}; see redis.username and redis.password_file")]
    Denied {
        /// The command that was refused.
        command: &'static str,
        /// The error answer.
        answer: String,
    },
    /// Another error answer, such as LOADING. Reconnect.
    #[error("Redis answers {command} with an error: {answer}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The error answer.
        answer: String,
    },
    /// The peer does not speak the Redis protocol. Reconnect later.
    #[error("this is not a Redis: {0}")]
    Protocol(String),
}

impl RedisError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        Class::Retry
    }

    fn closed() -> Self {
        Self::Lost { reason: "closed by Redis".to_owned() }
    }

    /// Whether only a human mends it.
    fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Tls { .. } | Self::File(..))
    }

    /// What an error answer to `command` means.
    fn answered(command: &'static str, error: &ServerError) -> Self {
        let mut answer = error.code().to_owned();
        if let Some(details) = error.details() {
            answer.push(' ');
            answer.push_str(details);
        }
        answer.truncate(answer.floor_char_boundary(ANSWER_BYTES_MAX));
        if command == "AUTH" || matches!(error.code(), "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED") {
            Self::Denied { command, answer }
        } else {
            Self::Refused { command, answer }
        }
    }
}

impl From<redis::RedisError> for RedisError {
    fn from(error: redis::RedisError) -> Self {
        match error.to_string() {
            _ if error.is_connection_dropped() => Self::closed(),
            reason if error.is_io_error() => Self::Lost { reason },
            reason => Self::Protocol(reason),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Moves bytes between the socket and the client; ends with the connection.
type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that is greeted. Its driver runs only while an answer is awaited and where the idle link is watched,
/// so that dropping this closes the socket and leaves nothing behind.
struct Connection {
    client: MultiplexedConnection,
    driver: Driver,
    since: Instant,
}

/// What became of a pipeline whose answers all came.
struct Published {
    delivered: usize,
    denied: Option<RedisError>,
}

impl Connection {
    /// Connects, authenticates and sees one answer, all within `options.timeout`.
    async fn open(options: &Options) -> Result<Self, RedisError> {
        within(options.timeout, async {
            let stream = stream(options).await?;
            let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
            let config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(1);
            let (client, driver) = MultiplexedConnection::new_with_config(&settings, stream, config).await?;
            let mut connection = Self { client, driver: Box::pin(driver), since: Instant::now() };
            connection.greet(options).await?;
            Ok(connection)
        })
        .await
    }

    /// PING comes first, so that a peer that is loading, full or no Redis at all is not taken for one that refuses
    /// the credentials.
    async fn greet(&mut self, options: &Options) -> Result<(), RedisError> {
        let login = options.username.is_some() || options.password.is_some();
        let answer = self.tell(&redis::cmd("PING")).await.map_err(|error| match error {
            // What OpenSSL says of the alert is lost on the way through the client.
            RedisError::Lost { reason } => RedisError::Lost { reason: after_handshake(reason, options) },
            error => error,
        });
        match answer? {
            Value::ServerError(error) if error.code() == "NOAUTH" && login => {}
            // A user that may publish but not PING is as good as any: Redis has answered.
            Value::ServerError(error) if error.code() == "NOPERM" => {}
            answer => refused("PING", &answer)?,
        }
        if login {
            // A user without a password (`nopass`) takes any.
            let password = options.password.as_ref().map(Password::read).transpose();
            let password = password.map_err(|error| RedisError::File(error.into(), "redis.password_file"))?;
            let mut auth = redis::cmd("AUTH");
            auth.arg(&options.username).arg(password.as_ref().map_or("", |password| password.reveal()));
            refused("AUTH", &self.tell(&auth).await?)?;
        }
        if options.database != 0 {
            let mut select = redis::cmd("SELECT");
            select.arg(options.database);
            refused("SELECT", &self.tell(&select).await?)?;
        }
        Ok(())
    }

    /// The answer to one command, which may be an error answer. Not bounded in time.
    ///
    /// Cancel safe: no, as [`Connection::ask`].
    async fn tell(&mut self, command: &redis::Cmd) -> Result<Value, RedisError> {
        driven(&mut self.driver, self.client.send_packed_command(command)).await
    }

    /// The answers to all commands of `pipeline`, error answers among them. Not bounded in time.
    ///
    /// Cancel safe: no, answers that come later would be taken for those of the next pipeline: drop the connection.
    async fn ask(&mut self, pipeline: &redis::Pipeline) -> Result<Vec<Value>, RedisError> {
        driven(&mut self.driver, self.client.send_packed_commands(pipeline, 0, pipeline.len())).await
    }

    async fn publish(&mut self, pings: &[Ping]) -> Result<Published, RedisError> {
        let mut pipeline = redis::Pipeline::with_capacity(pings.len());
        for ping in pings {
            pipeline.cmd("PUBLISH").arg(&ping.channel).arg(&ping.message);
        }
        let mut published = Published { delivered: 0, denied: None };
        for answer in self.ask(&pipeline).await? {
            match answer {
                Value::ServerError(error) => match RedisError::answered("PUBLISH", &error) {
                    denied if denied.is_denied() => published.denied = Some(denied),
                    other => return Err(other),
                },
                _ => published.delivered += 1,
            }
        }
        Ok(published)
    }
}

/// Runs a connection's driver until `answer` is there.
async fn driven<T>(
    driver: &mut Driver,
    answer: impl Future<Output = redis::RedisResult<T>>,
) -> Result<T, RedisError> {
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => return Ok(answer?),
        () = &mut *driver => {}
    }
    // Order: the old driver is dropped before the answer is asked for again. It may have read the answer and the end
    // of the connection in one go, and if it has not, only its end lets the answer fail instead of waiting.
    *driver = Box::pin(std::future::ready(()));
    Ok(answer.await?)
}

fn refused(command: &'static str, answer: &Value) -> Result<(), RedisError> {
    match answer {
        Value::ServerError(error) => Err(RedisError::answered(command, error)),
        _ => Ok(()),
    }
}

async fn stream(options: &Options) -> Result<Box<dyn Stream>, RedisError> {
    let Options { host, port, .. } = options;
    let connect = |source| RedisError::Connect { host: host.clone(), port: *port, source };
    let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(connect)?;
    tcp.set_nodelay(true).map_err(connect)?;
    let Some(files) = &options.tls else { return Ok(Box::new(tcp)) };
    // Made anew each time: what has changed since the last one counts.
    let connector = files
        .connector()
        .map_err(|error| RedisError::File(error, "redis.ca_file, redis.cert_file, redis.key_file"))?;
    let stream = tls::connect(connector, host, tcp).await.map_err(|error| {
        let said = error.to_string();
        let reason = files.remedy(&said, "redis", host).unwrap_or(said);
        RedisError::Tls { host: host.clone(), reason }
    })?;
    Ok(Box::new(stream))
}

/// Why a connection ended whose TLS handshake had succeeded: with TLS 1.3 a server looks at the client's certificate
/// only then, and what OpenSSL says of it may be lost on the way through the client.
fn after_handshake(reason: String, options: &Options) -> String {
    let Some(tls) = &options.tls else { return reason };
    let remedy = tls.remedy(&reason, "redis", &options.host).filter(|_| reason.contains("alert"));
    remedy.unwrap_or_else(|| {
        format!(
            "{reason} right after the TLS handshake: Redis may want a client certificate that it trusts; see \
             redis.cert_file and redis.key_file"
        )
    })
}

async fn within<T>(
    after: Duration,
    work: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    tokio::time::timeout(after, work).await.unwrap_or(Err(RedisError::NoAnswer { after }))
}

/// Publishes what comes out of `pings` until `stop`, or until nobody can send any more. At the end what is queued gets
/// one pipeline on a link that is up, so that stopping takes at most twice `redis.timeout`.
///
/// # Errors
/// None: without Redis the agent goes on and `stats.pings_dropped` grows.
///
/// Cancel safe: yes, dropping it closes the connection; queued pings are lost uncounted.
pub async fn run(
    options: Options,
    pings: mpsc::Receiver<Ping>,
    stats: Arc<Stats>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut sink = Sink {
        watched: Watched::new(options.files()),
        options: Arc::new(options),
        pings,
        stats,
        stop,
        backoff: Backoff::new(RECONNECT.0, RECONNECT.1),
        backoff_denied: Backoff::new(RECONNECT_DENIED.0, RECONNECT_DENIED.1),
        said: Said::Nothing,
    };
    sink.stats.redis.set(LinkState::Down);
    let mut state = State::Connecting;
    loop {
        state = match state {
            State::Connecting => sink.connecting().await,
            State::Connected(connection) => sink.connected(connection).await,
            State::Waiting(delay) => sink.waiting(delay).await,
            State::Stopped => break,
        }
    }
    sink.discard_queue();
    Ok(())
}

enum State {
    Connecting,
    Connected(Connection),
    Waiting(Duration),
    Stopped,
}

/// The last thing that the log was told about the link, so that each change is one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    Up,
    Down,
    Denied,
}

struct Sink {
    options: Arc<Options>,
    /// The files that the options name.
    watched: Watched,
    pings: mpsc::Receiver<Ping>,
    stats: Arc<Stats>,
    stop: CancellationToken,
    backoff: Backoff,
    backoff_denied: Backoff,
    said: Said,
}

impl Sink {
    async fn connecting(&mut self) -> State {
        let options = Arc::clone(&self.options);
        // Order: looked at before they are read; see `Watched::new`.
        self.watched.is_changed();
        // Boxed: what a handshake needs is given back once the link is up.
        let open = Box::pin(async move { Connection::open(&options).await });
        match self.discarding(open).await {
            None => State::Stopped,
            Some(Err(error)) => self.failed(&error),
            Some(Ok(connection)) => {
                self.backoff_denied.reset();
                self.say_up();
                State::Connected(connection)
            }
        }
    }

    async fn waiting(&mut self, delay: Duration) -> State {
        let end = Instant::now() + delay;
        loop {
            let look = Instant::now() + files::LOOK_INTERVAL;
            match self.discarding(tokio::time::sleep_until(end.min(look))).await {
                None => return State::Stopped,
                // Whoever mends a password should not have to wait for the end of a long pause.
                Some(()) if Instant::now() >= end || self.watched.is_changed() => return State::Connecting,
                Some(()) => {}
            }
        }
    }

    /// After a file changed: a connection by the new ones, if that works. Pings wait meanwhile, for at most
    /// `redis.timeout`.
    async fn renewed(&mut self, connection: Connection) -> Connection {
        match Box::pin(Connection::open(&self.options)).await {
            Ok(renewed) => {
                tracing::info!("Redis link made anew from changed files");
                renewed
            }
            Err(error) => {
                tracing::error!(%error, "changed files do not open a link to Redis; the one that is open stays");
                connection
            }
        }
    }

    /// Waits for `wait` and drops the pings that come meanwhile. `None`: it is time to stop.
    async fn discarding<T>(&mut self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = pin!(wait);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                result = &mut wait => return Some(result),
                taken = self.pings.recv_many(&mut batch, BATCH_MAX) => {
                    if taken == 0 {
                        return None;
                    }
                    self.stats.pings_dropped.add(taken as u64);
                    batch.clear();
                }
            }
        }
    }

    async fn connected(&mut self, mut connection: Connection) -> State {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut look = tokio::time::interval(files::LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = &mut connection.driver => return self.lost(&connection, &RedisError::closed()),
                _ = look.tick(), if !self.watched.is_empty() => {
                    if self.watched.is_changed() {
                        connection = self.renewed(connection).await;
                    }
                    continue;
                }
                taken = self.pings.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
            }
            if let Err(error) = self.publish(&mut connection, &batch).await {
                return self.lost(&connection, &error);
            }
            batch.clear();
        }
        self.pings.close();
        while let Ok(ping) = self.pings.try_recv() {
            batch.push(ping);
        }
        if !batch.is_empty()
            && let Err(error) = self.publish(&mut connection, &batch).await
        {
            self.say_down(&error);
        }
        State::Stopped
    }

    async fn publish(&mut self, connection: &mut Connection, pings: &[Ping]) -> Result<(), RedisError> {
        let result = within(self.options.timeout, connection.publish(pings)).await;
        let delivered = result.as_ref().map_or(0, |published| published.delivered);
        self.stats.pings_out.add(delivered as u64);
        self.stats.pings_dropped.add(pings.len().saturating_sub(delivered) as u64);
        match result?.denied {
            None => self.say_up(),
            // The connection stays: a change of the user's rights holds for it too, and the next ping will tell.
            Some(denied) if delivered == 0 => self.say_down(&denied),
            Some(denied) => self.say_partly_denied(&denied),
        }
        Ok(())
    }

    fn lost(&mut self, connection: &Connection, error: &RedisError) -> State {
        if connection.since.elapsed() >= RECONNECT.1 {
            self.backoff.reset();
        }
        self.failed(error)
    }

    fn failed(&mut self, error: &RedisError) -> State {
        self.say_down(error);
        let backoff = if error.is_denied() { &mut self.backoff_denied } else { &mut self.backoff };
        State::Waiting(backoff.delay())
    }

    fn discard_queue(&mut self) {
        self.pings.close();
        while self.pings.try_recv().is_ok() {
            self.stats.pings_dropped.add(1);
        }
    }

    fn say_up(&mut self) {
        self.stats.redis.set(LinkState::Up);
        if self.said != Said::Up {
            let Options { host, port, tls, .. } = &*self.options;
            tracing::info!(host, port, tls = tls.is_some(), "Redis link up");
            self.said = Said::Up;
        }
    }

    fn say_down(&mut self, error: &RedisError) {
        self.stats.redis.set(LinkState::Down);
        let news = if error.is_denied() { Said::Denied } else { Said::Down };
        let dropped = self.stats.pings_dropped.get();
        if self.said == news {
            tracing::debug!(%error, dropped, "Redis link still down");
        } else if news == Said::Denied {
            tracing::error!(%error, dropped, "Redis link down: pings are dropped until somebody mends it");
        } else {
            tracing::warn!(%error, dropped, "Redis link down: pings are dropped until it is back");
        }
        self.said = news;
    }

    fn say_partly_denied(&mut self, error: &RedisError) {
        static DENIED: Limited = Limited::new(Duration::from_secs(60));
        self.say_up();
        if let Some(suppressed) = DENIED.allow() {
            let dropped = self.stats.pings_dropped.get();
            tracing::error!(%error, dropped, suppressed, "Redis permits some channels only: the others get no pings");
        }
    }
}

/// What `fieldpost check` tells about Redis, for example `Redis 7.0.15, PUBLISH to events:check is permitted`.
/// Whether `channel` may be published to is found out inside a transaction that is then discarded, so that no
/// listener hears anything. Takes at most twice `redis.timeout`.
///
/// # Errors
/// [`RedisError`], as the sink would meet it; [`RedisError::Denied`] also when publishing is not permitted.
///
/// Cancel safe: yes, dropping it closes the connection.
pub async fn probe(options: &Options, channel: &str) -> Result<String, RedisError> {
    let mut connection = Box::pin(Connection::open(options)).await?;
    within(options.timeout, async {
        let product = product(&connection.tell(redis::cmd("INFO").arg("server")).await?);
        // Order: nothing is sent before MULTI is known to hold; outside a transaction PUBLISH would be heard.
        if connection.tell(&redis::cmd("MULTI")).await? != Value::Okay {
            return Ok(format!(
                "{product}, whether PUBLISH is permitted could not be checked without publishing"
            ));
        }
        let mut attempt = redis::pipe();
        attempt.cmd("PUBLISH").arg(channel).arg("").cmd("DISCARD");
        if let Some(answer) = connection.ask(&attempt).await?.first() {
            refused("PUBLISH", answer)?;
        }
        Ok(format!("{product}, PUBLISH to {channel} is permitted"))
    })
    .await
}

/// Name and version from the answer to `INFO server`; a user may be forbidden to ask.
fn product(info: &Value) -> String {
    let Value::BulkString(text) = info else { return "Redis, version unknown".to_owned() };
    let text = String::from_utf8_lossy(text);
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    match (field("valkey_version"), field("redis_version")) {
        (Some(version), _) => format!("Valkey {version}"),
        (None, Some(version)) => format!("Redis {version}"),
        (None, None) => "Redis, version unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests;
