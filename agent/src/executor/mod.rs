//! The executor: all processes of an agent's attempts, and nothing else. Orders come in by a bounded queue, what
//! happens goes out by another; between them one thread owns everything.
//!
//! | file | what it is for |
//! | --- | --- |
//! | [`attempt`] | the life of an attempt, pure |
//! | `output` | bytes into log blocks, pure |
//! | `shell` | the loop that carries out what the two say |
//! | `spawn`, `sys` | a process without a copy of the parent |
//! | `workspace` | folder and environment |
//! | `tree`, `cgroup`, `children` | ending whatever a job has started |
//! | `poll` | waiting for many descriptors |
//! | [`keeper`] | the executor and the journal in one hand |
//! | [`ipc`] | what the keeper and the link say to each other |
//!
//! Invariants: an attempt's events come in order, [`Event::Ended`] last and after its last block; when it comes, its
//! processes (as far as the host's [`Isolation`] reaches) and its workspace are gone. When the queue of events is
//! full, pipes are not read: jobs are slowed by their own output, and nothing is dropped.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use packrun_protocol::block::Block;
use packrun_protocol::control::ApiUrl;
pub use packrun_protocol::control::Isolation;
use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::job::Definition;
use packrun_protocol::name::{JobKey, Name};
use packrun_protocol::state::{Outcome, Reason};
use packrun_protocol::time::Clock;
use thiserror::Error;
use tokio::sync::mpsc;

pub use self::workspace::HostEnvironment;
use crate::spool::Started;

pub mod attempt;
mod cgroup;
mod children;
pub mod ipc;
pub mod keeper;
mod output;
mod poll;
mod shell;
mod spawn;
mod sys;
mod tree;
mod workspace;

/// How many commands wait for the executor at most.
const COMMANDS_MAX: usize = 256;

/// How many events wait for their reader at most. A block has at most 64 KiB of text.
const EVENTS_MAX: usize = 256;

/// What an attempt is and has to do.
#[derive(Debug, Clone)]
pub struct StartOrder {
    /// The attempt.
    pub attempt: AttemptId,
    /// The pack run that it belongs to.
    pub run: PackRunId,
    /// The pack.
    pub pack: Name,
    /// The pack's version.
    pub version: u32,
    /// The job run's key within the pack run.
    pub key: JobKey,
    /// What the agent is called where that pack run is known.
    pub agent: Name,
    /// Where the coordinator's API is.
    pub api: ApiUrl,
    /// The work.
    pub definition: Arc<Definition>,
}

/// What the executor is told. A command for an attempt that it doesn't have is ignored: the two have crossed.
#[derive(Debug)]
pub enum Command {
    /// Start this; once per attempt.
    Start(StartOrder),
    /// The answer to [`Event::Prepare`].
    Prepared(AttemptId, Result<(), Reason>),
    /// The answer to [`Event::Collect`]: how many artifacts were kept.
    Collected(AttemptId, Result<u32, Reason>),
    /// Stop it: SIGTERM, and SIGKILL after [`attempt::GRACE`].
    Cancel(AttemptId),
    /// Stop it at once; its result is of no use any more.
    Kill(AttemptId),
}

/// What the executor reports.
#[derive(Debug)]
pub enum Event {
    /// The workspace is there and waits for the inputs.
    Prepare {
        /// Whose.
        attempt: AttemptId,
        /// The folder.
        workspace: PathBuf,
    },
    /// The main process executes its program.
    Started(Started),
    /// Output.
    Block(Block),
    /// The processes are gone, and the artifacts can be taken from the workspace.
    Collect {
        /// Whose.
        attempt: AttemptId,
        /// The folder.
        workspace: PathBuf,
    },
    /// A workspace could not be removed, at its end or at the start; the next start of the executor tries again.
    LeftBehind {
        /// The folder.
        workspace: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is over.
    Ended {
        /// Whose.
        attempt: AttemptId,
        /// How.
        outcome: Outcome,
    },
}

/// Where and as what attempts are executed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of the workspaces, absolute, of this executor alone. What is in it at the start is removed,
    /// as far as it can be.
    pub workspaces: PathBuf,
    /// What every attempt's environment has.
    pub host: HostEnvironment,
    /// The isolation to insist on; without one, the best there is.
    pub isolation: Option<Isolation>,
}

/// Why there is no executor.
#[derive(Debug, Error)]
pub enum StartError {
    /// The folder of the workspaces can't be made or read.
    #[error("failed to prepare the workspaces' folder {}: {why}", path.display())]
    Workspaces {
        /// The folder.
        path: PathBuf,
        /// Why; in the text already.
        why: io::Error,
    },
    /// The host refuses what is needed to run anything, or the isolation that was insisted on.
    #[error("failed to set up the execution of processes")]
    Host(#[from] io::Error),
}

/// A running executor. It ends, with all its attempts, when `commands` is dropped; it then still reports their ends.
#[derive(Debug)]
pub struct Executor {
    /// To tell it.
    pub commands: mpsc::Sender<Command>,
    /// To hear from it. When this is dropped, all attempts are killed.
    pub events: mpsc::Receiver<Event>,
    /// What this host can do.
    pub isolation: Isolation,
}

/// Starts an executor on a thread of its own. `clock` stamps all that it reports.
///
/// # Errors
/// When the folder or the host isn't fit for it.
pub fn start(settings: Settings, clock: Clock) -> Result<Executor, StartError> {
    let refused = |why| StartError::Workspaces { path: settings.workspaces.clone(), why };
    let mut maker = DirBuilder::new();
    maker.recursive(true).mode(0o700).create(&settings.workspaces).map_err(refused)?;
    let mut spawner = spawn::Spawner::new()?;
    let forest = tree::Forest::plant(&settings.workspaces, &mut spawner, settings.isolation)?;
    let leftovers = std::fs::read_dir(&settings.workspaces).map_err(refused)?;
    let isolation = forest.isolation();
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (event_queue, events) = mpsc::channel(EVENTS_MAX);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut shell = shell::Shell::new(settings, clock, spawner, forest, event_queue)?;
    drop(guard);
    for workspace in leftovers.filter_map(|entry| Some(entry.ok()?.path())) {
        if let Err(error) = workspace::remove_tree(&workspace) {
            shell.emit(Event::LeftBehind { workspace, error });
        }
    }
    thread::Builder::new()
        .name("executor".to_owned())
        .spawn(move || runtime.block_on(shell.run(command_queue)))?;
    Ok(Executor { commands, events, isolation })
}
