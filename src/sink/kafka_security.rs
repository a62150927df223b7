//! How Kafka is trusted and lets the agent in: librdkafka's properties from files that are read for each producer, tokens
//! from a file that is read whenever one is due, and words for what is refused.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use serde::Deserialize;
use tokio::sync::Notify;

use super::ProducerError;
use crate::files::{self, FileError, Watched};
use crate::secret::Password;
use crate::tls;

/// A token is some kilobytes; above this it is something else.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// Longest handshake that is made to find out why librdkafka's failed.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_secs(2);

/// How the agent logs in with a name and a password, or with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// The password as it is: only over TLS.
    Plain,
    /// A proof of the password, by SHA-256.
    ScramSha256,
    /// A proof of the password, by SHA-512.
    ScramSha512,
    /// A token that somebody else issued.
    OAuthBearer,
}

impl Mechanism {
    fn word(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OAuthBearer => "OAUTHBEARER",
        }
    }
}

/// What the agent logs in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A user.
    Password {
        /// All but [`Mechanism::OAuthBearer`].
        mechanism: Mechanism,
        /// Its name.
        username: String,
        /// Its password.
        password: Password,
    },
    /// A token.
    Token {
        /// Where it is; read whenever one is due.
        file: PathBuf,
    },
}

/// TLS and the login.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// `None`: without TLS.
    pub tls: Option<tls::Options>,
    /// `None`: without a login.
    pub login: Option<Login>,
}

impl Security {
    /// Whether a password crosses the network as it is.
    pub fn tells_password(&self) -> bool {
        let is_plain = matches!(
            &self.login,
            Some(Login::Password { mechanism: Mechanism::Plain, .. } | Login::Token { .. })
        );
        is_plain && self.tls.is_none()
    }

    /// Sets what librdkafka calls these things.
    pub(super) fn apply(&self, config: &mut ClientConfig) -> Result<(), ProducerError> {
        let protocol = match (&self.tls, &self.login) {
            (None, None) => return Ok(()),
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(tls) = &self.tls {
            // librdkafka reads the files by itself and words its complaints in its own way.
            tls.connector().map_err(|error| {
                ProducerError::File(format!("{error}; see kafka.ca_file, kafka.cert_file and kafka.key_file"))
            })?;
            let path = |path: &Path| path.to_string_lossy().into_owned();
            // "probe": where distributions keep what they trust; the OpenSSL that is built in has no place of its own.
            config.set("ssl.ca.location", tls.ca_file.as_deref().map_or_else(|| "probe".to_owned(), path));
            if let (Some(cert_file), Some(key_file)) = (&tls.cert_file, &tls.key_file) {
                config.set("ssl.certificate.location", path(cert_file));
                config.set("ssl.key.location", path(key_file));
            }
            if let Some(password) = &tls.key_password {
                let password = password.read().map_err(|error| refused(&error, "kafka.key_password_file"))?;
                config.set("ssl.key.password", password.reveal());
            }
        }
        match &self.login {
            None => {}
            Some(Login::Password { mechanism, username, password }) => {
                let password = password.read().map_err(|error| refused(&error, "kafka.password_file"))?;
                config.set("sasl.mechanism", mechanism.word());
                config.set("sasl.username", username).set("sasl.password", password.reveal());
            }
            Some(Login::Token { .. }) => {
                config.set("sasl.mechanism", Mechanism::OAuthBearer.word());
            }
        }
        Ok(())
    }

    /// The files that a producer is made from. A token's is not among them: it is read in time without a new producer.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let password = match &self.login {
            Some(Login::Password { password, .. }) => password.path().map(PathBuf::from),
            _ => None,
        };
        self.tls.iter().flat_map(tls::Options::paths).chain(password)
    }

    /// The token of OAUTHBEARER as it is now.
    pub(super) fn token(&self) -> Result<OAuthToken, Box<dyn Error>> {
        match &self.login {
            Some(Login::Token { file }) => Ok(token(file)?),
            _ => Err("no token is configured".into()),
        }
    }

    /// Whether an error that librdkafka reports is about being trusted or let in.
    pub(super) fn is_about(&self, code: Option<RDKafkaErrorCode>, reason: &str) -> bool {
        is_login(code)
            || code == Some(RDKafkaErrorCode::SSL)
            || (self.tls.is_some() && reason.contains("alert"))
    }

    /// What to do about such an error. May shake hands with the broker once, for up to two seconds.
    pub(super) fn remedy(&self, code: Option<RDKafkaErrorCode>, reason: &str) -> String {
        if is_login(code) {
            return self.wrong_login().to_owned();
        }
        let (host, port) = broker_of(reason).unwrap_or(("the broker", 0));
        let found = self.tls.as_ref().and_then(|tls| {
            // librdkafka says of a server's certificate only that it could not be verified.
            let look = || tls::diagnose(tls, "kafka", host, port, DIAGNOSIS_TIMEOUT);
            tls.remedy(reason, "kafka", host).or_else(look)
        });
        found.unwrap_or_else(|| "look at kafka.tls and kafka.ca_file".to_owned())
    }

    fn wrong_login(&self) -> &'static str {
        match &self.login {
            Some(Login::Token { .. }) => {
                "the token is not accepted or cannot be read: look at the file of kafka.token_file"
            }
            Some(Login::Password { .. }) => {
                "the user name or password is wrong, or the user does not exist for this mechanism: look at kafka.username, \
                 kafka.sasl_mechanism and the file of kafka.password_file"
            }
            None => "the brokers want a login: set kafka.sasl_mechanism",
        }
    }
}

