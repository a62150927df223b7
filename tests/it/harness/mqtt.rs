//! A publisher that counts only what the broker has taken, and the little of MQTT 3.1.1 that it needs.
//!
//! Written out by hand instead of with the agent's client library, so that a fault of that library is not on both
//! sides of the test.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::wait::{USUAL, eventually, scaled, within};

/// How long one look for answers may take.
const LOOK: Duration = Duration::from_millis(2);

/// Packet types, as the first half of a packet's first byte.
pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const CONNACK: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const SUBACK: u8 = 9;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const PINGRESP: u8 = 13;
    pub(crate) const DISCONNECT: u8 = 14;
}

/// One packet, of any version.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// With its fixed header.
    pub(crate) bytes: Vec<u8>,
    body: usize,
}

impl Packet {
    fn new(first: u8, body: &[u8]) -> Self {
        let mut bytes = vec![first];
        let mut left = body.len();
        loop {
            let low = u8::try_from(left & 0x7f).expect("seven bits");
            left >>= 7;
            bytes.push(if left > 0 { low | 0x80 } else { low });
            if left == 0 {
                break;
            }
        }
        let start = bytes.len();
        bytes.extend_from_slice(body);
        Self { bytes, body: start }
    }

    pub(crate) fn kind(&self) -> u8 {
        self.bytes[0] >> 4
    }

    /// Of a publish.
    pub(crate) fn qos(&self) -> u8 {
        self.bytes[0] >> 1 & 3
    }

    /// Of a publish.
    pub(crate) fn dup(&self) -> bool {
        self.bytes[0] & 8 != 0
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[self.body..]
    }

    /// The packet id of those that have one, else 0.
    pub(crate) fn pkid(&self) -> u16 {
        let body = self.body();
        let number = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        match self.kind() {
            kind::PUBLISH if self.qos() > 0 => number(2 + usize::from(number(0))),
            kind::PUBACK..=kind::PUBCOMP | kind::SUBSCRIBE | kind::SUBACK => number(0),
            _ => 0,
        }
    }
}

/// Cuts a stream of bytes into packets.
#[derive(Debug, Default)]
pub(crate) struct Packets {
    bytes: Vec<u8>,
}

impl Packets {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

impl Iterator for Packets {
    type Item = Packet;

    fn next(&mut self) -> Option<Packet> {
        let (mut length, mut body) = (0, 1);
        loop {
            let byte = usize::from(*self.bytes.get(body)?);
            length |= (byte & 0x7f) << (7 * (body - 1));
            body += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        if self.bytes.len() < body + length {
            return None;
        }
        let rest = self.bytes.split_off(body + length);
        Some(Packet { bytes: std::mem::replace(&mut self.bytes, rest), body })
    }
}

fn put_text(body: &mut Vec<u8>, text: &[u8]) {
    body.extend_from_slice(&u16::try_from(text.len()).expect("it is short").to_be_bytes());
    body.extend_from_slice(text);
}

/// `127.0.0.1:PORT` of `mqtt://127.0.0.1:PORT`.
pub(crate) fn address_of(url: &str) -> &str {
    url.strip_prefix("mqtt://").expect("an MQTT address").trim_end_matches('/')
}

/// One connection with a session that ends with it. At most `window` publishes are unanswered.
pub(crate) struct Publisher {
    stream: TcpStream,
    packets: Packets,
    last_id: u16,
    window: usize,
    /// Unanswered publishes: packet id, and the number the caller gave.
    open: BTreeMap<u16, u64>,
    /// Numbers of those the broker took since the caller asked last.
    taken: Vec<u64>,
}

impl Publisher {
    #[track_caller]
    pub(crate) fn connect(url: &str) -> Self {
        Self::try_connect(url).expect("the broker takes connections")
    }

