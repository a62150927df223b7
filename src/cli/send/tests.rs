//! `send` against sockets that answer as an agent does, or not.

use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use clap::Parser;
use serde_json::{Value, json};

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    send: Send,
}

fn parse(args: &[&str]) -> Result<Send, clap::Error> {
    Cli::try_parse_from(std::iter::once("send").chain(args.iter().copied())).map(|cli| cli.send)
}

const ONE: [&str; 6] = ["--type", "t", "--source-type", "s", "--source-id", "1"];

fn line(args: &[&str]) -> Value {
    let send = parse(&[&ONE[..], args].concat()).unwrap();
    let line = send.event.line().unwrap().unwrap();
    assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
    // What the agent reads is what was meant.
    crate::ingest::form::parse_event(line.strip_suffix(b"\n").unwrap()).unwrap();
    serde_json::from_slice(&line).unwrap()
}

#[test]
fn an_event_is_put_together_from_options() {
    assert_eq!(
        line(&["--payload", "{\"a\":\n\r [1]}", "--id", "e", "--timestamp", "2026-03-01T12:00:00Z"]),
        json!({"id": "e", "type": "t", "source_type": "s", "source_id": "1",
               "timestamp": "2026-03-01T12:00:00Z", "payload": {"a": [1]}})
    );
    assert_eq!(line(&["--payload", "1.50"])["payload"], 1.5);
    assert_eq!(line(&["--payload-base64", "AP8="])["payload_base64"], "AP8=");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, [0, 255]).unwrap();
    assert_eq!(line(&["--payload-file", file.path().to_str().unwrap()])["payload_base64"], "AP8=");
}

#[test]
fn wrong_use_is_refused() {
    for args in [
        &["--type", "t"][..],
        &["--source-id", "1"],
        &["--payload", "1"],
        &ONE,
        &[&ONE[..], &["--payload", "1", "--payload-base64", "AA"]].concat(),
        &[&ONE[..], &["--payload", "1", "--file", "x"]].concat(),
        &["--window", "0"],
        &["--timeout", "0"],
    ] {
        parse(args).expect_err(&args.join(" "));
    }
    parse(&[]).unwrap();
    parse(&["--file", "x", "--json"]).unwrap();
    let error = parse(&[&ONE[..], &["--payload", "on"]].concat()).unwrap().event.line().unwrap_err();
    assert_eq!(error.exit_code(), exit::USAGE);
    assert!(error.to_string().contains("needs its quotes"), "{error}");
}

#[test]
fn the_help_shows_how_to_use_it() {
    let help = parse(&["--help"]).unwrap_err().to_string();
    for part in ["Examples:", "--payload '{\"celsius\":21.5}'", "Exit codes:", "--window"] {
        assert!(help.contains(part), "{part} in {help}");
    }
}

/// Sends `input` to an agent that `agent` plays.
fn delivered(input: &str, args: &[&str], agent: impl FnOnce(UnixStream) + std::marker::Send) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let file = dir.path().join("input");
    std::fs::write(&file, input).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let places = ["--socket", path.to_str().unwrap(), "--file", file.to_str().unwrap()];
    let send = parse(&[&places[..], args].concat()).unwrap();
    thread::scope(|threads| {
        threads.spawn(|| agent(listener.accept().unwrap().0));
        send.deliver().unwrap()
    })
}

/// Reads lines and answers with what `answer` makes of their number and text.
fn play(stream: UnixStream, mut answer: impl FnMut(u64, &str) -> Option<String>) {
    let mut out = stream.try_clone().unwrap();
    for (line, number) in BufReader::new(stream).lines().zip(1..) {
        if let Some(answer) = answer(number, &line.unwrap()) {
            out.write_all(answer.as_bytes()).unwrap();
        }
    }
}

