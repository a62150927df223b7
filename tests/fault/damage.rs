//! A stopped buffer is damaged, as flash does it: files cut short, zeroed, garbled, gone, single bytes flipped.
//!
//! The buffer is built once, with several generations, small events and chunked ones, everything acknowledged and
//! nothing delivered, and copied for each case. What must be left of it is not asked of the agent: every file is
//! searched for whole blocks (magic and checksum; `src/buffer/block.rs` has the layout), and each event of a whole block
//! has to arrive. What is missing then has to be in the ledger, number by number, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::harness::agent::Agent;
use crate::harness::flow::{Pace, Producer};
use crate::harness::kafka::create_topic;
use crate::harness::services::Shared;
use crate::harness::unique;
use crate::harness::wait::{USUAL, eventually};
use crate::support::ledger;
use crate::support::round::{random, report, rounds};
use crate::support::tally::{Acked, Tally, Verdict};
use crate::support::{Nowhere, READY, copy_tree, finish, generations, wait_up};

/// Starts of the agent while the buffer is built: each begins a generation.
const STARTS: usize = 5;

/// Events of each start.
const SMALL: Pace = Pace { rate: None, window: 500, padding: 300, is_mixed: false, count: 120 };
const CHUNKED: Pace = Pace { rate: None, window: 10, padding: 20_000, is_mixed: false, count: 3 };

const MAGIC: &[u8] = b"fpB";
const HEADER_BYTES: usize = 56;

/// Plain and compressed; gaps and cursors come behind.
const LAST_KIND_OF_EVENTS: u64 = 1;

/// A buffer that was built once.
struct Template {
    /// Holds the data folder.
    agent: Agent,
    acked: Acked,
    /// By sequence number.
    events: BTreeMap<u64, (String, u64)>,
}

impl Template {
    fn get() -> &'static Self {
        static TEMPLATE: OnceLock<Template> = OnceLock::new();
        TEMPLATE.get_or_init(Self::build)
    }

    fn build() -> Self {
        let nowhere = Nowhere::new();
        let mut agent = Agent::prepare(|config| {
            config.kafka(nowhere.address(), "none").set("agent.stop_grace", "0s");
        });
        let mut acked = Acked::new();
        for _ in 0..STARTS {
            agent.begin();
            wait_up(&agent);
            let paces = [SMALL, CHUNKED, SMALL];
            let producers = paces.map(|pace| Producer::start(&agent.socket(), &unique("damage"), pace));
            acked.append(&mut finish(producers.into()));
            assert_eq!(agent.stop().code(), Some(0));
        }
        let mut template = Self { agent, acked, events: BTreeMap::new() };
        // Undamaged, everything arrives: this also tells which event has which number.
        let case = Case::start(&template, |_| {});
        let verdict = case.tally.verdict(&template.acked);
        verdict.assert_sound();
        for source in template.acked.keys() {
            for (n, (_, seq)) in case.tally.positions_of(source) {
                template.events.insert(seq, (source.clone(), n));
            }
        }
        assert_eq!(template.events.len() as u64, verdict.acknowledged);
        let scanned = whole_numbers(&template.data_dir());
        let all: BTreeSet<u64> = template.events.keys().copied().collect();
        assert_eq!(scanned, all, "the search finds every block of an undamaged buffer");
        template
    }

    fn data_dir(&self) -> PathBuf {
        self.agent.data_dir()
    }
}

/// A copy of the template, damaged, with an agent on it.
struct Case {
    agent: Agent,
    tally: Tally,
}

impl Case {
    #[track_caller]
    fn start(template: &Template, damage: impl FnOnce(&Path)) -> Self {
        let topic = create_topic(&Shared::get().kafka, 1);
        let mut agent = Agent::prepare(|config| {
            config.shared_kafka(&topic);
        });
        let data_dir = agent.data_dir();
        copy_tree(&template.data_dir(), &data_dir);
        damage(&data_dir);
        agent.begin();
        let tally = Tally::start(&Shared::get().kafka, &topic);
        Self { agent, tally }
    }
}

/// What is done to a copy of the data folder.
type Damage = Box<dyn Fn(&Path) + Send + Sync>;

/// Cases at once: nearly all of a case is waiting, for Kafka to be connected and for the stop.
const LANES: usize = 4;

/// Runs all cases, and answers the sum of what came of them. Those that went wrong are told together.
#[track_caller]
fn run_all(test: &str, cases: &[(String, Damage)]) -> Verdict {
    let (next, sum, failures) = (AtomicUsize::new(0), Mutex::new(Verdict::default()), Mutex::new(Vec::new()));
    let events = Template::get().events.len() as u64;
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some((name, damage)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match judge(name, damage) {
                        Ok(missing) => sum.lock().unwrap().lost.extend(missing),
                        Err(failure) => {
                            eprintln!("{name}: {failure}");
                            failures.lock().unwrap().push(format!("{name}: {failure}"));
                        }
                    }
                }
            });
        }
    });
    let (mut sum, failures) = (sum.into_inner().unwrap(), failures.into_inner().unwrap());
    sum.acknowledged = events * cases.len() as u64;
    report(test, cases.len(), &sum, "each lost one is in the ledger");
    let of = cases.len();
    assert!(failures.is_empty(), "{} of {of} went wrong\n{}", failures.len(), failures.join("\n"));
    sum
}

