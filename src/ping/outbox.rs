//! Pings that are made early and offered late: those of a transaction come all at once, at its commit, and may be more than
//! the sink's queue takes in one go. They wait here for room, in their order; nothing waits for them.

use std::collections::VecDeque;

use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::{Ping, Pings};
use crate::event::Event;

/// The way of pings that follow Kafka.
#[derive(Debug)]
pub struct Outbox {
    pings: Pings,
    waiting: VecDeque<Ping>,
    waiting_max: usize,
}

impl Outbox {
    /// One in which so many may wait beside those in the sink's queue.
    pub fn new(pings: Pings, waiting_max: usize) -> Self {
        Self { pings, waiting: VecDeque::new(), waiting_max }
    }

    /// The ping of an event to be offered later, if it is to have one.
    pub fn make(&self, event: &Event<'_>) -> Option<Ping> {
        (!event.way.is_quiet).then(|| self.pings.plan.ping(event, Instant::now(), &self.pings.room))
    }

    /// Offers a ping that was made earlier; from now on it ages. Dropped and counted when neither the queue has room nor this.
    pub fn offer(&mut self, ping: Ping) {
        let ping = Ping { since: Instant::now(), ..ping };
        // Order: behind those that wait.
        let left = if self.waiting.is_empty() { self.send(ping) } else { Some(ping) };
        match left {
            None => {}
            Some(ping) if self.waiting.len() < self.waiting_max => self.waiting.push_back(ping),
            Some(_) => self.pings.plan.count_dropped(&self.pings.stats, 1),
        }
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Once the queue has room, as many of those that wait as fit.
    ///
    /// Cancel safe: yes.
    pub async fn hand_over(&mut self) {
        // Without anybody who takes them they are dropped below.
        if let Ok(place) = self.pings.queue.reserve().await
            && let Some(ping) = self.waiting.pop_front()
        {
            place.send(ping);
        }
        self.send_waiting();
    }

    /// The last look: what does not fit into the queue now is dropped and counted.
    pub fn close(mut self) {
        self.send_waiting();
        self.pings.plan.count_dropped(&self.pings.stats, self.waiting.len() as u64);
    }

    fn send_waiting(&mut self) {
        while let Some(ping) = self.waiting.pop_front() {
            if let Some(ping) = self.send(ping) {
                self.waiting.push_front(ping);
                break;
            }
        }
    }

    /// What the queue has no room for. Without anybody at its other end a ping is dropped and counted.
    fn send(&self, ping: Ping) -> Option<Ping> {
        match self.pings.queue.try_send(ping) {
            Ok(()) => None,
            Err(TrySendError::Full(ping)) => Some(ping),
            Err(TrySendError::Closed(_)) => {
                self.pings.plan.count_dropped(&self.pings.stats, 1);
                None
            }
        }
    }
}
