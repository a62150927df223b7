//! What Redis' streams hold and who reads them, for `fieldpost streams status`. Changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::Value;

use super::connection::{Connection, refused, within};
use super::{Options, RedisError, Turns};

/// Keys that Redis looks at for one answer to `SCAN`.
const SCAN_COUNT: usize = 1000;
/// Most answers to `SCAN`: a million keys, then enough was looked at.
const SCANS_MAX: usize = 1000;
/// Streams that are asked about at once.
const BATCH_MAX: usize = 64;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// By name.
    pub streams: Vec<Stream>,
    /// Whether those are all.
    pub is_complete: bool,
    /// Redis' time, milliseconds since 1970.
    pub now_ms: u64,
}

/// A stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its key.
    pub name: String,
    /// Its entries.
    pub length: u64,
    /// The first entry, by id.
    pub oldest: Option<String>,
    /// The last one.
    pub newest: Option<String>,
    /// Who reads it.
    pub groups: Vec<Group>,
}

/// A consumer group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its members, those that are away among them.
    pub consumers: u64,
    /// Entries that members have got and not acknowledged.
    pub pending: u64,
    /// Entries that nobody of it has got yet; `None`: Redis does not know, or is older than 7.
    pub lag: Option<u64>,
}

/// The time in a stream's id, milliseconds since 1970.
pub fn id_ms(id: &str) -> Option<u64> {
    id.split_once('-')?.0.parse().ok()
}

/// Looks at the streams whose key matches `pattern`, at most `streams_max` of them. Each question may take
/// `redis.timeout`, at each address that is tried.
///
/// # Errors
/// [`RedisError`]: nothing can be told.
///
/// Cancel safe: yes, dropping it closes the connection.
pub async fn streams(options: &Options, pattern: &str, streams_max: usize) -> Result<Found, RedisError> {
    let mut connection = Box::pin(Connection::open(options, &mut Turns::default())).await?;
    look(&mut connection, options.timeout, pattern, streams_max).await
}

/// The same on a connection that is there; each question may take `timeout`.
///
/// Cancel safe: no, as [`Connection::ask`].
pub(super) async fn look(
    connection: &mut Connection,
    timeout: Duration,
    pattern: &str,
    streams_max: usize,
) -> Result<Found, RedisError> {
    let (names, is_complete) = names(connection, timeout, pattern, streams_max).await?;
    let time = within(timeout, connection.tell(&redis::cmd("TIME"))).await?;
    refused("TIME", &time)?;
    let (seconds, micros): (u64, u64) = redis::from_redis_value(time).map_err(not_understood)?;
    let now_ms = seconds.saturating_mul(1000).saturating_add(micros / 1000);
    let names: Vec<Vec<u8>> = names.into_iter().collect();
    let mut streams = Vec::with_capacity(names.len());
    for batch in names.chunks(BATCH_MAX) {
        let mut questions = redis::pipe();
        for name in batch {
            questions.cmd("XINFO").arg("STREAM").arg(name).cmd("XINFO").arg("GROUPS").arg(name);
        }
        let mut answers = within(timeout, connection.ask(&questions)).await?.into_iter();
        for name in batch {
            let (Some(stream), Some(groups)) = (answers.next(), answers.next()) else { break };
            streams.extend(described(name, stream, groups)?);
        }
    }
    Ok(Found { streams, is_complete, now_ms })
}

fn not_understood(error: redis::ParsingError) -> RedisError {
    RedisError::Protocol(error.to_string())
}

async fn names(
    connection: &mut Connection,
    timeout: Duration,
    pattern: &str,
    streams_max: usize,
) -> Result<(BTreeSet<Vec<u8>>, bool), RedisError> {
    let (mut names, mut cursor) = (BTreeSet::new(), 0_u64);
    for _ in 0..SCANS_MAX {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_COUNT).arg("TYPE").arg("stream");
        let answer = within(timeout, connection.tell(&scan)).await?;
        refused("SCAN", &answer)?;
        let (next, found): (u64, Vec<Vec<u8>>) = redis::from_redis_value(answer).map_err(not_understood)?;
        for name in found {
            if names.len() >= streams_max && !names.contains(&name) {
                return Ok((names, false));
            }
            names.insert(name);
        }
        cursor = next;
        if cursor == 0 {
            return Ok((names, true));
        }
    }
    Ok((names, false))
}

/// `None`: it is gone meanwhile.
fn described(name: &[u8], stream: Value, groups: Value) -> Result<Option<Stream>, RedisError> {
    for answer in [&stream, &groups] {
        match answer {
            Value::ServerError(error) if error.code() == "ERR" => return Ok(None),
            answer => refused("XINFO", answer)?,
        }
    }
    let fields = fields(stream);
    let id = |field: &str| match value(&fields, field)? {
        Value::Array(entry) => text(entry.first()?),
        _ => None,
    };
    let groups = match groups {
        Value::Array(groups) => groups.into_iter().filter_map(group).collect(),
        _ => Vec::new(),
    };
    Ok(Some(Stream {
        name: String::from_utf8_lossy(name).into_owned(),
        length: value(&fields, "length").and_then(number).unwrap_or(0),
        oldest: id("first-entry"),
        newest: id("last-entry"),
        groups,
    }))
}

fn group(answer: Value) -> Option<Group> {
    let fields = fields(answer);
    let number = |field| value(&fields, field).and_then(number);
    Some(Group {
        name: value(&fields, "name").and_then(text)?,
        consumers: number("consumers").unwrap_or(0),
        pending: number("pending").unwrap_or(0),
        lag: number("lag"),
    })
}

/// Names and values that follow each other.
pub(super) fn fields(answer: Value) -> Vec<(String, Value)> {
    let Value::Array(values) = answer else { return Vec::new() };
    let mut values = values.into_iter();
    let mut fields = Vec::new();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        fields.extend(text(&name).map(|name| (name, value)));
    }
    fields
}

fn value<'a>(fields: &'a [(String, Value)], name: &str) -> Option<&'a Value> {
    fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
}

pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u64> {
    if let Value::Int(number) = value { u64::try_from(*number).ok() } else { None }
}
