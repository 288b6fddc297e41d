//! Readers: of one attempt by sequence number, of a pack run by arrival. They read the segments themselves, at
//! most one stretch ahead, and wait for the log to grow; the writer never waits for them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use packrun_protocol::id::{AttemptId, PackRunId};
use tokio::sync::watch;

use super::extent::Extent;
use super::index::{FeedProgress, Progress, RunLog};
use super::stretch::{ReadError, StoredBlock, Stretch, StretchReader};

/// A place in a pack run's feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct FeedPosition {
    /// Arrival number of a block.
    pub block: u64,
    /// Which of its entries comes next, from 0.
    pub entry: u32,
}

/// What a reader goes by, and where it learns of more.
#[derive(Debug)]
enum Source {
    Attempt(Arc<RunLog>, AttemptId, watch::Receiver<Progress>),
    Feed(Arc<RunLog>, watch::Receiver<FeedProgress>),
    KeptAttempt(AttemptId, Vec<Extent>),
    KeptFeed(Vec<Stretch>),
}

impl Source {
    /// The stretch with what is `next`, or that behind a gap there.
    fn stretch(&self, next: u64) -> Option<Stretch> {
        match self {
            Self::Attempt(run, attempt, _) => {
                run.extent_from_seq(*attempt, next).map(|extent| Stretch::of_attempt(*attempt, &extent))
            }
            Self::Feed(run, _) => run.feed_span_from(next).map(|span| Stretch::of_feed(run.id, &span)),
            Self::KeptAttempt(attempt, extents) => {
                let extent = extents.get(extents.partition_point(|extent| extent.next_seq() <= next))?;
                Some(Stretch::of_attempt(*attempt, extent))
            }
            Self::KeptFeed(stretches) => {
                stretches.get(stretches.partition_point(|stretch| stretch.next <= next)).copied()
            }
        }
    }

    /// Whether all there will ever be is readable. Growth after this call ends [`Source::grown`].
    fn is_over(&mut self) -> bool {
        match self {
            Self::Attempt(_, _, progress) => progress.borrow_and_update().sealed,
            Self::Feed(_, progress) => progress.borrow_and_update().finished,
            Self::KeptAttempt(..) | Self::KeptFeed(_) => true,
        }
    }

    async fn grown(&mut self) {
        // The senders live in the run's log, which is held here.
        let _ = match self {
            Self::Attempt(_, _, progress) => progress.changed().await,
            Self::Feed(_, progress) => progress.changed().await,
            Self::KeptAttempt(..) | Self::KeptFeed(_) => Ok(()),
        };
    }
}

/// Reads the log of one attempt in sequence, or the feed of a pack run in order of arrival.
#[derive(Debug)]
pub struct LogReader {
    source: Source,
    reader: StretchReader,
    blocks: VecDeque<StoredBlock>,
    /// Sequence or arrival number of what comes next.
    next: u64,
    /// Entries to leave out of the block `next` of a feed.
    skip: u64,
}

impl LogReader {
    pub(super) fn attempt(
        dir: Arc<PathBuf>,
        run: Arc<RunLog>,
        attempt: AttemptId,
        from: u64,
    ) -> Option<Self> {
        let progress = run.progress(attempt)?;
        Some(Self::new(dir, Source::Attempt(run, attempt, progress), from, 0))
    }

    pub(super) fn feed(dir: Arc<PathBuf>, run: Arc<RunLog>, from: FeedPosition) -> Self {
        let progress = run.feed_progress();
        Self::new(dir, Source::Feed(run, progress), from.block, from.entry)
    }

    pub(super) fn kept_attempt(
        dir: Arc<PathBuf>,
        attempt: AttemptId,
        extents: Vec<Extent>,
        from: u64,
    ) -> Self {
        Self::new(dir, Source::KeptAttempt(attempt, extents), from, 0)
    }

    pub(super) fn kept_feed(
        dir: Arc<PathBuf>,
        pack_run: PackRunId,
        extents: Vec<Extent>,
        from: FeedPosition,
    ) -> Self {
        let stretches = Stretch::of_kept_feed(pack_run, extents);
        Self::new(dir, Source::KeptFeed(stretches), from.block, from.entry)
    }

    fn new(dir: Arc<PathBuf>, source: Source, next: u64, skip: u32) -> Self {
        let reader = StretchReader::new(dir);
        Self { source, reader, blocks: VecDeque::new(), next, skip: u64::from(skip) }
    }

    /// The next block; waits for it; `None` when the attempt is sealed or the run closed, and all was read.
    /// Cancel safe.
    ///
    /// # Errors
    /// When the log can't be read. The next call tries the same again.
    pub async fn next(&mut self) -> Result<Option<StoredBlock>, ReadError> {
        loop {
            let over = self.source.is_over();
            let block = self.next_ready().await?;
            if block.is_some() || over {
                return Ok(block);
            }
            self.source.grown().await;
        }
    }

    /// The next block, `None` when there is none yet. Cancel safe.
    ///
    /// # Errors
    /// As [`LogReader::next`].
    pub async fn next_ready(&mut self) -> Result<Option<StoredBlock>, ReadError> {
        loop {
            while let Some(block) = self.blocks.pop_front() {
                let (first, behind) = match self.source {
                    Source::Attempt(..) | Source::KeptAttempt(..) => {
                        (block.block.first_seq(), block.block.next_seq())
                    }
                    Source::Feed(..) | Source::KeptFeed(_) => {
                        (block.arrival, block.arrival.saturating_add(1))
                    }
                };
                if behind <= self.next {
                    continue;
                }
                let skip = match self.source {
                    Source::Attempt(..) | Source::KeptAttempt(..) => self.next.saturating_sub(first),
                    Source::Feed(..) | Source::KeptFeed(_) if first == self.next => self.skip,
                    Source::Feed(..) | Source::KeptFeed(_) => 0,
                };
                (self.next, self.skip) = (behind, 0);
                return Ok(Some(StoredBlock { skip, ..block }));
            }
            let Some(stretch) = self.source.stretch(self.next) else { return Ok(None) };
            self.blocks = self.reader.read(&stretch).await?;
        }
    }
}
