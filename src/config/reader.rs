//! Reads keys one by one: each call declares a key and returns its value, already of the right type.
//!
//! The declaration is the only place that knows a key: what it says drives parsing, the error messages,
//! `fieldpost config`, the example file and the table in the manual. A bad value becomes a [`Problem`] and the key's
//! default stands in for it, so that one run finds all problems; [`Reader::finish`] lets no default slip through.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::nearest;
use super::problem::{Problem, Source};
use super::source::{Sources, variable_of};
use super::units;
use super::value::{
    Found, Shown, Value, entries, fact, in_range, integer, list, number, quote, scalar, text, wrong_type,
};
use crate::secret::{Password, Secret};

/// What people are told of a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// `section.key`.
    pub(super) name: &'static str,
    /// What it does, in plain words.
    pub(super) meaning: &'static str,
    /// What it changes about which events arrive, how often and when; empty: nothing.
    pub(super) delivery: &'static str,
}

/// A key as it was declared, for the generated texts.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    pub(super) key: Key,
    pub(super) allowed: String,
    pub(super) default: DeclaredDefault,
}

/// What stands when nobody sets a key.
#[derive(Debug, Clone)]
pub(super) enum DeclaredDefault {
    /// This value.
    Value(Shown),
    /// Nothing, which means what the first text says; the second is an example value.
    Absent(&'static str, Shown),
    /// A value that follows from something else; the second is an example value.
    Derived(&'static str, Shown),
}

/// A section of the file, in declaration order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    pub(super) name: &'a str,
    pub(super) meaning: &'a str,
    /// It may be there several times, and no variable sets its keys.
    pub(super) is_repeated: bool,
}

impl Section<'_> {
    /// As it is written in the file.
    pub(super) fn header(&self) -> String {
        if self.is_repeated { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }
}

/// A key with the value that counts and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// `section.key`; `route.1.key` of the first route, and so on.
    pub key: Cow<'static, str>,
    /// The value, or what its absence means.
    pub value: Result<Shown, &'static str>,
    /// Where it came from.
    pub source: Source,
}

/// What [`Reader::finish`] leaves: the declarations and the effective values.
pub(super) struct Outcome {
    pub(super) sections: Vec<Section<'static>>,
    pub(super) declared: Vec<Declared>,
    pub(super) effective: Vec<Effective>,
    /// Every secret that is set.
    pub(super) secrets: Vec<Password>,
}

pub(super) struct Reader {
    sources: Sources,
    outcome: Outcome,
    problems: Vec<Problem>,
}

impl Reader {
    pub(super) fn new(sources: Sources) -> Self {
        let outcome = Outcome {
            sections: Vec::new(),
            declared: Vec::new(),
            effective: Vec::new(),
            secrets: Vec::new(),
        };
        Self { sources, outcome, problems: Vec::new() }
    }

    /// Says which section the following keys belong to.
    pub(super) fn section(&mut self, name: &'static str, meaning: &'static str) {
        self.outcome.sections.push(Section { name, meaning, is_repeated: false });
    }

    /// A whole number.
    pub(super) fn integer(&mut self, key: Key, default: u64, range: RangeInclusive<u64>) -> u64 {
        let allowed = format!("{} to {}", range.start(), range.end());
        let parse = |value: &Value| in_range(integer(value)?, &range);
        self.value(key, allowed, default, parse, |n| Shown::Integer(*n))
    }

    /// A number that need not be whole.
    pub(super) fn number(&mut self, key: Key, default: f64, range: RangeInclusive<f64>) -> f64 {
        let allowed = format!("{} to {}", range.start(), range.end());
        let parse = |value: &Value| match number(value)? {
            number if number.is_nan() => Err("not a number".to_owned()),
            number => in_range(number, &range),
        };
        self.value(key, allowed, default, parse, |number| Shown::Number(number.to_string()))
    }

    /// A number of bytes.
    pub(super) fn bytes(&mut self, key: Key, default: u64, range: RangeInclusive<u64>) -> u64 {
        let show = |n: &u64| Shown::Text(units::format_bytes(*n));
        let allowed =
            format!("{} to {}", units::format_bytes(*range.start()), units::format_bytes(*range.end()));
        let parse = |value: &Value| {
            let bytes = match value {
                Value::Text(text) | Value::Word(text) => units::parse_bytes(text)?,
                Value::Integer(number) => u64::try_from(*number).map_err(|_| "too small".to_owned())?,
                other => return Err(wrong_type(other, "a size such as \"64 MiB\"")),
            };
            in_range(bytes, &range)
        };
        self.value(key, allowed, default, parse, show)
    }

