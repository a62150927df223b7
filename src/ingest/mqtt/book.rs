//! The order book of acknowledgements: which publishes are unacknowledged, in which order they came, and which of
//! them may be answered. Pure; knows neither client nor buffer.
//!
//! ```text
//!            received          load durable        handed to the client      written
//! publish ───────────> waiting ────────────> ready ───────────────────> ready ───────> gone (QoS 2: until released)
//!    │ no event: ready at once                  │ link lost                 │ link lost
//!    │                                          v                           v
//!    └── the same again on the next connection <─── kept by packet id ──────┘
//! ```
//!
//! Answers leave strictly in the order received. When the link is lost every unanswered publish is kept by its packet
//! id; the broker must deliver it again with that id, and then the redelivery takes over the old one's state instead
//! of being a second event. It must carry the DUP flag and the same content: a broker that numbers anew costs a
//! duplicate, never an event.

use std::collections::{HashMap, VecDeque};

/// Number of a load: the events that are appended together.
pub(super) type LoadNumber = u64;

/// What tells a publish from others on one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Packet id; never 0.
    pub(super) pkid: u16,
    /// Whether it is QoS 2, answered by PUBREC and later released.
    pub(super) twice: bool,
    /// Hash of topic and content.
    pub(super) print: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Part of a load that is not durable yet.
    Waiting(LoadNumber),
    /// Durable, or no event: may be answered.
    Ready,
}

/// Whether a publish is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// Take it into the load.
    New,
    /// A redelivery of one that is durable or under way: it is answered when that one may be.
    Again,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// Unanswered publishes of this connection, oldest first.
    entries: VecDeque<(Mark, State)>,
    /// How many of the first entries were handed to the client and are not written yet.
    handed: usize,
    /// Most entries at once on this connection.
    widest: usize,
    /// How many entries wait for their load.
    waiting: usize,
    /// Unanswered publishes of lost connections, and QoS 2 publishes that are answered and not released.
    kept: HashMap<u16, (Mark, State)>,
}

impl Book {
    /// A publish of QoS 1 or 2 arrived; if it is new it belongs to `load`.
    pub(super) fn receive(&mut self, mark: Mark, dup: bool, load: LoadNumber) -> Received {
        let known = self.kept.remove(&mark.pkid).filter(|(kept, _)| dup && *kept == mark);
        let state = known.map_or(State::Waiting(load), |(_, state)| state);
        self.entries.push_back((mark, state));
        self.widest = self.widest.max(self.entries.len());
        self.waiting += usize::from(state != State::Ready);
        if known.is_some() { Received::Again } else { Received::New }
    }

    /// Whether it is a redelivery of one that is known; changes nothing.
    pub(super) fn knows(&self, mark: Mark, dup: bool) -> bool {
        dup && self.kept.get(&mark.pkid).is_some_and(|(kept, _)| *kept == mark)
    }

    /// The publish received last is no event of its load, because it cannot be one or a route leaves it out: it is answered
    /// in its turn.
    pub(super) fn last_is_ready(&mut self) {
        if let Some((_, state)) = self.entries.back_mut().filter(|(_, state)| *state != State::Ready) {
            *state = State::Ready;
            self.waiting -= 1;
        }
    }

    /// `load` is durable. Returns how many answers cannot leave because their connection is gone.
    pub(super) fn settle(&mut self, load: LoadNumber) -> u64 {
        for (_, state) in self.entries.iter_mut().filter(|(_, state)| *state == State::Waiting(load)) {
            *state = State::Ready;
            self.waiting -= 1;
        }
        let mut lost = 0;
        for (_, state) in self.kept.values_mut().filter(|(_, state)| *state == State::Waiting(load)) {
            *state = State::Ready;
            lost += 1;
        }
        lost
    }

    /// Nobody knows whether `load` is stored: its publishes are forgotten and must come again as new.
    pub(super) fn forget(&mut self, load: LoadNumber) {
        let before = self.entries.len();
        self.entries.retain(|(_, state)| *state != State::Waiting(load));
        self.waiting -= before - self.entries.len();
        self.kept.retain(|_, (_, state)| *state != State::Waiting(load));
    }

    /// The next publish to answer, as long as it is its turn; [`Book::hand_over`] moves on.
    pub(super) fn next_answer(&self) -> Option<Mark> {
        let (mark, state) = self.entries.get(self.handed)?;
        (*state == State::Ready).then_some(*mark)
    }

    /// The client took the answer of [`Book::next_answer`].
    pub(super) fn hand_over(&mut self) {
        self.handed = (self.handed + 1).min(self.entries.len());
    }

