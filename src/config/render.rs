//! Texts made from the declarations and from an effective configuration.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::problem::Source;
use super::reader::{Declared, DeclaredDefault, Effective, Outcome, Section};

/// Column of the comments behind values; a longer line moves its own comment only.
const COMMENT_COLUMN: usize = 44;

/// The effective configuration as TOML that loads to the same values, with the source of each as a comment. Secrets
/// are comments, too: they may not stand in a file.
pub fn effective_toml(effective: &[Effective]) -> String {
    let mut text = String::new();
    let mut section = "";
    for Effective { key, value, source } in effective {
        let (in_section, name) = key.rsplit_once('.').unwrap_or(("", key));
        if in_section != section {
            section = in_section;
            let space = if text.is_empty() { "" } else { "\n" };
            let _ = match section.split_once('.') {
                Some((table, _number)) => writeln!(text, "{space}[[{table}]]"),
                None => writeln!(text, "{space}[{section}]"),
            };
        }
        match value {
            Ok(value) => {
                let _ = writeln!(text, "{:<COMMENT_COLUMN$} # {}", setting(name, value), place(source));
            }
            Err(absent) => {
                let _ = writeln!(text, "# {name} is not set: {absent}");
            }
        }
    }
    text
}

/// The file is named once, on top.
fn place(source: &Source) -> String {
    match source {
        Source::File { line, .. } => format!("line {line}"),
        Source::Variable(_) | Source::SecretFile(_) => format!("from {source}"),
        other => other.to_string(),
    }
}

fn setting(name: &str, value: &super::Shown) -> String {
    let prefix = if *value == super::Shown::Secret { "# " } else { "" };
    format!("{prefix}{name} = {}", value.to_toml())
}

/// The effective configuration for scripts: `{"mqtt.qos": {"value": 1, "source": "default", "place": null}, …}`.
/// The keys of routes have the route's number in them: `route.1.type`.
pub fn effective_json(effective: &[Effective]) -> Value {
    let entry = |Effective { key, value, source }: &Effective| {
        let place = match source {
            Source::Default => Value::Null,
            other => other.to_string().into(),
        };
        let value = value.as_ref().map_or(Value::Null, super::Shown::to_json);
        (key.to_string(), json!({ "value": value, "source": source.kind(), "place": place }))
    };
    Value::Object(effective.iter().map(entry).collect())
}

/// `deploy/fieldpost.toml`: every key with its default, commented out.
pub(super) fn example_file(read: &Outcome) -> String {
    let mut text = EXAMPLE_HEAD.to_owned();
    for section in &read.sections {
        text.push_str("\n\n");
        comment(&mut text, section.meaning);
        let _ = writeln!(text, "{}{}", if section.is_repeated { "#" } else { "" }, section.header());
        for declared in keys_of(read, *section) {
            text.push('\n');
            let key = declared.key;
            comment(&mut text, key.meaning);
            if !key.delivery.is_empty() {
                comment(&mut text, &format!("Delivery: {}", key.delivery));
            }
            comment(&mut text, &format!("Allowed: {}", declared.allowed));
            let name = key.name.split_once('.').map_or(key.name, |(_, name)| name);
            let value = match &declared.default {
                DeclaredDefault::Value(value) => value,
                DeclaredDefault::Absent(absent, example) => {
                    comment(&mut text, &format!("Not set: {absent}. Example:"));
                    example
                }
                DeclaredDefault::Derived(from, example) => {
                    comment(&mut text, &format!("Default: {from}. Example:"));
                    example
                }
            };
            let _ = writeln!(text, "#{name} = {}", value.to_toml());
        }
    }
    text
}

const EXAMPLE_HEAD: &str = "\
# Configuration of fieldpost. Every key stands here with its default; take the `#` away in front of a key to change it.
# An environment variable FIELDPOST_<SECTION>__<KEY> overrides the file, for example FIELDPOST_KAFKA__BROKERS.
# `fieldpost check` says whether it is right and whether the services answer; `fieldpost config` shows what counts.
# Sizes: B, KiB, MiB, GiB, TiB, kB, MB, GB, TB. Durations: ms, s, m, h.
";

pub(super) fn keys_of<'a>(
    read: &'a Outcome,
    section: Section<'static>,
) -> impl Iterator<Item = &'a Declared> {
    let of_section = move |declared: &&Declared| {
        declared.key.name.split_once('.').is_some_and(|(name, _)| name == section.name)
    };
    read.declared.iter().filter(of_section)
}

/// A comment in lines of at most 118 characters.
fn comment(text: &mut String, words: &str) {
    let mut width = 0;
    for word in words.split_whitespace() {
        if width == 0 || width + 1 + word.len() > 118 {
            text.push_str(if width == 0 { "#" } else { "\n#" });
            width = 1;
        }
        text.push(' ');
        text.push_str(word);
        width += 1 + word.len();
    }
    text.push('\n');
}
