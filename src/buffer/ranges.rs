//! Ranges of positions, first and last.

use crate::event::Seq;

/// What is left of `whole` without the ranges of `cut`, which come out sorted.
pub(super) fn minus((first, last): (Seq, Seq), cut: &mut [(Seq, Seq)]) -> Vec<(Seq, Seq)> {
    cut.sort_unstable();
    let mut left = Vec::new();
    let mut from = first;
    for &(a, b) in cut.iter() {
        if a > last {
            break;
        }
        if a > from {
            left.push((from, a.before()));
        }
        from = from.max(b.next());
    }
    if from <= last {
        left.push((from, last));
    }
    left
}

/// Number of positions in them.
pub(super) fn count(ranges: &[(Seq, Seq)]) -> u64 {
    ranges.iter().map(|(first, last)| last.next().0.saturating_sub(first.0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_is_not_left() {
        let seqs = |ranges: &[(u64, u64)]| ranges.iter().map(|&(a, b)| (Seq(a), Seq(b))).collect::<Vec<_>>();
        for (whole, cut, left) in [
            ((1, 10), &[][..], &[(1, 10)][..]),
            ((5, 4), &[], &[]),
            ((1, 10), &[(1, 10)], &[]),
            ((1, 10), &[(0, 30)], &[]),
            ((1, 10), &[(8, 20), (3, 4), (4, 5)], &[(1, 2), (6, 7)]),
            ((5, 10), &[(1, 2), (10, 10), (11, 12)], &[(5, 9)]),
            // A jump to the next number leaves nothing out.
            ((1, 3), &[(2, 1)], &[(1, 1), (2, 3)]),
        ] {
            let (first, last) = whole;
            let found = minus((Seq(first), Seq(last)), &mut seqs(cut));
            assert_eq!(found, seqs(left), "{whole:?} {cut:?}");
            assert_eq!(count(&found), left.iter().map(|(a, b)| b + 1 - a).sum::<u64>());
        }
    }
}
