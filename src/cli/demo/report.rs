//! The verdict: what the sensors know against what the consumer found, as a table and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::consumer::{Account, EventName};
use super::sensors::Diaries;
use super::story::Events;
use super::{Failure, Plan, Shared};

/// Names of missing events that a failed verdict shows.
const SHOWN: usize = 10;

/// Everything the demo found out. The field names are the JSON's.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verdict {
    /// No problem.
    pub(super) passed: bool,
    pub(super) problems: Vec<String>,
    pub(super) sources: usize,
    /// How long the sensors sent.
    pub(super) sending_seconds: f64,
    /// Distinct events that were written to the socket at least once.
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
    /// Of these, while Kafka was away.
    pub(super) acknowledged_in_outage: u64,
    /// Events never acknowledged: whether they are safe is not known, and nobody said so.
    pub(super) unacknowledged: u64,
    /// Answers that an event was not taken.
    pub(super) refused: u64,
    /// Events on their way without an acknowledgement when the agent was killed; sent again with the same id.
    pub(super) in_flight_at_kill: u64,
    pub(super) kafka_records: u64,
    /// Distinct events in Kafka.
    pub(super) kafka_events: u64,
    /// Acknowledged and not in Kafka.
    pub(super) lost: u64,
    /// Records that a consumer drops by position.
    pub(super) duplicates: u64,
    /// Events that come again after that although their sensor sent them once.
    pub(super) duplicates_after_dedupe: u64,
    /// Events that come again after that because their sensor had to send them again: the same id, two positions.
    pub(super) stored_twice: u64,
    /// Events behind a later one of their source, or behind their position.
    pub(super) out_of_order: u64,
    /// Sequence numbers that never came.
    pub(super) gaps: u64,
    /// Records that no sensor sent like that.
    pub(super) foreign: u64,
    pub(super) kills: u32,
    /// Kafka was away, and the consumer got nothing meanwhile.
    pub(super) outage: bool,
    pub(super) outage_seconds: f64,
    /// From the kill until the agent took connections again.
    pub(super) restart_seconds: f64,
    /// From Kafka's return until it had everything acknowledged by then.
    pub(super) catch_up_seconds: Option<f64>,
    /// Of each agent process.
    pub(super) peak_memory_bytes: Vec<u64>,
    /// Of the data directory.
    pub(super) peak_disk_bytes: u64,
    /// Pings received; best effort, so a missing one is no problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pings: Option<u64>,
    /// Of these, while Kafka was away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pings_in_outage: Option<u64>,
    pub(super) seconds: f64,
}

impl Verdict {
    pub(super) fn reach(
        plan: &Plan,
        shared: &Shared,
        diaries: &[Diaries],
        account: &Account,
        events: Events,
    ) -> Self {
        let mut verdict = Self {
            sources: plan.sources,
            sending_seconds: plan.sending.as_secs_f64(),
            refused: shared.figures.refused.get(),
            kafka_records: account.records,
            kafka_events: account.events,
            duplicates: account.duplicates,
            out_of_order: account.behind_position,
            gaps: account.gaps(),
            foreign: account.foreign,
            acknowledged_in_outage: events.acknowledged_in_outage,
            in_flight_at_kill: events.in_flight_at_kill,
            kills: events.kills,
            outage: events.is_outage_real,
            outage_seconds: events.outage.as_secs_f64(),
            restart_seconds: events.restart.as_secs_f64(),
            catch_up_seconds: events.catch_up.map(|time| time.as_secs_f64()),
            peak_memory_bytes: events.peak_memory,
            peak_disk_bytes: events.peak_disk,
            pings: plan.has_redis.then(|| shared.figures.pings.get()),
            pings_in_outage: plan.has_redis.then_some(events.pings_in_outage),
            problems: events.problems,
            ..Self::default()
        };
        let lost = verdict.compare(diaries, account);
        verdict.judge(plan, &lost, account);
        verdict.problems.extend(
            diaries
                .iter()
                .flat_map(|d| &d.complaints)
                .take(SHOWN)
                .map(|complaint| format!("the agent did not take an event: {complaint}")),
        );
        verdict.passed = verdict.problems.is_empty();
        verdict
    }

