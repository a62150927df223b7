//! MQTT ingest: a client of the gateway's broker that sends PUBACK only after the sync.
//!
//! # The promise
//! - **QoS 1**: PUBACK leaves only after the event is durable, in the order received. Nothing the broker has sent is
//!   lost by a crash, a full buffer or a lost link: it is unacknowledged and comes again. A redelivery on the next
//!   connection of the same process is recognised (`book`) and is no second event; after a restart of the agent, or
//!   when the PUBACK itself was lost, the event is there twice.
//! - **QoS 0**: never acknowledged; an event once it is durable. Dropped and counted when [`Options::pending_bytes_max`]
//!   bytes wait for the buffer.
//! - **QoS 2**: PUBREC leaves only after the event is durable; the client answers PUBREL with PUBCOMP by itself. A
//!   publish is remembered from its arrival until its PUBREL, across reconnects, so that within one run of the agent
//!   and one session of the broker each publish is exactly one event. The memory does not survive the process:
//!   a publish whose PUBREC was not received before a restart comes again and is a second event. The client library
//!   itself neither removes duplicates nor survives a PUBREL for a publish of an earlier connection (it takes it for a
//!   protocol error, reconnects, and gets it again, without end); every connection is therefore told to accept any
//!   (`Wire::accept_every_release`), as the specification asks of a receiver.
//! - A publish that cannot become an event (no template matches, a name is missing, too large) is acknowledged in its
//!   turn, counted and logged once a minute per reason: it would be the same after each redelivery.
//! - A publish that its route leaves out is acknowledged in its turn, and counted.
//! - The session is persistent: stable client id, no clean start, no expiry. Filters are subscribed at process start
//!   and whenever the broker has no session.
//!
//! # Pressure
//! The link is read and kept alive however long the buffer takes; what is withheld is the PUBACK. So it is under every
//! policy: MQTT has no way to tell a producer that the buffer is full (reason 0x97 of MQTT 5 goes to the broker, which
//! passes it on to nobody), hence `reject` waits as `block` does, and so does `drop_oldest` while there is nothing that
//! may be given up. Answers leave in order, so an event that waits holds up those behind it, whatever their policy;
//! those that are in one load with it are evicted for by the highest priority among them. MQTT 5 bounds what
//! arrives meanwhile by [`Options::receive_maximum`], a 3.1.1 broker by its own in-flight limit; neither is relied on
//! for memory (with Mosquitto 2.0 more was seen to arrive while answers were under way). Above
//! [`Options::pending_bytes_max`] a publish is not taken at all: it stays unacknowledged, as does every later one of
//! the connection (order), and once all that was taken is acknowledged the connection is made anew, upon which the
//! broker sends them again. So memory is bounded by twice that limit, a keep-alive is never missed, and nothing of
//! QoS 1 and 2 is lost.
//!
//! # Changed files
//! The files of the password and of TLS are read for each connection, and looked at every ten seconds. When one changed,
//! the connection is left as for want of room and made anew: what the broker sent meanwhile it sends again, and nothing is
//! an event twice. A pause after a refusal ends early.
//!
//! # Packets that are too large
//! Up to [`packet_bytes_max`] a publish is read, acknowledged and counted as too large. Above it MQTT 5 makes the
//! broker drop it (Maximum Packet Size in CONNECT). MQTT 3.1.1 cannot say so: the connection breaks on each delivery,
//! is tried again slowly, and the log says which key of the broker ends that.
//!
//! # The agent's own status
//! With [`Options::status`] the same connection carries the retained status and its last will, so that the broker says
//! `down` exactly when events cannot come in. A publish of it is QoS 1, handed to the client as an answer is and waited
//! for by nobody; one is under way at a time (`bulletin`). What the broker sends on that topic is acknowledged in its turn
//! and is no event, whatever is subscribed.
//!
//! # What it does not do
//! No publishing but of the status, no removal of filters that an earlier configuration left in the session (their
//! publishes are counted as invalid). Overlapping templates may bring a publish twice, as the broker likes; the first
//! matching template reads it.

mod adapter;
mod body;
mod book;
mod bulletin;
mod link;
mod station;
mod subscriptions;
mod v4;
mod v5;

pub(crate) use body::draft;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::buffer::WhenFull;
use crate::error::Class;
use crate::files::FileError;
use crate::ingest::Admission;
use crate::ingest::topic::TopicTemplate;
use crate::secret::{Password, Secret};
use crate::status::Overview;
use crate::tls::{self, TlsError};

