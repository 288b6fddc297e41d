//! The names of whole content, a 256th of them each. Who holds a shard sees only names that are on the disk, and
//! none goes meanwhile: it is held from before a name appears until that is synced, and to drop one.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use packrun_protocol::id::Digest;

use super::disk::Disk;
use super::{ArtifactError, entries, found};

/// The names that begin with the same byte.
#[derive(Debug)]
pub(super) struct Shard {
    path: PathBuf,
}

impl Shard {
    /// Opens all shards in `folder`, and makes those that are missing. Brings their names to the disk, for who
    /// was killed may have left some that are not.
    pub(super) fn open_all(disk: &dyn Disk, folder: &Path) -> io::Result<Vec<Mutex<Self>>> {
        let mut shards = Vec::with_capacity(256);
        for number in 0..=u8::MAX {
            let path = folder.join(format!("{number:02x}"));
            std::fs::create_dir_all(&path)?;
            disk.sync_dir(&path)?;
            shards.push(Mutex::new(Self { path }));
        }
        disk.sync_dir(folder)?;
        Ok(shards)
    }

    /// In which of the shards the content's name is.
    pub(super) fn number(digest: Digest) -> usize {
        digest.as_bytes()[0].into()
    }

    /// The content with its size in bytes; `None` when it is not here.
    pub(super) fn find(&self, digest: Digest) -> io::Result<Option<(File, u64)>> {
        let Some(file) = found(File::open(self.blob(digest)))? else { return Ok(None) };
        let bytes = file.metadata()?.len();
        Ok(Some((file, bytes)))
    }

    /// The size of content that is about to be referred to, which keeps it for a while.
    pub(super) fn want(&self, digest: Digest) -> io::Result<Option<u64>> {
        let Some((file, bytes)) = self.find(digest)? else { return Ok(None) };
        file.set_modified(SystemTime::now())?;
        Ok(Some(bytes))
    }

    /// Gives content its name, and keeps it for a while. `file`, at `partial`, is on the disk.
    pub(super) fn put(&self, disk: &dyn Disk, digest: Digest, partial: &Path, file: &File) -> io::Result<()> {
        if self.want(digest)?.is_some() {
            return disk.remove(partial);
        }
        // One that was resumed may not have been written to for long.
        file.set_modified(SystemTime::now())?;
        let blob = self.blob(digest);
        disk.rename(partial, &blob)?;
        // After a failed sync the next may succeed without the name, so nobody must find it.
        disk.sync_dir(&self.path).map_err(|error| disk.remove(&blob).err().unwrap_or(error))
    }

    /// Drops content that was neither put nor wanted since `time`; says whether it did.
    pub(super) fn drop_unwanted(
        &self,
        disk: &dyn Disk,
        digest: Digest,
        time: SystemTime,
    ) -> io::Result<bool> {
        match self.find(digest)? {
            Some((file, _)) if file.metadata()?.modified()? < time => {
                disk.remove(&self.blob(digest)).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// All content that is here. Files with other names are left alone.
    pub(super) fn digests(&self) -> Result<Vec<Digest>, ArtifactError> {
        let digest = |path: PathBuf| format!("sha256:{}", path.file_name()?.to_str()?).parse().ok();
        Ok(entries(&self.path)?.into_iter().filter_map(digest).collect())
    }

    pub(super) fn blob(&self, digest: Digest) -> PathBuf {
        self.path.join(digest.to_hex())
    }
}
