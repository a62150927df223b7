//! `fieldpost check` against real services: what it finds, what that means and what to do.

use serde_json::Value;

use crate::harness::agent::Agent;

mod mqtt;
mod rights;
mod schema;
mod topic;

/// What check says of an area, by level, and its exit code.
struct Report {
    findings: Vec<Value>,
    code: i32,
}

impl Report {
    /// Of the agent's configuration.
    #[track_caller]
    fn of(agent: &Agent) -> Self {
        let output = agent.command(&["check", "--json", "--timeout", "20s"]).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        Self { findings: report["findings"].as_array().unwrap().clone(), code: output.status.code().unwrap() }
    }

    /// The messages of an area's findings of a level.
    fn messages(&self, area: &str, level: &str) -> Vec<&str> {
        let of = |finding: &&Value| finding["area"] == area && finding["level"] == level;
        self.findings.iter().filter(of).map(|finding| finding["message"].as_str().unwrap()).collect()
    }

    /// There is one of that level whose message has `part`.
    #[track_caller]
    fn says(&self, area: &str, level: &str, part: &str) {
        let is_there = self.messages(area, level).iter().any(|message| message.contains(part));
        assert!(is_there, "no {level} of {area} with {part:?}: {:#?}", self.findings);
    }
}
