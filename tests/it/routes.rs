//! Routes, as producers, consumers and operators see them: each key on real services, and the two commands that tell
//! beforehand.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::harness::agent::{Agent, Config, fieldpost};
use crate::harness::kafka::{Record, consume_count, create_topic, create_topic_named, read_all};
use crate::harness::mqtt::{Publisher, kind};
use crate::harness::services::{Private, Shared};
use crate::harness::tap::{Tap, Way};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};
use crate::redis::Listener;

/// Every key of a route, one route each.
const ROUTES: &str = r#"
[[route]]
name = "alarms"
mqtt_topic = "PREFIX/+/+/alarm"
topic = "PREFIX-alarms"
ping = false
[[route]]
name = "noise"
type = "noise"
drop = true
[[route]]
name = "fast"
type = "fast"
sample = 3
[[route]]
name = "slow"
type = "slow"
report = "changes"
value = "/c"
deadband = 0.5
[[route]]
name = "by-kind"
source_id = "kind-*"
topic = "PREFIX-{source_type}"
"#;

fn routes(config: &mut Config, prefix: &str) {
    config.snippet(&ROUTES.replace("PREFIX", prefix));
}

/// `n` of the payloads, in order.
fn payloads(records: &[Record]) -> Vec<Value> {
    records.iter().map(|record| record.json()["payload"]["n"].clone()).collect()
}

fn status(agent: &mut Agent) -> String {
    assert_eq!(agent.stop().code(), Some(0));
    agent.log().into_iter().rfind(|line| line.contains("buffered")).expect("a status line")
}

