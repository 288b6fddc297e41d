//! The life of one attempt, as a machine without I/O and clock: `handle(input, now)` says what to do, and
//! `deadline` when to come back.
//!
//! ```text
//! Preparing → Starting → Running → Terminating → Killing      a stop: SIGTERM, 10 s, SIGKILL, 30 s
//!     │           │          └──────────┴───────────┴→ Draining → Collecting → Cleaning → Ended
//!     └───────────┴──────────────────────────────────────────────────────────────┘
//! ```
//! Invariants: the tree is ended before the main process is reaped; an attempt ends once, after its output and
//! its artifacts are complete and its workspace is gone; a success beats a cancel under way, unless its artifacts
//! are not all kept yet: that may take long; every phase that waits for a process has a deadline.

use std::time::Duration;

use packrun_protocol::state::{ExitStatus, Outcome, Reason, Verdict};
use packrun_protocol::time::Timestamp;

/// How long a tree has between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long is waited for processes to go after SIGKILL, before the attempt ends without them.
pub const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How long the pipes may stay open after the main process has exited.
pub const DRAIN: Duration = Duration::from_secs(2);

/// What has happened to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Its inputs are in the workspace, or can't be.
    Prepared(Result<(), Reason>),
    /// Its main process executes its program.
    Started,
    /// There is no process.
    StartFailed(Reason),
    /// Stop it, with grace.
    Cancel,
    /// Stop it at once: nobody wants its result any more.
    Kill,
    /// Its main process has exited, and is not reaped yet.
    Exited(ExitStatus),
    /// None of its processes is left.
    TreeEnded,
    /// Both pipes are closed, and this many entries were cut in all.
    OutputEnded {
        /// The number after the last entry's.
        entries: u64,
    },
    /// Its artifacts are kept: how many, or why not.
    Collected(Result<u32, Reason>),
    /// Its workspace is gone.
    Cleaned,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fetch the inputs; answer with [`Input::Prepared`].
    Prepare,
    /// Start the main process; answer with [`Input::Started`] or [`Input::StartFailed`].
    Start,
    /// Send SIGTERM to all processes.
    Terminate,
    /// Send SIGKILL to all processes.
    Kill,
    /// Send SIGKILL to what the main process left; [`Input::TreeEnded`] when nothing is left.
    EndTree,
    /// Reap the main process.
    Reap,
    /// Wait no longer for processes that even SIGKILL didn't end.
    Abandon,
    /// Read what is in the pipes and close them; answer with [`Input::OutputEnded`].
    CloseOutput,
    /// Keep the artifacts; answer with [`Input::Collected`].
    Collect,
    /// Remove the workspace; answer with [`Input::Cleaned`].
    Clean,
    /// Report the end; nothing follows.
    End(Outcome),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Preparing,
    Starting,
    Running { until: Option<Timestamp> },
    Terminating { kill_at: Timestamp },
    Killing { give_up_at: Timestamp },
    Draining { tree_until: Option<Timestamp>, output: Drain },
    Collecting,
    Cleaning,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    Until(Timestamp),
    Closing,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Canceled,
    TimedOut,
    Fenced,
}

/// One attempt's life.
#[derive(Debug, Clone)]
pub struct Attempt {
    phase: Phase,
    timeout: Option<Duration>,
    has_artifacts: bool,
    /// Its artifacts are not kept, since it was canceled before they were.
    is_cut_off: bool,
    stop: Option<Stop>,
    started_at: Option<Timestamp>,
    ran_for: Duration,
    exit: Option<ExitStatus>,
    failure: Option<Reason>,
    /// How many entries there are, once the pipes are closed: a job may close them and go on.
    entries: Option<u64>,
    artifacts: u32,
}

