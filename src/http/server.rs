//! The thread that serves HTTP: connections, their limits, and the pace at which streams are woken.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Options;
use super::guard::{self, Denied};
use super::routes::{Shared, refuse, router};
use super::stall::Stall;
use crate::backoff::Backoff;
use crate::buffer::Recent;
use crate::buffer::view::Place;
use crate::log::Limited;
use crate::stats::LinkState;
use crate::status::Overview;
use crate::tls;

/// A request's headers with its first line; a browser's have a tenth of it.
const HEADER_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// How long a connection may be silent before its next request is complete.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer may take to be made.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take nothing of what waits for it.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What is gathered for a connection before it is written; more only for one event.
const WRITE_BYTES_MAX: usize = 16 << 10;

/// Shortest time between two times that all streams are woken: at full flow each takes what came since.
const WAKE_INTERVAL: Duration = Duration::from_millis(10);

/// Pause before the port is tried again, doubled up to the maximum.
const BIND_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the thread's priority is lowered by: when the machine is busy, events go first.
const NICENESS: i32 = 10;

/// Shortest time between two lines about what comes from outside.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What HTTP shows.
#[derive(Debug)]
pub struct Sources {
    /// How the agent is.
    pub overview: Arc<Overview>,
    /// The last events.
    pub recent: Arc<Recent>,
    /// Where older events are.
    pub place: Place,
    /// Cancelled when the agent has begun to stop.
    pub stopping: CancellationToken,
}

/// The thread; to be awaited beside the stages.
#[derive(Debug)]
pub struct HttpThread {
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl HttpThread {
    /// Returns when the thread has ended, which it does behind `stop`.
    ///
    /// # Errors
    /// It panicked; the log has the message.
    ///
    /// Cancel safe: no, it owns the thread.
    pub async fn ended(self) -> Result<(), &'static str> {
        // Both an answer and a dropped sender mean that the thread is at its end, so that the join does not block.
        let _ = self.ended.await;
        self.thread.join().map_err(|_| "the thread died")
    }
}

/// Starts the thread. A port that is taken is tried again; the status has it.
///
/// # Errors
/// The system gives no thread or no runtime.
pub fn start(options: Options, sources: Sources, stop: CancellationToken) -> io::Result<HttpThread> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Looks into the buffer's directory, one at a time.
        .max_blocking_threads(1)
        .thread_keep_alive(Duration::from_secs(1))
        .build()?;
    let (end, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
        let _end: oneshot::Sender<()> = end;
        // Of this thread alone on Linux. One that cannot be nicer is served all the same.
        let _ = rustix::process::nice(NICENESS);
        let shared = Arc::new(Shared::new(options, sources, stop));
        runtime.block_on(serve(&shared));
        // A look into the buffer's directory may be under way; nobody waits for it.
        runtime.shutdown_timeout(Duration::ZERO);
    })?;
    Ok(HttpThread { thread, ended })
}

async fn serve(shared: &Arc<Shared>) {
    let work = async {
        let listener = bind(shared).await;
        tokio::join!(accept(shared, listener), wake_streams(shared));
    };
    tokio::select! {
        () = work => {}
        () = shared.stop.cancelled() => {}
    }
}

/// Listens, as soon as the port is free and TLS has what it needs.
async fn bind(shared: &Shared) -> TcpListener {
    let (link, listen) = (&shared.overview.stats().http, shared.options.listen);
    let tls = shared.options.tls.as_ref();
    let mut backoff = Backoff::new(BIND_BACKOFF.0, BIND_BACKOFF.1);
    loop {
        let error = match (tls.map(tls::Options::acceptor).transpose(), TcpListener::bind(listen).await) {
            (Ok(_), Ok(listener)) => {
                link.set(LinkState::Up);
                // With port 0 the system has chosen one.
                let listen = listener.local_addr().unwrap_or(listen);
                tracing::info!(tls = tls.is_some(), %listen, "HTTP is served");
                return listener;
            }
            (Err(error), _) => error.to_string(),
            (_, Err(error)) => format!("{listen}: {error}"),
        };
        link.failed(&error);
        if link.set(LinkState::Down) {
            tracing::warn!(%listen, %error, "HTTP cannot be served; look at [http]. It is tried again, events are not concerned");
        }
        sleep(backoff.delay()).await;
    }
}

