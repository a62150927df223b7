//! The client library's MQTT 5 side.

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, ConnectReturnCode, DisconnectReasonCode, Filter, LastWill, Packet, PubAck,
    PubAckReason, Publish, RetainForwardRule, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error as PacketError, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{NetworkOptions, Outgoing};

use super::adapter::adapter;
use super::link::{
    self, CONNECT_TIMEOUT, Failure, FailureKind, Heard, IN_FLIGHT_MAX, REQUESTS_MAX, Requests, Setup, Wire,
};
use super::subscriptions::Granted;
use super::{Access, Login, Options, Qos, hint};

/// "The session does not expire" (MQTT 5, 3.1.2.11.2).
const SESSION_NEVER_EXPIRES: u32 = u32::MAX;

adapter!();

fn connect(options: &Options, access: Access, setup: &Setup) -> (AsyncClient, EventLoop) {
    let mut network = NetworkOptions::new();
    // Nagle's algorithm: the client writes each answer by itself, the kernel sends those of one load together.
    network.set_tcp_nodelay(false);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(SESSION_NEVER_EXPIRES);
    properties.receive_maximum = Some(options.receive_maximum);
    // The broker drops what is larger instead of sending it for ever.
    properties.max_packet_size = Some(u32::try_from(setup.packet_bytes_max).unwrap_or(u32::MAX));
    let mut mqtt = MqttOptions::new(&options.client_id, &options.host, options.port);
    mqtt.set_clean_start(false)
        .set_keep_alive(options.keep_alive)
        .set_manual_acks(true)
        .set_outgoing_inflight_upper_limit(IN_FLIGHT_MAX)
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_network_options(network)
        .set_connect_properties(properties);
    if let Some((topic, payload)) = &setup.will {
        mqtt.set_last_will(LastWill::new(topic, payload.clone(), QoS::AtLeastOnce, true, None));
    }
    if let Some(Login { username, password }) = access.login {
        mqtt.set_credentials(username, password.reveal());
    }
    #[cfg(feature = "tls")]
    if let Some(connector) = access.connector {
        mqtt.set_transport(rumqttc::Transport::tls_with_config(connector.into()));
    }
    AsyncClient::new(mqtt, REQUESTS_MAX)
}

fn empty_publish() -> Publish {
    Publish::new("", QoS::AtLeastOnce, Bytes::new(), None)
}

fn filter(text: String, qos: QoS) -> Filter {
    let mut filter = Filter::new(text, qos);
    // Subscribing again at each start must not turn every retained message into an event again.
    filter.retain_forward_rule = RetainForwardRule::OnNewSubscribe;
    filter
}

fn granted(code: SubscribeReasonCode) -> Granted {
    match code {
        SubscribeReasonCode::Success(qos) => Ok(quality(qos)),
        reason => Err(format!("{reason:?}")),
    }
}

fn published(puback: &PubAck) -> Result<(), String> {
    match puback.reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
        reason => Err(format!("{reason:?}")),
    }
}

fn failure(error: &ConnectionError) -> Failure {
    let kind = match error {
        ConnectionError::ConnectionRefused(code) => refused(*code),
        ConnectionError::MqttState(StateError::Deserialization(PacketError::PayloadSizeLimitExceeded {
            ..
        })) => FailureKind::PacketTooLarge,
        ConnectionError::MqttState(StateError::Unsolicited(_)) => FailureKind::UnknownRelease,
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => match reason_code {
            DisconnectReasonCode::SessionTakenOver => FailureKind::TakenOver,
            DisconnectReasonCode::NotAuthorized => FailureKind::Refused { hint: hint::CREDENTIALS },
            _ => FailureKind::Link,
        },
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

fn refused(code: ConnectReturnCode) -> FailureKind {
    use ConnectReturnCode as Code;
    let hint = match code {
        Code::BadUserNamePassword | Code::NotAuthorized | Code::Banned | Code::BadAuthenticationMethod => {
            hint::CREDENTIALS
        }
        Code::BadClientId | Code::ClientIdentifierNotValid => hint::CLIENT_ID,
        Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => hint::PROTOCOL,
        Code::UseAnotherServer | Code::ServerMoved => hint::ADDRESS,
        _ => return FailureKind::Link,
    };
    FailureKind::Refused { hint }
}
