//! The commands, a file a noun.

pub(super) mod agents;
pub(super) mod artifacts;
mod diff;
mod download;
pub(super) mod logs;
pub(super) mod pack;
pub(super) mod run;
pub(super) mod runs;
pub(super) mod status;
pub(super) mod tokens;