#[test]
fn each_key_of_a_route_is_seen_where_its_events_go() {
    let (brokers, prefix) = (&Shared::get().kafka, unique("route"));
    let topic = create_topic(brokers, 1);
    let [alarms, pumps] = ["alarms", "pump"].map(|name| format!("{prefix}-{name}"));
    for name in [&alarms, &pumps] {
        create_topic_named(brokers, name, 1, &[]);
    }
    let tap = Tap::on(&Shared::get().mqtt);
    let mut agent = Agent::start(|config| {
        config.mqtt(&tap.url(), &[&format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}")]);
        config.shared_kafka(&topic).shared_redis();
        routes(config, &prefix);
    });
    tap.wait_subscribed();
    agent.wait_log("Redis link up", USUAL);
    let mut pings = Listener::to(&Shared::get().redis, &format!("events:pump:{prefix}*"));

    // Over MQTT: everything is acknowledged, in order, whatever its route does with it.
    let mut sensor = Publisher::connect(&Shared::get().mqtt);
    let mut sent = 0;
    let mut publish = |rest: &str, payload: &Value| {
        sent += 1;
        sensor.publish(1, &format!("{prefix}/{rest}"), payload.to_string());
    };
    let one = format!("pump/{prefix}-1");
    for n in 0..7 {
        publish(&format!("{one}/noise"), &json!({ "n": n }));
        publish(&format!("{one}/fast"), &json!({ "n": n }));
        publish(&format!("{one}/slow"), &json!({ "n": n, "c": 20.0 + f64::from(n) / 4.0 }));
        publish(&format!("{one}/alarm"), &json!({ "n": n }));
    }
    publish("pump/kind-1/reading", &json!({ "n": 0 }));
    publish(&format!("{one}/reading"), &json!({ "n": 7 }));
    tap.wait_count(Way::ToBroker, kind::PUBACK, sent, USUAL);
    tap.assert_answers_belong();

    // Over the socket there is no MQTT topic: the first route does not match.
    let mut client = agent.unix();
    for (n, kind) in ["noise", "noise", "alarm", "noise"].into_iter().enumerate() {
        let source = format!("{prefix}-2");
        client.send(
            &json!({ "type": kind, "source_type": "pump", "source_id": source, "payload": { "n": n } }),
        );
        client.wait_ack(n as u64 + 1, USUAL);
    }

    assert_eq!(payloads(&consume_count(brokers, &alarms, 7, USUAL)), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(payloads(&consume_count(brokers, &pumps, 1, USUAL)), [0]);
    let records = consume_count(brokers, &topic, 3 + 3 + 1 + 1, USUAL);
    let status = status(&mut agent);
    assert!(status.contains("in 16 (mqtt 15, unix 1)"), "{status}");
    assert!(status.contains(", dropped 10, sampled out 4, filtered 4"), "{status}");
    let mut by_type: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for record in &records {
        let event = record.json();
        let n = event["payload"]["n"].clone();
        by_type.entry(event["type"].as_str().unwrap().to_owned()).or_default().push(n);
    }
    assert_eq!(by_type["fast"], [0, 3, 6]);
    // More than half a degree from the one before: 20, 20.75, 21.5.
    assert_eq!(by_type["slow"], [0, 3, 6]);
    assert_eq!((&by_type["alarm"][..], &by_type["reading"][..]), (&[json!(2)][..], &[json!(7)][..]));
    assert_eq!(read_all(brokers, &topic).len(), records.len());
    // Of the seven alarms nobody was told.
    let told: Vec<String> = (0..8)
        .map(|_| serde_json::from_str::<Value>(&pings.next().1).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert!(!told[..7].contains(&"alarm".to_owned()), "{told:?}");
    assert_eq!(told[7], "alarm", "the one of the socket");
}

#[test]
fn where_an_event_goes_is_decided_when_it_is_taken() {
    let (kafka, prefix) = (Private::kafka(), unique("route"));
    let topic = create_topic(kafka.address(), 1);
    let [before, after] = ["before", "after"].map(|name| format!("{prefix}-{name}"));
    for name in [&before, &after] {
        create_topic_named(kafka.address(), name, 1, &[]);
    }
    kafka.kill();
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).shared_redis().set("redis.ping_after", "delivered");
        config.snippet(&format!("[[route]]\ntype = \"alarm\"\ntopic = \"{before}\"\nping = false\n"));
    });
    let send = |agent: &Agent, kind: &str, n: u64| {
        let mut client = agent.unix();
        let event =
            json!({ "type": kind, "source_type": "probe", "source_id": prefix, "payload": { "n": n } });
        client.send(&event);
        client.wait_ack(1, USUAL);
    };
    // Neighbours that go different ways, and one that is larger than a block.
    for n in 0..6 {
        send(&agent, if n % 2 == 0 { "alarm" } else { "reading" }, n);
    }
    let large = "x".repeat(50_000);
    let mut client = agent.unix();
    client.send(&json!({
        "type": "alarm", "source_type": "probe", "source_id": prefix, "payload": { "n": 6, "x": large }
    }));
    client.wait_ack(1, USUAL);
    agent.kill9();
    agent.reconfigure(|config| {
        config.replace_snippets(&format!("[[route]]\ntype = \"alarm\"\ntopic = \"{after}\"\n"))
    });
    agent.begin();
    agent.wait_ready();
    agent.wait_log("Redis link up", USUAL);
    let mut pings = Listener::to(&Shared::get().redis, &format!("events:probe:{prefix}"));
    send(&agent, "alarm", 7);
    kafka.start();
    assert_eq!(payloads(&consume_count(kafka.address(), &after, 1, USUAL * 2)), [7]);
    assert_eq!(payloads(&consume_count(kafka.address(), &before, 4, USUAL)), [0, 2, 4, 6]);
    assert_eq!(payloads(&consume_count(kafka.address(), &topic, 3, USUAL)), [1, 3, 5]);
    let told: Vec<String> = (0..4)
        .map(|_| serde_json::from_str::<Value>(&pings.next().1).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, ["reading", "reading", "reading", "alarm"]);
    assert_eq!(agent.stop().code(), Some(0));
    for (name, count) in [(&before, 4), (&after, 1), (&topic, 3)] {
        assert_eq!(read_all(kafka.address(), name).len(), count, "{name}");
    }
}

