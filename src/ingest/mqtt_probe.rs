//! Asks an MQTT broker whether it would let the agent in, what it would grant, and what it tells of itself.
//!
//! Under a client id of its own and with a session that ends at once: a broker ends the older of two connections of
//! one id, so a probe under the agent's id would throw a running agent out. The probe subscribes as the agent does, so that a
//! copy of what is published in that moment comes to it and is thrown away; the agent gets its own all the same. Filters of
//! shared subscriptions are left out, of which each publish goes to one subscriber only.

pub mod publisher;
mod session;

use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout_at;

use super::mqtt::{Options, Protocol, Qos};
use session::{Heard, Session, V4, V5};

/// What the broker said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Which MQTT it speaks.
    pub version: &'static str,
    /// Filters that it grants with less than `mqtt.qos`.
    pub lowered: Vec<(String, Qos)>,
    /// Filters that it refuses, with its reason.
    pub refused: Vec<(String, String)>,
    /// What it tells of itself; `None`: nothing.
    pub broker: Option<Broker>,
}

/// What Mosquitto tells of itself, as of its last round of `$SYS` (`sys_interval`, 10 s by default).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Broker {
    /// Product and version.
    pub version: String,
    /// Publishes that it dropped since its start, for a client's queue that was full among other things.
    pub dropped: Option<u64>,
    /// Sessions that it keeps for clients that are away.
    pub away: Option<u64>,
    /// Messages that it holds.
    pub stored: Option<u64>,
}

/// Why the broker would not let the agent in. The message says what to look at.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// No connection, or it broke: try again once the broker runs.
    #[error("{0}; is the broker running, and is mqtt.url right?")]
    Unreachable(String),
    /// No answer in time: try again, or with a longer time-out.
    #[error("no answer within {} ms; does the port of mqtt.url speak MQTT without TLS?", .0.as_millis())]
    NoAnswer(Duration),
    /// No TLS: a human is needed.
    #[error("no TLS: {0}")]
    Tls(String),
    /// A file of the password or of TLS cannot be used: a human is needed.
    #[error("{0}")]
    File(String),
    /// The broker said no: a human is needed.
    #[error("the broker refuses: {0}")]
    Refused(String),
}

/// Connects, subscribes, hears what the broker grants and tells, and says goodbye.
///
/// # Errors
/// [`ProbeError`], as the input would meet it.
///
/// Cancel safe: yes, dropping it closes the connection.
pub async fn probe(options: &Options, timeout: Duration) -> Result<Found, ProbeError> {
    let deadline = tokio::time::Instant::now() + timeout;
    // Up to 23 letters and digits are what every MQTT 3.1.1 broker must take.
    let client_id = format!("fpcheck{:012x}", fastrand::u64(..1 << 48));
    let answer = async {
        match options.protocol {
            Protocol::V5 => Box::pin(converse(V5::open(options, client_id)?, options, "MQTT 5")).await,
            Protocol::V4 => Box::pin(converse(V4::open(options, client_id)?, options, "MQTT 3.1.1")).await,
        }
    };
    timeout_at(deadline, answer).await.unwrap_or(Err(ProbeError::NoAnswer(timeout)))
}

const VERSION: &str = "$SYS/broker/version";
const DROPPED: &str = "$SYS/broker/publish/messages/dropped";
const AWAY: &str = "$SYS/broker/clients/disconnected";
const STORED: &str = "$SYS/broker/store/messages/count";
const UPTIME: &str = "$SYS/broker/uptime";

/// Longest wait for `$SYS`, which brokers that have it answer at once.
const TOLD_TIME: Duration = Duration::from_secs(2);

async fn converse<S: Session>(
    mut session: S,
    options: &Options,
    version: &'static str,
) -> Result<Found, ProbeError> {
    while !matches!(session.next().await?, Heard::Connected) {}
    let mut found = Found { version, ..Found::default() };
    let filters = options.topics.iter().map(|topic| topic.filter().to_owned());
    let filters: Vec<String> = filters.filter(|filter| !filter.starts_with("$share/")).collect();
    if !filters.is_empty() {
        session.subscribe(filters.clone(), options.qos);
        let granted = loop {
            if let Heard::Granted(granted) = session.next().await? {
                break granted;
            }
        };
        for (filter, granted) in filters.into_iter().zip(granted) {
            match granted {
                Ok(qos) if qos < options.qos => found.lowered.push((filter, qos)),
                Ok(_) => {}
                Err(reason) => found.refused.push((filter, reason)),
            }
        }
    }
    // Some brokers end the connection of a client that asks for what it may not see, or say nothing.
    if let Ok(Ok(told)) = tokio::time::timeout(TOLD_TIME, told(&mut session)).await {
        found.broker = told;
        // The answer is known; whether the goodbye arrives changes nothing.
        session.disconnect();
        let _ = session.next().await;
    }
    Ok(found)
}

