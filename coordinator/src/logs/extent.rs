//! Where the blocks of each attempt and each pack run lie, while the run lives.
//!
//! Invariants, per attempt: extents ascend in the log, in sequence number and in corrected time; they have no
//! gaps but where the log is damaged. Per run: arrival numbers ascend with the places in the log. What is in
//! here is readable: the writer publishes after it has written.
//!
//! A run's lock is held to publish a batch or to copy an extent, never while anything is read or written.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use packrun_protocol::block::Block;
use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::time::Timestamp;
use tokio::sync::watch;

use super::merge::MergeKey;
use super::segment::{Position, RecordHeader, record_bytes};

/// An extent takes no more blocks at this length, so that a seek reads little more than it wants,
/// and a merge holds little of each attempt.
pub(super) const EXTENT_BYTES_MAX: u32 = 64 << 10;

/// Blocks of one attempt that lie behind one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub at: Position,
    /// Its length in bytes.
    pub length: u32,
    /// How many of them are the attempt's own.
    pub bytes: u32,
    /// Number of its first entry.
    pub first_seq: u64,
    /// How many entries it has.
    pub entries: u64,
    /// Arrival number of its first block within the pack run.
    pub first_arrival: u64,
    /// How many arrival numbers there are from its first block's to its last's.
    pub arrivals: u32,
    /// Time of its first entry, corrected.
    pub first_time: Timestamp,
    /// Time of its last entry, corrected.
    pub last_time: Timestamp,
}

impl Extent {
    /// The extent of one record.
    pub(super) fn of(at: Position, header: &RecordHeader, block: &Block) -> Self {
        Self {
            at,
            length: record_bytes(block),
            bytes: record_bytes(block),
            first_seq: block.first_seq(),
            entries: u64::from(block.count()),
            first_arrival: header.arrival,
            arrivals: 1,
            first_time: block.first_time().shifted(header.correction),
            last_time: block.last_time().shifted(header.correction),
        }
    }

    /// The number after that of its last entry.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.first_seq.saturating_add(self.entries)
    }

    /// The number after that of its last block.
    #[must_use]
    pub fn next_arrival(&self) -> u64 {
        self.first_arrival.saturating_add(u64::from(self.arrivals))
    }

    /// Whether its last entry, as one of `attempt`, comes behind `after` in the chronological order.
    pub(super) fn reaches_behind(&self, attempt: AttemptId, after: Option<MergeKey>) -> bool {
        let last = MergeKey { time: self.last_time, attempt, seq: self.next_seq().saturating_sub(1) };
        after.is_none_or(|after| last > after)
    }

    fn join(&mut self, next: &Self) -> bool {
        let adjoins = self.at.segment == next.at.segment
            && self.at.offset + u64::from(self.length) == next.at.offset
            && self.next_seq() == next.first_seq
            && self.next_arrival() == next.first_arrival;
        if !adjoins || self.length >= EXTENT_BYTES_MAX {
            return false;
        }
        self.length += next.length;
        self.bytes += next.bytes;
        self.entries += next.entries;
        self.arrivals += next.arrivals;
        self.last_time = next.last_time;
        true
    }
}

/// How far an attempt's log has come. Numbers are those of the next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// What readers see.
    pub readable: u64,
    /// What is on disk, and may be acknowledged.
    pub durable: u64,
    /// No more will come.
    pub sealed: bool,
}

/// How far a pack run's feed has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FeedProgress {
    /// Arrival number of the next block.
    pub next_arrival: u64,
    /// No more will come.
    pub finished: bool,
}

/// What the writer has to know of an attempt to take its next block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) next_seq: u64,
    pub(super) last_time: Timestamp,
    pub(super) correction: i64,
    pub(super) sealed: bool,
}

#[derive(Debug)]
struct AttemptLog {
    extents: Vec<Extent>,
    last_time: Timestamp,
    correction: i64,
    progress: watch::Sender<Progress>,
}

