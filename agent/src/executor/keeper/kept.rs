//! What the keeper knows of one attempt: pure.

use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::block::{Block, BlockBuilder, LogStream};
use packrun_protocol::id::AttemptId;
use packrun_protocol::job::Definition;
use packrun_protocol::limit;
use packrun_protocol::state::{Outcome, Reason, Verdict};
use packrun_protocol::time::Timestamp;

/// An attempt that the executor has.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) definition: Arc<Definition>,
    /// The number after the last log entry that came from the executor.
    pub(super) taken: u64,
    /// The number after the last one that is in the journal.
    pub(super) written: u64,
    /// How many bytes of those entries are no UTF-8.
    pub(super) invalid_bytes: u64,
    /// How many of the entries are packrun's own, which the executor doesn't count.
    remarks: u64,
    /// Why the coordinator stopped it.
    pub(super) canceled: Option<Reason>,
    /// Nobody wants to hear of it any more: it only has to go.
    pub(super) is_forgotten: bool,
}

impl Kept {
    pub(super) fn new(definition: Arc<Definition>) -> Self {
        Self {
            definition,
            taken: 0,
            written: 0,
            invalid_bytes: 0,
            remarks: 0,
            canceled: None,
            is_forgotten: false,
        }
    }

    /// Blocks with these remarks, to be written behind the job's own output.
    pub(super) fn remark(&mut self, attempt: AttemptId, notes: &[String], now: Timestamp) -> Vec<Block> {
        let mut builder = BlockBuilder::new(attempt, self.taken + self.remarks);
        let mut blocks = Vec::new();
        for note in notes.iter().take(limit::LOG_REMARKS_MAX) {
            let mut end = note.len().min(limit::LOG_REMARK_BYTES_MAX);
            while !note.is_char_boundary(end) {
                end -= 1;
            }
            let text = note.as_bytes().get(..end).unwrap_or_default();
            if !builder.has_room(now, text.len()) {
                blocks.extend(builder.finish());
            }
            if builder.push(now, LogStream::System, false, text).is_ok() {
                self.remarks += 1;
            }
        }
        blocks.extend(builder.finish());
        blocks
    }

    /// The attempt's outcome, with what the executor can't know.
    pub(super) fn judge(self, mut outcome: Outcome, is_stopping: bool) -> Outcome {
        outcome.entries += self.remarks;
        outcome.invalid_bytes = self.invalid_bytes;
        if outcome.verdict == Verdict::Canceled {
            match self.canceled {
                Some(reason) => outcome.reason = outcome.reason.or(Some(reason)),
                None if is_stopping => {
                    outcome.verdict = Verdict::Lost;
                    outcome.reason = Some(Reason::new("the agent was stopped, and the attempt with it"));
                }
                None => {}
            }
        }
        outcome
    }
}

/// The end of an attempt that no executor has seen.
pub(super) fn ended(verdict: Verdict, reason: &str, entries: u64, now: Timestamp) -> Outcome {
    Outcome {
        verdict,
        exit: None,
        reason: Some(Reason::new(reason)),
        ended_at: now,
        ran_for: Duration::ZERO,
        entries,
        artifacts: 0,
        invalid_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use packrun_protocol::id::{AttemptNumber, JobRunId};
    use packrun_protocol::job::Action;

    use super::*;

    #[test]
    fn remarks_have_a_number_and_a_length() {
        let definition = Definition {
            action: Action::Script(String::new()),
            env: vec![],
            workdir: None,
            timeout: None,
            artifacts: vec![],
            inputs: vec![],
            log_bytes_max: 0,
        };
        let attempt = AttemptId { job_run: JobRunId::from_bytes([1; 16]), number: AttemptNumber::FIRST };
        let notes = vec!["é".repeat(limit::LOG_REMARK_BYTES_MAX); limit::LOG_REMARKS_MAX + 1];
        let blocks = Kept::new(Arc::new(definition)).remark(attempt, &notes, Timestamp::MIN);
        let entries: Vec<_> = blocks.iter().flat_map(Block::entries).collect();
        assert_eq!(entries.len(), limit::LOG_REMARKS_MAX);
        assert!(entries.iter().all(|entry| entry.text.len() == limit::LOG_REMARK_BYTES_MAX));
        assert!(blocks.iter().map(Block::log_bytes).sum::<u64>() <= limit::LOG_OVERRUN_BYTES_MAX);
    }
}
