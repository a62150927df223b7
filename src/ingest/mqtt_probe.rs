//! Asks an MQTT broker whether it would let the agent in.
//!
//! Under a client id of its own and with a session that ends at once: a broker ends the older of two connections of
//! one id, so a probe under the agent's id would throw a running agent out.

use std::time::Duration;

use rumqttc::{mqttbytes, v5};
use thiserror::Error;
use tokio::time::timeout_at;

use super::mqtt::{Login, Options, Protocol};

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

/// Connects, hears whether the broker agrees, and says goodbye. Returns what it spoke.
///
/// # Errors
/// [`ProbeError`], as the input would meet it.
///
/// Cancel safe: yes, dropping it closes the connection.
pub async fn probe(options: &Options, timeout: Duration) -> Result<&'static str, ProbeError> {
    let deadline = tokio::time::Instant::now() + timeout;
    // Up to 23 letters and digits are what every MQTT 3.1.1 broker must take.
    let client_id = format!("fpcheck{:012x}", fastrand::u64(..1 << 48));
    let answer = async {
        match options.protocol {
            Protocol::V5 => Box::pin(probe_v5(options, client_id)).await.map(|()| "MQTT 5"),
            Protocol::V4 => Box::pin(probe_v4(options, client_id)).await.map(|()| "MQTT 3.1.1"),
        }
    };
    timeout_at(deadline, answer).await.unwrap_or(Err(ProbeError::NoAnswer(timeout)))
}

async fn probe_v5(options: &Options, client_id: String) -> Result<(), ProbeError> {
    use v5::mqttbytes::v5::{ConnectReturnCode, Packet};
    let mut connect = v5::MqttOptions::new(client_id, options.host.clone(), options.port);
    connect.set_clean_start(true).set_keep_alive(Duration::from_secs(5));
    let access = options.access().map_err(|error| ProbeError::File(error.to_string()))?;
    if let Some(Login { username, password }) = access.login {
        connect.set_credentials(username, password.reveal());
    }
    if let Some(connector) = access.connector {
        connect.set_transport(rumqttc::Transport::tls_with_config(connector.into()));
    }
    let (client, mut events) = v5::AsyncClient::new(connect, 1);
    loop {
        match Box::pin(events.poll()).await {
            Ok(v5::Event::Incoming(Packet::ConnAck(_))) => break,
            Ok(_) => {}
            Err(v5::ConnectionError::ConnectionRefused(code)) => {
                return Err(ProbeError::Refused(match code {
                    ConnectReturnCode::BadUserNamePassword => WRONG_LOGIN.to_owned(),
                    ConnectReturnCode::NotAuthorized => not_authorized(options),
                    ConnectReturnCode::RefusedProtocolVersion
                    | ConnectReturnCode::UnsupportedProtocolVersion => NO_V5.to_owned(),
                    other => format!("{other:?}"),
                }));
            }
            Err(error) => return Err(unreachable(options, &error)),
        }
    }
    // The answer is known; whether the goodbye arrives changes nothing.
    let _ = client.try_disconnect();
    let _ = Box::pin(events.poll()).await;
    Ok(())
}

async fn probe_v4(options: &Options, client_id: String) -> Result<(), ProbeError> {
    use mqttbytes::v4::{ConnectReturnCode, Packet};
    let mut connect = rumqttc::MqttOptions::new(client_id, options.host.clone(), options.port);
    connect.set_clean_session(true).set_keep_alive(Duration::from_secs(5));
    let access = options.access().map_err(|error| ProbeError::File(error.to_string()))?;
    if let Some(Login { username, password }) = access.login {
        connect.set_credentials(username, password.reveal());
    }
    if let Some(connector) = access.connector {
        connect.set_transport(rumqttc::Transport::tls_with_config(connector.into()));
    }
    let (client, mut events) = rumqttc::AsyncClient::new(connect, 1);
    loop {
        match Box::pin(events.poll()).await {
            Ok(rumqttc::Event::Incoming(Packet::ConnAck(_))) => break,
            Ok(_) => {}
            Err(rumqttc::ConnectionError::ConnectionRefused(code)) => {
                return Err(ProbeError::Refused(match code {
                    ConnectReturnCode::BadUserNamePassword => WRONG_LOGIN.to_owned(),
                    ConnectReturnCode::NotAuthorized => not_authorized(options),
                    ConnectReturnCode::RefusedProtocolVersion => {
                        "it does not speak MQTT 3.1.1; set mqtt.protocol = 5".to_owned()
                    }
                    other => format!("{other:?}"),
                }));
            }
            Err(error) => return Err(unreachable(options, &error)),
        }
    }
    let _ = client.try_disconnect();
    let _ = Box::pin(events.poll()).await;
    Ok(())
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
    use crate::ingest::mqtt::Qos;
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
            pending_bytes_max: 1 << 20,
        }
    }

    /// A broker that answers one CONNECT with `answer` and returns what it was sent.
    async fn ask(
        protocol: Protocol,
        login: bool,
        answer: &'static [u8],
    ) -> (Result<&'static str, ProbeError>, Vec<u8>) {
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
            assert_eq!(answered.map_err(|error| error.to_string()), wanted.map_err(str::to_owned));
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
