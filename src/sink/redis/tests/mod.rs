//! The sink against a Redis of the test's own that answers, refuses, is slow or is gone.

mod volume;

use std::pin::pin;

use super::connection::Connection;
use super::*;
use crate::error::Class;
use crate::event::{Event, EventId, Payload, Stamp, Way};
use crate::ping::{ChannelTemplate, Plan, StreamPlan};
use crate::secret::Secret;
use crate::stats::LinkState;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);
/// `redis.timeout` of the tests: far above a loopback round trip, far below [`PATIENCE`].
const TIMEOUT: Duration = Duration::from_millis(300);

/// A ping of one event, whose payload is `1`, by a plan.
fn planned(plan: &Plan, source_id: &str, kind: &str, id: &str) -> Ping {
    let event = Event {
        id: EventId::Given(id),
        kind,
        source_type: "probe",
        source_id,
        timestamp: None,
        received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: true },
        payload: Payload::Json("1"),
        way: Way::USUAL,
    };
    plan.ping(&event, Instant::now(), &Arc::new(Semaphore::new(100)))
}

/// A ping that is published on `events:SOURCE`.
pub(super) fn ping_of(source_id: &str, kind: &str, id: &str) -> Ping {
    let channel = ChannelTemplate::parse("events:{source_id}").ok();
    planned(&Plan { channel, aggregate: None, stream: None }, source_id, kind, id)
}

