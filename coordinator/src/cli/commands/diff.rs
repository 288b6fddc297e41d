//! A unified diff of two texts, by lines (Myers, "An O(ND) Difference Algorithm", 1986). Pure.

use std::fmt::Write as _;

use crate::cli::output::Style;

/// How many lines around a change are shown.
const CONTEXT: usize = 3;

/// Most edits that are looked for, since time and memory grow with their square. Texts that differ by more are
/// shown as one removed and one added, but for what they begin and end with alike.
const EDITS_MAX: usize = 2_000;

/// A line of a diff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep,
    Remove,
    Add,
}

/// The diff of two texts with these names; empty when they are the same.
pub(super) fn unified(old_name: &str, old: &str, new_name: &str, new: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) =
        (old.split_inclusive('\n').collect(), new.split_inclusive('\n').collect());
    let edits = edits(&old, &new);
    let mut text = String::new();
    // Where each edit stands in the old and the new text.
    let mut at = Vec::with_capacity(edits.len());
    let (mut old_at, mut new_at) = (0, 0);
    for edit in &edits {
        at.push((old_at, new_at));
        old_at += usize::from(*edit != Edit::Add);
        new_at += usize::from(*edit != Edit::Remove);
    }
    for (from, to) in hunks(&edits) {
        if text.is_empty() {
            let _ = writeln!(text, "--- {old_name}\n+++ {new_name}");
        }
        let hunk = edits.get(from..to).unwrap_or_default();
        let count = |not: Edit| hunk.iter().filter(|edit| **edit != not).count();
        let (old_start, new_start) = at.get(from).copied().unwrap_or_default();
        let range = |start: usize, count: usize| format!("{},{count}", start + usize::from(count > 0));
        let (old_range, new_range) =
            (range(old_start, count(Edit::Add)), range(new_start, count(Edit::Remove)));
        let _ = writeln!(text, "@@ -{old_range} +{new_range} @@");
        for (edit, (old_at, new_at)) in hunk.iter().zip(at.get(from..to).unwrap_or_default()) {
            let (mark, line) = match edit {
                Edit::Keep => (' ', old.get(*old_at)),
                Edit::Remove => ('-', old.get(*old_at)),
                Edit::Add => ('+', new.get(*new_at)),
            };
            let line = line.copied().unwrap_or_default();
            let _ = write!(text, "{mark}{line}");
            if !line.ends_with('\n') {
                text.push_str("\n\\ No newline at end of file\n");
            }
        }
    }
    text
}

/// A diff with its lines coloured.
pub(super) fn painted(diff: &str, color: bool) -> String {
    let painted = diff.lines().map(|line| {
        let style = match line.as_bytes().first() {
            Some(b'+') => Style::Good,
            Some(b'-') => Style::Bad,
            Some(b'@' | b'\\') => Style::Dim,
            _ => Style::Plain,
        };
        style.paint(line, color) + "\n"
    });
    painted.collect()
}

/// The ranges of edits to show: changes with their context, those that meet as one.
fn hunks(edits: &[Edit]) -> Vec<(usize, usize)> {
    let mut hunks: Vec<(usize, usize)> = Vec::new();
    for (position, _) in edits.iter().enumerate().filter(|(_, edit)| **edit != Edit::Keep) {
        let (from, to) = (position.saturating_sub(CONTEXT), (position + CONTEXT + 1).min(edits.len()));
        match hunks.last_mut() {
            Some(last) if from <= last.1 => last.1 = to,
            _ => hunks.push((from, to)),
        }
    }
    hunks
}

fn edits(old: &[&str], new: &[&str]) -> Vec<Edit> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (old.get(head..).unwrap_or_default(), new.get(head..).unwrap_or_default());
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let old_rest = old_rest.get(..old_rest.len() - tail).unwrap_or_default();
    let new_rest = new_rest.get(..new_rest.len() - tail).unwrap_or_default();
    let middle = shortest(old_rest, new_rest).unwrap_or_else(|| {
        let removed = old_rest.iter().map(|_| Edit::Remove);
        removed.chain(new_rest.iter().map(|_| Edit::Add)).collect()
    });
    let keep = |count| std::iter::repeat_n(Edit::Keep, count);
    keep(head).chain(middle).chain(keep(tail)).collect()
}

/// The fewest edits, if they are few enough.
fn shortest(old: &[&str], new: &[&str]) -> Option<Vec<Edit>> {
    let edits_max = (old.len() + new.len()).min(EDITS_MAX);
    // `furthest[edits_max + 1 + k]`: how far into `old` so many edits lead on diagonal k, where k is the position in `old` less that
    // in `new`. `rounds` keeps those of each number of edits, for the way back.
    let middle = edits_max + 1;
    let mut furthest = vec![0_usize; 2 * middle + 1];
    let mut rounds: Vec<Vec<usize>> = Vec::new();
    for count in 0..=edits_max {
        rounds.push(furthest.get(middle - count..=middle + count)?.to_vec());
        for diagonal in (middle - count..=middle + count).step_by(2) {
            let (below, above) = (*furthest.get(diagonal - 1)?, *furthest.get(diagonal + 1)?);
            let down = diagonal == middle - count || (diagonal != middle + count && below < above);
            let mut x = if count == 0 {
                0
            } else if down {
                above
            } else {
                below + 1
            };
            // On a diagonal outside of both texts there is nothing to compare.
            while let Some(y) = (x + middle).checked_sub(diagonal)
                && let (Some(a), Some(b)) = (old.get(x), new.get(y))
                && a == b
            {
                x += 1;
            }
            *furthest.get_mut(diagonal)? = x;
            if x >= old.len() && (x + middle).checked_sub(diagonal) >= Some(new.len()) {
                return Some(way_back(old.len(), new.len(), &rounds));
            }
        }
    }
    None
}

