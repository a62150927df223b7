//! The keys of `[uplink]`.

use super::super::parse;
use super::super::reader::{Key, Reader};
use super::{mins, secs};
use crate::config::Agent;
use crate::uplink;

/// Most words of a command: more is a script.
const WORDS_MAX: usize = 16;

/// The command of a long outage, if there is one.
pub(super) fn uplink(r: &mut Reader, agent: &Agent) -> Option<uplink::Options> {
    r.section(
        "uplink",
        "A command for long outages of Kafka: a modem's reset, another line. Off without `command`.",
    );
    let command = r.words(
        Key {
            name: "uplink.command",
            meaning: "Program with its absolute path, and its arguments; no shell, no secrets (they are shown). It runs as the \
                      agent's user in the unit's sandbox (docs/security.md), with FIELDPOST_AGENT_ID and \
                      FIELDPOST_DOWN_SECONDS as its only variables.",
            delivery: "None: nothing waits for it.",
        },
        "an absolute path and up to 15 arguments",
        0..=WORDS_MAX,
        |text| parse::length(text, 4096).map(str::to_owned),
    );
    let after = r.duration(
        Key {
            name: "uplink.after",
            meaning: "How long Kafka must have been unreachable without a break before the command is run.",
            delivery: "",
        },
        mins(15),
        secs(1)..=mins(60 * 24 * 7),
    );
    let repeat = r.duration(
        Key {
            name: "uplink.repeat",
            meaning: "Shortest time between two commands, in other outages too.",
            delivery: "",
        },
        mins(60),
        secs(1)..=mins(60 * 24 * 7),
    );
    let timeout = r.duration(
        Key {
            name: "uplink.timeout",
            meaning: "Longest run; then the command is killed with its process group.",
            delivery: "",
        },
        secs(60),
        secs(1)..=mins(60),
    );
    let (program, arguments) = command.split_first()?;
    r.relation(
        program.starts_with('/'),
        "uplink.command",
        &[],
        format!(
            "begins with {program:?}; allowed: an absolute path, because there is no PATH to look it up in"
        ),
    );
    Some(uplink::Options {
        program: program.into(),
        arguments: arguments.to_vec(),
        after,
        repeat,
        timeout,
        agent: agent.id.clone(),
    })
}
