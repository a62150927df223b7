//! The process as its surroundings see it: service manager, log, exit codes.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::agent::{Agent, fieldpost};
use crate::harness::flow::{Pace, Producer, pass};
use crate::harness::kafka::create_topic;
use crate::harness::manager::Manager;
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually, scaled};

fn agent_with_manager(watchdog: Duration) -> (Agent, Manager) {
    let topic = create_topic(&Shared::get().kafka, 1);
    let mut agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
    });
    let manager = Manager::of(&mut agent, watchdog);
    agent.begin();
    (agent, manager)
}

#[test]
fn the_service_manager_is_kept_informed() {
    const WATCHDOG: Duration = Duration::from_secs(2);
    let (mut agent, manager) = agent_with_manager(WATCHDOG);
    assert_eq!(manager.next(USUAL).unwrap().0, "READY=1");
    // Ready means ready: a connection is taken at once.
    let source = unique("s");
    let producer = Producer::start(&agent.socket(), &source, Pace { rate: Some(100), ..Pace::default() });
    let mut beats = vec![Instant::now()];
    let mut status = None;
    // A status line comes each minute.
    while status.is_none() && beats[0].elapsed() < scaled(Duration::from_secs(75)) {
        match manager.next(WATCHDOG * 2).expect("a sign of life within the watchdog's time") {
            (message, at) if message == "WATCHDOG=1" => beats.push(at),
            (message, _) => status = Some(message),
        }
    }
    let longest = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    eprintln!("{} signs of life, the longest silence {longest:?} of {WATCHDOG:?}", beats.len());
    assert!(beats.len() > 20, "{}", beats.len());
    let status = status.expect("a status within the first minute and some");
    let line = status.strip_prefix("STATUS=").unwrap_or_else(|| panic!("{status}"));
    assert!(line.starts_with("in ") && line.contains("kafka up"), "{line}");
    eventually("the log says the same", USUAL, || agent.log_contains(line).then_some(()));
    producer.finish(USUAL);
    agent.term();
    // 5 s for the socket's events, 10 s for Kafka's confirmations, and 24 s for everything else.
    assert_eq!(manager.next_of("STOPPING", USUAL).unwrap(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=39000000");
    assert_eq!(agent.wait_exit(USUAL).code(), Some(0));
}

/// From when the buffer is opened on, a signal is a request to stop in order.
#[test]
fn a_signal_right_at_the_start_stops_in_order() {
    let topic = create_topic(&Shared::get().kafka, 1);
    for _ in 0..5 {
        let mut agent = Agent::spawn(|config| {
            config.shared_kafka(&topic);
        });
        let lock = agent.data_dir().join("buffer/LOCK");
        eventually("the buffer is being opened", USUAL, || lock.exists().then_some(()));
        agent.term();
        let status = agent.wait_exit(USUAL);
        assert_eq!(status.code(), Some(0), "{status}: {:?}", agent.log());
    }
}

/// A process that is stopped gives no sign of life: the watchdog would end it.
#[test]
fn a_process_that_hangs_is_silent() {
    let (mut agent, manager) = agent_with_manager(Duration::from_millis(400));
    assert_eq!(manager.next(USUAL).unwrap().0, "READY=1");
    assert_eq!(manager.next(USUAL).unwrap().0, "WATCHDOG=1");
    agent.signal(rustix::process::Signal::STOP);
    pass(Duration::from_millis(300));
    manager.catch_up();
    assert!(manager.next(Duration::from_secs(1)).is_none());
    agent.signal(rustix::process::Signal::CONT);
    assert_eq!(manager.next(USUAL).unwrap().0, "WATCHDOG=1");
    assert_eq!(agent.stop().code(), Some(0));
}

/// To start again ends no outage.
#[test]
fn an_outage_of_kafka_leaves_the_signs_of_life() {
    let mut agent = Agent::prepare(|config| {
        config.kafka("127.0.0.1:1", "none");
    });
    let manager = Manager::of(&mut agent, Duration::from_millis(400));
    agent.begin();
    let producer =
        Producer::start(&agent.socket(), &unique("s"), Pace { rate: Some(100), ..Pace::default() });
    for _ in 0..10 {
        assert_eq!(manager.next_of("WATCHDOG", Duration::from_millis(800)).unwrap(), "WATCHDOG=1");
    }
    eventually("the outage is noticed", USUAL, || agent.log_contains("Kafka link down").then_some(()));
    assert_eq!(manager.next_of("WATCHDOG", Duration::from_millis(800)).unwrap(), "WATCHDOG=1");
    producer.finish(USUAL);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn every_log_line_is_json_when_asked_for() {
    let topic = create_topic(&Shared::get().kafka, 1);
    let mut agent = Agent::start(|config| {
        config.shared_kafka(&topic).set("log.format", "json").set("log.level", "debug");
    });
    let mut client = agent.unix();
    client.send_line("nonsense \u{1b}[31m \"quoted\"");
    client.wait_refused(USUAL);
    drop(client);
    let producer = Producer::start(&agent.socket(), &unique("s"), Pace { count: 100, ..Pace::default() });
    producer.finish(USUAL);
    agent.wait_log("Kafka link up", USUAL);
    assert_eq!(agent.stop().code(), Some(0));
    let lines: Vec<Value> = agent
        .log()
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|problem| panic!("{problem}: {line}")))
        .collect();
    for line in &lines {
        assert!(line["timestamp"].is_string() && line["target"].is_string(), "{line}");
        assert!(["DEBUG", "INFO", "WARN", "ERROR"].contains(&line["level"].as_str().unwrap()), "{line}");
    }
    let messages: Vec<String> = lines.iter().map(Value::to_string).collect();
    for wanted in ["buffer open", "ready", "in 100 (mqtt 0, unix 100)", "stopped"] {
        assert!(messages.iter().any(|line| line.contains(wanted)), "{wanted}");
    }
    assert!(!messages.iter().any(|line| line.contains("nonsense")), "payloads are never logged");
}

fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = fieldpost().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn exit_codes_say_what_to_do() {
    let (code, _, said) = output(&["rum"]);
    assert_eq!(code, Some(64));
    assert!(said.contains("rum"), "{said}");
    assert_eq!(output(&[]).0, Some(64));
    assert_eq!(output(&["run", "--wrong"]).0, Some(64));
    let (code, said, _) = output(&["--version"]);
    assert_eq!((code, said.trim()), (Some(0), concat!("fieldpost ", env!("CARGO_PKG_VERSION"))));
    let (code, _, said) = output(&["run", "--config", "/nonexistent/fieldpost.toml"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("/nonexistent/fieldpost.toml"), "{said}");
}

/// Every mistake at once, each with its key; nothing runs.
#[test]
fn bash_completes_commands_and_options() {
    let (code, script, _) = output(&["completions", "bash"]);
    assert_eq!(code, Some(0));
    for (words, wanted) in [
        ("fieldpost buf", "buffer"),
        ("fieldpost dead-letter re", "retry"),
        ("fieldpost check --off", "--offline"),
    ] {
        let asks = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _fieldpost fieldpost \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[*]}}\""
        );
        let bash = std::process::Command::new("bash").args(["-c", &asks]).output().expect("bash is there");
        assert_eq!(String::from_utf8_lossy(&bash.stdout).trim(), wanted, "{words}: {bash:?}");
    }
}

