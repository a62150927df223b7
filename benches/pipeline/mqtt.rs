//! MQTT QoS 1 through Mosquitto to Kafka: a backlog in the broker drained at full speed beside a bare subscriber of the
//! same client library.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, Packet};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};

use crate::kafka::Topic;
use crate::pace::micros;
use crate::process::{Agent, Process, service, unique};
use crate::report::{Arguments, Row, Target};
use crate::socket::{SOURCES, source_id};

/// The word that makes this program the bare subscriber.
pub(crate) const REFERENCE: &str = "reference-subscriber";

/// As the agent's default.
const RECEIVE_MAXIMUM: u16 = 1000;

pub(crate) fn run(arguments: &Arguments) -> Vec<Row> {
    vec![full_speed(arguments)]
}

/// Of an agent that takes what is published under `root`.
pub(crate) fn toml(topic: &Topic, root: &str, client_id: &str) -> String {
    format!(
        "{}[mqtt]\nurl = \"{}\"\nclient_id = \"{client_id}\"\ntopics = [\"{root}/{{source_type}}/{{source_id}}/{{type}}\"]\n",
        topic.toml(),
        service("MQTT"),
    )
}

fn full_speed(arguments: &Arguments) -> Row {
    let events = arguments.events / 5;
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds {
        let (topic, root) = (Topic::create(), unique("bench"));
        let (ours, theirs) = (format!("{root}-agent"), format!("{root}-bare"));
        let agent = Agent::new(arguments, &toml(&topic, &root, &ours));
        let process = agent.start(&["ready", "MQTT link up"]);
        std::thread::sleep(Duration::from_millis(500));
        process.terminate();
        bare_subscriber(&theirs, &root, 0);
        publish(&root, events, None);
        let bare = |rounds: usize| (rounds == round % 2).then(|| bare_subscriber(&theirs, &root, events));
        // In turns, so that neither always finds the broker with the larger heap.
        let before = bare(0);
        let start = Instant::now();
        let process = agent.spawn();
        let end = topic.wait_count(events, Duration::from_millis(10));
        let rate = events as f64 / (end - start).as_secs_f64();
        let cpu = process.usage().cpu.as_secs_f64() * 1e6 / events as f64;
        process.terminate();
        let bare_rate = before.or_else(|| bare(1)).unwrap();
        println!(
            "MQTT drain round {}: {rate:.0} events/s, {cpu:.1} CPU s per million; bare {bare_rate:.0}",
            round + 1
        );
        rounds.push((rate, bare_rate));
    }
    Row::paired("MQTT backlog of the broker to Kafka", "events/s", &rounds, Target::RatioMin(0.8))
}

fn options(client_id: &str) -> MqttOptions {
    let url = service("MQTT");
    let (host, port) = url.trim_start_matches("mqtt://").trim_end_matches('/').rsplit_once(':').unwrap();
    MqttOptions::new(client_id, host, port.parse().unwrap())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Publishes with QoS 1, at `pace` events a second or as fast as the broker takes them, and waits for every PUBACK.
pub(crate) fn publish(root: &str, events: u64, pace: Option<u64>) {
    let (client, mut link) = AsyncClient::new(options(&unique("publisher")), 100);
    let mut random = fastrand::Rng::with_seed(1);
    let note: String = std::iter::repeat_with(|| random.lowercase()).take(140).collect();
    runtime().block_on(async {
        let sending = async {
            let start = Instant::now();
            for n in 0..events {
                if let Some(pace) = pace {
                    let due = Duration::from_micros(n * 1_000_000 / pace);
                    if let Some(early) =
                        due.checked_sub(start.elapsed()).filter(|early| early.as_micros() > 500)
                    {
                        tokio::time::sleep(early).await;
                    }
                }
                let topic = format!("{root}/energy-meter/{}/reading", source_id(n % SOURCES));
                let payload = format!(r#"{{"sent":{},"n":{n},"celsius":21.5,"note":"{note}"}}"#, micros());
                client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
            }
        };
        let acknowledged = async {
            let mut missing = events;
            while missing > 0 {
                let event = link.poll().await.expect("the broker takes publishes");
                missing -= u64::from(matches!(event, Event::Incoming(Packet::PubAck(_))));
            }
        };
        tokio::join!(sending, acknowledged);
    });
}

/// Events a second from its start on; with 0 it only makes the session.
fn bare_subscriber(client_id: &str, root: &str, events: u64) -> f64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([REFERENCE, client_id, root, &events.to_string()]).stdout(Stdio::piped());
    let start = Instant::now();
    let process = Process::start(&mut command);
    process.wait();
    events as f64 / start.elapsed().as_secs_f64()
}

/// The bare subscriber: receives and acknowledges, nothing else.
pub(crate) fn reference(words: &[String]) {
    let [client_id, root, events] = words else { panic!("client id, topic, events") };
    let mut missing: u64 = events.parse().unwrap();
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(u32::MAX);
    properties.receive_maximum = Some(RECEIVE_MAXIMUM);
    let mut options = options(client_id);
    options.set_clean_start(false).set_manual_acks(true).set_connect_properties(properties);
    // There is room for each acknowledgement, however late the client sends it.
    let (client, mut link) = AsyncClient::new(options, usize::try_from(missing).unwrap() + 2);
    runtime().block_on(async {
        if missing == 0 {
            client.subscribe(format!("{root}/#"), QoS::AtLeastOnce).await.unwrap();
            until(&mut link, |packet| matches!(packet, Packet::SubAck(_))).await;
        } else {
            until(&mut link, |packet| {
                if let Packet::Publish(publish) = packet {
                    client.try_ack(publish).unwrap();
                    missing -= 1;
                }
                missing == 0
            })
            .await;
        }
        client.disconnect().await.unwrap();
        while link.poll().await.is_ok() {}
    });
}

async fn until(link: &mut EventLoop, mut is_done: impl FnMut(&Packet) -> bool) {
    loop {
        if let Event::Incoming(packet) = link.poll().await.expect("the broker serves")
            && is_done(&packet)
        {
            return;
        }
    }
}
