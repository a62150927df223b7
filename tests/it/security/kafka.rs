//! Kafka.

use std::collections::BTreeMap;

use super::pki::{Flaw, Pki};
use super::{MENDED, explained, hand_in};
use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{Pace, Producer, Stored, assert_no_duplicates, assert_whole_and_in_order};
use crate::harness::kafka::{consume_count, create_topic, read_all};
use crate::harness::services::{Private, Service, kafka_tool};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

/// One broker with a listener for each case, beside the plain one, on which everybody may do everything.
const LISTENERS: &str = "
listeners=PLAINTEXT://127.0.0.1:@PORT@,CONTROLLER://127.0.0.1:@CONTROLLER_PORT@,TLS://127.0.0.1:@SPARE_PORT@,\
MUTUAL://127.0.0.1:@SPARE_PORT_2@,EXPIRED://127.0.0.1:@SPARE_PORT_3@,OTHER://127.0.0.1:@SPARE_PORT_4@,\
SASL://127.0.0.1:@SPARE_PORT_5@
advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,TLS://localhost:@SPARE_PORT@,MUTUAL://127.0.0.1:@SPARE_PORT_2@,\
EXPIRED://localhost:@SPARE_PORT_3@,OTHER://localhost:@SPARE_PORT_4@,SASL://localhost:@SPARE_PORT_5@
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,MUTUAL:SSL,EXPIRED:SSL,OTHER:SSL,SASL:SASL_SSL
ssl.keystore.type=PEM
ssl.truststore.type=PEM
ssl.truststore.location=@PKI@/ca.pem
listener.name.tls.ssl.keystore.location=@PKI@/broker.both
listener.name.mutual.ssl.keystore.location=@PKI@/broker.both
listener.name.mutual.ssl.client.auth=required
listener.name.expired.ssl.keystore.location=@PKI@/expired.both
listener.name.other.ssl.keystore.location=@PKI@/other-name.both
listener.name.sasl.ssl.keystore.location=@PKI@/broker.both
listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_agent=\"plain-secret\";
listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule \
required unsecuredLoginStringClaim_sub=\"broker\";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:CN=agent;User:agent
";

/// The broker and its files.
struct Secured {
    pki: Pki,
    kafka: Private,
}

impl Secured {
    fn start() -> Self {
        let pki = Pki::of_a_broker();
        let kafka = Private::with_settings(Service::Kafka, &pki.settings(LISTENERS));
        Self { pki, kafka }
    }

    fn topic(&self) -> String {
        create_topic(self.kafka.address(), 2)
    }

    /// An agent of the listener at `port`, trusting `ca.pem`; `NAME.` of `own` are files of its own.
    fn agent(&self, port: u16, topic: &str, configure: impl FnOnce(&mut Config)) -> Agent {
        let ca_file = self.pki.text("ca.pem");
        Agent::start(|config| {
            config.kafka(&format!("localhost:{port}"), topic);
            config.set("kafka.tls", true).set("kafka.ca_file", ca_file);
            configure(config);
        })
    }

    #[track_caller]
    fn arrives(&self, topic: &str) {
        consume_count(self.kafka.address(), topic, 1, MENDED);
        let stored: Vec<Stored> = read_all(self.kafka.address(), topic).iter().map(Stored::of).collect();
        assert_no_duplicates(&stored);
    }
}

