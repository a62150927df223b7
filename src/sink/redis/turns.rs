//! Which address is tried next: the one way from `redis.url` to a Redis that answers, for the sink and for every command.

use std::future::Future;

use super::{Options, RedisError};

/// Whose turn it is: of the addresses of Redis, or of the Sentinels, which are asked for the master.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turns(usize);

impl Turns {
    /// The one whose turn it is, counted on and on.
    pub(super) fn now(self) -> usize {
        self.0
    }

    /// The next one's turn: this one turned out to be of no use.
    pub(super) fn pass(&mut self) {
        self.0 = self.0.wrapping_add(1);
    }

    /// What `open` makes of the first address that is of use, from the one whose turn it is on, each of them once. The turn
    /// stays there. `open` bounds the time at one address.
    ///
    /// # Errors
    /// The first error that only a human mends, else that of the last address.
    ///
    /// Cancel safe: as `open`; the turn is then that of the address it was at.
    pub(super) async fn walk<T, F>(
        &mut self,
        options: &Options,
        open: impl Fn(usize) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let (mut tried, mut denied) = (0, None);
        loop {
            // Boxed: what a handshake needs is given back before the next one.
            let error = match Box::pin(open(self.0)).await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            self.pass();
            tried += 1;
            if tried >= options.addresses.len() {
                return Err(denied.unwrap_or(error));
            }
            tracing::debug!(%error, "an address of redis.url is of no use, the next one is tried");
            denied = denied.or(Some(error).filter(RedisError::is_denied));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::redis::tests::options_of;

    fn refused() -> RedisError {
        RedisError::Denied { command: "AUTH", answer: String::new() }
    }

    #[tokio::test]
    async fn each_is_tried_once_and_the_turn_stays_where_it_worked() {
        let options = options_of(3);
        let mut turns = Turns::default();
        let found =
            turns.walk(&options, async |turn| if turn < 2 { Err(RedisError::closed()) } else { Ok(turn) });
        assert_eq!((found.await.unwrap(), turns.now()), (2, 2));
        let again = turns.walk(&options, async |turn| Ok::<_, RedisError>(turn)).await;
        assert_eq!(again.unwrap(), 2);
        let tried = std::cell::RefCell::new(Vec::new());
        let none = turns.walk::<(), _>(&options, async |turn| {
            tried.borrow_mut().push(turn % 3);
            Err(RedisError::closed())
        });
        assert!(none.await.is_err());
        assert_eq!(*tried.borrow(), [2, 0, 1]);
    }

    #[tokio::test]
    async fn what_a_human_has_to_mend_is_not_hidden_by_an_address_that_is_away() {
        let options = options_of(3);
        let mut turns = Turns::default();
        let open = async |turn| Err::<(), _>(if turn == 1 { refused() } else { RedisError::closed() });
        let error = turns.walk(&options, open).await.unwrap_err();
        assert!(error.is_denied(), "{error}");
    }
}
