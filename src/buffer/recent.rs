//! What became durable last, kept in memory for whoever looks: a shelf bounded in bytes and in events.
//!
//! The writer puts each batch here behind its sync, in order; nobody waits for a reader, and a reader holds the lock for as
//! long as it takes to copy a pointer. Off until [`Buffer::keep_recent`](super::Buffer::keep_recent).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::batch::Batch;
use crate::event::{Event, Seq};

/// Beside the events of a batch: its place on the shelf.
const CHUNK_BYTES: usize = 256;

/// What bounds the shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecentLimits {
    /// Most bytes: events as they are encoded, and again as somebody has rendered them.
    pub bytes_max: usize,
    /// Most events.
    pub events_max: usize,
}

/// Events that became durable together.
#[derive(Debug)]
pub struct Chunk {
    first: Seq,
    batch: Batch,
    /// Made by the first reader who asks, for all of them.
    rendered: OnceLock<Vec<Bytes>>,
}

impl Chunk {
    /// The position of its first event.
    pub fn first(&self) -> Seq {
        self.first
    }

    /// The position of its last event.
    pub fn last(&self) -> Seq {
        self.first.plus(self.batch.len() as u64).before()
    }

    /// Its events with their positions.
    pub fn events(&self) -> impl Iterator<Item = (Seq, Event<'_>)> {
        self.batch.events().enumerate().map(|(index, event)| (self.first.plus(index as u64), event))
    }

    fn bytes(&self) -> usize {
        let rendered = self.rendered.get().map_or(0, |texts| texts.iter().map(Bytes::len).sum());
        self.batch.memory_bytes() + rendered + CHUNK_BYTES
    }
}

/// What a reader finds behind its position.
#[derive(Debug, Clone)]
pub enum Behind {
    /// Events behind it, perhaps with some before it; numbers left out in between were never events.
    Events(Arc<Chunk>),
    /// There is nothing newer.
    Nothing,
    /// Events behind it have left the shelf already; those behind this position have not.
    Gone(Seq),
}

/// The shelf.
#[derive(Debug)]
pub struct Recent {
    limits: RecentLimits,
    shelf: Mutex<Shelf>,
    news: watch::Sender<Seq>,
}

#[derive(Debug)]
struct Shelf {
    chunks: VecDeque<Arc<Chunk>>,
    bytes: usize,
    events: usize,
    /// What is behind it and was ever put here is here.
    gone: Seq,
}

impl Recent {
    /// An empty shelf for what comes behind `durable`.
    pub(super) fn new(limits: RecentLimits, durable: Seq) -> Self {
        let shelf = Shelf { chunks: VecDeque::new(), bytes: 0, events: 0, gone: durable };
        Self { limits, shelf: Mutex::new(shelf), news: watch::Sender::new(durable) }
    }

    /// Puts a batch on the shelf that has become durable.
    pub(super) fn put(&self, first: Seq, batch: &Batch) {
        let chunk = Arc::new(Chunk { first, batch: batch.clone(), rendered: OnceLock::new() });
        let last = chunk.last();
        let mut shelf = self.shelf();
        shelf.bytes += chunk.bytes();
        shelf.events += chunk.batch.len();
        shelf.chunks.push_back(chunk);
        shelf.keep_within(self.limits);
        drop(shelf);
        self.news.send_replace(last);
    }

    /// The last position that was put here, and word whenever there is another one.
    pub fn news(&self) -> watch::Receiver<Seq> {
        self.news.subscribe()
    }

    /// What is behind `after`.
    pub fn behind(&self, after: Seq) -> Behind {
        let shelf = self.shelf();
        if after < shelf.gone {
            return Behind::Gone(shelf.gone);
        }
        let at = shelf.chunks.partition_point(|chunk| chunk.last() <= after);
        shelf.chunks.get(at).map_or(Behind::Nothing, |chunk| Behind::Events(Arc::clone(chunk)))
    }

    /// All that is here, oldest first, and the position behind which that is everything.
    pub fn all(&self) -> (Seq, Vec<Arc<Chunk>>) {
        let shelf = self.shelf();
        (shelf.gone, shelf.chunks.iter().cloned().collect())
    }

