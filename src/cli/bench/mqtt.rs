//! Load over the MQTT broker: an event is taken once the broker has it, which says nothing of the agent yet.

use std::time::Duration;

use super::load::{KIND, Load};
use super::{Failure, Fate, Target};
use crate::ingest::mqtt::Options;
use crate::ingest::mqtt_probe::ProbeError;
use crate::ingest::mqtt_probe::publisher::Publisher;
use crate::ingest::topic::{Captures, TopicTemplate};

/// A connection to the broker.
pub(super) struct Broker {
    publisher: Publisher,
    topic: TopicTemplate,
}

impl Broker {
    pub(super) async fn open(
        options: Option<&Options>,
        topic: Option<&str>,
        window: u16,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let unavailable = |what: String| Failure::Unavailable(what);
        let options = options.ok_or_else(|| {
            unavailable("no MQTT broker is configured: set mqtt.url, or name a file with --config".into())
        })?;
        let topic = match topic {
            Some(topic) => {
                TopicTemplate::parse(topic).map_err(|error| unavailable(format!("--topic: {error}")))?
            }
            None => options
                .topics
                .first()
                .cloned()
                .ok_or_else(|| unavailable("mqtt.topics is empty: name a topic with --topic".into()))?,
        };
        let publisher = Publisher::open(options, window, timeout)
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        Ok(Self { publisher, topic })
    }
}

impl Target for Broker {
    fn send(&mut self, number: u64, load: &Load) -> Result<bool, Failure> {
        let source_id = load.source_id(number);
        let captures = Captures { kind: Some(KIND), source_type: Some(KIND), source_id: Some(&source_id) };
        Ok(self.publisher.publish(&self.topic.topic(captures, KIND), load.payload(number).into_bytes()))
    }

    async fn heard(&mut self, fates: &mut Vec<(u64, Fate)>) -> Result<(), Failure> {
        let mut next = Some(self.publisher.acknowledged().await);
        while let Some(heard) = next {
            let number = heard.map_err(|error: ProbeError| Failure::Lost(error.to_string()))?;
            fates.push((number, Fate::Taken));
            next = self.publisher.acknowledged_already();
        }
        Ok(())
    }

    fn close(self) {}
}
