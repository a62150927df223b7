//! The link as a state machine; `sending` is what goes over it.

mod sending;

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::sending::published;
use super::coalesce::Coalescer;
use super::connection::Connection;
use super::{Options, RedisError, Turns};
use crate::backoff::Backoff;
use crate::files::{self, Watched};
use crate::log::Limited;
use crate::ping::Ping;
use crate::stats::{LinkState, Stats};

/// Most pings in one pipeline: a few hundred fill a network packet many times over, more only delays the first answer.
pub(super) const BATCH_MAX: usize = 512;
/// First and longest wait before a reconnect; a link that lasted for the longest wait starts again at the first.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// The same after refused credentials and certificates, which only a human mends.
const RECONNECT_DENIED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// How often old entries are taken out of streams: a part of the age that they may reach, within these bounds.
const TRIM: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const TRIM_PART: u32 = 10;
/// How often a refusal of one kind is said.
const REFUSALS: Duration = Duration::from_secs(60);

enum State {
    Connecting,
    Connected(Connection),
    Waiting(Duration),
    Stopped,
}

/// The last thing that the log was told about the link, so that each change is one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    Up,
    Down,
    Denied,
}

pub(super) struct Sink {
    options: Arc<Options>,
    /// The files that the options name.
    watched: Watched,
    pings: mpsc::Receiver<Ping>,
    stats: Arc<Stats>,
    stop: CancellationToken,
    turns: Turns,
    backoff: Backoff,
    backoff_denied: Backoff,
    said: Said,
    coalescer: Coalescer,
    /// Refusals that the log was told of, each with its own limit; as many as there are kinds of them.
    refusals: Vec<(&'static str, &'static str, Limited)>,
    /// Streams with an entry of this agent's.
    streams: HashSet<Box<[u8]>>,
    /// Redis' time at a time of ours.
    redis_time: Option<(u64, Instant)>,
}

