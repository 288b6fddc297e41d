//! One upload: bytes in order, hashed as they come, and checked before they get the name they are known by.
//!
//! The bytes are brought to the disk as they come, a few MiB at a time: so the last sync is short, a slow disk
//! slows this sender only, and a power cut costs little. What a power cut leaves in a partial file need not be
//! what was written; then the digest says so in the end, and the upload starts over.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use packrun_protocol::id::Digest;
use sha2::{Digest as _, Sha256};

use super::{ArtifactError, ArtifactStore, UploadId, found, partial};

/// Bytes that are collected before they are written.
const WRITE_BYTES: usize = 256 << 10;
/// Bytes that may be written before they are synced.
const SYNC_BYTES: u64 = 8 << 20;

/// An upload under way. Dropped, it leaves what has come, to be resumed.
#[derive(Debug)]
pub struct Upload {
    digest: Digest,
    announced: u64,
    received: u64,
    offset: u64,
    /// What is not yet written: less than [`WRITE_BYTES`], and a copy, for a received piece keeps all of its
    /// datagram in memory.
    waiting: Vec<u8>,
    /// Absent after a call was cancelled or failed.
    partial: Option<Box<Partial>>,
}

#[derive(Debug)]
struct Partial {
    store: ArtifactStore,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    unsynced: u64,
}

impl Upload {
    pub(super) fn begin(
        store: &ArtifactStore,
        id: UploadId,
        digest: Digest,
        announced: u64,
    ) -> Result<Self, ArtifactError> {
        let folder = store.partials(id.agent);
        std::fs::create_dir_all(&folder)
            .map_err(|source| ArtifactError::Io { path: folder.clone(), source })?;
        let path = store.partial(digest, id);
        let refused = |source| ArtifactError::Io { path: path.clone(), source };
        let opened = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = opened.map_err(refused)?;
        let left = claim(&path, &file).map_err(refused)?.ok_or(ArtifactError::Busy(digest))?;
        // This one is locked by now, and stays.
        let dropped = partial::make_room(&folder, partial::FILES_MAX, partial::BYTES_MAX)?;
        if dropped > 0 {
            tracing::info!(agent = %id.agent, dropped, "unfinished uploads were dropped: the agent has left many");
        }
        let mut partial = Partial { store: store.clone(), file, hasher: Sha256::new(), unsynced: 0, path };
        let offset = partial.hash_left(left, announced)?;
        Ok(Self {
            digest,
            announced,
            received: offset,
            offset,
            waiting: Vec::with_capacity(announced.saturating_sub(offset).min(WRITE_BYTES as u64) as usize),
            partial: Some(Box::new(partial)),
        })
    }

    /// From which byte on the content is to be sent.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes. Waits for the disk now and then. Not cancel safe: the upload has to be begun again.
    ///
    /// # Errors
    /// When there are more than announced, or the disk fails.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), ArtifactError> {
        let (digest, announced) = (self.digest, self.announced);
        self.received = self.received.saturating_add(bytes.len() as u64);
        if self.received > announced {
            if let Some(partial) = self.partial.take() {
                let store = partial.store.clone();
                store.blocking(move || partial.remove()).await?;
            }
            return Err(ArtifactError::Overlong { digest, announced });
        }
        while !bytes.is_empty() {
            let fitting = bytes.split_to(bytes.len().min(WRITE_BYTES - self.waiting.len()));
            self.waiting.extend_from_slice(&fitting);
            if self.waiting.len() == WRITE_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Checks the content and makes it known, on disk. Cancelled, it may or may not have been done; begin again.
    ///
    /// # Errors
    /// When bytes are missing, it is another content than announced, or the disk fails.
    pub async fn finish(mut self) -> Result<(), ArtifactError> {
        self.flush().await?;
        let (digest, announced, received) = (self.digest, self.announced, self.received);
        if received < announced {
            return Err(ArtifactError::Incomplete { digest, announced, received });
        }
        let partial = self.partial.take().ok_or(ArtifactError::Interrupted(digest))?;
        let store = partial.store.clone();
        store.blocking(move || partial.finish(digest)).await
    }

    async fn flush(&mut self) -> Result<(), ArtifactError> {
        let mut partial = self.partial.take().ok_or(ArtifactError::Interrupted(self.digest))?;
        let mut waiting = std::mem::take(&mut self.waiting);
        let store = partial.store.clone();
        let written = store.blocking(move || {
            partial.write(&waiting)?;
            waiting.clear();
            Ok((partial, waiting))
        });
        let (partial, waiting) = written.await?;
        (self.partial, self.waiting) = (Some(partial), waiting);
        Ok(())
    }
}

impl Partial {
    /// Hashes what an earlier try left, and says how much that is.
    fn hash_left(&mut self, left: u64, announced: u64) -> Result<u64, ArtifactError> {
        if left > announced {
            let emptied = self.file.set_len(0);
            return emptied.map(|()| 0).map_err(|source| self.refused(source));
        }
        let mut buffer = vec![0; WRITE_BYTES];
        let mut hashed = 0;
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(hashed),
                Ok(read) => {
                    self.hasher.update(&buffer[..read]);
                    hashed += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.refused(source)),
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.store.disk.write(&self.file, bytes).map_err(|source| self.refused(source))?;
        self.hasher.update(bytes);
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Brings what has come to the disk, or drops all of it: after a failed sync the kernel takes the pages for
    /// clean, so who resumed would read the content whole, and a second sync would succeed without it.
    fn sync(&self) -> Result<(), ArtifactError> {
        self.store.disk.sync(&self.file).map_err(|source| match self.store.disk.remove(&self.path) {
            Ok(()) => self.refused(source),
            Err(kept) => self.refused(kept),
        })
    }

    fn finish(self, announced: Digest) -> Result<(), ArtifactError> {
        let actual = Digest::from_bytes(self.hasher.clone().finalize().into());
        if actual != announced {
            self.remove()?;
            return Err(ArtifactError::Mismatch { announced, actual });
        }
        self.sync()?;
        let Self { store, path, file, .. } = self;
        store.in_shard(announced, |shard| shard.put(&*store.disk, announced, &path, &file))
    }

    fn remove(self) -> Result<(), ArtifactError> {
        self.store.disk.remove(&self.path).map_err(|source| self.refused(source))
    }

    fn refused(&self, source: io::Error) -> ArtifactError {
        ArtifactError::Io { path: self.path.clone(), source }
    }
}

/// Locks the file opened at `path`, and gives its size; `None` when it is another's.
pub(super) fn claim(path: &Path, file: &File) -> io::Result<Option<u64>> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Between opening and locking, another may have finished the file or dropped it: then this one is no longer
    // the upload's, and must not be written to.
    let named = found(std::fs::metadata(path))?;
    let opened = file.metadata()?;
    Ok(named.filter(|named| named.ino() == opened.ino()).map(|_| opened.len()))
}
