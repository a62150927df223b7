//! The keys of `[redis]`.

use std::time::Duration;

use super::super::parse;
use super::super::reader::{Key, Reader};
use super::{KIB, MIB, mins, ms, secs, security, size, username};
use crate::config::{PingAfter, Redis};
use crate::ping::{ChannelTemplate, Plan, StreamPlan};
use crate::sink::redis;

/// What a ping becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    publishes: bool,
    adds: bool,
}

/// Pings.
pub(super) fn redis(r: &mut Reader) -> Option<Redis> {
    r.section("redis", "Output: pings for whoever watches in real time. Off without `url`. How to read them: docs/realtime.md.");
    let url = r.optional_text(
        Key {
            name: "redis.url",
            meaning: "`redis://host:port/database`, `rediss://` for TLS; port 6379 and database 0 if left out. Several addresses, \
                      with commas between, are tried in turn, for example the nodes of a Cluster. \
                      `redis+sentinel://host:port,host:port/name/database` asks Sentinels for the master of that name before \
                      each connection; port 26379 if left out.",
            delivery: "",
        },
        "redis://host:port,…/database or redis+sentinel://host:port,…/name/database, rediss for TLS; at most 16 addresses",
        ("no pings are sent", "redis://127.0.0.1:6379"),
        parse::redis_url,
    );
    let username = username(r, "redis.username", "ACL user.");
    let password = r.secret(
        "redis.password",
        Key {
            name: "redis.password_file",
            meaning: "File that holds the password and nothing else; or the variable FIELDPOST_REDIS__PASSWORD.",
            delivery: "",
        },
        "redis-password",
    );
    let sentinel_login = sentinel_login(r, url.as_ref().is_some_and(|url| url.master.is_some()));
    let tls = security::tls_files(r, &security::REDIS, url.as_ref().is_some_and(|url| url.tls));
    let mode = mode(r);
    let (channel, aggregate) = channels(r, mode);
    let ping_after = r.one_of(
        Key {
            name: "redis.ping_after",
            meaning: "When the ping goes: once the event is durable here, or once Kafka has it.",
            delivery: "durable: instant even while Kafka is away, so a ping may come long before its event. delivered: \
                       never before its event.",
        },
        PingAfter::Durable,
        [("durable", PingAfter::Durable), ("delivered", PingAfter::Delivered)],
    );
    let (queue_max, timeout) = limits(r);
    let (coalesce, max_age) = pace(r);
    let (mut stream, streams) = streams(r);
    let payload_queue_bytes_max = payloads(r, &mut stream);
    let parse::RedisUrl { addresses, master, database, .. } = url?;
    let address = |parse::Address { host, port }| redis::Address { host, port };
    let options = redis::Options {
        addresses: addresses.into_iter().map(address).collect(),
        master,
        tls,
        database,
        login: redis::Login { username, password },
        sentinel_login,
        queue_max,
        payload_queue_bytes_max,
        max_age,
        coalesce,
        streams: mode.adds.then_some(streams),
        timeout,
    };
    let [channel, aggregate] = [channel, aggregate].map(|template| template.filter(|_| mode.publishes));
    let plan = Plan { channel, aggregate, stream: stream.filter(|_| mode.adds) };
    Some(Redis { options, plan, ping_after })
}

/// What a Sentinel gets that asks for a login.
fn sentinel_login(r: &mut Reader, is_sentinel: bool) -> redis::Login {
    const USERNAME: &str = "redis.sentinel_username";
    const PASSWORD_FILE: &str = "redis.sentinel_password_file";
    let username = r.optional_text(
        Key { name: USERNAME, meaning: "ACL user at the Sentinels.", delivery: "" },
        "1 to 256 bytes",
        ("a Sentinel gets what Redis gets, if it asks for a login", "fieldpost"),
        |text| parse::length(text, 256).map(str::to_owned),
    );
    let password = r.secret_or(
        "redis.sentinel_password",
        Key {
            name: PASSWORD_FILE,
            meaning: "File that holds the Sentinels' password and nothing else; or the variable \
                      FIELDPOST_REDIS__SENTINEL_PASSWORD.",
            delivery: "",
        },
        ("a Sentinel gets what Redis gets, if it asks for a login", "sentinel-password"),
    );
    for (name, is_set) in [(USERNAME, username.is_some()), (PASSWORD_FILE, password.is_some())] {
        r.relation(
            !is_set || is_sentinel,
            name,
            &["redis.url"],
            "needs redis+sentinel:// in redis.url".to_owned(),
        );
    }
    redis::Login { username, password }
}