    pub(crate) fn try_connect(url: &str) -> Result<Self> {
        let stream = TcpStream::connect(address_of(url))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(scaled(Duration::from_secs(60))))?;
        // MQTT 3.1.1, clean session, no keep-alive, an empty client id.
        let mut publisher = Self {
            stream,
            packets: Packets::default(),
            last_id: 0,
            window: 500,
            open: BTreeMap::new(),
            taken: Vec::new(),
        };
        publisher.write(&Packet::new(kind::CONNECT << 4, b"\0\x04MQTT\x04\x02\0\0\0\0"))?;
        let answer = within(scaled(USUAL), || publisher.read(LOOK).transpose())
            .unwrap_or_else(|| Err(ErrorKind::TimedOut.into()))?;
        match (answer.kind(), answer.body()) {
            (kind::CONNACK, [_, 0]) => Ok(publisher),
            _ => Err(Error::other(format!("{answer:?}"))),
        }
    }

    /// Sends a publish with the caller's number `n`, which [`Publisher::taken`] gives back; waits for room in the
    /// window. QoS 0 is taken at once, since no answer comes.
    pub(crate) fn send(&mut self, qos: u8, topic: &str, payload: &[u8], n: u64) -> Result<()> {
        while self.open.len() >= self.window {
            self.hear(LOOK)?;
        }
        let mut body = Vec::with_capacity(topic.len() + payload.len() + 4);
        put_text(&mut body, topic.as_bytes());
        if qos > 0 {
            let id = (1..=u16::MAX)
                .map(|step| self.last_id.wrapping_add(step).max(1))
                .find(|id| !self.open.contains_key(id))
                .expect("the window is smaller");
            self.last_id = id;
            self.open.insert(id, n);
            body.extend_from_slice(&id.to_be_bytes());
        } else {
            self.taken.push(n);
        }
        body.extend_from_slice(payload);
        self.write(&Packet::new(kind::PUBLISH << 4 | qos << 1, &body))?;
        self.hear(Duration::ZERO)
    }

    /// Sends a publish and waits until the broker has taken it.
    #[track_caller]
    pub(crate) fn publish(&mut self, qos: u8, topic: &str, payload: impl AsRef<[u8]>) {
        self.send(qos, topic, payload.as_ref(), 0).expect("the broker takes the publish");
        self.settle();
    }