#[test]
fn what_is_wrong_with_a_certificate_is_said_and_mended_without_a_restart() {
    let secured = Secured::start();
    let pki = &secured.pki;
    let (tls, mutual) = (secured.kafka.spare_port(), secured.kafka.spare_port_of(2));
    // As it should be, the second one with a certificate and an encrypted key.
    let topic = secured.topic();
    let good = secured.agent(tls, &topic, |_| {});
    hand_in(&good, "s");
    secured.arrives(&topic);
    pki.issue_encrypted("encrypted", "key-secret");
    pki.write("key-password", b"key-secret\n");
    let topic = secured.topic();
    let encrypted = secured.agent(mutual, &topic, |config| {
        config
            .set("kafka.cert_file", pki.text("encrypted.pem"))
            .set("kafka.key_file", pki.text("encrypted.key"));
        config.set("kafka.key_password_file", pki.text("key-password"));
    });
    hand_in(&encrypted, "s");
    explained(&encrypted, "Kafka refuses the topic", &["the agent's rights"]);
    drop((good, encrypted));

    // Wrong at the agent: mended there.
    let with = |name: &'static str| {
        move |config: &mut Config| {
            config.set("kafka.cert_file", pki.text(&format!("{name}.pem")));
            config.set("kafka.key_file", pki.text(&format!("{name}.key")));
        }
    };
    pki.copy("other-ca.pem", "own-ca.pem");
    pki.issue("old", Flaw::Expired);
    pki.issue("foreign", Flaw::OtherAuthority);
    let topics: Vec<String> = (0..4).map(|_| secured.topic()).collect();
    let unknown = secured.agent(tls, &topics[0], |config| {
        config.set("kafka.ca_file", pki.text("own-ca.pem"));
    });
    let old = secured.agent(mutual, &topics[1], with("old"));
    let foreign = secured.agent(mutual, &topics[2], with("foreign"));
    let bare = secured.agent(mutual, &topics[3], |_| {});
    for agent in [&unknown, &old, &foreign, &bare] {
        hand_in(agent, "s");
    }
    const REFUSED: &str = "Kafka refuses the agent, or the agent Kafka";
    explained(&unknown, REFUSED, &["no authority that the agent trusts", "set kafka.ca_file"]);
    explained(&old, REFUSED, &["has expired: renew the file of kafka.cert_file"]);
    explained(&foreign, REFUSED, &["an authority that it knows sign the one of kafka.cert_file"]);
    explained(&bare, REFUSED, &["set kafka.cert_file and kafka.key_file"]);
    pki.copy("ca.pem", "own-ca.pem");
    for name in ["old", "foreign"] {
        // The broker lets only CN=agent write.
        for kind in ["key", "pem"] {
            pki.copy(&format!("agent.{kind}"), &format!("{name}.{kind}"));
        }
    }
    topics[..3].iter().for_each(|topic| secured.arrives(topic));
    drop((unknown, old, foreign, bare));

    // Wrong at the broker: mended there.
    let topics: Vec<String> = (0..2).map(|_| secured.topic()).collect();
    let expired = secured.agent(secured.kafka.spare_port_of(3), &topics[0], |_| {});
    let other = secured.agent(secured.kafka.spare_port_of(4), &topics[1], |_| {});
    for agent in [&expired, &other] {
        hand_in(agent, "s");
    }
    explained(&expired, REFUSED, &["the server's certificate has expired: renew it there"]);
    explained(&other, REFUSED, &["certificate is not for localhost", "kafka.brokers"]);
    secured.kafka.end();
    for name in ["expired", "other-name"] {
        pki.copy("broker.both", &format!("{name}.both"));
    }
    secured.kafka.begin_again();
    topics.iter().for_each(|topic| secured.arrives(topic));
}

