//! Reading durable events in order, over the borders of generations and over holes.

use std::ops::ControlFlow;
use std::time::Duration;

use super::keys::key_seq;
use super::{BLOCK_EVENTS_MAX, Generations, Index, Newest};
use crate::buffer::block::{Assembly, Block, BlockError, Kind, Origin};
use crate::buffer::ledger::Reason;
use crate::buffer::run::Run;
use crate::buffer::scan::{Source, read_exactly};
use crate::buffer::store::{Listed, Shelf, Store, StoreError};
use crate::error::Class;
use crate::event::{Event, Seq, Stamp};

/// A sealed generation that is being read.
#[derive(Debug)]
pub(in crate::buffer) struct Reading {
    pub(super) listed: Listed,
    source: Box<dyn Source>,
    index: Index,
    /// One block's bytes.
    block: Vec<u8>,
}

/// The time of an event, as far as it can be compared: see [`Age::of`].
#[derive(Debug, Clone, Copy)]
pub(in crate::buffer) struct Age {
    pub(in crate::buffer) boot: [u8; 16],
    pub(in crate::buffer) now: Stamp,
}

impl Age {
    /// How long ago an event was received: by the time since boot within the same boot, which runs through sleep and
    /// knows no steps; over a restart by the wall clock, where it was trusted then and is now. `None`: nobody knows,
    /// and the event does not expire.
    pub(in crate::buffer) fn of(&self, origin: Origin, received: Stamp) -> Option<Duration> {
        if origin.boot == self.boot {
            return Some(Duration::from_micros(self.now.boot_us.saturating_sub(received.boot_us)));
        }
        let is_trusted = received.clock_trusted && self.now.clock_trusted;
        let elapsed_us = self.now.wall_us.saturating_sub(received.wall_us);
        u64::try_from(elapsed_us).ok().filter(|_| is_trusted).map(Duration::from_micros)
    }
}

impl<H: Shelf> Generations<H> {
    /// Fills `run` with durable events behind `after`, whole blocks, at least one and up to about `bytes_max`.
    /// An empty run: there is none. What is damaged is skipped, counted and logged; what is older than `max_age` is
    /// skipped and counted.
    ///
    /// # Errors
    /// [`StoreError`]: the generation cannot be read now; try again later.
    pub(in crate::buffer) fn read(
        &mut self,
        after: Seq,
        bytes_max: usize,
        age: Option<Age>,
        run: &mut Run,
    ) -> Result<(), StoreError> {
        run.restart(after);
        self.finish_replacement()?;
        let end = self.end_of_lane(after);
        while run.end() < end && run.bytes() < bytes_max {
            let wanted = run.end().next();
            let until = match self.ahead().iter().find(|(_, last)| *last >= wanted) {
                Some(&(first, last)) if first <= wanted => {
                    if !run.is_empty() {
                        break;
                    }
                    run.restart(last.min(end));
                    continue;
                }
                ahead => ahead.map_or(end, |(first, _)| end.min(first.before())),
            };
            run.limit(until);
            if self.newest.as_ref().is_some_and(|newest| newest.first <= wanted) {
                self.read_newest(until, bytes_max, age, run)?;
                continue;
            }
            // The last generation that begins at or before `wanted`, else the first one.
            let number = self.row.partition_point(|s| s.listed.first <= wanted).saturating_sub(1);
            let Some(first) = self.row.get(number).map(|sealed| sealed.listed.first) else {
                let missing = self.end_of(number).min(until);
                self.count_missing(wanted, missing);
                run.reach(missing);
                continue;
            };
            if first > wanted {
                // The generation that had them is gone.
                let missing = first.before().min(until);
                self.count_missing(wanted, missing);
                run.reach(missing);
                continue;
            }
            let until = self.end_of(number).min(until);
            self.look_into(number)?;
            self.read_sealed(until, bytes_max, age, run)?;
        }
        self.hand(after, run.end());
        Ok(())
    }

    /// The last position of a sealed generation.
    pub(super) fn end_of(&self, number: usize) -> Seq {
        let next = self.row.get(number + 1).map(|sealed| sealed.listed.first);
        let next = next.or(self.newest.as_ref().map(|newest| newest.first));
        next.map_or(self.durable, Seq::before)
    }

    fn read_newest(
        &mut self,
        end: Seq,
        bytes_max: usize,
        age: Option<Age>,
        run: &mut Run,
    ) -> Result<(), StoreError> {
        let Some(newest) = self.newest.as_ref() else { return Ok(()) };
        match newest.read_blocks(end, bytes_max, run) {
            Ok(holes) => {
                for (first, last) in holes {
                    self.count_missing(first, last);
                }
                self.skip_expired(age, run);
                Ok(())
            }
            Err(error) => {
                // The file may say more than the store does.
                tracing::error!(%error, "the newest generation cannot be read; it is sealed and read block by block");
                run.forget();
                self.fail();
                self.reopen().or_else(|error| if error.class() == Class::Retry { Ok(()) } else { Err(error) })
            }
        }
    }