    /// Waits until nothing is unanswered.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        eventually("the broker answers every publish", USUAL, || {
            self.hear(LOOK).expect("the broker answers");
            self.open.is_empty().then_some(())
        });
    }

    /// Takes in the answers that have come.
    fn hear(&mut self, wait: Duration) -> Result<()> {
        let mut wait = wait;
        while let Some(packet) = self.read(wait)? {
            let id = packet.pkid();
            match packet.kind() {
                kind::PUBREC => self.write(&Packet::new(kind::PUBREL << 4 | 2, &id.to_be_bytes()))?,
                kind::PUBACK | kind::PUBCOMP => {
                    let n = self.open.remove(&id).expect("an answer to something that was sent");
                    self.taken.push(n);
                }
                _ => {}
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn read(&mut self, wait: Duration) -> Result<Option<Packet>> {
        if let Some(packet) = self.packets.next() {
            return Ok(Some(packet));
        }
        let nonblocking = wait.is_zero();
        self.stream.set_nonblocking(nonblocking)?;
        if !nonblocking {
            self.stream.set_read_timeout(Some(wait))?;
        }
        let mut bytes = [0; 16 << 10];
        let got = self.stream.read(&mut bytes);
        self.stream.set_nonblocking(false)?;
        match got {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.packets.push(&bytes[..count]);
                Ok(self.packets.next())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, packet: &Packet) -> Result<()> {
        self.stream.write_all(&packet.bytes)
    }
}

/// How a sensor behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beat {
    pub(crate) qos: u8,
    /// Events a second; `None`: as fast as `window` allows.
    pub(crate) rate: Option<u32>,
    /// Most unanswered publishes.
    pub(crate) window: usize,
    /// Most events; `u64::MAX` for no end.
    pub(crate) count: u64,
}

impl Default for Beat {
    fn default() -> Self {
        Self { qos: 1, rate: None, window: 100, count: u64::MAX }
    }
}

/// Payload of event `n` of `source` in the form that [`super::flow::Stored`] reads; the topic has the names.
pub(crate) fn payload_of(source: &str, n: u64, padding: &str) -> String {
    format!(r#"{{"id":"{source}-{n}","payload":{{"n":{n},"x":"{padding}"}}}}"#)
}

/// A sensor on a thread of its own, publishing to `{prefix}/probe/{source}/reading`. It goes on over lost connections
/// and publishes again what the broker did not take, the oldest first.
pub(crate) struct Sensor {
    source: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    abandon: AtomicBool,
    taken: Mutex<BTreeSet<u64>>,
}

impl Sensor {
    pub(crate) fn start(url: &str, prefix: &str, source: &str, beat: Beat) -> Self {
        let shared = Arc::<Shared>::default();
        let work = Work {
            url: url.to_owned(),
            topic: format!("{prefix}/probe/{source}/reading"),
            source: source.to_owned(),
            beat,
            shared: Arc::clone(&shared),
            begun: Instant::now(),
            next: 0,
            again: BTreeSet::new(),
        };
        let thread = Some(std::thread::spawn(move || work.run()));
        Self { source: source.to_owned(), shared, thread }
    }

    /// How many events the broker has taken.
    pub(crate) fn taken(&self) -> u64 {
        self.shared.taken.lock().unwrap().len() as u64
    }

    /// Waits until the broker has taken `count` more.
    #[track_caller]
    pub(crate) fn wait_more(&self, count: u64) {
        let before = self.taken();
        eventually("the broker takes more", USUAL, || (self.taken() >= before + count).then_some(()));
    }

    /// Publishes nothing new any more, waits until the broker has taken everything, and answers how much that is:
    /// events `0..n`.
    #[track_caller]
    pub(crate) fn finish(mut self, patience: Duration) -> BTreeMap<String, u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it runs");
        let ended = within(scaled(patience), || thread.is_finished().then_some(()));
        assert!(ended.is_some(), "the broker has taken {} events of {}", self.taken(), self.source);
        thread.join().expect("the sensor does not panic");
        BTreeMap::from([(self.source.clone(), self.taken())])
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        self.shared.abandon.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed; the test's own assertion is what fails it.
            drop(thread.join());
        }
    }
}

struct Work {
    url: String,
    topic: String,
    source: String,
    beat: Beat,
    shared: Arc<Shared>,
    begun: Instant,
    /// First event never sent.
    next: u64,
    /// Events to send again.
    again: BTreeSet<u64>,
}

impl Work {
    fn run(mut self) {
        while !(self.is_abandoned() || self.again.is_empty() && self.is_finished()) {
            let connected = within(Duration::from_millis(200), || Publisher::try_connect(&self.url).ok());
            let Some(mut publisher) = connected else { continue };
            publisher.window = self.beat.window;
            let _lost_link = self.serve(&mut publisher);
            self.count(&mut publisher);
            self.again.extend(publisher.open.into_values());
        }
    }

    fn is_abandoned(&self) -> bool {
        self.shared.abandon.load(Ordering::Relaxed)
    }

    fn is_finished(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || self.next >= self.beat.count
    }

    fn is_due(&self) -> bool {
        let passed = self.begun.elapsed().as_secs_f64();
        self.beat.rate.is_none_or(|rate| (self.next as f64) < passed * f64::from(rate))
    }

    /// One connection to its end.
    fn serve(&mut self, publisher: &mut Publisher) -> Result<()> {
        loop {
            self.count(publisher);
            if self.is_abandoned() {
                return Ok(());
            }
            let has_room = publisher.open.len() < publisher.window;
            let n = match self.again.first() {
                Some(&n) if has_room => n,
                None if self.is_finished() && publisher.open.is_empty() => return Ok(()),
                None if has_room && !self.is_finished() && self.is_due() => self.next,
                _ => {
                    publisher.hear(LOOK)?;
                    continue;
                }
            };
            if !self.again.remove(&n) {
                self.next += 1;
            }
            publisher.send(self.beat.qos, &self.topic, payload_of(&self.source, n, "").as_bytes(), n)?;
        }
    }

    fn count(&self, publisher: &mut Publisher) {
        self.shared.taken.lock().unwrap().extend(publisher.taken.drain(..));
    }
}
