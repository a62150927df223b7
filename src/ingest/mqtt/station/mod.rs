//! The loop between link and buffer: takes publishes into a load, appends one load after the other, and answers what
//! became durable.
//!
//! One append at a time: while it syncs the next load gathers, so that the order of events and of answers needs no
//! care and the writer always finds one load as large as the sync was long. The link is never waited for by the
//! buffer nor the other way round.

mod connections;
mod loads;
mod notices;
mod publishes;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::select;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::book::{Book, LoadNumber};
use super::bulletin::Bulletin;
use super::link::{Heard, Outbox, Requests, Wire, listen};
use super::subscriptions::{Complaint, Granted, Subscriptions};
use super::{MqttError, Options, Qos};
use crate::backoff::Backoff;
use crate::buffer::Batch;
use crate::files::{LOOK_INTERVAL, Watched};
use crate::ingest::Admission;
use crate::stats::{LinkState, Stats};
use crate::status::Overview;
use connections::{COMEBACK, RECONNECT_FIRST, RECONNECT_MAX, REFUSED_FIRST, REFUSED_MAX, Watch};
use loads::{Append, Buffering, outcome};
use notices::Notices;

/// From `stop` to the end, whatever buffer and broker do.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// For the broker to close a connection after DISCONNECT.
const LEAVE_GRACE: Duration = Duration::from_secs(2);

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

    fn stats(&self) -> &Stats {
        self.admission.stats()
    }

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
