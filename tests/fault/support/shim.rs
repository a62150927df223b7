//! Calls that fail on demand and a clock that jumps: `shim.c`, compiled when it is first needed and preloaded into an agent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::agent::Config;
use crate::harness::wait::eventually;

/// One agent's shim. Nothing fails until [`Shim::raise`].
pub(crate) struct Shim {
    home: TempDir,
}

impl Shim {
    pub(crate) fn new() -> Self {
        let home = tempfile::Builder::new().prefix("fieldpost-shim-").tempdir().expect("a temporary folder");
        Self { home }
    }

    /// Puts it into the agent's environment, for everything below `dir`.
    pub(crate) fn install(&self, config: &mut Config, dir: &Path) {
        config.environment("LD_PRELOAD", text(library()));
        config.environment("FAULT_DIR", text(dir));
        config.environment("FAULT_CONTROL", text(&self.control()));
    }

    /// From now on calls of `class` fail with `errno`; see `shim.c`.
    pub(crate) fn raise(&self, class: &str, errno: &str) {
        let fresh = self.home.path().join("fresh");
        std::fs::write(&fresh, format!("{class} {errno}\n")).expect("the temporary folder is writable");
        std::fs::rename(fresh, self.control()).expect("within one folder");
    }

    /// Everything works again.
    pub(crate) fn clear(&self) {
        std::fs::remove_file(self.control()).expect("it was raised");
    }

    /// Waits until calls were refused.
    #[track_caller]
    pub(crate) fn wait_hit(&self, patience: Duration) {
        let before = self.hits();
        eventually("the agent runs into the fault", patience, || (self.hits() > before).then_some(()));
    }

    /// How many calls were refused so far.
    pub(crate) fn hits(&self) -> usize {
        std::fs::read_to_string(self.home.path().join("control.hits")).map_or(0, |text| text.lines().count())
    }

    fn control(&self) -> PathBuf {
        self.home.path().join("control")
    }
}

/// One agent's wall clock. It is right until [`Clock::set`].
pub(crate) struct Clock {
    home: TempDir,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let home = tempfile::Builder::new().prefix("fieldpost-clock-").tempdir().expect("a temporary folder");
        Self { home }
    }

    /// Puts it into the agent's environment.
    pub(crate) fn install(&self, config: &mut Config) {
        config.environment("LD_PRELOAD", text(library()));
        config.environment("FAULT_CLOCK", text(&self.file()));
    }

    /// The clock jumps; `ahead` is in seconds from the right time, wherever it was before.
    pub(crate) fn set(&self, ahead: i64) {
        let fresh = self.home.path().join("fresh");
        std::fs::write(&fresh, ahead.to_string()).expect("the temporary folder is writable");
        std::fs::rename(fresh, self.file()).expect("within one folder");
    }

    fn file(&self) -> PathBuf {
        self.home.path().join("clock")
    }
}

/// The compiled library; one for all tests of this process, beside the test's own binary.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let own = std::env::current_exe().expect("this program has a path");
        let library = own.with_file_name("fault-shim.so");
        // Two runs may be at it at once.
        let fresh = own.with_file_name(format!("fault-shim-{}.so", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fault/shim.c");
        let output = Command::new("cc")
            .args([
                "-shared",
                "-fPIC",
                "-O1",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-o",
                text(&fresh),
                source,
                "-ldl",
            ])
            .output()
            .expect("a C compiler (cc)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(fresh, &library).expect("within one folder");
        library
    })
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}
