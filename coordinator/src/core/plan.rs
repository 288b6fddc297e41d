//! A plan: what one pack run will do, expanded over its matrices and rendered with its parameters when it is
//! created, and kept with it. Types only; `pack/` makes them.
//!
//! Invariants: job names, job run ids and keys are unique; every index in `needs` is that of an earlier job in
//! the list, so the list is in topological order and there is no cycle; every job has at least one run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::id::JobRunId;
use packrun_protocol::job::{Definition, Requirement};
use packrun_protocol::name::{JobKey, Name};
use serde::{Deserialize, Serialize};

/// The position of a job in its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobIndex(pub u32);

/// When a job runs, once all that it needs has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// All it needs succeeded, or failed and was allowed to.
    #[default]
    Success,
    /// At least one of the job runs it needs failed.
    Failure,
    /// In any case, but that the pack run was canceled.
    Always,
}

impl When {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Success, Self::Failure, Self::Always];

    /// As packs and records write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Always => "always",
        }
    }
}

/// The longest wait before a retry.
pub const BACKOFF_MAX: Duration = Duration::from_secs(3600);

/// How often a job run is tried, and how long it waits in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Tries in all, 1 or more.
    pub attempts: u32,
    /// Time before the second try. It doubles from try to try, with jitter, up to [`BACKOFF_MAX`].
    pub backoff: Duration,
}

/// All jobs of a pack run, in topological order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The jobs; what a job needs stands before it.
    pub jobs: Vec<PlannedJob>,
}

/// One job of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedJob {
    /// Its name.
    pub name: Name,
    /// The jobs that must have ended before it starts, each named once.
    pub needs: Vec<JobIndex>,
    /// What they must have come to.
    pub when: When,
    /// Whether its failure counts as none.
    pub allow_failure: bool,
    /// How often each of its job runs is tried.
    pub retry: Retry,
    /// One job run, or one per combination of its matrix, in declared order.
    pub runs: Vec<PlannedRun>,
}

/// One job run of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedRun {
    /// Its id, made with the plan.
    pub id: JobRunId,
    /// Its key.
    pub key: JobKey,
    /// What it wants of its agent.
    pub requirement: Requirement,
    /// What to do.
    pub definition: Arc<Definition>,
}

impl Plan {
    /// All job runs, in the order of their index.
    pub fn job_runs(&self) -> impl Iterator<Item = &PlannedRun> {
        self.jobs.iter().flat_map(|job| &job.runs)
    }

    /// Checks the invariants above, so that nothing behind it has to.
    ///
    /// # Errors
    /// Names the invariant that is broken.
    pub fn check(&self) -> Result<(), &'static str> {
        let (mut names, mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (position, job) in self.jobs.iter().enumerate() {
            if !names.insert(&job.name) {
                return Err("two jobs have one name");
            }
            if job.runs.is_empty() {
                return Err("a job has no job run");
            }
            let needs: BTreeSet<_> = job.needs.iter().collect();
            if needs.len() < job.needs.len() || needs.iter().any(|need| need.0 as usize >= position) {
                return Err("a job needs something twice, or something that doesn't stand before it");
            }
            if job.when == When::Failure && needs.is_empty() {
                return Err("a job waits for a failure of nothing");
            }
        }
        if names.is_empty() {
            return Err("it has no job");
        }
        if !self.job_runs().all(|run| ids.insert(run.id) && keys.insert(&run.key)) {
            return Err("two job runs have one id or one key");
        }
        u32::try_from(ids.len()).map_err(|_| "it has too many job runs")?;
        Ok(())
    }
}
