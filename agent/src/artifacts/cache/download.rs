//! A content on its way into the cache: resumed, appended to, checked, committed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use packrun_protocol::id::Digest;
use sha2::{Digest as _, Sha256};

use super::index::State;
use super::{Blob, CacheError, Hold, at, make_folder};
use crate::artifacts::hash;

/// The right to fetch a content, given back by dropping it.
#[derive(Debug)]
pub struct Vacancy {
    pub(super) hold: Hold,
    pub(super) size: u64,
}

/// A content on its way. When it is dropped, what has come stays for the next one who wants it.
#[derive(Debug)]
pub struct Download {
    hold: Hold,
    size: u64,
    file: File,
    hasher: Sha256,
    offset: u64,
}

impl Vacancy {
    /// Goes on with what has come already, which is read once for its digest: this blocks.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn resume(self) -> Result<Download, CacheError> {
        let path = self.hold.path(State::Partial);
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(at("open", &path))?;
        if file.metadata().map_err(at("look at", &path))?.len() > self.size {
            file.set_len(0).map_err(at("cut", &path))?;
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; hash::BUFFER_BYTES];
        let offset = hash::feed(&mut hasher, &mut file, self.size, &mut buffer).map_err(at("read", &path))?;
        Ok(Download { hold: self.hold, size: self.size, file, hasher, offset })
    }
}

impl Download {
    /// How many bytes are there already: the offset to fetch from.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends bytes that came. Blocks on the disk.
    ///
    /// # Errors
    /// When there are more bytes than were announced, of which none is taken, or the file system refuses;
    /// then this is to be dropped, and the next one goes on with what is on the disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        let offset = self.offset.saturating_add(bytes.len() as u64);
        if offset > self.size {
            return Err(self.length(offset));
        }
        self.file.write_all(bytes).map_err(at("write", &self.hold.path(State::Partial)))?;
        self.hasher.update(bytes);
        self.offset = offset;
        Ok(())
    }

    /// Checks length and digest, syncs, and makes the content one that the cache has. Blocks on the disk.
    ///
    /// # Errors
    /// When bytes are missing, which can still be fetched, the digest is another, or the file system refuses.
    pub fn commit(self) -> Result<Blob, CacheError> {
        let (digest, partial) = (self.hold.digest, self.hold.path(State::Partial));
        let actual = self.file.metadata().map_err(at("look at", &partial))?.len();
        if self.offset < self.size {
            return Err(self.length(self.offset));
        }
        let found: [u8; 32] = self.hasher.finalize().into();
        if actual != self.size || Digest::from_bytes(found) != digest {
            fs::remove_file(&partial).map_err(at("remove", &partial))?;
            return Err(CacheError::Digest(digest));
        }
        self.file.sync_all().map_err(at("sync", &partial))?;
        let blob = self.hold.path(State::Whole);
        if let Some(folder) = blob.parent() {
            make_folder(folder)?;
        }
        let mut index = self.hold.shared.index();
        fs::rename(&partial, &blob).map_err(at("rename", &partial))?;
        index.set(&digest, State::Whole, self.size);
        drop(index);
        self.hold.shared.released.notify_waiters();
        // Read-only, so that a job which finds the way to it doesn't change it by mistake; only now, for a
        // partial content must stay writable if this is cut off.
        self.file.set_permissions(Permissions::from_mode(0o400)).map_err(at("protect", &blob))?;
        Ok(Blob(self.hold))
    }

    fn length(&self, actual: u64) -> CacheError {
        CacheError::Length { digest: self.hold.digest, announced: self.size, actual }
    }
}
