//! Everything the core can be told, as data. Ids, times and plans are made outside; channels stay outside too: a
//! command carries a [`Ticket`], and the reply names it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::control::{HeldAttempt, Isolation};
use packrun_protocol::id::{AgentId, AttemptId, Digest, JobRunId, PackRunId, TokenId};
use packrun_protocol::name::{Labels, Name};
use packrun_protocol::path::RelativePath;
use packrun_protocol::state::Outcome;
use packrun_protocol::stream::Content;
use serde::{Deserialize, Serialize};

use super::change::{Format, Grant};
use super::plan::Plan;

/// Names a waiting asker to the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One connection of an agent. The shell numbers them upwards, each number once in the life of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// One input.
#[derive(Debug, Clone)]
pub enum Event {
    /// Someone asks for something, and gets exactly one reply.
    Command {
        /// Whom to reply to.
        ticket: Ticket,
        /// What is asked.
        command: Command,
    },
    /// An agent says something over one of its sessions.
    Report {
        /// The agent, as its certificate names it.
        agent: AgentId,
        /// Its session.
        session: SessionId,
        /// What it says.
        report: Report,
    },
    /// A deadline may be due.
    Wake,
}

/// What users and the enrolment ask for.
#[derive(Debug, Clone)]
pub enum Command {
    /// Let nobody run a pack version any more, or let it be run again.
    ArchivePack {
        /// The pack's name.
        name: Name,
        /// The version; all that there are without.
        version: Option<u32>,
        /// Whether it is archived from now on.
        archived: bool,
    },
    /// Cancel one job run.
    CancelJobRun(JobRunId),
    /// Cancel a pack run with all its job runs.
    CancelRun(PackRunId),
    /// Start a pack run.
    CreateRun(Box<NewRun>),
    /// Let whoever bears a secret do something.
    CreateToken {
        /// The token's id.
        id: TokenId,
        /// The sha256 of its secret, which nobody keeps.
        secret: Digest,
        /// What it lets its bearer do.
        grant: Grant,
        /// How long it holds; a token without is revoked some day.
        ttl: Option<Duration>,
    },
    /// Assign nothing more to an agent.
    DrainAgent(AgentId),
    /// Give an identity to the bearer of a join token, which is used up by it.
    EnrolAgent {
        /// The join token.
        token: TokenId,
        /// The sha256 of the secret that was shown.
        secret: Digest,
        /// The new agent's id.
        agent: AgentId,
        /// What it wants to be called. A name that the token has goes before it.
        name: Name,
    },
    /// Keep where the log of an attempt lies that ended without its agent.
    KeepLog {
        /// The attempt's pack run.
        pack_run: PackRunId,
        /// The attempt.
        attempt: AttemptId,
        /// Where its log lies.
        log: LogIndex,
    },
    /// Add a pack version, unless it is the newest one's content again and that one is not archived.
    RegisterPack {
        /// The pack's name.
        name: Name,
        /// The sha256 of the canonical form.
        digest: Digest,
        /// The file as it came.
        source: Arc<[u8]>,
        /// What that is written in.
        format: Format,
        /// The checked pack as canonical JSON.
        canonical: Arc<[u8]>,
    },
    /// Assign to a drained agent again.
    ResumeAgent(AgentId),
    /// End an agent's session, and take away what it holds, for good.
    RevokeAgent(AgentId),
    /// Let nobody do anything with a token any more.
    RevokeToken(TokenId),
}

/// A pack run to start. The shell has looked for the idempotency key in the store before.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its id; ids ascend in the order of creation, which is the order the queues keep.
    pub id: PackRunId,
    /// The pack.
    pub pack: Name,
    /// Its version.
    pub version: u32,
    /// The parameters as given, for the record.
    pub params: Arc<BTreeMap<String, String>>,
    /// What it will do.
    pub plan: Arc<Plan>,
    /// The client's key, under which this is created once.
    pub idempotency: Option<Idempotency>,
    /// The pack run that this one repeats.
    pub retry_of: Option<PackRunId>,
    /// Job runs of this plan that take over an earlier one's success and artifacts: its own id to the earlier.
    pub reused: BTreeMap<JobRunId, JobRunId>,
}

/// An idempotency key and what it was used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The key.
    pub key: Arc<str>,
    /// The sha256 of the request: the same key with another request is refused.
    pub request: Digest,
}

/// What an agent can take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// Its labels.
    pub labels: Labels,
    /// Attempts at once; more than [`packrun_protocol::limit::SLOTS_MAX`] count as that.
    pub slots: u32,
    /// Thousandths of a processor.
    pub cpu_millis: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// How its host keeps attempts apart.
    pub isolation: Isolation,
}

/// What an agent says of itself when its session begins.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// What it can take.
    pub capacity: Capacity,
    /// Whether it wants nothing more for now.
    pub draining: bool,
    /// Every attempt in its journal.
    pub held: Vec<HeldAttempt>,
}

/// What agents say.
#[derive(Debug, Clone)]
pub enum Report {
    /// A file of an attempt is on the coordinator's disk; its stream waits for the reply.
    ArtifactCommitted {
        /// Who waits.
        ticket: Ticket,
        /// Whose file.
        attempt: AttemptId,
        /// The file.
        artifact: Artifact,
    },
    /// The session begins.
    Connected(Arrival),
    /// The session is over.
    Disconnected,
    /// The agent wants nothing more in this session, or wants it again.
    Draining(bool),
    /// An attempt is over, its log is on the coordinator's disk and its artifacts were committed.
    Ended {
        /// Which one.
        attempt: AttemptId,
        /// How it ended.
        outcome: Outcome,
        /// Where its log lies.
        log: LogIndex,
    },
    /// An attempt's process runs. Who has a ticket is told when that is recorded, or that the attempt is no longer
    /// the agent's: what comes after it, such as the first line of the log, is then seen after it.
    Started {
        /// Who waits, if anybody does.
        ticket: Option<Ticket>,
        /// Which one.
        attempt: AttemptId,
    },
}

/// Where the log of an attempt lies, as the room of logs writes it down; empty for an empty log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogIndex(pub Arc<[u8]>);

/// A file kept from an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// What its rule calls it.
    pub name: Option<Name>,
    /// Its path in the workspace, once per attempt.
    pub path: RelativePath,
    /// What it consists of.
    pub content: Content,
}
