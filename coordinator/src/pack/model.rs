//! A checked pack: every name resolves, every bound holds, there is no cycle. Only `check` makes one, from a
//! file's text, so what has one in hand checks nothing again but what depends on parameters.

use std::time::Duration;

use packrun_protocol::name::{MatrixValue, Name};

use super::template::Template;
use crate::core::plan::{Retry, When};

/// A named set of jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// Its name.
    pub(super) name: Name,
    pub(super) description: Option<String>,
    pub(super) params: Vec<Param>,
    pub(super) env: Vec<Variable>,
    /// In declared order; at least one.
    pub(super) jobs: Vec<Job>,
}

/// A value that is given when a pack run is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: Name,
    /// What it is for.
    pub description: Option<String>,
    /// Its value when none is given; without one it must be given.
    pub default: Option<String>,
    /// The values it may have; empty for any.
    pub choices: Vec<String>,
}

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: Template,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) name: Name,
    pub(super) description: Option<String>,
    pub(super) action: Action,
    /// Distinct positions in the pack's jobs, in declared order.
    pub(super) needs: Vec<usize>,
    pub(super) when: When,
    pub(super) env: Vec<Variable>,
    /// Axes with distinct names and values, each with at least one value.
    pub(super) matrix: Vec<Axis>,
    pub(super) labels: Vec<(String, Template)>,
    pub(super) cpu_millis: u32,
    pub(super) memory_bytes: u64,
    pub(super) timeout: Option<Duration>,
    pub(super) log_limit: Option<u64>,
    pub(super) retry: Retry,
    pub(super) artifacts: Vec<Artifact>,
    pub(super) inputs: Vec<Input>,
    pub(super) allow_failure: bool,
    pub(super) workdir: Option<Template>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Script(Template),
    /// At least a program.
    Command(Vec<Template>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Axis {
    pub(super) name: Name,
    pub(super) values: Vec<MatrixValue>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Artifact {
    pub(super) path: Template,
    pub(super) name: Option<Template>,
    pub(super) optional: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Input {
    /// One of the job's needs.
    pub(super) from: Name,
    pub(super) artifact: Template,
    pub(super) to: Option<Template>,
    pub(super) optional: bool,
}

impl Pack {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What it is for.
    #[must_use]
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// Its parameters in declared order.
    #[must_use]
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The names of its jobs in declared order, each with how many job runs it has.
    pub fn jobs(&self) -> impl Iterator<Item = (&Name, usize)> {
        self.jobs.iter().map(|job| (&job.name, job.width().unwrap_or(usize::MAX)))
    }
}

impl Job {
    /// How many job runs it has: the product of its axes. `None` when that is beyond counting, which no
    /// checked job is.
    pub(super) fn width(&self) -> Option<usize> {
        self.matrix.iter().try_fold(1usize, |width, axis| width.checked_mul(axis.values.len()))
    }
}