/// The command that publishes the ping `n` of a test.
fn published(n: usize) -> String {
    format!(r#"PUBLISH events:{n} {{"id":"m{n}","type":"t","source_id":"{n}"}}"#)
}

fn address(port: u16) -> Address {
    Address { host: "127.0.0.1".into(), port }
}

/// A server that does what the test says.
struct Server(TcpListener);

fn options(address: Address) -> Options {
    Options {
        addresses: vec![address],
        master: None,
        tls: None,
        database: 0,
        login: Login::default(),
        sentinel_login: Login::default(),
        queue_max: 100,
        payload_queue_bytes_max: 100,
        max_age: PATIENCE,
        coalesce: Coalesce { window: Duration::ZERO, above: 0 },
        streams: None,
        timeout: TIMEOUT,
    }
}

fn login(username: Option<&str>, password: &str) -> Login {
    let username = username.map(str::to_owned);
    Login { username, password: Some(Password::Given(Secret::new(password))) }
}

/// Options with so many addresses, none of which is connected to.
pub(super) fn options_of(addresses: usize) -> Options {
    Options { addresses: vec![address(1); addresses], ..options(address(1)) }
}

/// One connection to it, from its side.
struct Peer(BufStream<TcpStream>);

impl Server {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn address(&self) -> Address {
        address(self.0.local_addr().unwrap().port())
    }

    fn options(&self) -> Options {
        options(self.address())
    }

    async fn accept(&self) -> Peer {
        Peer(BufStream::new(timeout(PATIENCE, self.0.accept()).await.expect("nobody connects").unwrap().0))
    }

    /// Accepts and greets.
    async fn accept_up(&self) -> Peer {
        let mut peer = self.accept().await;
        peer.expect("PING").await;
        peer.say("+PONG\r\n").await;
        peer
    }
}

impl Peer {
    /// The next command, words separated by a space; `None` at the end of the connection.
    async fn command(&mut self) -> Option<String> {
        let count = self.number('*').await?;
        let mut words = Vec::new();
        for _ in 0..count {
            let mut word = vec![0; self.number('$').await? + 2];
            self.0.read_exact(&mut word).await.ok()?;
            words.push(String::from_utf8(word).unwrap().trim_end().to_owned());
        }
        Some(words.join(" "))
    }

    async fn number(&mut self, sign: char) -> Option<usize> {
        let mut line = String::new();
        self.0.read_line(&mut line).await.ok()?;
        line.trim_end().strip_prefix(sign)?.parse().ok()
    }

    async fn expect(&mut self, command: &str) {
        let got = timeout(PATIENCE, self.command()).await.expect("no command");
        assert_eq!(got.as_deref(), Some(command));
    }

    async fn expect_end(&mut self) {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("connection stays open").unwrap();
    }

    async fn say(&mut self, answer: &str) {
        self.0.write_all(answer.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }
}

/// A running sink as the test sees it.
struct Running {
    queue: mpsc::Sender<Ping>,
    stats: Arc<Stats>,
    stop: CancellationToken,
}

impl Running {
    fn ping(&self, n: usize) {
        self.offer(ping_of(&n.to_string(), "t", &format!("m{n}")));
    }

    fn offer(&self, ping: Ping) {
        self.queue.try_send(ping).unwrap();
    }

    fn counts(&self) -> (u64, u64) {
        (self.stats.pings_out.get(), self.stats.pings_dropped.get())
    }

    async fn eventually(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "not so: {what}; counts {:?}", self.counts());
    }

    async fn link(&self, state: LinkState) {
        self.eventually(state.word(), |running| running.stats.redis.get() == state).await;
    }
}

/// Runs the sink beside `scenario`, then stops it, which must not take longer than documented.
async fn with_sink(options: Options, scenario: impl AsyncFnOnce(&Running)) -> Arc<Stats> {
    let (queue, pings) = mpsc::channel(options.queue_max);
    let running = Running { queue, stats: Arc::default(), stop: CancellationToken::new() };
    let mut sink = pin!(run(options, pings, Arc::clone(&running.stats), running.stop.clone()));
    tokio::select! {
        result = &mut sink => panic!("ended early: {result:?}"),
        () = scenario(&running) => {}
    }
    running.stop.cancel();
    let Ok(()) = timeout(2 * TIMEOUT + TIMEOUT / 2, sink).await.expect("does not stop");
    running.stats
}

#[tokio::test]
async fn what_waits_goes_out_in_one_pipeline_and_in_order() {
    let server = Server::start().await;
    with_sink(server.options(), async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        (0..3).for_each(|n| sink.ping(n));
        for n in 0..3 {
            // Nothing is answered in between: all three are on their way.
            peer.expect(&published(n)).await;
        }
        assert_eq!(sink.counts(), (0, 0));
        peer.say(":0\r\n:1\r\n:7\r\n").await;
        sink.eventually("answered", |sink| sink.counts() == (3, 0)).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_costs_the_time_out_and_its_pings() {
    let server = Server::start().await;
    with_sink(server.options(), async |sink| {
        let mut peer = server.accept().await;
        sink.ping(0);
        sink.eventually("dropped", |sink| sink.counts() == (0, 1)).await;
        peer.expect("PING").await;
        peer.expect_end().await;
        sink.link(LinkState::Down).await;
        let failure = sink.stats.redis.failure();
        assert!(failure.is_some_and(|failure| !failure.what.is_empty()));
        let _up = server.accept_up().await;
        sink.link(LinkState::Up).await;
    })
    .await;
}

#[tokio::test]
async fn a_pipeline_without_answers_is_dropped_and_the_link_made_anew() {
    let server = Server::start().await;
    with_sink(server.options(), async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        sink.ping(0);
        peer.expect(&published(0)).await;
        peer.expect_end().await;
        assert_eq!(sink.counts(), (0, 1));
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        sink.ping(1);
        peer.expect(&published(1)).await;
        peer.say(":1\r\n").await;
        sink.eventually("answered", |sink| sink.counts() == (1, 1)).await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_closed_half_way_drops_that_pipeline() {
    let server = Server::start().await;
    with_sink(server.options(), async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        (0..3).for_each(|n| sink.ping(n));
        peer.expect(&published(0)).await;
        peer.say(":1\r\n").await;
        drop(peer);
        sink.eventually("dropped", |sink| sink.counts() == (0, 3)).await;
        server.accept_up().await;
    })
    .await;
}

#[tokio::test]
async fn answers_that_come_with_the_end_of_the_connection_count() {
    let server = Server::start().await;
    with_sink(server.options(), async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        (0..2).for_each(|n| sink.ping(n));
        peer.expect(&published(0)).await;
        peer.expect(&published(1)).await;
        peer.say(":1\r\n:1\r\n").await;
        drop(peer);
        sink.eventually("answered", |sink| sink.counts() == (2, 0)).await;
        server.accept_up().await;
    })
    .await;
}

#[tokio::test]
async fn an_idle_link_that_closes_is_noticed_without_a_ping() {
    let server = Server::start().await;
    with_sink(server.options(), async |sink| {
        let peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        drop(peer);
        sink.link(LinkState::Down).await;
        server.accept_up().await;
        assert_eq!(sink.counts(), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn pings_are_dropped_at_once_while_the_link_is_down() {
    let server = Server::start().await;
    let options = server.options();
    drop(server);
    let stats = with_sink(options, async |sink| {
        (0..50).for_each(|n| sink.ping(n));
        sink.eventually("dropped", |sink| sink.counts() == (0, 50)).await;
        sink.link(LinkState::Down).await;
    })
    .await;
    assert_eq!(stats.pings_dropped.link_down.get(), 50);
}

#[tokio::test]
async fn a_server_that_is_loading_is_tried_again() {
    let server = Server::start().await;
    with_sink(server.options(), async |sink| {
        let mut peer = server.accept().await;
        peer.expect("PING").await;
        peer.say("-LOADING Redis is loading the dataset in memory\r\n").await;
        peer.expect_end().await;
        sink.link(LinkState::Down).await;
        let _up = server.accept_up().await;
        sink.link(LinkState::Up).await;
    })
    .await;
}

#[tokio::test]
async fn a_user_without_rights_keeps_the_link_and_is_down_until_they_come() {
    let server = Server::start().await;
    with_sink(server.options(), async |sink| {
        let mut peer = server.accept_up().await;
        sink.link(LinkState::Up).await;
        sink.ping(0);
        peer.expect(&published(0)).await;
        peer.say("-NOPERM this user has no permissions to access one of the channels\r\n").await;
        sink.link(LinkState::Down).await;
        assert_eq!(sink.counts(), (0, 1));
        (1..3).for_each(|n| sink.ping(n));
        peer.expect(&published(1)).await;
        peer.expect(&published(2)).await;
        peer.say(":0\r\n-NOPERM this user has no permissions to access one of the channels\r\n").await;
        sink.link(LinkState::Up).await;
        assert_eq!(sink.counts(), (1, 2));
    })
    .await;
}

#[tokio::test]
async fn stopping_publishes_what_is_queued() {
    let server = Server::start().await;
    let (queue, pings) = mpsc::channel(100);
    let running = Running { queue, stats: Arc::default(), stop: CancellationToken::new() };
    let sink = run(server.options(), pings, Arc::clone(&running.stats), running.stop.clone());
    let scenario = async {
        let mut peer = server.accept_up().await;
        running.link(LinkState::Up).await;
        (0..3).for_each(|n| running.ping(n));
        running.stop.cancel();
        for n in 0..3 {
            peer.expect(&published(n)).await;
        }
        peer.say(":0\r\n:0\r\n:0\r\n").await;
        peer.expect_end().await;
    };
    let (result, ()) = timeout(PATIENCE, async { tokio::join!(sink, scenario) }).await.unwrap();
    let Ok(()) = result;
    assert_eq!(running.counts(), (3, 0));
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_silent_server() {
    let server = Server::start().await;
    let mut peer = None;
    let stats = with_sink(server.options(), async |sink| {
        peer = Some(server.accept_up().await);
        sink.link(LinkState::Up).await;
        (0..3).for_each(|n| sink.ping(n));
    })
    .await;
    assert_eq!((stats.pings_out.get(), stats.pings_dropped.get()), (0, 3));
}

#[tokio::test]
async fn the_sink_ends_when_nobody_can_send_any_more() {
    let server = Server::start().await;
    let (queue, pings) = mpsc::channel(4);
    let sink = run(server.options(), pings, Arc::default(), CancellationToken::new());
    let scenario = async {
        let peer = server.accept_up().await;
        drop(queue);
        peer
    };
    let (result, _peer) = timeout(PATIENCE, async { tokio::join!(sink, scenario) }).await.unwrap();
    let Ok(()) = result;
}

#[tokio::test]
async fn credentials_and_database_are_told_in_order() {
    let server = Server::start().await;
    let options = Options { login: login(Some("gateway"), "hunter2"), database: 3, ..server.options() };
    let scenario = async {
        let mut peer = server.accept().await;
        peer.expect("PING").await;
        peer.say("-NOAUTH Authentication required.\r\n").await;
        peer.expect("AUTH gateway hunter2").await;
        peer.say("+OK\r\n").await;
        peer.expect("SELECT 3").await;
        peer.say("+OK\r\n").await;
        peer
    };
    let (opened, _peer) = tokio::join!(Connection::at(&options, 0), scenario);
    opened.map(drop).unwrap();
}

/// What the sink says of a peer that answers its first commands like this and then closes.
async fn opened(options: impl FnOnce(Options) -> Options, answers: &[&str]) -> RedisError {
    let server = Server::start().await;
    let options = options(server.options());
    let scenario = async {
        let mut peer = server.accept().await;
        for answer in answers {
            peer.command().await;
            peer.say(answer).await;
        }
    };
    let (opened, ()) = tokio::join!(Connection::at(&options, 0), scenario);
    opened.map(drop).unwrap_err()
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let with_password = |options| Options { login: login(None, "hunter2"), ..options };
    let denied = "see redis.username and redis.password_file";
    let wrong = opened(with_password, &["-NOAUTH no\r\n", "-WRONGPASS invalid password\r\n"]).await;
    assert_eq!(wrong.to_string(), format!("Redis refuses AUTH: WRONGPASS invalid password; {denied}"));
    assert!(wrong.is_denied() && wrong.class() == Class::Retry);
    let missing = opened(|options| options, &["-NOAUTH Authentication required.\r\n"]).await;
    assert_eq!(missing.to_string(), format!("Redis refuses PING: NOAUTH Authentication required.; {denied}"));
    let full = opened(with_password, &["-ERR max number of clients reached\r\n"]).await;
    assert_eq!(full.to_string(), "Redis answers PING with an error: ERR max number of clients reached");
    let other = opened(|options| options, &["HTTP/1.1 400 Bad Request\r\n\r\n"]).await;
    assert!(matches!(other, RedisError::Protocol(_)), "{other}");
    let closed = opened(|options| options, &[]).await;
    assert_eq!(closed.to_string(), "connection lost: closed by Redis");
    let long = opened(|options| options, &[&format!("-ERR {}\r\n", "ä".repeat(500))]).await;
    assert!(long.to_string().len() < 2 * super::error::ANSWER_BYTES_MAX, "{long}");
}

#[tokio::test]
async fn no_connection_and_no_answer_are_told_apart() {
    let server = Server::start().await;
    let mut options = server.options();
    let silent = Connection::at(&options, 0).await.map(drop).unwrap_err();
    assert_eq!(silent.to_string(), "no answer within 300 ms (redis.timeout)");
    drop(server);
    let refused = Connection::at(&options, 0).await.map(drop).unwrap_err();
    assert!(matches!(refused, RedisError::Connect { .. }), "{refused}");
    options.addresses = vec![Address { host: "127.0.0.1.invalid".into(), port: 1 }];
    options.timeout = PATIENCE;
    let unknown = Connection::at(&options, 0).await.map(drop).unwrap_err();
    assert!(matches!(unknown, RedisError::Connect { .. }), "{unknown}");
}

#[tokio::test]
async fn a_probe_publishes_nothing() {
    let server = Server::start().await;
    let options = server.options();
    let info = "redis_version:7.0.15\r\nredis_mode:standalone\r\n";
    let info = format!("${}\r\n{info}\r\n", info.len());
    let scenario = async {
        let mut peer = server.accept_up().await;
        peer.expect("INFO server").await;
        peer.say(&info).await;
        peer.expect("INFO replication").await;
        peer.say("$11\r\nrole:master\r\n").await;
        peer.expect("MULTI").await;
        peer.say("+OK\r\n").await;
        peer.expect("PUBLISH events:check ").await;
        peer.expect("DISCARD").await;
        peer.say("+QUEUED\r\n+OK\r\n").await;
        peer.expect_end().await;
    };
    let probe = async { probe(&options, ping_of("check", "t", "1")).await };
    let (said, ()) = tokio::join!(probe, scenario);
    let said = said.unwrap();
    assert_eq!(said.message, "Redis 7.0.15, PUBLISH to events:check is permitted");
    assert_eq!(said.doubt, None);
}

#[tokio::test]
async fn a_probe_that_may_not_begin_a_transaction_does_not_publish() {
    let server = Server::start().await;
    let options = server.options();
    let scenario = async {
        let mut peer = server.accept_up().await;
        peer.expect("INFO server").await;
        peer.say("-NOPERM no\r\n").await;
        peer.expect("INFO replication").await;
        peer.say("-NOPERM no\r\n").await;
        peer.expect("MULTI").await;
        peer.say("-NOPERM no\r\n").await;
        assert_eq!(peer.command().await, None);
    };
    let (said, ()) = tokio::join!(async { probe(&options, ping_of("check", "t", "1")).await }, scenario);
    assert!(said.unwrap().message.contains("could not be checked"));
}

#[test]
fn the_sink_may_run_in_a_set_of_stages() {
    fn is_send(_: impl Send) {}
    let (_queue, pings) = mpsc::channel(1);
    let options = Options { tls: Some(crate::tls::Options::default()), ..options(address(1)) };
    is_send(run(options, pings, Arc::default(), CancellationToken::new()));
}
