//! Everything at random: packs, agents, the order of events, lies, cancels, and restarts from what was committed.
//! First with faults, every step checked; then with an honest fleet, under which every pack run must end.

use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::control::{HeldAttempt, HeldPhase};
use packrun_protocol::id::{AgentId, AttemptId, AttemptNumber, Digest};
use packrun_protocol::job::Requirement;
use packrun_protocol::name::Labels;
use packrun_protocol::state::Verdict;
use proptest::collection::vec;
use proptest::prelude::*;

use super::make::{
    self, JobSpec, RUNNING, agent_id, artifact, connected, job_run_id, labels, new_run, outcome, run_id,
};
use super::world::World;
use crate::core::event::{Capacity, Command, Event, Idempotency, LogIndex, Report, SessionId, Ticket};
use crate::core::outcome::{Effect, Refusal, Reply};
use crate::core::plan::When;

/// One random operation; the numbers choose among what is there.
#[derive(Debug, Clone)]
enum Op {
    Archive(u8),
    Advance(u16),
    CancelJobRun(u16),
    CancelRun(u16),
    Commit(u8),
    Connect(u8, u8),
    CreateRun(Vec<JobSpecSeed>, Option<u8>),
    Disconnect(u8),
    Drain(u8),
    End(u16, Verdict),
    ForgetJournal(u8),
    Keep(u16),
    Lie(u8, u8, u16, u8),
    Restart,
    Resume(u8),
    Retry(u16),
    Revoke(u8),
    Start(u16),
    VanishSilently(u8),
}

/// needs (bits of earlier jobs), when, allow_failure, attempts, backoff, width, requirement
type JobSpecSeed = (u8, u8, bool, u32, bool, u32, u8);

const VERDICTS: [Verdict; 4] = [Verdict::Succeeded, Verdict::Failed, Verdict::TimedOut, Verdict::Canceled];

fn op() -> impl Strategy<Value = Op> {
    let job = (any::<u8>(), 0..6_u8, any::<bool>(), 1..4_u32, any::<bool>(), 1..4_u32, 0..8_u8);
    let verdict = proptest::sample::select(&VERDICTS[..]);
    prop_oneof![
        1 => any::<u8>().prop_map(Op::Archive),
        3 => (0..200_u16).prop_map(Op::Advance),
        1 => any::<u16>().prop_map(Op::CancelJobRun),
        1 => any::<u16>().prop_map(Op::CancelRun),
        12 => any::<u8>().prop_map(Op::Commit),
        6 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Op::Connect(a, b)),
        4 => (vec(job, 1..6), proptest::option::of(0..4_u8)).prop_map(|(jobs, key)| Op::CreateRun(jobs, key)),
        2 => any::<u8>().prop_map(Op::Disconnect),
        1 => any::<u8>().prop_map(Op::Drain),
        10 => (any::<u16>(), verdict).prop_map(|(a, b)| Op::End(a, b)),
        1 => any::<u8>().prop_map(Op::ForgetJournal),
        3 => any::<u16>().prop_map(Op::Keep),
        6 => any::<(u8, u8, u16, u8)>().prop_map(|(a, b, c, d)| Op::Lie(a, b, c, d)),
        1 => Just(Op::Restart),
        1 => any::<u8>().prop_map(Op::Resume),
        1 => any::<u16>().prop_map(Op::Retry),
        1 => (0..60_u8).prop_map(Op::Revoke),
        12 => any::<u16>().prop_map(Op::Start),
        1 => any::<u8>().prop_map(Op::VanishSilently),
    ]
}

fn requirement(seed: u8) -> Requirement {
    let labels = match seed % 4 {
        0 | 1 => Labels::default(),
        2 => labels(&[("os", "linux")]),
        _ => labels(&[("os", "linux"), ("gpu", "yes")]),
    };
    let large = seed >= 4;
    Requirement { labels, cpu_millis: if large { 1500 } else { 0 }, memory_bytes: u64::from(large) << 30 }
}

fn capacity(seed: u8) -> Capacity {
    let labels = match seed % 3 {
        0 => Labels::default(),
        1 => labels(&[("os", "linux")]),
        _ => labels(&[("os", "linux"), ("gpu", "yes")]),
    };
    Capacity {
        labels,
        slots: u32::from(seed / 3 % 4),
        cpu_millis: u32::from(seed / 12 % 4) * 1000,
        memory_bytes: u64::from(seed / 48) << 30,
        ..Capacity::default()
    }
}

fn job_spec(position: usize, seed: &JobSpecSeed) -> JobSpec {
    let (needs, when, allow_failure, attempts, backoff, width, wanted) = *seed;
    let needs: Vec<u32> =
        (0..8).filter(|need| *need < position && needs >> need & 1 == 1).map(|n| n as u32).collect();
    let when = match when {
        0 => When::Always,
        1 if !needs.is_empty() => When::Failure,
        _ => When::Success,
    };
    let timeout = (wanted % 2 == 0).then_some(Duration::from_secs(30));
    let backoff = if backoff { 40 } else { 0 };
    let requirement = requirement(wanted);
    JobSpec { needs, when, allow_failure, attempts, backoff, width, requirement, timeout }
}

