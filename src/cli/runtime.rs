//! The runtime of a command: one thread for all its input and output.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::cli::{exit, text};

/// A runtime on this thread.
///
/// # Errors
/// The system has no more descriptors or memory for one.
pub(in crate::cli) fn build() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Runs `future` to its end. What it leaves in the background, a key that is waited for or a line that nobody reads, is
/// not waited for.
///
/// # Errors
/// The code to exit with when the system does not allow a runtime; `who`, the command, has said so.
pub(in crate::cli) fn run<T>(who: &str, future: impl Future<Output = T>) -> Result<T, ExitCode> {
    let runtime = build().map_err(|error| {
        text::say(who, format_args!("cannot start: {error}"));
        ExitCode::from(exit::TEMPORARY)
    })?;
    let value = runtime.block_on(future);
    runtime.shutdown_timeout(Duration::ZERO);
    Ok(value)
}
