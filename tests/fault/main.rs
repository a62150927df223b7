//! The fault suite: what is acknowledged survives crashes, power cuts, damaged, full and failing disks, and clocks that
//! jump. `make fault` runs it; `docs/faults.md` has what it found.
//!
//! The agent is a process of its own here, as everywhere in the integration tests, and what its producers saw
//! acknowledged is recorded on this side. Each test prints its seed and one line with its result.
//!
//! - `FAULT_SEED=n` repeats a run, as far as the machine's timing allows.
//! - `FAULT_ROUNDS=n` multiplies the rounds.
//!
//! It needs root and loop devices, because only a file system of the test's own can be filled, cut off and damaged. Where
//! they are missing it fails and says so.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot go on fails by panicking, with the place and the reason"
)]

#[path = "../it/harness/mod.rs"]
mod harness;

mod support;

mod clock;
mod damage;
mod error;
mod full;
mod kill;
mod power;
mod restore;
mod soak;
mod twins;