struct Play {
    world: World,
    runs: u32,
    job_runs: u32,
}

impl Play {
    fn new(agents: u32) -> Self {
        let mut world = World::new();
        world.command(make::register("pack", b"1")).unwrap();
        for number in 0..agents {
            world.enrol(number, capacity(number as u8 * 37 + 20));
        }
        world.settle();
        Self { world, runs: 0, job_runs: 0 }
    }

    fn agent(&self, choice: u8) -> AgentId {
        agent_id(u32::from(choice) % self.world.agents.len() as u32)
    }

    /// One of the attempts in the agents' journals.
    fn held(&self, choice: u16) -> Option<(AgentId, AttemptId)> {
        let held: Vec<_> = self
            .world
            .agents
            .iter()
            .flat_map(|(agent, model)| model.journal.keys().map(|attempt| (*agent, *attempt)))
            .collect();
        (!held.is_empty()).then(|| held[usize::from(choice) % held.len()])
    }

    fn perform(&mut self, op: Op) {
        // What is due is judged first, so that what follows is the operation's alone.
        self.world.apply(Event::Wake);
        let world = &mut self.world;
        match op {
            Op::Advance(seconds) => world.advance(Duration::from_secs(seconds.into())),
            Op::Archive(choice) => self.archive(choice),
            Op::CancelJobRun(choice) => {
                let job_run = job_run_id(u32::from(choice) % self.job_runs.max(1));
                let ended = world.live.state(job_run).is_terminal() || self.job_runs == 0;
                let reply = world.command(Command::CancelJobRun(job_run));
                assert!(!ended || reply == Err(Refusal::NotLiveJob(job_run)));
            }
            Op::CancelRun(choice) => {
                let _ = world.command(Command::CancelRun(run_id(u32::from(choice) % self.runs.max(1))));
            }
            Op::Commit(steps) => {
                world.commit(steps.into());
                world.check_restore();
            }
            Op::Connect(agent, change) => {
                let agent = self.agent(agent);
                if let (Some(model), 0..20) = (self.world.agents.get_mut(&agent), change) {
                    model.capacity = capacity(change * 12 + change);
                }
                self.world.connect(agent);
            }
            Op::CreateRun(seeds, key) => self.create(&seeds, key),
            Op::Disconnect(agent) => {
                let agent = self.agent(agent);
                self.world.disconnect(agent);
            }
            Op::Drain(agent) => drop(self.world.command(Command::DrainAgent(self.agent(agent)))),
            Op::End(choice, verdict) => {
                if let Some((agent, attempt)) = self.held(choice) {
                    self.world.end(agent, attempt, verdict);
                }
            }
            Op::ForgetJournal(agent) => {
                let agent = self.agent(agent);
                self.world.disconnect(agent);
                self.world.agents.get_mut(&agent).unwrap().journal.clear();
            }
            Op::Keep(choice) => {
                if let Some((agent, attempt)) = self.held(choice) {
                    self.world.keep(agent, attempt);
                }
            }
            Op::Lie(agent, session, choice, kind) => self.lie(agent, session, choice, kind),
            Op::Restart => world.restart(),
            Op::Resume(agent) => drop(self.world.command(Command::ResumeAgent(self.agent(agent)))),
            Op::Retry(choice) => self.retry(choice),
            Op::Revoke(choice) => {
                if usize::from(choice) < self.world.agents.len() {
                    self.world.command(Command::RevokeAgent(self.agent(choice))).unwrap();
                }
            }
            Op::Start(choice) => {
                if let Some((agent, attempt)) = self.held(choice) {
                    self.world.start(agent, attempt);
                }
            }
            Op::VanishSilently(agent) => {
                let agent = self.agent(agent);
                self.world.agents.get_mut(&agent).unwrap().session = None;
            }
        }
    }

    /// Versions come, are archived and come back, of a pack that nobody runs.
    fn archive(&mut self, choice: u8) {
        let name = make::name("shelf");
        let command = match choice % 4 {
            0 => make::register("shelf", &[choice]),
            kind => {
                let version = Some(u32::from(choice) / 8 % 4).filter(|version| *version > 0);
                Command::ArchivePack { name, version, archived: kind < 3 }
            }
        };
        let _ = self.world.command(command);
    }

