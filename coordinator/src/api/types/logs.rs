//! Log entries, artifacts, and the events of a stream.

use std::collections::BTreeMap;

use packrun_protocol::block::LogStream;
use packrun_protocol::id::{AttemptNumber, Digest};
use packrun_protocol::name::{JobKey, Name};
use packrun_protocol::path::RelativePath;
use packrun_protocol::state::PackRunState;
use packrun_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::schema;

/// One line of a log, or a piece of one over 64 KiB.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Its number within the attempt, from 0.
    pub seq: u64,
    /// When it was read, by the coordinator's clock.
    #[schema(value_type = schema::Time)]
    pub time: Timestamp,
    /// The job run's key.
    #[schema(value_type = schema::JobKey)]
    pub key: JobKey,
    /// The job.
    pub job: String,
    /// The values of the job run's matrix.
    pub matrix: BTreeMap<String, String>,
    /// The attempt.
    #[schema(value_type = u32)]
    pub attempt: AttemptNumber,
    /// What it was written to.
    #[schema(value_type = schema::LogStream)]
    pub stream: LogStream,
    /// The text, without the newline; what is no UTF-8 is replaced by U+FFFD.
    pub text: String,
    /// How many bytes of it are no UTF-8, if any are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub invalid_bytes: u64,
    /// Whether the line goes on in the next entry of the same stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continued: bool,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A page of one attempt's log, by number.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AttemptLog {
    /// The entries.
    pub items: Vec<LogEntry>,
    /// How many entries there are so far.
    pub count: u64,
    /// Whether no more will come.
    pub complete: bool,
}

/// A file kept from an attempt.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Artifact {
    /// The job run's key.
    #[schema(value_type = schema::JobKey)]
    pub key: JobKey,
    /// The attempt that left it.
    #[schema(value_type = u32)]
    pub attempt: AttemptNumber,
    /// What the pack calls it.
    #[schema(value_type = Option<schema::Name>)]
    pub name: Option<Name>,
    /// Its path in the workspace.
    #[schema(value_type = schema::Path)]
    pub path: RelativePath,
    /// Its size in bytes.
    pub size: u64,
    /// The sha256 of its content.
    #[schema(value_type = schema::Digest)]
    pub digest: Digest,
    /// Its permissions, in octal: `"0755"`.
    pub mode: String,
}

/// A `state` event of a stream: a job run, or without a key the pack run, entered a state.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StateEvent {
    /// The job run's key; without one, the pack run is meant.
    #[schema(value_type = Option<schema::JobKey>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<JobKey>,
    /// The state, of a job run or a pack run.
    pub state: String,
    /// The job run's newest attempt.
    #[schema(value_type = Option<u32>)]
    pub attempt: Option<AttemptNumber>,
    /// The name of its agent.
    pub agent: Option<String>,
    /// When.
    #[schema(value_type = schema::Time)]
    pub time: Timestamp,
    /// Why.
    pub reason: Option<String>,
}

/// An `artifact` event of a stream.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ArtifactEvent {
    /// The file.
    #[serde(flatten)]
    pub artifact: Artifact,
    /// When it was recorded.
    #[schema(value_type = schema::Time)]
    pub time: Timestamp,
}

/// The `end` event of a stream, its last.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EndEvent {
    /// What the pack run ended as.
    #[schema(value_type = schema::PackRunState)]
    pub state: PackRunState,
    /// When.
    #[schema(value_type = schema::Time)]
    pub time: Timestamp,
}
