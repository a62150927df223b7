//! Asks the schema registry whether it knows the envelope's schema, and would take it.

use std::time::Duration;

use super::finding::{Area, Finding};
use super::kafka::{DEAD_LETTERS, topics};
use crate::cli::exit;
use crate::config::Config;
use crate::sink::registry::{Options, Standing, standing, subject};

/// Nothing where the records need no registry.
pub(super) async fn findings(config: &Config, timeout: Duration) -> Vec<Finding> {
    let Some(options) = &config.registry else { return Vec::new() };
    let options = Options { timeout: options.timeout.min(timeout), ..options.clone() };
    let url = options.url();
    let mut findings = Vec::new();
    let topics = topics(config).into_iter().filter(|(_, key)| *key != DEAD_LETTERS);
    for (topic, key) in topics {
        let Some(topic) = topic else {
            let message = format!("{url}: not asked: the subject depends on the event, as its topic does");
            return vec![Finding::skip(Area::Schema, message)];
        };
        let subject = subject(&topic);
        findings.push(match standing(&options, &topic).await {
            Ok(Standing::Registered(id)) => {
                Finding::ok(Area::Schema, format!("{url}: the envelope's schema is under {subject}, id {id}"))
            }
            Ok(Standing::Unregistered) => Finding::ok(
                Area::Schema,
                format!(
                    "{url}: the envelope's schema is not under {subject} yet and fits; the agent registers it with the first \
                     event, unless its user may not"
                ),
            ),
            Ok(Standing::Clashing) => {
                let message = format!(
                    "{url}: another schema is under {subject}, which the envelope's does not fit: it cannot be registered, and \
                     events of topic {topic} and those behind them wait in the buffer; delete that subject, loosen its \
                     compatibility, or use another topic"
                );
                Finding::fail(Area::Schema, exit::TEMPORARY, message).about(key)
            }
            Err(error) => {
                let message = format!(
                    "{url}: {error}: events of topics whose id the agent does not have yet wait in the buffer"
                );
                findings.push(
                    Finding::fail(Area::Schema, exit::TEMPORARY, message).about("schema_registry.url"),
                );
                return findings;
            }
        });
    }
    findings
}
