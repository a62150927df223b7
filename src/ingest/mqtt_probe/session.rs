//! The client library's two sides, as the probe needs them.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::{mqttbytes, v5};

use super::{NO_V5, ProbeError, WRONG_LOGIN, not_authorized, unreachable};
use crate::ingest::mqtt::{Login, Options, Qos};

/// Requests that wait: two subscriptions and the goodbye.
const REQUESTS_MAX: usize = 4;

const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Largest packet that is read, MQTT's own limit: a large event is no reason to fail, and each is thrown away at once.
const PACKET_BYTES_MAX: u32 = 268_435_455;

/// Largest packet that a broker is asked to send, where it can be asked.
const PACKET_BYTES_WANTED: u32 = 16 << 10;

/// What comes from the broker.
pub(super) enum Heard {
    /// It lets the probe in.
    Connected,
    /// The quality that it grants for each filter, or its reason for not doing so.
    Granted(Vec<Result<Qos, String>>),
    /// Topic and payload.
    Publish(Vec<u8>, Bytes),
    Other,
}

/// A connection with a session that ends with it.
pub(super) trait Session {
    /// What comes next. Cancel safe: yes.
    async fn next(&mut self) -> Result<Heard, ProbeError>;
    fn subscribe(&mut self, filters: Vec<String>, qos: Qos);
    fn disconnect(&mut self);
}

pub(super) struct V5 {
    options: Options,
    client: v5::AsyncClient,
    events: Box<v5::EventLoop>,
}

impl V5 {
    pub(super) fn open(options: &Options, client_id: String) -> Result<Self, ProbeError> {
        let mut connect = v5::MqttOptions::new(client_id, options.host.clone(), options.port);
        let mut properties = v5::mqttbytes::v5::ConnectProperties::new();
        properties.receive_maximum = Some(1);
        properties.max_packet_size = Some(PACKET_BYTES_WANTED);
        connect
            .set_clean_start(true)
            .set_manual_acks(true)
            .set_keep_alive(KEEP_ALIVE)
            .set_connect_properties(properties);
        let access = options.access().map_err(|error| ProbeError::File(error.to_string()))?;
        if let Some(Login { username, password }) = access.login {
            connect.set_credentials(username, password.reveal());
        }
        #[cfg(feature = "tls")]
        if let Some(connector) = access.connector {
            connect.set_transport(rumqttc::Transport::tls_with_config(connector.into()));
        }
        let (client, events) = v5::AsyncClient::new(connect, REQUESTS_MAX);
        Ok(Self { options: options.clone(), client, events: Box::new(events) })
    }
}

impl Session for V5 {
    async fn next(&mut self) -> Result<Heard, ProbeError> {
        use v5::mqttbytes::QoS;
        use v5::mqttbytes::v5::{ConnectReturnCode, Packet, SubscribeReasonCode};
        Ok(match Box::pin(self.events.poll()).await {
            Ok(v5::Event::Incoming(Packet::ConnAck(_))) => Heard::Connected,
            Ok(v5::Event::Incoming(Packet::SubAck(answer))) => {
                let granted = answer.return_codes.into_iter().map(|code| match code {
                    SubscribeReasonCode::Success(QoS::AtMostOnce) => Ok(Qos::AtMostOnce),
                    SubscribeReasonCode::Success(QoS::AtLeastOnce) => Ok(Qos::AtLeastOnce),
                    SubscribeReasonCode::Success(QoS::ExactlyOnce) => Ok(Qos::ExactlyOnce),
                    reason => Err(format!("{reason:?}")),
                });
                Heard::Granted(granted.collect())
            }
            Ok(v5::Event::Incoming(Packet::Publish(publish))) => {
                Heard::Publish(publish.topic.to_vec(), publish.payload)
            }
            Ok(_) => Heard::Other,
            Err(v5::ConnectionError::ConnectionRefused(code)) => {
                return Err(ProbeError::Refused(match code {
                    ConnectReturnCode::BadUserNamePassword => WRONG_LOGIN.to_owned(),
                    ConnectReturnCode::NotAuthorized => not_authorized(&self.options),
                    ConnectReturnCode::RefusedProtocolVersion
                    | ConnectReturnCode::UnsupportedProtocolVersion => NO_V5.to_owned(),
                    other => format!("{other:?}"),
                }));
            }
            Err(error) => return Err(unreachable(&self.options, &error)),
        })
    }

