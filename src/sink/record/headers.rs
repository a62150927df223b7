//! The headers of a record: the agent's own, those of the format, and what the configuration adds.
//!
//! In every format, all text: `fieldpost-id`, `fieldpost-timestamp` (as in the envelope), the position
//! `fieldpost-agent`, `fieldpost-log`, `fieldpost-epoch`, `fieldpost-seq`, and the time that is right when the wall clock
//! was not: `fieldpost-boot` (the kernel's boot id), `fieldpost-boot-us` (microseconds since then) and `fieldpost-clock`
//! (`trusted` or `untrusted`). In the backlog lane also `fieldpost-backlog` = `1`.

/// Most headers that the configuration adds.
pub const STATIC_COUNT_MAX: usize = 16;

/// Most bytes of them, names and values together: they are in every record.
pub const STATIC_BYTES_MAX: usize = 4096;

/// Longest name of one in bytes.
pub const STATIC_NAME_BYTES_MAX: usize = 128;

/// The agent's own, and the most that a format adds.
const OWN_COUNT: usize = 10;
const FORMAT_COUNT_MAX: usize = 8;

const COUNT_MAX: usize = OWN_COUNT + FORMAT_COUNT_MAX + STATIC_COUNT_MAX;

/// Starts of names that the configuration may not use, in lower case: consumers tell the agent's headers by them.
const RESERVED: [&str; 2] = ["fieldpost-", "ce_"];

/// The media type of the payload, where the format says it.
pub(super) const CONTENT_TYPE: &str = "content-type";

/// Why `name` may not be that of a header that the configuration adds, if so.
pub fn refused(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if let Some(start) = RESERVED.iter().find(|start| lower.starts_with(**start)) {
        return Some(format!("names that begin with {start} are the agent's own"));
    }
    if lower == CONTENT_TYPE {
        return Some("kafka.format sets it".to_owned());
    }
    if let Some(c) = name.chars().find(|c| !c.is_ascii_graphic()) {
        return Some(format!(
            "the name holds `{}`, only visible ASCII characters are allowed",
            c.escape_default()
        ));
    }
    match name.len() {
        0 => Some("the name is empty".to_owned()),
        bytes if bytes > STATIC_NAME_BYTES_MAX => {
            Some(format!("the name has {bytes} bytes, at most {STATIC_NAME_BYTES_MAX} are allowed"))
        }
        _ => None,
    }
}

/// The headers of one record, on the stack.
pub(super) struct Headers<'a> {
    list: [(&'a str, &'a [u8]); COUNT_MAX],
    count: usize,
}

impl<'a> Headers<'a> {
    pub(super) fn new() -> Self {
        Self { list: [("", &[]); COUNT_MAX], count: 0 }
    }

    /// Adds one at the end. There is room for as many as there can be.
    pub(super) fn push(&mut self, name: &'a str, value: &'a [u8]) {
        if let Some(place) = self.list.get_mut(self.count) {
            *place = (name, value);
            self.count += 1;
        }
    }

    pub(super) fn as_slice(&self) -> &[(&'a str, &'a [u8])] {
        self.list.get(..self.count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_consumers_rely_on_are_refused() {
        for (name, why) in [
            ("fieldpost-x", "names that begin with fieldpost- are the agent's own"),
            ("Fieldpost-Seq", "names that begin with fieldpost- are the agent's own"),
            ("CE_id", "names that begin with ce_ are the agent's own"),
            ("Content-Type", "kafka.format sets it"),
            ("a b", "the name holds ` `, only visible ASCII characters are allowed"),
            ("a\n", "the name holds `\\n`, only visible ASCII characters are allowed"),
            ("", "the name is empty"),
        ] {
            assert_eq!(refused(name).as_deref(), Some(why), "{name}");
        }
        assert!(refused(&"x".repeat(STATIC_NAME_BYTES_MAX + 1)).is_some());
        for name in [&"x".repeat(STATIC_NAME_BYTES_MAX), "site", "x-fieldpost", "cell", "trace_id"] {
            assert_eq!(refused(name), None, "{name}");
        }
    }
}
