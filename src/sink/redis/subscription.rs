//! Listens to pings, for `fieldpost tail` and `fieldpost demo`. Needs Redis 6 (RESP3).

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, FromRedisValue, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo,
};

use super::connection::{Driver, driven, place, stream, within};
use super::{Options, PASSWORD_KEY, RedisError, Turns};

/// On a quiet subscription Redis is asked so often whether it is still there.
const QUIET_MAX: Duration = Duration::from_secs(15);

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Where.
    pub channel: String,
    /// What.
    pub message: Vec<u8>,
}

/// A subscription to a pattern of channels. As with the sink's connection its driver runs only where it is awaited.
pub struct Subscription {
    client: MultiplexedConnection,
    driver: Driver,
    /// The driver has ended, or what it brings is of no use any more.
    is_over: bool,
    timeout: Duration,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

impl Subscription {
    /// Subscribes at the first address that is of use, each within `redis.timeout`; from then on `take` gets each ping,
    /// while [`Subscription::ended`] is awaited. It must not wait.
    ///
    /// # Errors
    /// [`RedisError`]: nothing is subscribed.
    ///
    /// Cancel safe: yes, dropping it closes the connection.
    pub async fn open(
        options: &Options,
        turns: &mut Turns,
        pattern: &str,
        take: impl Fn(Heard) + Clone + Send + Sync + 'static,
    ) -> Result<Self, RedisError> {
        turns.walk(options, |turn| Self::at(options, turn, pattern, take.clone())).await
    }

    async fn at(
        options: &Options,
        turn: usize,
        pattern: &str,
        take: impl Fn(Heard) + Send + Sync + 'static,
    ) -> Result<Self, RedisError> {
        let take = move |push: PushInfo| {
            if push.kind == PushKind::PMessage
                && let Some(heard) = heard(push)
            {
                take(heard);
            }
            Ok::<_, std::convert::Infallible>(())
        };
        within(options.timeout, async {
            let address = place(options, turn).await?;
            let stream = stream(options, &address).await?;
            let settings = settings(options)?;
            let config = AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(take);
            let (mut client, driver) =
                MultiplexedConnection::new_with_config(&settings, stream, config).await?;
            let mut driver: Driver = Box::pin(driver);
            driven(&mut driver, client.psubscribe(pattern)).await?;
            Ok(Self { client, driver, is_over: false, timeout: options.timeout })
        })
        .await
    }

    /// Listens until the connection is lost, and says why that was: Redis has closed it, or answers no more.
    ///
    /// Cancel safe: yes; it may be awaited again.
    pub async fn ended(&mut self) -> RedisError {
        while !self.is_over {
            tokio::select! {
                biased;
                () = &mut self.driver => {
                    self.is_over = true;
                    break;
                }
                () = tokio::time::sleep(QUIET_MAX) => {}
            }
            let ping = redis::cmd("PING");
            let asked = driven(&mut self.driver, self.client.send_packed_command(&ping));
            if let Err(error) = within(self.timeout, asked).await {
                self.is_over = true;
                return error;
            }
        }
        RedisError::closed()
    }
}

fn settings(options: &Options) -> Result<RedisConnectionInfo, RedisError> {
    let mut settings =
        RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
    if let Some(username) = &options.login.username {
        settings = settings.set_username(username);
    }
    if let Some(password) = options.login.read(PASSWORD_KEY)? {
        settings = settings.set_password(password.reveal());
    }
    Ok(settings)
}

/// Pattern, channel and message.
fn heard(push: PushInfo) -> Option<Heard> {
    let mut parts = push.data.into_iter().skip(1);
    let (channel, message) = (parts.next()?, parts.next()?);
    let bytes = |value| Vec::<u8>::from_redis_value(value).ok();
    Some(Heard { channel: String::from_utf8_lossy(&bytes(channel)?).into_owned(), message: bytes(message)? })
}
