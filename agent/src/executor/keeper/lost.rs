//! What the journal holds as unfinished when the keeper starts: it was lost with the process that executed it.
//! Apart from the keeper, because with an executor of its own process this is where one would look for it first.

use std::path::Path;

use packrun_protocol::id::AttemptId;
use packrun_protocol::state::Verdict;
use packrun_protocol::time::Timestamp;

use super::kept::ended;
use crate::spool::{Follower, Journal, Phase, Record, SpoolError};

/// Records the end of what an earlier process executed.
pub(super) fn give_up_lost(journal: &mut Journal, folder: &Path, now: Timestamp) -> Result<(), SpoolError> {
    let is_unfinished = |(_, phase): &(AttemptId, &Phase)| !matches!(phase, Phase::Ended(_));
    let lost: Vec<AttemptId> = journal.lives().filter(is_unfinished).map(|(attempt, _)| attempt).collect();
    if lost.is_empty() {
        return Ok(());
    }
    let mut follower = Follower::new(folder.to_owned());
    while follower.read()?.is_some() {}
    let records: Vec<_> = lost
        .into_iter()
        .map(|attempt| {
            let entries = follower.index().life(attempt).and_then(|life| life.next_seq).unwrap_or(0);
            let reason = "the agent was stopped or killed while the attempt ran, and its processes with it";
            Record::Ended { attempt, outcome: ended(Verdict::Lost, reason, entries, now) }
        })
        .collect();
    tracing::warn!(attempts = records.len(), "attempts of an earlier life of this agent are lost");
    journal.append(records)
}
