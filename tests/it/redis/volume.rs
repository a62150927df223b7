//! Many pings, and those that come too late.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Listener, ping_of, pings_of_status, wait_link};
use crate::harness::agent::Agent;
use crate::harness::flow::{line_of, pass};
use crate::harness::services::{Private, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

/// The number behind `word` in the last status line.
pub(super) fn of_status(agent: &Agent, word: &str) -> u64 {
    let line = agent.log().into_iter().rfind(|line| line.contains("pings ")).expect("a status line");
    let Some((_, rest)) = line.split_once(&format!("{word} ")) else { return 0 };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().expect("a number")
}

#[test]
fn coalescing_keeps_the_last_of_each_source_on_both_channels() {
    const SOURCES: u64 = 5;
    const EVENTS: u64 = 400;
    let site = unique("site");
    let mut agent = Agent::start(|config| {
        config.kafka("127.0.0.1:9", "nowhere").shared_redis();
        config.set("redis.channel", format!("{site}:{{source_id}}"));
        config.set("redis.aggregate_channel", format!("all-{site}"));
        config.set("redis.coalesce", "300ms").set("redis.coalesce_above", 10);
    });
    wait_link(&agent);
    let mut each = Listener::to(&Shared::get().redis, &format!("{site}:*"));
    let mut all = Listener::to(&Shared::get().redis, &format!("all-{site}"));
    let mut client = agent.unix();
    for n in 0..EVENTS {
        (0..SOURCES).for_each(|source| client.send_line(&line_of(&format!("s{source}"), n, 10)));
    }
    client.wait_ack(SOURCES * EVENTS, USUAL);
    let mut heard = 0;
    let mut last = BTreeMap::new();
    while (last.len() as u64) < SOURCES || last.values().any(|n| *n != EVENTS - 1) {
        let (channel, message) = each.next();
        assert_eq!(all.next(), (format!("all-{site}"), message.clone()));
        let ping: serde_json::Value = serde_json::from_str(&message).unwrap();
        let source = ping["source_id"].as_str().unwrap().to_owned();
        assert_eq!(channel, format!("{site}:{source}"));
        let (_, n) = ping["id"].as_str().unwrap().rsplit_once('-').unwrap();
        let n: u64 = n.parse().unwrap();
        let before = last.insert(source, n);
        assert!(before.is_none_or(|before| before < n), "the pings of a source keep their order");
        heard += 1;
    }
    assert_eq!(agent.stop().code(), Some(0));
    let coalesced = of_status(&agent, "pings coalesced");
    eprintln!("{heard} pings of {} events, {coalesced} coalesced", SOURCES * EVENTS);
    assert_eq!(pings_of_status(&agent), (heard, 0));
    assert_eq!(heard + coalesced, SOURCES * EVENTS);
    assert!(coalesced > 0);
}

#[test]
fn pings_that_waited_behind_a_redis_that_hung_never_come() {
    const EVENTS: u64 = 50;
    let redis = Private::redis();
    let mut agent = Agent::start(|config| {
        config.kafka("127.0.0.1:9", "nowhere").redis(redis.address());
        config.set("redis.timeout", "30s").set("redis.max_age", "1s");
    });
    wait_link(&agent);
    let source = unique("s");
    let mut listener = Listener::to(redis.address(), "events:*");
    let mut client = agent.unix();
    client.send_line(&line_of(&source, 0, 0));
    assert_eq!(listener.next(), ping_of(&source, 0));
    redis.pause();
    for n in 1..=EVENTS {
        client.send_line(&line_of(&source, n, 0));
        // One by one, so that the first of them is on its way alone.
        client.wait_ack(n + 1, USUAL);
    }
    pass(Duration::from_secs(2));
    redis.resume();
    let mut next = EVENTS + 1;
    // What was given to Redis before it hung is its own; then only what is fresh.
    let mut given = 0;
    eventually("a fresh ping comes", USUAL, || {
        client.send_line(&line_of(&source, next, 0));
        next += 1;
        client.wait_ack(next, USUAL);
        loop {
            match listener.within(Duration::from_millis(100)) {
                None => return None,
                Some(ping) if ping == ping_of(&source, given + 1) && given < EVENTS => given += 1,
                Some((_, message)) => {
                    let ping: serde_json::Value = serde_json::from_str(&message).unwrap();
                    let (_, n) = ping["id"].as_str().unwrap().rsplit_once('-').unwrap();
                    assert!(n.parse::<u64>().unwrap() > EVENTS, "a ping came late: {message}");
                    return Some(());
                }
            }
        }
    });
    assert!(given < EVENTS, "nothing waited");
    assert_eq!(agent.stop().code(), Some(0));
    let stale = of_status(&agent, "pings stale");
    eprintln!("{given} pings were Redis' own, {stale} were stale");
    assert!(stale >= EVENTS - given, "{stale}");
    let (sent, dropped) = pings_of_status(&agent);
    assert_eq!(sent + dropped + stale, next);
}
