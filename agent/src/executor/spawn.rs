//! Turns an order into a process: what to execute, where to look for it, and precise words for what went wrong.
//! The process has its own session, a clean set of signals, the attempt's environment and two pipes.
//!
//! A limit: the executor's one thread waits until the program is executed. Where that hangs (a working directory or
//! program on a network mount whose server is gone), all attempts wait with it.

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use packrun_protocol::job::Action;
use rustix::pipe::{PipeFlags, pipe_with};
use thiserror::Error;

use super::children::Known;
use super::sys::{self, CloneError, Image, Stack, Step};

/// Longest script that is passed as an argument, in bytes: Linux takes 128 KiB per argument. A longer one goes
/// through a file.
pub(super) const SCRIPT_ARGUMENT_BYTES_MAX: usize = 100 << 10;

const SHELL: &str = "/bin/sh";

/// Why an attempt's process could not be started.
#[derive(Debug, Error)]
pub(super) enum SpawnError {
    /// The kernel refused a process or a pipe.
    #[error("failed to create a process: {0}; the host may be at its limit of processes, files or memory")]
    Process(#[source] io::Error),
    /// The folder to start in is not one.
    #[error("failed to enter the working directory {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program was not found along `PATH`.
    #[error("program `{program}` was not found in PATH ({path})")]
    NotFound {
        /// As the job names it.
        program: String,
        /// The attempt's `PATH`.
        path: String,
    },
    /// The program is there or named by path, and could not be executed.
    #[error("failed to execute `{program}`: {source}{}", hint(source))]
    Execute {
        /// As the job names it.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A command list without a program.
    #[error("the command is empty; it takes a program and its arguments")]
    Empty,
    /// A variable's name that none can have.
    #[error("`{name}` is no name of a variable; it may not be empty or have `=` in it")]
    Name {
        /// The name.
        name: String,
    },
    /// Text that no process can be given.
    #[error("{what} contains a NUL byte, which no process can be given")]
    Nul {
        /// Which text.
        what: String,
    },
    /// The script is too long for an argument, and its file could not be written.
    #[error("failed to write the script to {}: {source}", path.display())]
    Script {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "; it, or the interpreter that its first line names, is missing",
        Some(libc::EACCES) => "; it is no file, or may not be executed",
        Some(libc::ENOEXEC) => "; it is no program for this host, or a script without `#!`",
        Some(libc::E2BIG) => "; its arguments and environment are too long together",
        _ => "",
    }
}

/// What to start, and where.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    /// What to execute.
    pub(super) action: &'a Action,
    /// The folder to start in.
    pub(super) folder: &'a Path,
    /// Where a long script is put: the workspace's own folder of packrun.
    pub(super) private: &'a Path,
    /// The whole environment, as `NAME=value`.
    pub(super) environment: &'a [CString],
    /// The `PATH` of that environment.
    pub(super) path: &'a str,
}

/// A process that executes its program.
#[derive(Debug)]
pub(super) struct Process {
    /// Its number, which is also that of its session and process group.
    pub(super) pid: u32,
    /// Readable once it has exited.
    pub(super) pidfd: OwnedFd,
    /// The read end of its standard output, non-blocking.
    pub(super) stdout: OwnedFd,
    /// The read end of its standard error, non-blocking.
    pub(super) stderr: OwnedFd,
}

/// Makes processes, one at a time.
pub(super) struct Spawner {
    stack: Stack,
    null: File,
}

impl std::fmt::Debug for Spawner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spawner").finish_non_exhaustive()
    }
}

