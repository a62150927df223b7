//! A tap in the line between agent and MQTT broker: notes every packet of both ways, and can hold or cut the line.
//!
//! A packet is noted before it is passed on. So what the notes of one connection say about cause and effect is true:
//! an answer is noted after the publish that it answers, and what the broker sends upon an answer after that.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::mqtt::{Packet, Packets, address_of, kind};
use super::wait::{USUAL, eventually};

/// Packets of one way that are noted and not yet written; more stay in the socket.
const QUEUE_MAX: usize = 10_000;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    ToAgent,
    ToBroker,
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Counts the agent's connections from 0.
    pub(crate) connection: usize,
    pub(crate) way: Way,
    /// Of [`kind`].
    pub(crate) kind: u8,
    pub(crate) pkid: u16,
    pub(crate) qos: u8,
    pub(crate) dup: bool,
}

/// See the module. Passes on until it is dropped.
pub(crate) struct Tap {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    broker: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    connections: usize,
    open: BTreeMap<usize, [TcpStream; 2]>,
    held: BTreeSet<Way>,
    /// Packets that were seen and not yet passed on, for each open connection and way.
    queued: BTreeMap<(usize, Way), usize>,
    refusing: bool,
    over: bool,
}

impl Tap {
    /// A tap in front of the broker at `url`.
    pub(crate) fn on(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            broker: address_of(url).to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Self { address, shared }
    }

    /// Where the agent connects to.
    pub(crate) fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Everything noted so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// How many packets of a kind went a way, over all connections.
    pub(crate) fn count(&self, way: Way, kind: u8) -> usize {
        self.shared.lock().seen.iter().filter(|seen| seen.way == way && seen.kind == kind).count()
    }

    #[track_caller]
    pub(crate) fn wait_count(&self, way: Way, kind: u8, count: usize, patience: Duration) {
        eventually(&format!("{count} packets of type {kind} {way:?}"), patience, || {
            (self.count(way, kind) >= count).then_some(())
        });
    }

    /// Waits until the broker has confirmed a subscription.
    #[track_caller]
    pub(crate) fn wait_subscribed(&self) {
        self.wait_count(Way::ToAgent, kind::SUBACK, 1, USUAL);
    }

    /// How many connections the agent has made.
    pub(crate) fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    /// Publishes of the last connection without an answer.
    pub(crate) fn unanswered(&self) -> usize {
        let state = self.shared.lock();
        let last = state.connections.saturating_sub(1);
        let mut open = BTreeSet::new();
        for seen in state.seen.iter().filter(|seen| seen.connection == last) {
            match (seen.way, seen.kind) {
                (Way::ToAgent, kind::PUBLISH) if seen.qos > 0 => drop(open.insert(seen.pkid)),
                (Way::ToBroker, kind::PUBACK | kind::PUBREC) => drop(open.remove(&seen.pkid)),
                _ => {}
            }
        }
        open.len()
    }

    /// From now on packets of that way are noted and kept.
    pub(crate) fn hold(&self, way: Way) {
        self.shared.lock().held.insert(way);
    }

    /// Passes on again, what was kept first.
    pub(crate) fn pass(&self, way: Way) {
        self.shared.lock().held.remove(&way);
        self.shared.changed.notify_all();
    }

    /// Ends every open connection. What was seen has passed before, but for a way that is held: what was kept of that
    /// is gone.
    #[track_caller]
    pub(crate) fn cut(&self) {
        eventually("what was seen has passed", USUAL, || {
            let state = self.shared.lock();
            state.queued.iter().all(|((_, way), &count)| count == 0 || state.held.contains(way)).then_some(())
        });
        self.shared.lock().cut();
        self.shared.changed.notify_all();
    }

    /// Ends every new connection at once.
    pub(crate) fn refuse(&self) {
        self.shared.lock().refusing = true;
    }

    /// Takes connections again.
    pub(crate) fn accept(&self) {
        self.shared.lock().refusing = false;
    }

    /// Every answer of the agent is to a publish of the same connection, once, and in the order received.
    #[track_caller]
    pub(crate) fn assert_answers_belong(&self) {
        let mut open: BTreeMap<usize, Vec<u16>> = BTreeMap::new();
        for seen in self.seen() {
            let open = open.entry(seen.connection).or_default();
            match (seen.way, seen.kind) {
                (Way::ToAgent, kind::PUBLISH) if seen.qos > 0 => open.push(seen.pkid),
                (Way::ToBroker, kind::PUBACK | kind::PUBREC) => {
                    assert_eq!(open.first(), Some(&seen.pkid), "not the oldest unanswered one: {seen:?}");
                    open.remove(0);
                }
                _ => {}
            }
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.over = true;
        state.cut();
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
    }
}

impl State {
    fn cut(&mut self) {
        while let Some(connection) = self.open.keys().next().copied() {
            self.end(connection);
        }
    }

    fn end(&mut self, connection: usize) {
        self.queued.retain(|(of, _), _| *of != connection);
        for stream in self.open.remove(&connection).into_iter().flatten() {
            // Gone already is fine.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for agent in listener.incoming() {
            if self.lock().over {
                return;
            }
            let Ok(agent) = agent else { continue };
            if self.lock().refusing {
                continue;
            }
            let Ok(broker) = TcpStream::connect(&self.broker) else { continue };
            let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
            let mut state = self.lock();
            let connection = state.connections;
            state.connections += 1;
            state.open.insert(connection, [clone(&agent), clone(&broker)]);
            drop(state);
            self.pump(connection, Way::ToBroker, clone(&agent), clone(&broker));
            self.pump(connection, Way::ToAgent, broker, agent);
        }
    }

    /// Passes one way on, on threads that end with the connection: one reads and notes, so that it does so also
    /// while the line is held, the other writes.
    fn pump(self: &Arc<Self>, connection: usize, way: Way, mut from: TcpStream, mut to: TcpStream) {
        let (queue, ready) = sync_channel::<Packet>(QUEUE_MAX);
        to.set_nodelay(true).expect("a TCP socket");
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            let mut packets = Packets::default();
            let mut bytes = vec![0; 64 << 10];
            'open: while let Ok(count @ 1..) = from.read(&mut bytes) {
                packets.push(&bytes[..count]);
                for packet in packets.by_ref() {
                    shared.note(connection, way, &packet);
                    if queue.send(packet).is_err() {
                        break 'open;
                    }
                }
            }
        });
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            for packet in ready {
                if !shared.may_pass(connection, way) || to.write_all(&packet.bytes).is_err() {
                    break;
                }
                shared.passed(connection, way);
            }
            shared.lock().end(connection);
            shared.changed.notify_all();
        });
    }

    fn passed(&self, connection: usize, way: Way) {
        if let Some(count) = self.lock().queued.get_mut(&(connection, way)) {
            *count -= 1;
        }
    }

    fn note(&self, connection: usize, way: Way, packet: &Packet) {
        let mut state = self.lock();
        if state.open.contains_key(&connection) {
            *state.queued.entry((connection, way)).or_default() += 1;
        }
        state.seen.push(Seen {
            connection,
            way,
            kind: packet.kind(),
            pkid: packet.pkid(),
            qos: packet.qos(),
            dup: packet.dup(),
        });
    }

    /// Waits while this way is held; whether the connection is still there.
    fn may_pass(&self, connection: usize, way: Way) -> bool {
        let state = self.lock();
        let is_held = |state: &mut State| state.held.contains(&way) && state.open.contains_key(&connection);
        let state = self.changed.wait_while(state, is_held).unwrap_or_else(PoisonError::into_inner);
        state.open.contains_key(&connection)
    }
}