    /// The client wrote its oldest answer.
    pub(super) fn written(&mut self) {
        if self.handed == 0 {
            return;
        }
        self.handed -= 1;
        if let Some((mark, state)) = self.entries.pop_front()
            && mark.twice
        {
            self.kept.insert(mark.pkid, (mark, state));
        }
    }

    /// The broker released a QoS 2 publish: its packet id is free for another one.
    pub(super) fn release(&mut self, pkid: u16) {
        self.kept.remove(&pkid);
    }

    /// The link is lost. Returns how many answers were due and did not leave.
    pub(super) fn lose(&mut self) -> u64 {
        let mut lost = 0;
        for (mark, state) in self.entries.drain(..) {
            lost += u64::from(state == State::Ready);
            self.kept.insert(mark.pkid, (mark, state));
        }
        self.handed = 0;
        self.widest = 0;
        self.waiting = 0;
        lost
    }

    /// The broker has no session: nothing comes again, and packet ids start anew.
    pub(super) fn start_anew(&mut self) {
        self.kept.clear();
    }

    /// Number of unanswered publishes on this connection.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the broker may be waiting for answers before it sends more: as many publishes are unanswered as never
    /// before on this connection, and at least half of them for want of a sync.
    pub(super) fn holds_up_the_broker(&self) -> bool {
        self.waiting > 0 && self.entries.len() == self.widest && self.waiting * 2 >= self.widest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mark(pkid: u16) -> Mark {
        Mark { pkid, twice: false, print: u64::from(pkid) * 7 }
    }

    fn twice(pkid: u16) -> Mark {
        Mark { twice: true, ..mark(pkid) }
    }

    impl Book {
        fn new_in(&mut self, load: LoadNumber, pkids: impl IntoIterator<Item = u16>) {
            for pkid in pkids {
                assert_eq!(self.receive(mark(pkid), false, load), Received::New);
            }
        }

        /// Hands over and writes whatever is due.
        fn answers(&mut self) -> Vec<u16> {
            let mut out = Vec::new();
            while let Some(mark) = self.next_answer() {
                out.push(mark.pkid);
                self.hand_over();
            }
            out.iter().for_each(|_| self.written());
            out
        }
    }

    #[test]
    fn answers_leave_in_the_order_received_whatever_is_durable_first() {
        let mut book = Book::default();
        book.new_in(1, [3, 1]);
        book.new_in(2, [2, 9]);
        assert_eq!(book.settle(2), 0);
        assert!(book.answers().is_empty());
        book.settle(1);
        assert_eq!(book.answers(), [3, 1, 2, 9]);
        assert_eq!(book.len(), 0);
    }

    #[test]
    fn a_publish_that_is_no_event_is_answered_in_its_turn() {
        let mut book = Book::default();
        book.new_in(1, [1]);
        book.new_in(1, [2]);
        book.last_is_ready();
        assert!(book.answers().is_empty());
        book.settle(1);
        assert_eq!(book.answers(), [1, 2]);
        book.new_in(2, [3]);
        book.last_is_ready();
        assert_eq!(book.answers(), [3]);
    }

    #[test]
    fn a_redelivery_takes_over_and_is_no_second_event() {
        let mut book = Book::default();
        book.new_in(1, [1, 2]);
        book.new_in(2, [3]);
        book.settle(1);
        book.hand_over();
        assert_eq!(book.lose(), 2, "two answers were due");
        assert_eq!((book.len(), book.next_answer()), (0, None));
        for pkid in [1, 2, 3] {
            assert!(book.knows(mark(pkid), true));
            assert_eq!(book.receive(mark(pkid), true, 3), Received::Again);
        }
        assert_eq!(book.len(), 3);
        assert_eq!(book.answers(), [1, 2]);
        assert_eq!(book.settle(2), 0, "the answer goes out on the new connection");
        assert_eq!(book.answers(), [3]);
    }

    #[test]
    fn an_answer_without_a_connection_is_counted_once() {
        let mut book = Book::default();
        book.new_in(1, [1, 2]);
        assert_eq!(book.lose(), 0);
        assert_eq!(book.settle(1), 2);
        assert_eq!(book.lose(), 0);
        assert_eq!(book.receive(mark(2), true, 2), Received::Again);
        assert_eq!(book.answers(), [2]);
    }

    #[test]
    fn only_the_very_same_publish_is_a_redelivery() {
        let mut book = Book::default();
        book.new_in(1, [1, 2, 3, 4]);
        book.lose();
        let other = Mark { print: 0, ..mark(1) };
        assert!(!book.knows(other, true));
        assert_eq!(book.receive(other, true, 2), Received::New);
        assert_eq!(book.receive(mark(2), false, 2), Received::New);
        assert_eq!(book.receive(twice(3), true, 2), Received::New);
        book.start_anew();
        assert_eq!(book.receive(mark(4), true, 2), Received::New);
        assert_eq!(book.settle(1), 0);
        assert!(book.answers().is_empty());
        book.settle(2);
        assert_eq!(book.answers(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_load_of_unknown_outcome_comes_again_as_new() {
        let mut book = Book::default();
        book.new_in(1, [1]);
        book.lose();
        book.new_in(1, [2]);
        book.new_in(2, [3]);
        book.forget(1);
        book.lose();
        for (pkid, wanted) in [(1, Received::New), (2, Received::New), (3, Received::Again)] {
            assert_eq!(book.receive(mark(pkid), true, 3), wanted);
        }
    }

    #[test]
    fn a_qos_2_publish_is_known_until_it_is_released() {
        let mut book = Book::default();
        assert_eq!(book.receive(twice(1), false, 1), Received::New);
        book.settle(1);
        assert_eq!(book.answers(), [1]);
        assert_eq!(book.lose(), 0);
        assert_eq!(book.receive(twice(1), true, 2), Received::Again);
        assert_eq!(book.answers(), [1], "PUBREC again, no second event");
        book.release(1);
        assert_eq!(book.receive(twice(1), true, 3), Received::New);
    }

    #[test]
    fn knows_when_the_window_may_be_full() {
        let mut book = Book::default();
        assert!(!book.holds_up_the_broker());
        book.new_in(1, [1, 2, 3, 4]);
        assert!(book.holds_up_the_broker());
        book.settle(1);
        assert!(!book.holds_up_the_broker(), "answers are under way");
        for pkid in 5..9 {
            book.hand_over();
            book.written();
            book.new_in(2, [pkid]);
            assert_eq!(book.holds_up_the_broker(), pkid > 5, "{pkid}");
        }
        book.settle(2);
        assert_eq!(book.answers(), [5, 6, 7, 8]);
        book.new_in(3, [9]);
        assert!(!book.holds_up_the_broker());
    }

    #[derive(Debug, Clone)]
    enum Action {
        Publish,
        Settle(u64),
        Answer(usize),
        Write(usize),
        Lose,
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            8 => Just(Action::Publish),
            4 => (0_u64..4).prop_map(Action::Settle),
            4 => (0_usize..4).prop_map(Action::Answer),
            4 => (0_usize..4).prop_map(Action::Write),
            1 => Just(Action::Lose),
        ]
    }

    proptest! {
        /// Against a broker that keeps what is unacknowledged and sends it again in order: every publish is one event,
        /// none is answered before it is durable, answers keep the order of arrival.
        #[test]
        fn a_conforming_broker_gets_every_answer_in_order(actions in proptest::collection::vec(action(), 1..200)) {
            let mut book = Book::default();
            let (mut next_pkid, mut load, mut settled) = (0_u16, 1_u64, 0_u64);
            let mut broker = VecDeque::new();
            let mut load_of = HashMap::new();
            let mut handed = VecDeque::new();
            for action in actions {
                match action {
                    Action::Publish => {
                        next_pkid += 1;
                        prop_assert_eq!(book.receive(mark(next_pkid), false, load), Received::New);
                        load_of.insert(next_pkid, load);
                        broker.push_back(next_pkid);
                    }
                    Action::Settle(n) if settled < load => {
                        settled = (settled + n).min(load);
                        (1..=settled).for_each(|number| { book.settle(number); });
                        load = settled + 1;
                    }
                    Action::Settle(_) => {}
                    Action::Answer(n) => for _ in 0..n {
                        let Some(mark) = book.next_answer() else { break };
                        prop_assert!(load_of[&mark.pkid] <= settled, "answered before durable");
                        prop_assert_eq!(Some(&mark.pkid), broker.get(handed.len()), "out of order");
                        handed.push_back(mark.pkid);
                        book.hand_over();
                    },
                    Action::Write(n) => for _ in 0..n {
                        if handed.pop_front().is_some() {
                            book.written();
                            broker.pop_front();
                        }
                    },
                    Action::Lose => {
                        book.lose();
                        handed.clear();
                        for pkid in &broker {
                            prop_assert_eq!(book.receive(mark(*pkid), true, load), Received::Again);
                        }
                    }
                }
                prop_assert_eq!(book.len(), broker.len());
                let waiting = book.entries.iter().filter(|(_, state)| *state != State::Ready).count();
                prop_assert_eq!(book.waiting, waiting);
            }
        }
    }
}
