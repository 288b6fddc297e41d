//! Keeps the logs of attempts that ended without their agent (lost, revoked, cancelled while away), and closes the
//! logs of pack runs that have ended.
//!
//! It follows what is committed, and looks at the attempts that ended that way, at all of a pack run when that has
//! ended, and at all of all of them at start and when it fell behind. Whatever it does may be done twice.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use packrun_protocol::id::{AttemptId, AttemptNumber, PackRunId};
use packrun_protocol::name::JobKey;
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

/// What of a pack run to look at.
#[derive(Debug)]
enum Part {
    All,
    /// These attempts of job runs.
    Attempts(Vec<(JobKey, AttemptNumber)>),
}

/// Works until the engine takes no more commands.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut feed = shared.engine.follow();
    let mut all = true;
    loop {
        let mut runs = BTreeMap::new();
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
                Ok(batch) => batch.iter().for_each(|row| note(&mut runs, row)),
                Err(RecvError::Lagged(_)) => {
                    all = true;
                    continue;
                }
                Err(RecvError::Closed) => return,
            }
        }
        all = false;
        for (run, part) in runs {
            match keep(&shared, run, part).await {
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

/// Notes what a change makes worth a look: an attempt that may be over with its log open, or a pack run's end.
fn note(runs: &mut BTreeMap<PackRunId, Part>, row: &FeedRow) {
    match &row.entry {
        FeedEntry::JobRun {
            key,
            state: JobRunState::Queued | JobRunState::Lost | JobRunState::Canceled,
            attempt: Some(attempt),
            ..
        } => {
            let part = runs.entry(row.pack_run).or_insert_with(|| Part::Attempts(Vec::new()));
            if let Part::Attempts(attempts) = part {
                attempts.push((key.clone(), *attempt));
            }
        }
        FeedEntry::PackRun(state) if state.is_terminal() => {
            runs.insert(row.pack_run, Part::All);
        }
        FeedEntry::Artifact { .. } | FeedEntry::JobRun { .. } | FeedEntry::PackRun(_) => {}
    }
}

async fn every_run(shared: &Shared) -> Result<BTreeMap<PackRunId, Part>, KeepError> {
    let mut runs: BTreeMap<_, _> = shared.logs.open_runs().into_iter().map(|run| (run, Part::All)).collect();
    let open = read(shared, |reader| reader.all_open_logs()).await?;
    runs.extend(open.into_iter().map(|(run, _)| (run, Part::All)));
    Ok(runs)
}

/// Keeps the logs of those of a pack run's attempts that are over, and closes the run's if it has ended.
async fn keep(shared: &Shared, run: PackRunId, part: Part) -> Result<(), KeepError> {
    let named = match part {
        Part::All => None,
        Part::Attempts(named) => find(shared, run, named).await?,
    };
    let (ended, over) = match named {
        Some(named) => (false, read(shared, move |reader| over_of(reader, run, named)).await?),
        None => {
            // After a restart, attempts are open whose logs were kept before.
            let unsealed = shared.logs.unsealed(run);
            read(shared, move |reader| over(reader, run, unsealed)).await?
        }
    };
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

/// The ids of attempts of a live pack run; `None` when it has ended, and all of it is to be looked at.
async fn find(
    shared: &Shared,
    run: PackRunId,
    named: Vec<(JobKey, AttemptNumber)>,
) -> Result<Option<Vec<AttemptId>>, KeepError> {
    let Some(plan) = shared.engine.look(move |core| core.plan(run)).await? else { return Ok(None) };
    let mut numbers: HashMap<JobKey, Vec<AttemptNumber>> = HashMap::new();
    for (key, number) in named {
        numbers.entry(key).or_default().push(number);
    }
    let found = plan.job_runs().flat_map(|planned| {
        let numbers = numbers.get(&planned.key).map_or(&[][..], Vec::as_slice);
        numbers.iter().map(|number| AttemptId { job_run: planned.id, number: *number })
    });
    Ok(Some(found.collect()))
}

/// Those of these attempts that are over and whose logs are not kept.
fn over_of(
    reader: &Reader,
    run: PackRunId,
    named: Vec<AttemptId>,
) -> Result<BTreeMap<AttemptId, bool>, StoreError> {
    let mut over = BTreeMap::new();
    for attempt in named {
        let ended = reader.attempt(attempt)?.is_some_and(|row| row.ended_at.is_some());
        if ended && reader.has_open_log(run, attempt)? {
            over.insert(attempt, false);
        }
    }
    Ok(over)
}

/// Reads what is committed, where that may wait for the disk.
async fn read<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, KeepError> {
    let engine = shared.engine.clone();
    Ok(tokio::task::spawn_blocking(move || work(&engine.read()?)).await??)
}
