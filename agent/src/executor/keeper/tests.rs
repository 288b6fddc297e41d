//! A real keeper with a real executor and journal, read as the link reads it; and one whose disk is full.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::block::LogStream;
use packrun_protocol::id::{AttemptNumber, Epoch, JobRunId, PackRunId};
use packrun_protocol::job::{Action, ArtifactRule, Definition, InputRule};
use packrun_protocol::state::{Outcome, Reason};
use packrun_protocol::time::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::executor::HostEnvironment;
use crate::spool::{Follower, Phase, Started};

/// How long anything may take that is not bound to be quick, on a busy machine.
const PATIENCE_OF_TESTS: Duration = Duration::from_secs(60);

const SMALL: JournalConfig = JournalConfig { segment_bytes: 64 << 10, total_bytes: 256 << 10 };

/// A keeper's other side.
struct Side {
    port: Port,
    follower: Follower,
    keeper: Keeper,
}

fn journal(folder: &TempDir) -> PathBuf {
    folder.path().join("journal")
}

fn begin(folder: &TempDir, config: JournalConfig) -> Side {
    let host = HostEnvironment { path: "/usr/local/bin:/usr/bin:/bin".to_owned(), lang: None, tz: None };
    let settings = Settings { workspaces: folder.path().join("workspaces"), host, isolation: None };
    let (keeper, port) = start(&journal(folder), config, settings, Clock::start()).unwrap();
    Side { port, follower: Follower::new(journal(folder)), keeper }
}

fn job(script: &str) -> Definition {
    Definition {
        action: Action::Script(script.to_owned()),
        env: vec![],
        workdir: None,
        timeout: None,
        artifacts: vec![],
        inputs: vec![],
        log_bytes_max: packrun_protocol::limit::LOG_BYTES_MAX,
    }
}

fn assignment(definition: Definition) -> Assignment {
    Assignment {
        attempt: AttemptId { job_run: JobRunId::generate(), number: AttemptNumber::FIRST },
        pack_run: PackRunId::generate(),
        pack: "demo".parse().unwrap(),
        version: 1,
        key: "test".parse().unwrap(),
        definition: Arc::new(definition),
    }
}

fn started_by(assignment: Assignment) -> Order {
    let api = "http://127.0.0.1:7080".try_into().unwrap();
    Order::Start { epoch: Epoch(1), agent: "host-1".parse().unwrap(), api, assignment }
}

impl Side {
    async fn order(&self, order: Order) {
        self.port.orders.send(order).await.unwrap();
    }

    async fn begin(&self, definition: Definition) -> AttemptId {
        let assignment = assignment(definition);
        let attempt = assignment.attempt;
        self.order(started_by(assignment)).await;
        attempt
    }

    async fn next(&mut self) -> Record {
        loop {
            if let Some(record) = self.follower.read().unwrap() {
                return record;
            }
            let grown = tokio::time::timeout(PATIENCE_OF_TESTS, self.port.grown.changed());
            grown.await.expect("the journal grows in time").unwrap();
        }
    }

    async fn request(&mut self) -> Request {
        let request = tokio::time::timeout(PATIENCE_OF_TESTS, self.port.requests.recv());
        request.await.expect("a request in time").unwrap()
    }

    /// All until the attempt's end: its text by stream, and its outcome.
    async fn end(&mut self, attempt: AttemptId) -> (Vec<(LogStream, String)>, Outcome) {
        let mut lines = Vec::new();
        loop {
            match self.next().await {
                Record::Block(block) if block.attempt() == attempt => {
                    lines.extend(
                        block
                            .entries()
                            .map(|entry| (entry.stream, String::from_utf8_lossy(&entry.text).into_owned())),
                    );
                }
                Record::Ended { attempt: ended, outcome } if ended == attempt => return (lines, outcome),
                _ => {}
            }
        }
    }

    /// Ends the keeper; gives what is left to read.
    async fn finish(mut self) -> Follower {
        drop(self.port);
        let thread = self.keeper.thread;
        tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
        while self.follower.read().unwrap().is_some() {}
        self.follower
    }
}

