//! `fieldpost top`: printed once, and drawn on a terminal.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::harness::agent::{Agent, fieldpost};
use crate::harness::flow::line_of;
use crate::harness::http::address_of;
use crate::harness::wait::{USUAL, eventually};

/// Nobody listens there: Kafka is down.
const NOWHERE: &str = "127.0.0.1:1";

fn agent() -> Agent {
    Agent::start(|config| {
        config.kafka(NOWHERE, "events").set("http.listen", "127.0.0.1:0");
    })
}

fn top(words: &[&str]) -> Output {
    fieldpost().arg("top").args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn it_prints_once_for_scripts() {
    let mut agent = agent();
    let mut client = agent.unix();
    (0..7).for_each(|n| client.send_line(&line_of("s", n, 10)));
    client.wait_ack(7, USUAL);
    agent.wait_log("Kafka link down", USUAL);
    let url = format!("http://{}", address_of(&agent));
    // Standard output is no terminal.
    for words in [&["--url", &url, "--once"][..], &["--url", &url]] {
        let printed = top(words);
        let shown = text(&printed.stdout);
        assert_eq!(printed.status.code(), Some(0), "{printed:?}");
        for part in ["in       7 events", "waiting  7 events", "down for ", "lost     0 acknowledged events"]
        {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }
    let status: Value = serde_json::from_slice(&top(&["--url", &url, "--json"]).stdout).unwrap();
    assert_eq!((&status["inputs"]["unix_events"], &status["version"]), (&7.into(), &1.into()));
    agent.stop();
    let refused = top(&["--url", &url, "--json"]);
    assert_eq!(refused.status.code(), Some(69));
    assert!(text(&refused.stderr).contains("cannot connect to http://127.0.0.1:"), "{refused:?}");
}

#[test]
fn the_configuration_says_where_the_agent_is() {
    let agent = Agent::prepare(|config| {
        config.kafka(NOWHERE, "events");
    });
    let refused = agent.command(&["top"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(78));
    assert!(text(&refused.stderr).contains("http.listen is not set"), "{refused:?}");
    assert_eq!(top(&["--url", "gateway:9480"]).status.code(), Some(64));

    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "hush\n").unwrap();
    let path = token.path().to_str().unwrap().to_owned();
    let agent = Agent::start(|config| {
        config.kafka(NOWHERE, "events").set("http.listen", "0.0.0.0:0").set("http.token_file", path.as_str());
    });
    let url = format!("http://{}", address_of(&agent));
    let refused = top(&["--url", &url]);
    assert!(refused.status.code() == Some(69) && text(&refused.stderr).contains("401"), "{refused:?}");
    let printed = top(&["--url", &url, "--token-file", &path]);
    assert!(printed.status.success() && text(&printed.stdout).contains("in       0 events"), "{printed:?}");
}

/// `fieldpost top` on a terminal of its own.
struct Terminal {
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    fn open(url: &str) -> Self {
        let command = format!(
            "stty cols 80 rows 24; tty; exec {} top --interval 200ms --url {url}",
            env!("CARGO_BIN_EXE_fieldpost")
        );
        let mut child = Command::new("script")
            .args(["-qefc", &command, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script is installed (package bsdutils)");
        let shown = Arc::new(Mutex::new(String::new()));
        let mut out = child.stdout.take().unwrap();
        std::thread::spawn({
            let shown = Arc::clone(&shown);
            move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = out.read(&mut bytes) {
                    shown.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
            }
        });
        Self { child, shown }
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    /// The newest whole page, once it has `part`.
    #[track_caller]
    fn page_with(&self, part: &str) -> String {
        eventually(&format!("a page with {part}"), USUAL, || {
            let shown = self.shown();
            let page = shown.rsplit("\u{1b}[H").nth(1)?;
            page.contains(part).then(|| page.to_owned())
        })
    }

    fn press(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    #[track_caller]
    fn wait_exit(&mut self) -> Option<i32> {
        eventually("it ends", USUAL, || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn on_a_terminal_it_draws_follows_the_size_and_leaves_all_as_it_was() {
    let mut agent = agent();
    let mut terminal = Terminal::open(&format!("http://{}", address_of(&agent)));
    let page = terminal.page_with("waiting  0 events");
    assert!(page.matches("\r\n").count() < 24, "{page}");
    let shown = terminal.shown();
    let device = shown.lines().find(|line| line.starts_with("/dev/")).unwrap().trim();
    let resized = Command::new("stty").args(["-F", device, "cols", "40", "rows", "5"]).status().unwrap();
    assert!(resized.success());
    eventually("it fits the smaller window", USUAL, || {
        let shown = terminal.shown();
        (shown.rsplit("\u{1b}[H").nth(1)?.matches("\r\n").count() == 4).then_some(())
    });
    // The agent goes; the view goes on.
    agent.kill9();
    terminal.page_with("NO ANSWER for ");
    terminal.press("xq");
    assert_eq!(terminal.wait_exit(), Some(0));
    let shown = terminal.shown();
    assert!(shown.contains("\u{1b}[?1049h") && shown.trim_end().ends_with("\u{1b}[?1049l"), "{shown:?}");
    assert!(shown.contains("\u{1b}[?25h"), "the cursor is back");
}
