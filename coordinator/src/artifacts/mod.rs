//! Artifacts: content by its sha256, and uploads that go on where they broke off.
//!
//! `blobs/ab/<hex>` is whole, checked and on disk from the moment it is found under that name, and never changes.
//! `partial/<agent>/<hex>-<upload>` is what has come of an upload; it is locked while somebody writes it. Several
//! uploads of one digest don't know of each other: the first to finish leaves the content, the others find it there.
//! Of what an agent leaves unfinished, the oldest is dropped when it becomes too much.
//!
//! What a blob is called, where it belongs and its mode are kept by the caller.

mod disk;
mod partial;
mod shard;
mod upload;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use packrun_protocol::id::{AgentId, AttemptId, Digest};
use packrun_protocol::limit;
use thiserror::Error;
use tokio::sync::Semaphore;

pub use upload::Upload;

use disk::{Disk, RealDisk};
use shard::Shard;

/// Calls that may wait for the disk at a time. Enough to keep a disk busy, and few of the 512 threads that the
/// runtime has for all that blocks: commits and reads of logs need theirs however slow uploads are.
const BLOCKING_MAX: usize = 32;

/// Why content was not taken or given.
#[derive(Debug, Error)]
pub enum ArtifactError {
    /// Another stream is sending the same upload.
    #[error("upload of {0} is under way on another stream; wait for that to end")]
    Busy(Digest),
    /// The upload ended early. What came is kept.
    #[error("upload of {digest} ended at byte {received} of {announced}; go on there")]
    Incomplete {
        /// What was announced.
        digest: Digest,
        /// Its announced size in bytes.
        announced: u64,
        /// How many have come.
        received: u64,
    },
    /// A call was cancelled or failed before. What is on disk is kept.
    #[error("upload of {0} was interrupted; begin it again")]
    Interrupted(Digest),
    /// The disk did not do it.
    #[error("artifact file {}: {source}", path.display())]
    Io {
        /// Of what file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The content is another than was announced. What came is dropped.
    #[error("the content has the digest {actual}, not {announced}; it changed while it was sent")]
    Mismatch {
        /// The digest that was announced.
        announced: Digest,
        /// That of what came.
        actual: Digest,
    },
    /// More came than was announced. What came is dropped.
    #[error("more than the announced {announced} bytes came of {digest}")]
    Overlong {
        /// What was announced.
        digest: Digest,
        /// Its announced size in bytes.
        announced: u64,
    },
    /// The store has this content with another size.
    #[error("{digest} has {actual} bytes, not {announced}")]
    Size {
        /// What was announced.
        digest: Digest,
        /// The size that was announced.
        announced: u64,
        /// The size it has.
        actual: u64,
    },
    /// It is larger than the store takes.
    #[error("an artifact of {announced} bytes is over the limit of {limit}")]
    TooLarge {
        /// The size that was announced.
        announced: u64,
        /// The most bytes that are taken.
        limit: u64,
    },
}

/// Which upload some content comes by: the same for every try to send one file of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UploadId {
    agent: AgentId,
    file: Digest,
}

impl UploadId {
    /// The upload of `path` by `attempt`, which is the agent's.
    #[must_use]
    pub fn new(agent: AgentId, attempt: AttemptId, path: &str) -> Self {
        Self { agent, file: Digest::of(format!("{attempt} {path}").as_bytes()) }
    }
}

/// How an upload begins.
#[derive(Debug)]
pub enum Begin {
    /// The content is here: nothing needs to be sent.
    Have,
    /// It is to be sent from [`Upload::offset`] on.
    Send(Upload),
}

/// Whole content, open for reading.
#[derive(Debug)]
pub struct Blob {
    /// At its start.
    pub file: tokio::fs::File,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The content of all artifacts. Clones share it.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    dir: Arc<PathBuf>,
    disk: Arc<dyn Disk>,
    bytes_max: u64,
    shards: Arc<[Mutex<Shard>]>,
    permits: Arc<Semaphore>,
}

