//! The two places a value can come from, the file and the environment, brought into one shape. No key is known here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Source};
use super::units::format_bytes;
use super::value::{Found, Value, quote};

/// What the names of all variables that are configuration start with.
const PREFIX: &str = "FIELDPOST_";

/// A configuration has some hundred lines; a file above this is something else (a device, a log) and is not read on.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Longest part of a value that an error message repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// Everything that was given, by `section.key`; what is asked for is taken out, so that the rest is unknown.
#[derive(Debug, Default)]
pub(super) struct Sources {
    file: BTreeMap<String, Found>,
    environment: BTreeMap<String, Found>,
    credentials: Option<PathBuf>,
    folder: PathBuf,
}

impl Sources {
    /// Reads the file, if there is one, and the environment. Fails only where nothing can be known about the keys.
    pub(super) fn read(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Problem>> {
        let mut sources = Self::default();
        sources.take_environment(environment);
        if let Some(path) = path {
            let text = read_text(path, FILE_BYTES_MAX).map_err(|what| {
                let what = format!("the configuration file {} {what}", path.display());
                vec![Problem::general(None, what)]
            })?;
            sources.file = parse(path, &text)?;
            sources.folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        }
        Ok(sources)
    }

    fn take_environment(&mut self, environment: impl Iterator<Item = (String, String)>) {
        for (name, value) in environment {
            if name == "CREDENTIALS_DIRECTORY" && !value.is_empty() {
                self.credentials = Some(PathBuf::from(value));
                continue;
            }
            let Some((section, key)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once("__"))
            else {
                continue;
            };
            // The system tells capitals from small letters, so do we: a name in small letters stays unknown.
            let small = name.contains(|c: char| c.is_ascii_lowercase());
            let key = format!("{section}.{key}{}", if small { "?" } else { "" }).to_ascii_lowercase();
            let shown = shorten(&quote(&value));
            let found = Found { value: Value::Word(value), shown, source: Source::Variable(name) };
            self.environment.insert(key, found);
        }
    }

    /// Takes the value of `key`: the environment wins over the file.
    pub(super) fn take(&mut self, key: &str) -> Option<Found> {
        let file = self.file.remove(key);
        self.environment.remove(key).or(file)
    }

    /// The keys of one table that may be there several times.
    pub(super) fn of_table(name: &str, entries: Vec<(String, Found)>) -> Self {
        let file = entries.into_iter().map(|(key, found)| (format!("{name}.{key}"), found)).collect();
        Self { file, ..Self::default() }
    }

    /// Takes every key of a section, of the file and of the environment.
    pub(super) fn take_section(&mut self, name: &str) -> Vec<Found> {
        let is_its =
            |key: &String, _: &mut Found| key.split_once('.').is_some_and(|(section, _)| section == name);
        let file = self.file.extract_if(.., is_its);
        file.chain(self.environment.extract_if(.., is_its)).map(|(_, found)| found).collect()
    }

    /// Takes what the file says of `key`, for keys that may not stand there.
    pub(super) fn take_from_file(&mut self, key: &str) -> Option<Found> {
        self.file.remove(key)
    }

    /// What nobody asked for.
    pub(super) fn into_rest(self) -> impl Iterator<Item = (String, Found)> {
        self.file.into_iter().chain(self.environment)
    }

    /// Where a relative path of a secret starts: the service manager's credentials if there are any, else the
    /// folder of the configuration file.
    pub(super) fn secret_folder(&self) -> &Path {
        self.credentials.as_deref().unwrap_or(&self.folder)
    }

    /// A way out when the file at `path`, as it was written, is not there: a command that an operator runs has other
    /// surroundings than the service.
    pub(super) fn way_to_secret(&self, path: &Path) -> &'static str {
        if path.is_absolute() || self.credentials.is_some() || self.secret_folder().join(path).exists() {
            return "";
        }
        "; if systemd passes it to the service, set CREDENTIALS_DIRECTORY=/etc/credstore for this command, as root"
    }
}

/// The variable that sets `key`.
pub(super) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replacen('.', "__", 1).to_ascii_uppercase())
}

