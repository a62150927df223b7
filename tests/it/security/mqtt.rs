//! Mosquitto.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Command;

use super::explained;
use super::pki::{Flaw, Pki};
use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{Stored, assert_no_duplicates, assert_whole_and_in_order, kept_by_position};
use crate::harness::kafka::{consume_count, create_topic, read_all};
use crate::harness::mqtt::Publisher;
use crate::harness::services::{Private, Service, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

use super::MENDED;

/// A broker with a TLS listener for each case beside the plain one, from which sensors publish.
const LISTENERS: &str = "
listener @SPARE_PORT@ 127.0.0.1
cafile @PKI@/ca.pem
certfile @PKI@/broker.pem
keyfile @PKI@/broker.key
listener @SPARE_PORT_2@ 127.0.0.1
cafile @PKI@/ca.pem
certfile @PKI@/broker.pem
keyfile @PKI@/broker.key
require_certificate true
listener @SPARE_PORT_3@ 127.0.0.1
cafile @PKI@/ca.pem
certfile @PKI@/expired.pem
keyfile @PKI@/expired.key
listener @SPARE_PORT_4@ 127.0.0.1
cafile @PKI@/ca.pem
certfile @PKI@/other-name.pem
keyfile @PKI@/other-name.key
";

struct Secured {
    pki: Pki,
    broker: Private,
}

/// An agent with the topics of its own.
struct Station {
    agent: Agent,
    prefix: String,
    topic: String,
}

impl Secured {
    fn start() -> Self {
        Self::start_with(LISTENERS)
    }

    fn start_with(listeners: &str) -> Self {
        let pki = Pki::of_a_broker();
        let broker = Private::with_settings(Service::Mosquitto, &pki.settings(listeners));
        Self { pki, broker }
    }

    /// An agent of the listener at `port` that trusts `ca.pem`.
    fn station(&self, protocol: u8, port: u16, configure: impl FnOnce(&mut Config)) -> Station {
        let (prefix, topic) = (unique("tls"), create_topic(&Shared::get().kafka, 2));
        let filter = format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}");
        let agent = Agent::start(|config| {
            config.mqtt(&format!("mqtts://localhost:{port}"), &[&filter]).shared_kafka(&topic);
            config.set("mqtt.protocol", protocol).set("mqtt.ca_file", self.pki.text("ca.pem"));
            configure(config);
        });
        Station { agent, prefix, topic }
    }

    /// The station subscribes, and what a sensor publishes arrives.
    #[track_caller]
    fn works(&self, station: &Station) {
        let mut sensor = Publisher::connect(self.broker.address());
        let topic = format!("{}/probe/s/reading", station.prefix);
        eventually("an event arrives", MENDED, || {
            sensor.publish(1, &topic, "1");
            (!read_all(&Shared::get().kafka, &station.topic).is_empty()).then_some(())
        });
    }
}

#[test]
fn what_is_wrong_with_a_certificate_is_said_and_mended_without_a_restart() {
    let secured = Secured::start();
    let pki = &secured.pki;
    let (tls, mutual) = (secured.broker.spare_port(), secured.broker.spare_port_of(2));
    let own = |name: &'static str| {
        move |config: &mut Config| {
            config.set("mqtt.cert_file", pki.text(&format!("{name}.pem")));
            config.set("mqtt.key_file", pki.text(&format!("{name}.key")));
        }
    };
    for protocol in [5, 4] {
        secured.works(&secured.station(protocol, tls, |_| {}));
        secured.works(&secured.station(protocol, mutual, own("agent")));

        // Wrong at the agent: mended there.
        const NO_TLS: &str = "no TLS with the MQTT broker";
        pki.copy("other-ca.pem", "own-ca.pem");
        pki.issue("old", Flaw::Expired);
        pki.issue("foreign", Flaw::OtherAuthority);
        pki.copy("agent.pem", "half.pem");
        pki.copy("foreign.key", "half.key");
        let unknown = secured.station(protocol, tls, |config| {
            config.set("mqtt.ca_file", pki.text("own-ca.pem"));
        });
        let old = secured.station(protocol, mutual, own("old"));
        let foreign = secured.station(protocol, mutual, own("foreign"));
        let bare = secured.station(protocol, mutual, |_| {});
        let half = secured.station(protocol, mutual, own("half"));
        explained(&unknown.agent, NO_TLS, &["set mqtt.ca_file"]);
        explained(&old.agent, NO_TLS, &["has expired: renew the file of mqtt.cert_file"]);
        explained(&foreign.agent, NO_TLS, &["an authority that it knows sign the one of mqtt.cert_file"]);
        explained(&bare.agent, NO_TLS, &["set mqtt.cert_file and mqtt.key_file"]);
        explained(
            &half.agent,
            "the MQTT link cannot be made",
            &["is not the key of the certificate in", "half.key"],
        );
        pki.copy("ca.pem", "own-ca.pem");
        for name in ["old", "foreign", "half"] {
            for kind in ["key", "pem"] {
                pki.copy(&format!("agent.{kind}"), &format!("{name}.{kind}"));
            }
        }
        [unknown, old, foreign, half].iter().for_each(|station| secured.works(station));

        // Wrong at the broker: mended there.
        let expired = secured.station(protocol, secured.broker.spare_port_of(3), |_| {});
        let other = secured.station(protocol, secured.broker.spare_port_of(4), |_| {});
        explained(&expired.agent, NO_TLS, &["the server's certificate has expired: renew it there"]);
        explained(&other.agent, NO_TLS, &["certificate is not for localhost", "mqtt.url"]);
        let swap = |from: [&str; 2]| {
            secured.broker.end();
            for (from, to) in from.into_iter().zip(["expired", "other-name"]) {
                for kind in ["key", "pem"] {
                    pki.copy(&format!("{from}.{kind}"), &format!("{to}.{kind}"));
                }
            }
            secured.broker.begin_again();
        };
        for name in ["expired", "other-name"] {
            for kind in ["key", "pem"] {
                pki.copy(&format!("{name}.{kind}"), &format!("{name}-kept.{kind}"));
            }
        }
        swap(["broker", "broker"]);
        [expired, other].iter().for_each(|station| secured.works(station));
        swap(["expired-kept", "other-name-kept"]);
    }
}

