//! A log that goes on beyond its limit: no honest agent sends that, and the coordinator doesn't keep it.

use packrun_protocol::block::{Block, BlockBuilder, LogStream};
use packrun_protocol::control::{FromAgent, HeldAttempt, HeldPhase};
use packrun_protocol::id::AttemptId;
use packrun_protocol::limit;
use packrun_protocol::quic::FrameWriter;
use packrun_protocol::state::{JobRunState, PackRunState};
use packrun_protocol::stream::CloseCode;
use packrun_protocol::time::Timestamp;

use super::agent::{Agent, Link, success};
use super::scene::{Job, Scene};

/// The limit of the logs here: one block, and as much as packrun may add.
const BYTES_MAX: u64 = BLOCK_BYTES + 8;

/// What a block counts for.
const BLOCK_BYTES: u64 = 60_000 + 8;

fn block(attempt: AttemptId, seq: u64) -> Block {
    let mut builder = BlockBuilder::new(attempt, seq);
    builder.push(Timestamp::from_micros(1), LogStream::Stdout, false, &[b'x'; 60_000]).unwrap();
    builder.finish().unwrap()
}

/// How many such blocks are kept.
fn kept() -> u64 {
    (BYTES_MAX + limit::LOG_OVERRUN_BYTES_MAX) / BLOCK_BYTES
}

async fn stage() -> (Scene, Agent, Link, AttemptId) {
    let scene = Scene::open().await;
    let villain = scene.enrolled().await;
    let mut link = villain.connect(1).await;
    scene.start(vec![Job { log_bytes_max: BYTES_MAX, ..Job::named("noisy") }]).await;
    let assignment = link.assigned_one().await;
    assert_eq!(assignment.definition.log_bytes_max, BYTES_MAX, "the agent is told");
    (scene, villain, link, assignment.attempt)
}

/// Sends blocks from `seq` on until the stream is stopped; with what.
async fn pour(log: &mut FrameWriter, attempt: AttemptId, mut seq: u64) -> Option<CloseCode> {
    while log.stream().write_all(block(attempt, seq).as_bytes()).await.is_ok() {
        seq += 1;
    }
    CloseCode::from_wire(log.stream().stopped().await.unwrap()?.into_inner())
}

/// The attempt failed for that and has so much of its log; its agent may forget it, and goes on with another.
async fn is_over(scene: &Scene, link: &mut Link, attempt: AttemptId) {
    link.settled(attempt).await;
    scene.until_job_run(attempt, JobRunState::Failed).await;
    let reader = scene.engine.read().unwrap();
    let row = reader.attempt(attempt).unwrap().unwrap();
    let reason = row.reason.unwrap();
    assert!(reason.as_str().contains(&format!("beyond the log's limit of {BYTES_MAX} bytes")), "{reason}");
    let log = scene.kept_log(attempt).await;
    assert_eq!(log.len() as u64, kept());
    let mut late = link.log(attempt, kept()).await;
    let code = late.stream().stopped().await.unwrap().unwrap();
    assert_eq!(CloseCode::from_wire(code.into_inner()), Some(CloseCode::Fenced), "it takes no more");
    let run = scene.start(vec![Job::named("next")]).await;
    let next = link.assigned_one().await.attempt;
    link.end(next, success(0, 0)).await;
    scene.until_run(run, PackRunState::Completed).await;
}

#[tokio::test]
async fn a_log_over_its_limit_is_stopped_and_its_attempt_fails() {
    let (scene, _villain, mut link, attempt) = stage().await;
    let mut log = link.log(attempt, 0).await;
    assert_eq!(pour(&mut log, attempt, 0).await, Some(CloseCode::Overloaded));
    is_over(&scene, &mut link, attempt).await;
}

#[tokio::test]
async fn an_end_that_waits_for_a_log_over_its_limit_does_not_wait_for_ever() {
    let (scene, _villain, mut link, attempt) = stage().await;
    link.say(&FromAgent::Started { attempt, at: Timestamp::default() }).await;
    link.end(attempt, success(1000, 0)).await;
    let mut log = link.log(attempt, 0).await;
    assert_eq!(pour(&mut log, attempt, 0).await, Some(CloseCode::Overloaded));
    is_over(&scene, &mut link, attempt).await;
}

#[tokio::test]
async fn what_is_sent_again_counts_once_and_what_came_in_another_session_counts() {
    let (scene, villain, mut link, attempt) = stage().await;
    let mut log = link.log(attempt, 0).await;
    for seq in 0..kept() {
        log.stream().write_all(block(attempt, seq).as_bytes()).await.unwrap();
    }
    link.acknowledged(attempt, kept()).await;
    let held = vec![HeldAttempt { attempt, phase: HeldPhase::Running(Timestamp::default()) }];
    let mut link = villain.connect_holding(1, held).await;
    let mut log = link.log(attempt, 0).await;
    for seq in (0..kept()).chain(0..kept()) {
        log.stream().write_all(block(attempt, seq).as_bytes()).await.unwrap();
    }
    assert_eq!(pour(&mut log, attempt, kept()).await, Some(CloseCode::Overloaded));
    is_over(&scene, &mut link, attempt).await;
}
