//! A core between a store that commits late and agents that keep a journal; one hand-turned clock. Every step is
//! checked as it is made. Effects reach the agents with the commit, as they do in the shell.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use packrun_protocol::control::{HeldAttempt, HeldPhase};
use packrun_protocol::id::{AgentId, AttemptId, Epoch};
use packrun_protocol::state::{AttemptState, Outcome, Verdict};
use packrun_protocol::time::Timestamp;

use super::make::{RUNNING, agent_id, artifact, connected, enrolment, name, outcome};
use super::rules;
use super::store::Store;
use crate::core::change::{AgentState, Change};
use crate::core::deadline::Deadline;
use crate::core::event::{Capacity, Command, Event, LogIndex, Report, SessionId, Ticket};
use crate::core::outcome::{CloseReason, Effect, Refusal, Reply, Standing, Step};
use crate::core::{Config, Core};

/// An attempt in an agent's journal.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) phase: HeldPhase,
    pub(super) artifacts: u32,
    pub(super) canceled: bool,
    pub(super) outcome: Option<Outcome>,
}

#[derive(Debug, Default)]
pub(super) struct HonestAgent {
    pub(super) capacity: Capacity,
    pub(super) session: Option<SessionId>,
    pub(super) journal: BTreeMap<AttemptId, Entry>,
}

