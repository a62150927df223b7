//! What the agent asks of the operating system: clocks and their trust, identity, free disk, the service manager and
//! signals.
//!
//! Nothing here stops the agent: what cannot be found out has a stated default and is logged.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use uuid::Uuid;

use crate::event::Stamp;

/// systemd-timesyncd touches this file whenever it has set the clock; the directory is gone at the next boot.
const TIMESYNC_MARKER: &str = "/run/systemd/timesync/synchronized";
/// The kernel's id of this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// TAI has been at least this far ahead of UTC since UTC has leap seconds (1972); it is 37 s since 2017.
const TAI_AHEAD_MIN_S: i64 = 10;
/// How long an answer about the clock's trust is good for.
const TRUST_US: u64 = 1_000_000;
/// Longest status text in bytes; the service manager reads datagrams of up to 4096.
const STATUS_BYTES_MAX: usize = 1024;

/// Stamps events. Cheap per call: whether the wall clock is synchronised is looked up at most once a second.
///
/// The kernel's own answer (`STA_UNSYNC` of `adjtimex(2)`) has no safe wrapper, so two traces are looked at that a
/// time daemon leaves once it has set the clock, and either is enough:
/// - the file `/run/systemd/timesync/synchronized` (systemd-timesyncd);
/// - `CLOCK_TAI` being ahead of `CLOCK_REALTIME`: the kernel starts with both equal, and a daemon that knows the leap
///   seconds (chrony, ntpd, ptp4l with phc2sys, as distributions set them up) sets the difference with the time.
///
/// Both say "synchronised since boot", not "at this moment": a clock that was right once drifts by seconds a week.
/// A daemon that leaves neither trace yields `clock_trusted: false`, never a wrong `true`.
#[derive(Debug)]
pub struct Clock {
    marker: PathBuf,
    tai_ahead_s: fn() -> i64,
    /// Boot time of the next look; 0 at first.
    look_us: AtomicU64,
    trusted: AtomicBool,
}

impl Default for Clock {
    fn default() -> Self {
        Self::looking_at(TIMESYNC_MARKER.into(), tai_ahead_s)
    }
}

impl Clock {
    fn looking_at(marker: PathBuf, tai_ahead_s: fn() -> i64) -> Self {
        Self { marker, tai_ahead_s, look_us: AtomicU64::new(0), trusted: AtomicBool::new(false) }
    }

    /// The times now.
    pub fn now(&self) -> Stamp {
        let boot_us = u64::try_from(micros(clock_gettime(ClockId::Boottime))).unwrap_or(0);
        // By way of the C library, so that a test's clock reaches it.
        let wall_us = jiff::Timestamp::now().as_microsecond();
        Stamp { wall_us, boot_us, clock_trusted: self.trusted(boot_us) }
    }

    fn trusted(&self, boot_us: u64) -> bool {
        if boot_us >= self.look_us.load(Ordering::Relaxed) {
            self.look_us.store(boot_us.saturating_add(TRUST_US), Ordering::Relaxed);
            let trusted = (self.tai_ahead_s)() >= TAI_AHEAD_MIN_S || self.marker.exists();
            self.trusted.store(trusted, Ordering::Relaxed);
        }
        self.trusted.load(Ordering::Relaxed)
    }
}

/// The least that the wall clock is set back to matter: a shorter wait on it is over soon.
const SET_BACK_MIN: Duration = Duration::from_secs(30);

/// Notices when the wall clock is set back: against the time since boot, which nobody sets.
#[derive(Debug)]
pub(crate) struct SetBack {
    /// Microseconds that the wall clock is ahead of the time since boot.
    ahead_us: i64,
}

impl SetBack {
    /// Looks from `now` on.
    pub(crate) fn new(now: Stamp) -> Self {
        Self { ahead_us: ahead_us(now) }
    }

    /// How far it was set back between the last look and `now`, if that matters.
    pub(crate) fn look(&mut self, now: Stamp) -> Option<Duration> {
        let ahead_us = ahead_us(now);
        let back_us = std::mem::replace(&mut self.ahead_us, ahead_us).saturating_sub(ahead_us);
        u64::try_from(back_us).ok().map(Duration::from_micros).filter(|back| *back >= SET_BACK_MIN)
    }
}

fn ahead_us(now: Stamp) -> i64 {
    now.wall_us.saturating_sub_unsigned(now.boot_us)
}

