//! Agents, tokens and the coordinator itself.

use std::collections::BTreeMap;

use packrun_protocol::control::Isolation;
use packrun_protocol::id::{AgentId, PackRunId, TokenId};
use packrun_protocol::name::{Labels, Name};
use packrun_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{schema, unique, whole};
use crate::core::change::{AgentState, Role};

/// An agent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    /// Its id.
    #[schema(value_type = schema::Id)]
    pub id: AgentId,
    /// What it is called.
    #[schema(value_type = schema::Name)]
    pub name: Name,
    /// Whether it gets work: `active`, `drained` or `revoked`.
    #[schema(value_type = schema::AgentState)]
    pub state: AgentState,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it wants nothing more for now, by its own word.
    pub draining: bool,
    /// All its labels.
    #[schema(value_type = schema::Labels)]
    pub labels: Labels,
    /// Labels that it says it has and that don't count, while it is connected: their keys are granted by
    /// invitations, and not to it with this value.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub refused_labels: Labels,
    /// How many attempts it takes at once; `null` before it has connected, as the next three.
    pub slots: Option<u32>,
    /// How many processors it has.
    pub cpus: Option<f64>,
    /// How many bytes of memory it has.
    pub memory_bytes: Option<u64>,
    /// How its host keeps attempts apart: `cgroup`, or `subreaper` where there are none to be had.
    #[schema(value_type = Option<String>)]
    pub isolation: Option<Isolation>,
    /// How many attempts it holds.
    pub held: u32,
    /// When it enrolled.
    #[schema(value_type = schema::Time)]
    pub enrolled_at: Timestamp,
}

/// A request for a join token.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// How long it holds, in seconds: 1 to 2,592,000 (30 days); an hour without.
    #[schema(minimum = 1, maximum = 2_592_000, example = 3600)]
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Labels of the agent.
    #[serde(default, deserialize_with = "unique")]
    #[schema(value_type = schema::Labels)]
    pub labels: BTreeMap<String, String>,
    /// The agent's name, unless it may choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Name>)]
    pub name: Option<String>,
}

/// A join token. It is shown once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenMade {
    /// Its id.
    #[schema(value_type = schema::Id)]
    pub id: TokenId,
    /// What the agent is given.
    #[schema(example = "packrun-join-…")]
    pub token: String,
    /// When it ceases to hold.
    #[schema(value_type = schema::Time)]
    pub expires_at: Timestamp,
}

/// A request for a token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What its bearer may do: `viewer`, `operator` or `admin`.
    #[schema(value_type = schema::Role)]
    pub role: Role,
    /// How long it holds, in seconds: 1 to 315,360,000 (ten years); until it is revoked without.
    #[schema(minimum = 1, maximum = 315_360_000, example = 86_400)]
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A token with its secret, which is shown once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    /// What is known of it.
    #[serde(flatten)]
    pub info: Token,
    /// What requests carry: `Authorization: Bearer …`.
    #[schema(example = "packrun-…")]
    pub token: String,
}

/// A token without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    #[schema(value_type = schema::Id)]
    pub id: TokenId,
    /// `viewer`, `operator`, `admin`, or `join` for one that lets an agent join.
    #[schema(value_type = schema::TokenUse)]
    pub role: String,
    /// `active`, `expired`, `revoked` or `used`.
    #[schema(value_type = schema::TokenState)]
    pub state: String,
    /// When it was made.
    #[schema(value_type = schema::Time)]
    pub created_at: Timestamp,
    /// When it ceases to hold.
    #[schema(value_type = Option<schema::Time>)]
    pub expires_at: Option<Timestamp>,
}

/// How the coordinator is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The version of its build.
    pub version: String,
    /// How often its store has been opened.
    pub epoch: u64,
    /// Since when it runs.
    #[schema(value_type = schema::Time)]
    pub started_at: Timestamp,
    /// Whether it takes work.
    pub ready: bool,
    /// Why it doesn't.
    pub reason: Option<String>,
    /// Pack runs that have not ended.
    pub pack_runs: u64,
    /// Job runs that wait for an agent.
    pub queued: u64,
    /// Attempts that agents hold.
    pub held: u64,
    /// Agents that are connected.
    pub agents: u64,
    /// Pack runs that could not be restored at the last start, with the reason.
    #[schema(value_type = BTreeMap<String, String>)]
    pub quarantined: BTreeMap<PackRunId, String>,
}
