//! Keys that do not exist, and the ones that were probably meant. Pure.

use std::collections::BTreeSet;

use super::problem::{Problem, Source};
use super::reader::Section;
use super::source::variable_of;
use super::value::{Found, Value};

/// Below this similarity a guess misleads more than it helps.
const SIMILARITY_MIN: f64 = 0.6;

/// The same for whole names: two of one section are alike by the section alone.
const WHOLE_SIMILARITY_MIN: f64 = 0.8;

/// Shortest name that counts as a part of a longer one.
const PART_CHARS_MIN: usize = 4;

/// A problem for each key of `rest`, of which none is known; a section that is unknown as a whole is named once.
pub(super) fn unknown(
    rest: impl Iterator<Item = (String, Found)>,
    sections: &[Section],
    names: &[&str],
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut named = BTreeSet::new();
    let mut rest: Vec<_> = rest.collect();
    rest.sort_by_key(|(_, found)| match &found.source {
        Source::File { line, .. } => *line,
        _ => usize::MAX,
    });
    for (key, found) in rest {
        let from_file = !matches!(found.source, Source::Variable(_));
        let (section, leaf) = key.split_once('.').unwrap_or((&key, ""));
        let section_known = sections.iter().any(|known| known.name == section);
        let problem = match (from_file, leaf) {
            (true, "") if section_known => {
                if found.value == Value::Table(Vec::new()) {
                    continue;
                }
                let what = format!("is a section: write [{section}] and its keys in the lines below it");
                Problem::of(section, Some(found.source), what)
            }
            (true, "") if !is_table(&found.value) => {
                let what = "stands outside of a section and is not a known key".to_owned();
                Problem {
                    nearest: nearest(section, names).map(str::to_owned),
                    ..Problem::of(&key, Some(found.source), what)
                }
            }
            (true, _) if !section_known => {
                if !named.insert(section.to_owned()) {
                    continue;
                }
                let names = sections.iter().map(|known| (known.name, known.name));
                let meant = most_like(section, SIMILARITY_MIN, names);
                let meant = sections.iter().find(|known| Some(known.name) == meant);
                let is_repeated = matches!(found.value, Value::List(_));
                Problem {
                    nearest: meant.map(Section::header),
                    ..Problem::of(
                        &Section { name: section, meaning: "", is_repeated }.header(),
                        Some(found.source),
                        "is not a known section".to_owned(),
                    )
                }
            }
            (true, _) => Problem {
                nearest: nearest(&key, names).map(str::to_owned),
                ..Problem::of(&key, Some(found.source), "is not a known key".to_owned())
            },
            (false, _) => Problem {
                nearest: nearest(&key, names).map(variable_of),
                ..Problem::general(Some(found.source), "this variable belongs to no known key".to_owned())
            },
        };
        problems.push(problem);
    }
    problems
}

fn is_table(value: &Value) -> bool {
    match value {
        Value::Table(_) => true,
        Value::List(items) => items.iter().any(|item| matches!(item.value, Value::Table(_))),
        _ => false,
    }
}

/// The known key most like `key`, if any is like it: by its last part alone (a key in the wrong section), else
/// by its last part within the same section, else as a part of a name there, else as a whole.
fn nearest<'a>(key: &str, names: &[&'a str]) -> Option<&'a str> {
    let key = key.to_ascii_lowercase();
    let key = key.as_str();
    let leaf = key.rsplit('.').next().unwrap_or(key);
    let leaf_of = |name: &'a str| name.split_once('.').map_or(name, |(_, leaf)| leaf);
    if let Some(name) = names.iter().find(|name| leaf_of(name) == leaf) {
        return Some(name);
    }
    let section = key.split_once('.').map(|(section, _)| section);
    let same_section = names.iter().filter(|name| name.split_once('.').map(|(s, _)| s) == section);
    let part_of =
        || same_section.clone().find(|name| leaf.len() >= PART_CHARS_MIN && leaf_of(name).contains(leaf));
    most_like(leaf, SIMILARITY_MIN, same_section.clone().map(|name| (*name, leaf_of(name))))
        .or_else(|| part_of().copied())
        .or_else(|| most_like(key, WHOLE_SIMILARITY_MIN, names.iter().map(|name| (*name, *name))))
}

fn most_like<'a>(
    wanted: &str,
    similarity_min: f64,
    candidates: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<&'a str> {
    candidates
        .map(|(name, part)| (name, strsim::normalized_damerau_levenshtein(wanted, part)))
        .filter(|(_, similarity)| *similarity >= similarity_min)
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = [
        "mqtt.keep_alive",
        "mqtt.qos",
        "limits.memory",
        "kafka.brokers",
        "redis.password_file",
        "mqtt.password_file",
    ];

    #[test]
    fn the_key_that_was_meant() {
        for (key, meant) in [
            ("mqtt.keepalive", Some("mqtt.keep_alive")),
            ("mqtt.QOS", Some("mqtt.qos")),
            ("buffer.memory", Some("limits.memory")),
            ("memory", Some("limits.memory")),
            ("kafka.broker", Some("kafka.brokers")),
            ("redis.pasword_file", Some("redis.password_file")),
            ("kafka.zzz", None),
        ] {
            assert_eq!(nearest(key, &NAMES), meant, "{key}");
        }
    }
}
