//! The store on real files, driven by the real core.

mod crash;
mod index;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::id::{AgentId, AttemptId, AttemptNumber, Digest, JobRunId, PackRunId};
use packrun_protocol::job::{Action, Definition, Requirement};
use packrun_protocol::name::Name;
use packrun_protocol::state::{ExitStatus, JobRunState, Outcome, PackRunState, Verdict};
use packrun_protocol::stream::{Content, FileMode};
use packrun_protocol::time::Timestamp;

use super::*;
use crate::core::change::Change;
use crate::core::change::Format;
use crate::core::event::{
    Arrival, Artifact, Capacity, Command, Event, Idempotency, LogIndex, NewRun, Report, SessionId, Ticket,
};
use crate::core::plan::{JobIndex, Plan, PlannedJob, PlannedRun, Retry, When};
use crate::core::tests::make::enrolment;
use crate::core::{Config, Core};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// `first`, and `second` which needs it.
fn plan() -> Plan {
    let definition = Arc::new(Definition {
        action: Action::Script("true".into()),
        env: vec![("A".into(), "b".into())],
        workdir: None,
        timeout: Some(Duration::from_secs(3)),
        artifacts: Vec::new(),
        inputs: Vec::new(),
        log_bytes_max: packrun_protocol::limit::LOG_BYTES_MAX,
    });
    let job = |job: &str, needs: Vec<JobIndex>| PlannedJob {
        name: name(job),
        needs,
        when: When::Success,
        allow_failure: false,
        retry: Retry { attempts: 1, backoff: Duration::ZERO },
        runs: vec![PlannedRun {
            id: JobRunId::generate(),
            key: job.parse().unwrap(),
            requirement: Requirement::default(),
            definition: definition.clone(),
        }],
    };
    Plan { jobs: vec![job("first", Vec::new()), job("second", vec![JobIndex(0)])] }
}

/// A core, and the batches that its steps make.
struct World {
    core: Core,
    agent: AgentId,
    batches: Vec<Vec<Change>>,
}

impl World {
    /// One agent with one slot, two versions of a pack.
    fn new(lease: Lease) -> Self {
        let core = Core::new(Config::default(), lease.epoch(), Timestamp::default());
        let mut world = Self { core, agent: AgentId::generate(), batches: Vec::new() };
        for content in [&b"one"[..], b"two"] {
            world.command(Command::RegisterPack {
                name: name("pack"),
                digest: Digest::of(content),
                source: content.into(),
                format: Format::Yaml,
                canonical: content.into(),
            });
        }
        for command in enrolment(world.agent, name("builder")) {
            world.command(command);
        }
        let capacity = Capacity { slots: 1, ..Capacity::default() };
        world.report(Report::Connected(Arrival { capacity, draining: false, held: Vec::new() }));
        world
    }

    fn apply(&mut self, event: Event) {
        let step = self.core.apply(Timestamp::default(), event);
        self.batches.push(step.changes);
    }

    fn command(&mut self, command: Command) {
        self.apply(Event::Command { ticket: Ticket(0), command });
    }

    fn report(&mut self, report: Report) {
        self.apply(Event::Report { agent: self.agent, session: SessionId(1), report });
    }

    /// A pack run under `key`; returns its id and those of its job runs.
    fn create(&mut self, key: Option<&str>) -> (PackRunId, Vec<JobRunId>) {
        let (id, plan) = (PackRunId::generate(), plan());
        let job_runs = plan.jobs.iter().map(|job| job.runs[0].id).collect();
        let idempotency = key.map(|key| Idempotency { key: key.into(), request: Digest::of(b"request") });
        let params = Arc::new(BTreeMap::from([("profile".to_owned(), "debug".to_owned())]));
        let (plan, reused) = (Arc::new(plan), BTreeMap::new());
        let new =
            NewRun { id, pack: name("pack"), version: 2, params, plan, idempotency, retry_of: None, reused };
        self.command(Command::CreateRun(Box::new(new)));
        (id, job_runs)
    }

