//! Rows of the store as clients see them. A job run without a row is blocked: all that is known of it is its plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::id::{AgentId, AttemptId, JobRunId, PackRunId};
use packrun_protocol::name::{JobKey, Name};
use packrun_protocol::state::{ExitStatus, JobRunState, Reason};

use super::Waiting;
use crate::api::problem::ApiError;
use crate::api::types::{Attempt, JobRun, PackRun};
use crate::core::change::{AttemptRow, JobRunRow};
use crate::engine::{Reader, StoreError};

/// The names of agents.
type Names = BTreeMap<AgentId, Name>;

/// A pack run without its job runs.
pub(super) fn pack_run(reader: &Reader, id: PackRunId) -> Result<PackRun, ApiError> {
    let unknown =
        || ApiError::not_found(format!("there is no pack run {id}; `packrun runs list` names them"));
    let run = reader.run(id)?.ok_or_else(unknown)?;
    let progress =
        reader.progress(id)?.ok_or(StoreError::Damaged { table: "pack_run_progress", source: None })?;
    Ok(PackRun {
        id,
        pack: run.pack,
        version: run.version,
        state: progress.state,
        canceled: progress.canceled,
        params: Arc::unwrap_or_clone(run.params),
        retry_of: run.retry_of,
        created_at: run.created_at,
        since: progress.since,
        ended_at: progress.state.is_terminal().then_some(progress.since),
        job_runs: None,
    })
}

/// A pack run with its job runs in the order of its plan.
pub(super) fn whole_pack_run(reader: &Reader, id: PackRunId, waiting: &Waiting) -> Result<PackRun, ApiError> {
    let run = pack_run(reader, id)?;
    let plan = reader.plan(id)?.ok_or(StoreError::Damaged { table: "plans", source: None })?;
    let rows: BTreeMap<u32, JobRunRow> =
        reader.job_runs(id)?.into_iter().map(|row| (row.index, row)).collect();
    let newest = rows.values().filter_map(newest_attempt);
    let attempts: BTreeMap<JobRunId, AttemptRow> =
        reader.attempts_among(newest)?.into_iter().map(|row| (row.id.job_run, row)).collect();
    let names = if attempts.is_empty() { Names::new() } else { names(reader)? };
    let job_runs = (0..).zip(plan.job_runs()).map(|(index, planned)| {
        let known = Known {
            row: rows.get(&index),
            attempt: attempts.get(&planned.id),
            waiting: waiting
                .binary_search_by_key(&index, |(index, _)| *index)
                .ok()
                .and_then(|at| waiting.get(at))
                .map(|(_, reason)| reason.as_ref()),
        };
        known.job_run(id, planned.id, &planned.key, &names)
    });
    Ok(PackRun { job_runs: Some(job_runs.collect()), ..run })
}

/// A job run with its attempts. `live` is what the core says of one that lives: where it belongs, and what it waits
/// for.
pub(super) fn whole_job_run(
    reader: &Reader,
    id: JobRunId,
    live: Option<((PackRunId, JobKey), Option<Reason>)>,
) -> Result<JobRun, ApiError> {
    let unknown = || ApiError::not_found(format!("there is no job run {id}; `packrun runs show` names them"));
    let row = reader.job_run(id)?;
    let (place, waiting) = live.map_or((None, None), |(place, waiting)| (Some(place), waiting));
    let (run, key) = match (place, &row) {
        (Some(place), _) => place,
        (None, Some(row)) => {
            let plan = reader.plan(row.pack_run)?;
            let planned = plan.as_ref().and_then(|plan| plan.job_runs().nth(row.index as usize));
            let planned = planned.ok_or(StoreError::Damaged { table: "plans", source: None })?;
            (row.pack_run, planned.key.clone())
        }
        (None, None) => return Err(unknown()),
    };
    // What the core has made is not to be seen before it is in the store.
    reader.run(run)?.ok_or_else(unknown)?;
    let attempts = reader.attempts(id)?;
    let names = if attempts.is_empty() { Names::new() } else { names(reader)? };
    let newest = row.as_ref().and_then(|row| row.attempt);
    let newest = attempts.iter().find(|attempt| Some(attempt.id.number) == newest);
    let known = Known { row: row.as_ref(), attempt: newest, waiting: waiting.as_ref() };
    let job_run = known.job_run(run, id, &key, &names);
    Ok(JobRun { attempts: Some(attempts.iter().map(|row| attempt(row, &names)).collect()), ..job_run })
}

