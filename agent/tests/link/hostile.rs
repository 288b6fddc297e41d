//! A coordinator that breaks the protocol harms one session or one attempt, never the agent.

use crate::fake::{Fake, script};
use packrun_agent::Stop;
use packrun_protocol::codec;
use packrun_protocol::control::{HeldAnswer, ToAgent};
use packrun_protocol::id::Digest;
use packrun_protocol::job::{ArtifactRule, InputRule};
use packrun_protocol::quic::{FrameReader, FrameWriter};
use packrun_protocol::state::{Reason, Verdict};
use packrun_protocol::stream::{
    CloseCode, Content, DownloadAnswer, FileMode, InputAnswer, StreamHeader, UploadAnswer,
};

#[tokio::test]
async fn broken_frames_end_the_session_and_the_agent_comes_back_with_all_it_has() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script("exec sleep 1000")).await;
    peer.started(attempt).await;
    for bytes in [&u32::MAX.to_le_bytes()[..], &[4, 0, 0, 0, 255, 255, 255, 255], &[0, 0, 0, 0]] {
        peer.send.stream().write_all(bytes).await.unwrap();
        assert_eq!(peer.closed().await, Some(CloseCode::Protocol));
        peer = fake.meet().await;
        assert_eq!(peer.hello.attempts[0].attempt, attempt);
        peer.welcome(|_| HeldAnswer::GoOn { log_from: 0 }).await;
    }
    // An answer for attempts that were not named, and one that never comes to an end.
    peer.welcome(|_| HeldAnswer::Settled).await;
    assert_eq!(peer.closed().await, Some(CloseCode::Protocol));
    let mut peer = fake.meet().await;
    peer.say(ToAgent::Fence(attempt)).await;
    assert_eq!(peer.closed().await, Some(CloseCode::Protocol), "not before Welcome");
    let mut peer = fake.meet().await;
    peer.send.stream().finish().unwrap();
    assert_eq!(peer.closed().await, Some(CloseCode::Protocol));
    let mut peer = fake.meet().await;
    peer.welcome(|_| HeldAnswer::Fenced).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn an_upload_wanted_from_behind_its_end_fails_its_attempt() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let mut job = script("echo 1 > a");
    job.artifacts = vec![ArtifactRule { path: "a".into(), name: None, optional: false }];
    let attempt = peer.assign(job).await;
    let (_, mut send, _receive) = peer.upload().await;
    send.send(&UploadAnswer::SendFrom(3)).await.unwrap();
    let outcome = peer.ended(attempt).await;
    assert!(outcome.reason.unwrap().as_str().contains("behind its end"));
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

/// What a coordinator says of one input, and what it sends then.
#[derive(Clone, Copy)]
struct Lie {
    path: &'static str,
    content: Content,
    /// How many bytes a download announces in all, and how many of them come.
    announced: u64,
    sent: usize,
}

const BYTES: &[u8] = b"12345678";

/// Tells the lie to every stream.
async fn lie(connection: quinn::Connection, lie: Lie) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        let (mut send, mut receive) = (FrameWriter::new(send), FrameReader::new(receive));
        // The agent may have given up before all is said.
        match receive.expect().await {
            Ok(StreamHeader::Inputs { .. }) => {
                let (path, content) = (lie.path.parse().unwrap(), lie.content);
                let _ = send.send(&InputAnswer::File { path, content }).await;
                let _ = send.send(&InputAnswer::End { files: 1 }).await;
            }
            Ok(StreamHeader::Download { offset, .. }) => {
                let _ = send.send(&DownloadAnswer::Bytes(lie.announced - offset)).await;
                let bytes = BYTES.repeat(lie.sent.div_ceil(BYTES.len()));
                let rest = bytes.get(offset as usize..lie.sent).unwrap_or_default();
                let _ = send.stream().write_all(rest).await;
            }
            other => panic!("{other:?}"),
        }
        let _ = send.stream().finish();
    }
}

#[tokio::test]
async fn inputs_that_are_not_what_they_should_be_fail_their_attempt() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let mut job = script("true");
    let (from, to) = ("compile".parse().unwrap(), None);
    job.inputs = vec![InputRule { from, artifact: "in".into(), to, optional: false }];
    let content = Content { digest: Digest::of(BYTES), size: 8, mode: FileMode::of(0o644) };
    let other = Content { digest: Digest::of(b"other"), ..content };
    let huge = Content { size: u64::MAX, ..content };
    for (path, content, announced, sent, words) in [
        ("a", other, 8, 8, "another content"),
        ("a", content, 8, 4, "announced"),
        ("a", content, 9, 8, "another length"),
        ("a", content, 8, 10 << 20, "announced"),
        ("a", huge, 9, 8, "over the limit"),
        (".packrun/a", content, 8, 8, ".packrun"),
    ] {
        let lies = tokio::spawn(lie(peer.connection.clone(), Lie { path, content, announced, sent }));
        let attempt = peer.assign(job.clone()).await;
        let outcome = peer.ended(attempt).await;
        let reason = outcome.reason.unwrap();
        assert_eq!(outcome.verdict, Verdict::Failed);
        assert!(reason.as_str().contains(words), "{path}: {reason}");
        lies.abort();
        assert!(lies.await.unwrap_err().is_cancelled(), "the streams were those that it knows");
        peer.say(ToAgent::Settled(vec![attempt])).await;
    }
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn lists_of_inputs_that_do_not_end_or_do_not_add_up_fail_their_attempt() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let mut job = script("true");
    let (from, to) = ("compile".parse().unwrap(), None);
    job.inputs = vec![InputRule { from, artifact: "in".into(), to, optional: false }];
    let content = Content { digest: Digest::of(BYTES), size: 8, mode: FileMode::of(0o644) };
    let file = InputAnswer::File { path: "in/a".parse().unwrap(), content };
    for (files, count, words) in [(100_001, 100_001, "more than 100000 files"), (2, 1, "not whole")] {
        let attempt = peer.assign(job.clone()).await;
        let (_, mut send, _) = peer.stream().await;
        for _ in 0..files {
            send.push(&file).unwrap();
        }
        send.push(&InputAnswer::End { files: count }).unwrap();
        let _ = send.flush().await;
        let outcome = peer.ended(attempt).await;
        assert!(outcome.reason.unwrap().as_str().contains(words));
        peer.say(ToAgent::Settled(vec![attempt])).await;
    }
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_file_of_a_list_may_not_lie_outside_of_the_workspace() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let mut job = script("true");
    let (from, to) = ("compile".parse().unwrap(), None);
    job.inputs = vec![InputRule { from, artifact: "in".into(), to, optional: false }];
    let content = Content { digest: Digest::of(BYTES), size: 8, mode: FileMode::of(0o644) };
    let good = codec::encode(&InputAnswer::File { path: "aa/bb".parse().unwrap(), content }).unwrap();
    let at = good.windows(5).position(|window| window == b"aa/bb").unwrap();
    let attempt = peer.assign(job).await;
    for path in [b"../bb", b"/a/bb", b"a\0/bb"] {
        // It is no answer, so it is asked for again.
        let (_, mut send, _) = peer.stream().await;
        let body = [&good[..at], path, &good[at + 5..]].concat();
        let frame = [u32::try_from(body.len()).unwrap().to_le_bytes().to_vec(), body].concat();
        send.stream().write_all(&frame).await.unwrap();
    }
    peer.say(ToAgent::Cancel { attempt, reason: Reason::new("enough") }).await;
    assert_eq!(peer.ended(attempt).await.verdict, Verdict::Canceled);
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
    let beside = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(beside, 1, "nothing is written outside the state folder");
}
