//! The appends of one connection that are on their way: several at once, answered in the order they began.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::budget::Held;
use crate::buffer::{Appended, Refused};

/// The lines behind a batch's events: runs of neighbours, because nearly all lines are good.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<RangeInclusive<u64>>);

impl Runs {
    /// Adds the next line.
    pub(super) fn push(&mut self, line: u64) {
        match self.0.last_mut() {
            Some(run) if run.end() + 1 == line => *run = *run.start()..=line,
            _ => self.0.push(line..=line),
        }
    }

    /// How many lines there are.
    pub(super) fn lines(&self) -> u64 {
        self.0.iter().map(|run| run.end() - run.start() + 1).sum()
    }
}

impl IntoIterator for Runs {
    type Item = RangeInclusive<u64>;
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// The outcome of one append and the lines it decides about.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) lines: Runs,
    /// Events that came with them and were left out by their routes.
    pub(super) left_out: u64,
    pub(super) outcome: Result<Appended, Refused>,
    /// The bytes of the batch in `outcome`.
    pub(super) held: Held,
}

/// Appends in the order they were begun.
#[derive(Debug)]
pub(super) struct InFlight<F>(VecDeque<Append<F>>);

#[derive(Debug)]
struct Append<F> {
    lines: Runs,
    left_out: u64,
    work: Pin<Box<F>>,
    outcome: Option<Result<Appended, Refused>>,
    held: Held,
}

impl<F: Future<Output = Result<Appended, Refused>>> InFlight<F> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    /// How many are not settled.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether all are settled.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts an append behind the others. It begins with the next call of [`InFlight::settled`].
    /// `held` are the bytes of its batch.
    pub(super) fn push(&mut self, lines: Runs, left_out: u64, held: Held, work: F) {
        self.0.push_back(Append { lines, left_out, work: Box::pin(work), outcome: None, held });
    }

    /// Adds events that need no append and are settled with the newest one. `false`: there is none.
    pub(super) fn add_left_out(&mut self, events: u64) -> bool {
        self.0.back_mut().map(|append| append.left_out += events).is_some()
    }

    /// Waits for the oldest append; for ever when there is none. All of them go on meanwhile.
    ///
    /// Cancel safe: yes, an outcome is kept until it is handed out.
    pub(super) async fn settled(&mut self) -> Settled {
        poll_fn(|context| self.poll_settled(context)).await
    }

    fn poll_settled(&mut self, context: &mut Context<'_>) -> Poll<Settled> {
        // Order: oldest first, so that appends reach the buffer in the order of their lines.
        for append in &mut self.0 {
            if append.outcome.is_none()
                && let Poll::Ready(outcome) = append.work.as_mut().poll(context)
            {
                append.outcome = Some(outcome);
            }
        }
        if self.0.front().is_some_and(|append| append.outcome.is_some())
            && let Some(Append { lines, left_out, outcome: Some(outcome), held, .. }) = self.0.pop_front()
        {
            return Poll::Ready(Settled { lines, left_out, outcome, held });
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{AppendError, Batch};
    use crate::event::Seq;
    use tokio::sync::oneshot;

    fn appended(first: u64) -> Result<Appended, Refused> {
        Ok(Appended { first: Seq(first), batch: Batch::new() })
    }

    #[test]
    fn neighbours_share_a_run() {
        let mut runs = Runs::default();
        for line in [1, 2, 3, 7, 9, 10] {
            runs.push(line);
        }
        assert_eq!(runs.lines(), 6);
        assert_eq!(runs.into_iter().collect::<Vec<_>>(), [1..=3, 7..=7, 9..=10]);
    }

    #[tokio::test]
    async fn outcomes_come_in_the_order_the_appends_began() {
        let mut in_flight = InFlight::new();
        let mut answers = Vec::new();
        for line in 1..=3 {
            let (answer, waits) = oneshot::channel();
            let mut lines = Runs::default();
            lines.push(line);
            in_flight.push(lines, line, Held::default(), async move { waits.await.unwrap() });
            answers.push(answer);
        }
        answers.pop().unwrap().send(appended(3)).unwrap();
        tokio::select! { biased;
            _ = in_flight.settled() => panic!("the oldest is not answered yet"),
            () = std::future::ready(()) => {}
        }
        let refused = Refused { reason: AppendError::Full, batch: None };
        answers.pop().unwrap().send(Err(refused)).unwrap();
        answers.pop().unwrap().send(appended(1)).unwrap();
        let mut seen = Vec::new();
        while !in_flight.is_empty() {
            let settled = in_flight.settled().await;
            seen.push((
                settled.lines.into_iter().next(),
                settled.outcome.ok().map(|appended| appended.first),
            ));
        }
        assert_eq!(seen, [(Some(1..=1), Some(Seq(1))), (Some(2..=2), None), (Some(3..=3), Some(Seq(3)))]);
    }
}
