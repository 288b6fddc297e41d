//! What may be wrong or absurd in an agent's first words, and that nobody is made to hold much before them.

use std::time::Duration;

use packrun_protocol::bounded::BoundedText;
use packrun_protocol::control::{FromAgent, HeldAnswer, HeldAttempt, HeldPhase, Hello, Isolation};
use packrun_protocol::id::{AttemptId, AttemptNumber, Epoch, EpochProof, JobRunId};
use packrun_protocol::name::Labels;
use packrun_protocol::quic::FrameWriter;
use packrun_protocol::stream::{CloseCode, StreamHeader};
use packrun_protocol::time::Timestamp;
use packrun_protocol::{frame, limit};
use quinn::{Connection, SendStream};
use serde::Serialize;

use super::agent::{Agent, parting, success};
use super::scene::{Job, settings};
use super::stage::{Stage, is_heard};
use crate::fleet::session::WAITING_MAX;

fn unknown(phase: HeldPhase) -> HeldAttempt {
    let attempt = AttemptId { job_run: JobRunId::generate(), number: AttemptNumber::FIRST };
    HeldAttempt { attempt, phase }
}

/// A `Hello` as anybody may write it, without the bounds of the real one.
#[derive(Serialize)]
enum Lie {
    Hello(LyingHello),
}

#[derive(Serialize)]
struct LyingHello {
    minor: u32,
    version: String,
    labels: Labels,
    capacity: (u32, u32, u64),
    draining: bool,
    epoch: u64,
    attempts: Vec<HeldAttempt>,
    proof: Option<EpochProof>,
    isolation: Isolation,
}

fn lying() -> LyingHello {
    LyingHello {
        minor: 0,
        version: "test".into(),
        labels: Labels::default(),
        capacity: (1, 64_000, 1 << 36),
        draining: false,
        epoch: 0,
        attempts: Vec::new(),
        proof: None,
        isolation: Isolation::Subreaper,
    }
}

#[tokio::test]
async fn eight_thousand_attempts_that_nobody_knows_and_all_that_an_agent_can_claim_are_answered() {
    let stage = Stage::set().await;
    let running = HeldPhase::Running(Timestamp::MAX);
    let phases = [HeldPhase::Assigned, running, HeldPhase::Ended];
    let held: Vec<_> = (0..limit::HELD_ATTEMPTS_MAX).map(|n| unknown(phases[n % 3])).collect();
    let labels =
        (0..limit::LABELS_MAX).map(|n| (format!("label-{n}"), "x".repeat(limit::LABEL_VALUE_BYTES_MAX)));
    let mut hello = stage.villain.hello(limit::SLOTS_MAX);
    hello.capacity.cpu_millis = u32::MAX;
    hello.capacity.memory_bytes = u64::MAX;
    hello.labels = Labels::new(labels).unwrap();
    hello.minor = u32::MAX;
    hello.version = BoundedText::try_from("\u{1b}[2J\0\n".repeat(10)).unwrap();
    hello.epoch = Epoch(0);
    hello.proof = Some(EpochProof::from_bytes([0xff; 32]));
    hello.attempts = held.clone().try_into().unwrap();
    let mut link = stage.villain.connect_with(hello).await.unwrap();
    let welcome = link.welcome.take().unwrap();
    assert_eq!(welcome.minor, 0);
    let answers = welcome.attempts.into_vec();
    assert_eq!(answers.len(), held.len());
    for (held, (attempt, answer)) in held.into_iter().zip(answers) {
        let wanted = if held.phase == HeldPhase::Ended { HeldAnswer::Settled } else { HeldAnswer::Fenced };
        assert_eq!((attempt, answer), (held.attempt, wanted));
    }
    // It has room for everything, and is given what is there, no more.
    stage.scene.start(vec![Job { width: 50, ..Job::named("wide") }]).await;
    let given = link.assigned().await;
    assert_eq!(given.len(), 50);
    for assignment in given {
        link.end(assignment.attempt, success(0, 0)).await;
    }
    stage.goes_on().await;
}

