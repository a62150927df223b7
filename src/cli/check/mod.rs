//! `fieldpost check`: is the configuration right, can the buffer be used, do the services answer?
//!
//! Safe beside a running agent: nothing is taken over, nothing is published, and nothing stays behind that a consumer sees.
//! With `--publish` or `--event` it shows instead what would become of one event.

mod finding;
mod kafka;
mod mqtt;
mod probes;
mod publish;
mod schema;
mod topic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use finding::{Area, Finding};
use publish::Question;

use crate::cli::exit;
use crate::cli::load::{self, ConfigArg};
use crate::config::{Config, Loaded, Problem, Source, units};
use crate::sink::kafka_probe;

/// Say whether the configuration is right, the buffer usable and every service there
///
/// Safe beside a running agent: it is not disturbed, and nothing is published. With --publish or --event: say instead what
/// would become of one MQTT publish or one line of the socket, without asking any service.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fieldpost check                                everything, with the usual configuration
  fieldpost check --config new.toml --offline    only the configuration, before it is rolled out
  fieldpost check --json | jq .ok                for scripts
  fieldpost check --publish plant/3/alarm        what would become of this publish: route, record, ping
  echo 21.5 | fieldpost check --publish sensors/thermo/t1/reading --payload -

A line each: ok, skip (not configured), warn (usable, but look at it), FAIL with the way out.

Exit codes:
  0   all well; warnings allowed
  64  wrong command line
  65  what --publish or --event gives is no event
  66  the file of --payload or --event cannot be read
  74  the buffer's directory or the socket's folder cannot be used
  75  a service is not reachable or does not let the agent in
  78  invalid configuration")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Check the configuration alone: connect to nothing and look at no directory
    #[arg(long)]
    offline: bool,
    /// Print one JSON object for scripts
    #[arg(long)]
    json: bool,
    /// Say what would become of an MQTT publish on this topic: event, route, record, ping
    #[arg(long, value_name = "TOPIC", conflicts_with_all = ["offline", "event"])]
    publish: Option<String>,
    /// File with the payload of --publish, - for standard input; {} without
    #[arg(long, value_name = "FILE", requires = "publish")]
    payload: Option<PathBuf>,
    /// Say what would become of a line of the Unix socket: a file with one event as JSON, - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "offline")]
    event: Option<PathBuf>,
    /// Longest wait for each service
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = timeout)]
    timeout: Duration,
}

fn timeout(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text)? {
        duration if duration.is_zero() => Err("a time above zero is needed".to_owned()),
        duration if duration > Duration::from_secs(3600) => Err("at most 1h is allowed".to_owned()),
        duration => Ok(duration),
    }
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let question = match (&self.publish, &self.event) {
            (Some(topic), _) => Some(Question::Publish { topic, payload: self.payload.as_deref() }),
            (None, Some(path)) => Some(Question::Line(path)),
            (None, None) => None,
        };
        if let Some(question) = question {
            return match self.config.load() {
                Ok(loaded) => publish::run(&loaded.config, question, self.json),
                Err(errors) => load::refuse(&errors),
            };
        }
        let mut report = Report { json: self.json, findings: Vec::new(), printed: ExitCode::SUCCESS };
        match self.config.load() {
            Err(errors) => errors.problems().iter().for_each(|problem| report.add(invalid(problem))),
            Ok(loaded) => {
                let file = self.config.path().map(|path| path.display().to_string());
                configuration(&loaded, file.as_deref()).into_iter().for_each(|finding| report.add(finding));
                if self.offline {
                    report.add(Finding::skip(
                        Area::Config,
                        "offline: no directory and no service was looked at",
                    ));
                } else {
                    probes::all(&loaded.config, self.timeout, &mut |finding| report.add(finding));
                }
            }
        }
        report.end()
    }
}

/// Prints findings as they come, so that a wait says what it waits behind.
struct Report {
    json: bool,
    findings: Vec<Finding>,
    printed: ExitCode,
}

impl Report {
    fn add(&mut self, finding: Finding) {
        if !self.json {
            self.printed = load::print(&finding.line());
        }
        self.findings.push(finding);
    }

