//! What an agent may try that is broken or malicious: its own connection ends or its stream is refused, and the
//! agent beside it doesn't notice.

use std::time::Duration;

use packrun_protocol::control::{FromAgent, HeldAttempt, HeldPhase, Ping, ToAgent};
use packrun_protocol::id::Digest;
use packrun_protocol::quic::{FrameReader, FrameWriter};
use packrun_protocol::stream::{CloseCode, StreamHeader, UploadAnswer, UploadEnd};
use packrun_protocol::time::Timestamp;
use quinn::{ReadError, WriteError};

use super::agent::{Link, blocks, success, upload};
use super::scene::{Job, settings};
use super::stage::{Stage, stopped};

#[tokio::test]
async fn garbage_on_the_control_stream_ends_the_connection() {
    let stage = Stage::set().await;
    let garbage: [&[u8]; 4] =
        [&[5, 0, 0, 0, 255, 255, 255, 255, 255], &[0; 64], &[255; 64], &[4, 0, 0, 0, 3, 1]];
    for bytes in garbage {
        let mut link = stage.villain.connect(1).await;
        link.writer.stream().write_all(bytes).await.unwrap();
        link.writer.stream().finish().unwrap();
        assert_eq!(link.closed().await.0, CloseCode::Protocol, "{bytes:?}");
    }
    stage.goes_on().await;
}

#[tokio::test]
async fn a_connection_that_does_not_begin_with_hello_is_closed() {
    let stage = Stage::set().await;
    for header in [StreamHeader::Log { attempt: stage.attempt, from: 0 }, StreamHeader::Control] {
        let connection = stage.villain.dial().await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        let mut writer = FrameWriter::new(send);
        writer.push(&header).unwrap();
        writer.push(&FromAgent::Draining(true)).unwrap();
        writer.flush().await.unwrap();
        let mut link = Link { connection, reader: FrameReader::new(receive), writer, welcome: None };
        assert!(link.next().await.is_none());
        assert_eq!(link.closed().await.0, CloseCode::Protocol);
    }
    let mut link = stage.villain.connect(1).await;
    let again = FromAgent::Hello(stage.villain.hello(1));
    link.say(&again).await;
    assert_eq!(link.closed().await.0, CloseCode::Protocol);
    stage.goes_on().await;
}

#[tokio::test]
async fn nobody_writes_anothers_log() {
    let stage = Stage::set().await;
    let link = stage.villain.connect(1).await;
    let mut log = link.log(stage.attempt, 0).await;
    assert_eq!(stopped(&mut log).await, Some(CloseCode::Fenced));
    stage.goes_on().await;
}

#[tokio::test]
async fn nobody_reports_on_anothers_attempt() {
    let stage = Stage::set().await;
    let mut link = stage.villain.connect(1).await;
    link.end(stage.attempt, success(0, 0)).await;
    link.settled(stage.attempt).await;
    let started = FromAgent::Started { attempt: stage.attempt, at: Timestamp::default() };
    link.say(&started).await;
    link.until(|message| matches!(message, ToAgent::Fence(of) if of == stage.attempt).then_some(())).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn what_is_no_block_of_the_attempt_ends_the_connection() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let mut broken = blocks(attempt, 0..1);
    *broken.last_mut().unwrap() ^= 1;
    let anothers = blocks(stage.attempt, 1..2);
    let endless = u32::MAX.to_le_bytes().to_vec();
    for (what, bytes) in [("a wrong checksum", broken), ("another's block", anothers), ("endless", endless)] {
        let mut log = link.log(attempt, 0).await;
        log.stream().write_all(&bytes).await.unwrap();
        let (code, reason) = link.closed().await;
        assert_eq!(code, CloseCode::Protocol, "{what}: {reason}");
        let held = HeldPhase::Running(Timestamp::default());
        let held = vec![HeldAttempt { attempt, phase: held }];
        link = stage.villain.connect_holding(1, held).await;
    }
    stage.goes_on().await;
}

