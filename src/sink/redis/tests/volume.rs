//! Many pings, old pings, entries of streams, and several servers.

use super::*;

const STREAMS: StreamOptions = StreamOptions { len_max: 1000, max_age: None, count_max: 2 };

/// A plan of both kinds: `events:SOURCE` and the stream `TYPE`.
fn both() -> Plan {
    let stream = StreamPlan { name: ChannelTemplate::parse("{type}").unwrap(), payload_bytes_max: None };
    let channel = ChannelTemplate::parse("events:{source_id}").ok();
    Plan { channel, aggregate: None, stream: Some(stream) }
}

fn streams() -> Plan {
    Plan { channel: None, ..both() }
}

fn added(stream: &str, source: &str, id: &str) -> String {
    format!(
        "XADD {stream} MAXLEN ~ 1000 * event_type {stream} aggregate_id {source} source_type probe id {id} timestamp \
         1970-01-01T00:00:00.000000Z schema_version 1"
    )
}

#[tokio::test]
async fn what_is_beyond_the_rate_waits_for_the_window_and_the_latest_goes_out() {
    let server = Server::start().await;
    let coalesce = Coalesce { window: Duration::from_millis(50), above: 1 };
    let stats = with_sink(Options { coalesce, ..server.options() }, async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        for n in ["1", "2", "3"] {
            sink.offer(ping_of("7", "t", n));
        }
        sink.offer(ping_of("7", "alarm", "4"));
        for (kind, id) in [("t", "1"), ("t", "3"), ("alarm", "4")] {
            peer.expect(&format!(r#"PUBLISH events:7 {{"id":"{id}","type":"{kind}","source_id":"7"}}"#))
                .await;
            if id == "1" {
                peer.say(":1\r\n").await;
            }
        }
        peer.say(":1\r\n:1\r\n").await;
        sink.eventually("answered", |sink| sink.counts() == (3, 0)).await;
    })
    .await;
    assert_eq!(stats.pings_coalesced.get(), 1);
}

#[tokio::test]
async fn what_waited_behind_a_server_that_hung_is_not_sent_late() {
    let server = Server::start().await;
    let options = Options { max_age: TIMEOUT / 3, timeout: PATIENCE, ..server.options() };
    let stats = with_sink(options, async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        sink.ping(0);
        peer.expect(&published(0)).await;
        // These wait for the answer.
        (1..4).for_each(|n| sink.ping(n));
        let asked = Instant::now();
        sink.eventually("they are old", |_| asked.elapsed() > TIMEOUT / 2).await;
        sink.ping(4);
        peer.say(":1\r\n").await;
        peer.expect(&published(4)).await;
        peer.say(":1\r\n").await;
        sink.eventually("answered", |sink| sink.counts() == (2, 0)).await;
    })
    .await;
    assert_eq!(stats.pings_stale.get(), 3);
}

#[tokio::test]
async fn a_ping_is_published_on_both_channels_and_counts_once() {
    let server = Server::start().await;
    let aggregate = ChannelTemplate::parse("all:{source_type}").ok();
    with_sink(server.options(), async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        for n in ["1", "2"] {
            sink.offer(planned(&Plan { stream: None, aggregate: aggregate.clone(), ..both() }, "7", "t", n));
        }
        for n in 1..3 {
            let message = format!(r#"{{"id":"{n}","type":"t","source_id":"7"}}"#);
            peer.expect(&format!("PUBLISH events:7 {message}")).await;
            peer.expect(&format!("PUBLISH all:probe {message}")).await;
        }
        peer.say(":0\r\n:5\r\n:0\r\n-NOPERM no\r\n").await;
        sink.eventually("answered", |sink| sink.counts() == (1, 1)).await;
    })
    .await;
}