fn mode(r: &mut Reader) -> Mode {
    r.one_of(
        Key {
            name: "redis.mode",
            meaning: "pubsub: publishes pings, for who listens now. streams: adds entries to streams, which consumer groups read \
                      also later. both: does both.",
            delivery: "Both are best effort: the events themselves are in Kafka.",
        },
        Mode { publishes: true, adds: false },
        [
            ("pubsub", Mode { publishes: true, adds: false }),
            ("streams", Mode { publishes: false, adds: true }),
            ("both", Mode { publishes: true, adds: true }),
        ],
    )
}

/// Where pings are published.
fn channels(r: &mut Reader, mode: Mode) -> (Option<ChannelTemplate>, Option<ChannelTemplate>) {
    let channel = template(
        r,
        Key {
            name: "redis.channel",
            meaning: "Channel of an event's ping. `{source_type}`, `{source_id}` and `{type}` stand for the event's fields. \
                      Empty: none, for agents with so many sources that only redis.aggregate_channel is listened to.",
            delivery: "",
        },
        "events:{source_type}:{source_id}",
    );
    let aggregate = template(
        r,
        Key {
            name: "redis.aggregate_channel",
            meaning: "Channel of many sources on which each ping is published a second time, for example `events:{source_type}`; \
                      placeholders as in redis.channel. Empty: none.",
            delivery: "",
        },
        "",
    );
    r.relation(
        !mode.publishes || channel.is_some() || aggregate.is_some(),
        "redis.channel",
        &["redis.aggregate_channel"],
        "needs a channel here or in redis.aggregate_channel".to_owned(),
    );
    (channel, aggregate)
}

