//! A coordinator that hands out what can't be done, and says what isn't so: attempts fail with a reason, sessions end,
//! and what runs lives on.

use std::time::Duration;

use packrun_agent::Stop;
use packrun_protocol::codec;
use packrun_protocol::control::{Assignment, FromCoordinator, HeldAnswer, HeldPhase, ToAgent};
use packrun_protocol::id::{AttemptId, AttemptNumber, Epoch, JobRunId};
use packrun_protocol::job::{Action, ArtifactRule, Definition};
use packrun_protocol::quic::FrameReader;
use packrun_protocol::state::{Reason, Verdict};
use packrun_protocol::stream::{CloseCode, StreamHeader};

use crate::fake::{Fake, Peer, assignment, script, state, within};

fn unknown() -> AttemptId {
    AttemptId { job_run: JobRunId::generate(), number: AttemptNumber::FIRST }
}

fn keeping(path: &str) -> Definition {
    Definition {
        artifacts: vec![ArtifactRule { path: path.to_owned(), name: None, optional: true }],
        ..script("true")
    }
}

#[tokio::test]
async fn what_no_job_can_be_fails_its_attempt_with_the_reason() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let env = |name: &str, value: &str| Definition {
        env: vec![(name.to_owned(), value.to_owned())],
        ..script("true")
    };
    let command = |words: &[&str]| Definition {
        action: Action::Command(words.iter().map(|word| (*word).to_owned()).collect()),
        ..script("")
    };
    let within_folder =
        |workdir: &str| Definition { workdir: Some(workdir.parse().unwrap()), ..script("true") };
    let rules = vec![ArtifactRule { path: "a".into(), name: None, optional: true }; 1025];
    for (job, words) in [
        (command(&[]), "the command is empty"),
        (command(&[""]), "the command is empty"),
        (command(&["a\0b"]), "NUL"),
        (script("echo\0"), "NUL"),
        (script(&"#".repeat(600 << 10)), "over the limit"),
        (env("A\0", ""), "NUL"),
        (env("", "x"), "no name of a variable"),
        (env("A=B", "x"), "no name of a variable"),
        (env("A", &"x".repeat(300 << 10)), "too long together"),
        (env("A", &"x".repeat(600 << 10)), "over the limit"),
        (within_folder("none/such"), "working directory"),
        (keeping("../../x"), "path"),
        (keeping("/etc/passwd"), "path"),
        (keeping("a\0b"), "control characters"),
        (keeping(".packrun/x"), ".packrun"),
        (Definition { artifacts: rules, ..script("true") }, "over the limit"),
    ] {
        let shown = format!("{job:?}").chars().take(100).collect::<String>();
        let attempt = peer.assign(job).await;
        let outcome = peer.ended(attempt).await;
        let reason = outcome.reason.map(|reason| reason.to_string()).unwrap_or_default();
        assert_eq!(outcome.verdict, Verdict::Failed, "{shown}");
        assert!(reason.contains(words), "{shown}: {reason}");
        peer.say(ToAgent::Settled(vec![attempt])).await;
    }
    for (timeout, verdict) in [(Duration::MAX, Verdict::Succeeded), (Duration::ZERO, Verdict::TimedOut)] {
        let text = if timeout.is_zero() { "exec sleep 1000" } else { "true" };
        let attempt = peer.assign(Definition { timeout: Some(timeout), ..script(text) }).await;
        assert_eq!(peer.ended(attempt).await.verdict, verdict);
        peer.say(ToAgent::Settled(vec![attempt])).await;
    }
    agent.stop(Stop::Drain).await;
    let beside: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(beside, [state(&folder)], "nothing is written outside the state folder");
    assert_eq!(std::fs::read_dir(state(&folder).join("workspaces")).unwrap().count(), 0);
}

/// A frame that is the encoding of `message` with some of its bytes replaced by others.
fn forged(message: ToAgent, from: &[u8], to: &[u8]) -> Vec<u8> {
    let body = codec::encode(&FromCoordinator { epoch: Epoch(5), message }).unwrap();
    let at = body.windows(from.len()).position(|window| window == from).unwrap();
    framed([&body[..at], to, &body[at + from.len()..]].concat())
}

