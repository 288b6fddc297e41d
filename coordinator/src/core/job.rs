//! The life of a job run, as a table. Whatever is not in it can't happen: ends are final, and nothing is assigned
//! that was not queued.

use packrun_protocol::id::JobRunId;
use packrun_protocol::state::JobRunState;

/// What happens to a job run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// Its attempt was given to an agent.
    Assign,
    /// It was canceled before an agent had it.
    Cancel,
    /// Its last attempt came to this end.
    End(JobRunState),
    /// All it needs has ended, and its `when` holds.
    Release,
    /// Its attempt ended, and another follows.
    Retry,
    /// It takes over this earlier one's success.
    Reuse(JobRunId),
    /// All it needs has ended, and its `when` doesn't hold.
    Skip,
    /// Its process runs.
    Start,
}

/// The state that follows; `None` where the input can't come.
pub(super) const fn next(state: JobRunState, input: Input) -> Option<JobRunState> {
    use JobRunState::{Assigned, Blocked, Canceled, Queued, Running, Skipped, Succeeded};
    match (state, input) {
        (Blocked, Input::Release) | (Assigned | Running, Input::Retry) => Some(Queued),
        (Blocked, Input::Reuse(_)) => Some(Succeeded),
        (Blocked, Input::Skip) => Some(Skipped),
        (Blocked | Queued, Input::Cancel) => Some(Canceled),
        (Queued, Input::Assign) => Some(Assigned),
        (Assigned, Input::Start) => Some(Running),
        (Assigned | Running, Input::End(end)) if end.is_terminal() && !matches!(end, Skipped) => Some(end),
        _ => None,
    }
}
