//! A core from rows, at start and at takeover. Whatever the rows hold, this doesn't panic: a pack run that
//! contradicts itself is left out and named, and the others go on. It stays live in the store, where a release
//! that understands it may find it, until someone cancels it.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::id::{AgentId, Epoch, JobRunId, PackRunId};
use packrun_protocol::name::Name;
use packrun_protocol::state::{AttemptState, JobRunState};
use packrun_protocol::time::Timestamp;
use thiserror::Error;

use super::change::{
    AgentRow, AgentState, ArtifactRow, AttemptRow, Grant, JobRunRow, PackRunRow, ProgressRow, TokenRow,
};
use super::deadline::Deadline;
use super::plan::BACKOFF_MAX;
use super::state::{Agent, Attempt, PackRun, Place};
use super::{Config, Core, PackHead};

/// What is live, as it was committed.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// The newest version of every pack.
    pub packs: BTreeMap<Name, PackHead>,
    /// All agents.
    pub agents: Vec<AgentRow>,
    /// Every pack run that has not ended.
    pub runs: Vec<LiveRun>,
    /// All tokens that have not ended, at least.
    pub tokens: Vec<TokenRow>,
}

/// A pack run that has not ended.
#[derive(Debug, Clone)]
pub struct LiveRun {
    /// What of it never changes.
    pub row: Arc<PackRunRow>,
    /// What does.
    pub progress: ProgressRow,
    /// Its job runs, but those that are still blocked may be missing.
    pub job_runs: Vec<JobRunRow>,
    /// Its attempts that have not ended, at least.
    pub attempts: Vec<AttemptRow>,
    /// The artifacts of these, at least.
    pub artifacts: Vec<ArtifactRow>,
    /// The number after its last feed entry.
    pub feed_next: u64,
}

/// A pack run that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Which one.
    pub pack_run: PackRunId,
    /// Why.
    pub error: RestoreError,
}

/// What is wrong with the rows of a pack run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// The attempt of a job run that has one under way.
    #[error("job run {0} has an attempt under way, but no row of it with a known agent")]
    Attempt(JobRunId),
    /// A job run in a state that contradicts its pack run or those it needs.
    #[error("job run {0} is {1}, which contradicts its pack run or the job runs it needs")]
    Dependency(JobRunId, JobRunState),
    /// A row of a job run that is not in the plan.
    #[error("the row of job run {0} doesn't fit the plan")]
    JobRun(JobRunId),
    /// The plan.
    #[error("its plan is invalid: {0}")]
    Plan(&'static str),
    /// Its state.
    #[error("its row says that it has ended, or all its job runs have while it hasn't")]
    State,
    /// An id that another pack run has too.
    #[error("it or a job run of it has the id of another")]
    Twice,
}

impl Core {
    /// The core that these rows describe, and the pack runs that could not be restored. No agent is connected,
    /// and every lease begins anew.
    #[must_use]
    pub fn restore(config: Config, epoch: Epoch, now: Timestamp, rows: Rows) -> (Self, Vec<Quarantined>) {
        let mut core = Self::new(config, epoch, now);
        core.packs = rows.packs;
        let held = rows.tokens.into_iter().filter(|token| token.end.is_none() && !token.is_expired(now));
        for token in held {
            if let Grant::Join { labels, .. } = &token.grant {
                core.reserve_keys(labels);
            }
            core.tokens.insert(token.id, token);
        }
        for row in rows.agents {
            core.reserve_keys(&row.granted);
            if row.state != AgentState::Revoked {
                core.names.insert(row.name.clone(), 0);
            }
            let agent = Agent::new(row);
            let (id, availability) = (agent.row.id, agent.availability());
            if let Some(capacity) =
                agent.row.capacity.clone().filter(|_| agent.row.state != AgentState::Revoked)
            {
                core.schedule.set_capacity(id, capacity);
                core.schedule.set_availability(id, availability);
            }
            core.agents.insert(id, agent);
        }
        let mut quarantined = Vec::new();
        for live in rows.runs {
            let (pack_run, feed_next) = (live.row.id, live.feed_next);
            let ended = live.progress.state.is_terminal();
            match core.restored(live) {
                Ok(run) => core.adopt(run),
                Err(error) => {
                    if !ended {
                        core.quarantined.insert(pack_run, (feed_next, error.clone()));
                    }
                    quarantined.push(Quarantined { pack_run, error });
                }
            }
        }
        core.quarantined.retain(|id, _| !core.runs.contains_key(id));
        let agents: Vec<AgentId> = core.agents.keys().copied().collect();
        for agent in agents {
            core.begin_lease(agent);
        }
        (core, quarantined)
    }

