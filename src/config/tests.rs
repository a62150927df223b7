//! The configuration as operators write it, and the texts that are generated from its declarations.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::buffer::WhenFull;
use crate::config::problem::Problem;
use crate::config::reader::{Declared, DeclaredDefault, Outcome};
use crate::config::source::variable_of;
use crate::ingest::route::{Deadband, Keep, Pattern, Pointer, Report, Route};
use crate::ingest::topic::TopicFilter;
use crate::ping::{ChannelTemplate, StreamPlan};
use crate::secret::Password;
use crate::sink::kafka_security::{Login, Mechanism, Security};
use crate::sink::record::templates::{Allowed, KEY_FIELDS, TOPIC_FIELDS, Template};
use crate::sink::redis::{self, Coalesce, StreamOptions};
use crate::tls;

const HOST: &str = "gateway-17";

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn variables(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    pairs.into_iter()
}

/// Loads `text` as `fieldpost.toml` of a folder of its own, whose name is cut out of error messages.
fn load_with(text: &str, pairs: &[(&str, &str)]) -> Result<Loaded, String> {
    let folder = folder();
    let path = folder.path().join("fieldpost.toml");
    fs::write(&path, text).unwrap();
    load_on(HOST, Some(&path), variables(pairs)).map_err(|errors| {
        let lines: Vec<String> = errors.problems().iter().map(Problem::to_string).collect();
        lines.join("\n").replace(&format!("{}/", folder.path().display()), "")
    })
}

fn load(text: &str) -> Result<Loaded, String> {
    load_with(text, &[])
}

fn defaults() -> Config {
    load_on(HOST, None, variables(&[])).unwrap().config
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = load("").unwrap().config;
    assert_eq!(config, defaults());
    assert_eq!(config.agent.id, HOST);
    assert_eq!(config.agent.data_dir, Path::new("/var/lib/fieldpost"));
    assert_eq!(config.buffer.dir, Path::new("/var/lib/fieldpost/buffer"));
    assert_eq!((config.mqtt, config.unix, config.redis, config.kafka), (None, None, None, None));
    assert_eq!(config.limits.event_bytes_max, 256 << 10);
    assert_eq!(config.buffer.queue_bytes_max, 4 << 20);
    assert_eq!(config.drain.window_bytes_max, 4 << 20);
    assert_eq!(config.drain.delivery, drain::Delivery::AtLeastOnce);
    assert_eq!(config.log, log::Options { level: "info".into(), format: log::Format::Text });
}

#[test]
fn what_waits_in_the_mqtt_input_fits_the_smallest_buffer() {
    let text = "[mqtt]\nurl = \"mqtt://127.0.0.1\"\n[buffer]\nmax_bytes = \"8MiB\"\n[limits]\nmax_event_bytes = \"512KiB\"\n";
    let config = load(text).unwrap().config;
    let waiting = config.mqtt.unwrap().pending_bytes_max;
    assert!(waiting >= 1 << 20, "{waiting}");
    assert_eq!(waiting + (512 << 10), config.buffer.batch_bytes_max());
}

#[test]
fn inputs_and_routes_have_the_policy_of_the_buffer_unless_they_say_otherwise() {
    let text = "[mqtt]\nurl = \"mqtt://m\"\n[unix]\npath = \"/s\"\nwhen_full = \"block\"\n\
                [[route]]\ntype = \"alarm\"\n[[route]]\n[buffer]\nwhen_full = \"drop_oldest\"\n";
    let config = load(text).unwrap().config;
    assert_eq!(config.mqtt.unwrap().when_full, WhenFull::DropOldest);
    assert_eq!(config.unix.unwrap().when_full, WhenFull::Block);
    let [alarms, others] = config.routes.all() else { panic!() };
    assert_eq!((alarms.name.as_str(), others.name.as_str()), ("route-1", "route-2"));
    for route in [alarms, others] {
        assert_eq!((route.when_full, route.priority), (None, 0));
    }
    assert_eq!(others.kind, None);
    assert_eq!(defaults().routes.all(), []);
}

#[test]
fn a_route_is_checked_like_everything_else() {
    for (text, message) in [
        ("[[route]]\npriority = 10", "fieldpost.toml:2: route.priority = 10: too large; allowed: 0 to 9"),
        (
            "[[route]]\n\n[[route]]\ntype = \"a\"",
            "fieldpost.toml:3: [[route]] is never reached: the route \"route-1\" before it matches all of its events",
        ),
        (
            "[[route]]\nwhen_full = \"drop\"\n[[route]]\ntype = \"a\"",
            "fieldpost.toml:2: route.when_full = \"drop\": not known; allowed: block, reject, drop_oldest",
        ),
        ("[[route]]\ntype = \"\"", "fieldpost.toml:2: route.type = \"\": empty; allowed: 1 to 256 bytes"),
        (
            "[[route]]\ntype = [\"a\"]",
            "fieldpost.toml:2: route.type = [\"a\"]: a text in quotes is needed, this is a list; allowed: 1 to 256 bytes",
        ),
        (
            "[[route]]\ntyp = \"a\"\nprio = 1\n[route.match]\nx = 1",
            "fieldpost.toml:2: route.typ is not a known key; the nearest known one is route.type\n\
             fieldpost.toml:3: route.prio is not a known key; the nearest known one is route.priority\n\
             fieldpost.toml:5: route.match.x is not a known key",
        ),
        (
            "[[route]]\nname = \"a\"\ntype = \"x\"\n[[route]]\nname = \"a\"\ntype = \"y\"",
            "fieldpost.toml:4: route.name = \"a\": stands there twice",
        ),
        (
            "[route]\ntype = \"a\"\npriority = 1",
            "fieldpost.toml:3: route is a table for each: write [[route]] and its keys in the lines below it",
        ),
        (
            "[route]",
            "fieldpost.toml:1: route is a table for each: write [[route]] and its keys in the lines below it",
        ),
        (
            "route = [1, {type = \"a\"}]",
            "fieldpost.toml:1: route is a table for each: write [[route]] and its keys in the lines below it",
        ),
        (
            "[[rout]]\ntype = \"a\"",
            "fieldpost.toml:1: [[rout]] is not a known section; the nearest known one is [[route]]",
        ),
        (
            "[routes]\ntype = \"a\"",
            "fieldpost.toml:2: [routes] is not a known section; the nearest known one is [[route]]",
        ),
        (
            "[[mqtt]]\nqos = 1",
            "fieldpost.toml:1: mqtt is a section: write [mqtt] and its keys in the lines below it",
        ),
    ] {
        assert_eq!(load(text).unwrap_err(), message, "for {text:?}");
    }
    assert_eq!(
        load_with("", &[("FIELDPOST_ROUTE__TYPE", "a")]).unwrap_err(),
        "FIELDPOST_ROUTE__TYPE: no variable can set this: [[route]] stands in the file only"
    );
}

#[test]
fn routes_have_their_limits() {
    let routes = |count| (0..count).map(|n| format!("[[route]]\ntype = \"{n}\"\n")).collect::<String>();
    assert_eq!(load(&routes(64)).unwrap().config.routes.all().len(), 64);
    assert_eq!(
        load(&routes(65)).unwrap_err(),
        "fieldpost.toml:129: [[route]] is there 65 times; allowed: at most 64"
    );
    let route = |kind: &str, topic: &str| {
        format!("[[route]]\ntype = \"{kind}\"\ntopic = \"{}\"\n", topic.repeat(200))
    };
    let five: String = ["a", "b", "c", "d", "e"].map(|name| route(name, name)).concat();
    assert_eq!(load(&format!("{five}{}", route("f", "e"))).unwrap().config.routes.all().len(), 6);
    assert_eq!(
        load(&format!("{five}{}{}", route("f", "f"), route("g", "g"))).unwrap_err(),
        "fieldpost.toml:16: route.topic makes 1200 bytes of different topics; allowed: 1000, because every block of the buffer \
         names those of its events"
    );
    let longest = format!("[[route]]\ntype = \"{}\"", "x".repeat(257));
    assert!(load(&longest).unwrap_err().contains("257 bytes long; allowed: 1 to 256 bytes"));
}

