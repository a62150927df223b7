//! What goes wrong between the agent and Redis, and what each error answer means.

use std::io;
use std::time::Duration;

use redis::ServerError;
use thiserror::Error;

use super::Address;
use crate::error::Class;
use crate::tls::TlsError;

/// Longest quote of what Redis answered, in bytes.
pub(super) const ANSWER_BYTES_MAX: usize = 200;

/// Why Redis could not be pinged. Class: always [`Class::Retry`]; the pings concerned are dropped and counted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RedisError {
    /// No TCP connection. Reconnect later.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// One of `redis.url`, or what Sentinel named.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// No TLS: the certificate is not trusted, is for another name, or the peer does not speak TLS: a human is needed.
    /// Reconnect slowly.
    #[error("no TLS with {host}: {reason}")]
    Tls {
        /// The name that the certificate must be for.
        host: String,
        /// What the TLS library said, and what to do about it where that is known.
        reason: String,
    },
    /// A file of a password or of TLS cannot be used: a human is needed. Reconnect slowly, or when it changed.
    #[error("{0}; see {1}")]
    File(TlsError, &'static str),
    /// Sentinel does not say where the master is. Ask the next one.
    #[error("the Sentinel {sentinel} names no master {name:?}: {reason}")]
    Master {
        /// Who was asked.
        sentinel: Address,
        /// Whose master.
        name: String,
        /// What it said instead.
        reason: String,
    },
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
    /// Redis does not let this user in or not use a command: a human is needed. Reconnect slowly.
    #[error("Redis refuses {command}: {answer}; see redis.username and redis.password_file")]
    Denied {
        /// The command that was refused.
        command: &'static str,
        /// The error answer.
        answer: String,
    },
    /// The same of a Sentinel. Ask the next one; slowly, if each refuses.
    #[error(
        "the Sentinel {sentinel} refuses {command}: {answer}; see redis.sentinel_username and redis.sentinel_password_file: \
         without them it gets what Redis gets"
    )]
    DeniedBySentinel {
        /// Who was asked.
        sentinel: Address,
        /// The command that was refused.
        command: &'static str,
        /// The error answer.
        answer: String,
    },
    /// Redis does not do this one thing now, and others very well: a human is needed. The connection stays.
    #[error("Redis cannot do {command}: {answer}{remedy}")]
    Unable {
        /// The command.
        command: &'static str,
        /// The error answer.
        answer: String,
        /// `; ` and what to do, or nothing.
        remedy: &'static str,
    },
    /// Another error answer, such as LOADING. Reconnect.
    #[error("Redis answers {command} with an error: {answer}{remedy}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The error answer.
        answer: String,
        /// `; ` and what to do, or nothing.
        remedy: &'static str,
    },
    /// The peer does not speak the Redis protocol. Reconnect later.
    #[error("this is not a Redis: {0}")]
    Protocol(String),
}

/// What error answers mean that leave the connection as it is, by their first word.
const UNABLE: [(&str, &str); 7] = [
    ("OOM", "; it has no memory left: raise its maxmemory, or lower redis.stream_max_len"),
    ("MISCONF", "; it cannot save its data and takes no writes until it can: its own log says why"),
    ("NOREPLICAS", "; too few replicas follow it for a write (min-replicas-to-write)"),
    ("WRONGTYPE", "; the key is no stream: delete it, or choose another name by redis.stream"),
    ("MOVED", CLUSTER),
    ("ASK", CLUSTER),
    ("CROSSSLOT", CLUSTER),
];

const CLUSTER: &str = "; a Cluster keeps each stream on a node of its own: redis.mode = \"pubsub\" goes with a Cluster, streams do not";

/// What error answers mean that say that this is the wrong server, or not yet one.
const REFUSED: [(&str, &str); 4] = [
    ("READONLY", "; this is a replica: name the master in redis.url, or the Sentinels that know it"),
    ("LOADING", "; it is starting"),
    ("MASTERDOWN", ""),
    ("CLUSTERDOWN", ""),
];

impl RedisError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        Class::Retry
    }

    pub(super) fn closed() -> Self {
        Self::Lost { reason: "closed by Redis".to_owned() }
    }

    /// Whether only a human mends it.
    pub(super) fn is_denied(&self) -> bool {
        matches!(
            self,
            Self::Denied { .. } | Self::DeniedBySentinel { .. } | Self::Tls { .. } | Self::File(..)
        )
    }

    /// Whether the connection is as good as before.
    pub(super) fn leaves_connection(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Unable { .. })
    }

    /// What refuses what: the same for errors that one line explains.
    pub(super) fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::Unable { command, remedy, .. } | Self::Refused { command, remedy, .. } => {
                (*command, *remedy)
            }
            Self::Denied { command, .. } => (*command, "denied"),
            _ => ("", ""),
        }
    }

    /// What an error answer to `command` means.
    pub(super) fn answered(command: &'static str, error: &ServerError) -> Self {
        let mut answer = error.code().to_owned();
        if let Some(details) = error.details() {
            answer.push(' ');
            answer.push_str(details);
        }
        answer.truncate(answer.floor_char_boundary(ANSWER_BYTES_MAX));
        let of = |table: &[(&str, &'static str)]| {
            table.iter().find(|(code, _)| *code == error.code()).map(|(_, remedy)| *remedy)
        };
        if command == "AUTH" || matches!(error.code(), "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED") {
            Self::Denied { command, answer }
        } else if let Some(remedy) = of(&UNABLE) {
            Self::Unable { command, answer, remedy }
        } else if let Some(remedy) = of(&REFUSED) {
            Self::Refused { command, answer, remedy }
        } else if command == "XADD" {
            // Such as a Redis before 5, which knows no streams and publishes all the same.
            Self::Unable { command, answer, remedy: "" }
        } else {
            Self::Refused { command, answer, remedy: "" }
        }
    }
}

impl From<redis::RedisError> for RedisError {
    fn from(error: redis::RedisError) -> Self {
        match error.to_string() {
            _ if error.is_connection_dropped() => Self::closed(),
            mut answer if matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => {
                answer.truncate(answer.floor_char_boundary(ANSWER_BYTES_MAX));
                Self::Denied { command: "the login, or PSUBSCRIBE", answer }
            }
            reason if error.is_io_error() => Self::Lost { reason },
            reason => Self::Protocol(reason),
        }
    }
}