/// Which MQTT is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 3.1.1.
    V4,
    /// MQTT 5.
    V5,
}

/// The subscription's quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// At most once: never acknowledged, dropped and counted when the buffer cannot take it.
    AtMostOnce,
    /// At least once.
    AtLeastOnce,
    /// Exactly once between broker and agent for as long as both live; see the module.
    ExactlyOnce,
}

/// Where the agent tells its neighbours how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusTopic {
    /// Without wildcards and placeholders.
    pub topic: String,
    /// Time between two publishes while only figures change.
    pub interval: Duration,
}

/// How the input connects and what it subscribes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Host of the broker; an IPv6 address without brackets, as it stands in a certificate.
    pub host: String,
    /// Port of the broker.
    pub port: u16,
    /// Stable client id, not empty: the broker keeps the session under it.
    pub client_id: String,
    /// User name, if the broker asks for one.
    pub username: Option<String>,
    /// Password, if the broker asks for one; read for each connection.
    pub password: Option<Password>,
    /// TLS (`mqtts://`), server name verified; its files are read for each connection.
    pub tls: Option<tls::Options>,
    /// Topic templates; each is subscribed as its filter.
    pub topics: Vec<TopicTemplate>,
    /// Quality of service of every subscription.
    pub qos: Qos,
    /// Protocol version.
    pub protocol: Protocol,
    /// Most unacknowledged publishes in flight (MQTT 5 Receive Maximum, from 1); bounds memory together with
    /// `pending_bytes_max`.
    pub receive_maximum: u16,
    /// Most bytes of events that wait while an append is under way; the append may hold as much again. Above it
    /// QoS 0 is dropped and QoS 1 and 2 are left with the broker; see the module.
    pub pending_bytes_max: usize,
    /// Keep-alive, from 5 s to 65,535 s; a dead link is noticed within twice this.
    pub keep_alive: Duration,
    /// What to do with events that find no room, where no route has it otherwise.
    pub when_full: WhenFull,
    /// The retained status; `None`: nothing is published and there is no will.
    pub status: Option<StatusTopic>,
}

/// What ends the input. Lost links and broker errors do not: they are retried for ever.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MqttError {
    /// The buffer closed while the agent was not stopping: stop the agent.
    #[error("the buffer was closed while MQTT events were coming in")]
    BufferClosed,
    /// An option without which no session can be kept: a configuration error that should have been found earlier.
    #[error("mqtt.{key} {what}")]
    Options {
        /// The key in the `[mqtt]` section.
        key: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl MqttError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        Class::Fatal
    }
}

/// Runs the input until `stop`: then nothing new is taken, appends under way finish and are acknowledged, and the
/// broker is told goodbye, all within two seconds. What is not durable by then stays with the broker.
///
/// # Errors
/// [`MqttError`], class [`Class::Fatal`].
///
/// Cancel safe: no. Dropping it may leave events stored and unacknowledged; the broker delivers those again.
pub async fn run(
    options: Options,
    admission: Admission,
    overview: Arc<Overview>,
    stop: CancellationToken,
) -> Result<(), MqttError> {
    options.check()?;
    let admission = admission.under(options.when_full);
    match options.protocol {
        Protocol::V4 => station::serve::<v4::Client>(options, admission, overview, stop).await,
        Protocol::V5 => station::serve::<v5::Client>(options, admission, overview, stop).await,
    }
}

/// Largest packet that is read, for events of up to `event_bytes_max` bytes: room for base64, the longest topic and as
/// much of properties; and never so little that a publish of a common size cannot even be refused by name.
pub fn packet_bytes_max(event_bytes_max: usize) -> usize {
    const COMMON: usize = 16 << 20;
    const TOPIC_AND_PROPERTIES: usize = 128 << 10;
    /// MQTT cannot carry more.
    const PROTOCOL: usize = 268_435_455;
    (event_bytes_max.saturating_mul(2).saturating_add(TOPIC_AND_PROPERTIES)).clamp(COMMON, PROTOCOL)
}

/// What to look at when the broker refuses the connection.
mod hint {
    pub(super) const CREDENTIALS: &str = "mqtt.username and mqtt.password_file, and the broker's access list";
    pub(super) const CLIENT_ID: &str = "mqtt.client_id";
    pub(super) const PROTOCOL: &str = "mqtt.protocol";
    pub(super) const ADDRESS: &str = "mqtt.url";
}