pub(super) struct World {
    pub(super) core: Core,
    epoch: Epoch,
    pub(super) now: Timestamp,
    /// The rows of all steps so far.
    pub(super) live: Store,
    /// The rows of those that were committed, which is what a restart finds.
    pub(super) committed: Store,
    pending: VecDeque<Step>,
    pub(super) agents: BTreeMap<AgentId, HonestAgent>,
    /// The sessions that the core trusts.
    sessions: BTreeMap<AgentId, SessionId>,
    pub(super) last_session: u64,
    tickets: u64,
    pub(super) events: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let (epoch, now) = (Epoch(1), Timestamp::from_micros(1_000_000));
        Self {
            core: Core::new(Config::default(), epoch, now),
            epoch,
            now,
            live: Store::default(),
            committed: Store::default(),
            pending: VecDeque::new(),
            agents: BTreeMap::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            tickets: 0,
            events: 0,
        }
    }

    /// Lets the core take one event, and checks what came of it.
    pub(super) fn apply(&mut self, event: Event) -> Step {
        self.events += 1;
        let ticket = match &event {
            Event::Command { ticket, .. }
            | Event::Report { report: Report::ArtifactCommitted { ticket, .. }, .. } => Some(*ticket),
            _ => None,
        };
        if let Event::Report { agent, session, report: Report::Disconnected } = &event
            && self.sessions.get(agent) == Some(session)
        {
            self.sessions.remove(agent);
        }
        let step = self.core.apply(self.now, event);
        self.check(&step, ticket);
        self.pending.push_back(step.clone());
        step
    }

    fn check(&mut self, step: &Step, ticket: Option<Ticket>) {
        let mut runs = BTreeSet::new();
        let mut assigned = BTreeSet::new();
        for change in &step.changes {
            if let Change::Attempt(row) = change
                && !self.live.attempts.contains_key(&row.id)
            {
                assigned.insert(row.id);
            }
            if let Change::Progress(row) = change {
                runs.insert(row.pack_run);
            }
            self.live.apply(change);
        }
        let mut replies = Vec::new();
        let mut dispatched = BTreeSet::new();
        for effect in &step.effects {
            match effect {
                Effect::Welcome { agent, session, epoch, .. } => {
                    assert_eq!(*epoch, self.epoch, "welcomed in another's name");
                    self.sessions.insert(*agent, *session);
                }
                Effect::CloseSession { agent, session, .. } if self.sessions.get(agent) == Some(session) => {
                    self.sessions.remove(agent);
                }
                Effect::Reply { ticket, .. } => replies.push(*ticket),
                Effect::Dispatch { agent, session, assignments } => {
                    assert_eq!(self.sessions.get(agent), Some(session), "a dispatch over a dead session");
                    assert!(dispatched.insert(*agent), "one agent's assignments leave together");
                    for assignment in assignments {
                        let row = &self.live.attempts[&assignment.attempt];
                        assert_eq!((row.agent, row.state), (*agent, AttemptState::Assigned));
                        rules::check_match(&self.live, row.id);
                        if assigned.remove(&assignment.attempt) {
                            let state = self.live.agents[agent].state;
                            assert_eq!(state, AgentState::Active, "assigned to a drained");
                        }
                    }
                    rules::check_room(&self.live, *agent);
                }
                _ => {}
            }
        }
        assert!(assigned.is_empty(), "assigned, and not dispatched: {assigned:?}");
        assert_eq!(replies, ticket.into_iter().collect::<Vec<_>>(), "one reply to each command");
        runs.extend(self.live.live());
        runs.into_iter().for_each(|run| rules::check_run(&self.live, run));
    }

    pub(super) fn command(&mut self, command: Command) -> Result<Reply, Refusal> {
        self.tickets += 1;
        let step = self.apply(Event::Command { ticket: Ticket(self.tickets), command });
        let mut replies = step.effects.into_iter().filter_map(|effect| match effect {
            Effect::Reply { reply, .. } => Some(reply),
            _ => None,
        });
        replies.next().unwrap()
    }

    pub(super) fn report(&mut self, agent: AgentId, session: SessionId, report: Report) -> Step {
        self.apply(Event::Report { agent, session, report })
    }

    /// Commits the oldest `steps` steps, and lets the agents have their effects.
    pub(super) fn commit(&mut self, steps: usize) {
        for step in self.pending.drain(..steps.min(self.pending.len())).collect::<Vec<_>>() {
            step.changes.iter().for_each(|change| self.committed.apply(change));
            step.effects.iter().for_each(|effect| self.deliver(effect));
        }
    }

    /// Commits until no agent has anything to say to what it hears.
    pub(super) fn settle(&mut self) {
        while !self.pending.is_empty() {
            self.commit(usize::MAX);
        }
    }

    /// The coordinator dies, and a new one starts from what was committed.
    pub(super) fn restart(&mut self) {
        self.pending.clear();
        self.sessions.clear();
        self.live = self.committed.clone();
        self.epoch = Epoch(self.epoch.0 + 1);
        let (core, quarantined) =
            Core::restore(Config::default(), self.epoch, self.now, self.committed.rows());
        assert!(quarantined.is_empty(), "{quarantined:?}");
        self.core = core;
        self.agents.values_mut().for_each(|agent| agent.session = None);
    }

    /// The rows so far describe the core as it is.
    pub(super) fn check_restore(&self) {
        let (twin, quarantined) = Core::restore(Config::default(), self.epoch, self.now, self.live.rows());
        assert!(quarantined.is_empty(), "{quarantined:?}");
        assert_eq!(twin.digest(self.now), self.core.digest(self.now));
    }

    fn deliver(&mut self, effect: &Effect) {
        let (agent, session) = match effect {
            Effect::CancelAttempt { agent, session, .. }
            | Effect::CloseSession { agent, session, .. }
            | Effect::Dispatch { agent, session, .. }
            | Effect::Drain { agent, session, .. }
            | Effect::Fence { agent, session, .. }
            | Effect::Settled { agent, session, .. }
            | Effect::Welcome { agent, session, .. } => (*agent, *session),
            Effect::Reply { .. } => return,
        };
        let Some(model) = self.agents.get_mut(&agent).filter(|model| model.session == Some(session)) else {
            return;
        };
        match effect {
            Effect::CancelAttempt { attempt, .. } => {
                if let Some(entry) = model.journal.get_mut(attempt) {
                    entry.canceled = true;
                }
            }
            Effect::CloseSession { why, .. } => {
                model.session = None;
                if *why == CloseReason::Revoked {
                    model.journal.clear();
                }
            }
            Effect::Dispatch { assignments, .. } => {
                for assignment in assignments {
                    model.journal.entry(assignment.attempt).or_insert(Entry {
                        phase: HeldPhase::Assigned,
                        artifacts: 0,
                        canceled: false,
                        outcome: None,
                    });
                }
            }
            Effect::Fence { attempt, .. } | Effect::Settled { attempt, .. } => {
                model.journal.remove(attempt);
            }
            Effect::Welcome { standings, .. } => {
                for (attempt, standing) in standings {
                    match standing {
                        Standing::Fenced | Standing::Settled => drop(model.journal.remove(attempt)),
                        Standing::GoOn { .. } => {}
                    }
                }
                let ended: Vec<_> = model
                    .journal
                    .iter()
                    .filter_map(|(attempt, entry)| Some((*attempt, entry.outcome.clone()?)))
                    .collect();
                for (attempt, outcome) in ended {
                    self.report(agent, session, Report::Ended { attempt, outcome, log: LogIndex::default() });
                }
            }
            Effect::Drain { .. } | Effect::Reply { .. } => {}
        }
    }

    pub(super) fn enrol(&mut self, number: u32, capacity: Capacity) -> AgentId {
        let agent = agent_id(number);
        for command in enrolment(agent, name(&format!("a{number}"))) {
            self.command(command).unwrap();
        }
        self.agents.insert(agent, HonestAgent { capacity, ..HonestAgent::default() });
        agent
    }

    pub(super) fn connect(&mut self, agent: AgentId) {
        self.last_session += 1;
        let session = SessionId(self.last_session);
        let Some(model) = self.agents.get_mut(&agent) else { return };
        model.session = Some(session);
        let capacity = model.capacity.clone();
        let held = model
            .journal
            .iter()
            .map(|(attempt, entry)| HeldAttempt { attempt: *attempt, phase: entry.phase });
        let held = held.collect();
        self.report(agent, session, connected(capacity, held));
    }

    pub(super) fn disconnect(&mut self, agent: AgentId) {
        let session = self.agents.get_mut(&agent).and_then(|model| model.session.take());
        if let Some(session) = session {
            self.report(agent, session, Report::Disconnected);
        }
    }

    /// An agent's process runs; the report goes out if it is connected.
    pub(super) fn start(&mut self, agent: AgentId, attempt: AttemptId) {
        let Some(model) = self.agents.get_mut(&agent) else { return };
        let Some(entry) = model.journal.get_mut(&attempt) else { return };
        if entry.phase == HeldPhase::Assigned {
            entry.phase = RUNNING;
            if let Some(session) = model.session {
                self.report(agent, session, Report::Started { ticket: None, attempt });
            }
        }
    }

    /// A running attempt keeps a file, which needs a session. It says so twice.
    pub(super) fn keep(&mut self, agent: AgentId, attempt: AttemptId) {
        let Some(model) = self.agents.get_mut(&agent) else { return };
        let Some(session) = model.session else { return };
        let Some(entry) = model.journal.get_mut(&attempt) else { return };
        if entry.phase == RUNNING {
            entry.artifacts += 1;
            let artifact = artifact(&format!("out/{}", entry.artifacts));
            let ticket = Ticket(u64::MAX);
            let report = Report::ArtifactCommitted { ticket, attempt, artifact };
            self.report(agent, session, report.clone());
            // The answer is lost, and the agent says it again.
            let again = self.report(agent, session, report);
            assert!(again.changes.is_empty(), "a file kept twice");
        }
    }

    /// A running attempt ends; the report goes out now or after the next connection.
    pub(super) fn end(&mut self, agent: AgentId, attempt: AttemptId, verdict: Verdict) {
        let Some(model) = self.agents.get_mut(&agent) else { return };
        let Some(entry) = model.journal.get_mut(&attempt) else { return };
        if entry.phase == RUNNING {
            entry.phase = HeldPhase::Ended;
            let outcome = outcome(verdict, entry.artifacts);
            entry.outcome = Some(outcome.clone());
            if let Some(session) = model.session {
                self.report(agent, session, Report::Ended { attempt, outcome, log: LogIndex::default() });
            }
        }
    }

    /// Whether a report on this attempt over this session may change anything.
    pub(super) fn is_current(&self, agent: AgentId, session: SessionId, attempt: AttemptId) -> bool {
        let row = self.live.attempts.get(&attempt);
        self.sessions.get(&agent) == Some(&session)
            && row.is_some_and(|row| row.agent == agent && !row.state.is_terminal())
    }

    pub(super) fn advance(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// All that an honest fleet does until nothing is left to do: connects, runs, ends well, waits.
    pub(super) fn run_to_the_end(&mut self) {
        for round in 0.. {
            assert!(round < 1_000, "the pack runs never end: {:?}", self.live.job_runs.values());
            self.settle();
            let mut work: Vec<(AgentId, AttemptId)> = Vec::new();
            for (agent, model) in &self.agents {
                work.extend(model.journal.keys().map(|attempt| (*agent, *attempt)));
            }
            for (agent, attempt) in work {
                self.start(agent, attempt);
                let canceled = self.agents[&agent].journal.get(&attempt).is_some_and(|entry| entry.canceled);
                self.end(agent, attempt, if canceled { Verdict::Canceled } else { Verdict::Succeeded });
            }
            self.settle();
            if self.live.live().next().is_none() {
                return;
            }
            if let Some(due) = self.core.next_deadline() {
                self.now = self.now.max(due);
                self.apply(Event::Wake);
            }
        }
    }
}

