//! `fieldpost tail`, from each place, over losses of the connection.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::agent::Agent;
use crate::harness::flow::{line_of, pass};
use crate::harness::kafka::{consume_count, create_topic};
use crate::harness::services::{Private, Shared};
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};

/// Nobody listens there: Kafka is down.
const NOWHERE: &str = "127.0.0.1:1";

/// A `fieldpost tail` that runs.
pub(crate) struct Tail {
    child: Child,
    shown: Arc<Mutex<Vec<String>>>,
    said: Arc<Mutex<Vec<String>>>,
}

fn collect(from: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    std::thread::spawn({
        let lines = Arc::clone(&lines);
        move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        }
    });
    lines
}

impl Tail {
    pub(crate) fn start(agent: &Agent, words: &[&str]) -> Self {
        let mut child = agent
            .command(&[&["tail"], words].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let shown = collect(child.stdout.take().unwrap());
        let said = collect(child.stderr.take().unwrap());
        Self { child, shown, said }
    }

    pub(crate) fn shown(&self) -> Vec<String> {
        self.shown.lock().unwrap().clone()
    }

    /// The first so many events, once they are shown as JSON.
    #[track_caller]
    pub(crate) fn events(&self, count: usize) -> Vec<Value> {
        let lines = eventually(&format!("{count} events"), USUAL, || {
            let shown = self.shown();
            (shown.len() >= count).then_some(shown)
        });
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }

    #[track_caller]
    fn wait_said(&self, part: &str) -> String {
        eventually(&format!("it says {part}"), USUAL, || {
            self.said.lock().unwrap().iter().find(|line| line.contains(part)).cloned()
        })
    }

    fn said_count(&self, part: &str) -> usize {
        self.said.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }

    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        eventually("it ends", USUAL, || self.child.try_wait().unwrap())
    }

    /// ^C.
    #[track_caller]
    fn interrupt(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.wait_exit()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| event["id"].as_str().unwrap_or_else(|| panic!("{event}")).to_owned()).collect()
}

fn wanted(source: &str, numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|n| format!("{source}-{n}")).collect()
}

#[track_caller]
fn send(agent: &Agent, source: &str, numbers: std::ops::Range<u64>) {
    let mut client = agent.unix();
    let count = numbers.end - numbers.start;
    numbers.for_each(|n| client.send_line(&line_of(source, n, 10)));
    client.wait_ack(count, USUAL);
}

/// An agent with HTTP on a port that stays its own.
#[cfg(feature = "http")]
fn agent_with_http() -> Agent {
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let agent = Agent::start(|config| {
        config.kafka(NOWHERE, "events").set("http.listen", listen);
    });
    agent.wait_log("HTTP is served", USUAL);
    agent
}

#[test]
#[cfg(feature = "http")]
fn from_the_agent_nothing_is_missing_over_a_restart() {
    let mut agent = agent_with_http();
    let source = unique("s");
    send(&agent, &source, 0..3);
    let mut tail = Tail::start(&agent, &["--json"]);
    // It follows once it has asked where the events end.
    let mut all = Tail::start(&agent, &["--json", "--after", "1-0"]);
    assert_eq!(ids(&all.events(3)), wanted(&source, 0..3));
    let mut sent = 3;
    eventually("the first event is shown", USUAL, || {
        send(&agent, &source, sent..sent + 1);
        sent += 1;
        (!tail.shown().is_empty()).then_some(())
    });
    agent.kill9();
    tail.wait_said("trying again");
    agent.begin();
    agent.wait_ready();
    send(&agent, &source, sent..sent + 5);
    sent += 5;
    let first = ids(&tail.events(1)).remove(0);
    let from: u64 = first.rsplit_once('-').unwrap().1.parse().unwrap();
    let events = tail.events(usize::try_from(sent - from).unwrap());
    assert_eq!(ids(&events), wanted(&source, from..sent), "each once, in order");
    assert!(
        events.iter().all(|event| event["position"].is_string() && event["payload"]["n"].is_u64()),
        "{events:?}"
    );
    tail.wait_said("connected again after ");
    assert_eq!((tail.said_count("trying again"), tail.said_count("gap")), (1, 0));
    let _ = all.events(usize::try_from(sent).unwrap());
    assert_eq!(all.interrupt().code(), Some(0));
    let summary = all.wait_said("shown");
    assert!(summary.contains(&format!("{sent} events shown, 1 lost connection")), "{summary}");
    assert_eq!(tail.interrupt().code(), Some(0));
    // What Kafka has taken meanwhile is told to be gone.
    let position = events[0]["position"].as_str().unwrap().to_owned();
    agent.stop();
    let topic = create_topic(&Shared::get().kafka, 1);
    agent.reconfigure(|config| {
        config.shared_kafka(&topic);
    });
    agent.begin();
    agent.wait_ready();
    consume_count(&Shared::get().kafka, &topic, usize::try_from(sent).unwrap(), USUAL);
    agent.restart();
    agent.wait_log("HTTP is served", USUAL);
    let late = Tail::start(&agent, &["--after", &position]);
    late.wait_said("gap: not all between ");
}

