//! Pings to Redis: exact, prompt, and never in the way of the events.

mod restart;
mod streams;
mod volume;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::{Connection, Msg};

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer, line_of};
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::services::{Private, Service, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually, scaled};

/// A subscriber.
pub(crate) struct Listener(Connection);

impl Listener {
    /// Listens to all channels that match `pattern`, from now on.
    pub(crate) fn to(url: &str, pattern: &str) -> Self {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        connection.set_read_timeout(Some(scaled(USUAL))).unwrap();
        let subscribe = redis::cmd("PSUBSCRIBE").arg(pattern).get_packed_command();
        connection.send_packed_command(&subscribe).unwrap();
        connection.recv_response().expect("the subscription is confirmed");
        Self(connection)
    }

    /// The next message: its channel and text.
    pub(crate) fn next(&mut self) -> (String, String) {
        self.within(USUAL).expect("a ping comes")
    }

    fn within(&mut self, patience: Duration) -> Option<(String, String)> {
        self.0.set_read_timeout(Some(scaled(patience))).unwrap();
        let message = Msg::from_owned_value(self.0.recv_response().ok()?)?;
        Some((message.get_channel_name().to_owned(), message.get_payload().unwrap()))
    }
}

fn ping_of(source: &str, n: u64) -> (String, String) {
    let message = format!(r#"{{"id":"{source}-{n}","type":"reading","source_id":"{source}"}}"#);
    (format!("events:probe:{source}"), message)
}

/// Waits until the agent's link to Redis is there: pings before that are dropped.
fn wait_link(agent: &Agent) {
    agent.wait_log("Redis link up", USUAL);
}

/// `pings A (dropped B)` of the last status line.
fn pings_of_status(agent: &Agent) -> (u64, u64) {
    let line = agent.log().into_iter().rfind(|line| line.contains("pings ")).expect("a status line");
    let (_, rest) = line.split_once("pings ").unwrap();
    let (sent, rest) = rest.split_once(" (dropped ").unwrap();
    let (dropped, _) = rest.split_once(')').unwrap();
    (sent.parse().unwrap(), dropped.parse().unwrap())
}

#[test]
fn a_ping_has_three_fields_and_comes_without_kafka_too() {
    let mut agent = Agent::start(|config| {
        config.kafka("127.0.0.1:9", "nowhere").shared_redis();
    });
    wait_link(&agent);
    let source = unique("s");
    let mut listener = Listener::to(&Shared::get().redis, &format!("events:probe:{source}"));
    let mut client = agent.unix();
    for n in 0..100 {
        client.send_line(&line_of(&source, n, 10));
    }
    client.wait_ack(100, USUAL);
    for n in 0..100 {
        assert_eq!(listener.next(), ping_of(&source, n));
    }
    // Names that need escapes, and a generated id.
    let mut listener = Listener::to(&Shared::get().redis, &format!("events:ca?é:{source}*"));
    client.send(&serde_json::json!({
        "type": "a \"b\"", "source_type": "café", "source_id": format!("{source}\\é"), "payload": {"secret": 1}
    }));
    let (channel, text) = listener.next();
    assert_eq!(channel, format!("events:café:{source}\\é"));
    let ping: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
    assert_eq!(ping.keys().collect::<Vec<_>>(), ["id", "source_id", "type"]);
    assert_eq!((ping["type"].as_str(), &ping["source_id"]), ("a \"b\"", &format!("{source}\\é")));
    assert_eq!(uuid::Uuid::parse_str(&ping["id"]).unwrap().get_version_num(), 7);
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(pings_of_status(&agent), (101, 0));
}

#[test]
fn a_ping_can_wait_for_kafka() {
    const EVENTS: u64 = 50;
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 1);
    kafka.kill();
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).shared_redis().set("redis.ping_after", "delivered");
    });
    wait_link(&agent);
    let source = unique("s");
    // A listener of its own: the client skips an answer after a time-out.
    let mut listener_early = Listener::to(&Shared::get().redis, &format!("events:probe:{source}"));
    let mut listener = Listener::to(&Shared::get().redis, &format!("events:probe:{source}"));
    let mut client = agent.unix();
    for n in 0..EVENTS {
        client.send_line(&line_of(&source, n, 10));
    }
    client.wait_ack(EVENTS, USUAL);
    let early = listener_early.within(Duration::from_secs(2));
    assert_eq!(early, None, "a ping came before Kafka had the event");
    kafka.start();
    for n in 0..EVENTS {
        assert_eq!(listener.next(), ping_of(&source, n));
    }
    assert_eq!(
        consume_count(kafka.address(), &topic, usize::try_from(EVENTS).unwrap(), USUAL).len() as u64,
        EVENTS
    );
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(pings_of_status(&agent), (EVENTS, 0));
}

