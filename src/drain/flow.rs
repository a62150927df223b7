//! What is on its way in one lane, and how much of the backlog goes out at once.
//!
//! Kafka's client sends in the order in which it was handed records, so a live event waits for the backlog that was handed
//! over before it. Therefore the backlog goes out in portions that the line takes in about [`PORTION_TIME`], each behind
//! the confirmation of the one before.

use std::time::Duration;

use tokio::time::Instant;

use super::window::Window;
use crate::buffer::Run;
use crate::event::Seq;

/// How long a hand-over waits for the confirmation of the last one: one partition without a leader must not hold up
/// the others for longer.
pub(super) const HAND_OVER_WAIT: Duration = Duration::from_secs(1);

/// What a portion of the backlog may take until it is confirmed; half of that doubles the next one.
const PORTION_TIME: Duration = Duration::from_millis(500);

/// The least portion in bytes of memory, some twenty small records, and the first one.
const PORTION_BYTES_MIN: usize = 16 * 1024;
const PORTION_BYTES_FIRST: usize = 64 * 1024;

/// One lane.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) window: Window,
    pub(super) run: Run,
    /// Last event handed to the producer; everything up to here is in flight, confirmed or missing.
    pub(super) sent: Seq,
    /// Everything up to here is confirmed.
    pub(super) confirmed: Seq,
    /// When something was handed over last.
    pub(super) handed_at: Instant,
    /// The window was filled while there was more to send: confirmations set the pace, not the rounds.
    pub(super) is_behind: bool,
    portion: usize,
}

impl Flow {
    /// A lane that goes on behind `seq`. Tags of its window are those with `lane_bit` as the lowest bit.
    pub(super) fn at(seq: Seq, lane_bit: usize) -> Self {
        Self {
            window: Window::new(lane_bit),
            run: Run::default(),
            sent: seq,
            confirmed: seq,
            handed_at: Instant::now(),
            is_behind: false,
            portion: PORTION_BYTES_FIRST,
        }
    }

    /// Goes on behind `seq`; what is in flight is forgotten.
    pub(super) fn restart(&mut self, seq: Seq) {
        (self.sent, self.confirmed) = (seq, seq);
        self.run = Run::default();
        self.window.clear();
    }

    /// Takes in what the window confirmed. Whether it went on.
    pub(super) fn advance(&mut self) -> bool {
        let before = self.confirmed;
        if let Some(last) = self.window.advance() {
            self.confirmed = last;
        }
        if self.window.is_empty() {
            // What was sent last may have been followed by a gap.
            self.confirmed = self.confirmed.max(self.sent);
        }
        self.confirmed > before
    }

    /// Whether the last hand-over is still on its way: an idempotent librdkafka sends a partition's next batch only
    /// after the last one is confirmed, and until then its thread spins over records that are waiting for it.
    pub(super) fn is_held(&self) -> bool {
        self.window.open() > 0 && Instant::now() < self.held_until()
    }

    /// When the next hand-over goes without the confirmation of the last one.
    pub(super) fn held_until(&self) -> Instant {
        self.handed_at + HAND_OVER_WAIT
    }

    /// Most bytes that go out at once, at most `bytes_max`.
    pub(super) fn portion(&self, bytes_max: usize) -> usize {
        self.portion.min(bytes_max)
    }

    /// Before a portion is handed over: takes in how long the last one took.
    pub(super) fn measure_portion(&mut self, bytes_max: usize) {
        if !std::mem::take(&mut self.is_behind) {
            return;
        }
        let took = self.handed_at.elapsed();
        if took < PORTION_TIME / 2 {
            self.portion = (self.portion * 2).min(bytes_max.max(PORTION_BYTES_MIN));
        } else if took > PORTION_TIME {
            self.portion = (self.portion / 2).max(PORTION_BYTES_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_portion_grows_and_shrinks_to_what_the_line_takes_in_time() {
        let mut flow = Flow::at(Seq(0), 1);
        let bytes_max = 1 << 20;
        // A line of 200 KB/s: half a second takes 100 KB.
        for _ in 0..50 {
            flow.is_behind = true;
            flow.handed_at = Instant::now();
            let portion = flow.portion(bytes_max);
            tokio::time::advance(Duration::from_secs_f64(portion as f64 / 200_000.0)).await;
            flow.measure_portion(bytes_max);
        }
        assert!((50_000..=100_000).contains(&flow.portion(bytes_max)), "{}", flow.portion(bytes_max));
        for _ in 0..50 {
            flow.is_behind = true;
            flow.handed_at = Instant::now();
            flow.measure_portion(bytes_max);
        }
        assert_eq!(flow.portion(bytes_max), bytes_max, "a fast line");
        for _ in 0..50 {
            flow.is_behind = true;
            flow.handed_at = Instant::now();
            tokio::time::advance(Duration::from_secs(5)).await;
            flow.measure_portion(bytes_max);
        }
        assert_eq!(flow.portion(bytes_max), PORTION_BYTES_MIN, "a line that hangs");
    }
}
