//! docs/troubleshooting.md has an entry for each WARN and each ERROR that the source can log.

use std::path::{Path, PathBuf};

/// Lines that are nothing but somebody else's text: the errors with which the agent does not start or ends.
const OTHERS_TEXT: [&str; 1] = ["{error}"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The agent's source, without its tests.
fn sources(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name == "tests" {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned();
            found.push((path, text));
        }
    }
}

/// The text of a string literal that begins behind its quote, and where it ends.
fn literal(source: &str) -> (String, usize) {
    let (mut text, mut chars) = (String::new(), source.char_indices().peekable());
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (text, at + 1),
            '\\' => match chars.next() {
                // The next line goes on behind its indentation.
                Some((_, '\n')) => while chars.next_if(|(_, char)| char.is_whitespace()).is_some() {},
                Some((_, char)) => text.push(char),
                None => break,
            },
            _ => text.push(char),
        }
    }
    panic!("a literal without an end: {text}");
}

/// The message of a call of `warn!` or `error!`, of which `call` is what stands behind the bracket: the first literal
/// that is no field's value.
fn message(call: &str) -> Option<String> {
    let (mut at, mut depth, mut is_value) = (0, 1, false);
    while depth > 0 {
        let rest = &call[at..];
        let char = rest.chars().next()?;
        at += char.len_utf8();
        match char {
            '"' => {
                let (text, end) = literal(&call[at..]);
                if depth == 1 && !is_value {
                    return Some(text);
                }
                at += end;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            '=' => is_value = true,
            ',' if depth == 1 => is_value = false,
            _ => {}
        }
    }
    None
}

/// Where a macro of this name is called: its arguments.
fn calls<'a>(source: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    source.match_indices(name).filter_map(move |(at, _)| {
        let line = source[..at].rsplit('\n').next()?.trim_start();
        let is_word = !source[..at].ends_with(|char: char| char.is_alphanumeric() || char == '_');
        (is_word && !line.starts_with("//")).then(|| &source[at + name.len()..])
    })
}

/// A message with `…` for what it is filled with.
fn shape(message: &str) -> String {
    let mut shape = String::new();
    for (n, part) in message.split('{').enumerate() {
        shape.push_str(if n == 0 { part } else { "…" });
        shape.push_str(if n == 0 { "" } else { part.split_once('}').unwrap().1 });
    }
    shape
}

/// Whether the entry, with `…` for what it leaves out, stands for the message.
fn stands_for(entry: &str, message: &str) -> bool {
    let parts: Vec<&str> = entry.split('…').map(str::trim).filter(|part| !part.is_empty()).collect();
    let mut rest = message;
    let all = parts.iter().all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    });
    all && parts.iter().map(|part| part.len()).sum::<usize>() >= 12.min(message.len())
}

#[test]
fn each_warning_and_error_has_its_entry() {
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    // Only rows of tables: symptom, meaning, remedy.
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let entries: Vec<&str> = rows
        .filter_map(|row| row.trim_matches('|').split(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let (mut seen, mut missing) = (0, Vec::new());
    for (path, source) in &files {
        for call in ["warn!(", "error!("].iter().flat_map(|name| calls(source, name)) {
            let message = message(call);
            let message = message.unwrap_or_else(|| panic!("a line without a message in {}", path.display()));
            seen += 1;
            let shape = shape(&message);
            let is_known = OTHERS_TEXT.contains(&message.as_str())
                || entries.iter().any(|entry| stands_for(entry, &shape));
            if !is_known {
                missing.push(format!("{}: {shape}", path.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(seen > 80, "{seen} lines seen");
    assert!(missing.is_empty(), "docs/troubleshooting.md has no entry for\n{}", missing.join("\n"));
}
