//! What goes out of a load of pings, in which pipelines, and what becomes of the rest.

use std::time::Duration;

use tokio::time::Instant;

use super::super::coalesce::Taken;
use super::super::connection::{Connection, within};
use super::super::pipeline::Outgoing;
use super::{BATCH_MAX, REFUSALS, RedisError, Sink};
use crate::log::Limited;
use crate::ping::Ping;

impl Sink {
    /// Sends what of `batch`, and of what was held back, is due.
    pub(super) async fn send(
        &mut self,
        connection: &mut Connection,
        batch: &mut Vec<Ping>,
    ) -> Result<(), RedisError> {
        let now = Instant::now();
        let mut load = Vec::with_capacity(batch.len());
        if self.coalescer.due().is_some_and(|due| due <= now) {
            load.extend(self.coalescer.release(now).into_iter().map(published));
        }
        load.append(&mut self.chosen(batch));
        self.send_all(connection, load, BATCH_MAX).await
    }

    /// What goes out now; the rest is held back, or counted.
    pub(super) fn chosen(&mut self, batch: &mut Vec<Ping>) -> Vec<Outgoing> {
        let now = Instant::now();
        let mut load = Vec::with_capacity(batch.len());
        for ping in batch.drain(..) {
            let has_stream = ping.stream().is_some();
            let to_publish = match (ping.is_published(), has_stream) {
                (true, false) => ping,
                (true, true) if self.options.coalesce.window.is_zero() => {
                    load.push(Outgoing { ping, is_published: true, is_added: true });
                    continue;
                }
                (true, true) => {
                    // A stream is a row of all events; what is published is news.
                    let to_publish = ping.without_stream();
                    load.push(Outgoing { ping, is_published: false, is_added: true });
                    to_publish
                }
                (false, _) => {
                    load.push(Outgoing { ping, is_published: false, is_added: has_stream });
                    continue;
                }
            };
            match self.coalescer.take(to_publish, now) {
                Taken::Now(ping) => load.push(published(ping)),
                Taken::Held => {}
                Taken::Replaced => self.stats.pings_coalesced.add(1),
                Taken::NoRoom => self.stats.pings_dropped.queue_full.add(1),
            }
        }
        load
    }

    /// In pipelines of so many pings at most. What was not sent when one fails is dropped and counted.
    pub(super) async fn send_all(
        &mut self,
        connection: &mut Connection,
        mut load: Vec<Outgoing>,
        pipeline_max: usize,
    ) -> Result<(), RedisError> {
        let mut result = Ok(());
        for portion in load.chunks_mut(pipeline_max) {
            self.leave_out_stale(portion);
            self.leave_out_streams(portion);
            let (published, added) = wanted(portion);
            if result.is_ok() && published + added > 0 {
                let sent = connection.send(portion, self.options.streams.as_ref());
                match within(self.options.timeout, sent).await {
                    Ok(sent) => {
                        self.stats.pings_out.add(sent.published);
                        self.stats.stream_entries_out.add(sent.added);
                        let (pings, entries) =
                            (&self.stats.pings_dropped, &self.stats.stream_entries_dropped);
                        pings.refused.add(published.saturating_sub(sent.published));
                        entries.refused.add(added.saturating_sub(sent.added));
                        self.redis_time = sent.redis_ms.map(|ms| (ms, Instant::now())).or(self.redis_time);
                        result = self.judge(connection, sent.published + sent.added > 0, sent.problem);
                        continue;
                    }
                    Err(error) => result = Err(error),
                }
            }
            self.stats.pings_dropped.link_down.add(published);
            self.stats.stream_entries_dropped.link_down.add(added);
        }
        result
    }

    /// What an error answer means for the link.
    fn judge(
        &mut self,
        connection: &Connection,
        is_any_sent: bool,
        problem: Option<RedisError>,
    ) -> Result<(), RedisError> {
        match problem {
            None => self.say_up(connection),
            Some(error) if !error.leaves_connection() => return Err(error),
            // The connection stays: a change of the user's rights holds for it too, and the next ping will tell.
            Some(error) if !is_any_sent && error.is_denied() => self.say_down(&error),
            Some(error) => self.say_partly_refused(connection, is_any_sent, &error),
        }
        Ok(())
    }

    fn leave_out_stale(&self, portion: &mut [Outgoing]) {
        let now = Instant::now();
        for outgoing in portion {
            if now.saturating_duration_since(outgoing.ping.since) > self.options.max_age {
                self.stats.pings_stale.add(u64::from(std::mem::take(&mut outgoing.is_published)));
                self.stats.stream_entries_stale.add(u64::from(std::mem::take(&mut outgoing.is_added)));
            }
        }
    }

    /// Entries for more different streams than may be.
    fn leave_out_streams(&mut self, portion: &mut [Outgoing]) {
        static TOO_MANY: Limited = Limited::new(REFUSALS);
        let count_max = self.options.streams.as_ref().map_or(0, |streams| streams.count_max);
        for Outgoing { ping, is_added, .. } in portion {
            let Some(name) = ping.stream().filter(|name| *is_added && !self.streams.contains(*name)) else {
                continue;
            };
            if self.streams.len() < count_max {
                self.streams.insert(name.into());
                continue;
            }
            *is_added = false;
            self.stats.stream_entries_dropped.too_many_streams.add(1);
            if let Some(suppressed) = TOO_MANY.allow() {
                let stream = String::from_utf8_lossy(name);
                tracing::error!(
                    %stream, count_max, suppressed,
                    "more different streams than redis.streams_max: entries for others are dropped"
                );
            }
        }
    }

    /// Takes entries that are too old out of the streams, by Redis' own clock.
    pub(super) async fn trim(
        &mut self,
        connection: &mut Connection,
        max_age: Duration,
    ) -> Result<(), RedisError> {
        static REFUSED: Limited = Limited::new(REFUSALS);
        let Some((ms, at)) = self.redis_time else { return Ok(()) };
        let now = Duration::from_millis(ms) + at.elapsed();
        let oldest = u64::try_from(now.saturating_sub(max_age).as_millis()).unwrap_or(0);
        let streams = self.streams.iter().map(AsRef::as_ref);
        match within(self.options.timeout, connection.trim(streams, oldest)).await {
            Err(error) if error.leaves_connection() => {
                if let Some(suppressed) = REFUSED.allow() {
                    tracing::error!(%error, suppressed, "streams are not trimmed by redis.stream_max_age");
                }
                Ok(())
            }
            result => result,
        }
    }
}

/// A ping that is published and of which nothing else goes out.
pub(super) fn published(ping: Ping) -> Outgoing {
    Outgoing { ping, is_published: true, is_added: false }
}

/// How many are to be published and added.
fn wanted(portion: &[Outgoing]) -> (u64, u64) {
    let published = portion.iter().filter(|outgoing| outgoing.is_published).count();
    let added = portion.iter().filter(|outgoing| outgoing.is_added).count();
    (published as u64, added as u64)
}
