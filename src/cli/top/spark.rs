//! Bars and small plots of text. Pure.

use crate::status::Past;

/// Of eighths.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The samples of the last hour come so far apart; a last one that is nearer says little of a rate.
const SAMPLE_S: u64 = 10;

/// What a plot shows of the samples, oldest first.
pub(super) fn rates(samples: &[Past], of: impl Fn(&Past) -> u64) -> Vec<f64> {
    let pairs = samples.iter().zip(samples.iter().skip(1));
    pairs
        .filter(|(first, last)| last.at_s.saturating_sub(first.at_s) >= SAMPLE_S / 2)
        .map(|(first, last)| {
            let seconds = f64::from(u32::try_from(last.at_s - first.at_s).unwrap_or(u32::MAX));
            // Less than before: the agent was started anew.
            let events = u32::try_from(of(last).saturating_sub(of(first))).unwrap_or(u32::MAX);
            f64::from(events) / seconds
        })
        .collect()
}

/// The last values in at most `columns`, the greatest of them as high as can be; several of them become their greatest
/// when there are more than columns. Nothing shows as the lowest bar.
pub(super) fn plot(values: &[f64], columns: usize) -> String {
    let each = values.len().div_ceil(columns.max(1)).max(1);
    let top = values.iter().copied().fold(0.0, f64::max);
    let group = |group: &[f64]| group.iter().copied().fold(0.0, f64::max);
    if columns == 0 {
        return String::new();
    }
    values.chunks(each).map(|values| height(group(values), top)).collect()
}

fn height(value: f64, top: f64) -> char {
    let share = if top > 0.0 { value / top } else { 0.0 };
    let [lowest, ..] = HEIGHTS;
    let steps = (1_u8..).zip(HEIGHTS.into_iter().skip(1));
    // The highest step that the value reaches; whatever is above nothing is above the lowest.
    let reached = steps.filter(|(step, _)| value > 0.0 && share * 7.0 >= f64::from(*step) - 0.5).last();
    reached.map_or(lowest, |(_, height)| height)
}

/// `[####------]`: how much of `whole` there is, in `columns` inside.
pub(super) fn bar(part: u64, whole: u64, columns: usize) -> String {
    let filled = (u128::from(part) * columns as u128).div_ceil(u128::from(whole.max(1)));
    let filled = usize::try_from(filled).unwrap_or(columns).min(columns);
    format!("[{}{}]", "#".repeat(filled), "-".repeat(columns - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_as_high_as_its_greatest_value() {
        assert_eq!(plot(&[0.0, 1.0, 2.0, 4.0], 10), "▁▃▅█");
        assert_eq!(plot(&[0.0, 0.0], 10), "▁▁");
        assert_eq!(plot(&[1.0, 0.0, 0.0, 2.0, 0.0, 0.0], 3), "▅█▁");
        assert_eq!((plot(&[], 10), plot(&[1.0], 0)), (String::new(), String::new()));
        assert!(plot(&vec![1.0; 361], 40).chars().count() <= 40);
    }

    #[test]
    fn rates_leave_out_what_is_too_short() {
        let past = |at_s, received| Past { at_s, received, delivered: 0, waiting: 0 };
        let samples = [past(10, 100), past(20, 300), past(30, 0), past(40, 5), past(41, 500)];
        assert_eq!(rates(&samples, |past| past.received), [20.0, 0.0, 0.5]);
    }

    #[test]
    fn a_bar_shows_the_least_part() {
        assert_eq!(bar(0, 100, 10), "[----------]");
        assert_eq!(bar(1, 100, 10), "[#---------]");
        assert_eq!(bar(50, 100, 10), "[#####-----]");
        assert_eq!(bar(u64::MAX, 100, 10), "[##########]");
        assert_eq!(bar(1, 0, 2), "[##]");
    }
}
