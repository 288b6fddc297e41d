//! What uploads and downloads share: the connection of the moment, how many move at once, and blocking work.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::state::Reason;
use quinn::Connection;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::dial::Backoff;
use crate::artifacts::cache::Cache;

/// How many files move at once.
const MOVING_MAX: usize = 8;

/// How many attempts' artifacts are hashed at once.
const HASHING_MAX: usize = 2;

/// How long is waited after a stream failed on a connection that lives.
const RETRY: Range<Duration> = Duration::from_millis(200)..Duration::from_secs(10);

/// How long bytes of a transfer may stand still.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);

/// How long an answer may take: the coordinator may have to read or write a whole file for it.
const ANSWER_MAX: Duration = Duration::from_secs(600);

/// Nothing moves any more, on a connection that lives.
#[derive(Debug, Error)]
#[error("a transfer stood still for {} s", .0.as_secs())]
pub(super) struct Stalled(Duration);

/// Waits for bytes to move.
pub(super) async fn moved<T>(step: impl Future<Output = T>) -> Result<T, Stalled> {
    tokio::time::timeout(STANDSTILL_MAX, step).await.map_err(|_| Stalled(STANDSTILL_MAX))
}

/// Waits for an answer to come.
pub(super) async fn answered<T>(answer: impl Future<Output = T>) -> Result<T, Stalled> {
    tokio::time::timeout(ANSWER_MAX, answer).await.map_err(|_| Stalled(ANSWER_MAX))
}

/// A clone is the same.
#[derive(Debug, Clone)]
pub(super) struct Transfers {
    connections: watch::Receiver<Option<Connection>>,
    pub(super) cache: Cache,
    moving: Arc<Semaphore>,
    hashing: Arc<Semaphore>,
}

impl Transfers {
    pub(super) fn new(connections: watch::Receiver<Option<Connection>>, cache: Cache) -> Self {
        let (moving, hashing) = (Arc::new(Semaphore::new(MOVING_MAX)), Arc::new(Semaphore::new(HASHING_MAX)));
        Self { connections, cache, moving, hashing }
    }

    /// The right to move a file.
    pub(super) async fn moving(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.moving).acquire_owned().await.ok()
    }

    /// The right to hash files.
    pub(super) async fn hashing(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.hashing).acquire_owned().await.ok()
    }

    /// Tries of one thing.
    pub(super) fn tries(&self) -> Tries {
        Tries { connections: self.connections.clone(), backoff: Backoff::new(RETRY), last: None }
    }
}

/// Tries of one thing, over as many connections as it takes.
#[derive(Debug)]
pub(super) struct Tries {
    connections: watch::Receiver<Option<Connection>>,
    backoff: Backoff,
    last: Option<usize>,
}

impl Tries {
    /// A connection for the next try: at once if it is another than that of the last, else after a while.
    pub(super) async fn connection(&mut self) -> Connection {
        loop {
            let current = self.connections.borrow_and_update().clone();
            let current = current.filter(|connection| connection.close_reason().is_none());
            match current {
                Some(connection) if self.last == Some(connection.stable_id()) => {
                    self.last = None;
                    let wait = self.backoff.next();
                    let _ = tokio::time::timeout(wait, self.connections.changed()).await;
                }
                Some(connection) => {
                    self.last = Some(connection.stable_id());
                    return connection;
                }
                None => {
                    if self.connections.changed().await.is_err() {
                        // The link is gone, and this task with it in a moment.
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }
}

/// Does what blocks on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Reason> + Send + 'static,
) -> Result<T, Reason> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Reason::new(&format!("the agent failed in its own work on files: {error}"))),
    }
}
