//! What the machine, the file system and the process say, read without another program.

use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::config::units::about_bytes;
use crate::event::rfc3339;
use crate::sink::kafka_probe;
use crate::system::{self, Clock};
use crate::tls;

/// Most entries of the listing: a gateway's buffer has some hundred.
const ENTRIES_MAX: usize = 2_000;

/// Most bytes that are read of one file.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// The beginning of a file.
pub(super) fn file(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(super) fn versions() -> String {
    let system = rustix::system::uname();
    let release = file(Path::new("/etc/os-release")).unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let features = [("http", cfg!(feature = "http")), ("tls", cfg!(feature = "tls"))];
    let features: Vec<_> = features.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name).collect();
    format!(
        "fieldpost {} ({}), built for {}\nlibrdkafka {}\n{}\nkernel {} {} on {}\nsystem {name}\n",
        env!("CARGO_PKG_VERSION"),
        features.join(", "),
        target(),
        kafka_probe::library_version(),
        tls::library_version(),
        text(system.sysname()),
        text(system.release()),
        text(system.machine()),
    )
}

/// Processor and C library of this build.
fn target() -> String {
    let libc = if cfg!(target_env = "musl") { "musl, static" } else { "glibc" };
    format!("{}, {}-bit, {libc}", std::env::consts::ARCH, usize::BITS)
}

pub(super) fn clock() -> String {
    let now = Clock::default().now();
    format!(
        "wall clock {}\nsynchronised {}\nsince the machine's start {} s\n",
        rfc3339(now.wall_us),
        if now.clock_trusted { "yes" } else { "not known" },
        now.boot_us / 1_000_000
    )
}

pub(super) fn memory() -> Result<String, String> {
    let text = file(Path::new("/proc/meminfo"))?;
    let load = file(Path::new("/proc/loadavg")).unwrap_or_default();
    Ok(format!("{}\nload {load}", text.lines().take(5).collect::<Vec<_>>().join("\n")))
}

/// Limits and state of the agent's process.
pub(super) fn process(pid: Option<u32>) -> Result<String, String> {
    let pid = pid.ok_or("no agent runs, or its process id is not known")?;
    let status = file(Path::new(&format!("/proc/{pid}/status")))?;
    let wanted = ["State", "Uid", "Gid", "Groups", "Vm", "Rss", "Threads", "NoNewPrivs", "Seccomp:", "Cap"];
    let status: Vec<_> =
        status.lines().filter(|line| wanted.iter().any(|start| line.starts_with(start))).collect();
    // Root's alone, because the agent is not dumpable.
    let limits =
        file(Path::new(&format!("/proc/{pid}/limits"))).unwrap_or_else(|why| format!("limits: {why}\n"));
    Ok(format!("pid {pid}\n{}\n{limits}", status.join("\n")))
}

pub(super) fn disk(dir: &Path) -> Result<String, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", dir.display());
    let found = rustix::fs::statvfs(dir).map_err(|error| fail(&error))?;
    let free = system::free_bytes(dir).map_err(|error| fail(&error))?;
    let mounts = file(Path::new("/proc/self/mounts")).unwrap_or_default();
    let full = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let fields = |line: &str| line.split(' ').nth(1).map(str::len).unwrap_or_default();
    let mount = mounts
        .lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|place| full.starts_with(place)))
        .max_by_key(|line| fields(line))
        .unwrap_or("not found");
    Ok(format!(
        "{} of {} free for this user, {} of {} inodes free\nmount {mount}\n",
        about_bytes(free),
        about_bytes(found.f_blocks.saturating_mul(found.f_frsize)),
        found.f_favail,
        found.f_files
    ))
}

/// Modes, owners, sizes and times of what is below `dir`.
pub(super) fn listing(dir: &Path) -> Result<String, String> {
    let mut out = String::new();
    let mut waiting = vec![dir.to_owned()];
    let mut count = 0;
    while let Some(path) = waiting.pop() {
        let found = std::fs::symlink_metadata(&path).map_err(|error| format!("{}: {error}", path.display()));
        let found = match found {
            Ok(found) => found,
            Err(why) if count == 0 => return Err(why),
            Err(why) => {
                let _ = writeln!(out, "{why}");
                continue;
            }
        };
        count += 1;
        if count > ENTRIES_MAX {
            out.push_str("and more\n");
            break;
        }
        let time = rfc3339(found.mtime().saturating_mul(1_000_000));
        let _ = writeln!(
            out,
            "{:06o} {}:{} {:>12} {time} {}",
            found.mode(),
            found.uid(),
            found.gid(),
            found.len(),
            path.display()
        );
        if found.is_dir() {
            match std::fs::read_dir(&path) {
                Ok(entries) => {
                    let mut below: Vec<_> =
                        entries.flatten().map(|entry| entry.path()).take(ENTRIES_MAX).collect();
                    // The last one is looked at first.
                    below.sort_by(|a, b| b.cmp(a));
                    waiting.extend(below);
                }
                Err(error) => {
                    let _ = writeln!(out, "{}: {error}", path.display());
                }
            }
        }
    }
    Ok(out)
}