    fn run_to_the_end(&mut self, job_run: JobRunId, verdict: Verdict) {
        let attempt = AttemptId { job_run, number: AttemptNumber::FIRST };
        self.report(Report::Started { ticket: None, attempt });
        let artifact = Artifact {
            name: None,
            path: "out/app".parse().unwrap(),
            content: Content { digest: Digest::of(b"app"), size: 3, mode: FileMode::of(0o755) },
        };
        self.report(Report::ArtifactCommitted { ticket: Ticket(0), attempt, artifact });
        let outcome = Outcome {
            verdict,
            exit: Some(ExitStatus::Code(0)),
            reason: None,
            ended_at: Timestamp::default(),
            ran_for: Duration::from_secs(1),
            entries: 0,
            artifacts: 1,
            invalid_bytes: 0,
        };
        self.report(Report::Ended { attempt, outcome, log: LogIndex(b"where it lies"[..].into()) });
    }

    async fn commit_all(&mut self, store: &Store, lease: &mut Lease) {
        for changes in std::mem::take(&mut self.batches) {
            let mut batch = Batch::default();
            changes.into_iter().for_each(|change| batch.add(change));
            *lease = store.commit(*lease, batch).await.unwrap().0;
        }
    }
}

#[tokio::test]
async fn everything_that_was_committed_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let store = Store::open(&path).unwrap();
    let mut lease = store.acquire().await.unwrap().0;
    let mut world = World::new(lease);
    let (done, ended) = world.create(Some("key"));
    world.run_to_the_end(ended[0], Verdict::Succeeded);
    world.run_to_the_end(ended[1], Verdict::Failed);
    let (live, job_runs) = world.create(None);
    world.command(Command::ArchivePack { name: name("pack"), version: None, archived: true });
    world.command(Command::ArchivePack { name: name("pack"), version: Some(2), archived: false });
    world.commit_all(&store, &mut lease).await;
    drop(store);

    let store = Store::open(&path).unwrap();
    let next = store.acquire().await.unwrap().0;
    assert_eq!(next.epoch().0, lease.epoch().0 + 1);
    let rows = store.load().await.unwrap();
    assert_eq!(rows.runs.iter().map(|run| run.row.id).collect::<Vec<_>>(), [live], "only what is live");
    let head = &rows.packs[&name("pack")];
    assert_eq!((head.version, head.archived.newest_other(2), head.archived.contains(1)), (2, Some(2), true));
    assert_eq!(rows.agents[0].id, world.agent);
    let (core, quarantined) = Core::restore(Config::default(), next.epoch(), Timestamp::default(), rows);
    assert_eq!(quarantined, []);
    assert!(core.next_deadline().is_some(), "the lease of the attempt under way");

    let reader = store.snapshot().unwrap();
    assert_eq!(reader.source(&name("pack"), 1).unwrap().as_deref(), Some(&b"one"[..]));
    assert_eq!(reader.canonical(&name("pack"), 2).unwrap().as_deref(), Some(&b"two"[..]));
    assert_eq!(reader.pack_heads().unwrap(), [(name("pack"), 2)]);
    assert_eq!(reader.keyed_run("key").unwrap(), Some((done, Digest::of(b"request"))));
    assert_eq!(reader.keyed_run("other").unwrap(), None);
    assert_eq!(reader.progress(done).unwrap().unwrap().state, PackRunState::PartiallyFailed);
    assert_eq!(reader.run(done).unwrap().unwrap().params["profile"], "debug");
    assert_eq!(reader.plan(done).unwrap().unwrap().jobs[1].runs[0].id, ended[1]);
    let states: Vec<_> = reader.job_runs(done).unwrap().iter().map(|row| row.state).collect();
    assert_eq!(states, [JobRunState::Succeeded, JobRunState::Failed]);
    assert_eq!(reader.job_run(job_runs[0]).unwrap().unwrap().state, JobRunState::Assigned);
    let attempts = reader.attempts(ended[1]).unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(reader.artifacts(attempts[0].id).unwrap()[0].artifact.content.mode.bits(), 0o755);
    assert_eq!(&*reader.log(attempts[0].id).unwrap().0, b"where it lies");
    assert_eq!(reader.open_logs(done).unwrap(), [], "a log that is kept is not open");
    let open = AttemptId { job_run: job_runs[0], number: AttemptNumber::FIRST };
    assert_eq!(
        (reader.open_logs(live).unwrap(), reader.log(open).unwrap()),
        (vec![open], LogIndex::default())
    );
    assert_eq!(reader.all_open_logs().unwrap(), [(live, open)]);
    assert!(reader.tokens().unwrap().iter().all(|token| token.end.is_some()));
    let feed = reader.feed(done, 0, 1000).unwrap();
    assert!(feed.iter().enumerate().all(|(number, row)| row.number == number as u64));
    assert_eq!(reader.feed_next(done).unwrap(), feed.len() as u64);
    assert_eq!(reader.feed(done, 2, 1).unwrap(), feed[2..3]);
}

