//! One connection: found, opened, greeted, and driven only while somebody waits for it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Address, Login, Options, PASSWORD_KEY, RedisError, Turns};
use crate::tls;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Moves bytes between the socket and the client; ends with the connection.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that is greeted. Its driver runs only while an answer is awaited and where the idle link is watched,
/// so that dropping this closes the socket and leaves nothing behind.
pub(super) struct Connection {
    client: MultiplexedConnection,
    pub(super) driver: Driver,
    pub(super) address: Address,
    pub(super) since: Instant,
}

impl Connection {
    /// Opens one at the first address that is of use, each within `options.timeout`.
    ///
    /// Cancel safe: yes, dropping it closes the connection.
    pub(super) async fn open(options: &Options, turns: &mut Turns) -> Result<Self, RedisError> {
        turns.walk(options, |turn| Self::at(options, turn)).await
    }

    /// Connects, authenticates and sees one answer, all within `options.timeout`. `turn` says which of the addresses is
    /// tried, or which Sentinel is asked.
    ///
    /// Cancel safe: yes, dropping it closes the connection.
    pub(super) async fn at(options: &Options, turn: usize) -> Result<Self, RedisError> {
        within(options.timeout, async {
            let address = place(options, turn).await?;
            let mut connection = Self::connect(options, address).await?;
            connection.greet(options).await?;
            Ok(connection)
        })
        .await
    }

    async fn connect(options: &Options, address: Address) -> Result<Self, RedisError> {
        let stream = stream(options, &address).await?;
        let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(1);
        let (client, driver) = MultiplexedConnection::new_with_config(&settings, stream, config).await?;
        Ok(Self { client, driver: Box::pin(driver), address, since: Instant::now() })
    }

    /// PING comes first, so that a peer that is loading, full or no Redis at all is not taken for one that refuses
    /// the credentials.
    async fn greet(&mut self, options: &Options) -> Result<(), RedisError> {
        let login = &options.login;
        self.say_ping(options, login.is_set()).await?;
        if login.is_set() {
            self.log_in(login, PASSWORD_KEY).await?;
        }
        if options.database != 0 {
            let mut select = redis::cmd("SELECT");
            select.arg(options.database);
            refused("SELECT", &self.tell(&select).await?)?;
        }
        Ok(())
    }

    /// Whether a login is asked for before anything else; with `login` that is no error.
    async fn say_ping(&mut self, options: &Options, login: bool) -> Result<bool, RedisError> {
        let answer = self.tell(&redis::cmd("PING")).await.map_err(|error| match error {
            // What OpenSSL says of the alert is lost on the way through the client.
            RedisError::Lost { reason } => {
                RedisError::Lost { reason: after_handshake(reason, options, &self.address) }
            }
            error => error,
        });
        match answer? {
            Value::ServerError(error) if error.code() == "NOAUTH" && login => Ok(true),
            // A user that may publish but not PING is as good as any, and so is a Redis that cannot save its data and
            // says so to every PING: it has answered.
            Value::ServerError(error) if matches!(error.code(), "NOPERM" | "MISCONF") => Ok(false),
            answer => refused("PING", &answer).map(|()| false),
        }
    }

    async fn log_in(&mut self, login: &Login, key: &'static str) -> Result<(), RedisError> {
        // A user without a password (`nopass`) takes any.
        let password = login.read(key)?;
        let mut auth = redis::cmd("AUTH");
        auth.arg(&login.username).arg(password.as_ref().map_or("", |password| password.reveal()));
        refused("AUTH", &self.tell(&auth).await?)
    }

    /// The answer to one command, which may be an error answer. Not bounded in time.
    ///
    /// Cancel safe: no, as [`Connection::ask`].
    pub(super) async fn tell(&mut self, command: &redis::Cmd) -> Result<Value, RedisError> {
        driven(&mut self.driver, self.client.send_packed_command(command)).await
    }

    /// The answers to all commands of `pipeline`, error answers among them. Not bounded in time.
    ///
    /// Cancel safe: no, answers that come later would be taken for those of the next pipeline: drop the connection.
    pub(super) async fn ask(&mut self, pipeline: &redis::Pipeline) -> Result<Vec<Value>, RedisError> {
        driven(&mut self.driver, self.client.send_packed_commands(pipeline, 0, pipeline.len())).await
    }
}

/// Where Redis is: one of the addresses, or what a Sentinel says, which is asked anew for each connection.
pub(super) async fn place(options: &Options, turn: usize) -> Result<Address, RedisError> {
    let count = options.addresses.len().max(1);
    let Some(address) = options.addresses.get(turn % count) else {
        return Err(RedisError::Protocol("redis.url names no address".to_owned()));
    };
    let Some(name) = &options.master else { return Ok(address.clone()) };
    let answer = ask_sentinel(options, address, name).await.map_err(|error| match error {
        RedisError::Denied { command, answer } => {
            RedisError::DeniedBySentinel { sentinel: address.clone(), command, answer }
        }
        error => error,
    })?;
    let unknown = |reason: &str| RedisError::Master {
        sentinel: address.clone(),
        name: name.clone(),
        reason: reason.to_owned(),
    };
    let (host, port) = match redis::from_redis_value::<Option<(String, u16)>>(answer) {
        Ok(Some(found)) => found,
        Ok(None) => return Err(unknown("it watches none of this name; see redis.url")),
        Err(_) => return Err(unknown("its answer is not understood: is it a Sentinel?")),
    };
    Ok(Address { host, port })
}

async fn ask_sentinel(options: &Options, address: &Address, name: &str) -> Result<Value, RedisError> {
    let mut sentinel = Connection::connect(options, address.clone()).await?;
    let (login, key) = options.login_at_sentinel();
    // A Sentinel gets the password only if it asks for one.
    if sentinel.say_ping(options, login.is_set()).await? {
        sentinel.log_in(login, key).await?;
    }
    let mut command = redis::cmd("SENTINEL");
    command.arg("get-master-addr-by-name").arg(name);
    let answer = sentinel.tell(&command).await?;
    refused("SENTINEL", &answer)?;
    Ok(answer)
}

/// Runs a connection's driver until `answer` is there.
pub(super) async fn driven<T>(
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

pub(super) fn refused(command: &'static str, answer: &Value) -> Result<(), RedisError> {
    match answer {
        Value::ServerError(error) => Err(RedisError::answered(command, error)),
        _ => Ok(()),
    }
}

pub(super) async fn stream(options: &Options, address: &Address) -> Result<Box<dyn Stream>, RedisError> {
    let Address { host, port } = address;
    let connect = |source| RedisError::Connect { address: address.clone(), source };
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
fn after_handshake(reason: String, options: &Options, address: &Address) -> String {
    let Some(tls) = &options.tls else { return reason };
    let remedy = tls.remedy(&reason, "redis", &address.host).filter(|_| reason.contains("alert"));
    remedy.unwrap_or_else(|| {
        format!(
            "{reason} right after the TLS handshake: Redis may want a client certificate that it trusts; see \
             redis.cert_file and redis.key_file"
        )
    })
}

pub(super) async fn within<T>(
    after: Duration,
    work: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    tokio::time::timeout(after, work).await.unwrap_or(Err(RedisError::NoAnswer { after }))
}