#[test]
fn the_pings_of_a_transaction_come_all_at_once_and_none_is_dropped() {
    const EVENTS: u64 = 3000;
    let topic = create_topic(&Shared::get().kafka, 1);
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("kafka.delivery", "exactly_once");
        config.set("kafka.transaction_interval", "1s");
        config.shared_redis().set("redis.ping_after", "delivered").set("redis.queue", 50);
    });
    wait_link(&agent);
    let source = unique("s");
    let mut listener = Listener::to(&Shared::get().redis, &format!("events:probe:{source}"));
    let pace = Pace { count: EVENTS, window: 1000, ..Pace::default() };
    Producer::start(&agent.socket(), &source, pace).finish(USUAL);
    for n in 0..EVENTS {
        assert_eq!(listener.next(), ping_of(&source, n));
    }
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(pings_of_status(&agent), (EVENTS, 0));
}

/// Time until `events` are acknowledged, and until they are in Kafka.
fn timed(
    configure: impl FnOnce(&mut crate::harness::agent::Config),
    events: u64,
) -> (Duration, Duration, Agent) {
    let topic = create_topic(&Shared::get().kafka, 1);
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic);
        configure(config);
    });
    // The link to Kafka is not what is measured.
    let warm = Producer::start(&agent.socket(), "warm", Pace { count: 1, ..Pace::default() });
    warm.finish(USUAL);
    consume_count(&Shared::get().kafka, &topic, 1, USUAL);
    let begun = Instant::now();
    let producer =
        Producer::start(&agent.socket(), "timed", Pace { count: events, window: 100, ..Pace::default() });
    producer.finish(USUAL);
    let acked = begun.elapsed();
    consume_count(&Shared::get().kafka, &topic, usize::try_from(events + 1).unwrap(), USUAL);
    (acked, begun.elapsed(), agent)
}

#[test]
fn a_redis_that_never_answers_delays_nothing() {
    const EVENTS: u64 = 20_000;
    let (acked_off, through_off, agent) = timed(|_| {}, EVENTS);
    drop(agent);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    silent.set_nonblocking(true).unwrap();
    let is_done = Arc::new(AtomicBool::new(false));
    let taking = std::thread::spawn({
        let is_done = Arc::clone(&is_done);
        move || {
            let mut taken = Vec::new();
            eventually("the test is over", USUAL * 10, || {
                taken.extend(silent.accept().ok());
                is_done.load(Ordering::Relaxed).then_some(())
            });
            taken.len()
        }
    });
    let (acked, through, mut agent) = timed(
        |config| {
            config.redis(&format!("redis://{address}/")).set("redis.queue", 1000);
        },
        EVENTS,
    );
    eprintln!(
        "{EVENTS} events, Redis off: acked {acked_off:?}, in Kafka {through_off:?}; silent: {acked:?}, {through:?}"
    );
    assert!(acked < acked_off * 3 + scaled(Duration::from_secs(2)), "{acked:?}");
    assert!(through < through_off * 3 + scaled(Duration::from_secs(2)), "{through:?}");
    agent.wait_log("Redis link down", USUAL);
    assert_eq!(agent.stop().code(), Some(0));
    let (sent, dropped) = pings_of_status(&agent);
    assert_eq!((sent, dropped), (0, EVENTS + 1), "every ping is counted");
    is_done.store(true, Ordering::Relaxed);
    assert!(taking.join().unwrap() > 0, "the agent never connected: the test proves nothing");
}

