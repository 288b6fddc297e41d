//! The chronological order over the attempts of a run: a k-way merge, pure. The caller feeds it what it asks for.
//!
//! The order is that of [`MergeKey`]: corrected time, then job run, attempt and sequence number. Within one
//! attempt both corrected time and numbers ascend, so any entry's key is a cursor: the entries behind it are the
//! same whoever asks and however many at once.
//!
//! While attempts live, nothing at or after the *watermark* comes out, the earliest time that one of them may
//! still write: so a reader that polls on from its last key gets every entry once, in order.
//!
//! Each source says the key of what it would give next, so the merge asks a source only when it is that one's
//! turn: it holds what overlaps in time, not a piece of every attempt.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use packrun_protocol::id::AttemptId;
use packrun_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

/// An entry's place in the chronological order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MergeKey {
    /// Its corrected time.
    pub time: Timestamp,
    /// Whose it is: by job run, then number.
    pub attempt: AttemptId,
    /// Its number within the attempt.
    pub seq: u64,
}

/// What a merge does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// Nothing more before the watermark.
    End,
    /// The next entry.
    Entry(MergeKey, T),
    /// Supply what this attempt has from its announced key on, then go on.
    Need(AttemptId),
}

/// A merge of attempts that goes on behind some key.
#[derive(Debug)]
pub struct Merge<T> {
    after: Option<MergeKey>,
    watermark: Option<Timestamp>,
    /// The next key of each source that has more.
    heads: BinaryHeap<Reverse<MergeKey>>,
    supplied: HashMap<AttemptId, Supplied<T>>,
}

#[derive(Debug)]
struct Supplied<T> {
    entries: VecDeque<(MergeKey, T)>,
    next: Option<MergeKey>,
}

impl<T> Merge<T> {
    /// A merge of sources that begin at or behind these keys, one for each attempt. Entries up to `after` are
    /// left out, and those from `watermark` on.
    pub fn new(
        sources: impl IntoIterator<Item = MergeKey>,
        after: Option<MergeKey>,
        watermark: Option<Timestamp>,
    ) -> Self {
        let heads = sources.into_iter().map(Reverse).collect();
        Self { after, watermark, heads, supplied: HashMap::new() }
    }

    /// The next step.
    pub fn step(&mut self) -> Step<T> {
        while let Some(&Reverse(head)) = self.heads.peek() {
            if self.watermark.is_some_and(|watermark| head.time >= watermark) {
                return Step::End;
            }
            let Some(supplied) = self.supplied.get_mut(&head.attempt) else {
                return Step::Need(head.attempt);
            };
            let Some((key, entry)) = supplied.entries.pop_front() else {
                self.supplied.remove(&head.attempt);
                continue;
            };
            let next = supplied.entries.front().map(|(key, _)| *key).or(supplied.next);
            self.heads.pop();
            if supplied.entries.is_empty() {
                self.supplied.remove(&head.attempt);
            }
            self.heads.extend(next.map(Reverse));
            if self.after.is_none_or(|after| key > after) {
                return Step::Entry(key, entry);
            }
        }
        Step::End
    }

    /// What `attempt` has, ascending, and the key at or behind which it goes on, if it does.
    pub fn supply(
        &mut self,
        attempt: AttemptId,
        entries: impl IntoIterator<Item = (MergeKey, T)>,
        next: Option<MergeKey>,
    ) {
        let entries: VecDeque<_> = entries.into_iter().collect();
        // It is the first when it was asked for.
        if self.heads.peek().is_some_and(|Reverse(head)| head.attempt == attempt) {
            self.heads.pop();
        } else {
            self.heads.retain(|Reverse(head)| head.attempt != attempt);
        }
        let head = entries.front().map(|(key, _)| *key).or(next);
        self.heads.extend(head.map(Reverse));
        if !entries.is_empty() {
            self.supplied.insert(attempt, Supplied { entries, next });
        }
    }
}

#[cfg(test)]
mod tests;