async fn accept(shared: &Arc<Shared>, listener: TcpListener) {
    let router = router(Arc::clone(shared));
    let mut connections = JoinSet::new();
    let (mut backoff, log) = (Backoff::new(BIND_BACKOFF.0, BIND_BACKOFF.1), Limited::new(LOG_INTERVAL));
    let tls_log = Arc::new(Limited::new(LOG_INTERVAL));
    loop {
        tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < shared.options.connections_max => {
                    backoff.reset();
                    connections.spawn(connection(Arc::clone(shared), router.clone(), stream, Arc::clone(&tls_log)));
                }
                Ok((stream, peer)) => {
                    if shared.options.tls.is_none() {
                        say_busy(&stream);
                    }
                    if let Some(suppressed) = log.allow() {
                        tracing::warn!(%peer, suppressed, "an HTTP connection is refused: http.max_connections");
                    }
                }
                // Too many open files, as a rule: it passes.
                Err(error) => {
                    if let Some(suppressed) = log.allow() {
                        tracing::warn!(%error, suppressed, "no HTTP connection can be taken now");
                    }
                    sleep(backoff.delay()).await;
                }
            },
        }
    }
}

/// As much as its socket takes at once.
fn say_busy(stream: &TcpStream) {
    const BUSY: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n\
        content-length: 59\r\n\r\n{\"error\":\"all connections are taken: http.max_connections\"}";
    // A peer that does not hear it sees the connection close.
    let _ = stream.try_write(BUSY);
}

/// Wakes the streams when there are events, not too often, so that the writer of the buffer wakes one task and not all.
async fn wake_streams(shared: &Shared) {
    let mut news = shared.recent.news();
    // Ends with the buffer's handles, of which the overview has one.
    while news.changed().await.is_ok() {
        shared.news.send_replace(());
        sleep(WAKE_INTERVAL).await;
    }
}

/// Serves one connection; how it ends is the peer's concern.
async fn connection(shared: Arc<Shared>, router: Router, tcp: TcpStream, log: Arc<Limited>) {
    let Some(tls) = &shared.options.tls else { return serve_on(&shared, &router, tcp).await };
    // Read for each connection, so that a renewed certificate counts at once.
    let accepted = match tls.acceptor() {
        Ok(acceptor) => timeout(HANDSHAKE_TIMEOUT, tls::accept(acceptor, tcp)).await,
        Err(error) => {
            shared.overview.stats().http.failed(&error.to_string());
            if let Some(suppressed) = log.allow() {
                tracing::warn!(%error, suppressed, "an HTTP connection is closed: http.cert_file and http.key_file cannot be used");
            }
            return;
        }
    };
    match accepted {
        Ok(Ok(stream)) => serve_on(&shared, &router, stream).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn serve_on(
    shared: &Shared,
    router: &Router,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let service = service_fn(|request| answer(shared, router, request));
    let io = TokioIo::new(Stall::new(stream, STALL_TIMEOUT));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEADER_BYTES_MAX)
        .max_buf_size(WRITE_BYTES_MAX)
        .serve_connection(io, service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an HTTP connection ended");
    }
}

async fn answer(
    shared: &Shared,
    router: &Router,
    request: Request<Incoming>,
) -> Result<Response, std::convert::Infallible> {
    let (parts, body) = request.into_parts();
    let mut response = match guard::check(&shared.options, &parts) {
        Err(Denied(status, why)) => refuse(status, &why),
        Ok(()) => {
            let routed = TowerToHyperService::new(router.clone()).call(Request::from_parts(parts, body));
            match timeout(ANSWER_TIMEOUT, routed).await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "the answer took too long; try again"),
            }
        }
    };
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    match status {
        StatusCode::UNAUTHORIZED => headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
        StatusCode::METHOD_NOT_ALLOWED => headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD")),
        _ => None,
    };
    Ok(response)
}
