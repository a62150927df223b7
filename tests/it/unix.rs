//! The Unix socket, from a line written by a producer to the record in Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use crate::harness::agent::Agent;
use crate::harness::flow::{self, Pace, Producer, kept_by_position, line_of};
use crate::harness::kafka::{Record, consume_count, create_topic, create_topic_named, read_all};
use crate::harness::services::Shared;
use crate::harness::unix::{Reply, UnixClient};
use crate::harness::wait::{USUAL, eventually, scaled};
use crate::harness::{seed, unique};

/// An agent with a topic of its own on the shared Kafka.
fn agent_and_topic(partitions: i32) -> (Agent, String) {
    let topic = create_topic(&Shared::get().kafka, partitions);
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic);
    });
    (agent, topic)
}

fn records(topic: &str, count: usize) -> Vec<Record> {
    consume_count(&Shared::get().kafka, topic, count, USUAL)
}

fn boot_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec * 1_000_000 + time.tv_nsec / 1000).unwrap()
}

fn wall_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn text_of(record: &Record) -> &str {
    std::str::from_utf8(&record.payload).unwrap()
}

/// A line, and what follows `"id":…` in its envelope but the timestamp.
struct Case {
    line: &'static str,
    id: Option<&'static str>,
    names: [&'static str; 3],
    timestamp: Option<&'static str>,
    payload: &'static str,
}

const CASES: [Case; 6] = [
    Case {
        line: r#"{"id":"e-1","type":"reading","source_type":"thermometer","source_id":"t-1","timestamp":"2026-03-01T12:00:00.5+01:00","payload":{ "celsius" :  21.50 ,"ü":"日本 \u00e9","big":1e400,"n":-0.0 }}"#,
        id: Some("e-1"),
        names: ["reading", "thermometer", "t-1"],
        timestamp: Some("2026-03-01T12:00:00.5+01:00"),
        payload: r#""payload":{ "celsius" :  21.50 ,"ü":"日本 \u00e9","big":1e400,"n":-0.0 }"#,
    },
    Case {
        line: r#"{"payload":null,"source_id":"t-2","source_type":"thermometer","type":"alarm"}"#,
        id: None,
        names: ["alarm", "thermometer", "t-2"],
        timestamp: None,
        payload: r#""payload":null"#,
    },
    Case {
        line: r#"{"id":null,"type":"image","source_type":"camera","source_id":"c/1","timestamp":null,"payload_base64":"AP8"}"#,
        id: None,
        names: ["image", "camera", "c/1"],
        timestamp: None,
        payload: r#""payload_base64":"AP8=""#,
    },
    Case {
        line: r#"{"id":"é \"q\" \\","type":"t","source_type":"s","source_id":"日本","timestamp":"2026-03-01T12:00:00Z","payload":12345678901234567890123.0e-5}"#,
        id: Some("é \"q\" \\"),
        names: ["t", "s", "日本"],
        timestamp: Some("2026-03-01T12:00:00Z"),
        payload: r#""payload":12345678901234567890123.0e-5"#,
    },
    Case {
        line: r#"{"id":"e-5","type":"t","source_type":"s","source_id":"1","payload":"\u0000 \/ \ud83d\ude00 😀"}"#,
        id: Some("e-5"),
        names: ["t", "s", "1"],
        timestamp: None,
        payload: r#""payload":"\u0000 \/ \ud83d\ude00 😀""#,
    },
    Case {
        line: r#"{"id":"e-6","type":"t","source_type":"s","source_id":"1","payload_base64":""}"#,
        id: Some("e-6"),
        names: ["t", "s", "1"],
        timestamp: None,
        payload: r#""payload_base64":"""#,
    },
];

/// The header names of a record, in order.
const HEADERS: [&str; 9] = [
    "fieldpost-id",
    "fieldpost-timestamp",
    "fieldpost-agent",
    "fieldpost-log",
    "fieldpost-epoch",
    "fieldpost-seq",
    "fieldpost-boot",
    "fieldpost-boot-us",
    "fieldpost-clock",
];

/// The moments around an admission: wall clock in milliseconds, time since boot in microseconds.
#[derive(Clone, Copy)]
struct Around {
    wall_ms: (i64, i64),
    boot_us: (u64, u64),
}

fn assert_record(case: &Case, record: &Record, around: Around) {
    let headers: Vec<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(headers, HEADERS);
    let header = |name| record.header(name).unwrap();
    let id = header("fieldpost-id");
    match case.id {
        Some(wanted) => assert_eq!(id, wanted),
        None => assert_eq!(Uuid::parse_str(id).unwrap().get_version_num(), 7, "{id}"),
    }
    let timestamp = header("fieldpost-timestamp");
    match case.timestamp {
        Some(wanted) => assert_eq!(timestamp, wanted),
        None => {
            let ms = timestamp.parse::<jiff::Timestamp>().unwrap().as_millisecond();
            assert!(ms >= around.wall_ms.0 && ms <= around.wall_ms.1, "{timestamp}");
        }
    }
    let json = |text: &str| serde_json::to_string(text).unwrap();
    let [kind, source_type, source_id] = case.names;
    let envelope = format!(
        r#"{{"version":1,"id":{},"type":{},"source_type":{},"source_id":{},"timestamp":"{timestamp}",{}}}"#,
        json(id),
        json(kind),
        json(source_type),
        json(source_id),
        case.payload
    );
    assert_eq!(text_of(record), envelope);
    assert_eq!(record.key_text(), source_id);
    let since_boot: u64 = header("fieldpost-boot-us").parse().unwrap();
    assert!(since_boot >= around.boot_us.0 && since_boot <= around.boot_us.1, "{since_boot}");
    assert!(["trusted", "untrusted"].contains(&header("fieldpost-clock")));
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(header("fieldpost-boot"), boot.trim());
    let sent = record.timestamp.unwrap();
    assert!(
        sent >= around.wall_ms.0 && sent <= around.wall_ms.1,
        "the record's time is that of sending: {sent}"
    );
}

/// The numbers in the records' position headers, sorted by seq.
fn positions(records: &[Record]) -> Vec<(u64, u64)> {
    let number = |record: &Record, name| record.header(name).unwrap().parse::<u64>().unwrap();
    let mut found: Vec<_> = records
        .iter()
        .map(|record| (number(record, "fieldpost-epoch"), number(record, "fieldpost-seq")))
        .collect();
    found.sort_unstable_by_key(|(_, seq)| *seq);
    found
}

#[test]
fn every_field_reaches_kafka_as_it_was_written() {
    let (mut agent, topic) = agent_and_topic(1);
    let mut client = agent.unix();
    let before = (wall_ms(), boot_us());
    for case in &CASES {
        client.send_line(case.line);
    }
    client.wait_ack(CASES.len() as u64, USUAL);
    let first = records(&topic, CASES.len());
    let around = Around { wall_ms: (before.0, wall_ms()), boot_us: (before.1, boot_us()) };
    for (case, record) in CASES.iter().zip(&first) {
        assert_record(case, record, around);
    }
    assert_eq!(positions(&first), (1..=6).map(|seq| (1, seq)).collect::<Vec<_>>());

    // The next start: another epoch, and the sequence goes on.
    agent.restart();
    let mut client = agent.unix();
    client.send_line(CASES[0].line);
    client.wait_ack(1, USUAL);
    let all = records(&topic, CASES.len() + 1);
    assert_eq!(positions(&all).last(), Some(&(2, 7)));
    let identity = std::fs::read(agent.data_dir().join("buffer/IDENTITY")).unwrap();
    let identity: serde_json::Value = serde_json::from_slice(&identity).unwrap();
    let config = std::fs::read_to_string(agent.config_file()).unwrap();
    for record in &all {
        assert_eq!(record.header("fieldpost-log"), identity["logs"][0]["log"].as_str());
        assert!(config.contains(&format!("id = \"{}\"", record.header("fieldpost-agent").unwrap())));
    }
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(read_all(&Shared::get().kafka, &topic).len(), CASES.len() + 1, "nothing is there twice");
}

#[test]
fn records_can_carry_the_time_of_the_event() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("kafka.timestamp", "event");
    });
    let mut client = agent.unix();
    let before = wall_ms();
    client.send_line(CASES[0].line);
    client.send_line(CASES[1].line);
    client.wait_ack(2, USUAL);
    let admitted = wall_ms();
    let found = records(&topic, 2);
    assert_eq!(found[0].timestamp, Some(1_772_362_800_500));
    let received = found[1].timestamp.unwrap();
    assert!(received >= before && received <= admitted, "{received}");
    let header: jiff::Timestamp = found[1].header("fieldpost-timestamp").unwrap().parse().unwrap();
    assert_eq!(header.as_millisecond(), received);
}