fn check(is_so: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(otherwise()) }
}

/// Runs one case to its end, and answers the events that the damage took.
#[track_caller]
fn judge(name: &str, damage: &Damage) -> Result<Vec<(String, u64)>, String> {
    let template = Template::get();
    let mut whole = BTreeSet::new();
    let mut case = Case::start(template, |data_dir| {
        damage(data_dir);
        whole = whole_numbers(data_dir);
    });
    eventually(&format!("the agent runs or ends; {name}"), USUAL, || {
        (case.agent.log_contains(READY) || case.agent.has_ended()).then_some(())
    });
    check(case.agent.log_contains(READY), || format!("does not start: {:?}", case.agent.log()))?;
    let (served, gone): (Vec<_>, Vec<_>) = template.events.iter().partition(|(seq, _)| whole.contains(seq));
    let mut expected = Acked::new();
    for (_, (source, n)) in served {
        expected.entry(source.clone()).or_default().insert(*n);
    }
    let verdict = case.tally.verdict_within(&expected, USUAL);
    check(verdict.lost.is_empty(), || {
        format!(
            "{} events of whole blocks are not served, from {:?}",
            verdict.lost.len(),
            verdict.lost.first()
        )
    })?;
    // New events are taken behind it.
    let pace = Pace { count: 10, ..Pace::default() };
    expected.append(&mut finish(vec![Producer::start(&case.agent.socket(), &unique("new"), pace)]));
    let verdict = case.tally.verdict(&expected);
    check(verdict.lost.is_empty(), || "new events do not arrive".into())?;
    check(verdict.wrong.is_empty(), || verdict.wrong.join("; "))?;
    check(case.agent.stop().success(), || "does not stop in order".into())?;
    let missing: BTreeSet<u64> = gone.iter().map(|(seq, _)| **seq).collect();
    let ledger = ledger::read(&case.agent.data_dir(), "corrupt");
    check(ledger.events == missing.len() as u64 && ledger.numbers == missing, || {
        format!(
            "missing {}, in the ledger {} events, {}",
            show(&missing),
            ledger.events,
            show(&ledger.numbers)
        )
    })?;
    if !missing.is_empty() {
        // It is counted once.
        case.agent.begin();
        wait_up(&case.agent);
        case.agent.kill9();
        let later = ledger::read(&case.agent.data_dir(), "corrupt");
        check(later == ledger, || format!("the next start counts {} events of it", later.events))?;
    }
    Ok(gone.into_iter().map(|(_, event)| event.clone()).collect())
}

fn show(numbers: &BTreeSet<u64>) -> String {
    format!("{} numbers from {:?} to {:?}", numbers.len(), numbers.first(), numbers.last())
}

