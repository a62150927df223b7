//! The keys by which a service is trusted and lets the agent in: TLS of every section, and Kafka's login.

use std::path::PathBuf;

use super::super::reader::{Key, Reader};
use super::username;
use crate::secret::Password;
use crate::sink::kafka_security::{Login, Mechanism, Security};
use crate::tls;

/// The names of one section's keys: they are known to the compiler because the manual is made from them.
pub(super) struct TlsKeys {
    ca_file: &'static str,
    cert_file: &'static str,
    key_file: &'static str,
    key_password: &'static str,
    key_password_file: &'static str,
    key_password_meaning: &'static str,
    /// What turns TLS on.
    switch: &'static str,
    /// The key of that.
    switch_key: &'static str,
}

/// `[mqtt]`.
pub(super) const MQTT: TlsKeys = TlsKeys {
    ca_file: "mqtt.ca_file",
    cert_file: "mqtt.cert_file",
    key_file: "mqtt.key_file",
    key_password: "mqtt.key_password",
    key_password_file: "mqtt.key_password_file",
    key_password_meaning: "File that holds the password of an encrypted `key_file`; or the variable \
                           FIELDPOST_MQTT__KEY_PASSWORD.",
    switch: "mqtts:// in mqtt.url",
    switch_key: "mqtt.url",
};

/// `[redis]`.
pub(super) const REDIS: TlsKeys = TlsKeys {
    ca_file: "redis.ca_file",
    cert_file: "redis.cert_file",
    key_file: "redis.key_file",
    key_password: "redis.key_password",
    key_password_file: "redis.key_password_file",
    key_password_meaning: "File that holds the password of an encrypted `key_file`; or the variable \
                           FIELDPOST_REDIS__KEY_PASSWORD.",
    switch: "rediss:// in redis.url",
    switch_key: "redis.url",
};

const KAFKA: TlsKeys = TlsKeys {
    ca_file: "kafka.ca_file",
    cert_file: "kafka.cert_file",
    key_file: "kafka.key_file",
    key_password: "kafka.key_password",
    key_password_file: "kafka.key_password_file",
    key_password_meaning: "File that holds the password of an encrypted `key_file`; or the variable \
                           FIELDPOST_KAFKA__KEY_PASSWORD.",
    switch: "kafka.tls = true",
    switch_key: "kafka.tls",
};

/// The files of TLS; `None` when it is off.
pub(super) fn tls_files(r: &mut Reader, keys: &TlsKeys, is_on: bool) -> Option<tls::Options> {
    let ca_file = r.file(
        Key {
            name: keys.ca_file,
            meaning: "Certificates of the authorities that may have signed the server's, PEM. Read again when it changed.",
            delivery: "",
        },
        ("those that the system trusts", "ca.pem"),
    );
    let cert_file = r.file(
        Key {
            name: keys.cert_file,
            meaning: "The agent's certificate for mutual TLS, with its chain, PEM. Read again when it changed.",
            delivery: "",
        },
        ("the agent shows none", "agent.pem"),
    );
    let key_file = r.file(
        Key {
            name: keys.key_file,
            meaning: "Private key of `cert_file`, PEM. Read again when it changed.",
            delivery: "",
        },
        ("the agent shows no certificate", "agent.key"),
    );
    let key_password = r.secret(
        keys.key_password,
        Key { name: keys.key_password_file, meaning: keys.key_password_meaning, delivery: "" },
        "agent.key-password",
    );
    built_in(r, is_on, keys.switch_key);
    let needs = |what: &str| format!("needs {what}");
    for (name, file) in [(keys.ca_file, &ca_file), (keys.cert_file, &cert_file), (keys.key_file, &key_file)] {
        r.relation(file.is_none() || is_on, name, &[], needs(keys.switch));
    }
    pair(r, (keys.cert_file, &cert_file), (keys.key_file, &key_file));
    r.relation(
        key_password.is_none() || key_file.is_some(),
        keys.key_password_file,
        &[keys.key_file],
        needs(keys.key_file),
    );
    is_on.then_some(tls::Options { ca_file, cert_file, key_file, key_password })
}