fn micros(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1_000)
}

fn tai_ahead_s() -> i64 {
    clock_gettime(ClockId::Tai).tv_sec.saturating_sub(clock_gettime(ClockId::Realtime).tv_sec)
}

/// Tells boots apart, so that `boot_us` of two events may be compared. Random when the kernel does not say, which is
/// logged: every start of the agent then counts as a boot.
pub fn boot_id() -> [u8; 16] {
    boot_id_in(Path::new(BOOT_ID))
}

fn boot_id_in(path: &Path) -> [u8; 16] {
    let read = fs::read_to_string(path).map_err(|error| error.to_string());
    let parsed = read.and_then(|text| Uuid::parse_str(text.trim()).map_err(|error| error.to_string()));
    let id = parsed.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), error, "no boot id, every start counts as a boot");
        Uuid::new_v4()
    });
    id.into_bytes()
}

/// The machine's name; `localhost` if it has none.
pub fn hostname() -> String {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy();
    if name.is_empty() { "localhost".to_owned() } else { name.into_owned() }
}

/// Keeps passwords where they are: no core dump is ever written of this process, and no other process of its user may
/// look into its memory or environment.
///
/// # Errors
/// The kernel refuses; the caller says so and goes on.
pub fn keep_memory_private() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// Bytes that an unprivileged process may still write to the file system of `dir`.
///
/// # Errors
/// `dir` cannot be reached; the caller decides, a full disk is not assumed.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Tells the service manager how the agent is. Does nothing when there is none.
///
/// A message that cannot be sent is logged once and never holds up the caller: the socket does not block.
#[derive(Debug)]
pub struct Notifier {
    target: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    failed: AtomicBool,
}

impl Notifier {
    /// The notifier of this process, as `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say. The variables stay:
    /// the agent starts no other processes.
    pub fn from_env() -> Self {
        let watchdog = watchdog_of(
            std::env::var("WATCHDOG_USEC").ok().as_deref(),
            std::env::var("WATCHDOG_PID").ok().as_deref(),
        );
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(path) => Self::to(Path::new(&path), watchdog),
            None => Self { target: None, watchdog: None, failed: AtomicBool::new(false) },
        }
    }

    /// Sends to the datagram socket at `path`; a leading `@` stands for the abstract name space. `watchdog` is the
    /// time after which the manager gives up on a silent process.
    pub fn to(path: &Path, watchdog: Option<Duration>) -> Self {
        let target = notify_target(path)
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "the service manager cannot be told anything");
            })
            .ok();
        Self { target, watchdog, failed: AtomicBool::new(false) }
    }

    /// The agent takes events from now on.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// One line for `systemctl status`.
    pub fn status(&self, text: &str) {
        let end = text.floor_char_boundary(STATUS_BYTES_MAX);
        // A line end would begin the next assignment of the protocol.
        let line = text.get(..end).unwrap_or_default().replace(['\n', '\r'], " ");
        self.send(&format!("STATUS={line}"));
    }

    /// The agent has begun to stop, which may take `longest`: the manager's own time-out for it counts only beyond that.
    pub fn stopping(&self, longest: Duration) {
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", longest.as_micros()));
    }

    /// The agent is alive. To be called more often than [`Notifier::watchdog_interval`], usually twice as often.
    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    /// The silence after which the manager kills the process, if it watches at all.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog
    }

    fn send(&self, message: &str) {
        let Some((socket, address)) = &self.target else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address)
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, message, "the service manager did not take a message; said once only");
        }
    }
}

fn notify_target(path: &Path) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// `sd_watchdog_enabled(3)`: the time is meant for the process that `pid` names, if it names one.
fn watchdog_of(usec: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    let usec: u64 = usec?.parse().ok().filter(|&usec| usec > 0)?;
    let ours = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    ours.then_some(Duration::from_micros(usec))
}

/// SIGTERM and SIGINT. While this exists they no longer end the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over both signals. To be called inside the runtime.
    ///
    /// # Errors
    /// The handlers cannot be installed: the agent could not be stopped in order, so it should not start.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next request to stop and names its signal: the first one means stop in order, the second one
    /// stop at once.
    ///
    /// Cancel safe: yes, a signal that comes between two calls is kept (several of a kind count as one).
    pub async fn stop_requested(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// What the block device under a directory has written since this was made, whoever asked for it.
#[derive(Debug)]
pub struct DeviceWrites {
    path: PathBuf,
    at_start: Option<u64>,
}

impl DeviceWrites {
    /// Counts from now on.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), at_start: device_bytes_written(path) }
    }

    /// Bytes; `None` where the kernel does not tell (file systems in memory, several devices, containers).
    pub fn bytes(&self) -> Option<u64> {
        Some(device_bytes_written(&self.path)?.saturating_sub(self.at_start?))
    }
}

