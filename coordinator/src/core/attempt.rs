//! Attempts: numbered, handed out, fenced, recorded and retried.
//!
//! An attempt is current while its job run is assigned or running under its number. Nothing else can be reported
//! on. The end of an attempt that is not current is answered *settled* and changes nothing: whether it was
//! recorded before or given away meanwhile, its agent may forget it.

use std::collections::BTreeMap;
use std::time::Duration;

use packrun_protocol::control::Assignment;
use packrun_protocol::id::{AgentId, AttemptId, AttemptNumber};
use packrun_protocol::state::{AttemptState, JobRunState, Outcome, PackRunState, Reason, Verdict};
use packrun_protocol::time::Timestamp;

use super::Core;
use super::change::{ArtifactRow, Change, FeedEntry};
use super::deadline::Deadline;
use super::event::Artifact;
use super::job::Input;
use super::outcome::{Effect, Refusal, Reply};
use super::plan::{BACKOFF_MAX, Retry};
use super::state::{Attempt, Place};

impl Core {
    /// Hands out what is queued as far as agents have room.
    pub(super) fn assign_queued(&mut self) {
        while let Some((place, agent)) = self.schedule.next() {
            self.assign(place, agent);
        }
    }

    fn assign(&mut self, place: Place, agent: AgentId) {
        if self.runs.get(&place.run).is_some_and(|run| run.state == PackRunState::Pending) {
            self.enter(place.run, PackRunState::Running);
        }
        let Some(run) = self.runs.get_mut(&place.run) else { return };
        let job_run = &mut run.job_runs[place.index as usize];
        job_run.number = Some(job_run.number.map_or(AttemptNumber::FIRST, AttemptNumber::next));
        job_run.attempt = Some(Box::new(Attempt {
            agent,
            assigned_at: self.now,
            started_at: None,
            artifacts: BTreeMap::new(),
        }));
        if let Some(agent) = self.agents.get_mut(&agent) {
            agent.held.insert(place);
        }
        self.transition(place, Input::Assign, None);
        self.record_attempt(place, AttemptState::Assigned);
        self.dispatch(place, agent);
    }

    /// Adds an attempt to what its agent is handed at the end of this step.
    pub(super) fn dispatch(&mut self, place: Place, agent: AgentId) {
        let Some(run) = self.runs.get(&place.run) else { return };
        let Some(attempt) = run.attempt_id(place.index) else { return };
        let planned = run.planned(place.index);
        self.dispatches.entry(agent).or_default().push(Assignment {
            attempt,
            pack_run: place.run,
            pack: run.row.pack.clone(),
            version: run.row.version,
            key: planned.key.clone(),
            definition: planned.definition.clone(),
        });
    }

    /// Where an attempt lies, if it is current and this agent holds it.
    pub(super) fn held_place(&self, agent: AgentId, attempt: AttemptId) -> Option<Place> {
        let place = *self.places.get(&attempt.job_run)?;
        let job_run = self.runs.get(&place.run)?.job_runs.get(place.index as usize)?;
        let current = job_run.number == Some(attempt.number)
            && job_run.attempt.as_ref().is_some_and(|attempt| attempt.agent == agent);
        current.then_some(place)
    }

    /// When the current attempt was assigned.
    pub(super) fn assigned_at(&self, place: Place) -> Timestamp {
        let job_run = self.runs.get(&place.run).and_then(|run| run.job_runs.get(place.index as usize));
        let attempt = job_run.and_then(|job_run| job_run.attempt.as_ref());
        attempt.map_or(self.now, |attempt| attempt.assigned_at)
    }

    /// Most bytes of the current attempt's log.
    pub(super) fn log_bytes_max(&self, place: Place) -> u64 {
        self.runs.get(&place.run).map_or(0, |run| run.planned(place.index).definition.log_bytes_max)
    }

    /// Notes that the current attempt's process runs. Said twice, it is noted once.
    pub(super) fn start(&mut self, place: Place) {
        let Some(run) = self.runs.get_mut(&place.run) else { return };
        let job_run = &mut run.job_runs[place.index as usize];
        if job_run.state != JobRunState::Assigned {
            return;
        }
        if let Some(attempt) = &mut job_run.attempt {
            attempt.started_at = Some(self.now);
        }
        self.transition(place, Input::Start, None);
        self.record_attempt(place, AttemptState::Running);
    }

