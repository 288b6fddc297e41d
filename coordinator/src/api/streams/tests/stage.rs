//! A coordinator without a fleet, and an agent that the test plays.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::block::{BlockBuilder, LogStream};
use packrun_protocol::control::{Assignment, HeldAttempt, HeldPhase};
use packrun_protocol::id::{AgentId, AttemptId, Digest, JobRunId, PackRunId};
use packrun_protocol::job::{Action, Definition, Requirement};
use packrun_protocol::name::{JobKey, Labels};
use packrun_protocol::state::{Outcome, PackRunState, Verdict};
use packrun_protocol::stream::{Content, FileMode};
use packrun_protocol::time::{Clock, ClockOffset, Timestamp};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::App;
use crate::api::token::ApiToken;
use crate::artifacts::{ArtifactStore, Begin, UploadId};
use crate::core::change::{Format, Grant, Role};
use crate::core::event::{Arrival, Artifact, Capacity, Command, LogIndex, NewRun, Report};
use crate::core::outcome::Reply;
use crate::core::plan::{Plan, PlannedJob, PlannedRun, Retry, When};
use crate::core::tests::make::enrolment;
use crate::core::{Config, Core};
use crate::engine::{self, Messages, Session, ToSession};
use crate::logs::{LogConfig, LogStore, encode_extents};
use crate::store::Store;

/// A coordinator on a folder of its own.
pub(super) struct Stage {
    folder: TempDir,
    pub(super) app: App,
    pub(super) url: String,
    pub(super) token: ApiToken,
    server: JoinHandle<std::io::Result<()>>,
}

impl Stage {
    pub(super) async fn new() -> Self {
        let token = ApiToken::generate().unwrap();
        let stage = Self::open(tempfile::tempdir().unwrap(), token).await;
        let create = Command::CreateToken {
            id: stage.token.id(),
            secret: stage.token.digest(),
            grant: Grant::Api(Role::Viewer),
            ttl: None,
        };
        stage.app.engine.command(create).await.unwrap();
        stage
    }

