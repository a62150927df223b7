//! The link to the broker, in words that know no client library: what is heard, what can be asked, and one
//! connection after another.
//!
//! Every connection has a client of its own. An answer therefore cannot reach a younger connection than the one its
//! publish came on, and nothing that an old connection had read or queued turns up behind the next CONNACK.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::subscriptions::Granted;
use super::{Access, Options, Qos};

/// Requests that wait for the client; more are kept in the order book until there is room.
pub(super) const REQUESTS_MAX: usize = 256;

/// Places for publishes of the agent's own in flight: one of the status, at a stop one more, and always one free, because
/// the client writes no acknowledgement while all are taken. Each costs memory. A broker may allow fewer (Receive Maximum
/// of MQTT 5); one that allows a single one holds acknowledgements up until it has answered.
pub(super) const IN_FLIGHT_MAX: u16 = 4;

/// A connection that has left this much in its outbox lets its owner take it before it reads on.
const HEARD_MAX: usize = 256;

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
    /// PUBACK of the broker for the agent's status: taken, or why not.
    Published(Result<(), String>),
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
    /// No TLS; the message says what to do.
    Tls,
    /// A file of the password or of TLS cannot be used.
    File,
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
    fn open(options: &Options, access: Access, setup: &Setup) -> (Self, Self::Requests);

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
    /// PUBLISH, retained, with QoS 1; the broker's answer is heard as [`Heard::Published`].
    fn publish(&mut self, topic: &str, payload: Vec<u8>) -> bool;
    /// DISCONNECT, keeping the session; the broker closes the connection when it has read everything before it.
    fn disconnect(&mut self) -> bool;
}

/// How a connection is made.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// Wait before connecting.
    pub(super) delay: Duration,
    /// Largest packet that is read.
    pub(super) packet_bytes_max: usize,
    /// See [`Wire::accept_every_release`].
    pub(super) accept_every_release: bool,
    /// The last will: its topic and what it says, retained.
    pub(super) will: Option<(String, Vec<u8>)>,
}

/// Where a connection leaves what it heard. Locked by one task only and never across a wait.
pub(super) struct Outbox<R> {
    inner: Mutex<Inner<R>>,
}

struct Inner<R> {
    heard: Vec<Heard>,
    requests: Option<R>,
    signs: u64,
}

