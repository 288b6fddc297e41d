//! What a store keeps of the changes: a table each, later rows replacing earlier ones. It refuses what history
//! forbids: an end that changes, a gap in a feed, an attempt out of turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::id::{AgentId, AttemptId, JobRunId, PackRunId, TokenId};
use packrun_protocol::name::Name;
use packrun_protocol::path::RelativePath;
use packrun_protocol::state::JobRunState;

use crate::core::change::{
    AgentRow, ArtifactRow, AttemptRow, Change, FeedEntry, FeedRow, JobRunRow, LogRow, PackArchiveRow,
    PackRunRow, PackVersionRow, ProgressRow, TokenRow,
};
use crate::core::{LiveRun, PackHead, Rows};

#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    pub(super) packs: BTreeMap<(Name, u32), PackVersionRow>,
    pub(super) archived: BTreeMap<Name, PackArchiveRow>,
    pub(super) runs: BTreeMap<PackRunId, Arc<PackRunRow>>,
    pub(super) progress: BTreeMap<PackRunId, ProgressRow>,
    pub(super) job_runs: BTreeMap<JobRunId, JobRunRow>,
    pub(super) attempts: BTreeMap<AttemptId, AttemptRow>,
    pub(super) artifacts: BTreeMap<(AttemptId, RelativePath), ArtifactRow>,
    pub(super) agents: BTreeMap<AgentId, AgentRow>,
    pub(super) feed: BTreeMap<(PackRunId, u64), FeedRow>,
    pub(super) logs: BTreeMap<AttemptId, LogRow>,
    pub(super) tokens: BTreeMap<TokenId, TokenRow>,
}

impl Store {
    pub(super) fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Agent(row) => {
                self.agents.insert(row.id, row);
            }
            Change::Artifact(row) => {
                assert!(!self.attempts[&row.attempt].state.is_terminal(), "an artifact after the end");
                let old = self.artifacts.insert((row.attempt, row.artifact.path.clone()), row);
                assert!(old.is_none(), "an artifact recorded twice");
            }
            Change::Attempt(row) => {
                let before = AttemptId { number: row.id.number, ..row.id };
                match self.attempts.insert(row.id, row.clone()) {
                    Some(old) => {
                        assert!(!old.state.is_terminal(), "an end that changed: {old:?} to {row:?}");
                        assert_eq!(old.agent, row.agent, "an attempt that changed hands");
                    }
                    None => {
                        let tries = self.attempts.range(..=before).rev();
                        let tries: Vec<_> =
                            tries.take_while(|(id, _)| id.job_run == row.id.job_run).collect();
                        assert_eq!(tries.len(), row.id.number.get() as usize, "attempts are numbered 1, 2 …");
                        let open = tries.iter().filter(|(_, row)| !row.state.is_terminal()).count();
                        assert_eq!(open, 1, "two live attempts of {}", row.id.job_run);
                    }
                }
            }
            Change::Feed(row) => {
                let last = self.feed_next(row.pack_run);
                assert_eq!(row.number, last, "the feed of a pack run has no gap");
                if let FeedEntry::JobRun {
                    key,
                    state: JobRunState::Succeeded,
                    attempt: attempt @ Some(_),
                    ..
                } = &row.entry
                {
                    let ran = self.feed_of(row.pack_run).any(|earlier| {
                        matches!(&earlier.entry, FeedEntry::JobRun { key: of, state: JobRunState::Running, attempt: which, .. }
                            if of == key && which == attempt)
                    });
                    assert!(ran, "the end of {key} without its start");
                }
                self.feed.insert((row.pack_run, row.number), row);
            }
            Change::JobRun(row) => {
                if let Some(old) = self.job_runs.insert(row.id, row.clone()) {
                    assert!(!old.state.is_terminal(), "an end that changed: {old:?} to {row:?}");
                }
            }
            Change::Log(row) => {
                let old = self.logs.insert(row.attempt, row);
                assert!(old.is_none(), "the log of an attempt kept twice");
            }
            Change::PackArchive(row) => {
                self.archived.insert(row.name.clone(), row);
            }
            Change::PackVersion(row) => {
                let versions = self.packs.keys().filter(|(name, _)| *name == row.name).count();
                assert_eq!(versions + 1, row.version as usize, "versions are numbered 1, 2 …");
                self.packs.insert((row.name.clone(), row.version), row);
            }
            Change::PackRun(row) => {
                assert!(self.runs.insert(row.id, row).is_none(), "a pack run created twice");
            }
            Change::Token(row) => {
                if let Some(old) = self.tokens.insert(row.id, row) {
                    assert!(old.end.is_none(), "the end of {} changed", old.id);
                }
            }
            Change::Progress(row) => {
                if let Some(old) = self.progress.insert(row.pack_run, row.clone()) {
                    assert!(!old.state.is_terminal(), "an end that changed: {old:?} to {row:?}");
                }
            }
        }
    }

    pub(super) fn feed_of(&self, run: PackRunId) -> impl DoubleEndedIterator<Item = &FeedRow> {
        self.feed.range((run, 0)..=(run, u64::MAX)).map(|(_, row)| row)
    }

    fn feed_next(&self, run: PackRunId) -> u64 {
        self.feed_of(run).next_back().map_or(0, |row| row.number + 1)
    }

    pub(super) fn live(&self) -> impl Iterator<Item = PackRunId> {
        self.progress.values().filter(|row| !row.state.is_terminal()).map(|row| row.pack_run)
    }

    pub(super) fn state(&self, job_run: JobRunId) -> JobRunState {
        self.job_runs.get(&job_run).map_or(JobRunState::Blocked, |row| row.state)
    }

    /// What a restart reads.
    pub(super) fn rows(&self) -> Rows {
        let archived =
            |name: &Name| self.archived.get(name).map(|row| row.archived.clone()).unwrap_or_default();
        let head = |row: &PackVersionRow| PackHead {
            version: row.version,
            digest: row.digest,
            archived: archived(&row.name),
        };
        Rows {
            packs: self.packs.values().map(|row| (row.name.clone(), head(row))).collect(),
            agents: self.agents.values().cloned().collect(),
            runs: self.live().map(|run| self.live_run(run)).collect(),
            tokens: self.tokens.values().cloned().collect(),
        }
    }

    fn live_run(&self, run: PackRunId) -> LiveRun {
        let open = |row: &&AttemptRow| row.pack_run == run && !row.state.is_terminal();
        LiveRun {
            row: Arc::clone(&self.runs[&run]),
            progress: self.progress[&run].clone(),
            job_runs: self.job_runs.values().filter(|row| row.pack_run == run).cloned().collect(),
            attempts: self.attempts.values().filter(open).cloned().collect(),
            artifacts: self.artifacts.values().filter(|row| row.pack_run == run).cloned().collect(),
            feed_next: self.feed_next(run),
        }
    }
}
