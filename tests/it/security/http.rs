//! The agent's own HTTP over TLS, asked by its own client.

use serde_json::Value;

use super::pki::{Flaw, Pki};
use super::{MENDED, hand_in};
use crate::harness::agent::Agent;
use crate::harness::http::address_of;
use crate::harness::wait::{USUAL, eventually};

struct Served {
    pki: Pki,
    agent: Agent,
    port: String,
}

impl Served {
    fn start() -> Self {
        let pki = Pki::new();
        pki.issue("http", Flaw::None);
        pki.write("token", b"hush");
        let agent = Agent::start(|config| {
            config.kafka("127.0.0.1:9", "nowhere").set("http.listen", "127.0.0.1:0");
            config.set("http.cert_file", pki.text("http.pem")).set("http.key_file", pki.text("http.key"));
            config.set("http.token_file", pki.text("token"));
        });
        let port = address_of(&agent).rsplit_once(':').unwrap().1.to_owned();
        Self { pki, agent, port }
    }

    /// What `fieldpost COMMAND` says of the agent at `scheme://localhost`: its code, output and errors.
    fn asked(&self, scheme: &str, ca: &str, command: &[&str]) -> (Option<i32>, String, String) {
        let url = format!("{scheme}://localhost:{}", self.port);
        let (ca, token) = (self.pki.text(ca), self.pki.text("token"));
        let words = [command, &["--url", &url, "--ca-file", &ca, "--token-file", &token]].concat();
        let output = self.agent.command(&words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    #[track_caller]
    fn is_refused(&self, scheme: &str, ca: &str, wanted: &str) {
        let (code, _, said) = self.asked(scheme, ca, &["top", "--json"]);
        assert!(code == Some(69) && said.contains(wanted), "{code:?} {said}");
    }
}

#[test]
fn whoever_trusts_the_certificate_gets_in_and_nobody_else() {
    let served = Served::start();
    hand_in(&served.agent, "s");
    let (code, status, said) = served.asked("https", "ca.pem", &["top", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["buffer"]["events"], &status["http"]["state"]), (&1.into(), &"up".into()));
    let tail = ["tail", "--after", "1-0", "--count", "1", "--timeout", "30s", "--json"];
    let (code, events, said) = served.asked("https", "ca.pem", &tail);
    assert!(code == Some(0) && events.contains("\"source_id\":\"s\""), "{events} {said}");

    served.is_refused("https", "other-ca.pem", "certificate verify failed");
    served.is_refused("http", "ca.pem", "connection lost");
    // Its own configuration does not say for which name the certificate is.
    let output = served.agent.command(&["top", "--json"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(78) && said.contains("--url https://NAME:PORT"), "{said}");
}

#[test]
fn another_certificate_counts_at_once_and_one_of_no_use_is_explained() {
    let served = Served::start();
    served.pki.issue("http", Flaw::OtherAuthority);
    assert_eq!(served.asked("https", "other-ca.pem", &["top", "--json"]).0, Some(0));
    served.is_refused("https", "ca.pem", "certificate verify failed");

    served.pki.write("http.key", b"no key");
    served.is_refused("https", "other-ca.pem", "https://localhost");
    let line = served.agent.wait_log("an HTTP connection is closed", USUAL);
    assert!(line.contains("WARN") && line.contains("http.key holds no private key in PEM form"), "{line}");
    served.pki.issue("http", Flaw::None);
    eventually("it is served again", MENDED, || {
        (served.asked("https", "ca.pem", &["top", "--json"]).0 == Some(0)).then_some(())
    });
}

#[test]
fn without_its_key_the_agent_runs_and_http_comes_when_it_is_there() {
    let pki = Pki::new();
    pki.issue("http", Flaw::None);
    let key = std::fs::read(pki.path("http.key")).unwrap();
    pki.write("http.key", b"");
    let agent = Agent::start(|config| {
        config.kafka("127.0.0.1:9", "nowhere").set("http.listen", "127.0.0.1:0");
        config.set("http.cert_file", pki.text("http.pem")).set("http.key_file", pki.text("http.key"));
    });
    let line = agent.wait_log("HTTP cannot be served", USUAL);
    assert!(line.contains("http.key holds no private key in PEM form"), "{line}");
    hand_in(&agent, "s");
    pki.write("http.key", &key);
    agent.wait_log("HTTP is served", MENDED);
}
