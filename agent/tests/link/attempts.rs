//! Assignments, logs and ends, also over lost connections and restarts.

use packrun_agent::Stop;
use packrun_protocol::block::Block;
use packrun_protocol::control::{FromAgent, HeldAnswer, HeldPhase, ToAgent};
use packrun_protocol::id::{AttemptId, Epoch};
use packrun_protocol::quic::FrameReader;
use packrun_protocol::state::{ExitStatus, Reason, Verdict};
use packrun_protocol::stream::{CloseCode, StreamHeader};

use crate::fake::{Fake, assignment, proof, script, start, within};

/// Numbered lines, then waits for a file to go on with more.
fn in_two_parts(folder: &tempfile::TempDir) -> String {
    let file = folder.path().join("go");
    format!(
        "for n in 0 1 2 3 4; do echo line $n; done; while ! test -e {0}; do sleep 0.02; done; \
         for n in 5 6 7 8 9; do echo line $n; done",
        file.display()
    )
}

fn go(folder: &tempfile::TempDir) {
    std::fs::write(folder.path().join("go"), "").unwrap();
}

fn numbered(numbers: std::ops::Range<u64>) -> Vec<(u64, String)> {
    numbers.map(|n| (n, format!("line {n}"))).collect()
}

#[tokio::test]
async fn a_job_runs_and_its_log_and_end_come() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script("echo $PACKRUN_AGENT; echo err >&2; exit 3")).await;
    peer.started(attempt).await;
    let outcome = peer.ended(attempt).await;
    assert_eq!((outcome.verdict, outcome.exit), (Verdict::Failed, Some(ExitStatus::Code(3))));
    let log = peer.log().await;
    assert_eq!((log.attempt, log.from, log.lines().len() as u64), (attempt, 0, outcome.entries));
    let mut lines: Vec<_> = log.lines().into_iter().map(|(_, line)| line).collect();
    lines.sort();
    assert_eq!(lines, ["err", "host-1-2"], "an agent is called what its coordinator calls it");
    peer.say(ToAgent::LogAck(vec![(attempt, outcome.entries)])).await;
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_log_comes_whole_and_once_over_a_dropped_connection() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script(&in_two_parts(&folder))).await;
    peer.started(attempt).await;
    let mut stream = peer.log_stream().await;
    let mut byte = [0];
    within(stream.read_exact(&mut byte)).await.unwrap();
    peer.vanish();

    let mut peer = fake.meet().await;
    let held = peer.hello.attempts[0];
    assert_eq!(held.attempt, attempt);
    assert!(matches!(held.phase, HeldPhase::Running(_)));
    // Some of it was safe before.
    peer.welcome(|_| HeldAnswer::GoOn { log_from: 0 }).await;
    go(&folder);
    let outcome = peer.ended(attempt).await;
    assert_eq!((outcome.verdict, outcome.entries), (Verdict::Succeeded, 10));
    let log = peer.log().await;
    assert_eq!((log.from, log.lines()), (0, numbered(0..10)));
    peer.vanish();

    let mut peer = fake.meet().await;
    assert_eq!(peer.hello.attempts[0].phase, HeldPhase::Ended);
    let from = log.blocks[0].next_seq();
    peer.welcome(|_| HeldAnswer::GoOn { log_from: from }).await;
    assert_eq!(peer.ended(attempt).await, outcome, "an end is repeated until it is settled");
    let log = peer.log().await;
    assert_eq!((log.from, log.lines()), (from, numbered(from..10)));
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_duplicate_and_a_lower_attempt_are_not_started() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let marks = folder.path().join("marks");
    let first = assignment(script(&format!("echo x >> {}", marks.display())));
    let mut second = first.clone();
    second.attempt.number = first.attempt.number.next();
    peer.say(ToAgent::Assign(vec![second.clone(), first.clone(), second.clone()])).await;
    peer.ended(second.attempt).await;
    peer.say(ToAgent::Settled(vec![second.attempt])).await;
    peer.say(ToAgent::Assign(vec![second, first])).await;
    let after = peer.assign(script("true")).await;
    peer.ended(after).await;
    assert_eq!(std::fs::read_to_string(marks).unwrap(), "x\n");
    peer.say(ToAgent::Settled(vec![after])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_canceled_job_ends_with_the_reason_and_a_fenced_one_says_nothing() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let fenced = peer.assign(script("sleep 1000")).await;
    peer.started(fenced).await;
    let canceled = peer.assign(script("sleep 1000")).await;
    peer.started(canceled).await;
    peer.say(ToAgent::Fence(fenced)).await;
    peer.say(ToAgent::Cancel { attempt: canceled, reason: Reason::new("nobody wants it") }).await;
    let outcome = peer.ended(canceled).await;
    assert_eq!(outcome.verdict, Verdict::Canceled);
    assert_eq!(outcome.reason, Some(Reason::new("nobody wants it")));
    peer.vanish();

    let mut peer = fake.meet().await;
    let held: Vec<AttemptId> = peer.hello.attempts.iter().map(|held| held.attempt).collect();
    assert_eq!(held, [canceled]);
    peer.welcome(|_| HeldAnswer::Settled).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_coordinator_of_a_lower_epoch_commands_nothing() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script("sleep 1000")).await;
    peer.started(attempt).await;
    peer.vanish();

    let mut peer = fake.meet().await;
    assert_eq!(peer.hello.epoch, Epoch(5));
    peer.epoch = Epoch(4);
    peer.welcome(|_| HeldAnswer::Fenced).await;
    within(peer.connection.closed()).await;

    let mut peer = fake.meet().await;
    assert!(matches!(peer.hello.attempts[0].phase, HeldPhase::Running(_)), "it was not fenced");
    peer.epoch = Epoch(6);
    peer.welcome(|_| HeldAnswer::GoOn { log_from: 0 }).await;
    agent.stop.send_replace(Stop::Now);
    let outcome = peer.ended(attempt).await;
    assert_eq!(outcome.verdict, Verdict::Lost, "an agent that stops gives its attempts back");
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Now).await;

    let agent = start(fake.config(&folder));
    let hello = fake.meet().await.hello;
    let kept = (hello.epoch, hello.proof);
    assert_eq!(
        kept,
        (Epoch(6), Some(proof(Epoch(6)))),
        "the highest epoch and its proof outlive the process"
    );
    agent.stop(Stop::Now).await;
}

