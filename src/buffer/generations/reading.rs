//! Reading durable events in order, over the borders of generations and over holes.

use std::ops::ControlFlow;

use super::Generations;
use super::keys::key_seq;
use crate::buffer::block::{Assembly, Block, BlockError};
use crate::buffer::run::Run;
use crate::buffer::store::{Shelf, Store, StoreError};
use crate::error::Class;
use crate::event::Seq;

impl<H: Shelf> Generations<H> {
    /// Fills `run` with durable events behind `after`, whole blocks, at least one and up to about `bytes_max`.
    /// An empty run: there is none. Damaged blocks are skipped, counted and logged.
    ///
    /// # Errors
    /// [`StoreError`]: the generation cannot be read now; try again later.
    pub(in crate::buffer) fn read(
        &mut self,
        after: Seq,
        bytes_max: usize,
        run: &mut Run,
    ) -> Result<(), StoreError> {
        run.restart(after);
        while run.end() < self.durable && run.bytes() < bytes_max {
            let wanted = run.end().next();
            // The last generation that starts at or before `wanted`, else the first one behind it.
            let index = self.row.partition_point(|g| g.first <= wanted).saturating_sub(1);
            let newest = self.row.len().saturating_sub(1);
            self.close_all_but(index, newest);
            let end = self.row.get(index + 1).map_or(self.durable, |g| Seq(g.first.0 - 1));
            let Some(store) = self.open_at(index)? else {
                run.reach(end);
                continue;
            };
            match read_blocks(store, end, bytes_max, run) {
                Ok(holes) => {
                    for (first, last) in holes {
                        self.count_missing(first, last);
                    }
                }
                Err(error) => {
                    run.forget();
                    self.give_up(index, error)?;
                    run.reach(end);
                }
            }
        }
        Ok(())
    }

    /// A generation that was opened cannot be read: it is set aside if it is damaged, else opened again next time.
    fn give_up(&mut self, index: usize, error: StoreError) -> Result<(), StoreError> {
        if error.class() == Class::Reject {
            return self.set_aside(index, &error);
        }
        let newest = self.row.len().saturating_sub(1);
        if let Some(generation) = self.row.get_mut(index).filter(|_| index < newest) {
            generation.store = None;
        }
        Err(error)
    }

    /// Counts a hole, once: a drain that reads the same range again, or from before the cursor, changes nothing.
    fn count_missing(&mut self, first: Seq, last: Seq) {
        let first = first.max(self.cursor.next()).max(self.looked.next());
        if first > last {
            return;
        }
        self.looked = last;
        let missing = (last.0 + 1 - first.0).saturating_sub(self.identity.jumped(first, last));
        if missing > 0 {
            self.damaged += missing;
            tracing::error!(
                first = first.0,
                last = last.0,
                events = missing,
                "events in the buffer are damaged or missing and are skipped"
            );
        }
    }
}

/// Reads blocks of one generation into `run`, from where it ends on, up to `end`. Answers the holes: ranges of
/// positions that could not be served, first and last.
fn read_blocks<S: Store>(
    store: &S,
    end: Seq,
    bytes_max: usize,
    run: &mut Run,
) -> Result<Vec<(Seq, Seq)>, StoreError> {
    let wanted = run.end().next();
    let from = store.floor(&wanted.0.to_be_bytes())?;
    let from = from.as_deref().and_then(key_seq).unwrap_or(wanted);
    let mut holes = Vec::new();
    let mut assembly = Assembly::default();
    let mut is_cut = false;
    store.scan(&from.0.to_be_bytes(), &mut |key, value| {
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
                holes.push((wanted, Seq(block.first.0 - 1)));
            }
            run.close(block.first, block.count, block.origin);
            run.reach(block.last());
        }
        ControlFlow::Continue(())
    })?;
    if !is_cut && run.end() < end {
        holes.push((run.end().next(), end));
        run.reach(end);
    }
    Ok(holes)
}

/// Unpacks one value into the run; `None` while a chunked event is not complete.
fn take_block<'v>(
    value: &'v [u8],
    assembly: &mut Assembly,
    run: &mut Run,
) -> Result<Option<Block<'v>>, BlockError> {
    let block = Block::parse(value)?;
    if block.chunks == 1 {
        // An event of which a chunk is missing ends here: it must not keep the run growing.
        *assembly = Assembly::default();
        block.unpack(run.space())?;
        return Ok(Some(block));
    }
    Ok(assembly.take(&block, run.space())?.then_some(block))
}
