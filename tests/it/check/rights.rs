//! The agent's rights, learnt without a record.

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Report;
use crate::harness::agent::{Agent, Config};
use crate::harness::flow::line_of;
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::services::{Private, Service, kafka_tool};
use crate::harness::unique;
use crate::harness::wait::USUAL;

/// Beside the plain listener, on which everybody may do everything, one with a user who may do nothing yet.
const LISTENERS: &str = "
listeners=PLAINTEXT://127.0.0.1:@PORT@,CONTROLLER://127.0.0.1:@CONTROLLER_PORT@,SASL://127.0.0.1:@SPARE_PORT@
advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,SASL://127.0.0.1:@SPARE_PORT@
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT
listener.name.sasl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_guest=\"guest-secret\";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
";

struct Guarded(Private);

impl Guarded {
    fn start() -> Self {
        Self(Private::with_settings(Service::Kafka, LISTENERS))
    }

    /// An agent of the user, which is not started.
    fn agent(&self, topic: &str, configure: impl FnOnce(&mut Config)) -> Agent {
        let brokers = format!("127.0.0.1:{}", self.0.spare_port());
        let agent = Agent::prepare(|config| {
            config.kafka(&brokers, topic).set("kafka.sasl_mechanism", "PLAIN");
            config.set("kafka.username", "guest").set("kafka.password_file", "guest.secret");
            configure(config);
        });
        std::fs::write(agent.home().join("guest.secret"), "guest-secret").unwrap();
        agent
    }

    fn allow(&self, rights: &[&str]) {
        let user = ["--bootstrap-server", self.0.address(), "--add", "--allow-principal", "User:guest"];
        kafka_tool("org.apache.kafka.tools.AclCommand", &[&user, rights].concat());
    }
}

#[test]
fn without_transactions_the_right_to_produce_is_learnt_without_a_record() {
    let guarded = Guarded::start();
    let topic = create_topic(guarded.0.address(), 1);
    let agent = guarded.agent(&topic, |_| {});
    guarded.allow(&["--operation", "DESCRIBE", "--topic", &topic]);
    let report = Report::of(&agent);
    report.says(
        "kafka",
        "fail",
        "may not produce: it has WRITE on no topic: its events stay in the buffer; give its user",
    );
    assert_eq!(report.code, 75);
    guarded.allow(&["--operation", "WRITE", "--topic", &topic]);
    let report = Report::of(&agent);
    report.says("kafka", "ok", "may produce");
    assert_eq!((report.code, offset_behind_all(guarded.0.address(), &topic)), (0, 0));
}

#[test]
fn a_dry_transaction_tries_every_right_and_leaves_no_record() {
    let guarded = Guarded::start();
    let brokers = guarded.0.address();
    let (topic, letters) = (create_topic(brokers, 1), create_topic(brokers, 1));
    let id = unique("agent");
    let (own, cursors) = (format!("fieldpost.{id}"), "kafka.cursor_topic");
    let exactly_once = |config: &mut Config| {
        config.set("agent.id", id.as_str()).set("kafka.delivery", "exactly_once");
    };
    let agent = guarded.agent(&topic, |config| {
        exactly_once(config);
        config.set(cursors, letters.as_str()).set("kafka.dead_letter_topic", letters.as_str());
    });
    for topic in [&topic, &letters] {
        guarded.allow(&["--operation", "DESCRIBE", "--topic", topic]);
    }

    let refused = |part: &str| {
        let report = Report::of(&agent);
        report.says("kafka", "fail", part);
        assert_eq!(report.code, 75);
    };
    refused(&format!(
        "may not use the transactional id {own}: its events stay in the buffer; exactly_once cannot begin"
    ));
    // An agent of the same id, with another copy of the configuration and another user.
    let elsewhere = create_topic(brokers, 1);
    let mut running = Agent::start(|config| {
        config.kafka(brokers, &elsewhere);
        exactly_once(config);
    });
    let hand_in = |agent: &Agent, n| agent.unix().send_line(&line_of("s", n, 10));
    hand_in(&running, 0);
    consume_count(brokers, &elsewhere, 1, USUAL);
    let write = ["--operation", "WRITE", "--operation", "DESCRIBE", "--transactional-id", &own];
    guarded.allow(&write);
    let report = Report::of(&agent);
    report.says("kafka", "skip", &format!("may use the transactional id {own}, but not {own}.check"));
    assert_eq!(report.code, 0);
    hand_in(&running, 1);
    consume_count(brokers, &elsewhere, 2, USUAL);
    guarded.allow(&[&write[..], &["--resource-pattern-type", "prefixed"]].concat());
    refused(&format!("may not use the consumer group {own}"));
    guarded.allow(&["--operation", "READ", "--group", &own]);
    refused(&format!("may not read topic {letters}, for which its cursor is kept"));
    guarded.allow(&["--operation", "READ", "--topic", &letters]);
    refused(&format!("may not write topic {topic}, {letters}"));
    guarded.allow(&["--operation", "WRITE", "--topic", &letters]);
    refused(&format!("the agent may not write topic {topic}: its events"));
    guarded.allow(&["--operation", "WRITE", "--topic", &topic]);
    let report = Report::of(&agent);
    report.says("kafka", "ok", &format!("may write {topic}, {letters}, and keep its cursor"));
    report.says("kafka", "ok", "the brokers' clock and this machine's agree within 10 s");
    assert_eq!(report.code, 0);

    // Nothing is left but the marker of the last transaction, for any consumer.
    assert_eq!((offset_behind_all(brokers, &topic), records_of_any_kind(brokers, &topic)), (1, 0));

    // The agent that runs elsewhere was not disturbed, and beside one that runs here nothing is tried.
    let tried = "a running agent has the buffer, so its rights to transactions are not tried";
    Report::of(&running).says("kafka", "skip", tried);
    hand_in(&running, 2);
    consume_count(brokers, &elsewhere, 3, USUAL);
    assert!(running.stop().success());
    assert_eq!(running.log_count("has taken over"), 0);
}

/// Records and markers in the first partition.
fn offset_behind_all(brokers: &str, topic: &str) -> i64 {
    watcher(brokers).fetch_watermarks(topic, 0, USUAL).unwrap().1
}

/// How many records a consumer sees that takes those of transactions that were given up, too.
fn records_of_any_kind(brokers: &str, topic: &str) -> usize {
    let consumer = watcher(brokers);
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&all).unwrap();
    let mut count = 0;
    loop {
        match consumer.poll(USUAL) {
            Some(Ok(_)) => count += 1,
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => return count,
            Some(Err(_)) => {}
            None => panic!("no end of {topic} within {:?}", USUAL),
        }
    }
}

fn watcher(brokers: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", unique("watcher"));
    config.set("isolation.level", "read_uncommitted").set("enable.partition.eof", "true");
    config.create().unwrap()
}
