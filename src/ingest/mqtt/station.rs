//! The loop between link and buffer: takes publishes into a load, appends one load after the other, and answers what
//! became durable.
//!
//! One append at a time: while it syncs the next load gathers, so that the order of events and of answers needs no
//! care and the writer always finds one load as large as the sync was long. The link is never waited for by the
//! buffer nor the other way round.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::select;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::book::{Book, LoadNumber, Mark, Received};
use super::bulletin::Bulletin;
use super::link::{
    CONNECT_TIMEOUT, Failure, FailureKind, Heard, Outbox, Publish, Requests, Setup, Wire, connection, listen,
};
use super::subscriptions::{Complaint, Granted, Subscriptions};
use super::{MqttError, Options, Qos, body, packet_bytes_max};
use crate::backoff::Backoff;
use crate::buffer::{AppendError, Batch, Refused, Wait};
use crate::files::{LOOK_INTERVAL, Watched};
use crate::ingest::{Admission, Admitted, Refusal};
use crate::log::Limited;
use crate::stats::{LinkState, Stats};
use crate::status::Overview;

/// Shortest time between two appends while events trickle in: 2,000 events a second cost 100 syncs and as many rounds
/// to Kafka. Twice the drain's default round, so that a load finds the drain waiting for it. An event that comes alone
/// is appended at once.
const GATHER: Duration = Duration::from_millis(10);
/// A load of this many bytes is worth a sync of its own.
const LOAD_BYTES: usize = 256 << 10;
/// What a publish costs besides its encoded event: its end in the batch and its entry in the order book.
const PUBLISH_BYTES: usize = 64;
/// From `stop` to the end, whatever buffer and broker do.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// For the broker to close a connection after DISCONNECT.
const LEAVE_GRACE: Duration = Duration::from_secs(2);
/// Wait after leaving for want of room. Short, since it comes once per load that was stored and answered: the buffer
/// sets the pace.
const COMEBACK: Duration = Duration::from_millis(10);
/// A link that held this long was a working one: the next failure is a new one.
const HELD: Duration = Duration::from_secs(5);
/// This many connections in a row that did not hold are no accident.
const SHORT_LIVED: u32 = 3;
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// For what a human has to mend: refused credentials, a packet that cannot be read.
const REFUSED_FIRST: Duration = Duration::from_secs(5);
const REFUSED_MAX: Duration = Duration::from_secs(60);
const STORE_FIRST: Duration = Duration::from_millis(100);
const STORE_MAX: Duration = Duration::from_secs(5);
/// Longest part of a topic in a log line, in characters.
const SHOWN_CHARS_MAX: usize = 120;

/// Runs one input. See [`super::run`].
pub(super) async fn serve<W: Wire>(
    options: Options,
    admission: Admission,
    overview: Arc<Overview>,
    stop: CancellationToken,
) -> Result<(), MqttError> {
    let mut station = Station::<W>::new(options, admission, overview);
    let outbox = Arc::clone(&station.outbox);
    let mut connection = pin!(station.connection(Duration::ZERO));
    let mut timer = pin!(sleep(Duration::ZERO));
    let mut append: Option<Append> = None;
    loop {
        let now = Instant::now();
        station.look_after_files(now);
        station.ask(now);
        if append.is_none() {
            append = station.submit(now);
        }
        if let Some(delay) = station.reconnect_in(now) {
            connection.set(station.connection(delay));
        }
        if station.is_done(append.is_some(), now) {
            return Ok(());
        }
        let wake = station.wake_at(append.is_some(), now);
        if let Some(at) = wake.filter(|&at| at != timer.deadline()) {
            timer.as_mut().reset(at);
        }
        // Order: what is rare comes first, since a busy link is always ready.
        select! {
            biased;
            () = stop.cancelled(), if station.stop_by.is_none() => station.stop(),
            stored = outcome(&mut append), if append.is_some() => {
                append = None;
                if station.stored(stored) == Buffering::Closed {
                    return if stop.is_cancelled() { Ok(()) } else { Err(MqttError::BufferClosed) };
                }
            }
            () = &mut timer, if wake.is_some() => {}
            failure = listen(connection.as_mut(), &outbox) => {
                station.hear();
                if let Some(failure) = failure {
                    let delay = station.fail(&failure);
                    connection.set(station.connection(delay));
                }
            }
        }
    }
}

