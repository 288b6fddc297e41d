//! The loop round the pure machines: it waits for commands, processes, pipes, the readers of its events and the
//! next deadline, and carries out what the machines say. It owns every attempt and shares nothing.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use packrun_protocol::block::Block;
use packrun_protocol::id::AttemptId;
use packrun_protocol::state::Reason;
use packrun_protocol::time::{Clock, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::attempt::{Action, Attempt, Input};
use super::children::{self, Known};
use super::output::Cutter;
use super::poll::Poll;
use super::spawn::Spawner;
use super::tree::{Forest, Tree};
use super::workspace::Workspace;
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

mod steps;

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
    Pipes(Vec<u64>),
    Processes(Vec<u64>),
    Removed((u64, PathBuf, io::Result<()>)),
    Room,
    Unheard,
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

    /// Runs until the queue of commands or that of events is closed and all attempts have ended.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let (mut open, mut heard) = (true, true);
        while open || !self.attempts.is_empty() || !self.outbox.is_empty() {
            let deadline =
                self.deadlines.first().map(|(time, _)| *time).into_iter().chain(self.sweep_at).min();
            // Time first: pipes may be ready at every turn. Ticks alone come to an end, so they starve nobody.
            if deadline.is_some_and(|deadline| deadline <= self.clock.now()) {
                self.tick();
                continue;
            }
            let wake = deadline.map(|deadline| self.clock.instant(deadline).into());
            // Nothing is lost when one of these is dropped for another.
            let turn = tokio::select! {
                biased;
                command = commands.recv(), if open => Turn::Command(command),
                Ok(tokens) = self.processes.ready() => Turn::Processes(tokens),
                () = self.events.closed(), if heard => Turn::Unheard,
                Ok(_) = self.events.reserve(), if !self.outbox.is_empty() => Turn::Room,
                Some(Ok(removal)) = self.removals.join_next() => Turn::Removed(removal),
                Ok(tokens) = self.pipes.ready(), if self.outbox.len() < OUTBOX_MAX => Turn::Pipes(tokens),
                () = sleep_until(wake) => continue,
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
                Turn::Room => self.drain_outbox(),
                Turn::Unheard => {
                    (open, heard) = (false, false);
                    commands.close();
                    self.outbox.clear();
                    self.kill_all();
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
        let cutter = Cutter::new(order.attempt, order.definition.log_bytes_max);
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
                self.unwatch(key);
                None
            }
            Action::CloseOutput => self.close_output(key),
            Action::Clean => self.clean(key),
            Action::End(outcome) => {
                self.unwatch(key);
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

    /// Hears of the attempt's tree no more: its cgroup outlives it, and may soon be another's.
    fn unwatch(&self, key: u64) {
        let tree = self.attempts.get(&key).and_then(|running| running.tree.as_ref());
        tree.into_iter().flat_map(Tree::watched).for_each(|file| self.processes.remove(file));
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

    pub(super) fn emit(&mut self, event: Event) {
        self.outbox.push_back(event);
        self.drain_outbox();
    }

    /// Hands over what there is room for; all of it is dropped when nobody hears it.
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
