//! Reading: a snapshot and the questions that can be asked of it, each answered from an index, none by looking
//! through history.

use std::ops::Bound;

use packrun_protocol::id::{AttemptId, Digest, JobRunId, PackRunId, TokenId};
use packrun_protocol::name::Name;
use packrun_protocol::path::RelativePath;
use packrun_protocol::state::PackRunState;
use redb::{AccessGuard, Key, ReadTransaction, ReadableTable, TableDefinition, Value};
use serde::de::DeserializeOwned;

use super::StoreError;
use super::record::{RunInfo, VersionInfo, decode};
use super::tables::{
    AGENTS, ARCHIVED, ARTIFACTS, ATTEMPTS, CANONICALS, FEED, Id, JOB_RUN_PLACES, JOB_RUNS, KEYS, LIVE, LOGS,
    OPEN_LOGS, PACKS, PLANS, PROGRESS, RUNS, RUNS_BY_BOTH, RUNS_BY_PACK, RUNS_BY_STATE, SOURCES, TOKENS,
    VERSIONS, attempt_key, attempt_of, state_key,
};
use crate::core::Archived;
use crate::core::change::{AgentRow, ArtifactRow, AttemptRow, FeedRow, JobRunRow, ProgressRow, TokenRow};
use crate::core::event::LogIndex;
use crate::core::plan::Plan;

/// The store as it was at one moment.
#[derive(Debug)]
pub struct Reader {
    read: ReadTransaction,
}

/// Which pack runs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Only those of this pack.
    pub pack: Option<Name>,
    /// Only those in this state.
    pub state: Option<PackRunState>,
}

/// One page of a list, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins: behind this one. `None` at the end.
    pub next: Option<PackRunId>,
}

fn failed<E: Into<redb::Error>>(error: E) -> StoreError {
    StoreError::engine("read")(error)
}

fn open_log((run, job_run, number): (Id, Id, u32)) -> Result<(PackRunId, AttemptId), StoreError> {
    let damaged = StoreError::Damaged { table: "open_logs", source: None };
    Ok((PackRunId::from_bytes(run), attempt_of((job_run, number)).ok_or(damaged)?))
}

impl Reader {
    pub(super) fn new(read: ReadTransaction) -> Self {
        Self { read }
    }