impl Options {
    fn check(&self) -> Result<(), MqttError> {
        let error = |key, what| Err(MqttError::Options { key, what });
        if self.client_id.is_empty() {
            return error("client_id", "is empty: the broker keeps the session under it");
        }
        if self.topics.is_empty() {
            return error("topics", "is empty: nothing would be subscribed");
        }
        if self.receive_maximum == 0 {
            return error("receive_maximum", "is 0: nothing could be received");
        }
        if !(KEEP_ALIVE_MIN..=KEEP_ALIVE_MAX).contains(&self.keep_alive) {
            return error("keep_alive", "is not between 5 s and 65535 s");
        }
        Ok(())
    }

    /// Whether a publish on `topic` is the agent's own status.
    pub(super) fn is_status(&self, topic: &[u8]) -> bool {
        self.status.as_ref().is_some_and(|status| status.topic.as_bytes() == topic)
    }

    /// What the broker is told of the agent, as the files have it now.
    pub(super) fn access(&self) -> Result<Access, AccessError> {
        let password = self.password.as_ref().map(Password::read).transpose()?;
        let login = (self.username.is_some() || password.is_some()).then(|| Login {
            username: self.username.clone().unwrap_or_default(),
            password: password.unwrap_or_else(|| Secret::new("")),
        });
        let connector = self.tls.as_ref().map(tls::Options::connector).transpose()?;
        Ok(Access { login, connector })
    }

    /// The files of [`Options::access`].
    fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let password = self.password.as_ref().and_then(Password::path).map(PathBuf::from);
        self.tls.iter().flat_map(tls::Options::paths).chain(password)
    }
}

/// See [`Options::access`].
pub(super) struct Access {
    pub(super) login: Option<Login>,
    /// None: without TLS.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "a build without TLS has no connector"))]
    pub(super) connector: Option<tls::Connector>,
}

/// A user of the broker's.
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: Secret,
}

/// A file of a password or of TLS cannot be used. Class: retry, once somebody mended it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The password.
    #[error("{0}; see mqtt.password_file")]
    Password(#[from] FileError),
    /// TLS.
    #[error("{0}; see mqtt.ca_file, mqtt.cert_file and mqtt.key_file")]
    Tls(#[from] TlsError),
}

/// The client library takes less for a programming error.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(5);
/// The protocol has 16 bits for it.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(u16::MAX as u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            host: "::1".into(),
            port: 1883,
            client_id: "gateway-1".into(),
            username: None,
            password: None,
            tls: None,
            topics: vec![TopicTemplate::parse("s/{type}").unwrap()],
            qos: Qos::AtLeastOnce,
            protocol: Protocol::V5,
            receive_maximum: 100,
            pending_bytes_max: 1 << 20,
            keep_alive: Duration::from_secs(30),
            when_full: WhenFull::Block,
            status: None,
        }
    }

    #[test]
    fn options_without_which_no_session_is_kept_are_refused() {
        assert_eq!(options().check(), Ok(()));
        for (bad, key) in [
            (Options { client_id: String::new(), ..options() }, "client_id"),
            (Options { topics: Vec::new(), ..options() }, "topics"),
            (Options { receive_maximum: 0, ..options() }, "receive_maximum"),
            (Options { keep_alive: Duration::from_secs(4), ..options() }, "keep_alive"),
            (Options { keep_alive: Duration::from_secs(65_536), ..options() }, "keep_alive"),
        ] {
            let error = bad.check().unwrap_err();
            assert!(error.to_string().starts_with(&format!("mqtt.{key} ")), "{error}");
            assert_eq!(error.class(), Class::Fatal);
        }
    }

    /// The client library joins host and port by a colon.
    #[tokio::test]
    async fn an_ipv6_host_needs_no_brackets() {
        let found: Vec<_> =
            tokio::net::lookup_host(format!("{}:1883", options().host)).await.unwrap().collect();
        assert_eq!(found, ["[::1]:1883".parse().unwrap()]);
    }

    #[test]
    fn the_packet_limit_has_room_for_the_largest_event() {
        assert_eq!(packet_bytes_max(1 << 20), 16 << 20);
        assert!(packet_bytes_max(64 << 20) > 64 * (1 << 20) / 3 * 4 + 2 * 65_535);
        assert_eq!(packet_bytes_max(usize::MAX), 268_435_455);
    }
}