    /// Sets when the current attempt has to have ended, once it was canceled. A timeout sets nothing: what its agent
    /// still has to bring here after it, as a file of many gigabytes, takes as long as it takes.
    pub(super) fn bound(&mut self, place: Place) {
        let Some(run) = self.runs.get(&place.run) else { return };
        let job_run = &run.job_runs[place.index as usize];
        let deadline = Deadline::Overdue(place);
        if job_run.canceled && job_run.attempt.is_some() && self.deadlines.get(deadline).is_none() {
            self.deadlines.set(deadline, self.now + self.config.lease + self.config.overdue);
        }
    }

    /// Takes the current attempt from an agent that did not end it in time.
    pub(super) fn end_overdue(&mut self, place: Place) {
        let Some(run) = self.runs.get(&place.run) else { return };
        let job_run = &run.job_runs[place.index as usize];
        let (Some(attempt), Some(held)) = (run.attempt_id(place.index), &job_run.attempt) else { return };
        let agent = held.agent;
        if let Some(session) = self.agents.get(&agent).and_then(|agent| agent.session) {
            self.out.effects.push(Effect::Fence { agent, session, attempt });
        }
        self.lose(place, "its agent did not stop it in time after the cancel");
    }

    /// Why a file is none of a current attempt's artifacts, if it isn't: to be asked before its bytes are taken, too.
    #[must_use]
    pub fn refuses_artifact(&self, id: AttemptId, artifact: &Artifact) -> Option<Refusal> {
        let place = *self.places.get(&id.job_run)?;
        let run = self.runs.get(&place.run)?;
        let job_run = run.job_runs.get(place.index as usize).filter(|run| run.number == Some(id.number))?;
        let attempt = job_run.attempt.as_ref()?;
        let known = attempt.artifacts.get(&artifact.path);
        let rules = &run.planned(place.index).definition.artifacts;
        let why = if known.is_some_and(|known| *known != artifact.content) {
            "another content came under this path before"
        } else if known.is_none() && attempt.artifacts.len() >= self.config.artifacts_per_attempt {
            let most = self.config.artifacts_per_attempt;
            return Some(Refusal::TooManyArtifacts(artifact.path.clone(), most));
        } else if artifact.name.is_some() && rules.iter().all(|rule| rule.name != artifact.name) {
            "no artifact rule of its job has this name"
        } else {
            return None;
        };
        Some(Refusal::Artifact(artifact.path.clone(), why))
    }

    /// Records a file of the current attempt; the same again changes nothing. A file can outrun the report of the
    /// start, which it implies.
    pub(super) fn record_artifact(&mut self, place: Place, artifact: Artifact) -> Result<Reply, Refusal> {
        let id = self.runs.get(&place.run).and_then(|run| run.attempt_id(place.index));
        if let Some(refusal) = id.and_then(|id| self.refuses_artifact(id, &artifact)) {
            return Err(refusal);
        }
        self.start(place);
        let Some(run) = self.runs.get_mut(&place.run) else { return Ok(Reply::Done) };
        let (Some(id), Some(attempt)) =
            (run.attempt_id(place.index), &mut run.job_runs[place.index as usize].attempt)
        else {
            return Ok(Reply::Done);
        };
        if attempt.artifacts.insert(artifact.path.clone(), artifact.content).is_none() {
            let row = ArtifactRow { pack_run: place.run, attempt: id, artifact: artifact.clone() };
            self.out.changes.push(Change::Artifact(row));
            let key = run.planned(place.index).key.clone();
            let entry = FeedEntry::Artifact { key, attempt: id.number, artifact };
            self.out.changes.push(run.feed(self.now, entry));
        }
        Ok(Reply::Done)
    }

    /// Records what an agent says of the current attempt's end. A success that doesn't name as many artifacts as
    /// came is none.
    pub(super) fn record_outcome(&mut self, place: Place, outcome: Outcome) {
        let ran = outcome.exit.is_some() || outcome.entries > 0 || outcome.verdict == Verdict::Succeeded;
        if ran {
            self.start(place);
        }
        let recorded = self.runs.get(&place.run).and_then(|run| {
            let attempt = run.job_runs[place.index as usize].attempt.as_ref()?;
            Some(attempt.artifacts.len())
        });
        let recorded = recorded.unwrap_or(0);
        let complete = u32::try_from(recorded).is_ok_and(|recorded| recorded == outcome.artifacts);
        let (state, reason) = if outcome.verdict == Verdict::Succeeded && !complete {
            let words = format!("its agent left {} artifacts, but {recorded} arrived", outcome.artifacts);
            (AttemptState::Failed, Some(Reason::new(&words)))
        } else {
            let exit = outcome.exit.filter(|_| outcome.verdict != Verdict::Succeeded);
            let said = outcome.reason.clone();
            (outcome.verdict.into(), said.or_else(|| exit.map(|exit| Reason::new(&exit.to_string()))))
        };
        self.end_attempt(place, state, Some(outcome), reason);
    }

