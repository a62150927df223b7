//! The keys of the inputs: `[mqtt]` and `[unix]`.

use std::time::Duration;

use super::super::parse;
use super::super::reader::{Key, Reader};
use super::{WHEN_FULL, mins, ms, secs, security, size, username};
use crate::buffer::WhenFull;
use crate::config::Agent;
use crate::ingest::topic::TopicTemplate;
use crate::ingest::{mqtt, unix};
use crate::secret::Password;

/// The MQTT input without what the limits leave it and without its policy.
pub(super) fn mqtt(r: &mut Reader, agent: &Agent) -> Option<mqtt::Options> {
    r.section("mqtt", "Input: a client of the gateway's MQTT broker. Off without `url`.");
    let url = r.optional_text(
        Key {
            name: "mqtt.url",
            meaning: "The broker, `mqtt://host:port`, `mqtts://` for TLS; port 1883, or 8883 for TLS, if left out.",
            delivery: "",
        },
        "mqtt://host:port or mqtts://host:port",
        ("the MQTT input is off", "mqtt://127.0.0.1:1883"),
        parse::mqtt_url,
    );
    let Login { client_id, username, password } = login(r, agent);
    let tls = security::tls_files(r, &security::MQTT, url.as_ref().is_some_and(|url| url.tls));
    let topics = r.list(
        Key {
            name: "mqtt.topics",
            meaning: "Topics to subscribe. `{source_type}`, `{source_id}` and `{type}` stand for a level that becomes the \
                      event's field, `+` for any level, a last `#` for all that follow.",
            delivery: "Only what matches is taken.",
        },
        "1 to 64 different topics",
        &["sensors/{source_type}/{source_id}/{type}"],
        1..=64,
        |text| TopicTemplate::parse(text).map_err(|error| error.to_string()),
    );
    let qos = r.one_of_numbers(
        Key {
            name: "mqtt.qos",
            meaning: "Quality of service of the subscriptions.",
            delivery: "1 and 2: acknowledged only when durable, so the broker sends again what was not. 0: lost when the \
                       agent is away or the buffer is full.",
        },
        mqtt::Qos::AtLeastOnce,
        [(0, mqtt::Qos::AtMostOnce), (1, mqtt::Qos::AtLeastOnce), (2, mqtt::Qos::ExactlyOnce)],
    );
    let Session { protocol, receive_maximum, keep_alive } = session(r);
    let status = status(r, agent);
    let parse::Address { host, port } = url?.address;
    Some(mqtt::Options {
        host,
        port,
        client_id,
        username,
        password,
        tls,
        topics,
        qos,
        protocol,
        receive_maximum,
        keep_alive,
        pending_bytes_max: 0,
        when_full: WhenFull::default(),
        status,
    })
}

fn status(r: &mut Reader, agent: &Agent) -> Option<mqtt::StatusTopic> {
    let topic = r.optional_text(
        Key {
            name: "mqtt.status_topic",
            meaning: "Topic on which the agent tells its neighbours how it is: a retained JSON object, and `down` as the last \
                      will. `{agent_id}` stands for agent.id. The broker must let the agent publish there.",
            delivery: "What arrives on it is never an event.",
        },
        "1 to 512 bytes without `+`, `#` and other placeholders, not `$` in front",
        ("no status is published and there is no will", "fieldpost/{agent_id}/status"),
        |text| parse::status_topic(text, &agent.id),
    );
    let interval = r.duration(
        Key {
            name: "mqtt.status_interval",
            meaning: "Shortest time between two publishes of the status while only figures change. A link that goes up or \
                      down, a full buffer and the first loss are told within 12 s.",
            delivery: "",
        },
        secs(60),
        secs(10)..=mins(60 * 24),
    );
    Some(mqtt::StatusTopic { topic: topic?, interval })
}

struct Login {
    client_id: String,
    username: Option<String>,
    password: Option<Password>,
}

