//! TLS to the services, and of the agent's own HTTP: what is trusted, who the agent is, and what to do when a handshake fails. `openssl` alone names
//! the TLS library; Kafka's client brings its own way to the same OpenSSL (`sink::kafka_security`). A build without the
//! feature `tls` has `absent` in its place, and its configuration takes nothing that needs TLS.
//!
//! The promise: a server's certificate is always verified, its name included; there is no switch that turns it off.
//! Certificates and keys are read from their files whenever a connection is made.

#[cfg(not(feature = "tls"))]
#[path = "absent.rs"]
mod library;
#[cfg(feature = "tls")]
#[path = "openssl.rs"]
mod library;

use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::files::FileError;
use crate::secret::Password;

pub use library::{Acceptor, Connector, Stream, accept, beside_system, connect, library_version};

/// Whether this build speaks TLS.
pub const IS_BUILT_IN: bool = cfg!(feature = "tls");

/// What the configuration answers to what needs TLS in a build without it.
pub const ABSENT: &str = "needs TLS, which this build of fieldpost was made without: take the full one";

/// What the agent trusts and how it proves who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Authorities in PEM form, the only ones trusted; none: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The agent's certificate and its chain, in PEM form.
    pub cert_file: Option<PathBuf>,
    /// Its key, in PEM form.
    pub key_file: Option<PathBuf>,
    /// What the key is encrypted with.
    pub key_password: Option<Password>,
}

/// TLS cannot be set up from these files. Class: retry, once somebody mended them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read or holds something else.
    #[error(transparent)]
    File(#[from] FileError),
    /// OpenSSL refuses them together, or is not there.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl Options {
    /// Reads the files and makes what connections are made with.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn connector(&self) -> Result<Connector, TlsError> {
        library::connector(self)
    }

    /// Reads certificate and key and makes what connections are taken with, TLS 1.2 and newer.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn acceptor(&self) -> Result<Acceptor, TlsError> {
        library::acceptor(self)
    }

    /// The files that are read.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let files = [&self.ca_file, &self.cert_file, &self.key_file].into_iter().flatten().cloned();
        files.chain(self.key_password.as_ref().and_then(Password::path).map(PathBuf::from))
    }
}

/// OpenSSL's words for what is wrong with a server's certificate, the same since 1.0 (`X509_verify_cert_error_string`;
/// "self signed" has got a hyphen in 3.0).
const UNKNOWN_AUTHORITY: [&str; 5] = [
    "self-signed certificate",
    "self signed certificate",
    "unable to get local issuer",
    "unable to get issuer",
    "unable to verify the first",
];

/// What OpenSSL says where the other side speaks something else.
const NO_TLS: [&str; 4] =
    ["wrong version number", "packet length too long", "unexpected eof", "record layer failure"];

impl Options {
    /// What to do about a failed handshake, from what OpenSSL said of it; `section` is that of the keys.
    pub fn remedy(&self, said: &str, section: &str, host: &str) -> Option<String> {
        let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
        // An alert is what the server says of the agent; some servers have one for everything.
        if has(&["alert"]) && has(&["certificate", "unknown ca", "handshake failure", "access denied"]) {
            return Some(self.remedy_of_own(has(&["alert certificate expired"]), section));
        }
        let text = if has(&["certificate has expired"]) {
            "the server's certificate has expired: renew it there, or set this machine's clock if that is wrong"
                .to_owned()
        } else if has(&["certificate is not yet valid"]) {
            "the server's certificate is not valid yet: look at this machine's clock".to_owned()
        } else if has(&["ostname mismatch", "IP address mismatch"]) {
            let address = if section == "kafka" { "brokers (and advertised.listeners there)" } else { "url" };
            format!(
                "the server's certificate is not for {host}: use a name that it is for in {section}.{address}, or give \
                 the server one for {host}"
            )
        } else if has(&UNKNOWN_AUTHORITY) {
            format!(
                "no authority that the agent trusts has signed the server's certificate: set {section}.ca_file to the \
                 certificate of the one that did"
            )
        } else if has(&NO_TLS) {
            "the port does not seem to speak TLS: look at the port, and whether TLS is on at the server"
                .to_owned()
        } else {
            return None;
        };
        Some(text)
    }

