//! Pack runs: created, canceled, and carried through their DAG to their end.
//!
//! A job waits for jobs, not for job runs, so a matrix that needs a matrix is one edge. A job has ended when its
//! last job run has; then those that need it count one less, and at zero their `when` is judged, once. Ends that
//! follow from ends go through a worklist, so the depth of a plan costs no stack.

use std::sync::Arc;

use packrun_protocol::id::{JobRunId, PackRunId};
use packrun_protocol::state::{JobRunState, PackRunState, Reason};
use packrun_protocol::time::Timestamp;

use super::change::{Change, FeedEntry, FeedRow, PackRunRow, ProgressRow};
use super::deadline::Deadline;
use super::event::NewRun;
use super::job::Input;
use super::outcome::{Effect, Refusal, Reply};
use super::plan::{JobIndex, When};
use super::state::{PackRun, Place};
use super::{Core, KEY_MEMORY};

impl PackRun {
    pub(super) fn feed(&mut self, at: Timestamp, entry: FeedEntry) -> Change {
        let number = self.feed_next;
        self.feed_next = number.saturating_add(1);
        Change::Feed(FeedRow { pack_run: self.row.id, number, at, entry })
    }

    /// Counts the end of a job run. Names its job if that was the last one of it.
    pub(super) fn count_end(&mut self, index: u32) -> Option<JobIndex> {
        let (job, state) = (self.job_runs[index as usize].job, self.job_runs[index as usize].state);
        let failed = is_failure(state) && !self.planned_job(job).allow_failure;
        self.open -= 1;
        self.failed += u32::from(failed);
        self.succeeded += u32::from(state == JobRunState::Succeeded);
        let counts = &mut self.jobs[job.0 as usize];
        counts.open -= 1;
        counts.failed |= failed;
        counts.skipped |= state == JobRunState::Skipped;
        (counts.open == 0).then_some(job)
    }

    /// Why a job whose needs have all ended doesn't run; `None` when it does.
    fn skip_reason(&self, job: JobIndex) -> Option<&'static str> {
        let planned = self.planned_job(job);
        let any = |of: fn(&super::state::Job) -> bool| {
            planned.needs.iter().any(|need| of(&self.jobs[need.0 as usize]))
        };
        match planned.when {
            When::Always => None,
            _ if any(|need| need.skipped) => Some("something it needs was skipped"),
            When::Failure if !any(|need| need.failed) => Some("nothing it needs failed"),
            When::Success if any(|need| need.failed) => Some("something it needs failed"),
            When::Failure | When::Success => None,
        }
    }

    const fn final_state(&self) -> PackRunState {
        match (self.canceled, self.failed, self.succeeded) {
            (true, _, _) => PackRunState::Canceled,
            (_, 0, _) => PackRunState::Completed,
            (_, _, 0) => PackRunState::Failed,
            _ => PackRunState::PartiallyFailed,
        }
    }
}

pub(super) const fn is_failure(state: JobRunState) -> bool {
    use JobRunState::{Canceled, Failed, Lost, TimedOut};
    matches!(state, Failed | TimedOut | Lost | Canceled)
}

