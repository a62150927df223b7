//! The service manager, played by the test.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use super::agent::Agent;
use super::wait::{scaled, within};

/// The manager's end of `NOTIFY_SOCKET`.
pub(crate) struct Manager(UnixDatagram);

impl Manager {
    /// Puts itself into the environment of an agent that was prepared; it expects a sign of life within `watchdog`.
    pub(crate) fn of(agent: &mut Agent, watchdog: Duration) -> Self {
        let path = agent.home().join("notify");
        let manager = Self(UnixDatagram::bind(&path).expect("the temporary folder is writable"));
        agent.reconfigure(|config| {
            config.environment("NOTIFY_SOCKET", path.to_str().expect("a temporary folder's path is UTF-8"));
            config.environment("WATCHDOG_USEC", &watchdog.as_micros().to_string());
        });
        manager
    }

    /// The next message, with the time at which it came.
    pub(crate) fn next(&self, patience: Duration) -> Option<(String, Instant)> {
        self.0.set_read_timeout(Some(scaled(patience))).expect("it is not zero");
        let mut space = [0; 4096];
        let bytes = self.0.recv(&mut space).ok()?;
        Some((String::from_utf8(space[..bytes].to_vec()).expect("the protocol is text"), Instant::now()))
    }

    /// The next message that begins with `start`; others are passed over.
    pub(crate) fn next_of(&self, start: &str, patience: Duration) -> Option<String> {
        within(scaled(patience), || {
            let (message, _) = self.next(Duration::from_secs(1))?;
            message.starts_with(start).then_some(message)
        })
    }

    /// Reads what has come already.
    pub(crate) fn catch_up(&self) {
        while self.next(Duration::from_millis(1)).is_some() {}
    }
}
