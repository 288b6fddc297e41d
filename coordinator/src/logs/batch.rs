//! What one write puts down: blocks of all attempts in order of arrival, checked and numbered. Nothing of it is
//! known to anyone before [`Batch::publish`], so a write that fails leaves no trace.

use std::collections::HashMap;
use std::sync::Arc;

use packrun_protocol::block::Block;
use packrun_protocol::id::{AttemptId, PackRunId};
use thiserror::Error;

use super::extent::{Expected, Extent, RunLog, Runs};
use super::segment::{self, Position, RecordHeader};

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

#[derive(Debug)]
pub(super) struct Batch {
    marker: u64,
    at: Position,
    durable: Position,
    bytes: Vec<u8>,
    attempts: HashMap<AttemptId, (Arc<RunLog>, Expected)>,
    runs: HashMap<PackRunId, StagedRun>,
}

#[derive(Debug)]
struct StagedRun {
    log: Arc<RunLog>,
    next_arrival: u64,
    extents: Vec<(AttemptId, Extent)>,
}

impl Batch {
    /// A batch to be written at `at` in the segment with this marker, while all before `durable` is on disk.
    pub(super) fn new(marker: u64, at: Position, durable: Position) -> Self {
        let (attempts, runs) = (HashMap::new(), HashMap::new());
        Self { marker, at, durable, bytes: Vec::new(), attempts, runs }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn append(&mut self, runs: &Runs, block: &Block) -> Result<Staged, AppendError> {
        let attempt = block.attempt();
        let (run, expected) = self.attempt(runs, attempt)?;
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
        // Corrected time never runs backwards within an attempt, whatever became of the agent's clock.
        let catch_up = expected.last_time.as_micros().saturating_sub(block.first_time().as_micros());
        let correction = expected.correction.max(catch_up);
        let run = run.clone();
        let run = self.runs.entry(run.id).or_insert_with(|| StagedRun {
            next_arrival: run.next_arrival(),
            log: run,
            extents: Vec::new(),
        });
        let header = RecordHeader {
            pack_run: run.log.id,
            arrival: run.next_arrival,
            correction,
            durable: self.durable,
        };
        let at = Position { offset: self.at.offset + self.bytes.len() as u64, ..self.at };
        let extent = Extent::of(at, &header, block);
        segment::encode_record(self.marker, &header, block, &mut self.bytes);
        run.next_arrival += 1;
        run.extents.push((attempt, extent));
        if let Some((_, expected)) = self.attempts.get_mut(&attempt) {
            expected.next_seq = block.next_seq();
            expected.last_time = extent.last_time;
        }
        Ok(Staged::Added)
    }

    /// Lets no more blocks of `attempt` in.
    pub(super) fn seal(&mut self, runs: &Runs, attempt: AttemptId) -> Result<(), AppendError> {
        self.attempt(runs, attempt)?.1.sealed = true;
        Ok(())
    }

    /// Makes it all readable; it has been written. Returns what is to be acknowledged once it is synced.
    pub(super) fn publish(self) -> Vec<(Arc<RunLog>, AttemptId, u64)> {
        for run in self.runs.values() {
            run.log.publish(&run.extents);
        }
        self.attempts
            .into_iter()
            .map(|(attempt, (run, expected))| (run, attempt, expected.next_seq))
            .collect()
    }

    fn attempt(
        &mut self,
        runs: &Runs,
        attempt: AttemptId,
    ) -> Result<&mut (Arc<RunLog>, Expected), AppendError> {
        use std::collections::hash_map::Entry::{Occupied, Vacant};
        match self.attempts.entry(attempt) {
            Occupied(known) => Ok(known.into_mut()),
            Vacant(new) => {
                let run = runs.run_of(attempt).ok_or(AppendError::NotOpen(attempt))?;
                let expected = run.expected(attempt).ok_or(AppendError::NotOpen(attempt))?;
                Ok(new.insert((run, expected)))
            }
        }
    }
}
