//! The bodies of the REST API, for the server, its OpenAPI document and the CLI. They are shapes of their own: what
//! the core or the store renames or restructures doesn't change them. Fields are added, never changed.

mod admin;
mod logs;
mod runs;

pub use admin::{Agent, JoinTokenMade, NewJoinToken, NewToken, Status, Token, TokenMade};
pub use logs::{Artifact, ArtifactEvent, AttemptLog, EndEvent, LogEntry, StateEvent};
pub use runs::{Attempt, JobRun, NewPackRun, PackContent, PackRun, PackVersion, Retry};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::core::change::{AgentState, Role};

/// A page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// What to ask for the next page with; `null` when there is none.
    pub next_cursor: Option<String>,
}

/// What went wrong (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of problem it is: `urn:packrun:problem:…`, the same for ever.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What failed, on what, and what to do.
    pub detail: String,
    /// The faults of a pack file, where they lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
}

/// One fault of a pack file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// The line, from 1.
    pub line: Option<u32>,
    /// The column, from 1.
    pub column: Option<u32>,
    /// The class of the fault.
    pub kind: String,
    /// What is wrong.
    pub message: String,
    /// What was probably meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}
