//! The link to the broker, in words that know no client library: what is heard, what can be asked, and one
//! connection after another.
//!
//! Every connection has a client of its own. An answer therefore cannot reach a younger connection than the one its
//! publish came on, and nothing that an old connection had read or queued turns up behind the next CONNACK.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time;

use super::subscriptions::Granted;
use super::{Options, Qos};

/// Requests that wait for the client; more are kept in the order book until there is room.
pub(super) const REQUESTS_MAX: usize = 256;

/// Longest wait for TCP connection and CONNACK together.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A publish as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) topic: Bytes,
    pub(super) payload: Bytes,
    pub(super) qos: Qos,
    /// Packet id; 0 for QoS 0.
    pub(super) pkid: u16,
    /// The broker sent it before.
    pub(super) dup: bool,
}

/// What the link tells.
#[derive(Debug)]
pub(super) enum Heard {
    /// CONNACK: connected, with or without the session of last time.
    Connected {
        session: bool,
    },
    Publish(Publish),
    /// PUBREL: the broker is done with a QoS 2 publish.
    Released(u16),
    /// SUBACK.
    Granted(Vec<Granted>),
    /// A PUBACK or PUBREC was written.
    Answered,
    /// DISCONNECT was written.
    Goodbye,
    /// The connection is gone or could not be made.
    Down(Failure),
}

/// Why a link is down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// For people; no packet content.
    pub(super) what: String,
}

/// What kind of failure it is: decides the line that is logged and how soon to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The network, or the broker went away.
    Link,
    /// The broker refused the connection; `hint` names what to look at.
    Refused { hint: &'static str },
    /// A packet above the limit of what is read.
    PacketTooLarge,
    /// Another client came with the same client id.
    TakenOver,
    /// PUBREL for a packet id that this client never saw.
    UnknownRelease,
}

/// One connection's client. The only place where a client library is named is its implementation.
pub(super) trait Wire: Sized + Send {
    /// Asks the client for something.
    type Requests: Requests;

    /// A client that connects when it is polled first.
    fn open(options: &Options, packet_bytes_max: usize) -> (Self, Self::Requests);

    /// Moves the connection on until something is heard or written. `None`: nothing worth telling.
    ///
    /// Cancel safe: no. A request may have been taken and not written.
    fn poll(&mut self) -> impl Future<Output = Result<Option<Heard>, Failure>> + Send;

    /// What was heard together with the last answer of `poll`. The outer `None`: nothing more.
    fn heard_before(&mut self) -> Option<Option<Heard>>;

    /// Makes the client answer PUBREL for every packet id; see the module documentation of [`super`], QoS 2.
    fn accept_every_release(&mut self);
}

/// Asks of one connection. Each answers whether there was room; what found none is asked again later.
pub(super) trait Requests: Send {
    /// PUBACK, or PUBREC if `twice`.
    fn answer(&mut self, pkid: u16, twice: bool) -> bool;
    /// SUBSCRIBE to all of `filters` in one packet.
    fn subscribe(&mut self, filters: Vec<String>, qos: Qos) -> bool;
    /// DISCONNECT, keeping the session.
    fn disconnect(&mut self) -> bool;
}

/// The link: connects, reads, and starts over with a new client after each failure.
pub(super) struct Link<W: Wire> {
    options: Arc<Options>,
    packet_bytes_max: usize,
    accept_every_release: bool,
    wire: Option<W>,
    /// Wait before the next connection.
    delay: Duration,
    /// What was heard in the last turn.
    pub(super) heard: Vec<Heard>,
    /// The way to ask things of a new connection, until its owner takes it.
    pub(super) requests: Option<W::Requests>,
}

impl<W: Wire> Link<W> {
    /// A link that connects after `delay`.
    pub(super) fn new(options: Arc<Options>, packet_bytes_max: usize, delay: Duration) -> Self {
        let accept_every_release = options.qos == Qos::ExactlyOnce;
        Self {
            options,
            packet_bytes_max,
            accept_every_release,
            wire: None,
            delay,
            heard: Vec::new(),
            requests: None,
        }
    }

    /// After a failure: the wait before the next connection.
    pub(super) fn connect_after(&mut self, delay: Duration) {
        self.delay = delay;
    }

    /// Waits until something is heard; it is in `heard` then. Takes and returns the link, so that the future can be
    /// kept across the turns of a `select!`.
    ///
    /// Cancel safe: no, as [`Wire::poll`]; dropping it drops the connection.
    pub(super) async fn turn(mut self) -> Self {
        let wire = match &mut self.wire {
            Some(wire) => wire,
            empty => {
                time::sleep(self.delay).await;
                let (wire, requests) = W::open(&self.options, self.packet_bytes_max);
                self.requests = Some(requests);
                empty.insert(wire)
            }
        };
        // The client wakes at least once per keep-alive; longer silence means that it hangs in a write.
        let silence_max = self.options.keep_alive * 2 + CONNECT_TIMEOUT;
        let result = time::timeout(silence_max, wire.poll()).await.unwrap_or_else(|_| {
            Err(Failure { kind: FailureKind::Link, what: "the broker does not take what is sent".into() })
        });
        let failure = result.map(|heard| self.heard.extend(heard)).err();
        while let Some(heard) = wire.heard_before() {
            self.heard.extend(heard);
        }
        if self.accept_every_release
            && self.heard.iter().any(|heard| matches!(heard, Heard::Connected { .. }))
        {
            wire.accept_every_release();
        }
        if let Some(failure) = failure {
            self.accept_every_release |= failure.kind == FailureKind::UnknownRelease;
            self.wire = None;
            self.requests = None;
            self.heard.push(Heard::Down(failure));
        }
        self
    }
}
