//! Contents fetched from the coordinator, kept by digest, so that an agent fetches each only once.
//!
//! `partial/<hex>` is a content on its way, appended to and resumed where it ends, also after a restart;
//! `blobs/<first two digits>/<hex>` is a whole one, renamed there only after its digest was checked and its
//! bytes were synced. A file's modification time is when it was last used, so the order of eviction survives
//! too.
//!
//! - One process uses the folder. In it a content is on its way once: who else wants it waits for that one.
//! - Whatever a [`Blob`] or a [`Download`] stands for is never evicted. The lock on the index is held over
//!   renames and removals, never over the transfer, hashing or syncing of content.

mod download;
mod index;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use packrun_protocol::id::Digest;
use packrun_protocol::limit;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use thiserror::Error;
use tokio::sync::Notify;

pub use download::{Download, Vacancy};
use index::{Index, State, View};

/// The bound that is used unless the agent's settings give another: 10 GiB.
pub const BYTES_MAX_DEFAULT: u64 = 10 << 30;

/// Why the cache can't give or take a content.
#[derive(Debug, Error)]
pub enum CacheError {
    /// A whole content has lost or gained bytes while another attempt uses it.
    #[error("the cached content {0} is damaged and in use; it is fetched again once its users are done")]
    Damaged(Digest),
    /// All bytes came, and they are not the content. What was there is thrown away.
    #[error("the bytes fetched as {0} are another content; fetch them again")]
    Digest(Digest),
    /// The file system refuses.
    #[error("can't {what} `{path}` in the cache: {why}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        why: io::Error,
    },
    /// More or fewer bytes came, or are there, than were announced.
    #[error("{digest} was announced with {announced} bytes and has {actual}")]
    Length {
        /// Which content.
        digest: Digest,
        /// How many bytes were announced.
        announced: u64,
        /// How many came or are there.
        actual: u64,
    },
    /// The announced size is over the limit of artifacts.
    #[error("{digest} was announced with {announced} bytes, which is over the limit of artifacts")]
    TooLarge {
        /// Which content.
        digest: Digest,
        /// How many bytes were announced.
        announced: u64,
    },
}

/// The cache. A clone is the same cache.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    index: Mutex<Index>,
    released: Notify,
}

/// What one who wants a content gets.
#[derive(Debug)]
pub enum Claim {
    /// It is there.
    Have(Blob),
    /// It has to be fetched, by the holder of this.
    Missing(Vacancy),
}

/// A whole content, kept for as long as this lives.
#[derive(Debug)]
pub struct Blob(Hold);

/// One use of a slot of the index.
#[derive(Debug)]
struct Hold {
    shared: Arc<Shared>,
    digest: Digest,
}

impl Cache {
    /// Opens the cache in `folder`, which is made if it isn't there, and evicts what is over `bytes_max`.
    /// Blocks while it looks at each file's size and time; no content is read.
    ///
    /// # Errors
    /// When the folder can't be made or listed.
    pub fn open(folder: &Path, bytes_max: u64) -> Result<Self, CacheError> {
        let shared = Shared {
            folder: folder.to_owned(),
            index: Mutex::new(Index::new(bytes_max)),
            released: Notify::new(),
        };
        for part in ["blobs", "partial"] {
            make_folder(&folder.join(part))?;
        }
        shared.restore()?;
        Ok(Self(Arc::new(shared)))
    }

    /// How many bytes are held, or reserved for what is on its way.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.index().bytes()
    }

    /// The content with this digest and size, or the right to fetch it. Waits while another holds that right.
    ///
    /// Cancel safety: nothing is claimed when this is dropped before it is ready.
    ///
    /// # Errors
    /// When the size is not that of the content, or over the limit, or the content is damaged and in use.
    pub async fn claim(&self, digest: Digest, size: u64) -> Result<Claim, CacheError> {
        loop {
            let released = self.0.released.notified();
            if let Some(claim) = self.try_claim(digest, size)? {
                return Ok(claim);
            }
            released.await;
        }
    }

    fn try_claim(&self, digest: Digest, size: u64) -> Result<Option<Claim>, CacheError> {
        if size > limit::ARTIFACT_BYTES_MAX {
            return Err(CacheError::TooLarge { digest, announced: size });
        }
        let shared = &self.0;
        let mut index = shared.index();
        match index.view(&digest) {
            Some(View { state: State::Partial, is_used: true, .. }) => return Ok(None),
            Some(View { state: State::Whole, bytes, is_used }) => {
                let path = shared.path(&digest, State::Whole);
                if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == bytes) {
                    if bytes != size {
                        return Err(CacheError::Length { digest, announced: size, actual: bytes });
                    }
                    touch(&path);
                    index.hold(digest);
                    let hold = Hold { shared: Arc::clone(shared), digest };
                    return Ok(Some(Claim::Have(Blob(hold))));
                }
                if is_used {
                    return Err(CacheError::Damaged(digest));
                }
                index.forget(&digest);
                shared.remove(&digest, State::Whole);
            }
            Some(View { state: State::Partial, is_used: false, .. }) | None => {}
        }
        index.hold(digest);
        index.set(&digest, State::Partial, size);
        shared.evict(&mut index);
        let hold = Hold { shared: Arc::clone(shared), digest };
        Ok(Some(Claim::Missing(Vacancy { hold, size })))
    }
}