/// The edits that led to the ends of both texts. `rounds[n]` is what was known before the n-th edit, diagonals
/// -n to n.
fn way_back(old: usize, new: usize, rounds: &[Vec<usize>]) -> Vec<Edit> {
    let (mut x, mut y) = (old, new);
    let mut edits = Vec::new();
    for (count, round) in rounds.iter().enumerate().skip(1).rev() {
        // The diagonal's place in a round is k + count.
        let place = x + count - y;
        let at = |place: usize| round.get(place).copied().unwrap_or_default();
        let down = place == 0 || (place != 2 * count && at(place - 1) < at(place + 1));
        let from_x = if down { at(place + 1) } else { at(place - 1) };
        // y = x - k, on the diagonal that it came from.
        let from_y = (from_x + count).saturating_sub(if down { place + 1 } else { place - 1 });
        let (edge_x, edge_y) = if down { (from_x, from_y + 1) } else { (from_x + 1, from_y) };
        edits.extend(std::iter::repeat_n(Edit::Keep, x.saturating_sub(edge_x).min(y.saturating_sub(edge_y))));
        edits.push(if down { Edit::Add } else { Edit::Remove });
        (x, y) = (from_x, from_y);
    }
    edits.extend(std::iter::repeat_n(Edit::Keep, x.min(y)));
    edits.reverse();
    edits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the diff makes of the old text.
    fn applied(old: &[&str], new: &[&str]) -> (Vec<String>, Vec<String>, usize) {
        let (mut left, mut right, mut changes) = (Vec::new(), Vec::new(), 0);
        let (mut olds, mut news) = (old.iter(), new.iter());
        for edit in edits(old, new) {
            changes += usize::from(edit != Edit::Keep);
            if edit != Edit::Add {
                left.push((*olds.next().unwrap()).to_owned());
            }
            if edit != Edit::Remove {
                right.push((*news.next().unwrap()).to_owned());
            }
            if edit == Edit::Keep {
                assert_eq!(left.last(), right.last());
            }
        }
        assert_eq!((olds.next(), news.next()), (None, None));
        (left, right, changes)
    }

    /// The fewest edits by the textbook's table.
    fn fewest(old: &[&str], new: &[&str]) -> usize {
        let mut row: Vec<_> = (0..=new.len()).collect();
        for (i, a) in old.iter().enumerate() {
            let mut next = vec![i + 1];
            for (j, b) in new.iter().enumerate() {
                next.push(if a == b { row[j] } else { 1 + row[j + 1].min(next[j]) });
            }
            row = next;
        }
        row[new.len()]
    }

    #[test]
    fn a_diff_looks_as_patch_reads_it() {
        let old = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk";
        let new = "a\nB\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl\n";
        let expected = "--- build@1\n+++ build@2\n@@ -1,5 +1,5 @@\n a\n-b\n+B\n c\n d\n e\n\
                        @@ -8,4 +8,5 @@\n h\n i\n j\n-k\n\\ No newline at end of file\n+k\n+l\n";
        assert_eq!(unified("build@1", old, "build@2", new), expected);
        assert_eq!(unified("a", "x\n", "b", "x\n"), "");
        assert_eq!(unified("a", "", "b", "x\n"), "--- a\n+++ b\n@@ -0,0 +1,1 @@\n+x\n");
    }

    #[test]
    fn texts_that_differ_too_much_are_replaced() {
        let lines = |start: usize| (start..start + 2000).map(|n| n.to_string()).collect::<Vec<_>>();
        let (old, new) = (lines(0), lines(5000));
        let (old, new): (Vec<_>, Vec<_>) =
            (old.iter().map(String::as_str).collect(), new.iter().map(String::as_str).collect());
        assert_eq!(applied(&old, &new).2, 4000);
    }

    proptest! {
        #[test]
        fn a_diff_is_right_and_the_shortest(old in "[abc]{0,12}", new in "[abc]{0,12}") {
            let (old, new): (Vec<_>, Vec<_>) =
                (old.split_inclusive(|_| true).collect(), new.split_inclusive(|_| true).collect());
            let (left, right, changes) = applied(&old, &new);
            prop_assert_eq!(left, old.clone());
            prop_assert_eq!(right, new.clone());
            prop_assert_eq!(changes, fewest(&old, &new));
        }
    }
}