#[test]
#[cfg(feature = "http")]
fn a_filter_a_count_and_a_timeout_end_it() {
    let agent = agent_with_http();
    let mut client = agent.unix();
    for (n, (kind, source_id)) in
        [("alarm", "pump-1"), ("reading", "pump-2"), ("alarm-high", "fan-1")].iter().enumerate()
    {
        client.send(&serde_json::json!({
            "id": format!("e{n}"), "type": kind, "source_type": "probe", "source_id": source_id, "payload": {"a": "\u{1b}[2J"}
        }));
    }
    client.wait_ack(3, USUAL);
    let from_first = ["--after", "1-0"];
    let mut tail =
        Tail::start(&agent, &[&from_first[..], &["--json", "--type", "alarm*", "--count", "2"]].concat());
    assert_eq!(tail.wait_exit().code(), Some(0));
    assert_eq!(ids(&tail.events(2)), ["e0", "e2"]);
    let words = ["--source-id", "pump-*", "--type", "alarm*", "--source-type", "probe", "--timeout", "2s"];
    let mut tail = Tail::start(&agent, &[&from_first[..], &words].concat());
    assert_eq!(tail.wait_exit().code(), Some(0));
    let shown = tail.shown();
    assert!(
        shown.len() == 1 && shown[0].contains("probe/pump-1  alarm  ") && !shown[0].contains('\u{1b}'),
        "{shown:?}"
    );
    tail.wait_said("1 event shown, 2 left out by the filter");
    let mut tail = Tail::start(&agent, &["--count", "1", "--timeout", "500ms"]);
    assert_eq!(tail.wait_exit().code(), Some(75));
}

