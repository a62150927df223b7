//! Structured logs: set-up, panics as log lines, and rate limits.
//!
//! Lines go to stderr, for people or as JSON; under journald they carry its priority prefix instead of a time, so
//! that `journalctl -p err` finds them. A panic is one line like any other error. Nothing here ever fails a caller:
//! a stderr that is gone loses the line and nothing else.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::panic::{self, PanicHookInfo, UnwindSafe};
use std::str::FromStr as _;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::NoSubscriber;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;

use crate::error::Class;

/// Longest panic message in a line, in bytes: a message may quote what it failed on.
const PANIC_MESSAGE_BYTES_MAX: usize = 512;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a list of levels by module such as `info,fieldpost::drain=debug`.
    pub level: String,
    /// The form of a line.
    pub format: Format,
}

/// Why logging could not be set up. Class: always [`Class::Fatal`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LogError {
    /// `log.level` is not a level and not a filter. The caller reports a configuration error.
    #[error(
        "log.level = {level:?}: {reason}; wanted off, error, warn, info, debug or trace, \
         or a filter such as info,fieldpost::drain=debug"
    )]
    Level {
        /// The configured text.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logging was set up before. A bug of the caller.
    #[error("logging is set up already")]
    Again,
}

impl LogError {
    /// The caller's reaction.
    pub fn class(&self) -> Class {
        Class::Fatal
    }
}

/// Checks `log.level` without setting anything up.
///
/// # Errors
/// [`LogError::Level`].
pub fn check_level(level: &str) -> Result<(), LogError> {
    filter(level).map(drop)
}

/// Sends every log line of the process to stderr from now on. To be called once, before anything logs.
///
/// # Errors
/// [`LogError::Level`], a configuration error; [`LogError::Again`] at a second call.
pub fn init(options: &Options) -> Result<(), LogError> {
    let place = Place::of_stderr();
    let subscriber = subscriber(options, place, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Again)
}

/// Where lines end up, which decides their dress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A person is looking: colours.
    Terminal,
    /// journald adds the time and reads the priority from a `<n>` prefix.
    Journal,
    /// A file or a pipe.
    Other,
}

impl Place {
    fn of_stderr() -> Self {
        let stderr = io::stderr();
        if stderr.is_terminal() {
            return Self::Terminal;
        }
        // The variable is inherited by children whose stderr was sent elsewhere; device and inode tell.
        let named = std::env::var("JOURNAL_STREAM").ok();
        let here = rustix::fs::fstat(&stderr).ok().map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
        if named.is_some() && named == here { Self::Journal } else { Self::Other }
    }
}

type AnySubscriber = Box<dyn Subscriber + Send + Sync>;

fn subscriber<W>(options: &Options, place: Place, writer: W) -> Result<AnySubscriber, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = filter(&options.level)?;
    let builder = tracing_subscriber::fmt()
        // The filter decides.
        .with_max_level(LevelFilter::TRACE)
        .with_writer(writer)
        .with_ansi(place == Place::Terminal && options.format == Format::Text)
        // A failed write would be reported by a print that panics when stderr is closed.
        .log_internal_errors(false);
    Ok(match (options.format, place) {
        (Format::Json, _) => Box::new(
            builder
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .finish()
                .with(filter),
        ),
        (Format::Text, Place::Journal) => Box::new(
            builder.event_format(WithPriority(format::format().without_time())).finish().with(filter),
        ),
        (Format::Text, Place::Terminal | Place::Other) => Box::new(builder.finish().with(filter)),
    })
}

fn filter(level: &str) -> Result<Targets, LogError> {
    let error = |reason: String| LogError::Level { level: level.to_owned(), reason };
    let parts: Vec<_> = level.split(',').map(str::trim).collect();
    for part in &parts {
        // The filter would take a misspelt level for the name of a module and then log nothing at all, and an
        // empty one for `error`.
        if part.is_empty() || !part.contains('=') && LevelFilter::from_str(part).is_err() {
            return Err(error(format!("{part:?} is not a level")));
        }
    }
    parts.join(",").parse::<Targets>().map_err(|cause| error(cause.to_string()))
}

/// Text lines with the priority prefix of `sd-daemon(3)`.
struct WithPriority<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithPriority<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic is one ERROR event with the thread's name and the place; the message is added when the panic
/// comes from fieldpost's own code, because a foreign one may quote data. Until [`init`] was called panics are
/// reported as before.
pub fn log_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if tracing::dispatcher::get_default(|dispatch| dispatch.is::<NoSubscriber>()) {
            before(info);
        } else {
            log_panic(info);
        }
    }));
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let place = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    // Sources of other crates have absolute paths, those of the package being built relative ones.
    let ours = info.location().is_some_and(|location| !location.file().starts_with('/'));
    let message = if ours { panic_message(info.payload()) } else { "not shown, foreign code" };
    if QUIET.get() {
        tracing::debug!(thread, place, message, "panic caught");
    } else {
        tracing::error!(thread, place, message, "panic: this is a bug in fieldpost or in a library it uses");
    }
}

/// The text of a panic's payload, cut to a length that suits a log line.
fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    text.get(..text.floor_char_boundary(PANIC_MESSAGE_BYTES_MAX)).unwrap_or(text)
}