/// Field 7 of `/sys/dev/block/M:N/stat`, in sectors of 512 bytes (the kernel's Documentation/block/stat.rst).
fn device_bytes_written(path: &Path) -> Option<u64> {
    let device = rustix::fs::stat(path).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: u64 = text.split_ascii_whitespace().nth(6)?.parse().ok()?;
    sectors.checked_mul(512)
}

/// glibc's setting of the size from which a block is mapped by itself, and its value from the start.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "262144");

/// Starts the program again in the same process, with glibc's allocator kept from raising its mmap threshold. Left to
/// itself it does so when the first generation is closed (sled frees tables of 2 and 4 MB, hardly any page of which was
/// ever touched), and from then on clears such tables by hand in its heaps: 20 MB of memory for ever. The allocator
/// reads that setting before the program begins, and the call for later needs unsafe code.
///
/// Returns when it was done before, or cannot be done: that costs memory and nothing else.
#[cfg(target_env = "gnu")]
pub(crate) fn keep_memory_small() {
    let (name, value) = MMAP_THRESHOLD;
    if std::env::var_os(name).is_none() {
        // Returns only when it fails.
        let _ = again(|command| command.env(name, value));
    }
}

/// Starts the program again in the same process, as it was started, with the socket that the service manager handed
/// over. Returns only when that fails.
pub(crate) fn start_again(handed_over: Option<OwnedFd>) -> io::Error {
    let Some(socket) = handed_over else { return again(|command| command) };
    if let Err(error) = rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()) {
        return error.into();
    }
    let first = socket.as_raw_fd().to_string();
    // LISTEN_PID went when the sockets were taken: without it they are whoever's that reads the others.
    again(|command| command.env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", first))
}

fn again(change: impl FnOnce(&mut Command) -> &mut Command) -> io::Error {
    let mut arguments = std::env::args_os();
    let Some(name_of_program) = arguments.next() else { return io::ErrorKind::InvalidInput.into() };
    match std::env::current_exe() {
        Ok(program) => change(Command::new(program).arg0(name_of_program).args(arguments)).exec(),
        Err(error) => error,
    }
}

