//! The client library's MQTT 3.1.1 side.

use bytes::Bytes;
use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions, Outgoing,
    Packet, PubAck, Publish, QoS, StateError, SubscribeFilter, SubscribeReasonCode,
};

use super::adapter::adapter;
use super::link::{
    self, CONNECT_TIMEOUT, Failure, FailureKind, Heard, IN_FLIGHT_MAX, REQUESTS_MAX, Requests, Setup, Wire,
};
use super::subscriptions::Granted;
use super::{Access, Login, Options, Qos, hint};

adapter!();

fn connect(options: &Options, access: Access, setup: &Setup) -> (AsyncClient, EventLoop) {
    let mut mqtt = MqttOptions::new(&options.client_id, &options.host, options.port);
    mqtt.set_clean_session(false)
        .set_keep_alive(options.keep_alive)
        .set_manual_acks(true)
        .set_inflight(IN_FLIGHT_MAX)
        .set_max_packet_size(setup.packet_bytes_max, setup.packet_bytes_max);
    if let Some((topic, payload)) = &setup.will {
        mqtt.set_last_will(LastWill::new(topic, payload.clone(), QoS::AtLeastOnce, true));
    }
    if let Some(Login { username, password }) = access.login {
        mqtt.set_credentials(username, password.reveal());
    }
    #[cfg(feature = "tls")]
    if let Some(connector) = access.connector {
        mqtt.set_transport(rumqttc::Transport::tls_with_config(connector.into()));
    }
    let (client, mut eventloop) = AsyncClient::new(mqtt, REQUESTS_MAX);
    // Nagle's algorithm: the client writes each answer by itself, the kernel sends those of one load together.
    eventloop.network_options.set_tcp_nodelay(false);
    eventloop.network_options.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    (client, eventloop)
}

fn empty_publish() -> Publish {
    Publish::new("", QoS::AtLeastOnce, Vec::new())
}

fn filter(text: String, qos: QoS) -> SubscribeFilter {
    SubscribeFilter::new(text, qos)
}

fn granted(code: SubscribeReasonCode) -> Granted {
    match code {
        SubscribeReasonCode::Success(qos) => Ok(quality(qos)),
        SubscribeReasonCode::Failure => Err("refused without a reason (MQTT 3.1.1 has none)".into()),
    }
}

/// MQTT 3.1.1 cannot refuse.
fn published(_: &PubAck) -> Result<(), String> {
    Ok(())
}

fn failure(error: &ConnectionError) -> Failure {
    let kind = match error {
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                FailureKind::Refused { hint: hint::CREDENTIALS }
            }
            ConnectReturnCode::BadClientId => FailureKind::Refused { hint: hint::CLIENT_ID },
            ConnectReturnCode::RefusedProtocolVersion => FailureKind::Refused { hint: hint::PROTOCOL },
            _ => FailureKind::Link,
        },
        ConnectionError::MqttState(StateError::Deserialization(PacketError::PayloadSizeLimitExceeded(_))) => {
            FailureKind::PacketTooLarge
        }
        ConnectionError::MqttState(StateError::Unsolicited(_)) => FailureKind::UnknownRelease,
        _ => FailureKind::Link,
    };
    let what = match error {
        // Its text would hold the packet.
        ConnectionError::NotConnAck(_) => "the first packet of the broker is no CONNACK".into(),
        ConnectionError::ConnectionRefused(code) => format!("the broker refused the connection: {code:?}"),
        other => other.to_string(),
    };
    Failure { kind, what }
}
