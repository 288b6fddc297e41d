//! Where the blocks of each attempt and each pack run lie, while the run lives.
//!
//! Invariants, per attempt: extents ascend in the log, in sequence number and in corrected time; they have no
//! gaps but where the log is damaged. Per run: its feed is an index of its own, of spans that the blocks of all
//! its attempts grow in order of arrival; arrival numbers ascend with the places in the log. No span reaches over
//! damage. What is in here is readable: the writer publishes after it has written.
//!
//! A run has a *floor*, before which no entry is appended any more, whatever its agent's clock says: it is what
//! readers in chronological order were told that they have all before.
//!
//! A run's lock is held to publish a batch or to copy an extent, never while anything is read or written.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::time::Timestamp;
use tokio::sync::watch;

use super::extent::Extent;
use super::merge::MergeKey;
use super::segment::Position;
use super::span::Span;
use super::stretch::FRONT_BYTES;

/// How far an attempt's log has come. Numbers are those of the next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// What readers see.
    pub readable: u64,
    /// What is on disk, and may be acknowledged.
    pub durable: u64,
    /// No more will come.
    pub sealed: bool,
    /// What the readable entries count for against the log's limit, as [`Block::log_bytes`] says of each block.
    ///
    /// [`Block::log_bytes`]: packrun_protocol::block::Block::log_bytes
    pub bytes: u64,
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
    /// No entry to come has an earlier time.
    pub(super) earliest: Timestamp,
    pub(super) correction: i64,
    pub(super) sealed: bool,
}

/// Blocks of a pack run that follow one another in its feed.
#[derive(Debug, Clone, Copy)]
pub(super) struct FeedSpan {
    pub(super) span: Span,
    /// Arrival number of its first block.
    pub(super) first_arrival: u64,
    /// The number after that of its last.
    pub(super) next_arrival: u64,
}

impl FeedSpan {
    fn of(extent: &Extent) -> Self {
        let (first_arrival, next_arrival) = (extent.first_arrival, extent.next_arrival());
        Self { span: extent.span(), first_arrival, next_arrival }
    }

    fn join(&mut self, next: &Self) -> bool {
        let follows = self.next_arrival == next.first_arrival;
        let (true, Some(span)) = (follows, self.span.with(&next.span)) else { return false };
        (self.span, self.next_arrival) = (span, next.next_arrival);
        true
    }
}

#[derive(Debug)]
struct AttemptLog {
    extents: Vec<Extent>,
    /// Whether the last extent may grow.
    grows: bool,
    /// No entry to come has an earlier time: it is behind the last.
    earliest: Timestamp,
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

#[derive(Debug)]
struct Attempts {
    logs: HashMap<AttemptId, AttemptLog>,
    feed: Vec<FeedSpan>,
    /// Whether the last span of the feed may grow.
    feed_grows: bool,
    /// Behind the newest entry.
    newest: Timestamp,
    /// Entries to come have this time or a later one.
    floor: Timestamp,
}

impl RunLog {
    pub(super) fn new(id: PackRunId) -> Arc<Self> {
        let progress = watch::Sender::new(FeedProgress::default());
        let attempts = RwLock::new(Attempts {
            logs: HashMap::new(),
            feed: Vec::new(),
            feed_grows: false,
            newest: Timestamp::MIN,
            floor: Timestamp::MIN,
        });
        Arc::new(Self { id, attempts, progress })
    }

    fn enter(&self, attempt: AttemptId) {
        self.write().logs.entry(attempt).or_insert_with(AttemptLog::new);
    }

    /// Sets the correction of an attempt's blocks to come, which have at least the time `not_before`.
    pub(super) fn correct(&self, attempt: AttemptId, correction: i64, not_before: Timestamp) {
        if let Some(log) = self.write().logs.get_mut(&attempt) {
            log.correction = correction;
            log.earliest = log.earliest.max(not_before);
        }
    }

    /// Raises the floor to behind the newest entry, but not over what `away` attempts may still write, nor over
    /// `now`: no clock that runs ahead drags the others along. Returns it.
    pub(super) fn settle(&self, away: &[(AttemptId, Timestamp)], now: Timestamp) -> Timestamp {
        let mut attempts = self.write();
        let mut floor = attempts.newest.min(now);
        for (attempt, not_before) in away {
            let log = attempts.logs.get(attempt);
            if log.is_none_or(|log| !log.progress.borrow().sealed) {
                floor = floor.min(log.map_or(*not_before, |log| log.behind().max(*not_before)));
            }
        }
        attempts.floor = attempts.floor.max(floor);
        attempts.floor
    }

    pub(super) fn expected(&self, attempt: AttemptId) -> Option<Expected> {
        let attempts = self.read();
        let log = attempts.logs.get(&attempt)?;
        let progress = *log.progress.borrow();
        Some(Expected {
            next_seq: progress.readable,
            earliest: log.earliest.max(attempts.floor),
            correction: log.correction,
            sealed: progress.sealed,
        })
    }