    /// The server refused the agent's certificate, or its absence.
    fn remedy_of_own(&self, is_said_expired: bool, section: &str) -> String {
        let Some(path) = &self.cert_file else {
            return format!(
                "the server wants a certificate of the agent: set {section}.cert_file and {section}.key_file to one \
                 that it trusts"
            );
        };
        if library::is_expired(path) || is_said_expired {
            return format!("the agent's certificate has expired: renew the file of {section}.cert_file");
        }
        format!(
            "the server does not trust the agent's certificate: let an authority that it knows sign the one of \
             {section}.cert_file"
        )
    }
}

/// Shakes hands once and says what is wrong, for callers whose library does not tell: with the remedy where one is
/// known. `None`: nothing is wrong, or nobody answers in time. Blocks for up to `timeout`.
pub fn diagnose(
    options: &Options,
    section: &str,
    host: &str,
    port: u16,
    timeout: Duration,
) -> Option<String> {
    let deadline = Instant::now() + timeout;
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let connector = match options.connector() {
        Ok(connector) => connector,
        Err(error) => return Some(error.to_string()),
    };
    let mut addresses = (host, port).to_socket_addrs().ok()?;
    let stream = addresses.find_map(|address| TcpStream::connect_timeout(&address, left()).ok())?;
    stream.set_read_timeout(Some(left())).ok()?;
    stream.set_write_timeout(Some(left())).ok()?;
    let said = library::complaint(&connector, host, stream)?;
    match options.remedy(&said, section, host) {
        Some(remedy) => Some(remedy),
        None => said.contains("SSL").then_some(said),
    }
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use openssl::ec::{EcGroup, EcKey};
    use openssl::nid::Nid;
    use openssl::symm::Cipher;

    use super::*;
    use crate::secret::Secret;

    #[test]
    fn a_file_that_is_of_no_use_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join(name));
        let write = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = EcKey::generate(&group).unwrap();
        write("plain.key", &key.private_key_to_pem().unwrap());
        let sealed = key.private_key_to_pem_passphrase(Cipher::aes_128_cbc(), b"right").unwrap();
        write("sealed.key", &sealed);
        write("text", b"hush");
        let password = |text: &str| Some(Password::Given(Secret::new(text)));
        let own = |key: &str| Options { cert_file: path("text"), key_file: path(key), ..Options::default() };
        for (options, wanted) in [
            (
                Options { ca_file: path("text"), ..Options::default() },
                "text holds no certificate in PEM form",
            ),
            (own("nowhere"), "nowhere cannot be read: No such file or directory (os error 2)"),
            (own("text"), "text holds no private key in PEM form"),
            (own("plain.key"), "text holds no certificate in PEM form"),
            (own("sealed.key"), "sealed.key is encrypted: set key_password_file"),
            (
                Options { key_password: password("wrong"), ..own("sealed.key") },
                "sealed.key does not open with the password of key_password_file",
            ),
            (
                Options { key_password: password("right"), ..own("sealed.key") },
                "text holds no certificate in PEM form",
            ),
        ] {
            let said = options.connector().map(|_| ()).unwrap_err().to_string();
            assert!(said.ends_with(wanted) && !said.contains("hush"), "{said}");
        }
        assert!(Options::default().connector().is_ok());
    }

    #[test]
    fn what_openssl_says_has_a_remedy() {
        let bare = Options::default();
        let own = Options { cert_file: Some("/nowhere".into()), ..Options::default() };
        for (options, said, wanted) in [
            (&bare, "certificate verify failed (certificate has expired)", "renew it there"),
            (&bare, "verify failed (certificate is not yet valid)", "clock"),
            (&bare, "verify failed (Hostname mismatch)", "in mqtt.url"),
            (&bare, "verify failed (IP address mismatch)", "in mqtt.url"),
            (&bare, "self-signed certificate in certificate chain", "set mqtt.ca_file"),
            (&bare, "unable to get local issuer certificate", "set mqtt.ca_file"),
            (&bare, "tlsv13 alert certificate required", "set mqtt.cert_file and mqtt.key_file"),
            (&own, "ssl/tls alert certificate expired", "renew the file of mqtt.cert_file"),
            (&own, "tlsv1 alert unknown ca", "does not trust the agent's certificate"),
            (&own, "wrong version number", "does not seem to speak TLS"),
        ] {
            let remedy = options.remedy(said, "mqtt", "gateway").unwrap_or_default();
            assert!(remedy.contains(wanted), "{said}: {remedy}");
        }
        assert_eq!(bare.remedy("Connection refused", "mqtt", "gateway"), None);
    }
}
