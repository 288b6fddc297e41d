//! Values for tests: plans, capacities, outcomes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::control::{HeldAttempt, HeldPhase};
use packrun_protocol::id::{AgentId, Digest, JobRunId, PackRunId, TokenId};
use packrun_protocol::job::{Action, Definition, Requirement};
use packrun_protocol::name::{JobKey, Labels, Name};
use packrun_protocol::state::{ExitStatus, Outcome, Verdict};
use packrun_protocol::stream::{Content, FileMode};
use packrun_protocol::time::Timestamp;

use crate::core::change::{Format, Grant};
use crate::core::event::{Arrival, Artifact, Capacity, Command, NewRun, Report};
use crate::core::plan::{JobIndex, Plan, PlannedJob, PlannedRun, Retry, When};

pub(super) fn bytes(kind: u8, number: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = kind;
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    bytes
}

pub(super) fn agent_id(number: u32) -> AgentId {
    AgentId::from_bytes(bytes(1, number))
}

pub(super) fn run_id(number: u32) -> PackRunId {
    PackRunId::from_bytes(bytes(2, number))
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::new(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))).unwrap()
}

pub(super) fn slots(slots: u32) -> Capacity {
    Capacity { slots, cpu_millis: 64_000, memory_bytes: 1 << 36, ..Capacity::default() }
}

/// An attempt's process runs, says its agent's journal; since when doesn't matter to the core.
pub(super) const RUNNING: HeldPhase = HeldPhase::Running(Timestamp::MIN);

/// An agent comes that takes work.
pub(super) fn connected(capacity: Capacity, held: Vec<HeldAttempt>) -> Report {
    Report::Connected(Arrival { capacity, draining: false, held })
}

pub(super) fn artifact(path: &str) -> Artifact {
    let content = Content { digest: Digest::of(b"x"), size: 1, mode: FileMode::of(0o644) };
    Artifact { name: None, path: path.parse().unwrap(), content }
}

pub(crate) fn outcome(verdict: Verdict, artifacts: u32) -> Outcome {
    let exit = match verdict {
        Verdict::Succeeded => ExitStatus::Code(0),
        Verdict::Failed => ExitStatus::Code(1),
        Verdict::TimedOut | Verdict::Canceled | Verdict::Lost => ExitStatus::Signal(15),
    };
    Outcome {
        verdict,
        exit: Some(exit),
        reason: None,
        ended_at: Timestamp::default(),
        ran_for: Duration::from_secs(1),
        entries: 3,
        artifacts,
        invalid_bytes: 0,
    }
}

/// A join token, and the enrolment of an agent with it.
pub(crate) fn enrolment(agent: AgentId, name: Name) -> [Command; 2] {
    let (id, secret) = (TokenId::from_bytes(agent.to_bytes()), Digest::of(&agent.to_bytes()));
    let grant = Grant::Join { labels: Labels::default(), name: None };
    let create = Command::CreateToken { id, secret, grant, ttl: Some(Duration::from_secs(60)) };
    [create, Command::EnrolAgent { token: id, secret, agent, name }]
}

pub(super) fn register(pack: &str, content: &[u8]) -> Command {
    Command::RegisterPack {
        name: name(pack),
        digest: Digest::of(content),
        source: content.into(),
        format: Format::Yaml,
        canonical: content.into(),
    }
}

/// A job of a [`plan`]; the fields say what differs from the defaults.
#[derive(Clone)]
pub(super) struct JobSpec {
    pub(super) needs: Vec<u32>,
    pub(super) when: When,
    pub(super) allow_failure: bool,
    pub(super) attempts: u32,
    pub(super) backoff: u64,
    pub(super) width: u32,
    pub(super) requirement: Requirement,
    pub(super) timeout: Option<Duration>,
}

impl Default for JobSpec {
    fn default() -> Self {
        Self {
            needs: Vec::new(),
            when: When::Success,
            allow_failure: false,
            attempts: 1,
            backoff: 0,
            width: 1,
            requirement: Requirement::default(),
            timeout: None,
        }
    }
}

impl JobSpec {
    pub(super) fn needing(needs: &[u32]) -> Self {
        Self { needs: needs.to_vec(), ..Self::default() }
    }
}

/// The plan of these jobs, called `j0`, `j1` …, its job runs numbered from `first`.
pub(super) fn plan(first: u32, jobs: &[JobSpec]) -> Arc<Plan> {
    let definition = |timeout| Definition {
        action: Action::Script("true".to_owned()),
        env: Vec::new(),
        workdir: None,
        timeout,
        artifacts: Vec::new(),
        inputs: Vec::new(),
        log_bytes_max: packrun_protocol::limit::LOG_BYTES_MAX,
    };
    let mut number = first;
    let planned = jobs.iter().enumerate().map(|(position, job)| PlannedJob {
        name: name(&format!("j{position}")),
        needs: job.needs.iter().copied().map(JobIndex).collect(),
        when: job.when,
        allow_failure: job.allow_failure,
        retry: Retry { attempts: job.attempts, backoff: Duration::from_secs(job.backoff) },
        runs: (0..job.width)
            .map(|shard| {
                number += 1;
                PlannedRun {
                    id: job_run_id(number - 1),
                    key: key(position, shard, job.width),
                    requirement: job.requirement.clone(),
                    definition: Arc::new(definition(job.timeout)),
                }
            })
            .collect(),
    });
    Arc::new(Plan { jobs: planned.collect() })
}

pub(super) fn job_run_id(number: u32) -> JobRunId {
    JobRunId::from_bytes(bytes(3, number))
}

fn key(position: usize, shard: u32, width: u32) -> JobKey {
    if width == 1 { format!("j{position}") } else { format!("j{position}[shard={shard}]") }.parse().unwrap()
}

pub(super) fn new_run(number: u32, plan: Arc<Plan>) -> NewRun {
    NewRun {
        id: run_id(number),
        pack: name("pack"),
        version: 1,
        params: Arc::default(),
        plan,
        idempotency: None,
        retry_of: None,
        reused: BTreeMap::new(),
    }
}
