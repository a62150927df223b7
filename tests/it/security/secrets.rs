//! No secret is told: not in the log at any level, not by the commands, not in a core dump.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};

use rustix::process::Signal;

use super::hand_in;
use super::pki::{Flaw, Pki};
use crate::harness::agent::{Agent, fieldpost};
use crate::harness::services::Shared;
use crate::harness::wait::USUAL;

const SECRET: &str = "hush-8c1f0d";

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[test]
fn no_secret_is_told() {
    let pki = Pki::new();
    pki.write("secret", SECRET.as_bytes());
    pki.issue("agent", Flaw::None);
    pki.issue_encrypted("agent", SECRET);
    let file = |name: &str| pki.text(name);
    let port = |url: &str| url.rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    let mut agent = Agent::start(|config| {
        // Services that want none of it: every login fails in its own way.
        let shared = Shared::get();
        config.kafka(&shared.kafka, "nowhere").set("kafka.tls", true).set("kafka.sasl_mechanism", "PLAIN");
        config.set("kafka.username", "u").set("kafka.password_file", file("secret"));
        config.set("kafka.properties", serde_json::json!({ "debug": "all" }));
        config.mqtt(&format!("mqtts://127.0.0.1:{}", port(&shared.mqtt)), &["a/{type}"]);
        config.set("mqtt.username", "u").set("mqtt.password_file", file("secret"));
        config
            .redis(&shared.redis)
            .set("redis.username", "u")
            .environment("FIELDPOST_REDIS__PASSWORD", SECRET);
        for section in ["kafka", "mqtt"] {
            config.set(&format!("{section}.cert_file"), file("agent.pem"));
            config.set(&format!("{section}.key_file"), file("agent.key"));
            config.set(&format!("{section}.key_password_file"), file("secret"));
        }
        config.set("log.level", "trace");
    });
    hand_in(&agent, "s");
    agent.wait_log("Redis link down", USUAL);
    agent.wait_log("MQTT", USUAL);
    agent.wait_log("Kafka link down", USUAL);

    let config = agent.config_file();
    let run = |arguments: &[&str]| {
        let mut command = fieldpost();
        command.env("FIELDPOST_REDIS__PASSWORD", SECRET);
        let output = command.args(arguments).arg("--config").arg(&config).output().unwrap();
        text(&output)
    };
    let said = [
        run(&["config"]),
        run(&["config", "--json"]),
        run(&["check", "--timeout", "1s"]),
        run(&["check", "--json", "--timeout", "1s"]),
    ];
    assert!(said[1].contains("***"), "{}", said[1]);
    // A refused configuration: the secret where it may not stand.
    agent.reconfigure(|config| {
        config.set("kafka.properties", serde_json::json!({ "sasl.password": SECRET, "ssl.key.pem": SECRET }));
        config.set("redis.password", SECRET);
    });
    let refused = run(&["check"]);
    assert!(refused.contains("it is a secret"), "{refused}");
    let log = agent.log().join("\n");
    for text in said.iter().chain([&refused, &log]) {
        assert!(!text.contains(SECRET), "{text}");
    }
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log is at its most talkative");
    // Neither may another process of the same user look into it.
    let pid = agent.pid().as_raw_nonzero();
    let environ = std::fs::metadata(format!("/proc/{pid}/environ")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&environ), 0, "the kernel gives it to root");
}

#[test]
fn no_core_is_dumped() {
    let folder = tempfile::tempdir().unwrap();
    // A process like any other leaves one here, or the kernel hands it to a program, and the status says so.
    let allowed = |command: &str| {
        let script = format!("ulimit -c unlimited && cd {} && {command}", folder.path().display());
        Command::new("sh").args(["-c", &script]).status().unwrap()
    };
    let other = allowed("exec sh -c 'kill -ABRT $$'");
    assert!(other.core_dumped(), "the system writes core dumps: {other}");
    let mut agent = Agent::start(|config| {
        let script = format!("ulimit -c unlimited && cd {} && exec \"$@\"", folder.path().display());
        config.wrapper(&["sh", "-c", &script, "sh"]).kafka("127.0.0.1:9", "nowhere");
    });
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    agent.signal(Signal::ABORT);
    let status = agent.wait_exit(USUAL);
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false), "{status}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before);
}