    /// Event by event; the ones that are lost.
    fn compare(&mut self, diaries: &[Diaries], account: &Account) -> Vec<EventName> {
        let mut lost = Vec::new();
        for diaries in diaries {
            for (at, diary) in diaries.sources.iter().enumerate() {
                for (before, fate) in diary.iter().enumerate() {
                    let event = EventName { source: diaries.first + at, number: before + 1 };
                    self.sent += 1;
                    self.acknowledged += u64::from(fate.is_acknowledged);
                    self.unacknowledged += u64::from(!fate.is_acknowledged);
                    if fate.is_acknowledged && !account.has(event) {
                        lost.push(event);
                    }
                }
            }
        }
        let fate = |event: &EventName| {
            let diaries = diaries.iter().rfind(|diaries| diaries.first <= event.source)?;
            let diary = diaries.sources.get(event.source.checked_sub(diaries.first)?)?;
            diary.get(event.number.checked_sub(1)?).copied()
        };
        for event in &account.repeated {
            match fate(event) {
                Some(fate) if fate.is_repeated => self.stored_twice += 1,
                _ => self.duplicates_after_dedupe += 1,
            }
        }
        // What the agent refused first comes behind its neighbours, and its sensor knows it.
        let is_unexplained = |event: &&EventName| !fate(event).is_some_and(|fate| fate.is_refused);
        self.out_of_order += account.late.iter().filter(is_unexplained).count() as u64;
        self.lost = lost.len() as u64;
        lost
    }

    fn judge(&mut self, plan: &Plan, lost: &[EventName], account: &Account) {
        let mut problems = Vec::new();
        if !lost.is_empty() {
            let name = |event: &EventName| format!("{}-{:02}-{}", plan.run, event.source, event.number);
            let names: Vec<String> = lost.iter().take(SHOWN).map(name).collect();
            let more = if lost.len() > SHOWN { ", ..." } else { "" };
            problems.push(format!(
                "{} acknowledged events are not in Kafka: {}{more}",
                lost.len(),
                names.join(", ")
            ));
        }
        for (count, what) in [
            (self.out_of_order, "events are out of order"),
            (self.duplicates_after_dedupe, "duplicates cannot be told by their position"),
            (self.gaps, "sequence numbers are missing"),
            (self.foreign, "records are not what the sensors sent"),
            (self.unacknowledged, "events were never acknowledged"),
            (account.unread, "records were thrown away by the mock cluster before they were read"),
        ] {
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        }
        for (is_so, what) in [
            (self.acknowledged > 0, "nothing was acknowledged"),
            (account.is_complete, "the topic could not be read to its end"),
            (self.outage, "Kafka took records during the outage"),
            (self.acknowledged_in_outage > 0, "nothing was acknowledged during the outage"),
            (self.kills == 1, "the agent was not killed"),
        ] {
            if !is_so {
                problems.push(what.to_owned());
            }
        }
        self.problems.append(&mut problems);
    }

