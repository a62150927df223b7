//! The grammars of single values: addresses, names, modes, log levels. Pure.
//!
//! Each returns why a text is refused; what is allowed stands in the key's declaration.

use crate::config::source::mask_login;
use crate::log::{self, LogError};
use crate::sink::kafka;
use crate::sink::record::templates::{
    KEY_FIELDS, KEY_TEMPLATE_BYTES_MAX, TOPIC_BYTES_MAX, TOPIC_FIELDS, Template,
};

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

/// What an MQTT URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MqttUrl {
    pub(super) address: Address,
    pub(super) tls: bool,
}

/// `mqtt://host[:port]`, or `mqtts://` for TLS.
pub(super) fn mqtt_url(text: &str) -> Result<MqttUrl, String> {
    let (tls, rest) = match text.split_once("://") {
        Some(("mqtt", rest)) => (false, rest),
        Some(("mqtts", rest)) => (true, rest),
        Some((scheme, _)) => return Err(format!("the scheme `{scheme}` is not mqtt or mqtts")),
        None => return Err("no `mqtt://` in front".to_owned()),
    };
    no_login(rest, "mqtt")?;
    match rest.trim_end_matches('/') {
        rest if rest.contains('/') => Err("nothing may follow the port".to_owned()),
        rest => Ok(MqttUrl { address: address(rest, if tls { 8883 } else { 1883 })?, tls }),
    }
}

/// What a Redis URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RedisUrl {
    pub(super) addresses: Vec<Address>,
    /// The name of the master, which the addresses, then those of Sentinels, know.
    pub(super) master: Option<String>,
    pub(super) tls: bool,
    pub(super) database: i64,
}

/// Most addresses in a Redis URL.
const REDIS_ADDRESSES_MAX: usize = 16;

/// `redis://host[:port][,host[:port]][/database]`, or `redis+sentinel://host[:port][,…]/name[/database]`; `rediss` for
/// TLS.
pub(super) fn redis_url(text: &str) -> Result<RedisUrl, String> {
    let (tls, is_sentinel, rest) = match text.split_once("://") {
        Some(("redis", rest)) => (false, false, rest),
        Some(("rediss", rest)) => (true, false, rest),
        Some(("redis+sentinel", rest)) => (false, true, rest),
        Some(("rediss+sentinel", rest)) => (true, true, rest),
        Some((scheme, _)) => {
            return Err(format!(
                "the scheme `{scheme}` is not redis, rediss, redis+sentinel or rediss+sentinel"
            ));
        }
        None => return Err("no `redis://` in front".to_owned()),
    };
    no_login(rest, "redis")?;
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (master, database) = if is_sentinel {
        let (name, database) = path.split_once('/').unwrap_or((path, ""));
        if name.is_empty() {
            return Err("behind the Sentinels the name of the master is missing: /mymaster".to_owned());
        }
        (Some(length(name, 256)?.to_owned()), database)
    } else {
        (None, path)
    };
    let database = match database {
        "" => 0,
        number => number.parse::<u16>().map_err(|_| format!("`{number}` is not a database number"))?.into(),
    };
    let port = if is_sentinel { 26379 } else { 6379 };
    let addresses = hosts.split(',').map(|host| address(host.trim(), port)).collect::<Result<Vec<_>, _>>()?;
    if addresses.len() > REDIS_ADDRESSES_MAX {
        return Err(format!("{} addresses, at most {REDIS_ADDRESSES_MAX} are allowed", addresses.len()));
    }
    Ok(RedisUrl { addresses, master, tls, database })
}

/// What a registry's URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegistryUrl {
    pub(super) address: Address,
    pub(super) tls: bool,
    pub(super) path: String,
}

/// `http://host[:port][/path]`, or `https://` for TLS.
pub(super) fn registry_url(text: &str) -> Result<RegistryUrl, String> {
    let (tls, port, rest) = match text.split_once("://") {
        Some(("http", rest)) => (false, 80, rest),
        Some(("https", rest)) => (true, 443, rest),
        Some((scheme, _)) => return Err(format!("the scheme `{scheme}` is not http or https")),
        None => return Err("no `http://` in front".to_owned()),
    };
    no_login(rest, "schema_registry")?;
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let path = path.trim_end_matches('/');
    if let Some(c) = path.chars().find(|c| !(c.is_ascii_alphanumeric() || "/-._~%".contains(*c))) {
        return Err(format!("`{c}` is not allowed in the path"));
    }
    Ok(RegistryUrl { address: address(host, port)?, tls, path: path.to_owned() })
}

