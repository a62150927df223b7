//! Seeds, numbers of rounds, and the line that each test prints.

use super::tally::Verdict;

/// The generator of a test, seeded with `FAULT_SEED`, else anew. The seed is printed, so that a failure tells it.
pub(crate) fn random(test: &str) -> fastrand::Rng {
    let seed = match std::env::var("FAULT_SEED") {
        Ok(text) => text.parse().expect("FAULT_SEED is a whole number"),
        Err(_) => fastrand::u64(..1 << 53),
    };
    eprintln!("{test}: FAULT_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// `FAULT_ROUNDS`, 1 when it is not set.
pub(crate) fn factor() -> usize {
    match std::env::var("FAULT_ROUNDS") {
        Ok(text) => text
            .parse()
            .ok()
            .filter(|factor| (1..=10_000).contains(factor))
            .unwrap_or_else(|| panic!("FAULT_ROUNDS is a whole number from 1 to 10000, not {text:?}")),
        Err(_) => 1,
    }
}

/// `count` times `FAULT_ROUNDS`.
pub(crate) fn rounds(count: usize) -> usize {
    count * factor()
}

/// One line for people and for `docs/faults.md`.
pub(crate) fn report(test: &str, rounds: usize, verdict: &Verdict, more: &str) {
    eprintln!(
        "{test}: {rounds} rounds, {} acknowledged, {} lost, {} duplicates{}{more}",
        verdict.acknowledged,
        verdict.lost.len(),
        verdict.duplicates,
        if more.is_empty() { "" } else { "; " }
    );
}