    /// One object.
    pub(super) fn json(&self) -> Result<String, Failure> {
        let mut text = serde_json::to_string(self).map_err(|error| Failure::System(error.into()))?;
        text.push('\n');
        Ok(text)
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String, note: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", format!("  {name:<22}{value:>11}  {note}").trim_end());
        };
        let mut count = |name: &str, value: u64, note: &str| row(name, grouped(value), note);
        count("sent", self.sent, &format!("by {} sensors over the Unix socket", self.sources));
        let note = format!("{} of them while Kafka was away", grouped(self.acknowledged_in_outage));
        count("acknowledged", self.acknowledged, &note);
        count("in flight at the kill", self.in_flight_at_kill, "unanswered; sent again with the same id");
        if self.refused > 0 {
            count("refused", self.refused, "answered as not taken, and sent again");
        }
        count("in Kafka, records", self.kafka_records, "");
        count("in Kafka, events", self.kafka_events, "distinct");
        count("lost", self.lost, "acknowledged and not in Kafka");
        count("duplicates", self.duplicates, "sent again by the agent; a consumer drops them by position");
        count("  left after that", self.duplicates_after_dedupe, "");
        count("stored twice", self.stored_twice, "sent again by a sensor: same id, two positions");
        count("out of order", self.out_of_order, "per sensor");
        count("gaps", self.gaps, "in the agent's sequence numbers");
        if let (Some(pings), Some(in_outage)) = (self.pings, self.pings_in_outage) {
            count("pings", pings, &format!("{} of them while Kafka was away", grouped(in_outage)));
        }
        row("outage", format!("{:.1} s", self.outage_seconds), "no broker");
        row("back after the kill", format!("{:.2} s", self.restart_seconds), "until the socket answered");
        if let Some(seconds) = self.catch_up_seconds {
            row("caught up", format!("{seconds:.1} s"), "after Kafka was back");
        }
        let memory: Vec<String> = self.peak_memory_bytes.iter().map(|&bytes| mebibytes(bytes)).collect();
        row(
            "peak memory",
            mebibytes(self.peak_memory_bytes.iter().copied().max().unwrap_or(0)),
            &format!("of the agent ({} before and after the kill)", memory.join(", ")),
        );
        row("peak disk", mebibytes(self.peak_disk_bytes), "of its data directory");
        row("took", format!("{:.1} s", self.seconds), "");
        text.push('\n');
        for problem in &self.problems {
            let _ = writeln!(text, "  problem: {problem}");
        }
        text +=
            if self.passed { "PASSED: everything acknowledged is in Kafka, in order.\n" } else { "FAILED\n" };
        text
    }
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes * 10 / (1024 * 1024);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::demo::consumer::{Position, Record};
    use crate::cli::demo::sensors::{self, Fate};

    const SAFE: Fate = Fate { is_acknowledged: true, is_repeated: false, is_refused: false };

    /// The verdict on a topic that holds events of source 0 by `(seq, number)`, all of them sent with `fates`.
    fn verdict(fates: &[Fate], topic: &[(u64, usize)]) -> Verdict {
        let plan = Plan { run: "r".into(), sources: 1, ..Plan::default() };
        let mut account = Account::new(&plan);
        account.is_complete = true;
        for (offset, &(seq, number)) in (0..).zip(topic) {
            let payload = sensors::payload(EventName { source: 0, number });
            let value = format!(r#"{{"id":"r-00-{number}","source_id":"r-00","payload":{payload}}}"#);
            let position = Some(Position { agent: "a", log: "l", epoch: 1, seq });
            account.take(&Record { partition: 0, offset, key: b"r-00", value: value.as_bytes(), position });
        }
        let events = Events {
            kills: 1,
            is_outage_real: true,
            acknowledged_in_outage: 1,
            restart: Duration::from_millis(20),
            ..Events::default()
        };
        let diaries = [Diaries { first: 0, sources: vec![fates.to_vec()], complaints: Vec::new() }];
        Verdict::reach(&plan, &Shared::default(), &diaries, &account, events)
    }

    #[test]
    fn what_was_acknowledged_has_to_be_there_in_order_and_once() {
        assert_eq!(verdict(&[SAFE; 3], &[(1, 1), (2, 2), (3, 3)]).problems, Vec::<String>::new());
        let lost = verdict(&[SAFE; 3], &[(1, 1), (2, 3)]);
        assert_eq!(lost.problems, ["1 acknowledged events are not in Kafka: r-00-2"]);
        assert_eq!(verdict(&[SAFE; 2], &[(1, 2), (2, 1)]).problems, ["1 events are out of order"]);
        assert_eq!(verdict(&[SAFE; 2], &[(1, 1), (3, 2)]).problems, ["1 sequence numbers are missing"]);
        let twice = verdict(&[SAFE; 2], &[(1, 1), (2, 2), (3, 2)]);
        assert_eq!(twice.problems, ["1 duplicates cannot be told by their position"]);
        assert_eq!(verdict(&[SAFE; 2], &[(1, 1), (2, 2), (1, 1)]).duplicates, 1);
    }

    #[test]
    fn what_a_sensor_had_to_send_again_may_be_stored_twice_but_not_lost() {
        let again = Fate { is_repeated: true, ..SAFE };
        let stored_twice = verdict(&[SAFE, again], &[(1, 1), (2, 2), (3, 2)]);
        assert!(stored_twice.passed && stored_twice.stored_twice == 1, "{stored_twice:?}");
        assert!(!verdict(&[SAFE, again], &[(1, 1)]).passed);
    }

    #[test]
    fn what_nobody_acknowledged_is_not_lost_and_still_told() {
        let open = Fate { is_acknowledged: false, ..SAFE };
        let verdict = verdict(&[SAFE, open], &[(1, 1)]);
        assert_eq!((verdict.lost, verdict.unacknowledged, verdict.passed), (0, 1, false));
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            (grouped(0), grouped(999), grouped(1_234_567)),
            ("0".into(), "999".into(), "1,234,567".into())
        );
        assert_eq!(mebibytes(1536 * 1024), "1.5 MiB");
    }
}
