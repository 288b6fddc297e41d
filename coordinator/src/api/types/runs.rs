//! Packs, pack runs, job runs and attempts.

use std::collections::BTreeMap;

use packrun_protocol::id::{AgentId, AttemptNumber, Digest, JobRunId, PackRunId};
use packrun_protocol::name::{JobKey, Name};
use packrun_protocol::state::{AttemptState, JobRunState, PackRunState};
use packrun_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{schema, unique, whole};

/// A pack version.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PackVersion {
    /// The pack.
    #[schema(value_type = schema::Name)]
    pub name: Name,
    /// 1, 2, …
    pub version: u32,
    /// The sha256 of the checked pack as canonical JSON.
    #[schema(value_type = schema::Digest)]
    pub digest: Digest,
    /// The media type of the file.
    pub media_type: String,
    /// When it was registered.
    #[schema(value_type = schema::Time)]
    pub registered_at: Timestamp,
    /// Whether it is archived: it is kept, and can't be run.
    #[serde(default)]
    pub archived: bool,
}

/// A pack version with its content.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PackContent {
    /// What it is.
    #[serde(flatten)]
    pub version: PackVersion,
    /// The file, as it was registered.
    pub source: String,
    /// The checked pack, with all defaults.
    pub definition: serde_json::Value,
}

/// A request to start a pack run.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPackRun {
    /// The pack.
    #[schema(value_type = schema::Name)]
    pub pack: String,
    /// The version; without, the newest that is not archived.
    #[schema(minimum = 1, maximum = 4_294_967_295_u32, example = 1)]
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Values of the pack's parameters: texts, numbers or booleans.
    #[serde(default, deserialize_with = "unique")]
    #[schema(value_type = BTreeMap<String, schema::ParameterValue>, example = json!({ "profile": "release" }))]
    pub params: BTreeMap<String, serde_json::Value>,
}

/// A request to repeat a pack run.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Whether to take over the job runs that succeeded, with their artifacts.
    #[serde(default)]
    pub failed: bool,
}

/// A pack run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PackRun {
    /// Its id.
    #[schema(value_type = schema::Id)]
    pub id: PackRunId,
    /// The pack.
    #[schema(value_type = schema::Name)]
    pub pack: Name,
    /// Its version.
    pub version: u32,
    /// Its state.
    #[schema(value_type = schema::PackRunState)]
    pub state: PackRunState,
    /// Whether somebody asked for its cancellation.
    pub canceled: bool,
    /// The parameters that were given.
    pub params: BTreeMap<String, String>,
    /// The pack run that it repeats.
    #[schema(value_type = Option<schema::Id>)]
    pub retry_of: Option<PackRunId>,
    /// When it was created.
    #[schema(value_type = schema::Time)]
    pub created_at: Timestamp,
    /// Since when it is in its state.
    #[schema(value_type = schema::Time)]
    pub since: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<schema::Time>)]
    pub ended_at: Option<Timestamp>,
    /// Its job runs, in the order of the pack; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_runs: Option<Vec<JobRun>>,
}

/// A job run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobRun {
    /// Its id.
    #[schema(value_type = schema::Id)]
    pub id: JobRunId,
    /// Its pack run.
    #[schema(value_type = schema::Id)]
    pub pack_run: PackRunId,
    /// Its key: the job's name, and the values of its matrix.
    #[schema(value_type = schema::JobKey)]
    pub key: JobKey,
    /// The job.
    pub job: String,
    /// The values of its matrix.
    pub matrix: BTreeMap<String, String>,
    /// Its state.
    #[schema(value_type = schema::JobRunState)]
    pub state: JobRunState,
    /// Since when; `null` while it is blocked.
    #[schema(value_type = Option<schema::Time>)]
    pub since: Option<Timestamp>,
    /// Why it is in its state, or what it waits for.
    pub reason: Option<String>,
    /// The number of the newest attempt.
    #[schema(value_type = Option<u32>)]
    pub attempt: Option<AttemptNumber>,
    /// The name of the agent of the newest attempt.
    pub agent: Option<String>,
    /// When the newest attempt's process was started.
    #[schema(value_type = Option<schema::Time>)]
    pub started_at: Option<Timestamp>,
    /// When the job run ended.
    #[schema(value_type = Option<schema::Time>)]
    pub ended_at: Option<Timestamp>,
    /// How long the newest attempt's process ran, in seconds.
    pub duration_seconds: Option<f64>,
    /// The exit code of the newest attempt's process.
    pub exit_code: Option<u8>,
    /// The signal that ended the newest attempt's process.
    pub signal: Option<u8>,
    /// How many bytes of the newest attempt's log are no UTF-8: they are shown as U+FFFD. `null` while that isn't known.
    pub invalid_bytes: Option<u64>,
    /// The job run whose success and artifacts it took over.
    #[schema(value_type = Option<schema::Id>)]
    pub reused_from: Option<JobRunId>,
    /// All attempts, by number; only where one job run is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Vec<Attempt>>,
}

/// One attempt at a job run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// 1, 2, …
    #[schema(value_type = u32)]
    pub number: AttemptNumber,
    /// Its state.
    #[schema(value_type = schema::AttemptState)]
    pub state: AttemptState,
    /// The agent's name.
    pub agent: String,
    /// The agent's id.
    #[schema(value_type = schema::Id)]
    pub agent_id: AgentId,
    /// When it was assigned.
    #[schema(value_type = schema::Time)]
    pub assigned_at: Timestamp,
    /// When its process was started.
    #[schema(value_type = Option<schema::Time>)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<schema::Time>)]
    pub ended_at: Option<Timestamp>,
    /// How long its process ran by the agent's clock, in seconds.
    pub duration_seconds: Option<f64>,
    /// The exit code of its process.
    pub exit_code: Option<u8>,
    /// The signal that ended its process.
    pub signal: Option<u8>,
    /// Why it ended so.
    pub reason: Option<String>,
    /// How many log entries it wrote; `null` while that isn't known.
    pub entries: Option<u64>,
    /// How many bytes of them are no UTF-8: they are shown as U+FFFD. `null` while that isn't known.
    pub invalid_bytes: Option<u64>,
}