fn newest_attempt(row: &JobRunRow) -> Option<AttemptId> {
    Some(AttemptId { job_run: row.id, number: row.attempt? })
}

fn names(reader: &Reader) -> Result<Names, StoreError> {
    Ok(reader.agents()?.into_iter().map(|agent| (agent.id, agent.name)).collect())
}

fn name(agent: AgentId, names: &Names) -> String {
    names.get(&agent).map_or_else(|| agent.to_string(), |name| name.as_str().to_owned())
}

const fn code(exit: ExitStatus) -> Option<u8> {
    match exit {
        ExitStatus::Code(code) => Some(code),
        ExitStatus::Signal(_) => None,
    }
}

const fn signal(exit: ExitStatus) -> Option<u8> {
    match exit {
        ExitStatus::Code(_) => None,
        ExitStatus::Signal(signal) => Some(signal),
    }
}

fn text(reason: &Reason) -> String {
    reason.as_str().to_owned()
}

/// Why an attempt ended as it did: the coordinator's word before its agent's.
fn reason(row: &AttemptRow) -> Option<&Reason> {
    row.reason.as_ref().or_else(|| row.outcome.as_ref()?.reason.as_ref())
}

fn attempt(row: &AttemptRow, names: &Names) -> Attempt {
    let exit = row.outcome.as_ref().and_then(|outcome| outcome.exit);
    Attempt {
        number: row.id.number,
        state: row.state,
        agent: name(row.agent, names),
        agent_id: row.agent,
        assigned_at: row.assigned_at,
        started_at: row.started_at,
        ended_at: row.ended_at,
        duration_seconds: row.outcome.as_ref().map(|outcome| outcome.ran_for.as_secs_f64()),
        exit_code: exit.and_then(code),
        signal: exit.and_then(signal),
        reason: reason(row).map(text),
        entries: row.outcome.as_ref().map(|outcome| outcome.entries),
        invalid_bytes: row.outcome.as_ref().map(|outcome| outcome.invalid_bytes),
    }
}

/// All that is known of a job run beyond its plan.
struct Known<'a> {
    row: Option<&'a JobRunRow>,
    /// Its newest attempt.
    attempt: Option<&'a AttemptRow>,
    /// What it waits for.
    waiting: Option<&'a Reason>,
}

impl Known<'_> {
    fn job_run(&self, pack_run: PackRunId, id: JobRunId, key: &JobKey, names: &Names) -> JobRun {
        let state = self.row.map_or(JobRunState::Blocked, |row| row.state);
        let outcome = self.attempt.and_then(|attempt| attempt.outcome.as_ref());
        let exit = outcome.and_then(|outcome| outcome.exit);
        JobRun {
            id,
            pack_run,
            key: key.clone(),
            job: key.job().to_owned(),
            matrix: key.matrix().map(|(axis, value)| (axis.to_owned(), value.to_owned())).collect(),
            state,
            since: self.row.map(|row| row.since),
            reason: self.reason(state).map(text),
            attempt: self.row.and_then(|row| row.attempt),
            agent: self.attempt.map(|attempt| name(attempt.agent, names)),
            started_at: self.attempt.and_then(|attempt| attempt.started_at),
            ended_at: self.row.filter(|_| state.is_terminal()).map(|row| row.since),
            duration_seconds: outcome.map(|outcome| outcome.ran_for.as_secs_f64()),
            exit_code: exit.and_then(code),
            signal: exit.and_then(signal),
            invalid_bytes: outcome.map(|outcome| outcome.invalid_bytes),
            reused_from: self.row.and_then(|row| row.reused_from),
            attempts: None,
        }
    }

    fn reason(&self, state: JobRunState) -> Option<&Reason> {
        let own = self.row.and_then(|row| row.reason.as_ref());
        match state {
            JobRunState::Blocked | JobRunState::Queued => self.waiting.or(own),
            JobRunState::Assigned | JobRunState::Running => own,
            _ => own.or_else(|| self.attempt.and_then(reason)),
        }
    }
}
