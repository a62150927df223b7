//! A client of an agent's HTTP interface, for the commands that look at a running agent. Built with and without the server.
//!
//! The promise: every wait has an end. An answer comes whole within [`ANSWER_TIMEOUT`], a stream says something within
//! [`SILENCE_MAX`], and neither takes more memory than its limit. Nothing is tried again here. Nothing runs in the
//! background: a connection is served while somebody waits for it, and closed when it is dropped.

mod words;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Options;
use crate::error::Class;
use crate::files::FileError;
use crate::secret::Password;
use crate::tls;

pub use words::Word;
use words::Words;

/// Longest wait for a whole answer, or for a stream to begin.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream that says nothing for so long is gone: an agent says something each 15 s.
pub const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Longest quote of an answer in characters.
const QUOTE_CHARS_MAX: usize = 200;

/// Where an agent's HTTP interface is, and what lets one in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    is_tls: bool,
    host: String,
    port: u16,
    /// Before each path, without a slash at its end: for an interface behind a proxy.
    prefix: String,
    /// Trusted beside what the system trusts.
    ca_file: Option<PathBuf>,
    token: Option<Password>,
}

/// The agent did not answer as it should. The message says what to look at.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there. Try again later.
    #[error("cannot connect to {place}: {source}; does the agent run, with http.listen?")]
    Connect {
        /// Where.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// TLS failed. A human is needed.
    #[error("no TLS with {0}")]
    Tls(String),
    /// The connection ended. Try again.
    #[error("connection lost: {0}")]
    Lost(String),
    /// Nothing came in time. Try again.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The file of the token cannot be used. A human is needed.
    #[error("the token: {0}")]
    Token(#[from] FileError),
    /// The agent refuses the request. Try again if it is busy, else a human is needed.
    #[error("the agent answers {status}: {message}")]
    Refused {
        /// HTTP's number.
        status: u16,
        /// What it said.
        message: String,
    },
    /// That is no agent, or one of another version.
    #[error("this is not what an agent answers: {0}")]
    Strange(String),
}

impl ClientError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        match self {
            Self::Connect { .. } | Self::Lost(_) | Self::Silent(_) | Self::Refused { status: 500.., .. } => {
                Class::Retry
            }
            Self::Tls(_) | Self::Token(_) | Self::Refused { .. } | Self::Strange(_) => Class::Reject,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.prefix)
    }
}

impl Place {
    /// The interface of an agent with this configuration, on this machine.
    ///
    /// # Errors
    /// In words: nobody can know the port, or the name in the certificate.
    pub fn of(options: &Options) -> Result<Self, String> {
        if options.tls.is_some() {
            return Err("http.cert_file is set, and nobody but you knows for which name: --url https://NAME:PORT, with \
                        --ca-file where the system does not trust who signed it"
                .to_owned());
        }
        if options.listen.port() == 0 {
            return Err(
                "http.listen has port 0, which is another one at each start: name it by --url".to_owned()
            );
        }
        let host = match options.listen.ip() {
            ip if !ip.is_unspecified() => ip.to_string(),
            ip if ip.is_ipv4() => Ipv4Addr::LOCALHOST.to_string(),
            _ => Ipv6Addr::LOCALHOST.to_string(),
        };
        let (port, token) = (options.listen.port(), options.token.clone());
        Ok(Self { is_tls: false, host, port, prefix: String::new(), ca_file: None, token })
    }

    /// The interface at `url`: `http://host:port` or `https://…`, with a path before all others for one behind a proxy. The
    /// authorities in `ca_file` are trusted beside the system's.
    ///
    /// # Errors
    /// In words: what is wrong with the address.
    pub fn at(url: &str, ca_file: Option<PathBuf>, token: Option<Password>) -> Result<Self, String> {
        const FORM: &str = "an agent's address is http://HOST:PORT";
        let uri: Uri = url.parse().map_err(|error| format!("{error}: {FORM}"))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") if tls::IS_BUILT_IN => true,
            Some("https") => return Err(tls::ABSENT.to_owned()),
            _ => return Err(FORM.to_owned()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(FORM)?;
        if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(format!("{FORM}, without a query or a login"));
        }
        Ok(Self {
            is_tls,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            ca_file,
            token,
        })
    }

    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// The whole answer to `GET path`.
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// Cancel safe: yes, dropping it closes the connection.
    pub async fn get(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let asked = async {
            let mut answer = self.ask(path, "application/json", None).await?;
            answer.whole().await
        };
        timeout(ANSWER_TIMEOUT, asked).await.unwrap_or(Err(ClientError::Silent(ANSWER_TIMEOUT)))
    }

    /// Begins to follow the server-sent events of `path`, behind the one whose id is `last`.
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// Cancel safe: yes, dropping it closes the connection.
    pub async fn follow(&self, path: &str, last: Option<&str>) -> Result<Stream, ClientError> {
        let asked = self.ask(path, "text/event-stream", last);
        let answer =
            timeout(ANSWER_TIMEOUT, asked).await.unwrap_or(Err(ClientError::Silent(ANSWER_TIMEOUT)))?;
        Ok(Stream { answer, words: Words::default(), ready: VecDeque::new() })
    }

