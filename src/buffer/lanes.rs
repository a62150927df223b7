//! What went out ahead of the cursor, in a file of its own: `LANES`, beside the generations.
//!
//! Two slots of a page each, written in turn and in place, so that a full disk has room for it; the newest whole one
//! counts. A slot, numbers little-endian: magic `fpL`, format version, counter (u64), length of the payload (u32), CRC-32
//! of all that and the payload, payload (postcard). Slots are where they are, and the first five mean the same, in every
//! version. The file is made with the first state that is to be stored, so a buffer with one lane has none.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::OpenError;
use crate::event::Seq;

/// Its name in the buffer's directory.
pub(super) const LANES_FILE: &str = "LANES";

/// The name under which it is made.
pub(super) const LANES_NEW: &str = "LANES.new";

/// Version of a slot; a higher one is refused, not touched.
const FORMAT: u8 = 1;

const MAGIC: [u8; 3] = *b"fpL";

/// One page, so that a torn write hits one slot. [`AHEAD_MAX`] ranges take less than a third of it.
const SLOT_BYTES: usize = 4096;

const HEADER_BYTES: usize = 20;

/// Most ranges in [`Lanes::ahead`]: each is one gap between what was delivered at once and what waits behind it, of
/// which an outage makes one or two.
pub const AHEAD_MAX: usize = 64;

/// What went out ahead of the cursor, and where the live lane is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lanes {
    /// Events that Kafka has confirmed: first and last of each range, ascending, disjoint, not touching, at most
    /// [`AHEAD_MAX`]. Those up to the cursor are left out sooner or later.
    pub ahead: Vec<(Seq, Seq)>,
    /// The live lane's next event to be confirmed. What lies between the cursor and this and is not in `ahead` is
    /// backlog; none if it is not behind the event after the cursor, and then there is one lane.
    pub live_from: Seq,
    /// The last event that may have gone out in the live lane, at least the one before `live_from`.
    pub claimed: Seq,
}

impl Lanes {
    /// Whether it keeps to what its fields promise.
    fn is_valid(&self) -> bool {
        let ascending = self.ahead.windows(2).all(|pair| match pair {
            [(_, last), (first, _)] => last.next() < *first,
            _ => true,
        });
        let whole = self.ahead.iter().all(|(first, last)| first <= last);
        ascending && whole && self.ahead.len() <= AHEAD_MAX && self.claimed.next() >= self.live_from
    }

    /// Takes out of `ahead` what is up to `cursor`.
    pub(super) fn forget(&mut self, cursor: Seq) {
        self.ahead.retain(|&(_, last)| last > cursor);
        if let Some((first, _)) = self.ahead.first_mut() {
            *first = cursor.next().max(*first);
        }
    }
}

/// What the file tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The newest whole slot.
    pub(super) lanes: Option<Lanes>,
    /// There is a file, and nothing in it is whole.
    pub(super) is_damaged: bool,
    counter: u64,
    /// Where the next one goes.
    slot: u64,
    is_made: bool,
}

