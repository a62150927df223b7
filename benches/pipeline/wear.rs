//! What `buffer.commit_interval` does to flash and to the wait for an acknowledgement: a steady trickle of single events,
//! each acknowledged, on a file system of its own (ext4 on a loop device), whose device counters are read. Needs root.

use std::io::{BufRead, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::process::Agent;
use crate::report::{Arguments, Row, Target, median};
use crate::socket::{payload, source_id};

/// Events a second.
const RATE: u32 = 50;

/// ext4 on a loop device, unmounted when it goes.
struct Disk {
    _home: tempfile::TempDir,
    place: PathBuf,
    device: String,
}

impl Disk {
    fn new() -> Self {
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (image, place) = (home.path().join("image"), home.path().join("mnt"));
        std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        std::fs::create_dir(&place).unwrap();
        command("mkfs.ext4", &["-q", "-F", path(&image)]);
        let device = command("losetup", &["--find", "--show", path(&image)]).trim().to_owned();
        command("mount", &[&device, path(&place)]);
        Self { _home: home, place, device }
    }

    /// Bytes that the device was asked to write.
    fn written(&self) -> u64 {
        let name = self.device.trim_start_matches("/dev/");
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        stat.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * 512
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        command("umount", &[path(&self.place)]);
        command("losetup", &["--detach", &self.device]);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn run(arguments: &Arguments) -> Vec<Row> {
    ["0s", "100ms", "1s"].into_iter().flat_map(|interval| measure(arguments, interval)).collect()
}

fn measure(arguments: &Arguments, interval: &str) -> Vec<Row> {
    let disk = Disk::new();
    let toml = format!(
        "[kafka]\nbrokers = \"127.0.0.1:1\"\n[buffer]\nmax_bytes = \"64 MiB\"\ncommit_interval = \"{interval}\"\n"
    );
    let agent = Agent::new(arguments, &toml).with_data_dir(&disk.place.join("data"));
    let process = agent.start(&["ready"]);
    let mut stream = UnixStream::connect(agent.socket()).unwrap();
    let replies = stream.try_clone().unwrap();
    let (sent, times) = mpsc::channel::<Instant>();
    let reader = std::thread::spawn(move || waits(BufReader::new(replies), &times));
    let (before, start) = (disk.written(), Instant::now());
    let events = u32::try_from(arguments.pace.as_secs()).unwrap() * RATE;
    for n in 0..events {
        let due = start + Duration::from_secs(1) / RATE * n;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let n = u64::from(n % 100);
        let line = format!(
            "{{\"type\":\"reading\",\"source_type\":\"energy-meter\",\"source_id\":\"{}\",\"payload\":{}}}\n",
            source_id(n),
            payload(n)
        );
        sent.send(Instant::now()).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let waits = reader.join().unwrap();
    assert_eq!(waits.len(), events as usize);
    let (elapsed, written) = (start.elapsed().as_secs_f64(), disk.written() - before);
    process.terminate();
    let per_event = written as f64 / f64::from(events);
    let name = |what: &str| format!("wear, commit_interval {interval}: {what}");
    vec![
        Row::single(name("device bytes per event"), "bytes", per_event, Target::None),
        Row::single(name("acknowledged after, p50"), "ms", median(waits.into_iter()), Target::None),
        Row::single(name("events a second"), "events/s", f64::from(events) / elapsed, Target::None),
    ]
}

/// How long each event waited for its acknowledgement, in milliseconds.
fn waits(replies: impl BufRead, times: &mpsc::Receiver<Instant>) -> Vec<f64> {
    let mut waits = Vec::new();
    for line in replies.lines() {
        let line = line.unwrap();
        let count = line.strip_prefix("{\"ack\":").and_then(|rest| rest.trim_end_matches('}').parse().ok());
        let count: usize = count.unwrap_or_else(|| panic!("{line}"));
        while waits.len() < count {
            waits.push(times.recv().unwrap().elapsed().as_secs_f64() * 1e3);
        }
    }
    waits
}
