//! Asks the directory and the services, one after the other, and words what they say.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::finding::{Area, Finding};
use super::{kafka, mqtt, schema};
use crate::buffer::probe::{self as buffer_probe, Owner};
use crate::cli::{exit, runtime};
use crate::config::units::{about_bytes, format_duration};
use crate::config::{Config, Redis};
use crate::event::{Event, EventId, Payload, Stamp, Way};
use crate::ingest::unix_probe;
use crate::sink::redis::{self, Probed};
use crate::uplink;

/// Everything that is configured; `say` hears each finding as soon as it is known.
pub(super) fn all(config: &Config, timeout: Duration, say: &mut impl FnMut(Finding)) {
    buffer(config).into_iter().for_each(&mut *say);
    say(unix(config));
    config.uplink.iter().map(uplink).for_each(&mut *say);
    match runtime::build() {
        Ok(runtime) => {
            runtime.block_on(mqtt::findings(config, timeout)).into_iter().for_each(&mut *say);
            kafka::findings(config, timeout, &mut *say);
            runtime.block_on(schema::findings(config, timeout)).into_iter().for_each(&mut *say);
            runtime.block_on(redis(config.redis.as_ref(), timeout)).into_iter().for_each(&mut *say);
        }
        Err(error) => {
            let message = format!("no service was asked, the runtime does not start: {error}");
            say(Finding::fail(Area::Mqtt, exit::TEMPORARY, message));
        }
    }
}

fn buffer(config: &Config) -> Vec<Finding> {
    let options = &config.buffer;
    let dir = options.dir.display();
    let found = match buffer_probe::probe(&options.dir) {
        Ok(found) => found,
        Err(error) => {
            return vec![
                Finding::fail(Area::Buffer, exit::STORAGE, error.to_string()).about("agent.data_dir"),
            ];
        }
    };
    let mut findings = Vec::new();
    let free = about_bytes(found.free_bytes);
    let state = match (found.exists, found.owner) {
        (false, _) => "does not exist yet and can be made".to_owned(),
        (true, Owner::Nobody) => format!("writable, {} used, not open", about_bytes(found.used_bytes)),
        (true, Owner::Process(pid)) => {
            let pid = pid.map_or_else(String::new, |pid| format!(", process {pid}"));
            format!("{} used, open in a running agent{pid}", about_bytes(found.used_bytes))
        }
    };
    // One event and its surroundings must fit, or the agent cannot take a thing.
    let needed = (config.limits.event_bytes_max as u64).saturating_mul(4);
    if found.free_bytes < needed {
        let message = format!(
            "{dir}: only {free} free on its file system, {} needed; make room or set agent.data_dir",
            about_bytes(needed)
        );
        return vec![Finding::fail(Area::Buffer, exit::STORAGE, message).about("agent.data_dir")];
    }
    findings.push(Finding::ok(Area::Buffer, format!("{dir}: {state}, {free} free")));
    if found.used_bytes.saturating_add(found.free_bytes) < options.bytes_max {
        let message = format!(
            "{dir}: {free} free, less than buffer.max_bytes = {} still allows: the disk is full before the buffer is; \
             make room or lower buffer.max_bytes",
            about_bytes(options.bytes_max)
        );
        findings.push(Finding::warn(Area::Buffer, message).about("buffer.max_bytes"));
    }
    if found.forgets {
        let message = format!(
            "{dir}: is in memory (tmpfs): what was acknowledged does not survive a power cut; set agent.data_dir to a \
             folder on flash or disk"
        );
        findings.push(Finding::warn(Area::Buffer, message).about("agent.data_dir"));
    }
    findings
}

fn unix(config: &Config) -> Finding {
    let Some(options) = &config.unix else {
        return Finding::skip(Area::Unix, "off: unix.path is not set");
    };
    let path = options.path.display();
    match unix_probe::probe(&options.path) {
        Ok(unix_probe::Found::Free) => Finding::ok(Area::Unix, format!("{path}: free, can be made")),
        Ok(unix_probe::Found::Listening) => {
            Finding::ok(Area::Unix, format!("{path}: a running agent listens"))
        }
        Ok(unix_probe::Found::LeftOver) => Finding::ok(
            Area::Unix,
            format!("{path}: left over from an agent that was killed, will be replaced"),
        ),
        Err(error) => Finding::fail(Area::Unix, exit::STORAGE, error.to_string()).about("unix.path"),
    }
}

fn uplink(options: &uplink::Options) -> Finding {
    let program = options.program.display();
    match options.is_executable() {
        Ok(()) => {
            let after = format_duration(options.after);
            Finding::ok(Area::Uplink, format!("{program}: can be run, after {after} without Kafka"))
        }
        Err(error) => Finding::fail(
            Area::Uplink,
            exit::CONFIG,
            format!("{program}: is not executable for this user: {error}"),
        )
        .about("uplink.command"),
    }
}

async fn redis(redis: Option<&Redis>, timeout: Duration) -> Vec<Finding> {
    let Some(Redis { options, plan, .. }) = redis else {
        return vec![Finding::skip(Area::Redis, "off: redis.url is not set")];
    };
    let place = options.place();
    let ping = plan.ping(&EXAMPLE_EVENT, Instant::now(), &Arc::new(Semaphore::new(0)));
    let failed = |message: String| {
        Finding::fail(Area::Redis, exit::TEMPORARY, format!("{place}: {message}")).about("redis.url")
    };
    match tokio::time::timeout(timeout, redis::probe(options, ping)).await {
        Ok(Ok(Probed { message, doubt })) => {
            let mut findings = vec![Finding::ok(Area::Redis, format!("{place}: {message}"))];
            let doubt = doubt.map(|doubt| Finding::warn(Area::Redis, format!("{place}: {doubt}")));
            findings.extend(doubt.map(|finding| finding.about("redis.url")));
            findings
        }
        Ok(Err(error)) => vec![failed(error.to_string())],
        Err(_) => vec![failed(format!("no answer within {} ms", timeout.as_millis()))],
    }
}

/// Stands for any event where a permission depends on a name.
pub(super) const EXAMPLE_EVENT: Event<'static> = Event {
    id: EventId::Given("check"),
    kind: "check",
    source_type: "check",
    source_id: "check",
    timestamp: None,
    received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: false },
    payload: Payload::Json("null"),
    way: Way::USUAL,
};