/// Reads the file in `dir` and changes nothing.
///
/// # Errors
/// [`OpenError::Newer`] when a later version wrote it, [`OpenError::Io`] when it cannot be opened. A slot that the disk
/// cannot give is damaged.
pub(super) fn look(dir: &Path) -> Result<Found, OpenError> {
    let path = dir.join(LANES_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
        Err(e) => return Err(OpenError::io(&path, &e)),
    };
    let mut found = Found { is_made: true, is_damaged: true, ..Found::default() };
    for slot in 0..2 {
        let mut bytes = [0; SLOT_BYTES];
        if file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64).is_err() {
            continue;
        }
        match decode(&bytes) {
            Some((format, ..)) if format > FORMAT => {
                return Err(OpenError::Newer { dir: dir.to_owned(), format: format.into() });
            }
            Some((_, counter, Some(lanes))) if counter > found.counter => {
                found =
                    Found { lanes: Some(lanes), is_damaged: false, counter, slot: 1 - slot, is_made: true };
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The file of an open buffer.
#[derive(Debug)]
pub(super) struct LanesFile {
    dir: PathBuf,
    /// As of the last [`Self::set`].
    lanes: Option<Lanes>,
    counter: u64,
    /// The one that does not hold what counts.
    slot: u64,
    is_made: bool,
    is_damaged: bool,
    /// What a write that failed left in the file may be newer than `lanes`.
    is_doubtful: bool,
    /// Open once it was written to, unless the disk refused.
    file: Option<File>,
}

impl LanesFile {
    /// Reads the file, if there is one. When nothing in it is whole an ERROR says so.
    ///
    /// # Errors
    /// As [`look`].
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let Found { lanes, is_damaged, counter, slot, is_made } = look(dir)?;
        if is_damaged {
            let path = dir.join(LANES_FILE);
            tracing::error!(path = %path.display(), "LANES is damaged: what went to Kafka ahead of the cursor is not known any more, and goes out again");
        }
        Ok(Self {
            dir: dir.to_owned(),
            lanes,
            counter,
            slot,
            is_made,
            is_damaged,
            is_doubtful: false,
            file: None,
        })
    }

    /// Whether there was something at the opening that cannot be read.
    pub(super) fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// What was stored last, less what is up to the cursor.
    pub(super) fn lanes(&self) -> Option<&Lanes> {
        self.lanes.as_ref()
    }

    /// Leaves out what is up to `cursor`; in the file it stays until the next [`Self::set`].
    pub(super) fn forget(&mut self, cursor: Seq) {
        if let Some(lanes) = &mut self.lanes {
            lanes.forget(cursor);
        }
    }

    /// Stores `lanes`, less what is up to `cursor`, and returns when that is durable.
    ///
    /// # Errors
    /// What was there before counts, and is in the file or `lanes` is. [`io::ErrorKind::InvalidInput`]: they do not keep
    /// to what [`Lanes`] promises.
    pub(super) fn set(&mut self, mut lanes: Lanes, cursor: Seq) -> io::Result<()> {
        lanes.forget(cursor);
        if !lanes.is_valid() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the ranges are not in order"));
        }
        if self.lanes.as_ref() == Some(&lanes) && !self.is_doubtful {
            return Ok(());
        }
        self.is_doubtful = true;
        let bytes = encode(self.counter + 1, &lanes)?;
        if self.is_made {
            let file = match self.file.take() {
                Some(file) => file,
                None => OpenOptions::new().write(true).open(self.dir.join(LANES_FILE))?,
            };
            file.write_all_at(&bytes, self.slot * SLOT_BYTES as u64)?;
            file.sync_data()?;
            self.file = Some(file);
        } else {
            self.make(&bytes)?;
        }
        // Order: only now may the other slot be written over.
        (self.counter, self.slot, self.lanes) = (self.counter + 1, 1 - self.slot, Some(lanes));
        self.is_doubtful = false;
        Ok(())
    }

    /// Makes the file with `slot` as its first one and takes the space of both.
    fn make(&mut self, slot: &[u8; SLOT_BYTES]) -> io::Result<()> {
        let new = self.dir.join(LANES_NEW);
        let file = File::create(&new)?;
        file.write_all_at(slot, 0)?;
        file.write_all_at(&[0; SLOT_BYTES], SLOT_BYTES as u64)?;
        file.sync_all()?;
        // Order: a name only for a whole file, and the folder's sync before anybody relies on it.
        fs::rename(&new, self.dir.join(LANES_FILE))?;
        File::open(&self.dir)?.sync_all()?;
        (self.file, self.slot, self.is_made) = (Some(file), 0, true);
        Ok(())
    }
}

fn encode(counter: u64, lanes: &Lanes) -> io::Result<[u8; SLOT_BYTES]> {
    let mut slot = [0; SLOT_BYTES];
    let (header, space) = slot.split_at_mut(HEADER_BYTES);
    let length = postcard::to_slice(lanes, space).map_err(io::Error::other)?.len();
    let length = u32::try_from(length).map_err(io::Error::other)?;
    let fields = [&MAGIC[..], &[FORMAT], &counter.to_le_bytes(), &length.to_le_bytes()].concat();
    let crc = checksum(&fields, space.get(..length as usize).unwrap_or_default());
    header.copy_from_slice(&[&fields[..], &crc.to_le_bytes()].concat());
    Ok(slot)
}

/// Format, counter and content of a slot; `None` if it is not whole or was never written. The content is `None` in a format
/// that is not known.
fn decode(slot: &[u8; SLOT_BYTES]) -> Option<(u8, u64, Option<Lanes>)> {
    let (fields, rest) = slot.split_first_chunk::<{ HEADER_BYTES - 4 }>()?;
    let (crc, payload) = rest.split_first_chunk::<4>()?;
    let (magic, numbers) = fields.split_first_chunk::<3>()?;
    let (&format, numbers) = numbers.split_first()?;
    let (counter, length) = numbers.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let payload = payload.get(..usize::try_from(length).ok()?)?;
    if *magic != MAGIC || checksum(fields, payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    let lanes = postcard::from_bytes::<Lanes>(payload).ok().filter(|_| format == FORMAT);
    Some((format, u64::from_le_bytes(*counter), lanes.filter(Lanes::is_valid)))
}

fn checksum(fields: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(fields);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn lanes(ahead: &[(u64, u64)], live_from: u64) -> Lanes {
        let ahead = ahead.iter().map(|&(a, b)| (Seq(a), Seq(b))).collect();
        Lanes { ahead, live_from: Seq(live_from), claimed: Seq(live_from + 9) }
    }

    fn stored(dir: &Path) -> Option<Lanes> {
        LanesFile::open(dir).unwrap().lanes().cloned()
    }

    /// Changes the bytes of a slot.
    fn spoil(dir: &Path, slot: usize, spoil: impl FnOnce(&mut [u8])) {
        let path = dir.join(LANES_FILE);
        let mut bytes = fs::read(&path).unwrap();
        spoil(&mut bytes[slot * SLOT_BYTES..(slot + 1) * SLOT_BYTES]);
        fs::write(path, bytes).unwrap();
    }

    /// As a later version would have written it.
    fn raise_format(slot: &mut [u8]) {
        slot[3] = FORMAT + 1;
        let length = usize::from(slot[12]) + usize::from(slot[13]) * 256;
        let crc = checksum(&slot[..16], &slot[20..20 + length]);
        slot[16..20].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn nothing_is_made_before_there_is_something_to_store() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path()).unwrap(), Found::default());
        let mut file = LanesFile::open(dir.path()).unwrap();
        file.forget(Seq(7));
        assert_eq!((file.lanes(), fs::read_dir(dir.path()).unwrap().count()), (None, 0));
    }

    #[test]
    fn what_was_set_last_is_there_and_takes_no_new_space() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LanesFile::open(dir.path()).unwrap();
        let mut space = None;
        for n in 1..100_u64 {
            let far = u64::MAX / 4;
            let ranges: Vec<_> = (0..n % 65).map(|r| (far + r * 10, far + r * 10 + n % 9)).collect();
            let wanted = lanes(&ranges, far + n * 1000);
            file.set(wanted.clone(), Seq(0)).unwrap();
            if n % 7 == 0 {
                file = LanesFile::open(dir.path()).unwrap();
            }
            assert_eq!((file.lanes(), stored(dir.path())), (Some(&wanted), Some(wanted.clone())));
            let meta = fs::metadata(dir.path().join(LANES_FILE)).unwrap();
            let now = (meta.len(), meta.blocks(), meta.ino());
            assert_eq!(*space.get_or_insert(now), now, "in place");
        }
    }

    #[test]
    fn a_slot_that_is_not_whole_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = fastrand::Rng::with_seed(4);
        let (mut file, mut before) = (LanesFile::open(dir.path()).unwrap(), lanes(&[(3, 4)], 9));
        file.set(before.clone(), Seq(0)).unwrap();
        for n in 10..200 {
            let slot = usize::try_from(file.slot).unwrap();
            let next = lanes(&[(n, n + 3), (n + 5, n + 6)], n * 10);
            file.set(next.clone(), Seq(0)).unwrap();
            if rng.bool() {
                before = next;
                continue;
            }
            spoil(dir.path(), slot, |slot| match rng.u8(0..3) {
                // Of the new one there is only the beginning.
                0 => slot[rng.usize(4..24)..].fill(0),
                1 => slot[rng.usize(0..24)] ^= 1 << rng.u8(0..8),
                _ => slot.fill(0xff),
            });
            file = LanesFile::open(dir.path()).unwrap();
            assert_eq!(file.lanes(), Some(&before), "{n}");
        }
    }

    #[test]
    fn two_damaged_slots_are_nothing_and_are_written_anew() {
        for bytes in [&[][..], &[0; 9], &[0; 8192], &[0xff; 8192]] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(LANES_FILE), bytes).unwrap();
            assert!(look(dir.path()).unwrap().is_damaged);
            let mut file = LanesFile::open(dir.path()).unwrap();
            assert_eq!(file.lanes(), None);
            for n in 1..4 {
                file.set(lanes(&[(n, 8)], 20), Seq(0)).unwrap();
                assert_eq!(stored(dir.path()), Some(lanes(&[(n, 8)], 20)));
            }
        }
    }

    #[test]
    fn a_later_format_is_refused_and_not_touched() {
        for newer in 0..2 {
            let dir = tempfile::tempdir().unwrap();
            let mut file = LanesFile::open(dir.path()).unwrap();
            file.set(lanes(&[], 1), Seq(0)).unwrap();
            file.set(lanes(&[], 2), Seq(0)).unwrap();
            spoil(dir.path(), newer, raise_format);
            let before = fs::read(dir.path().join(LANES_FILE)).unwrap();
            let error = LanesFile::open(dir.path()).unwrap_err();
            assert!(matches!(error, OpenError::Newer { format: 2, .. }), "{error}");
            assert_eq!(fs::read(dir.path().join(LANES_FILE)).unwrap(), before);
        }
    }

    #[test]
    fn what_is_up_to_the_cursor_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LanesFile::open(dir.path()).unwrap();
        file.set(lanes(&[(2, 3), (5, 9), (20, 29)], 40), Seq(3)).unwrap();
        assert_eq!(file.lanes(), Some(&lanes(&[(5, 9), (20, 29)], 40)));
        file.forget(Seq(24));
        assert_eq!(file.lanes(), Some(&lanes(&[(25, 29)], 40)));
        file.forget(Seq(29));
        assert_eq!(file.lanes(), Some(&lanes(&[], 40)));
        assert_eq!(stored(dir.path()), Some(lanes(&[(5, 9), (20, 29)], 40)), "written with the next one");
    }

    #[test]
    fn what_is_not_in_order_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LanesFile::open(dir.path()).unwrap();
        let many: Vec<_> = (1..=AHEAD_MAX as u64 + 1).map(|n| (n * 10, n * 10)).collect();
        for ahead in [&[(5, 4)][..], &[(1, 2), (3, 4)], &[(5, 6), (1, 2)], &many] {
            let refused = file.set(lanes(ahead, 2000), Seq(0)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{ahead:?}");
        }
        file.set(lanes(&many[1..], 2000), Seq(0)).unwrap();
        let unclaimed = Lanes { claimed: Seq(5), ..lanes(&[], 7) };
        assert!(file.set(unclaimed, Seq(0)).is_err());
        assert_eq!(stored(dir.path()), Some(lanes(&many[1..], 2000)));
    }

    #[test]
    fn a_write_that_failed_does_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LanesFile::open(dir.path()).unwrap();
        let [old, failed] = [lanes(&[(2, 3)], 9), lanes(&[(2, 5)], 9)];
        file.set(old.clone(), Seq(0)).unwrap();
        file.file = Some(File::open("/dev/null").unwrap());
        assert!(file.set(failed.clone(), Seq(0)).is_err());
        assert_eq!(file.lanes(), Some(&old));
        // It reached the disk all the same.
        let slot = usize::try_from(file.slot).unwrap();
        let bytes = encode(file.counter + 1, &failed).unwrap();
        spoil(dir.path(), slot, |slot| slot.copy_from_slice(&bytes));
        file.set(old.clone(), Seq(0)).unwrap();
        assert_eq!(stored(dir.path()), Some(old));
    }
}