#[test]
fn the_source_type_names_the_topic() {
    let kafka = &Shared::get().kafka;
    let prefix = unique("by-type");
    for kind in ["meter", "caf__1"] {
        create_topic_named(kafka, &format!("{prefix}.{kind}"), 1, &[]);
    }
    let agent = Agent::start(|config| {
        config.shared_kafka(&format!("{prefix}.{{source_type}}"));
    });
    let mut client = agent.unix();
    for source_type in ["meter", "café/1", "meter"] {
        client.send(
            &serde_json::json!({"type": "t", "source_type": source_type, "source_id": "1", "payload": 1}),
        );
    }
    client.wait_ack(3, USUAL);
    assert_eq!(records(&format!("{prefix}.meter"), 2).len(), 2);
    // What Kafka does not allow in a name became `_`, one for each character.
    let other = records(&format!("{prefix}.caf__1"), 1);
    assert_eq!(other[0].json()["source_type"], "café/1");
}

#[test]
fn every_compression_is_read_back() {
    for compression in ["lz4", "zstd", "none"] {
        let topic = create_topic(&Shared::get().kafka, 1);
        let agent = Agent::start(|config| {
            config.shared_kafka(&topic).set("kafka.compression", compression);
        });
        let source = unique(compression);
        let producer =
            Producer::start(&agent.socket(), &source, Pace { padding: 200, count: 500, ..Pace::default() });
        producer.finish(USUAL);
        let kept = kept_by_position(&records(&topic, 500));
        flow::assert_whole_and_in_order(&kept, &BTreeMap::from([(source, 500)]));
    }
}

