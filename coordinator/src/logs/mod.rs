//! Logs: one append-only segment log for the output of all attempts.
//!
//! A block goes one way: [`LogStore::append`] → the appender's bounded queue → one write for all that has
//! arrived → *readable* → one sync for all that was written → *durable*, which alone is acknowledged. Both are
//! told by [`Progress`]. What an agent was told is kept is kept; what it wasn't told, it sends again.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `segment` | files and records |
//! | `batch` | sequence check, arrival numbers, corrected time |
//! | `writer` | appender and syncer |
//! | `extent`, `index` | where each attempt's and each run's blocks lie |
//! | `span` | how far an extent reaches over blocks of others |
//! | `stretch` | reading extents |
//! | `kept` | extents as bytes |
//! | `recover`, `checkpoint` | the log at start, and where to begin to read |
//! | `follow`, `readers` | readers that wait; those that the store gives |
//! | `merge`, `chronological` | chronological order over attempts: pure, and read from the segments |
//!
//! The index holds what is live: a run from its first opened attempt to [`LogStore::close_run`]. A run that is
//! over is read by the extents its attempts were sealed with, which the caller keeps.

mod batch;
mod checkpoint;
mod chronological;
mod extent;
mod follow;
mod index;
mod kept;
pub mod merge;
mod readers;
mod recover;
mod segment;
mod span;
mod stretch;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use packrun_protocol::block::Block;
use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::time::{ClockOffset, Timestamp};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

pub use batch::AppendError;
pub use chronological::ChronologicalReader;
pub use extent::Extent;
pub use follow::{FeedPosition, LogReader};
pub use index::{FeedProgress, Progress};
pub use kept::{ExtentsError, decode_extents, encode_extents};
pub use readers::BeyondEnd;
pub use recover::{Recovery, Spot};
pub use segment::Position;
pub use stretch::{ReadError, StoredBlock};
pub use writer::Health;

use index::Runs;
use merge::MergeKey;
use segment::{Disk, RealDisk};
use writer::{Appender, Command, Syncer, SyncerEnd};

/// Batches that may wait for a sync. A disk that is further behind than this (1 GiB when all of them are full)
/// makes the appender wait.
const UNSYNCED_BATCHES_MAX: usize = 1024;

/// Settings of the log.
#[derive(Debug, Clone, Copy)]
pub struct LogConfig {
    /// A segment that has reached this many bytes is followed by the next.
    pub segment_bytes: u64,
    /// Blocks that may wait for the appender; a sender waits while there are more.
    pub queue_blocks: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, queue_blocks: 256 }
    }
}

/// Why the log could not be opened or swept.
#[derive(Debug, Error)]
#[error("log store in {}: {source}", dir.display())]
pub struct LogError {
    dir: PathBuf,
    source: io::Error,
}

/// The log of all attempts. Clones share it; it ends with the last, or with [`LogStore::close`].
#[derive(Debug, Clone)]
pub struct LogStore {
    dir: Arc<PathBuf>,
    runs: Arc<Runs>,
    commands: mpsc::Sender<Command>,
    durable: watch::Receiver<Position>,
    health: watch::Receiver<Health>,
}

