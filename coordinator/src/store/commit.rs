//! Writing: a batch of rows, each key once, into one transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::id::{AgentId, AttemptId, Epoch, JobRunId, PackRunId, TokenId};
use packrun_protocol::name::Name;
use packrun_protocol::path::RelativePath;
use redb::{ReadableTable, WriteTransaction};

use super::record::{RunInfo, VersionInfo, decode, encode};
use super::tables::{
    AGENTS, ARCHIVED, ARTIFACTS, ATTEMPTS, CANONICALS, FEED, JOB_RUN_PLACES, JOB_RUNS, KEYS, LIVE, LOGS,
    META, META_EPOCH, META_SCHEMA, META_SEQ, OPEN_LOGS, PACKS, PLANS, PROGRESS, RUNS, RUNS_BY_BOTH,
    RUNS_BY_PACK, RUNS_BY_STATE, SOURCES, TOKENS, VERSIONS, attempt_key, state_key,
};
use super::{CommitError, Lease, SCHEMA, Store, StoreError};
use crate::core::change::{
    AgentRow, ArtifactRow, AttemptRow, Change, FeedRow, JobRunRow, LogRow, PackArchiveRow, PackRunRow,
    PackVersionRow, ProgressRow, TokenRow,
};

/// Proof that a batch is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    seq: u64,
}

impl Committed {
    /// How many batches have been committed, this one included.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

/// Rows to write together. Of two with one key the later counts.
#[derive(Debug, Default)]
pub struct Batch {
    agents: BTreeMap<AgentId, AgentRow>,
    archived: BTreeMap<Name, PackArchiveRow>,
    artifacts: BTreeMap<(AttemptId, RelativePath), ArtifactRow>,
    attempts: BTreeMap<AttemptId, AttemptRow>,
    feed: BTreeMap<(PackRunId, u64), FeedRow>,
    job_runs: BTreeMap<JobRunId, JobRunRow>,
    logs: BTreeMap<AttemptId, LogRow>,
    versions: BTreeMap<(Name, u32), PackVersionRow>,
    runs: BTreeMap<PackRunId, Arc<PackRunRow>>,
    progress: BTreeMap<PackRunId, ProgressRow>,
    tokens: BTreeMap<TokenId, TokenRow>,
}

impl Batch {
    /// Adds a row.
    pub fn add(&mut self, change: Change) {
        match change {
            Change::Agent(row) => drop(self.agents.insert(row.id, row)),
            Change::Artifact(row) => {
                drop(self.artifacts.insert((row.attempt, row.artifact.path.clone()), row));
            }
            Change::Attempt(row) => drop(self.attempts.insert(row.id, row)),
            Change::Feed(row) => drop(self.feed.insert((row.pack_run, row.number), row)),
            Change::JobRun(row) => drop(self.job_runs.insert(row.id, row)),
            Change::Log(row) => drop(self.logs.insert(row.attempt, row)),
            Change::PackArchive(row) => drop(self.archived.insert(row.name.clone(), row)),
            Change::PackVersion(row) => drop(self.versions.insert((row.name.clone(), row.version), row)),
            Change::PackRun(row) => drop(self.runs.insert(row.id, row)),
            Change::Progress(row) => drop(self.progress.insert(row.pack_run, row)),
            Change::Token(row) => drop(self.tokens.insert(row.id, row)),
        }
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
            && self.archived.is_empty()
            && self.artifacts.is_empty()
            && self.attempts.is_empty()
            && self.feed.is_empty()
            && self.job_runs.is_empty()
            && self.logs.is_empty()
            && self.versions.is_empty()
            && self.runs.is_empty()
            && self.progress.is_empty()
            && self.tokens.is_empty()
    }

    /// Opens only the tables of rows that there are: most batches are of a few kinds.
    fn write(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        if !self.versions.is_empty() {
            self.write_packs(write)?;
        }
        if !self.archived.is_empty() {
            self.write_archived(write)?;
        }
        if !self.runs.is_empty() {
            self.write_runs(write)?;
        }
        if !self.progress.is_empty() {
            self.write_progress(write)?;
        }
        if !self.job_runs.is_empty() {
            self.write_job_runs(write)?;
        }
        if !self.attempts.is_empty() {
            self.write_attempts(write)?;
        }
        if !self.logs.is_empty() {
            self.write_logs(write)?;
        }
        if !self.artifacts.is_empty() {
            self.write_artifacts(write)?;
        }
        if !self.tokens.is_empty() {
            self.write_tokens(write)?;
        }
        if !self.agents.is_empty() {
            self.write_agents(write)?;
        }
        if !self.feed.is_empty() {
            self.write_feed(write)?;
        }
        Ok(())
    }

