//! The engine on a real store: what is acknowledged is there after a restart, and nothing leaves before it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::id::{Digest, JobRunId, PackRunId};
use packrun_protocol::job::{Action, Definition, Requirement};
use packrun_protocol::name::Name;
use packrun_protocol::state::PackRunState;

use super::*;
use crate::core::change::Format;
use crate::core::event::{Arrival, Capacity, Command, NewRun};
use crate::core::outcome::{CloseReason, Refusal, Reply};
use crate::core::plan::{Plan, PlannedJob, PlannedRun, Retry, When};
use crate::core::tests::make::enrolment;
use crate::core::{Config, Core};
use crate::store::RunFilter;

async fn open(path: &std::path::Path) -> Handle {
    open_store(Store::open(path).unwrap()).await
}

async fn open_store(store: Store) -> Handle {
    let acquired = store.acquire().await.unwrap();
    let clock = Clock::start();
    let rows = store.load().await.unwrap();
    let (core, quarantined) = Core::restore(Config::default(), acquired.0.epoch(), clock.now(), rows);
    assert_eq!(quarantined, []);
    start(core, store, acquired, clock)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn register(content: &str) -> Command {
    let bytes: Arc<[u8]> = content.as_bytes().into();
    let digest = Digest::of(&bytes);
    Command::RegisterPack {
        name: name("pack"),
        digest,
        source: bytes.clone(),
        format: Format::Json,
        canonical: bytes,
    }
}

fn create(width: usize) -> (PackRunId, Command) {
    let definition = Arc::new(Definition {
        action: Action::Script("true".into()),
        env: Vec::new(),
        workdir: None,
        timeout: None,
        artifacts: Vec::new(),
        inputs: Vec::new(),
        log_bytes_max: packrun_protocol::limit::LOG_BYTES_MAX,
    });
    let run = |shard: usize| PlannedRun {
        id: JobRunId::generate(),
        key: format!("job[shard={shard}]").parse().unwrap(),
        requirement: Requirement::default(),
        definition: definition.clone(),
    };
    let job = PlannedJob {
        name: name("job"),
        needs: Vec::new(),
        when: When::Success,
        allow_failure: false,
        retry: Retry { attempts: 1, backoff: std::time::Duration::ZERO },
        runs: (0..width).map(run).collect(),
    };
    let id = PackRunId::generate();
    let new = NewRun {
        id,
        pack: name("pack"),
        version: 1,
        params: Arc::default(),
        plan: Arc::new(Plan { jobs: vec![job] }),
        idempotency: None,
        retry_of: None,
        reused: BTreeMap::new(),
    };
    (id, Command::CreateRun(Box::new(new)))
}

async fn enrol(engine: &Handle) -> AgentId {
    let agent = AgentId::generate();
    let [create, enrol] = enrolment(agent, name("builder"));
    assert_eq!(engine.command(create).await, Ok(Reply::Done));
    assert_eq!(engine.command(enrol).await, Ok(Reply::Enrolled { name: name("builder") }));
    agent
}

fn slots(slots: u32) -> Arrival {
    let capacity = Capacity { slots, cpu_millis: 64_000, memory_bytes: 1 << 30, ..Capacity::default() };
    Arrival { capacity, draining: false, held: Vec::new() }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let engine = open(&path).await;
    let registered = engine.command(register("one")).await.unwrap();
    assert_eq!(registered, Reply::Registered { version: 1, created: true });
    let (id, command) = create(3);
    engine.command(command).await.unwrap();
    engine.stop().await;
    assert_eq!(engine.command(register("two")).await, Err(EngineError::Unavailable));
    drop(engine);

    let engine = open(&path).await;
    let again = engine.command(register("one")).await.unwrap();
    assert_eq!(again, Reply::Registered { version: 1, created: false });
    let reader = engine.read().unwrap();
    assert_eq!(reader.progress(id).unwrap().unwrap().state, PackRunState::Pending);
    assert_eq!(reader.source(&name("pack"), 1).unwrap().unwrap(), b"one");
    let (_, unknown) = create(0);
    assert!(matches!(engine.command(unknown).await, Err(EngineError::Refused(_))), "a plan without job runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commands_share_a_commit_and_each_gets_its_own_reply() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(&folder.path().join("state.redb")).await;
    engine.command(register("one")).await.unwrap();
    let mut follower = engine.follow();
    let askers: Vec<_> = (0..500)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let (id, command) = create(2);
                assert_eq!(engine.command(command).await, Ok(Reply::Run { id, created: true }));
                // The reply came, so it is committed.
                assert!(engine.read().unwrap().progress(id).unwrap().is_some());
            })
        })
        .collect();
    for asker in askers {
        asker.await.unwrap();
    }
    let reader = engine.read().unwrap();
    assert_eq!(reader.runs(&RunFilter::default(), None, 1000).unwrap().items.len(), 500);
    let mut batches = 0;
    let mut rows = 0;
    while let Ok(batch) = follower.try_recv() {
        batches += 1;
        rows += batch.len();
    }
    assert!(rows >= 1000, "every job run was queued: {rows}");
    assert!(batches < 250, "500 commands took {batches} commits");
}