/// The text of a file that should be small; the error completes "the file … ".
fn read_text(path: &Path, bytes_max: u64) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(bytes_max + 1).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Err("is not UTF-8 text".to_owned()),
        Err(error) => Err(format!("cannot be read: {error}")),
        Ok(_) if text.len() as u64 > bytes_max => Err(format!("is larger than {}", format_bytes(bytes_max))),
        Ok(_) => Ok(text),
    }
}

fn parse(path: &Path, text: &str) -> Result<BTreeMap<String, Found>, Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(|error| syntax_problem(path, text, error)).collect());
    }
    let page = Page { path, text };
    let mut found = BTreeMap::new();
    for (section, value) in document.get_ref() {
        let section = section.get_ref();
        match value.get_ref() {
            DeValue::Table(keys) if !keys.is_empty() => {
                for (key, value) in keys {
                    // The line of the name: an inline table or a list may begin further down.
                    let source = page.source(key.span().start);
                    found.insert(format!("{section}.{}", key.get_ref()), page.found(value, source));
                }
            }
            _ => {
                found.insert(section.to_string(), page.found(value, page.source(value.span().start)));
            }
        }
    }
    Ok(found)
}

/// The file while it is read.
struct Page<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Page<'_> {
    fn source(&self, offset: usize) -> Source {
        Source::File { path: self.path.to_path_buf(), line: position(self.text, offset).0 }
    }

    fn found(&self, value: &Spanned<DeValue<'_>>, source: Source) -> Found {
        let written = self.text.get(value.span()).unwrap_or_default();
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Value::Other("a number beyond 64 bits"), Value::Integer),
            DeValue::Boolean(fact) => Value::Bool(*fact),
            DeValue::Float(number) => {
                number.as_str().replace('_', "").parse().map_or(Value::Other("a fraction"), Value::Fraction)
            }
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Array(items) => {
                Value::List(items.iter().map(|i| self.found(i, self.source(i.span().start))).collect())
            }
            DeValue::Table(table) => {
                let mut entries = Vec::new();
                self.flatten(table, "", &mut entries);
                Value::Table(entries)
            }
        };
        Found { value, shown: shorten(written), source }
    }

    /// `a.b = 1` and `"a.b" = 1` are the same property.
    fn flatten(&self, table: &DeTable<'_>, prefix: &str, entries: &mut Vec<(String, Found)>) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => self.flatten(inner, &format!("{name}."), entries),
                _ => entries.push((name, self.found(value, self.source(key.span().start)))),
            }
        }
    }
}

fn syntax_problem(path: &Path, text: &str, error: &toml::de::Error) -> Problem {
    let (line, column) = position(text, error.span().map_or(0, |span| span.start));
    let written = text.lines().nth(line - 1).unwrap_or_default();
    let shown = mask(written);
    let mut what = format!("column {column}: {}\n    {shown}", error.message().replace('\n', ", "));
    if shown == written {
        // Beneath a masked line the mark would point at the wrong place.
        what.push_str(&format!("\n    {:>column$}", '^'));
    }
    Problem::general(Some(Source::File { path: path.to_path_buf(), line }), what)
}

/// Line and column of an offset, both counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count();
    (before.matches('\n').count() + 1, column + 1)
}

/// A line of the file without what might be a secret: a line that does not parse says nothing about its keys.
fn mask(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    if ["password", "secret", "passwd", "token"].iter().any(|word| lower.contains(word)) {
        let name = line.split(['=', ':']).next().unwrap_or_default().trim_end();
        return format!("{name} = ***");
    }
    mask_login(line)
}

/// Hides `user:password@` in anything that looks like a URL.
pub(super) fn mask_login(text: &str) -> String {
    let hidden = text.split_once("://").and_then(|(scheme, rest)| {
        let (_, host) = rest.rsplit_once('@')?;
        Some(format!("{scheme}://***@{host}"))
    });
    hidden.unwrap_or_else(|| text.to_owned())
}

/// A value as an error message repeats it: one line, not long, no login.
fn shorten(written: &str) -> String {
    let line = mask_login(written.lines().next().unwrap_or_default());
    let cut = line.chars().count() > SHOWN_CHARS_MAX || written.lines().nth(1).is_some();
    let mut shown: String = line.chars().take(SHOWN_CHARS_MAX).collect();
    if cut {
        shown.push('…');
    }
    shown
}
