//! The pure state machine. No I/O, no clock, no async, no randomness: [`Core::apply`] takes the time and an
//! [`Event`], changes the state, and says in a [`Step`] what to persist and what to do after that.
//!
//! Invariants, checked by the properties in `tests/`:
//! - Ends are final. A job run starts after all it needs has ended, and only if its `when` holds.
//! - Of a job run at most one attempt is current. Only its agent, over its live session, can report on it.
//! - Neither a cancel nor a timeout waits for an agent for ever, though it is connected.
//! - An agent is assigned nothing beyond its slots, processors and memory.
//! - Every pack run's feed is numbered from 0 without a gap, and a job run's `running` precedes its end.
//! - A core restored from the rows it gave differs from the old one only in its sessions, which are gone, and
//!   its leases and what is overdue, which begin anew: agents get the time to report. Restart and takeover are this one path.
//!
//! An idempotency key is known here while its pack run lives and [`KEY_MEMORY`] longer, so that two requests
//! with one key meet here when the first is not yet in the store; what is older the shell finds there, before it
//! asks.

mod agent;
mod attempt;
pub mod change;
mod deadline;
pub mod event;
mod explain;
mod job;
mod labels;
mod lease;
pub mod outcome;
pub mod plan;
mod registry;
mod restore;
mod run;
mod schedule;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod token;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::control::Assignment;
use packrun_protocol::id::{AgentId, Epoch, JobRunId, PackRunId, TokenId};
use packrun_protocol::limit;
use packrun_protocol::name::Name;
use packrun_protocol::state::Reason;
use packrun_protocol::time::Timestamp;

use self::change::{Change, FeedEntry, LogRow, TokenRow};
use self::deadline::{Deadline, Deadlines};
use self::event::{Command, Event, Idempotency, Report, SessionId};
use self::job::Input;
use self::outcome::{Effect, Refusal, Reply, Step};
pub use self::registry::Archived;
pub use self::restore::{LiveRun, Quarantined, RestoreError, Rows};
use self::schedule::Schedule;
use self::state::{Agent, PackRun, Place};
pub use self::view::{AgentView, Gauges};

/// How long an idempotency key outlives its pack run here: longer than any commit that doesn't fail.
pub const KEY_MEMORY: Duration = Duration::from_secs(600);

/// What can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How long an absent agent keeps its attempts.
    pub lease: Duration,
    /// How long an attempt may take to end once it was canceled; the lease comes on top. In it an agent stops the
    /// attempt's processes, however unwilling they are, and brings the rest of its log here. Whose agent takes longer
    /// is lost: it is stuck, though it is connected.
    pub overdue: Duration,
    /// Most tokens that hold at a time.
    pub tokens: usize,
    /// Most files that one attempt may leave, [`limit::ARTIFACTS_PER_ATTEMPT_MAX`] at most.
    pub artifacts_per_attempt: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            overdue: Duration::from_secs(300),
            tokens: 10_000,
            artifacts_per_attempt: limit::ARTIFACTS_PER_ATTEMPT_MAX,
        }
    }
}

/// The newest version of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackHead {
    /// Its number.
    pub version: u32,
    /// The sha256 of its canonical form.
    pub digest: packrun_protocol::id::Digest,
    /// Which of the pack's versions are archived.
    pub archived: Archived,
}

/// The state of the coordinator: what is live, and no history.
#[derive(Debug)]
pub struct Core {
    config: Config,
    epoch: Epoch,
    now: Timestamp,
    packs: BTreeMap<Name, PackHead>,
    runs: BTreeMap<PackRunId, PackRun>,
    /// The pack runs that could not be restored and have not ended: the number after each one's last feed entry,
    /// and why. They can be canceled, and nothing else.
    quarantined: BTreeMap<PackRunId, (u64, RestoreError)>,
    /// Where every job run of a live pack run lies.
    places: BTreeMap<JobRunId, Place>,
    agents: BTreeMap<AgentId, Agent>,
    /// The names of the agents that were not revoked, and how many others were made of each.
    names: BTreeMap<Name, u64>,
    /// The tokens that have not ended, expired ones perhaps among them.
    tokens: BTreeMap<TokenId, TokenRow>,
    /// The keys of labels that are granted and can't be claimed, and by how many tokens and agents.
    reserved: BTreeMap<String, u32>,
    keys: BTreeMap<Arc<str>, (PackRunId, Idempotency)>,
    /// The keys of pack runs that have ended, until they are forgotten.
    ended_keys: BTreeMap<PackRunId, Arc<str>>,
    schedule: Schedule,
    deadlines: Deadlines,
    /// What the event under way has come to so far; empty in between.
    out: Step,
    dispatches: BTreeMap<AgentId, Vec<Assignment>>,
}

impl Core {
    /// A core that knows nothing.
    #[must_use]
    pub fn new(config: Config, epoch: Epoch, now: Timestamp) -> Self {
        Self {
            config,
            epoch,
            now,
            packs: BTreeMap::new(),
            runs: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            places: BTreeMap::new(),
            agents: BTreeMap::new(),
            names: BTreeMap::new(),
            tokens: BTreeMap::new(),
            reserved: BTreeMap::new(),
            keys: BTreeMap::new(),
            ended_keys: BTreeMap::new(),
            schedule: Schedule::default(),
            deadlines: Deadlines::default(),
            out: Step::default(),
            dispatches: BTreeMap::new(),
        }
    }