fn framed(body: Vec<u8>) -> Vec<u8> {
    [u32::try_from(body.len()).unwrap().to_le_bytes().to_vec(), body].concat()
}

async fn closed_by(mut peer: Peer, frame: &[u8], what: &str) {
    peer.welcome(|_| HeldAnswer::GoOn { log_from: 0 }).await;
    peer.send.stream().write_all(frame).await.unwrap();
    assert_eq!(peer.closed().await, Some(CloseCode::Protocol), "{what}");
}

/// An agent that runs something gets each of these frames in a session of its own.
async fn is_closed_by(frames: &[(&str, Vec<u8>)]) {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let running = peer.assign(script("exec sleep 1000")).await;
    peer.started(running).await;
    peer.vanish();
    for (what, frame) in frames {
        closed_by(fake.meet().await, frame, what).await;
    }
    let mut peer = fake.meet().await;
    assert_eq!(peer.hello.attempts.len(), 1);
    let held = peer.hello.attempts[0];
    assert!(held.attempt == running && matches!(held.phase, HeldPhase::Running(_)), "{held:?}");
    peer.welcome(|_| HeldAnswer::Fenced).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn words_that_nobody_can_mean_end_the_session_and_what_runs_lives_on() {
    let in_folder = || {
        let job = Definition { workdir: Some("aa/bb".parse().unwrap()), ..script("true") };
        ToAgent::Assign(vec![assignment(job)])
    };
    let goodbye = ToAgent::Goodbye { restarting: true, reason: Reason::new("abcd") };
    // 10,000 addresses of a leader, where sixteen are allowed.
    let mut many = vec![5, 10, 251, 0x10, 0x27];
    many.extend(b"\x03a:1".repeat(10_000));
    let frames = [
        ("a way out of the workspace", forged(in_folder(), b"aa/bb", b"../bb")),
        ("an absolute path", forged(in_folder(), b"aa/bb", b"/a/bb")),
        ("a NUL in a path", forged(in_folder(), b"aa/bb", b"a\0/bb")),
        ("a pack's name", forged(in_folder(), b"demo", b"../x")),
        ("a reason with escapes", forged(goodbye, b"abcd", b"\x1b[2J")),
        ("too many leaders", framed(many)),
        ("a message of a later version", framed(vec![5, 11, 0])),
        ("bytes behind a message", framed(vec![5, 8, 0, 0])),
    ];
    // From session to session an agent waits longer.
    let mut agents = frames.chunks(2).map(|some| Box::pin(is_closed_by(some))).collect::<Vec<_>>();
    let [a, b, c, d] = agents.as_mut_slice() else { panic!("four agents") };
    tokio::join!(a, b, c, d);
}

#[tokio::test]
async fn more_attempts_than_slots_end_the_session_and_only_so_many_run() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let mut config = fake.config(&folder);
    config.capacity.slots = 2.try_into().unwrap();
    let agent = crate::fake::start(config);
    fake.enrol(None).await;
    let mut peer = fake.meet().await;
    peer.welcome(|_| panic!("nothing is held")).await;
    let marks = folder.path().join("marks");
    let job = script(&format!("echo x >> {}; exec sleep 1000", marks.display()));
    let closed = peer.connection.clone();
    let flood = async {
        for _ in 0..100 {
            let many: Vec<Assignment> = (0..1000).map(|_| assignment(job.clone())).collect();
            let frame = FromCoordinator { epoch: peer.epoch, message: ToAgent::Assign(many) };
            if peer.send.send(&frame).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(flood, within(closed.closed()));
    assert_eq!(peer.closed().await, Some(CloseCode::Protocol));
    let mut peer = fake.meet().await;
    assert!(peer.hello.attempts.len() <= 2, "{:?}", peer.hello.attempts);
    peer.welcome(|_| HeldAnswer::Fenced).await;
    let attempt = peer.assign(script("true")).await;
    peer.ended(attempt).await;
    assert!(std::fs::read_to_string(marks).unwrap_or_default().lines().count() <= 2);
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn talk_of_attempts_that_nobody_knows_changes_nothing() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let running = peer.assign(script("exec sleep 1000")).await;
    peer.started(running).await;
    let identity = || std::fs::read(state(&folder).join("identity/agent.pem")).unwrap();
    let before = identity();
    let reason = || Reason::new("because");
    peer.say(ToAgent::Settled((0..50_000).map(|_| unknown()).collect())).await;
    peer.say(ToAgent::LogAck((0..30_000).map(|seq| (unknown(), seq)).collect())).await;
    for n in 0..2_000 {
        peer.say(ToAgent::Cancel { attempt: unknown(), reason: reason() }).await;
        peer.say(ToAgent::Fence(unknown())).await;
        peer.say(ToAgent::Drain(n % 2 == 0)).await;
        let at = Default::default();
        peer.say(ToAgent::Pong { sent: at, answered: at }).await;
        // Of the right key, and not asked for.
        peer.say(ToAgent::Certificate("x".try_into().unwrap())).await;
    }
    let attempt = peer.assign(script("true")).await;
    assert_eq!(peer.ended(attempt).await.verdict, Verdict::Succeeded);
    assert_eq!(identity(), before);
    peer.say(ToAgent::Cancel { attempt: running, reason: reason() }).await;
    peer.say(ToAgent::Settled(vec![attempt])).await;
    assert_eq!(peer.ended(running).await.verdict, Verdict::Canceled);
    peer.say(ToAgent::Settled(vec![running])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn an_acknowledgement_of_what_was_never_sent_ends_the_session_and_loses_no_line() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let go = folder.path().join("go");
    let text = format!("echo a; while ! test -e {}; do sleep 0.02; done; echo b", go.display());
    let attempt = peer.assign(script(&text)).await;
    peer.started(attempt).await;
    let mut stream = FrameReader::new(peer.log_stream().await);
    assert_eq!(
        within(stream.expect::<StreamHeader>()).await.unwrap(),
        StreamHeader::Log { attempt, from: 0 }
    );
    within(stream.raw()).await.unwrap().unwrap();
    peer.say(ToAgent::LogAck(vec![(attempt, 1_000_000)])).await;
    assert_eq!(peer.closed().await, Some(CloseCode::Protocol));

    let mut peer = fake.meet().await;
    peer.welcome(|_| HeldAnswer::GoOn { log_from: 0 }).await;
    std::fs::write(go, "").unwrap();
    assert_eq!(peer.ended(attempt).await.entries, 2);
    let lines: Vec<_> = peer.log().await.lines().into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines, ["a", "b"]);
    // Forwards, backwards and twice.
    for next_seq in [1, 2, 1, 0, 2] {
        peer.say(ToAgent::LogAck(vec![(attempt, next_seq)])).await;
    }
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn an_agent_that_is_sent_in_circles_keeps_what_it_has_and_is_there_in_the_end() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let running = peer.assign(script("exec sleep 1000")).await;
    peer.started(running).await;
    for _ in 0..5 {
        let here = vec![fake.address().as_str().try_into().unwrap(); 16];
        peer.say(ToAgent::NotLeader(here.try_into().unwrap())).await;
        assert_eq!(peer.closed().await, Some(CloseCode::Done));
        peer = fake.meet().await;
    }
    assert_eq!(peer.hello.attempts[0].attempt, running);
    peer.welcome(|_| HeldAnswer::Fenced).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn absurd_times_in_a_welcome_are_not_kept() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    for (lease, heartbeat) in
        [(Duration::ZERO, Duration::ZERO), (Duration::MAX, Duration::MAX), (Duration::MAX, Duration::ZERO)]
    {
        peer.vanish();
        peer = fake.meet().await;
        (peer.lease, peer.heartbeat) = (lease, heartbeat);
        // The last word may have been lost with the connection.
        peer.welcome(|_| HeldAnswer::Settled).await;
        let attempt = peer.assign(script("true")).await;
        assert_eq!(peer.ended(attempt).await.verdict, Verdict::Succeeded);
        peer.say(ToAgent::Settled(vec![attempt])).await;
    }
    agent.stop(Stop::Drain).await;
}
