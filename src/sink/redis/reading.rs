//! Reads entries out of streams, for `fieldpost tail`: as anybody, or as a member of a group.

use std::time::Duration;

use redis::Value;

use super::connection::{Connection, refused, within};
use super::streams::{self, Found, fields, text};
use super::{Options, RedisError, Turns};

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its stream's key.
    pub stream: String,
    /// Its id.
    pub id: String,
    /// Names and values; empty: it was trimmed while a member of the group had it.
    pub fields: Vec<(String, String)>,
}

/// A consumer group, and who reads as one of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The group.
    pub group: String,
    /// Its consumer.
    pub consumer: String,
}

/// A connection on which streams are read.
pub struct Reader {
    connection: Connection,
    timeout: Duration,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// Connects to the first address that is of use, each within `redis.timeout`.
    ///
    /// # Errors
    /// [`RedisError`].
    ///
    /// Cancel safe: yes, dropping it closes the connection.
    pub async fn open(options: &Options, turns: &mut Turns) -> Result<Self, RedisError> {
        let connection = Box::pin(Connection::open(options, turns)).await?;
        Ok(Self { connection, timeout: options.timeout })
    }

    /// The streams whose key matches `pattern`, at most `streams_max` of them.
    ///
    /// # Errors
    /// [`RedisError`].
    ///
    /// Cancel safe: no; drop this.
    pub async fn streams(&mut self, pattern: &str, streams_max: usize) -> Result<Found, RedisError> {
        streams::look(&mut self.connection, self.timeout, pattern, streams_max).await
    }

    /// At most `count` entries of each stream behind the id beside it, in their order; waits for the first one up to `wait`.
    /// For a `member` the id `>` is what nobody of the group has had, any other one what this member has not acknowledged.
    ///
    /// # Errors
    /// [`RedisError`].
    ///
    /// Cancel safe: no, the answer would be taken for the next one's: drop this.
    pub async fn read<'a>(
        &mut self,
        from: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        member: Option<&Member>,
        count: u64,
        wait: Duration,
    ) -> Result<Vec<Entry>, RedisError> {
        let name = if member.is_some() { "XREADGROUP" } else { "XREAD" };
        let mut command = redis::cmd(name);
        if let Some(Member { group, consumer }) = member {
            command.arg("GROUP").arg(group).arg(consumer);
        }
        // At least one: 0 waits for ever.
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        command.arg("COUNT").arg(count).arg("BLOCK").arg(wait_ms).arg("STREAMS");
        from.clone().for_each(|(stream, _)| {
            command.arg(stream);
        });
        from.for_each(|(_, id)| {
            command.arg(id);
        });
        let answer = within(wait + self.timeout, self.connection.tell(&command)).await?;
        refused(name, &answer)?;
        Ok(entries(answer))
    }

    /// Acknowledges entries of `group`, each with its stream.
    ///
    /// # Errors
    /// [`RedisError`]: some may be acknowledged.
    ///
    /// Cancel safe: no; drop this.
    pub async fn acknowledge(&mut self, group: &str, entries: &[(String, String)]) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        for (stream, id) in entries {
            pipeline.cmd("XACK").arg(stream).arg(group).arg(id);
        }
        if entries.is_empty() {
            return Ok(());
        }
        let answers = within(self.timeout, self.connection.ask(&pipeline)).await?;
        answers.iter().try_for_each(|answer| refused("XACK", answer))
    }
}

/// `[[stream, [[id, [name, value, …]], …]], …]`, or nothing.
fn entries(answer: Value) -> Vec<Entry> {
    let mut found = Vec::new();
    for stream in array(answer) {
        let [name, entries] = pair(stream);
        let Some(name) = text(&name) else { continue };
        for entry in array(entries) {
            let [id, values] = pair(entry);
            let Some(id) = text(&id) else { continue };
            let values = fields(values).into_iter();
            let fields = values.filter_map(|(field, value)| Some((field, text(&value)?))).collect();
            found.push(Entry { stream: name.clone(), id, fields });
        }
    }
    found
}

fn array(value: Value) -> Vec<Value> {
    if let Value::Array(values) = value { values } else { Vec::new() }
}

fn pair(value: Value) -> [Value; 2] {
    let mut values = array(value).into_iter();
    [values.next().unwrap_or(Value::Nil), values.next().unwrap_or(Value::Nil)]
}
