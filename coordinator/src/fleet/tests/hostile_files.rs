//! Artifacts that lie, and streams that are left open: what an agent may make the coordinator keep or do is bounded.

use std::time::Duration;

use packrun_protocol::frame;
use packrun_protocol::id::Digest;
use packrun_protocol::job::{ArtifactRule, InputRule};
use packrun_protocol::quic::{FrameReader, FrameWriter};
use packrun_protocol::stream::{
    CloseCode, Content, DownloadAnswer, FileMode, StreamHeader, Upload, UploadAnswer, UploadEnd,
};
use quinn::VarInt;

use super::agent::{Link, success, upload};
use super::scene::{Job, name, settings};
use super::stage::{Stage, is_heard, refused};

/// What the answer to this header's bytes is: the code of a refusal.
async fn refusal(link: &Link, frame: &[u8]) -> Option<CloseCode> {
    let (mut send, receive) = link.connection.open_bi().await.unwrap();
    send.write_all(frame).await.unwrap();
    refused(&mut FrameReader::new(receive)).await
}

#[tokio::test]
async fn paths_and_modes_that_no_file_in_a_workspace_has_are_no_headers() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let honest = StreamHeader::Upload(upload(attempt, "aa/bbbbbb", b"x"));
    let frame = frame::encode(&honest).unwrap();
    let at = frame.windows(9).position(|bytes| bytes == b"aa/bbbbbb").unwrap();
    for path in [
        "../../etc",
        "/etc/pass",
        "a/../../b",
        "a/b/c/../",
        "./a/b/c/d",
        "a//b/c/d/",
        "a\0bcdefgh",
        "a\\bcdefgh",
        "a/b/c/d/.",
        "aaaaaaa/..",
        "a\nb/c/d/e",
    ] {
        let mut forged = frame.clone();
        forged[at..at + 9].copy_from_slice(&path.as_bytes()[..9]);
        assert_eq!(refusal(&link, &forged).await, Some(CloseCode::UnknownStream), "{path:?}");
    }
    let mut no_text = frame.clone();
    no_text[at] = 0xff;
    assert_eq!(refusal(&link, &no_text).await, Some(CloseCode::UnknownStream), "no UTF-8");
    let mut set_id = frame.clone();
    // The mode is the last: 0o644 takes three bytes.
    let end = set_id.len();
    set_id[end - 2..].copy_from_slice(&0o4755_u16.to_le_bytes());
    assert_eq!(refusal(&link, &set_id).await, Some(CloseCode::UnknownStream), "set-id");
    let mut long = (5000_u32).to_le_bytes().to_vec();
    long.resize(5000, 2);
    assert_eq!(refusal(&link, &long).await, Some(CloseCode::UnknownStream), "longer than a header is");
    is_heard(&mut link).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn only_what_the_jobs_rules_keep_is_taken_and_under_their_names() {
    let stage = Stage::set().await;
    let mut link = stage.villain.connect(1).await;
    let rule = |path: &str, named: Option<&str>| ArtifactRule {
        path: path.into(),
        name: named.map(name),
        optional: true,
    };
    let artifacts = vec![rule("out/app", None), rule("reports/**/*.xml", Some("reports"))];
    stage.scene.start(vec![Job { artifacts, ..Job::named("villain") }]).await;
    let attempt = link.assigned_one().await.attempt;
    let send =
        |path: &str, named: Option<&str>| Upload { name: named.map(name), ..upload(attempt, path, b"x") };
    for (path, named, why) in [
        ("other", None, "no artifact rule"),
        ("out", None, "no artifact rule"),
        ("out/app2", None, "no artifact rule"),
        ("reports/a.txt", Some("reports"), "no artifact rule"),
        ("other", Some("reports"), "no artifact rule"),
        ("out/app", Some("reports"), "another name"),
        ("reports/a.xml", None, "another name"),
        ("reports/a.xml", Some("unheard-of"), "has this name"),
    ] {
        let (_writer, mut reader) = link.ask(&StreamHeader::Upload(send(path, named))).await;
        let answer = reader.expect::<UploadAnswer>().await.unwrap();
        let UploadAnswer::Refused(reason) = answer else { panic!("{path} {named:?}: {answer:?}") };
        assert!(reason.as_str().contains(why), "{path} {named:?}: {reason}");
    }
    assert_eq!(stage.scene.artifacts.have(Digest::of(b"x")).await.unwrap(), None);
    let taken = [("out/app", None), ("out/app/deep", None), ("reports/a/b.xml", Some("reports"))];
    for (path, named) in taken {
        let (mut writer, mut reader) = link.ask(&StreamHeader::Upload(send(path, named))).await;
        if reader.expect::<UploadAnswer>().await.unwrap() == UploadAnswer::SendFrom(0) {
            writer.stream().write_all(b"x").await.unwrap();
            writer.stream().finish().unwrap();
            assert_eq!(reader.expect::<UploadEnd>().await.unwrap(), UploadEnd::Committed);
        }
    }
    link.end(attempt, success(0, 3)).await;
    link.settled(attempt).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn uploads_that_stop_midway_by_the_hundred_leave_a_bounded_rest() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let folder = stage.scene.folder.path().join("artifacts/partial");
    let left = || walk(&folder);
    let bytes = vec![7; 300_000];
    for n in 0..300_u32 {
        // Another content each time, half of them under one path.
        let path = if n % 2 == 0 { "same".to_owned() } else { format!("file-{n}") };
        let content =
            Content { digest: Digest::of(&n.to_le_bytes()), size: 1 << 20, mode: FileMode::of(0o644) };
        let header = Upload { content, ..upload(attempt, &path, b"") };
        let (mut writer, mut reader) = link.ask(&StreamHeader::Upload(header)).await;
        assert_eq!(reader.expect::<UploadAnswer>().await.unwrap(), UploadAnswer::SendFrom(0));
        writer.stream().write_all(&bytes).await.unwrap();
        match n % 3 {
            0 => writer.stream().finish().unwrap(),
            _ => writer.stream().reset(VarInt::from_u32(0)).unwrap(),
        }
        // It is noticed before the next begins.
        let _ = reader.raw().await;
        assert!(left() <= 65, "{} files after {n} uploads", left());
    }
    assert!(left() > 16, "some are kept, to be resumed");
    link.end(attempt, success(0, 0)).await;
    link.settled(attempt).await;
    stage.goes_on().await;
}