    /// The texts of a chunk's events; `render` makes them when nobody has asked before.
    pub fn rendered<'c>(&self, chunk: &'c Chunk, render: impl FnOnce(&Chunk) -> Vec<Bytes>) -> &'c [Bytes] {
        let mut is_new = false;
        let texts = chunk.rendered.get_or_init(|| {
            is_new = true;
            render(chunk)
        });
        if is_new {
            let mut shelf = self.shelf();
            // Else it has left meanwhile.
            if chunk.first > shelf.gone {
                shelf.bytes += texts.iter().map(Bytes::len).sum::<usize>();
                shelf.keep_within(self.limits);
            }
        }
        texts
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn keep_within(&mut self, limits: RecentLimits) {
        while (self.bytes > limits.bytes_max || self.events > limits.events_max)
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.bytes = self.bytes.saturating_sub(chunk.bytes());
            self.events = self.events.saturating_sub(chunk.batch.len());
            self.gone = chunk.last();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventId, Payload, Stamp, Way};

    fn batch(kinds: &[&str]) -> Batch {
        let mut batch = Batch::new();
        for kind in kinds {
            let event = Event {
                id: EventId::Given("i"),
                kind,
                source_type: "s",
                source_id: "1",
                timestamp: None,
                received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: true },
                payload: Payload::Json("1"),
                way: Way::USUAL,
            };
            batch.push(&event, 1000).unwrap();
        }
        batch
    }

    fn shelf(bytes_max: usize, events_max: usize) -> Recent {
        Recent::new(RecentLimits { bytes_max, events_max }, Seq(4))
    }

    fn behind(recent: &Recent, after: u64) -> Result<(u64, u64), Option<u64>> {
        match recent.behind(Seq(after)) {
            Behind::Events(chunk) => Ok((chunk.first().0, chunk.last().0)),
            Behind::Nothing => Err(None),
            Behind::Gone(to) => Err(Some(to.0)),
        }
    }

    #[test]
    fn a_reader_goes_from_batch_to_batch() {
        let recent = shelf(100_000, 100);
        assert_eq!((behind(&recent, 4), behind(&recent, 3)), (Err(None), Err(Some(4))));
        recent.put(Seq(5), &batch(&["a", "b"]));
        // Numbers 7 to 9 were never events.
        recent.put(Seq(10), &batch(&["c"]));
        assert_eq!(
            [4, 5, 6, 9].map(|after| behind(&recent, after)),
            [Ok((5, 6)), Ok((5, 6)), Ok((10, 10)), Ok((10, 10))]
        );
        assert_eq!(behind(&recent, 10), Err(None));
        let (gone, chunks) = recent.all();
        let kinds: Vec<_> =
            chunks.iter().flat_map(|chunk| chunk.events()).map(|(seq, e)| (seq.0, e.kind)).collect();
        assert_eq!((gone, kinds), (Seq(4), vec![(5, "a"), (6, "b"), (10, "c")]));
        assert_eq!(*recent.news().borrow(), Seq(10));
    }

    #[test]
    fn the_oldest_go_at_either_limit_and_readers_are_told() {
        let recent = shelf(100_000, 3);
        recent.put(Seq(5), &batch(&["a", "b"]));
        recent.put(Seq(7), &batch(&["c"]));
        assert_eq!(behind(&recent, 4), Ok((5, 6)));
        recent.put(Seq(8), &batch(&["d"]));
        assert_eq!((behind(&recent, 5), behind(&recent, 6)), (Err(Some(6)), Ok((7, 7))));
        let small = shelf(2 * CHUNK_BYTES, 1000);
        small.put(Seq(5), &batch(&["a"]));
        small.put(Seq(6), &batch(&["b"]));
        assert_eq!(behind(&small, 4), Err(Some(5)));
        // One that is larger than everything does not stay.
        small.put(Seq(7), &batch(&vec!["c"; 100]));
        assert_eq!((behind(&small, 6), behind(&small, 106)), (Err(Some(106)), Err(None)));
    }

    #[test]
    fn what_is_rendered_counts_and_is_rendered_once() {
        let recent = shelf(3 * CHUNK_BYTES, 100);
        recent.put(Seq(5), &batch(&["a"]));
        recent.put(Seq(6), &batch(&["b"]));
        let Behind::Events(first) = recent.behind(Seq(4)) else { panic!() };
        let render = |_: &Chunk| vec![Bytes::from(vec![0; CHUNK_BYTES])];
        assert_eq!(recent.rendered(&first, render).len(), 1);
        assert_eq!(behind(&recent, 4), Err(Some(5)), "the oldest made room for its own text");
        assert_eq!(recent.rendered(&first, |_| panic!()).len(), 1);
        let counted = recent.shelf().bytes;
        assert_eq!(counted, recent.all().1.iter().map(|chunk| chunk.bytes()).sum::<usize>());
    }
}