impl Core {
    /// All that rows must bring back, in words. A wait that is over by `now` is none: its end writes no row.
    fn digest(&self, now: Timestamp) -> Vec<String> {
        let mut lines: Vec<_> = self
            .runs
            .values()
            .flat_map(|run| {
                let head = format!(
                    "{} {} {} {} {} {} {}",
                    run.row.id, run.state, run.canceled, run.open, run.failed, run.succeeded, run.feed_next
                );
                let jobs = run.jobs.iter().map(|job| {
                    format!("{} {} {} {} {}", job.first, job.open, job.waits_for, job.failed, job.skipped)
                });
                let job_runs = run.job_runs.iter().map(|job_run| {
                    let (state, canceled, number) = (job_run.state, job_run.canceled, job_run.number);
                    let ready_at = job_run.ready_at.filter(|at| *at > now);
                    format!("{state} {canceled} {number:?} {ready_at:?} {:?}", job_run.attempt)
                });
                [head].into_iter().chain(jobs).chain(job_runs).collect::<Vec<_>>()
            })
            .collect();
        lines.extend(self.agents.values().map(|agent| format!("{:?} {:?}", agent.row, agent.held)));
        lines.extend(self.deadlines.iter().filter_map(|(deadline, at)| match deadline {
            Deadline::Backoff(_) => (at > now).then(|| format!("{deadline:?} {at:?}")),
            Deadline::Overdue(_) => Some(format!("{deadline:?}")),
            Deadline::Key(_) | Deadline::Lease(_) => None,
        }));
        lines.push(format!("{:?} {:?}", self.packs, self.places));
        lines
    }

    /// Whether no pack run, queue or lease is left.
    pub(super) fn is_idle(&self) -> bool {
        let waiting = |(deadline, _)| !matches!(deadline, Deadline::Key(_));
        self.runs.is_empty()
            && self.places.is_empty()
            && self.schedule.is_idle()
            && self.agents.values().all(|agent| agent.held.is_empty())
            && !self.deadlines.iter().any(waiting)
    }
}
