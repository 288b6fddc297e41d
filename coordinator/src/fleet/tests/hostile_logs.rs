//! Logs that lie: about their lengths, their numbers and their times, and floods of what says nothing new.

use packrun_protocol::block::{BlockBuilder, ENTRY_BYTES, HEADER_BYTES, LogStream};
use packrun_protocol::control::{FromAgent, HeldAttempt, HeldPhase, Ping};
use packrun_protocol::id::{AttemptId, AttemptNumber, JobRunId};
use packrun_protocol::limit;
use packrun_protocol::stream::CloseCode;
use packrun_protocol::time::{ClockOffset, Timestamp};
use quinn::ConnectionError;

use super::agent::{blocks, parting, success};
use super::stage::{Stage, is_heard, stopped};

/// A block whose header says something else than its content, under a checksum that is right.
fn forged(attempt: AttemptId, forge: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = blocks(attempt, 0..1);
    forge(&mut bytes);
    let checksum = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn set(at: usize, value: &[u8]) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at..at + value.len()].copy_from_slice(value)
}

#[tokio::test]
async fn a_block_that_lies_about_itself_ends_the_connection() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let zero = [0; 16];
    let lies: Vec<(&str, Vec<u8>)> = vec![
        ("attempt 0", forged(attempt, set(24, &zero[..4]))),
        ("another attempt", forged(attempt, set(24, &7_u32.to_le_bytes()))),
        ("no entry", forged(attempt, set(28, &zero[..4]))),
        ("more entries than bytes", forged(attempt, set(28, &u32::MAX.to_le_bytes()))),
        ("numbers beyond the last", forged(attempt, set(32, &u64::MAX.to_le_bytes()))),
        ("a time out of range", forged(attempt, set(40, &i64::MIN.to_le_bytes()))),
        ("another last time", forged(attempt, set(48, &i64::MAX.to_le_bytes()))),
        ("a text longer than the block", forged(attempt, set(HEADER_BYTES + 4, &[2]))),
        ("a text of 16 MiB", forged(attempt, set(HEADER_BYTES + 4, &[0xff, 0xff, 0xff]))),
        ("a stream of no kind", forged(attempt, set(HEADER_BYTES + 7, &[3]))),
        ("a length of nothing", zero.to_vec()),
        ("a length under a header's", forged(attempt, set(0, &(HEADER_BYTES as u32).to_le_bytes()))),
        (
            "a length over a block's",
            forged(attempt, set(0, &(limit::BLOCK_BYTES_MAX as u32 + 1).to_le_bytes())),
        ),
    ];
    for (what, bytes) in lies {
        let mut log = link.log(attempt, 0).await;
        log.stream().write_all(&bytes).await.unwrap();
        let (code, reason) = link.closed().await;
        assert_eq!(code, CloseCode::Protocol, "{what}: {reason}");
        let held = vec![HeldAttempt { attempt, phase: HeldPhase::Running(Timestamp::default()) }];
        link = stage.villain.connect_holding(1, held).await;
    }
    stage.goes_on().await;
}

#[tokio::test]
async fn numbers_that_repeat_are_kept_once_and_those_that_overlap_or_jump_end_the_session() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let mut log = link.log(attempt, u64::MAX).await;
    log.stream().write_all(&blocks(attempt, 0..4)).await.unwrap();
    log.stream().write_all(&blocks(attempt, 1..3)).await.unwrap();
    log.stream().write_all(&blocks(attempt, 4..5)).await.unwrap();
    link.acknowledged(attempt, 5).await;
    let mut both = BlockBuilder::new(attempt, 4);
    for text in ["other", "5"] {
        both.push(Timestamp::MAX, LogStream::Stderr, false, text.as_bytes()).unwrap();
    }
    let overlapping = both.finish().unwrap().as_bytes().to_vec();
    let mut last = blocks(attempt, 0..1);
    last[32..40].copy_from_slice(&(u64::MAX - 1).to_le_bytes());
    let checksum = crc32c::crc32c(&last[8..]);
    last[4..8].copy_from_slice(&checksum.to_le_bytes());
    for (what, bytes) in [("half known", overlapping), ("one further", blocks(attempt, 6..7)), ("last", last)]
    {
        let mut log = link.log(attempt, 5).await;
        log.stream().write_all(&bytes).await.unwrap();
        let (code, reason) = link.closed().await;
        assert_eq!(code, CloseCode::Unavailable, "{what}: {reason}");
        let held = vec![HeldAttempt { attempt, phase: HeldPhase::Running(Timestamp::default()) }];
        link = stage.villain.connect_holding(1, held).await;
    }
    link.end(attempt, success(0, 0)).await;
    link.settled(attempt).await;
    assert_eq!(stage.scene.kept_log(attempt).await, ["0", "1", "2", "3", "4"]);
    stage.goes_on().await;
}