    async fn open(folder: TempDir, token: ApiToken) -> Self {
        // Only the first has an effect.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let path = folder.path().join("state.redb");
        let store = loop {
            match Store::open(&path) {
                Ok(store) => break store,
                // The last connections to the coordinator before this one still have it.
                Err(error) if error.to_string().contains("another coordinator") => {
                    tokio::task::yield_now().await
                }
                Err(error) => panic!("{error}"),
            }
        };
        let acquired = store.acquire().await.unwrap();
        let (clock, rows) = (Clock::start(), store.load().await.unwrap());
        let (core, quarantined) = Core::restore(Config::default(), acquired.0.epoch(), clock.now(), rows);
        assert_eq!(quarantined, []);
        let reader = store.snapshot().unwrap();
        let is_live = |run: PackRunId| {
            let progress = reader.progress(run).unwrap();
            progress.is_some_and(|progress| !progress.state.is_terminal())
                || !reader.open_logs(run).unwrap().is_empty()
        };
        let config = LogConfig { segment_bytes: 1 << 12, queue_blocks: 16 };
        let (logs, recovery) = LogStore::open(&folder.path().join("logs"), config, &is_live).unwrap();
        assert_eq!((recovery.cut, &*recovery.damage), (None, &[][..]));
        let app = App {
            engine: engine::start(core, store, acquired, clock),
            logs,
            artifacts: ArtifactStore::open(&folder.path().join("artifacts"), 1 << 30).unwrap(),
            clock,
            started_at: clock.now(),
            limits: crate::api::Limits::default(),
            ca_fingerprint: Digest::of(b"a certificate"),
            stop: CancellationToken::new(),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(crate::api::serve(listener, None, app.clone()));
        Self { folder, app, url, token, server }
    }

    /// The coordinator ends, and another begins on its folder.
    pub(super) async fn restart(self) -> Self {
        let Self { folder, app, token, server, .. } = self;
        app.stop.cancel();
        app.engine.stop().await;
        app.logs.close().await;
        drop(app);
        server.await.unwrap().unwrap();
        Self::open(folder, token).await
    }

    /// Starts a pack run of these jobs: name, what it needs, shards, attempts.
    pub(super) async fn run(&self, jobs: &[(&str, &[u32], usize, u32)]) -> PackRunId {
        let content: Arc<[u8]> = b"{}"[..].into();
        let register = Command::RegisterPack {
            name: "pack".parse().unwrap(),
            digest: Digest::of(&content),
            source: content.clone(),
            format: Format::Json,
            canonical: content,
        };
        self.app.engine.command(register).await.unwrap();
        self.create(plan(jobs), BTreeMap::new()).await
    }

    /// A run of one job, which takes over the success of an earlier job run.
    pub(super) async fn reuse(&self, job: &str, earlier: JobRunId) -> PackRunId {
        let plan = plan(&[(job, &[], 1, 1), ("rest", &[], 1, 1)]);
        let reused = BTreeMap::from([(plan.jobs[0].runs[0].id, earlier)]);
        self.create(plan, reused).await
    }

    async fn create(&self, plan: Plan, reused: BTreeMap<JobRunId, JobRunId>) -> PackRunId {
        let id = PackRunId::generate();
        let run = NewRun {
            id,
            pack: "pack".parse().unwrap(),
            version: 1,
            params: Arc::default(),
            plan: Arc::new(plan),
            idempotency: None,
            retry_of: None,
            reused,
        };
        let reply = self.app.engine.command(Command::CreateRun(Box::new(run))).await.unwrap();
        assert_eq!(reply, Reply::Run { id, created: true });
        id
    }

    /// What a fleet does when a run is over and its logs are kept.
    pub(super) async fn close(&self, run: PackRunId) {
        let reader = self.app.engine.read().unwrap();
        assert!(reader.progress(run).unwrap().unwrap().state.is_terminal());
        for attempt in reader.open_logs(run).unwrap() {
            self.keep(run, attempt).await;
        }
        self.app.logs.close_run(run);
    }

    /// What a fleet does when an attempt was given up.
    pub(super) async fn keep(&self, run: PackRunId, attempt: AttemptId) {
        let extents = self.app.logs.seal(attempt).await.unwrap_or_default();
        let log = LogIndex(encode_extents(&extents).into());
        self.app.engine.command(Command::KeepLog { pack_run: run, attempt, log }).await.unwrap();
    }

    pub(super) fn state(&self, run: PackRunId) -> PackRunState {
        self.app.engine.read().unwrap().progress(run).unwrap().unwrap().state
    }

    pub(super) async fn agent(&self, name: &str, slots: u32) -> Agent {
        let id = AgentId::generate();
        for command in enrolment(id, name.parse().unwrap()) {
            self.app.engine.command(command).await.unwrap();
        }
        self.connect(id, slots, Vec::new()).await
    }

    async fn connect(&self, id: AgentId, slots: u32, running: Vec<AttemptId>) -> Agent {
        let labels = Labels::default();
        let capacity =
            Capacity { slots, cpu_millis: 64_000, memory_bytes: 1 << 36, labels, ..Capacity::default() };
        let phase = HeldPhase::Running(Timestamp::default());
        let held = running.iter().map(|attempt| HeldAttempt { attempt: *attempt, phase }).collect();
        let arrival = Arrival { capacity, draining: false, held };
        let (session, mut messages) = self.app.engine.connect(id, arrival).await.unwrap();
        assert!(matches!(messages.recv().await, Some(ToSession::Welcome { .. })));
        Agent { app: self.app.clone(), id, slots, session, messages, running }
    }

    /// The same agent at a coordinator that was restarted.
    pub(super) async fn reconnect(&self, agent: Parted) -> Agent {
        self.connect(agent.0, agent.1, agent.2).await
    }
}

/// Waits until the end of a run is committed.
pub(super) async fn wait_for_end(stage: &Stage, run: PackRunId) {
    let mut follower = stage.app.engine.follow();
    while !stage.state(run).is_terminal() {
        follower.recv().await.unwrap();
    }
}

fn plan(jobs: &[(&str, &[u32], usize, u32)]) -> Plan {
    let definition = Arc::new(Definition {
        action: Action::Script("true".into()),
        env: Vec::new(),
        workdir: None,
        timeout: None,
        artifacts: Vec::new(),
        inputs: Vec::new(),
        log_bytes_max: packrun_protocol::limit::LOG_BYTES_MAX,
    });
    let job = |&(name, needs, width, attempts): &(&str, &[u32], usize, u32)| PlannedJob {
        name: name.parse().unwrap(),
        needs: needs.iter().map(|need| crate::core::plan::JobIndex(*need)).collect(),
        when: When::Always,
        allow_failure: false,
        retry: Retry { attempts, backoff: Duration::ZERO },
        runs: (0..width)
            .map(|shard| PlannedRun {
                id: JobRunId::generate(),
                key: key(name, shard, width),
                requirement: Requirement::default(),
                definition: definition.clone(),
            })
            .collect(),
    };
    Plan { jobs: jobs.iter().map(job).collect() }
}

fn key(name: &str, shard: usize, width: usize) -> JobKey {
    if width == 1 { name.parse().unwrap() } else { format!("{name}[shard={shard}]").parse().unwrap() }
}

/// An agent between two coordinators.
pub(super) struct Parted(AgentId, u32, Vec<AttemptId>);

/// An agent, with the fleet's side of its connection.
pub(super) struct Agent {
    app: App,
    pub(super) id: AgentId,
    slots: u32,
    pub(super) session: Session,
    messages: Messages,
    running: Vec<AttemptId>,
}

impl Agent {
    /// What it is given next to start.
    pub(super) async fn given(&mut self) -> Vec<Assignment> {
        loop {
            match self.messages.recv().await.unwrap() {
                ToSession::Dispatch(assignments) => return assignments,
                ToSession::Settled(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Starts an attempt; its log is open from then on.
    pub(super) async fn start(&mut self, assignment: &Assignment) {
        self.session.record_start(assignment.attempt).await.unwrap();
        self.open(assignment.attempt, assignment.pack_run);
        self.running.push(assignment.attempt);
    }

    /// Opens an attempt's log, again perhaps.
    pub(super) fn open(&self, attempt: AttemptId, run: PackRunId) {
        let offset = ClockOffset { micros: 0, error_micros: 0 };
        self.app.logs.open_attempt(attempt, run, offset, Timestamp::MIN);
    }

    /// One block with these lines.
    pub(super) async fn say(&self, attempt: AttemptId, lines: &[&str]) {
        let next = self.app.logs.progress(attempt).unwrap().borrow().readable;
        let mut block = BlockBuilder::new(attempt, next);
        for line in lines {
            block.push(self.app.clock.now(), LogStream::Stdout, false, line.as_bytes()).unwrap();
        }
        self.app.logs.append(block.finish().unwrap()).await.unwrap();
    }

    /// Leaves a file.
    pub(super) async fn leave(&self, attempt: AttemptId, path: &str, content: &[u8]) {
        let (digest, size) = (Digest::of(content), content.len() as u64);
        let begun = self
            .app
            .artifacts
            .begin(UploadId::new(AgentId::generate(), attempt, path), digest, size)
            .await
            .unwrap();
        if let Begin::Send(mut upload) = begun {
            upload.write(content.to_vec().into()).await.unwrap();
            upload.finish().await.unwrap();
        }
        let content = Content { digest, size, mode: FileMode::of(0o755) };
        let artifact = Artifact { name: None, path: path.parse().unwrap(), content };
        self.session.record_artifact(attempt, artifact).await.unwrap();
    }

    /// Ends an attempt, of which there are so many artifacts.
    pub(super) async fn end(&mut self, attempt: AttemptId, verdict: Verdict, artifacts: u32) {
        let extents = self.app.logs.seal(attempt).await.unwrap();
        let outcome = Outcome {
            verdict,
            exit: None,
            reason: None,
            ended_at: self.app.clock.now(),
            ran_for: Duration::from_secs(1),
            entries: extents.last().map_or(0, crate::logs::Extent::next_seq),
            artifacts,
            invalid_bytes: 0,
        };
        let log = LogIndex(encode_extents(&extents).into());
        self.session.report(Report::Ended { attempt, outcome, log }).await.unwrap();
        self.running.retain(|running| *running != attempt);
        // The engine has taken the report when it has answered this.
        self.app.engine.look(|_| ()).await.unwrap();
    }

    /// The agent as it lives on when the coordinator ends.
    pub(super) fn part(self) -> Parted {
        Parted(self.id, self.slots, self.running)
    }
}