#[tokio::test]
async fn entries_are_added_and_refusals_of_one_kind_leave_the_other() {
    let server = Server::start().await;
    let options = Options { streams: Some(STREAMS), ..server.options() };
    let stats = with_sink(options, async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        for (n, refusal) in
            ["OOM no", "MISCONF no", "WRONGTYPE no", "MOVED 1 a:1", "NOREPLICAS no", "ERR what"]
                .into_iter()
                .enumerate()
        {
            sink.offer(planned(&both(), &n.to_string(), "t", &format!("m{n}")));
            peer.expect(&published(n)).await;
            peer.expect(&added("t", &n.to_string(), &format!("m{n}"))).await;
            peer.say(&format!(":1\r\n-{refusal}\r\n")).await;
            let count = n as u64 + 1;
            sink.eventually(refusal, |sink| sink.stats.stream_entries_dropped.get() == count).await;
            assert_eq!((sink.counts(), sink.stats.redis.get()), ((count, 0), LinkState::Up), "{refusal}");
        }
        sink.offer(planned(&streams(), "7", "t", "1"));
        peer.expect(&added("t", "7", "1")).await;
        peer.say("-OOM no\r\n").await;
        sink.link(LinkState::Misconfigured).await;
        sink.offer(planned(&streams(), "7", "t", "2"));
        peer.expect(&added("t", "7", "2")).await;
        peer.say("$15\r\n1700000000000-0\r\n").await;
        sink.link(LinkState::Up).await;
    })
    .await;
    assert_eq!((stats.stream_entries_out.get(), stats.stream_entries_dropped.refused.get()), (1, 7));
}

