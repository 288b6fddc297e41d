//! What is to happen when: one table, ordered by time. A deadline is set at most once; setting it again moves it.

use std::collections::{BTreeMap, BTreeSet};

use packrun_protocol::id::{AgentId, PackRunId};
use packrun_protocol::time::Timestamp;

use super::state::Place;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    /// When to queue a job run for its next attempt.
    Backoff(Place),
    /// When to forget the idempotency key of a pack run that has ended.
    Key(PackRunId),
    /// When to take an absent agent's attempts away.
    Lease(AgentId),
    /// When to take an attempt away whose agent doesn't end it, though it should have ended.
    Overdue(Place),
}

#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Timestamp, Deadline)>,
    times: BTreeMap<Deadline, Timestamp>,
}

impl Deadlines {
    pub(super) fn set(&mut self, deadline: Deadline, at: Timestamp) {
        self.clear(deadline);
        self.times.insert(deadline, at);
        self.by_time.insert((at, deadline));
    }

    pub(super) fn clear(&mut self, deadline: Deadline) {
        if let Some(at) = self.times.remove(&deadline) {
            self.by_time.remove(&(at, deadline));
        }
    }

    pub(super) fn get(&self, deadline: Deadline) -> Option<Timestamp> {
        self.times.get(&deadline).copied()
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }

    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<Deadline> {
        let (_, deadline) = *self.by_time.first().filter(|(at, _)| *at <= now)?;
        self.clear(deadline);
        Some(deadline)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (Deadline, Timestamp)> {
        self.times.iter().map(|(deadline, at)| (*deadline, *at))
    }
}
