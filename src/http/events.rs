//! Events for readers: positions, what they look like, and where they are read from: the memory of the last ones, and behind
//! it the buffer's directory, looked at from outside ([`View`]), which the buffer's writer does not notice.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use crate::buffer::Recent;
use crate::buffer::recent::{Behind, Chunk};
use crate::buffer::view::{Place, View, ViewError};
use crate::event::{Event, Seq};
use crate::sink::record;

/// Where an event stands: `epoch-seq`, as text. The order is that of `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) epoch: u32,
    pub(super) seq: Seq,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

impl FromStr for Position {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a position is `epoch-seq`, for example 3-1234, as events and streams have it";
        let number =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok());
        let (epoch, seq) = text.split_once('-').ok_or(WRONG)?;
        let (epoch, seq) = (number(epoch).flatten().ok_or(WRONG)?, number(seq).flatten().ok_or(WRONG)?);
        let epoch = u32::try_from(epoch).map_err(|_| WRONG)?;
        if seq > Seq::MAX.0 { Err(WRONG) } else { Ok(Self { epoch, seq: Seq(seq) }) }
    }
}

/// Which events a reader wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) source_id: Option<String>,
    pub(super) kind: Option<String>,
}

impl Filter {
    pub(super) fn wants(&self, event: &Event<'_>) -> bool {
        self.source_id.as_ref().is_none_or(|source_id| source_id == event.source_id)
            && self.kind.as_ref().is_none_or(|kind| kind == event.kind)
    }

    pub(super) fn wants_all(&self) -> bool {
        *self == Self::default()
    }
}

/// An event as a frame of a stream: `id: 3-17`, `data: {…}` and an empty line.
const FRAME_END: &[u8] = b"\n\n";

/// The frame of an event, made once for all readers. Its JSON stands in one line: a line end between two tokens of a payload
/// becomes a space, and there is none within a token.
fn frame(position: Position, event: &Event<'_>) -> Bytes {
    let mut envelope = Vec::new();
    record::write_envelope(event, &mut envelope);
    let rest = envelope.get(1..).unwrap_or_default();
    let mut out = format!("id: {position}\ndata: {{\"position\":\"{position}\",").into_bytes();
    out.reserve_exact(rest.len() + FRAME_END.len());
    out.extend(rest.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
    out.extend_from_slice(FRAME_END);
    Bytes::from(out)
}

/// The JSON in a frame.
pub(super) fn json_of(frame: &Bytes) -> Bytes {
    const DATA: &[u8] = b"\ndata: ";
    let start = frame.windows(DATA.len()).position(|part| part == DATA).map_or(0, |at| at + DATA.len());
    frame.slice(start..frame.len().saturating_sub(FRAME_END.len()).max(start))
}

/// The frames of the events in memory behind `after` in `chunk` that `filter` wants, with their positions.
pub(super) fn frames<'c>(
    recent: &Recent,
    epoch: u32,
    chunk: &'c Chunk,
    after: Seq,
    filter: &'c Filter,
) -> impl Iterator<Item = (Seq, Bytes)> {
    let render =
        |chunk: &Chunk| chunk.events().map(|(seq, event)| frame(Position { epoch, seq }, &event)).collect();
    let rendered = recent.rendered(chunk, render);
    let at = usize::try_from(after.next().0.saturating_sub(chunk.first().0)).unwrap_or(usize::MAX);
    let texts = rendered.iter().cloned().enumerate().skip(at);
    let wanted: Option<Vec<bool>> =
        (!filter.wants_all()).then(|| chunk.events().map(|(_, event)| filter.wants(&event)).collect());
    texts
        .filter(move |(index, _)| {
            wanted.as_ref().is_none_or(|wanted| wanted.get(*index).copied().unwrap_or(false))
        })
        .map(|(index, text)| (chunk.first().plus(index as u64), text))
}

/// What bounds an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageLimits {
    pub(super) events: usize,
    /// Reached by the last event, which is in it all the same.
    pub(super) bytes: usize,
}

/// Events in order.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Their frames.
    pub(super) frames: Vec<Bytes>,
    pub(super) bytes: usize,
    /// Everything up to here was looked at.
    pub(super) end: Seq,
    /// Between these two, first and last, not all is there any more.
    pub(super) gap: Option<(Seq, Seq)>,
}

impl Page {
    pub(super) fn at(after: Seq) -> Self {
        Self { end: after, ..Self::default() }
    }

    pub(super) fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push(frame);
    }

    pub(super) fn is_full(&self, limits: PageLimits) -> bool {
        self.frames.len() >= limits.events || self.bytes >= limits.bytes
    }

    pub(super) fn miss(&mut self, first: Seq, last: Seq) {
        if first <= last {
            let (from, to) = self.gap.unwrap_or((first, last));
            self.gap = Some((from.min(first), to.max(last)));
        }
    }

    /// Takes in what is in memory behind [`Page::end`]; answers up to where it has left memory already, if it has.
    pub(super) fn take_recent(
        &mut self,
        recent: &Recent,
        epoch: u32,
        filter: &Filter,
        limits: PageLimits,
    ) -> Option<Seq> {
        while !self.is_full(limits) {
            match recent.behind(self.end) {
                Behind::Nothing => break,
                Behind::Gone(to) => return Some(to),
                Behind::Events(chunk) => self.take_chunk(recent, epoch, &chunk, filter, limits),
            }
        }
        None
    }

    /// Takes in what `chunk` has behind [`Page::end`], up to the event that reaches a limit.
    pub(super) fn take_chunk(
        &mut self,
        recent: &Recent,
        epoch: u32,
        chunk: &Chunk,
        filter: &Filter,
        limits: PageLimits,
    ) {
        let mut end = chunk.last();
        for (seq, text) in frames(recent, epoch, chunk, self.end, filter) {
            self.push(text);
            if self.is_full(limits) {
                end = seq;
                break;
            }
        }
        self.end = end;
    }
}

/// Takes in what the buffer's directory has behind the page's end, up to `to`. Blocks.
///
/// # Errors
/// [`ViewError`]: the directory cannot be read now; the page has what was read before.
pub(super) fn take_stored(
    page: &mut Page,
    place: &Place,
    to: Seq,
    filter: &Filter,
    limits: PageLimits,
) -> Result<(), ViewError> {
    let view = View::of(place)?;
    let mut walk = view.walk(page.end.next().max(view.cursor.next()));
    while let Some(run) = walk.next()? {
        let mut is_beyond = false;
        for (seq, origin, event) in run.events() {
            is_beyond = seq > to;
            if is_beyond {
                break;
            }
            page.miss(page.end.next(), seq.before());
            page.end = seq;
            if filter.wants(&event) {
                page.push(frame(Position { epoch: origin.epoch, seq }, &event));
            }
            if page.is_full(limits) {
                return Ok(());
            }
        }
        if is_beyond {
            break;
        }
    }
    page.miss(page.end.next(), to);
    page.end = page.end.max(to);
    Ok(())
}
