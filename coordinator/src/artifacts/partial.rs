//! What has come of uploads that did not end: a folder for each agent, so that what it leaves there is bounded. Nothing
//! is refused for that: a file that was dropped is sent from its start.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{ArtifactError, entries, found};

/// Files that an agent may leave unfinished: more than it sends at once.
pub(super) const FILES_MAX: usize = 64;
/// Bytes of them together. The file that was written last stays in any case, however large.
pub(super) const BYTES_MAX: u64 = 16 << 30;

/// A file that somebody may be sending.
struct Partial {
    path: PathBuf,
    modified: SystemTime,
    bytes: u64,
}

/// Removes the oldest of an agent's partial files until there are no more than `files` and `bytes`; says how many.
pub(super) fn make_room(folder: &Path, files: usize, bytes: u64) -> Result<usize, ArtifactError> {
    let mut left = list(folder)?;
    let (mut count, mut size) = (left.len(), left.iter().map(|partial| partial.bytes).sum::<u64>());
    if count <= files && size <= bytes {
        return Ok(0);
    }
    left.sort_by_key(|partial| partial.modified);
    left.pop();
    let mut dropped = 0;
    for partial in left {
        if count <= files && size <= bytes {
            break;
        }
        if drop_unsent(&partial.path)? {
            dropped += 1;
            count -= 1;
            size -= partial.bytes;
        }
    }
    Ok(dropped)
}

/// Removes those of an agent's partial files that nobody has written to since `time`; says how many.
pub(super) fn drop_old(folder: &Path, time: SystemTime) -> Result<usize, ArtifactError> {
    let mut dropped = 0;
    for partial in list(folder)? {
        dropped += usize::from(partial.modified < time && drop_unsent(&partial.path)?);
    }
    Ok(dropped)
}

/// The files in the folder. One that is gone by now was finished.
fn list(folder: &Path) -> Result<Vec<Partial>, ArtifactError> {
    let mut files = Vec::new();
    for path in entries(folder)? {
        let metadata = found(std::fs::metadata(&path)).map_err(refused(&path))?;
        let Some(metadata) = metadata else { continue };
        let modified = metadata.modified().map_err(refused(&path))?;
        files.push(Partial { path, modified, bytes: metadata.len() });
    }
    Ok(files)
}

/// Removes the file, unless it is being sent and so locked, or gone; says whether it did.
fn drop_unsent(path: &Path) -> Result<bool, ArtifactError> {
    let Some(file) = found(File::open(path)).map_err(refused(path))? else { return Ok(false) };
    if file.try_lock().is_err() {
        return Ok(false);
    }
    Ok(found(std::fs::remove_file(path)).map_err(refused(path))?.is_some())
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> ArtifactError {
    let path = path.to_owned();
    move |source| ArtifactError::Io { path, source }
}
