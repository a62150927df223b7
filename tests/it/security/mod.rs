//! TLS, mutual TLS, logins and rights against real services: each works, and each that is wrong is explained, keeps the
//! events, and works once its file was mended, without a hand on the agent.

mod http;
mod kafka;
mod mqtt;
mod pki;
mod redis;
mod secrets;

use std::time::Duration;

use crate::harness::agent::Agent;
use crate::harness::flow::line_of;
use crate::harness::wait::USUAL;

/// For what is found by looking every ten seconds, and after a pause of the link.
const MENDED: Duration = Duration::from_secs(60);

/// Hands in one event, which has to become durable whatever the links do.
#[track_caller]
fn hand_in(agent: &Agent, source: &str) {
    let mut client = agent.unix();
    client.send_line(&line_of(source, 0, 10));
    client.wait_ack(1, USUAL);
}

/// The first line of the log that holds `part` is an ERROR and holds each of `wanted`, too.
#[track_caller]
fn explained(agent: &Agent, part: &str, wanted: &[&str]) {
    let line = agent.wait_log(part, MENDED);
    assert!(line.contains("ERROR"), "{line}");
    said(agent, part, wanted);
}

/// As [`explained`], at any level.
#[track_caller]
fn said(agent: &Agent, part: &str, wanted: &[&str]) {
    let line = agent.wait_log(part, MENDED);
    for wanted in wanted {
        assert!(line.contains(wanted), "{wanted:?} is missing in: {line}");
    }
}
