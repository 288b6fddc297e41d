//! What one write puts down: blocks of all attempts, checked, brought together by attempt so that each has them
//! in one place, and numbered. Nothing of it is known to anyone before [`Layout::publish`], so a write that fails
//! leaves no trace.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use packrun_protocol::block::Block;
use packrun_protocol::id::{AttemptId, PackRunId};
use thiserror::Error;

use super::extent::Extent;
use super::index::{Expected, RunLog, Runs};
use super::segment::{self, Position, RecordHeader, record_bytes};

/// Why a block was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AppendError {
    /// The store was closed.
    #[error("the log store is closed")]
    Closed,
    /// Entries are missing before the block's first.
    #[error("the log of {attempt} goes on at entry {expected}, not {first}; send from there")]
    Gap {
        /// Whose log.
        attempt: AttemptId,
        /// The entry that is next.
        expected: u64,
        /// The block's first.
        first: u64,
    },
    /// Nobody has opened the attempt, or its run's log was closed.
    #[error("the log of {0} is not open")]
    NotOpen(AttemptId),
    /// The block begins before the next entry and ends behind it.
    #[error("a block of {attempt} begins at entry {first}, but {expected} is next; send from there")]
    Overlap {
        /// Whose log.
        attempt: AttemptId,
        /// The entry that is next.
        expected: u64,
        /// The block's first.
        first: u64,
    },
    /// The attempt's log was sealed.
    #[error("the log of {0} is sealed")]
    Sealed(AttemptId),
    /// The disk did not take it. It may be sent again.
    #[error("writing log segment {segment}: {reason}; free or repair the disk, then send again")]
    Write {
        /// Number of the segment.
        segment: u64,
        /// What the system said.
        reason: String,
    },
}

/// Whether a block has become part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Staged {
    /// It is in the batch.
    Added,
    /// The log has had all of it before: its sender has not seen the acknowledgement.
    Known,
}

/// Blocks that have arrived and follow, by attempt.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: usize,
    attempts: HashMap<AttemptId, StagedAttempt>,
    /// The runs with blocks, and their attempts with such in order of their first.
    runs: BTreeMap<PackRunId, (Arc<RunLog>, Vec<AttemptId>)>,
}

#[derive(Debug)]
struct StagedAttempt {
    run: Arc<RunLog>,
    expected: Expected,
    /// Blocks, and the corrections of their times.
    blocks: Vec<(Block, i64)>,
}

/// A batch as it is to be written.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) bytes: Vec<u8>,
    runs: Vec<RunLayout>,
    acks: Vec<(Arc<RunLog>, AttemptId, u64)>,
}

#[derive(Debug)]
struct RunLayout {
    run: Arc<RunLog>,
    /// Of one block each.
    extents: Vec<(AttemptId, Extent)>,
}

impl Batch {
    /// How many bytes it will take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn append(&mut self, runs: &Runs, block: Block) -> Result<Staged, AppendError> {
        let attempt = block.attempt();
        let staged = self.attempt(runs, attempt)?;
        let expected = &mut staged.expected;
        let (next, first) = (expected.next_seq, block.first_seq());
        if block.next_seq() <= next {
            return Ok(Staged::Known);
        }
        if expected.sealed {
            return Err(AppendError::Sealed(attempt));
        }
        if first > next {
            return Err(AppendError::Gap { attempt, expected: next, first });
        }
        if first < next {
            return Err(AppendError::Overlap { attempt, expected: next, first });
        }
        // Corrected time never runs backwards within an attempt, nor before what readers take for settled, whatever
        // became of the agent's clock.
        let catch_up = expected.earliest.as_micros().saturating_sub(block.first_time().as_micros());
        let correction = expected.correction.max(catch_up);
        expected.next_seq = block.next_seq();
        expected.earliest = block.last_time().shifted(correction);
        let bytes = record_bytes(&block) as usize;
        let first_of = staged.blocks.is_empty().then(|| staged.run.clone());
        staged.blocks.push((block, correction));
        self.bytes += bytes;
        if let Some(run) = first_of {
            self.runs.entry(run.id).or_insert_with(|| (run, Vec::new())).1.push(attempt);
        }
        Ok(Staged::Added)
    }

    /// Lets no more blocks of `attempt` in.
    pub(super) fn seal(&mut self, runs: &Runs, attempt: AttemptId) -> Result<(), AppendError> {
        self.attempt(runs, attempt)?.expected.sealed = true;
        Ok(())
    }

    /// Lays the blocks of each attempt behind one another, and the attempts of each run, and numbers them so, to
    /// be written at `at` in the segment with this marker, while all before `durable` is on disk.
    pub(super) fn lay_out(mut self, marker: u64, at: Position, durable: Position) -> Layout {
        let mut layout = Layout { bytes: Vec::with_capacity(self.bytes), runs: Vec::new(), acks: Vec::new() };
        for (run, attempts) in self.runs.into_values() {
            let (mut arrival, mut extents) = (run.next_arrival(), Vec::new());
            for attempt in attempts {
                let Some(staged) = self.attempts.remove(&attempt) else { continue };
                for (block, correction) in staged.blocks {
                    let header = RecordHeader { pack_run: run.id, arrival, correction, durable };
                    let at = Position { offset: at.offset + layout.bytes.len() as u64, ..at };
                    extents.push((attempt, Extent::of(at, &header, &block)));
                    segment::encode_record(marker, &header, &block, &mut layout.bytes);
                    arrival += 1;
                }
                layout.acks.push((run.clone(), attempt, staged.expected.next_seq));
            }
            layout.runs.push(RunLayout { run, extents });
        }
        layout
    }

    fn attempt(&mut self, runs: &Runs, attempt: AttemptId) -> Result<&mut StagedAttempt, AppendError> {
        use std::collections::hash_map::Entry::{Occupied, Vacant};
        match self.attempts.entry(attempt) {
            Occupied(known) => Ok(known.into_mut()),
            Vacant(new) => {
                let run = runs.run_of(attempt).ok_or(AppendError::NotOpen(attempt))?;
                let expected = run.expected(attempt).ok_or(AppendError::NotOpen(attempt))?;
                Ok(new.insert(StagedAttempt { run, expected, blocks: Vec::new() }))
            }
        }
    }
}

impl Layout {
    /// Makes it all readable; it has been written. Returns what is to be acknowledged once it is synced.
    pub(super) fn publish(self) -> Vec<(Arc<RunLog>, AttemptId, u64)> {
        for RunLayout { run, extents } in &self.runs {
            run.publish(extents);
        }
        self.acks
    }
}