#[test]
fn what_a_route_agrees_must_fit_together() {
    for (text, message) in [
        (
            "[[route]]\ndrop = true\ntopic = \"t\"\nping = false\nsample = 2",
            "fieldpost.toml:3: route.topic = \"t\": has no effect with route.drop = true: nothing of its events goes on\n\
             fieldpost.toml:4: route.ping = false: has no effect with route.drop = true: nothing of its events goes on\n\
             fieldpost.toml:5: route.sample = 2: has no effect with route.drop = true: nothing of its events goes on",
        ),
        (
            "[[route]]\nsample = 2\nreport = \"changes\"\ndeadband = 1",
            "fieldpost.toml:2: route.sample = 2: does not go with route.report = \"changes\": what is sampled out could be the \
             one change\n\
             fieldpost.toml:4: route.deadband = 1: needs route.value, which says where the number is",
        ),
        (
            "[[route]]\nvalue = \"/c\"\nmax_silence = \"1s\"",
            "fieldpost.toml:2: route.value = \"/c\": needs route.report = \"changes\"\n\
             fieldpost.toml:3: route.max_silence = \"1s\": needs route.report = \"changes\"",
        ),
        (
            "[[route]]\nreport = \"changes\"\nvalue = \"c\"\ndeadband = -1",
            "fieldpost.toml:3: route.value = \"c\": a JSON pointer is empty or begins with `/`, as `/celsius`; allowed: a JSON \
             pointer of up to 256 bytes\n\
             fieldpost.toml:4: route.deadband = -1: too small; allowed: 0 to 1000000000000000",
        ),
        (
            "[[route]]\ndeadband = nan",
            "fieldpost.toml:2: route.deadband = nan: not a number; allowed: 0 to 1000000000000000",
        ),
        (
            "[[route]]\nmqtt_topic = \"a/{type}\"\ntopic = \"a/b\"",
            "fieldpost.toml:2: route.mqtt_topic = \"a/{type}\": nothing is captured here; a level is text, `+`, or a last `#`; \
             allowed: an MQTT topic filter\n\
             fieldpost.toml:3: route.topic = \"a/b\": `/` is not allowed; allowed: 1 to 249 characters of A-Z a-z 0-9 . _ - and \
             {source_type}, {source_id}, {type}",
        ),
    ] {
        assert_eq!(load(text).unwrap_err(), message, "for {text:?}");
    }
}

#[test]
fn routes_are_shown_with_their_places() {
    let text = "[[route]]\ntype = \"alarm\"\nwhen_full = \"block\"\npriority = 9\n[[route]]\n\
                report = \"changes\"\nvalue = \"\"\ndeadband = 0.25\nmax_silence = \"1h\"\n";
    let loaded = load(text).unwrap();
    let shown = effective_toml(&loaded.effective);
    let (_, routes) = shown.split_once("\n\n[[route]]").unwrap();
    let (routes, _) = routes.split_once("\n\n[limits]").unwrap();
    assert_eq!(
        routes,
        r#"
name = "route-1"                             # default, `route-` and its number
# mqtt_topic is not set: every event matches
type = "alarm"                               # line 2
# source_type is not set: every event matches
# source_id is not set: every event matches
# topic is not set: kafka.topic
ping = true                                  # default
when_full = "block"                          # line 3
priority = 9                                 # line 4
drop = false                                 # default
sample = 1                                   # default
report = "all"                               # default
# value is not set: the whole payload is compared
deadband = 0                                 # default
max_silence = "0s"                           # default

[[route]]
name = "route-2"                             # default, `route-` and its number
# mqtt_topic is not set: every event matches
# type is not set: every event matches
# source_type is not set: every event matches
# source_id is not set: every event matches
# topic is not set: kafka.topic
ping = true                                  # default
# when_full is not set: as the input has it
priority = 0                                 # default
drop = false                                 # default
sample = 1                                   # default
report = "changes"                           # line 6
value = ""                                   # line 7
deadband = 0.25                              # line 8
max_silence = "1h"                           # line 9"#
    );
    assert_eq!(load(&shown).unwrap().config, loaded.config);
    let json = effective_json(&loaded.effective);
    assert_eq!(json["route.1.priority"]["value"], 9);
    assert!(json["route.1.priority"]["place"].as_str().unwrap().ends_with("fieldpost.toml:4"));
    assert_eq!(json["route.2.type"]["value"], serde_json::Value::Null);
    assert_eq!(
        (&json["route.1.deadband"]["value"], &json["route.2.deadband"]["value"]),
        (&0.into(), &0.25.into())
    );
}

#[test]
fn what_is_in_flight_leaves_most_of_a_small_buffer_to_be_given_up() {
    let config = small_buffer("4 MiB", "192 KiB").unwrap();
    assert_eq!(config.drain.window_bytes_max, 512 << 10);
    assert!(config.drain.window_bytes_max > config.limits.record_bytes_max());
}

fn small_buffer(bytes_max: &str, event_bytes_max: &str) -> Result<Config, String> {
    let text = format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1\"\n[buffer]\nmax_bytes = \"{bytes_max}\"\n\
         [limits]\nmemory = \"84 MiB\"\nmax_event_bytes = \"{event_bytes_max}\"\n"
    );
    load(&text).map(|loaded| loaded.config)
}

#[test]
fn what_an_input_appends_at_once_fits_the_smallest_buffer() {
    for (bytes_max, event_bytes_max) in
        [("4 MiB", "1 KiB"), ("4 MiB", "192 KiB"), ("4352 KiB", "256 KiB"), ("128 MiB", "8 MiB")]
    {
        let config = small_buffer(bytes_max, event_bytes_max).unwrap();
        let (event, batch) = (config.limits.event_bytes_max, config.buffer.batch_bytes_max());
        assert!(unix::BATCH_BYTES + event <= batch, "{bytes_max} {event_bytes_max}");
        let waiting = config.mqtt.unwrap().pending_bytes_max;
        assert!(waiting >= unix::BATCH_BYTES && waiting + event <= batch, "{bytes_max} {event_bytes_max}");
    }
    assert_eq!(
        small_buffer("4 MiB", "193 KiB").unwrap_err(),
        "fieldpost.toml:4: buffer.max_bytes = \"4 MiB\": too small for limits.max_event_bytes = \"193 KiB\"; allowed: \
         \"4160 KiB\" or more, or smaller events, so that 16 of the largest fit and what an input appends at once \
         always finds room"
    );
}

#[test]
fn the_least_memory_lets_the_largest_event_through_the_socket() {
    for kib in [1, 64, 256, 1024, 8192] {
        let memory = 10 * kib + 4096;
        let text = |memory| {
            format!(
                "[unix]\npath = \"/s\"\n[buffer]\nmax_bytes = \"1 GiB\"\n[limits]\nmemory = \"{memory} KiB\"\nmax_event_bytes = \"{kib} KiB\"\n"
            )
        };
        let config = load(&text(memory)).unwrap().config;
        let (event, waiting) = (config.limits.event_bytes_max, config.unix.unwrap().pending_bytes_max);
        assert!(unix::pending_bytes_min(event) <= waiting, "{kib} KiB");
        assert!(config.limits.record_bytes_max() < waiting, "{kib} KiB");
        load(&text(memory - 1)).unwrap_err();
    }
}

#[test]
fn the_addresses_are_all_that_is_needed() {
    let config = load(
        "[mqtt]\nurl = \"mqtt://127.0.0.1\"\n[unix]\npath = \"/run/f.sock\"\n\
         [kafka]\nbrokers = \"a,b:7\"\n[redis]\nurl = \"rediss://cache/2\"\n",
    )
    .unwrap()
    .config;
    let mqtt = config.mqtt.unwrap();
    assert_eq!(
        (mqtt.host.as_str(), mqtt.port, mqtt.client_id.as_str()),
        ("127.0.0.1", 1883, "fieldpost-gateway-17")
    );
    assert_eq!((mqtt.qos, mqtt.protocol), (mqtt::Qos::AtLeastOnce, mqtt::Protocol::V5));
    assert_eq!((mqtt.topics.len(), mqtt.receive_maximum, mqtt.pending_bytes_max), (1, 1000, 4 << 20));
    let unix = config.unix.unwrap();
    assert_eq!((unix.mode, unix.connections_max, unix.append_timeout), (0o660, 256, Duration::from_secs(5)));
    assert_eq!(unix.pending_bytes_max, 4 << 20);
    let kafka = config.kafka.unwrap();
    assert_eq!(kafka.brokers, "a:9092,b:7");
    assert_eq!(config.records, record::Options::new(Template::literal("fieldpost")));
    assert_eq!(kafka.queue_bytes_max, 4 << 20);
    assert!(kafka.record_bytes_max > (256 << 10) * 4 / 3 && kafka.record_bytes_max < kafka.queue_bytes_max);
    let redis = config.redis.unwrap();
    assert_eq!((redis.options.tls.is_some(), redis.options.place()), (true, "cache:6379".to_owned()));
    assert_eq!((redis.options.database, redis.options.streams), (2, None));
    let channel = ChannelTemplate::parse("events:{source_type}:{source_id}").ok();
    assert_eq!(redis.plan, Plan { channel, aggregate: None, stream: None });
    assert_eq!(redis.ping_after, PingAfter::Durable);
}

/// Every key away from its default.
const FULL: &str = r#"
[agent]
id = "site_4.gw"
data_dir = "/data/fieldpost"
stop_grace = "1m"

