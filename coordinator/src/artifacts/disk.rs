//! The calls that bring content and its name to the disk.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// The calls that fail when a disk is full or broken, and whose order decides what a power cut leaves.
pub(super) trait Disk: Debug + Send + Sync + 'static {
    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Brings the names in a folder to the disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// The operating system's.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {}
