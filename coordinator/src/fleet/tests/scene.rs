//! A coordinator of its own for each test: store, engine, logs, artifacts and fleet in a folder that goes with it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::id::{AttemptId, Digest, JobRunId, PackRunId, TokenId};
use packrun_protocol::job::{Action, ArtifactRule, Definition, InputRule, Requirement};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::limit;
use packrun_protocol::name::{Labels, Name};
use packrun_protocol::state::{JobRunState, PackRunState};
use packrun_protocol::stream::JoinSecret;
use packrun_protocol::time::Clock;
use tempfile::TempDir;

use super::agent::Agent;
use crate::artifacts::ArtifactStore;
use crate::core::change::{FeedEntry, Format, Grant};
use crate::core::event::{Command, NewRun};
use crate::core::plan::{JobIndex, Plan, PlannedJob, PlannedRun, Retry, When};
use crate::core::{Config, Core};
use crate::engine::{self, Handle};
use crate::fleet::{self, Fleet, Identity, Limits, Settings};
use crate::logs::tests::disk::{FailingDisk, open_failing_for};
use crate::logs::{LogStore, decode_extents};
use crate::store::Store;

/// Nothing here takes this long, also on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Scene {
    pub(super) folder: TempDir,
    pub(super) engine: Handle,
    pub(super) logs: LogStore,
    /// That of the logs.
    pub(super) disk: Arc<FailingDisk>,
    pub(super) artifacts: ArtifactStore,
    pub(super) identity: Identity,
    pub(super) clock: Clock,
    pub(super) fleet: Option<Fleet>,
    pub(super) address: SocketAddr,
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A job of a pack run to start.
pub(super) struct Job {
    pub(super) name: &'static str,
    pub(super) needs: Vec<u32>,
    pub(super) width: usize,
    pub(super) attempts: u32,
    pub(super) script: String,
    pub(super) artifacts: Vec<ArtifactRule>,
    pub(super) inputs: Vec<InputRule>,
    pub(super) log_bytes_max: u64,
}

impl Job {
    pub(super) fn named(name: &'static str) -> Self {
        Self {
            name,
            needs: Vec::new(),
            width: 1,
            attempts: 1,
            script: "true".into(),
            // Whatever it leaves is kept.
            artifacts: vec![ArtifactRule { path: "**".into(), name: None, optional: true }],
            inputs: Vec::new(),
            log_bytes_max: limit::LOG_BYTES_MAX,
        }
    }

    pub(super) fn planned(self) -> PlannedJob {
        let definition = Arc::new(Definition {
            action: Action::Script(self.script),
            env: Vec::new(),
            workdir: None,
            timeout: None,
            artifacts: self.artifacts,
            inputs: self.inputs,
            log_bytes_max: self.log_bytes_max,
        });
        let key = |shard| match self.width {
            1 => self.name.to_owned(),
            _ => format!("{}[shard={shard}]", self.name),
        };
        let run = |shard| PlannedRun {
            id: JobRunId::generate(),
            key: key(shard).parse().unwrap(),
            requirement: Requirement::default(),
            definition: definition.clone(),
        };
        PlannedJob {
            name: name(self.name),
            needs: self.needs.into_iter().map(JobIndex).collect(),
            when: When::Success,
            allow_failure: false,
            retry: Retry { attempts: self.attempts, backoff: Duration::ZERO },
            runs: (0..self.width).map(run).collect(),
        }
    }
}

pub(super) fn settings() -> Settings {
    let mut settings =
        Settings::new((Ipv4Addr::LOCALHOST, 0).into(), "http://127.0.0.1:7080".try_into().unwrap());
    settings.limits =
        Limits { handshakes_per_second: 10_000, enrolments_per_second: 1000, ..settings.limits };
    settings
}

impl Scene {
    pub(super) async fn open() -> Self {
        Self::open_with(settings(), Config::default()).await
    }

    pub(super) async fn open_with(settings: Settings, config: Config) -> Self {
        Self::open_in(tempfile::tempdir().unwrap(), settings, config).await
    }

    pub(super) async fn open_in(folder: TempDir, settings: Settings, config: Config) -> Self {
        let path = folder.path();
        let clock = Clock::start();
        let store = Store::open(&path.join("state.redb")).unwrap();
        let acquired = store.acquire().await.unwrap();
        let rows = store.load().await.unwrap();
        let (core, quarantined) = Core::restore(config, acquired.0.epoch(), clock.now(), rows);
        assert_eq!(quarantined, []);
        let reader = store.snapshot().unwrap();
        let open: Vec<_> = reader.all_open_logs().unwrap().into_iter().map(|(run, _)| run).collect();
        let live = |run| {
            open.contains(&run) || reader.progress(run).unwrap().is_some_and(|run| !run.state.is_terminal())
        };
        let (disk, logs) = open_failing_for(&path.join("logs"), &live);
        let artifacts = ArtifactStore::open(&path.join("artifacts"), 1 << 30).unwrap();
        let identity = Identity::open(&path.join("ca"), clock).unwrap();
        let engine = engine::start(core, store, acquired, clock);
        let started =
            fleet::start(settings, identity.clone(), engine.clone(), logs.clone(), artifacts.clone(), clock);
        let fleet = started.await.unwrap();
        let address = fleet.local_addr();
        Self { folder, engine, logs, disk, artifacts, identity, clock, fleet: Some(fleet), address }
    }

