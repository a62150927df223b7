//! What `fieldpost check` found, and how it says so.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use crate::cli::exit;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    Skip,
    Warn,
    Fail,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Area {
    Config,
    Buffer,
    Unix,
    Mqtt,
    Kafka,
    Schema,
    Redis,
    Uplink,
}

impl Area {
    fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Buffer => "buffer",
            Self::Unix => "unix",
            Self::Mqtt => "mqtt",
            Self::Kafka => "kafka",
            Self::Schema => "schema",
            Self::Redis => "redis",
            Self::Uplink => "uplink",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) area: Area,
    pub(super) level: Level,
    pub(super) message: String,
    /// The key to look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// What a failure makes of the exit code.
    #[serde(skip)]
    code: u8,
}

impl Finding {
    fn new(area: Area, level: Level, message: impl Into<String>) -> Self {
        Self { area, level, message: message.into(), key: None, code: 0 }
    }

    pub(super) fn ok(area: Area, message: impl Into<String>) -> Self {
        Self::new(area, Level::Ok, message)
    }

    pub(super) fn skip(area: Area, message: impl Into<String>) -> Self {
        Self::new(area, Level::Skip, message)
    }

    pub(super) fn warn(area: Area, message: impl Into<String>) -> Self {
        Self::new(area, Level::Warn, message)
    }

    pub(super) fn fail(area: Area, code: u8, message: impl Into<String>) -> Self {
        Self { code, ..Self::new(area, Level::Fail, message) }
    }

    pub(super) fn about(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// `FAIL kafka  127.0.0.1:9092: …`; further lines of the message stand below its first one.
    pub(super) fn line(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Skip => "skip",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let message = self.message.replace('\n', "\n            ");
        format!("{level:<4} {:<6} {message}\n", self.area.name())
    }
}

/// The worst of the findings as an exit code: what a human must change first comes first.
pub(super) fn exit_code(findings: &[Finding]) -> u8 {
    let has = |code: &u8| findings.iter().any(|finding| finding.code == *code);
    [exit::CONFIG, exit::STORAGE, exit::TEMPORARY].into_iter().find(has).unwrap_or(0)
}

/// The last line of the report.
pub(super) fn summary(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    match (count(Level::Fail), count(Level::Warn)) {
        (0, 0) => "all well\n".to_owned(),
        (0, warnings) => format!("usable, {}\n", plural(warnings, "warning")),
        (failures, 0) => format!("{}\n", plural(failures, "failure")),
        (failures, warnings) => format!("{}, {}\n", plural(failures, "failure"), plural(warnings, "warning")),
    }
}

/// The whole report for scripts.
pub(super) fn json_report(findings: &[Finding]) -> String {
    let code = exit_code(findings);
    format!("{:#}\n", json!({ "ok": code == 0, "exit_code": code, "findings": findings }))
}

/// The exit code after the report was printed.
pub(super) fn exit(findings: &[Finding], printed: ExitCode) -> ExitCode {
    match exit_code(findings) {
        0 => printed,
        code => code.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report() {
        let ok = Finding::ok(Area::Kafka, "127.0.0.1:9092: topic fieldpost, 4 partitions");
        let warn = Finding::warn(Area::Config, "no input");
        let fail = Finding::fail(Area::Redis, exit::TEMPORARY, "a\nb").about("redis.url");
        let wrong = Finding::fail(Area::Config, exit::CONFIG, "c");
        assert_eq!(ok.line(), "ok   kafka  127.0.0.1:9092: topic fieldpost, 4 partitions\n");
        assert_eq!(fail.line(), "FAIL redis  a\n            b\n");
        let findings = [ok.clone(), warn.clone(), fail.clone()];
        assert_eq!((exit_code(&findings), summary(&findings)), (75, "1 failure, 1 warning\n".to_owned()));
        assert_eq!(
            (exit_code(&[ok.clone(), warn.clone()]), summary(&[ok.clone(), warn])),
            (0, "usable, 1 warning\n".to_owned())
        );
        assert_eq!(
            (exit_code(&[fail.clone(), wrong]), summary(std::slice::from_ref(&ok))),
            (78, "all well\n".to_owned())
        );
        let report: serde_json::Value = serde_json::from_str(&json_report(&[ok, fail])).unwrap();
        assert_eq!((&report["ok"], &report["exit_code"]), (&false.into(), &75.into()));
        assert_eq!(
            report["findings"][0],
            json!({"area": "kafka", "level": "ok", "message": "127.0.0.1:9092: topic fieldpost, 4 partitions"})
        );
        assert_eq!(report["findings"][1]["key"], "redis.url");
    }
}