type Append = Pin<Box<dyn Future<Output = Stored> + Send>>;

/// Cancel safe: yes, the append is kept by its owner.
async fn outcome(append: &mut Option<Append>) -> Stored {
    match append {
        Some(append) => append.await,
        None => std::future::pending().await,
    }
}

/// What became of a load.
#[derive(Debug)]
enum Stored {
    Durable(Batch),
    /// Nobody knows.
    Unknown,
    Closed,
}

/// Appends `batch`, however long it takes, and again after failures that leave it whole.
async fn store(admission: Admission, batch: Batch, limited: Arc<Limited>) -> Stored {
    let mut backoff = Backoff::new(STORE_FIRST, STORE_MAX);
    let mut batch = batch;
    loop {
        let Refused { reason, batch: back } = match admission.append(batch, Wait::UntilTaken).await {
            Ok(appended) => return Stored::Durable(appended.batch),
            Err(refused) => refused,
        };
        batch = match (&reason, back) {
            (AppendError::Closed, _) => return Stored::Closed,
            (_, None) => return Stored::Unknown,
            (_, Some(batch)) => batch,
        };
        if let Some(suppressed) = limited.allow() {
            warn!(%reason, events = batch.len(), suppressed, "append failed; trying again, PUBACK withheld");
        }
        sleep(backoff.delay()).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Buffering {
    Open,
    Closed,
}

/// State of the loop; every method is one step and none waits.
struct Station<W: Wire> {
    options: Arc<Options>,
    admission: Admission,
    notices: Notices,
    subscriptions: Subscriptions,
    /// What neighbours are told, if they are.
    bulletin: Option<Bulletin>,
    overview: Arc<Overview>,
    /// The last status is on its way.
    said_goodbye: bool,
    outbox: Arc<Outbox<W::Requests>>,
    /// Memory of what was heard, for the next time.
    heard: Vec<Heard>,
    /// PUBREL for an unknown packet id was seen or is to be expected.
    accept_every_release: bool,
    book: Book,
    /// The load that gathers.
    batch: Batch,
    /// How many of its events came with QoS 0.
    batch_qos0: u64,
    load: LoadNumber,
    /// Memory of the last load, for the next one.
    spare: Batch,
    submitted: Option<Instant>,
    /// The connection, once CONNACK came.
    requests: Option<W::Requests>,
    connected: Option<Instant>,
    watch: Watch,
    reconnect: Backoff,
    refused: Backoff,
    /// Publishes of this connection are left with the broker, until it is made anew; see "Pressure" in [`super`].
    skipping: bool,
    /// Wait before the connection that follows this one.
    comeback: Duration,
    /// Set when DISCONNECT was asked for: how long the broker has to close the connection.
    leave_by: Option<Instant>,
    /// How many connections in a row ended soon after they were made.
    short_lived: u32,
    /// The failure that was logged last, until the link is up.
    told: Option<String>,
    /// The files that the options name.
    files: Watched,
    /// When to look at them next; `None`: there are none.
    look_at: Option<Instant>,
    /// A file changed while there was no connection: the next one is due at once.
    hurry: bool,
    /// Set when stopping.
    stop_by: Option<Instant>,
}

/// Looks after a connection that gives no sign of life: the client hangs in a write to a broker that does not read.
#[derive(Debug, Clone, Copy)]
struct Watch {
    until: Instant,
    signs: u64,
}

impl<W: Wire> Station<W> {
    fn new(options: Options, admission: Admission, overview: Arc<Overview>) -> Self {
        admission.stats().mqtt.set(LinkState::Down);
        let files = Watched::new(options.files());
        Self {
            look_at: (!files.is_empty()).then(|| Instant::now() + LOOK_INTERVAL),
            files,
            hurry: false,
            subscriptions: Subscriptions::new(&options.topics, options.qos),
            bulletin: options.status.as_ref().map(|status| Bulletin::new(status.interval)),
            overview,
            said_goodbye: false,
            outbox: Arc::new(Outbox::new()),
            heard: Vec::new(),
            accept_every_release: options.qos == Qos::ExactlyOnce,
            options: Arc::new(options),
            admission,
            notices: Notices::new(),
            book: Book::default(),
            batch: Batch::new(),
            batch_qos0: 0,
            load: 1,
            spare: Batch::new(),
            submitted: None,
            requests: None,
            connected: None,
            watch: Watch { until: Instant::now(), signs: 0 },
            reconnect: Backoff::new(RECONNECT_FIRST, RECONNECT_MAX),
            refused: Backoff::new(REFUSED_FIRST, REFUSED_MAX),
            skipping: false,
            comeback: COMEBACK,
            leave_by: None,
            short_lived: 0,
            told: None,
            stop_by: None,
        }
    }

    fn connection(&self, delay: Duration) -> impl Future<Output = Failure> + Send + use<W> {
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

    fn stats(&self) -> &Stats {
        self.admission.stats()
    }

    // ---- what the link says -------------------------------------------------------------------------------------

    fn hear(&mut self) {
        let mut all = std::mem::take(&mut self.heard);
        self.outbox.take(&mut all);
        for heard in all.drain(..) {
            match heard {
                Heard::Publish(publish) => self.take(&publish),
                Heard::Answered => self.book.written(),
                Heard::Released(pkid) => self.book.release(pkid),
                Heard::Connected { session } => self.connect(session),
                Heard::Granted(granted) => self.granted(granted),
                Heard::Published(answer) => self.published(answer),
            }
        }
        self.heard = all;
    }

    fn connect(&mut self, session: bool) {
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
    fn fail(&mut self, failure: &Failure) -> Duration {
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

    fn granted(&mut self, granted: Vec<Granted>) {
        for complaint in self.subscriptions.answered(granted, Instant::now()) {
            match complaint {
                Complaint::Refused { filter, reason } => {
                    error!(filter, reason, "MQTT subscription refused; trying again, look at mqtt.topics");
                }
                Complaint::Lowered { filter, granted } => {
                    warn!(filter, ?granted, wanted = ?self.options.qos, "MQTT subscription granted with less");
                }
            }
        }
    }

    fn published(&mut self, answer: Result<(), String>) {
        let Some(bulletin) = &mut self.bulletin else { return };
        if let Some(reason) = bulletin.answered(answer, Instant::now()) {
            let topic = self.options.status.as_ref().map(|status| status.topic.as_str());
            warn!(
                topic,
                reason, "the MQTT broker does not take the agent's status; look at mqtt.status_topic"
            );
        }
    }

    // ---- publishes ----------------------------------------------------------------------------------------------

    fn take(&mut self, publish: &Publish) {
        let full = self.pending_bytes() >= self.options.pending_bytes_max;
        if publish.qos == Qos::AtMostOnce {
            if full || self.stop_by.is_some() {
                self.stats().mqtt_qos0_dropped.add(1);
                self.notices.qos0(publish);
            } else if self.admit(publish) {
                self.batch_qos0 += 1;
            }
            return;
        }
        let mark = mark(publish);
        let again = self.book.knows(mark, publish.dup);
        if !again && (full || self.skipping || self.stop_by.is_some()) {
            self.skip();
            return;
        }
        if self.book.receive(mark, publish.dup, self.load) == Received::New && !self.admit(publish) {
            self.book.last_is_ready();
        }
    }

    /// Order: after one publish was left with the broker, all later ones of the connection are, or the redelivered
    /// one would be behind them.
    fn skip(&mut self) {
        if !self.skipping
            && self.stop_by.is_none()
            && let Some(suppressed) = self.notices.skipped.allow()
        {
            let bytes_max = self.options.pending_bytes_max;
            warn!(
                bytes_max,
                suppressed, "too much waits for the buffer: publishes stay with the MQTT broker"
            );
        }
        self.skipping = true;
    }

    /// Whether the publish became an event of the load; if not it is answered in its turn.
    fn admit(&mut self, publish: &Publish) -> bool {
        if self.options.is_status(&publish.topic) {
            return false;
        }
        let bytes_max = self.admission.event_bytes_max();
        // An encoded event is never larger in text than this: base64 grows by a third, names are bounded. Looking
        // first keeps a huge publish from being copied only to be refused.
        if publish.payload.len() > (bytes_max / 3).saturating_mul(4).saturating_add(16 << 10) {
            self.stats().too_large.add(1);
            let refusal = Refusal::TooLarge { bytes: publish.payload.len(), bytes_max };
            self.notices.unfit(&self.notices.too_large, publish, &refusal);
            return false;
        }
        let draft = match body::draft(&self.options.topics, &publish.topic, &publish.payload) {
            Ok(draft) => draft,
            Err(unfit) => {
                self.stats().invalid.add(1);
                self.notices.unfit(self.notices.limit_of(unfit), publish, &unfit);
                return false;
            }
        };
        // It was text, or it would be no draft.
        let topic = std::str::from_utf8(&publish.topic).ok();
        let refusal = match self.admission.admit(&draft, topic, &mut self.batch) {
            Ok(admitted) => return admitted == Admitted::Taken,
            Err(refusal) => refusal,
        };
        let limited = match refusal {
            Refusal::TooLarge { .. } => &self.notices.too_large,
            Refusal::Invalid(_) => &self.notices.invalid,
        };
        self.notices.unfit(limited, publish, &refusal);
        false
    }

    fn pending_bytes(&self) -> usize {
        self.batch.bytes() + PUBLISH_BYTES * (self.batch.len() + self.book.len())
    }

    // ---- the buffer ---------------------------------------------------------------------------------------------

    /// When the load that gathers is to be appended; `now` if it is time.
    fn due_at(&self, now: Instant) -> Option<Instant> {
        let gathered = self.submitted.map(|at| at + GATHER);
        let urgent =
            self.batch.bytes() >= LOAD_BYTES || self.book.holds_up_the_broker() || self.stop_by.is_some();
        let at = gathered.filter(|&at| at > now && !urgent).unwrap_or(now);
        (!self.batch.is_empty()).then_some(at)
    }

    /// Starts the append of the load, if it is time.
    fn submit(&mut self, now: Instant) -> Option<Append> {
        self.due_at(now).filter(|&at| at <= now)?;
        self.submitted = Some(now);
        self.load += 1;
        self.batch_qos0 = 0;
        let batch = std::mem::replace(&mut self.batch, std::mem::take(&mut self.spare));
        let limited = Arc::clone(&self.notices.storage);
        Some(Box::pin(store(self.admission.clone(), batch, limited)))
    }

    fn stored(&mut self, stored: Stored) -> Buffering {
        // One append at a time: it is the load before the one that gathers.
        let load = self.load - 1;
        match stored {
            Stored::Durable(batch) => {
                self.stats().mqtt_in.add(batch.len() as u64);
                self.settle(load, batch);
            }
            Stored::Unknown => {
                if let Some(suppressed) = self.notices.storage.allow() {
                    warn!(suppressed, "outcome of an append is unknown: the MQTT broker will deliver again");
                }
                self.leave_all_since(load);
            }
            Stored::Closed => return Buffering::Closed,
        }
        Buffering::Open
    }

    fn settle(&mut self, load: LoadNumber, batch: Batch) {
        self.spare = batch;
        self.spare.clear();
        let lost = self.book.settle(load);
        self.stats().mqtt_acks_dropped.add(lost);
    }

    /// Nobody knows whether `load` is stored. Order: what came after it is left with the broker too, or it would be
    /// stored in front of the redelivered ones.
    fn leave_all_since(&mut self, load: LoadNumber) {
        self.book.forget(load);
        self.book.forget(self.load);
        self.admission.forget(&self.batch);
        self.batch.clear();
        let qos0 = std::mem::take(&mut self.batch_qos0);
        self.stats().mqtt_qos0_dropped.add(qos0);
        self.skipping = true;
        self.comeback = self.reconnect.delay();
    }

    // ---- what is asked of the link ------------------------------------------------------------------------------

    /// Hands the client what it has room for: filters to subscribe, answers that are due, DISCONNECT.
    fn ask(&mut self, now: Instant) {
        let Some(requests) = &mut self.requests else { return };
        if let Some(filters) = self.subscriptions.take_due(now)
            && !requests.subscribe(filters, self.options.qos)
        {
            self.subscriptions.postpone(now);
        }
        // Order: events' acknowledgements first; the status finds room or waits for its next turn.
        while let Some(mark) = self.book.next_answer() {
            if !requests.answer(mark.pkid, mark.twice) {
                return;
            }
            self.book.hand_over();
        }
        if let (Some(bulletin), Some(status)) = (&mut self.bulletin, &self.options.status)
            && let Some(brief) = bulletin.take_due(now, || self.overview.brief())
            && !requests.publish(&status.topic, brief.json())
        {
            bulletin.postpone(now);
        }
        // Order: goodbye only after the last answer, and never by closing the socket ourselves: with publishes unread
        // in it that would be a reset, which takes answers away that the broker has not read yet.
        let leave = self.skipping || (self.stop_by.is_some() && self.batch.is_empty());
        if !leave || self.leave_by.is_some() || self.book.len() > 0 {
            return;
        }
        if let Some(status) =
            self.options.status.as_ref().filter(|_| self.stop_by.is_some() && !self.said_goodbye)
        {
            self.said_goodbye = requests.publish(&status.topic, self.overview.brief().stopped().json());
        }
        if requests.disconnect() {
            debug!("leaving, so that the broker delivers what was left with it");
            self.leave_by = Some(now + LEAVE_GRACE);
        }
    }

    /// Makes the connection anew when a file of the password or of TLS changed.
    fn look_after_files(&mut self, now: Instant) {
        if self.look_at.is_none_or(|at| now < at) {
            return;
        }
        self.look_at = Some(now + LOOK_INTERVAL);
        if !self.files.is_changed() || self.stop_by.is_some() {
            return;
        }
        info!("a file of the MQTT link changed: the link is made anew");
        self.refused.reset();
        self.told = None;
        if self.connected.is_some() {
            self.skipping = true;
        } else {
            self.hurry = true;
        }
    }

    /// Whether, and after which wait, the connection must be made anew although it did not fail.
    fn reconnect_in(&mut self, now: Instant) -> Option<Duration> {
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

    // ---- time ---------------------------------------------------------------------------------------------------

    fn wake_at(&self, appending: bool, now: Instant) -> Option<Instant> {
        let due = if appending { None } else { self.due_at(now) };
        let watch = self.connected.map(|_| self.watch.until);
        let status = self.bulletin.as_ref().and_then(Bulletin::due_at);
        let times =
            [due, status, self.subscriptions.due_at(), self.stop_by, self.leave_by, watch, self.look_at];
        times.into_iter().flatten().min()
    }

    fn stop(&mut self) {
        self.stop_by = Some(Instant::now() + STOP_GRACE);
    }

    /// Whether a stopping input has nothing left to do, or no time.
    fn is_done(&self, appending: bool, now: Instant) -> bool {
        let Some(stop_by) = self.stop_by else { return false };
        let stored = !appending && self.batch.is_empty();
        // Without requests there is no connection: never made, lost, or closed by the broker after DISCONNECT.
        (stored && self.requests.is_none()) || now >= stop_by
    }
}

fn mark(publish: &Publish) -> Mark {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&publish.topic);
    hasher.update(&publish.payload);
    let bytes = publish.topic.len() ^ publish.payload.len().rotate_left(16);
    let print = u64::from(hasher.finalize()) << 32 ^ bytes as u64;
    Mark { pkid: publish.pkid, twice: publish.qos == Qos::ExactlyOnce, print }
}

/// One limit for each reason to log that the outside can cause at any rate.
struct Notices {
    topic: Limited,
    missing: Limited,
    base64: Limited,
    invalid: Limited,
    too_large: Limited,
    qos0: Limited,
    skipped: Limited,
    packet: Limited,
    taken_over: Limited,
    storage: Arc<Limited>,
}

impl Notices {
    fn new() -> Self {
        let limited = || Limited::new(Duration::from_secs(60));
        Self {
            topic: limited(),
            missing: limited(),
            base64: limited(),
            invalid: limited(),
            too_large: limited(),
            qos0: limited(),
            skipped: limited(),
            packet: limited(),
            taken_over: limited(),
            storage: Arc::new(limited()),
        }
    }

    fn limit_of(&self, unfit: body::Unfit) -> &Limited {
        match unfit {
            body::Unfit::Topic => &self.topic,
            body::Unfit::Missing { .. } => &self.missing,
            body::Unfit::Base64 => &self.base64,
        }
    }

    fn unfit(&self, limited: &Limited, publish: &Publish, reason: &dyn std::fmt::Display) {
        if let Some(suppressed) = limited.allow() {
            let topic = shown(publish);
            warn!(topic, %reason, suppressed, "a publish is no event: acknowledged and dropped");
        }
    }

    fn qos0(&self, publish: &Publish) {
        if let Some(suppressed) = self.qos0.allow() {
            let topic = shown(publish);
            warn!(topic, suppressed, "a QoS 0 publish was dropped: the buffer cannot take it in time");
        }
    }
}

/// The topic, printable and short.
fn shown(publish: &Publish) -> String {
    String::from_utf8_lossy(&publish.topic)
        .chars()
        .take(SHOWN_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect()
}