    /// Makes the generation at `number` the first of [`Self::readings`].
    fn look_into(&mut self, number: usize) -> Result<(), StoreError> {
        let reading = self.take_reading(number)?;
        self.readings.splice(..0, reading);
        self.readings.truncate(1 + usize::from(self.live_from().is_some()));
        Ok(())
    }

    /// Opens the generation at `number`, unless it is open: counts what is missing in it, and sets it aside if that is
    /// anything.
    pub(super) fn take_reading(&mut self, number: usize) -> Result<Option<Reading>, StoreError> {
        let Some(listed) = self.row.get(number).map(|sealed| sealed.listed) else { return Ok(None) };
        if let Some(open) = self.readings.iter().position(|reading| reading.listed == listed) {
            return Ok(Some(self.readings.remove(open)));
        }
        let end = self.end_of(number);
        let (source, index): (Box<dyn Source>, _) = match self.shelf.source(listed) {
            Ok(source) => {
                let index = Index::build(&*source, (listed.first, end), self.cursor_durable);
                (source, index.map_err(|e| StoreError::Io(e.to_string()))?)
            }
            Err(error) if error.class() == Class::Reject => (Box::new(Vec::new()), Index::default()),
            Err(error) => return Err(error),
        };
        let from = listed.first.max(self.cursor_durable.next());
        let mut lost = 0;
        for (first, last) in index.holes(from, end) {
            lost += self.count_missing(first, last);
        }
        if lost > 0 && !listed.is_aside {
            self.set_aside(number)?;
        }
        let listed = self.row.get(number).map_or(listed, |sealed| sealed.listed);
        Ok(Some(Reading::new(listed, source, index)))
    }

    /// Renames a damaged generation; what it holds is served all the same.
    pub(super) fn set_aside(&mut self, number: usize) -> Result<(), StoreError> {
        let Some(listed) = self.row.get(number).map(|sealed| sealed.listed).filter(|l| !l.is_aside) else {
            return Ok(());
        };
        let place = self.shelf.set_aside(listed.first)?;
        let aside = Listed { is_aside: true, ..listed };
        if let Some(sealed) = self.row.get_mut(number) {
            sealed.listed = aside;
        }
        tracing::error!(
            %place,
            "a part of the buffer is damaged: what is whole in it is served, and the files are kept there"
        );
        Ok(())
    }

    fn read_sealed(
        &mut self,
        end: Seq,
        bytes_max: usize,
        age: Option<Age>,
        run: &mut Run,
    ) -> Result<(), StoreError> {
        let Some(reading) = self.readings.first_mut() else {
            run.reach(end);
            return Ok(());
        };
        let mut unreadable = Vec::new();
        let mut is_cut = false;
        for number in reading.index.from(run.end())..reading.index.pieces.len() {
            if run.bytes() >= bytes_max {
                is_cut = true;
                break;
            }
            let Some((first, last, kind)) = reading.piece(number) else { break };
            if first > end {
                break;
            }
            if kind == Kind::Events && !reading.unpack(number, run) {
                run.forget();
                unreadable.push((first, last));
            }
            run.reach(last.min(end));
        }
        if !is_cut {
            run.reach(end);
        }
        for (first, last) in unreadable {
            self.count_missing(first, last);
        }
        self.skip_expired(age, run);
        Ok(())
    }

    /// Counts a hole, once. Answers how many events that were.
    fn count_missing(&mut self, first: Seq, last: Seq) -> u64 {
        let missing = self.count_lost(Reason::Corrupt, first, last);
        if missing > 0 {
            tracing::error!(
                first = first.0,
                last = last.0,
                events = missing,
                "events in the buffer are damaged or missing and are skipped"
            );
        }
        missing
    }

    /// Takes the blocks out of `run` whose newest event is older than `max_age`.
    fn skip_expired(&mut self, age: Option<Age>, run: &mut Run) {
        let (Some(age_max), Some(age)) = (self.limits.age_max, age) else { return };
        let expired =
            run.drop_blocks(|origin, received| age.of(origin, received).is_some_and(|a| a > age_max));
        for (first, last) in expired {
            self.count_lost(Reason::Expired, first, last);
        }
    }

    /// Origin and time of the newest event of a sealed generation; `None` when there is none or it cannot be read.
    pub(super) fn newest_event(&mut self, number: usize) -> Option<(Origin, Stamp)> {
        if let Some(known) = self.row.get(number)?.newest {
            return Some(known);
        }
        let listed = self.row.get(number)?.listed;
        let source = self.shelf.source(listed).ok()?;
        let index = Index::build(&*source, (listed.first, self.end_of(number)), self.cursor_durable).ok()?;
        let at = index.pieces.iter().rposition(|piece| piece.kind == Kind::Events)?;
        let mut reading = Reading::new(listed, source, index);
        let mut run = Run::default();
        let found = if reading.unpack(at, &mut run) { run.newest() } else { None };
        if let Some(sealed) = self.row.get_mut(number) {
            sealed.newest = found;
        }
        found
    }
}

