//! What comes of an event: changes to persist, and effects that may leave once those are durable.

use std::sync::Arc;

use packrun_protocol::control::Assignment;
use packrun_protocol::id::{AgentId, AttemptId, Epoch, JobRunId, PackRunId, TokenId};
use packrun_protocol::name::{Labels, Name};
use packrun_protocol::path::RelativePath;
use packrun_protocol::state::Reason;
use packrun_protocol::time::Timestamp;
use thiserror::Error;

use super::change::Change;
use super::event::{SessionId, Ticket};

/// What one event came to.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// Rows to persist, in order.
    pub changes: Vec<Change>,
    /// What to do after that, in order.
    pub effects: Vec<Effect>,
}

/// Something to do once the changes are durable. For a session that is gone it is dropped.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Tell an agent to stop an attempt and report its end.
    CancelAttempt {
        /// The agent.
        agent: AgentId,
        /// Its session.
        session: SessionId,
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        why: Reason,
    },
    /// Close a session.
    CloseSession {
        /// The agent.
        agent: AgentId,
        /// Its session.
        session: SessionId,
        /// Why.
        why: CloseReason,
    },
    /// Hand an agent all it was assigned in this step.
    Dispatch {
        /// The agent.
        agent: AgentId,
        /// Its session.
        session: SessionId,
        /// What to start.
        assignments: Vec<Assignment>,
    },
    /// Tell an agent that it gets nothing more, or does again.
    Drain {
        /// The agent.
        agent: AgentId,
        /// Its session.
        session: SessionId,
        /// Whether it is drained.
        drained: bool,
    },
    /// Tell an agent to stop an attempt that is not its own, or no longer.
    Fence {
        /// The agent.
        agent: AgentId,
        /// Its session.
        session: SessionId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// Answer a command or an artifact stream.
    Reply {
        /// Whom.
        ticket: Ticket,
        /// With what.
        reply: Result<Reply, Refusal>,
    },
    /// Tell an agent to forget an attempt: its end is recorded, or nobody waits for it.
    Settled {
        /// The agent.
        agent: AgentId,
        /// Its session.
        session: SessionId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// Open a session: answer the agent's report.
    Welcome {
        /// The agent.
        agent: AgentId,
        /// Its session.
        session: SessionId,
        /// The coordinator's epoch.
        epoch: Epoch,
        /// What to do with each attempt it reported.
        standings: Vec<(AttemptId, Standing)>,
        /// Those of its own labels that don't count.
        refused: Labels,
    },
}

/// What an agent does with an attempt it reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is the agent's: start it, let it run, or report its end.
    GoOn {
        /// The attempt's pack run.
        pack_run: PackRunId,
        /// When it was assigned.
        assigned_at: Timestamp,
        /// Most bytes of its log.
        log_bytes_max: u64,
    },
    /// It is not, or no longer: stop it and forget it.
    Fenced,
    /// It has ended, and nobody waits for that: forget it.
    Settled,
}

/// Why a session is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The agent has more labels than are allowed, its own and those granted.
    Labels,
    /// The agent was revoked.
    Revoked,
    /// The agent has a newer session.
    Superseded,
    /// No such agent is enrolled.
    Unknown,
}

/// A command's success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done, or already so.
    Done,
    /// The agent is enrolled.
    Enrolled {
        /// What it is called.
        name: Name,
    },
    /// The pack version.
    Registered {
        /// Its number.
        version: u32,
        /// Whether this made it.
        created: bool,
    },
    /// The pack run.
    Run {
        /// Its id.
        id: PackRunId,
        /// Whether this made it.
        created: bool,
    },
}

/// Why a command was not followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A pack version that is archived.
    #[error("version {1} of pack `{0}` is archived; run another, or `packrun pack unarchive {0}@{1}` first")]
    Archived(Name, u32),
    /// A file that is none of its attempt's artifacts.
    #[error("`{0}` is not kept: {1}")]
    Artifact(RelativePath, &'static str),
    /// An attempt that is not, or no longer, the reporting agent's.
    #[error("attempt {0} is not held by this agent any more; drop it")]
    Fenced(AttemptId),
    /// A plan or an id that can't be.
    #[error("the pack run can't be created: {0}")]
    Invalid(&'static str),
    /// The idempotency key stands for something else.
    #[error("idempotency key `{0}` was used for another request; choose a new one")]
    KeyReused(Arc<str>),
    /// No such agent.
    #[error("no agent {0} is enrolled; `packrun agents list` names them")]
    NoAgent(AgentId),
    /// No such pack version.
    #[error("pack `{0}` has no version {1}; register it first")]
    NoPack(Name, u32),
    /// No such token, or it has ended.
    #[error("token {0} is unknown or has ended; `packrun tokens list` names them")]
    NoToken(TokenId),
    /// A join token that is unknown, used, revoked, expired or shown with a wrong secret: which, is not said.
    #[error("the join token does not hold (any more); ask for a new one by `packrun agents invite`")]
    NotInvited,
    /// No such live pack run.
    #[error("pack run {0} is unknown or has ended")]
    NotLive(PackRunId),
    /// No such live job run.
    #[error("job run {0} is unknown or has ended")]
    NotLiveJob(JobRunId),
    /// The agent was revoked.
    #[error("agent {0} was revoked; enrol it anew")]
    Revoked(AgentId),
    /// A file that is one more than its attempt may leave.
    #[error(
        "`{0}` is not kept: the attempt has left {1} files, the most it may; keep fewer, or an archive of them"
    )]
    TooManyArtifacts(RelativePath, usize),
    /// There are as many tokens as there may be.
    #[error("there are {0} tokens that hold, the most there may be; revoke some")]
    TooManyTokens(usize),
}