#[tokio::test]
async fn one_attempt_named_many_times_is_one() {
    let stage = Stage::set().await;
    let (link, attempt) = stage.villain_at_work().await;
    drop(link);
    let phases = [HeldPhase::Ended, HeldPhase::Assigned, HeldPhase::Running(Timestamp::MIN)];
    let held = (0..300).map(|n| HeldAttempt { attempt, phase: phases[n % 3] }).collect();
    let mut link = stage.villain.connect_holding(1, held).await;
    let answers = link.welcome.take().unwrap().attempts.into_vec();
    assert!(answers.iter().all(|(_, answer)| *answer == HeldAnswer::GoOn { log_from: 0 }));
    link.end(attempt, success(0, 0)).await;
    link.settled(attempt).await;
    stage.goes_on().await;
}

/// Opens a control stream and sends these bytes behind its header.
async fn begin(villain: &Agent, bytes: &[u8]) -> (Connection, SendStream) {
    let connection = villain.dial().await.unwrap();
    let (mut send, _) = connection.open_bi().await.unwrap();
    let mut all = frame::encode(&StreamHeader::Control).unwrap();
    all.extend_from_slice(bytes);
    // The connection may be closed before all of it left.
    let _ = send.write_all(&all).await;
    (connection, send)
}

#[tokio::test]
async fn a_hello_that_is_over_a_bound_ends_the_connection() {
    let stage = Stage::set().await;
    let too_many = (0..=limit::HELD_ATTEMPTS_MAX).map(|_| unknown(HeldPhase::Ended)).collect();
    for (what, hello) in [
        ("too many attempts", LyingHello { attempts: too_many, ..lying() }),
        ("no slot", LyingHello { capacity: (0, 1, 1), ..lying() }),
        ("too many slots", LyingHello { capacity: (limit::SLOTS_MAX + 1, 1, 1), ..lying() }),
        ("a long version", LyingHello { version: "9".repeat(65), ..lying() }),
        ("a higher epoch", LyingHello { epoch: u64::MAX, ..lying() }),
    ] {
        let bytes = frame::encode(&Lie::Hello(hello)).unwrap();
        let (connection, _send) = begin(&stage.villain, &bytes).await;
        assert_eq!(parting(&connection.closed().await).0, CloseCode::Protocol, "{what}");
    }
    let bytes = frame::encode(&Lie::Hello(lying())).unwrap();
    let honest = frame::encode(&FromAgent::Hello(stage.villain.hello(1))).unwrap();
    assert_eq!(bytes, honest, "nothing but what is over a bound is wrong with them");
    let mut behind = frame::encode(&FromAgent::Hello(stage.villain.hello(1))).unwrap();
    behind[0] += 1;
    behind.push(0);
    let (connection, _send) = begin(&stage.villain, &behind).await;
    assert_eq!(parting(&connection.closed().await).0, CloseCode::Protocol, "a byte behind its end");
    stage.goes_on().await;
}

#[tokio::test]
async fn an_agent_has_few_connections_that_say_nothing_and_those_not_for_long() {
    let mut settings = settings();
    settings.limits.greeting = Duration::from_secs(3);
    let stage = Stage::set_with(settings).await;
    let mut half = frame::encode(&FromAgent::Hello(stage.villain.hello(1))).unwrap();
    half.truncate(half.len() - 1);
    let mut large = (limit::FRAME_BYTES_MAX as u32).to_le_bytes().to_vec();
    large.resize(300_000, 1);
    let mut waiting = Vec::new();
    while waiting.len() < WAITING_MAX {
        let bytes = [&half, &large][waiting.len() % 2];
        waiting.push(begin(&stage.villain, bytes).await);
    }
    let crowded = stage.villain.dial().await.unwrap();
    let (code, reason) = parting(&crowded.closed().await);
    assert_eq!(code, CloseCode::Overloaded, "{reason}");
    for (connection, _send) in &waiting {
        assert_eq!(parting(&connection.closed().await).0, CloseCode::TimedOut);
    }
    let mut link = stage.villain.connect(1).await;
    is_heard(&mut link).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn streams_before_the_welcome_wait_for_it() {
    let stage = Stage::set().await;
    let connection = stage.villain.dial().await.unwrap();
    let (send, _receive) = connection.open_bi().await.unwrap();
    let more = [connection.open_bi(), connection.open_bi()];
    let log = connection.open_uni();
    let mut writer = FrameWriter::new(send);
    writer.push(&StreamHeader::Control).unwrap();
    writer.push(&FromAgent::Hello(Hello { draining: true, ..stage.villain.hello(1) })).unwrap();
    writer.flush().await.unwrap();
    log.await.unwrap();
    for stream in more {
        stream.await.unwrap();
    }
    stage.goes_on().await;
}