fn is_login(code: Option<RDKafkaErrorCode>) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Some(Code::Authentication | Code::SaslAuthenticationFailed))
}

fn refused(error: &FileError, key: &str) -> ProducerError {
    ProducerError::File(format!("{error}; see {key}"))
}

/// Host and port in "sasl_ssl://host:port/bootstrap: what happened".
fn broker_of(reason: &str) -> Option<(&str, u16)> {
    let (_, rest) = reason.split_once("://")?;
    let (address, _) = rest.split_once('/')?;
    let (host, port) = address.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']), port.parse().ok()?))
}

/// What of a token's claims the client has to know; the broker judges them.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    /// Seconds since 1970; some issuers write a fraction.
    exp: f64,
}

fn token(path: &Path) -> Result<OAuthToken, FileError> {
    let bytes = files::read(path, TOKEN_BYTES_MAX)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::new(path, "is not UTF-8 text"))?.trim();
    let no_token = || FileError::new(path, "holds no token (a JWT with a time `exp`)");
    let body = text.split('.').nth(1).ok_or_else(no_token)?;
    let body = URL_SAFE_NO_PAD.decode(body.trim_end_matches('=')).map_err(|_| no_token())?;
    let claims: Claims = serde_json::from_slice(&body).map_err(|_| no_token())?;
    // Beyond 2^53 the conversion loses what nobody needs; NaN becomes 0, which is in the past.
    #[allow(clippy::cast_possible_truncation, reason = "saturates")]
    let lifetime_ms = (claims.exp * 1000.0) as i64;
    Ok(OAuthToken { token: text.to_owned(), principal_name: claims.sub, lifetime_ms })
}

/// The files of the producer in use, looked at whenever librdkafka's statistics come, every two seconds.
#[derive(Debug)]
pub(super) struct Changes {
    watched: Mutex<Watched>,
    is_changed: AtomicBool,
    /// Told when a file changed, and when a successor is connected.
    pub(super) news: Notify,
}

impl Changes {
    pub(super) fn new(security: &Security) -> Self {
        Self {
            watched: Mutex::new(Watched::new(security.paths())),
            is_changed: AtomicBool::new(false),
            news: Notify::new(),
        }
    }

    pub(super) fn look(&self) {
        if self.watched.lock().unwrap_or_else(PoisonError::into_inner).is_changed() {
            self.is_changed.store(true, Ordering::Relaxed);
            self.news.notify_one();
        }
    }

    /// Whether there was a change since the last call.
    pub(super) fn take(&self) -> bool {
        self.is_changed.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_token_says_whose_it_is_and_how_long_it_lasts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let jwt = |claims: &str| format!("e30.{}.c2ln\n", URL_SAFE_NO_PAD.encode(claims));
        fs::write(&path, jwt(r#"{"sub":"agent","exp":1700000000.5,"aud":["kafka"]}"#)).unwrap();
        let token = token(&path).unwrap();
        assert_eq!((token.principal_name.as_str(), token.lifetime_ms), ("agent", 1_700_000_000_500));
        assert!(!token.token.ends_with('\n'));
        for bad in ["".to_owned(), "a.b".to_owned(), jwt("{}"), jwt(r#"{"exp":"x"}"#), "hush".to_owned()] {
            fs::write(&path, &bad).unwrap();
            let said = super::token(&path).map(|_| ()).unwrap_err().to_string();
            assert!(said.ends_with("holds no token (a JWT with a time `exp`)"), "{bad}: {said}");
        }
    }

    #[test]
    fn the_broker_is_found_in_what_librdkafka_says() {
        assert_eq!(broker_of("ssl://kafka-1:9093/bootstrap: x"), Some(("kafka-1", 9093)));
        assert_eq!(broker_of("sasl_ssl://[::1]:9093/1: x"), Some(("::1", 9093)));
        assert_eq!(broker_of("GroupCoordinator: x"), None);
    }
}
