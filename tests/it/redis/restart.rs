//! Streams over a Redis that is killed, with its data kept or not, and one that takes nothing: best effort, counted, and never
//! in the way of Kafka.

use std::collections::BTreeMap;

use serde_json::json;

use super::streams::{Entry, ask, connect, length, place, replica_of, status};
use super::volume::of_status;
use super::wait_link;
use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer};
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::services::{Private, Service, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

/// Entries of one pipeline, whose answers a crash may swallow after Redis has kept them.
const PIPELINE_MAX: u64 = 512;

const STREAM: &str = "s:reading";

fn agent(url: &str, topic: &str) -> Agent {
    let agent = Agent::start(|config| {
        config.shared_kafka(topic).redis(url).set("redis.mode", "streams").set("redis.stream", "s:{type}");
        #[cfg(feature = "http")]
        config.set("http.listen", "127.0.0.1:0");
    });
    wait_link(&agent);
    agent
}

/// Takes what nobody of the group has had; the numbers of the events. Every second entry is acknowledged.
fn take(connection: &mut redis::Connection) -> Vec<u64> {
    let read = format!("XREADGROUP GROUP web one COUNT 100000 STREAMS {STREAM} >");
    let read: Option<Vec<(String, Vec<Entry>)>> = ask(connection, &read);
    let entries: Vec<Entry> = read.into_iter().flatten().flat_map(|(_, entries)| entries).collect();
    for (id, _) in entries.iter().step_by(2) {
        let acknowledged: u64 = ask(connection, &format!("XACK {STREAM} web {id}"));
        assert_eq!(acknowledged, 1);
    }
    let number =
        |fields: &BTreeMap<String, String>| fields["id"].rsplit_once('-').unwrap().1.parse().unwrap();
    entries.iter().map(|(_, fields)| number(fields)).collect()
}

/// The stream and its group as Redis has them, and as `fieldpost streams status` tells them; answers the lag that it tells.
#[track_caller]
fn told_lag(agent: &Agent, connection: &mut redis::Connection, pending: u64) -> serde_json::Value {
    let length = length(connection, STREAM);
    let (code, report) = status(agent, &[]);
    let stream = &report["streams"][0];
    let lag = stream["groups"][0]["lag"].clone();
    let group = json!({"name": "web", "consumers": 1, "pending": pending, "lag": lag});
    assert_eq!((code, &stream["length"], &stream["groups"]), (Some(0), &json!(length), &json!([group])));
    lag
}

/// Those of `taken` that [`take`] has not acknowledged.
fn pending_of(taken: &[u64]) -> u64 {
    taken.len() as u64 / 2
}

/// A producer whose events become entries, more than 200 by now, that the group `web` is to read: topic, agent, producer, and a
/// connection that sees the entries.
fn stream_of(redis: &Private) -> (String, Agent, Producer, redis::Connection) {
    let topic = create_topic(&Shared::get().kafka, 1);
    let agent = agent(redis.address(), &topic);
    let mut connection = connect(redis.address());
    let () = ask(&mut connection, &format!("XGROUP CREATE {STREAM} web 0 MKSTREAM"));
    let producer = Producer::start(&agent.socket(), "s", Pace { rate: Some(500), ..Pace::default() });
    eventually("there are entries", USUAL, || (length(&mut connection, STREAM) > 200).then_some(()));
    (topic, agent, producer, connection)
}

/// Events go on while Redis is away; then the link is there again.
pub(super) fn over_a_crash(redis: &Private, agent: &Agent, producer: &Producer) {
    redis.kill();
    agent.wait_log("Redis link down", USUAL);
    let during = producer.acked();
    eventually("events go on without Redis", USUAL, || (producer.acked() > during + 300).then_some(()));
    redis.start();
    eventually("the link is back", USUAL * 2, || (agent.log_count("Redis link up") == 2).then_some(()));
}

#[test]
fn a_crash_of_a_redis_that_keeps_its_data_is_a_gap_and_nothing_more() {
    let redis = Private::with_settings(Service::Redis, "appendonly yes\nappendfsync always");
    let (topic, mut agent, producer, mut connection) = stream_of(&redis);
    let first = take(&mut connection);
    over_a_crash(&redis, &agent, &producer);
    let mut connection = connect(redis.address());
    let kept = length(&mut connection, STREAM);
    eventually("entries are added again", USUAL, || {
        (length(&mut connection, STREAM) > kept + 200).then_some(())
    });
    let events = producer.finish(USUAL);
    consume_count(&Shared::get().kafka, &topic, usize::try_from(events).unwrap(), USUAL);
    let wanted = format!("s-{}", events - 1);
    eventually("the last entry is there", USUAL, || {
        let last: Vec<Entry> = ask(&mut connection, &format!("XREVRANGE {STREAM} + - COUNT 1"));
        (last.first()?.1["id"] == wanted).then_some(())
    });
    // Out of its file Redis does not know a group's lag before the group has read again, and that is told.
    let lag = told_lag(&agent, &mut connection, pending_of(&first));
    assert!(lag.is_null() || lag == length(&mut connection, STREAM) - first.len() as u64, "{lag}");
    let second = take(&mut connection);
    let all = [&first[..], &second[..]].concat();
    assert!(all.is_sorted_by(|a, b| a < b), "the group goes on in order, each entry once");
    let total = all.len() as u64;
    assert_eq!(told_lag(&agent, &mut connection, pending_of(&first) + pending_of(&second)), 0);
    assert_eq!(agent.stop().code(), Some(0));
    let (added, dropped) = (of_status(&agent, "stream entries"), dropped(&agent));
    eprintln!("{events} events, {total} entries, {added} added, {dropped} dropped while Redis was away");
    assert_eq!(added + dropped, events);
    assert!((added..=added + PIPELINE_MAX).contains(&total) && dropped >= 300);
}

#[test]
fn a_crash_of_a_redis_that_forgets_begins_streams_and_groups_anew() {
    let redis = Private::redis();
    let (topic, mut agent, producer, _) = stream_of(&redis);
    over_a_crash(&redis, &agent, &producer);
    let mut connection = connect(redis.address());
    eventually("entries are added again", USUAL, || {
        let exists: u64 = ask(&mut connection, &format!("EXISTS {STREAM}"));
        (exists == 1 && length(&mut connection, STREAM) > 200).then_some(())
    });
    let read = ["XREADGROUP", "GROUP", "web", "one", "STREAMS", STREAM, ">"];
    let refused = redis::cmd(read[0]).arg(&read[1..]).query::<redis::Value>(&mut connection).unwrap_err();
    assert_eq!(refused.code(), Some("NOGROUP"));
    let (code, report) = status(&agent, &[]);
    assert_eq!((code, &report["streams"][0]["groups"]), (Some(0), &json!([])));
    let () = ask(&mut connection, &format!("XGROUP CREATE {STREAM} web 0"));
    let events = producer.finish(USUAL);
    consume_count(&Shared::get().kafka, &topic, usize::try_from(events).unwrap(), USUAL);
    let mut taken = Vec::new();
    eventually("the group has the last event", USUAL, || {
        taken.extend(take(&mut connection));
        (taken.last() == Some(&(events - 1))).then_some(())
    });
    assert!(taken.is_sorted_by(|a, b| a < b), "each entry once, in order");
    assert_eq!(length(&mut connection, STREAM), taken.len() as u64);
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(of_status(&agent, "stream entries") + dropped(&agent), events);
}

/// `stream entries A (dropped B)` of the last status line: B.
fn dropped(agent: &Agent) -> u64 {
    let line = agent.log().into_iter().rfind(|line| line.contains("stream entries ")).expect("a status line");
    let (_, rest) = line.split_once("stream entries ").unwrap();
    let (_, rest) = rest.split_once("(dropped ").unwrap();
    rest.split_once(')').unwrap().0.parse().unwrap()
}

#[test]
fn a_redis_that_takes_no_entry_costs_kafka_nothing_and_each_is_counted() {
    const EVENTS: u64 = 5000;
    let full = Private::with_settings(Service::Redis, "maxmemory 100kb\nmaxmemory-policy noeviction");
    let master = Private::redis();
    let replica = replica_of(&master);
    for (redis, part) in [(&full, "OOM"), (&replica, "READONLY")] {
        let topic = create_topic(&Shared::get().kafka, 1);
        let mut agent = agent(redis.address(), &topic);
        let source = unique("s");
        let pace = Pace { count: EVENTS, rate: Some(5000), ..Pace::default() };
        Producer::start(&agent.socket(), &source, pace).finish(USUAL);
        let in_kafka = consume_count(&Shared::get().kafka, &topic, usize::try_from(EVENTS).unwrap(), USUAL);
        assert_eq!(in_kafka.len() as u64, EVENTS, "{}", place(redis));
        agent.wait_log(part, USUAL);
        #[cfg(feature = "http")]
        {
            let address = crate::harness::http::address_of(&agent);
            eventually("each is counted by reason", USUAL, || {
                let status = crate::harness::http::get(&address, "/status").json();
                let by = &status["redis"]["stream_entries_dropped_by"];
                let of = |reason: &str| by[reason].as_u64().unwrap();
                // A replica is left after a refusal and asked again with a pause.
                let is_told = of("refused") > 0 && (part == "READONLY" || of("link_down") == 0);
                (is_told && of("refused") + of("link_down") == EVENTS).then_some(())
            });
        }
        assert_eq!(agent.stop().code(), Some(0));
        assert_eq!((of_status(&agent, "stream entries"), dropped(&agent)), (0, EVENTS), "{part}");
        let said = agent.log().iter().filter(|line| line.contains("ERROR") && line.contains("Redis")).count();
        assert!(said <= 2, "{part}: it is said once a minute, not for each entry: {said}");
    }
}