    /// A time span.
    pub(super) fn duration(
        &mut self,
        key: Key,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let show = |d: &Duration| Shown::Text(units::format_duration(*d));
        let allowed =
            format!("{} to {}", units::format_duration(*range.start()), units::format_duration(*range.end()));
        let parse = |value: &Value| {
            let duration = match value {
                Value::Text(text) | Value::Word(text) => units::parse_duration(text)?,
                Value::Integer(number) => return Err(units::unit_needed(number.unsigned_abs())),
                other => return Err(wrong_type(other, "a duration such as \"10s\"")),
            };
            in_range(duration, &range)
        };
        self.value(key, allowed, default, parse, show)
    }

    /// One of a few words; the first is the default.
    pub(super) fn one_of<T: Copy + PartialEq, const N: usize>(
        &mut self,
        key: Key,
        default: T,
        words: [(&'static str, T); N],
    ) -> T {
        let allowed = words.map(|(word, _)| word).join(", ");
        let word_of =
            |wanted: &T| words.iter().find(|(_, value)| value == wanted).map_or("", |(word, _)| word);
        let parse = |value: &Value| {
            let text = text(value)?;
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| "not known".to_owned())
        };
        self.value(key, allowed, default, parse, |value| Shown::Text(word_of(value).to_owned()))
    }

    /// True or false.
    pub(super) fn fact(&mut self, key: Key, default: bool) -> bool {
        self.value(key, "true, false".to_owned(), default, fact, |fact| Shown::Bool(*fact))
    }

    /// One of a few words, or nothing, which means `absent`.
    pub(super) fn optional_one_of<T: Copy, const N: usize>(
        &mut self,
        key: Key,
        absent: (&'static str, &str),
        words: [(&'static str, T); N],
    ) -> Option<T> {
        let allowed = words.map(|(word, _)| word).join(", ");
        self.optional_text(key, &allowed, absent, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| "not known".to_owned())
        })
    }

    /// One of a few numbers.
    pub(super) fn one_of_numbers<T: Copy + PartialEq, const N: usize>(
        &mut self,
        key: Key,
        default: T,
        numbers: [(u64, T); N],
    ) -> T {
        let allowed = numbers.map(|(number, _)| number.to_string()).join(", ");
        let number_of = |wanted: &T| numbers.iter().find(|(_, value)| value == wanted).map_or(0, |(n, _)| *n);
        let parse = |value: &Value| {
            let number = integer(value)?;
            let found = numbers.iter().find(|(n, _)| *n == number);
            found.map(|(_, value)| *value).ok_or_else(|| "not known".to_owned())
        };
        self.value(key, allowed, default, parse, |value| Shown::Integer(number_of(value)))
    }

    /// A text that `parse` understands; the effective value is shown as `show` writes it.
    pub(super) fn text<T>(
        &mut self,
        key: Key,
        allowed: &str,
        default: T,
        parse: impl Fn(&str) -> Result<T, String>,
        show: impl Fn(&T) -> String,
    ) -> T {
        let show = |value: &T| Shown::Text(show(value));
        self.value(key, allowed.to_owned(), default, |value| parse(text(value)?), show)
    }

    /// A text whose default follows from something else, here given as `derived`.
    pub(super) fn derived_text(
        &mut self,
        key: Key,
        allowed: &str,
        (from, example): (&'static str, &str),
        derived: String,
        parse: impl Fn(&str) -> Result<String, String>,
    ) -> String {
        let default = DeclaredDefault::Derived(from, Shown::Text(example.to_owned()));
        self.declare(key, allowed, default);
        let given = self.given(key.name, allowed, |value| parse(text(value)?));
        let (value, source) = given.unwrap_or_else(|| {
            if let Err(why) = parse(&derived) {
                let what = format!("{why}; allowed: {allowed}; it was taken from {from}: set {}", key.name);
                self.problems.push(Problem::of(key.name, None, what).with_value(&quote(&derived)));
            }
            (derived, Source::Derived(from))
        });
        self.effect(key.name, Ok(Shown::Text(value.clone())), source);
        value
    }

    /// A text that may be absent, which means `absent`.
    pub(super) fn optional_text<T>(
        &mut self,
        key: Key,
        allowed: &str,
        (absent, example): (&'static str, &str),
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.declare(key, allowed, DeclaredDefault::Absent(absent, Shown::Text(example.to_owned())));
        let parse = |value: &Value| {
            let text = text(value)?;
            Ok((parse(text)?, text.to_owned()))
        };
        let Some(((value, text), source)) = self.given(key.name, allowed, parse) else {
            self.effect(key.name, Err(absent), Source::Default);
            return None;
        };
        self.effect(key.name, Ok(Shown::Text(text)), source);
        Some(value)
    }

    /// A list of different texts.
    pub(super) fn list<T>(
        &mut self,
        key: Key,
        allowed: &str,
        default: &[&str],
        count: RangeInclusive<usize>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let differ = |items: &[String]| match items
            .iter()
            .enumerate()
            .find(|(at, item)| items.iter().take(*at).any(|earlier| earlier == *item))
        {
            Some((_, item)) => Err(format!("{} stands there twice", quote(item))),
            None => Ok(()),
        };
        self.texts(key, allowed, default, count, parse, differ)
    }

    /// A list of texts in which one may stand twice, empty by default.
    pub(super) fn words<T>(
        &mut self,
        key: Key,
        allowed: &str,
        count: RangeInclusive<usize>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        self.texts(key, allowed, &[], count, parse, |_| Ok(()))
    }

    fn texts<T>(
        &mut self,
        key: Key,
        allowed: &str,
        default: &[&str],
        count: RangeInclusive<usize>,
        parse: impl Fn(&str) -> Result<T, String>,
        check: impl Fn(&[String]) -> Result<(), String>,
    ) -> Vec<T> {
        let default: Vec<String> = default.iter().map(|item| (*item).to_owned()).collect();
        let read = |value: &Value| {
            let items = list(value)?;
            if !count.contains(&items.len()) {
                return Err(format!("{} entries", items.len()));
            }
            check(&items)?;
            for item in &items {
                parse(item).map_err(|why| format!("{}: {why}", quote(item)))?;
            }
            Ok(items)
        };
        let items = self.value(key, allowed.to_owned(), default, read, |items| Shown::List(items.clone()));
        // Each was parsed above; a default that does not parse is found by the tests.
        items.iter().filter_map(|item| parse(item).ok()).collect()
    }

    /// A table of names and values, each looked at by `refuse`, which gives the reason against one.
    pub(super) fn table(
        &mut self,
        key: Key,
        allowed: &str,
        refuse: impl Fn(&str) -> Option<String>,
    ) -> Vec<(String, String)> {
        self.declare(key, allowed, DeclaredDefault::Value(Shown::Table(Vec::new())));
        let Some((found, source)) = self.given(key.name, allowed, entries) else {
            self.effect(key.name, Ok(Shown::Table(Vec::new())), Source::Default);
            return Vec::new();
        };
        let mut table = Vec::new();
        for (name, entry, place) in found {
            let place = place.unwrap_or_else(|| source.clone());
            let full = format!("{}.{}", key.name, quote(&name));
            if let Some(reason) = refuse(&name) {
                // The value stays unsaid: some of these are secrets.
                self.problems.push(Problem::of(&full, Some(place), format!("is not allowed here: {reason}")));
                continue;
            }
            match scalar(&entry) {
                Ok(value) => table.push((name, value)),
                Err(why) => self.problems.push(Problem::of(&full, Some(place), why)),
            }
        }
        self.effect(key.name, Ok(Shown::Table(table.clone())), source);
        table
    }

    /// A secret: from the variable of `secret`, else from the file that `<secret>_file` names. The configuration
    /// file itself may not hold it, because such files are copied, mailed and committed.
    ///
    /// The file is read here to find mistakes at the start, and again whenever the secret is used.
    pub(super) fn secret(&mut self, secret: &'static str, file: Key, example: &str) -> Option<Password> {
        self.secret_or(secret, file, ("none is sent", example))
    }

    /// As [`Reader::secret`], and says what its absence means.
    pub(super) fn secret_or(
        &mut self,
        secret: &'static str,
        file: Key,
        absent: (&'static str, &str),
    ) -> Option<Password> {
        let found = self.found_secret(secret, file, absent);
        self.outcome.secrets.extend(found.clone());
        found
    }

    fn found_secret(
        &mut self,
        secret: &'static str,
        file: Key,
        absent: (&'static str, &str),
    ) -> Option<Password> {
        let pointer = format!("give {} or set the variable {}", file.name, variable_of(secret));
        if let Some(found) = self.sources.take_from_file(secret) {
            let what = format!("may not stand in the configuration file: {pointer}");
            self.problems.push(Problem::of(secret, Some(found.source), what));
        }
        let path = self.optional_text(file, "a path", absent, not_empty);
        if let Some(found) = self.sources.take(secret) {
            let Value::Word(text) = &found.value else { return None };
            if text.is_empty() {
                let what = "is empty: unset the variable or give it the secret".to_owned();
                self.problems.push(Problem::of(secret, Some(found.source), what));
                return None;
            }
            let read = Secret::new(text);
            self.effect(secret, Ok(Shown::Secret), found.source);
            return Some(Password::Given(read));
        }
        let written = path?;
        let path = self.sources.secret_folder().join(&written);
        let password = Password::File(path.clone());
        match password.read() {
            Ok(_) => {
                self.effect(secret, Ok(Shown::Secret), Source::SecretFile(path));
                Some(password)
            }
            Err(error) => {
                let what = format!("{error}{}", self.sources.way_to_secret(&written));
                let problem = self.problem_of(file.name, what);
                self.problems.push(problem);
                None
            }
        }
    }

    /// A file that the agent reads whenever it needs it, for example a certificate. A relative path starts where those
    /// of secrets do.
    pub(super) fn file(&mut self, key: Key, (absent, example): (&'static str, &str)) -> Option<PathBuf> {
        let written = self.optional_text(key, "a path", (absent, example), not_empty)?;
        let path = self.sources.secret_folder().join(&written);
        if let Err(error) = std::fs::File::open(&path) {
            let way = self.sources.way_to_secret(&written);
            let what = format!("the file {} cannot be read: {error}{way}", path.display());
            let problem = self.problem_of(key.name, what);
            self.problems.push(problem);
            return None;
        }
        Some(path)
    }

    /// Tables that may be there several times, `[[name]]`, each with the keys that `read` reads; `read` gets the
    /// table's number, from 1. Answers those with which nothing is wrong, and their places. They stand in the file only:
    /// a variable could not say which one it means.
    pub(super) fn tables<T>(
        &mut self,
        name: &'static str,
        meaning: &'static str,
        count_max: usize,
        read: impl Fn(&mut Self, usize) -> T,
    ) -> Vec<(T, Source)> {
        let section = Section { name, meaning, is_repeated: true };
        self.outcome.sections.push(section);
        let mut declaring = Self::new(Sources::default());
        read(&mut declaring, 1);
        let declared = declaring.outcome.declared;
        let names: Vec<&str> = declared.iter().map(|declared| declared.key.name).collect();
        let mut tables = Vec::new();
        for (number, (entries, place)) in (1..).zip(self.tables_of(name, count_max)) {
            let mut reader = Self::new(Sources::of_table(name, entries));
            let table = read(&mut reader, number);
            let mut problems = reader.problems;
            problems.extend(nearest::unknown(reader.sources.into_rest(), &[section], &names));
            if problems.is_empty() {
                tables.push((table, place));
            }
            self.problems.extend(problems);
            self.outcome.effective.extend(reader.outcome.effective.into_iter().map(|effective| {
                let key = effective.key.strip_prefix(name).unwrap_or_default();
                Effective { key: format!("{name}.{number}{key}").into(), ..effective }
            }));
        }
        self.outcome.declared.extend(declared);
        tables
    }

    /// The tables under `name`, each with its place, and a problem for whatever else is there.
    fn tables_of(&mut self, name: &str, count_max: usize) -> Vec<(Vec<(String, Found)>, Source)> {
        let header = format!("[[{name}]]");
        let mut strays = self.sources.take_section(name);
        let found = self.sources.take_from_file(name);
        let mut tables = Vec::new();
        match found {
            Some(Found { value: Value::List(items), .. }) => {
                for Found { value, shown, source } in items {
                    match value {
                        Value::Table(entries) => tables.push((entries, source)),
                        value => strays.push(Found { value, shown, source }),
                    }
                }
            }
            found => strays.extend(found),
        }
        if let Some((_, place)) = tables.get(count_max) {
            let what = format!("is there {} times; allowed: at most {count_max}", tables.len());
            self.problems.push(Problem::of(&header, Some(place.clone()), what));
        }
        let mut is_told = false;
        for Found { source, .. } in strays {
            if matches!(source, Source::Variable(_)) {
                let what = format!("no variable can set this: {header} stands in the file only");
                self.problems.push(Problem::general(Some(source), what));
            } else if !std::mem::replace(&mut is_told, true) {
                let what = format!("is a table for each: write {header} and its keys in the lines below it");
                self.problems.push(Problem::of(name, Some(source), what));
            }
        }
        tables
    }

    /// Notes what is wrong with keys that were read.
    pub(super) fn refuse(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// A rule between keys. `key` is the one named; the place is that of the first of `others` that somebody set.
    /// Skipped when one of them is already known to be wrong.
    pub(super) fn relation(&mut self, holds: bool, key: &'static str, others: &[&str], what: String) {
        let wrong = |name: &str| self.problems.iter().any(|problem| problem.key.as_deref() == Some(name));
        if holds || wrong(key) || others.iter().any(|other| wrong(other)) {
            return;
        }
        let set = std::iter::once(&key)
            .chain(others)
            .find_map(|name| self.effective(name).filter(|effective| !effective.source.is_default()));
        let source = set.map(|effective| effective.source.clone());
        let mut problem = self.problem_of(key, what);
        problem.source = source.or(problem.source);
        self.problems.push(problem);
    }

    /// Reports what nobody asked for and gives everything back, or all problems in the order of the file.
    pub(super) fn finish(mut self) -> Result<Outcome, Vec<Problem>> {
        let is_single = |name: &str| {
            let mut repeated = self.outcome.sections.iter().filter(|section| section.is_repeated);
            !repeated.any(|section| name.split_once('.').is_some_and(|(first, _)| first == section.name))
        };
        let names = self.outcome.declared.iter().map(|declared| declared.key.name);
        let names: Vec<&str> = names.filter(|name| is_single(name)).collect();
        self.problems.extend(nearest::unknown(self.sources.into_rest(), &self.outcome.sections, &names));
        if self.problems.is_empty() {
            return Ok(self.outcome);
        }
        self.problems.sort_by_key(|problem| match &problem.source {
            Some(Source::File { line, .. }) => (0, *line),
            Some(Source::Variable(_)) => (1, 0),
            _ => (2, 0),
        });
        Err(self.problems)
    }

    /// The declarations alone.
    pub(super) fn into_outcome(self) -> Outcome {
        self.outcome
    }

    /// The shape shared by all keys that have a default.
    fn value<T>(
        &mut self,
        key: Key,
        allowed: String,
        default: T,
        parse: impl Fn(&Value) -> Result<T, String>,
        show: impl Fn(&T) -> Shown,
    ) -> T {
        self.declare(key, &allowed, DeclaredDefault::Value(show(&default)));
        let given = self.given(key.name, &allowed, parse);
        let (value, source) = given.unwrap_or((default, Source::Default));
        self.effect(key.name, Ok(show(&value)), source);
        value
    }

    fn given<T>(
        &mut self,
        name: &'static str,
        allowed: &str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Option<(T, Source)> {
        let found = self.sources.take(name)?;
        match parse(&found.value) {
            Ok(value) => Some((value, found.source)),
            Err(why) => {
                let what = format!("{why}; allowed: {allowed}");
                self.problems.push(Problem::of(name, Some(found.source), what).with_value(&found.shown));
                None
            }
        }
    }

    fn declare(&mut self, key: Key, allowed: &str, default: DeclaredDefault) {
        self.outcome.declared.push(Declared { key, allowed: allowed.to_owned(), default });
    }

    fn effect(&mut self, key: &'static str, value: Result<Shown, &'static str>, source: Source) {
        self.outcome.effective.push(Effective { key: key.into(), value, source });
    }

    fn effective(&self, key: &str) -> Option<&Effective> {
        self.outcome.effective.iter().find(|effective| effective.key == key)
    }

    /// A problem of a key that was read already, with its value and place.
    fn problem_of(&self, key: &'static str, what: String) -> Problem {
        let effective = self.effective(key);
        let source = effective.map(|effective| effective.source.clone());
        let problem = Problem::of(key, source, what);
        match effective.and_then(|effective| effective.value.as_ref().ok()) {
            Some(value) => problem.with_value(&value.to_toml()),
            None => problem,
        }
    }
}

fn not_empty(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}
