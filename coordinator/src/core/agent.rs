//! What is asked for agents: enrol, drain, resume, revoke.

use packrun_protocol::id::{AgentId, Digest, TokenId};
use packrun_protocol::limit;
use packrun_protocol::name::Name;

use super::Core;
use super::change::{AgentRow, AgentState, Change};
use super::deadline::Deadline;
use super::outcome::{CloseReason, Effect, Refusal, Reply};
use super::state::Agent;

impl Core {
    /// Enrols an agent whose token allows it; one that is known stays as it is. Of two agents of one name, the
    /// later gets a number behind it: a name alone says which agent is meant.
    pub(super) fn enrol(
        &mut self,
        token: TokenId,
        secret: Digest,
        id: AgentId,
        name: Name,
    ) -> Result<Reply, Refusal> {
        if self.agents.contains_key(&id) {
            return Err(Refusal::NotInvited);
        }
        let (granted, given) = self.use_join_token(token, secret, id)?;
        let name = self.take_name(given.unwrap_or(name));
        let (state, enrolled_at) = (AgentState::Active, self.now);
        let row = AgentRow { id, name: name.clone(), granted, capacity: None, state, enrolled_at };
        self.out.changes.push(Change::Agent(row.clone()));
        self.agents.insert(id, Agent::new(row));
        Ok(Reply::Enrolled { name })
    }

    /// `wanted`, or the first of `wanted-2`, `wanted-3` … that no agent has, and takes it.
    fn take_name(&mut self, wanted: Name) -> Name {
        let mut number = self.names.get(&wanted).copied().unwrap_or(0);
        let mut name = wanted.clone();
        while self.names.contains_key(&name) {
            number += 1;
            let suffix = format!("-{}", number + 1);
            let room = limit::NAME_BYTES_MAX - suffix.len();
            let stem = wanted.as_str().get(..room).unwrap_or(wanted.as_str());
            // A stem of a name and a number make a name.
            let Ok(numbered) = format!("{}{suffix}", stem.trim_end_matches('-')).parse() else { break };
            name = numbered;
        }
        self.names.insert(wanted, number);
        self.names.entry(name.clone()).or_insert(0);
        name
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
        self.schedule.set_availability(id, agent.availability());
        Ok(Reply::Done)
    }

    /// Heeds what an agent says of itself; a drain that was asked for holds in any case.
    pub(super) fn set_declining(&mut self, id: AgentId, declines: bool) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        agent.declines = declines;
        self.schedule.set_availability(id, agent.availability());
    }

    /// Shuts an agent out. What it holds is lost at once: it will never report again.
    pub(super) fn revoke(&mut self, id: AgentId) -> Result<Reply, Refusal> {
        let agent = self.agents.get_mut(&id).ok_or(Refusal::NoAgent(id))?;
        if std::mem::replace(&mut agent.row.state, AgentState::Revoked) == AgentState::Revoked {
            return Ok(Reply::Done);
        }
        self.names.remove(&agent.row.name);
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
