//! The command that is run while Kafka is away, against a Kafka that is killed and comes back.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::agent::Agent;
use crate::harness::flow::line_of;
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::services::Private;
use crate::harness::wait::{USUAL, eventually};

#[test]
fn a_long_outage_runs_the_command_seldom_and_holds_nothing_up() {
    let kafka = Private::kafka();
    let topic = create_topic(kafka.address(), 1);
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    let script = folder.path().join("reset");
    // The first hangs and is killed, the second works.
    let text = format!(
        "#!/bin/sh\necho \"$FIELDPOST_AGENT_ID $FIELDPOST_DOWN_SECONDS $*\" >> {0}\necho resetting\n\
         [ $(wc -l < {0}) -gt 1 ] || sleep 600\n",
        runs.display()
    );
    std::fs::write(&script, text).unwrap();
    let mut agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic).set("agent.id", "gateway-17");
        config.set("uplink.command", vec![script.to_str().unwrap(), "modem", "modem"]);
        // Longer than a start takes to find Kafka.
        config.set("uplink.after", "5s").set("uplink.repeat", "4s").set("uplink.timeout", "1s");
    });
    let checked = agent.command(&["check", "--timeout", "10s"]).output().unwrap();
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("FAIL uplink") && checked.contains("is not executable"), "{checked}");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let checked = agent.command(&["check", "--timeout", "10s"]).output().unwrap();
    assert!(String::from_utf8_lossy(&checked.stdout).contains("ok   uplink"), "{checked:?}");

    agent.wait_log("Kafka link up", USUAL);
    assert!(!runs.exists());
    kafka.kill();
    agent.wait_log("Kafka link down", USUAL);
    let mut client = agent.unix();
    let killed = agent.wait_log("uplink.command took too long and was killed", USUAL);
    assert!(killed.contains("resetting") && killed.contains("timeout_s=1"), "{killed}");
    client.send_line(&line_of("s", 0, 10));
    client.wait_ack(1, USUAL);
    let done = agent.wait_log("uplink.command was run", USUAL);
    assert!(done.contains(r#"output="resetting""#), "{done}");
    let told = std::fs::read_to_string(&runs).unwrap();
    let downs: Vec<u64> = told
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!((words[0], &words[2..]), ("gateway-17", &["modem", "modem"][..]), "{told}");
            words[1].parse().unwrap()
        })
        .collect();
    assert!(downs.len() >= 2 && downs[0] >= 5 && downs[1] >= downs[0] + 3, "{downs:?}");

    kafka.start();
    consume_count(kafka.address(), &topic, 1, USUAL * 2);
    eventually("the link is up again", USUAL, || (agent.log_count("Kafka link up") > 1).then_some(()));
    assert_eq!(agent.stop().code(), Some(0));
}
