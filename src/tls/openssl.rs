//! TLS by OpenSSL.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use native_tls::{Certificate, HandshakeError, Identity, Protocol};
use openssl::asn1::Asn1Time;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;
use zeroize::Zeroizing;

use super::{Options, TlsError};
use crate::files::{self, FileError};

/// Makes TLS connections.
pub use native_tls::TlsConnector as Connector;

/// Takes TLS connections.
pub use native_tls::TlsAcceptor as Acceptor;

/// A connection.
pub type Stream = tokio_native_tls::TlsStream<tokio::net::TcpStream>;

/// A bundle of every public authority has a quarter of this.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// The TLS library, by name and version.
pub fn library_version() -> String {
    openssl::version::version().to_owned()
}

pub(super) fn connector(options: &Options) -> Result<Connector, TlsError> {
    let mut builder = Connector::builder();
    if let Some(path) = &options.ca_file {
        builder.disable_built_in_roots(true);
        for authority in authorities(path)? {
            builder.add_root_certificate(authority);
        }
    }
    if let (Some(cert_file), Some(key_file)) = (&options.cert_file, &options.key_file) {
        builder.identity(identity(options, cert_file, key_file)?);
    }
    builder.build().map_err(|error| setup(&error))
}

pub(super) fn acceptor(options: &Options) -> Result<Acceptor, TlsError> {
    let (Some(cert_file), Some(key_file)) = (&options.cert_file, &options.key_file) else {
        return Err(TlsError::Setup("a server needs a certificate and its key".to_owned()));
    };
    let mut builder = Acceptor::builder(identity(options, cert_file, key_file)?);
    builder.min_protocol_version(Some(Protocol::Tlsv12)).build().map_err(|error| setup(&error))
}

/// The certificate with its chain, and the key that belongs to it.
fn identity(options: &Options, cert_file: &Path, key_file: &Path) -> Result<Identity, TlsError> {
    let chain = files::read(cert_file, PEM_BYTES_MAX)?;
    let key = key(options, key_file)?;
    let first = X509::stack_from_pem(&chain).ok().and_then(|found| found.into_iter().next());
    let first = first.ok_or_else(|| no_certificate(cert_file))?;
    let public = first.public_key().map_err(|error| setup(&error))?;
    if !key.public_eq(&public) {
        let what = format!("is not the key of the certificate in {}", cert_file.display());
        return Err(FileError::new(key_file, what).into());
    }
    let plain = key.private_key_to_pem_pkcs8().map(Zeroizing::new).map_err(|error| setup(&error))?;
    Identity::from_pkcs8(&chain, &plain).map_err(|error| setup(&error))
}

/// Trusts what the system trusts, and the authorities in the file besides.
///
/// # Errors
/// [`TlsError`] names the file.
pub fn beside_system(ca_file: Option<&Path>) -> Result<Connector, TlsError> {
    let mut builder = Connector::builder();
    if let Some(path) = ca_file {
        for authority in authorities(path)? {
            builder.add_root_certificate(authority);
        }
    }
    builder.build().map_err(|error| setup(&error))
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, TlsError> {
    let pem = files::read(path, PEM_BYTES_MAX)?;
    let found = Certificate::stack_from_pem(&pem).unwrap_or_default();
    if found.is_empty() { Err(no_certificate(path).into()) } else { Ok(found) }
}

fn key(options: &Options, path: &Path) -> Result<PKey<Private>, TlsError> {
    let pem = files::read(path, PEM_BYTES_MAX)?;
    let password = options.key_password.as_ref().map(crate::secret::Password::read).transpose()?;
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

fn no_certificate(path: &Path) -> FileError {
    FileError::new(path, "holds no certificate in PEM form")
}

fn setup(error: &dyn std::error::Error) -> TlsError {
    TlsError::Setup(error.to_string())
}

/// Shakes hands with `host` over `tcp`.
///
/// # Errors
/// What OpenSSL says of it.
///
/// Cancel safe: no, the connection is closed when it is dropped.
pub async fn connect(connector: Connector, host: &str, tcp: tokio::net::TcpStream) -> io::Result<Stream> {
    let connected = tokio_native_tls::TlsConnector::from(connector).connect(host, tcp).await;
    connected.map_err(io::Error::other)
}

/// Shakes hands with a client over `tcp`.
///
/// # Errors
/// What OpenSSL says of it.
///
/// Cancel safe: no, the connection is closed when it is dropped.
pub async fn accept(acceptor: Acceptor, tcp: tokio::net::TcpStream) -> io::Result<Stream> {
    let accepted = tokio_native_tls::TlsAcceptor::from(acceptor).accept(tcp).await;
    accepted.map_err(io::Error::other)
}

/// What goes wrong in a handshake and right behind it; `None`: nothing in time.
pub(super) fn complaint(connector: &Connector, host: &str, stream: TcpStream) -> Option<String> {
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
    Some(said)
}

/// Whether the certificate in the file has expired, by this machine's clock.
pub(super) fn is_expired(path: &Path) -> bool {
    let own = files::read(path, PEM_BYTES_MAX).ok().and_then(|pem| X509::from_pem(&pem).ok());
    own.is_some_and(|own| Asn1Time::days_from_now(0).is_ok_and(|now| own.not_after() < now))
}