#[test]
fn each_source_keeps_its_order_and_positions_only_grow() {
    const CONNECTIONS: usize = 10;
    const SOURCES: usize = 10;
    const EVENTS: u64 = 100;
    let (mut agent, topic) = agent_and_topic(6);
    let sources: Vec<Vec<String>> =
        (0..CONNECTIONS).map(|c| (0..SOURCES).map(|s| unique(&format!("s{c}.{s}"))).collect()).collect();
    std::thread::scope(|scope| {
        for mine in &sources {
            let mut client = agent.unix();
            scope.spawn(move || {
                for n in 0..EVENTS {
                    for source in mine {
                        client.send_line(&line_of(source, n, 0));
                    }
                }
                client.wait_ack(EVENTS * SOURCES as u64, USUAL);
            });
        }
    });
    let total = CONNECTIONS * SOURCES * usize::try_from(EVENTS).unwrap();
    records(&topic, total);
    assert_eq!(agent.stop().code(), Some(0));
    let found = read_all(&Shared::get().kafka, &topic);
    let kept = kept_by_position(&found);
    assert_eq!((found.len(), kept.len()), (total, total), "no duplicates without a crash");
    flow::assert_no_duplicates(&kept);
    let acked = sources.into_iter().flatten().map(|source| (source, EVENTS)).collect();
    flow::assert_whole_and_in_order(&kept, &acked);
    let seqs: Vec<u64> = positions(&found).into_iter().map(|(_, seq)| seq).collect();
    assert_eq!(seqs, (1..=total as u64).collect::<Vec<_>>(), "gapless over all partitions");
}

