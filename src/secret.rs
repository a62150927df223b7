//! Passwords in memory: readable by the one call that needs them, invisible to logs and errors.

use std::fmt;

/// A password or token. `Debug` and `Display` print `***`, so that it cannot reach a log by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret as it was read; a trailing line end belongs to the file and not to the secret.
    pub fn new(text: &str) -> Self {
        Self(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The secret itself, for the call that authenticates.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_shows_itself() {
        let secret = Secret::new("hunter2\n");
        assert_eq!(secret.reveal(), "hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
    }
}
