//! The attempts that the agent holds, and the numbers that are spent.

use std::collections::{BTreeMap, VecDeque};

use packrun_protocol::control::{FromAgent, HeldAttempt, HeldPhase};
use packrun_protocol::id::{AttemptId, AttemptNumber, JobRunId};
use packrun_protocol::state::{Outcome, Verdict};
use packrun_protocol::time::Timestamp;

/// How much this session has heard of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Told {
    /// Nothing, or the coordinator hasn't said that it goes on.
    #[default]
    Nothing,
    Assigned,
    Running,
    Ended,
}

/// An attempt that is not settled.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) started: Option<Timestamp>,
    pub(super) outcome: Option<Outcome>,
    /// The first entry that isn't safe yet; of none before it is anything wanted.
    pub(super) acked: u64,
    told: Told,
    /// What Hello said of it.
    greeted: Told,
}

impl Held {
    /// An attempt that was assigned in this session.
    pub(super) fn assigned() -> Self {
        Self { told: Told::Assigned, ..Self::default() }
    }

    /// An attempt that ended in this session before it was written down.
    pub(super) fn ended(outcome: Outcome) -> Self {
        Self { outcome: Some(outcome), ..Self::assigned() }
    }

    pub(super) fn forget_session(&mut self) {
        (self.told, self.greeted) = (Told::Nothing, Told::Nothing);
        // What another coordinator said of it need not be so.
        self.acked = 0;
    }

    /// What Hello says of it.
    pub(super) fn greet(&mut self, attempt: AttemptId) -> HeldAttempt {
        let (phase, told) = match (&self.outcome, self.started) {
            // The end itself follows, and the start before it if it is known.
            (Some(_), _) => (HeldPhase::Ended, Told::Assigned),
            (None, Some(at)) => (HeldPhase::Running(at), Told::Running),
            (None, None) => (HeldPhase::Assigned, Told::Assigned),
        };
        self.greeted = told;
        HeldAttempt { attempt, phase }
    }

    /// Whether Hello named it.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted > Told::Nothing
    }

    /// It goes on; the coordinator has the log before `log_from`.
    pub(super) fn go_on(&mut self, log_from: u64) {
        self.told = self.greeted;
        // Who lost an attempt may not know how much of its log it sent before.
        if let Some(outcome) = self.outcome.as_mut().filter(|outcome| outcome.verdict == Verdict::Lost) {
            outcome.entries = outcome.entries.max(log_from);
        }
    }

    /// What this session hasn't heard yet.
    pub(super) fn report(&mut self, attempt: AttemptId) -> Vec<FromAgent> {
        let mut news = Vec::new();
        if self.told == Told::Nothing {
            return news;
        }
        if let Some(at) = self.started.filter(|_| self.told < Told::Running) {
            self.told = Told::Running;
            news.push(FromAgent::Started { attempt, at });
        }
        if let Some(outcome) = self.outcome.clone().filter(|_| self.told < Told::Ended) {
            self.told = Told::Ended;
            news.push(FromAgent::Ended { attempt, outcome });
        }
        news
    }
}

/// The highest settled attempts of the job runs that were settled last.
#[derive(Debug, Default)]
pub(super) struct Spent {
    numbers: BTreeMap<JobRunId, AttemptNumber>,
    order: VecDeque<JobRunId>,
}

impl Spent {
    const JOB_RUNS_MAX: usize = 8192;

    pub(super) fn add(&mut self, attempt: AttemptId) {
        match self.numbers.get_mut(&attempt.job_run) {
            Some(number) => *number = attempt.number.max(*number),
            None => {
                if self.order.len() == Self::JOB_RUNS_MAX
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.numbers.remove(&oldest);
                }
                self.order.push_back(attempt.job_run);
                self.numbers.insert(attempt.job_run, attempt.number);
            }
        }
    }

    /// Whether this attempt, or a later one of its job run, was settled.
    pub(super) fn contains(&self, attempt: AttemptId) -> bool {
        self.numbers.get(&attempt.job_run).is_some_and(|number| *number >= attempt.number)
    }
}
