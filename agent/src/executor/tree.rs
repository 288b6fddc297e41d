//! All processes of one attempt: those that its main process started, however they hid.
//!
//! With a cgroup nothing gets out but what has the right to move to another one (root's jobs have). Without one,
//! strays are what the attempt orphaned: children of this process that it doesn't know, which still have the
//! attempt's session, group or marker variable, and all below them. Who escaped either way is ended by
//! [`Forest::sweep`] when no attempt runs.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use packrun_protocol::control::Isolation;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::cgroup::{Cgroups, Slot};
use super::children::{Descendants, Known, Proc, pid_of};
use super::spawn::Spawner;
use super::workspace::MARKER;

/// Where trees come from.
#[derive(Debug)]
pub(super) struct Forest {
    cgroups: Option<Cgroups>,
}

/// One attempt's processes.
#[derive(Debug)]
pub(super) enum Tree {
    Cgroup(Slot),
    Family(Family),
}

/// The processes of an attempt without a cgroup.
#[derive(Debug)]
pub(super) struct Family {
    marker: Vec<u8>,
    strays: HashMap<u32, OwnedFd>,
}

/// What is left of a tree.
#[derive(Debug)]
pub(super) enum Remains<'a> {
    Nothing,
    /// Ask again when something happened to this file out of band.
    Cgroup(BorrowedFd<'a>),
    /// Ask again when one of these is readable.
    Strays(Vec<BorrowedFd<'a>>),
}

impl Forest {
    /// Tries for cgroups, unless `wanted` says otherwise.
    pub(super) fn plant(
        workspaces: &Path,
        spawner: &mut Spawner,
        wanted: Option<Isolation>,
    ) -> io::Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let cgroups = match wanted {
            Some(Isolation::Subreaper) => None,
            Some(Isolation::Cgroup) => Some(Cgroups::open(workspaces, spawner)?),
            None => Cgroups::open(workspaces, spawner)
                .inspect_err(|error| tracing::info!(%error, "this host has no cgroups for attempts"))
                .ok(),
        };
        Ok(Self { cgroups })
    }

    pub(super) fn isolation(&self) -> Isolation {
        if self.cgroups.is_some() { Isolation::Cgroup } else { Isolation::Subreaper }
    }

    /// A tree for the attempt of `workspace`.
    pub(super) fn tree(&mut self, workspace: &Path) -> io::Result<Tree> {
        match &mut self.cgroups {
            Some(cgroups) => cgroups.take().map(Tree::Cgroup),
            None => Ok(Tree::Family(Family::new(workspace))),
        }
    }

    /// Takes back what an attempt had.
    pub(super) fn fell(&mut self, tree: Tree) {
        if let (Some(cgroups), Tree::Cgroup(slot)) = (&mut self.cgroups, tree) {
            cgroups.give_back(slot);
        }
    }

    /// Ends all orphans if no attempt runs in this process. Reaps orphans in any case; says whether any child is
    /// left.
    pub(super) fn sweep(&self) -> bool {
        let known = Known::lock();
        let left = known.reap_orphans();
        if left && known.is_empty() {
            let look = Descendants::look();
            for proc in look.below(look.orphans(&known, |_| true)) {
                proc.signal(Signal::KILL);
            }
        }
        left
    }
}

impl Tree {
    /// The cgroup to create the main process in.
    pub(super) fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Cgroup(slot) => Some(slot.folder().as_fd()),
            Self::Family(_) => None,
        }
    }

    /// Sends SIGTERM to all processes; `main` is not reaped yet.
    pub(super) fn terminate(&self, main: u32) {
        match self {
            Self::Cgroup(slot) => warn_of(slot.terminate()),
            Self::Family(family) => family.signal_all(main, Signal::TERM),
        }
    }

    /// Sends SIGKILL to all processes; `main` is not reaped yet.
    pub(super) fn kill(&self, main: u32) {
        match self {
            Self::Cgroup(slot) => warn_of(slot.kill()),
            Self::Family(family) => family.signal_all(main, Signal::KILL),
        }
    }

    /// Sends SIGKILL to what `main` left; it has exited and is not reaped yet, so its number is still its own.
    pub(super) fn end(&self, main: u32) {
        match self {
            Self::Cgroup(slot) => warn_of(slot.kill_rest()),
            Self::Family(_) => signal_group(main, Signal::KILL),
        }
    }

    /// All files that [`Tree::remains`] may have named.
    pub(super) fn watched(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Cgroup(slot) => vec![slot.events().as_fd()],
            Self::Family(family) => family.strays.values().map(AsFd::as_fd).collect(),
        }
    }

    /// What is left after [`Tree::end`] and the reaping of `main`.
    pub(super) fn remains(&mut self, main: u32) -> Remains<'_> {
        match self {
            Self::Cgroup(slot) => match slot.is_empty() {
                Ok(false) => Remains::Cgroup(slot.events().as_fd()),
                _ => Remains::Nothing,
            },
            Self::Family(family) => family.remains(main),
        }
    }
}

impl Family {
    fn new(workspace: &Path) -> Self {
        let marker = [MARKER.as_bytes(), b"=", workspace.as_os_str().as_encoded_bytes()].concat();
        Self { marker, strays: HashMap::new() }
    }

    /// Whether an orphan is this attempt's. The number of a session or group is not given out again while one of
    /// its members lives, so it names the attempt also after the main process was reaped.
    fn owns(&self, main: u32, orphan: &Proc) -> bool {
        orphan.session == main || orphan.group == main || orphan.has_marker(&self.marker)
    }

    fn signal_all(&self, main: u32, signal: Signal) {
        signal_group(main, signal);
        let known = Known::lock();
        let look = Descendants::look();
        let mut roots = look.orphans(&known, |orphan| self.owns(main, orphan));
        roots.extend(look.find(main));
        for proc in look.below(roots).iter().filter(|proc| proc.group != main) {
            proc.signal(signal);
        }
    }

    fn remains(&mut self, main: u32) -> Remains<'_> {
        let known = Known::lock();
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        self.strays.retain(|_, pidfd| {
            matches!(rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options), Ok(None))
        });
        if !known.may_have_orphans() {
            return Remains::Nothing;
        }
        let look = Descendants::look();
        for proc in look.below(look.orphans(&known, |orphan| self.owns(main, orphan))) {
            // Those below become our children, and are found again, when their parents are gone.
            if let Some(pidfd) = proc.signal(Signal::KILL).filter(|_| proc.parent == std::process::id()) {
                self.strays.entry(proc.pid).or_insert(pidfd);
            }
        }
        if self.strays.is_empty() {
            return Remains::Nothing;
        }
        Remains::Strays(self.strays.values().map(AsFd::as_fd).collect())
    }
}

/// A signal that was not sent: whoever waits for the tree runs into a limit, and here is why.
fn warn_of(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::warn!(%error, "failed to signal the processes of a cgroup");
    }
}

fn signal_group(main: u32, signal: Signal) {
    if let Some(group) = pid_of(main) {
        let _ = rustix::process::kill_process_group(group, signal);
    }
}
