//! The independent consumer: what the topic holds, told apart the way a consumer of fieldpost's records should.
//!
//! Per agent, log and partition it remembers one position `(epoch, seq)`; a record that is not behind it is a
//! duplicate and dropped. Whatever is left is checked against what the sensors can have sent: known id, payload byte
//! for byte, order per source. It knows nothing of the agent but its records.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::cluster::{PARTITIONS, Reader};
use super::{Plan, Shared, sensors};

/// How long one read waits.
const READ_TIMEOUT: Duration = Duration::from_millis(100);

/// How long the end of the topic may take to come after the agent's end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest sequence number that a demo can reach; one bit of memory for each.
const SEQ_MAX: u64 = 1 << 32;

/// A record as the consumer sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    /// From the headers; `None` when one is missing.
    pub(super) position: Option<Position<'a>>,
}

/// Where a record stands in its agent's log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position<'a> {
    pub(super) agent: &'a str,
    pub(super) log: &'a str,
    pub(super) epoch: u64,
    pub(super) seq: u64,
}

/// One of the sensors' events: the index of its source and its number there, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventName {
    pub(super) source: usize,
    pub(super) number: usize,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    id: &'a str,
    source_id: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// What was seen of one source.
#[derive(Debug, Clone, Default)]
struct Source {
    /// By number.
    seen: Vec<bool>,
    last: usize,
}

/// What the topic holds.
#[derive(Debug)]
pub(super) struct Account {
    run: String,
    number_max: usize,
    sources: Vec<Source>,
    /// The next offset of each partition.
    next: Vec<i64>,
    /// The last position per log and partition; the log by agent and UUID.
    positions: HashMap<(String, i32), (u64, u64)>,
    /// Sequence numbers seen per log, one bit each.
    seqs: HashMap<String, Vec<u64>>,
    /// Records read.
    pub(super) records: u64,
    /// Distinct events.
    pub(super) events: u64,
    /// Records dropped by position, their event seen before.
    pub(super) duplicates: u64,
    /// Events that came again under a later position.
    pub(super) repeated: Vec<EventName>,
    /// Events that came behind a later one of their source.
    pub(super) late: Vec<EventName>,
    /// Records that are behind their position although their event never came before.
    pub(super) behind_position: u64,
    /// Records that no sensor of this run can have sent, or that were changed on the way.
    pub(super) foreign: u64,
    /// Records that the mock cluster threw away before they were read.
    pub(super) unread: u64,
    /// Whether the topic was read to its end.
    pub(super) is_complete: bool,
}

impl Account {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            run: plan.run.clone(),
            number_max: plan.events_max(),
            sources: vec![Source::default(); plan.sources],
            next: vec![0; usize::try_from(PARTITIONS).unwrap_or(0)],
            positions: HashMap::new(),
            seqs: HashMap::new(),
            records: 0,
            events: 0,
            duplicates: 0,
            repeated: Vec::new(),
            late: Vec::new(),
            behind_position: 0,
            foreign: 0,
            unread: 0,
            is_complete: false,
        }
    }

    /// Whether the event is in Kafka.
    pub(super) fn has(&self, event: EventName) -> bool {
        let seen = self.sources.get(event.source).and_then(|source| source.seen.get(event.number));
        seen.copied().unwrap_or_default()
    }

    /// Sequence numbers that are missing, counted from 1 to the last of each log.
    pub(super) fn gaps(&self) -> u64 {
        self.seqs
            .values()
            .map(|words| {
                let last = words.iter().rposition(|&word| word != 0).map_or(0, |at| {
                    let word = words.get(at).copied().unwrap_or_default();
                    at as u64 * 64 + u64::from(63 - word.leading_zeros())
                });
                let seen: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
                last.saturating_sub(seen)
            })
            .sum()
    }

    /// Counts one record.
    pub(super) fn take(&mut self, record: &Record<'_>) {
        self.records += 1;
        if let Some(next) = usize::try_from(record.partition).ok().and_then(|at| self.next.get_mut(at)) {
            self.unread += u64::try_from(record.offset - *next).unwrap_or(0);
            *next = record.offset + 1;
        }
        let (Some(position), Some(event)) = (record.position, self.event(record)) else {
            self.foreign += 1;
            return;
        };
        let is_known = self.has(event);
        if !self.is_ahead(record.partition, position) {
            if is_known {
                self.duplicates += 1;
                return;
            }
            self.behind_position += 1;
        }
        if is_known {
            self.repeated.push(event);
            return;
        }
        self.events += 1;
        let Some(source) = self.sources.get_mut(event.source) else { return };
        if source.seen.len() <= event.number {
            source.seen.resize(event.number + 1, false);
        }
        if let Some(seen) = source.seen.get_mut(event.number) {
            *seen = true;
        }
        if event.number < source.last {
            self.late.push(event);
        }
        source.last = source.last.max(event.number);
    }

    /// Whether the record is behind everything that came before it in its partition, and remembers it if so.
    fn is_ahead(&mut self, partition: i32, position: Position<'_>) -> bool {
        let Position { agent, log, epoch, seq } = position;
        let log = format!("{agent} {log}");
        if seq < SEQ_MAX {
            let words = self.seqs.entry(log.clone()).or_default();
            let at = usize::try_from(seq / 64).unwrap_or(0);
            if words.len() <= at {
                words.resize(at + 1, 0);
            }
            if let Some(word) = words.get_mut(at) {
                *word |= 1 << (seq % 64);
            }
        }
        let last = self.positions.entry((log, partition)).or_default();
        let is_ahead = (epoch, seq) > *last;
        if is_ahead {
            *last = (epoch, seq);
        }
        is_ahead
    }

    /// Which event of this run it is, if it is one and arrived as it was sent.
    fn event(&self, record: &Record<'_>) -> Option<EventName> {
        let envelope: Envelope<'_> = serde_json::from_slice(record.value).ok()?;
        let (source_id, number) = envelope.id.rsplit_once('-')?;
        let source = source_id.strip_prefix(&self.run)?.strip_prefix('-')?.parse().ok()?;
        let event = EventName { source, number: number.parse().ok()? };
        let is_ours = source < self.sources.len() && (1..=self.number_max).contains(&event.number);
        let is_whole = envelope.source_id == source_id
            && record.key == source_id.as_bytes()
            && envelope.payload.get() == sensors::payload(event);
        (is_ours && is_whole).then_some(event)
    }

    fn has_reached(&self, ends: &[i64]) -> bool {
        self.next.iter().zip(ends).all(|(next, end)| next >= end)
    }
}

