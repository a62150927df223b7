//! A number inside a JSON payload, by its JSON pointer (RFC 6901). Pure; reads the text once and keeps nothing of it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Longest pointer in bytes.
pub const POINTER_BYTES_MAX: usize = 256;

/// Most steps: each costs a piece of stack.
const STEPS_MAX: usize = 32;

/// Where a number is: `/celsius`, `/data/0/value`, or nothing for a payload that is a number itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    steps: Vec<String>,
}

impl Pointer {
    /// The pointer that `text` says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > POINTER_BYTES_MAX {
            return Err(format!("{} bytes long", text.len()));
        }
        let mut steps = text.split('/');
        if steps.next().is_some_and(|before| !before.is_empty()) {
            return Err("a JSON pointer is empty or begins with `/`, as `/celsius`".to_owned());
        }
        let steps = steps.map(unescaped).collect::<Result<Vec<_>, _>>()?;
        if steps.len() > STEPS_MAX {
            return Err(format!("{} steps, at most {STEPS_MAX} are allowed", steps.len()));
        }
        Ok(Self { text: text.to_owned(), steps })
    }

    /// The number in this JSON text, if there is one and it fits.
    pub fn number_in(&self, json: &str) -> Option<f64> {
        let mut reader = serde_json::Deserializer::from_str(json);
        At(&self.steps).deserialize(&mut reader).ok().flatten()
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `~1` stands for `/` and `~0` for `~`.
fn unescaped(step: &str) -> Result<String, String> {
    let plain = step.replace("~1", "").replace("~0", "");
    if plain.contains('~') {
        return Err(format!("`{step}`: `~` is written `~0`, and `/` in a name `~1`"));
    }
    // Order: `~01` is `~1` and not `/`.
    Ok(step.replace("~1", "/").replace("~0", "~"))
}

/// The number that these steps lead to. A name that is there twice counts as its last, as elsewhere.
struct At<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Option<f64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<f64>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

#[allow(clippy::cast_precision_loss, reason = "a measured value; beyond 2^53 its last digits do not count")]
impl<'de> Visitor<'de> for At<'_> {
    type Value = Option<f64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Option<f64>, E> {
        Ok(self.0.is_empty().then_some(number))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Option<f64>, E> {
        self.visit_f64(number as f64)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Option<f64>, E> {
        self.visit_f64(number as f64)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Option<f64>, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Option<f64>, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Option<f64>, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<f64>, A::Error> {
        let (step, rest) =
            self.0.split_first().map_or((None, &[][..]), |(step, rest)| (Some(step.as_str()), rest));
        let mut found = None;
        while let Some(is_wanted) = map.next_key_seed(Named(step))? {
            if is_wanted {
                found = map.next_value_seed(At(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<f64>, A::Error> {
        if let Some((step, rest)) = self.0.split_first()
            && let Some(index) = index(step)
        {
            for _ in 0..index {
                if items.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(None);
                }
            }
            let found = items.next_element_seed(At(rest))?.flatten();
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(found);
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// RFC 6901, section 4: digits without a zero before them.
fn index(step: &str) -> Option<u32> {
    let is_one = step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
    step.parse().ok().filter(|_| is_one)
}

/// Whether a name is this one.
struct Named<'p>(Option<&'p str>);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(self.0 == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn number(pointer: &str, json: &str) -> Option<f64> {
        Pointer::parse(pointer).unwrap().number_in(json)
    }

    #[test]
    fn a_number_is_found_where_the_pointer_says() {
        for (pointer, json, wanted) in [
            ("", "21.5", Some(21.5)),
            ("", "-3", Some(-3.0)),
            ("", "\"21.5\"", None),
            ("/c", r#"{"a":[1,{"c":9}],"c":21}"#, Some(21.0)),
            ("/c", r#"{"c":1,"c":2}"#, Some(2.0)),
            ("/c", r#"{"c":null}"#, None),
            ("/c", r#"{"c":[1]}"#, None),
            ("/c", "[1]", None),
            ("/c/1/d", r#"{"c":[0,{"d":1e3},2]}"#, Some(1000.0)),
            ("/c/2", r#"{"c":[0,1]}"#, None),
            ("/1", "[0,1,2]", Some(1.0)),
            ("/01", "[0,1]", None),
            ("/01", r#"{"01":4}"#, Some(4.0)),
            ("/+1", "[0,1]", None),
            ("/a~1b/~0/~01/", r#"{"a/b":{"~":{"~1":{"":7}}}}"#, Some(7.0)),
            ("/\u{e9}", r#"{"\u00e9":7}"#, Some(7.0)),
            ("/c", r#"{"c":1e999}"#, None),
            ("/c", "not JSON", None),
        ] {
            assert_eq!(number(pointer, json), wanted, "{pointer} in {json}");
        }
    }

    #[test]
    fn a_wrong_pointer_says_what_is_wrong() {
        for (bad, why) in [
            ("celsius", "begins with `/`"),
            ("/a~2", "`~` is written `~0`"),
            (&"/x".repeat(STEPS_MAX + 1), "33 steps"),
            (&format!("/{}", "x".repeat(POINTER_BYTES_MAX)), "257 bytes"),
        ] {
            let error = Pointer::parse(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn nesting_costs_no_stack() {
        let deep = format!(r#"{{"a":{}{},"c":5}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(number("/c", &deep), Some(5.0));
        assert_eq!(number("/a", &deep), None);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i32>().prop_map(Value::from),
            any::<f32>().prop_map(|n| Value::from(f64::from(n))),
            Just(Value::Null),
            "[a~/0]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(("[a~/0]{0,2}", inner), 0..4)
                    .prop_map(|fields| fields.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn it_finds_what_the_library_finds(json in json(), pointer in "(/(a|0|1|~0|~1|a~1|)){0,3}") {
            let text = json.to_string();
            // Read back: the library's writer has a digit more than its reader takes.
            let json: Value = serde_json::from_str(&text).unwrap();
            let wanted = json.pointer(&pointer).and_then(Value::as_f64);
            prop_assert_eq!(number(&pointer, &text), wanted);
        }
    }
}
