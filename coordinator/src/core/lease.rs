//! Sessions and leases: who an agent is while it is connected, and how long it is trusted while it is not.
//!
//! A lease begins when the session is gone, or when the core is restored, and ends with the next session or with
//! the loss of all the agent holds. What an agent holds and reports goes on. What it holds and doesn't report
//! depends: a running attempt is lost, for its journal lists all it has; one that was only assigned never
//! arrived, and is handed out again under its number.

use std::collections::BTreeMap;

use packrun_protocol::control::HeldPhase;
use packrun_protocol::id::AgentId;
use packrun_protocol::state::{AttemptState, JobRunState, Reason};

use super::Core;
use super::change::{AgentState, Change};
use super::deadline::Deadline;
use super::event::{Arrival, Capacity, SessionId};
use super::outcome::{CloseReason, Effect, Standing};
use super::state::Place;

impl Core {
    pub(super) fn connect(&mut self, id: AgentId, session: SessionId, arrival: Arrival) {
        let Arrival { capacity, draining, held } = arrival;
        if let Err(why) = self.open_session(id, session, capacity, draining) {
            self.out.effects.push(Effect::CloseSession { agent: id, session, why });
            return;
        }
        let mut reported = BTreeMap::new();
        let mut standings = Vec::with_capacity(held.len());
        for held in held {
            let place = self.held_place(id, held.attempt);
            let standing = match (place, held.phase) {
                (Some(place), _) => Standing::GoOn {
                    pack_run: place.run,
                    assigned_at: self.assigned_at(place),
                    log_bytes_max: self.log_bytes_max(place),
                },
                (None, HeldPhase::Ended) => Standing::Settled,
                (None, HeldPhase::Assigned | HeldPhase::Running(_)) => Standing::Fenced,
            };
            standings.push((held.attempt, standing));
            reported.extend(place.map(|place| (place, held.phase)));
        }
        let Some(agent) = self.agents.get(&id) else { return };
        let (epoch, refused) = (self.epoch, agent.refused());
        self.out.effects.push(Effect::Welcome { agent: id, session, epoch, standings, refused });
        if agent.row.state == AgentState::Drained {
            self.out.effects.push(Effect::Drain { agent: id, session, drained: true });
        }
        let (availability, holds) = (agent.availability(), agent.held.clone());
        for place in holds {
            self.reconcile(id, place, reported.get(&place).copied());
        }
        self.schedule.set_availability(id, availability);
    }

    /// Lets the session take the place of an older one.
    fn open_session(
        &mut self,
        id: AgentId,
        session: SessionId,
        capacity: Capacity,
        draining: bool,
    ) -> Result<(), CloseReason> {
        let agent = self.agents.get(&id).ok_or(CloseReason::Unknown)?;
        if agent.row.state == AgentState::Revoked {
            return Err(CloseReason::Revoked);
        }
        if agent.session.is_some_and(|newer| newer > session) {
            return Err(CloseReason::Superseded);
        }
        let labels = self.labels_of(&capacity.labels, &agent.row.granted).map_err(|_| CloseReason::Labels)?;
        let agent = self.agents.get_mut(&id).ok_or(CloseReason::Unknown)?;
        agent.claimed = capacity.labels;
        let capacity = Capacity { labels, ..capacity };
        if let Some(older) = agent.session.replace(session).filter(|older| *older != session) {
            let why = CloseReason::Superseded;
            self.out.effects.push(Effect::CloseSession { agent: id, session: older, why });
        }
        if agent.row.capacity.as_ref() != Some(&capacity) {
            agent.row.capacity = Some(capacity.clone());
            self.out.changes.push(Change::Agent(agent.row.clone()));
        }
        agent.declines = draining;
        self.deadlines.clear(Deadline::Lease(id));
        self.schedule.set_capacity(id, capacity);
        Ok(())
    }

    /// Compares an attempt that the agent holds with what its journal says.
    fn reconcile(&mut self, id: AgentId, place: Place, reported: Option<HeldPhase>) {
        let Some(run) = self.runs.get(&place.run) else { return };
        let job_run = &run.job_runs[place.index as usize];
        let (state, canceled) = (job_run.state, job_run.canceled);
        match reported {
            Some(phase) => {
                if matches!(phase, HeldPhase::Running(_)) {
                    self.start(place);
                }
                if canceled {
                    self.tell_cancel(place, id, &Reason::new("it was canceled while its agent was away"));
                }
            }
            None if canceled => self.end_attempt(place, AttemptState::Canceled, None, None),
            None if state == JobRunState::Running => self.lose(place, "its agent came back without it"),
            None => {
                let wanted = run.requirement(place.index);
                if self.schedule.host(id).is_some_and(|host| host.matches(wanted) && !host.is_overfull()) {
                    self.dispatch(place, id);
                } else {
                    self.lose(place, "its agent came back without room for it");
                }
            }
        }
    }

    pub(super) fn disconnect(&mut self, id: AgentId) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        agent.session = None;
        self.schedule.set_availability(id, agent.availability());
        self.begin_lease(id);
    }

    pub(super) fn begin_lease(&mut self, id: AgentId) {
        if self.agents.get(&id).is_some_and(|agent| !agent.held.is_empty()) {
            self.deadlines.set(Deadline::Lease(id), self.now + self.config.lease);
        }
    }

    pub(super) fn end_lease(&mut self, id: AgentId) {
        self.lose_all(id, "its agent was away for longer than the lease");
    }

    pub(super) fn lose_all(&mut self, id: AgentId, why: &str) {
        let held = self.agents.get(&id).map(|agent| agent.held.clone()).unwrap_or_default();
        for place in held {
            self.lose(place, why);
        }
    }
}