#[tokio::test]
async fn an_agent_that_comes_back_reports_what_it_lost() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script("echo line 0; exec sleep 1000")).await;
    peer.started(attempt).await;
    // The log was begun, so it is in the journal.
    peer.log_stream().await;
    peer.vanish();
    agent.stop(Stop::Now).await;

    let agent = start(fake.config(&folder));
    let mut peer = fake.meet().await;
    assert_eq!(peer.hello.attempts[0].phase, HeldPhase::Ended);
    peer.welcome(|_| HeldAnswer::GoOn { log_from: 0 }).await;
    let outcome = peer.ended(attempt).await;
    assert_eq!((outcome.verdict, outcome.entries), (Verdict::Lost, 1));
    assert_eq!(peer.log().await.lines(), numbered(0..1));
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn draining_waits_for_what_runs() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script(&in_two_parts(&folder))).await;
    peer.started(attempt).await;
    agent.stop.send_replace(Stop::Drain);
    assert!(matches!(peer.next().await.unwrap(), FromAgent::Draining(true)));
    go(&folder);
    assert_eq!(peer.ended(attempt).await.verdict, Verdict::Succeeded);
    peer.say(ToAgent::Settled(vec![attempt])).await;
    within(agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn draining_comes_back_to_say_what_was_not_heard() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script("true")).await;
    peer.ended(attempt).await;
    peer.vanish();
    agent.stop.send_replace(Stop::Drain);
    let mut peer = fake.meet().await;
    assert_eq!(peer.hello.attempts[0].phase, HeldPhase::Ended);
    peer.welcome(|_| HeldAnswer::GoOn { log_from: 0 }).await;
    peer.ended(attempt).await;
    peer.say(ToAgent::Settled(vec![attempt])).await;
    within(agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn draining_does_not_wait_longer_for_the_coordinator_than_that_does() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, peer) = fake.join(&folder).await;
    peer.vanish();
    let mut peer = fake.meet().await;
    peer.lease = std::time::Duration::from_millis(100);
    peer.welcome(|_| panic!("nothing is held")).await;
    let attempt = peer.assign(script("true")).await;
    peer.ended(attempt).await;
    agent.stop.send_replace(Stop::Drain);
    peer.vanish();
    within(agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn goodbye_and_not_leader_lead_to_the_next_session() {
    let (fake, other, folder) = (Fake::start(), Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let reason = Reason::new("an update");
    peer.say(ToAgent::Goodbye { restarting: true, reason }).await;
    within(peer.connection.closed()).await;
    let mut peer = fake.meet().await;
    // It is told to go where it doesn't belong, and comes back.
    let addresses = vec![other.address().as_str().try_into().unwrap()];
    peer.say(ToAgent::NotLeader(addresses.try_into().unwrap())).await;
    let refused = within(async { other.endpoint.accept().await.unwrap().await });
    assert!(refused.await.is_err(), "an agent refuses a coordinator of another CA");
    let mut peer = fake.meet().await;
    peer.welcome(|_| panic!("nothing is held")).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_log_stream_that_is_stopped_is_opened_again_from_what_is_acknowledged() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script(&in_two_parts(&folder))).await;
    peer.started(attempt).await;
    let mut stream = FrameReader::new(peer.log_stream().await);
    let header = within(stream.expect::<StreamHeader>()).await.unwrap();
    assert_eq!(header, StreamHeader::Log { attempt, from: 0 });
    let mut buffer = bytes::BytesMut::new();
    let first = loop {
        buffer.extend_from_slice(&within(stream.raw()).await.unwrap().unwrap());
        if let Some(block) = Block::take(&mut buffer).unwrap() {
            break block;
        }
    };
    let acked = first.next_seq();
    peer.say(ToAgent::LogAck(vec![(attempt, acked)])).await;
    // What is said later is done later: when this has ended, the acknowledgement was heard.
    let other = peer.assign(script("true")).await;
    peer.ended(other).await;
    stream.stream().stop(CloseCode::Unavailable.to_wire().into()).unwrap();
    go(&folder);
    let log = peer.log().await;
    assert_eq!((log.from, log.lines()), (acked, numbered(acked..10)));
    peer.ended(attempt).await;
    peer.say(ToAgent::Settled(vec![attempt, other])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_log_whose_end_is_not_acknowledged_is_sent_again() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script("for n in 0 1 2; do echo line $n; done")).await;
    assert_eq!(peer.ended(attempt).await.entries, 3);
    // The bytes came, and the coordinator's disk took none of them.
    assert_eq!(peer.log().await.lines(), numbered(0..3));
    let again = peer.log().await;
    assert_eq!((again.attempt, again.lines()), (attempt, numbered(0..3)));
    peer.say(ToAgent::LogAck(vec![(attempt, 3)])).await;
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}
