//! What an attempt has to do, rendered: no expression is left in it. Made when a pack run is created, kept with
//! its plan, and carried to the agent in the assignment.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lean;
use crate::name::{Labels, Name};
use crate::path::RelativePath;

/// What an attempt executes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A script for `sh -eu`.
    Script(#[serde(deserialize_with = "lean::text")] String),
    /// A program and its arguments, at least one.
    Command(#[serde(deserialize_with = "lean::texts")] Vec<String>),
}

/// What a job run wants of its agent: the scheduler keeps one queue for each distinct requirement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Requirement {
    /// The agent must have all of these.
    pub labels: Labels,
    /// Thousandths of a processor, taken from the agent's while the attempt is there; 0 takes none.
    pub cpu_millis: u32,
    /// Bytes of memory, taken likewise.
    pub memory_bytes: u64,
}

/// Files to keep of an attempt that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRule {
    /// A path inside the workspace, or a glob (`**` crosses folders).
    #[serde(deserialize_with = "lean::text")]
    pub path: String,
    /// What the artifact is called for those who take it as an input; without one, by its path.
    pub name: Option<Name>,
    /// Whether it is fine when nothing matches.
    pub optional: bool,
}

/// An artifact of another job run that an attempt finds in its workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRule {
    /// The job whose artifact it is: one that this one needs.
    pub from: Name,
    /// The artifact's name, its path, or a folder it lies in.
    #[serde(deserialize_with = "lean::text")]
    pub artifact: String,
    /// Where it is put; without one, at the path it had.
    pub to: Option<RelativePath>,
    /// Whether it is fine when it was not left.
    pub optional: bool,
}

/// One job run's work, at most [`crate::limit::JOB_DEFINITION_BYTES_MAX`] encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// What to execute.
    pub action: Action,
    /// The pack's and the job's environment and the parameters, in the order they are set.
    #[serde(deserialize_with = "lean::pairs")]
    pub env: Vec<(String, String)>,
    /// The folder inside the workspace to start in; without one, the workspace.
    pub workdir: Option<RelativePath>,
    /// How long the main process may run.
    pub timeout: Option<Duration>,
    /// What to keep.
    #[serde(deserialize_with = "lean::list")]
    pub artifacts: Vec<ArtifactRule>,
    /// What to fetch before the start.
    #[serde(deserialize_with = "lean::list")]
    pub inputs: Vec<InputRule>,
}
