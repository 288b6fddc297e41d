//! The HTTP side of the coordinator. It never touches the store: it asks the engine, or reads a snapshot.

pub mod types;

use packrun_protocol::id::Digest;
use packrun_protocol::time::{Clock, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::artifacts::ArtifactStore;
use crate::engine::Handle;
use crate::logs::LogStore;

/// What every request may use. Clones share it.
#[derive(Debug, Clone)]
pub struct App {
    /// The engine.
    pub engine: Handle,
    /// The logs.
    pub logs: LogStore,
    /// The artifacts' content.
    pub artifacts: ArtifactStore,
    /// The time.
    pub clock: Clock,
    /// When the coordinator was started.
    pub started_at: Timestamp,
    /// The sha256 of the CA's certificate, which join tokens carry.
    pub ca_fingerprint: Digest,
    /// Canceled when the coordinator stops: answers that never end are to end then.
    pub stop: CancellationToken,
}