#[test]
#[cfg(feature = "http")]
fn a_closed_pipe_ends_it_and_one_that_nobody_reads_can_be_left() {
    let agent = agent_with_http();
    let source = unique("s");
    let mut tail = agent.command(&["tail", "--after", "1-0"]).stdout(Stdio::piped()).spawn().unwrap();
    send(&agent, &source, 0..3);
    let mut out = BufReader::new(tail.stdout.take().unwrap());
    for _ in 0..3 {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.contains(&source), "{line}");
    }
    // Nothing more comes: it notices all the same.
    drop(out);
    let ended = eventually("it ends", USUAL, || tail.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
    // A pipe is full after 64 KiB.
    let mut tail =
        agent.command(&["tail", "--json", "--after", "1-0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut client = agent.unix();
    for n in 3..400 {
        client.send_line(&line_of(&source, n, 1000));
    }
    client.wait_ack(397, USUAL);
    let mut kept = tail.stdout.take().unwrap();
    let mut first = [0; 1];
    kept.read_exact(&mut first).unwrap();
    pass(std::time::Duration::from_millis(500));
    assert!(tail.try_wait().unwrap().is_none(), "it waits for the reader");
    kill_process(Pid::from_child(&tail), Signal::INT).unwrap();
    let ended = eventually("it ends", USUAL, || tail.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn what_is_not_configured_or_not_there_is_told() {
    let agent = Agent::prepare(|config| {
        config.kafka(NOWHERE, "events").redis("redis://127.0.0.1:1/");
    });
    for (words, code, part) in [
        (&["tail"][..], 78, "http.listen is not set"),
        (&["tail"], 78, "--from redis, --from streams or --from kafka"),
        (&["tail", "--url", "http://127.0.0.1:1"], 69, "does the agent run, with http.listen?"),
        (&["tail", "--from", "redis"], 75, "cannot connect to 127.0.0.1:1"),
        (&["tail", "--from", "streams"], 78, "name keys by --stream"),
        (&["tail", "--from", "redis", "--source-type", "x"], 64, "--channel"),
        (&["tail", "--offset", "5"], 64, "--offset goes with --from kafka"),
        (&["tail", "--from", "kafka"], 75, "are the brokers running"),
        (&["tail", "--from", "kafka", "--timeout", "500ms"], 75, "no connection within --timeout"),
    ] {
        let output = agent.command(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(part), "{words:?}: {output:?}");
    }
}

/// An agent without Kafka that pings and adds to streams of its own.
fn agent_with_redis(url: &str, site: &str) -> Agent {
    let agent = Agent::start(|config| {
        config
            .kafka(NOWHERE, "nowhere")
            .redis(url)
            .set("redis.mode", "both")
            .set("redis.stream_payload", true);
        config
            .set("redis.stream", format!("{site}:{{type}}"))
            .set("redis.channel", format!("{site}:{{source_id}}"));
    });
    agent.wait_log("Redis link up", USUAL);
    agent
}

#[test]
fn pings_are_heard_and_a_loss_is_told_once() {
    let redis = Private::redis();
    let (site, source) = (unique("site"), unique("s"));
    let agent = agent_with_redis(redis.address(), &site);
    let mut tail = Tail::start(&agent, &["--from", "redis", "--json"]);
    let heard = |number: u64| {
        let before = tail.shown().len();
        // Sent again: what comes before the subscription is heard by nobody.
        eventually("a ping is heard", USUAL, || {
            send(&agent, &source, number..number + 1);
            (tail.shown().len() > before).then_some(())
        });
    };
    heard(0);
    let event = tail.events(1).remove(0);
    assert_eq!(event["channel"], format!("{site}:{source}"));
    assert_eq!((&event["type"], &event["source_id"]), (&"reading".into(), &source.as_str().into()));
    redis.kill();
    tail.wait_said("trying again");
    redis.start();
    tail.wait_said("cannot be had");
    heard(1);
    assert_eq!((tail.said_count("trying again"), tail.said_count("cannot be had")), (1, 1));
    assert_eq!(tail.interrupt().code(), Some(0));
}

fn redis_of(url: &str) -> redis::Connection {
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

#[test]
fn a_group_shares_entries_and_acknowledges_what_was_printed() {
    const EVENTS: u64 = 300;
    let url = &Shared::get().redis;
    let (site, source) = (unique("site"), unique("s"));
    let agent = agent_with_redis(url, &site);
    let stream = format!("{site}:reading");
    let mut connection = redis_of(url);
    let refused = agent.command(&["tail", "--from", "streams", "--group", "web"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    let () = redis::cmd("XGROUP")
        .arg(&["CREATE", &stream, "web", "0", "MKSTREAM"])
        .query(&mut connection)
        .unwrap();
    let words =
        |member: &'static str| ["--from", "streams", "--json", "--group", "web", "--consumer", member];
    let mut members = [Tail::start(&agent, &words("a")), Tail::start(&agent, &words("b"))];
    send(&agent, &source, 0..EVENTS);
    eventually("each entry is shown", USUAL, || {
        let shown: usize = members.iter().map(|member| member.shown().len()).sum();
        (shown as u64 >= EVENTS).then_some(())
    });
    let mut seen: Vec<String> = members.iter().flat_map(|member| ids(&member.events(0))).collect();
    seen.sort_by_key(|id| id.rsplit_once('-').unwrap().1.parse::<u64>().unwrap());
    assert_eq!(seen, wanted(&source, 0..EVENTS), "each once");
    let pending = |connection: &mut redis::Connection| {
        let (pending, ..): (u64, redis::Value, redis::Value, redis::Value) =
            redis::cmd("XPENDING").arg(&[&stream, "web"]).query(connection).unwrap();
        pending
    };
    eventually("all is acknowledged", USUAL, || (pending(&mut connection) == 0).then_some(()));
    members.iter_mut().for_each(|member| assert_eq!(member.interrupt().code(), Some(0)));
    // One that takes few leaves the others to the group, and what it had before comes first.
    send(&agent, &source, EVENTS..EVENTS + 5);
    let () = redis::cmd("XREADGROUP")
        .arg(&["GROUP", "web", "c", "COUNT", "1", "STREAMS", &stream, ">"])
        .query(&mut connection)
        .unwrap();
    let mut few = Tail::start(&agent, &[&words("c")[..], &["--count", "2"]].concat());
    assert_eq!(few.wait_exit().code(), Some(0));
    assert_eq!(ids(&few.events(2)), wanted(&source, EVENTS..EVENTS + 2));
    assert_eq!(pending(&mut connection), 0);
}

#[test]
fn streams_go_on_behind_the_last_entry() {
    let redis = Private::redis();
    let (site, source) = (unique("site"), unique("s"));
    let agent = agent_with_redis(redis.address(), &site);
    send(&agent, &source, 0..5);
    let mut tail = Tail::start(&agent, &["--from", "streams", "--json", "--after", "0"]);
    let events = tail.events(5);
    assert_eq!(ids(&events), wanted(&source, 0..5));
    assert!(events[4]["payload"]["n"] == 4 && events[4]["stream"] == format!("{site}:reading"), "{events:?}");
    // Its connection is cut, and entries come while it is away.
    let mut connection = redis_of(redis.address());
    let () = redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .query(&mut connection)
        .unwrap();
    eventually("the agent is there again", USUAL, || (agent.log_count("Redis link up") == 2).then_some(()));
    send(&agent, &source, 5..9);
    assert_eq!(ids(&tail.events(9)), wanted(&source, 0..9));
    assert_eq!((tail.said_count("trying again"), tail.said_count("missing")), (1, 0));
    assert_eq!(tail.interrupt().code(), Some(0));
    // From a time on.
    let mut recent = Tail::start(&agent, &["--from", "streams", "--json", "--time", "1h", "--count", "9"]);
    assert_eq!(recent.wait_exit().code(), Some(0));
    let mut later = Tail::start(&agent, &["--from", "streams", "--time", "0s", "--timeout", "500ms"]);
    assert_eq!((later.wait_exit().code(), later.shown().len()), (Some(0), 0));
}

#[test]
fn a_topic_is_read_from_a_place_to_an_end() {
    let brokers = &Shared::get().kafka;
    let (topic, source) = (create_topic(brokers, 3), unique("s"));
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic);
    });
    send(&agent, &source, 0..20);
    let records = consume_count(brokers, &topic, 20, USUAL);
    let read = |words: &[&str]| {
        let words = [&["tail", "--from", "kafka", "--json"], words].concat();
        let output = agent.command(&words).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let all = read(&["--offset", "beginning", "--until", "end"]);
    assert_eq!(ids(&all), wanted(&source, 0..20));
    assert!(all.iter().all(|event| event["position"].is_string() && event["offset"].is_u64()), "{all:?}");
    assert_eq!(ids(&read(&["--offset", "-5", "--until", "end"])), wanted(&source, 15..20));
    assert_eq!(read(&["--time", "1h", "--until", "end", "--type", "read*", "--count", "3"]).len(), 3);
    assert!(read(&["--time", "1h", "--until", "end", "--type", "alarm"]).is_empty());
    let partition = all[0]["partition"].to_string();
    let some = read(&["--partition", &partition, "--offset", "7", "--until", "end"]);
    assert_eq!(ids(&some), wanted(&source, 7..20));
    // From the time of a record on.
    let pause = consume_count(brokers, &topic, records.len(), USUAL);
    assert_eq!(pause.len(), 20);
    let before = now_ms();
    eventually("a later millisecond", USUAL, || (now_ms() > before + 1).then_some(()));
    send(&agent, &source, 20..25);
    consume_count(brokers, &topic, 25, USUAL);
    let time = time_of(before + 1);
    assert_eq!(ids(&read(&["--time", &time, "--until", "end"])), wanted(&source, 20..25));
    assert_eq!(ids(&read(&["--offset", "beginning", "--until", &time])), wanted(&source, 0..20));
    for (words, part) in [
        (&["--offset", "900"][..], "has offsets from 0 to"),
        (&["--topic", "nobody-made-this"], "does not exist"),
        (&["--partition", "9"], "no partition 9"),
    ] {
        let output = agent.command(&[&["tail", "--from", "kafka"], words].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(69) && said.contains(part), "{words:?}: {said}");
    }
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap()
}

/// RFC 3339, by the system's own tool.
fn time_of(ms: i64) -> String {
    let at = format!("@{}.{:03}", ms / 1000, ms % 1000);
    let output = Command::new("date").args(["-u", "-d", &at, "+%Y-%m-%dT%H:%M:%S.%3NZ"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn kafka_goes_on_where_it_was_when_the_brokers_are_back() {
    let kafka = Private::kafka();
    let (topic, source) = (create_topic(kafka.address(), 1), unique("s"));
    let agent = Agent::start(|config| {
        config.kafka(kafka.address(), &topic);
    });
    send(&agent, &source, 0..3);
    let mut tail = Tail::start(&agent, &["--from", "kafka", "--json", "--offset", "beginning"]);
    assert_eq!(ids(&tail.events(3)), wanted(&source, 0..3));
    kafka.kill();
    tail.wait_said("trying again");
    send(&agent, &source, 3..6);
    kafka.start();
    assert_eq!(ids(&tail.events(6)), wanted(&source, 0..6));
    tail.wait_said("connected again after ");
    assert_eq!(tail.said_count("trying again"), 1);
    assert_eq!(tail.interrupt().code(), Some(0));
}
