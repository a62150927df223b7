//! What the fault tests share.
//!
//! - [`round`]: seeds, numbers of rounds, and the line that each test prints.
//! - [`tally`]: what reached Kafka, held against what was acknowledged.
//! - [`disk`]: file systems of the test's own, to fill, cut off and copy.
//! - [`shim`]: calls that fail on demand.
//! - [`ledger`]: what the agent itself says that it lost.

pub(crate) mod disk;
pub(crate) mod ledger;
pub(crate) mod round;
pub(crate) mod shim;
pub(crate) mod tally;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::agent::Agent;
use crate::harness::flow::Producer;
use crate::harness::wait::{USUAL, eventually, scaled};

use tally::{Acked, up_to};

/// An address where a broker could be and none answers. The listener keeps others off the port.
pub(crate) struct Nowhere {
    _listener: TcpListener,
    address: String,
}

impl Nowhere {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        Self { _listener: listener, address }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

/// What the agent logs once all of it runs.
pub(crate) const READY: &str = "ready agent=";

/// Waits until all of the agent runs; its socket alone is there sooner.
#[track_caller]
pub(crate) fn wait_up(agent: &Agent) {
    agent.wait_log(READY, USUAL);
}

/// The folders of the generations that are in the buffer now, in order.
pub(crate) fn generations(data_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(data_dir.join("buffer")) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gen"))
        .collect();
    found.sort();
    found
}

/// Waits for the agent's buffer to hold a generation that is not among `known`.
#[track_caller]
pub(crate) fn wait_new_generation(agent: &Agent, known: &[PathBuf]) {
    eventually("a generation begins", USUAL * 2, || {
        generations(&agent.data_dir()).iter().any(|path| !known.contains(path)).then_some(())
    });
}

/// Copies a folder with everything below it.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder can be made");
    for entry in std::fs::read_dir(from).expect("the folder is there") {
        let entry = entry.expect("it can be listed");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it has a type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}

/// How many events of `producers` are acknowledged.
pub(crate) fn acked_by(producers: &[Producer]) -> u64 {
    producers.iter().map(Producer::acked).sum()
}

/// Which events of `producers` are acknowledged now.
pub(crate) fn acked_of(producers: &[Producer]) -> Acked {
    producers.iter().map(|producer| (producer.source().to_owned(), producer.acked_numbers())).collect()
}

/// Waits until `producers` have got `count` more acknowledgements.
#[track_caller]
pub(crate) fn wait_more(producers: &[Producer], count: u64) {
    let before = acked_by(producers);
    eventually("more is acknowledged", USUAL * 2, || (acked_by(producers) >= before + count).then_some(()));
}

/// Waits until `producers`, which go on sending, have got no acknowledgement for a while; how many they have then.
#[track_caller]
pub(crate) fn wait_stalled(producers: &[Producer]) -> u64 {
    let mut last = (0, Instant::now());
    eventually("acknowledgements stop", USUAL * 2, || {
        let now = acked_by(producers);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > scaled(Duration::from_secs(1))).then_some(now)
    })
}

/// Lets the producers end, with everything they sent acknowledged.
#[track_caller]
pub(crate) fn finish(producers: Vec<Producer>) -> Acked {
    let mut acked = Acked::new();
    for producer in producers {
        let source = producer.source().to_owned();
        acked.append(&mut up_to(&source, producer.finish(USUAL * 3)));
    }
    acked
}