    fn create(&mut self, seeds: &[JobSpecSeed], key: Option<u8>) {
        let jobs: Vec<_> =
            seeds.iter().enumerate().map(|(position, seed)| job_spec(position, seed)).collect();
        let plan = make::plan(self.job_runs, &jobs);
        self.job_runs += plan.job_runs().count() as u32;
        let mut new = new_run(self.runs, plan);
        self.runs += 1;
        new.idempotency =
            key.map(|key| Idempotency { key: Arc::from(format!("key {key}")), request: Digest::of(&[key]) });
        let known = new.idempotency.as_ref().and_then(|wanted| {
            let mut rows = self.world.live.runs.values();
            rows.find(|row| row.idempotency.as_ref() == Some(wanted)).map(|row| row.id)
        });
        // The shell would have found a key that is committed; what is not must be found by the core.
        if known.is_some_and(|known| self.world.committed.runs.contains_key(&known)) {
            return;
        }
        let id = new.id;
        let reply = self.world.command(Command::CreateRun(Box::new(new)));
        let created = known.is_none();
        assert_eq!(reply, Ok(Reply::Run { id: known.unwrap_or(id), created }));
    }

    /// A new pack run takes over what succeeded in an old one.
    fn retry(&mut self, choice: u16) {
        let old = run_id(u32::from(choice) % self.runs.max(1));
        let Some(row) = self.world.live.runs.get(&old).cloned() else { return };
        let mut plan = (*row.plan).clone();
        let mut reused = std::collections::BTreeMap::new();
        for planned in plan.jobs.iter_mut().flat_map(|job| &mut job.runs) {
            let id = job_run_id(self.job_runs);
            self.job_runs += 1;
            if self.world.live.state(planned.id) == packrun_protocol::state::JobRunState::Succeeded {
                reused.insert(id, planned.id);
            }
            planned.id = id;
        }
        let new =
            crate::core::event::NewRun { retry_of: Some(old), reused, ..new_run(self.runs, Arc::new(plan)) };
        self.runs += 1;
        self.world.command(Command::CreateRun(Box::new(new))).unwrap();
    }

    /// An agent says something that may be untrue. Unless it happens to be the holder over its live session,
    /// nothing may come of it but an answer.
    fn lie(&mut self, agent: u8, session: u8, choice: u16, kind: u8) {
        let agent = self.agent(agent);
        let session = match session % 4 {
            0 => SessionId(u64::from(choice) % (self.world.last_session + 1)),
            _ => self.world.agents[&agent].session.unwrap_or(SessionId(0)),
        };
        let attempts: Vec<_> = self.world.live.attempts.keys().copied().collect();
        let mut attempt = match attempts.len() {
            0 => AttemptId { job_run: job_run_id(choice.into()), number: AttemptNumber::FIRST },
            len => attempts[usize::from(choice) % len],
        };
        if kind.is_multiple_of(5) {
            attempt.number = AttemptNumber::new(u32::from(kind / 5) + 1).unwrap();
        }
        if kind % 16 == 15 {
            // A session out of nowhere that claims everything, over and over.
            let held = attempts.iter().flat_map(|attempt| {
                [HeldPhase::Ended, RUNNING].map(|phase| HeldAttempt { attempt: *attempt, phase })
            });
            let held = held.collect();
            let capacity = capacity(kind);
            self.world.report(agent, session, connected(capacity, held));
            return;
        }
        let report = match kind % 3 {
            0 => Report::Started { ticket: None, attempt },
            1 => {
                let verdict = VERDICTS[usize::from(kind / 3) % 4];
                let outcome = outcome(verdict, u32::from(kind / 64));
                Report::Ended { attempt, outcome, log: LogIndex::default() }
            }
            _ => Report::ArtifactCommitted {
                ticket: Ticket(u64::MAX),
                attempt,
                artifact: artifact(&format!("out/{}", kind % 4)),
            },
        };
        let current = self.world.is_current(agent, session, attempt);
        let step = self.world.report(agent, session, report);
        if !current {
            assert!(step.changes.is_empty(), "a lie changed {:?}", step.changes);
            let answers = |effect: &Effect| match effect {
                Effect::Fence { attempt: of, .. } | Effect::Settled { attempt: of, .. } => *of == attempt,
                Effect::Reply { reply, .. } => *reply == Err(Refusal::Fenced(attempt)),
                _ => false,
            };
            assert!(step.effects.iter().all(answers), "a lie had effects: {:?}", step.effects);
        }
    }

    /// The faults stop: everyone who may comes back, and one agent more that can do anything.
    fn finish(mut self) {
        self.world.settle();
        let all = Capacity {
            labels: labels(&[("os", "linux"), ("gpu", "yes")]),
            slots: 3,
            cpu_millis: 3000,
            memory_bytes: 3 << 30,
            ..Capacity::default()
        };
        let helper = self.world.enrol(self.world.agents.len() as u32, all);
        self.world.connect(helper);
        for agent in self.world.agents.keys().copied().collect::<Vec<_>>() {
            let _ = self.world.command(Command::ResumeAgent(agent));
            self.world.connect(agent);
        }
        self.world.run_to_the_end();
        self.world.check_restore();
        assert!(self.world.core.is_idle(), "something of an ended pack run is left in memory");
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold_and_every_pack_run_ends(
        agents in 1..5_u32,
        ops in vec(op(), 1..160),
    ) {
        let mut play = Play::new(agents);
        for op in ops {
            play.perform(op);
        }
        play.finish();
    }
}