impl Reading {
    fn piece(&self, number: usize) -> Option<(Seq, Seq, Kind)> {
        self.index.pieces.get(number).map(|piece| (piece.first, piece.last, piece.kind))
    }

    /// What `index` found in `source`.
    pub(in crate::buffer) fn new(listed: Listed, source: Box<dyn Source>, index: Index) -> Self {
        Self { listed, source, index, block: Vec::new() }
    }

    pub(in crate::buffer) fn index(&self) -> &Index {
        &self.index
    }

    /// Unpacks one piece into `run`; `false` if it cannot be read any more.
    pub(in crate::buffer) fn unpack(&mut self, number: usize, run: &mut Run) -> bool {
        let Some(piece) = self.index.pieces.get(number) else { return false };
        let mut assembly = Assembly::default();
        for place in self.index.places(piece) {
            if !read_exactly(&*self.source, place.offset, place.bytes as usize, &mut self.block) {
                return false;
            }
            match take_block(&self.block, &mut assembly, run) {
                // Of a file that is still written to, it may be another one by now.
                Ok(Some(block)) if block.first != piece.first || block.last() != piece.last => return false,
                Ok(Some(block)) => {
                    run.close(&block);
                    return true;
                }
                Ok(None) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// The bytes of every block of a piece, one after the other.
    pub(super) fn blocks(
        &mut self,
        number: usize,
        put: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(piece) = self.index.pieces.get(number) else { return Ok(()) };
        for place in self.index.places(piece) {
            if !read_exactly(&*self.source, place.offset, place.bytes as usize, &mut self.block) {
                return Err(StoreError::Io(format!("generation {} cannot be read", self.listed.first)));
            }
            put(&self.block)?;
        }
        Ok(())
    }
}

impl<S: Store> Newest<S> {
    /// Where the block begins that `wanted` is in: the greatest first position at or below it; without one, `wanted`.
    ///
    /// Looked for forwards, from further and further below: most reads go on where a block begins, so the first look
    /// finds it; and sled's way backwards puts 1 MiB of one constant into the program (docs/footprint.md).
    fn block_at(&self, wanted: Seq) -> Result<Seq, StoreError> {
        for below in [0, 1 << 4, 1 << 8, 1 << 12, u64::from(BLOCK_EVENTS_MAX)] {
            let from = Seq(wanted.0.saturating_sub(below));
            let mut found = None;
            self.store.scan(&from.0.to_be_bytes(), &mut |key, _| match key_seq(key) {
                Some(first) if first <= wanted => {
                    found = Some(first);
                    if first < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                }
                _ => ControlFlow::Break(()),
            })?;
            if let Some(first) = found {
                return Ok(first);
            }
        }
        Ok(wanted)
    }

    /// Reads blocks into `run`, from where it ends on, up to `end`. Answers the holes: ranges of positions that could
    /// not be served, first and last.
    fn read_blocks(&self, end: Seq, bytes_max: usize, run: &mut Run) -> Result<Vec<(Seq, Seq)>, StoreError> {
        let wanted = run.end().next();
        let from = self.block_at(wanted)?;
        let mut holes = Vec::new();
        let mut assembly = Assembly::default();
        let mut is_cut = false;
        self.store.scan(&from.0.to_be_bytes(), &mut |key, value| {
            if key_seq(key).is_none_or(|seq| seq > end) {
                return ControlFlow::Break(());
            }
            if run.bytes() >= bytes_max && !assembly.is_partial() {
                is_cut = true;
                return ControlFlow::Break(());
            }
            // What cannot be read leaves a hole, which the next whole block or the generation's end measures.
            if let Ok(Some(block)) = take_block(value, &mut assembly, run) {
                let wanted = run.end().next();
                if block.last() < wanted {
                    run.forget();
                    return ControlFlow::Continue(());
                }
                if block.first > wanted {
                    holes.push((wanted, block.first.before()));
                }
                run.close(&block);
                run.reach(block.last().min(end));
            }
            ControlFlow::Continue(())
        })?;
        if !is_cut && run.end() < end {
            holes.push((run.end().next(), end));
            run.reach(end);
        }
        Ok(holes)
    }
}

/// Unpacks one value into the run; `None` while a chunked event is not complete.
fn take_block<'v>(
    value: &'v [u8],
    assembly: &mut Assembly,
    run: &mut Run,
) -> Result<Option<Block<'v>>, BlockError> {
    let block = Block::parse(value)?;
    if block.kind != Kind::Events {
        return Ok(None);
    }
    if block.chunks == 1 {
        // An event of which a chunk is missing ends here: it must not keep the run growing.
        *assembly = Assembly::default();
        block.unpack(run.space())?;
        return Ok(Some(block));
    }
    Ok(assembly.take(&block, run.space())?.then_some(block))
}

/// The last event of an unpacked run.
pub(in crate::buffer) fn last_event(mut rest: &[u8], count: u16) -> Option<Event<'_>> {
    let mut last = None;
    for _ in 0..count {
        let (event, tail) = postcard::take_from_bytes::<Event<'_>>(rest).ok()?;
        (last, rest) = (Some(event), tail);
    }
    last
}