impl Core {
    pub(super) fn create_run(&mut self, new: NewRun) -> Result<Reply, Refusal> {
        if let Some(wanted) = &new.idempotency
            && let Some((id, known)) = self.keys.get(&wanted.key)
        {
            return if known == wanted {
                Ok(Reply::Run { id: *id, created: false })
            } else {
                Err(Refusal::KeyReused(Arc::clone(&wanted.key)))
            };
        }
        self.check_runnable(&new.pack, new.version)?;
        if self.runs.contains_key(&new.id) {
            return Err(Refusal::Invalid("its id is taken"));
        }
        new.plan.check().map_err(Refusal::Invalid)?;
        if new.plan.job_runs().any(|planned| self.places.contains_key(&planned.id)) {
            return Err(Refusal::Invalid("the id of a job run is taken"));
        }
        let taken_over = new.plan.job_runs().filter(|planned| new.reused.contains_key(&planned.id));
        if taken_over.count() < new.reused.len() {
            return Err(Refusal::Invalid("it takes over a success for a job run that it doesn't have"));
        }
        let id = new.id;
        let row = Arc::new(PackRunRow {
            id,
            pack: new.pack,
            version: new.version,
            params: new.params,
            plan: new.plan,
            idempotency: new.idempotency,
            retry_of: new.retry_of,
            created_at: self.now,
        });
        self.out.changes.push(Change::PackRun(Arc::clone(&row)));
        self.know_run(PackRun::new(Arc::clone(&row)));
        self.enter(id, PackRunState::Pending);

        let mut ended = Vec::new();
        for (index, planned) in (0..).zip(row.plan.job_runs()) {
            let Some(&from) = new.reused.get(&planned.id) else { continue };
            self.transition(Place { run: id, index }, Input::Reuse(from), None);
            ended.extend(self.runs.get_mut(&id).and_then(|run| run.count_end(index)));
        }
        for (position, _) in (0..).zip(&row.plan.jobs).filter(|(_, job)| job.needs.is_empty()) {
            self.release(id, JobIndex(position), &mut ended);
        }
        self.cascade(id, ended);
        Ok(Reply::Run { id, created: true })
    }

    /// Takes a live pack run into memory.
    pub(super) fn know_run(&mut self, run: PackRun) {
        let id = run.row.id;
        for (index, planned) in (0..).zip(run.row.plan.job_runs()) {
            self.places.insert(planned.id, Place { run: id, index });
        }
        if let Some(idempotency) = &run.row.idempotency {
            self.keys.insert(Arc::clone(&idempotency.key), (id, idempotency.clone()));
        }
        self.runs.insert(id, run);
    }

    pub(super) fn cancel_run(&mut self, id: PackRunId) -> Result<Reply, Refusal> {
        let Some(run) = self.runs.get_mut(&id) else { return self.cancel_quarantined(id) };
        if std::mem::replace(&mut run.canceled, true) {
            return Ok(Reply::Done);
        }
        self.out.changes.push(Change::Progress(run.progress_row()));
        let reason = Reason::new("its pack run was canceled");
        for index in 0..super::state::count(run.job_runs.len()) {
            self.cancel(Place { run: id, index }, &reason);
        }
        Ok(Reply::Done)
    }

    /// Ends a pack run that could not be restored, at once: of its job runs nothing is known for sure, and what
    /// agents held of it they were told to drop.
    fn cancel_quarantined(&mut self, id: PackRunId) -> Result<Reply, Refusal> {
        let (number, _) = self.quarantined.remove(&id).ok_or(Refusal::NotLive(id))?;
        let (state, at) = (PackRunState::Canceled, self.now);
        let row = ProgressRow { pack_run: id, state, since: at, canceled: true };
        self.out.changes.push(Change::Progress(row));
        let row = FeedRow { pack_run: id, number, at, entry: FeedEntry::PackRun(state) };
        self.out.changes.push(Change::Feed(row));
        Ok(Reply::Done)
    }

    pub(super) fn cancel_job_run(&mut self, id: JobRunId) -> Result<Reply, Refusal> {
        let refused = Refusal::NotLiveJob(id);
        let Some(&place) = self.places.get(&id) else { return Err(refused) };
        let state = self.runs.get(&place.run).map(|run| run.job_runs[place.index as usize].state);
        if state.is_none_or(JobRunState::is_terminal) {
            return Err(refused);
        }
        self.cancel(place, &Reason::new("it was canceled"));
        Ok(Reply::Done)
    }

    fn cancel(&mut self, place: Place, reason: &Reason) {
        let Some(run) = self.runs.get_mut(&place.run) else { return };
        let job_run = &mut run.job_runs[place.index as usize];
        if job_run.state.is_terminal() || std::mem::replace(&mut job_run.canceled, true) {
            return;
        }
        match &job_run.attempt {
            Some(attempt) => {
                let agent = attempt.agent;
                self.out.changes.push(Change::JobRun(run.job_run_row(
                    place.index,
                    Some(reason.clone()),
                    None,
                )));
                self.tell_cancel(place, agent, reason);
                self.bound(place);
            }
            None => {
                job_run.ready_at = None;
                self.deadlines.clear(Deadline::Backoff(place));
                self.schedule.dequeue(place, run.requirement(place.index));
                self.transition(place, Input::Cancel, Some(reason));
                self.settle(place);
            }
        }
    }