/// Runs `f`, catches its panic and keeps the hook of [`log_panics`] down to a DEBUG line meanwhile. For code that is
/// expected to panic on damaged input. Threads that `f` starts are not covered.
///
/// # Errors
/// The payload of the panic.
pub fn quietly<T>(f: impl FnOnce() -> T + UnwindSafe) -> std::thread::Result<T> {
    static HOOK: Once = Once::new();
    // A command that does without [`log_panics`] has the usual hook, which would print it.
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| if QUIET.get() { log_panic(info) } else { usual(info) }));
    });
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(f);
    QUIET.set(before);
    result
}

/// Keeps a line that outside input can cause from filling the disk: one per `interval`, the others are counted.
///
/// Const, so that it sits in a `static` beside the line it limits.
#[derive(Debug)]
pub struct Limited {
    interval: Duration,
    state: Mutex<LimitedState>,
}

#[derive(Debug)]
struct LimitedState {
    allowed: Option<Instant>,
    suppressed: u64,
}

impl Limited {
    /// At most one line per `interval`; the first one at once.
    pub const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(LimitedState { allowed: None, suppressed: 0 }) }
    }

    /// Whether a line may be logged now: `Some` of the number kept back since the last one, else `None`.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.allowed.is_some_and(|allowed| now.saturating_duration_since(allowed) < self.interval) {
            state.suppressed = state.suppressed.saturating_add(1);
            return None;
        }
        state.allowed = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write_all(bytes)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `f` logs under these options.
    fn logged(level: &str, format: Format, place: Place, f: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let options = Options { level: level.into(), format };
        let subscriber = subscriber(&options, place, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, f);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_one_flat_object_a_line() {
        let lines = logged("info", Format::Json, Place::Terminal, || {
            tracing::info!(events = 3, "drained\nall");
            tracing::debug!("kept back");
        });
        assert_eq!(lines.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&lines).unwrap();
        assert_eq!((&line["level"], &line["events"]), (&"INFO".into(), &3.into()));
        assert_eq!(line["message"], "drained\nall");
        let time = line["timestamp"].as_str().unwrap();
        assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    }

    #[test]
    fn text_has_a_utc_time_and_no_colours_unless_someone_looks() {
        let warn = || tracing::warn!(queue = 7, "slow");
        let line = logged("warn", Format::Text, Place::Other, warn);
        let time = line.split_whitespace().next().unwrap();
        assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{line}");
        assert!(line.ends_with("slow queue=7\n") && !line.contains('\x1b'), "{line:?}");
        assert!(logged("warn", Format::Text, Place::Terminal, warn).contains('\x1b'));
    }

    #[test]
    fn under_journald_a_line_has_a_priority_and_no_time() {
        let lines = logged("debug", Format::Text, Place::Journal, || {
            tracing::error!("lost");
            tracing::info!("up");
        });
        let starts: Vec<_> = lines.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(starts, ["<3>ERROR", "<6>"], "{lines}");
    }

    #[test]
    fn a_misspelt_level_is_an_error_that_names_it() {
        for good in ["info", "off", "WARN", "info,fieldpost::drain=debug", "fieldpost=trace, sled=error"] {
            check_level(good).unwrap();
        }
        for bad in ["", "verbose", "info,debugg", "fieldpost=loud", "info,"] {
            let error = check_level(bad).unwrap_err();
            assert!(error.to_string().contains("log.level"), "{error}");
            assert_eq!(error.class(), Class::Fatal);
        }
    }

    #[test]
    fn a_panic_is_an_error_line_unless_it_is_expected() {
        fn fail() {
            panic!("left is {}", 1);
        }
        let mut caught = Vec::new();
        let lines = logged("debug", Format::Json, Place::Other, || {
            log_panics();
            caught.push(panic::catch_unwind(fail).is_err());
            caught.push(quietly(fail).is_err());
            caught.push(panic::catch_unwind(fail).is_err());
            drop(panic::take_hook());
        });
        assert_eq!((caught, quietly(|| 5).ok()), (vec![true; 3], Some(5)));
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let levels: Vec<_> = lines.iter().map(|line| line["level"].as_str().unwrap()).collect();
        assert_eq!(levels, ["ERROR", "DEBUG", "ERROR"]);
        assert!(lines[0]["place"].as_str().unwrap().starts_with("src/log.rs:"), "{}", lines[0]);
        assert!(lines[0]["thread"].as_str().unwrap().contains("a_panic_is_an_error_line"));
    }

    #[test]
    fn a_long_panic_message_is_cut_at_a_character() {
        let long: Box<dyn Any + Send> = Box::new("ä".repeat(PANIC_MESSAGE_BYTES_MAX));
        assert_eq!(panic_message(&*long).len(), PANIC_MESSAGE_BYTES_MAX);
        assert_eq!(panic_message(&7_u8), "no message");
    }

    #[test]
    fn a_limited_line_appears_once_per_interval_and_tells_how_many_were_kept_back() {
        let limited = Limited::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| limited.allow_at(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(2), at(9)), (None, None, None));
        assert_eq!(at(10), Some(3));
        assert_eq!(at(19), None);
        assert_eq!(at(40), Some(1));
        assert_eq!(at(50), Some(0));
    }

    #[test]
    fn a_limit_sits_in_a_static() {
        static LIMITED: Limited = Limited::new(Duration::from_secs(3600));
        assert_eq!(LIMITED.allow(), Some(0));
        assert_eq!(LIMITED.allow(), None);
    }
}
