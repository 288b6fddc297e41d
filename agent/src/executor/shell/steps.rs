//! What the shell does for one attempt: starting it, reading it, seeing it end, removing what it left.

use std::os::fd::AsFd;

use packrun_protocol::block::LogStream;
use packrun_protocol::state::{ExitStatus, Reason};
use rustix::process::{WaitId, WaitIdOptions};

use super::{EXITED, Main, Pipe, READ_BYTES, STDERR, STDOUT, Shell, TREE};
use crate::executor::Event;
use crate::executor::attempt::Input;
use crate::executor::children::{self, Known};
use crate::executor::spawn::Launch;
use crate::executor::tree::Remains;
use crate::executor::workspace::remove_tree;
use crate::spool::Started;

impl Shell {
    pub(super) fn start(&mut self, key: u64) -> Result<(), Reason> {
        let words = |error: &dyn std::fmt::Display| Reason::new(&error.to_string());
        let gone = || Reason::new("the workspace is gone");
        let running = self.attempts.get_mut(&key).ok_or_else(gone)?;
        let workspace = running.workspace.as_ref().ok_or_else(gone)?;
        let environment =
            workspace.environment(&running.order, &self.settings.host).map_err(|error| words(&error))?;
        let tree = self
            .forest
            .tree(workspace.path())
            .map_err(|error| Reason::new(&format!("failed to create a cgroup: {error}")))?;
        let definition = &running.order.definition;
        let folder = definition.workdir.as_ref().map(|folder| workspace.path().join(folder.as_path()));
        let private = workspace.private();
        let launch = Launch {
            action: &definition.action,
            folder: folder.as_deref().unwrap_or(workspace.path()),
            private: &private,
            environment: &environment.variables,
            path: &environment.path,
        };
        let mut known = Known::lock();
        let spawned = self.spawner.spawn(&launch, tree.cgroup());
        let process = match spawned {
            Ok(process) => process,
            Err(error) => {
                drop(known);
                self.forest.fell(tree);
                return Err(words(&error));
            }
        };
        known.insert(process.pid);
        drop(known);
        running.tree = Some(tree);
        let watched = self
            .processes
            .add(&process.pidfd, key << 2 | EXITED)
            .and_then(|()| self.pipes.add(&process.stdout, key << 2 | STDOUT))
            .and_then(|()| self.pipes.add(&process.stderr, key << 2 | STDERR));
        let attempt = running.order.attempt;
        running.main = Some(Main { pid: process.pid, pidfd: process.pidfd });
        running.pipes = [process.stdout, process.stderr].map(|fd| Some(Pipe { fd, left: None }));
        let start_ticks = children::Proc::of(process.pid).map_or(0, |proc| proc.started);
        if let Err(error) = watched {
            // Without a way to see its end there is no attempt.
            if let (Some(tree), Some(main)) = (&running.tree, &running.main) {
                tree.kill(main.pid);
                Known::lock().remove(main.pid);
            }
            return Err(Reason::new(&format!("failed to watch the process: {error}")));
        }
        self.emit(Event::Started(Started { attempt, pid: process.pid, start_ticks, at: self.clock.now() }));
        Ok(())
    }

    pub(super) fn process_ready(&mut self, key: u64, kind: u64) {
        if kind == TREE {
            if let Some(input) = self.tree_remains(key) {
                self.feed(key, input);
            }
            return;
        }
        let Some(main) = self.attempts.get(&key).and_then(|running| running.main.as_ref()) else { return };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let Ok(Some(status)) = rustix::process::waitid(WaitId::PidFd(main.pidfd.as_fd()), options) else {
            return;
        };
        let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
        let status = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(byte(code)),
            (None, signal) => ExitStatus::Signal(byte(signal.unwrap_or_default())),
        };
        self.feed(key, Input::Exited(status));
    }

    /// Asks what is left of a tree whose main process is reaped, and sees to it that it is asked again.
    pub(super) fn tree_remains(&mut self, key: u64) -> Option<Input> {
        let running = self.attempts.get_mut(&key)?;
        let main = running.main.as_ref()?.pid;
        let watched = match running.tree.as_mut()?.remains(main) {
            Remains::Nothing => return Some(Input::TreeEnded),
            Remains::Cgroup(events) => self.processes.add_urgent(events, key << 2 | TREE),
            Remains::Strays(strays) => {
                strays.into_iter().try_for_each(|stray| self.processes.add(stray, key << 2 | TREE))
            }
        };
        // Without a way to see them go they are not waited for.
        watched.err().map(|_| Input::TreeEnded)
    }

    pub(super) fn pipe_ready(&mut self, key: u64, kind: u64) {
        let Some(running) = self.attempts.get_mut(&key) else { return };
        let (index, stream) = if kind == STDOUT { (0, LogStream::Stdout) } else { (1, LogStream::Stderr) };
        let Some(pipe) = &mut running.pipes[index] else { return };
        let most = pipe.left.unwrap_or(READ_BYTES).min(READ_BYTES);
        let read = rustix::io::read(&pipe.fd, &mut self.buffer[..most]);
        let now = self.clock.now();
        let mut blocks = Vec::new();
        let closed = match read {
            Ok(0) => true,
            Ok(length) => {
                running.cutter.feed(now, stream, &self.buffer[..length], &mut blocks);
                running.cutter.tick(now, &mut blocks);
                pipe.left = pipe.left.map(|left| left.saturating_sub(length));
                pipe.left == Some(0)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => pipe.left.is_some(),
            Err(_) => true,
        };
        if closed {
            running.pipes[index] = None;
        }
        self.emit_blocks(blocks);
        match closed.then(|| self.output_ended(key)).flatten() {
            Some(input) => self.feed(key, input),
            None => self.arm(key),
        }
    }

    /// Limits both pipes to what is in them now. Jobs may be slowed down at this moment: what they wrote before
    /// they ended is still read, however long the reader of the events takes.
    pub(super) fn close_output(&mut self, key: u64) -> Option<Input> {
        let running = self.attempts.get_mut(&key)?;
        for pipe in &mut running.pipes {
            let waiting =
                pipe.as_ref().and_then(|pipe| rustix::io::ioctl_fionread(&pipe.fd).ok()).unwrap_or(0);
            match pipe {
                Some(open) if waiting > 0 => open.left = usize::try_from(waiting).ok(),
                pipe => *pipe = None,
            }
        }
        self.output_ended(key)
    }

    fn output_ended(&mut self, key: u64) -> Option<Input> {
        let running =
            self.attempts.get_mut(&key).filter(|running| running.pipes.iter().all(Option::is_none))?;
        let mut blocks = Vec::new();
        running.cutter.end(self.clock.now(), &mut blocks);
        let entries = running.cutter.entries();
        self.emit_blocks(blocks);
        Some(Input::OutputEnded { entries })
    }

    pub(super) fn clean(&mut self, key: u64) -> Option<Input> {
        let running = self.attempts.get_mut(&key)?;
        let Some(workspace) = running.workspace.take().filter(|workspace| !workspace.remove_if_empty())
        else {
            return Some(Input::Cleaned);
        };
        // A job may leave gigabytes, and all others' output would wait for their removal here.
        self.removals.spawn_blocking(move || {
            let result = remove_tree(workspace.path());
            (key, workspace.path().to_owned(), result)
        });
        None
    }
}