/// Reads along until the topic's end is reached after [`Shared::is_agent_gone`], or the demo stops.
pub(super) fn run(reader: &Reader, plan: &Plan, shared: &Shared) -> Account {
    let mut account = Account::new(plan);
    let mut ends = None;
    let mut since = Instant::now();
    while !shared.stop.is_set() {
        if reader.read(READ_TIMEOUT, |record| account.take(record)) {
            since = Instant::now();
            shared.figures.records.set(account.records);
            shared.figures.events.set(account.events);
            continue;
        }
        if !shared.is_agent_gone.is_set() {
            since = Instant::now();
            continue;
        }
        // Order: asked for only now that nobody writes any more.
        ends = ends.or_else(|| reader.ends());
        account.is_complete = ends.as_ref().is_some_and(|ends| account.has_reached(ends));
        if account.is_complete || since.elapsed() > END_TIMEOUT {
            break;
        }
    }
    account
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "00000000-0000-0000-0000-000000000001";

    struct Topic(Account, i64);

    impl Topic {
        fn new() -> Self {
            let plan = Plan { run: "r".into(), sources: 2, ..Plan::default() };
            Self(Account::new(&plan), 0)
        }

        fn put(&mut self, epoch: u64, seq: u64, source: usize, number: usize) {
            let event = EventName { source, number };
            let value = format!(
                r#"{{"version":1,"id":"r-{source:02}-{number}","source_id":"r-{source:02}","payload":{}}}"#,
                sensors::payload(event)
            );
            let position = Some(Position { agent: "a", log: LOG, epoch, seq });
            let key = format!("r-{source:02}");
            let (key, value) = (key.as_bytes(), value.as_bytes());
            self.0.take(&Record { partition: 3, offset: self.1, key, value, position });
            self.1 += 1;
        }
    }

    #[test]
    fn what_is_sent_again_by_the_agent_is_dropped_by_position_and_what_the_sensor_sends_again_is_not() {
        let mut topic = Topic::new();
        for (epoch, seq, source, number) in
            [(1, 1, 0, 1), (1, 2, 1, 1), (1, 3, 0, 2), (1, 2, 1, 1), (1, 3, 0, 2)]
        {
            topic.put(epoch, seq, source, number);
        }
        topic.put(2, 4, 0, 2);
        topic.put(2, 5, 0, 3);
        let account = topic.0;
        assert_eq!((account.records, account.events, account.duplicates), (7, 4, 2));
        assert_eq!(account.repeated, [EventName { source: 0, number: 2 }]);
        assert_eq!(
            (account.late.len(), account.behind_position, account.gaps(), account.unread),
            (0, 0, 0, 0)
        );
        assert!(account.has(EventName { source: 0, number: 3 }));
        assert!(!account.has(EventName { source: 1, number: 2 }));
    }

    #[test]
    fn gaps_disorder_strangers_and_unread_records_show() {
        let mut topic = Topic::new();
        topic.put(1, 1, 0, 1);
        topic.put(1, 4, 0, 3);
        topic.put(1, 5, 0, 2);
        assert_eq!(
            (topic.0.gaps(), topic.0.late.as_slice()),
            (2, [EventName { source: 0, number: 2 }].as_slice())
        );
        topic.put(1, 3, 1, 1);
        assert_eq!((topic.0.gaps(), topic.0.behind_position, topic.0.events), (1, 1, 4));
        topic.1 += 2;
        topic.put(1, 6, 1, 2);
        assert_eq!(topic.0.unread, 2);
        topic.put(1, 7, 9, 1);
        assert_eq!((topic.0.foreign, topic.0.events), (1, 5));
        topic.0.take(&Record { partition: 0, offset: 0, key: b"", value: b"?", position: None });
        assert_eq!(topic.0.foreign, 2);
    }
}
