//! Asks the MQTT broker, and words what it grants and tells.

use std::time::Duration;

use super::finding::{Area, Finding};
use crate::buffer::probe::{self as buffer_probe, Owner};
use crate::cli::exit;
use crate::config::Config;
use crate::ingest::mqtt::{Options, Qos};
use crate::ingest::mqtt_probe::{self, Broker, Found};

pub(super) async fn findings(config: &Config, timeout: Duration) -> Vec<Finding> {
    let Some(options) = &config.mqtt else {
        return vec![Finding::skip(Area::Mqtt, "off: mqtt.url is not set")];
    };
    let (host, port) = (&options.host, options.port);
    match mqtt_probe::probe(options, timeout).await {
        Ok(found) => {
            let was_here = config.buffer.dir.exists();
            let is_away = matches!(buffer_probe::owner(&config.buffer.dir), Ok(Owner::Nobody));
            of(options, &found, is_away.then_some(was_here))
        }
        Err(error) => {
            let message = format!("{host}:{port}: {error}");
            vec![Finding::fail(Area::Mqtt, exit::TEMPORARY, message).about("mqtt.url")]
        }
    }
}

/// `away`: the agent does not run; whether it has run before.
fn of(options: &Options, found: &Found, away: Option<bool>) -> Vec<Finding> {
    let broker = format!("{}:{}", options.host, options.port);
    let mut findings = vec![Finding::ok(Area::Mqtt, format!("{broker}: lets us in, {}", found.version))];
    for (filter, reason) in &found.refused {
        let message = format!(
            "{broker}: refuses the filter {filter} ({reason}): none of its publishes come in; let the agent's user read it in \
             the broker's access list, or take it out of mqtt.topics"
        );
        findings.push(Finding::fail(Area::Mqtt, exit::TEMPORARY, message).about("mqtt.topics"));
    }
    for (filter, granted) in &found.lowered {
        let (asked, granted) = (number(options.qos), number(*granted));
        let lost = if granted == 0 {
            "nothing is acknowledged, and what is published while the agent is away, or its buffer full, is lost"
        } else {
            "a publish may come twice after a reconnect, and is two events then"
        };
        let message = format!(
            "{broker}: grants QoS {granted} for {filter} and not {asked}: {lost}; raise the broker's limit (max_qos of Mosquitto's \
             listener), or set mqtt.qos = {granted}"
        );
        findings.push(Finding::warn(Area::Mqtt, message).about("mqtt.qos"));
    }
    match &found.broker {
        Some(told) => findings.extend(told_by(&broker, told, away)),
        None => findings.push(Finding::skip(
            Area::Mqtt,
            format!(
                "{broker}: tells nothing of itself under $SYS: look there whether it keeps sessions over a restart, and how many \
                 publishes for an agent that is away"
            ),
        )),
    }
    findings
}

fn told_by(broker: &str, told: &Broker, away: Option<bool>) -> Vec<Finding> {
    let Broker { version, dropped, away: sessions, stored } = told;
    let stored = stored.map_or_else(String::new, |stored| format!(", holds {stored} messages"));
    let mut findings = vec![Finding::ok(
        Area::Mqtt,
        format!(
            "{broker}: {version}{stored}; whether it keeps sessions over a restart (persistence) and how many publishes for an \
             agent that is away (max_queued_messages, 1000 by default) is in its configuration alone"
        ),
    )];
    if let Some(dropped) = dropped.filter(|dropped| *dropped > 0) {
        let message = format!(
            "{broker}: has dropped {dropped} publishes since its start, most often because a client's queue was full: they never \
             reach the agent, if it was the client; raise max_queued_messages and max_queued_bytes, and see that the agent runs"
        );
        findings.push(Finding::warn(Area::Mqtt, message).about("mqtt.url"));
    }
    match (away, sessions) {
        (Some(true), Some(0)) => {
            let message = format!(
                "{broker}: keeps no session of any client that is away, and the agent is: what is published until it starts is lost; \
                 set persistence true and no persistent_client_expiration, if it was not stopped just now"
            );
            findings.push(Finding::warn(Area::Mqtt, message).about("mqtt.client_id"));
        }
        (Some(false), _) => findings.push(Finding::ok(
            Area::Mqtt,
            format!("{broker}: keeps what is published for the agent from its first start on"),
        )),
        (Some(true), Some(sessions)) => findings.push(Finding::ok(
            Area::Mqtt,
            format!("{broker}: sessions of clients that are away: {sessions}; it does not tell whose"),
        )),
        _ => {}
    }
    findings
}

fn number(qos: Qos) -> u8 {
    match qos {
        Qos::AtMostOnce => 0,
        Qos::AtLeastOnce => 1,
        Qos::ExactlyOnce => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::finding::Level;

    #[test]
    fn a_refused_filter_is_a_failure_and_a_silent_broker_is_said() {
        let environment = [("FIELDPOST_MQTT__URL", "mqtt://b:1"), ("FIELDPOST_AGENT__ID", "a")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::load(None, environment.into_iter()).unwrap().config;
        let refused = vec![("a/+".to_owned(), "NotAuthorized".to_owned())];
        let found = Found { version: "MQTT 5", refused, ..Found::default() };
        let findings = of(config.mqtt.as_ref().unwrap(), &found, None);
        let levels: Vec<Level> = findings.iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Ok, Level::Fail, Level::Skip]);
        assert!(
            findings[1]
                .message
                .contains("b:1: refuses the filter a/+ (NotAuthorized): none of its publishes come in")
        );
        assert!(findings[2].message.contains("tells nothing of itself under $SYS"));
    }
}
