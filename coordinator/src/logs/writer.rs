//! The two threads behind the log. The *appender* takes the blocks that have arrived on all streams, writes them
//! at once and then publishes them to readers. The *syncer* beside it syncs what was written since the last time
//! and then says so, per attempt. Appending never waits for a sync, and a write or sync that fails acknowledges
//! nothing and ends nothing: a write is tried again when its sender sends again, a sync after a while.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use packrun_protocol::block::Block;
use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::batch::{AppendError, Batch, Staged};
use super::checkpoint;
use super::index::{RunLog, Runs};
use super::segment::{self, Disk, Position, Segment};

/// A batch that has reached this takes no more blocks.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// What a checkpoint has to spare the next start, in bytes, to be worth keeping.
const CHECKPOINT_STEP: u64 = 4 << 20;
const SYNC_RETRY_FIRST: Duration = Duration::from_millis(100);
const SYNC_RETRY_MAX: Duration = Duration::from_secs(10);

/// What keeps the log from being written; nothing when all is well.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// Why the last write failed.
    pub write: Option<String>,
    /// Why the last sync failed.
    pub sync: Option<String>,
}

pub(super) type Reply = oneshot::Sender<Result<(), AppendError>>;

#[derive(Debug)]
pub(super) enum Command {
    Append {
        block: Block,
        reply: Reply,
    },
    /// Runs were closed.
    Checkpoint,
    Close {
        reply: oneshot::Sender<()>,
    },
    Seal {
        attempt: AttemptId,
        reply: Reply,
    },
    Settle {
        pack_run: PackRunId,
        away: Vec<(AttemptId, Timestamp)>,
        now: Timestamp,
        reply: oneshot::Sender<Timestamp>,
    },
    /// The syncer is gone.
    SyncerEnded,
}

/// Where the next record goes.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) segment: Arc<Segment>,
    pub(super) length: u64,
}

/// What the appender hands to the syncer.
pub(super) enum Note {
    Checkpoint,
    Written(Written),
}

pub(super) struct Written {
    segment: Arc<Segment>,
    end: u64,
    acks: Vec<(Arc<RunLog>, AttemptId, u64)>,
}

pub(super) struct Appender {
    pub(super) dir: Arc<PathBuf>,
    pub(super) segment_bytes: u64,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) runs: Arc<Runs>,
    pub(super) tail: Tail,
    pub(super) durable: watch::Receiver<Position>,
    pub(super) health: watch::Sender<Health>,
    /// A syncer that is gone has said so: what can't be sent is dropped.
    pub(super) notes: SyncSender<Note>,
    pub(super) syncer: JoinHandle<()>,
    /// Whether the syncer has ended before its time.
    pub(super) alone: bool,
}