#[tokio::test]
async fn a_job_is_in_the_journal_from_its_assignment_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut side = begin(&folder, JournalConfig::default());
    let attempt = side.begin(job("echo a")).await;
    assert_eq!(side.next().await, Record::Assigned { attempt, epoch: Epoch(1) });
    assert!(matches!(side.next().await, Record::Started(started) if started.attempt == attempt));
    let (lines, outcome) = side.end(attempt).await;
    assert_eq!(lines, [(LogStream::Stdout, "a".to_owned())]);
    assert_eq!((outcome.verdict, outcome.entries), (Verdict::Succeeded, 1));
    side.order(Order::Forget(vec![attempt])).await;
    assert_eq!(side.next().await, Record::Settled(attempt));
    assert_eq!(side.finish().await.index().lives().count(), 0);
}

#[tokio::test]
async fn a_canceled_attempt_ends_with_the_coordinators_reason_and_a_forgotten_one_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut side = begin(&folder, JournalConfig::default());
    let [canceled, forgotten] = [side.begin(job("sleep 1000")).await, side.begin(job("sleep 1000")).await];
    let mut running = 0;
    while running < 2 {
        running += usize::from(matches!(side.next().await, Record::Started(_)));
    }
    side.order(Order::Forget(vec![forgotten])).await;
    let reason = Reason::new("enough");
    side.order(Order::Cancel { attempt: canceled, reason: reason.clone() }).await;
    let (_, outcome) = side.end(canceled).await;
    assert_eq!((outcome.verdict, outcome.reason), (Verdict::Canceled, Some(reason)));
    // Twice the same order is one attempt.
    let again = assignment(job("echo once"));
    for _ in 0..2 {
        side.order(started_by(again.clone())).await;
    }
    assert_eq!(side.end(again.attempt).await.0.len(), 1);
    let follower = side.finish().await;
    assert!(follower.index().life(forgotten).is_none());
}

#[tokio::test]
async fn inputs_and_artifacts_are_asked_for_and_remarks_follow_the_output() {
    let folder = tempfile::tempdir().unwrap();
    let mut side = begin(&folder, JournalConfig::default());
    let (from, to) = ("compile".parse().unwrap(), None);
    let mut both = job("echo out");
    both.inputs = vec![InputRule { from, artifact: "in".into(), to, optional: false }];
    both.artifacts = vec![ArtifactRule { path: "out".into(), name: None, optional: true }];
    let attempt = side.begin(both.clone()).await;
    let Request::Prepare { workspace, inputs, .. } = side.request().await else { panic!() };
    assert!(workspace.is_dir());
    assert_eq!(inputs, both.inputs);
    side.order(Order::Prepared(attempt, Ok(()))).await;
    let Request::Collect { artifacts, .. } = side.request().await else { panic!() };
    assert_eq!(artifacts, both.artifacts);
    let notes = vec!["one".to_owned(), "two".to_owned()];
    side.order(Order::Collected { attempt, result: Ok(7), notes }).await;
    let (lines, outcome) = side.end(attempt).await;
    let texts: Vec<_> = lines.iter().map(|(stream, text)| (*stream, text.as_str())).collect();
    let system = LogStream::System;
    assert_eq!(texts, [(LogStream::Stdout, "out"), (system, "one"), (system, "two")]);
    assert_eq!((outcome.entries, outcome.artifacts), (3, 7));
    side.finish().await;
}

