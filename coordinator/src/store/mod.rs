//! The store: everything that must outlive the process, in an embedded redb file. The only room that knows redb;
//! outside there are rows, batches and leases, so that another engine fits behind the same boundary.
//!
//! Invariants:
//! - Whoever writes holds a [`Lease`]. Acquiring one raises the store's epoch, and a commit under an older epoch,
//!   or out of turn, is [`CommitError::Fenced`]: two coordinators can't both write.
//! - A [`Committed`] is made by a commit that is on the disk, and by nothing else. Effects ask for one.
//! - After [`CommitError::Unknown`] the batch may or may not be on the disk: the writer stops, and loads again.
//! - Records are read one by one and checked; what is damaged is an error with the table's name, never a panic.

mod commit;
mod read;
mod record;
mod recover;
mod tables;

pub use commit::{Batch, Committed};
pub use read::{Page, Reader, RunFilter};
pub use record::{RunInfo, VersionInfo};

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use packrun_protocol::codec::{DecodeError, EncodeError};
use packrun_protocol::id::Epoch;
use redb::{Database, ReadableDatabase};
use thiserror::Error;

use crate::core::Rows;

/// The version of the layout that this build reads and writes.
const SCHEMA: u64 = 1;

/// Bytes of the file that redb keeps in memory.
const CACHE_BYTES: usize = 64 << 20;

/// Why the store can't be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// redb refuses.
    #[error("the store failed to {action}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file could not be opened.
    #[error("cannot open the store {path}: {reason}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// A record can't be read.
    #[error("a record in the store's table `{table}` is damaged; restore a backup")]
    Damaged {
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        #[source]
        source: Option<DecodeError>,
    },
    /// The store was written by a later version.
    #[error("the store's `{table}` has version {version}, which is newer than this packrun; update packrun")]
    Newer {
        /// What is newer.
        table: &'static str,
        /// Its version.
        version: u64,
    },
    /// A row is too large to keep.
    #[error("a row is too large for the store")]
    Encode(#[from] EncodeError),
    /// The thread that did it is gone.
    #[error("the store's thread ended before it was done")]
    Thread,
}

impl StoreError {
    pub(super) fn engine<E: Into<redb::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Engine { action, source: Box::new(source.into()) }
    }
}

/// Why a batch was not committed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// Somebody else has acquired the store since. This coordinator is not the leader any more.
    #[error("the store was acquired by another coordinator; this one has to stop")]
    Fenced,
    /// Whether the batch is on the disk is not known.
    #[error("it is not known whether the last changes are on disk; the coordinator has to load them again")]
    Unknown(#[source] StoreError),
}

/// The right to write, of which only the newest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    epoch: Epoch,
    seq: u64,
}

impl Lease {
    /// How often the store has been acquired, this time included.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Database>,
}

impl Store {
    /// Opens the store in the file `path`, or makes one. Blocks for as long as it takes to read the whole file: redb
    /// finds damage only so, and trusts what it opened otherwise.
    ///
    /// # Errors
    /// When the file is damaged, is another program's, is of a later version, or is open elsewhere.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::Open { path: path.to_owned(), reason };
        // redb's plain open trusts a file that was closed well and may panic on a damaged one.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            redb::Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)
        }));
        let database = match opened {
            Ok(Ok(database)) => database,
            Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => {
                return Err(failed("another coordinator runs on this data folder".into()));
            }
            Ok(Err(error)) => return Err(failed(format!("{error}; if it is damaged, restore a backup"))),
            Err(_) => return Err(failed("it is damaged; restore a backup".into())),
        };
        let store = Self { database: Arc::new(database) };
        store.migrate()?;
        Ok(store)
    }

    /// The store in any backend that redb can use, for tests that crash it.
    #[cfg(test)]
    fn open_on(backend: impl redb::StorageBackend) -> Result<Self, StoreError> {
        let database = redb::Builder::new()
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(StoreError::engine("open"))?;
        let store = Self { database: Arc::new(database) };
        store.migrate()?;
        Ok(store)
    }

    /// Takes over the right to write. Every lease given before is worth nothing from now on. What was committed
    /// before is on the disk: the proof of that comes with it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn acquire(&self) -> Result<(Lease, Committed), StoreError> {
        self.blocking(|store| store.acquire_now()).await?
    }

    /// Writes `batch` in one transaction and syncs it.
    ///
    /// # Errors
    /// [`CommitError::Fenced`] when `lease` is not the newest, or has committed something else since. Otherwise
    /// [`CommitError::Unknown`].
    pub async fn commit(&self, lease: Lease, batch: Batch) -> Result<(Lease, Committed), CommitError> {
        self.blocking(move |store| store.commit_now(lease, &batch)).await.map_err(CommitError::Unknown)?
    }

    /// What is live, for the core to start from.
    ///
    /// # Errors
    /// When the disk refuses, or a record of what is live is damaged.
    pub async fn load(&self) -> Result<Rows, StoreError> {
        self.blocking(|store| recover::load(&store.snapshot()?)).await?
    }

    /// The store as it is now, for as long as the reader lives. Its methods block on the disk.
    ///
    /// # Errors
    /// When the store was closed by a failed write.
    pub fn snapshot(&self) -> Result<Reader, StoreError> {
        self.database.begin_read().map(Reader::new).map_err(StoreError::engine("begin to read"))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Self) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(store)).await.map_err(|_| StoreError::Thread)
    }
}

#[cfg(test)]
mod tests;
