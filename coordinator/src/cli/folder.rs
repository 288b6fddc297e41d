//! The folder that downloads go to, and nowhere else: paths come from the coordinator, and a link may lie on their
//! way. Every component is opened relative to the folder before it and never through a link; a file is written
//! beside its place under a name of its own and renamed when it is whole.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use packrun_protocol::path::RelativePath;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

const FOLDER_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// A folder held by its descriptor.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// A file that is being written. Dropped before it is put in its place, it is removed.
#[derive(Debug)]
pub struct Partial {
    folder: OwnedFd,
    name: String,
    partial: String,
    placed: bool,
    /// The file, for writing.
    pub file: File,
}

impl Folder {
    /// Opens the folder at `path`, which the user named, and makes it if it is missing.
    ///
    /// # Errors
    /// When it can't be made or opened, or is no folder.
    pub fn open_or_make(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self(fs::open(path, FOLDER_FLAGS, Mode::empty())?))
    }

    /// The folder `name` in this one, made if it is missing.
    ///
    /// # Errors
    /// When it can't be made or opened, or is no folder but a link or a file.
    pub fn child(&self, name: &str) -> io::Result<Self> {
        match fs::mkdirat(&self.0, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::openat(&self.0, name, FOLDER_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(folder) => Ok(Self(folder)),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("`{name}` on its way is a link or a file, and links are not followed"),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// The regular file at `path`, for reading, if there is one that is reached without a link.
    #[must_use]
    pub fn existing(&self, path: &RelativePath) -> Option<File> {
        let flags = OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let mut folder = self.0.try_clone().ok()?;
        let (folders, name) = split(path);
        for component in folders {
            folder = fs::openat(&folder, component, flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
        }
        let file = File::from(fs::openat(&folder, name, flags | OFlags::NONBLOCK, Mode::empty()).ok()?);
        file.metadata().ok()?.is_file().then_some(file)
    }

    /// Begins the file at `path`, and makes the folders above it that are missing.
    ///
    /// # Errors
    /// When a link or file lies on its way, or the file system refuses.
    pub fn begin(&self, path: &RelativePath) -> io::Result<Partial> {
        let (folders, name) = split(path);
        let mut folder = Self(self.0.try_clone()?);
        for component in folders {
            folder = folder.child(component)?;
        }
        let partial = format!(".packrun-{}", uuid::Uuid::now_v7().simple());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(fs::openat(&folder.0, &*partial, flags, Mode::RUSR | Mode::WUSR)?);
        Ok(Partial { folder: folder.0, name: name.to_owned(), partial, placed: false, file })
    }
}

impl Partial {
    /// Gives the file these permissions, of which only those of `0o777` count, and puts it in its place. What is
    /// there is replaced; a link is replaced itself.
    ///
    /// # Errors
    /// When the file system refuses, as when a folder is there.
    pub fn place(mut self, mode: u32) -> io::Result<()> {
        fs::fchmod(&self.file, Mode::from_raw_mode(mode & 0o777))?;
        fs::renameat(&self.folder, &*self.partial, &self.folder, &*self.name)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.placed {
            // What is left is hidden and has a name of its own; nothing reads it.
            let _ = fs::unlinkat(&self.folder, &*self.partial, AtFlags::empty());
        }
    }
}

fn split(path: &RelativePath) -> (impl Iterator<Item = &str>, &str) {
    let (folders, name) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
    (folders.split('/').filter(|folder| !folder.is_empty()), name)
}

/// A text as the name of a folder: `/` and `%` are percent-encoded, as a matrix value may have them.
#[must_use]
pub fn folder_name(text: &str) -> String {
    text.replace('%', "%25").replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn path(text: &str) -> RelativePath {
        text.parse().unwrap()
    }

    #[test]
    fn a_file_appears_when_it_is_whole_without_the_bits_that_give_rights_away() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open_or_make(&temp.path().join("new/out")).unwrap();
        let target = temp.path().join("new/out/a/b");
        let mut partial = folder.begin(&path("a/b")).unwrap();
        partial.file.write_all(b"x").unwrap();
        assert!(!target.exists());
        partial.place(0o7777).unwrap();
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o777);
        drop(folder.begin(&path("a/c")).unwrap());
        assert_eq!(std::fs::read_dir(temp.path().join("new/out/a")).unwrap().count(), 1, "nothing is left");
        assert!(folder.existing(&path("a/b")).is_some() && folder.existing(&path("a")).is_none());
    }

    #[test]
    fn no_link_leads_out() {
        let temp = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("file"), "old").unwrap();
        symlink(outside.path(), temp.path().join("link")).unwrap();
        symlink(outside.path().join("file"), temp.path().join("file")).unwrap();
        let folder = Folder::open_or_make(temp.path()).unwrap();
        assert!(folder.begin(&path("link/file")).unwrap_err().to_string().contains("links are not followed"));
        assert!(folder.child("link").is_err());
        assert!(folder.existing(&path("link/file")).is_none() && folder.existing(&path("file")).is_none());
        folder.begin(&path("file")).unwrap().place(0o644).unwrap();
        assert_eq!(std::fs::read_to_string(outside.path().join("file")).unwrap(), "old");
        assert!(std::fs::symlink_metadata(temp.path().join("file")).unwrap().is_file());
    }

    #[test]
    fn a_key_is_one_folder_whatever_its_values_are() {
        assert_eq!(folder_name("test[a=../../x,b=%2F]"), "test[a=..%2F..%2Fx,b=%252F]");
    }
}
