//! Keeps the logs of attempts that ended without their agent (lost, revoked, cancelled while away), and closes the
//! logs of pack runs that have ended.
//!
//! It follows what is committed, and looks at a pack run whenever something in it ended that way; when it fell
//! behind, and at start, at all of them. Whatever it does may be done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::state::JobRunState;
use packrun_protocol::time::{ClockOffset, Timestamp};
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;

use super::Shared;
use crate::core::change::{FeedEntry, FeedRow};
use crate::core::event::{Command, LogIndex};
use crate::engine::{EngineError, Reader, StoreError};
use crate::logs::{AppendError, Extent, encode_extents};

/// How long to wait after a failure before all is looked at again.
const AGAIN: Duration = Duration::from_secs(5);

/// Logs that are kept together: they share their commits.
const TOGETHER: usize = 256;

/// Where an attempt's log lies, for the engine to keep.
pub(super) fn log_index(extents: &[Extent]) -> LogIndex {
    LogIndex(encode_extents(extents).into())
}

/// Why a log could not be kept.
#[derive(Debug, Error)]
enum KeepError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Log(#[from] AppendError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the thread that reads the store ended")]
    Thread(#[from] tokio::task::JoinError),
}

/// Works until the engine takes no more commands.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut feed = shared.engine.follow();
    let mut all = true;
    loop {
        let mut runs = BTreeSet::new();
        if all {
            match every_run(&shared).await {
                Ok(found) => runs = found,
                Err(error) => {
                    tracing::error!(%error, "the open logs could not be listed; trying again soon");
                    if !pause(&shared).await {
                        return;
                    }
                    continue;
                }
            }
        } else {
            let batch = tokio::select! {
                () = shared.stop.cancelled() => return,
                batch = feed.recv() => batch,
            };
            match batch {
                Ok(batch) => runs.extend(batch.iter().filter(|row| concerns(row)).map(|row| row.pack_run)),
                Err(RecvError::Lagged(_)) => {
                    all = true;
                    continue;
                }
                Err(RecvError::Closed) => return,
            }
        }
        all = false;
        for run in runs {
            match keep(&shared, run).await {
                Ok(()) => {}
                Err(KeepError::Engine(EngineError::Unavailable) | KeepError::Log(AppendError::Closed)) => {
                    return;
                }
                Err(error) => {
                    tracing::error!(%run, %error, "the logs of a pack run could not be kept; trying again soon");
                    if !pause(&shared).await {
                        return;
                    }
                    all = true;
                }
            }
        }
    }
}

/// Waits before all is looked at again; `false` when there is no more time for that.
async fn pause(shared: &Shared) -> bool {
    tokio::time::timeout(AGAIN, shared.stop.cancelled()).await.is_err()
}

/// Whether a change may have left a log open whose attempt is over.
fn concerns(row: &FeedRow) -> bool {
    match &row.entry {
        FeedEntry::Artifact { .. } => false,
        FeedEntry::JobRun { state, attempt, .. } => {
            attempt.is_some()
                && matches!(state, JobRunState::Queued | JobRunState::Lost | JobRunState::Canceled)
        }
        FeedEntry::PackRun(state) => state.is_terminal(),
    }
}

async fn every_run(shared: &Shared) -> Result<BTreeSet<PackRunId>, KeepError> {
    let mut runs: BTreeSet<_> = shared.logs.open_runs().into_iter().collect();
    let open = read(shared, |reader| reader.all_open_logs()).await?;
    runs.extend(open.into_iter().map(|(run, _)| run));
    Ok(runs)
}

/// Keeps the logs of a pack run's attempts that are over, and closes the run's if it has ended.
async fn keep(shared: &Shared, run: PackRunId) -> Result<(), KeepError> {
    // After a restart, attempts are open whose logs were kept before.
    let unsealed = shared.logs.unsealed(run);
    let (ended, over) = read(shared, move |reader| over(reader, run, unsealed)).await?;
    let over: Vec<_> = over.into_iter().collect();
    for together in over.chunks(TOGETHER) {
        try_join_all(together.iter().map(|(attempt, kept)| keep_one(shared, run, *attempt, *kept))).await?;
    }
    if ended {
        shared.logs.close_run(run);
    }
    Ok(())
}

async fn keep_one(
    shared: &Shared,
    pack_run: PackRunId,
    attempt: AttemptId,
    kept: bool,
) -> Result<(), KeepError> {
    // It may never have been opened here. Open and sealed, it takes nothing that comes too late.
    if shared.logs.progress(attempt).is_none() {
        let offset = ClockOffset { micros: 0, error_micros: u64::MAX };
        shared.logs.open_attempt(attempt, pack_run, offset, Timestamp::MIN);
    }
    let log = log_index(&shared.logs.seal(attempt).await?);
    if !kept {
        shared.engine.command(Command::KeepLog { pack_run, attempt, log }).await?;
    }
    Ok(())
}

/// Whether a pack run has ended, and those of its attempts that are over and whose logs are open, or unsealed; of
/// each, whether its log is kept already.
fn over(
    reader: &Reader,
    run: PackRunId,
    unsealed: Vec<AttemptId>,
) -> Result<(bool, BTreeMap<AttemptId, bool>), StoreError> {
    let ended = reader.progress(run)?.is_none_or(|progress| progress.state.is_terminal());
    let mut over: BTreeMap<_, _> = unsealed.into_iter().map(|attempt| (attempt, true)).collect();
    over.extend(reader.open_logs(run)?.into_iter().map(|attempt| (attempt, false)));
    if !ended {
        let mut live = Vec::new();
        for attempt in over.keys() {
            if reader.attempt(*attempt)?.is_some_and(|row| row.ended_at.is_none()) {
                live.push(*attempt);
            }
        }
        for attempt in live {
            over.remove(&attempt);
        }
    }
    Ok((ended, over))
}

/// Reads what is committed, where that may wait for the disk.
async fn read<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, KeepError> {
    let engine = shared.engine.clone();
    Ok(tokio::task::spawn_blocking(move || work(&engine.read()?)).await??)
}
