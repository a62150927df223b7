//! The line to Kafka fails in every way a test can make it fail: killed, hung, not there yet, refusing.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{
    Pace, Producer, Stored, assert_no_duplicates, assert_whole_and_in_order, finish, first_occurrences,
    kept_by_position, line_of, pass, start_producers,
};
use crate::harness::kafka::{Consumer, Record, consume_count, create_topic, create_topic_named, read_all};
use crate::harness::services::{Persistence, Private, Service, Shared};
use crate::harness::wait::{USUAL, eventually, scaled, within};
use crate::harness::{seed, unique};

const MIB: u64 = 1 << 20;

/// What a drained buffer may keep: a last generation of 8 MiB and what it takes to replace a larger one.
const KEPT: u64 = 16 * MIB;

fn stored(records: &[Record]) -> Vec<Stored> {
    records.iter().map(Stored::of).collect()
}

fn total(acked: &BTreeMap<String, u64>) -> u64 {
    acked.values().sum()
}

/// Kafka, and more time for the disk of a busy machine: a producer sends an event that is refused again, and such an event
/// may be stored twice.
fn patient(config: &mut Config, brokers: &str, topic: &str) {
    let wait = scaled(Duration::from_secs(5)).as_millis();
    config.kafka(brokers, topic).set("limits.append_timeout", format!("{wait}ms"));
}

/// Waits for everything acknowledged, stops the agent in order, and looks at the whole topic: each event once, in the
/// order of its source, positions growing.
#[track_caller]
fn assert_exact(
    agent: &mut Agent,
    reader: &Consumer,
    brokers: &str,
    topic: &str,
    acked: &BTreeMap<String, u64>,
) {
    reader.wait_count(usize::try_from(total(acked)).unwrap(), USUAL * 4);
    assert_eq!(agent.stop().code(), Some(0));
    let records = read_all(brokers, topic);
    let kept = kept_by_position(&records);
    assert_whole_and_in_order(&kept, acked);
    // A client that has lost its way is replaced (confluentinc/librdkafka#5301), as happens on a slow machine; then what it
    // had under way comes again, with its positions.
    if agent.log_count("the Kafka producer was made anew") == 0 {
        assert_no_duplicates(&stored(&records));
        assert_eq!(records.len() as u64, total(acked));
    }
}

#[test]
fn killed_broker_costs_nothing_but_time() {
    const OUTAGE: Duration = Duration::from_secs(30);
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 3);
    let mut agent = Agent::start(|config| patient(config, kafka.address(), &topic));
    let reader = Consumer::start(kafka.address(), &topic);
    let producers = start_producers(
        &agent,
        "outage",
        4,
        Pace { rate: Some(500), window: 2000, padding: 400, ..Pace::default() },
    );
    reader.wait_count(2000, USUAL);
    kafka.kill();
    for producer in &producers {
        producer.reset_longest_wait();
    }
    pass(OUTAGE);
    let waits: Vec<Duration> = producers.iter().map(Producer::longest_wait).collect();
    eprintln!("longest waits for an ack during the outage: {waits:?}");
    assert!(waits.iter().all(|wait| *wait < scaled(Duration::from_secs(5))), "{waits:?}");
    agent.wait_log("Kafka link down", USUAL);
    let (peak, before) = (agent.disk_bytes(), reader.count());
    kafka.start();
    let back = Instant::now();
    eventually("the drain resumes", USUAL, || (reader.count() > before).then_some(()));
    let resumed = back.elapsed();
    let acked = finish(producers);
    reader.wait_count(usize::try_from(total(&acked)).unwrap(), USUAL * 4);
    eprintln!(
        "{} events, {:.1} MiB on disk at the end of the outage, drain resumed after {resumed:?}, through after {:?}",
        total(&acked),
        peak as f64 / MIB as f64,
        back.elapsed()
    );
    assert!(resumed < scaled(Duration::from_secs(15)), "{resumed:?}");
    let given_back = within(scaled(USUAL), || (agent.disk_bytes() < KEPT).then_some(()));
    let left = agent.disk_bytes();
    eprintln!("{:.1} MiB on disk after the drain", left as f64 / MIB as f64);
    assert!(given_back.is_some(), "{left} bytes are still on disk");
    // A confirmation from before the outage that is read only now says "up" once more; that takes a slow machine.
    let downs = agent.log_count("Kafka link down");
    assert!((1..=2).contains(&downs), "one line per change, not {downs}");
    assert_exact(&mut agent, &reader, kafka.address(), &topic, &acked);
}

