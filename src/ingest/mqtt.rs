//! MQTT ingest: a client of the gateway's broker that sends PUBACK only after the sync.

use std::time::Duration;

use crate::ingest::topic::TopicTemplate;
use crate::secret::Secret;

/// Which MQTT is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 3.1.1.
    V4,
    /// MQTT 5.
    V5,
}

/// The subscription's quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// At most once: never acknowledged, dropped and counted when the buffer cannot take it.
    AtMostOnce,
    /// At least once.
    AtLeastOnce,
    /// Exactly once between broker and agent, by rumqttc's means.
    ExactlyOnce,
}

/// How the input connects and what it subscribes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Host of the broker.
    pub host: String,
    /// Port of the broker.
    pub port: u16,
    /// Stable client id: the broker keeps the session under it.
    pub client_id: String,
    /// User name, if the broker asks for one.
    pub username: Option<String>,
    /// Password, if the broker asks for one.
    pub password: Option<Secret>,
    /// Topic templates; each is subscribed as its filter.
    pub topics: Vec<TopicTemplate>,
    /// Quality of service of every subscription.
    pub qos: Qos,
    /// Protocol version.
    pub protocol: Protocol,
    /// Most unacknowledged publishes in flight (MQTT 5 Receive Maximum); bounds memory together with `event_bytes_max`.
    pub receive_maximum: u16,
    /// Keep-alive; a dead link is noticed after 1.5 times this.
    pub keep_alive: Duration,
    /// Most bytes of messages received and not yet durable; above it nothing more is read from the broker.
    pub pending_bytes_max: usize,
}