#[tokio::test]
async fn what_a_killed_agent_left_unfinished_is_lost_with_what_it_had_said() {
    let folder = tempfile::tempdir().unwrap();
    let [ran, waited, done] = [1u8, 2, 3]
        .map(|n| AttemptId { job_run: JobRunId::from_bytes([n; 16]), number: AttemptNumber::FIRST });
    let before = {
        // As a process leaves it that was killed.
        let mut journal = Journal::open(&journal(&folder), SMALL).unwrap();
        let assigned = [ran, waited, done].map(|attempt| Record::Assigned { attempt, epoch: Epoch(1) });
        let at = Clock::start().now();
        let outcome = ended(Verdict::Failed, "itself", 0, at);
        let mut kept = Kept::new(Arc::new(job("")));
        let blocks = kept.remark(ran, &["a".to_owned(), "b".to_owned()], at);
        journal.append(assigned).unwrap();
        journal.append([Record::Started(Started { attempt: ran, pid: 1, start_ticks: 1, at })]).unwrap();
        journal.append(blocks.into_iter().map(Record::Block)).unwrap();
        journal.append([Record::Ended { attempt: done, outcome: outcome.clone() }]).unwrap();
        outcome
    };
    let follower = begin(&folder, SMALL).finish().await;
    let phase = |attempt| match &follower.index().life(attempt).unwrap().phase {
        Phase::Ended(outcome) => outcome.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((phase(ran).verdict, phase(ran).entries), (Verdict::Lost, 2));
    assert_eq!((phase(waited).verdict, phase(waited).entries), (Verdict::Lost, 0));
    assert_eq!(phase(done), before);
}

#[tokio::test]
async fn a_full_journal_slows_the_job_down_and_orders_are_carried_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut side = begin(&folder, SMALL);
    let noisy = side.begin(job("yes 0123456789012345678901234567890123456789 | head -n 400000")).await;
    let size = || {
        let files = std::fs::read_dir(journal(&folder)).unwrap();
        files.filter_map(|file| Some(file.unwrap().metadata().ok()?.len())).sum::<u64>()
    };
    while size() < SMALL.total_bytes {
        tokio::time::timeout(PATIENCE_OF_TESTS, side.port.grown.changed()).await.unwrap().unwrap();
    }
    let other = side.begin(job("echo other")).await;
    let mut lines = 0;
    loop {
        match side.next().await {
            Record::Assigned { attempt, .. } if attempt == other => break,
            Record::Block(block) => lines += block.count(),
            Record::Ended { .. } => panic!("it should wait for room"),
            _ => {}
        }
    }
    // It goes on as room comes, and nothing is missing.
    let mut ends = 0;
    side.order(Order::LogAck(vec![(noisy, u64::from(lines))])).await;
    while ends < 2 {
        match side.next().await {
            Record::Block(block) if block.attempt() == noisy => {
                assert_eq!(block.first_seq(), u64::from(lines));
                lines += block.count();
                side.order(Order::LogAck(vec![(noisy, block.next_seq())])).await;
            }
            // It may lie in a segment that is as large as the journal may be.
            Record::Block(block) => side.order(Order::LogAck(vec![(other, block.next_seq())])).await,
            Record::Ended { outcome, .. } => {
                assert_eq!(outcome.verdict, Verdict::Succeeded);
                ends += 1;
            }
            _ => {}
        }
    }
    assert_eq!(lines, 400_000);
    side.finish().await;
}

#[tokio::test]
async fn an_agent_that_stops_gives_its_attempts_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut side = begin(&folder, JournalConfig::default());
    let attempt = side.begin(job("sleep 1000")).await;
    while !matches!(side.next().await, Record::Started(_)) {}
    side.order(Order::StopAll).await;
    let (_, outcome) = side.end(attempt).await;
    assert_eq!(outcome.verdict, Verdict::Lost);
    assert!(outcome.reason.unwrap().as_str().contains("stopped"));
    let late = side.begin(job("true")).await;
    assert_eq!(side.end(late).await.1.verdict, Verdict::Lost);
    side.finish().await;
}

/// A keeper by itself, with the ends that it speaks to.
fn alone(folder: &TempDir) -> (State, Port, mpsc::Receiver<Command>) {
    let journal = Journal::open(&journal(folder), SMALL).unwrap();
    let (port, Desk { requests, grown, .. }) = ipc::pair();
    let (commands, commanded) = mpsc::channel(16);
    let state = State {
        journal,
        clock: Clock::start(),
        commands: Some(commands),
        attempts: HashMap::new(),
        requests,
        outbox: VecDeque::new(),
        grown,
        unwritten: None,
        unsettled: BTreeSet::new(),
        is_stopping: false,
    };
    (state, port, commanded)
}

fn full_disk() -> std::fs::File {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap()
}

