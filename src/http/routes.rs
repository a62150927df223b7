//! What is asked for, and the answers. `openapi.json` beside this file describes the same; a test holds the two together.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap};
use hyper::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::events::{Filter, Page, PageLimits, Position, json_of, take_stored};
use super::page::page;
use super::server::Sources;
use super::stream::Follower;
use super::{CONNECTIONS_SPARE, Options, metrics};
use crate::buffer::Recent;
use crate::buffer::view::Place;
use crate::event::{EventId, Seq};
use crate::log::Limited;
use crate::status::Overview;

/// Most events in an answer, and how many without the parameter.
const LIMIT_MAX: usize = 1_000;
const LIMIT_USUAL: usize = 100;

/// Most bytes of events in an answer; the event that reaches it is in it all the same.
const PAGE_BYTES: usize = 1 << 20;

/// Shortest time between two lines about a directory that cannot be read.
const DISK_LOG_INTERVAL: Duration = Duration::from_secs(60);

const JSON: &str = "application/json";
const OPENAPI: &str = include_str!("openapi.json");

/// What every request has at hand.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) overview: Arc<Overview>,
    pub(super) recent: Arc<Recent>,
    pub(super) place: Place,
    pub(super) epoch: u32,
    /// Word that there are new events; one wakes all streams, at its own pace.
    pub(super) news: watch::Sender<()>,
    /// The inputs have ended.
    pub(super) stopping: CancellationToken,
    pub(super) stop: CancellationToken,
    pub(super) streams: Arc<Semaphore>,
    /// One at a time looks into the buffer's directory.
    pub(super) disk: Semaphore,
    pub(super) disk_log: Limited,
}

/// What went wrong, for the asker.
#[derive(Debug, Serialize)]
struct Trouble<'a> {
    error: &'a str,
}

#[derive(Debug, Serialize)]
struct Health {
    status: &'static str,
}

#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<String>,
}

/// Positions between which not all is there any more.
#[derive(Debug, Serialize)]
struct Gap {
    after: String,
    to: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    source_id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Followed {
    source_id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    after: Option<String>,
}

/// All routes.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/history", get(history))
        .route("/metrics", get(scrape))
        .route("/events", get(events))
        .route("/events/stream", get(stream))
        .route("/events/{id}", get(event))
        .route("/openapi.json", get(openapi))
        .fallback(nothing)
        .with_state(shared)
}

/// An answer of `content_type`, not to be kept by anybody.
fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    (status, [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store")], body.into()).into_response()
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    // Structs of texts and numbers always encode.
    answer(status, JSON, serde_json::to_vec(body).unwrap_or_default())
}

/// An answer that says what is wrong with the request, or with the agent.
pub(super) fn refuse(status: StatusCode, error: &str) -> Response {
    json(status, &Trouble { error })
}

async fn nothing(uri: Uri) -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        &format!("there is nothing at {}; /openapi.json says what there is", uri.path()),
    )
}

async fn openapi() -> Response {
    answer(StatusCode::OK, JSON, OPENAPI)
}

async fn healthz() -> Response {
    json(StatusCode::OK, &Health { status: "ok" })
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    json(StatusCode::OK, &shared.overview.look())
}

async fn history(State(shared): State<Arc<Shared>>) -> Response {
    json(StatusCode::OK, &shared.overview.history())
}

async fn scrape(State(shared): State<Arc<Shared>>) -> Response {
    answer(StatusCode::OK, metrics::CONTENT_TYPE, metrics::text(&shared.overview))
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let mut reasons = shared.overview.look().troubles(shared.options.ready_age_max.as_secs());
    if shared.stopping.is_cancelled() {
        reasons.insert(0, "the agent is stopping".to_owned());
    }
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &Readiness { ready, reasons })
}

