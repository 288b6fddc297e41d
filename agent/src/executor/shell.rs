//! The loop round the pure machines: it waits for commands, processes, pipes, the readers of its events and the
//! next deadline, and carries out what the machines say. It owns every attempt and shares nothing.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use packrun_protocol::block::{Block, LogStream};
use packrun_protocol::id::AttemptId;
use packrun_protocol::state::{ExitStatus, Reason};
use packrun_protocol::time::{Clock, Timestamp};
use rustix::process::{WaitId, WaitIdOptions};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::attempt::{Action, Attempt, Input};
use super::children::{self, Known};
use super::output::Cutter;
use super::poll::Poll;
use super::spawn::{Launch, Spawner};
use super::tree::{Forest, Remains, Tree};
use super::workspace::{Workspace, remove_tree};
use super::{Command, Event, Settings, StartOrder};

/// From how many events that wait on, pipes are read no more. Each attempt adds a few beyond it at its end.
const OUTBOX_MAX: usize = 64;

/// Bytes of one read: a pipe holds as much.
const READ_BYTES: usize = 64 << 10;

/// How often orphans are looked for that exited while their job goes on.
const SWEEP: Duration = Duration::from_secs(1);

/// What a token of [`Poll`] says besides the attempt's key.
const EXITED: u64 = 0;
const TREE: u64 = 1;
const STDOUT: u64 = 2;
const STDERR: u64 = 3;

pub(super) struct Shell {
    settings: Settings,
    clock: Clock,
    spawner: Spawner,
    forest: Forest,
    attempts: HashMap<u64, Running>,
    keys: HashMap<AttemptId, u64>,
    next_key: u64,
    deadlines: BTreeSet<(Timestamp, u64)>,
    sweep_at: Option<Timestamp>,
    processes: Poll,
    pipes: Poll,
    removals: JoinSet<(u64, PathBuf, io::Result<()>)>,
    events: mpsc::Sender<Event>,
    outbox: VecDeque<Event>,
    buffer: Vec<u8>,
}

struct Running {
    order: StartOrder,
    machine: Attempt,
    cutter: Cutter,
    workspace: Option<Workspace>,
    tree: Option<Tree>,
    main: Option<Main>,
    pipes: [Option<Pipe>; 2],
    armed: Option<Timestamp>,
}

struct Main {
    pid: u32,
    pidfd: OwnedFd,
}

struct Pipe {
    fd: OwnedFd,
    /// How many bytes are still taken; `None` for all until it is closed.
    left: Option<usize>,
}

/// What the loop woke up for.
enum Turn {
    Command(Option<Command>),
    Deadline,
    Pipes(Vec<u64>),
    Processes(Vec<u64>),
    Removed((u64, PathBuf, io::Result<()>)),
    Room(bool),
}

