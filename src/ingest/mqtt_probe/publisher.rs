//! A sensor for measurements: publishes at QoS 1 to the broker that the agent uses, and hears its acknowledgements.
//!
//! MQTT 3.1.1, which every broker speaks, whatever `mqtt.protocol` says. A connection that breaks is not made again: what
//! was on its way is not known then.

use std::collections::HashMap;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::Packet;
use rumqttc::{AsyncClient, Event, EventLoop, Outgoing};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::ProbeError;
use super::session::{v4_error, v4_options};
use crate::ingest::mqtt::Options;

/// A connection. Dropping it closes it.
#[derive(Debug)]
pub struct Publisher {
    client: AsyncClient,
    acknowledged: mpsc::Receiver<Result<u64, ProbeError>>,
    // Ends with this.
    _conversation: JoinSet<()>,
}

impl Publisher {
    /// Connects with a client id of its own. At most `window` publishes are on their way without a PUBACK.
    ///
    /// # Errors
    /// [`ProbeError`].
    ///
    /// Cancel safe: yes, dropping it closes the connection.
    pub async fn open(options: &Options, window: u16, patience: Duration) -> Result<Self, ProbeError> {
        // Up to 23 letters and digits are what every MQTT 3.1.1 broker must take.
        let mut connect = v4_options(options, format!("fpbench{:012x}", fastrand::u64(..1 << 48)))?;
        connect.set_inflight(window);
        let (client, mut events) = AsyncClient::new(connect, usize::from(window));
        let connected = async {
            loop {
                match Box::pin(events.poll()).await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => return Err(v4_error(options, error)),
                }
            }
        };
        timeout(patience, connected).await.unwrap_or(Err(ProbeError::NoAnswer(patience)))?;
        // One place for the error that ends it.
        let (told, acknowledged) = mpsc::channel(usize::from(window) + 1);
        let mut conversation = JoinSet::new();
        conversation.spawn(converse(events, options.clone(), told));
        Ok(Self { client, acknowledged, _conversation: conversation })
    }

    /// Publishes, without waiting; false: there is no room before an acknowledgement comes.
    pub fn publish(&self, topic: &str, payload: Vec<u8>) -> bool {
        self.client.try_publish(topic, QoS::AtLeastOnce, false, payload).is_ok()
    }

    /// The next publish that the broker has acknowledged: its number, from 0, in the order of [`Publisher::publish`].
    ///
    /// # Errors
    /// [`ProbeError`]: the connection broke; nothing more is heard.
    ///
    /// Cancel safe: yes.
    pub async fn acknowledged(&mut self) -> Result<u64, ProbeError> {
        let ended = || Err(ProbeError::Unreachable("the connection ended".to_owned()));
        self.acknowledged.recv().await.unwrap_or_else(ended)
    }

    /// One that is there already, as [`Publisher::acknowledged`].
    pub fn acknowledged_already(&mut self) -> Option<Result<u64, ProbeError>> {
        self.acknowledged.try_recv().ok()
    }
}

async fn converse(mut events: EventLoop, options: Options, told: mpsc::Sender<Result<u64, ProbeError>>) {
    let (mut next, mut open) = (0, HashMap::new());
    loop {
        let news = match Box::pin(events.poll()).await {
            Ok(Event::Outgoing(Outgoing::Publish(id))) => {
                open.insert(id, next);
                next += 1;
                continue;
            }
            Ok(Event::Incoming(Packet::PubAck(answer))) => match open.remove(&answer.pkid) {
                Some(number) => Ok(number),
                None => continue,
            },
            Ok(_) => continue,
            Err(error) => Err(v4_error(&options, error)),
        };
        let is_end = news.is_err();
        if told.send(news).await.is_err() || is_end {
            return;
        }
    }
}