#[test]
fn hung_broker_costs_nothing_but_time() {
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 3);
    let mut agent = Agent::start(|config| patient(config, kafka.address(), &topic));
    let reader = Consumer::start(kafka.address(), &topic);
    let producers = start_producers(&agent, "outage", 2, Pace { rate: Some(500), ..Pace::default() });
    reader.wait_count(1000, USUAL);
    kafka.pause();
    for producer in &producers {
        producer.reset_longest_wait();
    }
    pass(Duration::from_secs(10));
    let waits: Vec<Duration> = producers.iter().map(Producer::longest_wait).collect();
    let before = reader.count();
    kafka.resume();
    let back = Instant::now();
    eventually("the drain resumes", USUAL, || (reader.count() > before).then_some(()));
    eprintln!("hung for 10 s: longest waits {waits:?}, drain resumed after {:?}", back.elapsed());
    assert!(waits.iter().all(|wait| *wait < scaled(Duration::from_secs(5))), "{waits:?}");
    let acked = finish(producers);
    assert_exact(&mut agent, &reader, kafka.address(), &topic, &acked);
}

/// librdkafka may never connect again (confluentinc/librdkafka#5301). Here it is told to wait for ten minutes before it does.
#[test]
fn a_client_that_has_lost_its_way_is_replaced() {
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 1);
    let mut agent = Agent::start(|config| {
        patient(config, kafka.address(), &topic);
        let never = serde_json::json!({"reconnect.backoff.ms": 600_000, "reconnect.backoff.max.ms": 600_000});
        config.set("kafka.properties", never);
    });
    let reader = Consumer::start(kafka.address(), &topic);
    let producers = start_producers(&agent, "lost", 2, Pace { rate: Some(50), ..Pace::default() });
    reader.wait_count(100, USUAL);
    kafka.kill();
    agent.wait_log("Kafka link down", USUAL);
    kafka.start();
    agent.wait_log("the Kafka producer was made anew", Duration::from_secs(100));
    let acked = finish(producers);
    reader.wait_count(usize::try_from(total(&acked)).unwrap(), USUAL);
    assert_exact(&mut agent, &reader, kafka.address(), &topic, &acked);
}

fn publish(mqtt: &str, topic: &str, message: &str) {
    let (host, port) = mqtt.trim_start_matches("mqtt://").split_once(':').unwrap();
    let status = Command::new("mosquitto_pub")
        .args(["-h", host, "-p", port, "-q", "1", "-t", topic, "-m", message])
        .status()
        .expect("mosquitto_pub comes with mosquitto-clients");
    assert!(status.success());
}

#[test]
fn started_alone_it_takes_events_until_everything_is_there() {
    const EVENTS: u64 = 500;
    let (kafka, redis, mqtt) = (Private::kafka(), Private::redis(), Private::mosquitto(Persistence::On));
    let topic = create_topic(kafka.address(), 1);
    for service in [&kafka, &redis, &mqtt] {
        service.kill();
    }
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).redis(redis.address());
        config.mqtt(mqtt.address(), &["sensors/{source_type}/{source_id}/{type}"]);
    });
    let source = unique("alone");
    let producer = Producer::start(&agent.socket(), &source, Pace { count: EVENTS, ..Pace::default() });
    let acked = BTreeMap::from([(source, producer.finish(USUAL))]);
    for service in [&kafka, &redis, &mqtt] {
        service.start();
    }
    let records = consume_count(kafka.address(), &topic, usize::try_from(EVENTS).unwrap(), USUAL * 2);
    assert_whole_and_in_order(&stored(&records), &acked);
    agent.wait_log("MQTT link up", USUAL * 2);
    agent.wait_log("Redis link up", USUAL * 2);
    let client = redis::Client::open(redis.address()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut listener = connection.as_pubsub();
    listener.psubscribe("events:*").unwrap();
    listener.set_read_timeout(Some(scaled(USUAL))).unwrap();
    // The subscription may come a moment after the link.
    eventually("an MQTT event is in Kafka", USUAL, || {
        publish(mqtt.address(), "sensors/probe/mqtt-1/reading", r#"{"n":0}"#);
        let records = read_all(kafka.address(), &topic);
        records.iter().any(|record| record.key_text() == "mqtt-1").then_some(())
    });
    let ping = listener.get_message().unwrap();
    assert_eq!(ping.get_channel_name(), "events:probe:mqtt-1");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn at_most_once_never_repeats_and_loses_only_by_a_kill() {
    let seed = seed("at_most_once");
    let mut random = fastrand::Rng::with_seed(seed);
    let topic = create_topic(&Shared::get().kafka, 2);
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("kafka.delivery", "at_most_once");
    });
    // In order: nothing is lost, over an orderly restart too.
    let source = unique("calm");
    let count = 3000;
    let producer = Producer::start(&agent.socket(), &source, Pace { count, ..Pace::default() });
    producer.finish(USUAL);
    agent.restart();
    let calm = consume_count(&Shared::get().kafka, &topic, usize::try_from(count).unwrap(), USUAL);
    assert_whole_and_in_order(&stored(&calm), &BTreeMap::from([(source, count)]));
    assert_no_duplicates(&stored(&calm));

    let producers = start_producers(&agent, "outage", 2, Pace { rate: Some(1000), ..Pace::default() });
    for _ in 0..5 {
        pass(Duration::from_millis(random.u64(200..900)));
        agent.kill9();
        agent.begin();
        agent.wait_ready();
    }
    let acked = finish(producers);
    assert_eq!(agent.stop().code(), Some(0));
    let records = read_all(&Shared::get().kafka, &topic);
    // A producer that sends again makes another event of it; the agent itself never sends a position twice.
    let kept = kept_by_position(&records);
    assert_eq!(kept.len(), records.len(), "a position is there twice");
    let found = first_occurrences(&kept);
    let arrived: u64 = acked.keys().map(|source| found.get(source).map_or(0, Vec::len) as u64).sum();
    eprintln!(
        "at most once, killed 5 times: {} of {} acknowledged events lost",
        total(&acked) - arrived,
        total(&acked)
    );
    assert!(arrived > 0);
}