fn login(r: &mut Reader, agent: &Agent) -> Login {
    let client_id = r.derived_text(
        Key {
            name: "mqtt.client_id",
            meaning: "Client id; the broker keeps the session under it. One agent per id, or they throw each other out.",
            delivery: "A changed id is a new session: what the broker held for the old one does not come.",
        },
        "1 to 256 bytes",
        ("fieldpost- and agent.id", "fieldpost-gateway-17"),
        format!("fieldpost-{}", agent.id),
        |text| parse::length(text, 256).map(str::to_owned),
    );
    let username = username(r, "mqtt.username", "User name at the broker.");
    let password = r.secret(
        "mqtt.password",
        Key {
            name: "mqtt.password_file",
            meaning: "File that holds the password and nothing else; or the variable FIELDPOST_MQTT__PASSWORD.",
            delivery: "",
        },
        "mqtt-password",
    );
    Login { client_id, username, password }
}

struct Session {
    protocol: mqtt::Protocol,
    receive_maximum: u16,
    keep_alive: Duration,
}

fn session(r: &mut Reader) -> Session {
    let protocol = r.one_of_numbers(
        Key {
            name: "mqtt.protocol",
            meaning: "5 for MQTT 5, 4 for MQTT 3.1.1 (its number on the wire).",
            delivery: "With 4 the broker's own in-flight limit bounds what is unacknowledged, not `receive_maximum`.",
        },
        mqtt::Protocol::V5,
        [(5, mqtt::Protocol::V5), (4, mqtt::Protocol::V4)],
    );
    let receive_maximum = r.integer(
        Key {
            name: "mqtt.receive_maximum",
            meaning: "Most unacknowledged messages in flight from the broker.",
            delivery: "Sent again after a lost connection, so at most this many duplicates.",
        },
        1000,
        1..=65535,
    );
    let keep_alive = r.duration(
        Key {
            name: "mqtt.keep_alive",
            meaning: "Keep-alive; a dead link is noticed after 1.5 times this. Whole seconds count.",
            delivery: "",
        },
        secs(30),
        // CONNECT has 16 bits of seconds: 18 h 12 min.
        secs(5)..=secs(18 * 3600),
    );
    Session { protocol, receive_maximum: u16::try_from(receive_maximum).unwrap_or(u16::MAX), keep_alive }
}

/// What happens with an input's events when the buffer is full, if it has a policy of its own.
pub(super) fn when_full(r: &mut Reader, name: &'static str) -> Option<WhenFull> {
    r.optional_one_of(
        Key {
            name,
            meaning: "What happens with this input's events when the buffer is full, where no route has it otherwise.",
            delivery: "As `buffer.when_full`, for this input.",
        },
        ("as `buffer.when_full`", "drop_oldest"),
        WHEN_FULL,
    )
}

/// The socket input without what the limits leave it and without its policy.
pub(super) fn unix(r: &mut Reader) -> Option<unix::Options> {
    r.section("unix", "Input: a Unix socket for local programs, one JSON event a line. Off without `path`.");
    let path = r.optional_text(
        Key {
            name: "unix.path",
            meaning: "Path of the socket; a socket handed over by the service manager wins.",
            delivery: "",
        },
        "a path of 1 to 107 bytes",
        ("the socket is off", "/run/fieldpost/fieldpost.sock"),
        parse::socket_path,
    );
    let mode = r.text(
        Key { name: "unix.mode", meaning: "File mode of the socket: who may send.", delivery: "" },
        "octal digits in quotes, \"0000\" to \"0777\"",
        0o660,
        parse::mode,
        |mode| format!("{mode:04o}"),
    );
    let connections_max = r.integer(
        Key {
            name: "unix.max_connections",
            meaning: "Most connections at once; one more is told so and closed. Beside limits.memory each has half a line \
                      of 8 KiB and, if its producer does not read them, 80 KiB of answers.",
            delivery: "",
        },
        256,
        1..=65536,
    );
    let connections_max = size(connections_max);
    let when_full = WhenFull::default();
    let (pending_bytes_max, append_timeout) = (0, ms(0));
    Some(unix::Options { path: path?, mode, connections_max, pending_bytes_max, append_timeout, when_full })
}