#[test]
fn an_ipv6_address_is_verified_as_an_address() {
    if let Err(problem) = TcpListener::bind("[::1]:0") {
        // Past the capture of a passing test's output.
        writeln!(std::io::stderr(), "MQTT over IPv6 is NOT TESTED: no [::1] on this machine: {problem}")
            .unwrap();
        return;
    }
    let secured = Secured::start_with(&LISTENERS.replace(" 127.0.0.1\n", " ::1\n"));
    let station = |protocol: u8, port: u16| {
        secured.station(protocol, port, |config| {
            config.set("mqtt.url", format!("mqtts://[::1]:{port}"));
        })
    };
    for protocol in [5, 4] {
        secured.works(&station(protocol, secured.broker.spare_port()));
        let other = station(protocol, secured.broker.spare_port_of(4));
        explained(&other.agent, "no TLS with the MQTT broker", &["certificate is not for ::1", "mqtt.url"]);
    }
}

#[test]
fn a_wrong_password_is_mended_without_a_restart() {
    let pki = Pki::new();
    let users = pki.text("users");
    let made = Command::new("mosquitto_passwd").args(["-b", "-c", &users, "agent", "right"]).output();
    assert!(made.is_ok_and(|made| made.status.success()), "mosquitto_passwd, of Debian's mosquitto");
    let broker = Private::with_settings(Service::Mosquitto, &format!("password_file {users}"));
    for protocol in [5, 4] {
        pki.write("password", b"wrong-secret");
        let topic = create_topic(&Shared::get().kafka, 2);
        let prefix = unique("login");
        let agent = Agent::start(|config| {
            config.mqtt(broker.address(), &[&format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}")]);
            config.shared_kafka(&topic).set("mqtt.protocol", protocol);
            config.set("mqtt.username", "agent").set("mqtt.password_file", pki.text("password"));
        });
        explained(&agent, "MQTT broker refuses the connection", &["mqtt.username and mqtt.password_file"]);
        pki.write("password", b"right\n");
        agent.wait_log("MQTT link up", MENDED);
        let mut sensor = Publisher::connect(broker.address());
        eventually("an event arrives", USUAL, || {
            sensor.publish(1, &format!("{prefix}/probe/s/reading"), "1");
            (!read_all(&Shared::get().kafka, &topic).is_empty()).then_some(())
        });
        assert!(!agent.log().join("\n").contains("wrong-secret"));
    }
}

#[test]
fn rotation_in_full_flow_loses_nothing_and_stores_nothing_twice() {
    let secured = Secured::start();
    let pki = &secured.pki;
    let copy = |name: &str| {
        for kind in ["key", "pem"] {
            pki.copy(&format!("{name}.{kind}"), &format!("rotated.{kind}"));
        }
    };
    copy("agent");
    let station = secured.station(5, secured.broker.spare_port_of(2), |config| {
        config.set("mqtt.cert_file", pki.text("rotated.pem")).set("mqtt.key_file", pki.text("rotated.key"));
    });
    secured.works(&station);
    let source = unique("s");
    let mut sensor = Publisher::connect(secured.broker.address());
    let topic = format!("{}/probe/{source}/reading", station.prefix);
    let mut published = 0_u64;
    for round in 1..=2 {
        pki.issue("agent", Flaw::None);
        copy("agent");
        eventually("the link is made anew", MENDED, || {
            for _ in 0..20 {
                let body = format!(r#"{{"id":"{source}-{published}","payload":{{"n":{published}}}}}"#);
                sensor.publish(1, &topic, &body);
                published += 1;
            }
            (station.agent.log_count("a file of the MQTT link changed") >= round).then_some(())
        });
    }
    let is_its = |record: &&crate::harness::kafka::Record| record.key_text() == source;
    let of_source = || -> Vec<_> {
        let records = read_all(&Shared::get().kafka, &station.topic);
        records.iter().filter(is_its).cloned().collect()
    };
    eventually("everything arrives", MENDED, || (of_source().len() as u64 >= published).then_some(()));
    consume_count(&Shared::get().kafka, &station.topic, usize::try_from(published).unwrap(), USUAL);
    let records = of_source();
    let stored: Vec<Stored> = records.iter().map(Stored::of).collect();
    assert_no_duplicates(&stored);
    assert_whole_and_in_order(&kept_by_position(&records), &BTreeMap::from([(source, published)]));
    assert!(station.agent.log_count("MQTT link down") == 0);
}