#[test]
fn a_bad_configuration_is_refused_whole() {
    let mut agent = Agent::spawn(|config| {
        config.kafka("127.0.0.1:9", "a topic").set("buffer.max_bytes", "1 KiB").set("kafka.topik", "x");
        config.set("unix.mode", "rw");
    });
    assert_eq!(agent.wait_exit(USUAL).code(), Some(78));
    let said = agent.log().join("\n");
    for wanted in ["kafka.topic", "buffer.max_bytes", "kafka.topik", "unix.mode", "4 MiB"] {
        assert!(said.contains(wanted), "{wanted} is missing in: {said}");
    }
    assert!(!agent.data_dir().exists() && !agent.socket().exists());

    // Without Kafka there is nowhere to go.
    let mut agent = Agent::spawn(|_| {});
    assert_eq!(agent.wait_exit(USUAL).code(), Some(78));
    assert!(agent.log_contains("kafka.brokers"), "{:?}", agent.log());

    // A folder that cannot be made is another matter: the disk, not the file.
    let mut agent = Agent::spawn(|config| {
        config.kafka("127.0.0.1:9", "t").set("agent.data_dir", "/proc/nowhere");
    });
    assert_eq!(agent.wait_exit(USUAL).code(), Some(74));
    assert!(agent.log_contains("/proc/nowhere"), "{:?}", agent.log());
}

#[test]
#[cfg(target_env = "gnu")]
fn the_allocator_is_told_to_keep_its_threshold() {
    let agent = Agent::start(|config| {
        config.kafka("127.0.0.1:1", "events");
    });
    let pid = agent.pid().as_raw_nonzero();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let has_setting =
        environment.split(|byte| *byte == 0).any(|line| line == b"MALLOC_MMAP_THRESHOLD_=262144");
    assert!(has_setting, "read by glibc before the program begins");
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(arguments.iter().filter(|byte| **byte == 0).count(), 4, "the arguments are the same");
}
