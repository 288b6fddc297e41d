//! An executor in a folder of its own, and what came of one job.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use packrun_agent::executor::{
    self, Command, Event, Executor, HostEnvironment, Isolation, Settings, StartError, StartOrder,
};
use packrun_protocol::block::LogStream;
use packrun_protocol::id::{AttemptId, AttemptNumber, JobRunId, PackRunId};
use packrun_protocol::job::{Action, Definition};
use packrun_protocol::state::Outcome;
use packrun_protocol::time::Clock;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// How long anything may take that is not bound to be quick, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// How a host says that it has no cgroups, or none that we may use.
const REFUSALS: [ErrorKind; 4] =
    [ErrorKind::Unsupported, ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem];

pub(crate) struct Harness {
    pub(crate) executor: Executor,
    pub(crate) folder: tempfile::TempDir,
}

#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
}

impl Ended {
    pub(crate) fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.out).lines().map(str::to_owned).collect()
    }

    pub(crate) fn reason(&self) -> String {
        self.outcome.reason.as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

pub(crate) fn script(text: &str) -> Definition {
    definition(Action::Script(text.to_owned()))
}

pub(crate) fn command(words: &[&str]) -> Definition {
    definition(Action::Command(words.iter().map(|word| (*word).to_owned()).collect()))
}

fn definition(action: Action) -> Definition {
    Definition {
        action,
        env: vec![],
        workdir: None,
        timeout: None,
        artifacts: vec![],
        inputs: vec![],
        log_bytes_max: packrun_protocol::limit::LOG_BYTES_MAX,
    }
}

pub(crate) fn order(definition: Definition) -> StartOrder {
    StartOrder {
        attempt: AttemptId { job_run: JobRunId::generate(), number: AttemptNumber::FIRST },
        run: PackRunId::generate(),
        pack: "demo".parse().unwrap(),
        version: 3,
        key: "test[shard=1]".parse().unwrap(),
        agent: "host-1".parse().unwrap(),
        api: "http://127.0.0.1:7080".try_into().unwrap(),
        definition: Arc::new(definition),
    }
}

impl Harness {
    /// `None`, with the reason printed, where the host has no such isolation.
    pub(crate) fn start() -> Option<Self> {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    /// The same in a folder where something may have been left.
    pub(crate) fn start_in(folder: tempfile::TempDir) -> Option<Self> {
        let host = HostEnvironment {
            path: "/usr/local/bin:/usr/bin:/bin".to_owned(),
            lang: Some("C.UTF-8".to_owned()),
            tz: None,
        };
        let workspaces = folder.path().join("workspaces");
        let settings = Settings { workspaces, host, isolation: Some(crate::ISOLATION) };
        match executor::start(settings, Clock::start()) {
            Ok(executor) => Some(Self { executor, folder }),
            Err(StartError::Host(error))
                if crate::ISOLATION == Isolation::Cgroup && REFUSALS.contains(&error.kind()) =>
            {
                println!("skipped: this host has no cgroups for us: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) async fn send(&self, command: Command) {
        self.executor.commands.send(command).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.executor.events.recv()).await;
        event.expect("something happens in time").expect("the executor lives")
    }

    pub(crate) async fn begin(&mut self, definition: Definition) -> AttemptId {
        let order = order(definition);
        let attempt = order.attempt;
        self.send(Command::Start(order)).await;
        attempt
    }

    /// All until the end of the one attempt that runs; `on_line` sees each entry of stdout.
    pub(crate) async fn end_with(&mut self, mut on_line: impl AsyncFnMut(&Executor, &[u8])) -> Ended {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.next().await {
                Event::Block(block) => {
                    for entry in block.entries() {
                        let stream = if entry.stream == LogStream::Stdout { &mut out } else { &mut err };
                        stream.extend_from_slice(&entry.text);
                        if !entry.continued {
                            stream.push(b'\n');
                        }
                        if entry.stream == LogStream::Stdout {
                            on_line(&self.executor, &entry.text).await;
                        }
                    }
                }
                Event::Ended { outcome, .. } => return Ended { outcome, out, err },
                Event::LeftBehind { workspace, error } => panic!("{} stays: {error}", workspace.display()),
                _ => {}
            }
        }
    }

    pub(crate) async fn end(&mut self) -> Ended {
        self.end_with(async |_, _| {}).await
    }

    pub(crate) async fn run(&mut self, definition: Definition) -> Ended {
        self.begin(definition).await;
        self.end().await
    }

    /// How many cgroups its attempts have.
    pub(crate) fn cgroups(&self) -> usize {
        let own = own_cgroup();
        assert!(own.is_some() || self.executor.isolation != Isolation::Cgroup);
        let folder = own.and_then(|own| std::fs::read_dir(own.join(cgroup_name(&self.folder))).ok());
        folder.map_or(0, |folder| {
            folder.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
        })
    }

    /// Ends the executor and waits until nothing of it is left.
    pub(crate) fn stop(&mut self) {
        self.executor.commands = tokio::sync::mpsc::channel(1).0;
        let events = &mut self.executor.events;
        std::thread::scope(|scope| scope.spawn(|| while events.blocking_recv().is_some() {}).join()).unwrap();
    }
}

/// The cgroup of this process, where the host has cgroups of version 2.
pub(crate) fn own_cgroup() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let point = mounts.lines().find_map(|line| line.split_once(" cgroup2 ")?.0.split(' ').nth(1))?;
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(point).join(own))
}

/// What the cgroups of an executor in `folder` are in.
pub(crate) fn cgroup_name(folder: &tempfile::TempDir) -> String {
    let path = std::fs::canonicalize(folder.path().join("workspaces")).unwrap();
    let (meta, path) = (path.metadata().unwrap(), crc32c::crc32c(path.as_os_str().as_encoded_bytes()));
    format!("packrun-{:x}-{:x}-{path:08x}", meta.dev(), meta.ino())
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The numbers in a file, one a line.
pub(crate) fn pids(path: &Path) -> Vec<i32> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| line.trim().parse().unwrap()).collect()
}

pub(crate) fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

/// Waits until a process has exited.
pub(crate) fn await_death(pid: i32) {
    let Ok(pidfd) = rustix::process::pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else {
        return;
    };
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as _, tv_nsec: 0 };
    let ready = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "process {pid} still lives");
}

/// The host's own measure: one process after the other by what the C library has for it, which is what
/// the standard library calls here.
pub(crate) fn bare_spawns_per_second(count: u32) -> f64 {
    let started = std::time::Instant::now();
    for _ in 0..count {
        assert!(std::process::Command::new("/bin/true").status().unwrap().success());
    }
    f64::from(count) / started.elapsed().as_secs_f64()
}