/// Kafka that makes no topic by itself.
fn strict_kafka() -> Private {
    Private::with_settings(Service::Kafka, "auto.create.topics.enable=false")
}

#[test]
fn what_kafka_refuses_waits_and_is_explained() {
    let kafka = strict_kafka();
    let topic = unique("missing");
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic);
        // How long librdkafka waits for a topic to appear before it gives up on its records.
        config.set("kafka.properties", serde_json::json!({"topic.metadata.propagation.max.ms": 1500}));
    });
    let source = unique("s");
    let producer = Producer::start(&agent.socket(), &source, Pace { count: 300, ..Pace::default() });
    assert_eq!(producer.finish(USUAL), 300);
    agent.wait_log("Kafka refuses the topic; look at kafka.topic", USUAL);
    assert!(agent.log_count("Kafka refuses the topic") < 3, "it is not said for each event");
    // The status line of the stop, which does not wait.
    assert_eq!(agent.stop().code(), Some(0));
    assert!(agent.log_contains("kafka MISCONFIGURED"), "{:?}", agent.log());
    agent.begin();
    agent.wait_ready();
    create_topic_named(kafka.address(), &topic, 1, &[]);
    let reader = Consumer::start(kafka.address(), &topic);
    reader.wait_count(300, USUAL * 3);
    assert!(!agent.log_contains("dead letter"), "{:?}", agent.log());
    assert_exact(&mut agent, &reader, kafka.address(), &topic, &BTreeMap::from([(source, 300)]));
}

/// What was behind the refused event and reached Kafka before it must not make a consumer that goes by positions drop
/// what comes again.
#[test]
fn an_event_that_is_refused_under_load_is_not_lost_to_consumers_by_position() {
    let kafka = &Shared::get().kafka;
    let topic = unique("small");
    create_topic_named(kafka, &topic, 2, &[("max.message.bytes", "20000")]);
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic);
        // Many small batches in flight.
        config.set("kafka.properties", serde_json::json!({"batch.size": 10_000}));
    });
    let producers = start_producers(&agent, "outage", 4, Pace { rate: Some(800), ..Pace::default() });
    let reader = Consumer::start(kafka, &topic);
    reader.wait_count(500, USUAL);
    let big = unique("big");
    let mut client = agent.unix();
    client.send_line(&line_of(&big, 0, 40_000));
    client.wait_ack(1, USUAL);
    agent.wait_log("Kafka rejects an event", USUAL);
    agent.wait_log("it becomes a dead letter", USUAL * 2);
    let acked = finish(producers);
    eventually("everything is in Kafka", Duration::from_secs(90), || {
        let found = first_occurrences(&stored(&reader.records()));
        (found.values().map(|numbers| numbers.len() as u64).sum::<u64>() >= total(&acked)).then_some(())
    });
    assert_eq!(agent.stop().code(), Some(0));
    let records = read_all(kafka, &topic);
    let kept = kept_by_position(&records);
    eprintln!("refused under load: {} events, {} records, {} kept", total(&acked), records.len(), kept.len());
    assert_whole_and_in_order(&kept, &acked);
    assert!(!kept.iter().any(|event| event.source == big), "a dead letter");
}