    /// Stops everything and begins again on the same data.
    pub(super) async fn restart(mut self, settings: Settings, config: Config) -> Self {
        self.stop().await;
        let Self { folder, engine, logs, .. } = self;
        logs.close().await;
        drop((engine, logs));
        Self::open_in(folder, settings, config).await
    }

    pub(super) async fn stop(&mut self) {
        self.fleet.take().unwrap().stop().await;
        self.engine.stop().await;
    }

    pub(super) async fn invite(&self) -> JoinToken {
        self.invite_for(Duration::from_secs(3600)).await
    }

    pub(super) async fn invite_for(&self, ttl: Duration) -> JoinToken {
        let (id, secret) = (TokenId::generate(), JoinSecret([7; 32]));
        let grant = Grant::Join { labels: Labels::default(), name: None };
        let command = Command::CreateToken { id, secret: Digest::of(&secret.0), grant, ttl: Some(ttl) };
        self.engine.command(command).await.unwrap();
        self.identity.join_token(id, secret)
    }

    /// An agent with an identity.
    pub(super) async fn enrolled(&self) -> Agent {
        Agent::enrol(self.address, &self.invite().await).await.unwrap()
    }

    pub(super) async fn start(&self, jobs: Vec<Job>) -> PackRunId {
        let plan = Plan { jobs: jobs.into_iter().map(Job::planned).collect() };
        self.start_plan(plan, BTreeMap::new()).await
    }

    /// Starts a plan some of whose job runs take over earlier ones.
    pub(super) async fn start_plan(&self, plan: Plan, reused: BTreeMap<JobRunId, JobRunId>) -> PackRunId {
        let content: Arc<[u8]> = b"a pack".as_slice().into();
        let register = Command::RegisterPack {
            name: name("pack"),
            digest: Digest::of(&content),
            source: content.clone(),
            format: Format::Yaml,
            canonical: content,
        };
        self.engine.command(register).await.unwrap();
        let id = PackRunId::generate();
        let new = NewRun {
            id,
            pack: name("pack"),
            version: 1,
            params: Arc::default(),
            plan: Arc::new(plan),
            idempotency: None,
            retry_of: None,
            reused,
        };
        self.engine.command(Command::CreateRun(Box::new(new))).await.unwrap();
        id
    }

    /// Waits until what is committed looks so.
    pub(super) async fn until(&self, what: &str, mut holds: impl FnMut(&crate::store::Reader) -> bool) {
        let mut feed = self.engine.follow();
        let waited = tokio::time::timeout(PATIENCE, async {
            while !holds(&self.engine.read().unwrap()) {
                // Not every row has a feed entry: look again after a while, too.
                let _ = tokio::time::timeout(Duration::from_millis(20), feed.recv()).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what} did not come about"));
    }

    pub(super) async fn until_run(&self, run: PackRunId, state: PackRunState) {
        let what = format!("{run} {state}");
        self.until(&what, |reader| reader.progress(run).unwrap().is_some_and(|run| run.state == state)).await;
    }

    pub(super) async fn until_job_run(&self, attempt: AttemptId, state: JobRunState) {
        let id = attempt.job_run;
        self.until(state.as_str(), |reader| {
            reader.job_run(id).unwrap().is_some_and(|run| run.state == state)
        })
        .await;
    }

    /// The states that a pack run's job runs went through, as its feed says.
    pub(super) fn states(&self, run: PackRunId) -> Vec<JobRunState> {
        let rows = self.engine.read().unwrap().feed(run, 0, 1000).unwrap();
        let states = rows.into_iter().filter_map(|row| match row.entry {
            FeedEntry::JobRun { state, .. } => Some(state),
            _ => None,
        });
        states.collect()
    }

    /// The text of all entries of a kept log.
    pub(super) async fn kept_log(&self, attempt: AttemptId) -> Vec<String> {
        let index = self.engine.read().unwrap().log(attempt).unwrap();
        let extents = decode_extents(&index.0).unwrap();
        let mut reader = self.logs.read_extents(attempt, extents, 0);
        let mut texts = Vec::new();
        while let Some(block) = reader.next().await.unwrap() {
            texts.extend(block.entries().map(|entry| String::from_utf8_lossy(&entry.text).into_owned()));
        }
        texts
    }
}