#[tokio::test]
async fn the_log_of_an_attempt_that_is_not_held_is_refused_whatever_its_number() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let of = |job_run, number| AttemptId { job_run, number: AttemptNumber::new(number).unwrap() };
    for other in [
        of(JobRunId::generate(), 1),
        of(attempt.job_run, 2),
        of(attempt.job_run, u32::MAX),
        of(stage.attempt.job_run, 1),
        of(stage.attempt.job_run, 2),
    ] {
        let mut log = link.log(other, 0).await;
        assert_eq!(stopped(&mut log).await, Some(CloseCode::Fenced), "{other}");
    }
    link.end(attempt, success(0, 0)).await;
    link.settled(attempt).await;
    let mut log = link.log(attempt, 0).await;
    assert_eq!(stopped(&mut log).await, Some(CloseCode::Fenced), "it has ended");
    is_heard(&mut link).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn absurd_times_and_clocks_stay_within_the_calendar() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let mut next = 0;
    for micros in [i64::MIN, i64::MAX, 0, -1] {
        let offset = Some(ClockOffset { micros, error_micros: u64::MAX });
        link.say(&FromAgent::Ping(Ping { sent: Timestamp::MIN, offset })).await;
        for time in [Timestamp::MIN, Timestamp::default(), Timestamp::MAX] {
            let mut block = BlockBuilder::new(attempt, next);
            block.push(time, LogStream::Stdout, true, b"text").unwrap();
            let mut log = link.log(attempt, next).await;
            log.stream().write_all(block.finish().unwrap().as_bytes()).await.unwrap();
            next += 1;
            link.acknowledged(attempt, next).await;
        }
    }
    let mut outcome = success(next, 0);
    outcome.ended_at = Timestamp::MAX;
    outcome.ran_for = std::time::Duration::MAX;
    link.end(attempt, outcome).await;
    link.settled(attempt).await;
    assert_eq!(stage.scene.kept_log(attempt).await.len() as u64, next);
    stage.goes_on().await;
}

#[tokio::test]
async fn an_end_that_names_more_entries_than_ever_come_is_no_end_and_holds_up_nobody() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    link.end(attempt, success(u64::MAX, 0)).await;
    let mut log = link.log(attempt, 0).await;
    log.stream().write_all(&blocks(attempt, 0..1)).await.unwrap();
    link.acknowledged(attempt, 1).await;
    is_heard(&mut link).await;
    // In the next session the agent doesn't know it any more.
    link.connection.close(0_u32.into(), b"");
    let mut link = stage.villain.connect(1).await;
    let held = link.welcome.take().unwrap().attempts.into_vec();
    assert!(held.is_empty());
    stage.scene.until_job_run(attempt, packrun_protocol::state::JobRunState::Lost).await;
    link.end(attempt, success(1, 0)).await;
    link.settled(attempt).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn floods_of_reports_that_say_nothing_new_end_the_connection() {
    let stage = Stage::set().await;
    let (mut link, own) = stage.villain_at_work().await;
    let unknown = AttemptId { job_run: JobRunId::generate(), number: AttemptNumber::FIRST };
    let at = Timestamp::default();
    let ended = |attempt| FromAgent::Ended { attempt, outcome: success(1, 0) };
    let floods = [
        FromAgent::Started { attempt: unknown, at },
        ended(unknown),
        FromAgent::Started { attempt: own, at },
        ended(own),
        FromAgent::Draining(false),
    ];
    for message in floods {
        for _ in 0..3 * limit::HELD_ATTEMPTS_MAX {
            link.writer.push(&message).unwrap();
        }
        let (connection, mut writer, mut reader) = (link.connection, link.writer, link.reader);
        // What is said to it is taken meanwhile.
        let taking = tokio::spawn(async move { while let Ok(Some(_)) = reader.raw().await {} });
        let _ = writer.flush().await;
        // A flood can lose the coordinator's last word; then it doesn't know the connection any more.
        match connection.closed().await {
            ConnectionError::Reset => {}
            other => {
                let (code, reason) = parting(&other);
                assert_eq!(code, CloseCode::Overloaded, "{message:?}: {reason}");
            }
        }
        taking.await.unwrap();
        let held = vec![HeldAttempt { attempt: own, phase: HeldPhase::Running(at) }];
        link = stage.villain.connect_holding(1, held).await;
    }
    stage.goes_on().await;
}

#[tokio::test]
async fn half_a_frame_on_the_control_stream_holds_up_nobody_but_its_sender() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let mut half = (limit::FRAME_BYTES_MAX as u32).to_le_bytes().to_vec();
    half.resize(limit::FRAME_BYTES_MAX / 2, 0);
    link.writer.stream().write_all(&half).await.unwrap();
    // Its other streams go on.
    let mut log = link.log(attempt, 0).await;
    log.stream().write_all(&blocks(attempt, 0..1)).await.unwrap();
    link.acknowledged(attempt, 1).await;
    let mut half = blocks(attempt, 1..2);
    half.truncate(HEADER_BYTES + ENTRY_BYTES);
    log.stream().write_all(&half).await.unwrap();
    let held = vec![HeldAttempt { attempt, phase: HeldPhase::Running(Timestamp::default()) }];
    let mut second = stage.villain.connect_holding(1, held).await;
    assert_eq!(link.closed().await.0, CloseCode::Superseded);
    let mut log = second.log(attempt, 1).await;
    log.stream().write_all(&blocks(attempt, 1..2)).await.unwrap();
    second.acknowledged(attempt, 2).await;
    stage.goes_on().await;
}