    fn write_agents(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut agents = open(write.open_table(AGENTS))?;
        for row in self.agents.values() {
            put(agents.insert(row.id.to_bytes(), &*encode(row)?))?;
        }
        Ok(())
    }

    fn write_feed(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut feed = open(write.open_table(FEED))?;
        for ((run, number), row) in &self.feed {
            put(feed.insert((run.to_bytes(), *number), &*encode(row)?))?;
        }
        Ok(())
    }

    fn write_packs(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut packs = open(write.open_table(PACKS))?;
        let mut versions = open(write.open_table(VERSIONS))?;
        let mut sources = open(write.open_table(SOURCES))?;
        let mut canonicals = open(write.open_table(CANONICALS))?;
        for row in self.versions.values() {
            let key = (row.name.as_str(), row.version);
            let info =
                VersionInfo { digest: row.digest, format: row.format, registered_at: row.registered_at };
            put(packs.insert(row.name.as_str(), row.version))?;
            put(versions.insert(key, &*encode(&info)?))?;
            put(sources.insert(key, &*row.source))?;
            put(canonicals.insert(key, &*row.canonical))?;
        }
        Ok(())
    }

    fn write_archived(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut archived = open(write.open_table(ARCHIVED))?;
        for row in self.archived.values() {
            if row.archived.is_empty() {
                put(archived.remove(row.name.as_str()))?;
            } else {
                put(archived.insert(row.name.as_str(), &*encode(&row.archived)?))?;
            }
        }
        Ok(())
    }

    fn write_runs(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut runs = open(write.open_table(RUNS))?;
        let mut plans = open(write.open_table(PLANS))?;
        let mut by_pack = open(write.open_table(RUNS_BY_PACK))?;
        let mut keys = open(write.open_table(KEYS))?;
        for row in self.runs.values() {
            let id = row.id.to_bytes();
            let info = RunInfo {
                id: row.id,
                pack: row.pack.clone(),
                version: row.version,
                params: row.params.clone(),
                idempotency: row.idempotency.clone(),
                retry_of: row.retry_of,
                created_at: row.created_at,
            };
            put(runs.insert(id, &*encode(&info)?))?;
            put(plans.insert(id, &*encode(&row.plan)?))?;
            put(by_pack.insert((row.pack.as_str(), id), ()))?;
            if let Some(idempotency) = &row.idempotency {
                put(keys.insert(&*idempotency.key, (id, *idempotency.request.as_bytes())))?;
            }
        }
        Ok(())
    }

    /// After [`Batch::write_runs`]: the indexes by state need the pack's name.
    fn write_progress(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let runs = open(write.open_table(RUNS))?;
        let mut progress = open(write.open_table(PROGRESS))?;
        let mut live = open(write.open_table(LIVE))?;
        let mut by_state = open(write.open_table(RUNS_BY_STATE))?;
        let mut by_both = open(write.open_table(RUNS_BY_BOTH))?;
        for row in self.progress.values() {
            let id = row.pack_run.to_bytes();
            let info: RunInfo = match runs.get(id).map_err(StoreError::engine("read a pack run"))? {
                Some(bytes) => decode("pack_runs", bytes.value())?,
                None => return Err(StoreError::Damaged { table: "pack_runs", source: None }),
            };
            let old = progress.insert(id, &*encode(row)?).map_err(StoreError::engine("write"))?;
            let old =
                old.map(|bytes| decode::<ProgressRow>("pack_run_progress", bytes.value())).transpose()?;
            if let Some(old) = old.filter(|old| old.state != row.state) {
                put(by_state.remove((state_key(old.state), id)))?;
                put(by_both.remove((info.pack.as_str(), state_key(old.state), id)))?;
            }
            put(by_state.insert((state_key(row.state), id), ()))?;
            put(by_both.insert((info.pack.as_str(), state_key(row.state), id), ()))?;
            if row.state.is_terminal() {
                put(live.remove(id))?;
            } else {
                put(live.insert(id, ()))?;
            }
        }
        Ok(())
    }

    fn write_job_runs(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut job_runs = open(write.open_table(JOB_RUNS))?;
        let mut places = open(write.open_table(JOB_RUN_PLACES))?;
        for row in self.job_runs.values() {
            let place = (row.pack_run.to_bytes(), row.index);
            put(job_runs.insert(place, &*encode(row)?))?;
            put(places.insert(row.id.to_bytes(), place))?;
        }
        Ok(())
    }

    fn write_attempts(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut attempts = open(write.open_table(ATTEMPTS))?;
        let mut open_logs = open(write.open_table(OPEN_LOGS))?;
        for row in self.attempts.values() {
            let (job_run, number) = attempt_key(row.id);
            let old = attempts.insert((job_run, number), &*encode(row)?);
            if old.map_err(StoreError::engine("write"))?.is_none() {
                put(open_logs.insert((row.pack_run.to_bytes(), job_run, number), ()))?;
            }
        }
        Ok(())
    }