/// Without the prefix that the library puts before its reason.
fn wrong_query(rejection: &QueryRejection) -> Response {
    let text = rejection.body_text();
    let reason = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
    refuse(StatusCode::BAD_REQUEST, &format!("the query is wrong: {reason}"))
}

fn position(text: Option<&str>) -> Result<Option<Position>, &'static str> {
    text.map(str::parse::<Position>).transpose()
}

async fn events(
    State(shared): State<Arc<Shared>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let Query(Wanted { source_id, kind, after, limit }) = match wanted {
        Ok(wanted) => wanted,
        Err(rejection) => return wrong_query(&rejection),
    };
    let limit = limit.unwrap_or(LIMIT_USUAL);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return refuse(StatusCode::BAD_REQUEST, &format!("`limit` is from 1 to {LIMIT_MAX}"));
    }
    let filter = Filter { source_id, kind };
    let limits = PageLimits { events: limit, bytes: PAGE_BYTES };
    let page = match position(after.as_deref()) {
        Err(wrong) => return refuse(StatusCode::BAD_REQUEST, wrong),
        Ok(None) => shared.last(&filter, limits),
        Ok(Some(after)) => match shared.behind(after, &filter, limits).await {
            Ok(page) => page,
            Err(refused) => return refused,
        },
    };
    shared.answer_page(&page)
}

async fn event(
    State(shared): State<Arc<Shared>>,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Response {
    let Ok(Path(id)) = id else {
        return refuse(StatusCode::BAD_REQUEST, "an id is UTF-8 text");
    };
    let found = match id.parse::<Position>() {
        Ok(Position { seq, .. }) if seq > Seq(0) => shared.at_position(seq).await,
        _ => Ok(shared.of_id(&id)),
    };
    match found {
        Err(refused) => refused,
        Ok(Some(event)) => answer(StatusCode::OK, JSON, event),
        Ok(None) => refuse(
            StatusCode::NOT_FOUND,
            "no such event is kept: by its id an event is found among the last ones in memory, by its position also in the buffer",
        ),
    }
}

async fn stream(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    followed: Result<Query<Followed>, QueryRejection>,
) -> Response {
    let Query(Followed { source_id, kind, after }) = match followed {
        Ok(followed) => followed,
        Err(rejection) => return wrong_query(&rejection),
    };
    // What a reader has come to counts for more than where it began.
    let last = headers.get("last-event-id").filter(|id| !id.is_empty());
    let last = last.map(|id| id.to_str().unwrap_or("not text").to_owned());
    let after = match position(last.or(after).as_deref()) {
        Ok(after) => after,
        Err(wrong) => return refuse(StatusCode::BAD_REQUEST, wrong),
    };
    let Ok(place) = Arc::clone(&shared.streams).try_acquire_owned() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "all streams are taken: http.max_connections");
    };
    let follower = Follower::new(shared, Filter { source_id, kind }, after, place);
    answer(StatusCode::OK, "text/event-stream", Body::new(follower.into_stream()))
}

impl Shared {
    pub(super) fn new(options: Options, sources: Sources, stop: CancellationToken) -> Self {
        let Sources { overview, recent, place, stopping } = sources;
        let streams = options.connections_max.saturating_sub(CONNECTIONS_SPARE);
        Self {
            epoch: overview.buffer().log().epoch,
            options,
            overview,
            recent,
            place,
            news: watch::Sender::new(()),
            stopping,
            stop,
            streams: Arc::new(Semaphore::new(streams)),
            disk: Semaphore::new(1),
            disk_log: Limited::new(DISK_LOG_INTERVAL),
        }
    }

    /// The last durable position.
    pub(super) fn durable(&self) -> Seq {
        *self.overview.buffer().durable().borrow()
    }