impl Blob {
    /// Opens the content for reading, from its start.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(&self) -> Result<File, CacheError> {
        let path = self.0.path(State::Whole);
        File::open(&path).map_err(at("open", &path))
    }
}

impl Hold {
    fn path(&self, state: State) -> PathBuf {
        self.shared.path(&self.digest, state)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut index = self.shared.index();
        let state = index.view(&self.digest).map(|view| view.state);
        index.release(&self.digest);
        if state == Some(State::Partial) {
            // From a reservation to what really came.
            match fs::metadata(self.path(State::Partial)) {
                Ok(meta) => index.set(&self.digest, State::Partial, meta.len()),
                Err(_) => index.forget(&self.digest),
            }
        }
        self.shared.evict(&mut index);
        drop(index);
        self.shared.released.notify_waiters();
    }
}

impl Shared {
    /// The index is whole between any two statements, so a panic elsewhere doesn't spoil it.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, digest: &Digest, state: State) -> PathBuf {
        let hex = digest.to_hex();
        match state {
            State::Partial => self.folder.join("partial").join(hex),
            State::Whole => self.folder.join("blobs").join(hex.get(..2).unwrap_or_default()).join(hex),
        }
    }

    fn evict(&self, index: &mut Index) {
        while let Some((digest, state)) = index.evict() {
            self.remove(&digest, state);
        }
    }

    /// A file that can't be removed is counted again by the next restart.
    fn remove(&self, digest: &Digest, state: State) {
        let _ = fs::remove_file(self.path(digest, state));
    }

    fn restore(&self) -> Result<(), CacheError> {
        let mut found = Vec::new();
        list(&self.folder.join("partial"), |digest, meta| found.push((State::Partial, digest, meta)))?;
        let blobs = self.folder.join("blobs");
        for entry in fs::read_dir(&blobs).map_err(at("list", &blobs))? {
            let path = entry.map_err(at("list", &blobs))?.path();
            if path.is_dir() {
                list(&path, |digest, meta| found.push((State::Whole, digest, meta)))?;
            }
        }
        // By time; a content that is there in both ways is taken as whole.
        found.sort_by_key(|(_, _, meta)| meta.modified().ok());
        let mut index = self.index();
        for (state, digest, meta) in found {
            match index.view(&digest) {
                Some(View { state: State::Whole, .. }) => {
                    self.remove(&digest, State::Partial);
                    continue;
                }
                Some(View { state: State::Partial, .. }) => self.remove(&digest, State::Partial),
                None => {}
            }
            index.hold(digest);
            index.set(&digest, state, meta.len());
            index.release(&digest);
        }
        self.evict(&mut index);
        Ok(())
    }
}

/// The files in `folder` that have a digest as their name.
fn list(folder: &Path, mut found: impl FnMut(Digest, fs::Metadata)) -> Result<(), CacheError> {
    for entry in fs::read_dir(folder).map_err(at("list", folder))? {
        let entry = entry.map_err(at("list", folder))?;
        let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
        if let (Some(digest), Ok(meta)) = (digest, entry.metadata())
            && meta.is_file()
        {
            found(digest, meta);
        }
    }
    Ok(())
}

fn make_folder(path: &Path) -> Result<(), CacheError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at("make", path))
}

/// Remembers the use for the order of eviction after a restart; without it, the file counts as older.
fn touch(path: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let _ = utimensat(CWD, path, &Timestamps { last_access: now, last_modification: now }, AtFlags::empty());
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    move |why| CacheError::File { what, path: path.to_owned(), why }
}

#[cfg(test)]
mod tests;
