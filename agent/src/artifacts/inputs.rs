//! Putting the files of other job runs into a workspace before the job starts.
//!
//! The paths come from the coordinator and may collide, by mistake or by malice: a file is only ever created
//! where nothing is, in folders that are reached without following a link, so placing can't change what an
//! earlier input put there and can't leave the workspace. A workspace whose placing was cut off is made anew,
//! not continued.
//!
//! The file is a copy, never a hard link: the job may write to its inputs, and the cache must not change.
//! Where the file system can, the copy shares its blocks until then.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;

use packrun_protocol::job::is_own;
use packrun_protocol::path::RelativePath;
use packrun_protocol::stream::{Content, FileMode};
use rustix::io::Errno;
use thiserror::Error;

use super::folder::Folder;

/// Why an input can't be put into the workspace, in words for the attempt's reason.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The path lies in packrun's own folder.
    #[error("input `{to}` can't be placed: `.packrun` belongs to packrun; give the input another `to`")]
    OwnFolder {
        /// Where it should go.
        to: RelativePath,
    },
    /// Something is there already, or a file or link lies where a folder is needed.
    #[error("input `{to}` can't be placed: it collides with another input; give one of them another `to`")]
    Occupied {
        /// Where it should go.
        to: RelativePath,
    },
    /// The source has another length than was announced.
    #[error(
        "input `{to}` can't be placed: its content has {actual} bytes instead of {announced}; fetch it again"
    )]
    Size {
        /// Where it should go.
        to: RelativePath,
        /// The length that was announced, in bytes.
        announced: u64,
        /// The length of the source, in bytes; one more than announced if it is longer than that.
        actual: u64,
    },
    /// The file system refuses.
    #[error("input `{to}` can't be placed: {source}")]
    Write {
        /// Where it should go.
        to: RelativePath,
        /// Why.
        source: io::Error,
    },
}

/// Puts a copy of `source`, read from where it stands, at `to` in `workspace`, with exactly the permissions
/// of `content` whatever the umask. Folders above it are made as needed. Blocks for as long as copying takes.
///
/// # Errors
/// See [`PlaceError`]; then no file is left at `to` that wasn't there before.
pub fn place(
    workspace: &Folder,
    to: &RelativePath,
    content: &Content,
    source: &File,
) -> Result<(), PlaceError> {
    if is_own(to) {
        return Err(PlaceError::OwnFolder { to: to.clone() });
    }
    let (folder, name, mut file) = workspace.create_file(to).map_err(|error| refused(to, error))?;
    let filled =
        fill(&mut file, content, source).map_err(|error| refused(to, error)).and_then(|actual| match content
            .size
        {
            announced if announced == actual => Ok(()),
            announced => Err(PlaceError::Size { to: to.clone(), announced, actual }),
        });
    if filled.is_err() {
        // The error that matters is the first one, and the workspace is given up with it.
        let _ = folder.remove_file(name);
    }
    filled
}

/// Copies at most one byte more than `content` has, so that a source that is too long shows.
fn fill(file: &mut File, content: &Content, source: &File) -> io::Result<u64> {
    let copied = io::copy(&mut source.take(content.size.saturating_add(1)), file)?;
    file.set_permissions(mode(content.mode))?;
    Ok(copied)
}

fn mode(mode: FileMode) -> Permissions {
    Permissions::from_mode(mode.bits())
}

fn refused(to: &RelativePath, source: io::Error) -> PlaceError {
    match Errno::from_io_error(&source) {
        Some(Errno::EXIST | Errno::NOTDIR | Errno::LOOP) => PlaceError::Occupied { to: to.clone() },
        _ => PlaceError::Write { to: to.clone(), source },
    }
}

#[cfg(test)]
mod tests;
