//! What is persisted. A change is a whole row under a key of its own: of two changes with one key the later
//! replaces the earlier, so a batch of steps can be folded. A job run without a row is `blocked`.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::id::{AgentId, AttemptId, AttemptNumber, Digest, JobRunId, PackRunId, TokenId};
use packrun_protocol::name::{JobKey, Labels, Name};
use packrun_protocol::state::{AttemptState, JobRunState, Outcome, PackRunState, Reason};
use packrun_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::{Artifact, Capacity, Idempotency, LogIndex};
use super::plan::Plan;
use super::registry::Archived;

/// A row to write; the comment on each names its key.
#[derive(Debug, Clone)]
pub enum Change {
    /// By agent.
    Agent(AgentRow),
    /// By attempt and path.
    Artifact(ArtifactRow),
    /// By attempt.
    Attempt(AttemptRow),
    /// By pack run and number.
    Feed(FeedRow),
    /// By job run; also by pack run and index.
    JobRun(JobRunRow),
    /// By attempt. Until it is written, the attempt's log counts as open.
    Log(LogRow),
    /// By pack name.
    PackArchive(PackArchiveRow),
    /// By pack name and version.
    PackVersion(PackVersionRow),
    /// By pack run; also by idempotency key. Written once.
    PackRun(Arc<PackRunRow>),
    /// By pack run.
    Progress(ProgressRow),
    /// By token.
    Token(TokenRow),
}

/// What a pack file is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Format {
    /// JSON, RFC 8259.
    Json,
    /// TOML 1.1.
    Toml,
    /// YAML 1.2 without anchors, tags, directives and further documents.
    Yaml,
}

/// An immutable pack version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackVersionRow {
    /// The pack.
    pub name: Name,
    /// 1, 2, …
    pub version: u32,
    /// The sha256 of the canonical form.
    pub digest: Digest,
    /// The file as it came.
    pub source: Arc<[u8]>,
    /// What that is written in.
    pub format: Format,
    /// The checked pack as canonical JSON.
    pub canonical: Arc<[u8]>,
    /// When it was registered.
    pub registered_at: Timestamp,
}

/// Which versions of a pack are archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackArchiveRow {
    /// The pack.
    pub name: Name,
    /// Its versions that can't be run.
    pub archived: Archived,
}

/// What of a pack run never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRunRow {
    /// Its id.
    pub id: PackRunId,
    /// The pack.
    pub pack: Name,
    /// The version.
    pub version: u32,
    /// The parameters as given.
    pub params: Arc<BTreeMap<String, String>>,
    /// What it does.
    pub plan: Arc<Plan>,
    /// The key it was created under.
    pub idempotency: Option<Idempotency>,
    /// The pack run it repeats.
    pub retry_of: Option<PackRunId>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// What of a pack run changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressRow {
    /// Which one.
    pub pack_run: PackRunId,
    /// Its state.
    pub state: PackRunState,
    /// Since when.
    pub since: Timestamp,
    /// Whether its cancellation was asked for.
    pub canceled: bool,
}

/// A job run as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRunRow {
    /// Its pack run.
    pub pack_run: PackRunId,
    /// Its position among the pack run's job runs, in the plan's order.
    pub index: u32,
    /// Its id.
    pub id: JobRunId,
    /// Its state.
    pub state: JobRunState,
    /// Since when.
    pub since: Timestamp,
    /// The newest attempt.
    pub attempt: Option<AttemptNumber>,
    /// While it is queued: not to be assigned before.
    pub ready_at: Option<Timestamp>,
    /// Whether its cancellation was asked for.
    pub canceled: bool,
    /// Why it is in this state, where the state doesn't say it all.
    pub reason: Option<Reason>,
    /// The job run whose success and artifacts it took over.
    pub reused_from: Option<JobRunId>,
}

/// An attempt as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRow {
    /// Its id.
    pub id: AttemptId,
    /// Its pack run.
    pub pack_run: PackRunId,
    /// Who holds or held it.
    pub agent: AgentId,
    /// Its state.
    pub state: AttemptState,
    /// When it was assigned.
    pub assigned_at: Timestamp,
    /// When its start was reported.
    pub started_at: Option<Timestamp>,
    /// When its end was recorded.
    pub ended_at: Option<Timestamp>,
    /// What its agent said of its end.
    pub outcome: Option<Outcome>,
    /// What the coordinator says of it.
    pub reason: Option<Reason>,
}

/// Where the log of an attempt lies that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRow {
    /// The attempt's pack run.
    pub pack_run: PackRunId,
    /// The attempt.
    pub attempt: AttemptId,
    /// Where its log lies.
    pub log: LogIndex,
}

/// What a token lets its bearer do. Of the secret itself only the sha256 is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Its id.
    pub id: TokenId,
    /// The sha256 of its secret.
    pub secret: Digest,
    /// What it lets its bearer do.
    pub grant: Grant,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ceases to hold.
    pub expires_at: Option<Timestamp>,
    /// How it ended before that.
    pub end: Option<TokenEnd>,
}

/// What a token lets its bearer do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    /// Join as an agent, once.
    Join {
        /// Labels of the agent; they win over those that it names itself.
        labels: Labels,
        /// Its name, unless it may choose.
        name: Option<Name>,
    },
    /// Use the API.
    Api(Role),
}

/// What somebody may do by the API; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read.
    Viewer,
    /// Register packs, start, cancel and retry.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// All of them, from the least.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The role's name in text and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// How a token ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenEnd {
    /// Somebody revoked it.
    Revoked(Timestamp),
    /// An agent joined with it.
    Used {
        /// Which.
        agent: AgentId,
        /// When.
        at: Timestamp,
    },
}

/// A file kept from an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRow {
    /// The pack run.
    pub pack_run: PackRunId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The file.
    pub artifact: Artifact,
}

/// Whether an agent gets work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// It does.
    Active,
    /// It finishes what it holds and gets no more.
    Drained,
    /// It is shut out for good.
    Revoked,
}

/// An agent as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRow {
    /// Its id.
    pub id: AgentId,
    /// What it is called.
    pub name: Name,
    /// Labels its join token gave it.
    pub granted: Labels,
    /// What it could take when it last connected, with all its labels.
    pub capacity: Option<Capacity>,
    /// Whether it gets work.
    pub state: AgentState,
    /// When it enrolled.
    pub enrolled_at: Timestamp,
}

/// One change of a pack run, in its timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedRow {
    /// The pack run.
    pub pack_run: PackRunId,
    /// 0, 1, 2 … without a gap.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub entry: FeedEntry,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedEntry {
    /// A file was kept.
    Artifact {
        /// The job run.
        key: JobKey,
        /// Its attempt.
        attempt: AttemptNumber,
        /// The file.
        artifact: Artifact,
    },
    /// A job run entered a state.
    JobRun {
        /// The job run.
        key: JobKey,
        /// The state.
        state: JobRunState,
        /// Its newest attempt.
        attempt: Option<AttemptNumber>,
        /// Who holds that.
        agent: Option<AgentId>,
        /// Why.
        reason: Option<Reason>,
    },
    /// The pack run entered a state.
    PackRun(PackRunState),
}
