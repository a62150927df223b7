//! How the commands write lines on standard error, times, ages, ranges and progress.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;

pub(in crate::cli) use crate::event::rfc3339 as time;
use crate::event::{Seq, Stamp};

/// A line on standard error, beside what the command prints; `who` is the command.
pub(in crate::cli) fn say(who: &str, text: impl Display) {
    say_plainly(format_args!("{who}: {text}"));
}

/// As [`say`], where nobody asks who says it.
pub(in crate::cli) fn say_plainly(text: impl Display) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// RFC 3339 to the second, for people.
pub(in crate::cli) fn short_time(wall_us: i64) -> String {
    format!("{:.0}", Timestamp::from_microsecond(wall_us).unwrap_or_default())
}

/// `trusted` or `untrusted`, as in the header `fieldpost-clock`.
pub(in crate::cli) fn clock(stamp: Stamp) -> &'static str {
    if stamp.clock_trusted { "trusted" } else { "untrusted" }
}

/// The two largest units of a length of time: `3 h 2 min`.
pub(in crate::cli) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

/// What the outside gave, with its control characters shown escaped: a terminal would act on them.
pub(in crate::cli) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// `1 event`, `2 events`.
pub(in crate::cli) fn count(n: u64, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}

/// `5-7, 9`; the first few.
pub(in crate::cli) fn ranges(ranges: &[(Seq, Seq)], shown_max: usize) -> String {
    let one = |&(first, last): &(Seq, Seq)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    let mut text = ranges.iter().take(shown_max).map(one).collect::<Vec<_>>().join(", ");
    if ranges.len() > shown_max {
        text += &format!(" and {} more", ranges.len() - shown_max);
    }
    text
}

/// A bar over `bytes` on standard error, and only on a terminal.
pub(in crate::cli) fn bar(bytes: u64) -> ProgressBar {
    bar_of(bytes, "{bytes} of {total_bytes}, {msg}")
}

/// A bar as long as that, with `words` behind it, on standard error, and only on a terminal.
pub(in crate::cli) fn bar_of(length: u64, words: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(&format!("[{{bar:24}}] {words}")) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_ranges_are_short() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (200_000, "2 d 7 h")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
        let all = [(Seq(5), Seq(7)), (Seq(9), Seq(9)), (Seq(11), Seq(12))];
        assert_eq!(ranges(&all, 2), "5-7, 9 and 1 more");
        assert_eq!(ranges(&all, 3), "5-7, 9, 11-12");
        assert_eq!(
            (time(1), short_time(1_999_999)),
            ("1970-01-01T00:00:00.000001Z".into(), "1970-01-01T00:00:01Z".into())
        );
    }
}
