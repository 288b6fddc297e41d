//! Cgroups (v2, also beside a v1 hierarchy): one for each attempt that runs, taken from a pool and used again once
//! it is empty. Whether they can be had is found out by trying.
//!
//! A job may make cgroups in its own: it counts as empty when they are, and is killed and removed with them.
//! One that can't be killed as a whole (`cgroup.kill` is there from Linux 5.14) is none for us.
//!
//! A cgroup that was once killed is not used again: Linux (seen in 6.18) compares the number of kills of the parent's
//! cgroup with that of the one a child is created in, and kills the child when they differ. Where that is so from the
//! beginning, the trial shows it.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use super::children::pid_of;
use super::spawn::Spawner;

/// How long the start waits for what an executor left that was killed.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(5);

/// The cgroups of one executor, in a folder of its own below that of its process.
#[derive(Debug)]
pub(super) struct Cgroups {
    folder: PathBuf,
    free: Vec<Slot>,
    made: u32,
}

/// One cgroup.
#[derive(Debug)]
pub(super) struct Slot {
    path: PathBuf,
    folder: OwnedFd,
    events: File,
    kill: File,
    killed: Cell<bool>,
}

impl Cgroups {
    /// The cgroups for attempts whose workspaces are in `workspaces`, which names them for good: what an executor
    /// of the same folder left is ended. Fails where the host has none for us.
    pub(super) fn open(workspaces: &Path, spawner: &mut Spawner) -> io::Result<Self> {
        let folder = own_cgroup()?.join(name_for(workspaces)?);
        if folder.exists() {
            end_leftovers(&folder)?;
        }
        fs::create_dir(&folder)?;
        let mut cgroups = Self { folder, free: Vec::new(), made: 0 };
        let slot = cgroups.take()?;
        if !spawner.can_enter(rustix::fd::AsFd::as_fd(&slot.folder)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        cgroups.give_back(slot);
        Ok(cgroups)
    }

    /// An empty cgroup.
    pub(super) fn take(&mut self) -> io::Result<Slot> {
        // Who is just going may still be counted in the last that came back.
        let empty = |slot: &Slot| slot.is_empty().unwrap_or(false);
        if let Some(index) = self.free.iter().rposition(empty) {
            return Ok(self.free.swap_remove(index));
        }
        let path = self.folder.join(format!("slot-{}", self.made));
        self.made += 1;
        fs::create_dir(&path)?;
        Slot::open(path)
    }

    /// Takes back a cgroup. One that was killed, or that a job made others in, is removed.
    pub(super) fn give_back(&mut self, slot: Slot) {
        if !slot.killed.get() && slot.has_children().is_ok_and(|has| !has) {
            self.free.push(slot);
        } else if let Err(error) = remove_all(&slot.path) {
            tracing::warn!(cgroup = %slot.path.display(), %error, "a cgroup stays until the next start");
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = remove_all(&self.folder);
    }
}

impl Slot {
    fn open(path: PathBuf) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&path, flags, Mode::empty())?;
        let events = File::open(path.join("cgroup.events"))?;
        let kill = File::options().write(true).open(path.join("cgroup.kill"))?;
        Ok(Self { path, folder, events, kill, killed: Cell::new(false) })
    }

    /// The folder, to create a process in.
    pub(super) fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// A file that becomes readable out of band when [`Slot::is_empty`] may have changed since it was last asked.
    pub(super) fn events(&self) -> &File {
        &self.events
    }

    /// Whether no process lives in it or in those below it; one that has exited and is not reaped doesn't count.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        let mut text = [0; 128];
        let length = self.events.read_at(&mut text, 0)?;
        let text = text.get(..length).unwrap_or_default();
        Ok(text.split(|byte| *byte == b'\n').any(|line| line == b"populated 0"))
    }

    /// Sends SIGKILL to all in it, also to those being born.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.killed.set(true);
        self.kill.write_all_at(b"1", 0)
    }

    /// Sends SIGKILL if there is anyone to kill: the main process, which is just going, may still be counted, but
    /// is not listed any more.
    pub(super) fn kill_rest(&self) -> io::Result<()> {
        let main_alone = || Ok::<_, io::Error>(self.processes()?.is_empty() && !self.has_children()?);
        if self.is_empty()? || main_alone().unwrap_or(false) { Ok(()) } else { self.kill() }
    }

    /// Whether there are cgroups below it: each is a link to its folder.
    fn has_children(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.folder)?.st_nlink > 2)
    }

    fn processes(&self) -> io::Result<String> {
        fs::read_to_string(self.path.join("cgroup.procs"))
    }

    /// Sends SIGTERM to all in it.
    pub(super) fn terminate(&self) -> io::Result<()> {
        for pid in self.processes()?.lines().filter_map(|line| line.parse().ok()).filter_map(pid_of) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        Ok(())
    }
}

/// What the cgroups for these workspaces are called. The path alone could be that of another container's, and the
/// number of a folder that was removed is soon another's.
fn name_for(workspaces: &Path) -> io::Result<String> {
    let (path, meta) = (fs::canonicalize(workspaces)?, fs::metadata(workspaces)?);
    let path = crc32c::crc32c(path.as_os_str().as_encoded_bytes());
    Ok(format!("packrun-{:x}-{:x}-{path:08x}", meta.dev(), meta.ino()))
}

/// The cgroup of this process, as a folder.
fn own_cgroup() -> io::Result<PathBuf> {
    let membership = fs::read_to_string("/proc/self/cgroup")?;
    let own =
        membership.lines().find_map(|line| line.strip_prefix("0::")).ok_or(io::ErrorKind::Unsupported)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // proc_pid_mountinfo(5): root and mount point are the fourth and fifth field, the type follows a lone dash.
    let mount = mounts.lines().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        kind.starts_with("cgroup2 ").then_some((fields.next()?, fields.next()?))
    });
    let (root, point) = mount.ok_or(io::ErrorKind::Unsupported)?;
    let inside = Path::new(own)
        .strip_prefix(root)
        .unwrap_or(Path::new(own).strip_prefix("/").unwrap_or(Path::new("")));
    Ok(Path::new(point).join(inside))
}

fn end_leftovers(folder: &Path) -> io::Result<()> {
    let whole = Slot::open(folder.to_owned())?;
    whole.kill()?;
    let deadline = Instant::now() + LEFTOVERS_LIMIT;
    while !whole.is_empty()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        rustix::event::poll(&mut [PollFd::new(whole.events(), PollFlags::PRI)], Some(&timeout))?;
    }
    remove_all(folder)
}

/// Removes a cgroup and all below it, as far as they are empty.
fn remove_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // The last line says what this means.
            let _ = remove_all(&entry.path());
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_without_a_kill_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.events"), "populated 0\n").unwrap();
        let refused = Slot::open(folder.path().to_owned()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
        fs::write(folder.path().join("cgroup.kill"), "").unwrap();
        Slot::open(folder.path().to_owned()).unwrap();
    }
}