    fn end(self) -> ExitCode {
        let last =
            if self.json { finding::json_report(&self.findings) } else { finding::summary(&self.findings) };
        let printed = load::print(&last);
        finding::exit(&self.findings, if self.printed == ExitCode::SUCCESS { printed } else { self.printed })
    }
}

fn invalid(problem: &Problem) -> Finding {
    let finding = Finding::fail(Area::Config, exit::CONFIG, problem.to_string());
    match &problem.key {
        Some(key) => finding.about(key.clone()),
        None => finding,
    }
}

/// What can be said of a configuration that loaded.
fn configuration(Loaded { config, effective, .. }: &Loaded, file: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let of = |kind| effective.iter().filter(|effective| effective.source.kind() == kind).count();
    let message = format!(
        "{}: valid, {} from the file, {} from the environment",
        file.unwrap_or("no file"),
        of("file"),
        of("environment")
    );
    findings.push(Finding::ok(Area::Config, message));
    if let Err(errors) = config.kafka() {
        findings.extend(errors.problems().iter().map(invalid));
    }
    if let Some(kafka) = &config.kafka
        && let Err(error) = kafka_probe::validate(kafka)
    {
        let key = match error {
            kafka_probe::ProbeError::File(_) => "kafka",
            _ => "kafka.properties",
        };
        findings.push(Finding::fail(Area::Config, exit::CONFIG, error.to_string()).about(key));
    }
    findings.extend(doubts(config, effective));
    findings
}

/// What is valid and yet rarely meant.
fn doubts(config: &Config, effective: &[crate::config::Effective]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if config.mqtt.is_none() && config.unix.is_none() {
        let message = "no input is configured: set mqtt.url or unix.path, or nothing will ever come in";
        findings.push(Finding::warn(Area::Config, message).about("mqtt.url"));
    }
    if config.kafka.as_ref().is_some_and(|kafka| kafka.security.tells_password()) {
        let message = "Kafka gets the password or token as it is, for everybody on the line to read: set kafka.tls = true, or \
                       use a SCRAM mechanism";
        findings.push(Finding::warn(Area::Config, message).about("kafka.tls"));
    }
    let for_mqtt = config.routes.all().iter().find(|route| route.mqtt_topic.is_some());
    if let Some(route) = for_mqtt.filter(|_| config.mqtt.is_none()) {
        let message =
            format!("the route {:?} is for MQTT publishes alone, and mqtt.url is not set", route.name);
        findings.push(Finding::warn(Area::Config, message).about("route.mqtt_topic"));
    }
    let by_host = effective
        .iter()
        .any(|effective| effective.key == "agent.id" && matches!(effective.source, Source::Derived(_)));
    if by_host && config.agent.id == "localhost" {
        let message = "agent.id is \"localhost\", from the host name: set one that no other gateway has";
        findings.push(Finding::warn(Area::Config, message).about("agent.id"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::finding::Level;
    use super::*;

    fn said(pairs: &[(&str, &str)]) -> Vec<(Level, Option<String>)> {
        let environment = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let loaded = Config::load(None, environment).unwrap();
        configuration(&loaded, None).into_iter().map(|finding| (finding.level, finding.key)).collect()
    }

    #[test]
    fn a_valid_configuration_may_still_lack_something() {
        let key = |name: &str| Some(name.to_owned());
        let id = ("FIELDPOST_AGENT__ID", "a");
        assert_eq!(
            said(&[id]),
            [(Level::Ok, None), (Level::Fail, key("kafka.brokers")), (Level::Warn, key("mqtt.url"))]
        );
        let brokers = ("FIELDPOST_KAFKA__BROKERS", "127.0.0.1");
        let socket = ("FIELDPOST_UNIX__PATH", "/tmp/s");
        assert_eq!(said(&[id, brokers, socket]), [(Level::Ok, None)]);
        assert_eq!(
            said(&[id, brokers, socket, ("FIELDPOST_KAFKA__PROPERTIES", "sockt.x=1")]),
            [(Level::Ok, None), (Level::Fail, key("kafka.properties"))]
        );
    }

    #[test]
    fn timeouts_have_units_and_limits() {
        assert_eq!(timeout("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["5", "0s", "2h", ""] {
            assert!(timeout(wrong).is_err(), "{wrong}");
        }
    }
}