#[test]
fn redis_killed_and_back_is_told_once_and_every_ping_is_counted() {
    let redis = Private::redis();
    let topic = create_topic(&Shared::get().kafka, 1);
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic).redis(redis.address());
    });
    wait_link(&agent);
    let source = unique("s");
    let mut listener = Listener::to(redis.address(), "events:*");
    let producer = Producer::start(&agent.socket(), &source, Pace { rate: Some(300), ..Pace::default() });
    assert_eq!(listener.next(), ping_of(&source, 0));
    restart::over_a_crash(&redis, &agent, &producer);
    let mut listener = Listener::to(redis.address(), "events:*");
    let (channel, _) = listener.next();
    assert_eq!(channel, format!("events:probe:{source}"));
    let events = producer.finish(USUAL);
    consume_count(&Shared::get().kafka, &topic, usize::try_from(events).unwrap(), USUAL);
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!((agent.log_count("Redis link down"), agent.log_count("Redis link up")), (1, 2));
    let (sent, dropped) = pings_of_status(&agent);
    eprintln!("{events} events, {sent} pings sent, {dropped} dropped while Redis was away");
    assert!(dropped >= 300, "{dropped}");
    assert_eq!(sent + dropped, events);
}

#[test]
fn a_password_is_used_and_a_wrong_one_is_explained() {
    let redis = Private::with_settings(
        Service::Redis,
        "requirepass admin\nuser fieldpost on >s3cret resetchannels &events:* +ping +publish",
    );
    let topic = create_topic(&Shared::get().kafka, 1);
    let mut agent = Agent::prepare(|config| {
        config.shared_kafka(&topic).redis(redis.address()).set("redis.username", "fieldpost");
    });
    let file = agent.home().join("redis-password");
    agent.reconfigure(|config| {
        config.set("redis.password_file", file.to_str().unwrap());
    });
    std::fs::write(&file, "wrong\n").unwrap();
    agent.begin();
    agent.wait_ready();
    let said = agent.wait_log("Redis link down", USUAL);
    assert!(said.contains("ERROR") && said.contains("redis.password_file"), "{said}");
    assert!(!said.contains("wrong\n") && !agent.log_contains("s3cret"));
    let source = unique("s");
    let mut client = agent.unix();
    client.send_line(&line_of(&source, 0, 0));
    client.wait_ack(1, USUAL);
    consume_count(&Shared::get().kafka, &topic, 1, USUAL);
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(pings_of_status(&agent), (0, 1));

    std::fs::write(&file, "s3cret\n").unwrap();
    agent.begin();
    agent.wait_ready();
    wait_link(&agent);
    let admin = redis.address().replace("redis://", "redis://:admin@");
    let mut listener = Listener::to(&admin, "events:*");
    let mut client = agent.unix();
    client.send_line(&line_of(&source, 1, 0));
    assert_eq!(listener.next(), ping_of(&source, 1));
}

/// A certificate for 127.0.0.1 that is its own authority: paths of certificate and key in `folder`.
fn certificate(folder: &std::path::Path) -> (String, String) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("redis.crt"), path("redis.key"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=fieldpost test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", &key, "-out", &certificate])
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (certificate, key)
}

#[test]
fn tls_is_used_and_an_unknown_authority_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(folder.path());
    let redis = Private::with_settings(
        Service::Redis,
        &format!(
            "tls-port @SPARE_PORT@\ntls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {certificate}\n\
             tls-auth-clients no\n"
        ),
    );
    let topic = create_topic(&Shared::get().kafka, 1);
    let url = format!("rediss://127.0.0.1:{}/", redis.spare_port());
    let mut stranger = Agent::start(|config| {
        config.shared_kafka(&topic).redis(&url);
    });
    let said = stranger.wait_log("Redis link down", USUAL);
    assert!(said.contains("certificate"), "{said}");
    assert_eq!(stranger.stop().code(), Some(0));

    let agent = Agent::start(|config| {
        config.shared_kafka(&topic).redis(&url).environment("SSL_CERT_FILE", &certificate);
    });
    wait_link(&agent);
    let mut listener = Listener::to(redis.address(), "events:*");
    let source = unique("tls");
    let mut client = agent.unix();
    client.send_line(&line_of(&source, 0, 0));
    assert_eq!(listener.next(), ping_of(&source, 0));
}