[mqtt]
url = "mqtts://broker:1999"
client_id = "other"
username = "u"
password_file = "mqtt-secret"
ca_file = "ca.pem"
cert_file = "agent.pem"
key_file = "agent.key"
key_password_file = "mqtt-secret"
topics = ["a/{source_id}", "b/#"]
qos = 2
protocol = 4
receive_maximum = 20
keep_alive = "18h"
status_topic = "site/{agent_id}/health"
status_interval = "5m"
when_full = "drop_oldest"

[unix]
path = "/run/other.sock"
mode = "0600"
max_connections = 1
when_full = "block"

[[route]]
name = "alarms"
mqtt_topic = "plant/+/#"
type = "alarm"
source_type = "*"
source_id = "pump-*"
topic = "alarms.{source_type}"
ping = false
when_full = "block"
priority = 9
drop = false
sample = 1
report = "changes"
value = "/bar"
deadband = 1e-3
max_silence = "1h"

[limits]
max_event_bytes = "8 MiB"
memory = "96 MiB"
append_timeout = "11s"
sources = 500

[buffer]
max_bytes = "500 GB"
when_full = "reject"
min_free = "1 GiB"
max_age = "48h"
commit_interval = "10s"

[kafka]
brokers = "k1:9093"
topic = "site-4.{source_type}.{type}"
topics_allowed = ["site-4.pump.alarm"]
fallback_topic = "site-4.other"
key = "{source_type}/{source_id}"
format = "avro"
headers = { site = 4, x-line = "a" }
delivery = "at_most_once"
order = "fifo"
backlog_after = "1m"
backlog_topic = "late.{type}"
timestamp = "event"
compression = "zstd"
round_interval = "1ms"
max_rate = "1 MiB"
max_event_rate = 2000
start_jitter = "1m"
transaction_interval = "50ms"
transaction_bytes = "1 MiB"
transaction_events = 500
transaction_timeout = "60s"
cursor_topic = "cursors"
dead_letter_topic = "site-4.refused"
dead_letter_max_bytes = "32 MiB"
tls = true
ca_file = "ca.pem"
cert_file = "agent.pem"
key_file = "agent.key"
key_password_file = "kafka-secret"
sasl_mechanism = "SCRAM-SHA-512"
username = "u"
password_file = "kafka-secret"

[kafka.properties]
socket.nagle.disable = true
"broker.address.family" = "v4"
"socket.timeout.ms" = 2000

[schema_registry]
url = "https://registry/api"
username = "u"
password_file = "registry-secret"
ca_file = "/ca.pem"
timeout = "1s"

[redis]
url = "rediss+sentinel://cache:6380/main/5"
username = "u"
password_file = "redis-secret"
sentinel_username = "s"
sentinel_password_file = "redis-secret"
ca_file = "ca.pem"
cert_file = "agent.pem"
key_file = "agent.key"
key_password_file = "redis-secret"
mode = "both"
channel = "all"
aggregate_channel = "all:{type}"
ping_after = "delivered"
queue = 1
timeout = "10ms"
coalesce = "100ms"
coalesce_above = 7
max_age = "1s"
stream = "all"
stream_max_len = 5
stream_max_age = "1h"
streams_max = 1
stream_payload = true
stream_payload_max_bytes = "1 KiB"
stream_payload_queue = "64 KiB"

[http]
listen = "0.0.0.0:1"
cert_file = "agent.pem"
key_file = "agent.key"
token_file = "redis-secret"
max_connections = 100
recent_events = 5
recent_bytes = "1MiB"
ready_max_age = "5s"

[uplink]
command = ["/usr/local/bin/reset", "-v", "-v"]
after = "10m"
repeat = "2h"
timeout = "30s"

[ledger]
announce = false
topic = "losses.{source_type}"

[log]
level = "warn,fieldpost::drain=trace"
format = "json"
"#;