#[tokio::test]
async fn a_list_is_the_same_whatever_the_page_size_and_the_filters_are_exact() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state.redb")).unwrap();
    let mut lease = store.acquire().await.unwrap().0;
    let mut world = World::new(lease);
    let runs: Vec<_> = (0..7).map(|_| world.create(None)).collect();
    world.run_to_the_end(runs[0].1[0], Verdict::Failed);
    world.command(Command::CancelRun(runs[3].0));
    world.commit_all(&store, &mut lease).await;
    let reader = store.snapshot().unwrap();
    let list = |filter: &RunFilter, limit| {
        let (mut ids, mut before) = (Vec::new(), None);
        loop {
            let page = reader.runs(filter, before, limit).unwrap();
            ids.extend(page.items);
            before = page.next;
            if before.is_none() {
                return ids;
            }
        }
    };
    let newest_first = |which: &[usize]| which.iter().rev().map(|n| runs[*n].0).collect::<Vec<_>>();
    let by = |pack: Option<&str>, state| RunFilter { pack: pack.map(name), state };
    for limit in 1..9 {
        assert_eq!(list(&by(None, None), limit), newest_first(&[0, 1, 2, 3, 4, 5, 6]));
        assert_eq!(list(&by(Some("pack"), None), limit), newest_first(&[0, 1, 2, 3, 4, 5, 6]));
        assert_eq!(list(&by(Some("pac"), None), limit), []);
        for pack in [None, Some("pack")] {
            assert_eq!(list(&by(pack, Some(PackRunState::Failed)), limit), newest_first(&[0]));
            assert_eq!(list(&by(pack, Some(PackRunState::Canceled)), limit), newest_first(&[3]));
            assert_eq!(list(&by(pack, Some(PackRunState::Running)), limit), newest_first(&[1]));
            assert_eq!(list(&by(pack, Some(PackRunState::Pending)), limit), newest_first(&[2, 4, 5, 6]));
        }
    }
}

#[tokio::test]
async fn only_the_newest_lease_commits_and_only_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state.redb")).unwrap();
    let old = store.acquire().await.unwrap().0;
    let (used, committed) = store.commit(old, Batch::default()).await.unwrap();
    assert_eq!(committed.seq(), 1);
    assert!(matches!(store.commit(old, Batch::default()).await, Err(CommitError::Fenced)), "out of turn");
    let new = store.acquire().await.unwrap().0;
    assert!(matches!(store.commit(used, Batch::default()).await, Err(CommitError::Fenced)), "superseded");
    assert_eq!(store.commit(new, Batch::default()).await.unwrap().1.seq(), 2);
}

#[tokio::test]
async fn a_store_that_is_open_or_damaged_or_newer_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let store = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(error.contains("another coordinator"), "{error}");
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 3]).unwrap();
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(error.contains("state.redb"), "{error}");
    std::fs::write(&path, b"something else").unwrap();
    assert!(Store::open(&path).is_err());
    assert!(matches!(record::decode::<u32>("t", &[9, 1]), Err(StoreError::Newer { version: 9, .. })));
    assert!(matches!(record::decode::<u32>("t", &[]), Err(StoreError::Damaged { .. })));
}