/// The brokers to start from, as librdkafka wants them; a port that is left out is 9092.
pub(super) fn brokers(text: &str) -> Result<String, String> {
    let mut addresses = Vec::new();
    for item in text.split(',') {
        if let Some((scheme, rest)) = item.split_once("://") {
            return Err(format!("`{}` without `{scheme}://` is meant", mask_login(rest)));
        }
        let Address { host, port } = address(item.trim(), 9092)?;
        addresses.push(if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        });
    }
    Ok(addresses.join(","))
}

fn no_login(rest: &str, section: &str) -> Result<(), String> {
    match rest.rsplit_once('@') {
        None => Ok(()),
        Some((login, _)) if login.contains(':') => Err(format!(
            "a password may not stand in the URL: give {section}.password_file or set the variable FIELDPOST_{}__PASSWORD",
            section.to_ascii_uppercase()
        )),
        Some(_) => Err(format!("the user name belongs into {section}.username")),
    }
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`.
fn address(text: &str, port_default: u16) -> Result<Address, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("`[` has no `]`")?;
            let host =
                host.parse::<std::net::Ipv6Addr>().map_err(|_| format!("`{host}` is not an IPv6 address"))?;
            let port =
                rest.strip_prefix(':').or(rest.is_empty().then_some("")).ok_or("no `:` behind the `]`")?;
            (host.to_string(), port)
        }
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            if port.contains(':') {
                return Err("an IPv6 address stands in brackets: [::1]".to_owned());
            }
            if host.is_empty() {
                return Err("the host is missing".to_owned());
            }
            if !host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) {
                return Err(format!("`{host}` is not a host name"));
            }
            (host.to_owned(), port)
        }
    };
    let port = match port {
        "" => port_default,
        text => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("`{text}` is not a port (1 to 65535)"))?,
    };
    Ok(Address { host, port })
}

/// The topic of the agent's status, with its name in it.
pub(super) fn status_topic(text: &str, agent_id: &str) -> Result<String, String> {
    let topic = length(text, 512)?.replace("{agent_id}", agent_id);
    if let Some(c) = topic.chars().find(|c| matches!(c, '+' | '#' | '{' | '}') || c.is_control()) {
        return Err(format!("`{}` is not allowed", c.escape_debug()));
    }
    if topic.starts_with('$') {
        return Err("what begins with `$` is the broker's".to_owned());
    }
    Ok(topic)
}

/// The agent's name: it goes into a client id, record headers and file names.
pub(super) fn agent_id(text: &str) -> Result<String, String> {
    let foreign = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')));
    match foreign {
        Some(c) => Err(format!("`{c}` is not allowed")),
        None => length(text, 128).map(str::to_owned),
    }
}

/// A Kafka topic in which placeholders stand for the event's fields.
pub(super) fn kafka_topic(text: &str) -> Result<Template, String> {
    let template = Template::parse(text, TOPIC_FIELDS).map_err(|error| error.to_string())?;
    if let Some(c) = template.plain_chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
        return Err(format!("`{c}` is not allowed"));
    }
    if matches!(text, "." | "..") {
        return Err("Kafka reserves this name".to_owned());
    }
    length(text, TOPIC_BYTES_MAX).map(|_| template)
}

/// A record's key, in which placeholders stand for the event's fields; empty for none.
pub(super) fn kafka_key(text: &str) -> Result<Template, String> {
    let template = Template::parse(text, KEY_FIELDS).map_err(|error| error.to_string())?;
    if text.is_empty() { Ok(template) } else { length(text, KEY_TEMPLATE_BYTES_MAX).map(|_| template) }
}

/// A Kafka topic without placeholders.
pub(super) fn kafka_topic_fixed(text: &str) -> Result<String, String> {
    if text.contains(['{', '}']) {
        return Err("no placeholder is allowed here".to_owned());
    }
    kafka_topic(text).map(|template| template.to_string())
}

/// A socket's path: the kernel keeps 108 bytes for it, the last one zero.
pub(super) fn socket_path(text: &str) -> Result<std::path::PathBuf, String> {
    length(text, 107).map(std::path::PathBuf::from)
}

/// A file mode in octal digits.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode =
        octal.then(|| u32::from_str_radix(text, 8).ok()).flatten().ok_or("not three or four octal digits")?;
    if mode > 0o777 { Err("too large".to_owned()) } else { Ok(mode) }
}

/// A log filter, as the log itself reads it.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    match log::check_level(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(LogError::Level { reason, .. }) => Err(reason),
        Err(other) => Err(other.to_string()),
    }
}

/// Any text that is not empty and not above `max` bytes.
pub(super) fn length(text: &str, max: usize) -> Result<&str, String> {
    match text.len() {
        0 => Err("empty".to_owned()),
        bytes if bytes > max => Err(format!("{bytes} bytes long")),
        _ if text.contains(char::is_control) => Err("holds a control character".to_owned()),
        _ => Ok(text),
    }
}

/// Why a librdkafka property may not be set by hand, if so.
pub(super) fn property_refused(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let own = kafka::OWN_PROPERTIES.iter().find(|(own, _)| *own == lower);
    let reason = match lower.as_str() {
        "bootstrap.servers" | "metadata.broker.list" => "set kafka.brokers",
        "enable.idempotence"
        | "max.in.flight"
        | "max.in.flight.requests.per.connection"
        | "queuing.strategy" => "the order of events and the absence of duplicates rest on it",
        "acks" | "request.required.acks" | "enable.gapless.guarantee" => {
            "an event leaves the buffer only when all in-sync replicas confirmed it"
        }
        "message.timeout.ms" | "delivery.timeout.ms" | "retries" | "message.send.max.retries" => {
            "no outage may be long enough to drop an event"
        }
        "delivery.report.only.error" | "dr_cb" | "dr_msg_cb" => {
            "an event leaves the buffer when its delivery report says so"
        }
        "linger.ms" | "queue.buffering.max.ms" => {
            "set kafka.round_interval, which does the same with less CPU"
        }
        "queue.buffering.max.messages" | "queue.buffering.max.kbytes" => "it follows from limits.memory",
        "message.max.bytes" => "it follows from limits.max_event_bytes",
        "compression.codec" | "compression.type" => "set kafka.compression",
        "transactional.id" => "it follows from agent.id, with kafka.delivery = \"exactly_once\"",
        "transaction.timeout.ms" => "set kafka.transaction_timeout",
        "security.protocol" => "set kafka.tls and kafka.sasl_mechanism",
        "ssl.ca.location" | "ssl.ca.pem" => "set kafka.ca_file",
        "ssl.certificate.location" | "ssl.certificate.pem" => "set kafka.cert_file",
        "ssl.key.location" => "set kafka.key_file",
        "ssl.keystore.location" => "set kafka.cert_file and kafka.key_file",
        "enable.ssl.certificate.verification" | "ssl.endpoint.identification.algorithm" => {
            "a server and its name are always verified: set kafka.ca_file to the authority that signed its certificate"
        }
        "sasl.mechanism" | "sasl.mechanisms" => "set kafka.sasl_mechanism",
        "sasl.username" => "set kafka.username",
        "sasl.password" => {
            "it is a secret: give kafka.password_file or set the variable FIELDPOST_KAFKA__PASSWORD"
        }
        "sasl.oauthbearer.config" | "enable.sasl.oauthbearer.unsecure.jwt" => "give kafka.token_file",
        "ssl.key.password" => {
            "it is a secret: give kafka.key_password_file or set the variable FIELDPOST_KAFKA__KEY_PASSWORD"
        }
        "ssl.key.pem" => "it is a secret: put the key into a file and give kafka.key_file",
        other if other.contains("password") || other.contains("secret") => {
            "it is a secret, and fieldpost has no file or variable for this one"
        }
        // What the sink sets last would be lost in silence.
        _ => return own.map(|(_, value)| format!("fieldpost sets it to {value}")),
    };
    Some(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let mqtt = |text| mqtt_url(text).map(|url| (url.address.host, url.address.port, url.tls));
        let of = |host: &str, port, tls| Ok((host.to_owned(), port, tls));
        assert_eq!(mqtt("mqtt://gateway"), of("gateway", 1883, false));
        assert_eq!(mqtt("mqtts://gateway"), of("gateway", 8883, true));
        assert_eq!(mqtt("mqtts://gateway:1/"), of("gateway", 1, true));
        assert_eq!(mqtt("mqtt://10.0.0.1:1999/"), of("10.0.0.1", 1999, false));
        assert_eq!(mqtt("mqtt://[::1]:7"), of("::1", 7, false));
        assert_eq!(mqtt("mqtt://[fe80::1]"), of("fe80::1", 1883, false));
        assert_eq!(mqtt("mqtts://[fe80::1]"), of("fe80::1", 8883, true));
        for (bad, why) in [
            ("gateway:1883", "no `mqtt://` in front"),
            ("http://gateway", "the scheme `http` is not mqtt or mqtts"),
            ("mqtt://", "the host is missing"),
            ("mqtt://a b", "`a b` is not a host name"),
            ("mqtt://a:0", "`0` is not a port (1 to 65535)"),
            ("mqtt://a:70000", "`70000` is not a port (1 to 65535)"),
            ("mqtt://::1", "an IPv6 address stands in brackets: [::1]"),
            ("mqtt://[::1", "`[` has no `]`"),
            ("mqtt://[x]", "`x` is not an IPv6 address"),
            ("mqtt://a:1/topic", "nothing may follow the port"),
            ("mqtt://u@a", "the user name belongs into mqtt.username"),
        ] {
            assert_eq!(mqtt_url(bad), Err(why.to_owned()), "{bad}");
        }
        let redis = |addresses: &[(&str, u16)], master: Option<&str>, tls, database| {
            let address = |&(host, port): &(&str, u16)| Address { host: host.to_owned(), port };
            let addresses = addresses.iter().map(address).collect();
            Ok(RedisUrl { addresses, master: master.map(str::to_owned), tls, database })
        };
        assert_eq!(redis_url("rediss://cache:7000/3"), redis(&[("cache", 7000)], None, true, 3));
        assert_eq!(redis_url("redis://a, [::1]:2"), redis(&[("a", 6379), ("::1", 2)], None, false, 0));
        let sentinels = redis(&[("a", 26379), ("b", 1)], Some("main"), false, 2);
        assert_eq!(redis_url("redis+sentinel://a,b:1/main/2"), sentinels);
        assert_eq!(redis_url("rediss+sentinel://a/main"), redis(&[("a", 26379)], Some("main"), true, 0));
        for (bad, why) in [
            ("redis://cache/x", "`x` is not a database number"),
            ("redis://a,,b", "the host is missing"),
            ("redis+sentinel://a", "behind the Sentinels the name of the master is missing: /mymaster"),
            ("redis+sentinel://a/main/x", "`x` is not a database number"),
            ("amqp://a", "the scheme `amqp` is not redis, rediss, redis+sentinel or rediss+sentinel"),
        ] {
            assert_eq!(redis_url(bad), Err(why.to_owned()), "{bad}");
        }
        let many = format!("redis://{}", ["a"; 17].join(","));
        assert_eq!(redis_url(&many), Err("17 addresses, at most 16 are allowed".to_owned()));
        let url = |port, tls, path: &str| {
            Ok(RegistryUrl { address: Address { host: "r".into(), port }, tls, path: path.into() })
        };
        assert_eq!(registry_url("http://r:8081"), url(8081, false, ""));
        assert_eq!(registry_url("https://r/apis/ccompat/v7/"), url(443, true, "/apis/ccompat/v7"));
        for (bad, why) in [
            ("r:8081", "no `http://` in front"),
            ("ftp://r", "the scheme `ftp` is not http or https"),
            ("http://r/a b", "` ` is not allowed in the path"),
            ("http://u@r", "the user name belongs into schema_registry.username"),
        ] {
            assert_eq!(registry_url(bad), Err(why.to_owned()), "{bad}");
        }
        assert_eq!(brokers("a, b:1,[::1]:2"), Ok("a:9092,b:1,[::1]:2".to_owned()));
        assert_eq!(brokers("kafka://a"), Err("`a` without `kafka://` is meant".to_owned()));
        assert_eq!(brokers("a:1,"), Err("the host is missing".to_owned()));
    }

    #[test]
    fn properties_that_the_sink_sets_are_refused() {
        for (name, _) in kafka::OWN_PROPERTIES {
            assert!(property_refused(name).is_some(), "{name}");
        }
        let reason = "the order of events and the absence of duplicates rest on it".to_owned();
        assert_eq!(property_refused("enable.idempotence"), Some(reason));
        assert_eq!(property_refused("broker.address.family"), None);
    }

    #[test]
    fn modes_and_topics() {
        assert_eq!(mode("0660"), Ok(0o660));
        assert_eq!(mode("600"), Ok(0o600));
        for bad in ["", "66", "0o660", "rw", "4755", "0999"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
        assert!(kafka_topic("site-1.{source_type}.{type}").is_ok());
        assert_eq!(kafka_topic_fixed("a.b"), Ok("a.b".to_owned()));
        assert_eq!(kafka_topic_fixed("{type}"), Err("no placeholder is allowed here".to_owned()));
        assert!(kafka_key("").is_ok() && kafka_key(&"x".repeat(256)).is_ok());
        assert_eq!(kafka_key(&"x".repeat(257)).unwrap_err(), "257 bytes long");
        assert_eq!(
            kafka_key("{payload}").unwrap_err(),
            "the only placeholders are {source_type}, {source_id}, {type}, {id}"
        );
        for (bad, why) in [
            ("", "empty"),
            ("..", "Kafka reserves this name"),
            ("a/b", "`/` is not allowed"),
            ("{id}", "the only placeholders are {source_type}, {source_id}, {type}"),
        ] {
            assert_eq!(kafka_topic(bad).unwrap_err(), why);
        }
    }
}
