//! Standard output, which may be slow, or closed by who read it.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncWriteExt as _, Stdout};
use tokio::time::{MissedTickBehavior, interval};

/// So often it is looked whether anybody reads, while nothing is written.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Where lines go.
pub(super) struct Output(Stdout);

impl Output {
    pub(super) fn new() -> Self {
        Self(tokio::io::stdout())
    }

    /// Writes whole lines, however long that takes.
    pub(super) async fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.0.write_all(lines).await?;
        self.0.flush().await
    }
}

/// Returns when nobody can read standard output any more; of a file, somebody always can.
///
/// Cancel safe: yes.
pub(super) async fn closed() {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let stdout = io::stdout();
        let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        if poll(&mut asked, Some(&now)).is_ok() && asked.iter().any(|fd| fd.revents().intersects(gone)) {
            return;
        }
    }
}