    async fn ask(&self, path: &str, accept: &str, last: Option<&str>) -> Result<Answer, ClientError> {
        let connect = |source| ClientError::Connect { place: self.to_string(), source };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(connect)?;
        if !self.is_tls {
            return self.ask_on(tcp, path, accept, last).await;
        }
        let no_tls = |error: &dyn fmt::Display| ClientError::Tls(format!("{self}: {error}"));
        let connector = tls::beside_system(self.ca_file.as_deref()).map_err(|error| no_tls(&error))?;
        let stream = tls::connect(connector, &self.host, tcp).await.map_err(|error| no_tls(&error))?;
        self.ask_on(stream, path, accept, last).await
    }

    async fn ask_on(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        path: &str,
        accept: &str,
        last: Option<&str>,
    ) -> Result<Answer, ClientError> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
        let mut request = Request::get(format!("{}{path}", self.prefix))
            .header(HOST, self.authority())
            .header(ACCEPT, accept);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.read()?.reveal()));
        }
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| ClientError::Strange(format!("no request can be made of it: {error}")))?;
        let mut driver: Driver = Box::pin(async {
            // How it ended, whoever waits for the answer learns too.
            let _ = connection.await;
        });
        let mut is_driven = true;
        let mut response = std::pin::pin!(sender.send_request(request));
        let response = loop {
            tokio::select! {
                biased;
                response = &mut response => break response.map_err(|error| lost(&error))?,
                () = &mut driver, if is_driven => is_driven = false,
            }
        };
        let status = response.status();
        let mut answer = Answer { driver, is_driven, body: response.into_body() };
        if status.is_success() { Ok(answer) } else { Err(refused(status, &answer.whole().await?)) }
    }
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An answer whose body comes bit by bit; its connection is served while it is read.
struct Answer {
    driver: Driver,
    is_driven: bool,
    body: Incoming,
}

impl Answer {
    /// Cancel safe: yes.
    async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame = tokio::select! {
                biased;
                frame = self.body.frame() => frame,
                () = &mut self.driver, if self.is_driven => {
                    self.is_driven = false;
                    continue;
                }
            };
            let Some(frame) = frame else { return Ok(None) };
            if let Ok(data) = frame.map_err(|error| lost(&error))?.into_data() {
                return Ok(Some(data));
            }
        }
    }

    async fn whole(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if whole.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(ClientError::Strange(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }
}

/// A stream of server-sent events.
pub struct Stream {
    answer: Answer,
    words: Words,
    ready: VecDeque<Word>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("ready", &self.ready.len()).finish_non_exhaustive()
    }
}

impl Stream {
    /// The next word; `None` at the end of the stream.
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// Cancel safe: yes.
    pub async fn next(&mut self) -> Result<Option<Word>, ClientError> {
        loop {
            if let Some(word) = self.ready.pop_front() {
                return Ok(Some(word));
            }
            let chunk = timeout(SILENCE_MAX, self.answer.chunk()).await;
            match chunk.unwrap_or(Err(ClientError::Silent(SILENCE_MAX)))? {
                None => return Ok(None),
                Some(chunk) => self.words.take(&chunk, &mut self.ready).map_err(ClientError::Strange)?,
            }
        }
    }

    /// Whether a word waits that needs no reading.
    pub fn has_more(&self) -> bool {
        !self.ready.is_empty()
    }
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let message = match serde_json::from_slice(body) {
        Ok(Refusal { error }) => error,
        Err(_) => status.canonical_reason().unwrap_or("no reason given").to_owned(),
    };
    let shown = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTE_CHARS_MAX);
    ClientError::Refused { status: status.as_u16(), message: shown.collect() }
}

/// hyper says what failed, and only its source says why.
fn lost(error: &hyper::Error) -> ClientError {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    ClientError::Lost(format!("{error}{}", source.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::RecentLimits;

    #[test]
    fn an_address_is_read() {
        for (url, wanted) in [
            ("http://127.0.0.1:9480", "http://127.0.0.1:9480"),
            ("http://gateway-17/", "http://gateway-17:80"),
            ("http://[::1]:9480", "http://[::1]:9480"),
            ("http://proxy:8080/gw/17/", "http://proxy:8080/gw/17"),
        ] {
            assert_eq!(Place::at(url, None, None).unwrap().to_string(), wanted);
        }
        for url in
            ["", "gateway-17:9480", "ftp://a:1", "http://", "http://a:1?x=1", "http://u:p@a:1", "/status"]
        {
            assert!(Place::at(url, None, None).is_err(), "{url}");
        }
    }

    #[test]
    fn the_configured_address_is_asked_on_this_machine() {
        for (listen, wanted) in [
            ("127.0.0.1:9480", Ok("http://127.0.0.1:9480")),
            ("0.0.0.0:9480", Ok("http://127.0.0.1:9480")),
            ("[::]:9480", Ok("http://[::1]:9480")),
            ("192.0.2.1:1", Ok("http://192.0.2.1:1")),
            ("127.0.0.1:0", Err(())),
        ] {
            let options = Options {
                listen: listen.parse().unwrap(),
                tls: None,
                token: None,
                connections_max: 16,
                recent: RecentLimits { bytes_max: 1, events_max: 1 },
                ready_age_max: Duration::ZERO,
            };
            let place = Place::of(&options).map(|place| place.to_string()).map_err(drop);
            assert_eq!(place, wanted.map(str::to_owned));
        }
    }
}
