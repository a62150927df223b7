//! Exactly once: what the drain asks of a transactional producer, and the cursor that Kafka keeps with the events.
//!
//! The cursor is an offset committed in the same transaction as the events, under a consumer group of the agent's own
//! that has no members: offset = the sequence number behind the last event, metadata = which buffer it belongs to
//! (`fieldpost 1 log=<uuid> epoch=<n>`, with two lanes also ` live=<n> ahead=<a>-<b>,…`: where the live lane goes on, and
//! what is delivered ahead of the cursor; 64 ranges stay below the 4096 bytes of `offset.metadata.max.bytes`). Kafka forgets it when nothing was committed for `offsets.retention.minutes`,
//! seven days by default, so that there may be none.

use thiserror::Error;
use uuid::Uuid;

use crate::event::Seq;

/// Where the live lane goes on, and what is delivered ahead of the cursor: first and last of each range.
pub type Live = (Seq, Vec<(Seq, Seq)>);

/// Up to where Kafka has a buffer's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The buffer's UUID.
    pub log: Uuid,
    /// The epoch in which it was committed.
    pub epoch: u32,
    /// The last event.
    pub seq: Seq,
    /// With two lanes (`kafka.order`): the live one.
    pub live: Option<Live>,
}

/// What Kafka keeps as the agent's cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// None: the first start in this mode, another cursor topic, or it has expired.
    None,
    /// A cursor.
    Cursor(Cursor),
    /// Something that the agent did not write: offset and metadata.
    Foreign(String),
}

impl Cursor {
    /// As Kafka keeps it: offset and metadata.
    pub fn to_offset(&self) -> (i64, String) {
        let offset = i64::try_from(self.seq.0.saturating_add(1)).unwrap_or(i64::MAX);
        let mut metadata = format!("fieldpost 1 log={} epoch={}", self.log, self.epoch);
        if let Some((live_from, ahead)) = &self.live {
            metadata += &format!(" live={live_from}");
            for (number, (first, last)) in ahead.iter().enumerate() {
                metadata += &format!("{}{first}-{last}", if number == 0 { " ahead=" } else { "," });
            }
        }
        (offset, metadata)
    }
}

impl Kept {
    /// From what Kafka has.
    pub fn of_offset(offset: i64, metadata: &str) -> Self {
        let cursor = || {
            let (log, rest) = metadata.strip_prefix("fieldpost 1 log=")?.split_once(" epoch=")?;
            let (epoch, live) = rest.split_once(" live=").map_or((rest, None), |(e, live)| (e, Some(live)));
            let live = match live {
                None => None,
                Some(text) => Some(live_of(text)?),
            };
            let next = u64::try_from(offset).ok()?;
            Some(Cursor {
                log: log.parse().ok()?,
                epoch: epoch.parse().ok()?,
                seq: Seq(next.checked_sub(1)?),
                live,
            })
        };
        cursor()
            .map_or_else(|| Self::Foreign(format!("offset {offset}, metadata {metadata:?}")), Self::Cursor)
    }
}

fn live_of(text: &str) -> Option<Live> {
    let (live_from, ahead) = text.split_once(" ahead=").unwrap_or((text, ""));
    let seq = |text: &str| text.parse().ok().map(Seq);
    let range = |text: &str| {
        let (first, last) = text.split_once('-')?;
        Some((seq(first)?, seq(last)?))
    };
    let ahead = ahead.split(',').filter(|text| !text.is_empty()).map(range);
    Some((seq(live_from)?, ahead.collect::<Option<_>>()?))
}

/// What takes its time, because Kafka's transaction coordinator has a part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take over the transactional id: whoever else has it is fenced, and what he left open is aborted. Then read the
    /// cursor.
    Open,
    /// Commit what was sent since [`Producer::begin`](super::Producer::begin), with this cursor.
    Commit(Cursor),
    /// Give it up.
    Abort,
}

/// A step that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepEnd {
    /// The id is ours, and this is the cursor.
    Opened(Kept),
    /// Events and cursor are visible to `read_committed` consumers.
    Committed,
    /// They never will be.
    Aborted,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StepError {
    /// This transaction cannot be committed: abort it, send the events again.
    #[error("{0}")]
    Abort(String),
    /// The producer is broken: restart it.
    #[error("{0}")]
    Broken(String),
    /// Another producer has taken the transactional id over, or the transaction outlived its time.
    #[error("{0}")]
    Fenced(String),
    /// A right or a topic is missing: restart it later, somebody has to mend it.
    #[error("{0}")]
    Misconfigured(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_was_kept() {
        let most = vec![(Seq(u64::MAX), Seq(u64::MAX)); crate::buffer::AHEAD_MAX];
        for live in
            [None, Some((Seq(80), vec![])), Some((Seq(9), vec![(Seq(3), Seq(8))])), Some((Seq::MAX, most))]
        {
            for seq in [0, 1, 77, (1 << 62)] {
                let cursor = Cursor { log: Uuid::from_u128(7), epoch: 3, seq: Seq(seq), live: live.clone() };
                let (offset, metadata) = cursor.to_offset();
                assert!(metadata.len() < 4096, "{}", metadata.len());
                assert_eq!(Kept::of_offset(offset, &metadata), Kept::Cursor(cursor));
            }
        }
    }

    #[test]
    fn what_others_wrote_is_no_cursor() {
        let metadata = "fieldpost 1 log=00000000-0000-0000-0000-000000000007 epoch=3";
        assert!(matches!(Kept::of_offset(5, metadata), Kept::Cursor(_)));
        for (offset, metadata) in [
            (0, metadata),
            (-1, metadata),
            (5, ""),
            (5, "fieldpost 2 log=x"),
            (5, "fieldpost 1 log=x epoch=3"),
            (5, &format!("{metadata} live=")),
            (5, &format!("{metadata} live=7 ahead=3")),
            (5, &format!("{metadata} live=7 ahead=3-4,x-9")),
        ] {
            assert!(matches!(Kept::of_offset(offset, metadata), Kept::Foreign(_)), "{offset} {metadata}");
        }
    }
}