impl Appender {
    /// Works until the store is closed or dropped, and returns when the syncer has ended too.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut closing = None;
        while closing.is_none() {
            let Some(first) = commands.blocking_recv() else { break };
            closing = self.serve(first, &mut commands);
            if self.alone {
                // Nothing would ever be acknowledged: whoever waits for that is told that the store is closed.
                tracing::error!("the thread that syncs the logs has ended; restart the coordinator");
                break;
            }
        }
        drop(commands);
        drop(self.notes);
        // A panic in it was reported when it happened; there is nothing left to do about it.
        let _ = self.syncer.join();
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    /// Answers `first` and what waits behind it with one write. A sender that no longer waits for its reply
    /// doesn't matter.
    fn serve(
        &mut self,
        first: Command,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Option<oneshot::Sender<()>> {
        if !matches!(first, Command::Close { .. }) {
            self.roll_when_full();
        }
        let mut batch = Batch::default();
        let (mut appended, mut sealed, mut settled, mut closing) = (Vec::new(), Vec::new(), Vec::new(), None);
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Append { block, reply } => match batch.append(&self.runs, block) {
                    Ok(Staged::Added) => appended.push(reply),
                    // It may be known from this batch only, and then shares its luck.
                    Ok(Staged::Known) if batch.bytes() > 0 => appended.push(reply),
                    Ok(Staged::Known) => drop(reply.send(Ok(()))),
                    Err(refused) => drop(reply.send(Err(refused))),
                },
                Command::Checkpoint => drop(self.notes.send(Note::Checkpoint)),
                Command::Close { reply } => closing = Some(reply),
                Command::Seal { attempt, reply } => match batch.seal(&self.runs, attempt) {
                    Ok(()) => sealed.push((attempt, reply)),
                    Err(refused) => drop(reply.send(Err(refused))),
                },
                Command::SyncerEnded => self.alone = true,
                Command::Settle { pack_run, away, now, reply } => settled.push((pack_run, away, now, reply)),
            }
            let full = closing.is_some() || self.alone || batch.bytes() >= BATCH_BYTES_MAX;
            next = if full { None } else { commands.try_recv().ok() };
        }
        let outcome = self.write(batch);
        for reply in appended {
            let _ = reply.send(outcome.clone());
        }
        for (attempt, reply) in sealed {
            if let (Ok(()), Some(run)) = (&outcome, self.runs.run_of(attempt)) {
                run.seal(attempt);
            }
            let _ = reply.send(outcome.clone());
        }
        for (pack_run, away, now, reply) in settled {
            // With all of the batch, of which some came after this was asked.
            let run = self.runs.run(pack_run);
            let _ = reply.send(run.map_or(Timestamp::MIN, |run| run.settle(&away, now)));
        }
        closing
    }

    fn write(&mut self, batch: Batch) -> Result<(), AppendError> {
        if batch.bytes() == 0 {
            return Ok(());
        }
        let Tail { segment, length } = &mut self.tail;
        let at = Position { segment: segment.number, offset: *length };
        let layout = batch.lay_out(segment.marker, at, *self.durable.borrow());
        let written = self.disk.write(&segment.file, &layout.bytes, *length);
        report(&self.health, |health| &mut health.write, &written);
        // What a failed write left lies behind the readable length; the next write goes over it, or a roll cuts it.
        written.map_err(|error| AppendError::Write { segment: segment.number, reason: error.to_string() })?;
        *length += layout.bytes.len() as u64;
        let written = Written { segment: segment.clone(), end: *length, acks: layout.publish() };
        let _ = self.notes.send(Note::Written(written));
        Ok(())
    }

    /// A segment whose successor can't be made grows on: the next write tells whether the disk is well.
    fn roll_when_full(&mut self) {
        if self.tail.length < self.segment_bytes.max(segment::HEADER_BYTES as u64 + 1) {
            return;
        }
        let created = self
            .cut_leftovers()
            .and_then(|()| Segment::create(&self.dir, self.tail.segment.number + 1, &*self.disk));
        report(&self.health, |health| &mut health.write, &created);
        if let Ok(segment) = created {
            self.tail = Tail { segment: Arc::new(segment), length: segment::HEADER_BYTES as u64 };
        }
    }

    /// Cuts off what a failed write left behind the tail. At the next start it would count in place of what the
    /// following segment has, so the syncer brings the cut to the disk before it acknowledges any of that.
    fn cut_leftovers(&self) -> io::Result<()> {
        let Tail { segment, length } = &self.tail;
        if segment.file.metadata()?.len() > *length {
            self.disk.cut(&segment.file, *length)?;
            let cut = Written { segment: segment.clone(), end: *length, acks: Vec::new() };
            let _ = self.notes.send(Note::Written(cut));
        }
        Ok(())
    }
}

fn report<T>(
    health: &watch::Sender<Health>,
    part: fn(&mut Health) -> &mut Option<String>,
    outcome: &io::Result<T>,
) {
    let reason = outcome.as_ref().err().map(ToString::to_string);
    health.send_if_modified(|health| {
        let part = part(health);
        let changed = *part != reason;
        *part = reason;
        changed
    });
}

/// Tells the appender when the syncer ends, also by a panic.
pub(super) struct SyncerEnd(pub(super) mpsc::WeakSender<Command>);

impl Drop for SyncerEnd {
    fn drop(&mut self) {
        if let Some(commands) = self.0.upgrade() {
            // An appender that has ended needn't know.
            let _ = commands.blocking_send(Command::SyncerEnded);
        }
    }
}

