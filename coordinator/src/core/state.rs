//! What the core remembers: live pack runs with their job runs, and agents. What has ended is the store's.
//!
//! A job run is addressed by its [`Place`]; its id, key and definition stay in the plan. Only an attempt under way
//! costs an allocation of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use packrun_protocol::id::{AgentId, AttemptId, AttemptNumber, JobRunId, PackRunId};
use packrun_protocol::job::Requirement;
use packrun_protocol::name::Labels;
use packrun_protocol::path::RelativePath;
use packrun_protocol::state::{AttemptState, JobRunState, Outcome, PackRunState, Reason};
use packrun_protocol::stream::Content;
use packrun_protocol::time::Timestamp;

use super::change::{AgentRow, AgentState, AttemptRow, JobRunRow, PackRunRow, ProgressRow};
use super::event::SessionId;
use super::plan::{JobIndex, PlannedJob, PlannedRun};
use super::schedule::Availability;

/// Where a job run lies. The order is the order of the queues: oldest pack run first, then the plan's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) run: PackRunId,
    pub(super) index: u32,
}

#[derive(Debug)]
pub(super) struct PackRun {
    pub(super) row: Arc<PackRunRow>,
    pub(super) state: PackRunState,
    pub(super) since: Timestamp,
    pub(super) canceled: bool,
    pub(super) jobs: Vec<Job>,
    pub(super) job_runs: Vec<JobRun>,
    /// Job runs that have not ended.
    pub(super) open: u32,
    pub(super) failed: u32,
    pub(super) succeeded: u32,
    pub(super) feed_next: u64,
}

/// What a job is to those that need it, and waits for itself.
#[derive(Debug)]
pub(super) struct Job {
    /// Where its job runs begin.
    pub(super) first: u32,
    /// Its job runs that have not ended.
    pub(super) open: u32,
    /// Jobs it needs that have not ended.
    pub(super) waits_for: u32,
    /// Whether one of its job runs failed, and that counts.
    pub(super) failed: bool,
    pub(super) skipped: bool,
    pub(super) dependents: Vec<JobIndex>,
}

#[derive(Debug)]
pub(super) struct JobRun {
    pub(super) job: JobIndex,
    pub(super) state: JobRunState,
    pub(super) canceled: bool,
    pub(super) since: Timestamp,
    /// The newest attempt's number.
    pub(super) number: Option<AttemptNumber>,
    pub(super) ready_at: Option<Timestamp>,
    /// The attempt an agent holds: there exactly while the job run is assigned or running.
    pub(super) attempt: Option<Box<Attempt>>,
}

#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) agent: AgentId,
    pub(super) assigned_at: Timestamp,
    pub(super) started_at: Option<Timestamp>,
    /// The files recorded so far, as many as the configuration lets it at most.
    pub(super) artifacts: BTreeMap<RelativePath, Content>,
}

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) row: AgentRow,
    pub(super) session: Option<SessionId>,
    /// Whether it said in this session that it wants nothing more.
    pub(super) declines: bool,
    /// The labels that it said it has, when its last session began.
    pub(super) claimed: Labels,
    /// The job runs whose current attempt it holds.
    pub(super) held: BTreeSet<Place>,
}

impl Agent {
    pub(super) fn new(row: AgentRow) -> Self {
        Self { row, session: None, declines: false, claimed: Labels::default(), held: BTreeSet::new() }
    }

    /// Whether it may be given more.
    pub(super) fn availability(&self) -> Availability {
        match (self.row.state, self.session) {
            (AgentState::Drained, _) => Availability::Drained,
            (_, None) | (AgentState::Revoked, _) => Availability::Away,
            (AgentState::Active, Some(_)) if self.declines => Availability::Declines,
            (AgentState::Active, Some(_)) => Availability::Open,
        }
    }
}

impl PackRun {
    /// A run in which nothing has happened yet. The plan was checked before.
    pub(super) fn new(row: Arc<PackRunRow>) -> Self {
        let since = row.created_at;
        let (mut jobs, mut job_runs) = (Vec::with_capacity(row.plan.jobs.len()), Vec::new());
        for (position, planned) in (0..).zip(&row.plan.jobs) {
            jobs.push(Job {
                first: count(job_runs.len()),
                open: count(planned.runs.len()),
                waits_for: count(planned.needs.len()),
                failed: false,
                skipped: false,
                dependents: Vec::new(),
            });
            for need in &planned.needs {
                jobs[need.0 as usize].dependents.push(JobIndex(position));
            }
            job_runs.extend(planned.runs.iter().map(|_| JobRun::new(JobIndex(position), since)));
        }
        let open = count(job_runs.len());
        Self {
            row,
            state: PackRunState::Pending,
            since,
            canceled: false,
            jobs,
            job_runs,
            open,
            failed: 0,
            succeeded: 0,
            feed_next: 0,
        }
    }

    pub(super) fn planned_job(&self, job: JobIndex) -> &PlannedJob {
        &self.row.plan.jobs[job.0 as usize]
    }

    pub(super) fn planned(&self, index: u32) -> &PlannedRun {
        let job = self.job_runs[index as usize].job;
        let position = index - self.jobs[job.0 as usize].first;
        &self.planned_job(job).runs[position as usize]
    }

    pub(super) fn requirement(&self, index: u32) -> &Requirement {
        &self.planned(index).requirement
    }

    pub(super) fn attempt_id(&self, index: u32) -> Option<AttemptId> {
        let number = self.job_runs[index as usize].number?;
        Some(AttemptId { job_run: self.planned(index).id, number })
    }

    pub(super) fn progress_row(&self) -> ProgressRow {
        ProgressRow { pack_run: self.row.id, state: self.state, since: self.since, canceled: self.canceled }
    }

    pub(super) fn job_run_row(
        &self,
        index: u32,
        reason: Option<Reason>,
        reused_from: Option<JobRunId>,
    ) -> JobRunRow {
        let job_run = &self.job_runs[index as usize];
        JobRunRow {
            pack_run: self.row.id,
            index,
            id: self.planned(index).id,
            state: job_run.state,
            since: job_run.since,
            attempt: job_run.number,
            ready_at: job_run.ready_at,
            canceled: job_run.canceled,
            reason,
            reused_from,
        }
    }
}

impl JobRun {
    const fn new(job: JobIndex, since: Timestamp) -> Self {
        Self {
            job,
            state: JobRunState::Blocked,
            canceled: false,
            since,
            number: None,
            ready_at: None,
            attempt: None,
        }
    }
}

impl Attempt {
    pub(super) fn row(
        &self,
        id: AttemptId,
        pack_run: PackRunId,
        state: AttemptState,
        end: Option<(Timestamp, Option<Outcome>, Option<Reason>)>,
    ) -> AttemptRow {
        let (ended_at, outcome, reason) = match end {
            Some((at, outcome, reason)) => (Some(at), outcome, reason),
            None => (None, None, None),
        };
        AttemptRow {
            id,
            pack_run,
            agent: self.agent,
            state,
            assigned_at: self.assigned_at,
            started_at: self.started_at,
            ended_at,
            outcome,
            reason,
        }
    }
}

/// A number of things that a checked plan bounds by `u32`.
pub(super) fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