/// How many files are below the folder.
fn walk(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { walk(&path) } else { 1 }).sum()
}

#[tokio::test]
async fn as_many_uploads_as_may_be_open_keep_nobody_from_his_and_are_stopped_when_nothing_comes() {
    let mut settings = settings();
    settings.limits.silence = Duration::from_secs(3);
    let stage = Stage::set_with(settings).await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let ask = async |n: u32| {
        let header = StreamHeader::Upload(upload(attempt, &format!("file-{n}"), b"never sent"));
        link.ask(&header).await
    };
    let mut begun = Vec::new();
    for n in 0..16 {
        let (writer, mut reader) = ask(n).await;
        assert_eq!(reader.expect::<UploadAnswer>().await.unwrap(), UploadAnswer::SendFrom(0));
        begun.push((writer, reader));
    }
    let mut waiting = Vec::new();
    for n in 16..250 {
        waiting.push(ask(n).await);
    }
    assert_eq!(stage.honest.upload(stage.attempt, "out", b"honest").await, UploadEnd::Committed);
    for (_writer, reader) in &mut begun {
        assert_eq!(refused(reader).await, Some(CloseCode::TimedOut));
    }
    let (_writer, reader) = &mut waiting[0];
    assert_eq!(reader.expect::<UploadAnswer>().await.unwrap(), UploadAnswer::SendFrom(0), "its turn comes");
    is_heard(&mut link).await;
    link.connection.close(VarInt::from_u32(0), b"");
    stage.goes_on_with(1).await;
}

#[tokio::test]
async fn bidirectional_streams_of_unknown_kinds_are_refused_one_by_one() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let log = frame::encode(&StreamHeader::Log { attempt, from: 0 }).unwrap();
    let control = frame::encode(&StreamHeader::Control).unwrap();
    for bytes in [&[1, 0, 0, 0, 200][..], &[255; 32][..], &log, &control, &[0, 0, 0, 0], &[1, 16, 0, 0]] {
        assert_eq!(refusal(&link, bytes).await, Some(CloseCode::UnknownStream), "{bytes:?}");
    }
    // Ended within the header.
    let (mut send, receive) = link.connection.open_bi().await.unwrap();
    send.write_all(&[9, 0, 0, 0, 1]).await.unwrap();
    send.finish().unwrap();
    assert_eq!(refused(&mut FrameReader::new(receive)).await, Some(CloseCode::Protocol));
    is_heard(&mut link).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn downloads_that_nobody_reads_are_stopped_and_their_turns_given_to_others() {
    let mut settings = settings();
    settings.limits.silence = Duration::from_secs(3);
    let stage = Stage::set_with(settings).await;
    let mut link = stage.villain.connect(1).await;
    let large = vec![7; 8 << 20];
    let input = InputRule { from: name("make"), artifact: "large".into(), to: None, optional: false };
    let take = Job { needs: vec![0], inputs: vec![input], ..Job::named("take") };
    stage.scene.start(vec![Job::named("make"), take]).await;
    let make = link.assigned_one().await.attempt;
    assert_eq!(link.upload(make, "large", &large).await, UploadEnd::Committed);
    link.end(make, success(0, 1)).await;
    let attempt = link.assigned_one().await.attempt;
    let digest = Digest::of(&large);
    let ask = async || {
        let (writer, mut reader) = link.ask(&StreamHeader::Download { attempt, digest, offset: 0 }).await;
        assert_eq!(reader.expect::<DownloadAnswer>().await.unwrap(), DownloadAnswer::Bytes(8 << 20));
        (writer, reader)
    };
    let mut unread = Vec::new();
    for _ in 0..16 {
        unread.push(ask().await);
    }
    // They fill the windows and are given up. One more gets its turn then.
    let (_writer, mut reader) = ask().await;
    let mut bytes = 0;
    while let Some(more) = reader.raw().await.unwrap() {
        bytes += more.len();
    }
    assert_eq!(bytes, large.len());
    for (_writer, reader) in &mut unread {
        let code = reader.stream().received_reset().await.unwrap();
        let code = code.and_then(|code| CloseCode::from_wire(code.into_inner()));
        assert_eq!(code, Some(CloseCode::TimedOut));
    }
    is_heard(&mut link).await;
    link.end(attempt, success(0, 0)).await;
    link.settled(attempt).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn ten_thousand_streams_that_say_nothing_are_borne() {
    let stage = Stage::set().await;
    let mut link = stage.villain.connect(1).await;
    for n in 0..10_000_u32 {
        let stream = link.connection.open_uni().await.unwrap();
        let mut writer = FrameWriter::new(stream);
        // Some say a length and no more, some nothing, some end at once.
        if n % 3 != 0 {
            match writer.stream().write_all(&[1, 0, 0, 0]).await {
                Ok(()) | Err(quinn::WriteError::Stopped(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    is_heard(&mut link).await;
    stage.goes_on().await;
}
