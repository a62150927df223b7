//! Is Redis there, and may the agent do there what it is configured to do? For `fieldpost check`.

use redis::Value;

use super::connection::{Connection, refused, within};
use super::pipeline::{Outgoing, entry};
use super::{Options, RedisError, Turns};
use crate::ping::Ping;

/// What `fieldpost check` tells about Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// For example `Redis 7.0.15, PUBLISH to events:check is permitted`.
    pub message: String,
    /// What is allowed and yet rarely meant.
    pub doubt: Option<&'static str>,
}

/// A replica takes what is published on it.
const REPLICA: &str = "this is a replica: a ping that is published here reaches only those who listen to this replica; name the \
                       master in redis.url, or the Sentinels that know it";

/// Asks one of the addresses after the other until one answers. Whether what `ping` would do is permitted is found out
/// inside a transaction that is then discarded, so that no listener hears anything and no stream grows. Takes at most
/// twice `redis.timeout` for each address.
///
/// # Errors
/// [`RedisError`] as the sink would meet it; [`RedisError::Denied`] also when something is not permitted.
///
/// Cancel safe: yes, dropping it closes the connection.
pub async fn probe(options: &Options, ping: Ping) -> Result<Probed, RedisError> {
    let load = Outgoing { is_published: ping.is_published(), is_added: ping.stream().is_some(), ping };
    Turns::default().walk(options, |turn| probe_one(options, turn, &load)).await
}

async fn probe_one(options: &Options, turn: usize, load: &Outgoing) -> Result<Probed, RedisError> {
    let mut connection = Box::pin(Connection::at(options, turn)).await?;
    within(options.timeout, async {
        let mut product = product(&connection.tell(redis::cmd("INFO").arg("server")).await?);
        if options.master.is_some() {
            product = format!("{product} at {}", connection.address);
        }
        let role = connection.tell(redis::cmd("INFO").arg("replication")).await?;
        let doubt = field(&role, "role").filter(|role| role == "slave").map(|_| REPLICA);
        // Order: nothing is sent before MULTI is known to hold; outside a transaction PUBLISH would be heard.
        if connection.tell(&redis::cmd("MULTI")).await? != Value::Okay {
            let message =
                format!("{product}, whether pings are permitted could not be checked without sending one");
            return Ok(Probed { message, doubt });
        }
        let permitted = permitted(&mut connection, options, load).await?;
        Ok(Probed { message: format!("{product}, {permitted}"), doubt })
    })
    .await
}

/// What may be done, all of it inside a transaction that ends here.
async fn permitted(
    connection: &mut Connection,
    options: &Options,
    load: &Outgoing,
) -> Result<String, RedisError> {
    let mut attempt = redis::pipe();
    let mut tried = Vec::new();
    let said = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    for channel in load.ping.channels() {
        attempt.cmd("PUBLISH").arg(channel).arg("");
        tried.push(("PUBLISH", said(channel)));
    }
    if let (Some(name), Some(streams)) = (load.ping.stream(), &options.streams) {
        attempt.add_command(entry(&load.ping, name, streams));
        tried.push(("XADD", said(name)));
        if streams.max_age.is_some() {
            attempt.cmd("XTRIM").arg(name).arg("MINID").arg(0);
            tried.push(("XTRIM", said(name)));
        }
    }
    attempt.cmd("DISCARD");
    let answers = connection.ask(&attempt).await?;
    for ((command, _), answer) in tried.iter().zip(&answers) {
        refused(command, answer)?;
    }
    let verb = if tried.len() == 1 { "is" } else { "are" };
    let names: Vec<_> = tried.iter().map(|(command, name)| format!("{command} to {name}")).collect();
    Ok(format!("{} {verb} permitted", names.join(", ")))
}

/// A line of an answer to `INFO`; a user may be forbidden to ask.
fn field(info: &Value, name: &str) -> Option<String> {
    let Value::BulkString(text) = info else { return None };
    let text = String::from_utf8_lossy(text);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(str::to_owned)
}

/// Name and version from the answer to `INFO server`.
fn product(info: &Value) -> String {
    match (field(info, "valkey_version"), field(info, "redis_version")) {
        (Some(version), _) => format!("Valkey {version}"),
        (None, Some(version)) => format!("Redis {version}"),
        (None, None) => "Redis, version unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_named_as_it_calls_itself() {
        let product = |text: &str| product(&Value::BulkString(text.into()));
        assert_eq!(product("# Server\r\nredis_version:7.0.15\r\n"), "Redis 7.0.15");
        assert_eq!(product("redis_version:7.2.4\r\nvalkey_version:8.0.1\r\n"), "Valkey 8.0.1");
        assert_eq!(product(""), "Redis, version unknown");
    }
}
