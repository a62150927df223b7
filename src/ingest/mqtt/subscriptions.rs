//! Which filters the broker has confirmed and when to ask for the others. Pure but for its clock.

use std::time::Duration;

use tokio::time::Instant;

use super::Qos;
use crate::backoff::Backoff;
use crate::ingest::topic::TopicTemplate;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// The broker's answer for one filter: the granted quality, or its reason in words.
pub(super) type Granted = Result<Qos, String>;

/// See the module.
#[derive(Debug)]
pub(super) struct Subscriptions {
    filters: Vec<Filter>,
    qos: Qos,
    /// Filters of the SUBSCRIBE that is under way, in its order.
    asked: Vec<usize>,
    retry_at: Option<Instant>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Filter {
    text: String,
    confirmed: bool,
    /// The last answer that was logged.
    told: Option<Granted>,
}

/// Something about a filter that a human should read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// The broker refused the filter.
    Refused {
        /// The filter.
        filter: String,
        /// Its reason.
        reason: String,
    },
    /// The broker granted less than was asked.
    Lowered {
        /// The filter.
        filter: String,
        /// What was granted.
        granted: Qos,
    },
}

impl Subscriptions {
    /// All filters of `templates`, none of them confirmed: the configuration may have changed since the last run.
    pub(super) fn new(templates: &[TopicTemplate], qos: Qos) -> Self {
        let filter = |template: &TopicTemplate| Filter {
            text: template.filter().to_owned(),
            confirmed: false,
            told: None,
        };
        Self {
            filters: templates.iter().map(filter).collect(),
            qos,
            asked: Vec::new(),
            retry_at: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
        }
    }

    /// The link is up. Without a session the broker knows no filter.
    pub(super) fn connected(&mut self, session: bool, now: Instant) {
        if !session {
            self.filters.iter_mut().for_each(|filter| filter.confirmed = false);
        }
        self.asked.clear();
        self.backoff.reset();
        self.retry_at = self.any_open().then_some(now);
    }

    /// The link is down: nothing is asked until it is up.
    pub(super) fn disconnected(&mut self) {
        self.asked.clear();
        self.retry_at = None;
    }

    /// When to ask next.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The filters to ask for now, if it is time.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Vec<String>> {
        self.retry_at.filter(|&at| at <= now)?;
        self.retry_at = None;
        let open = self.filters.iter().enumerate().filter(|(_, filter)| !filter.confirmed);
        self.asked = open.map(|(index, _)| index).collect();
        Some(
            self.asked
                .iter()
                .filter_map(|&index| self.filters.get(index))
                .map(|filter| filter.text.clone())
                .collect(),
        )
    }

    /// The client had no room for the question.
    pub(super) fn postpone(&mut self, now: Instant) {
        self.asked.clear();
        self.retry_at = Some(now + RETRY_FIRST);
    }

    /// The broker answered, one entry for each filter asked. Returns what is worth a line; the same is told once.
    pub(super) fn answered(&mut self, granted: Vec<Granted>, now: Instant) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        for (index, granted) in std::mem::take(&mut self.asked).into_iter().zip(granted) {
            let Some(filter) = self.filters.get_mut(index) else { continue };
            filter.confirmed = granted.is_ok();
            if filter.told.as_ref() == Some(&granted) {
                continue;
            }
            let text = || filter.text.clone();
            match &granted {
                Err(reason) => complaints.push(Complaint::Refused { filter: text(), reason: reason.clone() }),
                Ok(qos) if *qos < self.qos => {
                    complaints.push(Complaint::Lowered { filter: text(), granted: *qos });
                }
                Ok(_) => {}
            }
            filter.told = Some(granted);
        }
        if self.any_open() {
            self.retry_at = Some(now + self.backoff.delay());
        }
        complaints
    }

    fn any_open(&self) -> bool {
        self.filters.iter().any(|filter| !filter.confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriptions() -> Subscriptions {
        let templates = ["a/{type}", "b/#"].map(|template| TopicTemplate::parse(template).unwrap());
        Subscriptions::new(&templates, Qos::AtLeastOnce)
    }

    fn refused() -> Granted {
        Err("not authorised".into())
    }

    #[tokio::test(start_paused = true)]
    async fn asks_at_process_start_and_whenever_the_session_is_gone() {
        let mut subscriptions = subscriptions();
        let now = Instant::now();
        assert_eq!(subscriptions.due_at(), None);
        subscriptions.connected(true, now);
        assert_eq!(subscriptions.take_due(now), Some(vec!["a/+".to_owned(), "b/#".to_owned()]));
        assert_eq!(subscriptions.take_due(now), None);
        assert_eq!(subscriptions.answered(vec![Ok(Qos::AtLeastOnce), Ok(Qos::ExactlyOnce)], now), []);
        assert_eq!(subscriptions.due_at(), None);
        subscriptions.disconnected();
        subscriptions.connected(true, now);
        assert_eq!(subscriptions.take_due(now), None);
        subscriptions.connected(false, now);
        assert_eq!(subscriptions.take_due(now).unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_without_an_answer_is_asked_again_on_the_next_connection() {
        let mut subscriptions = subscriptions();
        let now = Instant::now();
        subscriptions.connected(false, now);
        subscriptions.take_due(now).unwrap();
        subscriptions.disconnected();
        subscriptions.connected(true, now);
        assert_eq!(subscriptions.take_due(now).unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_filter_is_told_once_and_asked_again_later() {
        let mut subscriptions = subscriptions();
        let now = Instant::now();
        subscriptions.connected(false, now);
        subscriptions.take_due(now).unwrap();
        let complaints = subscriptions.answered(vec![refused(), Ok(Qos::AtMostOnce)], now);
        let wanted = [
            Complaint::Refused { filter: "a/+".into(), reason: "not authorised".into() },
            Complaint::Lowered { filter: "b/#".into(), granted: Qos::AtMostOnce },
        ];
        assert_eq!(complaints, wanted);
        assert_eq!(subscriptions.take_due(now), None);
        let later = now + RETRY_FIRST;
        assert_eq!(subscriptions.take_due(later), Some(vec!["a/+".to_owned()]));
        assert_eq!(subscriptions.answered(vec![refused()], later), []);
        assert!(subscriptions.due_at().unwrap() > later);
        assert_eq!(subscriptions.take_due(later + RETRY_MAX).unwrap().len(), 1);
        assert_eq!(subscriptions.answered(vec![Ok(Qos::AtLeastOnce)], later), []);
        assert_eq!(subscriptions.due_at(), None);
    }
}
