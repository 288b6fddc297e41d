//! The readers that the store gives: of attempts and of feeds, live ones by the index and kept ones by their extents.

use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::time::Timestamp;
use thiserror::Error;

use super::LogStore;
use super::chronological::ChronologicalReader;
use super::extent::Extent;
use super::follow::{FeedPosition, LogReader};
use super::merge::MergeKey;
use super::stretch::StretchReader;

/// A place in a feed that the log has not reached, or no longer has: it was asked for before a power cut.
/// The feed is to be read from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the feed has {next_arrival} blocks, none at {}", asked.block)]
pub struct BeyondEnd {
    /// What was asked for.
    pub asked: FeedPosition,
    /// How many blocks the feed has.
    pub next_arrival: u64,
}

impl LogStore {
    /// A reader of a live attempt from entry `from` on; `None` when the attempt is not open.
    #[must_use]
    pub fn read_attempt(&self, attempt: AttemptId, from: u64) -> Option<LogReader> {
        LogReader::attempt(self.dir.clone(), self.runs.run_of(attempt)?, attempt, from)
    }

    /// A reader of a sealed attempt from entry `from` on, by its extents.
    #[must_use]
    pub fn read_extents(&self, attempt: AttemptId, extents: Vec<Extent>, from: u64) -> LogReader {
        LogReader::kept_attempt(self.dir.clone(), attempt, extents, from)
    }

    /// A reader of a live run's feed; `None` when none of its attempts was opened.
    ///
    /// # Errors
    /// When the feed has not come to `from`.
    pub fn read_feed(&self, pack_run: PackRunId, from: FeedPosition) -> Result<Option<LogReader>, BeyondEnd> {
        let Some(run) = self.runs.run(pack_run) else { return Ok(None) };
        check_end(from, run.next_arrival())?;
        Ok(Some(LogReader::feed(self.dir.clone(), run, from)))
    }

    /// A reader of the feed of a run that is over, by the extents of all its attempts.
    ///
    /// # Errors
    /// When the feed has not come to `from`.
    pub fn read_kept_feed(
        &self,
        pack_run: PackRunId,
        extents: Vec<Extent>,
        from: FeedPosition,
    ) -> Result<LogReader, BeyondEnd> {
        check_end(from, extents.iter().map(Extent::next_arrival).max().unwrap_or(0))?;
        Ok(LogReader::kept_feed(self.dir.clone(), pack_run, extents, from))
    }

    /// Reads attempts in chronological order, live ones and sealed ones alike, by their extents as of now. Begins
    /// behind `after`, the key of an entry, and ends before `watermark`, the earliest corrected time that one of
    /// them may still write; the extents are to be taken after the watermark, so that they have all before it. A page of a live run takes
    /// them from [`LogStore::extents_behind`], and reads no more entries than it has asked that for.
    #[must_use]
    pub fn read_chronological(
        &self,
        attempts: Vec<(AttemptId, Vec<Extent>)>,
        after: Option<MergeKey>,
        watermark: Option<Timestamp>,
    ) -> ChronologicalReader {
        ChronologicalReader::new(StretchReader::new(self.dir.clone()), attempts, after, watermark)
    }
}

fn check_end(asked: FeedPosition, next_arrival: u64) -> Result<(), BeyondEnd> {
    let end = FeedPosition { block: next_arrival, entry: 0 };
    if asked <= end { Ok(()) } else { Err(BeyondEnd { asked, next_arrival }) }
}