pub(super) struct Syncer {
    pub(super) dir: Arc<PathBuf>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) runs: Arc<Runs>,
    /// The checkpoint in the folder.
    pub(super) checkpoint: Position,
    /// How far the log was on disk when a place for the next was last looked for, which costs a look at each run.
    pub(super) looked: Position,
    pub(super) durable: watch::Sender<Position>,
    pub(super) health: watch::Sender<Health>,
    /// Segments with bytes that are not on disk, and up to where those are written.
    pub(super) dirty: BTreeMap<u64, (Arc<Segment>, u64)>,
    pub(super) acks: HashMap<AttemptId, (Arc<RunLog>, u64)>,
    /// The last segment whose name is on disk.
    pub(super) named: u64,
    /// The last segment of which a sync has failed, and its length then: its pages before that can't be trusted
    /// to be written by the next.
    pub(super) distrusted: Option<(u64, u64)>,
}

impl Syncer {
    /// Works until the appender is gone and what it wrote was synced, or once more could not be.
    pub(super) fn run(mut self, notes: Receiver<Note>) {
        let mut retry: Option<Duration> = None;
        while self.wait(&notes, retry) {
            let synced = self.sync();
            report(&self.health, |health| &mut health.sync, &synced);
            retry = match synced {
                Ok(()) => None,
                Err(_) => Some(retry.map_or(SYNC_RETRY_FIRST, |pause| (pause * 2).min(SYNC_RETRY_MAX))),
            };
        }
        let synced = self.sync();
        report(&self.health, |health| &mut health.sync, &synced);
        self.looked = self.checkpoint;
        self.keep_checkpoint(1);
    }

    /// Notes what was written until a sync is due: after `pause`, or without one as soon as there is something.
    /// `false` when the appender is gone.
    fn wait(&mut self, notes: &Receiver<Note>, pause: Option<Duration>) -> bool {
        let due = pause.map(|pause| Instant::now() + pause);
        loop {
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            let next = match left {
                None => notes.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(left) => notes.recv_timeout(left),
            };
            match next {
                Ok(next) => self.note(next),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            if left.is_none_or(|left| left.is_zero()) {
                notes.try_iter().for_each(|next| self.note(next));
                return true;
            }
        }
    }

    fn note(&mut self, note: Note) {
        let Written { segment, end, acks } = match note {
            Note::Checkpoint => return self.keep_checkpoint(CHECKPOINT_STEP),
            Note::Written(written) => written,
        };
        self.dirty.insert(segment.number, (segment, end));
        for (run, attempt, next_seq) in acks {
            self.acks.insert(attempt, (run, next_seq));
        }
    }

    /// Keeps a checkpoint that is `step` bytes further than the last, or in a later segment. When it can't be
    /// kept, more will be read at the next start.
    fn keep_checkpoint(&mut self, step: u64) {
        let is_far = |at: Position, last: Position| {
            at.segment > last.segment || at > last && at.offset >= last.offset.saturating_add(step)
        };
        let durable = *self.durable.borrow();
        if !is_far(durable, self.looked) {
            return;
        }
        self.looked = durable;
        let at = self.runs.checkpoint(durable);
        if is_far(at, self.checkpoint) && checkpoint::keep(&self.dir, at).is_ok() {
            self.checkpoint = at;
        }
    }

    /// Brings to the disk what is noted and says so; stops at the first segment that fails.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        while let Some((number, (segment, end))) = self.dirty.first_key_value().map(|(n, s)| (*n, s.clone()))
        {
            let durable = *self.durable.borrow();
            if self.distrusted.is_some_and(|(distrusted, _)| distrusted == number) {
                let from = if durable.segment == number { durable.offset } else { 0 };
                segment.rewrite(&*self.disk, from, end)?;
            }
            if let Err(error) = self.disk.sync(&segment.file) {
                // More than was noted may have been written when it failed, and is noted only later.
                let length = segment.file.metadata().map_or(u64::MAX, |metadata| metadata.len());
                self.distrusted = Some((number, length));
                return Err(error);
            }
            self.distrusted.take_if(|(distrusted, length)| *distrusted == number && *length <= end);
            if number > self.named {
                segment::sync_dir(&self.dir)?;
                self.named = number;
            }
            self.durable.send_replace(Position { segment: number, offset: end });
            self.dirty.remove(&number);
        }
        for (attempt, (run, next_seq)) in self.acks.drain() {
            run.durable(attempt, next_seq);
        }
        Ok(())
    }
}