/// The text, if it is a template.
fn checked_template(text: &str) -> Result<String, String> {
    let template = ChannelTemplate::parse(parse::length(text, 256)?);
    template.map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn template(r: &mut Reader, key: Key, default: &str) -> Option<ChannelTemplate> {
    let text = r.text(
        key,
        "a text of up to 256 bytes",
        default.to_owned(),
        |text| match text {
            "" => Ok(String::new()),
            text => checked_template(text),
        },
        String::clone,
    );
    // Parsed above already: only the empty text is none.
    ChannelTemplate::parse(&text).ok()
}

fn limits(r: &mut Reader) -> (usize, Duration) {
    let queue = r.integer(
        Key {
            name: "redis.queue",
            meaning: "Most pings waiting, each of some 400 bytes of memory beside limits.memory, and as many that redis.coalesce \
                      holds back.",
            delivery: "One more is dropped and counted; events are never held up by pings.",
        },
        10_000,
        1..=1_000_000,
    );
    let timeout = r.duration(
        Key {
            name: "redis.timeout",
            meaning: "Longest wait for a connection or an answer.",
            delivery: "Pings of a time-out are dropped and counted.",
        },
        secs(2),
        ms(10)..=mins(1),
    );
    (size(queue), timeout)
}

/// When pings become fewer, and when they are too old.
fn pace(r: &mut Reader) -> (redis::Coalesce, Duration) {
    let window = r.duration(
        Key {
            name: "redis.coalesce",
            meaning: "Length of a window in which many pings become few; `0s`: never. The first redis.coalesce_above pings of a \
                      window are published at once; of those beyond, only the latest of each source and type is, at the window's \
                      end. Entries of streams are not coalesced.",
            delivery: "Pings that a later one replaced are counted as coalesced.",
        },
        secs(0),
        secs(0)..=secs(10),
    );
    let above = r.integer(
        Key {
            name: "redis.coalesce_above",
            meaning: "Pings of each window of redis.coalesce that are published at once: 100 in 100 ms is 1,000 a second, about \
                      what a browser can still follow.",
            delivery: "As redis.coalesce.",
        },
        100,
        0..=1_000_000,
    );
    let max_age = r.duration(
        Key {
            name: "redis.max_age",
            meaning: "Oldest ping that still goes out, from when it was offered: a view that calls itself live is wrong with older \
                      ones.",
            delivery: "What waited for longer, behind a Redis that hung for example, is dropped and counted as stale.",
        },
        secs(5),
        ms(10)..=mins(60),
    );
    r.relation(
        window < max_age,
        "redis.coalesce",
        &["redis.max_age"],
        "must be shorter than redis.max_age, or what it holds back is too old to be sent".to_owned(),
    );
    (redis::Coalesce { window, above: size(above) }, max_age)
}

/// How streams are named and how much they hold.
fn streams(r: &mut Reader) -> (Option<StreamPlan>, redis::StreamOptions) {
    let name = r.text(
        Key {
            name: "redis.stream",
            meaning: "With streams: the stream that gets an event's entry; placeholders as in redis.channel.",
            delivery: "",
        },
        "a text of 1 to 256 bytes",
        "events:{type}".to_owned(),
        checked_template,
        String::clone,
    );
    let len_max = r.integer(
        Key {
            name: "redis.stream_max_len",
            meaning: "With streams: about so many entries each stream has at most, some 200 bytes of Redis' memory each; XADD \
                      trims with `MAXLEN ~`, which leaves up to a hundred more.",
            delivery: "The oldest entry goes, also one that a consumer group has not read.",
        },
        10_000,
        1..=100_000_000,
    );
    let max_age = r.duration(
        Key {
            name: "redis.stream_max_age",
            meaning: "With streams: entries older than this, by Redis' clock, are taken out; looked at each tenth of it, each \
                      second at most and each minute at least, in streams that this agent has written to since its start. \
                      `0s`: any age. Needs the right to XTRIM.",
            delivery: "As redis.stream_max_len.",
        },
        secs(0),
        secs(0)..=mins(60 * 24 * 366),
    );
    let count_max = r.integer(
        Key {
            name: "redis.streams_max",
            meaning: "With streams: most different streams that this agent writes to between its start and its stop, so that event \
                      types that somebody makes up do not fill Redis with keys.",
            delivery: "Entries for one more are dropped and counted, with an ERROR.",
        },
        256,
        1..=100_000,
    );
    let max_age = Some(max_age).filter(|age| !age.is_zero());
    // Parsed above already, so it is there.
    let plan = ChannelTemplate::parse(&name).ok().map(|name| StreamPlan { name, payload_bytes_max: None });
    (plan, redis::StreamOptions { len_max, max_age, count_max: size(count_max) })
}

/// Whether streams get payloads. The bytes of payloads that may wait.
fn payloads(r: &mut Reader, stream: &mut Option<StreamPlan>) -> usize {
    let is_wanted = r.fact(
        Key {
            name: "redis.stream_payload",
            meaning: "With streams: whether entries have the event's payload, in the field `payload` (`payload_base64` for bytes), \
                      or ids only.",
            delivery: "",
        },
        false,
    );
    let bytes_max = r.bytes(
        Key {
            name: "redis.stream_payload_max_bytes",
            meaning: "With redis.stream_payload: largest payload that goes along.",
            delivery: "A larger one is left out; its entry says so in `payload_left_out`.",
        },
        4 * KIB,
        1..=MIB,
    );
    let queue = r.bytes(
        Key {
            name: "redis.stream_payload_queue",
            meaning: "With redis.stream_payload: most bytes of payloads that wait with their pings, beside limits.memory.",
            delivery: "A payload without room is left out; its entry says so.",
        },
        MIB,
        4 * KIB..=super::GIB,
    );
    r.relation(
        bytes_max.div_ceil(3) * 4 <= queue,
        "redis.stream_payload_max_bytes",
        &["redis.stream_payload_queue"],
        "must fit redis.stream_payload_queue, as base64 too, which takes four bytes for three".to_owned(),
    );
    if let Some(stream) = stream {
        stream.payload_bytes_max = is_wanted.then(|| size(bytes_max));
    }
    size(queue)
}
