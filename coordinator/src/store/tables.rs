//! All tables and the layout of their keys. Ids are their 16 bytes, big-endian, so ranges run in the order of
//! creation; enums in keys are numbers that never change their meaning.

use packrun_protocol::id::{AttemptId, AttemptNumber, JobRunId};
use packrun_protocol::state::PackRunState;
use redb::TableDefinition;

/// An id in a key.
pub(super) type Id = [u8; 16];

/// Numbers about the store itself.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The version of this layout.
pub(super) const META_SCHEMA: &str = "schema";
/// How often the store was acquired.
pub(super) const META_EPOCH: &str = "epoch";
/// How many batches were committed.
pub(super) const META_SEQ: &str = "seq";

/// By pack name: its newest version's number.
pub(super) const PACKS: TableDefinition<'_, &str, u32> = TableDefinition::new("packs");
/// By pack name and version.
pub(super) const VERSIONS: TableDefinition<'_, (&str, u32), &[u8]> = TableDefinition::new("pack_versions");
/// By pack name and version: the file as it came.
pub(super) const SOURCES: TableDefinition<'_, (&str, u32), &[u8]> = TableDefinition::new("pack_sources");
/// By pack name and version: the checked pack as canonical JSON.
pub(super) const CANONICALS: TableDefinition<'_, (&str, u32), &[u8]> =
    TableDefinition::new("pack_canonicals");
/// By pack name: which of its versions are archived, where any are.
pub(super) const ARCHIVED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("archived_packs");

/// By pack run: what of it never changes, but its plan.
pub(super) const RUNS: TableDefinition<'_, Id, &[u8]> = TableDefinition::new("pack_runs");
/// By pack run: its plan.
pub(super) const PLANS: TableDefinition<'_, Id, &[u8]> = TableDefinition::new("plans");
/// By pack run: what of it changes.
pub(super) const PROGRESS: TableDefinition<'_, Id, &[u8]> = TableDefinition::new("pack_run_progress");
/// The pack runs that have not ended.
pub(super) const LIVE: TableDefinition<'_, Id, ()> = TableDefinition::new("live_pack_runs");
/// Pack runs by state.
pub(super) const RUNS_BY_STATE: TableDefinition<'_, (u8, Id), ()> =
    TableDefinition::new("pack_runs_by_state");
/// Pack runs by pack.
pub(super) const RUNS_BY_PACK: TableDefinition<'_, (&str, Id), ()> =
    TableDefinition::new("pack_runs_by_pack");
/// Pack runs by pack and state.
pub(super) const RUNS_BY_BOTH: TableDefinition<'_, (&str, u8, Id), ()> =
    TableDefinition::new("pack_runs_by_pack_and_state");
/// By idempotency key: the pack run made under it, and the digest of the request.
pub(super) const KEYS: TableDefinition<'_, &str, (Id, [u8; 32])> = TableDefinition::new("idempotency_keys");

/// By pack run and index in its plan.
pub(super) const JOB_RUNS: TableDefinition<'_, (Id, u32), &[u8]> = TableDefinition::new("job_runs");
/// By job run: its pack run and index.
pub(super) const JOB_RUN_PLACES: TableDefinition<'_, Id, (Id, u32)> = TableDefinition::new("job_run_places");
/// By job run and number.
pub(super) const ATTEMPTS: TableDefinition<'_, (Id, u32), &[u8]> = TableDefinition::new("attempts");
/// By attempt and path.
pub(super) const ARTIFACTS: TableDefinition<'_, (Id, u32, &str), &[u8]> = TableDefinition::new("artifacts");
/// By pack run and number.
pub(super) const FEED: TableDefinition<'_, (Id, u64), &[u8]> = TableDefinition::new("feed");

/// By attempt: where its log lies, if it has any and the attempt has ended.
pub(super) const LOGS: TableDefinition<'_, (Id, u32), &[u8]> = TableDefinition::new("logs");
/// By pack run and attempt: those whose log may still grow, or was not sealed since.
pub(super) const OPEN_LOGS: TableDefinition<'_, (Id, Id, u32), ()> = TableDefinition::new("open_logs");

/// By token.
pub(super) const TOKENS: TableDefinition<'_, Id, &[u8]> = TableDefinition::new("tokens");
/// By agent.
pub(super) const AGENTS: TableDefinition<'_, Id, &[u8]> = TableDefinition::new("agents");

/// An attempt in a key.
pub(super) fn attempt_key(attempt: AttemptId) -> (Id, u32) {
    (attempt.job_run.to_bytes(), attempt.number.get())
}

/// The attempt of a key, which no key of ours fails.
pub(super) fn attempt_of((job_run, number): (Id, u32)) -> Option<AttemptId> {
    Some(AttemptId { job_run: JobRunId::from_bytes(job_run), number: AttemptNumber::new(number)? })
}

/// A pack run's state in a key.
pub(super) const fn state_key(state: PackRunState) -> u8 {
    match state {
        PackRunState::Pending => 0,
        PackRunState::Running => 1,
        PackRunState::Completed => 2,
        PackRunState::PartiallyFailed => 3,
        PackRunState::Failed => 4,
        PackRunState::Canceled => 5,
    }
}
