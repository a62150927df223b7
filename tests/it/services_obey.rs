//! The services do what fault tests ask of them, and the harness reads back what was written.
//!
//! Without these, a fault test could pass because its fault never happened.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::harness::kafka::{Consumer, Record, consume_count, create_topic, create_topic_named, read_all};
use crate::harness::services::{Persistence, Private, Service, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, scaled};

fn produce(brokers: &str, topic: &str, values: std::ops::Range<u64>) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    for value in values {
        let (key, payload) = (format!("key-{}", value % 7), value.to_string());
        producer.send(BaseRecord::to(topic).key(&key).payload(&payload)).expect("the queue has room");
    }
    producer.flush(scaled(USUAL)).expect("the broker takes the records");
}

fn values_of(records: &[Record]) -> Vec<u64> {
    let mut values: Vec<u64> = records.iter().map(|record| record.json().as_u64().unwrap()).collect();
    values.sort_unstable();
    values
}

/// What the test writes and the harness reads back is the same, to the end of each partition.
#[test]
fn shared_kafka_is_read_back_whole() {
    let brokers = &Shared::get().kafka;
    let topic = create_topic(brokers, 3);
    assert!(read_all(brokers, &topic).is_empty());
    produce(brokers, &topic, 0..500);
    assert_eq!(consume_count(brokers, &topic, 500, USUAL).len(), 500);
    let records = read_all(brokers, &topic);
    assert_eq!(values_of(&records), (0..500).collect::<Vec<_>>());
    assert!(records.iter().all(|record| record.key_text().starts_with("key-") && record.timestamp.is_some()));
}

/// A background reader goes on over a crash of the broker, and what was confirmed before it is still there.
#[test]
fn private_kafka_crashes_and_comes_back_with_its_data() {
    let kafka = Private::kafka();
    let address = kafka.address().to_owned();
    let topic = unique("crash");
    create_topic_named(&address, &topic, 2, &[("max.message.bytes", "2000")]);
    let reader = Consumer::start(&address, &topic);
    produce(&address, &topic, 0..100);
    reader.wait_count(100, USUAL);
    kafka.kill();
    kafka.start();
    assert_eq!(kafka.address(), address);
    produce(&address, &topic, 100..150);
    let records = reader.wait_count(150, USUAL);
    assert_eq!(values_of(&records), (0..150).collect::<Vec<_>>());
}

/// A paused Redis answers nothing and a resumed one answers again, to the same connection.
#[test]
fn private_redis_is_paused_and_resumed() {
    let redis = Private::redis();
    let client = redis::Client::open(redis.address()).unwrap();
    let mut connection = client.get_connection().unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut ask = || redis::cmd("ECHO").arg("here").query::<String>(&mut connection);
    assert_eq!(ask().unwrap(), "here");
    redis.pause();
    assert!(ask().unwrap_err().is_timeout());
    redis.resume();
    let mut connection = client.get_connection().unwrap();
    let echo: String = redis::cmd("ECHO").arg("again").query(&mut connection).unwrap();
    assert_eq!(echo, "again");
}

/// Settings of a test's own reach the service, with the ports filled in.
#[test]
fn private_mosquitto_takes_settings() {
    let broker =
        Private::with_settings(Service::Mosquitto, "listener @SPARE_PORT@ 127.0.0.1\nmax_packet_size 5000");
    std::net::TcpStream::connect(("127.0.0.1", broker.spare_port())).expect("the second listener listens");
    let configuration = std::fs::read_to_string(broker.file("conf")).unwrap();
    assert!(configuration.contains("max_packet_size 5000"), "{configuration}");
    assert!(configuration.contains("persistence true"), "{configuration}");

    let forgetful = Private::mosquitto(Persistence::Off);
    let configuration = std::fs::read_to_string(forgetful.file("conf")).unwrap();
    assert!(configuration.contains("persistence false"), "{configuration}");
}

/// Nothing stays behind when a test is done with a service.
#[test]
fn dropped_service_is_gone() {
    let redis = Private::redis();
    let address = redis.address().trim_start_matches("redis://").trim_end_matches('/').to_owned();
    assert!(std::net::TcpStream::connect(&address).is_ok());
    let folder = redis.file("");
    drop(redis);
    assert!(std::net::TcpStream::connect(&address).is_err());
    assert!(!folder.exists());
}
