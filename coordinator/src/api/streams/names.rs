//! What ids are called: job runs by a pack run's plan, agents by the store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use packrun_protocol::block::{Entry, invalid_bytes};
use packrun_protocol::id::{AgentId, AttemptId, AttemptNumber, JobRunId, PackRunId};
use packrun_protocol::name::{JobKey, Name};

use crate::api::problem::ApiError;
use crate::api::types::{Artifact, LogEntry};
use crate::api::{Api, App};
use crate::core::plan::Plan;
use crate::engine::Reader;

/// A job run as its entries name it.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) key: JobKey,
    pub(super) job: String,
    pub(super) matrix: BTreeMap<String, String>,
}

/// The job runs of a pack run.
#[derive(Debug)]
pub(super) struct Names {
    by_id: HashMap<JobRunId, Named>,
    by_key: HashMap<JobKey, JobRunId>,
}

impl Names {
    /// Those of a pack run, which all who ask at a time share: by the plan that the core holds while the run lives,
    /// or else the store's.
    ///
    /// # Errors
    /// When there is no such pack run, or the store can't be read.
    pub(super) async fn find(api: &Api, run: PackRunId) -> Result<Arc<Self>, ApiError> {
        if let Some(known) = api.streams.known(run) {
            return Ok(known);
        }
        let names = match api.app.engine.look(move |core| core.plan(run)).await? {
            Some(plan) => Self::of(&plan),
            None => api.planner.read(&api.app, move |reader| Self::read(reader, run)).await?,
        };
        Ok(api.streams.share(run, names))
    }

    /// Those of a pack run, by the store.
    ///
    /// # Errors
    /// When there is no such pack run, or the store can't be read. It blocks on the disk.
    pub(super) fn read(reader: &Reader, run: PackRunId) -> Result<Self, ApiError> {
        reader.plan(run)?.map(|plan| Self::of(&plan)).ok_or_else(|| no_run(run))
    }

    fn of(plan: &Plan) -> Self {
        let by_id = plan.job_runs().map(|planned| (planned.id, Named::of(&planned.key)));
        let by_key = plan.job_runs().map(|planned| (planned.key.clone(), planned.id));
        Self { by_id: by_id.collect(), by_key: by_key.collect() }
    }

    /// The job run with this key.
    pub(super) fn id(&self, key: &JobKey) -> Option<JobRunId> {
        self.by_key.get(key).copied()
    }

    /// The key of a job run.
    pub(super) fn key(&self, id: JobRunId) -> Option<&JobKey> {
        self.by_id.get(&id).map(|named| &named.key)
    }

    /// The job runs of a job, or the one with this key.
    ///
    /// # Errors
    /// When the pack run has no such job.
    pub(super) fn select(&self, job: &str) -> Result<HashSet<JobRunId>, ApiError> {
        let chosen = self.by_id.iter().filter(|(_, named)| named.job == job || named.key.as_str() == job);
        let chosen: HashSet<_> = chosen.map(|(id, _)| *id).collect();
        if chosen.is_empty() {
            let shown: String = job.chars().take(80).flat_map(char::escape_default).collect();
            return Err(ApiError::not_found(format!("the pack run has no job `{shown}`")));
        }
        Ok(chosen)
    }

    /// An entry as clients see it.
    pub(super) fn entry(&self, attempt: AttemptId, entry: &Entry) -> Option<LogEntry> {
        self.by_id.get(&attempt.job_run).map(|named| named.entry(attempt, entry))
    }
}

impl Named {
    /// The job run with this key.
    pub(super) fn of(key: &JobKey) -> Self {
        let matrix = key.matrix().map(|(axis, value)| (axis.to_owned(), value.to_owned()));
        Self { key: key.clone(), job: key.job().to_owned(), matrix: matrix.collect() }
    }

    /// An entry as clients see it.
    pub(super) fn entry(&self, attempt: AttemptId, entry: &Entry) -> LogEntry {
        LogEntry {
            seq: entry.seq,
            time: entry.time,
            key: self.key.clone(),
            job: self.job.clone(),
            matrix: self.matrix.clone(),
            attempt: attempt.number,
            stream: entry.stream,
            text: String::from_utf8_lossy(&entry.text).into_owned(),
            invalid_bytes: invalid_bytes(&entry.text),
            continued: entry.continued,
        }
    }
}

/// There is no such pack run.
pub(super) fn no_run(run: PackRunId) -> ApiError {
    ApiError::not_found(format!("there is no pack run {run}"))
}

/// The agents' names, as far as they were asked for. A name never changes.
#[derive(Debug, Default)]
pub(super) struct AgentNames(HashMap<AgentId, Name>);

impl AgentNames {
    /// What an agent is called.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(super) async fn name(&mut self, app: &App, agent: AgentId) -> Result<Option<String>, ApiError> {
        if !self.0.contains_key(&agent) {
            let agents = app.read(|reader| Ok(reader.agents()?)).await?;
            self.0 = agents.into_iter().map(|row| (row.id, row.name)).collect();
        }
        Ok(self.0.get(&agent).map(ToString::to_string))
    }
}

/// A file as clients see it.
pub(super) fn shown(key: JobKey, attempt: AttemptNumber, artifact: crate::core::event::Artifact) -> Artifact {
    let crate::core::event::Artifact { name, path, content } = artifact;
    let mode = format!("{:04o}", content.mode.bits());
    Artifact { key, attempt, name, path, size: content.size, digest: content.digest, mode }
}