    /// The last events in memory.
    fn last(&self, filter: &Filter, limits: PageLimits) -> Page {
        let (gone, chunks) = self.recent.all();
        let mut page = Page::at(chunks.last().map_or(gone, |chunk| chunk.last()));
        for chunk in chunks.iter().rev() {
            let before = chunk.first().before();
            let found: Vec<_> =
                super::events::frames(&self.recent, self.epoch, chunk, before, filter).collect();
            for (_, frame) in found.into_iter().rev() {
                if page.is_full(limits) {
                    break;
                }
                page.push(frame);
            }
            if page.is_full(limits) {
                break;
            }
        }
        page.frames.reverse();
        page
    }

    /// The events behind a position, from the buffer's directory and from memory.
    async fn behind(&self, after: Position, filter: &Filter, limits: PageLimits) -> Result<Page, Response> {
        let durable = self.durable();
        let mut page = Page::at(after.seq.min(durable));
        if after.seq > durable {
            // Of a buffer that is no more.
            page.gap = Some((durable.next(), after.seq));
            return Ok(page);
        }
        while let Some(to) = page.take_recent(&self.recent, self.epoch, filter, limits) {
            let stored = self.stored(page, to, filter.clone(), limits).await;
            page = stored.map_err(|()| {
                refuse(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the buffer's directory cannot be read now; the log says why",
                )
            })?;
        }
        Ok(page)
    }

    /// Reads on in the buffer's directory, up to `to`.
    pub(super) async fn stored(
        &self,
        mut page: Page,
        to: Seq,
        filter: Filter,
        limits: PageLimits,
    ) -> Result<Page, ()> {
        // Never closed.
        let _turn = self.disk.acquire().await;
        let place = self.place.clone();
        let read = spawn_blocking(move || {
            let taken = take_stored(&mut page, &place, to, &filter, limits);
            taken.map(|()| page).map_err(|error| error.to_string())
        });
        let error = match read.await {
            Ok(Ok(page)) => return Ok(page),
            Ok(Err(error)) => error,
            Err(error) => error.to_string(),
        };
        if let Some(suppressed) = self.disk_log.allow() {
            tracing::warn!(error, suppressed, "the buffer's directory cannot be read for a reader over HTTP");
        }
        Err(())
    }

    async fn at_position(&self, seq: Seq) -> Result<Option<Bytes>, Response> {
        let limits = PageLimits { events: 1, bytes: PAGE_BYTES };
        let epoch = self.epoch;
        let page = self.behind(Position { epoch, seq: seq.before() }, &Filter::default(), limits).await?;
        Ok(page.frames.first().filter(|_| page.end == seq && page.gap.is_none()).map(json_of))
    }

    /// The newest event in memory with this id.
    fn of_id(&self, id: &str) -> Option<Bytes> {
        let (_, chunks) = self.recent.all();
        for chunk in chunks.iter().rev() {
            let has_id = |given: &EventId<'_>| given.text(&mut [0; uuid::fmt::Hyphenated::LENGTH]) == id;
            let found = chunk.events().filter(|(_, event)| has_id(&event.id)).last();
            if let Some((seq, _)) = found {
                let filter = Filter::default();
                let mut frames =
                    super::events::frames(&self.recent, self.epoch, chunk, seq.before(), &filter);
                return frames.next().map(|(_, frame)| json_of(&frame));
            }
        }
        None
    }

    fn answer_page(&self, page: &Page) -> Response {
        let position = |seq: Seq| Position { epoch: self.epoch, seq }.to_string();
        let gap = page.gap.map(|(first, last)| Gap { after: position(first.before()), to: position(last) });
        let mut body = Vec::with_capacity(page.bytes + 256);
        body.extend_from_slice(b"{\"events\":[");
        for (number, frame) in page.frames.iter().enumerate() {
            if number > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&json_of(frame));
        }
        // Texts and nothing always encode.
        let gap = serde_json::to_string(&gap).unwrap_or_default();
        body.extend_from_slice(format!("],\"next\":\"{}\",\"gap\":{gap}}}", position(page.end)).as_bytes());
        answer(StatusCode::OK, JSON, body)
    }
}
