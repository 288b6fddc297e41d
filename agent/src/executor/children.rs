//! The children of this process: which of them are known, and what `/proc` says of all others. It is a subreaper,
//! so what a job orphans becomes its child.
//!
//! Children belong to the process, not to one of its executors, hence the one shared registry. Invariant: a child
//! that was made here is in it from before anyone can see it until it is reaped, so an unknown child is an orphan
//! of some job. No other part of this process may have children.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::sys;

static KNOWN: Mutex<Option<HashSet<u32>>> = Mutex::new(None);

/// The registry, locked: nobody makes or judges children meanwhile.
#[derive(Debug)]
pub(super) struct Known(MutexGuard<'static, Option<HashSet<u32>>>);

impl Known {
    pub(super) fn lock() -> Self {
        Self(KNOWN.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn insert(&mut self, pid: u32) {
        self.0.get_or_insert_default().insert(pid);
    }

    pub(super) fn remove(&mut self, pid: u32) {
        if let Some(known) = &mut *self.0 {
            known.remove(&pid);
        }
    }

    pub(super) fn contains(&self, pid: u32) -> bool {
        self.0.as_ref().is_some_and(|known| known.contains(&pid))
    }

    /// Whether no main process lives.
    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(HashSet::is_empty)
    }

    /// Reaps the orphans that have exited; says whether others may be left. A look through all of `/proc` is dear,
    /// and while other attempts run there are always children.
    pub(super) fn may_have_orphans(&self) -> bool {
        let orphaned = |children: Vec<u32>| children.into_iter().any(|pid| !self.contains(pid));
        self.reap_orphans() && listed(Path::new("/proc/self/task")).is_none_or(orphaned)
    }

    /// Reaps the orphans that have exited; says whether this process has any child left. Stops at a known child
    /// that has exited: its own executor is about to reap it.
    pub(super) fn reap_orphans(&self) -> bool {
        loop {
            match sys::exited_child() {
                Ok(Some(pid)) if !self.contains(pid) => reap(pid),
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
    }
}

/// The numbers of this process's children, from its folder of threads; `None` where Linux was built without such
/// lists. Only who is reaped leaves them, and nobody is while [`Known`] is locked.
fn listed(threads: &Path) -> Option<Vec<u32>> {
    // All threads first: one that ends may hand its children to one that was read already, and is missed then.
    let threads: Vec<_> = fs::read_dir(threads).ok()?.collect::<Result<_, _>>().ok()?;
    let lists = threads.iter().map(|thread| fs::read_to_string(thread.path().join("children")));
    let lists: Vec<_> = lists.collect::<Result<_, _>>().ok()?;
    Some(lists.iter().flat_map(|list| list.split_ascii_whitespace()).flat_map(str::parse).collect())
}

/// Takes the exit status of a child that has exited.
pub(super) fn reap(pid: u32) {
    if let Some(pid) = pid_of(pid) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::Pid(pid), options));
    }
}

pub(super) fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// One line of `/proc`: a process as it was when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proc {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
    /// Clock ticks from the host's start to the process's: with the number it names the process for good.
    pub(super) started: u64,
    pub(super) exited: bool,
}

impl Proc {
    /// What `/proc` says of a process; `None` when there is none.
    pub(super) fn of(pid: u32) -> Option<Self> {
        // A name needn't be UTF-8: the kernel cuts it off after 15 bytes.
        Self::parse(pid, &String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
    }

    /// The fields of proc_pid_stat(5). The name may hold anything, so they are counted from its last bracket.
    fn parse(pid: u32, stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse().ok());
        Some(Self {
            pid,
            parent: number(1)?,
            group: number(2)?,
            session: number(3)?,
            started: fields.get(19)?.parse().ok()?,
            exited: matches!(*fields.first()?, "Z" | "X"),
        })
    }

    fn all() -> io::Result<Vec<Self>> {
        let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
        Ok(entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(Self::of)
            .collect())
    }

    /// Whether this process was started with `marker` (`NAME=value`) in its environment.
    pub(super) fn has_marker(&self, marker: &[u8]) -> bool {
        fs::read(format!("/proc/{}/environ", self.pid))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == marker))
    }

    /// Sends `signal` to this very process, not to a later one of its number.
    pub(super) fn signal(&self, signal: Signal) -> Option<OwnedFd> {
        let pidfd = rustix::process::pidfd_open(pid_of(self.pid)?, PidfdFlags::empty()).ok()?;
        let same = Self::of(self.pid).is_some_and(|now| now.started == self.started);
        (same && rustix::process::pidfd_send_signal(&pidfd, signal).is_ok()).then_some(pidfd)
    }
}

/// The living descendants of this process, at one look.
pub(super) struct Descendants(Vec<Proc>);

impl Descendants {
    pub(super) fn look() -> Self {
        Self(Proc::all().unwrap_or_default().into_iter().filter(|proc| !proc.exited).collect())
    }

    /// The orphans that `wanted` picks among the unknown children.
    pub(super) fn orphans(&self, known: &Known, wanted: impl Fn(&Proc) -> bool) -> Vec<Proc> {
        let own = std::process::id();
        let orphans = self.0.iter().filter(|proc| proc.parent == own && !known.contains(proc.pid));
        orphans.filter(|proc| wanted(proc)).copied().collect()
    }

    /// All below these, and themselves.
    pub(super) fn below(&self, mut roots: Vec<Proc>) -> Vec<Proc> {
        let mut seen: HashSet<u32> = roots.iter().map(|proc| proc.pid).collect();
        let mut next = 0;
        while let Some(parent) = roots.get(next).map(|proc| proc.pid) {
            next += 1;
            roots.extend(self.0.iter().filter(|proc| proc.parent == parent && seen.insert(proc.pid)));
        }
        roots
    }

    pub(super) fn find(&self, pid: u32) -> Option<Proc> {
        self.0.iter().find(|proc| proc.pid == pid).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "42 (a) R 1 (b) S 7 8 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 5551 9 9 9\n";
        let proc = Proc::parse(42, stat).unwrap();
        assert_eq!((proc.parent, proc.group, proc.session, proc.started), (7, 8, 9, 5551));
        assert!(!proc.exited);
        assert_eq!(Proc::parse(42, "42 (cut"), None);
        assert_eq!(Proc::of(std::process::id()).unwrap().pid, std::process::id());
    }

    #[test]
    fn the_children_of_every_thread_are_listed_or_none_are() {
        let threads = tempfile::tempdir().unwrap();
        let list = |thread: &str, children: &str| {
            fs::create_dir(threads.path().join(thread)).unwrap();
            fs::write(threads.path().join(thread).join("children"), children).unwrap();
        };
        list("7", "12 13 ");
        list("8", "");
        list("9", "14 ");
        let mut children = listed(threads.path()).unwrap();
        children.sort_unstable();
        assert_eq!(children, [12, 13, 14]);
        fs::create_dir(threads.path().join("10")).unwrap();
        assert_eq!(listed(threads.path()), None, "a list that isn't there is not an empty one");
    }

    #[test]
    fn a_name_that_is_cut_inside_a_character_hides_nobody() {
        // A thread's own name: it has its number, and its line, as a process has.
        let named = std::thread::spawn(|| {
            rustix::thread::set_name(c"fourteen-bytes\xc3").unwrap();
            Proc::of(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())
        });
        assert!(named.join().unwrap().is_some());
    }
}