impl<R> Outbox<R> {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::new(Inner { heard: Vec::new(), requests: None, signs: 0 }) }
    }

    /// Moves what was heard into `heard`, which is empty.
    pub(super) fn take(&self, heard: &mut Vec<Heard>) {
        std::mem::swap(&mut self.lock().heard, heard);
    }

    /// The way to ask things of the connection whose CONNACK was heard.
    pub(super) fn take_requests(&self) -> Option<R> {
        self.lock().requests.take()
    }

    /// A number that grows with every sign of life, pings included.
    pub(super) fn signs(&self) -> u64 {
        self.lock().signs
    }

    fn is_empty(&self) -> bool {
        self.lock().heard.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Inner<R>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection from its making to its failure.
///
/// Cancel safe: no. Dropping it drops the connection; its owner keeps it until it wants just that.
pub(super) async fn connection<W: Wire>(
    options: Arc<Options>,
    setup: Setup,
    outbox: Arc<Outbox<W::Requests>>,
) -> Failure {
    sleep(setup.delay).await;
    let access = match options.access() {
        Ok(access) => access,
        Err(error) => return Failure { kind: FailureKind::File, what: error.to_string() },
    };
    let (mut wire, requests) = W::open(&options, access, &setup);
    outbox.lock().requests = Some(requests);
    let mut is_connected = false;
    loop {
        let result = wire.poll().await;
        let waiting = {
            let mut inner = outbox.lock();
            inner.signs += 1;
            let connected = matches!(result, Ok(Some(Heard::Connected { .. })));
            let failure = result.map(|heard| inner.heard.extend(heard)).err();
            while let Some(heard) = wire.heard_before() {
                inner.heard.extend(heard);
            }
            if let Some(failure) = failure {
                return if is_connected { failure } else { explained(failure, &options) };
            }
            is_connected |= connected;
            if connected && setup.accept_every_release {
                wire.accept_every_release();
            }
            inner.heard.len()
        };
        if waiting >= HEARD_MAX {
            yield_now().await;
        }
    }
}

/// What to do about a connection that could not be made, if that is for TLS.
fn explained(failure: Failure, options: &Options) -> Failure {
    // A broker speaks of the agent's certificate only after the handshake: then an alert is all there is of TLS in it.
    let is_tls = failure.what.starts_with("TLS") || failure.what.contains("alert");
    let tls = options.tls.as_ref().filter(|_| is_tls);
    match tls.and_then(|tls| tls.remedy(&failure.what, "mqtt", &options.host)) {
        Some(what) => Failure { kind: FailureKind::Tls, what },
        _ => failure,
    }
}

/// Waits until the connection has something in its outbox (`None`) or failed; there may be something in the outbox
/// then too.
///
/// Cancel safe: yes, the connection is kept by its owner.
pub(super) async fn listen<R>(
    mut connection: Pin<&mut impl Future<Output = Failure>>,
    outbox: &Outbox<R>,
) -> Option<Failure> {
    poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(failure) => Poll::Ready(Some(failure)),
        Poll::Pending if outbox.is_empty() => Poll::Pending,
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::{Protocol, v4, v5};
    use super::*;
    use crate::ingest::topic::TopicTemplate;

    const PUBREL_7: [u8; 4] = [0x62, 2, 0, 7];
    const PUBCOMP_7: [u8; 4] = [0x70, 2, 0, 7];

    /// A broker of one connection that remembers the client's session.
    async fn accept(listener: &TcpListener, protocol: Protocol) -> TcpStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 0x10, "CONNECT");
        let mut rest = vec![0; usize::from(stream.read_u8().await.unwrap())];
        stream.read_exact(&mut rest).await.unwrap();
        let connack: &[u8] = match protocol {
            Protocol::V4 => &[0x20, 2, 1, 0],
            Protocol::V5 => &[0x20, 3, 1, 0, 0],
        };
        stream.write_all(connack).await.unwrap();
        stream
    }

    async fn broker_releases_an_unknown_publish<W: Wire>(
        protocol: Protocol,
        accept_every_release: bool,
    ) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = Options {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
            client_id: "test".into(),
            username: None,
            password: None,
            tls: None,
            topics: vec![TopicTemplate::parse("{type}").unwrap()],
            qos: Qos::ExactlyOnce,
            protocol,
            receive_maximum: 10,
            pending_bytes_max: 1000,
            keep_alive: Duration::from_secs(60),
            when_full: crate::buffer::WhenFull::Block,
            status: None,
        };
        let outbox = Arc::new(Outbox::new());
        let setup = Setup { delay: Duration::ZERO, packet_bytes_max: 1000, accept_every_release, will: None };
        let connection = connection::<W>(Arc::new(options), setup, Arc::clone(&outbox));
        let broker = async {
            let mut stream = accept(&listener, protocol).await;
            stream.write_all(&PUBREL_7).await.unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, PUBCOMP_7);
        };
        let answered = tokio::select! {
            failure = connection => {
                assert_eq!(failure.kind, FailureKind::UnknownRelease);
                false
            }
            () = broker => true,
        };
        let mut heard = Vec::new();
        outbox.take(&mut heard);
        let released = heard.iter().any(|heard| matches!(heard, Heard::Released(7)));
        assert!(matches!(heard.first(), Some(Heard::Connected { session: true })) && released, "{heard:?}");
        assert!(!heard.iter().any(|heard| matches!(heard, Heard::Publish(_))), "{heard:?}");
        answered
    }

    /// The client library takes it for a protocol error; the specification wants PUBCOMP.
    #[tokio::test]
    async fn a_release_of_an_earlier_connection_is_answered() {
        assert!(broker_releases_an_unknown_publish::<v4::Client>(Protocol::V4, true).await);
        assert!(broker_releases_an_unknown_publish::<v5::Client>(Protocol::V5, true).await);
        assert!(!broker_releases_an_unknown_publish::<v4::Client>(Protocol::V4, false).await);
        assert!(!broker_releases_an_unknown_publish::<v5::Client>(Protocol::V5, false).await);
    }
}