#[tokio::test]
async fn a_dispatch_leaves_only_when_it_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(&folder.path().join("state.redb")).await;
    let agent = enrol(&engine).await;
    let (session, mut messages) = engine.connect(agent, slots(2)).await.unwrap();
    assert!(matches!(messages.recv().await, Some(ToSession::Welcome { .. })));
    engine.command(register("one")).await.unwrap();
    let (id, command) = create(3);
    engine.command(command).await.unwrap();
    let Some(ToSession::Dispatch(assignments)) = messages.recv().await else { panic!("a dispatch") };
    assert_eq!(assignments.len(), 2, "its slots");
    let reader = engine.read().unwrap();
    for assignment in &assignments {
        assert!(reader.attempt(assignment.attempt).unwrap().is_some());
    }
    assert_eq!(reader.progress(id).unwrap().unwrap().state, PackRunState::Running);
    session.report(Report::Started { ticket: None, attempt: assignments[0].attempt }).await.unwrap();
    assert!(engine.look(Core::next_deadline).await.unwrap().is_none(), "nobody is away");

    drop(messages);
    let mut away = false;
    while !away {
        away = engine.look(Core::next_deadline).await.unwrap().is_some();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_second_session_of_an_agent_closes_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(&folder.path().join("state.redb")).await;
    let agent = enrol(&engine).await;
    let (_, mut first) = engine.connect(agent, slots(1)).await.unwrap();
    let (_, mut second) = engine.connect(agent, slots(1)).await.unwrap();
    assert!(matches!(first.recv().await, Some(ToSession::Welcome { .. })));
    assert!(matches!(first.recv().await, Some(ToSession::Close(CloseReason::Superseded))));
    assert!(first.recv().await.is_none());
    assert!(matches!(second.recv().await, Some(ToSession::Welcome { .. })));
    let (_, mut stranger) = engine.connect(AgentId::generate(), slots(1)).await.unwrap();
    assert!(matches!(stranger.recv().await, Some(ToSession::Close(CloseReason::Unknown))));
}

#[tokio::test]
async fn a_store_taken_over_by_another_ends_all_commands_and_no_reads() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state.redb")).unwrap();
    let engine = open_store(store.clone()).await;
    engine.command(register("one")).await.unwrap();
    let agent = enrol(&engine).await;
    let (_, mut messages) = engine.connect(agent, slots(1)).await.unwrap();
    assert!(matches!(messages.recv().await, Some(ToSession::Welcome { .. })));
    let mut follower = engine.follow();
    store.acquire().await.unwrap();
    assert_eq!(engine.command(register("two")).await, Err(EngineError::Unavailable));
    assert!(messages.recv().await.is_none(), "its sessions end");
    assert!(matches!(follower.recv().await, Err(broadcast::error::RecvError::Closed)), "so do its followers");
    assert!(matches!(engine.follow().recv().await, Err(broadcast::error::RecvError::Closed)));
    let mut health = engine.health();
    let stopped = health.wait_for(|health| matches!(health, Health::Stopped(_))).await.unwrap();
    assert!(matches!(&*stopped, Health::Stopped(why) if why.contains("another coordinator")));
    drop(stopped);
    assert_eq!(engine.command(register("three")).await, Err(EngineError::Unavailable));
    assert_eq!(engine.read().unwrap().pack_head(&name("pack")).unwrap(), Some(1), "nothing was half done");
    assert_eq!(
        engine.command(Command::CancelRun(PackRunId::generate())).await,
        Err(EngineError::Unavailable)
    );
}

#[tokio::test]
async fn a_refusal_is_a_reply() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(&folder.path().join("state.redb")).await;
    let id = PackRunId::generate();
    let refused = engine.command(Command::CancelRun(id)).await;
    assert_eq!(refused, Err(EngineError::Refused(Refusal::NotLive(id))));
}

#[tokio::test]
async fn an_engine_that_panics_does_not_count_as_ready() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(&folder.path().join("state.redb")).await;
    let mut follower = engine.follow();
    assert!(engine.look(|_| panic!("a fault of ours")).await.map(|(): ()| ()).is_err());
    let mut health = engine.health();
    let stopped = health.wait_for(|health| matches!(health, Health::Stopped(_))).await.unwrap();
    assert!(matches!(&*stopped, Health::Stopped(why) if why.contains("unexpectedly")));
    drop(stopped);
    assert!(follower.recv().await.is_err());
    assert_eq!(engine.command(register("one")).await, Err(EngineError::Unavailable));
}
