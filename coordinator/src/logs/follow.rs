//! Readers: of one attempt by entry, of a pack run by arrival. They read the segments themselves, at most one
//! extent ahead, and wait for the log to grow; the writer never waits for them.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use packrun_protocol::block::{Block, Entry};
use packrun_protocol::id::AttemptId;
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
struct ExtentReader {
    dir: Arc<PathBuf>,
    open: Option<Arc<Segment>>,
    done: Option<(Position, u32)>,
}

impl ExtentReader {
    fn new(dir: Arc<PathBuf>) -> Self {
        Self { dir, open: None, done: None }
    }

    /// What `extent` has that was not yet read of it. Cancel safe.
    async fn read(&mut self, extent: &Extent) -> Result<VecDeque<StoredBlock>, ReadError> {
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

#[derive(Debug)]
enum AttemptSource {
    Kept(Vec<Extent>),
    Live(Arc<RunLog>, AttemptId, watch::Receiver<Progress>),
}

/// Reads one attempt's log from some entry on.
#[derive(Debug)]
pub struct AttemptReader {
    source: AttemptSource,
    extents: ExtentReader,
    blocks: VecDeque<StoredBlock>,
    next_seq: u64,
}

impl AttemptReader {
    pub(super) fn live(dir: Arc<PathBuf>, run: Arc<RunLog>, attempt: AttemptId, from: u64) -> Option<Self> {
        let progress = run.progress(attempt)?;
        Some(Self::new(dir, AttemptSource::Live(run, attempt, progress), from))
    }

    pub(super) fn kept(dir: Arc<PathBuf>, extents: Vec<Extent>, from: u64) -> Self {
        Self::new(dir, AttemptSource::Kept(extents), from)
    }

    fn new(dir: Arc<PathBuf>, source: AttemptSource, next_seq: u64) -> Self {
        Self { source, extents: ExtentReader::new(dir), blocks: VecDeque::new(), next_seq }
    }

    /// The next block; waits for it; `None` when the log is sealed and all was read. Cancel safe.
    ///
    /// # Errors
    /// When the log can't be read. The same block is tried by the next call.
    pub async fn next(&mut self) -> Result<Option<StoredBlock>, ReadError> {
        loop {
            let sealed = match &mut self.source {
                AttemptSource::Kept(_) => true,
                AttemptSource::Live(_, _, progress) => progress.borrow_and_update().sealed,
            };
            if let Some(block) = self.next_ready().await? {
                return Ok(Some(block));
            }
            if let AttemptSource::Live(_, _, progress) = &mut self.source
                && !sealed
                && progress.changed().await.is_ok()
            {
                continue;
            }
            return Ok(None);
        }
    }

    /// The next block, `None` when there is none yet. Cancel safe.
    ///
    /// # Errors
    /// As [`AttemptReader::next`].
    pub async fn next_ready(&mut self) -> Result<Option<StoredBlock>, ReadError> {
        loop {
            while let Some(mut block) = self.blocks.pop_front() {
                if block.block.next_seq() > self.next_seq {
                    block.skip = self.next_seq.saturating_sub(block.block.first_seq());
                    self.next_seq = block.block.next_seq();
                    return Ok(Some(block));
                }
            }
            let extent = match &self.source {
                AttemptSource::Kept(extents) => {
                    extents.get(extents.partition_point(|extent| extent.next_seq() <= self.next_seq)).copied()
                }
                AttemptSource::Live(run, attempt, _) => run.extent_from_seq(*attempt, self.next_seq),
            };
            let Some(extent) = extent else { return Ok(None) };
            self.blocks = self.extents.read(&extent).await?;
        }
    }
}

#[derive(Debug)]
enum FeedSource {
    Kept(Vec<Extent>),
    Live(Arc<RunLog>, watch::Receiver<FeedProgress>),
}

/// Reads a pack run's blocks in order of arrival.
#[derive(Debug)]
pub struct FeedReader {
    source: FeedSource,
    extents: ExtentReader,
    blocks: VecDeque<StoredBlock>,
    next: FeedPosition,
}

impl FeedReader {
    pub(super) fn live(dir: Arc<PathBuf>, run: Arc<RunLog>, from: FeedPosition) -> Self {
        let progress = run.feed_progress();
        Self::new(dir, FeedSource::Live(run, progress), from)
    }

    pub(super) fn kept(dir: Arc<PathBuf>, mut extents: Vec<Extent>, from: FeedPosition) -> Self {
        extents.sort_unstable_by_key(|extent| extent.first_arrival);
        Self::new(dir, FeedSource::Kept(extents), from)
    }

    fn new(dir: Arc<PathBuf>, source: FeedSource, next: FeedPosition) -> Self {
        Self { source, extents: ExtentReader::new(dir), blocks: VecDeque::new(), next }
    }

    /// The next block; waits for it; `None` when the run is finished and all was read. Cancel safe.
    ///
    /// # Errors
    /// When the log can't be read. The same block is tried by the next call.
    pub async fn next(&mut self) -> Result<Option<StoredBlock>, ReadError> {
        loop {
            let finished = match &mut self.source {
                FeedSource::Kept(_) => true,
                FeedSource::Live(_, progress) => progress.borrow_and_update().finished,
            };
            if let Some(block) = self.next_ready().await? {
                return Ok(Some(block));
            }
            if let FeedSource::Live(_, progress) = &mut self.source
                && !finished
                && progress.changed().await.is_ok()
            {
                continue;
            }
            return Ok(None);
        }
    }

    /// The next block, `None` when there is none yet. Cancel safe.
    ///
    /// # Errors
    /// As [`FeedReader::next`].
    pub async fn next_ready(&mut self) -> Result<Option<StoredBlock>, ReadError> {
        loop {
            while let Some(mut block) = self.blocks.pop_front() {
                if block.arrival < self.next.block {
                    continue;
                }
                if block.arrival == self.next.block {
                    block.skip = u64::from(self.next.entry);
                }
                self.next = FeedPosition { block: block.arrival + 1, entry: 0 };
                return Ok(Some(block));
            }
            let next = self.next.block;
            let extent = match &self.source {
                FeedSource::Kept(extents) => {
                    extents.get(extents.partition_point(|extent| extent.next_arrival() <= next)).copied()
                }
                FeedSource::Live(run, _) => run.extent_from_arrival(next),
            };
            let Some(extent) = extent else { return Ok(None) };
            self.blocks = self.extents.read(&extent).await?;
        }
    }
}
