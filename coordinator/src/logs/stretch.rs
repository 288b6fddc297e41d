//! Reading spans: the owner's blocks come out, the foreign ones between them are skipped by their headers.
//!
//! Each byte is read at most once by a reader that follows a growing span, and those of long foreign blocks not
//! at all. The checksums of headers and of own blocks are checked. Foreign blocks aren't: an attempt's block
//! that damage makes look foreign is missed where its numbers should go on.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use packrun_protocol::block::{Block, Entry};
use packrun_protocol::id::{AttemptId, PackRunId};
use thiserror::Error;

use super::extent::Extent;
use super::index::FeedSpan;
use super::segment::{Position, RECORD_HEADER_BYTES, RecordHeader, Segment, block_attempt};
use super::span::OWN_BYTES_MAX;

/// Bytes read at once, if there are so many.
const WINDOW_BYTES: usize = 64 << 10;
/// Bytes at a record's front that tell whose it is.
pub(super) const FRONT_BYTES: usize = RECORD_HEADER_BYTES + packrun_protocol::block::HEADER_BYTES;

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
    pub(super) skip: u64,
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

/// Whose blocks are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Attempt(AttemptId),
    PackRun(PackRunId),
}

impl Owner {
    fn owns(self, header: &RecordHeader, block_front: &[u8]) -> bool {
        match self {
            Self::Attempt(attempt) => block_attempt(block_front) == Some(attempt),
            Self::PackRun(pack_run) => header.pack_run == pack_run,
        }
    }
}

/// A span to be read: sequence numbers of an attempt's entries, or arrival numbers of a run's blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub(super) owner: Owner,
    pub(super) at: Position,
    pub(super) length: u32,
    /// The number that it begins with, or a later one of a feed.
    pub(super) first: u64,
    /// The number after its last.
    pub(super) next: u64,
}

impl Stretch {
    pub(super) fn of_attempt(attempt: AttemptId, extent: &Extent) -> Self {
        let (at, length) = (extent.at, extent.length);
        Self { owner: Owner::Attempt(attempt), at, length, first: extent.first_seq, next: extent.next_seq() }
    }

    pub(super) fn of_feed(pack_run: PackRunId, feed: &FeedSpan) -> Self {
        let (owner, at, length) = (Owner::PackRun(pack_run), feed.span.at, feed.span.length);
        Self { owner, at, length, first: feed.first_arrival, next: feed.next_arrival }
    }

    /// What the feed of a run is made of, by the extents of its attempts: they overlap, so each becomes what no
    /// earlier one has.
    pub(super) fn of_kept_feed(pack_run: PackRunId, mut extents: Vec<Extent>) -> Vec<Self> {
        extents.sort_unstable_by_key(|extent| extent.at);
        let (mut stretches, mut covered) = (Vec::new(), Position::default());
        for extent in extents {
            let end = extent.at.offset.saturating_add(extent.length.into());
            let end = Position { offset: end, ..extent.at };
            if end <= covered {
                continue;
            }
            let at = extent.at.max(covered);
            let length = (end.offset - at.offset) as u32;
            let (first, next) = (extent.first_arrival, extent.next_arrival());
            stretches.push(Self { owner: Owner::PackRun(pack_run), at, length, first, next });
            covered = end;
        }
        stretches
    }
}

/// Reads stretches, each byte once although the last one grows.
#[derive(Debug)]
pub(super) struct StretchReader {
    dir: Arc<PathBuf>,
    open: Option<Arc<Segment>>,
    done: Option<Done>,
}

/// What has been read of the stretch at `at`.
#[derive(Debug, Clone, Copy)]
struct Done {
    at: Position,
    bytes: u32,
    /// The number to go on with.
    next: u64,
}

impl StretchReader {
    pub(super) fn new(dir: Arc<PathBuf>) -> Self {
        Self { dir, open: None, done: None }
    }

    /// Blocks that were not yet read of `stretch`, one or more: all of an attempt's, of a run's about
    /// [`OWN_BYTES_MAX`]. Cancel safe.
    pub(super) async fn read(&mut self, stretch: &Stretch) -> Result<VecDeque<StoredBlock>, ReadError> {
        let stretch = *stretch;
        let number = stretch.at.segment;
        let new = Done { at: stretch.at, bytes: 0, next: stretch.first };
        let done = self.done.filter(|done| done.at == stretch.at).unwrap_or(new);
        let open = self.open.clone().filter(|segment| segment.number == number);
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || {
            let failed = |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => ReadError::Gone(number),
                _ => ReadError::Io { segment: number, source },
            };
            let segment = match open {
                Some(segment) => segment,
                None => Arc::new(Segment::open(&dir, number, false).map_err(failed)?),
            };
            let (blocks, done) = read_on(&segment, &stretch, done)?;
            Ok((segment, blocks, done))
        });
        let read = read.await.map_err(|source| ReadError::Io { segment: number, source: source.into() });
        let (segment, blocks, done) = read.flatten()?;
        self.open = Some(segment);
        self.done = Some(done);
        Ok(blocks)
    }
}

