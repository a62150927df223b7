//! `/events/stream`: server-sent events, from a position on, without a gap that is not said.
//!
//! A stream remembers its position and nothing else: what it sends next it takes from the memory of the last events, or
//! behind a restart and a pause from the buffer's directory, a page at a time. A reader who is too slow for the memory of the
//! last events is told (`lagged`) and left; it may come back with its last position. Nothing waits for it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

use super::events::{Filter, Page, PageLimits, Position};
use super::routes::Shared;
use crate::buffer::recent::Behind;
use crate::event::Seq;

/// A comment goes out after so long without an event: proxies and readers learn that the stream is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How long a reader waits before it comes back, in milliseconds: the first word of a stream.
const RETRY_MS: u32 = 2_000;

/// A page out of the buffer's directory. Small: each stream that catches up holds one.
const PAGE: PageLimits = PageLimits { events: 1_000, bytes: 128 << 10 };

/// What a stream takes at once of the events in memory. A reader who has stopped holds this much, and not all of a batch.
const TAKE: PageLimits = PageLimits { events: usize::MAX, bytes: 16 << 10 };

/// Follows the events.
pub(super) struct Follower {
    shared: Arc<Shared>,
    filter: Filter,
    /// Everything up to here was sent or did not match.
    at: Seq,
    /// It has come to the present once: from then on it is told when it falls behind.
    is_live: bool,
    ready: VecDeque<Bytes>,
    news: watch::Receiver<()>,
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

/// The body of a stream.
pub(super) struct Stream {
    turn: Option<Turn>,
}

type Turn = Pin<Box<dyn Future<Output = Option<(Bytes, Follower)>> + Send>>;

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("is_over", &self.turn.is_none()).finish()
    }
}

impl Follower {
    /// From behind `after`; without a position from now on. `place` is free again when the stream ends.
    pub(super) fn new(
        shared: Arc<Shared>,
        filter: Filter,
        after: Option<Position>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let durable = shared.durable();
        let mut ready = VecDeque::from([Bytes::from(format!("retry: {RETRY_MS}\n\n"))]);
        let at = match after {
            None => durable,
            Some(Position { seq, .. }) if seq <= durable => seq,
            // Of a buffer that is no more.
            Some(position) => {
                let now = Position { epoch: position.epoch, seq: durable };
                ready.push_back(said("gap", position, now, "this buffer has never had that position"));
                durable
            }
        };
        let news = shared.news.subscribe();
        Self { shared, filter, at, is_live: after.is_none(), ready, news, is_over: false, _place: place }
    }

    /// The body.
    pub(super) fn into_stream(self) -> Stream {
        Stream { turn: Some(Box::pin(self.next())) }
    }

    /// The next bytes to send; `None` at the end.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some((bytes, self));
            }
            if self.is_over || self.shared.stop.is_cancelled() {
                return None;
            }
            match self.shared.recent.behind(self.at) {
                Behind::Events(chunk) => {
                    self.is_live = true;
                    let mut page = Page::at(self.at);
                    page.take_chunk(&self.shared.recent, self.shared.epoch, &chunk, &self.filter, TAKE);
                    self.ready.extend(page.frames);
                    self.at = page.end;
                }
                Behind::Gone(to) if self.is_live => {
                    let why = "this reader is too slow for http.recent_events and http.recent_bytes; come back with its last position";
                    self.ready.push_back(said("lagged", self.position(self.at), self.position(to), why));
                    self.is_over = true;
                }
                Behind::Gone(to) => self.catch_up(to).await,
                Behind::Nothing => {
                    self.is_live = true;
                    let is_news = tokio::select! {
                        news = timeout(HEARTBEAT, self.news.changed()) => news.is_ok(),
                        () = self.shared.stop.cancelled() => return None,
                    };
                    if !is_news {
                        return Some((Bytes::from_static(b": nothing new\n\n"), self));
                    }
                }
            }
        }
    }

    /// Takes a page out of the buffer's directory.
    async fn catch_up(&mut self, to: Seq) {
        let page = self.shared.stored(Page::at(self.at), to, self.filter.clone(), PAGE).await;
        let Ok(page) = page else {
            // Said in the log; the reader comes back.
            self.is_over = true;
            return;
        };
        self.ready.extend(page.frames);
        if let Some((first, last)) = page.gap {
            let (after, to) = (self.position(first.before()), self.position(last));
            let why = "Kafka has these, or the loss ledger: they are not in the buffer any more";
            self.ready.push_back(said("gap", after, to, why));
        }
        self.at = page.end;
    }

    fn position(&self, seq: Seq) -> Position {
        Position { epoch: self.shared.epoch, seq }
    }
}

/// A word about the stream itself: what is missing between two positions, and why.
fn said(kind: &str, after: Position, to: Position, why: &str) -> Bytes {
    let data = serde_json::json!({ "after": after.to_string(), "to": to.to_string(), "why": why });
    Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(turn) = &mut self.turn else { return Poll::Ready(None) };
        let Poll::Ready(next) = turn.as_mut().poll(context) else { return Poll::Pending };
        let (bytes, follower) = next.unzip();
        self.turn = follower.map(|follower| Box::pin(follower.next()) as Turn);
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
