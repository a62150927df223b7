//! No TLS in this build: nothing here is ever reached, because the configuration refuses what needs it.

use std::io;
use std::net::TcpStream;
use std::path::Path;

use super::{ABSENT, Options, TlsError};

/// Cannot be made.
#[derive(Debug, Clone)]
pub enum Connector {}

/// Cannot be made.
#[derive(Debug, Clone)]
pub enum Acceptor {}

/// Never made.
pub type Stream = tokio::net::TcpStream;

pub(super) fn connector(_options: &Options) -> Result<Connector, TlsError> {
    Err(TlsError::Setup(ABSENT.to_owned()))
}

/// The TLS library, by name and version.
pub fn library_version() -> String {
    "no TLS".to_owned()
}

pub(super) fn acceptor(_options: &Options) -> Result<Acceptor, TlsError> {
    Err(TlsError::Setup(ABSENT.to_owned()))
}

/// Fails: there is no TLS.
///
/// # Errors
/// Always.
pub fn beside_system(_ca_file: Option<&Path>) -> Result<Connector, TlsError> {
    Err(TlsError::Setup(ABSENT.to_owned()))
}

/// Never called: there is no connector.
///
/// # Errors
/// None.
///
/// Cancel safe: yes.
pub async fn connect(connector: Connector, _host: &str, _tcp: tokio::net::TcpStream) -> io::Result<Stream> {
    match connector {}
}

/// Never called: there is no acceptor.
///
/// # Errors
/// None.
///
/// Cancel safe: yes.
pub async fn accept(acceptor: Acceptor, _tcp: tokio::net::TcpStream) -> io::Result<Stream> {
    match acceptor {}
}

pub(super) fn complaint(connector: &Connector, _host: &str, _stream: TcpStream) -> Option<String> {
    match *connector {}
}

pub(super) fn is_expired(_path: &Path) -> bool {
    false
}