    fn value<'k, K: Key + 'static, V: Value + 'static>(
        &self,
        table: TableDefinition<'_, K, V>,
        key: K::SelfType<'k>,
    ) -> Result<Option<AccessGuard<'static, V>>, StoreError> {
        self.read.open_table(table).map_err(failed)?.get(key).map_err(failed)
    }

    fn record<'k, K: Key + 'static, T: DeserializeOwned>(
        &self,
        name: &'static str,
        table: TableDefinition<'_, K, &'static [u8]>,
        key: K::SelfType<'k>,
    ) -> Result<Option<T>, StoreError> {
        self.value(table, key)?.map(|bytes| decode(name, bytes.value())).transpose()
    }

    /// All packs and their newest versions, by name.
    ///
    /// # Errors
    /// When the disk refuses or a record is damaged, here and below.
    pub fn pack_heads(&self) -> Result<Vec<(Name, u32)>, StoreError> {
        let table = self.read.open_table(PACKS).map_err(failed)?;
        let heads = table.iter().map_err(failed)?;
        heads
            .map(|head| {
                let (name, version) = head.map_err(failed)?;
                let damaged = |_| StoreError::Damaged { table: "packs", source: None };
                Ok((name.value().parse().map_err(damaged)?, version.value()))
            })
            .collect()
    }

    /// A pack's newest version's number.
    pub fn pack_head(&self, pack: &Name) -> Result<Option<u32>, StoreError> {
        Ok(self.value(PACKS, pack.as_str())?.map(|version| version.value()))
    }

    /// Which versions of a pack are archived.
    pub fn archived(&self, pack: &Name) -> Result<Archived, StoreError> {
        Ok(self.record("archived_packs", ARCHIVED, pack.as_str())?.unwrap_or_default())
    }

    /// A pack version without its texts.
    pub fn version(&self, pack: &Name, version: u32) -> Result<Option<VersionInfo>, StoreError> {
        self.record("pack_versions", VERSIONS, (pack.as_str(), version))
    }

    /// A pack version's file, byte for byte as it was registered.
    pub fn source(&self, pack: &Name, version: u32) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.value(SOURCES, (pack.as_str(), version))?.map(|bytes| bytes.value().to_vec()))
    }

    /// A pack version's canonical JSON.
    pub fn canonical(&self, pack: &Name, version: u32) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.value(CANONICALS, (pack.as_str(), version))?.map(|bytes| bytes.value().to_vec()))
    }

    /// A pack run without its plan.
    pub fn run(&self, id: PackRunId) -> Result<Option<RunInfo>, StoreError> {
        self.record("pack_runs", RUNS, id.to_bytes())
    }

    /// A pack run's plan.
    pub fn plan(&self, id: PackRunId) -> Result<Option<Plan>, StoreError> {
        self.record("plans", PLANS, id.to_bytes())
    }

    /// How far a pack run is.
    pub fn progress(&self, id: PackRunId) -> Result<Option<ProgressRow>, StoreError> {
        self.record("pack_run_progress", PROGRESS, id.to_bytes())
    }

    /// The pack run that was created under an idempotency key, and the digest of its request.
    pub fn keyed_run(&self, key: &str) -> Result<Option<(PackRunId, Digest)>, StoreError> {
        let found = self.value(KEYS, key)?.map(|value| value.value());
        Ok(found.map(|(id, request)| (PackRunId::from_bytes(id), Digest::from_bytes(request))))
    }

    /// All pack runs that have not ended, oldest first.
    pub fn live_runs(&self) -> Result<Vec<PackRunId>, StoreError> {
        let table = self.read.open_table(LIVE).map_err(failed)?;
        let ids = table.iter().map_err(failed)?;
        ids.map(|id| Ok(PackRunId::from_bytes(id.map_err(failed)?.0.value()))).collect()
    }

    /// A page of at most `limit` pack runs, newest first, created before `before`.
    pub fn runs(
        &self,
        filter: &RunFilter,
        before: Option<PackRunId>,
        limit: usize,
    ) -> Result<Page<PackRunId>, StoreError> {
        let end = before.map_or(Bound::Included([0xff; 16]), |id| Bound::Excluded(id.to_bytes()));
        let mut ids = self.run_ids(filter, end, limit.saturating_add(1))?;
        let more = ids.len() > limit;
        ids.truncate(limit);
        let items: Vec<_> = ids.into_iter().map(PackRunId::from_bytes).collect();
        let next = items.last().copied().filter(|_| more);
        Ok(Page { items, next })
    }

    fn run_ids(&self, filter: &RunFilter, end: Bound<Id>, take: usize) -> Result<Vec<Id>, StoreError> {
        let start: Id = [0; 16];
        match (filter.pack.as_ref().map(Name::as_str), filter.state.map(state_key)) {
            (None, None) => {
                let table = self.read.open_table(RUNS).map_err(failed)?;
                let range = table.range((Bound::Included(start), end)).map_err(failed)?;
                range.rev().take(take).map(|row| Ok(row.map_err(failed)?.0.value())).collect()
            }
            (None, Some(state)) => {
                let table = self.read.open_table(RUNS_BY_STATE).map_err(failed)?;
                let bounds = (Bound::Included((state, start)), end.map(|id| (state, id)));
                let range = table.range(bounds).map_err(failed)?;
                range.rev().take(take).map(|row| Ok(row.map_err(failed)?.0.value().1)).collect()
            }
            (Some(pack), None) => {
                let table = self.read.open_table(RUNS_BY_PACK).map_err(failed)?;
                let bounds = (Bound::Included((pack, start)), end.map(|id| (pack, id)));
                let range = table.range(bounds).map_err(failed)?;
                range.rev().take(take).map(|row| Ok(row.map_err(failed)?.0.value().1)).collect()
            }
            (Some(pack), Some(state)) => {
                let table = self.read.open_table(RUNS_BY_BOTH).map_err(failed)?;
                let bounds = (Bound::Included((pack, state, start)), end.map(|id| (pack, state, id)));
                let range = table.range(bounds).map_err(failed)?;
                range.rev().take(take).map(|row| Ok(row.map_err(failed)?.0.value().2)).collect()
            }
        }
    }

    /// The job runs of a pack run that are no longer blocked, in the plan's order.
    pub fn job_runs(&self, run: PackRunId) -> Result<Vec<JobRunRow>, StoreError> {
        let table = self.read.open_table(JOB_RUNS).map_err(failed)?;
        let run = run.to_bytes();
        let rows = table.range((run, 0)..=(run, u32::MAX)).map_err(failed)?;
        rows.map(|row| decode("job_runs", row.map_err(failed)?.1.value())).collect()
    }

    /// One job run, unless it is still blocked.
    pub fn job_run(&self, id: JobRunId) -> Result<Option<JobRunRow>, StoreError> {
        let Some(place) = self.value(JOB_RUN_PLACES, id.to_bytes())? else { return Ok(None) };
        self.record("job_runs", JOB_RUNS, place.value())
    }

    /// The attempts at a job run, by number.
    pub fn attempts(&self, job_run: JobRunId) -> Result<Vec<AttemptRow>, StoreError> {
        let table = self.read.open_table(ATTEMPTS).map_err(failed)?;
        let id = job_run.to_bytes();
        let rows = table.range((id, 0)..=(id, u32::MAX)).map_err(failed)?;
        rows.map(|row| decode("attempts", row.map_err(failed)?.1.value())).collect()
    }

    /// One attempt.
    pub fn attempt(&self, attempt: AttemptId) -> Result<Option<AttemptRow>, StoreError> {
        self.record("attempts", ATTEMPTS, attempt_key(attempt))
    }

    /// Several attempts, in the order asked for; those that there aren't are left out.
    pub fn attempts_among(
        &self,
        wanted: impl IntoIterator<Item = AttemptId>,
    ) -> Result<Vec<AttemptRow>, StoreError> {
        let table = self.read.open_table(ATTEMPTS).map_err(failed)?;
        let rows = wanted.into_iter().filter_map(|attempt| table.get(attempt_key(attempt)).transpose());
        rows.map(|row| decode("attempts", row.map_err(failed)?.value())).collect()
    }

    /// Where the log of an attempt lies; empty when it has none, and while the attempt lives.
    pub fn log(&self, attempt: AttemptId) -> Result<LogIndex, StoreError> {
        let found = self.value(LOGS, attempt_key(attempt))?;
        Ok(found.map_or_else(LogIndex::default, |index| LogIndex(index.value().into())))
    }

    /// The attempts of a pack run whose logs are open: that live, or that ended without being sealed.
    pub fn open_logs(&self, run: PackRunId) -> Result<Vec<AttemptId>, StoreError> {
        let (run, none, all) = (run.to_bytes(), [0; 16], [0xff; 16]);
        let table = self.read.open_table(OPEN_LOGS).map_err(failed)?;
        let keys = table.range((run, none, 0)..=(run, all, u32::MAX)).map_err(failed)?;
        let attempts = keys.map(|key| open_log(key.map_err(failed)?.0.value()));
        attempts.map(|found| Ok(found?.1)).collect()
    }

    /// Whether an attempt of this pack run is among [`Reader::open_logs`].
    pub fn has_open_log(&self, run: PackRunId, attempt: AttemptId) -> Result<bool, StoreError> {
        let (job_run, number) = attempt_key(attempt);
        Ok(self.value(OPEN_LOGS, (run.to_bytes(), job_run, number))?.is_some())
    }

    /// All attempts whose logs are open, with their pack runs.
    pub fn all_open_logs(&self) -> Result<Vec<(PackRunId, AttemptId)>, StoreError> {
        let table = self.read.open_table(OPEN_LOGS).map_err(failed)?;
        table.iter().map_err(failed)?.map(|key| open_log(key.map_err(failed)?.0.value())).collect()
    }

    /// A token, also one that has ended.
    pub fn token(&self, id: TokenId) -> Result<Option<TokenRow>, StoreError> {
        self.record("tokens", TOKENS, id.to_bytes())
    }

    /// All tokens that were ever made.
    pub fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let table = self.read.open_table(TOKENS).map_err(failed)?;
        let rows = table.iter().map_err(failed)?;
        rows.map(|row| decode("tokens", row.map_err(failed)?.1.value())).collect()
    }

    /// The artifacts of an attempt, by path.
    pub fn artifacts(&self, attempt: AttemptId) -> Result<Vec<ArtifactRow>, StoreError> {
        self.artifacts_behind(attempt, None, usize::MAX)
    }

    /// At most `limit` of the artifacts of an attempt, by path, behind the one at `after`.
    pub fn artifacts_behind(
        &self,
        attempt: AttemptId,
        after: Option<&RelativePath>,
        limit: usize,
    ) -> Result<Vec<ArtifactRow>, StoreError> {
        let table = self.read.open_table(ARTIFACTS).map_err(failed)?;
        let (job_run, number) = attempt_key(attempt);
        // No path is empty.
        let behind = Bound::Excluded((job_run, number, after.map_or("", RelativePath::as_str)));
        let rows = table.range((behind, Bound::Unbounded)).map_err(failed)?;
        let mut artifacts = Vec::new();
        for row in rows.take(limit) {
            let (key, value) = row.map_err(failed)?;
            let (job_run, number, _) = key.value();
            if attempt_of((job_run, number)) != Some(attempt) {
                break;
            }
            artifacts.push(decode("artifacts", value.value())?);
        }
        Ok(artifacts)
    }

    /// The artifact of an attempt at a path.
    pub fn artifact(
        &self,
        attempt: AttemptId,
        path: &RelativePath,
    ) -> Result<Option<ArtifactRow>, StoreError> {
        let (job_run, number) = attempt_key(attempt);
        self.record("artifacts", ARTIFACTS, (job_run, number, path.as_str()))
    }

    /// At most `limit` entries of a pack run's feed from `from` on.
    pub fn feed(&self, run: PackRunId, from: u64, limit: usize) -> Result<Vec<FeedRow>, StoreError> {
        let table = self.read.open_table(FEED).map_err(failed)?;
        let run = run.to_bytes();
        let rows = table.range((run, from)..=(run, u64::MAX)).map_err(failed)?;
        rows.take(limit).map(|row| decode("feed", row.map_err(failed)?.1.value())).collect()
    }

    /// The number that a pack run's next feed entry will have.
    pub fn feed_next(&self, run: PackRunId) -> Result<u64, StoreError> {
        let table = self.read.open_table(FEED).map_err(failed)?;
        let run = run.to_bytes();
        let last = table.range((run, 0)..=(run, u64::MAX)).map_err(failed)?.next_back();
        Ok(last.transpose().map_err(failed)?.map_or(0, |(key, _)| key.value().1 + 1))
    }

    /// All agents that were ever enrolled.
    pub fn agents(&self) -> Result<Vec<AgentRow>, StoreError> {
        let table = self.read.open_table(AGENTS).map_err(failed)?;
        let rows = table.iter().map_err(failed)?;
        rows.map(|row| decode("agents", row.map_err(failed)?.1.value())).collect()
    }
}