/// The index of one pack run's log. Readers hold it beyond the time that the store knows the run.
#[derive(Debug)]
pub(super) struct RunLog {
    pub(super) id: PackRunId,
    attempts: RwLock<Attempts>,
    progress: watch::Sender<FeedProgress>,
}

#[derive(Debug, Default)]
struct Attempts {
    logs: HashMap<AttemptId, AttemptLog>,
    /// All extents in order of arrival: whose, and the place among that attempt's.
    feed: Vec<(AttemptId, usize)>,
}

impl RunLog {
    pub(super) fn new(id: PackRunId) -> Arc<Self> {
        let progress = watch::Sender::new(FeedProgress::default());
        Arc::new(Self { id, attempts: RwLock::default(), progress })
    }

    fn enter(&self, attempt: AttemptId) {
        self.write().logs.entry(attempt).or_insert_with(AttemptLog::new);
    }

    /// Sets the correction of an attempt's blocks to come.
    pub(super) fn correct(&self, attempt: AttemptId, correction: i64) {
        if let Some(log) = self.write().logs.get_mut(&attempt) {
            log.correction = correction;
        }
    }

    pub(super) fn expected(&self, attempt: AttemptId) -> Option<Expected> {
        let attempts = self.read();
        let log = attempts.logs.get(&attempt)?;
        let progress = *log.progress.borrow();
        Some(Expected {
            next_seq: progress.readable,
            last_time: log.last_time,
            correction: log.correction,
            sealed: progress.sealed,
        })
    }

    pub(super) fn next_arrival(&self) -> u64 {
        self.progress.borrow().next_arrival
    }

    /// Makes blocks of attempts that were entered readable. `extents` are of one block each, in the order in which they lie in the log.
    pub(super) fn publish(&self, extents: &[(AttemptId, Extent)]) {
        let mut guard = self.write();
        let Attempts { logs, feed } = &mut *guard;
        for (attempt, extent) in extents {
            let Some(log) = logs.get_mut(attempt) else { continue };
            log.last_time = extent.last_time;
            if !log.extents.last_mut().is_some_and(|last| last.join(extent)) {
                feed.push((*attempt, log.extents.len()));
                log.extents.push(*extent);
            }
            log.progress.send_modify(|progress| progress.readable = extent.next_seq());
        }
        drop(guard);
        if let Some((_, last)) = extents.last() {
            self.progress.send_modify(|progress| progress.next_arrival = last.next_arrival());
        }
    }

    /// Entries before `next_seq` are on disk.
    pub(super) fn durable(&self, attempt: AttemptId, next_seq: u64) {
        if let Some(log) = self.read().logs.get(&attempt) {
            log.progress.send_if_modified(|progress| {
                let more = next_seq > progress.durable;
                progress.durable = progress.durable.max(next_seq);
                more
            });
        }
    }

    /// All that is readable is on disk.
    pub(super) fn all_durable(&self) {
        for log in self.read().logs.values() {
            log.progress.send_modify(|progress| progress.durable = progress.readable);
        }
    }

    pub(super) fn seal(&self, attempt: AttemptId) {
        if let Some(log) = self.read().logs.get(&attempt) {
            log.progress.send_modify(|progress| progress.sealed = true);
        }
    }

    pub(super) fn finish(&self) {
        for attempt in self.attempts() {
            self.seal(attempt);
        }
        self.progress.send_modify(|progress| progress.finished = true);
    }

    pub(super) fn attempts(&self) -> Vec<AttemptId> {
        self.read().logs.keys().copied().collect()
    }

    pub(super) fn extents(&self, attempt: AttemptId) -> Option<Vec<Extent>> {
        self.read().logs.get(&attempt).map(|log| log.extents.clone())
    }

    /// Up to `most` extents of `attempt`, from the first with an entry behind `after` on.
    pub(super) fn extents_behind(
        &self,
        attempt: AttemptId,
        after: Option<MergeKey>,
        most: usize,
    ) -> Option<Vec<Extent>> {
        let attempts = self.read();
        let extents = &attempts.logs.get(&attempt)?.extents;
        let from = extents.partition_point(|extent| !extent.reaches_behind(attempt, after));
        Some(extents.iter().skip(from).take(most).copied().collect())
    }

