//! File systems of the test's own: a tmpfs, or ext4 on a loop device.
//!
//! `make fault` runs the tests in a mount name space of their own, so that nothing stays mounted whatever ends them.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::agent::{Agent, Config};
use crate::harness::wait::{USUAL, eventually};

const MIB: u64 = 1 << 20;

/// Fields of `/sys/block/*/stat`: writes done, sectors written, requests on their way, flushes done.
const STAT_FIELDS: [usize; 4] = [4, 6, 8, 15];
const IN_FLIGHT: usize = 2;

/// A mounted file system. Unmounted and removed on drop; the agent on it must have ended by then.
pub(crate) struct Disk {
    home: TempDir,
    point: PathBuf,
    /// Of ext4; a tmpfs has none.
    image: Option<PathBuf>,
    options: &'static str,
}

impl Disk {
    /// A new ext4 of `mib` MiB on a loop device.
    #[track_caller]
    pub(crate) fn ext4(mib: u64) -> Self {
        Self::ext4_with(mib, "loop")
    }

    /// With options of its own for each mount; `loop` is one of them.
    #[track_caller]
    pub(crate) fn ext4_with(mib: u64, options: &'static str) -> Self {
        let (home, point) = folders();
        let image = home.path().join("image");
        File::create(&image).expect("an image").set_len(mib * MIB).expect("room for an image");
        // Without the lazy parts, which would go on writing behind the test's back.
        run(
            "mkfs.ext4",
            &["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", text(&image)],
        );
        let disk = Self { home, point, image: Some(image), options };
        disk.mount();
        disk
    }

    /// A tmpfs of `mib` MiB.
    #[track_caller]
    pub(crate) fn tmpfs(mib: u64) -> Self {
        let (home, point) = folders();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "fieldpost-fault", text(&point)]);
        Self { home, point, image: None, options: "" }
    }

    /// The agent keeps its data on it. It is too small for the floor that is kept free for others by default.
    pub(crate) fn install(&self, config: &mut Config) {
        config.set("agent.data_dir", text(&self.data_dir())).set("buffer.min_free", 0);
    }

    /// The agent's data folder on it.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.point.join("data")
    }

    /// The power goes: everything that has not reached the device is gone, the agent with it. The file system is then
    /// mounted again, as after the next start of the machine.
    #[track_caller]
    pub(crate) fn cut_power(&mut self, agent: &mut Agent) {
        agent.signal(Signal::STOP);
        let tasks = PathBuf::from(format!("/proc/{}/task", agent.pid().as_raw_nonzero()));
        // A thread inside a sync stops only when it is through.
        eventually("every thread of the agent is stopped", USUAL, || all_stopped(&tasks).then_some(()));
        let copy = self.home.path().join("copy");
        self.copy_image(&copy);
        agent.kill9();
        self.unmount();
        std::fs::rename(copy, self.image()).expect("within one folder");
        self.mount();
    }

    /// Block by block, at one moment: the kernel's own threads may write at any time, so the device's counters tell
    /// whether anything was written while the copy was made; then it is made again.
    #[track_caller]
    fn copy_image(&self, copy: &Path) {
        let stat = self.stat_file();
        eventually("the device is idle for the time of a copy", USUAL, || {
            let before = counters(&stat);
            run("cp", &["--sparse=always", text(self.image()), text(copy)]);
            (before[IN_FLIGHT] == 0 && counters(&stat) == before).then_some(())
        });
    }

    /// Whatever writes to it waits, until [`Frozen`] is dropped: a disk that does not answer.
    #[track_caller]
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        run("fsfreeze", &["--freeze", text(&self.point)]);
        Frozen(self)
    }

    /// What `error` the kernel reports for its own file system: it becomes read-only at once, for everybody.
    #[track_caller]
    pub(crate) fn fail_read_only(&self) {
        let name = self.device_name();
        std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "fault suite").expect("root may");
    }

    /// Unmounts, repairs, and mounts again; nothing may be open on it.
    #[track_caller]
    pub(crate) fn repair(&self) {
        self.unmount();
        // 1: errors were corrected, which is what it is for.
        let status = Command::new("e2fsck").args(["-f", "-y", text(self.image())]).output().expect("e2fsck");
        assert!(matches!(status.status.code(), Some(0 | 1)), "{status:?}");
        self.mount();
    }

    /// Somebody else's file takes all the room but `left` bytes.
    #[track_caller]
    pub(crate) fn fill(&self, left: u64) -> Filler {
        let path = self.point.join("somebody-elses");
        let mut file = File::create(&path).expect("a file that takes the room");
        let mut at = 0;
        for size in [MIB, 64 << 10, 4 << 10] {
            let bytes = vec![0x5a; usize::try_from(size).unwrap()];
            while self.free_bytes() >= left + size {
                match file.write_all_at(&bytes, at) {
                    Ok(()) => at += size,
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        // ext4 decides on delayed blocks when they are written out.
        drop(file.flush());
        drop(file.sync_all());
        Filler { path }
    }

    /// Bytes that may still be written.
    pub(crate) fn free_bytes(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.point).expect("it is mounted");
        found.f_bfree * found.f_frsize
    }

    fn image(&self) -> &Path {
        self.image.as_deref().expect("only ext4 has an image")
    }

    fn device_name(&self) -> String {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc is there");
        let point = text(&self.point);
        let line = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(point)).expect("it is mounted");
        let device = line.split(' ').next().expect("each line names a device");
        device.rsplit('/').next().expect("a name").to_owned()
    }

    fn stat_file(&self) -> PathBuf {
        PathBuf::from(format!("/sys/block/{}/stat", self.device_name()))
    }

    #[track_caller]
    fn mount(&self) {
        run("mount", &["-t", "ext4", "-o", self.options, text(self.image()), text(&self.point)]);
    }

    /// Somebody may look at a new mount for a moment.
    #[track_caller]
    fn unmount(&self) {
        eventually("it can be unmounted", Duration::from_secs(5), || {
            try_run("umount", &[text(&self.point)]).ok()
        });
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // When the test has failed with the agent on it: lazily, it goes with the last open file.
        let _gone = try_run("umount", &["-l", text(&self.point)]);
    }
}

/// A disk answers again on drop.
pub(crate) struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Also when the test has failed: the agent cannot even be killed before.
        if let Err(problem) = try_run("fsfreeze", &["--unfreeze", text(&self.0.point)]) {
            eprintln!("{problem}");
        }
    }
}

/// Gives its room back on drop.
pub(crate) struct Filler {
    path: PathBuf,
}

impl Drop for Filler {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

#[track_caller]
fn folders() -> (TempDir, PathBuf) {
    assert!(
        rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists(),
        "the fault suite mounts file systems of its own: it needs root and loop devices (/dev/loop-control)"
    );
    let home = tempfile::Builder::new().prefix("fieldpost-disk-").tempdir().expect("a temporary folder");
    let point = home.path().join("disk");
    std::fs::create_dir(&point).expect("the temporary folder is writable");
    (home, point)
}

fn all_stopped(tasks: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(tasks) else { return false };
    entries.flatten().all(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name before it may hold anything, a bracket too. A thread that has ended meanwhile has no state.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

fn counters(stat: &Path) -> [u64; 4] {
    let text = std::fs::read_to_string(stat).expect("the device is there");
    let fields: Vec<u64> = text.split_whitespace().map(|field| field.parse().expect("a number")).collect();
    STAT_FIELDS.map(|field| fields[field])
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder's path is UTF-8")
}

fn try_run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    if let Err(problem) = try_run(program, arguments) {
        panic!("{problem}");
    }
}