    /// The pack run as its rows describe it, checked against itself and those restored before.
    fn restored(&self, live: LiveRun) -> Result<PackRun, RestoreError> {
        live.row.plan.check().map_err(RestoreError::Plan)?;
        if self.runs.contains_key(&live.row.id)
            || live.row.plan.job_runs().any(|planned| self.places.contains_key(&planned.id))
        {
            return Err(RestoreError::Twice);
        }
        let mut run = PackRun::new(live.row);
        run.state = live.progress.state;
        run.since = live.progress.since;
        run.canceled = live.progress.canceled;
        run.feed_next = live.feed_next;
        let latest = self.now + BACKOFF_MAX;
        for row in &live.job_runs {
            take_job_run(&mut run, row, latest)?;
        }
        let mut artifacts: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for row in live.artifacts {
            artifacts.entry(row.attempt).or_default().insert(row.artifact.path, row.artifact.content);
        }
        let indices: BTreeMap<_, _> = run.row.plan.job_runs().map(|planned| planned.id).zip(0..).collect();
        for row in live.attempts.iter().filter(|row| !row.state.is_terminal()) {
            let known = self
                .agents
                .get(&row.agent)
                .is_some_and(|agent| agent.row.state != AgentState::Revoked && agent.row.capacity.is_some());
            let index = indices.get(&row.id.job_run).copied();
            let index = index
                .filter(|index| known && run.is_current(*index, row))
                .ok_or(RestoreError::Attempt(row.id.job_run))?;
            run.job_runs[index].attempt = Some(Box::new(Attempt {
                agent: row.agent,
                assigned_at: row.assigned_at,
                started_at: row.started_at,
                artifacts: artifacts.remove(&row.id).unwrap_or_default(),
            }));
        }
        run.recount()?;
        if run.state.is_terminal() || run.open == 0 {
            return Err(RestoreError::State);
        }
        Ok(run)
    }

    /// Takes in a restored pack run: its queues, its backoffs, and what its agents hold.
    fn adopt(&mut self, run: PackRun) {
        let id = run.row.id;
        let (mut queued, mut held) = (Vec::new(), Vec::new());
        for (index, job_run) in (0..).zip(&run.job_runs) {
            let place = Place { run: id, index };
            if let Some(attempt) = &job_run.attempt {
                self.schedule.take(attempt.agent, run.requirement(index));
                if let Some(agent) = self.agents.get_mut(&attempt.agent) {
                    agent.held.insert(place);
                }
                held.push(place);
            } else if job_run.state == JobRunState::Queued {
                match job_run.ready_at {
                    Some(at) => self.deadlines.set(Deadline::Backoff(place), at),
                    None => queued.push(place),
                }
            }
        }
        self.know_run(run);
        for place in queued {
            self.enqueue(place);
        }
        for place in held {
            self.bound(place);
        }
    }
}

/// Takes a job run's row into its pack run. No retry waits beyond `latest`, though the row was written by a clock
/// that was ahead.
fn take_job_run(run: &mut PackRun, row: &JobRunRow, latest: Timestamp) -> Result<(), RestoreError> {
    let index = row.index as usize;
    if row.pack_run != run.row.id || index >= run.job_runs.len() || run.planned(row.index).id != row.id {
        return Err(RestoreError::JobRun(row.id));
    }
    let job_run = &mut run.job_runs[index];
    job_run.state = row.state;
    job_run.since = row.since;
    job_run.canceled = row.canceled;
    job_run.number = row.attempt;
    job_run.ready_at = row.ready_at.filter(|_| row.state == JobRunState::Queued).map(|at| at.min(latest));
    Ok(())
}

impl PackRun {
    /// Whether this row is the attempt under way of the job run at `index`.
    fn is_current(&self, index: usize, row: &AttemptRow) -> bool {
        let wanted = match row.state {
            AttemptState::Assigned => JobRunState::Assigned,
            _ => JobRunState::Running,
        };
        let job_run = &self.job_runs[index];
        job_run.state == wanted && job_run.number == Some(row.id.number)
    }

    /// Counts anew what the states of the job runs say, and checks that they go together.
    fn recount(&mut self) -> Result<(), RestoreError> {
        let ended: Vec<u32> = (0..)
            .zip(&self.job_runs)
            .filter(|(_, job_run)| job_run.state.is_terminal())
            .map(|(index, _)| index)
            .collect();
        for index in ended {
            let Some(job) = self.count_end(index) else { continue };
            for dependent in std::mem::take(&mut self.jobs[job.0 as usize].dependents) {
                self.jobs[dependent.0 as usize].waits_for -= 1;
            }
        }
        for (index, job_run) in (0..).zip(&self.job_runs) {
            let under_way = matches!(job_run.state, JobRunState::Assigned | JobRunState::Running);
            if under_way != job_run.attempt.is_some() {
                return Err(RestoreError::Attempt(self.planned(index).id));
            }
            let waits = self.jobs[job_run.job.0 as usize].waits_for > 0;
            let blocked = job_run.state == JobRunState::Blocked;
            let waits_in_vain =
                self.canceled && matches!(job_run.state, JobRunState::Blocked | JobRunState::Queued);
            if waits_in_vain || !job_run.state.is_terminal() && waits != blocked {
                return Err(RestoreError::Dependency(self.planned(index).id, job_run.state));
            }
        }
        Ok(())
    }
}
