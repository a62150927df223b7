//! One connection after the other: made, lost, left, and made again after a wait that fits the reason.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::Station;
use crate::ingest::mqtt::link::{CONNECT_TIMEOUT, Failure, FailureKind, Setup, Wire, connection};
use crate::ingest::mqtt::{Options, packet_bytes_max};
use crate::stats::LinkState;

/// Wait after leaving for want of room. Short, since it comes once per load that was stored and answered: the buffer
/// sets the pace.
pub(super) const COMEBACK: Duration = Duration::from_millis(10);
/// A link that held this long was a working one: the next failure is a new one.
const HELD: Duration = Duration::from_secs(5);
/// This many connections in a row that did not hold are no accident.
const SHORT_LIVED: u32 = 3;
pub(super) const RECONNECT_FIRST: Duration = Duration::from_millis(200);
pub(super) const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// For what a human has to mend: refused credentials, a packet that cannot be read.
pub(super) const REFUSED_FIRST: Duration = Duration::from_secs(5);
pub(super) const REFUSED_MAX: Duration = Duration::from_secs(60);

/// Looks after a connection that gives no sign of life: the client hangs in a write to a broker that does not read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    pub(super) until: Instant,
    pub(super) signs: u64,
}

impl<W: Wire> Station<W> {
    pub(super) fn connection(&self, delay: Duration) -> impl Future<Output = Failure> + Send + use<W> {
        let setup = Setup {
            delay,
            packet_bytes_max: packet_bytes_max(self.admission.event_bytes_max()),
            accept_every_release: self.accept_every_release,
            will: self.options.status.as_ref().map(|status| {
                let will = self.overview.brief().down();
                (status.topic.clone(), will.json())
            }),
        };
        connection::<W>(Arc::clone(&self.options), setup, Arc::clone(&self.outbox))
    }

    pub(super) fn connect(&mut self, session: bool) {
        let now = Instant::now();
        self.requests = self.outbox.take_requests();
        self.connected = Some(now);
        self.watch = Watch { until: now + self.silence_max(), signs: self.outbox.signs() };
        self.told = None;
        if !session {
            self.book.start_anew();
        }
        self.subscriptions.connected(session, now);
        if let Some(bulletin) = &mut self.bulletin {
            bulletin.connected(now);
        }
        if self.stats().mqtt.set(LinkState::Up) {
            let Options { host, port, client_id, .. } = &*self.options;
            info!(host, port, client_id, session, "MQTT link up");
        }
    }

    /// The connection is gone; returns how long to wait for the next one.
    pub(super) fn fail(&mut self, failure: &Failure) -> Duration {
        if self.leave_by.is_some() {
            return self.left();
        }
        match self.connected.map(|at| at.elapsed() >= HELD) {
            Some(true) => {
                self.reconnect.reset();
                self.refused.reset();
                self.short_lived = 0;
            }
            Some(false) => self.short_lived += 1,
            None => {}
        }
        self.accept_every_release |= failure.kind == FailureKind::UnknownRelease;
        self.disconnected();
        let was_up = self.stats().mqtt.set(LinkState::Down);
        self.stats().mqtt.failed(&failure.what);
        let news = self.told.as_ref() != Some(&failure.what);
        let delay = match failure.kind {
            FailureKind::Refused { .. }
            | FailureKind::Tls
            | FailureKind::File
            | FailureKind::PacketTooLarge => self.refused.delay(),
            _ => self.reconnect.delay(),
        };
        self.tell(failure, was_up, news, delay);
        delay
    }

    fn tell(&mut self, failure: &Failure, was_up: bool, news: bool, delay: Duration) {
        let Options { host, port, client_id, .. } = &*self.options;
        let what = failure.what.as_str();
        match failure.kind {
            FailureKind::Refused { hint } if news => {
                error!(host, port, client_id, what, "MQTT broker refuses the connection; look at {hint}");
            }
            FailureKind::Tls if news => error!(host, port, what, "no TLS with the MQTT broker"),
            FailureKind::File if news => error!(host, port, what, "the MQTT link cannot be made"),
            FailureKind::TakenOver if self.notices.taken_over.allow().is_some() => {
                error!(client_id, "another MQTT client took over the session; mqtt.client_id must be unique");
            }
            // What a take-over looks like where the broker does not say so.
            FailureKind::Link
                if self.short_lived >= SHORT_LIVED && self.notices.taken_over.allow().is_some() =>
            {
                error!(
                    client_id,
                    what,
                    "the MQTT broker closes each connection soon after it was made; is mqtt.client_id used twice?"
                );
            }
            FailureKind::PacketTooLarge if self.notices.packet.allow().is_some() => {
                let bytes_max = packet_bytes_max(self.admission.event_bytes_max());
                error!(
                    what,
                    bytes_max,
                    "the broker sends a packet that is too large to read, and will again; set max_packet_size in \
                     the broker or mqtt.protocol = 5 here"
                );
            }
            _ if was_up || self.told.is_none() => warn!(host, port, what, "MQTT link down"),
            _ => debug!(host, port, what, ?delay, "MQTT link still down"),
        }
        self.told = Some(failure.what.clone());
    }

    /// What ends with a connection.
    fn disconnected(&mut self) {
        self.requests = None;
        self.connected = None;
        self.skipping = false;
        let is_left = self.leave_by.take().is_some();
        self.subscriptions.disconnected();
        if let Some(bulletin) = &mut self.bulletin {
            bulletin.disconnected(is_left);
        }
        let lost = self.book.lose();
        self.stats().mqtt_acks_dropped.add(lost);
    }

    /// Whether, and after which wait, the connection must be made anew although it did not fail.
    pub(super) fn reconnect_in(&mut self, now: Instant) -> Option<Duration> {
        if std::mem::take(&mut self.hurry) {
            return Some(Duration::ZERO);
        }
        if self.is_silent(now) {
            let what = "the broker does not take what is sent".into();
            return Some(self.fail(&Failure { kind: FailureKind::Link, what }));
        }
        self.leave_by.filter(|&at| at <= now)?;
        Some(self.left())
    }

    /// The connection was left; returns how long to wait for the next one.
    fn left(&mut self) -> Duration {
        self.disconnected();
        if self.stop_by.is_some() {
            self.stats().mqtt.set(LinkState::Down);
        }
        std::mem::replace(&mut self.comeback, COMEBACK)
    }

    /// The client wakes once per keep-alive by itself.
    fn silence_max(&self) -> Duration {
        self.options.keep_alive * 2 + CONNECT_TIMEOUT
    }

    fn is_silent(&mut self, now: Instant) -> bool {
        if self.connected.is_none() || now < self.watch.until {
            return false;
        }
        let signs = self.outbox.signs();
        let silent = signs == self.watch.signs;
        self.watch = Watch { until: now + self.silence_max(), signs };
        silent
    }
}