/// Other allocators give large blocks back.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_memory_small() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_wrote_only_grows_and_memory_has_none() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let writes = DeviceWrites::new(dir.path());
        fs::write(dir.path().join("file"), [7; 100_000]).unwrap();
        fs::File::open(dir.path().join("file")).unwrap().sync_all().unwrap();
        if let Some(bytes) = writes.bytes() {
            assert!(bytes >= 100_000, "{bytes}");
        }
        assert_eq!(DeviceWrites::new(Path::new("/proc")).bytes(), None);
    }
    use rustix::process::{Signal as Kill, getpid, kill_process};

    #[test]
    fn a_stamp_has_both_times() {
        let clock = Clock::default();
        let (first, second) = (clock.now(), clock.now());
        assert!(second.boot_us >= first.boot_us && first.boot_us > 0);
        let system = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let apart_us = i64::try_from(system.as_micros()).unwrap() - first.wall_us;
        assert!((0..60_000_000).contains(&apart_us), "{apart_us}");
    }

    #[test]
    fn the_clock_is_trusted_once_a_time_daemon_left_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join("synchronized");
        let clock = Clock::looking_at(marker.clone(), || 0);
        assert!(!clock.trusted(5));
        fs::write(&marker, "").unwrap();
        assert!(!clock.trusted(5 + TRUST_US - 1), "looked up again within a second");
        assert!(clock.trusted(5 + TRUST_US));
        fs::remove_file(&marker).unwrap();
        assert!(clock.trusted(5 + 2 * TRUST_US - 1));
        assert!(!clock.trusted(5 + 2 * TRUST_US));
    }

    #[test]
    fn the_clock_is_trusted_when_the_kernel_knows_the_leap_seconds() {
        let nowhere = PathBuf::from("/nonexistent/synchronized");
        assert!(Clock::looking_at(nowhere.clone(), || 37).trusted(0));
        // Two readings either side of a second look like a difference of one.
        assert!(!Clock::looking_at(nowhere, || 1).trusted(0));
    }

    #[test]
    fn only_a_clock_that_is_set_back_far_is_noticed_and_once() {
        const S: i64 = 1_000_000;
        const NOW: i64 = 1_800_000_000 * S;
        let at =
            |wall_us: i64, boot_s: u64| Stamp { wall_us, boot_us: boot_s * 1_000_000, clock_trusted: true };
        let mut set_back = SetBack::new(at(NOW, 100));
        for (wall_us, boot_s, back_s) in [
            (NOW + 10 * S, 110, None),
            // Asleep for a day: both go on.
            (NOW + 86_400 * S, 86_500, None),
            (NOW + 86_381 * S, 86_510, None),
            (NOW, 86_510, Some(86_381)),
            (NOW + 10 * S, 86_520, None),
            // An hour ahead, and back again.
            (NOW + 3_620 * S, 86_530, None),
            (NOW + 30 * S, 86_540, Some(3_600)),
            (0, 86_541, Some(1_800_000_031)),
            (i64::MIN, 86_542, Some(9_223_371_950_313)),
        ] {
            let back = set_back.look(at(wall_us, boot_s));
            assert_eq!(back.map(|back| back.as_secs()), back_s, "{wall_us} {boot_s}");
        }
    }

    #[test]
    fn a_boot_has_one_id_and_an_unreadable_one_is_random() {
        assert_eq!(boot_id(), boot_id());
        let nowhere = Path::new("/nonexistent/boot_id");
        assert_ne!(boot_id_in(nowhere), boot_id_in(nowhere));
        assert!(!hostname().is_empty());
    }

    #[test]
    fn free_space_is_of_the_file_system() {
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
        assert!(free_bytes(Path::new("/nonexistent/dir")).is_err());
    }

    #[test]
    fn the_service_manager_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(&path, Some(Duration::from_secs(30)));
        notifier.ready();
        notifier.status("buffer 3 events\nREADY=0");
        notifier.watchdog();
        notifier.stopping(Duration::from_millis(1_500));
        let mut space = [0; 4096];
        let stopping = "STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000";
        for wanted in ["READY=1", "STATUS=buffer 3 events READY=0", "WATCHDOG=1", stopping] {
            let bytes = manager.recv(&mut space).unwrap();
            assert_eq!(std::str::from_utf8(&space[..bytes]).unwrap(), wanted);
        }
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(30)));
        notifier.status(&"ä".repeat(STATUS_BYTES_MAX));
        assert_eq!(manager.recv(&mut space).unwrap(), "STATUS=".len() + STATUS_BYTES_MAX);
    }

    #[test]
    fn an_abstract_socket_is_reached_too() {
        let name = format!("fieldpost-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::to(Path::new(&format!("@{name}")), None).ready();
        let mut space = [0; 64];
        assert_eq!(manager.recv(&mut space).unwrap(), "READY=1".len());
    }

    #[test]
    fn a_manager_that_is_gone_or_full_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let notifier = Notifier::to(&path, None);
        notifier.ready();
        assert!(notifier.failed.load(Ordering::Relaxed));
        let _never_reads = UnixDatagram::bind(&path).unwrap();
        for _ in 0..10_000 {
            notifier.watchdog();
        }
    }

    #[test]
    fn the_watchdog_is_meant_for_the_named_process() {
        let pid = std::process::id().to_string();
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog_of(Some("1000000"), None), second);
        assert_eq!(watchdog_of(Some("1000000"), Some(&pid)), second);
        for (usec, pid) in [(Some("1000000"), Some("1")), (Some("0"), None), (Some("x"), None), (None, None)]
        {
            assert_eq!(watchdog_of(usec, pid), None, "{usec:?} {pid:?}");
        }
    }

    #[tokio::test]
    async fn every_request_to_stop_is_named() {
        let mut signals = Signals::new().unwrap();
        for (kill, name) in [(Kill::TERM, "SIGTERM"), (Kill::INT, "SIGINT"), (Kill::TERM, "SIGTERM")] {
            kill_process(getpid(), kill).unwrap();
            let wait = tokio::time::timeout(Duration::from_secs(5), signals.stop_requested());
            assert_eq!(wait.await.unwrap(), name);
        }
    }
}
