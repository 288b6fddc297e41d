//! What is asked for agents: enrol, drain, resume, revoke.

use packrun_protocol::id::AgentId;
use packrun_protocol::name::{Labels, Name};

use super::Core;
use super::change::{AgentRow, AgentState, Change};
use super::deadline::Deadline;
use super::outcome::{CloseReason, Effect, Refusal, Reply};
use super::state::Agent;

impl Core {
    /// Enrols an agent; one that is known stays as it is.
    pub(super) fn enrol(&mut self, id: AgentId, name: Name, granted: Labels) -> Reply {
        let (state, enrolled_at) = (AgentState::Active, self.now);
        self.agents.entry(id).or_insert_with(|| {
            let row = AgentRow { id, name, granted, capacity: None, state, enrolled_at };
            self.out.changes.push(Change::Agent(row.clone()));
            Agent::new(row)
        });
        Reply::Done
    }

    pub(super) fn set_draining(&mut self, id: AgentId, draining: bool) -> Result<Reply, Refusal> {
        let agent = self.agents.get_mut(&id).ok_or(Refusal::NoAgent(id))?;
        let state = if draining { AgentState::Drained } else { AgentState::Active };
        match agent.row.state {
            AgentState::Revoked => return Err(Refusal::Revoked(id)),
            already if already == state => return Ok(Reply::Done),
            _ => agent.row.state = state,
        }
        self.out.changes.push(Change::Agent(agent.row.clone()));
        if let Some(session) = agent.session {
            self.out.effects.push(Effect::Drain { agent: id, session, drained: draining });
        }
        self.schedule.set_open(id, agent.is_open());
        Ok(Reply::Done)
    }

    /// Heeds what an agent says of itself; a drain that was asked for holds in any case.
    pub(super) fn set_declining(&mut self, id: AgentId, declines: bool) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        agent.declines = declines;
        self.schedule.set_open(id, agent.is_open());
    }

    /// Shuts an agent out. What it holds is lost at once: it will never report again.
    pub(super) fn revoke(&mut self, id: AgentId) -> Result<Reply, Refusal> {
        let agent = self.agents.get_mut(&id).ok_or(Refusal::NoAgent(id))?;
        if std::mem::replace(&mut agent.row.state, AgentState::Revoked) == AgentState::Revoked {
            return Ok(Reply::Done);
        }
        self.out.changes.push(Change::Agent(agent.row.clone()));
        if let Some(session) = agent.session.take() {
            let why = CloseReason::Revoked;
            self.out.effects.push(Effect::CloseSession { agent: id, session, why });
        }
        self.deadlines.clear(Deadline::Lease(id));
        self.schedule.remove(id);
        self.lose_all(id, "its agent was revoked");
        Ok(Reply::Done)
    }
}
