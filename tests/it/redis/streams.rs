//! Streams: groups that count, lengths, and a Redis that takes none.

use std::collections::{BTreeMap, BTreeSet};

use redis::{Connection, FromRedisValue, Value};
use serde_json::json;

use super::volume::of_status;
use super::{Listener, ping_of, wait_link};
use crate::harness::agent::{Agent, Config};
use crate::harness::flow::{Pace, Producer, line_of};
use crate::harness::sentinel::Sentinel;
use crate::harness::services::{Private, Service, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

pub(super) fn connect(url: &str) -> Connection {
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

/// The answer to a command, words separated by spaces.
#[track_caller]
pub(super) fn ask<T: FromRedisValue>(connection: &mut Connection, words: &str) -> T {
    let mut command = redis::Cmd::new();
    words.split(' ').for_each(|word| {
        command.arg(word);
    });
    command.query(connection).unwrap_or_else(|error| panic!("{words}: {error}"))
}

pub(super) fn length(connection: &mut Connection, stream: &str) -> u64 {
    ask(connection, &format!("XLEN {stream}"))
}

/// An entry: its id and fields.
pub(super) type Entry = (String, BTreeMap<String, String>);

/// An agent without Kafka that adds to `STREAM:{type}`.
fn agent(url: &str, stream: &str, mode: &str, configure: impl FnOnce(&mut Config)) -> Agent {
    let agent = Agent::start(|config| {
        config.kafka("127.0.0.1:9", "nowhere").redis(url).set("redis.mode", mode);
        config.set("redis.stream", format!("{stream}:{{type}}"));
        configure(config);
    });
    wait_link(&agent);
    agent
}

/// `fieldpost streams status` with its exit code.
pub(super) fn status(agent: &Agent, words: &[&str]) -> (Option<i32>, serde_json::Value) {
    let output = agent.command(&[&["streams", "status", "--json"], words].concat()).output().unwrap();
    let report = serde_json::from_slice(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    (output.status.code(), report.unwrap_or_else(|error| panic!("{error}: {output:?} {said}")))
}

#[test]
fn a_group_gets_every_event_once_beside_the_pings() {
    const EVENTS: u64 = 1000;
    let url = &Shared::get().redis;
    let (site, source) = (unique("site"), unique("s"));
    let stream = format!("{site}:reading");
    let agent = agent(url, &site, "both", |config| {
        config.set("redis.stream_payload", true).set("redis.stream_payload_max_bytes", "100 B");
    });
    let mut connection = connect(url);
    let () = ask(&mut connection, &format!("XGROUP CREATE {stream} web 0 MKSTREAM"));
    let mut listener = Listener::to(url, &format!("events:probe:{source}"));
    let mut client = agent.unix();
    for n in 0..EVENTS {
        // Each tenth has a payload that is too large to go along.
        client.send_line(&line_of(&source, n, if n % 10 == 0 { 200 } else { 10 }));
    }
    client.wait_ack(EVENTS, USUAL);
    (0..EVENTS).for_each(|n| assert_eq!(listener.next(), ping_of(&source, n)));
    let mut seen = BTreeMap::new();
    let mut take = |member: &str, connection: &mut Connection| {
        let read = format!("XREADGROUP GROUP web {member} COUNT 100 STREAMS {stream} >");
        let read: Option<Vec<(String, Vec<Entry>)>> = ask(connection, &read);
        let entries: Vec<Entry> = read.into_iter().flatten().flat_map(|(_, entries)| entries).collect();
        for (_, fields) in &entries {
            let text = |field: &str| fields.get(field).cloned();
            let n = seen.len() as u64;
            let got = ["id", "event_type", "aggregate_id", "source_type", "schema_version"]
                .map(|name| text(name).unwrap());
            assert_eq!(got, [&format!("{source}-{n}"), "reading", &source, "probe", "1"].map(str::to_owned));
            assert!(text("timestamp").unwrap().ends_with('Z'));
            match text("payload") {
                Some(payload) => {
                    assert_eq!(serde_json::from_str::<serde_json::Value>(&payload).unwrap()["n"], n)
                }
                None => assert_eq!((n % 10, text("payload_left_out").unwrap().as_str()), (0, "too_large")),
            }
            assert_eq!(seen.insert(n, member.to_owned()), None);
        }
        entries.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    let mut unacknowledged = Vec::new();
    eventually("the group has every event", USUAL, || {
        for member in ["one", "two"] {
            unacknowledged.append(&mut take(member, &mut connection));
        }
        (unacknowledged.len() as u64 == EVENTS).then_some(())
    });
    assert_eq!(seen.values().collect::<BTreeSet<_>>().len(), 2, "both members got some");
    let (code, report) = status(&agent, &["--max-pending", "999"]);
    assert_eq!(
        (code, &report["ok"], &report["complete"]),
        (Some(1), &json!(false), &json!(true)),
        "{report}"
    );
    let group = json!({"name": "web", "consumers": 2, "pending": EVENTS, "lag": 0});
    assert_eq!(
        (&report["streams"][0]["length"], &report["streams"][0]["groups"]),
        (&json!(EVENTS), &json!([group]))
    );
    let acknowledged: u64 = ask(&mut connection, &format!("XACK {stream} web {}", unacknowledged.join(" ")));
    assert_eq!(acknowledged, EVENTS);
    let (code, report) = status(&agent, &["--max-pending", "0"]);
    assert_eq!((code, &report["ok"]), (Some(0), &json!(true)), "{report}");
    let (code, report) = status(&agent, &["--max-length", "999"]);
    assert_eq!((code, &report["streams"][0]["healthy"]), (Some(1), &json!(false)), "{report}");
}

#[test]
fn streams_are_trimmed_by_length_and_by_age() {
    const EVENTS: u64 = 5000;
    let redis = Private::redis();
    let agent = agent(redis.address(), "s", "streams", |config| {
        config.set("redis.stream_max_len", 500).set("redis.stream_max_age", "3s");
    });
    let mut connection = connect(redis.address());
    let pace = Pace { count: EVENTS, ..Pace::default() };
    Producer::start(&agent.socket(), "s", pace).finish(USUAL);
    let longest = std::cell::Cell::new(0);
    eventually("all is in the stream", USUAL, || {
        let last: Vec<Entry> = ask(&mut connection, "XREVRANGE s:reading + - COUNT 1");
        longest.set(longest.get().max(length(&mut connection, "s:reading")));
        let id = format!("s-{}", EVENTS - 1);
        (last.first()?.1["id"] == id).then_some(())
    });
    // A macro node of a hundred entries goes as a whole.
    assert!((1..=700).contains(&longest.get()), "{}", longest.get());
    eventually("what is old goes without another entry", USUAL, || {
        (length(&mut connection, "s:reading") == 0).then_some(())
    });
}

#[test]
fn a_redis_without_memory_takes_pings_and_no_entries_until_it_has_some() {
    let redis = Private::with_settings(Service::Redis, "maxmemory 100kb\nmaxmemory-policy noeviction");
    let mut agent = agent(redis.address(), "s", "both", |_| {});
    let source = unique("s");
    let mut listener = Listener::to(redis.address(), "events:*");
    let mut client = agent.unix();
    for n in 0..100 {
        client.send_line(&line_of(&source, n, 0));
    }
    client.wait_ack(100, USUAL);
    (0..100).for_each(|n| assert_eq!(listener.next(), ping_of(&source, n)));
    let said = agent.wait_log("Redis refuses a part of the pings", USUAL);
    assert!(
        said.contains("ERROR") && said.contains("OOM") && said.contains("redis.stream_max_len"),
        "{said}"
    );
    let mut connection = connect(redis.address());
    let () = ask(&mut connection, "CONFIG SET maxmemory 0");
    client.send_line(&line_of(&source, 100, 0));
    eventually("an entry is there", USUAL, || (length(&mut connection, "s:reading") == 1).then_some(()));
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!((of_status(&agent, "stream entries"), of_status(&agent, "pings")), (1, 101));
    assert_eq!(agent.log_count("Redis refuses a part of the pings"), 1, "it is explained once");
}

/// `host:port` of a URL.
pub(super) fn place(redis: &Private) -> &str {
    redis.address().trim_start_matches("redis://").trim_end_matches('/')
}

/// A Redis that follows `master`, once it has caught up.
pub(super) fn replica_of(master: &Private) -> Private {
    let (host, port) = place(master).split_once(':').unwrap();
    let replica = Private::with_settings(Service::Redis, &format!("replicaof {host} {port}"));
    let mut connection = connect(replica.address());
    eventually("the replica follows", USUAL, || {
        let info: String = ask(&mut connection, "INFO replication");
        info.contains("master_link_status:up").then_some(())
    });
    replica
}

#[test]
fn a_read_only_replica_is_explained_and_the_next_address_is_taken() {
    let master = Private::redis();
    let replica = replica_of(&master);
    let url = format!("redis://{},{}", place(&replica), place(&master));
    let mut agent = agent(&url, "s", "streams", |_| {});
    let mut client = agent.unix();
    client.send_line(&line_of("s", 0, 0));
    let said = agent.wait_log("Redis link down", USUAL);
    assert!(said.contains("READONLY") && said.contains("this is a replica: name the master"), "{said}");
    eventually("the link is up again", USUAL, || (agent.log_count("Redis link up") == 2).then_some(()));
    client.send_line(&line_of("s", 1, 0));
    let mut connection = connect(master.address());
    eventually("an entry is there", USUAL, || (length(&mut connection, "s:reading") == 1).then_some(()));
    assert_eq!(agent.stop().code(), Some(0));
    agent.reconfigure(|config| {
        config.redis(replica.address());
    });
    let said = agent.command(&["check"]).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(text.contains("XADD") && text.contains("this is a replica"), "{text}");
    agent.reconfigure(|config| {
        config.set("redis.mode", "pubsub");
    });
    let said = agent.command(&["check"]).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(
        text.contains("warn") && text.contains("reaches only those who listen to this replica"),
        "{text}"
    );
}

#[test]
fn check_tells_which_right_is_missing_and_leaves_nothing_behind() {
    const RIGHTS: &str = "resetchannels &events:* ~s:* +ping +publish +info +multi +discard";
    let redis = Private::with_settings(Service::Redis, &format!("user fieldpost on nopass {RIGHTS}"));
    let agent = Agent::prepare(|config| {
        config.kafka("127.0.0.1:9", "nowhere").redis(redis.address()).set("redis.username", "fieldpost");
        config.set("redis.mode", "both").set("redis.stream", "s:{type}").set("redis.stream_max_age", "1h");
    });
    let mut connection = connect(redis.address());
    for (granted, wanted) in [
        ("+ping", "Redis refuses XADD"),
        ("+xadd", "Redis refuses XTRIM"),
        ("+xtrim", "XTRIM to s:check are permitted"),
    ] {
        let () = ask(&mut connection, &format!("ACL SETUSER fieldpost {granted}"));
        let said = agent.command(&["check", "--timeout", "2s"]).output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let keys: Vec<String> = ask(&mut connection, "KEYS *");
    assert!(keys.is_empty(), "{keys:?}");
}

#[test]
fn a_failover_by_sentinel_is_followed() {
    let master = Private::redis();
    let replica = replica_of(&master);
    let (port, (host, master_port)) = (master.spare_port(), place(&master).split_once(':').unwrap());
    let _sentinel = Sentinel::start(&format!(
        "port {port}\nsentinel monitor main {host} {master_port} 1\n\
         sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
    ));
    let sentinel = format!("redis://127.0.0.1:{port}/");
    eventually("the Sentinel knows the replica", USUAL, || {
        let mut connection = redis::Client::open(sentinel.as_str()).ok()?.get_connection().ok()?;
        let replicas: Vec<Value> =
            redis::cmd("SENTINEL").arg("replicas").arg("main").query(&mut connection).ok()?;
        (!replicas.is_empty()).then_some(())
    });
    let url = format!("redis+sentinel://127.0.0.1:9,127.0.0.1:{port}/main");
    let agent = agent(&url, "s", "both", |_| {});
    let producer = Producer::start(&agent.socket(), "s", Pace { rate: Some(100), ..Pace::default() });
    let mut connection = connect(master.address());
    eventually("entries are at the master", USUAL, || {
        (length(&mut connection, "s:reading") > 10).then_some(())
    });
    master.kill();
    agent.wait_log("Redis link down", USUAL);
    // A Redis that becomes the master closes its connections.
    let length = || {
        let mut connection = redis::Client::open(replica.address()).ok()?.get_connection().ok()?;
        redis::cmd("XLEN").arg("s:reading").query::<u64>(&mut connection).ok()
    };
    let before = eventually("the replica answers", USUAL, length);
    eventually("entries are at the new master", USUAL * 3, || {
        length().filter(|length| *length > before + 10).map(drop)
    });
    let mut listener = Listener::to(replica.address(), "events:*");
    assert_eq!(listener.next().0, "events:probe:s");
    producer.finish(USUAL);
}
