//! Values between their text and their type: what was found, what a key reads from it, and how a value is shown.

use std::ops::RangeInclusive;

use super::problem::Source;

/// A value before anything is known about its key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Text from the environment: a string, a number or a comma-separated list, as the key wants it.
    Word(String),
    Text(String),
    Integer(i64),
    Fraction(f64),
    Bool(bool),
    List(Vec<Found>),
    Table(Vec<(String, Found)>),
    /// A TOML type that no key has, by name.
    Other(&'static str),
}

/// A value, how it was written, and where.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) value: Value,
    pub(super) shown: String,
    pub(super) source: Source,
}

/// A value in the form in which it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(u64),
    /// A number that need not be whole, in digits.
    Number(String),
    /// A fact.
    Bool(bool),
    /// A list of strings.
    List(Vec<String>),
    /// Names and values.
    Table(Vec<(String, String)>),
    /// Set, and nobody's business.
    Secret,
}

impl Shown {
    /// As TOML; a secret is `***`, which is not.
    pub fn to_toml(&self) -> String {
        match self {
            Self::Text(text) => quote(text),
            Self::Integer(number) => number.to_string(),
            Self::Number(digits) => digits.clone(),
            Self::Bool(fact) => fact.to_string(),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Table(entries) if entries.is_empty() => "{}".to_owned(),
            Self::Table(entries) => {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|(name, value)| format!("{} = {}", quote(name), quote(value)))
                    .collect();
                format!("{{ {} }}", entries.join(", "))
            }
            Self::Secret => "***".to_owned(),
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Integer(number) => (*number).into(),
            Self::Number(digits) => serde_json::from_str(digits).unwrap_or_default(),
            Self::Bool(fact) => (*fact).into(),
            Self::List(items) => items.iter().map(String::as_str).collect(),
            Self::Table(entries) => {
                entries.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
            }
            Self::Secret => "***".into(),
        }
    }
}

pub(super) fn in_range<T: PartialOrd>(value: T, range: &RangeInclusive<T>) -> Result<T, String> {
    if value < *range.start() {
        return Err("too small".to_owned());
    }
    if value > *range.end() {
        return Err("too large".to_owned());
    }
    Ok(value)
}

pub(super) fn integer(value: &Value) -> Result<u64, String> {
    match value {
        Value::Integer(number) => u64::try_from(*number).map_err(|_| "too small".to_owned()),
        Value::Word(text) => text.trim().parse().map_err(|_| "not a whole number".to_owned()),
        Value::Text(_) => Err("a number without quotes is needed".to_owned()),
        other => Err(wrong_type(other, "a whole number")),
    }
}

#[allow(clippy::cast_precision_loss, reason = "far above every range, and refused for that")]
pub(super) fn number(value: &Value) -> Result<f64, String> {
    match value {
        Value::Fraction(number) => Ok(*number),
        Value::Integer(number) => Ok(*number as f64),
        Value::Word(text) => text.trim().parse().map_err(|_| "not a number".to_owned()),
        Value::Text(_) => Err("a number without quotes is needed".to_owned()),
        other => Err(wrong_type(other, "a number")),
    }
}

pub(super) fn fact(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(fact) => Ok(*fact),
        Value::Word(word) => word.trim().parse().map_err(|_| "not known".to_owned()),
        Value::Text(_) => Err("true or false without quotes is needed".to_owned()),
        other => Err(wrong_type(other, "true or false")),
    }
}

pub(super) fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) | Value::Word(text) => Ok(text),
        Value::Integer(_) => Err("a text in quotes is needed".to_owned()),
        other => Err(wrong_type(other, "a text in quotes")),
    }
}

/// A list of texts, or words with commas between them.
pub(super) fn list(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::List(items) => items.iter().map(|item| text(&item.value).map(str::to_owned)).collect(),
        Value::Word(words) => Ok(words.split(',').map(|word| word.trim().to_owned()).collect()),
        other => Err(wrong_type(other, "a list such as [\"a\", \"b\"]")),
    }
}

/// Names with their values and, where each has one of its own, places.
pub(super) fn entries(value: &Value) -> Result<Vec<(String, Value, Option<Source>)>, String> {
    let word = |word: &str| {
        let (name, value) = word.split_once('=').ok_or("`name=value` with commas between is needed")?;
        Ok((name.trim().to_owned(), Value::Word(value.trim().to_owned()), None))
    };
    match value {
        Value::Table(entries) => Ok(entries
            .iter()
            .map(|(name, found)| (name.clone(), found.value.clone(), Some(found.source.clone())))
            .collect()),
        Value::Word(words) if words.trim().is_empty() => Ok(Vec::new()),
        Value::Word(words) => words.split(',').map(word).collect(),
        other => Err(wrong_type(other, "a table")),
    }
}

pub(super) fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) | Value::Word(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Bool(fact) => Ok(fact.to_string()),
        other => Err(format!("is {}; allowed: a text, a whole number, true or false", type_of(other))),
    }
}

pub(super) fn wrong_type(value: &Value, needed: &str) -> String {
    format!("{needed} is needed, this is {}", type_of(value))
}

pub(super) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Word(_) | Value::Text(_) => "a text",
        Value::Integer(_) => "a number",
        Value::Fraction(_) => "a fraction",
        Value::Bool(_) => "true or false",
        Value::List(_) => "a list",
        Value::Table(_) => "a table",
        Value::Other(name) => name,
    }
}

/// A TOML basic string.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