/// A certificate and its key: neither is of use alone.
fn pair(
    r: &mut Reader,
    (cert_name, cert): (&'static str, &Option<PathBuf>),
    (key_name, key): (&'static str, &Option<PathBuf>),
) {
    for (name, file, needed, other) in [(cert_name, cert, key_name, key), (key_name, key, cert_name, cert)] {
        r.relation(file.is_none() || other.is_some(), name, &[needed], format!("needs {needed}"));
    }
}

/// The certificate that the agent's own HTTP shows; `None`: it speaks no TLS.
pub(super) fn own_tls(r: &mut Reader, is_served: bool) -> Option<tls::Options> {
    let cert_file = r.file(
        Key {
            name: "http.cert_file",
            meaning: "Certificate that the agent shows, with its chain, PEM: then it speaks TLS and nothing else. Read at each \
                      connection.",
            delivery: "",
        },
        ("no TLS", "http.pem"),
    );
    let key_file = r.file(
        Key {
            name: "http.key_file",
            meaning: "Private key of `cert_file`, PEM, not encrypted. Read at each connection.",
            delivery: "",
        },
        ("no TLS", "http.key"),
    );
    built_in(r, cert_file.is_some(), "http.cert_file");
    pair(r, ("http.cert_file", &cert_file), ("http.key_file", &key_file));
    r.relation(
        cert_file.is_none() || is_served,
        "http.cert_file",
        &["http.listen"],
        "needs http.listen".to_owned(),
    );
    let tls = tls::Options { cert_file, key_file, ..tls::Options::default() };
    tls.cert_file.is_some().then_some(tls)
}

/// Refuses the value of `key` in a build without TLS if it is one that needs it.
pub(super) fn built_in(r: &mut Reader, is_needed: bool, key: &'static str) {
    r.relation(!is_needed || tls::IS_BUILT_IN, key, &[], tls::ABSENT.to_owned());
}

/// How the agent gets into Kafka.
pub(super) fn kafka(r: &mut Reader) -> Security {
    let is_on = r.fact(
        Key {
            name: "kafka.tls",
            meaning: "Speak TLS to the brokers. Their certificates are verified, names included.",
            delivery: "",
        },
        false,
    );
    let tls = tls_files(r, &KAFKA, is_on);
    let mechanism = r.optional_one_of(
        Key {
            name: "kafka.sasl_mechanism",
            meaning: "How to log in: with `username` and a password, or OAUTHBEARER with a token.",
            delivery: "",
        },
        ("no login", "SCRAM-SHA-512"),
        [
            ("PLAIN", Mechanism::Plain),
            ("SCRAM-SHA-256", Mechanism::ScramSha256),
            ("SCRAM-SHA-512", Mechanism::ScramSha512),
            ("OAUTHBEARER", Mechanism::OAuthBearer),
        ],
    );
    // librdkafka takes the digests of SCRAM from OpenSSL, and has its tokens only with it.
    let needs_openssl = mechanism.is_some_and(|mechanism| mechanism != Mechanism::Plain);
    built_in(r, needs_openssl, "kafka.sasl_mechanism");
    let username = username(r, "kafka.username", "User of PLAIN and SCRAM.");
    let password = r.secret(
        "kafka.password",
        Key {
            name: "kafka.password_file",
            meaning: "File that holds the password and nothing else; or the variable FIELDPOST_KAFKA__PASSWORD. Read again \
                      when it changed.",
            delivery: "",
        },
        "kafka-password",
    );
    let token_file = r.file(
        Key {
            name: "kafka.token_file",
            meaning: "File that holds the token of OAUTHBEARER (a JWT), which something else keeps fresh. Read whenever one \
                      is due.",
            delivery: "",
        },
        ("no token", "kafka-token"),
    );
    Security { tls, login: login(r, mechanism, username, password, token_file) }
}

fn login(
    r: &mut Reader,
    mechanism: Option<Mechanism>,
    username: Option<String>,
    password: Option<Password>,
    token_file: Option<PathBuf>,
) -> Option<Login> {
    const MECHANISM: &str = "kafka.sasl_mechanism";
    let by_token = mechanism == Some(Mechanism::OAuthBearer);
    let by_password = mechanism.is_some() && !by_token;
    let others = ["kafka.username", "kafka.password_file", "kafka.token_file"];
    let mut rule = |holds: bool, key, what: &str| r.relation(holds, key, &others, what.to_owned());
    let secret = "needs kafka.username and kafka.password_file (or the variable FIELDPOST_KAFKA__PASSWORD)";
    rule(!by_password || (username.is_some() && password.is_some()), MECHANISM, secret);
    rule(!by_token || token_file.is_some(), MECHANISM, "needs kafka.token_file");
    let of_password =
        "is for kafka.sasl_mechanism PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512: set that or remove it";
    rule(username.is_none() || by_password, "kafka.username", of_password);
    rule(password.is_none() || by_password, "kafka.password_file", of_password);
    let of_token = "is for kafka.sasl_mechanism OAUTHBEARER: set that or remove it";
    rule(token_file.is_none() || by_token, "kafka.token_file", of_token);
    match (mechanism?, username, password, token_file) {
        (Mechanism::OAuthBearer, _, _, Some(file)) => Some(Login::Token { file }),
        (mechanism, Some(username), Some(password), _) => {
            Some(Login::Password { mechanism, username, password })
        }
        _ => None,
    }
}