    /// Takes one event. `now` never runs backwards; an earlier time counts as the last one.
    ///
    /// A report is heard before the deadlines that are due: an agent that comes back just before its lease is
    /// judged keeps its attempts.
    #[must_use]
    pub fn apply(&mut self, now: Timestamp, event: Event) -> Step {
        self.now = self.now.max(now);
        match event {
            Event::Command { ticket, command } => {
                let reply = self.command(command);
                self.out.effects.push(Effect::Reply { ticket, reply });
            }
            Event::Report { agent, session, report } => self.report(agent, session, report),
            Event::Wake => {}
        }
        while let Some(deadline) = self.deadlines.pop_due(self.now) {
            self.fire(deadline);
        }
        self.assign_queued();
        for (agent, assignments) in std::mem::take(&mut self.dispatches) {
            if let Some(session) = self.agents.get(&agent).and_then(|agent| agent.session) {
                self.out.effects.push(Effect::Dispatch { agent, session, assignments });
            }
        }
        std::mem::take(&mut self.out)
    }

    /// When to send [`Event::Wake`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.next()
    }

    fn command(&mut self, command: Command) -> Result<Reply, Refusal> {
        match command {
            Command::ArchivePack { name, version, archived } => self.archive_pack(name, version, archived),
            Command::CancelJobRun(id) => self.cancel_job_run(id),
            Command::CancelRun(id) => self.cancel_run(id),
            Command::CreateRun(new) => self.create_run(*new),
            Command::CreateToken { id, secret, grant, ttl } => self.create_token(id, secret, grant, ttl),
            Command::DrainAgent(id) => self.set_draining(id, true),
            Command::EnrolAgent { token, secret, agent, name } => self.enrol(token, secret, agent, name),
            Command::KeepLog { pack_run, attempt, log } => {
                self.out.changes.push(Change::Log(LogRow { pack_run, attempt, log }));
                Ok(Reply::Done)
            }
            Command::RegisterPack { name, digest, source, format, canonical } => {
                Ok(self.register_pack(name, digest, source, format, canonical))
            }
            Command::ResumeAgent(id) => self.set_draining(id, false),
            Command::RevokeAgent(id) => self.revoke(id),
            Command::RevokeToken(id) => self.revoke_token(id),
        }
    }

    fn report(&mut self, id: AgentId, session: SessionId, report: Report) {
        let live = self.agents.get(&id).is_some_and(|agent| agent.session == Some(session));
        match report {
            Report::Connected(arrival) => self.connect(id, session, arrival),
            Report::ArtifactCommitted { ticket, attempt, artifact } => {
                let place = self.held_place(id, attempt).filter(|_| live);
                let reply = match place {
                    Some(place) => self.record_artifact(place, artifact),
                    None => Err(Refusal::Fenced(attempt)),
                };
                self.out.effects.push(Effect::Reply { ticket, reply });
            }
            Report::Started { ticket, attempt } => {
                let place = self.held_place(id, attempt).filter(|_| live);
                if let Some(place) = place {
                    self.start(place);
                } else if live {
                    self.out.effects.push(Effect::Fence { agent: id, session, attempt });
                }
                if let Some(ticket) = ticket {
                    let reply = place.map(|_| Reply::Done).ok_or(Refusal::Fenced(attempt));
                    self.out.effects.push(Effect::Reply { ticket, reply });
                }
            }
            _ if !live => {}
            Report::Disconnected => self.disconnect(id),
            Report::Draining(draining) => self.set_declining(id, draining),
            Report::Ended { attempt, outcome, log } => {
                if let Some(place) = self.held_place(id, attempt) {
                    self.out.changes.push(Change::Log(LogRow { pack_run: place.run, attempt, log }));
                    self.record_outcome(place, outcome);
                }
                self.out.effects.push(Effect::Settled { agent: id, session, attempt });
            }
        }
    }

    fn fire(&mut self, deadline: Deadline) {
        match deadline {
            Deadline::Backoff(place) => self.enqueue(place),
            Deadline::Key(run) => {
                if let Some(key) = self.ended_keys.remove(&run) {
                    self.keys.remove(&key);
                }
            }
            Deadline::Lease(agent) => self.end_lease(agent),
            Deadline::Overdue(place) => self.end_overdue(place),
        }
    }

    /// Moves a job run along its table, and records that.
    fn transition(&mut self, place: Place, input: Input, reason: Option<&Reason>) {
        let Some(run) = self.runs.get_mut(&place.run) else { return };
        let job_run = &mut run.job_runs[place.index as usize];
        let Some(state) = job::next(job_run.state, input) else {
            debug_assert!(false, "{input:?} in state {}", job_run.state);
            return;
        };
        job_run.state = state;
        job_run.since = self.now;
        let held_by = job_run.attempt.as_ref().map(|attempt| attempt.agent);
        let entry = FeedEntry::JobRun {
            state,
            attempt: job_run.number,
            agent: held_by.filter(|_| input != Input::Retry),
            reason: reason.cloned(),
            key: run.planned(place.index).key.clone(),
        };
        let reused_from = if let Input::Reuse(from) = input { Some(from) } else { None };
        let row = run.job_run_row(place.index, reason.cloned(), reused_from);
        self.out.changes.push(Change::JobRun(row));
        self.out.changes.push(run.feed(self.now, entry));
    }
}
