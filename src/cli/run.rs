//! `fieldpost run`: the agent, until a signal.

use std::process::ExitCode;
use std::time::Duration;

use crate::agent::{Agent, AgentError};
use crate::cli::{exit, load, runtime, text};
use crate::log;
use crate::system::{self, Signals};

/// Run the agent: take events, keep them, deliver them, until SIGTERM or SIGINT.
///
/// The first signal stops in order: inputs settle what they have read, the backlog is drained for at most
/// agent.stop_grace, the buffer is closed. A second signal stops at once; what was acknowledged is on disk.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    config: load::ConfigArg,
}

const AFTER_HELP: &str = "\
Examples:
  fieldpost run --config fieldpost.toml
  FIELDPOST_KAFKA__BROKERS=127.0.0.1:9092 FIELDPOST_UNIX__PATH=/tmp/fieldpost.sock fieldpost run

Exit codes:
  0   stopped in order        70  a stage failed (a bug)       74  buffer or socket unusable
  64  wrong command line      78  invalid configuration, or a twin has taken over
  75  stopped by a second signal, or the system refused";

impl Args {
    /// Runs the agent; the code to exit with.
    pub fn run(self) -> ExitCode {
        system::keep_memory_small();
        let config = match self.config.load() {
            Ok(loaded) => loaded.config,
            Err(errors) => return load::refuse(&errors),
        };
        if let Err(error) = log::init(&config.log) {
            text::say("fieldpost", error);
            return exit::CONFIG.into();
        }
        log::log_panics();
        let runtime = match runtime::build() {
            Ok(runtime) => runtime,
            Err(error) => return failed(&AgentError::System(error)),
        };
        // Order: before the buffer is opened, so that a signal from then on ends the agent in order.
        let signals = {
            let _inside = runtime.enter();
            Signals::new()
        };
        let built =
            signals.map_err(AgentError::System).and_then(|signals| Ok((Agent::build(config)?, signals)));
        let ended = match built {
            Ok((agent, signals)) => runtime.block_on(agent.run(signals)),
            Err(error) => Err(error),
        };
        // Only a name lookup may still be under way in the background; nobody waits for it.
        runtime.shutdown_timeout(Duration::ZERO);
        match ended {
            Ok(()) => {
                tracing::info!("stopped");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        }
    }
}

fn failed(error: &AgentError) -> ExitCode {
    tracing::error!("{error}");
    error.exit_code()
}