impl ArtifactStore {
    /// Opens the store in `dir`, or makes one there. An artifact has at most `bytes_max` bytes, and
    /// [`limit::ARTIFACT_BYTES_MAX`] in any case. Blocks the thread.
    ///
    /// # Errors
    /// When the folders can't be made.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, ArtifactError> {
        Self::open_on(Arc::new(RealDisk), dir, bytes_max)
    }

    fn open_on(disk: Arc<dyn Disk>, dir: &Path, bytes_max: u64) -> Result<Self, ArtifactError> {
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |source| ArtifactError::Io { path, source }
        };
        let (blobs, partial) = (dir.join("blobs"), dir.join("partial"));
        std::fs::create_dir_all(&blobs).map_err(refused(&blobs))?;
        std::fs::create_dir_all(&partial).map_err(refused(&partial))?;
        disk.sync_dir(dir).map_err(refused(dir))?;
        let shards = Shard::open_all(&*disk, &blobs).map_err(refused(&blobs))?.into();
        let bytes_max = bytes_max.min(limit::ARTIFACT_BYTES_MAX);
        let permits = Arc::new(Semaphore::new(BLOCKING_MAX));
        Ok(Self { dir: Arc::new(dir.to_owned()), disk, bytes_max, shards, permits })
    }

    /// The size in bytes of the content with this digest; `None` when it is not here.
    ///
    /// # Errors
    /// When the disk can't tell.
    pub async fn have(&self, digest: Digest) -> Result<Option<u64>, ArtifactError> {
        let store = self.clone();
        self.blocking(move || Ok(store.in_shard(digest, |shard| shard.find(digest))?.map(|(_, bytes)| bytes)))
            .await
    }

    /// Begins or resumes an upload. What an earlier try has left is read and hashed first.
    ///
    /// # Errors
    /// When the size is over the limit or contradicts what is here, the upload is under way elsewhere, or the
    /// disk fails.
    pub async fn begin(&self, id: UploadId, digest: Digest, bytes: u64) -> Result<Begin, ArtifactError> {
        if bytes > self.bytes_max {
            return Err(ArtifactError::TooLarge { announced: bytes, limit: self.bytes_max });
        }
        let store = self.clone();
        self.blocking(move || match store.in_shard(digest, |shard| shard.want(digest))? {
            Some(actual) if actual == bytes => Ok(Begin::Have),
            Some(actual) => Err(ArtifactError::Size { digest, announced: bytes, actual }),
            None => Upload::begin(&store, id, digest, bytes).map(Begin::Send),
        })
        .await
    }

    /// Opens content for reading; `None` when it is not here.
    ///
    /// # Errors
    /// When the disk doesn't give it.
    pub async fn read(&self, digest: Digest) -> Result<Option<Blob>, ArtifactError> {
        let store = self.clone();
        self.blocking(move || {
            let opened = store.in_shard(digest, |shard| shard.find(digest))?;
            Ok(opened.map(|(file, bytes)| Blob { file: tokio::fs::File::from_std(file), bytes }))
        })
        .await
    }

    /// Removes content that is not `used` and that nobody has sent or announced since `time`; says how many. Those
    /// who read it read on. `time` lies further back than it takes to record an artifact once it was taken.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn drop_unused(
        &self,
        time: SystemTime,
        used: impl Fn(Digest) -> bool + Send + 'static,
    ) -> Result<usize, ArtifactError> {
        let store = self.clone();
        self.blocking(move || {
            let mut dropped = 0;
            for shard in &*store.shards {
                let digests = held(shard).digests()?;
                for digest in digests {
                    if !used(digest) {
                        let drop = |shard: &Shard| shard.drop_unwanted(&*store.disk, digest, time);
                        dropped += usize::from(store.in_shard(digest, drop)?);
                    }
                }
            }
            Ok(dropped)
        })
        .await
    }

    /// Removes what is left of uploads that nobody has written to since `time`; says how many.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn drop_partials(&self, time: SystemTime) -> Result<usize, ArtifactError> {
        let folder = self.dir.join("partial");
        self.blocking(move || {
            let mut dropped = 0;
            for folder in entries(&folder)? {
                dropped += partial::drop_old(&folder, time)?;
            }
            Ok(dropped)
        })
        .await
    }

    /// Sees to it that an agent has left no more unfinished than it may, also when it begins no more uploads.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn bound_partials(&self, agent: AgentId) -> Result<(), ArtifactError> {
        let folder = self.partials(agent);
        self.blocking(move || match folder.exists() {
            true => partial::make_room(&folder, partial::FILES_MAX, partial::BYTES_MAX).map(drop),
            false => Ok(()),
        })
        .await
    }

    /// Does something to the content's name.
    fn in_shard<T>(
        &self,
        digest: Digest,
        act: impl FnOnce(&Shard) -> io::Result<T>,
    ) -> Result<T, ArtifactError> {
        let shard = held(&self.shards[Shard::number(digest)]);
        act(&shard).map_err(|source| ArtifactError::Io { path: shard.blob(digest), source })
    }

    /// Runs `work` where it may wait for the disk. What is cancelled goes on, and counts until it ends.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
    ) -> Result<T, ArtifactError> {
        let lost = |source| ArtifactError::Io { path: self.dir.to_path_buf(), source };
        let closed = |error| lost(io::Error::other(error));
        let permit = self.permits.clone().acquire_owned().await.map_err(closed)?;
        let worked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        worked.await.map_err(|error| lost(io::Error::other(error)))?
    }

    fn partial(&self, digest: Digest, id: UploadId) -> PathBuf {
        let file = id.file.to_hex();
        self.partials(id.agent).join(format!("{}-{}", digest.to_hex(), &file[..32]))
    }

    fn partials(&self, agent: AgentId) -> PathBuf {
        self.dir.join("partial").join(agent.to_string())
    }
}

/// A shard, for oneself.
fn held(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes "not found" for an answer.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The paths in a folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, ArtifactError> {
    let read = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    read.map_err(|source| ArtifactError::Io { path: folder.to_owned(), source })
}

#[cfg(test)]
mod tests;
