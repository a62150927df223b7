//! Structured logs: set-up and rate limits.

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
    /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter such as `info,fieldpost::drain=debug`.
    pub level: String,
    /// The form of a line.
    pub format: Format,
}
