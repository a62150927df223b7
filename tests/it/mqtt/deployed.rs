//! Mosquitto with the settings that are handed to operators, `deploy/mosquitto`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::harness::agent::Agent;
use crate::harness::kafka::{consume_count, create_topic, read_all};
use crate::harness::mqtt::address_of;
use crate::harness::services::{Private, Shared};
use crate::harness::tap::Tap;
use crate::harness::wait::{USUAL, eventually};

/// More than Mosquitto queues by default.
const AWAY: usize = 1_500;

/// What Debian's own file says beside ours.
const DEBIAN: &str = "persistence true\npersistence_location @DIR@/data/\nlog_dest stdout\n";

/// A deployed file, with each of `changes` made at its one place.
#[track_caller]
fn deployed(name: &str, changes: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/mosquitto").join(name);
    let mut text = std::fs::read_to_string(path).unwrap();
    for (from, to) in changes {
        assert_eq!(text.matches(from).count(), 1, "{from} in {name}");
        text = text.replace(from, to);
    }
    text
}

/// A sensor that publishes each line of `payloads`.
fn publish(broker: &Private, user: &str, qos: &str, topic: &str, payloads: &str) -> Output {
    let (host, port) = address_of(broker.address()).split_once(':').unwrap();
    let mut sensor = Command::new("mosquitto_pub")
        .args(["-h", host, "-p", port, "-u", user, "-P", "its-own", "-V", "5", "-q", qos, "-t", topic, "-l"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    sensor.stdin.take().unwrap().write_all(payloads.as_bytes()).unwrap();
    sensor.wait_with_output().unwrap()
}

/// Waits until Mosquitto has written down what it holds now. The first time may have begun before: two of them.
#[track_caller]
fn wait_saved(broker: &Private) {
    let saved =
        || std::fs::metadata(broker.file("data/mosquitto.db")).and_then(|found| found.modified()).ok();
    for _ in 0..2 {
        let before = saved();
        eventually("Mosquitto saves", USUAL, || (saved() > before).then_some(()));
    }
}

#[test]
fn what_is_published_while_the_agent_is_away_survives_a_crash_of_mosquitto() {
    let folder = tempfile::tempdir().unwrap();
    let (users, rules) = (folder.path().join("users"), folder.path().join("rules"));
    std::fs::write(&users, "fieldpost:its-own\nt-1:its-own\n").unwrap();
    let hashed = Command::new("mosquitto_passwd").arg("-U").arg(&users).status().unwrap();
    assert!(hashed.success(), "{hashed}");
    std::fs::write(&rules, deployed("fieldpost.acl", &[])).unwrap();
    let settings = deployed(
        "fieldpost.conf",
        &[
            ("listener 1883 ", "listener @PORT@ "),
            ("/etc/mosquitto/fieldpost.passwd", users.to_str().unwrap()),
            ("/etc/mosquitto/fieldpost.acl", rules.to_str().unwrap()),
            // Half a minute is not what this is about.
            ("autosave_interval 30", "autosave_interval 1"),
        ],
    );
    let broker = Private::mosquitto_alone(&format!("{DEBIAN}{settings}"));

    // The password comes as a credential of the service manager.
    let credentials = folder.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("fieldpost.mqtt-password"), "its-own\n").unwrap();
    let topic = create_topic(&Shared::get().kafka, 1);
    let tap = Tap::on(broker.address());
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("mqtt.url", tap.url());
        config.set("mqtt.username", "fieldpost").set("mqtt.password_file", "fieldpost.mqtt-password");
        config.environment("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    });
    tap.wait_subscribed();
    assert_eq!(agent.stop().code(), Some(0));

    let payloads: String = (0..AWAY).map(|n| format!("{n}\n")).collect();
    let own = "sensors/probe/t-1/reading";
    assert!(publish(&broker, "t-1", "1", own, &payloads).status.success());
    // Believed to want its event to arrive.
    assert!(publish(&broker, "t-1", "0", own, "\"qos 0\"\n").status.success());
    // In another's name, and nobody's.
    let denied = publish(&broker, "t-1", "1", "sensors/probe/t-2/reading", "0\n");
    assert!(String::from_utf8_lossy(&denied.stderr).contains("Not authorized"), "{denied:?}");
    assert!(!publish(&broker, "nobody", "1", own, "0\n").status.success());

    wait_saved(&broker);
    broker.kill();
    broker.start();
    agent.restart();
    consume_count(&Shared::get().kafka, &topic, AWAY + 1, USUAL);
    assert_eq!(agent.stop().code(), Some(0));
    let arrived: Vec<_> = read_all(&Shared::get().kafka, &topic)
        .iter()
        .map(|record| (record.key_text().to_owned(), record.json()["payload"].clone()))
        .collect();
    let wanted = (0..AWAY).map(|n| json!(n)).chain([json!("qos 0")]);
    let wanted: Vec<_> = wanted.map(|payload| ("t-1".to_owned(), payload)).collect();
    assert_eq!(arrived, wanted);
}