#[tokio::test]
async fn what_a_full_disk_refuses_is_written_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let (mut state, _port, _commanded) = alone(&folder);
    let order = assignment(job(""));
    let attempt = order.attempt;
    state.carry_out(&mut vec![started_by(order)]).await;
    let file = state.journal.swap_file(full_disk());
    let started = Started { attempt, pid: 1, start_ticks: 1, at: Timestamp::default() };
    state.take_down(&mut vec![Event::Started(started)]);
    state.write_again().await;
    assert!(state.unwritten.is_some() && state.outbox.is_empty(), "it waits");
    state.journal.swap_file(file);
    state.write_again().await;
    assert!(state.unwritten.is_none());
    let mut follower = Follower::new(journal(&folder));
    while follower.read().unwrap().is_some() {}
    assert_eq!(follower.index().life(attempt).unwrap().phase, Phase::Running(started));
}

#[tokio::test]
async fn a_disk_that_stays_full_fails_attempts_loudly_and_the_agent_lives() {
    let folder = tempfile::tempdir().unwrap();
    let (mut state, _port, mut commanded) = alone(&folder);
    let [ran, late] = [assignment(job("")), assignment(job(""))];
    let attempt = ran.attempt;
    state.carry_out(&mut vec![started_by(ran)]).await;
    let file = state.journal.swap_file(full_disk());
    // What can't be written down is not started.
    let refused = late.attempt;
    state.carry_out(&mut vec![started_by(late)]).await;
    let started = Started { attempt, pid: 1, start_ticks: 1, at: Timestamp::default() };
    state.take_down(&mut vec![Event::Started(started)]);
    state.unwritten.as_mut().unwrap().since = Timestamp::default();
    state.write_again().await;
    assert!(state.unwritten.is_none());
    let mut failed = Vec::new();
    for request in state.outbox.drain(..) {
        let Request::Failed { attempt, outcome } = request else { panic!() };
        assert_eq!(outcome.verdict, Verdict::Failed);
        assert!(outcome.reason.unwrap().as_str().contains("disk"));
        failed.push(attempt);
    }
    assert_eq!(failed, [refused, attempt]);
    assert!(matches!(commanded.recv().await, Some(Command::Start(order)) if order.attempt == attempt));
    assert!(matches!(commanded.recv().await, Some(Command::Kill(killed)) if killed == attempt));
    state.journal.swap_file(file);
    // Nothing of it follows, and others go on.
    let outcome = ended(Verdict::Canceled, "killed", 0, Timestamp::default());
    state.take_down(&mut vec![Event::Ended { attempt, outcome }]);
    assert!(state.attempts.is_empty());
    state.carry_out(&mut vec![started_by(assignment(job("")))]).await;
    assert!(matches!(commanded.recv().await, Some(Command::Start(_))));
}

#[tokio::test]
async fn what_was_settled_on_a_full_disk_is_written_with_the_next_record() {
    let folder = tempfile::tempdir().unwrap();
    let (mut state, _port, _commanded) = alone(&folder);
    let first = assignment(job(""));
    let attempt = first.attempt;
    state.carry_out(&mut vec![started_by(first)]).await;
    let file = state.journal.swap_file(full_disk());
    state.carry_out(&mut vec![Order::Forget(vec![attempt])]).await;
    state.journal.swap_file(file);
    let next = assignment(job(""));
    let left = next.attempt;
    state.carry_out(&mut vec![started_by(next)]).await;
    let lives: Vec<_> = state.journal.lives().map(|(attempt, _)| attempt).collect();
    assert_eq!(lives, [left]);
}

#[tokio::test]
async fn a_keeper_without_executor_writes_the_ends_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (mut state, mut port, _commanded) = alone(&folder);
    let ran = assignment(job(""));
    let attempt = ran.attempt;
    state.carry_out(&mut vec![started_by(ran)]).await;
    let (_orders, ordered) = mpsc::channel(1);
    let (executor, events) = mpsc::channel(1);
    drop(executor);
    tokio::time::timeout(PATIENCE_OF_TESTS, state.run(ordered, events)).await.unwrap();
    assert!(port.requests.recv().await.is_none(), "the link sees it");
    let mut follower = Follower::new(journal(&folder));
    while follower.read().unwrap().is_some() {}
    let Phase::Ended(outcome) = &follower.index().life(attempt).unwrap().phase else { panic!() };
    assert_eq!(outcome.verdict, Verdict::Lost);
}