#[tokio::test]
async fn a_gap_or_half_a_block_in_a_log_ends_the_session_and_the_next_fills_it() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let mut half = blocks(attempt, 0..1);
    half.pop();
    for (what, bytes) in [("a gap", blocks(attempt, 5..6)), ("half a block", half)] {
        let mut log = link.log(attempt, 0).await;
        log.stream().write_all(&bytes).await.unwrap();
        log.stream().finish().unwrap();
        let (code, reason) = link.closed().await;
        assert_eq!(code, CloseCode::Unavailable, "{what}: {reason}");
        let held = vec![HeldAttempt { attempt, phase: HeldPhase::Running(Timestamp::default()) }];
        link = stage.villain.connect_holding(1, held).await;
    }
    let mut log = link.log(attempt, 0).await;
    log.stream().write_all(&blocks(attempt, 0..6)).await.unwrap();
    link.acknowledged(attempt, 6).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn a_second_log_stream_of_an_attempt_takes_over() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    let mut first = link.log(attempt, 0).await;
    first.stream().write_all(&blocks(attempt, 0..2)).await.unwrap();
    link.acknowledged(attempt, 2).await;
    let mut second = link.log(attempt, 2).await;
    assert_eq!(stopped(&mut first).await, Some(CloseCode::Superseded));
    second.stream().write_all(&blocks(attempt, 2..4)).await.unwrap();
    link.acknowledged(attempt, 4).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn bytes_that_are_not_those_announced_are_refused() {
    let stage = Stage::set().await;
    let (mut link, attempt) = stage.villain_at_work().await;
    for sent in [&b"forged"[..], &b"forged, and longer"[..]] {
        let header = StreamHeader::Upload(upload(attempt, "out", b"honest"));
        let (mut writer, mut reader) = link.ask(&header).await;
        assert_eq!(reader.expect::<UploadAnswer>().await.unwrap(), UploadAnswer::SendFrom(0));
        writer.stream().write_all(sent).await.unwrap();
        writer.stream().finish().unwrap();
        assert!(matches!(reader.expect::<UploadEnd>().await.unwrap(), UploadEnd::Refused(_)));
    }
    assert_eq!(stage.scene.artifacts.have(Digest::of(b"honest")).await.unwrap(), None);
    let mut huge = upload(attempt, "out", b"honest");
    huge.content.size = 1 << 40;
    let (_writer, mut reader) = link.ask(&StreamHeader::Upload(huge)).await;
    assert!(matches!(reader.expect::<UploadAnswer>().await.unwrap(), UploadAnswer::Refused(_)));
    let UploadEnd::Refused(reason) = link.upload(attempt, ".packrun/home", b"x").await else { panic!() };
    assert!(reason.as_str().contains("belongs to packrun"), "{reason}");
    link.end(attempt, success(0, 0)).await;
    link.settled(attempt).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn a_path_out_of_the_workspace_is_no_header() {
    let stage = Stage::set().await;
    let (link, attempt) = stage.villain_at_work().await;
    let honest = StreamHeader::Upload(upload(attempt, "aa/bbbbbb", b"x"));
    let mut frame = packrun_protocol::frame::encode(&honest).unwrap();
    let at = frame.windows(9).position(|bytes| bytes == b"aa/bbbbbb").unwrap();
    frame[at..at + 9].copy_from_slice(b"../../etc");
    let (mut send, mut receive) = link.connection.open_bi().await.unwrap();
    send.write_all(&frame).await.unwrap();
    let refused = receive.read_to_end(100).await.unwrap_err();
    let quinn::ReadToEndError::Read(ReadError::Reset(code)) = refused else { panic!("{refused}") };
    assert_eq!(CloseCode::from_wire(code.into_inner()), Some(CloseCode::UnknownStream));
    stage.goes_on().await;
}

#[tokio::test]
async fn streams_of_unknown_kinds_are_refused_one_by_one() {
    let stage = Stage::set().await;
    let mut link = stage.villain.connect(1).await;
    for bytes in [&[1, 0, 0, 0, 200][..], &[255; 32][..], &[1, 0, 0, 0, 0][..], &[1, 16, 0, 0][..]] {
        let mut stream = link.connection.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let code = stream.stopped().await.unwrap().unwrap();
        assert_eq!(CloseCode::from_wire(code.into_inner()), Some(CloseCode::UnknownStream), "{bytes:?}");
    }
    link.say(&FromAgent::Ping(Ping { sent: Timestamp::default(), offset: None })).await;
    link.until(|message| matches!(message, ToAgent::Pong { .. }).then_some(())).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn a_flood_of_streams_is_borne() {
    let stage = Stage::set().await;
    let mut link = stage.villain.connect(1).await;
    for _ in 0..5000 {
        let mut stream = link.connection.open_uni().await.unwrap();
        match stream.write_all(&[1, 0, 0, 0]).await {
            Ok(()) | Err(WriteError::Stopped(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    link.say(&FromAgent::Ping(Ping { sent: Timestamp::default(), offset: None })).await;
    link.until(|message| matches!(message, ToAgent::Pong { .. }).then_some(())).await;
    stage.goes_on().await;
}

#[tokio::test]
async fn a_flood_of_pings_ends_the_connection() {
    let stage = Stage::set().await;
    let mut link = stage.villain.connect(1).await;
    for _ in 0..2000 {
        link.writer.push(&FromAgent::Ping(Ping { sent: Timestamp::default(), offset: None })).unwrap();
    }
    // The connection may be closed before all of it left.
    let _ = link.writer.flush().await;
    assert_eq!(link.closed().await.0, CloseCode::Overloaded);
    stage.goes_on().await;
}

#[tokio::test]
async fn an_agent_that_ends_its_control_stream_is_closed() {
    let stage = Stage::set().await;
    let mut link = stage.villain.connect(1).await;
    link.writer.stream().finish().unwrap();
    assert_eq!(link.closed().await.0, CloseCode::Done);
    stage.goes_on().await;
}

#[tokio::test]
async fn an_agent_that_takes_nothing_of_what_it_is_sent_is_closed() {
    let mut settings = settings();
    settings.limits.silence = Duration::from_millis(300);
    let stage = Stage::set_with(settings).await;
    let link = stage.villain.connect(40).await;
    let script = "#".repeat(200 << 10);
    stage.scene.start(vec![Job { width: 40, script, ..Job::named("large") }]).await;
    assert_eq!(link.closed().await.0, CloseCode::TimedOut);
    stage.goes_on().await;
}

#[tokio::test]
async fn streams_that_never_say_what_they_are_are_stopped() {
    let mut settings = settings();
    settings.limits.greeting = Duration::from_secs(3);
    let stage = Stage::set_with(settings).await;
    let mut link = stage.villain.connect(1).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = link.connection.open_uni().await.unwrap();
        stream.write_all(&[200, 0]).await.unwrap();
        streams.push(stream);
    }
    for stream in streams {
        let code = stream.stopped().await.unwrap().unwrap();
        assert_eq!(CloseCode::from_wire(code.into_inner()), Some(CloseCode::TimedOut));
    }
    link.say(&FromAgent::Ping(Ping { sent: Timestamp::default(), offset: None })).await;
    link.until(|message| matches!(message, ToAgent::Pong { .. }).then_some(())).await;
    stage.goes_on().await;
}
