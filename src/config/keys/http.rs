//! The keys of `[http]`.

use std::net::SocketAddr;

use super::super::reader::{Key, Reader};
use super::{KIB, MIB, mins, secs, security, size};
use crate::buffer::RecentLimits;
use crate::http::{self, CONNECTIONS_SPARE};

/// HTTP.
pub(super) fn http(r: &mut Reader) -> Option<http::Options> {
    r.section(
        "http",
        "Status, recent and live events, metrics over HTTP, for reading alone. Off without `listen`.",
    );
    let listen = r.optional_text(
        Key {
            name: "http.listen",
            meaning: "Address and port. Off by default, because whoever reaches it reads the events: on loopback every \
                      program of this machine. Beyond loopback it takes `token_file`.",
            delivery: "",
        },
        "an IP address and a port",
        ("HTTP is off", "127.0.0.1:9480"),
        |text| text.parse::<SocketAddr>().map_err(|_| "not an IP address and a port, such as 127.0.0.1:9480".to_owned()),
    );
    let tls = security::own_tls(r, listen.is_some());
    let token = r.secret_or(
        "http.token",
        Key {
            name: "http.token_file",
            meaning: "File that holds the token and nothing else, which requests bring as `Authorization: Bearer`; or the \
                      variable FIELDPOST_HTTP__TOKEN. Read at each request.",
            delivery: "",
        },
        ("requests need none, which is for loopback alone", "http-token"),
    );
    let connections_max = r.integer(
        Key {
            name: "http.max_connections",
            meaning: "Most connections at once, streams included, each of some 40 KiB and one event; eight of them are never \
                      streams. One more is told so and closed.",
            delivery: "",
        },
        64,
        2 * CONNECTIONS_SPARE as u64..=4096,
    );
    let recent = recent(r);
    let ready_age_max = r.duration(
        Key {
            name: "http.ready_max_age",
            meaning: "`/readyz` says no once an event has waited for Kafka for longer.",
            delivery: "",
        },
        mins(1),
        secs(1)..=mins(60 * 24),
    );
    r.relation(
        cfg!(feature = "http") || listen.is_none(),
        "http.listen",
        &[],
        "this program was built without HTTP: take another one, or remove the key".to_owned(),
    );
    r.relation(
        listen.is_none_or(|listen| listen.ip().is_loopback()) || token.is_some(),
        "http.listen",
        &["http.token_file"],
        "is beyond loopback and needs http.token_file (or the variable FIELDPOST_HTTP__TOKEN)".to_owned(),
    );
    Some(http::Options {
        listen: listen?,
        tls,
        token,
        connections_max: size(connections_max),
        recent,
        ready_age_max,
    })
}

/// The events that are kept in memory.
fn recent(r: &mut Reader) -> RecentLimits {
    let events_max = r.integer(
        Key {
            name: "http.recent_events",
            meaning: "Most events that are kept in memory for readers.",
            delivery: "None. A reader of the live stream that is further behind is told so and left.",
        },
        10_000,
        1..=1_000_000,
    );
    let bytes_max = r.bytes(
        Key {
            name: "http.recent_bytes",
            meaning: "Most memory for them, beside limits.memory: as they are encoded, and as JSON once somebody has asked.",
            delivery: "As http.recent_events.",
        },
        2 * MIB,
        64 * KIB..=super::GIB,
    );
    RecentLimits { bytes_max: size(bytes_max), events_max: size(events_max) }
}
