//! `fieldpost demo`: passes, and its verdict says what it was reached on.

use serde_json::Value;

use crate::harness::agent::fieldpost;

#[test]
fn the_demo_loses_nothing_over_an_outage_and_a_kill() {
    // What the environment says of an agent's configuration is none of the demo's business.
    let output = fieldpost()
        .args(["demo", "--seconds", "8", "--json"])
        .env("FIELDPOST_KAFKA__TOPIC", "not a topic!")
        .output()
        .expect("the binary can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("one JSON object on standard output");
    for (field, wanted) in [
        ("passed", Value::from(true)),
        ("problems", Value::Array(Vec::new())),
        ("kills", 1.into()),
        ("outage", true.into()),
        ("lost", 0.into()),
        ("out_of_order", 0.into()),
        ("duplicates_after_dedupe", 0.into()),
        ("gaps", 0.into()),
        ("foreign", 0.into()),
        ("unacknowledged", 0.into()),
    ] {
        assert_eq!(verdict[field], wanted, "{field} of {verdict}\n{said}");
    }
    let count = |field: &str| verdict[field].as_u64().expect("a count");
    assert_eq!(count("sent"), 8 * 2000, "{verdict}");
    assert_eq!(count("kafka_events"), count("acknowledged"), "{verdict}");
    let extra = count("duplicates") + count("stored_twice");
    assert_eq!(count("kafka_records"), count("kafka_events") + extra, "{verdict}");
    assert!(count("acknowledged_in_outage") > 0 && count("in_flight_at_kill") >= count("stored_twice"));
    assert_eq!(verdict["peak_memory_bytes"].as_array().map(Vec::len), Some(2), "{verdict}");
    let home = said.lines().find(|line| line.starts_with("kept:"));
    assert_eq!(home, None, "the folder of a demo that passed is removed");
}

#[test]
fn the_demo_explains_itself_and_refuses_what_it_cannot_use() {
    let help = fieldpost().args(["demo", "--help"]).output().expect("the binary can be started");
    let help = String::from_utf8_lossy(&help.stdout);
    for part in ["--seconds", "--rate", "--redis", "--keep", "--json", "Exit codes", "acknowledged"] {
        assert!(help.contains(part), "{part} is missing in\n{help}");
    }
    let refused = fieldpost().args(["demo", "--redis", "http://127.0.0.1"]).output().expect("as before");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(64), "{said}");
    assert!(said.contains("redis.url"), "{said}");
}