#[test]
fn each_bad_line_is_named_and_the_good_ones_are_taken() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("limits.max_event_bytes", "2 KiB");
    });
    let with = |field: &str| format!(r#"{{"type":"t","source_type":"s","source_id":"1",{field}}}"#);
    let good = with(r#""payload":1"#);
    let lines = [
        (good.clone(), ""),
        ("not json".into(), "invalid"),
        (with(r#""id":"x""#), "invalid"),
        (String::new(), ""),
        (with(&format!(r#""payload":"{}""#, "x".repeat(3000))), "too_large"),
        (with(&format!(r#""payload":"{}""#, "x".repeat(20_000))), "too_large"),
        (good.clone() + "\r", ""),
        (with(r#""payload":1,"paylod":2"#), "invalid"),
        (with(r#""payload_base64":"?""#), "invalid"),
        (with(r#""payload":1,"timestamp":"2026-13-01T00:00:00Z""#), "invalid"),
        (with(r#""payload":1,"id":"a\u0007""#), "invalid"),
        (with(r#""payload":1,"id":"""#), "invalid"),
        (good.clone(), ""),
    ];
    let wanted: Vec<(u64, &str)> = (1..)
        .zip(&lines)
        .filter(|(_, (_, code))| !code.is_empty())
        .map(|(k, (_, code))| (k, *code))
        .collect();
    let mut client = agent.unix();
    for (line, _) in &lines {
        client.send_line(line);
    }
    client.try_send_raw(b"{\"half").unwrap();
    client.end_sending();
    assert!(client.is_closed(USUAL));
    assert_eq!(client.acked(), 3);
    let mut refused: Vec<(u64, &str)> =
        client.refused().iter().map(|refusal| (refusal.line.unwrap(), refusal.code.as_str())).collect();
    refused.sort_unstable();
    assert_eq!(refused, [&wanted[..], &[(14, "invalid")]].concat());
    let about = |line| &client.refused().iter().find(|refusal| refusal.line == Some(line)).unwrap().error;
    assert!(about(3).contains("payload"), "{}", about(3));
    assert!(about(5).contains("limits.max_event_bytes allows 2048"), "{}", about(5));
    assert!(about(6).contains("limits.max_event_bytes"), "{}", about(6));
    assert!(about(8).contains("paylod"), "{}", about(8));
    assert!(about(14).contains("no line end"), "{}", about(14));
    assert_eq!(records(&topic, 3).len(), 3);
}

/// A client that strikes out the lines named by errors knows at every ack which of its lines are durable.
#[test]
fn errors_come_before_the_acks_that_cover_later_lines() {
    const LINES: usize = 6000;
    let seed = seed("errors_come_before_the_acks");
    let mut random = fastrand::Rng::with_seed(seed);
    let (agent, topic) = agent_and_topic(1);
    let is_good: Vec<bool> = (0..LINES).map(|_| !random.u8(..).is_multiple_of(4)).collect();
    let source = unique("s");
    let text: String = (0_u64..)
        .zip(&is_good)
        .map(|(n, is_good)| if *is_good { line_of(&source, n, 0) + "\n" } else { "{}\n".to_owned() })
        .collect();
    let good = is_good.iter().filter(|is_good| **is_good).count() as u64;
    let mut client = agent.unix();
    let mut struck = BTreeSet::new();
    let (mut line, mut acked) = (0_usize, 0_u64);
    std::thread::scope(|scope| {
        let mut stream = UnixStream::connect(agent.socket()).unwrap();
        // Two at once, so that acks and errors of another connection are in between on the agent's side.
        scope.spawn(|| {
            for part in text.as_bytes().chunks(777) {
                client.try_send_raw(part).unwrap();
                // Replies are read all along: an unread pile would be summed up.
                while let Some(reply) = client.read_reply(Duration::from_millis(1)) {
                    check(reply, &is_good, &mut struck, &mut line, &mut acked);
                }
            }
            while acked < good {
                let reply = client.read_reply(USUAL).expect("all good lines are acknowledged");
                check(reply, &is_good, &mut struck, &mut line, &mut acked);
            }
        });
        stream.write_all(&b"nonsense\n".repeat(500)).unwrap();
    });
    assert_eq!(struck.len() as u64 + good, LINES as u64);
    assert_eq!(records(&topic, usize::try_from(good).unwrap()).len() as u64, good);
}

/// `line`: how far the acks have come, counted in lines.
fn check(reply: Reply, is_good: &[bool], struck: &mut BTreeSet<usize>, line: &mut usize, acked: &mut u64) {
    match reply {
        Reply::Refused(refusal) => {
            let number = usize::try_from(refusal.line.unwrap()).unwrap();
            assert_eq!((refusal.lines, refusal.code.as_str()), (None, "invalid"));
            assert!(!is_good[number - 1], "line {number} is good");
            assert!(struck.insert(number), "line {number} is named twice");
        }
        Reply::Ack { ack } => {
            while *acked < ack {
                if is_good[*line] {
                    *acked += 1;
                } else {
                    assert!(struck.contains(&(*line + 1)), "line {} is covered, not named", *line + 1);
                }
                *line += 1;
            }
        }
    }
}

/// One event after the other, each waiting for its ack, while others misbehave.
fn well_behaved(mut client: UnixClient, source: &str, is_over: impl Fn(usize) -> bool) -> Vec<Duration> {
    let mut waits = Vec::new();
    while !is_over(waits.len()) {
        let begun = Instant::now();
        client.send_line(&line_of(source, waits.len() as u64, 0));
        client.wait_ack(waits.len() as u64 + 1, USUAL);
        waits.push(begun.elapsed());
    }
    waits
}

fn assert_quick(what: &str, mut waits: Vec<Duration>) {
    waits.sort_unstable();
    let (p50, p99, max) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100], waits[waits.len() - 1]);
    eprintln!("{what}: {} acks of the good client, p50 {p50:?}, p99 {p99:?}, longest {max:?}", waits.len());
    assert!(max < scaled(Duration::from_secs(5)), "{max:?}");
}

#[test]
fn peers_that_misbehave_harm_nobody() {
    const UNREAD: u64 = 50_000;
    const LONG: usize = 200 << 20;
    let (agent, topic) = agent_and_topic(3);
    let (good, unread) = (unique("good"), unique("unread"));
    let mut half = UnixStream::connect(agent.socket()).unwrap();
    half.write_all(br#"{"type":"t","source_type":"#).unwrap();
    let rss_before = agent.rss_kb();
    let waits = std::thread::scope(|scope| {
        let (agent, good, unread) = (&agent, &good, &unread);
        let bad = [
            scope.spawn(move || {
                let mut stream = UnixStream::connect(agent.socket()).unwrap();
                stream.set_write_timeout(Some(scaled(USUAL))).unwrap();
                for n in 0..UNREAD {
                    let wrong = if n.is_multiple_of(2) { "wrong\n" } else { "" };
                    stream.write_all(format!("{}\n{wrong}", line_of(unread, n, 0)).as_bytes()).unwrap();
                }
            }),
            scope.spawn(move || {
                let begun = Instant::now();
                let mut client = agent.unix();
                let piece = vec![b'x'; 1 << 20];
                let mut rss = 0;
                for _ in 0..LONG / piece.len() {
                    client.try_send_raw(&piece).unwrap();
                    rss = rss.max(agent.rss_kb());
                }
                client.send_line("");
                let refusal = client.wait_refused(USUAL);
                assert_eq!((refusal.code.as_str(), refusal.line), ("too_large", Some(1)));
                eprintln!(
                    "a line of {LONG} bytes in {:?}, memory {rss_before} -> {rss} KiB",
                    begun.elapsed()
                );
                assert!(rss < rss_before + 64 * 1024, "{rss_before} -> {rss} KiB");
                // The connection goes on after it.
                client.send_line(&line_of("after-long", 0, 0));
                client.wait_ack(1, USUAL);
            }),
            scope.spawn(move || {
                for round in 0..100 {
                    let mut stream = UnixStream::connect(agent.socket()).unwrap();
                    let text = (line_of("abrupt", round, 0) + "\n").repeat(20);
                    stream.write_all(&text.as_bytes()[..text.len() - 7]).unwrap();
                    // Gone without reading a word, in the middle of a line.
                    drop(stream);
                }
            }),
        ];
        let client = agent.unix();
        let waits = scope.spawn(move || {
            well_behaved(client, good, |acks| acks >= 300 && bad.iter().all(|peer| peer.is_finished()))
        });
        waits.join().unwrap()
    });
    let count = waits.len() as u64;
    assert_quick("misbehaving peers", waits);
    // What a peer that never reads has sent is taken all the same, and a silent half line is still open.
    half.write_all(br#""s","source_id":"half","payload":{"n":0},"id":"half-0"}"#).unwrap();
    half.write_all(b"\n").unwrap();
    let mut answer = [0; 10];
    half.set_read_timeout(Some(scaled(USUAL))).unwrap();
    half.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"{\"ack\":1}\n");
    eventually("everything is in Kafka", USUAL * 3, || {
        let found = read_all(&Shared::get().kafka, &topic);
        let of = |source: &str| found.iter().filter(|record| record.key_text() == source).count() as u64;
        (of(&good) == count && of(&unread) == UNREAD && of("half") == 1 && of("after-long") == 1)
            .then_some(())
    });
    assert!(agent.rss_kb() < rss_before + 64 * 1024, "{} KiB", agent.rss_kb());
}

#[test]
fn a_connection_above_the_limit_is_told_so() {
    const LIMIT: usize = 256;
    const TRIED: usize = 300;
    let (agent, _topic) = agent_and_topic(1);
    let mut clients: Vec<UnixClient> = (0..TRIED).map(|_| agent.unix()).collect();
    let mut busy = 0;
    for (n, client) in clients.iter_mut().enumerate() {
        // One that is turned away may be closed before it writes; its answer is there all the same.
        let _closed = client.try_send_raw((line_of("many", n as u64, 0) + "\n").as_bytes());
        match client.read_reply(USUAL).expect("each one is answered") {
            Reply::Ack { ack } => assert_eq!(ack, 1),
            Reply::Refused(refusal) => {
                assert_eq!((refusal.code.as_str(), refusal.line), ("busy", None));
                assert!(refusal.error.contains("unix.max_connections allows 256"), "{}", refusal.error);
                assert!(client.is_closed(USUAL));
                busy += 1;
            }
        }
    }
    assert_eq!(busy, TRIED - LIMIT);
    // A place that becomes free is given away again.
    drop(clients);
    eventually("a new connection is served", USUAL, || {
        let mut client = agent.unix();
        client.try_send_raw((line_of("late", 0, 0) + "\n").as_bytes()).ok()?;
        matches!(client.read_reply(USUAL)?, Reply::Ack { ack: 1 }).then_some(())
    });
}

/// Bytes that are no event, or an event with a few bytes changed; never with a line end inside.
fn garbage(random: &mut fastrand::Rng, n: u64) -> Vec<u8> {
    let mut line = match random.u8(..4) {
        0 => (0..random.usize(1..300)).map(|_| random.u8(..)).collect(),
        1 => [&b"[{\""[..], b"{\"a\":", b"[[", b"\"", b"{}"][random.usize(..5)].repeat(random.usize(1..2000)),
        _ => line_of("mutant", n, random.usize(..50)).into_bytes(),
    };
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..line.len());
        match random.u8(..4) {
            0 => line[at] = random.u8(..),
            1 => line.truncate(at.max(1)),
            2 => line.insert(at, *random.choice(b"\"{}[]:,\\\x00\xff0e-").unwrap()),
            _ => line.extend_from_within(at..),
        }
    }
    for byte in &mut line {
        if *byte == b'\n' || byte.is_ascii_whitespace() {
            *byte = b'?';
        }
    }
    line
}

#[test]
fn nonsense_by_the_thousand_is_refused_and_good_events_arrive() {
    const ROUNDS: u64 = 150;
    const BAD: usize = 40;
    let seed = seed("nonsense_by_the_thousand");
    let mut random = fastrand::Rng::with_seed(seed);
    let (agent, topic) = agent_and_topic(1);
    let source = unique("good");
    let mut client = agent.unix();
    for n in 0..ROUNDS {
        let mut text: Vec<u8> = (line_of(&source, n, 0) + "\n").into_bytes();
        for _ in 0..BAD {
            text.extend(garbage(&mut random, n));
            text.push(b'\n');
        }
        client.try_send_raw(&text).unwrap();
        let answered = (n + 1) * (1 + BAD as u64);
        eventually("every line is answered", USUAL, || {
            while client.read_reply(Duration::from_millis(1)).is_some() {}
            (client.acked() + client.refused().len() as u64 == answered).then_some(())
        });
    }
    assert!(client.refused().iter().all(|refusal| refusal.lines.is_none()));
    assert!(client.refused().len() > 3000, "{}", client.refused().len());
    let total = usize::try_from(client.acked()).unwrap();
    let found = records(&topic, total);
    let good = found.iter().filter(|record| record.key_text() == source).count() as u64;
    assert_eq!(good, ROUNDS);
    assert!(!agent.log_contains("panic"));
}

#[test]
fn the_socket_has_its_mode_and_survives_a_crash() {
    let mut agent = Agent::start(|config| {
        config.kafka("127.0.0.1:9", "nowhere").set("unix.mode", "0640");
    });
    let mode = |agent: &Agent| std::fs::metadata(agent.socket()).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&agent), 0o640);
    agent.kill9();
    assert!(agent.socket().exists(), "a crash leaves the file behind");
    agent.reconfigure(|config| {
        config.set("unix.mode", "0600");
    });
    agent.restart();
    assert_eq!(mode(&agent), 0o600);
    agent.unix().send_line(&line_of("x", 0, 0));
    // A second agent on the same socket, with a folder of its own.
    let socket = agent.socket();
    let mut second = Agent::spawn(|config| {
        config.kafka("127.0.0.1:9", "nowhere").set("unix.path", socket.to_str().unwrap());
    });
    assert_eq!(second.wait_exit(USUAL).code(), Some(74));
    let said = second.log().join("\n");
    assert!(said.contains(&format!("another process listens on {}", socket.display())), "{said}");
    assert!(said.contains("unix.path"), "{said}");
    let mut client = agent.unix();
    client.send_line(&line_of("x", 1, 0));
    client.wait_ack(1, USUAL);
    assert_eq!(agent.stop().code(), Some(0));
    assert!(!socket.exists(), "an orderly stop removes the file");
}

#[test]
fn a_socket_of_the_service_manager_is_taken() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let mut agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
    });
    let socket = agent.home().join("activated.sock");
    let path = socket.to_str().unwrap().to_owned();
    // The agent's own path would be another one.
    let own = agent.socket();
    agent.reconfigure(|config| {
        config.wrapper(&["systemd-socket-activate", "--listen", &path]);
    });
    agent.begin();
    eventually("the manager listens", USUAL, || socket.exists().then_some(()));
    let mut client = eventually("it connects", USUAL, || UnixClient::connect(&socket).ok());
    client.send_line(&line_of("activated", 0, 0));
    client.wait_ack(1, USUAL);
    agent.wait_log("inherited=true", USUAL);
    assert!(!own.exists());
    assert_eq!(records(&topic, 1)[0].key_text(), "activated");
    assert_eq!(agent.stop().code(), Some(0));
    assert!(socket.exists(), "its file belongs to the manager");
}

/// A producer that connects would wait for ever, and nobody would know why.
#[test]
fn a_socket_of_the_service_manager_that_nobody_serves_is_named() {
    let mut agent = Agent::prepare(|config| {
        config.kafka("127.0.0.1:9", "nowhere").unset("unix.path");
    });
    let socket = agent.home().join("activated.sock");
    let path = socket.to_str().unwrap().to_owned();
    agent.reconfigure(|config| {
        config.wrapper(&["systemd-socket-activate", "--listen", &path]);
    });
    agent.begin();
    eventually("the manager listens", USUAL, || socket.exists().then_some(()));
    let _client = eventually("it connects", USUAL, || UnixClient::connect(&socket).ok());
    let line = agent.wait_log("handed over a socket", USUAL);
    assert!(line.contains("WARN") && line.contains("unix.path"), "{line}");
    agent.wait_log("ready", USUAL);
    assert_eq!(agent.stop().code(), Some(0));
}