    fn subscribe(&mut self, filters: Vec<String>, qos: Qos) {
        use v5::mqttbytes::QoS;
        use v5::mqttbytes::v5::{Filter, RetainForwardRule};
        let is_own = filters.iter().all(|filter| filter.starts_with("$SYS/"));
        let qos = match qos {
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
            Qos::ExactlyOnce => QoS::ExactlyOnce,
        };
        let filters = filters.into_iter().map(|text| {
            let mut filter = Filter::new(text, qos);
            // What is kept is wanted of the broker itself only.
            filter.retain_forward_rule =
                if is_own { RetainForwardRule::OnEverySubscribe } else { RetainForwardRule::Never };
            filter
        });
        // There is room for every request of the conversation.
        let _ = self.client.try_subscribe_many(filters);
    }

    fn disconnect(&mut self) {
        let _ = self.client.try_disconnect();
    }
}

/// MQTT 3.1.1 with a session that ends with the connection.
pub(super) fn v4_options(options: &Options, client_id: String) -> Result<rumqttc::MqttOptions, ProbeError> {
    let mut connect = rumqttc::MqttOptions::new(client_id, options.host.clone(), options.port);
    let packet_bytes_max = usize::try_from(PACKET_BYTES_MAX).unwrap_or(usize::MAX);
    connect
        .set_clean_session(true)
        .set_keep_alive(KEEP_ALIVE)
        .set_max_packet_size(packet_bytes_max, packet_bytes_max);
    let access = options.access().map_err(|error| ProbeError::File(error.to_string()))?;
    if let Some(Login { username, password }) = access.login {
        connect.set_credentials(username, password.reveal());
    }
    #[cfg(feature = "tls")]
    if let Some(connector) = access.connector {
        connect.set_transport(rumqttc::Transport::tls_with_config(connector.into()));
    }
    Ok(connect)
}

/// Why an MQTT 3.1.1 connection was not made, or ended.
pub(super) fn v4_error(options: &Options, error: rumqttc::ConnectionError) -> ProbeError {
    use mqttbytes::v4::ConnectReturnCode;
    let rumqttc::ConnectionError::ConnectionRefused(code) = error else {
        return unreachable(options, &error);
    };
    ProbeError::Refused(match code {
        ConnectReturnCode::BadUserNamePassword => WRONG_LOGIN.to_owned(),
        ConnectReturnCode::NotAuthorized => not_authorized(options),
        ConnectReturnCode::RefusedProtocolVersion => {
            "it does not speak MQTT 3.1.1; set mqtt.protocol = 5".to_owned()
        }
        other => format!("{other:?}"),
    })
}

pub(super) struct V4 {
    options: Options,
    client: rumqttc::AsyncClient,
    events: Box<rumqttc::EventLoop>,
}

impl V4 {
    pub(super) fn open(options: &Options, client_id: String) -> Result<Self, ProbeError> {
        let mut connect = v4_options(options, client_id)?;
        connect.set_manual_acks(true);
        let (client, events) = rumqttc::AsyncClient::new(connect, REQUESTS_MAX);
        Ok(Self { options: options.clone(), client, events: Box::new(events) })
    }
}

impl Session for V4 {
    async fn next(&mut self) -> Result<Heard, ProbeError> {
        use mqttbytes::QoS;
        use mqttbytes::v4::{Packet, SubscribeReasonCode};
        Ok(match Box::pin(self.events.poll()).await {
            Ok(rumqttc::Event::Incoming(Packet::ConnAck(_))) => Heard::Connected,
            Ok(rumqttc::Event::Incoming(Packet::SubAck(answer))) => {
                let granted = answer.return_codes.into_iter().map(|code| match code {
                    SubscribeReasonCode::Success(QoS::AtMostOnce) => Ok(Qos::AtMostOnce),
                    SubscribeReasonCode::Success(QoS::AtLeastOnce) => Ok(Qos::AtLeastOnce),
                    SubscribeReasonCode::Success(QoS::ExactlyOnce) => Ok(Qos::ExactlyOnce),
                    SubscribeReasonCode::Failure => Err("no reason given".to_owned()),
                });
                Heard::Granted(granted.collect())
            }
            Ok(rumqttc::Event::Incoming(Packet::Publish(publish))) => {
                Heard::Publish(publish.topic.into_bytes(), publish.payload)
            }
            Ok(_) => Heard::Other,
            Err(error) => return Err(v4_error(&self.options, error)),
        })
    }

    fn subscribe(&mut self, filters: Vec<String>, qos: Qos) {
        use mqttbytes::QoS;
        let qos = match qos {
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
            Qos::ExactlyOnce => QoS::ExactlyOnce,
        };
        let filters = filters.into_iter().map(|text| mqttbytes::v4::SubscribeFilter::new(text, qos));
        let _ = self.client.try_subscribe_many(filters);
    }

    fn disconnect(&mut self) {
        let _ = self.client.try_disconnect();
    }
}
