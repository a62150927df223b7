//! `fieldpost diag`: what a bug report holds beside a running and a dead agent, and what never gets in.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use crate::harness::agent::{Agent, fieldpost};
use crate::harness::flow::line_of;
use crate::harness::wait::USUAL;

const SECRET: &str = "hush-5d21c7";

/// Programs of this machine, replaced by ones that tell what they must not.
fn programs(folder: &Path) -> String {
    let key = format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----");
    let told = format!(
        "#!/bin/sh\ncat <<'END'\nasked: journal\npassword {SECRET}\nredis://me:other-secret@cache:6379\n{key}\nEND\n"
    );
    for (name, text) in [("journalctl", told.as_str()), ("systemctl", "#!/bin/sh\nexit 1\n")] {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An agent whose every secret is [`SECRET`], with an event in its buffer.
fn agent_with_secrets(folder: &Path) -> Agent {
    let secret = folder.join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let secret = secret.to_str().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let agent = Agent::start(|config| {
        config.kafka("127.0.0.1:9", "events").set("kafka.sasl_mechanism", "PLAIN");
        config.set("kafka.username", "u").set("kafka.password_file", secret);
        config.mqtt("mqtt://127.0.0.1:9", &["a/{type}"]);
        config.set("mqtt.username", "u").set("mqtt.password_file", secret);
        config.redis("redis://127.0.0.1:9").environment("FIELDPOST_REDIS__PASSWORD", SECRET);
        config.set("http.listen", format!("127.0.0.1:{port}")).set("http.token_file", secret);
    });
    let mut client = agent.unix();
    client.send_line(&line_of("s", 0, 10));
    client.wait_ack(1, USUAL);
    agent
}

/// Runs `fieldpost diag` into a file: what is in it, and what was said.
#[track_caller]
fn written(agent: &Agent, path: &str, report: &Path) -> (String, String) {
    let words = ["diag", "--output", report.to_str().unwrap()];
    let output = agent.command(&words).env("PATH", path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(std::fs::metadata(report).unwrap().permissions().mode() & 0o777, 0o600);
    (std::fs::read_to_string(report).unwrap(), said(&output))
}

#[track_caller]
fn assert_holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn beside_a_running_agent_one_file_tells_everything_but_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent_with_secrets(folder.path());
    let path = programs(folder.path());
    let report = folder.path().join("report.txt");
    let (text, told) = written(&agent, &path, &report);
    let parts = [
        "==== versions ====\nfieldpost 0.",
        "librdkafka 2.",
        "kernel Linux",
        "sasl_mechanism = \"PLAIN\"",
        "offline: no directory and no service was looked at",
        "\"unix_events\":1",
        "\"running\": true",
        "==== ledger ====",
        "==== buffer verify ====",
        "/buffer/IDENTITY",
        "NoNewPrivs",
        "inodes free",
        "asked: journal",
        "redis://***@cache:6379",
        "==== unit ====\nNOT AVAILABLE: systemctl: exit status: 1",
    ];
    assert_holds(&text, &parts);
    assert_holds(&told, &["no secrets, no payloads", "not available, the file says why: systemd, unit"]);
    for secret in [SECRET, "other-secret", "BEGIN"] {
        assert!(!text.contains(secret) && !told.contains(secret), "{text}{told}");
    }
    // Not over a file that is there.
    let words = ["diag", "--no-verify", "--output", report.to_str().unwrap()];
    let again = agent.command(&words).env("PATH", &path).output().unwrap();
    assert_eq!(again.status.code(), Some(74), "{again:?}");
    assert_eq!(std::fs::read_to_string(&report).unwrap(), text);
}

#[test]
fn a_dead_agent_and_a_wrong_configuration_are_told_of_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent_with_secrets(folder.path());
    let path = programs(folder.path());
    agent.kill9();
    let (text, _) = written(&agent, &path, &folder.path().join("report.txt"));
    let parts = [
        "\"running\": false",
        "==== process ====\nNOT AVAILABLE: no agent runs",
        "/status: ",
        "asked: journal",
    ];
    assert_holds(&text, &parts);
    assert!(!text.contains(SECRET), "{text}");

    agent.reconfigure(|config| {
        config.set("kafka.nonsense", 1);
    });
    let data = agent.data_dir();
    let words = ["diag", "--no-verify", "--output", "-", "--data-dir", data.to_str().unwrap()];
    let output = agent.command(&words).env("PATH", &path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert_holds(&text, &["kafka.nonsense is not a known key", "\"running\": false"]);
    assert!(!text.contains("==== buffer verify"), "{text}");
}

#[test]
fn where_nothing_is_installed_each_missing_part_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let output = fieldpost()
        .args(["diag", "--output", "-", "--data-dir"])
        .arg(empty.path())
        .env("FIELDPOST_CONFIG", empty.path().join("none.toml"))
        .env("PATH", empty.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for part in [
        "journalctl: No such file",
        "systemctl: No such file",
        "LEDGER: No such file",
        "none.toml",
        "there is no buffer",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}