#[test]
fn report_by_exception_sends_after_a_long_silence_and_begins_anew_with_a_restart() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic);
        config
            .snippet("[[route]]\nreport = \"changes\"\nvalue = \"/c\"\ndeadband = 1\nmax_silence = \"2s\"\n");
    });
    let source = unique("s");
    let event = |n: u64, c: f64| json!({ "type": "reading", "source_type": "probe", "source_id": source, "payload": { "n": n, "c": c } });
    let mut client = agent.unix();
    for (n, c) in [(0, 20.0), (1, 21.0), (2, 19.5), (3, 21.1)] {
        client.send(&event(n, c));
    }
    client.wait_ack(4, USUAL);
    let records = consume_count(&Shared::get().kafka, &topic, 2, USUAL);
    assert_eq!(payloads(&records), [0, 3]);
    // The same value goes on coming, and goes on only now and then.
    let mut n = 4;
    let records = eventually("the silence is over", USUAL, || {
        client.send(&event(n, 21.1));
        n += 1;
        client.wait_ack(n, USUAL);
        let records = read_all(&Shared::get().kafka, &topic);
        (records.len() > 2).then_some(records)
    });
    assert!(records[2].timestamp.unwrap() - records[1].timestamp.unwrap() >= 1900, "after two seconds");
    agent.restart();
    let mut client = agent.unix();
    for n in [1000, 1001] {
        client.send(&event(n, 21.1));
    }
    client.wait_ack(2, USUAL);
    let records = consume_count(&Shared::get().kafka, &topic, records.len() + 1, USUAL);
    assert!(status(&mut agent).contains(", filtered 1"));
    assert_eq!(payloads(&records).last(), Some(&json!(1000)));
}

/// As `dead-letter retry` hands it in, which takes the acknowledgement for durable.
#[test]
fn an_event_that_was_taken_before_passes_its_route() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic).snippet("[[route]]\ndrop = true\n");
    });
    let mut client = agent.unix();
    let new = json!({ "type": "t", "source_type": "probe", "source_id": "s", "payload": { "n": 1 } });
    let mut again = new.clone();
    (again["fieldpost"], again["payload"]["n"]) = (json!({ "epoch": 1, "seq": 7 }), json!(2));
    for event in [&new, &again, &new] {
        client.send(event);
    }
    client.wait_ack(3, USUAL);
    assert_eq!(payloads(&consume_count(&Shared::get().kafka, &topic, 1, USUAL)), [2]);
    assert_eq!(answer(&agent, &["--event", "-"], &again.to_string(), 0)["outcome"], "stored");
    assert_eq!(answer(&agent, &["--event", "-"], &new.to_string(), 0)["outcome"], "dropped");
}

/// A configuration for the commands: no service is asked.
fn commands(prefix: &str) -> Agent {
    Agent::prepare(|config| {
        config.mqtt("mqtt://127.0.0.1:9", &[&format!("{prefix}/{{source_type}}/{{source_id}}/{{type}}")]);
        config.kafka("127.0.0.1:9", "readings").redis("redis://127.0.0.1:9");
        routes(config, prefix);
    })
}

