//! What people and metrics ask of the core. The scheduler never does, so this may look at everything.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::id::{AgentId, AttemptId, Epoch, JobRunId, PackRunId};
use packrun_protocol::job::Definition;
use packrun_protocol::name::{JobKey, Labels};
use packrun_protocol::state::{JobRunState, Reason};
use packrun_protocol::time::Timestamp;

use super::change::AgentRow;
use super::event::SessionId;
use super::plan::Plan;
use super::state::{Agent, JobRun, PackRun, Place};
use super::{Config, Core, RestoreError};

/// An agent as it stands.
#[derive(Debug, Clone, Copy)]
pub struct AgentView<'a> {
    /// What is kept of it.
    pub row: &'a AgentRow,
    /// Its session, while it is connected.
    pub session: Option<SessionId>,
    /// Whether it said that it wants nothing more in this session.
    pub declines: bool,
    /// How many attempts it holds.
    pub held: usize,
    agent: &'a Agent,
}

impl<'a> AgentView<'a> {
    fn of(agent: &'a Agent) -> Self {
        let (session, declines, held) = (agent.session, agent.declines, agent.held.len());
        Self { row: &agent.row, session, declines, held, agent }
    }

    /// Those of the labels it claims that don't count, while it is connected.
    #[must_use]
    pub fn refused(&self) -> Labels {
        if self.session.is_some() { self.agent.refused() } else { Labels::default() }
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Pack runs that have not ended.
    pub pack_runs: usize,
    /// Job runs that wait for an agent, those that wait for their backoff not among them.
    pub queued: usize,
    /// Attempts that agents hold.
    pub held: usize,
    /// Agents with a session.
    pub connected: usize,
}

impl Core {
    /// How often the store had been opened for writing when this core began.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// All agents, by id.
    pub fn agents(&self) -> impl Iterator<Item = AgentView<'_>> {
        self.agents.values().map(AgentView::of)
    }

    /// One agent.
    #[must_use]
    pub fn agent(&self, id: AgentId) -> Option<AgentView<'_>> {
        self.agents.get(&id).map(AgentView::of)
    }

    /// What was set for this core.
    #[must_use]
    pub fn config(&self) -> Config {
        self.config
    }

    /// The plan of a live pack run.
    #[must_use]
    pub fn plan(&self, run: PackRunId) -> Option<Arc<Plan>> {
        self.runs.get(&run).map(|run| run.row.plan.clone())
    }

    /// What a current attempt has to do.
    #[must_use]
    pub fn definition(&self, id: AttemptId) -> Option<Arc<Definition>> {
        let place = self.places.get(&id.job_run)?;
        let run = self.runs.get(&place.run)?;
        let job_run = run.job_runs.get(place.index as usize)?;
        (job_run.number == Some(id.number)).then(|| run.planned(place.index).definition.clone())
    }

    /// The attempts of a pack run whose agents are not connected, and when each was assigned. Costs a look at each
    /// agent.
    #[must_use]
    pub fn away(&self, run: PackRunId) -> Vec<(AttemptId, Timestamp)> {
        let Some(pack_run) = self.runs.get(&run) else { return Vec::new() };
        let places = Place { run, index: 0 }..=Place { run, index: u32::MAX };
        let away = self.agents.values().filter(|agent| agent.session.is_none());
        let held = away.flat_map(|agent| agent.held.range(places.clone()));
        held.filter_map(|place| Some((pack_run.attempt_id(place.index)?, self.assigned_at(*place)))).collect()
    }

    /// How much there is. Costs a look at each agent and each queue.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            pack_runs: self.runs.len(),
            queued: self.schedule.len(),
            held: self.agents().map(|agent| agent.held).sum(),
            connected: self.agents().filter(|agent| agent.session.is_some()).count(),
        }
    }

    /// The pack runs that could not be restored and have not ended, and why.
    pub fn quarantined(&self) -> impl Iterator<Item = (PackRunId, &RestoreError)> {
        self.quarantined.iter().map(|(id, (_, error))| (*id, error))
    }

    /// The pack run and the key of a job run of a live pack run.
    #[must_use]
    pub fn live_job_run(&self, id: JobRunId) -> Option<(PackRunId, JobKey)> {
        let place = self.places.get(&id)?;
        Some((place.run, self.runs.get(&place.run)?.planned(place.index).key.clone()))
    }

    /// Why a job run is blocked or queued; `None` when it is neither, or not of a live pack run.
    #[must_use]
    pub fn why_queued(&self, id: JobRunId) -> Option<Reason> {
        let place = self.places.get(&id)?;
        let run = self.runs.get(&place.run)?;
        let job_run = run.job_runs.get(place.index as usize)?;
        let words = match (job_run.state, job_run.ready_at) {
            (JobRunState::Blocked, _) => run.waits_for(job_run),
            (JobRunState::Queued, Some(at)) => format!("its next attempt is not before {at}"),
            (JobRunState::Queued, None) => self.explain(run.requirement(place.index)),
            _ => return None,
        };
        Some(Reason::new(&words))
    }

    /// As [`why_queued`](Self::why_queued), for all job runs of a live pack run, in the order of their index. What is
    /// said of one job run is said of all of its job, or with its requirement: those are looked at once.
    #[must_use]
    pub fn why_all_queued(&self, id: PackRunId) -> Vec<(u32, Arc<Reason>)> {
        let Some(run) = self.runs.get(&id) else { return Vec::new() };
        let (mut blocked, mut queued) = (BTreeMap::new(), BTreeMap::new());
        let reasons = (0..).zip(&run.job_runs).filter_map(|(index, job_run)| {
            let said: &mut Arc<Reason> = match (job_run.state, job_run.ready_at) {
                (JobRunState::Blocked, _) => blocked
                    .entry(job_run.job)
                    .or_insert_with(|| Arc::new(Reason::new(&run.waits_for(job_run)))),
                (JobRunState::Queued, None) => {
                    let wanted = run.requirement(index);
                    queued.entry(wanted).or_insert_with(|| Arc::new(Reason::new(&self.explain(wanted))))
                }
                (JobRunState::Queued, Some(at)) => {
                    let words = format!("its next attempt is not before {at}");
                    return Some((index, Arc::new(Reason::new(&words))));
                }
                _ => return None,
            };
            Some((index, Arc::clone(said)))
        });
        reasons.collect()
    }
}

impl PackRun {
    fn waits_for(&self, job_run: &JobRun) -> String {
        let names = self.planned_job(job_run.job).needs.iter().filter_map(|need| {
            let open = self.jobs[need.0 as usize].open > 0;
            open.then(|| self.planned_job(*need).name.as_str())
        });
        format!("it waits for {}", names.collect::<Vec<_>>().join(", "))
    }
}