    /// The first extent of `attempt` with entries from `seq` on.
    pub(super) fn extent_from_seq(&self, attempt: AttemptId, seq: u64) -> Option<Extent> {
        let attempts = self.read();
        let extents = &attempts.logs.get(&attempt)?.extents;
        extents.get(extents.partition_point(|extent| extent.next_seq() <= seq)).copied()
    }

    /// The first extent with blocks from the arrival number `arrival` on.
    pub(super) fn extent_from_arrival(&self, arrival: u64) -> Option<Extent> {
        let attempts = self.read();
        let extent = |&(attempt, index): &(AttemptId, usize)| -> Option<&Extent> {
            attempts.logs.get(&attempt)?.extents.get(index)
        };
        let place = attempts
            .feed
            .partition_point(|item| extent(item).is_some_and(|extent| extent.next_arrival() <= arrival));
        attempts.feed.get(place).and_then(extent).copied()
    }

    /// Where its first block lies.
    pub(super) fn first_position(&self) -> Option<Position> {
        let attempts = self.read();
        let &(attempt, index) = attempts.feed.first()?;
        attempts.logs.get(&attempt)?.extents.get(index).map(|extent| extent.at)
    }

    pub(super) fn progress(&self, attempt: AttemptId) -> Option<watch::Receiver<Progress>> {
        self.read().logs.get(&attempt).map(|log| log.progress.subscribe())
    }

    pub(super) fn feed_progress(&self) -> watch::Receiver<FeedProgress> {
        self.progress.subscribe()
    }

    fn read(&self) -> RwLockReadGuard<'_, Attempts> {
        self.attempts.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Attempts> {
        self.attempts.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AttemptLog {
    fn new() -> Self {
        let progress = watch::Sender::new(Progress::default());
        Self { extents: Vec::new(), last_time: Timestamp::MIN, correction: 0, progress }
    }
}

/// The runs that the store knows, and which attempt belongs to which.
#[derive(Debug, Default)]
pub(super) struct Runs(RwLock<RunMaps>);

#[derive(Debug, Default)]
struct RunMaps {
    runs: HashMap<PackRunId, Arc<RunLog>>,
    attempts: HashMap<AttemptId, Arc<RunLog>>,
}

impl Runs {
    /// The run of `attempt`, which is in it from now on: `pack_run`, unless it was entered before, for an attempt never changes its run.
    pub(super) fn enter(&self, attempt: AttemptId, pack_run: PackRunId) -> Arc<RunLog> {
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let RunMaps { runs, attempts } = &mut *maps;
        let run = attempts
            .entry(attempt)
            .or_insert_with(|| runs.entry(pack_run).or_insert_with(|| RunLog::new(pack_run)).clone());
        run.enter(attempt);
        run.clone()
    }

    pub(super) fn run(&self, pack_run: PackRunId) -> Option<Arc<RunLog>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).runs.get(&pack_run).cloned()
    }

    pub(super) fn run_of(&self, attempt: AttemptId) -> Option<Arc<RunLog>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).attempts.get(&attempt).cloned()
    }

    pub(super) fn remove(&self, pack_run: PackRunId) -> Option<Arc<RunLog>> {
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let run = maps.runs.remove(&pack_run)?;
        for attempt in run.attempts() {
            maps.attempts.remove(&attempt);
        }
        Some(run)
    }

    /// The place before which all belongs to runs that were removed, and is on disk as all before `durable` is.
    pub(super) fn checkpoint(&self, durable: Position) -> Position {
        self.all().iter().filter_map(|run| run.first_position()).fold(durable, Position::min)
    }

    pub(super) fn all(&self) -> Vec<Arc<RunLog>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).runs.values().cloned().collect()
    }
}