/// The sequence numbers of all events whose blocks are whole somewhere below `dir`.
fn whole_numbers(dir: &Path) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    let mut chunks: BTreeMap<(u64, u16), BTreeSet<u16>> = BTreeMap::new();
    for file in files_below(dir) {
        let bytes = fs::read(file).unwrap();
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(MAGIC.len()).position(|window| window == MAGIC) {
            let start = at + found;
            at = start + 1;
            let Some(header) = bytes.get(start..start + HEADER_BYTES) else { continue };
            let number = |from: usize, count: usize| {
                header[from..from + count].iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
            };
            let length = usize::try_from(number(8, 4)).unwrap();
            let Some(checked) = bytes.get(start + 8..start + 12 + length) else { continue };
            let mut sum = crc32fast::Hasher::new();
            sum.update(&header[3..4]);
            sum.update(checked);
            if u64::from(sum.finalize()) != number(4, 4) || number(34, 1) > LAST_KIND_OF_EVENTS {
                continue;
            }
            let (first, count) = (number(12, 8), number(28, 2));
            let (chunk, of) = (u16::try_from(number(30, 2)).unwrap(), u16::try_from(number(32, 2)).unwrap());
            if of == 1 {
                numbers.extend(first..first + count);
            } else {
                chunks.entry((first, of)).or_default().insert(chunk);
            }
        }
    }
    let is_whole = |((_, of), found): &(&(u64, u16), &BTreeSet<u16>)| found.len() == usize::from(*of);
    numbers.extend(chunks.iter().filter(is_whole).map(|((first, _), _)| *first));
    numbers
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.append(&mut files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn overwrite(file: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

fn cut_to(file: &Path, length: u64) {
    OpenOptions::new().write(true).open(file).unwrap().set_len(length).unwrap();
}

/// Where the last block of a generation's file ends: behind it there is nothing to damage.
fn used_bytes(db: &Path) -> u64 {
    let bytes = fs::read(db).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

#[test]
fn generations_cut_short_zeroed_garbled_or_gone() {
    let test = "damaged_generations";
    let mut random = random(test);
    let count = generations(&Template::get().data_dir()).len();
    let mut cases: Vec<(String, Damage)> = Vec::new();
    for _ in 0..rounds(1) {
        for which in BTreeSet::from([0, count / 2, count - 1]) {
            for kind in 0..9 {
                let seed = random.u64(..);
                let damage = move |data_dir: &Path| {
                    damage_generation(
                        &generations(data_dir)[which],
                        kind,
                        &mut fastrand::Rng::with_seed(seed),
                    );
                };
                cases.push((
                    format!("generation {which} of {count}, kind {kind}, seed {seed}"),
                    Box::new(damage),
                ));
            }
        }
    }
    assert!(!run_all(test, &cases).lost.is_empty(), "nothing was damaged");
}

fn damage_generation(generation: &Path, kind: usize, random: &mut fastrand::Rng) {
    let db = generation.join("db");
    let used = used_bytes(&db);
    let tail = random.u64(1..=used / 2);
    let mut garbage = vec![0; usize::try_from(tail).unwrap()];
    match kind {
        0 => cut_to(&db, 0),
        1 => cut_to(&db, used - tail),
        2 => cut_to(&db, used - 1),
        3 => overwrite(&db, used - tail, &garbage),
        4 => {
            random.fill(&mut garbage);
            overwrite(&db, used - tail, &garbage);
        }
        5 => {
            // The beginning, where a database has what it starts from.
            garbage.truncate(4096);
            random.fill(&mut garbage);
            overwrite(&db, 0, &garbage);
        }
        6 => fs::remove_file(&db).unwrap(),
        7 => {
            let others: Vec<PathBuf> =
                files_below(generation).into_iter().filter(|file| *file != db).collect();
            fs::remove_file(random.choice(&others).expect("a database has more files than one")).unwrap();
        }
        _ => fs::remove_dir_all(generation).unwrap(),
    }
}

#[test]
fn files_of_the_buffer_that_are_gone() {
    let test = "missing_files";
    let template = Template::get().data_dir();
    let is_beside = |file: &PathBuf| file.parent().is_none_or(|folder| folder.extension().is_none());
    let mut cases: Vec<(String, Damage)> = Vec::new();
    for file in files_below(&template).into_iter().filter(is_beside) {
        let name = file.strip_prefix(&template).unwrap().to_owned();
        let text = format!("without {}", name.display());
        cases.push((text, Box::new(move |data_dir| fs::remove_file(data_dir.join(&name)).unwrap())));
    }
    let sum = run_all(test, &cases);
    assert!(sum.lost.is_empty(), "a file beside the generations holds no event: {:?}", sum.lost);
}

/// One byte anywhere. Half of the places are even over the files, so that the small ones have their turn; the other
/// half even over the bytes in use.
#[test]
fn one_flipped_byte_at_any_place() {
    let test = "flipped_bytes";
    let (mut random, places) = (random(test), rounds(200));
    let template = Template::get().data_dir();
    let files: Vec<(PathBuf, u64)> = files_below(&template)
        .into_iter()
        .map(|file| (file.strip_prefix(&template).unwrap().to_owned(), used_bytes(&file)))
        .filter(|(_, used)| *used > 0)
        .collect();
    let all: u64 = files.iter().map(|(_, used)| used).sum();
    let mut cases: Vec<(String, Damage)> = Vec::new();
    for place in 0..places {
        let (file, at) = if place % 2 == 0 {
            let (file, used) = random.choice(&files).expect("there are files");
            (file.clone(), random.u64(..used))
        } else {
            at_byte(&files, random.u64(..all))
        };
        let flip = random.u8(1..);
        let name = format!("{} at {at}, flipped by {flip:#04x}", file.display());
        let damage = move |data_dir: &Path| {
            let file = data_dir.join(&file);
            let byte = fs::read(&file).unwrap()[usize::try_from(at).unwrap()];
            overwrite(&file, at, &[byte ^ flip]);
        };
        cases.push((name, Box::new(damage)));
    }
    run_all(test, &cases);
}

/// The file and the place in it of byte `at` of all files in a row.
fn at_byte(files: &[(PathBuf, u64)], mut at: u64) -> (PathBuf, u64) {
    for (file, used) in files {
        if at < *used {
            return (file.clone(), at);
        }
        at -= used;
    }
    panic!("byte {at} behind the last file");
}