impl Shell {
    /// Must be called inside a runtime.
    pub(super) fn new(
        settings: Settings,
        clock: Clock,
        spawner: Spawner,
        forest: Forest,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        Ok(Self {
            settings,
            clock,
            spawner,
            forest,
            attempts: HashMap::new(),
            keys: HashMap::new(),
            next_key: 0,
            deadlines: BTreeSet::new(),
            sweep_at: None,
            processes: Poll::new()?,
            pipes: Poll::new()?,
            removals: JoinSet::new(),
            events,
            outbox: VecDeque::new(),
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Runs until the queue of commands is closed and all attempts have ended.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut open = true;
        while open || !self.attempts.is_empty() || !self.outbox.is_empty() {
            let deadline =
                self.deadlines.first().map(|(time, _)| *time).into_iter().chain(self.sweep_at).min();
            let wake = deadline.map(|deadline| self.clock.instant(deadline).into());
            // Nothing is lost when one of these is dropped for another.
            let turn = tokio::select! {
                biased;
                command = commands.recv(), if open => Turn::Command(command),
                Ok(tokens) = self.processes.ready() => Turn::Processes(tokens),
                room = self.events.reserve(), if !self.outbox.is_empty() => Turn::Room(room.is_ok()),
                Some(Ok(removal)) = self.removals.join_next() => Turn::Removed(removal),
                Ok(tokens) = self.pipes.ready(), if self.outbox.len() < OUTBOX_MAX => Turn::Pipes(tokens),
                () = sleep_until(wake) => Turn::Deadline,
            };
            match turn {
                Turn::Command(Some(command)) => self.command(command),
                Turn::Command(None) => {
                    open = false;
                    self.kill_all();
                }
                Turn::Processes(tokens) => {
                    tokens.into_iter().for_each(|token| self.process_ready(token >> 2, token & 3));
                }
                Turn::Room(true) => self.drain_outbox(),
                Turn::Room(false) => {
                    self.outbox.clear();
                    commands.close();
                }
                Turn::Removed((key, workspace, result)) => {
                    if let Err(error) = result {
                        self.emit(Event::LeftBehind { workspace, error });
                    }
                    self.feed(key, Input::Cleaned);
                }
                Turn::Pipes(tokens) => {
                    tokens.into_iter().for_each(|token| self.pipe_ready(token >> 2, token & 3));
                }
                Turn::Deadline => self.tick(),
            }
        }
    }

    fn command(&mut self, command: Command) {
        let (attempt, input) = match command {
            Command::Start(order) => return self.accept(order),
            Command::Prepared(attempt, result) => (attempt, Input::Prepared(result)),
            Command::Collected(attempt, result) => (attempt, Input::Collected(result)),
            Command::Cancel(attempt) => (attempt, Input::Cancel),
            Command::Kill(attempt) => (attempt, Input::Kill),
        };
        if let Some(key) = self.keys.get(&attempt) {
            self.feed(*key, input);
        }
    }

    fn accept(&mut self, order: StartOrder) {
        if self.keys.contains_key(&order.attempt) {
            return;
        }
        let definition = &order.definition;
        let (has_inputs, has_artifacts) = (!definition.inputs.is_empty(), !definition.artifacts.is_empty());
        let (machine, first) = Attempt::new(definition.timeout, has_inputs, has_artifacts);
        let key = self.next_key;
        self.next_key += 1;
        self.keys.insert(order.attempt, key);
        let name = format!("{}-{}", order.attempt.job_run, order.attempt.number);
        let workspace = Workspace::create(&self.settings.workspaces, &name);
        let failed = workspace.as_ref().err().map(|error| {
            Reason::new(&format!("failed to create the workspace: {error}; see the agent's state folder"))
        });
        let cutter = Cutter::new(order.attempt);
        let workspace = workspace.ok();
        let (tree, main, pipes, armed) = (None, None, [None, None], None);
        self.attempts.insert(key, Running { order, machine, cutter, workspace, tree, main, pipes, armed });
        self.sweep_at.get_or_insert(self.clock.now() + SWEEP);
        match failed {
            // The same answer fits whichever of the two was first.
            Some(reason) if has_inputs => self.feed(key, Input::Prepared(Err(reason))),
            Some(reason) => self.feed(key, Input::StartFailed(reason)),
            None => {
                if let Some(input) = self.act(key, first) {
                    self.feed(key, input);
                }
            }
        }
    }

    /// Gives a machine an input, and carries out all that follows from it.
    fn feed(&mut self, key: u64, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.clock.now();
            let Some(running) = self.attempts.get_mut(&key) else { return };
            for action in running.machine.handle(input, now) {
                inputs.extend(self.act(key, action));
            }
        }
        self.arm(key);
    }

    /// Does one thing; gives back what is known of it at once.
    fn act(&mut self, key: u64, action: Action) -> Option<Input> {
        if action == Action::Start {
            let started = self.start(key);
            return Some(started.map_or_else(Input::StartFailed, |()| Input::Started));
        }
        let running = self.attempts.get_mut(&key)?;
        let attempt = running.order.attempt;
        let main = running.main.as_ref().map(|main| main.pid);
        match action {
            Action::Start => None,
            Action::Prepare | Action::Collect => {
                let workspace = running.workspace.as_ref()?.path().to_owned();
                self.emit(match action {
                    Action::Prepare => Event::Prepare { attempt, workspace },
                    _ => Event::Collect { attempt, workspace },
                });
                None
            }
            Action::Terminate => {
                running.tree.as_ref()?.terminate(main?);
                None
            }
            Action::Kill => {
                running.tree.as_ref()?.kill(main?);
                None
            }
            Action::EndTree => {
                running.tree.as_ref()?.end(main?);
                None
            }
            Action::Reap => {
                let main = running.main.as_ref()?;
                self.processes.remove(&main.pidfd);
                let mut known = Known::lock();
                children::reap(main.pid);
                known.remove(main.pid);
                drop(known);
                self.tree_remains(key)
            }
            Action::Abandon => {
                // The sweep reaps it, should it ever exit.
                Known::lock().remove(main?);
                running.main = None;
                None
            }
            Action::CloseOutput => self.close_output(key),
            Action::Clean => self.clean(key),
            Action::End(outcome) => {
                let running = self.attempts.remove(&key)?;
                self.keys.remove(&attempt);
                if let Some(armed) = running.armed {
                    self.deadlines.remove(&(armed, key));
                }
                if let Some(tree) = running.tree {
                    self.forest.fell(tree);
                }
                if self.attempts.is_empty() {
                    self.sweep();
                }
                self.emit(Event::Ended { attempt, outcome });
                None
            }
        }
    }

    fn start(&mut self, key: u64) -> Result<(), Reason> {
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
        let ticks = children::Proc::of(process.pid).map_or(0, |proc| proc.started);
        if let Err(error) = watched {
            // Without a way to see its end there is no attempt.
            if let (Some(tree), Some(main)) = (&running.tree, &running.main) {
                tree.kill(main.pid);
                Known::lock().remove(main.pid);
            }
            return Err(Reason::new(&format!("failed to watch the process: {error}")));
        }
        self.emit(Event::Started { attempt, pid: process.pid, ticks, at: self.clock.now() });
        Ok(())
    }

    fn process_ready(&mut self, key: u64, kind: u64) {
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
    fn tree_remains(&mut self, key: u64) -> Option<Input> {
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

    fn pipe_ready(&mut self, key: u64, kind: u64) {
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
    fn close_output(&mut self, key: u64) -> Option<Input> {
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

    fn clean(&mut self, key: u64) -> Option<Input> {
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

    fn tick(&mut self) {
        let now = self.clock.now();
        while let Some((_, key)) = self.deadlines.first().filter(|(time, _)| *time <= now).copied() {
            self.deadlines.pop_first();
            let Some(running) = self.attempts.get_mut(&key) else { continue };
            running.armed = None;
            let mut blocks = Vec::new();
            running.cutter.tick(now, &mut blocks);
            self.emit_blocks(blocks);
            self.feed(key, Input::Tick);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        let left = self.forest.sweep();
        self.sweep_at = (left || !self.attempts.is_empty()).then(|| self.clock.now() + SWEEP);
    }

    fn kill_all(&mut self) {
        for key in self.attempts.keys().copied().collect::<Vec<_>>() {
            self.feed(key, Input::Kill);
        }
    }

    /// Keeps the attempt's place among the deadlines up to date.
    fn arm(&mut self, key: u64) {
        let Some(running) = self.attempts.get_mut(&key) else { return };
        let next = running.machine.deadline().into_iter().chain(running.cutter.next_deadline()).min();
        if next != running.armed {
            running.armed.map(|armed| self.deadlines.remove(&(armed, key)));
            self.deadlines.extend(next.map(|next| (next, key)));
            running.armed = next;
        }
    }

    fn emit_blocks(&mut self, blocks: Vec<Block>) {
        for block in blocks {
            self.emit(Event::Block(block));
        }
    }

    fn emit(&mut self, event: Event) {
        self.outbox.push_back(event);
        self.drain_outbox();
    }

    fn drain_outbox(&mut self) {
        while let Some(event) = self.outbox.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
                return self.outbox.push_front(event);
            }
        }
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
