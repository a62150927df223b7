//! TLS to the services: what is trusted, who the agent is, and what to do when a handshake fails. The only file that
//! names the TLS library; Kafka's client brings its own way to the same OpenSSL (`sink::kafka_security`).
//!
//! The promise: a server's certificate is always verified, its name included; there is no switch that turns it off.
//! Certificates and keys are read from their files whenever a connection is made.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use native_tls::{Certificate, HandshakeError, Identity};
use openssl::asn1::Asn1Time;
use openssl::pkey::PKey;
use openssl::x509::X509;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::files::{self, FileError};
use crate::secret::Password;

/// Makes TLS connections.
pub use native_tls::TlsConnector as Connector;

/// A bundle of every public authority has a quarter of this.
const PEM_BYTES_MAX: u64 = 1 << 20;

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
    /// OpenSSL refuses them together.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl Options {
    /// Reads the files and makes what connections are made with.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn connector(&self) -> Result<Connector, TlsError> {
        let setup = |error: &dyn std::error::Error| TlsError::Setup(error.to_string());
        let mut builder = Connector::builder();
        if let Some(path) = &self.ca_file {
            builder.disable_built_in_roots(true);
            let pem = files::read(path, PEM_BYTES_MAX)?;
            let found = Certificate::stack_from_pem(&pem).unwrap_or_default();
            if found.is_empty() {
                return Err(no_certificate(path).into());
            }
            for authority in found {
                builder.add_root_certificate(authority);
            }
        }
        if let (Some(cert_file), Some(key_file)) = (&self.cert_file, &self.key_file) {
            let chain = files::read(cert_file, PEM_BYTES_MAX)?;
            let key = self.key(key_file)?;
            let first = X509::stack_from_pem(&chain).ok().and_then(|found| found.into_iter().next());
            let first = first.ok_or_else(|| no_certificate(cert_file))?;
            let public = first.public_key().map_err(|error| setup(&error))?;
            if !key.public_eq(&public) {
                let what = format!("is not the key of the certificate in {}", cert_file.display());
                return Err(FileError::new(key_file, what).into());
            }
            let plain = key.private_key_to_pem_pkcs8().map(Zeroizing::new).map_err(|error| setup(&error))?;
            builder.identity(Identity::from_pkcs8(&chain, &plain).map_err(|error| setup(&error))?);
        }
        builder.build().map_err(|error| setup(&error))
    }

    fn key(&self, path: &std::path::Path) -> Result<PKey<openssl::pkey::Private>, TlsError> {
        let pem = files::read(path, PEM_BYTES_MAX)?;
        let password = self.key_password.as_ref().map(Password::read).transpose()?;
        // Always with a password: without one OpenSSL would ask the terminal.
        let given = password.as_ref().map_or("", |password| password.reveal());
        PKey::private_key_from_pem_passphrase(&pem, given.as_bytes()).map_err(|_| {
            let is_encrypted = pem.windows(9).any(|bytes| bytes == b"ENCRYPTED");
            let what = match (is_encrypted, password.is_some()) {
                (false, _) => "holds no private key in PEM form",
                (true, true) => "does not open with the password of key_password_file",
                (true, false) => "is encrypted: set key_password_file",
            };
            FileError::new(path, what).into()
        })
    }

    /// The files that are read.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let files = [&self.ca_file, &self.cert_file, &self.key_file].into_iter().flatten().cloned();
        files.chain(self.key_password.as_ref().and_then(Password::path).map(PathBuf::from))
    }
}

fn no_certificate(path: &std::path::Path) -> FileError {
    FileError::new(path, "holds no certificate in PEM form")
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
        let own = files::read(path, PEM_BYTES_MAX).ok().and_then(|pem| X509::from_pem(&pem).ok());
        let is_expired =
            own.is_some_and(|own| Asn1Time::days_from_now(0).is_ok_and(|now| own.not_after() < now));
        if is_expired || is_said_expired {
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
    let said = match connector.connect(host, stream) {
        Err(HandshakeError::Failure(error)) => error.to_string(),
        Err(HandshakeError::WouldBlock(_)) => return None,
        Ok(mut stream) => {
            // With TLS 1.3 a server speaks of the client's certificate only after the handshake. A zero byte begins no
            // request of Kafka's that is ever whole.
            let sent = stream.write_all(&[0]).and_then(|()| stream.flush());
            sent.and_then(|()| stream.read(&mut [0]).map(drop)).err()?.to_string()
        }
    };
    match options.remedy(&said, section, host) {
        Some(remedy) => Some(remedy),
        None => said.contains("SSL").then_some(said),
    }
}

#[cfg(test)]
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