    /// After [`Batch::write_attempts`], which opens the logs of new ones.
    fn write_logs(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut logs = open(write.open_table(LOGS))?;
        let mut open_logs = open(write.open_table(OPEN_LOGS))?;
        for row in self.logs.values() {
            let (job_run, number) = attempt_key(row.attempt);
            if !row.log.0.is_empty() {
                put(logs.insert((job_run, number), &*row.log.0))?;
            }
            put(open_logs.remove((row.pack_run.to_bytes(), job_run, number)))?;
        }
        Ok(())
    }

    fn write_tokens(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut tokens = open(write.open_table(TOKENS))?;
        for row in self.tokens.values() {
            put(tokens.insert(row.id.to_bytes(), &*encode(row)?))?;
        }
        Ok(())
    }

    fn write_artifacts(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        let mut artifacts = open(write.open_table(ARTIFACTS))?;
        for ((attempt, path), row) in &self.artifacts {
            let (job_run, number) = attempt_key(*attempt);
            put(artifacts.insert((job_run, number, path.as_str()), &*encode(row)?))?;
        }
        Ok(())
    }

    /// Makes every table, so that readers find them.
    fn create_tables(write: &WriteTransaction) -> Result<(), StoreError> {
        let all = Self::default();
        all.write_packs(write)?;
        all.write_archived(write)?;
        all.write_runs(write)?;
        all.write_progress(write)?;
        all.write_job_runs(write)?;
        all.write_attempts(write)?;
        all.write_logs(write)?;
        all.write_artifacts(write)?;
        all.write_tokens(write)?;
        all.write_agents(write)?;
        all.write_feed(write)
    }
}

impl Store {
    /// Makes the tables that are missing, of a new store or of one that an earlier release made, and refuses one of
    /// another version.
    pub(super) fn migrate(&self) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(StoreError::engine("begin to write"))?;
        {
            let mut meta = open(write.open_table(META))?;
            let found =
                meta.get(META_SCHEMA).map_err(StoreError::engine("read"))?.map(|version| version.value());
            match found {
                Some(SCHEMA) => {}
                Some(version) => return Err(StoreError::Newer { table: "schema", version }),
                None => put(meta.insert(META_SCHEMA, SCHEMA))?,
            }
            Batch::create_tables(&write)?;
        }
        write.commit().map_err(StoreError::engine("commit"))
    }

    pub(super) fn acquire_now(&self) -> Result<(Lease, Committed), StoreError> {
        let write = self.database.begin_write().map_err(StoreError::engine("begin to write"))?;
        let lease = {
            let mut meta = open(write.open_table(META))?;
            let number = |name| -> Result<u64, StoreError> {
                let found = meta.get(name).map_err(StoreError::engine("read"))?;
                Ok(found.map_or(0, |number| number.value()))
            };
            let lease = Lease { epoch: Epoch(number(META_EPOCH)? + 1), seq: number(META_SEQ)? };
            put(meta.insert(META_EPOCH, lease.epoch.0))?;
            lease
        };
        write.commit().map_err(StoreError::engine("commit"))?;
        Ok((lease, Committed { seq: lease.seq }))
    }

    pub(super) fn commit_now(&self, lease: Lease, batch: &Batch) -> Result<(Lease, Committed), CommitError> {
        let next = Lease { seq: lease.seq + 1, ..lease };
        match self.write(lease, next, batch) {
            Ok(true) => Ok((next, Committed { seq: next.seq })),
            Ok(false) => Err(CommitError::Fenced),
            Err(error) => Err(CommitError::Unknown(error)),
        }
    }

    fn write(&self, lease: Lease, next: Lease, batch: &Batch) -> Result<bool, StoreError> {
        let write = self.database.begin_write().map_err(StoreError::engine("begin to write"))?;
        {
            let mut meta = open(write.open_table(META))?;
            let holds = [(META_EPOCH, lease.epoch.0), (META_SEQ, lease.seq)];
            for (name, expected) in holds {
                let found = meta.get(name).map_err(StoreError::engine("read"))?;
                if found.map_or(0, |number| number.value()) != expected {
                    return Ok(false);
                }
            }
            put(meta.insert(META_SEQ, next.seq))?;
        }
        batch.write(&write)?;
        write.commit().map_err(StoreError::engine("commit"))?;
        Ok(true)
    }
}

fn open<T>(table: Result<T, redb::TableError>) -> Result<T, StoreError> {
    table.map_err(StoreError::engine("open a table"))
}

fn put<T>(written: Result<T, redb::StorageError>) -> Result<(), StoreError> {
    written.map(drop).map_err(StoreError::engine("write"))
}
