//! Where a value came from and what is wrong with it.

use std::fmt;
use std::path::PathBuf;

use crate::error::Class;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// Nobody set it and its default follows from something else, which is named.
    Derived(&'static str),
    /// The configuration file.
    File {
        /// The file as it was named to the agent.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable, by name.
    Variable(String),
    /// A file that holds nothing but this secret.
    SecretFile(PathBuf),
}

impl Source {
    /// One word for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Default | Self::Derived(_) => "default",
            Self::File { .. } => "file",
            Self::Variable(_) => "environment",
            Self::SecretFile(_) => "secret_file",
        }
    }

    pub(super) fn is_default(&self) -> bool {
        matches!(self, Self::Default | Self::Derived(_))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Derived(from) => write!(f, "default, {from}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::SecretFile(path) => write!(f, "{}", path.display()),
        }
    }
}

/// One thing that is wrong with the configuration. `Display` is one line, except for a syntax error, which shows
/// the line it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key as `section.key`, unless the file as a whole is meant.
    pub key: Option<String>,
    /// The value as it was written; never a secret.
    pub value: Option<String>,
    /// Where it was written: `file:line` or a variable; `None` where nobody wrote anything.
    pub source: Option<Source>,
    /// What is wrong and what is allowed.
    pub what: String,
    /// The known key (or variable) that an unknown one is most like.
    pub nearest: Option<String>,
}

impl Problem {
    /// A problem of the configuration as a whole.
    pub(super) fn general(source: Option<Source>, what: String) -> Self {
        Self { key: None, value: None, source, what, nearest: None }
    }

    /// A problem of one key.
    pub(super) fn of(key: &str, source: Option<Source>, what: String) -> Self {
        Self { key: Some(key.to_owned()), value: None, source, what, nearest: None }
    }

    pub(super) fn with_value(mut self, value: &str) -> Self {
        self.value = Some(value.to_owned());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(f, "{source}: ")?;
        }
        match (&self.key, &self.value) {
            (Some(key), Some(value)) => write!(f, "{key} = {value}: ")?,
            (Some(key), None) => write!(f, "{key} ")?,
            (None, _) => {}
        }
        f.write_str(&self.what)?;
        match &self.nearest {
            Some(nearest) => write!(f, "; the nearest known one is {nearest}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration, in the order file, environment, relations. Never empty.
///
/// The caller prints it and exits with 78; trying again without a change cannot help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Problem>);

impl ConfigErrors {
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        Self(problems)
    }

    /// The problems, one by one.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }

    /// The caller's reaction.
    pub fn class(&self) -> Class {
        Class::Fatal
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the configuration has a problem:")?,
            n => write!(f, "the configuration has {n} problems:")?,
        }
        self.0.iter().try_for_each(|problem| write!(f, "\n{problem}"))
    }
}

impl std::error::Error for ConfigErrors {}
