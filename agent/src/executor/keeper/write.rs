//! What the keeper writes into the journal, and what becomes of it when the disk refuses.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use packrun_protocol::id::{AttemptId, Epoch};
use packrun_protocol::state::Verdict;
use packrun_protocol::time::Timestamp;

use super::kept::ended;
use super::{PATIENCE, RETRY, State};
use crate::executor::Command;
use crate::executor::ipc::Request;
use crate::spool::{Record, SpoolError};

/// Records that the journal did not take.
pub(super) struct Unwritten {
    pub(super) records: Vec<Record>,
    pub(super) since: Timestamp,
    pub(super) retry_at: Timestamp,
}

impl State {
    /// Writes down what happened, or keeps it to be written later.
    pub(super) fn write(&mut self, records: Vec<Record>) {
        if let Some(unwritten) = &mut self.unwritten {
            return unwritten.records.extend(records);
        }
        if let Err(error) = self.append(records.iter().cloned()) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the journal can't be written; jobs wait"
            );
            let since = self.clock.now();
            self.unwritten = Some(Unwritten { records, since, retry_at: since + RETRY });
        }
    }

    /// Tries once more. Whatever was written the first time is written again; a reader doesn't mind.
    pub(super) async fn write_again(&mut self) {
        let Some(mut unwritten) = self.unwritten.take() else { return };
        let now = self.clock.now();
        let Err(error) = self.append(unwritten.records.iter().cloned()) else {
            tracing::info!("the journal can be written again");
            return;
        };
        if now.since(unwritten.since) < PATIENCE {
            unwritten.retry_at = now + RETRY;
            self.unwritten = Some(unwritten);
            return;
        }
        let reason = format!("its output can't be kept: {error}; see the disk of the agent's state folder");
        let attempts: BTreeSet<AttemptId> = unwritten.records.iter().map(Record::attempt).collect();
        tracing::error!(attempts = attempts.len(), reason, "attempts fail");
        for attempt in attempts {
            let entries = self.attempts.get(&attempt).map_or(0, |kept| kept.written);
            if let Some(kept) = self.attempts.get_mut(&attempt) {
                kept.is_forgotten = true;
            }
            self.command(Command::Kill(attempt)).await;
            self.fail(attempt, &reason, entries);
        }
    }

    pub(super) fn fail(&mut self, attempt: AttemptId, reason: &str, entries: u64) {
        let outcome = ended(Verdict::Failed, reason, entries, self.clock.now());
        self.outbox.push_back(Request::Failed { attempt, outcome });
    }

    /// Writes down assignments; gives of those that the journal doesn't take why.
    pub(super) fn assign(&mut self, assigned: BTreeMap<AttemptId, Epoch>) -> HashMap<AttemptId, String> {
        let record = |(&attempt, &epoch): (&AttemptId, &Epoch)| Record::Assigned { attempt, epoch };
        if self.append(assigned.iter().map(record)).is_ok() {
            return HashMap::new();
        }
        // Each by itself: what there is room for is done.
        let mut refusals = HashMap::new();
        for entry in &assigned {
            if let Err(error) = self.append([record(entry)]) {
                let error_source = &error as &dyn std::error::Error;
                tracing::error!(attempt = %entry.0, error = error_source, "the journal takes no assignment");
                let why = "see the agent's log and the disk of its state folder";
                refusals.insert(*entry.0, format!("the agent can't write its journal: {error}; {why}"));
            }
        }
        refusals
    }

    /// Writes down what is settled; if not now, then with what comes next.
    pub(super) fn settle(&mut self, settled: Vec<AttemptId>) {
        self.unsettled.extend(settled.into_iter().filter(|attempt| self.journal.holds(*attempt)));
        if let Err(error) = self.append([]) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the journal doesn't forget attempts yet"
            );
        }
    }

    /// Appends records behind what is settled.
    fn append(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), SpoolError> {
        let settled = self.unsettled.iter().copied().map(Record::Settled);
        let records: Vec<_> = settled.chain(records).collect();
        if records.is_empty() {
            return Ok(());
        }
        let written = self.journal.append(records.iter().cloned());
        // Some may have been written even then.
        self.grown.send_modify(|times| *times = times.wrapping_add(1));
        written?;
        self.unsettled.clear();
        for record in &records {
            if let Record::Block(block) = record
                && let Some(kept) = self.attempts.get_mut(&block.attempt())
            {
                kept.written = block.next_seq();
            }
        }
        Ok(())
    }
}