fn full_folder() -> (tempfile::TempDir, PathBuf) {
    let folder = folder();
    for (name, content) in [
        ("mqtt-secret", "mq-hush\n"),
        ("kafka-secret", "ka-hush"),
        ("redis-secret", "re-hush"),
        ("registry-secret", "sr-hush"),
        // Looked into only when a connection is made.
        ("ca.pem", ""),
        ("agent.pem", ""),
        ("agent.key", ""),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let path = folder.path().join("fieldpost.toml");
    fs::write(&path, FULL).unwrap();
    (folder, path)
}

#[test]
#[allow(clippy::too_many_lines, reason = "one file with every key, looked at key by key")]
fn a_full_file_sets_everything() {
    let (_folder, path) = full_folder();
    let Loaded { config, effective, secrets } = load_on(HOST, Some(&path), variables(&[])).unwrap();
    let untouched: Vec<_> =
        effective.iter().filter(|key| key.source.is_default()).map(|key| &key.key).collect();
    // A token excludes the password.
    assert_eq!(untouched, ["kafka.token_file"], "what the test's file leaves out");
    let revealed: BTreeSet<_> =
        secrets.iter().map(|secret| secret.read().unwrap().reveal().to_owned()).collect();
    assert_eq!(revealed, ["ka-hush", "mq-hush", "re-hush", "sr-hush"].map(str::to_owned).into());
    let is_secret = |key: &str| key.ends_with("password_file") || key.ends_with("token_file");
    let named = effective.iter().filter(|effective| is_secret(&effective.key) && effective.value.is_ok());
    assert_eq!(secrets.len(), named.count(), "each is known");
    assert_eq!(config.agent.stop_grace, Duration::from_secs(60));
    let mqtt = config.mqtt.unwrap();
    assert_eq!((mqtt.port, mqtt.qos, mqtt.protocol), (1999, mqtt::Qos::ExactlyOnce, mqtt::Protocol::V4));
    assert_eq!(mqtt.password.unwrap().read().unwrap().reveal(), "mq-hush");
    let file = |name| Some(path.parent().unwrap().join(name));
    let key_password = file("mqtt-secret").map(Password::File);
    let tls = tls::Options {
        ca_file: file("ca.pem"),
        cert_file: file("agent.pem"),
        key_file: file("agent.key"),
        key_password,
    };
    assert_eq!(mqtt.tls.as_ref(), Some(&tls));
    assert_eq!((mqtt.topics.len(), mqtt.keep_alive), (2, Duration::from_secs(64_800)));
    let status = mqtt.status.unwrap();
    let topic = format!("site/{}/health", config.agent.id);
    assert_eq!((status.topic, status.interval), (topic, Duration::from_secs(300)));
    assert_eq!(mqtt.when_full, WhenFull::DropOldest);
    let unix = config.unix.unwrap();
    assert_eq!((unix.mode, unix.when_full), (0o600, WhenFull::Block));
    let pattern = |text: &str| Some(Pattern::new(text));
    let alarms = Route {
        name: "alarms".into(),
        kind: pattern("alarm"),
        source_type: pattern("*"),
        source_id: pattern("pump-*"),
        when_full: Some(WhenFull::Block),
        priority: 9,
        mqtt_topic: Some(TopicFilter::parse("plant/+/#").unwrap()),
        topic: Some("alarms.{source_type}".into()),
        is_quiet: true,
        keep: Keep::Changes(Report {
            value: Some(Pointer::parse("/bar").unwrap()),
            deadband: Deadband::new(0.001).unwrap(),
            max_silence: Some(Duration::from_secs(3600)),
        }),
    };
    assert_eq!(config.routes, Routes::new(vec![alarms], 500));
    assert_eq!(config.buffer.bytes_max, 500_000_000_000);
    assert_eq!(config.buffer.queue_bytes_max, 24 << 20);
    assert_eq!(config.drain.delivery, drain::Delivery::AtMostOnce);
    assert_eq!(config.drain.order, drain::Order::Fifo);
    assert_eq!(config.drain.rates, drain::Rates { bytes: Some(1 << 20), events: Some(2000) });
    assert_eq!(config.drain.start_jitter, Duration::from_secs(60));
    let transaction = config.drain.transaction;
    assert_eq!(
        (transaction.interval, transaction.timeout),
        (Duration::from_millis(50), Duration::from_secs(60))
    );
    assert_eq!((transaction.bytes_max, transaction.events_max), (1 << 20, 500));
    let DeadLetters { topic, store } = config.dead_letters;
    assert_eq!(topic.as_deref(), Some("site-4.refused"));
    assert_eq!((store.dir.as_path(), store.bytes_max), (Path::new("/data/fieldpost/dead-letters"), 32 << 20));
    let kafka = config.kafka.unwrap();
    let properties: BTreeSet<_> =
        kafka.properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let wanted = ["broker.address.family=v4", "socket.nagle.disable=true", "socket.timeout.ms=2000"];
    assert_eq!(properties, wanted.map(str::to_owned).into());
    let password = file("kafka-secret").map(Password::File).unwrap();
    let login = Login::Password {
        mechanism: Mechanism::ScramSha512,
        username: "u".into(),
        password: password.clone(),
    };
    let tls = tls::Options { key_password: Some(password), ..tls };
    assert_eq!(kafka.security, Security { tls: Some(tls.clone()), login: Some(login) });
    let registry = config.registry.unwrap();
    assert_eq!(
        (registry.url().as_str(), registry.timeout),
        ("https://registry:443/api", Duration::from_secs(1))
    );
    assert_eq!(registry.password.unwrap().read().unwrap().reveal(), "sr-hush");
    assert_eq!(registry.file, config.agent.data_dir.join("SCHEMAS"));
    let redis = config.redis.unwrap();
    let tls = tls::Options { key_password: file("redis-secret").map(Password::File), ..tls };
    assert_eq!(redis.options.tls, Some(tls));
    assert_eq!((redis.options.queue_max, redis.ping_after), (1, PingAfter::Delivered));
    let options = &redis.options;
    let login = |username: &str| redis::Login {
        username: Some(username.into()),
        password: file("redis-secret").map(Password::File),
    };
    assert_eq!((&options.login, &options.sentinel_login), (&login("u"), &login("s")));
    assert_eq!(options.coalesce, Coalesce { window: Duration::from_millis(100), above: 7 });
    assert_eq!((options.max_age, options.payload_queue_bytes_max), (Duration::from_secs(1), 64 << 10));
    let max_age = Some(Duration::from_secs(3600));
    assert_eq!(options.streams, Some(StreamOptions { len_max: 5, max_age, count_max: 1 }));
    let stream = StreamPlan { name: ChannelTemplate::parse("all").unwrap(), payload_bytes_max: Some(1024) };
    let [channel, aggregate] = ["all", "all:{type}"].map(|text| ChannelTemplate::parse(text).ok());
    assert_eq!(redis.plan, Plan { channel, aggregate, stream: Some(stream) });
    let template = |text: &str, fields| Template::parse(text, fields).unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let records = record::Options {
        format: record::Format::Avro,
        topic: template("site-4.{source_type}.{type}", TOPIC_FIELDS),
        allowed: Some(Allowed::new(vec!["site-4.pump.alarm".into()], "site-4.other".into())),
        loss_topic: Some(template("losses.{source_type}", TOPIC_FIELDS)),
        backlog_topic: Some(template("late.{type}", TOPIC_FIELDS)),
        key: Some(template("{source_type}/{source_id}", KEY_FIELDS)),
        headers: vec![pair("site", "4"), pair("x-line", "a")],
        timestamp: record::Timestamp::Event,
    };
    assert_eq!(config.records, records);
    let uplink = config.uplink.unwrap();
    assert_eq!((uplink.program.as_path(), uplink.arguments.len()), (Path::new("/usr/local/bin/reset"), 2));
    assert_eq!(
        (uplink.after, uplink.repeat, uplink.timeout),
        (Duration::from_secs(600), Duration::from_secs(7200), Duration::from_secs(30))
    );
    let http = config.http.unwrap();
    assert_eq!((http.listen.to_string().as_str(), http.connections_max), ("0.0.0.0:1", 100));
    let files = http.tls.map(|tls| tls.paths().map(|path| path.file_name().unwrap().to_owned()).collect());
    assert_eq!(files, Some(vec!["agent.pem".into(), "agent.key".into()]));
    assert_eq!(http.token.unwrap().read().unwrap().reveal(), "re-hush");
    assert_eq!((http.recent.events_max, http.recent.bytes_max), (5, 1 << 20));
    assert_eq!(http.ready_age_max, Duration::from_secs(5));
    assert_eq!(config.ledger, losses::Options { announce: false });
    assert_eq!(config.log.format, log::Format::Json);
}

/// A file and all that is said about it.
const BAD_VALUES: &[(&str, &str)] = &[
    (
        "[agent]\nid = \"a b\"",
        "fieldpost.toml:2: agent.id = \"a b\": ` ` is not allowed; allowed: 1 to 128 characters of A-Z a-z 0-9 . _ -",
    ),
    (
        "[agent]\nid = 17",
        "fieldpost.toml:2: agent.id = 17: a text in quotes is needed; allowed: 1 to 128 characters of A-Z a-z 0-9 . _ -",
    ),
    ("[agent]\ndata_dir = \"\"", "fieldpost.toml:2: agent.data_dir = \"\": empty; allowed: a path"),
    (
        "[agent]\nstop_grace = \"1h\"",
        "fieldpost.toml:2: agent.stop_grace = \"1h\": too large; allowed: 0s to 10m",
    ),
    (
        "[agent]\nstop_grace = 10",
        "fieldpost.toml:2: agent.stop_grace = 10: a duration needs a unit, for example \"10s\" or \"10ms\"; allowed: 0s to 10m",
    ),
    (
        "[mqtt]\nurl = \"http://a\"",
        "fieldpost.toml:2: mqtt.url = \"http://a\": the scheme `http` is not mqtt or mqtts; allowed: mqtt://host:port or mqtts://host:port",
    ),
    ("[mqtt]\nclient_id = \"\"", "fieldpost.toml:2: mqtt.client_id = \"\": empty; allowed: 1 to 256 bytes"),
    (
        "[mqtt]\ntopics = []",
        "fieldpost.toml:2: mqtt.topics = []: 0 entries; allowed: 1 to 64 different topics",
    ),
    (
        "[mqtt]\ntopics = [\"a\", \"a\"]",
        "fieldpost.toml:2: mqtt.topics = [\"a\", \"a\"]: \"a\" stands there twice; allowed: 1 to 64 different topics",
    ),
    (
        "[mqtt]\ntopics = \"a\"",
        "fieldpost.toml:2: mqtt.topics = \"a\": a list such as [\"a\", \"b\"] is needed, this is a text; allowed: 1 to 64 different topics",
    ),
    (
        "[ledger]\nannounce = \"true\"",
        "fieldpost.toml:2: ledger.announce = \"true\": true or false without quotes is needed; allowed: true, false",
    ),
    (
        "[ledger]\nannounce = 1",
        "fieldpost.toml:2: ledger.announce = 1: true or false is needed, this is a number; allowed: true, false",
    ),
    ("[mqtt]\nqos = 3", "fieldpost.toml:2: mqtt.qos = 3: not known; allowed: 0, 1, 2"),
    (
        "[mqtt]\nqos = \"1\"",
        "fieldpost.toml:2: mqtt.qos = \"1\": a number without quotes is needed; allowed: 0, 1, 2",
    ),
    (
        "[mqtt]\nprotocol = 3.1",
        "fieldpost.toml:2: mqtt.protocol = 3.1: a whole number is needed, this is a fraction; allowed: 5, 4",
    ),
    (
        "[mqtt]\nreceive_maximum = 0",
        "fieldpost.toml:2: mqtt.receive_maximum = 0: too small; allowed: 1 to 65535",
    ),
    (
        "[mqtt]\nreceive_maximum = -1",
        "fieldpost.toml:2: mqtt.receive_maximum = -1: too small; allowed: 1 to 65535",
    ),
    (
        "[mqtt]\nkeep_alive = \"4s\"",
        "fieldpost.toml:2: mqtt.keep_alive = \"4s\": too small; allowed: 5s to 18h",
    ),
    (
        "[mqtt]\nstatus_topic = \"fieldpost/#\"",
        "fieldpost.toml:2: mqtt.status_topic = \"fieldpost/#\": `#` is not allowed; allowed: 1 to 512 bytes without `+`, `#` and other placeholders, not `$` in front",
    ),
    (
        "[mqtt]\nstatus_topic = \"a/{source_id}\"",
        "fieldpost.toml:2: mqtt.status_topic = \"a/{source_id}\": `{` is not allowed; allowed: 1 to 512 bytes without `+`, `#` and other placeholders, not `$` in front",
    ),
    (
        "[mqtt]\nstatus_topic = \"$SYS/a\"",
        "fieldpost.toml:2: mqtt.status_topic = \"$SYS/a\": what begins with `$` is the broker's; allowed: 1 to 512 bytes without `+`, `#` and other placeholders, not `$` in front",
    ),
    (
        "[uplink]\ncommand = [\"reset\"]",
        "fieldpost.toml:2: uplink.command = [\"reset\"]: begins with \"reset\"; allowed: an absolute path, because there is \
         no PATH to look it up in",
    ),
    (
        "[mqtt]\npassword = \"hush\"",
        "fieldpost.toml:2: mqtt.password may not stand in the configuration file: give mqtt.password_file or set the variable FIELDPOST_MQTT__PASSWORD",
    ),
    (
        "[unix]\nmode = 660",
        "fieldpost.toml:2: unix.mode = 660: a text in quotes is needed; allowed: octal digits in quotes, \"0000\" to \"0777\"",
    ),
    (
        "[unix]\nmode = \"4755\"",
        "fieldpost.toml:2: unix.mode = \"4755\": too large; allowed: octal digits in quotes, \"0000\" to \"0777\"",
    ),
    (
        "[unix]\nmax_connections = 100000",
        "fieldpost.toml:2: unix.max_connections = 100000: too large; allowed: 1 to 65536",
    ),
    (
        "[limits]\nmax_event_bytes = \"9 MiB\"",
        "fieldpost.toml:2: limits.max_event_bytes = \"9 MiB\": too large; allowed: 1 KiB to 8 MiB",
    ),
    (
        "[limits]\nmax_event_bytes = \"64 M\"",
        "fieldpost.toml:2: limits.max_event_bytes = \"64 M\": the unit `M` is not one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB; allowed: 1 KiB to 8 MiB",
    ),
    (
        "[limits]\nmax_event_bytes = \"8 MiB\"",
        "fieldpost.toml:2: limits.memory = \"16 MiB\": too small for limits.max_event_bytes = \"8 MiB\"; allowed: \"84 MiB\" or more, because each quarter must hold the largest event beside the line it came in",
    ),
    (
        "[limits]\nappend_timeout = true",
        "fieldpost.toml:2: limits.append_timeout = true: a duration such as \"10s\" is needed, this is true or false; allowed: 10ms to 10m",
    ),
    (
        "[buffer]\nmax_bytes = 1024",
        "fieldpost.toml:2: buffer.max_bytes = 1024: too small; allowed: 4 MiB to 1 TiB",
    ),
    (
        "[limits]\nmemory = \"1 GiB\"\nmax_event_bytes = \"8 MiB\"\n[buffer]\nmax_bytes = \"64 MiB\"",
        "fieldpost.toml:5: buffer.max_bytes = \"64 MiB\": too small for limits.max_event_bytes = \"8 MiB\"; allowed: \"128 MiB\" or more, or smaller events, so that 16 of the largest fit and what an input appends at once always finds room",
    ),
    (
        "[buffer]\nwhen_full = \"drop\"",
        "fieldpost.toml:2: buffer.when_full = \"drop\": not known; allowed: block, reject, drop_oldest",
    ),
    (
        "[buffer]\ncommit_interval = \"5s\"",
        "fieldpost.toml:2: buffer.commit_interval = \"5s\": not below limits.append_timeout: every event of the socket would time out before its sync",
    ),
    (
        "[kafka]\nbrokers = \"kafka://a\"",
        "fieldpost.toml:2: kafka.brokers = \"kafka://a\": `a` without `kafka://` is meant; allowed: host:port,host:port",
    ),
    (
        "[kafka]\ntopic = \"a b\"",
        "fieldpost.toml:2: kafka.topic = \"a b\": ` ` is not allowed; allowed: 1 to 249 characters of A-Z a-z 0-9 . _ - and {source_type}, {source_id}, {type}",
    ),
    (
        "[kafka]\ntopics_allowed = [\"a.{type}\"]",
        "fieldpost.toml:2: kafka.topics_allowed = [\"a.{type}\"]: \"a.{type}\": no placeholder is allowed here; allowed: up to 64 different topics, each of 1 to 249 characters of A-Z a-z 0-9 . _ -",
    ),
    (
        "[kafka]\ntopic = \"{type}\"\ntopics_allowed = [\"a\"]",
        "fieldpost.toml:3: kafka.topics_allowed = [\"a\"]: kafka.fallback_topic is not set: say where the events of other topics go",
    ),
    (
        "[kafka]\ntopic = \"b\"\ntopics_allowed = [\"a\"]\nfallback_topic = \"c\"",
        "fieldpost.toml:2: kafka.topic = \"b\": is not in kafka.topics_allowed, and no event would go there",
    ),
    (
        "[kafka]\ntopic = \"{type}\"\ntopics_allowed = [\"a\"]\nfallback_topic = \"b\"\ndead_letter_topic = \"b\"",
        "fieldpost.toml:5: kafka.dead_letter_topic = \"b\": is a topic of other events too: what is refused there would be sent there again; name another topic",
    ),
    (
        "[kafka]\nkey = \"{payload}\"",
        "fieldpost.toml:2: kafka.key = \"{payload}\": the only placeholders are {source_type}, {source_id}, {type}, {id}; allowed: up to 256 bytes, with up to 8 of {source_type}, {source_id}, {type}, {id}",
    ),
    (
        "[kafka]\nformat = \"avro2\"",
        "fieldpost.toml:2: kafka.format = \"avro2\": not known; allowed: envelope, cloudevents, raw, avro",
    ),
    (
        "[kafka]\nformat = \"avro\"",
        "fieldpost.toml:2: kafka.format = \"avro\": schema_registry.url is not set: the format needs the id of its schema",
    ),
    (
        "[schema_registry]\nurl = \"http://u:hush@r\"",
        "fieldpost.toml:2: schema_registry.url = \"http://***@r\": a password may not stand in the URL: give schema_registry.password_file or set the variable FIELDPOST_SCHEMA_REGISTRY__PASSWORD; allowed: http://host:port/path or https://",
    ),
    (
        "[kafka.headers]\nfieldpost-x = \"hush\"",
        "fieldpost.toml:2: kafka.headers.\"fieldpost-x\" is not allowed here: names that begin with fieldpost- are the agent's own",
    ),
    (
        "[kafka]\ndelivery = \"exactly once\"",
        "fieldpost.toml:2: kafka.delivery = \"exactly once\": not known; allowed: at_least_once, exactly_once, at_most_once",
    ),
    (
        "[kafka]\ndelivery = \"exactly_once\"\ntopic = \"a.{source_type}\"",
        "fieldpost.toml:3: kafka.cursor_topic is required with exactly_once when kafka.topic has a placeholder: name a topic that exists",
    ),
    (
        "[kafka]\norder = \"lifo\"",
        "fieldpost.toml:2: kafka.order = \"lifo\": not known; allowed: fifo, live_first",
    ),
    (
        "[kafka]\norder = \"live_first\"\ndelivery = \"at_most_once\"",
        "fieldpost.toml:2: kafka.order = \"live_first\": goes with at_least_once and exactly_once alone: at_most_once lets go of events before it sends them",
    ),
    (
        "[kafka]\ncursor_topic = \"a.{source_type}\"",
        "fieldpost.toml:2: kafka.cursor_topic = \"a.{source_type}\": no placeholder is allowed here; allowed: 1 to 249 characters of A-Z a-z 0-9 . _ -",
    ),
    (
        "[kafka]\ntransaction_timeout = \"5s\"",
        "fieldpost.toml:2: kafka.transaction_timeout = \"5s\": too small; allowed: 10s to 15m",
    ),
    (
        "[kafka]\nproperties = { \"transactional.id\" = \"x\" }",
        "fieldpost.toml:2: kafka.properties.\"transactional.id\" is not allowed here: it follows from agent.id, with kafka.delivery = \"exactly_once\"",
    ),
    (
        "[kafka]\ndead_letter_topic = \"refused.{source_type}\"",
        "fieldpost.toml:2: kafka.dead_letter_topic = \"refused.{source_type}\": no placeholder is allowed here; allowed: 1 to 249 characters of A-Z a-z 0-9 . _ -",
    ),
    (
        "[kafka]\ndead_letter_topic = \"fieldpost\"",
        "fieldpost.toml:2: kafka.dead_letter_topic = \"fieldpost\": is kafka.topic: what is refused there would be sent there again; name another topic",
    ),
    (
        "[kafka]\ndead_letter_max_bytes = \"1 MiB\"\n[limits]\nmax_event_bytes = \"600 KiB\"",
        "fieldpost.toml:2: kafka.dead_letter_max_bytes = \"1 MiB\": too small for limits.max_event_bytes = \"600 KiB\"; allowed: \"1200 KiB\" or more",
    ),
    (
        "[kafka]\ndead_letter_max_bytes = \"2 GiB\"",
        "fieldpost.toml:2: kafka.dead_letter_max_bytes = \"2 GiB\": too large; allowed: 1 MiB to 1 GiB",
    ),
    (
        "[kafka]\nproperties = 1",
        "fieldpost.toml:2: kafka.properties = 1: a table is needed, this is a number; allowed: texts, whole numbers, true or false",
    ),
    (
        "[kafka.properties]\n\"linger.ms\" = 5",
        "fieldpost.toml:2: kafka.properties.\"linger.ms\" is not allowed here: set kafka.round_interval, which does the same with less CPU",
    ),
    (
        "[kafka.properties]\nacks = 1",
        "fieldpost.toml:2: kafka.properties.\"acks\" is not allowed here: an event leaves the buffer only when all in-sync replicas confirmed it",
    ),
    (
        "[kafka.properties]\n\"sasl.password\" = \"hush\"",
        "fieldpost.toml:2: kafka.properties.\"sasl.password\" is not allowed here: it is a secret: give kafka.password_file or set the variable FIELDPOST_KAFKA__PASSWORD",
    ),
    (
        "[kafka.properties]\n\"security.protocol\" = \"ssl\"",
        "fieldpost.toml:2: kafka.properties.\"security.protocol\" is not allowed here: set kafka.tls and kafka.sasl_mechanism",
    ),
    (
        "[kafka.properties]\n\"enable.ssl.certificate.verification\" = false",
        "fieldpost.toml:2: kafka.properties.\"enable.ssl.certificate.verification\" is not allowed here: a server and its name are always verified: set kafka.ca_file to the authority that signed its certificate",
    ),
    (
        "[kafka]\nsasl_mechanism = \"GSSAPI\"",
        "fieldpost.toml:2: kafka.sasl_mechanism = \"GSSAPI\": not known; allowed: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER",
    ),
    (
        "[kafka]\nsasl_mechanism = \"PLAIN\"\nusername = \"u\"",
        "fieldpost.toml:2: kafka.sasl_mechanism = \"PLAIN\": needs kafka.username and kafka.password_file (or the variable FIELDPOST_KAFKA__PASSWORD)",
    ),
    (
        "[kafka]\nsasl_mechanism = \"OAUTHBEARER\"",
        "fieldpost.toml:2: kafka.sasl_mechanism = \"OAUTHBEARER\": needs kafka.token_file",
    ),
    (
        "[kafka]\nusername = \"u\"",
        "fieldpost.toml:2: kafka.username = \"u\": is for kafka.sasl_mechanism PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512: set that or remove it",
    ),
    (
        "[mqtt]\nca_file = \"/etc/hostname\"",
        "fieldpost.toml:2: mqtt.ca_file = \"/etc/hostname\": needs mqtts:// in mqtt.url",
    ),
    (
        "[kafka]\ntls = true\ncert_file = \"/etc/hostname\"",
        "fieldpost.toml:3: kafka.cert_file = \"/etc/hostname\": needs kafka.key_file",
    ),
    (
        "[redis]\nurl = \"rediss://a\"\nkey_file = \"/nowhere\"",
        "fieldpost.toml:3: redis.key_file = \"/nowhere\": the file /nowhere cannot be read: No such file or directory (os error 2)",
    ),
    (
        "[kafka.properties]\n\"debug\" = [1]",
        "fieldpost.toml:2: kafka.properties.\"debug\" is a list; allowed: a text, a whole number, true or false",
    ),
    (
        "[redis]\nurl = \"redis://u:hush@a\"",
        "fieldpost.toml:2: redis.url = \"redis://***@a\": a password may not stand in the URL: give redis.password_file or set the variable FIELDPOST_REDIS__PASSWORD; allowed: redis://host:port,…/database or redis+sentinel://host:port,…/name/database, rediss for TLS; at most 16 addresses",
    ),
    (
        "[http]\nlisten = \"localhost:9480\"",
        "fieldpost.toml:2: http.listen = \"localhost:9480\": not an IP address and a port, such as 127.0.0.1:9480; allowed: an IP address and a port",
    ),
    (
        "[http]\nlisten = \"0.0.0.0:9480\"",
        "fieldpost.toml:2: http.listen = \"0.0.0.0:9480\": is beyond loopback and needs http.token_file (or the variable FIELDPOST_HTTP__TOKEN)",
    ),
    (
        "[http]\nlisten = \"127.0.0.1:1\"\ncert_file = \"/etc/hostname\"",
        "fieldpost.toml:3: http.cert_file = \"/etc/hostname\": needs http.key_file",
    ),
    (
        "[http]\ncert_file = \"/etc/hostname\"\nkey_file = \"/etc/hostname\"",
        "fieldpost.toml:2: http.cert_file = \"/etc/hostname\": needs http.listen",
    ),
    (
        "[redis]\nchannel = \"events:{id}\"",
        "fieldpost.toml:2: redis.channel = \"events:{id}\": `{id}` is not known; allowed placeholders are {type}, {source_type}, {source_id}; allowed: a text of up to 256 bytes",
    ),
    (
        "[redis]\nurl = \"redis://a\"\nsentinel_username = \"u\"",
        "fieldpost.toml:3: redis.sentinel_username = \"u\": needs redis+sentinel:// in redis.url",
    ),
    (
        "[redis]\nmode = \"off\"",
        "fieldpost.toml:2: redis.mode = \"off\": not known; allowed: pubsub, streams, both",
    ),
    (
        "[redis]\nchannel = \"\"",
        "fieldpost.toml:2: redis.channel = \"\": needs a channel here or in redis.aggregate_channel",
    ),
    (
        "[redis]\ncoalesce = \"5s\"",
        "fieldpost.toml:2: redis.coalesce = \"5s\": must be shorter than redis.max_age, or what it holds back is too old to be sent",
    ),
    (
        "[redis]\nstream_payload_max_bytes = \"1 MiB\"",
        "fieldpost.toml:2: redis.stream_payload_max_bytes = \"1 MiB\": must fit redis.stream_payload_queue, as base64 too, which takes four bytes for three",
    ),
    (
        "[redis]\nstream = \"\"",
        "fieldpost.toml:2: redis.stream = \"\": empty; allowed: a text of 1 to 256 bytes",
    ),
    (
        "[redis]\nping_after = \"sent\"",
        "fieldpost.toml:2: redis.ping_after = \"sent\": not known; allowed: durable, delivered",
    ),
    ("[redis]\nqueue = 0", "fieldpost.toml:2: redis.queue = 0: too small; allowed: 1 to 1000000"),
    (
        "[redis]\ntimeout = \"2 min\"",
        "fieldpost.toml:2: redis.timeout = \"2 min\": the unit `min` is not one of ms, s, m, h; allowed: 10ms to 1m",
    ),
    (
        "[log]\nlevel = \"inof\"",
        "fieldpost.toml:2: log.level = \"inof\": \"inof\" is not a level; allowed: off, error, warn, info, debug, trace, or a list with module=level",
    ),
    ("[log]\nformat = \"xml\"", "fieldpost.toml:2: log.format = \"xml\": not known; allowed: text, json"),
];

#[test]
fn each_bad_value_is_explained() {
    for (text, message) in BAD_VALUES {
        assert_eq!(load(text).unwrap_err(), *message, "for {text:?}");
    }
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    for (text, message) in [
        (
            "[mqtt]\nkeepalive = \"30s\"",
            "fieldpost.toml:2: mqtt.keepalive is not a known key; the nearest known one is mqtt.keep_alive",
        ),
        (
            "[buffer]\nmemory = \"1 GiB\"",
            "fieldpost.toml:2: buffer.memory is not a known key; the nearest known one is limits.memory",
        ),
        ("[kafka]\nzzz = 1", "fieldpost.toml:2: kafka.zzz is not a known key"),
        (
            "[mqttt]\nurl = \"x\"\nqos = 1",
            "fieldpost.toml:2: [mqttt] is not a known section; the nearest known one is [mqtt]",
        ),
        ("[bufer]", "fieldpost.toml:1: [bufer] is not a known section; the nearest known one is [buffer]"),
        (
            "topic = \"x\"",
            "fieldpost.toml:1: topic stands outside of a section and is not a known key; the nearest known one is kafka.topic",
        ),
        (
            "kafka = \"x:9092\"",
            "fieldpost.toml:1: kafka is a section: write [kafka] and its keys in the lines below it",
        ),
        (
            "[mqtt.tls]\nca = \"x\"",
            "fieldpost.toml:1: mqtt.tls is not a known key; the nearest known one is kafka.tls",
        ),
        (
            "[kafka]\npasword_file = \"hush\"",
            "fieldpost.toml:2: kafka.pasword_file is not a known key; the nearest known one is kafka.password_file",
        ),
    ] {
        assert_eq!(load(text).unwrap_err(), message, "for {text:?}");
    }
    assert!(load("[mqtt]\n[kafka]\n").is_ok(), "empty sections are fine");
}

#[test]
fn variables_override_the_file_and_are_as_strict() {
    let text = "[mqtt]\nqos = 0\ntopics = [\"a\"]\n[log]\nlevel = \"warn\"\n";
    let loaded = load_with(
        text,
        &[
            ("FIELDPOST_MQTT__QOS", "2"),
            ("FIELDPOST_MQTT__TOPICS", "x/{source_id}, y"),
            ("FIELDPOST_MQTT__URL", "mqtt://m"),
            ("FIELDPOST_LIMITS__MEMORY", "32 MiB"),
            ("FIELDPOST_KAFKA__BROKERS", "k:1,l:2"),
            ("FIELDPOST_KAFKA__PROPERTIES", "debug=broker, socket.nagle.disable=true"),
            ("FIELDPOST_LOG", "trace"),
            ("FIELDPOST_TEST_KAFKA", "x"),
            ("FIELDPOST_CONFIG", "x"),
            ("PATH", "x"),
        ],
    )
    .unwrap();
    let mqtt = loaded.config.mqtt.unwrap();
    assert_eq!((mqtt.qos, mqtt.topics.len()), (mqtt::Qos::ExactlyOnce, 2));
    assert_eq!(loaded.config.limits.memory_bytes_max, 32 << 20);
    assert_eq!(loaded.config.log.level, "warn");
    let kafka = loaded.config.kafka.unwrap();
    assert_eq!(kafka.brokers, "k:1,l:2");
    assert_eq!(kafka.properties[1], ("socket.nagle.disable".to_owned(), "true".to_owned()));
    let qos = loaded.effective.iter().find(|effective| effective.key == "mqtt.qos").unwrap();
    assert_eq!((qos.source.to_string().as_str(), qos.source.kind()), ("FIELDPOST_MQTT__QOS", "environment"));

    for (name, value, message) in [
        ("FIELDPOST_MQTT__QOS", "3", "FIELDPOST_MQTT__QOS: mqtt.qos = \"3\": not known; allowed: 0, 1, 2"),
        (
            "FIELDPOST_MQTT__QOSS",
            "1",
            "FIELDPOST_MQTT__QOSS: this variable belongs to no known key; the nearest known one is FIELDPOST_MQTT__QOS",
        ),
        (
            "FIELDPOST_mqtt__qos",
            "1",
            "FIELDPOST_mqtt__qos: this variable belongs to no known key; the nearest known one is FIELDPOST_MQTT__QOS",
        ),
        ("FIELDPOST_X__Y", "1", "FIELDPOST_X__Y: this variable belongs to no known key"),
        (
            "FIELDPOST_MQTT__URL",
            "",
            "FIELDPOST_MQTT__URL: mqtt.url = \"\": no `mqtt://` in front; allowed: mqtt://host:port or mqtts://host:port",
        ),
        (
            "FIELDPOST_MQTT__PASSWORD",
            "",
            "FIELDPOST_MQTT__PASSWORD: mqtt.password is empty: unset the variable or give it the secret",
        ),
        (
            "FIELDPOST_KAFKA__PROPERTIES",
            "debug",
            "FIELDPOST_KAFKA__PROPERTIES: kafka.properties = \"debug\": `name=value` with commas between is needed; allowed: texts, whole numbers, true or false",
        ),
        (
            "FIELDPOST_KAFKA__PROPERTIES",
            "ssl.keystore.password=hush",
            "FIELDPOST_KAFKA__PROPERTIES: kafka.properties.\"ssl.keystore.password\" is not allowed here: it is a secret, and fieldpost has no file or variable for this one",
        ),
    ] {
        assert_eq!(load_with("", &[(name, value)]).unwrap_err(), message);
    }
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_file() {
    let text =
        "[log]\nlevel = \"loud\"\n[mqtt]\nqos = 9\nkeepalive = 1\n[limits]\nmax_event_bytes = \"8 MiB\"\n";
    let message = load_with(text, &[("FIELDPOST_REDIS__QUEUE", "many")]).unwrap_err();
    let starts = [
        "fieldpost.toml:2: log.level",
        "fieldpost.toml:4: mqtt.qos",
        "fieldpost.toml:5: mqtt.keepalive",
        "fieldpost.toml:7: limits.memory",
        "FIELDPOST_REDIS__QUEUE: redis.queue = \"many\": not a whole number",
    ];
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(lines.len(), starts.len(), "{message}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    let whole =
        load_on(HOST, None, variables(&[("FIELDPOST_A__B", ""), ("FIELDPOST_LOG__LEVEL", "x")])).unwrap_err();
    assert!(whole.to_string().starts_with("the configuration has 2 problems:\nFIELDPOST_"), "{whole}");
}

#[test]
fn a_syntax_error_shows_its_line_but_no_secret() {
    assert_eq!(
        load("[mqtt]\nurl = mqtt://a\n").unwrap_err().lines().skip(1).collect::<Vec<_>>(),
        ["    url = mqtt://a", "          ^"]
    );
    assert!(load("[mqtt]\nqos = \n").unwrap_err().starts_with("fieldpost.toml:2: column "));
    for text in ["[redis]\npassword = hush hush\n", "[redis]\nurl = redis://u:hush@a\n", "x password: hush"] {
        let message = load(text).unwrap_err();
        assert!(message.contains("***") && !message.contains("hush"), "{message}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = folder();
    let missing = folder.path().join("none.toml");
    let message = load_on(HOST, Some(&missing), variables(&[])).unwrap_err().to_string();
    assert!(message.contains("none.toml cannot be read: No such file or directory"), "{message}");
    let binary = folder.path().join("binary");
    fs::write(&binary, [0xff, 0xfe]).unwrap();
    let message = load_on(HOST, Some(&binary), variables(&[])).unwrap_err().to_string();
    assert!(message.ends_with("binary is not UTF-8 text"), "{message}");
}

#[test]
fn a_host_name_that_is_no_agent_id_asks_for_one() {
    let message = load_on("gate way", None, variables(&[])).unwrap_err().to_string();
    assert!(message.contains("agent.id = \"gate way\": ` ` is not allowed"), "{message}");
    assert!(message.ends_with("it was taken from the host name: set agent.id"), "{message}");
}

#[test]
fn static_headers_are_bounded_in_number_and_bytes() {
    let headers = |count: usize, bytes: usize| {
        let line = |n| format!("{n:04} = \"{}\"\n", "x".repeat(bytes / count - 4));
        load(&format!("[kafka.headers]\n{}", (0..count).map(line).collect::<String>()))
    };
    assert_eq!(headers(16, 4096).unwrap().config.records.headers.len(), 16);
    for (count, bytes) in [(17, 170), (16, 4112)] {
        let expected = format!("{count} headers of {bytes} bytes; allowed: at most 16");
        let error = headers(count, bytes).unwrap_err();
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn losses_are_announced_where_their_topic_is_sure() {
    for (text, is_announced) in [
        ("", true),
        ("[kafka]\ntopic = \"{type}\"", false),
        ("[kafka]\ntopic = \"{type}\"\n[ledger]\ntopic = \"l\"", true),
        ("[kafka]\ntopic = \"{type}\"\ntopics_allowed = [\"a\"]\nfallback_topic = \"b\"", true),
    ] {
        assert_eq!(load(text).unwrap().config.ledger.announce, is_announced, "{text}");
    }
}

#[test]
fn secrets_come_from_files_and_variables() {
    let text = "[mqtt]\nurl = \"mqtt://a\"\npassword_file = \"secret\"\n";
    let credentials = folder();
    fs::write(credentials.path().join("secret"), "from-credentials\r\n").unwrap();
    let credentials_dir = credentials.path().display().to_string();
    let password = |pairs: &[(&str, &str)]| {
        load_with(text, pairs)
            .map(|loaded| loaded.config.mqtt.unwrap().password.unwrap().read().unwrap().reveal().to_owned())
    };
    assert_eq!(password(&[("CREDENTIALS_DIRECTORY", &credentials_dir)]), Ok("from-credentials".to_owned()));
    assert_eq!(password(&[("FIELDPOST_MQTT__PASSWORD", "from-variable")]), Ok("from-variable".to_owned()));
    let message = password(&[]).unwrap_err();
    assert!(
        message.starts_with(
            "fieldpost.toml:3: mqtt.password_file = \"secret\": the file secret cannot be read: "
        ),
        "{message}"
    );
    assert!(
        message.ends_with("set CREDENTIALS_DIRECTORY=/etc/credstore for this command, as root"),
        "{message}"
    );
    let elsewhere = folder();
    let message =
        password(&[("CREDENTIALS_DIRECTORY", &elsewhere.path().display().to_string())]).unwrap_err();
    assert!(message.ends_with("secret cannot be read: No such file or directory (os error 2)"), "{message}");
    fs::write(credentials.path().join("secret"), "\n").unwrap();
    assert!(
        password(&[("CREDENTIALS_DIRECTORY", &credentials_dir)]).unwrap_err().ends_with("secret is empty")
    );
}

#[test]
fn secrets_are_never_shown() {
    let (_folder, path) = full_folder();
    let loaded = load_on(HOST, Some(&path), variables(&[("FIELDPOST_REDIS__PASSWORD", "va-hush")])).unwrap();
    let shown = [
        format!("{loaded:?}"),
        effective_toml(&loaded.effective),
        effective_json(&loaded.effective).to_string(),
    ];
    for text in shown {
        assert!(!text.contains("hush"), "{text}");
        assert!(text.contains("***") || text.contains("Secret"), "{text}");
    }
}

#[test]
fn the_effective_configuration_loads_to_itself() {
    let (_folder, path) = full_folder();
    let full = load_on(HOST, Some(&path), variables(&[])).unwrap();
    fs::write(&path, effective_toml(&full.effective)).unwrap();
    assert_eq!(load_on("other-host", Some(&path), variables(&[])).unwrap().config, full.config);
    let text = effective_toml(&load_on(HOST, None, variables(&[])).unwrap().effective);
    assert_eq!(load(&text).unwrap().config, defaults(), "{text}");
    assert!(text.contains("# url is not set"), "{text}");
}

#[test]
fn the_effective_configuration_reads_well() {
    let text = "[log]\nformat = \"json\"\n[redis]\nqueue = 7\n";
    let loaded =
        load_with(text, &[("FIELDPOST_REDIS__PASSWORD", "hush"), ("FIELDPOST_LOG__LEVEL", "warn")]).unwrap();
    let shown = effective_toml(&loaded.effective);
    let tail = shown.split_once("[redis]").unwrap().1;
    assert_eq!(
        tail,
        r##"
# url is not set: no pings are sent
# username is not set: none is sent
# password_file is not set: none is sent
# password = ***                             # from FIELDPOST_REDIS__PASSWORD
# sentinel_username is not set: a Sentinel gets what Redis gets, if it asks for a login
# sentinel_password_file is not set: a Sentinel gets what Redis gets, if it asks for a login
# ca_file is not set: those that the system trusts
# cert_file is not set: the agent shows none
# key_file is not set: the agent shows no certificate
# key_password_file is not set: none is sent
mode = "pubsub"                              # default
channel = "events:{source_type}:{source_id}" # default
aggregate_channel = ""                       # default
ping_after = "durable"                       # default
queue = 7                                    # line 4
timeout = "2s"                               # default
coalesce = "0s"                              # default
coalesce_above = 100                         # default
max_age = "5s"                               # default
stream = "events:{type}"                     # default
stream_max_len = 10000                       # default
stream_max_age = "0s"                        # default
streams_max = 256                            # default
stream_payload = false                       # default
stream_payload_max_bytes = "4 KiB"           # default
stream_payload_queue = "1 MiB"               # default

[http]
# listen is not set: HTTP is off
# cert_file is not set: no TLS
# key_file is not set: no TLS
# token_file is not set: requests need none, which is for loopback alone
max_connections = 64                         # default
recent_events = 10000                        # default
recent_bytes = "2 MiB"                       # default
ready_max_age = "1m"                         # default

[uplink]
command = []                                 # default
after = "15m"                                # default
repeat = "1h"                                # default
timeout = "1m"                               # default

[ledger]
announce = true                              # default
# topic is not set: kafka.topic, unless that holds a placeholder

[log]
level = "warn"                               # from FIELDPOST_LOG__LEVEL
format = "json"                              # line 2
"##
    );
    let json = effective_json(&loaded.effective);
    assert_eq!(json["redis.queue"]["value"], 7);
    assert_eq!(json["redis.password"]["value"], "***");
    assert_eq!(json["redis.url"]["value"], serde_json::Value::Null);
    assert_eq!(json["log.level"]["place"], "FIELDPOST_LOG__LEVEL");
}

#[test]
fn kafka_is_required_to_run() {
    assert_eq!(
        defaults().kafka().unwrap_err().to_string(),
        "the configuration has a problem:\nkafka.brokers is required: name the brokers in the file or set the variable \
         FIELDPOST_KAFKA__BROKERS"
    );
    assert!(load("[kafka]\nbrokers = \"a\"").unwrap().config.kafka().is_ok());
}

/// The declarations are one table; this is what must hold for each row.
#[test]
fn every_key_is_declared_well() {
    let read = declared();
    let mut names = BTreeSet::new();
    for declared in &read.declared {
        let name = declared.key.name;
        assert!(names.insert(name), "{name} is declared twice");
        let (section, _) = name.split_once('.').unwrap();
        assert!(read.sections.iter().any(|known| known.name == section), "{name}");
        for text in [declared.key.meaning, declared.key.delivery] {
            assert!(text.is_empty() || text.ends_with('.'), "{name}: {text}");
            assert!(!text.contains('|') && !text.contains("  "), "{name}: {text}");
        }
        assert!(!declared.key.meaning.is_empty() && !declared.allowed.is_empty(), "{name}");
    }
}

/// The tables of docs/configuration.md, a section each.
fn key_tables(read: &Outcome) -> String {
    let mut text = String::new();
    for section in &read.sections {
        let _ = write!(text, "\n### `{}`\n\n{}\n\n", section.header(), section.meaning);
        let key = if section.is_repeated { "Key" } else { "Key, variable" };
        let _ = writeln!(text, "| {key} | Default | Allowed | What it does | Effect on delivery |");
        text.push_str("|---|---|---|---|---|\n");
        for Declared { key, allowed, default } in render::keys_of(read, *section) {
            let name = key.name.split_once('.').map_or(key.name, |(_, name)| name);
            let default = match default {
                DeclaredDefault::Value(value) => format!("`{}`", value.to_toml()),
                DeclaredDefault::Absent(absent, _) => format!("not set: {absent}"),
                DeclaredDefault::Derived(from, _) => (*from).to_owned(),
            };
            let delivery = if key.delivery.is_empty() { "none" } else { key.delivery };
            let variable =
                if section.is_repeated { String::new() } else { format!("<br>`{}`", variable_of(key.name)) };
            let meaning = key.meaning;
            let _ = writeln!(text, "| `{name}`{variable} | {default} | {allowed} | {meaning} | {delivery} |");
        }
    }
    text
}

proptest::proptest! {
    /// Whatever stands in the file and in the environment: an answer, never a panic.
    #[test]
    fn any_text_is_answered(
        text in "(\\[(agent|mqtt|kafka|limits|kafka.properties)\\]\n)?(url|id|qos|memory|a\\.b) ?= ?(\\PC{0,12}|\"\\PC{0,12}\"|[0-9]{1,25})\n\\PC{0,20}",
        section in "(AGENT|MQTT|REDIS|KAFKA|LIMITS|[A-Z_]{0,6})",
        key in "(ID|URL|QOS|TOPICS|MODE|PROPERTIES|MEMORY|[A-Z_]{0,6})",
        value in "\\PC{0,20}",
    ) {
        let _ = load_with(&text, &[(&format!("FIELDPOST_{section}__{key}"), &value)]);
        let _ = load_with("", &[(&format!("FIELDPOST_{section}__{key}"), &value)]);
    }
}

/// Compares a generated text with the file that holds it; with FIELDPOST_BLESS set the file is written instead.
pub(crate) fn assert_file(path: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("FIELDPOST_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, generated).unwrap();
    }
    let held = fs::read_to_string(&path).unwrap_or_default();
    assert!(held == generated, "{} is out of date: FIELDPOST_BLESS=1 cargo test --lib", path.display());
}

#[test]
fn the_example_file_is_the_defaults() {
    let example = render::example_file(&declared());
    assert_file("deploy/fieldpost.toml", &example);
    assert_eq!(load(&example).unwrap().config, defaults());
}

/// Taking every `#` away in front of a key must give a file that loads, and keys with a default must keep it.
#[test]
fn the_example_file_loads_with_every_key_in_use() {
    let in_use: String = render::example_file(&declared())
        .lines()
        // Files that are not there, and what is of use only with them; and what belongs to another value of `report`.
        .filter(|line| {
            let needs_file =
                ["_file =", "username =", "#sasl_mechanism ="].iter().any(|word| line.contains(word));
            !needs_file && *line != "#value = \"/celsius\""
        })
        .map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = load(&in_use).unwrap().config;
    let wanted = defaults();
    assert_eq!((config.limits, config.buffer, config.drain), (wanted.limits, wanted.buffer, wanted.drain));
    assert_eq!((config.agent, config.log), (wanted.agent, wanted.log));
    assert!(
        config.mqtt.is_some() && config.unix.is_some() && config.kafka.is_some() && config.redis.is_some()
    );
    assert_eq!(config.routes.all().len(), 1);
}

#[test]
fn the_manual_lists_exactly_the_keys() {
    const START: &str =
        "<!-- generated from src/config/keys.rs; FIELDPOST_BLESS=1 cargo test config writes it anew -->\n";
    const END: &str = "\n<!-- end of the generated part -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let held = fs::read_to_string(path).unwrap();
    let (head, rest) = held.split_once(START).expect("the start mark");
    let (_, tail) = rest.split_once(END).expect("the end mark");
    let tables = key_tables(&declared());
    assert_file("docs/configuration.md", &format!("{head}{START}{tables}{END}{tail}"));
}
