//! The commands of some pings, as one pipeline, and what Redis answers to each.

use redis::{Cmd, Pipeline, Value};

use super::connection::Connection;
use super::streams::id_ms;
use super::{RedisError, StreamOptions};
use crate::ping::{Carried, Ping};
use crate::sink::record::envelope::ENVELOPE_VERSION;

/// A ping and what of it goes out now.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) ping: Ping,
    pub(super) is_published: bool,
    pub(super) is_added: bool,
}

/// What became of pings whose answers all came.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) published: u64,
    pub(super) added: u64,
    /// The first error answer, or the first one that ends the connection.
    pub(super) problem: Option<RedisError>,
    /// Redis' own time, from the id of the last entry: milliseconds since 1970.
    pub(super) redis_ms: Option<u64>,
}

impl Sent {
    fn note(&mut self, problem: RedisError) {
        let is_worse = |known: &RedisError| known.leaves_connection() && !problem.leaves_connection();
        if self.problem.as_ref().is_none_or(is_worse) {
            self.problem = Some(problem);
        }
    }
}

impl Connection {
    /// Publishes and adds. Not bounded in time.
    ///
    /// Cancel safe: no, as [`Connection::ask`].
    pub(super) async fn send(
        &mut self,
        load: &[Outgoing],
        streams: Option<&StreamOptions>,
    ) -> Result<Sent, RedisError> {
        let mut pipeline = Pipeline::with_capacity(load.len());
        for Outgoing { ping, is_published, is_added } in load {
            for channel in ping.channels().filter(|_| *is_published) {
                pipeline.cmd("PUBLISH").arg(channel).arg(ping.message());
            }
            if let (true, Some(name), Some(options)) = (*is_added, ping.stream(), streams) {
                pipeline.add_command(entry(ping, name, options));
            }
        }
        let mut sent = Sent::default();
        if pipeline.is_empty() {
            return Ok(sent);
        }
        let mut answers = self.ask(&pipeline).await?.into_iter();
        for Outgoing { ping, is_published, is_added } in load {
            if *is_published {
                let mut is_heard = true;
                for answer in answers.by_ref().take(ping.channels().count()) {
                    if let Value::ServerError(error) = answer {
                        is_heard = false;
                        sent.note(RedisError::answered("PUBLISH", &error));
                    }
                }
                sent.published += u64::from(is_heard);
            }
            if *is_added {
                match answers.next() {
                    Some(Value::ServerError(error)) => sent.note(RedisError::answered("XADD", &error)),
                    Some(id) => {
                        sent.added += 1;
                        sent.redis_ms = milliseconds(&id).or(sent.redis_ms);
                    }
                    None => {}
                }
            }
        }
        Ok(sent)
    }

    /// Takes out of `streams` what is older than Redis' time `oldest_ms`. Not bounded in time.
    ///
    /// Cancel safe: no, as [`Connection::ask`].
    pub(super) async fn trim<'a>(
        &mut self,
        streams: impl Iterator<Item = &'a [u8]>,
        oldest_ms: u64,
    ) -> Result<(), RedisError> {
        let mut pipeline = Pipeline::new();
        for stream in streams {
            pipeline.cmd("XTRIM").arg(stream).arg("MINID").arg(oldest_ms);
        }
        if pipeline.is_empty() {
            return Ok(());
        }
        let answers = self.ask(&pipeline).await?;
        answers.iter().try_for_each(|answer| super::connection::refused("XTRIM", answer))
    }
}

/// The command that adds a ping's entry to the stream `name`.
pub(super) fn entry(ping: &Ping, name: &[u8], options: &StreamOptions) -> Cmd {
    let mut command = redis::cmd("XADD");
    command.arg(name).arg("MAXLEN").arg("~").arg(options.len_max).arg("*");
    for (field, value) in ping.fields() {
        command.arg(field).arg(value);
    }
    command.arg("schema_version").arg(ENVELOPE_VERSION);
    let (carried, payload) = ping.payload();
    match carried {
        Carried::Unwanted => {}
        Carried::Json => {
            command.arg("payload").arg(payload);
        }
        Carried::Base64 => {
            command.arg("payload_base64").arg(payload);
        }
        Carried::TooLarge(bytes) => {
            command.arg("payload_left_out").arg("too_large").arg("payload_bytes").arg(bytes);
        }
        Carried::NoRoom(bytes) => {
            command.arg("payload_left_out").arg("no_room").arg("payload_bytes").arg(bytes);
        }
    }
    command
}

/// The time in a stream's id, `MILLISECONDS-NUMBER`.
fn milliseconds(id: &Value) -> Option<u64> {
    let Value::BulkString(id) = id else { return None };
    id_ms(std::str::from_utf8(id).ok()?)
}