/// What the broker keeps under `$SYS` for whoever subscribes.
async fn told(session: &mut impl Session) -> Result<Option<Broker>, ProbeError> {
    session.subscribe([VERSION, DROPPED, AWAY, STORED].map(str::to_owned).into(), Qos::AtMostOnce);
    // Order: Mosquitto answers in turn, so what it keeps under the first has come when it grants the second.
    session.subscribe(vec![UPTIME.to_owned()], Qos::AtMostOnce);
    let mut broker = Broker::default();
    let mut granted = 0;
    while granted < 2 {
        match session.next().await? {
            Heard::Granted(_) => granted += 1,
            Heard::Publish(topic, payload) => {
                let text = String::from_utf8_lossy(&payload);
                let number = || text.trim().parse().ok();
                match topic.as_slice() {
                    topic if topic == VERSION.as_bytes() => broker.version = shown(&text),
                    topic if topic == DROPPED.as_bytes() => broker.dropped = number(),
                    topic if topic == AWAY.as_bytes() => broker.away = number(),
                    topic if topic == STORED.as_bytes() => broker.stored = number(),
                    _ => {}
                }
            }
            Heard::Connected | Heard::Other => {}
        }
    }
    Ok(Some(broker).filter(|broker| !broker.version.is_empty()))
}

/// Longest product name with version in characters.
const VERSION_CHARS_MAX: usize = 60;

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(VERSION_CHARS_MAX).collect()
}

const WRONG_LOGIN: &str = "wrong user name or password; see mqtt.username and mqtt.password_file";
const NO_V5: &str = "it does not speak MQTT 5; set mqtt.protocol = 4";

/// Brokers answer "not authorised" to a wrong password, too (Mosquitto does).
fn not_authorized(options: &Options) -> String {
    match options.username {
        Some(_) => "not authorised: the user name or password is wrong, or the user may not connect; see \
                    mqtt.username and mqtt.password_file"
            .to_owned(),
        None => "not authorised: it wants a user name; set mqtt.username and mqtt.password_file".to_owned(),
    }
}

/// Why there is no connection, and what to do if that is for TLS.
fn unreachable(options: &Options, error: &dyn std::error::Error) -> ProbeError {
    let said = error.to_string();
    match options.tls.as_ref().and_then(|tls| tls.remedy(&said, "mqtt", &options.host)) {
        Some(remedy) => ProbeError::Tls(remedy),
        _ => ProbeError::Unreachable(cause(error)),
    }
}

/// The innermost message: what the system or the protocol said, without the library's wrapping.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::secret::{Password, Secret};

    fn options(port: u16, protocol: Protocol) -> Options {
        Options {
            host: "127.0.0.1".to_owned(),
            port,
            client_id: "the-live-session".to_owned(),
            username: None,
            password: None,
            tls: None,
            topics: Vec::new(),
            qos: Qos::AtLeastOnce,
            protocol,
            receive_maximum: 10,
            keep_alive: Duration::from_secs(30),
            when_full: crate::buffer::WhenFull::Block,
            status: None,
            pending_bytes_max: 1 << 20,
        }
    }

    /// A broker that answers one CONNECT with `answer` and returns what it was sent.
    async fn ask(
        protocol: Protocol,
        login: bool,
        answer: &'static [u8],
    ) -> (Result<Found, ProbeError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut options = options(listener.local_addr().unwrap().port(), protocol);
        if login {
            options.username = Some("gw".to_owned());
            options.password = Some(Password::Given(Secret::new("hush")));
        }
        let broker = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut sent = vec![0; 1024];
            let bytes = peer.read(&mut sent).await.unwrap();
            sent.truncate(bytes);
            peer.write_all(answer).await.unwrap();
            peer.shutdown().await.unwrap();
            let _ = peer.read_to_end(&mut sent).await;
            sent
        };
        tokio::join!(probe(&options, Duration::from_secs(5)), broker)
    }

    #[tokio::test]
    async fn the_brokers_answer_is_explained() {
        let wants_login = "the broker refuses: not authorised: it wants a user name; set mqtt.username and \
                           mqtt.password_file";
        let wrong_login =
            "the broker refuses: wrong user name or password; see mqtt.username and mqtt.password_file";
        for (protocol, login, answer, wanted) in [
            (Protocol::V5, false, &[0x20, 3, 0, 0, 0][..], Ok("MQTT 5")),
            (Protocol::V5, false, &[0x20, 3, 0, 0x87, 0], Err(wants_login)),
            (Protocol::V5, true, &[0x20, 3, 0, 0x86, 0], Err(wrong_login)),
            (Protocol::V5, true, &[0x20, 3, 0, 0x89, 0], Err("the broker refuses: ServerBusy")),
            (Protocol::V4, true, &[0x20, 2, 0, 0], Ok("MQTT 3.1.1")),
            (Protocol::V4, false, &[0x20, 2, 0, 5], Err(wants_login)),
            (Protocol::V4, true, &[0x20, 2, 0, 4], Err(wrong_login)),
        ] {
            let (answered, sent) = ask(protocol, login, answer).await;
            let answered = answered.map(|found| found.version).map_err(|error| error.to_string());
            assert_eq!(answered, wanted.map_err(str::to_owned));
            let sent = String::from_utf8_lossy(&sent);
            assert!(sent.contains("fpcheck") && !sent.contains("the-live-session"), "{sent:?}");
            assert_eq!(sent.contains("hush"), login);
        }
    }

    #[tokio::test]
    async fn silence_and_a_closed_port() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = options(listener.local_addr().unwrap().port(), Protocol::V5);
        let timeout = Duration::from_millis(50);
        assert_eq!(probe(&options, timeout).await, Err(ProbeError::NoAnswer(timeout)));
        drop(listener);
        let message = probe(&options, Duration::from_secs(5)).await.unwrap_err().to_string();
        assert!(message.starts_with("Connection refused") && message.contains("mqtt.url"), "{message}");
    }
}
