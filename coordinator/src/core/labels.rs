//! Which labels an agent has: those that its invitation granted, and of its own those whose keys no invitation
//! grants. A label that says where secrets may go would be of no use if any host could claim it.
//!
//! A key is *reserved* while a join token that holds grants it, and for good once an agent has joined with it, also
//! when that agent was revoked: who claims it then is not let in its place.

use packrun_protocol::id::AgentId;
use packrun_protocol::name::{Labels, NameError};

use super::Core;
use super::change::Change;
use super::event::Capacity;
use super::state::Agent;

/// Keys that are never reserved: every host says these of itself.
const HOST_KEYS: [&str; 2] = ["arch", "os"];

fn pairs(labels: &Labels) -> impl Iterator<Item = (String, String)> {
    labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned()))
}

impl Core {
    /// Reserves the keys of labels that were granted. Connected agents that claim one lose it; what they run goes on.
    pub(super) fn reserve_keys(&mut self, granted: &Labels) {
        let mut news = Vec::new();
        for (key, _) in granted.iter().filter(|(key, _)| !HOST_KEYS.contains(key)) {
            let grants = self.reserved.entry(key.to_owned()).or_default();
            *grants += 1;
            if *grants == 1 {
                news.push(key);
            }
        }
        let claims = |agent: &&Agent| {
            agent.session.is_some() && news.iter().any(|key| agent.claimed.get(key).is_some())
        };
        let claimants: Vec<AgentId> = self.agents.values().filter(claims).map(|agent| agent.row.id).collect();
        for id in claimants {
            self.relabel(id);
        }
    }

    /// Takes back a grant that nobody used. Whoever claims a key that is free now has it from its next session on.
    pub(super) fn free_keys(&mut self, granted: &Labels) {
        for (key, _) in granted.iter() {
            if let Some(grants) = self.reserved.get_mut(key) {
                *grants -= 1;
                if *grants == 0 {
                    self.reserved.remove(key);
                }
            }
        }
    }

    /// The labels of an agent that claims these.
    ///
    /// # Errors
    /// When they are too many.
    pub(super) fn labels_of(&self, claimed: &Labels, granted: &Labels) -> Result<Labels, NameError> {
        let own = pairs(claimed).filter(|(key, _)| !self.reserved.contains_key(key));
        Labels::new(own.chain(pairs(granted)))
    }

    fn relabel(&mut self, id: AgentId) {
        let Some(agent) = self.agents.get(&id) else { return };
        let Ok(labels) = self.labels_of(&agent.claimed, &agent.row.granted) else { return };
        let Some(agent) = self.agents.get_mut(&id) else { return };
        let Some(capacity) = agent.row.capacity.as_mut().filter(|capacity| capacity.labels != labels) else {
            return;
        };
        capacity.labels = labels;
        let (capacity, availability): (Capacity, _) = (capacity.clone(), agent.availability());
        self.out.changes.push(Change::Agent(agent.row.clone()));
        self.schedule.set_capacity(id, capacity);
        self.schedule.set_availability(id, availability);
    }
}

impl Agent {
    /// Those of the labels it claims that don't count.
    pub(super) fn refused(&self) -> Labels {
        let Some(capacity) = &self.row.capacity else { return Labels::default() };
        let refused = pairs(&self.claimed).filter(|(key, value)| capacity.labels.get(key) != Some(value));
        // A part of labels is within their bounds.
        Labels::new(refused).unwrap_or_default()
    }
}
