//! Artifacts up, inputs down.

use packrun_agent::Stop;
use packrun_protocol::control::{HeldAnswer, ToAgent};
use packrun_protocol::id::Digest;
use packrun_protocol::job::{ArtifactRule, InputRule};
use packrun_protocol::quic::{FrameReader, FrameWriter};
use packrun_protocol::state::{Reason, Verdict};
use packrun_protocol::stream::{
    Content, DownloadAnswer, FileMode, InputAnswer, StreamHeader, UploadAnswer, UploadEnd,
};

use crate::fake::{Fake, script, within};

fn artifact(path: &str) -> ArtifactRule {
    ArtifactRule { path: path.to_owned(), name: None, optional: false }
}

fn input(artifact: &str, optional: bool) -> InputRule {
    InputRule { from: "compile".parse().unwrap(), artifact: artifact.to_owned(), to: None, optional }
}

#[tokio::test]
async fn an_upload_goes_on_where_it_was_cut_off_and_the_end_comes_after_it() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let mut job = script(
        "head -c 3000000 /dev/zero | tr '\\0' x > large; ln -s large link; mkdir d; echo 1 > d/f; ln -s f d/l",
    );
    job.artifacts = vec![artifact("large"), artifact("d")];
    let attempt = peer.assign(job).await;
    peer.started(attempt).await;
    let large = vec![b'x'; 3_000_000];
    let mut received = Vec::new();
    for _ in 0..2 {
        let (upload, mut send, mut receive) = peer.upload().await;
        if upload.path.as_str() == "d/f" {
            assert_eq!(upload.content.digest, Digest::of(b"1\n"));
            send.send(&UploadAnswer::Have).await.unwrap();
            continue;
        }
        assert_eq!((upload.attempt, upload.content.digest), (attempt, Digest::of(&large)));
        send.send(&UploadAnswer::SendFrom(0)).await.unwrap();
        while received.len() < 1_000_000 {
            received.extend_from_slice(&within(receive.raw()).await.unwrap().unwrap());
        }
    }
    peer.vanish();

    let mut peer = fake.meet().await;
    peer.welcome(|_| HeldAnswer::GoOn { log_from: 0 }).await;
    loop {
        let (upload, mut send, mut receive) = peer.upload().await;
        if upload.path.as_str() == "d/f" {
            // Its answer may have been lost with the connection.
            send.send(&UploadAnswer::Have).await.unwrap();
            continue;
        }
        send.send(&UploadAnswer::SendFrom(received.len() as u64)).await.unwrap();
        while let Some(bytes) = within(receive.raw()).await.unwrap() {
            received.extend_from_slice(&bytes);
        }
        assert!(received == large);
        send.send(&UploadEnd::Committed).await.unwrap();
        break;
    }
    let outcome = peer.ended(attempt).await;
    assert_eq!((outcome.verdict, outcome.artifacts, outcome.entries), (Verdict::Succeeded, 2, 1));
    let note = &peer.log().await.lines()[0];
    assert!(note.1.contains("`d/l` is a symbolic link"), "{note:?}");
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_refused_artifact_fails_the_attempt_with_the_reason() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let mut job = script("echo 1 > a");
    job.artifacts = vec![artifact("a")];
    let attempt = peer.assign(job).await;
    let (_, mut send, _receive) = peer.upload().await;
    send.send(&UploadAnswer::Refused(Reason::new("no room for it"))).await.unwrap();
    let outcome = peer.ended(attempt).await;
    assert_eq!((outcome.verdict, outcome.reason), (Verdict::Failed, Some(Reason::new("no room for it"))));
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_cancel_stops_an_upload_that_does_not_end() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let mut job = script("echo 1 > a");
    job.artifacts = vec![artifact("a")];
    let attempt = peer.assign(job).await;
    let _unanswered = peer.upload().await;
    peer.say(ToAgent::Cancel { attempt, reason: Reason::new("it takes too long") }).await;
    let outcome = peer.ended(attempt).await;
    assert_eq!((outcome.verdict, outcome.artifacts), (Verdict::Canceled, 0));
    assert_eq!(outcome.reason, Some(Reason::new("it takes too long")));
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn inputs_are_fetched_from_where_they_were_cut_off_and_only_once() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let bytes: Vec<u8> = (0..2_000_000u32).map(|n| n as u8).collect();
    let content = Content { digest: Digest::of(&bytes), size: 2_000_000, mode: FileMode::of(0o750) };
    let mut job = script("sha256sum in/a; stat -c %a in/a");
    job.inputs = vec![input("in", false), input("none", true)];
    let attempt = peer.assign(job.clone()).await;

    let (header, mut send, _) = peer.stream().await;
    assert_eq!(header, StreamHeader::Inputs { attempt, input: 0 });
    send.push(&InputAnswer::File { path: "in/a".parse().unwrap(), content }).unwrap();
    send.send(&InputAnswer::End { files: 1 }).await.unwrap();
    let (header, mut send, _) = peer.stream().await;
    assert_eq!(header, StreamHeader::Download { attempt, digest: content.digest, offset: 0 });
    send.send(&DownloadAnswer::Bytes(content.size)).await.unwrap();
    send.stream().write_all(&bytes[..1_500_000]).await.unwrap();
    // What was read is kept, and the rest is not: the agent says from where to go on.
    send.stream().reset(1u32.into()).unwrap();
    let (header, mut send, _) = peer.stream().await;
    let StreamHeader::Download { offset, .. } = header else { panic!("{header:?}") };
    assert!(offset < content.size);
    send.send(&DownloadAnswer::Bytes(content.size - offset)).await.unwrap();
    send.stream().write_all(&bytes[offset as usize..]).await.unwrap();
    send.stream().finish().unwrap();
    let (header, mut send, _) = peer.stream().await;
    assert_eq!(header, StreamHeader::Inputs { attempt, input: 1 });
    send.send(&InputAnswer::End { files: 0 }).await.unwrap();

    assert_eq!(peer.ended(attempt).await.verdict, Verdict::Succeeded);
    let lines = peer.log().await.lines();
    assert!(lines[0].1.starts_with(&content.digest.to_hex()) && lines[1].1 == "750", "{lines:?}");
    peer.say(ToAgent::Settled(vec![attempt])).await;

    // The second time it is there.
    job.inputs.pop();
    let attempt = peer.assign(job).await;
    let (_, mut send, _) = peer.stream().await;
    send.push(&InputAnswer::File { path: "in/a".parse().unwrap(), content }).unwrap();
    send.send(&InputAnswer::End { files: 1 }).await.unwrap();
    assert_eq!(peer.ended(attempt).await.verdict, Verdict::Succeeded);
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn an_input_that_was_not_left_or_is_refused_fails_the_attempt() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let mut job = script("true");
    job.inputs = vec![input("app", false)];
    for (answer, words) in [
        (InputAnswer::End { files: 0 }, "`app` was not left by job `compile`"),
        (InputAnswer::Refused(Reason::new("not yours")), "not yours"),
    ] {
        let attempt = peer.assign(job.clone()).await;
        let (_, mut send, _) = peer.stream().await;
        send.send(&answer).await.unwrap();
        let outcome = peer.ended(attempt).await;
        assert_eq!(outcome.verdict, Verdict::Failed);
        assert!(outcome.reason.unwrap().as_str().contains(words));
        peer.say(ToAgent::Settled(vec![attempt])).await;
    }
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn many_files_come_side_by_side_and_each_content_once() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let mut job = script("cat in/* | sort -n | uniq -c | tr -s ' '");
    job.inputs = vec![input("in", false)];
    let contents: Vec<_> = (0..30u32).map(|n| format!("{}\n", n / 2).into_bytes()).collect();
    let content = |bytes: &[u8]| Content {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        mode: FileMode::of(0o644),
    };
    let connection = peer.connection.clone();
    let files = contents.clone();
    let served = tokio::spawn(async move {
        let mut downloads = 0;
        while let Ok((send, receive)) = connection.accept_bi().await {
            let (mut send, mut receive) = (FrameWriter::new(send), FrameReader::new(receive));
            match receive.expect().await.unwrap() {
                StreamHeader::Inputs { .. } => {
                    for (at, bytes) in files.iter().enumerate() {
                        let path = format!("in/{at}").parse().unwrap();
                        send.push(&InputAnswer::File { path, content: content(bytes) }).unwrap();
                    }
                    send.send(&InputAnswer::End { files: 30 }).await.unwrap();
                }
                StreamHeader::Download { digest, offset: 0, .. } => {
                    downloads += 1;
                    let bytes = files.iter().find(|bytes| Digest::of(bytes) == digest).unwrap();
                    send.send(&DownloadAnswer::Bytes(bytes.len() as u64)).await.unwrap();
                    send.stream().write_all(bytes).await.unwrap();
                }
                other => panic!("{other:?}"),
            }
            send.stream().finish().unwrap();
        }
        downloads
    });
    let attempt = peer.assign(job).await;
    assert_eq!(peer.ended(attempt).await.verdict, Verdict::Succeeded);
    let lines: Vec<_> = peer.log().await.lines().into_iter().map(|(_, line)| line).collect();
    let twice: Vec<_> = (0..15).map(|n| format!(" 2 {n}")).collect();
    assert_eq!(lines, twice);
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
    assert_eq!(within(served).await.unwrap(), 15);
}