#[tokio::test]
async fn a_replica_is_left_for_the_next_address() {
    let (replica, master) = (Server::start().await, Server::start().await);
    let addresses = vec![replica.address(), master.address()];
    let options = Options { addresses, streams: Some(STREAMS), ..replica.options() };
    with_sink(options, async |sink| {
        let mut peer = replica.accept_up().await;
        sink.link(LinkState::Up).await;
        sink.offer(planned(&streams(), "7", "t", "1"));
        peer.expect(&added("t", "7", "1")).await;
        peer.say("-READONLY You can't write against a read only replica.\r\n").await;
        peer.expect_end().await;
        let mut peer = master.accept_up().await;
        sink.link(LinkState::Up).await;
        sink.offer(planned(&streams(), "7", "t", "2"));
        peer.expect(&added("t", "7", "2")).await;
        peer.say("$15\r\n1700000000000-0\r\n").await;
        let is_added = |sink: &Running| sink.stats.stream_entries_out.get() == 1;
        sink.eventually("added", is_added).await;
        assert_eq!(sink.stats.stream_entries_dropped.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn only_so_many_streams_are_written() {
    let server = Server::start().await;
    let options = Options { streams: Some(STREAMS), ..server.options() };
    with_sink(options, async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        for kind in ["a", "b", "c", "a"] {
            sink.offer(planned(&streams(), "7", kind, "1"));
        }
        for kind in ["a", "b", "a"] {
            peer.expect(&added(kind, "7", "1")).await;
        }
        peer.say(&"$15\r\n1700000000000-0\r\n".repeat(3)).await;
        sink.eventually("added", |sink| sink.stats.stream_entries_out.get() == 3).await;
        assert_eq!(sink.stats.stream_entries_dropped.too_many_streams.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn old_entries_are_trimmed_by_the_clock_of_redis() {
    let server = Server::start().await;
    let streams_of = StreamOptions { max_age: Some(Duration::from_secs(10)), ..STREAMS };
    let options = Options { streams: Some(streams_of), timeout: PATIENCE, ..server.options() };
    with_sink(options, async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        sink.offer(planned(&streams(), "7", "t", "1"));
        peer.expect(&added("t", "7", "1")).await;
        peer.say("$15\r\n1700000000000-0\r\n").await;
        let trim = timeout(PATIENCE, peer.command()).await.unwrap().unwrap();
        let oldest: u64 = trim.strip_prefix("XTRIM t MINID ").unwrap().parse().unwrap();
        let since = oldest.checked_sub(1_699_999_990_000);
        assert!(since.is_some_and(|since| since < 10_000), "{trim}");
        // One that may not trim goes on.
        peer.say("-NOPERM no\r\n").await;
        sink.offer(planned(&streams(), "7", "t", "2"));
        peer.expect(&added("t", "7", "2")).await;
        peer.say("$15\r\n1700000000000-1\r\n").await;
        sink.eventually("added", |sink| sink.stats.stream_entries_out.get() == 2).await;
    })
    .await;
}

#[tokio::test]
async fn entries_are_not_coalesced() {
    let server = Server::start().await;
    let coalesce = Coalesce { window: Duration::from_millis(50), above: 0 };
    let options = Options { coalesce, streams: Some(STREAMS), ..server.options() };
    with_sink(options, async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        for n in 0..2 {
            sink.offer(planned(&both(), "0", "t", &format!("m{n}")));
        }
        for n in 0..2 {
            peer.expect(&added("t", "0", &format!("m{n}"))).await;
        }
        peer.say("$15\r\n1700000000000-0\r\n$15\r\n1700000000000-1\r\n").await;
        peer.expect(r#"PUBLISH events:0 {"id":"m1","type":"t","source_id":"0"}"#).await;
        peer.say(":1\r\n").await;
        sink.eventually("answered", |sink| sink.counts() == (1, 0)).await;
        assert_eq!((sink.stats.stream_entries_out.get(), sink.stats.pings_coalesced.get()), (2, 1));
    })
    .await;
}

#[tokio::test]
async fn each_connection_asks_the_next_sentinel_for_the_master() {
    let (first, second, master) = (Server::start().await, Server::start().await, Server::start().await);
    let addresses = vec![first.address(), second.address()];
    let options = Options { addresses, master: Some("main".into()), ..first.options() };
    with_sink(options, async |sink| {
        let mut peer = first.accept_up().await;
        peer.expect("SENTINEL get-master-addr-by-name main").await;
        peer.say("*-1\r\n").await;
        let mut peer = second.accept_up().await;
        peer.expect("SENTINEL get-master-addr-by-name main").await;
        let port = master.address().port.to_string();
        peer.say(&format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len())).await;
        let mut peer = master.accept_up().await;
        sink.link(LinkState::Up).await;
        sink.ping(0);
        peer.expect(&published(0)).await;
        peer.say(":1\r\n").await;
        sink.eventually("answered", |sink| sink.counts() == (1, 0)).await;
        drop(peer);
        let mut peer = first.accept_up().await;
        peer.expect("SENTINEL get-master-addr-by-name main").await;
    })
    .await;
}

#[tokio::test]
async fn a_sentinel_gets_the_password_only_if_it_asks() {
    let server = Server::start().await;
    let master = Some("main".into());
    let options = Options { master, login: login(None, "hunter2"), ..server.options() };
    let own = Options { sentinel_login: login(Some("gateway"), "own"), ..options.clone() };
    let scenario = async {
        let mut peer = server.accept_up().await;
        peer.expect("SENTINEL get-master-addr-by-name main").await;
        peer.say("-ERR unknown command\r\n").await;
        let mut peer = server.accept().await;
        peer.expect("PING").await;
        peer.say("-NOAUTH Authentication required.\r\n").await;
        peer.expect("AUTH hunter2").await;
        peer.say("-WRONGPASS no\r\n").await;
        let mut peer = server.accept().await;
        peer.expect("PING").await;
        peer.say("-NOAUTH Authentication required.\r\n").await;
        peer.expect("AUTH gateway own").await;
    };
    let opening = async {
        let unknown = Connection::at(&options, 0).await.map(drop).unwrap_err();
        let wrong = Connection::at(&options, 0).await.map(drop).unwrap_err();
        let _ = Connection::at(&own, 0).await;
        (unknown, wrong)
    };
    let ((unknown, wrong), ()) = tokio::join!(opening, scenario);
    assert_eq!(unknown.to_string(), "Redis answers SENTINEL with an error: ERR unknown command");
    let (place, wanted) = (server.address(), "see redis.sentinel_username and redis.sentinel_password_file");
    let text = wrong.to_string();
    assert!(wrong.is_denied() && text.contains(&place.to_string()) && text.contains(wanted), "{wrong}");
}

#[tokio::test]
async fn a_redis_that_cannot_save_and_says_so_to_ping_may_publish() {
    let server = Server::start().await;
    with_sink(server.options(), async |sink| {
        let mut peer = server.accept().await;
        peer.expect("PING").await;
        peer.say("-MISCONF Redis is configured to save RDB snapshots\r\n").await;
        sink.link(LinkState::Up).await;
    })
    .await;
}
