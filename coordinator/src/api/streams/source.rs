//! Where a stream's log comes from: the log store while the run is in it, the extents that are kept afterwards.

use packrun_protocol::id::{AttemptId, PackRunId};
use tokio::sync::watch;

use super::feed::{Log, LogEnd, Place};
use crate::api::App;
use crate::api::problem::ApiError;
use crate::engine::Reader;
use crate::logs::{
    BeyondEnd, Extent, FeedPosition, FeedProgress, LogReader, ReadError, StoredBlock, decode_extents,
};

/// A pack run's log.
#[derive(Debug)]
pub(super) enum Source {
    /// The run is over, and its log kept.
    Kept(LogReader),
    /// The run lives, or its log was not yet closed when this was opened.
    Live(LogReader, watch::Receiver<FeedProgress>),
    /// No attempt has been opened yet.
    None,
}

impl Source {
    /// The log of `run` from `place` on.
    ///
    /// # Errors
    /// Inside, when the log has not come to `place`. Otherwise when the store can't be read.
    pub(super) async fn open(
        app: &App,
        run: PackRunId,
        place: Place,
    ) -> Result<Result<Self, BeyondEnd>, ApiError> {
        let from = FeedPosition { block: place.block, entry: place.entry };
        loop {
            if let Some(progress) = app.logs.feed_progress(run) {
                match app.logs.read_feed(run, from) {
                    Ok(Some(reader)) => return Ok(Ok(Self::Live(reader, progress))),
                    // It was closed in between.
                    Ok(None) => continue,
                    Err(beyond) => return Ok(Err(beyond)),
                }
            }
            // A run that the log store has closed is kept by now, and one that isn't over was never in it.
            let kept = app.read(move |reader| if_over(reader, run)).await?;
            return Ok(match kept {
                Some(extents) => app.logs.read_kept_feed(run, extents, from).map(Self::Kept),
                None if from == FeedPosition::default() => Ok(Self::None),
                None if app.logs.feed_progress(run).is_some() => continue,
                None => Err(BeyondEnd { asked: from, next_arrival: 0 }),
            });
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// When the log can't be read.
    pub(super) async fn next(&mut self) -> Result<Log<StoredBlock>, ReadError> {
        let (block, is_over) = match self {
            Self::Kept(reader) => (reader.next_ready().await?, true),
            Self::Live(reader, progress) => {
                // What grows from here on ends the wait.
                let is_over = progress.borrow_and_update().finished;
                (reader.next_ready().await?, is_over)
            }
            Self::None => (None, false),
        };
        Ok(match block {
            Some(block) => Log::Block { attempt: block.block.attempt(), arrival: block.arrival, body: block },
            None if is_over => Log::Over,
            None => Log::Waits,
        })
    }

    /// Waits until there is more, or the log is over; `feeds` is that of the log store. Cancel safe.
    pub(super) async fn grown(&mut self, feeds: &mut watch::Receiver<()>) {
        let told = match self {
            Self::Kept(_) => std::future::pending().await,
            Self::Live(_, progress) => progress.changed().await,
            Self::None => feeds.changed().await,
        };
        if told.is_err() {
            // The log store is gone, and nothing will come.
            std::future::pending().await
        }
    }
}

/// The extents of all attempts of a pack run that is over.
fn if_over(reader: &Reader, run: PackRunId) -> Result<Option<Vec<Extent>>, ApiError> {
    if !reader.progress(run)?.is_some_and(|progress| progress.state.is_terminal()) {
        return Ok(None);
    }
    let mut extents = Vec::new();
    for attempt in attempts(reader, run)? {
        extents.extend(kept(reader, attempt)?);
    }
    Ok(Some(extents))
}

/// All attempts that a pack run has had.
///
/// # Errors
/// When the store can't be read. It blocks on the disk, as those below do.
pub(super) fn attempts(reader: &Reader, run: PackRunId) -> Result<Vec<AttemptId>, ApiError> {
    let mut attempts = Vec::new();
    for row in reader.job_runs(run)? {
        let Some(newest) = row.attempt else { continue };
        let numbers = (1..=newest.get()).filter_map(packrun_protocol::id::AttemptNumber::new);
        attempts.extend(numbers.map(|number| AttemptId { job_run: row.id, number }));
    }
    Ok(attempts)
}

/// The extents that are kept of an attempt; none while its log is open, or when it left none.
///
/// # Errors
/// When they are damaged, or the store can't be read.
pub(super) fn kept(reader: &Reader, attempt: AttemptId) -> Result<Vec<Extent>, ApiError> {
    decode_extents(&reader.log(attempt)?.0).map_err(|error| ApiError::internal(&error))
}

/// How the log of an attempt stands.
///
/// # Errors
/// When what is kept of it can't be read.
pub(super) async fn log_end(app: &App, attempt: AttemptId) -> Result<LogEnd, ApiError> {
    let behind = |extents: &[Extent]| extents.iter().map(Extent::next_arrival).max().unwrap_or(0);
    let sealed = app.logs.progress(attempt).map(|progress| progress.borrow().sealed);
    if sealed == Some(true)
        && let Some(extents) = app.logs.extents(attempt)
    {
        return Ok(LogEnd::Before(behind(&extents)));
    }
    // It was closed, never opened, or sealed by a coordinator that was killed: then it is kept.
    let extents = app.read(move |reader| kept(reader, attempt)).await?;
    Ok(match (sealed, &*extents) {
        (Some(false), []) => LogEnd::Open,
        (_, extents) => LogEnd::Before(behind(extents)),
    })
}