    pub(super) fn next_arrival(&self) -> u64 {
        self.progress.borrow().next_arrival
    }

    /// Makes blocks of attempts that were entered readable. `extents` are of one block each, in the order in which
    /// they lie in the log.
    pub(super) fn publish(&self, extents: &[(AttemptId, Extent)]) {
        let mut guard = self.write();
        let Attempts { logs, feed, feed_grows, newest, .. } = &mut *guard;
        for (attempt, extent) in extents {
            let Some(log) = logs.get_mut(attempt) else { continue };
            log.earliest = log.earliest.max(extent.last_time);
            *newest = (*newest).max(extent.last_time.shifted(1));
            if !(log.grows && log.extents.last_mut().is_some_and(|last| last.join(extent))) {
                log.extents.push(*extent);
                log.grows = true;
            }
            let span = FeedSpan::of(extent);
            if !(*feed_grows && feed.last_mut().is_some_and(|last| last.join(&span))) {
                feed.push(span);
                *feed_grows = true;
            }
            log.progress.send_modify(|progress| {
                progress.readable = extent.next_seq();
                progress.bytes += u64::from(extent.bytes).saturating_sub(FRONT_BYTES as u64);
            });
        }
        drop(guard);
        if let Some((_, last)) = extents.last() {
            self.progress.send_modify(|progress| progress.next_arrival = last.next_arrival());
        }
    }

    /// Lets no span grow over this place in the log, as there is damage.
    pub(super) fn break_spans(&self) {
        let mut attempts = self.write();
        attempts.feed_grows = false;
        attempts.logs.values_mut().for_each(|log| log.grows = false);
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

    pub(super) fn unsealed(&self) -> Vec<AttemptId> {
        let attempts = self.read();
        let open = attempts.logs.iter().filter(|(_, log)| !log.progress.borrow().sealed);
        open.map(|(attempt, _)| *attempt).collect()
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

    /// The first span of the feed with blocks from the arrival number `arrival` on.
    pub(super) fn feed_span_from(&self, arrival: u64) -> Option<FeedSpan> {
        let feed = &self.read().feed;
        feed.get(feed.partition_point(|span| span.next_arrival <= arrival)).copied()
    }

    /// Where its first block lies.
    pub(super) fn first_position(&self) -> Option<Position> {
        self.read().feed.first().map(|first| first.span.at)
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
        Self { extents: Vec::new(), grows: false, earliest: Timestamp::MIN, correction: 0, progress }
    }

    /// The earliest time behind its last entry.
    fn behind(&self) -> Timestamp {
        if self.extents.is_empty() { self.earliest } else { self.earliest.shifted(1) }
    }
}

/// The runs that the store knows, and which attempt belongs to which.
#[derive(Debug, Default)]
pub(super) struct Runs {
    maps: RwLock<RunMaps>,
    /// Says that there is one more run.
    entered: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct RunMaps {
    runs: HashMap<PackRunId, Arc<RunLog>>,
    attempts: HashMap<AttemptId, Arc<RunLog>>,
}

impl Runs {
    /// The run of `attempt`, which is in it from now on: `pack_run`, unless it was entered before, for an attempt never changes its run.
    pub(super) fn enter(&self, attempt: AttemptId, pack_run: PackRunId) -> Arc<RunLog> {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let RunMaps { runs, attempts } = &mut *maps;
        let known = runs.len();
        let run = attempts
            .entry(attempt)
            .or_insert_with(|| runs.entry(pack_run).or_insert_with(|| RunLog::new(pack_run)).clone())
            .clone();
        run.enter(attempt);
        let is_new = runs.len() > known;
        drop(maps);
        if is_new {
            self.entered.send_replace(());
        }
        run
    }

    pub(super) fn run(&self, pack_run: PackRunId) -> Option<Arc<RunLog>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).runs.get(&pack_run).cloned()
    }

    pub(super) fn run_of(&self, attempt: AttemptId) -> Option<Arc<RunLog>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).attempts.get(&attempt).cloned()
    }

    pub(super) fn remove(&self, pack_run: PackRunId) -> Option<Arc<RunLog>> {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let run = maps.runs.remove(&pack_run)?;
        for attempt in run.attempts() {
            maps.attempts.remove(&attempt);
        }
        Some(run)
    }

    pub(super) fn entered(&self) -> watch::Receiver<()> {
        self.entered.subscribe()
    }

    /// The place before which all belongs to runs that were removed, and is on disk as all before `durable` is.
    pub(super) fn checkpoint(&self, durable: Position) -> Position {
        self.all().iter().filter_map(|run| run.first_position()).fold(durable, Position::min)
    }

    pub(super) fn all(&self) -> Vec<Arc<RunLog>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).runs.values().cloned().collect()
    }
}
