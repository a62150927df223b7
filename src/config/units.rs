//! Byte sizes and durations as people write them: `64 MiB`, `500 kB`, `30s`, `5ms`. Pure.
//!
//! A number and one unit, nothing else: no fractions, no sums, so that a text means one value and a value has one
//! shortest text.

use std::time::Duration;

const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a byte size; a number without a unit is bytes. Capital letters do not matter.
///
/// # Errors
/// What is wrong, for an operator.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" => 1,
        _ => factor(&BYTE_UNITS, unit).ok_or_else(|| {
            format!("the unit `{unit}` is not one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB")
        })?,
    };
    number.checked_mul(factor).ok_or_else(|| "too large".to_owned())
}

/// The shortest exact text of a byte size; binary units before decimal ones.
pub fn format_bytes(bytes: u64) -> String {
    if bytes == 0 {
        return "0 B".to_owned();
    }
    let (unit, factor) =
        BYTE_UNITS.iter().find(|(_, factor)| bytes.is_multiple_of(*factor)).unwrap_or(&("B", 1));
    format!("{} {unit}", bytes / factor)
}

/// About how much that is, for people: two digits or more, `3.4 GiB`.
pub fn about_bytes(bytes: u64) -> String {
    let (unit, factor) = BYTE_UNITS.iter().take(4).find(|(_, factor)| bytes >= *factor).unwrap_or(&("B", 1));
    let (whole, rest) = (bytes / factor, bytes % factor);
    if whole >= 10 || rest == 0 {
        return format!("{whole} {unit}");
    }
    // rest < factor <= 2^40: ten times it stays far below u64::MAX.
    format!("{whole}.{} {unit}", rest * 10 / factor)
}

/// Reads a duration. A number alone is refused: seconds and milliseconds are too easily taken for each other.
///
/// # Errors
/// What is wrong, for an operator.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return Err(unit_needed(number));
    }
    let factor = factor(&DURATION_UNITS, unit)
        .ok_or_else(|| format!("the unit `{unit}` is not one of ms, s, m, h"))?;
    number.checked_mul(factor).map(Duration::from_millis).ok_or_else(|| "too large".to_owned())
}

/// The hint for a duration that was written as a number alone.
pub fn unit_needed(number: u64) -> String {
    format!("a duration needs a unit, for example \"{number}s\" or \"{number}ms\"")
}

/// The shortest exact text of a duration; parts of a millisecond do not occur in a configuration.
pub fn format_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 {
        return "0s".to_owned();
    }
    let (unit, factor) =
        DURATION_UNITS.iter().find(|(_, factor)| ms.is_multiple_of(*factor)).unwrap_or(&("ms", 1));
    format!("{}{unit}", ms / factor)
}

fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor)
}

/// The number in front and the unit behind it.
fn split(text: &str) -> Result<(u64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if number.is_empty() {
        return Err("it does not start with a number".to_owned());
    }
    if unit.starts_with(['.', ',']) {
        return Err("only whole numbers; use a smaller unit".to_owned());
    }
    let number = number.parse().map_err(|_| "too large".to_owned())?;
    Ok((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes() {
        for (text, bytes, shortest) in [
            ("0", 0, "0 B"),
            ("64 MiB", 64 << 20, "64 MiB"),
            ("64mib", 64 << 20, "64 MiB"),
            ("500 kB", 500_000, "500 kB"),
            ("1000kB", 1_000_000, "1 MB"),
            ("1024 KiB", 1 << 20, "1 MiB"),
            ("262144", 256 << 10, "256 KiB"),
            (" 7 B ", 7, "7 B"),
            ("1 TiB", 1 << 40, "1 TiB"),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
            assert_eq!(format_bytes(bytes), shortest);
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
        for (bad, why) in [
            ("", "it does not start with a number"),
            ("MiB", "it does not start with a number"),
            ("-1", "it does not start with a number"),
            ("1.5 GiB", "only whole numbers; use a smaller unit"),
            ("64 M", "the unit `M` is not one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB"),
            ("99999999999999999999", "too large"),
            ("99999999999 TiB", "too large"),
        ] {
            assert_eq!(parse_bytes(bad), Err(why.to_owned()), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms, shortest) in [
            ("0s", 0, "0s"),
            ("5ms", 5, "5ms"),
            ("90s", 90_000, "90s"),
            ("60 s", 60_000, "1m"),
            ("120m", 7_200_000, "2h"),
            ("1500ms", 1_500, "1500ms"),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(format_duration(Duration::from_millis(ms)), shortest);
            assert_eq!(parse_duration(shortest), Ok(Duration::from_millis(ms)));
        }
        for (bad, why) in [
            ("10", "a duration needs a unit, for example \"10s\" or \"10ms\""),
            ("10 sec", "the unit `sec` is not one of ms, s, m, h"),
            ("1m30s", "the unit `m30s` is not one of ms, s, m, h"),
            ("0.5s", "only whole numbers; use a smaller unit"),
            ("soon", "it does not start with a number"),
            ("9999999999999999999h", "too large"),
        ] {
            assert_eq!(parse_duration(bad), Err(why.to_owned()), "{bad}");
        }
    }

    #[test]
    fn about() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (3_650_722_202, "3.4 GiB"), (64 << 20, "64 MiB")]
        {
            assert_eq!(about_bytes(bytes), text);
        }
        assert_eq!(about_bytes(u64::MAX), "16777215 TiB");
    }
}
