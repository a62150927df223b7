//! What the agent itself says that it lost: `LEDGER` in its data folder.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

/// One reason's entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) events: u64,
    /// Sequence numbers.
    pub(crate) numbers: BTreeSet<u64>,
}

/// The entry of `reason`; empty when nothing was lost for it.
#[track_caller]
pub(crate) fn read(data_dir: &Path, reason: &str) -> Entry {
    let Ok(bytes) = std::fs::read(data_dir.join("LEDGER")) else { return Entry::default() };
    let ledger: Value = serde_json::from_slice(&bytes).expect("the ledger is JSON");
    let entry = &ledger["entries"][reason];
    if entry.is_null() {
        return Entry::default();
    }
    let ranges = entry["ranges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let numbers = ranges.iter().flat_map(|range| {
        let bound = |at: usize| range[at].as_u64().expect("a range is two numbers");
        bound(0)..=bound(1)
    });
    Entry { events: entry["events"].as_u64().expect("a count"), numbers: numbers.collect() }
}
