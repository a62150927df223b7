//! Other programs, run within bounds: their output is read to a limit, their time is limited, and they are killed with
//! their process group.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a killed process may take to be gone. One that the kernel holds (a device that hangs) is left to it.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// What a program may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Longest run.
    pub time: Duration,
    /// Most bytes of output that are kept, from the beginning; the rest is read and dropped.
    pub output_bytes: usize,
}

/// How a program ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// It was killed for taking too long.
    Overdue,
    /// It was killed because `stop` came.
    Stopped,
    /// It never ran, or the system does not tell how it ended.
    Failed(io::Error),
}

/// Runs a program until it ended and nobody writes to its outputs any more, its time is over, or `stop`; a program that it
/// leaves behind with its output open counts as it. Answers also what was written to both outputs, in order. Its standard
/// input is empty.
///
/// Cancel safe: no. Dropping it kills the program and leaves what that has started.
pub async fn run(command: Command, bounds: Bounds, stop: &CancellationToken) -> (Ended, Vec<u8>) {
    let mut output = Vec::new();
    let (mut child, mut pipe) = match spawn(command) {
        Ok(started) => started,
        Err(error) => return (Ended::Failed(error), output),
    };
    // Order: its output first. A process that nobody has waited for keeps its id, so that the group that is killed below
    // is its own.
    let all = async {
        gather(&mut pipe, &mut output, bounds.output_bytes).await;
        child.wait().await
    };
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ended::Stopped,
        ended = timeout(bounds.time, all) => match ended {
            Ok(Ok(status)) => Ended::Exited(status),
            Ok(Err(error)) => Ended::Failed(error),
            Err(_) => Ended::Overdue,
        },
    };
    if matches!(ended, Ended::Overdue | Ended::Stopped) {
        end(&mut child).await;
    }
    (ended, output)
}

/// Both of its outputs are one pipe, so that their lines stay in order.
fn spawn(mut command: Command) -> io::Result<(Child, pipe::Receiver)> {
    let (reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true);
    let child = command.spawn()?;
    // It holds the writing ends: it goes here, or the pipe would never end.
    drop(command);
    Ok((child, pipe::Receiver::from_owned_fd(reader.into())?))
}

/// Reads until nobody writes any more, and keeps the beginning.
async fn gather(pipe: &mut pipe::Receiver, output: &mut Vec<u8>, bytes_max: usize) {
    let mut bytes = vec![0; 4096];
    while let Ok(count) = pipe.read(&mut bytes).await {
        let room = bytes_max.saturating_sub(output.len());
        match bytes.get(..count.min(room)) {
            _ if count == 0 => return,
            Some(kept) => output.extend_from_slice(kept),
            None => {}
        }
    }
}

/// Kills the process group, and waits until its first process is gone.
async fn end(child: &mut Child) {
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(group) = group {
        // A group that is gone already is as good.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = timeout(KILL_GRACE, child.wait()).await;
}