impl Spawner {
    /// A spawner.
    ///
    /// # Errors
    /// When `/dev/null` can't be opened.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { stack: Stack::new(), null: File::open("/dev/null")? })
    }

    /// Starts what `launch` says, inside `cgroup` if there is one. Blocks until the program is executed.
    ///
    /// # Errors
    /// When there is no process: nothing of it is left.
    pub(super) fn spawn(
        &mut self,
        launch: &Launch<'_>,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Process, SpawnError> {
        let (program, arguments) = command(launch)?;
        let programs = candidates(&program, launch.path)?;
        let folder = c_string(launch.folder.as_os_str().as_encoded_bytes().to_vec(), "the workspace's path")?;
        let (stdout, stdout_write) = pipe()?;
        let (stderr, stderr_write) = pipe()?;
        let image = Image {
            programs: &programs,
            arguments: &arguments,
            environment: launch.environment,
            folder: &folder,
            stdio: [self.null.as_fd(), stdout_write.as_fd(), stderr_write.as_fd()],
        };
        match sys::spawn(&mut self.stack, &image, cgroup) {
            Ok(child) => Ok(Process { pid: child.pid, pidfd: child.pidfd, stdout, stderr }),
            Err(CloneError::Clone(error) | CloneError::Child(Step::Session | Step::Stdio, error)) => {
                Err(SpawnError::Process(error))
            }
            Err(CloneError::Child(Step::Folder, source)) => {
                Err(SpawnError::Folder { path: launch.folder.to_owned(), source })
            }
            Err(CloneError::Child(Step::Program, source)) => {
                if !program.contains('/') && source.raw_os_error() == Some(libc::ENOENT) {
                    return Err(SpawnError::NotFound { program, path: launch.path.to_owned() });
                }
                Err(SpawnError::Execute { program, source })
            }
        }
    }

    /// Whether the kernel lets us create a process inside `cgroup`. Nothing is executed for it.
    pub(super) fn can_enter(&mut self, cgroup: BorrowedFd<'_>) -> bool {
        let null = self.null.as_fd();
        // Executing a folder always fails, and fails only once the process is there.
        let root = c"/".to_owned();
        let image = Image {
            programs: std::slice::from_ref(&root),
            arguments: &[],
            environment: &[],
            folder: &root,
            stdio: [null; 3],
        };
        // Nobody may take the child for an orphan, and reap it, before its failure was read.
        let _known = Known::lock();
        matches!(sys::spawn(&mut self.stack, &image, Some(cgroup)), Err(CloneError::Child(Step::Program, _)))
    }
}

/// The program and its whole argument list.
fn command(launch: &Launch<'_>) -> Result<(String, Vec<CString>), SpawnError> {
    let arguments = match launch.action {
        Action::Command(command) => command.clone(),
        Action::Script(script) if script.len() <= SCRIPT_ARGUMENT_BYTES_MAX => {
            [SHELL, "-eu", "-c", script].map(str::to_owned).to_vec()
        }
        Action::Script(script) => {
            let path = launch.private.join("script");
            std::fs::write(&path, script)
                .map_err(|source| SpawnError::Script { path: path.clone(), source })?;
            [SHELL, "-eu", &path.to_string_lossy()].map(str::to_owned).to_vec()
        }
    };
    let program = arguments.first().filter(|program| !program.is_empty()).ok_or(SpawnError::Empty)?.clone();
    let arguments = arguments
        .into_iter()
        .map(|argument| c_string(argument.into_bytes(), "the script or an argument"))
        .collect::<Result<_, _>>()?;
    Ok((program, arguments))
}

/// Where a program may lie: a name without `/` is looked for along `path`, where nothing between colons means
/// the working directory (POSIX, 8.3).
fn candidates(program: &str, path: &str) -> Result<Vec<CString>, SpawnError> {
    if program.contains('/') {
        return Ok(vec![c_string(program.as_bytes().to_vec(), "the program's name")?]);
    }
    path.split(':')
        .map(|folder| {
            let folder = if folder.is_empty() { "." } else { folder };
            c_string(format!("{folder}/{program}").into_bytes(), "the program's name or PATH")
        })
        .collect()
}

pub(super) fn c_string(bytes: Vec<u8>, what: &str) -> Result<CString, SpawnError> {
    CString::new(bytes).map_err(|_: NulError| SpawnError::Nul { what: what.to_owned() })
}

fn pipe() -> Result<(OwnedFd, OwnedFd), SpawnError> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| SpawnError::Process(error.into()))?;
    rustix::io::ioctl_fionbio(&read, true).map_err(|error| SpawnError::Process(error.into()))?;
    Ok((read, write))
}