    /// Tells the agent that holds an attempt to stop it, if it is there. One that is not is told when it comes.
    pub(super) fn tell_cancel(
        &mut self,
        place: Place,
        agent: packrun_protocol::id::AgentId,
        reason: &Reason,
    ) {
        let attempt = self.runs.get(&place.run).and_then(|run| run.attempt_id(place.index));
        let session = self.agents.get(&agent).and_then(|agent| agent.session);
        if let (Some(attempt), Some(session)) = (attempt, session) {
            self.out.effects.push(Effect::CancelAttempt { agent, session, attempt, why: reason.clone() });
        }
    }

    /// Draws the consequences of a job run's end.
    pub(super) fn settle(&mut self, place: Place) {
        let Some(run) = self.runs.get_mut(&place.run) else { return };
        let ended = run.count_end(place.index).into_iter().collect();
        self.cascade(place.run, ended);
    }

    /// Judges what waited for the `ended` jobs, and what waited for that, and ends the pack run with its last
    /// job run.
    fn cascade(&mut self, id: PackRunId, mut ended: Vec<JobIndex>) {
        while let Some(job) = ended.pop() {
            let Some(run) = self.runs.get_mut(&id) else { return };
            let dependents = std::mem::take(&mut run.jobs[job.0 as usize].dependents);
            for dependent in dependents {
                let Some(run) = self.runs.get_mut(&id) else { return };
                let waiting = &mut run.jobs[dependent.0 as usize];
                waiting.waits_for -= 1;
                if waiting.waits_for == 0 && !run.canceled {
                    self.release(id, dependent, &mut ended);
                }
            }
        }
        if let Some(run) = self.runs.get(&id).filter(|run| run.open == 0) {
            let state = run.final_state();
            self.enter(id, state);
            self.forget_run(id);
        }
    }

    /// Queues or skips the job runs of a job whose needs have all ended.
    fn release(&mut self, id: PackRunId, job: JobIndex, ended: &mut Vec<JobIndex>) {
        let Some(run) = self.runs.get(&id) else { return };
        let skip = run.skip_reason(job).map(Reason::new);
        let first = run.jobs[job.0 as usize].first;
        for index in first..first + super::state::count(run.planned_job(job).runs.len()) {
            let place = Place { run: id, index };
            let Some(run) = self.runs.get_mut(&id) else { return };
            if run.job_runs[index as usize].state != JobRunState::Blocked {
                continue;
            }
            if skip.is_some() {
                self.transition(place, Input::Skip, skip.as_ref());
                ended.extend(self.runs.get_mut(&id).and_then(|run| run.count_end(index)));
            } else {
                self.transition(place, Input::Release, None);
                self.enqueue(place);
            }
        }
    }

    pub(super) fn enqueue(&mut self, place: Place) {
        if let Some(run) = self.runs.get_mut(&place.run) {
            run.job_runs[place.index as usize].ready_at = None;
            self.schedule.enqueue(place, run.requirement(place.index));
        }
    }

    pub(super) fn enter(&mut self, id: PackRunId, state: PackRunState) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.state = state;
        run.since = self.now;
        self.out.changes.push(Change::Progress(run.progress_row()));
        self.out.changes.push(run.feed(self.now, FeedEntry::PackRun(state)));
    }

    fn forget_run(&mut self, id: PackRunId) {
        let Some(run) = self.runs.remove(&id) else { return };
        for planned in run.row.plan.job_runs() {
            self.places.remove(&planned.id);
        }
        if let Some(idempotency) = &run.row.idempotency {
            self.ended_keys.insert(id, Arc::clone(&idempotency.key));
            self.deadlines.set(Deadline::Key(id), self.now + KEY_MEMORY);
        }
    }
}
