//! What the rows must look like after any step, by the words of the contract and with no help from the core: slow,
//! and plain.

use packrun_protocol::id::{AgentId, AttemptId, PackRunId};
use packrun_protocol::job::Requirement;
use packrun_protocol::state::{JobRunState, PackRunState};

use super::store::Store;
use crate::core::plan::{PlannedJob, When};

fn failed(store: &Store, job: &PlannedJob) -> bool {
    use JobRunState::{Canceled, Failed, Lost, TimedOut};
    let ends = job.runs.iter().map(|run| store.state(run.id));
    !job.allow_failure && ends.into_iter().any(|end| matches!(end, Failed | TimedOut | Lost | Canceled))
}

/// Checks a pack run's job runs against those they need, and its own state against theirs.
pub(super) fn check_run(store: &Store, run: PackRunId) {
    let plan = &store.runs[&run].plan;
    let progress = &store.progress[&run];
    for job in &plan.jobs {
        let needs: Vec<_> = job.needs.iter().map(|need| &plan.jobs[need.0 as usize]).collect();
        let states = |job: &PlannedJob| job.runs.iter().map(|run| store.state(run.id)).collect::<Vec<_>>();
        let ended = needs.iter().flat_map(|need| states(need)).all(JobRunState::is_terminal);
        let skipped = needs.iter().flat_map(|need| states(need)).any(|state| state == JobRunState::Skipped);
        let failure = needs.iter().any(|need| failed(store, need));
        let holds = match job.when {
            When::Always => true,
            When::Success => !skipped && !failure,
            When::Failure => !skipped && failure,
        };
        for planned in &job.runs {
            let key = &planned.key;
            if let Some(row) = store.job_runs.get(&planned.id) {
                let tries = row.attempt.map_or(0, packrun_protocol::id::AttemptNumber::get);
                assert!(tries <= job.retry.attempts, "{key} was tried {tries} times");
                assert!(!row.canceled || row.state != JobRunState::Queued, "{key} is retried, and canceled");
            }
            match store.state(planned.id) {
                JobRunState::Blocked => assert!(!ended, "{key} is blocked by nothing"),
                JobRunState::Skipped => assert!(ended && !holds, "{key} was skipped, and its `when` holds"),
                JobRunState::Canceled => {
                    assert!(store.job_runs[&planned.id].attempt.is_none() || ended && holds, "{key}");
                }
                _ if store.job_runs[&planned.id].reused_from.is_some() => {}
                state => assert!(ended && holds, "{key} is {state} before what it needs, or against `when`"),
            }
        }
    }
    let states: Vec<_> = plan.job_runs().map(|planned| store.state(planned.id)).collect();
    let expected = if states.iter().all(|state| state.is_terminal()) {
        let failed = plan.jobs.iter().any(|job| failed(store, job));
        let succeeded = states.contains(&JobRunState::Succeeded);
        match (progress.canceled, failed, succeeded) {
            (true, _, _) => PackRunState::Canceled,
            (_, false, _) => PackRunState::Completed,
            (_, true, true) => PackRunState::PartiallyFailed,
            (_, true, false) => PackRunState::Failed,
        }
    } else if store.attempts.values().any(|row| row.pack_run == run) {
        PackRunState::Running
    } else {
        PackRunState::Pending
    };
    assert_eq!(progress.state, expected, "the state of a pack run with {states:?}");
}

fn requirement(store: &Store, attempt: AttemptId) -> &Requirement {
    let row = &store.job_runs[&attempt.job_run];
    let mut planned = store.runs[&row.pack_run].plan.job_runs();
    &planned.find(|planned| planned.id == attempt.job_run).unwrap().requirement
}

/// Checks that all an agent holds finds room on it.
pub(super) fn check_room(store: &Store, agent: AgentId) {
    let capacity = store.agents[&agent].capacity.as_ref().unwrap();
    let held = store.attempts.values().filter(|row| row.agent == agent && !row.state.is_terminal());
    let wanted: Vec<_> = held.map(|row| requirement(store, row.id)).collect();
    assert!(wanted.len() <= capacity.slots as usize, "{} attempts on {capacity:?}", wanted.len());
    assert!(wanted.iter().map(|w| w.cpu_millis).sum::<u32>() <= capacity.cpu_millis);
    assert!(wanted.iter().map(|w| w.memory_bytes).sum::<u64>() <= capacity.memory_bytes);
}

/// Checks that an agent is one that an attempt asked for.
pub(super) fn check_match(store: &Store, attempt: AttemptId) {
    let agent = &store.agents[&store.attempts[&attempt].agent];
    let wanted = &requirement(store, attempt).labels;
    assert!(agent.capacity.as_ref().unwrap().labels.satisfy(wanted), "{attempt} without {wanted}");
}
