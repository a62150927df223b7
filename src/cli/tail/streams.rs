//! From Redis' streams: entries behind the last one of each, or those of a consumer group.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::entry::Entry;
use super::{Problem, Source, Word};
use crate::cli::exit;
use crate::sink::redis::reading::{Member, Reader};
use crate::sink::redis::streams::{Found, Stream};
use crate::sink::redis::{Options, RedisError, Turns};

/// Most streams.
const STREAMS_MAX: usize = 1000;

/// Most entries of a stream in a load.
const ENTRIES_MAX: u64 = 100;

/// So long Redis waits for an entry.
const WAIT: Duration = Duration::from_secs(2);

/// So often new streams are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What nobody of a group has had.
const NEW: &str = ">";

/// Before the first entry.
const ZERO: &str = "0-0";

/// Where reading begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Begin {
    /// Behind what is there now.
    Now,
    /// Behind this entry.
    After(String),
}

impl Begin {
    /// At the first entry of this time or later.
    pub(super) fn after_time(ms: i64) -> Self {
        match u64::try_from(ms).unwrap_or(0).checked_sub(1) {
            Some(before) => Self::After(format!("{before}-{}", u64::MAX)),
            None => Self::After(ZERO.to_owned()),
        }
    }
}

/// The streams, and how far each was read.
pub(super) struct Streams {
    options: Options,
    pattern: String,
    begin: Begin,
    member: Option<Member>,
    turns: Turns,
    was_there: bool,
    reader: Option<Reader>,
    /// Behind which entry each goes on.
    at: BTreeMap<String, String>,
    looked: Option<Instant>,
    /// Entries of the group that were handed out and are not acknowledged.
    unsettled: Vec<(String, String)>,
}

impl Streams {
    pub(super) fn new(options: Options, pattern: String, begin: Begin, member: Option<Member>) -> Self {
        Self {
            options,
            pattern,
            begin,
            member,
            turns: Turns::default(),
            was_there: false,
            reader: None,
            at: BTreeMap::new(),
            looked: None,
            unsettled: Vec::new(),
        }
    }

    /// Takes in the streams that are there; `is_new` at the start of a connection.
    fn note(&mut self, found: Found, is_new: bool, words: &mut Vec<Word>) -> Result<(), Problem> {
        let is_first = !self.was_there;
        for stream in found.streams {
            match (&self.member, self.at.get(&stream.name)) {
                (Some(member), _) if stream.groups.iter().all(|group| group.name != member.group) => {
                    self.at.remove(&stream.name);
                }
                (Some(_), None) => {
                    // Order: what this member has not acknowledged comes before what is new.
                    self.at.insert(stream.name, ZERO.to_owned());
                }
                (None, None) => {
                    let id = self.begin(&stream, is_first);
                    self.at.insert(stream.name, id);
                }
                (None, Some(at)) if is_new => {
                    if let Some((id, what)) = missing(at, &stream) {
                        self.at.extend(id.map(|id| (stream.name, id)));
                        words.push(Word::Gap(what));
                    }
                }
                (_, Some(_)) => {}
            }
        }
        match &self.member {
            Some(Member { group, .. }) if self.at.is_empty() && is_first => {
                let what = format!(
                    "no stream like {} has a group {group}: make it with XGROUP CREATE, in each stream that it is to read",
                    self.pattern
                );
                Err(Problem::Refused(exit::UNAVAILABLE, what))
            }
            _ => Ok(()),
        }
    }

    fn begin(&self, stream: &Stream, is_first: bool) -> String {
        match &self.begin {
            Begin::After(id) => id.clone(),
            Begin::Now if is_first => stream.newest.clone().unwrap_or_else(|| ZERO.to_owned()),
            // It came later, so all of it is new.
            Begin::Now => ZERO.to_owned(),
        }
    }

    async fn look(&mut self, is_new: bool, words: &mut Vec<Word>) -> Result<(), Problem> {
        let reader = self.reader.as_mut().ok_or_else(closed)?;
        let found = Box::pin(reader.streams(&self.pattern, STREAMS_MAX)).await.map_err(lost)?;
        self.looked = Some(Instant::now());
        self.note(found, is_new, words)
    }

    /// Reads once.
    async fn read(&mut self, words: &mut Vec<Word>, events_max: u64) -> Result<(), Problem> {
        let reader = self.reader.as_mut().ok_or_else(closed)?;
        let member = self.member.as_ref();
        let from = self.at.iter().map(|(stream, id)| (stream.as_str(), id.as_str()));
        // Of a group no more is taken than can be shown: the rest is for others.
        let share = events_max / u64::try_from(self.at.len()).unwrap_or(1).max(1);
        let count = if member.is_some() { share.clamp(1, ENTRIES_MAX) } else { ENTRIES_MAX };
        let entries = Box::pin(reader.read(from, member, count, WAIT)).await.map_err(lost)?;
        let mut has_old = BTreeSet::new();
        for entry in entries {
            has_old.insert(entry.stream.clone());
            let is_too_many = member.is_some() && words.len() as u64 >= events_max;
            match self.at.get_mut(&entry.stream) {
                // It has been given to this member, and comes again as long as it is not acknowledged.
                Some(at) if is_too_many => ZERO.clone_into(at),
                Some(at) if *at != NEW => entry.id.clone_into(at),
                _ => {}
            }
            if is_too_many {
                continue;
            }
            if member.is_some() {
                self.unsettled.push((entry.stream.clone(), entry.id.clone()));
            }
            if !entry.fields.is_empty() {
                words.push(Word::event(Entry::of_stream(entry)));
            }
        }
        if member.is_some() {
            // All that it had not acknowledged has come.
            let done = self.at.iter_mut().filter(|(stream, _)| !has_old.contains(*stream));
            done.for_each(|(_, at)| NEW.clone_into(at));
        }
        Ok(())
    }
}

