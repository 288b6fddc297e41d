//! A plan: what one pack run will do, expanded over its matrices and rendered with its parameters when it is
//! created, and kept with it. Types only; `pack/` makes them.
//!
//! Invariants: job names, job run ids and keys are unique; every index in `needs` is that of an earlier job in
//! the list, so the list is in topological order and there is no cycle; every job has at least one run.

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

/// How often a job run is tried, and how long it waits in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Tries in all, 1 or more.
    pub attempts: u32,
    /// Time before the second try. It doubles from try to try, with jitter, up to an hour.
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