fn read_on(
    segment: &Segment,
    stretch: &Stretch,
    mut done: Done,
) -> Result<(VecDeque<StoredBlock>, Done), ReadError> {
    let most = match stretch.owner {
        Owner::Attempt(_) => u64::MAX,
        Owner::PackRun(_) => u64::from(OWN_BYTES_MAX),
    };
    let start = stretch.at.offset;
    let mut window = Window::new(segment, start.saturating_add(stretch.length.into()));
    let (mut blocks, mut own) = (VecDeque::new(), 0);
    while done.bytes < stretch.length {
        let (at, enough) = (start.saturating_add(done.bytes.into()), own >= most);
        if enough && !window.has(at, FRONT_BYTES) {
            break;
        }
        let damaged = || ReadError::Damaged(Position { offset: at, ..stretch.at });
        let front = window.get(at, FRONT_BYTES)?;
        let (header, length) = RecordHeader::parse(segment.marker, front).ok_or_else(damaged)?;
        let record_bytes = RECORD_HEADER_BYTES + length;
        let owned = stretch.owner.owns(&header, &front[RECORD_HEADER_BYTES..]);
        if enough && !window.has(at, record_bytes) {
            break;
        }
        if owned {
            let record = window.get(at, record_bytes)?;
            let block = Block::parse(Bytes::copy_from_slice(&record[RECORD_HEADER_BYTES..]));
            let block = block.map_err(|_| damaged())?;
            let RecordHeader { arrival, correction, .. } = header;
            let block = StoredBlock { block, arrival, correction, skip: 0 };
            done.next = match stretch.owner {
                Owner::Attempt(_) if block.block.first_seq() != done.next => return Err(damaged()),
                Owner::Attempt(_) => block.block.next_seq(),
                Owner::PackRun(_) => arrival.saturating_add(1),
            };
            own += record_bytes as u64;
            blocks.push_back(block);
        }
        let end = u64::from(done.bytes) + record_bytes as u64;
        done.bytes = u32::try_from(end).ok().filter(|&end| end <= stretch.length).ok_or_else(damaged)?;
    }
    let short = done.bytes == stretch.length && done.next != stretch.next;
    if blocks.is_empty() || short {
        // The index promises more than the records hold.
        return Err(ReadError::Damaged(stretch.at));
    }
    Ok((blocks, done))
}

/// Bytes of a segment before `end`, read in order as they are wanted.
struct Window<'a> {
    segment: &'a Segment,
    end: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(segment: &'a Segment, end: u64) -> Self {
        Self { segment, end, start: 0, bytes: Vec::new() }
    }

    /// Whether `length` bytes at `at` have been read.
    fn has(&self, at: u64, length: usize) -> bool {
        usize::try_from(at - self.start).is_ok_and(|from| self.bytes.len() >= from.saturating_add(length))
    }

    /// `length` bytes at `at`, which is not before what was wanted last.
    fn get(&mut self, at: u64, length: usize) -> Result<&[u8], ReadError> {
        if !self.has(at, length) {
            let before = usize::try_from(at - self.start).unwrap_or(usize::MAX);
            self.bytes.drain(..before.min(self.bytes.len()));
            self.start = at;
            self.fill(length)?;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + length])
    }

    fn fill(&mut self, length: usize) -> Result<(), ReadError> {
        let number = self.segment.number;
        let place = Position { segment: number, offset: self.start };
        let left = usize::try_from(self.end.saturating_sub(self.start)).unwrap_or(usize::MAX);
        if left < length {
            return Err(ReadError::Damaged(place));
        }
        let have = self.bytes.len();
        self.bytes.resize(length.max(WINDOW_BYTES).min(left), 0);
        let read = self.segment.read_into(&mut self.bytes[have..], self.start + have as u64);
        read.map_err(|source| {
            self.bytes.truncate(have);
            match source.kind() {
                io::ErrorKind::UnexpectedEof => ReadError::Damaged(place),
                _ => ReadError::Io { segment: number, source },
            }
        })
    }
}
