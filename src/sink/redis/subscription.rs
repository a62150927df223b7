//! Counts the pings that a listener gets, for `fieldpost demo`. Needs Redis 6 (RESP3).

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo};

use super::connection::{Driver, driven, place, stream, within};
use super::{Options, RedisError};
use crate::stats::Counter;

/// A subscription to a pattern of channels. As with the sink's connection its driver runs only where it is awaited.
pub struct Subscription {
    /// Keeps the connection open.
    _client: MultiplexedConnection,
    driver: Driver,
}

impl Subscription {
    /// Subscribes within `redis.timeout`; from then on `count` grows by one for each ping, while
    /// [`Subscription::ended`] is awaited. Credentials are not used.
    ///
    /// # Errors
    /// [`RedisError`]: nothing is subscribed.
    ///
    /// Cancel safe: yes, dropping it closes the connection.
    pub async fn open(options: &Options, pattern: &str, count: Arc<Counter>) -> Result<Self, RedisError> {
        let take = move |push: PushInfo| {
            if push.kind == PushKind::PMessage {
                count.add(1);
            }
            Ok::<_, std::convert::Infallible>(())
        };
        within(options.timeout, async {
            let address = place(options, 0).await?;
            let stream = stream(options, &address).await?;
            let settings =
                RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
            let config = AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(take);
            let (mut client, driver) =
                MultiplexedConnection::new_with_config(&settings, stream, config).await?;
            let mut driver: Driver = Box::pin(driver);
            driven(&mut driver, client.psubscribe(pattern)).await?;
            Ok(Self { _client: client, driver })
        })
        .await
    }

    /// Counts until Redis closes the connection.
    ///
    /// Cancel safe: yes, dropping it closes the connection.
    pub async fn ended(self) {
        self.driver.await;
    }
}
