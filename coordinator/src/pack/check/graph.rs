//! The graph of what jobs need: its order and its cycles. Jobs are positions in declared order.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// Jobs of a cycle that a message names.
const NAMED_MAX: usize = 10;

/// The jobs so that each stands behind all that it needs, and otherwise in declared order. Jobs on a cycle, and
/// behind one, are left out.
pub(in super::super) fn topological_order<'a>(
    needs: impl ExactSizeIterator<Item = &'a [usize]> + Clone,
) -> Vec<usize> {
    let count = needs.len();
    let mut waiting: Vec<usize> = needs.clone().map(<[usize]>::len).collect();
    let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (job, needed) in needs.enumerate() {
        for need in needed {
            if let Some(dependents) = needed_by.get_mut(*need) {
                dependents.push(job);
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = waiting
        .iter()
        .enumerate()
        .filter(|(_, waiting)| **waiting == 0)
        .map(|(job, _)| Reverse(job))
        .collect();
    let mut order = Vec::with_capacity(count);
    while let Some(Reverse(job)) = ready.pop() {
        order.push(job);
        for dependent in needed_by.get_mut(job).map(std::mem::take).unwrap_or_default() {
            if let Some(waiting) = waiting.get_mut(dependent) {
                *waiting -= 1;
                if *waiting == 0 {
                    ready.push(Reverse(dependent));
                }
            }
        }
    }
    order
}

/// Cycles among the jobs, each once, from its first job in declared order on, every job before the one it
/// needs. Cycles that share jobs with one already found may be left out; if there is any, one is found.
pub(super) fn cycles(needs: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let ordered = topological_order(needs.iter().map(Vec::as_slice));
    let mut unvisited: BTreeSet<usize> = (0..needs.len()).collect();
    let mut stuck = unvisited.clone();
    for job in ordered {
        unvisited.remove(&job);
        stuck.remove(&job);
    }
    let mut position_on_path: Vec<Option<usize>> = vec![None; needs.len()];
    let mut cycles = Vec::new();
    while let Some(start) = unvisited.first().copied() {
        // Every stuck job needs a stuck one, so a walk along these ends on its own path or an earlier one's.
        let mut path: Vec<usize> = Vec::new();
        let mut next = Some(start);
        while let Some(job) = next.filter(|job| unvisited.remove(job)) {
            if let Some(position) = position_on_path.get_mut(job) {
                *position = Some(path.len());
            }
            path.push(job);
            next = needs.get(job).into_iter().flatten().copied().find(|need| stuck.contains(need));
        }
        let closing = next.and_then(|job| position_on_path.get(job).copied().flatten());
        if let Some(mut cycle) = closing.and_then(|position| path.get(position..)).map(<[usize]>::to_vec) {
            let first = cycle.iter().enumerate().min_by_key(|(_, job)| **job).map_or(0, |(at, _)| at);
            cycle.rotate_left(first);
            cycles.push(cycle);
        }
        for job in path {
            if let Some(position) = position_on_path.get_mut(job) {
                *position = None;
            }
        }
    }
    cycles
}

/// `jobs need each other: a → b → a`, shortened in the middle when it is long.
pub(super) fn describe(path: &[&str]) -> String {
    let names = match path {
        [head @ .., last] if path.len() > NAMED_MAX => {
            let head = head.get(..NAMED_MAX - 2).unwrap_or(head);
            format!("{} → … → {last}", head.join(" → "))
        }
        _ => path.join(" → "),
    };
    format!("jobs need each other: {names}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(needs: &[Vec<usize>]) -> Vec<usize> {
        topological_order(needs.iter().map(Vec::as_slice))
    }

    #[test]
    fn jobs_keep_their_declared_order_where_needs_allow_it() {
        assert_eq!(order(&[vec![], vec![], vec![]]), [0, 1, 2]);
        assert_eq!(order(&[vec![2], vec![], vec![]]), [1, 2, 0]);
        assert_eq!(order(&[vec![1], vec![3], vec![], vec![]]), [2, 3, 1, 0]);
    }

    #[test]
    fn each_separate_cycle_is_found_and_what_only_waits_for_one_is_not_named() {
        assert_eq!(cycles(&[vec![1], vec![2], vec![1]]), [vec![1, 2]]);
        assert_eq!(cycles(&[vec![1], vec![0], vec![4], vec![], vec![2]]), [vec![0, 1], vec![2, 4]]);
        assert!(cycles(&[vec![], vec![0], vec![0, 1]]).is_empty());
        assert_eq!(describe(&["a", "b", "a"]), "jobs need each other: a → b → a");
    }

    proptest! {
        #[test]
        fn a_cycle_is_reported_exactly_when_the_order_is_incomplete(
            edges in prop::collection::vec((0..12usize, 0..12usize), 0..40),
        ) {
            let mut needs = vec![BTreeSet::new(); 12];
            for (job, need) in edges.into_iter().filter(|(job, need)| job != need) {
                needs[job].insert(need);
            }
            let needs: Vec<Vec<usize>> = needs.into_iter().map(|needs| needs.into_iter().collect()).collect();
            let cycles = cycles(&needs);
            prop_assert_eq!(cycles.is_empty(), order(&needs).len() == 12);
            for cycle in cycles {
                for (position, job) in cycle.iter().enumerate() {
                    prop_assert!(needs[*job].contains(&cycle[(position + 1) % cycle.len()]));
                }
            }
        }
    }
}