impl LogStore {
    /// Opens the log in `dir`, or makes one there. What was written since the last checkpoint is read to find the
    /// blocks of runs that are `live`; of those, the caller seals again the attempts that have ended. A run once
    /// given to [`LogStore::close_run`] is not live again. Blocks the thread for as long as that takes, and holds
    /// one segment in memory. The caller sees to it that no other process has the folder open.
    ///
    /// # Errors
    /// When the folder can't be read or written, or holds segments of another version.
    pub fn open(
        dir: &Path,
        config: LogConfig,
        live: &dyn Fn(PackRunId) -> bool,
    ) -> Result<(Self, Recovery), LogError> {
        Self::open_on(Arc::new(RealDisk), dir, config, live)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: LogConfig,
        live: &dyn Fn(PackRunId) -> bool,
    ) -> Result<(Self, Recovery), LogError> {
        let refused = |source| LogError { dir: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(refused)?;
        let runs = Arc::new(Runs::default());
        let (tail, checkpoint, recovery) = recover::recover(dir, live, &runs, &*disk).map_err(refused)?;
        let shared_dir = Arc::new(dir.to_owned());
        let end = Position { segment: tail.segment.number, offset: tail.length };
        let (durable, durable_seen) = watch::channel(end);
        let (health, health_seen) = watch::channel(Health::default());
        let (commands, queue) = mpsc::channel(config.queue_blocks.max(1));
        let (notes, unsynced) = std::sync::mpsc::sync_channel(UNSYNCED_BATCHES_MAX);
        let syncer_end = SyncerEnd(commands.downgrade());
        let syncer = Syncer {
            dir: shared_dir.clone(),
            disk: disk.clone(),
            runs: runs.clone(),
            checkpoint,
            looked: checkpoint,
            durable,
            health: health.clone(),
            dirty: BTreeMap::new(),
            acks: HashMap::new(),
            named: end.segment,
            distrusted: None,
        };
        let syncer = spawn("log-syncer", move || {
            let _end = syncer_end;
            syncer.run(unsynced);
        })
        .map_err(refused)?;
        let appender = Appender {
            dir: shared_dir.clone(),
            segment_bytes: config.segment_bytes,
            disk,
            runs: runs.clone(),
            tail,
            durable: durable_seen.clone(),
            health,
            notes,
            syncer,
            alone: false,
        };
        spawn("log-appender", move || appender.run(queue)).map_err(refused)?;
        let (durable, health) = (durable_seen, health_seen);
        Ok((Self { dir: shared_dir, runs, commands, durable, health }, recovery))
    }

    /// Lets blocks of `attempt` in, an attempt of `pack_run`, and says how far its log has come: its agent goes on
    /// there; [`LogStore::progress`] tells what becomes durable, to be acknowledged. `offset` is how far our clock
    /// is ahead of the agent's, as the agent's pings say; it corrects the times of the blocks to come, which are
    /// `not_before` the attempt was assigned. Of an attempt that is open only that changes.
    pub fn open_attempt(
        &self,
        attempt: AttemptId,
        pack_run: PackRunId,
        offset: ClockOffset,
        not_before: Timestamp,
    ) -> Progress {
        let run = self.runs.enter(attempt, pack_run);
        run.correct(attempt, offset.micros, not_before);
        run.progress(attempt).map(|progress| *progress.borrow()).unwrap_or_default()
    }

    /// The watermark of a live run, to read up to in chronological order: no entry with an earlier time is appended
    /// any more, also of attempts that are opened later. It lies behind the newest entry, but for what attempts may
    /// still write that are `away`: whose agents are not connected, and when they were assigned. Nor is it after
    /// `now`. A block that is late from now on has its times raised. [`Timestamp::MIN`] for a run without a log.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn settle(
        &self,
        pack_run: PackRunId,
        away: Vec<(AttemptId, Timestamp)>,
        now: Timestamp,
    ) -> Result<Timestamp, AppendError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Settle { pack_run, away, now, reply };
        self.commands.send(command).await.map_err(|_| AppendError::Closed)?;
        answer.await.map_err(|_| AppendError::Closed)
    }

    /// Appends a block; returns when it is readable, or was before. Waits while the queue is full. When it is
    /// cancelled the block may have been taken; sending it again does no harm.
    ///
    /// # Errors
    /// When the block doesn't follow, or can't be written: nothing was taken.
    pub async fn append(&self, block: Block) -> Result<(), AppendError> {
        self.ask(|reply| Command::Append { block, reply }).await
    }

    /// Lets no more blocks of `attempt` in, and returns where its log lies once all of it is on disk, for the
    /// caller to keep. May be called again.
    ///
    /// # Errors
    /// When the attempt is not open, or the store is closed before all is on disk.
    pub async fn seal(&self, attempt: AttemptId) -> Result<Vec<Extent>, AppendError> {
        let run = self.runs.run_of(attempt).ok_or(AppendError::NotOpen(attempt))?;
        let mut progress = run.progress(attempt).ok_or(AppendError::NotOpen(attempt))?;
        self.ask(|reply| Command::Seal { attempt, reply }).await?;
        let all_on_disk = progress.wait_for(|progress| progress.durable >= progress.readable);
        tokio::select! {
            biased;
            done = all_on_disk => { done.map_err(|_| AppendError::Closed)?; }
            () = self.commands.closed() => return Err(AppendError::Closed),
        }
        run.extents(attempt).ok_or(AppendError::NotOpen(attempt))
    }

    /// How far the log of an attempt has come; `None` when it is not open.
    #[must_use]
    pub fn progress(&self, attempt: AttemptId) -> Option<watch::Receiver<Progress>> {
        self.runs.run_of(attempt)?.progress(attempt)
    }

    /// The runs that are open here.
    #[must_use]
    pub fn open_runs(&self) -> Vec<PackRunId> {
        self.runs.all().iter().map(|run| run.id).collect()
    }

    /// The attempts of a run that are open here and not sealed.
    #[must_use]
    pub fn unsealed(&self, pack_run: PackRunId) -> Vec<AttemptId> {
        self.runs.run(pack_run).map_or_else(Vec::new, |run| run.unsealed())
    }

    /// How far a run's feed has come; `None` when none of its attempts was opened, or it was closed.
    #[must_use]
    pub fn feed_progress(&self, pack_run: PackRunId) -> Option<watch::Receiver<FeedProgress>> {
        Some(self.runs.run(pack_run)?.feed_progress())
    }

    /// Changes when there is a feed more: what found none may look again.
    #[must_use]
    pub fn feeds(&self) -> watch::Receiver<()> {
        self.runs.entered()
    }

    /// The attempts of a live run that were opened; `None` when none was.
    #[must_use]
    pub fn attempts(&self, pack_run: PackRunId) -> Option<Vec<AttemptId>> {
        Some(self.runs.run(pack_run)?.attempts())
    }

    /// The extents of a live attempt as they are.
    #[must_use]
    pub fn extents(&self, attempt: AttemptId) -> Option<Vec<Extent>> {
        self.runs.run_of(attempt)?.extents(attempt)
    }

    /// What a page of `most` entries behind `after` in the chronological order may need of a live attempt's
    /// extents: each of these has an entry behind it, so more than `most` are never read.
    #[must_use]
    pub fn extents_behind(
        &self,
        attempt: AttemptId,
        after: Option<MergeKey>,
        most: usize,
    ) -> Option<Vec<Extent>> {
        self.runs.run_of(attempt)?.extents_behind(attempt, after, most)
    }

    /// The run is over, which the caller has on disk, and so are the extents of its attempts: followers end when they have read all, and
    /// the store forgets it.
    pub fn close_run(&self, pack_run: PackRunId) {
        if let Some(run) = self.runs.remove(pack_run) {
            run.finish();
            // With a full queue there is no need to hurry: the next run that is closed, or the end, says it again.
            let _ = self.commands.try_send(Command::Checkpoint);
        }
    }

    /// All before it belongs to runs that were closed.
    fn checkpoint(&self) -> Position {
        let durable = *self.durable.borrow();
        self.runs.checkpoint(durable)
    }

    /// Removes the segments of which nothing is live nor, says `kept`, in an extent that is kept. Returns their
    /// numbers. Blocks the thread.
    ///
    /// # Errors
    /// When a file can't be removed; those before it were.
    pub fn drop_segments(&self, kept: impl Fn(u64) -> bool) -> Result<Vec<u64>, LogError> {
        let refused = |source| LogError { dir: self.dir.to_path_buf(), source };
        let live_from = self.checkpoint().segment;
        let mut dropped = segment::list(&self.dir).map_err(refused)?;
        dropped.retain(|&number| number < live_from && !kept(number));
        for &number in &dropped {
            std::fs::remove_file(segment::path(&self.dir, number)).map_err(refused)?;
        }
        segment::sync_dir(&self.dir).map_err(refused)?;
        Ok(dropped)
    }

    /// What keeps the log from being written.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Takes nothing more and returns when what was taken is synced, or could not be.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.commands.send(Command::Close { reply }).await.is_ok() {
            // Without a reply somebody else has closed it.
            let _ = closed.await;
        }
    }

    async fn ask(&self, command: impl FnOnce(writer::Reply) -> Command) -> Result<(), AppendError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| AppendError::Closed)?;
        answer.await.map_err(|_| AppendError::Closed)?
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

#[cfg(test)]
pub(crate) mod tests;
