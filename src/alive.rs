//! Whether a task's loop still turns: asked from outside, answered by the loop itself. Costs nothing while nobody asks.

use tokio::sync::{mpsc, oneshot};

/// Asks.
#[derive(Debug)]
pub struct Asker(mpsc::Sender<Question>);

/// The loop's end.
#[derive(Debug)]
pub struct Answerer(mpsc::Receiver<Question>);

/// To be answered by whoever gets it.
#[derive(Debug)]
pub struct Question(oneshot::Sender<()>);

/// The two ends of one loop.
pub fn pair() -> (Asker, Answerer) {
    let (asker, answerer) = mpsc::channel(1);
    (Asker(asker), Answerer(answerer))
}

impl Default for Answerer {
    /// That nobody asks.
    fn default() -> Self {
        pair().1
    }
}

impl Asker {
    /// Returns when the loop has turned since this was called, or when it is over, which is no stand-still.
    ///
    /// Cancel safe: yes; a question that nobody waits for any more may still be answered.
    pub async fn turned(&self) {
        let (question, answer) = oneshot::channel();
        // An error of either means that the loop is over.
        if self.0.send(Question(question)).await.is_ok() {
            let _ = answer.await;
        }
    }
}

impl Answerer {
    /// The next question; to be awaited in each turn of the loop, beside what else it waits for.
    ///
    /// Cancel safe: yes.
    pub async fn asked(&mut self) -> Question {
        match self.0.recv().await {
            Some(question) => question,
            // Nobody will ask any more.
            None => std::future::pending().await,
        }
    }
}

impl Question {
    /// The loop turns.
    pub fn answer(self) {
        // Whoever asked may have given up.
        let _ = self.0.send(());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn only_a_loop_that_stands_still_leaves_a_question_open() {
        let (asker, mut answerer) = pair();
        assert!(timeout(SOON, asker.turned()).await.is_err());
        assert!(timeout(SOON, asker.turned()).await.is_err(), "the first question still waits");
        let turning = async {
            loop {
                answerer.asked().await.answer();
            }
        };
        tokio::select! {
            () = turning => {}
            turned = timeout(SOON, asker.turned()) => turned.unwrap(),
        }
        drop(answerer);
        timeout(SOON, asker.turned()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_nobody_asks_waits() {
        assert!(timeout(SOON, Answerer::default().asked()).await.is_err());
    }
}