impl Attempt {
    /// An attempt whose main process may run for `timeout`, and its first action.
    #[must_use]
    pub fn new(timeout: Option<Duration>, has_inputs: bool, has_artifacts: bool) -> (Self, Action) {
        let (phase, action) =
            if has_inputs { (Phase::Preparing, Action::Prepare) } else { (Phase::Starting, Action::Start) };
        let attempt = Self {
            phase,
            timeout,
            has_artifacts,
            is_cut_off: false,
            stop: None,
            started_at: None,
            ran_for: Duration::ZERO,
            exit: None,
            failure: None,
            entries: None,
            artifacts: 0,
        };
        (attempt, action)
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Running { until } => until,
            Phase::Terminating { kill_at } => Some(kill_at),
            Phase::Killing { give_up_at } => Some(give_up_at),
            Phase::Draining { tree_until, output: Drain::Until(output) } => {
                Some(tree_until.map_or(output, |tree| tree.min(output)))
            }
            Phase::Draining { tree_until, .. } => tree_until,
            _ => None,
        }
    }

    /// What to do now, in this order. An input that does not fit the phase changes nothing.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Action> {
        match (self.phase.clone(), input) {
            (Phase::Preparing, Input::Prepared(Ok(()))) => {
                self.phase = Phase::Starting;
                vec![Action::Start]
            }
            (Phase::Preparing, Input::Prepared(Err(reason)))
            | (Phase::Starting, Input::StartFailed(reason)) => {
                self.failure = Some(reason);
                self.clean()
            }
            (Phase::Preparing, Input::Cancel) => {
                self.stop = Some(Stop::Canceled);
                self.clean()
            }
            (Phase::Preparing, Input::Kill) => {
                self.stop = Some(Stop::Fenced);
                self.clean()
            }
            (Phase::Starting, Input::Cancel) => self.remember(Stop::Canceled),
            (Phase::Starting, Input::Kill) => self.remember(Stop::Fenced),
            (Phase::Starting, Input::Started) => self.started(now),
            (Phase::Running { until }, Input::Tick) if until.is_some_and(|until| until <= now) => {
                self.terminate(Stop::TimedOut, now)
            }
            (Phase::Running { .. }, Input::Cancel) => self.terminate(Stop::Canceled, now),
            (Phase::Terminating { kill_at }, Input::Tick) if kill_at <= now => self.kill(now),
            (Phase::Running { .. } | Phase::Terminating { .. }, Input::Kill) => {
                self.stop = Some(Stop::Fenced);
                self.kill(now)
            }
            (Phase::Killing { .. }, Input::Kill) => self.remember(Stop::Fenced),
            (Phase::Killing { give_up_at }, Input::Tick) if give_up_at <= now => self.give_up(now),
            (
                Phase::Running { .. } | Phase::Terminating { .. } | Phase::Killing { .. },
                Input::Exited(status),
            ) => self.exited(status, now),
            (
                Phase::Running { .. } | Phase::Terminating { .. } | Phase::Killing { .. },
                Input::OutputEnded { entries },
            ) => {
                self.entries = Some(entries);
                Vec::new()
            }
            (Phase::Draining { tree_until, output }, input) => self.drain(tree_until, output, input, now),
            (Phase::Collecting, Input::Collected(Ok(artifacts))) => {
                self.artifacts = artifacts;
                self.clean()
            }
            (Phase::Collecting, Input::Collected(Err(reason))) => {
                self.failure = Some(reason);
                self.clean()
            }
            (Phase::Collecting, Input::Cancel) => {
                self.cut_off();
                self.clean()
            }
            (Phase::Collecting, Input::Kill) => {
                self.stop = Some(Stop::Fenced);
                self.clean()
            }
            (Phase::Cleaning, Input::Cleaned) => {
                self.phase = Phase::Ended;
                vec![Action::End(self.outcome(now))]
            }
            _ => Vec::new(),
        }
    }

    fn remember(&mut self, stop: Stop) -> Vec<Action> {
        self.stop = Some(stop);
        Vec::new()
    }

    fn started(&mut self, now: Timestamp) -> Vec<Action> {
        self.started_at = Some(now);
        match self.stop {
            Some(Stop::Fenced) => self.kill(now),
            Some(stop) => self.terminate(stop, now),
            None => {
                self.phase = Phase::Running { until: self.timeout.map(|timeout| now + timeout) };
                Vec::new()
            }
        }
    }

    fn terminate(&mut self, stop: Stop, now: Timestamp) -> Vec<Action> {
        self.stop = Some(stop);
        self.phase = Phase::Terminating { kill_at: now + GRACE };
        vec![Action::Terminate]
    }

    fn kill(&mut self, now: Timestamp) -> Vec<Action> {
        self.phase = Phase::Killing { give_up_at: now + KILL_LIMIT };
        vec![Action::Kill]
    }

    fn give_up(&mut self, now: Timestamp) -> Vec<Action> {
        self.ran_for = self.started_at.map_or(Duration::ZERO, |started| now.since(started));
        self.failure = Some(Reason::new("the process did not end within 30 s of SIGKILL and was left alone"));
        let output = if self.entries.is_some() { Drain::Ended } else { Drain::Until(now) };
        self.phase = Phase::Draining { tree_until: None, output };
        [vec![Action::Abandon], self.drain(None, output, Input::Tick, now)].concat()
    }

    fn exited(&mut self, status: ExitStatus, now: Timestamp) -> Vec<Action> {
        self.exit = Some(status);
        self.ran_for = self.started_at.map_or(Duration::ZERO, |started| now.since(started));
        let output = if self.entries.is_some() { Drain::Ended } else { Drain::Until(now + DRAIN) };
        self.phase = Phase::Draining { tree_until: Some(now + KILL_LIMIT), output };
        vec![Action::EndTree, Action::Reap]
    }

    fn drain(
        &mut self,
        mut tree_until: Option<Timestamp>,
        mut output: Drain,
        input: Input,
        now: Timestamp,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::TreeEnded => tree_until = None,
            Input::OutputEnded { entries } => {
                self.entries = Some(entries);
                output = Drain::Ended;
            }
            Input::Kill => self.stop = Some(Stop::Fenced),
            // One that was stopped before still leaves what it has.
            Input::Cancel if self.has_artifacts && self.stop.is_none() => self.cut_off(),
            Input::Tick => {
                if tree_until.is_some_and(|until| until <= now) {
                    tree_until = None;
                    actions.push(Action::Abandon);
                }
                if matches!(output, Drain::Until(until) if until <= now) {
                    output = Drain::Closing;
                    actions.push(Action::CloseOutput);
                }
            }
            _ => {}
        }
        self.phase = Phase::Draining { tree_until, output };
        if tree_until.is_none() && output == Drain::Ended {
            actions.extend(self.collect());
        }
        actions
    }

    fn collect(&mut self) -> Vec<Action> {
        if !self.has_artifacts || self.is_cut_off || self.exit.is_none() || self.stop == Some(Stop::Fenced) {
            return self.clean();
        }
        self.phase = Phase::Collecting;
        vec![Action::Collect]
    }

    fn cut_off(&mut self) {
        self.is_cut_off = true;
        self.stop.get_or_insert(Stop::Canceled);
    }

    fn clean(&mut self) -> Vec<Action> {
        self.phase = Phase::Cleaning;
        vec![Action::Clean]
    }

    fn outcome(&mut self, now: Timestamp) -> Outcome {
        let is_whole = self.failure.is_none() && !self.is_cut_off;
        let succeeded = self.exit == Some(ExitStatus::Code(0)) && is_whole;
        let verdict = match self.stop {
            Some(Stop::TimedOut) => Verdict::TimedOut,
            Some(Stop::Fenced) => Verdict::Canceled,
            Some(Stop::Canceled) if !succeeded => Verdict::Canceled,
            _ if succeeded => Verdict::Succeeded,
            _ => Verdict::Failed,
        };
        let timeout = || {
            let seconds = self.timeout.unwrap_or_default().as_secs_f64();
            Reason::new(&format!("it ran longer than its timeout of {seconds} s"))
        };
        let reason = self.failure.take().or_else(|| (verdict == Verdict::TimedOut).then(timeout));
        Outcome {
            verdict,
            exit: self.exit,
            reason,
            ended_at: now,
            ran_for: self.ran_for,
            entries: self.entries.unwrap_or(0),
            artifacts: self.artifacts,
            // The keeper counts them.
            invalid_bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests;
