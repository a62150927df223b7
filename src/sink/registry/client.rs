//! Three requests of the Schema Registry's HTTP interface: is this schema there, put it there, would it fit. Beside `http`
//! the only file that names hyper.

use std::future::Future;
use std::pin::pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{Options, RegistryError, Standing};
use crate::secret::{Password, Secret};
use crate::sink::record::schema::AVRO;
use crate::tls;

/// Largest answer: the schema comes back with the id.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Longest quote of an answer in characters.
const QUOTE_CHARS_MAX: usize = 200;

const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

#[derive(Deserialize)]
struct Found {
    id: u32,
}

#[derive(Deserialize)]
struct Compatibility {
    is_compatible: bool,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

/// The id of the envelope's schema under `subject`, registered there if it was not.
///
/// Cancel safe: yes; the registry may have taken the schema all the same.
pub(super) async fn schema_id(options: &Options, subject: &str) -> Result<u32, RegistryError> {
    let asked = async {
        let found: Found = match post(options, &format!("/subjects/{subject}")).await {
            // Neither the subject nor this schema in it.
            Err(RegistryError::Refused { status: 404, .. }) => {
                post(options, &format!("/subjects/{subject}/versions")).await
            }
            answer => answer,
        }?;
        Ok(found.id)
    };
    within(options, asked).await
}

/// Whether the envelope's schema is under `subject`, or would be taken there. Changes nothing.
///
/// Cancel safe: yes.
pub(super) async fn standing(options: &Options, subject: &str) -> Result<Standing, RegistryError> {
    let asked = async {
        match post(options, &format!("/subjects/{subject}")).await {
            Ok(Found { id }) => return Ok(Standing::Registered(id)),
            Err(RegistryError::Refused { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
        match post(options, &format!("/compatibility/subjects/{subject}/versions/latest")).await {
            Ok(Compatibility { is_compatible: false }) => Ok(Standing::Clashing),
            // There is nothing yet that it could clash with.
            Ok(_) | Err(RegistryError::Refused { status: 404, .. }) => Ok(Standing::Unregistered),
            Err(error) => Err(error),
        }
    };
    within(options, asked).await
}

async fn within<T>(
    options: &Options,
    asked: impl Future<Output = Result<T, RegistryError>>,
) -> Result<T, RegistryError> {
    let none = |_| Err(RegistryError::NoAnswer(options.timeout));
    tokio::time::timeout(options.timeout, asked).await.unwrap_or_else(none)
}

async fn post<T: DeserializeOwned>(options: &Options, path: &str) -> Result<T, RegistryError> {
    let tcp = TcpStream::connect((options.host.as_str(), options.port)).await.map_err(link)?;
    if !options.tls {
        return post_on(tcp, options, path).await;
    }
    let connector = tls::beside_system(options.ca_file.as_deref()).map_err(no_tls)?;
    let stream = tls::connect(connector, &options.host, tcp).await.map_err(no_tls)?;
    post_on(stream, options, path).await
}

async fn post_on<T: DeserializeOwned>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    options: &Options,
    path: &str,
) -> Result<T, RegistryError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(link)?;
    let request = request(options, path)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(link)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|error| RegistryError::Link(error.to_string()))?;
        understood(status, &body.to_bytes())
    };
    beside(connection, answer).await
}

/// The answer, while the connection is served beside it.
async fn beside<T>(connection: impl Future, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // It has ended; the whole answer may have come by then.
        _ = connection => answer.await,
    }
}

fn request(options: &Options, path: &str) -> Result<Request<Full<Bytes>>, RegistryError> {
    let body = serde_json::json!({ "schema": AVRO }).to_string();
    let host = options.host.as_str();
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let mut request = Request::post(format!("{}{path}", options.path))
        .header(HOST, format!("{host}:{}", options.port))
        .header(CONTENT_TYPE, MEDIA_TYPE)
        .header(ACCEPT, MEDIA_TYPE);
    if let Some(username) = &options.username {
        let password = options.password.as_ref().map(Password::read).transpose()?;
        let password = password.as_ref().map_or("", Secret::reveal);
        let login = STANDARD.encode(format!("{username}:{password}"));
        request = request.header(AUTHORIZATION, format!("Basic {login}"));
    }
    request.body(Full::from(body)).map_err(link)
}

fn understood<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, RegistryError> {
    let refused = |message: String| RegistryError::Refused { status: status.as_u16(), message };
    if status.is_success() {
        return serde_json::from_slice(body)
            .map_err(|error| refused(format!("not what a schema registry answers ({error})")));
    }
    let message = match serde_json::from_slice(body) {
        Ok(Refusal { message }) => message,
        Err(_) => status.canonical_reason().unwrap_or("no reason given").to_owned(),
    };
    let shown = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTE_CHARS_MAX);
    Err(refused(shown.collect()))
}

fn link(error: impl std::error::Error) -> RegistryError {
    RegistryError::Link(with_sources(&error))
}

fn no_tls(error: impl std::error::Error) -> RegistryError {
    RegistryError::Tls(with_sources(&error))
}

/// hyper says what failed, and only its source says why.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