impl Sink {
    pub(super) fn new(
        options: Options,
        pings: mpsc::Receiver<Ping>,
        stats: Arc<Stats>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            watched: Watched::new(options.files()),
            coalescer: Coalescer::new(options.coalesce, options.queue_max),
            options: Arc::new(options),
            pings,
            stats,
            stop,
            turns: Turns::default(),
            backoff: Backoff::new(RECONNECT.0, RECONNECT.1),
            backoff_denied: Backoff::new(RECONNECT_DENIED.0, RECONNECT_DENIED.1),
            said: Said::Nothing,
            refusals: Vec::new(),
            streams: HashSet::new(),
            redis_time: None,
        }
    }

    pub(super) async fn run(mut self) {
        self.stats.redis.set(LinkState::Down);
        let mut state = State::Connecting;
        loop {
            state = match state {
                State::Connecting => self.connecting().await,
                State::Connected(connection) => self.connected(connection).await,
                State::Waiting(delay) => self.waiting(delay).await,
                State::Stopped => break,
            }
        }
        self.discard_queue();
    }

    async fn connecting(&mut self) -> State {
        let (options, mut turns) = (Arc::clone(&self.options), self.turns);
        // Order: looked at before they are read; see `Watched::new`.
        self.watched.is_changed();
        // Boxed: what a handshake needs is given back once the link is up.
        let open = Box::pin(async move { (Connection::open(&options, &mut turns).await, turns) });
        let Some((opened, turns)) = self.discarding(open).await else { return State::Stopped };
        self.turns = turns;
        match opened {
            Err(error) => self.failed(&error),
            Ok(connection) => {
                self.backoff_denied.reset();
                self.say_up(&connection);
                State::Connected(connection)
            }
        }
    }

    async fn waiting(&mut self, delay: Duration) -> State {
        let end = Instant::now() + delay;
        loop {
            let look = Instant::now() + files::LOOK_INTERVAL;
            match self.discarding(tokio::time::sleep_until(end.min(look))).await {
                None => return State::Stopped,
                // Whoever mends a password should not have to wait for the end of a long pause.
                Some(()) if Instant::now() >= end || self.watched.is_changed() => return State::Connecting,
                Some(()) => {}
            }
        }
    }

    /// After a file changed: a connection by the new ones, if that works. Pings wait meanwhile, for at most
    /// `redis.timeout`.
    async fn renewed(&mut self, connection: Connection) -> Connection {
        match Box::pin(Connection::at(&self.options, self.turns.now())).await {
            Ok(renewed) => {
                tracing::info!("Redis link made anew from changed files");
                renewed
            }
            Err(error) => {
                tracing::error!(%error, "changed files do not open a link to Redis; the one that is open stays");
                connection
            }
        }
    }

    /// Waits for `wait` and drops the pings that come meanwhile. `None`: it is time to stop.
    async fn discarding<T>(&mut self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = pin!(wait);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                result = &mut wait => return Some(result),
                taken = self.pings.recv_many(&mut batch, BATCH_MAX) => {
                    if taken == 0 {
                        return None;
                    }
                    batch.drain(..).for_each(|ping| self.drop_ping(&ping));
                }
            }
        }
    }

    async fn connected(&mut self, mut connection: Connection) -> State {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut look = tokio::time::interval(files::LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let trim_age = self.options.streams.as_ref().and_then(|streams| streams.max_age);
        let mut trim = tokio::time::interval((trim_age.unwrap_or(TRIM.1) / TRIM_PART).clamp(TRIM.0, TRIM.1));
        trim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.coalescer.due();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = &mut connection.driver => return self.lost(&connection, &RedisError::closed()),
                _ = look.tick(), if !self.watched.is_empty() => {
                    if self.watched.is_changed() {
                        connection = self.renewed(connection).await;
                    }
                    continue;
                }
                _ = trim.tick(), if trim_age.is_some() => {
                    if let Err(error) = self.trim(&mut connection, trim_age.unwrap_or_default()).await {
                        return self.lost(&connection, &error);
                    }
                    continue;
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                taken = self.pings.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
            }
            if let Err(error) = self.send(&mut connection, &mut batch).await {
                return self.lost(&connection, &error);
            }
        }
        self.pings.close();
        while let Ok(ping) = self.pings.try_recv() {
            batch.push(ping);
        }
        let mut load = self.chosen(&mut batch);
        load.extend(self.coalescer.release(Instant::now()).into_iter().map(published));
        // One pipeline, because a stop has to end.
        if let Err(error) = self.send_all(&mut connection, load, usize::MAX).await {
            self.say_down(&error);
        }
        State::Stopped
    }

    fn lost(&mut self, connection: &Connection, error: &RedisError) -> State {
        if connection.since.elapsed() >= RECONNECT.1 {
            self.backoff.reset();
        }
        self.failed(error)
    }

    fn failed(&mut self, error: &RedisError) -> State {
        self.say_down(error);
        self.turns.pass();
        self.drop_held();
        let backoff = if error.is_denied() { &mut self.backoff_denied } else { &mut self.backoff };
        State::Waiting(backoff.delay())
    }

    fn discard_queue(&mut self) {
        self.pings.close();
        self.drop_held();
        while let Ok(ping) = self.pings.try_recv() {
            self.drop_ping(&ping);
        }
    }

    /// What was held back for the end of a window.
    fn drop_held(&mut self) {
        for ping in self.coalescer.release(Instant::now()) {
            self.drop_ping(&ping);
        }
    }

    fn drop_ping(&self, ping: &Ping) {
        self.stats.pings_dropped.link_down.add(u64::from(ping.is_published()));
        self.stats.stream_entries_dropped.link_down.add(u64::from(ping.stream().is_some()));
    }

    fn say_up(&mut self, connection: &Connection) {
        self.stats.redis.set(LinkState::Up);
        if self.said != Said::Up {
            let address = &connection.address;
            tracing::info!(%address, tls = self.options.tls.is_some(), "Redis link up");
            self.said = Said::Up;
        }
    }

    fn dropped(&self) -> u64 {
        self.stats.pings_dropped.get() + self.stats.stream_entries_dropped.get()
    }

    fn say_down(&mut self, error: &RedisError) {
        self.stats.redis.set(LinkState::Down);
        self.stats.redis.failed(&error.to_string());
        let news = if error.is_denied() { Said::Denied } else { Said::Down };
        let dropped = self.dropped();
        if self.said == news {
            tracing::debug!(%error, dropped, "Redis link still down");
        } else if news == Said::Denied {
            tracing::error!(%error, dropped, "Redis link down: pings are dropped until somebody mends it");
        } else {
            tracing::warn!(%error, dropped, "Redis link down: pings are dropped until it is back");
        }
        self.said = news;
    }

    /// Each kind of refusal is explained once a minute at most.
    fn say_partly_refused(&mut self, connection: &Connection, is_any_sent: bool, error: &RedisError) {
        self.say_up(connection);
        if !is_any_sent {
            self.stats.redis.set(LinkState::Misconfigured);
        }
        let (command, reason) = error.kind();
        if !self.refusals.iter().any(|known| (known.0, known.1) == (command, reason)) {
            self.refusals.push((command, reason, Limited::new(REFUSALS)));
        }
        let limit = self.refusals.iter().find(|known| (known.0, known.1) == (command, reason));
        if let Some(suppressed) = limit.and_then(|(.., limited)| limited.allow()) {
            let dropped = self.dropped();
            tracing::error!(%error, dropped, suppressed, "Redis refuses a part of the pings, which are dropped");
        }
    }
}