    pub(super) fn lose(&mut self, place: Place, why: &str) {
        self.end_attempt(place, AttemptState::Lost, None, Some(Reason::new(why)));
    }

    /// Ends the current attempt, frees its agent's room, and ends or retries its job run.
    pub(super) fn end_attempt(
        &mut self,
        place: Place,
        state: AttemptState,
        outcome: Option<Outcome>,
        reason: Option<Reason>,
    ) {
        let Some(run) = self.runs.get_mut(&place.run) else { return };
        let Some(id) = run.attempt_id(place.index) else { return };
        let job_run = &mut run.job_runs[place.index as usize];
        let retry = run.row.plan.jobs[job_run.job.0 as usize].retry;
        let input = match job_end(state) {
            JobRunState::Succeeded => Input::End(JobRunState::Succeeded),
            end if job_run.canceled || end == JobRunState::Canceled => Input::End(JobRunState::Canceled),
            _ if id.number.get() < retry.attempts => Input::Retry,
            end => Input::End(end),
        };
        let reason = if input == Input::Retry {
            let wait = backoff(retry, id);
            job_run.ready_at = (!wait.is_zero()).then_some(self.now + wait);
            let detail = reason.map_or_else(String::new, |reason| format!(": {reason}"));
            Some(Reason::new(&format!("attempt {} {}{detail}", id.number, state.as_str().replace('_', " "))))
        } else {
            reason
        };
        self.deadlines.clear(Deadline::Overdue(place));
        self.transition(place, input, reason.as_ref());

        let Some(run) = self.runs.get_mut(&place.run) else { return };
        let Some(attempt) = run.job_runs[place.index as usize].attempt.take() else { return };
        let end = Some((self.now, outcome, reason));
        self.out.changes.push(Change::Attempt(attempt.row(id, place.run, state, end)));
        self.schedule.give_back(attempt.agent, run.requirement(place.index));
        if let Some(agent) = self.agents.get_mut(&attempt.agent) {
            agent.held.remove(&place);
        }
        let ready_at = run.job_runs[place.index as usize].ready_at;
        match (input, ready_at) {
            (Input::Retry, Some(at)) => self.deadlines.set(Deadline::Backoff(place), at),
            (Input::Retry, None) => self.enqueue(place),
            _ => self.settle(place),
        }
    }

    fn record_attempt(&mut self, place: Place, state: AttemptState) {
        let Some(run) = self.runs.get(&place.run) else { return };
        if let (Some(id), Some(attempt)) =
            (run.attempt_id(place.index), &run.job_runs[place.index as usize].attempt)
        {
            self.out.changes.push(Change::Attempt(attempt.row(id, place.run, state, None)));
        }
    }
}

const fn job_end(state: AttemptState) -> JobRunState {
    match state {
        AttemptState::Succeeded => JobRunState::Succeeded,
        AttemptState::Failed => JobRunState::Failed,
        AttemptState::TimedOut => JobRunState::TimedOut,
        AttemptState::Canceled => JobRunState::Canceled,
        AttemptState::Lost | AttemptState::Assigned | AttemptState::Running => JobRunState::Lost,
    }
}

/// The wait after this attempt: doubled from try to try, at most an hour, less up to a quarter, so that job runs
/// that failed together don't come back together. The same attempt always waits equally long.
pub(super) fn backoff(retry: Retry, attempt: AttemptId) -> Duration {
    let doublings = attempt.number.get().saturating_sub(1).min(31);
    let wait = retry.backoff.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    // FNV-1a over the attempt's id; the high bits are the well mixed ones.
    let bytes = attempt.job_run.to_bytes().into_iter().chain(attempt.number.get().to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let thousandths = u32::try_from(hash >> 40).unwrap_or(0) % 250;
    wait - wait * thousandths / 1000
}
