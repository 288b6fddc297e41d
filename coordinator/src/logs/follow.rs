//! Readers: of one attempt by sequence number, of a pack run by arrival. They read the segments themselves, at
//! most one extent ahead, and wait for the log to grow; the writer never waits for them.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use packrun_protocol::block::{Block, Entry};
use packrun_protocol::id::{AttemptId, PackRunId};
use thiserror::Error;
use tokio::sync::watch;

use super::extent::{Extent, FeedProgress, Progress, RunLog};
use super::segment::{Position, Record, Segment};

/// Why a log could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The record there is not as it was written.
    #[error("log segment {} is damaged at byte {}; restore it from a backup", .0.segment, .0.offset)]
    Damaged(Position),
    /// Retention has dropped the segment.
    #[error("log segment {0} is no longer kept")]
    Gone(u64),
    /// The disk did not give it.
    #[error("reading log segment {segment}: {source}")]
    Io {
        /// Number of the segment.
        segment: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// A block as the log keeps it.
#[derive(Debug, Clone)]
pub struct StoredBlock {
    /// The block, its times by the agent's clock.
    pub block: Block,
    /// Its arrival number within the pack run.
    pub arrival: u64,
    /// Microseconds to add to its times.
    pub correction: i64,
    /// How many of its entries the reader has asked to leave out.
    skip: u64,
}

impl StoredBlock {
    /// The entries asked for, with corrected times.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX);
        self.block
            .entries()
            .skip(skip)
            .map(|entry| Entry { time: entry.time.shifted(self.correction), ..entry })
    }
}

/// A place in a pack run's feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct FeedPosition {
    /// Arrival number of a block.
    pub block: u64,
    /// Which of its entries comes next, from 0.
    pub entry: u32,
}

/// Reads extents, each byte once although the last one grows.
#[derive(Debug)]
pub(super) struct ExtentReader {
    dir: Arc<PathBuf>,
    open: Option<Arc<Segment>>,
    done: Option<(Position, u32)>,
}

impl ExtentReader {
    pub(super) fn new(dir: Arc<PathBuf>) -> Self {
        Self { dir, open: None, done: None }
    }

    /// What `extent` has that was not yet read of it. Cancel safe.
    pub(super) async fn read(&mut self, extent: &Extent) -> Result<VecDeque<StoredBlock>, ReadError> {
        let number = extent.at.segment;
        let done = self.done.filter(|(at, _)| *at == extent.at).map_or(0, |(_, done)| done);
        let from = Position { segment: number, offset: extent.at.offset + u64::from(done) };
        let length = extent.length.saturating_sub(done) as usize;
        let open = self.open.clone().filter(|segment| segment.number == number);
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || {
            let segment = match open {
                Some(segment) => segment,
                None => Arc::new(Segment::open(&dir, number, false)?),
            };
            let bytes = segment.read(from.offset, length)?;
            Ok((segment, bytes))
        });
        let (segment, bytes) =
            read.await.map_err(io::Error::other).flatten().map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ReadError::Gone(number),
                io::ErrorKind::UnexpectedEof => ReadError::Damaged(from),
                _ => ReadError::Io { segment: number, source },
            })?;
        let (mut blocks, mut at) = (VecDeque::new(), 0);
        while at < bytes.len() {
            let record = Record::parse(segment.marker, &bytes.slice(at..));
            let damaged = || ReadError::Damaged(Position { offset: from.offset + at as u64, ..from });
            let record = record.ok_or_else(damaged)?;
            at += record.bytes();
            let Record { header, block } = record;
            blocks.push_back(StoredBlock {
                block,
                arrival: header.arrival,
                correction: header.correction,
                skip: 0,
            });
        }
        if blocks.is_empty() {
            // The extent promises more than its records hold.
            return Err(ReadError::Damaged(from));
        }
        self.open = Some(segment);
        self.done = Some((extent.at, extent.length));
        Ok(blocks)
    }
}

/// What a reader goes by, and where it learns of more.
#[derive(Debug)]
enum Source {
    Attempt(Arc<RunLog>, AttemptId, watch::Receiver<Progress>),
    Feed(Arc<RunLog>, watch::Receiver<FeedProgress>),
    KeptAttempt(Vec<Extent>),
    KeptFeed(Vec<Extent>),
}

impl Source {
    /// The extent with what is `next`, or that behind a gap there.
    fn extent(&self, next: u64) -> Option<Extent> {
        let first = |extents: &[Extent], behind: fn(&Extent) -> u64| {
            extents.get(extents.partition_point(|extent| behind(extent) <= next)).copied()
        };
        match self {
            Self::Attempt(run, attempt, _) => run.extent_from_seq(*attempt, next),
            Self::Feed(run, _) => run.extent_from_arrival(next),
            Self::KeptAttempt(extents) => first(extents, Extent::next_seq),
            Self::KeptFeed(extents) => first(extents, Extent::next_arrival),
        }
    }

    /// The numbers that a block has here: its first, and that behind it.
    fn span(&self, block: &StoredBlock) -> (u64, u64) {
        match self {
            Self::Attempt(..) | Self::KeptAttempt(_) => (block.block.first_seq(), block.block.next_seq()),
            Self::Feed(..) | Self::KeptFeed(_) => (block.arrival, block.arrival.saturating_add(1)),
        }
    }

    /// Whether all there will ever be is readable. Growth after this call ends [`Source::grown`].
    fn is_over(&mut self) -> bool {
        match self {
            Self::Attempt(_, _, progress) => progress.borrow_and_update().sealed,
            Self::Feed(_, progress) => progress.borrow_and_update().finished,
            Self::KeptAttempt(_) | Self::KeptFeed(_) => true,
        }
    }

    async fn grown(&mut self) {
        // The senders live in the run's log, which is held here.
        let _ = match self {
            Self::Attempt(_, _, progress) => progress.changed().await,
            Self::Feed(_, progress) => progress.changed().await,
            Self::KeptAttempt(_) | Self::KeptFeed(_) => Ok(()),
        };
    }
}

/// Reads the log of one attempt in sequence, or the feed of a pack run in order of arrival.
#[derive(Debug)]
pub struct LogReader {
    source: Source,
    extents: ExtentReader,
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
        _attempt: AttemptId,
        extents: Vec<Extent>,
        from: u64,
    ) -> Self {
        Self::new(dir, Source::KeptAttempt(extents), from, 0)
    }

    pub(super) fn kept_feed(
        dir: Arc<PathBuf>,
        _pack_run: PackRunId,
        mut extents: Vec<Extent>,
        from: FeedPosition,
    ) -> Self {
        extents.sort_unstable_by_key(|extent| extent.first_arrival);
        Self::new(dir, Source::KeptFeed(extents), from.block, from.entry)
    }

    fn new(dir: Arc<PathBuf>, source: Source, next: u64, skip: u32) -> Self {
        let extents = ExtentReader::new(dir);
        Self { source, extents, blocks: VecDeque::new(), next, skip: u64::from(skip) }
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
                let (first, behind) = self.source.span(&block);
                if behind <= self.next {
                    continue;
                }
                let skip = match self.source {
                    Source::Attempt(..) | Source::KeptAttempt(_) => self.next.saturating_sub(first),
                    Source::Feed(..) | Source::KeptFeed(_) if first == self.next => self.skip,
                    Source::Feed(..) | Source::KeptFeed(_) => 0,
                };
                (self.next, self.skip) = (behind, 0);
                return Ok(Some(StoredBlock { skip, ..block }));
            }
            let Some(extent) = self.source.extent(self.next) else { return Ok(None) };
            self.blocks = self.extents.read(&extent).await?;
        }
    }
}
