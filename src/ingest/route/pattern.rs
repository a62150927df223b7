//! Patterns of names. Pure.

use std::fmt;

/// Longest pattern in bytes, as long as the longest name that it can match.
pub const PATTERN_BYTES_MAX: usize = crate::event::NAME_BYTES_MAX;

/// A name, or several: each `*` stands for any text, an empty one included. There is no escape: `*` matches a `*` too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern that `text` says; every text is one.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether it matches the whole of `name`.
    pub fn matches(&self, name: &str) -> bool {
        let Some((start, rest)) = self.0.split_once('*') else { return self.0 == name };
        let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
        let between = name.strip_prefix(start).and_then(|name| name.strip_suffix(end));
        let Some(mut name) = between else { return false };
        // The first place where a part fits is the best one: it leaves the most to those behind it.
        middle.split('*').all(|part| {
            let found = name.split_once(part);
            name = found.map_or("", |(_, behind)| behind);
            found.is_some()
        })
    }

    /// Whether it plainly matches every name.
    pub(super) fn is_any(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte == b'*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, matched, others) in [
            ("alarm", &["alarm"][..], &["", "alarm2", "Alarm", "an alarm"][..]),
            ("*", &["", "a", "a*b"], &[]),
            ("**", &["", "a"], &[]),
            ("pump-*", &["pump-", "pump-7", "pump-*"], &["pump", "a pump-7"]),
            ("*-7", &["-7", "pump-7"], &["pump-77"]),
            ("a*a", &["aa", "aba", "aaa"], &["a", "ab"]),
            ("a*b*c", &["abc", "axxbyyc", "abcbc"], &["acb", "ab", "acc", "ac"]),
            ("*ab*ab*", &["abab", "xabyabz"], &["ab", "aba", "abba"]),
            ("*é*", &["é", "aéb"], &["e"]),
        ] {
            let parsed = Pattern::new(pattern);
            assert!(matched.iter().all(|name| parsed.matches(name)), "{pattern}");
            assert!(!others.iter().any(|name| parsed.matches(name)), "{pattern}");
        }
    }

    /// The definition: a star stands for nothing, or for a character and whatever it stands for behind that.
    fn matches_by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => matches_by_definition(rest, name),
            (Some((b'*', rest)), Some((_, behind))) => {
                matches_by_definition(rest, name) || matches_by_definition(pattern, behind)
            }
            (Some((wanted, rest)), Some((found, behind))) => {
                wanted == found && matches_by_definition(rest, behind)
            }
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        #[test]
        fn a_pattern_matches_as_it_is_defined(pattern in "[ab*é]{0,8}", name in "[abé*]{0,10}") {
            prop_assert_eq!(
                Pattern::new(pattern.clone()).matches(&name),
                matches_by_definition(pattern.as_bytes(), name.as_bytes())
            );
        }
    }
}
