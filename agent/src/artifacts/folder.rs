//! A folder held by its descriptor, in which paths are resolved one component at a time, each relative to the
//! descriptor of the folder before it and never through a symbolic link. A job that swaps a folder for a link
//! while it is walked can make an open fail, but can't lead it out of the folder.
//!
//! `openat2` with `RESOLVE_BENEATH` would do a whole path in one call, but needs this walk as its fallback on
//! kernels and in containers without it; one way that is the same everywhere is simpler to trust.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use packrun_protocol::path::RelativePath;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

const FOLDER_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// An open folder.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// What a name in a folder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A socket, pipe or device: never opened.
    Special,
}

impl Folder {
    /// Opens the folder at `path`, which is the agent's own: links on its way are followed.
    ///
    /// # Errors
    /// When it isn't there, is no folder or can't be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(fs::open(path, FOLDER_FLAGS, Mode::empty())?))
    }

    /// Opens the regular file at `path` below this folder for reading, without following links or waiting.
    ///
    /// # Errors
    /// When it isn't there or can't be read, a link lies on its way, or it is no regular file.
    pub fn open_file(&self, path: &RelativePath) -> io::Result<File> {
        let (parent, name) = self.parent_of(path, Self::child)?;
        parent.child_file(name.as_ref())
    }

    /// Creates the file at `path`, which may not exist, for writing by its owner alone, and the folders above
    /// it that are missing. Gives the folder it lies in, too.
    ///
    /// # Errors
    /// When something has the path already, a link or file lies on its way, or the file system refuses.
    pub(super) fn create_file<'p>(&self, path: &'p RelativePath) -> io::Result<(Self, &'p str, File)> {
        let (parent, name) = self.parent_of(path, Self::child_made)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&parent.0, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok((parent, name, File::from(file)))
    }

    /// Removes the file `name` in this folder.
    pub(super) fn remove_file(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Opens the folder `name` in this one.
    pub(super) fn child(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Self(fs::openat(&self.0, name, FOLDER_FLAGS | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// Opens the regular file `name` in this folder for reading.
    pub(super) fn child_file(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(fs::openat(&self.0, name, flags, Mode::empty())?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
        }
    }

    /// What is in this folder, by name, or `None` when that are more than `max` names.
    pub(super) fn entries(&self, max: usize) -> io::Result<Option<Vec<(OsString, Kind)>>> {
        let mut entries = Vec::new();
        for entry in fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if entries.len() == max {
                return Ok(None);
            }
            let file_type = match entry.file_type() {
                // Not every file system says it in the listing.
                FileType::Unknown => match fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                },
                known => known,
            };
            let kind = match file_type {
                FileType::RegularFile => Kind::File,
                FileType::Directory => Kind::Folder,
                FileType::Symlink => Kind::Link,
                _ => Kind::Special,
            };
            entries.push((OsStr::from_bytes(name.to_bytes()).to_owned(), kind));
        }
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Some(entries))
    }

    /// The folder that `path` lies in, reached with `step`, and its last component.
    fn parent_of<'p>(
        &self,
        path: &'p RelativePath,
        step: impl Fn(&Self, &OsStr) -> io::Result<Self>,
    ) -> io::Result<(Self, &'p str)> {
        let mut parent = Self(self.0.try_clone()?);
        let Some((folders, name)) = path.as_str().rsplit_once('/') else {
            return Ok((parent, path.as_str()));
        };
        for folder in folders.split('/') {
            parent = step(&parent, folder.as_ref())?;
        }
        Ok((parent, name))
    }

    fn child_made(&self, name: &OsStr) -> io::Result<Self> {
        match fs::mkdirat(&self.0, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => self.child(name),
            Err(error) => Err(error.into()),
        }
    }
}