/// A token as the broker's development mode takes it: without a signature.
fn token(subject: &str) -> String {
    use base64::Engine as _;
    let encode = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = format!(r#"{{"sub":"{subject}","iat":{now},"exp":{}}}"#, now + 3600);
    format!("{}.{}.", encode(r#"{"alg":"none"}"#.to_owned()), encode(claims))
}

#[test]
fn every_login_works_and_a_wrong_one_is_explained_and_mended_without_a_restart() {
    let secured = Secured::start();
    let sasl = secured.kafka.spare_port_of(5);
    let brokers = secured.kafka.address();
    let alter = ["--alter", "--entity-type", "users", "--entity-name"];
    for (user, mechanism) in [("agent", 256), ("agent", 512), ("guest", 512)] {
        let added = format!("SCRAM-SHA-{mechanism}=[password=scram-secret]");
        let arguments =
            [&["--bootstrap-server", brokers], &alter[..], &[user, "--add-config", &added]].concat();
        kafka_tool("kafka.admin.ConfigCommand", &arguments);
    }
    let pki = &secured.pki;
    let cases = [
        ("PLAIN", "plain-secret".to_owned()),
        ("SCRAM-SHA-256", "scram-secret".to_owned()),
        ("SCRAM-SHA-512", "scram-secret".to_owned()),
        ("OAUTHBEARER", token("agent")),
    ];
    let agents: Vec<(Agent, String, String, &String)> = cases
        .iter()
        .map(|(mechanism, right)| {
            let (file, topic) = (format!("{mechanism}.secret"), secured.topic());
            let by_token = *mechanism == "OAUTHBEARER";
            let wrong = if by_token { "no-token-at-all" } else { "wrong-secret" };
            pki.write(&file, wrong.as_bytes());
            let agent = secured.agent(sasl, &topic, |config| {
                config.set("kafka.sasl_mechanism", *mechanism);
                if by_token {
                    config.set("kafka.token_file", pki.text(&file));
                } else {
                    config.set("kafka.username", "agent").set("kafka.password_file", pki.text(&file));
                }
            });
            hand_in(&agent, "s");
            (agent, file, topic, right)
        })
        .collect();
    for (agent, file, topic, right) in &agents {
        let key = if file.starts_with("OAUTH") { "kafka.token_file" } else { "kafka.password_file" };
        explained(agent, "Kafka refuses the agent, or the agent Kafka", &[key]);
        assert!(!agent.log().join("\n").contains("wrong-secret"));
        pki.write(file, right.as_bytes());
        secured.arrives(topic);
    }
    drop(agents);

    // A user without rights, until it gets them.
    pki.write("guest.secret", b"scram-secret");
    let topic = secured.topic();
    let guest = secured.agent(sasl, &topic, |config| {
        config.set("kafka.sasl_mechanism", "SCRAM-SHA-512").set("kafka.username", "guest");
        config.set("kafka.password_file", pki.text("guest.secret"));
    });
    hand_in(&guest, "s");
    explained(&guest, "Kafka refuses the topic", &["look at kafka.topic and the agent's rights"]);
    let rights = ["--add", "--allow-principal", "User:guest", "--producer", "--topic", &topic];
    kafka_tool(
        "org.apache.kafka.tools.AclCommand",
        &[&["--bootstrap-server", brokers], &rights[..]].concat(),
    );
    secured.arrives(&topic);
}

#[test]
fn rotation_in_full_flow_loses_nothing_and_sends_nothing_twice() {
    let secured = Secured::start();
    for delivery in ["at_least_once", "exactly_once"] {
        rotate(&secured, delivery);
    }
}

fn rotate(secured: &Secured, delivery: &str) {
    let pki = &secured.pki;
    let topic = secured.topic();
    pki.issue("agent", Flaw::None);
    for kind in ["key", "pem"] {
        pki.copy(&format!("agent.{kind}"), &format!("rotated.{kind}"));
    }
    let agent = secured.agent(secured.kafka.spare_port_of(2), &topic, |config| {
        config.set("kafka.cert_file", pki.text("rotated.pem")).set("kafka.key_file", pki.text("rotated.key"));
        config.set("kafka.delivery", delivery);
    });
    agent.wait_log("Kafka link up", USUAL);
    let pace = Pace { rate: Some(1000), ..Pace::default() };
    let source = unique("s");
    let producer = Producer::start(&agent.socket(), &source, pace);
    const MADE_ANEW: &str = "the Kafka producer was made anew";
    for round in 1..=3 {
        // Half a change, as a tool that writes two files leaves it for a moment: the old producer goes on.
        pki.issue("agent", Flaw::None);
        pki.copy("agent.pem", "rotated.pem");
        eventually("the half change is seen", MENDED, || {
            (agent.log_count("changed files are of no use") >= round).then_some(())
        });
        pki.copy("agent.key", "rotated.key");
        eventually("a producer is made anew", MENDED, || (agent.log_count(MADE_ANEW) >= round).then_some(()));
    }
    // What does not work does not take over.
    let sent = producer.sent();
    pki.issue("stranger", Flaw::OtherAuthority);
    for kind in ["key", "pem"] {
        pki.copy(&format!("stranger.{kind}"), &format!("rotated.{kind}"));
    }
    explained(&agent, "changed files do not open a link to Kafka, the old one stays", &["kafka.cert_file"]);
    eventually("events go on", USUAL, || (producer.sent() > sent + 2000).then_some(()));
    let count = producer.finish(USUAL);
    let records = consume_count(secured.kafka.address(), &topic, usize::try_from(count).unwrap(), MENDED);
    let stored: Vec<Stored> = records.iter().map(Stored::of).collect();
    assert_whole_and_in_order(&stored, &BTreeMap::from([(source, count)]));
    assert_no_duplicates(
        &read_all(secured.kafka.address(), &topic).iter().map(Stored::of).collect::<Vec<_>>(),
    );
    assert_eq!(agent.log_count("Kafka link down"), 0);
    assert_eq!(agent.log_count(MADE_ANEW), 3);
}

#[test]
fn tail_reads_a_topic_over_tls_with_a_login() {
    let secured = Secured::start();
    let (pki, topic) = (&secured.pki, secured.topic());
    let added = "SCRAM-SHA-512=[password=scram-secret]";
    let user = ["--alter", "--entity-type", "users", "--entity-name", "agent", "--add-config", added];
    kafka_tool(
        "kafka.admin.ConfigCommand",
        &[&["--bootstrap-server", secured.kafka.address()], &user[..]].concat(),
    );
    pki.write("right", b"scram-secret");
    pki.write("wrong", b"wrong-secret");
    let mut agent = secured.agent(secured.kafka.spare_port_of(5), &topic, |config| {
        config.set("kafka.sasl_mechanism", "SCRAM-SHA-512").set("kafka.username", "agent");
        config.set("kafka.password_file", pki.text("right"));
    });
    hand_in(&agent, "s");
    secured.arrives(&topic);
    let words = ["tail", "--from", "kafka", "--offset", "beginning", "--until", "end", "--json"];
    let read = |agent: &Agent| {
        let output = agent.command(&words).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, shown, said) = read(&agent);
    assert!(
        code == Some(0) && shown.lines().count() == 1 && shown.contains("\"id\":\"s-0\""),
        "{shown}{said}"
    );
    for (key, file, part) in [
        ("kafka.ca_file", "other-ca.pem", "set kafka.ca_file"),
        ("kafka.password_file", "wrong", "kafka.password_file"),
    ] {
        let right = if file == "wrong" { "right" } else { "ca.pem" };
        agent.reconfigure(|config| {
            config.set(key, pki.text(file));
        });
        let (code, shown, said) = read(&agent);
        assert!(code == Some(75) && shown.is_empty() && said.contains(part), "{code:?} {said}");
        assert!(!said.contains("wrong-secret"), "{said}");
        agent.reconfigure(|config| {
            config.set(key, pki.text(right));
        });
    }
}