#[test]
fn success_is_every_event_acknowledged() {
    let input: String = (1..=5000).map(|n| format!("{n}\n\n")).collect();
    let outcome = delivered(&input, &["--window", "7"], |stream| {
        let mut taken = 0;
        play(stream, |_, text| {
            taken += u64::from(!text.is_empty());
            (!text.is_empty()).then(|| format!("{{\"ack\":{taken}}}\n"))
        });
    });
    assert_eq!((outcome.ledger.acknowledged, outcome.ledger.sent, outcome.exit_code()), (5000, 5000, 0));
}

#[test]
fn the_window_bounds_what_is_sent_ahead() {
    let input: String = (1..=100).map(|n| format!("{n}\n")).collect();
    let outcome = delivered(&input, &["--window", "10"], |stream| {
        play(stream, |number, _| (number % 10 == 0).then(|| format!("{{\"ack\":{number}}}\n")));
    });
    // Were the window larger, nothing would show; were it smaller, this would wait for the time-out.
    assert_eq!(outcome.exit_code(), 0);
    let outcome = delivered(&input, &["--window", "9", "--timeout", "1"], |stream| {
        play(stream, |number, _| (number % 10 == 0).then(|| format!("{{\"ack\":{number}}}\n")));
    });
    assert!(matches!(outcome.failure, Some(Failure::TimedOut(_))), "{outcome:?}");
    assert_eq!((outcome.ledger.sent, outcome.exit_code()), (9, exit::TEMPORARY));
}

#[test]
fn refused_lines_decide_the_exit_code() {
    for (code, wanted) in [
        ("invalid", exit::DATA),
        ("too_large", exit::DATA),
        ("buffer_full", exit::TEMPORARY),
        ("timeout", exit::TEMPORARY),
        ("storage", exit::TEMPORARY),
        ("new", exit::TEMPORARY),
    ] {
        let outcome = delivered("a\nb\nc", &[], |stream| {
            play(stream, |number, _| match number {
                2 => Some(format!("{{\"error\":\"no\",\"code\":\"{code}\",\"line\":2}}\n")),
                3 => Some("{\"ack\":2}\n".into()),
                _ => None,
            });
        });
        assert_eq!((outcome.exit_code(), outcome.ledger.acknowledged), (wanted, 2), "{code}");
        assert_eq!(outcome.ledger.errors[0].line, 2);
        assert!(outcome.failure.is_none());
    }
}

#[test]
fn a_lost_connection_says_what_is_durable_and_where_to_go_on() {
    let input: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    let outcome = delivered(&input, &[], |stream| {
        let mut lines = BufReader::new(&stream).lines();
        for _ in 0..10 {
            lines.next().unwrap().unwrap();
        }
        (&stream).write_all(b"{\"error\":\"no\",\"code\":\"invalid\",\"line\":3}\n{\"ack\":6}\n").unwrap();
    });
    assert!(matches!(outcome.failure, Some(Failure::Lost(_))), "{:?}", outcome.failure);
    assert_eq!((outcome.exit_code(), outcome.ledger.acknowledged), (exit::TEMPORARY, 6));
    assert_eq!(outcome.ledger.first_undecided(), Some(8));
}

#[test]
fn a_busy_agent_is_quoted() {
    let outcome = delivered("a\n", &[], |stream| {
        (&stream).write_all(b"{\"error\":\"too many connections\",\"code\":\"busy\"}\n").unwrap();
    });
    let failure = outcome.failure.as_ref().map(Failure::to_string).unwrap_or_default();
    assert!(failure.contains("too many connections"), "{failure}");
    assert_eq!(outcome.exit_code(), exit::TEMPORARY);
}

#[test]
fn what_cannot_be_opened_is_named() {
    let send = parse(&["--socket", "/nonexistent/s", "--file", "/dev/null"]).unwrap();
    let error = send.deliver().unwrap_err();
    assert_eq!(error.exit_code(), exit::UNAVAILABLE);
    let error = parse(&["--file", "/nonexistent/f"]).unwrap().deliver().unwrap_err();
    assert_eq!(error.exit_code(), exit::NO_INPUT);
    assert!(error.to_string().contains("/nonexistent/f"), "{error}");
}