fn output(agent: &Agent, arguments: &[&str], input: &str) -> Output {
    let mut command = fieldpost();
    command.args(arguments).arg("--config").arg(agent.config_file());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn answer(agent: &Agent, arguments: &[&str], input: &str, code: i32) -> Value {
    let output = output(agent, &[&["check", "--json"], arguments].concat(), input);
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn config_shows_the_route_table() {
    let agent = commands("plant");
    let text = String::from_utf8(output(&agent, &["config"], "").stdout).unwrap();
    for line in [
        "#   1 alarms      mqtt_topic plant/+/+/alarm  -> topic plant-alarms, no ping, priority 0",
        "#   2 noise       type noise                  -> dropped and counted",
        "#     all others  every event                 -> topic readings, priority 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
    }
    // It is still a configuration file, and the same one.
    std::fs::write(agent.config_file(), &text).unwrap();
    let again = String::from_utf8(output(&agent, &["config"], "").stdout).unwrap();
    let table = |text: &str| text.split_once("# Routes").unwrap().1.to_owned();
    assert_eq!(table(&again), table(&text));
    let shown: Value = serde_json::from_slice(&output(&agent, &["config", "--json"], "").stdout).unwrap();
    let routes = shown["routes"].as_array().unwrap();
    assert_eq!(routes.len(), 6);
    assert_eq!((&routes[3]["report"], &routes[3]["deadband"]), (&json!("changes"), &json!(0.5)));
    assert_eq!((&routes[5]["number"], &routes[5]["topic"]), (&Value::Null, &json!("readings")));
}

#[test]
fn check_says_what_would_become_of_a_publish() {
    let agent = commands("plant");
    let shown =
        answer(&agent, &["--publish", "plant/pump/kind-7/slow", "--payload", "-"], r#"{"c":21.5}"#, 0);
    assert_eq!((&shown["outcome"], &shown["route"]), (&json!("reported"), &json!("slow")));
    assert!(
        shown["because"].as_str().unwrap().contains("changes by more than 0.5 of /c, here 21.5"),
        "{shown}"
    );
    let tried: Vec<_> =
        shown["routes"].as_array().unwrap().iter().map(|tried| tried["mismatch"].clone()).collect();
    assert_eq!(tried, [json!("mqtt_topic"), json!("type"), json!("type"), Value::Null]);
    let record = &shown["record"];
    assert_eq!((&record["topic"], &record["key"]), (&json!("readings"), &json!("kind-7")));
    assert_eq!(record["headers"]["fieldpost-seq"], "<at admission>");
    assert_ne!(record["headers"]["fieldpost-agent"], "<at admission>");
    let envelope: Value = serde_json::from_str(record["value"].as_str().unwrap()).unwrap();
    assert_eq!((&envelope["type"], &envelope["payload"]), (&json!("slow"), &json!({ "c": 21.5 })));
    assert_eq!(shown["ping"]["channel"], "events:pump:kind-7");

    let shown = answer(&agent, &["--publish", "plant/pump/kind-7/alarm"], "", 0);
    assert_eq!((&shown["record"]["topic"], &shown["ping"]), (&json!("plant-alarms"), &Value::Null));
    assert_eq!(shown["no_ping"], "the route has ping = false");
    let shown = answer(&agent, &["--publish", "plant/pump/1/noise"], "", 0);
    assert_eq!((&shown["outcome"], &shown["record"]), (&json!("dropped"), &Value::Null));
    let shown = answer(&agent, &["--publish", "elsewhere"], "", 65);
    assert_eq!(shown["outcome"], "refused");
    assert_eq!(answer(&agent, &["--publish", "plant/+/1/noise"], "", 65)["outcome"], "refused");
    assert!(shown["because"].as_str().unwrap().contains("matches no template of mqtt.topics"), "{shown}");

    // The same for the socket, for which the first route is not.
    let line = r#"{"id":"e-1","type":"alarm","source_type":"fan","source_id":"kind-1","payload":1}"#;
    let shown = answer(&agent, &["--event", "-"], line, 0);
    assert_eq!((&shown["route"], &shown["record"]["topic"]), (&json!("by-kind"), &json!("plant-fan")));
    assert_eq!(shown["routes"][0]["mismatch"], "not an MQTT publish");
    assert_eq!(answer(&agent, &["--event", "-"], "{}", 65)["outcome"], "refused");

    let text = output(&agent, &["check", "--publish", "plant/pump/kind-7/alarm"], "");
    let text = String::from_utf8(text.stdout).unwrap();
    for part in [
        "publish   plant/pump/kind-7/alarm\n",
        "route     1 alarms: matches\n",
        "record    topic plant-alarms, key kind-7\n",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let missing = output(&agent, &["check", "--event", "/nonexistent"], "");
    assert_eq!(missing.status.code(), Some(66));
    // No side effects: not even the folder of the buffer was made.
    assert!(!agent.data_dir().exists());
}

#[test]
fn check_looks_for_the_topics_of_routes() {
    let (topic, missing) = (create_topic(&Shared::get().kafka, 1), unique("missing"));
    let agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
        config.snippet(&format!(
            "[[route]]\ntype = \"a\"\ntopic = \"{missing}\"\n[[route]]\ntype = \"b\"\ntopic = \"{topic}\"\n"
        ));
        config.snippet("[[route]]\nmqtt_topic = \"a/#\"\n");
    });
    let report = answer(&agent, &[], "", 0);
    let findings = report["findings"].as_array().unwrap();
    let about = |key: &str| findings.iter().find(|finding| finding["key"] == key).unwrap().clone();
    let finding = about("route.topic");
    assert!(finding["message"].as_str().unwrap().contains(&missing), "{report}");
    assert!(about("route.mqtt_topic")["message"].as_str().unwrap().contains("route-3"), "{report}");
    assert_eq!(findings.iter().filter(|finding| finding["key"] == "route.topic").count(), 1);
}
