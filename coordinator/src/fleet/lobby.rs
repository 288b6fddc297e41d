//! Connections of agents that have no session yet: few of each agent, for each may make the coordinator hold a whole
//! `Hello`, and waits for its seat.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use packrun_protocol::id::AgentId;

/// Connections of one agent that may wait at once. An honest one has a single one, and perhaps some that were lost and
/// don't know it.
pub(super) const WAITING_MAX: usize = 8;

/// Who waits. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Lobby(Arc<Mutex<HashMap<AgentId, usize>>>);

/// A connection that waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    lobby: Lobby,
    agent: AgentId,
}

impl Lobby {
    /// Counts one more connection of the agent; `None` when there are enough.
    pub(super) fn enter(&self, agent: AgentId) -> Option<Waiting> {
        let mut waiting = self.waiting();
        let count = waiting.entry(agent).or_default();
        if *count >= WAITING_MAX {
            return None;
        }
        *count += 1;
        Some(Waiting { lobby: self.clone(), agent })
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<AgentId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.lobby.waiting();
        if let Some(count) = waiting.get_mut(&self.agent) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                waiting.remove(&self.agent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_has_few_that_wait_and_leaves_others_alone() {
        let (lobby, agent) = (Lobby::default(), AgentId::generate());
        let mut all: Vec<_> = std::iter::from_fn(|| lobby.enter(agent)).take(100).collect();
        assert_eq!(all.len(), WAITING_MAX);
        assert!(lobby.enter(AgentId::generate()).is_some());
        all.pop();
        assert!(lobby.enter(agent).is_some());
        all.clear();
        assert!(lobby.waiting().is_empty(), "nobody is remembered who left");
    }
}