/// What is not there any more since `at`, in words, and where to go on if that is somewhere else.
fn missing(at: &str, stream: &Stream) -> Option<(Option<String>, String)> {
    let name = &stream.name;
    let newest = stream.newest.as_deref().unwrap_or(ZERO);
    if order(newest) < order(at) {
        let what = format!("{name} was begun anew: entries behind {at} may be missing");
        return Some((Some(ZERO.to_owned()), what));
    }
    let oldest = stream.oldest.as_deref()?;
    (order(oldest) > order(at) && order(at) > order(ZERO))
        .then(|| (None, format!("{name} has been trimmed: entries between {at} and {oldest} may be missing")))
}

/// Whether this is the id of an entry: `MILLISECONDS-NUMBER`, or the milliseconds alone.
pub(super) fn is_id(text: &str) -> bool {
    parts(text).is_some()
}

/// An id in the order of entries; Redis gives none that is anything else.
fn order(id: &str) -> (u64, u64) {
    parts(id).unwrap_or_default()
}

fn parts(id: &str) -> Option<(u64, u64)> {
    let (ms, number) = id.split_once('-').unwrap_or((id, "0"));
    // `parse` takes a sign, too.
    let part = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
    Some((part(ms)?, part(number)?))
}

impl Source for Streams {
    fn name(&self) -> String {
        format!("Redis at {}", self.options.place())
    }

    fn code(&self) -> u8 {
        exit::TEMPORARY
    }

    async fn open(&mut self, words: &mut Vec<Word>) -> Result<(), Problem> {
        self.reader = None;
        let opened = Box::pin(Reader::open(&self.options, &mut self.turns)).await;
        self.reader = Some(opened.map_err(|error| Problem::Lost(error.to_string()))?);
        // Order: what was printed is acknowledged before it could come again.
        self.settle().await?;
        if self.member.is_some() {
            self.at.clear();
        }
        self.look(true, words).await?;
        self.was_there = true;
        Ok(())
    }

    async fn next(&mut self, words: &mut Vec<Word>, events_max: u64) -> Result<(), Problem> {
        while words.is_empty() && self.unsettled.is_empty() {
            if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL) {
                self.look(false, words).await?;
            }
            if self.at.is_empty() {
                tokio::time::sleep(WAIT).await;
            } else {
                self.read(words, events_max).await?;
            }
        }
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), Problem> {
        let (Some(member), Some(reader)) = (&self.member, &mut self.reader) else { return Ok(()) };
        Box::pin(reader.acknowledge(&member.group, &self.unsettled)).await.map_err(lost)?;
        self.unsettled.clear();
        Ok(())
    }
}

fn lost(error: RedisError) -> Problem {
    match error {
        RedisError::Denied { .. } | RedisError::Unable { .. } => {
            Problem::Refused(exit::TEMPORARY, error.to_string())
        }
        error => Problem::Lost(error.to_string()),
    }
}

fn closed() -> Problem {
    Problem::Lost("there is no connection".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_where_its_first_entry_is() {
        assert_eq!(Begin::after_time(1000), Begin::After(format!("999-{}", u64::MAX)));
        assert_eq!(Begin::after_time(0), Begin::After("0-0".into()));
        assert_eq!(Begin::after_time(-5), Begin::After("0-0".into()));
        assert!(["0", "5-0", "1772366400000-12"].into_iter().all(is_id));
        assert!(!["", "$", "5-", "-5", "+5", "x", "99999999999999999999"].into_iter().any(is_id));
    }

    #[test]
    fn what_was_trimmed_meanwhile_is_told() {
        let stream = |oldest: Option<&str>, newest: Option<&str>| Stream {
            name: "s".into(),
            length: 1,
            oldest: oldest.map(Into::into),
            newest: newest.map(Into::into),
            groups: Vec::new(),
        };
        assert_eq!(missing("5-1", &stream(Some("5-0"), Some("9-0"))), None);
        assert_eq!(missing("5-1", &stream(Some("5-1"), Some("5-1"))), None);
        assert_eq!(missing("0-0", &stream(Some("5-1"), Some("5-1"))), None);
        let (id, what) = missing("5-1", &stream(Some("10-0"), Some("11-0"))).unwrap();
        assert!(id.is_none() && what.contains("between 5-1 and 10-0 may be missing"), "{what}");
        let (id, what) = missing("5-1", &stream(None, None)).unwrap();
        assert!(id.as_deref() == Some("0-0") && what.contains("begun anew"), "{what}");
    }
}
