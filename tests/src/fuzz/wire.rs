//! What comes over a connection. An accepted message can be sent on, and means the same to whoever gets it then.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use packrun_agent::executor::ipc::{Order, Request};
use packrun_coordinator::core::plan::Plan;
use packrun_protocol::block::{Block, BlockBuilder, HEADER_BYTES};
use packrun_protocol::control::{FromAgent, FromCoordinator};
use packrun_protocol::frame::{self, FrameError};
use packrun_protocol::stream::*;
use packrun_protocol::{codec, limit};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::choice;

/// Frames come out alike however the bytes were cut, and take no more than was sent.
pub(super) fn frames(data: &[u8]) {
    let (kind, data) = choice(data);
    let (step, data) = choice(data);
    let step = usize::from(step) + 1;
    match kind % 3 {
        0 => framed::<FromAgent>(data, step, limit::FRAME_BYTES_MAX),
        1 => framed::<FromCoordinator>(data, step, limit::FRAME_BYTES_MAX),
        _ => framed::<StreamHeader>(data, step, limit::STREAM_HEADER_BYTES_MAX),
    }
}

fn framed<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8], step: usize, limit: usize) {
    let (mut whole, mut cut) = (BytesMut::from(data), BytesMut::new());
    let mut expected = Vec::new();
    let end = loop {
        match frame::read_within::<T>(&mut whole, limit) {
            Ok(Some(message)) => expected.push(message),
            end => break end.map(drop),
        }
    };
    let mut messages = Vec::new();
    let mut end_of_cut = Ok(());
    'pieces: for piece in data.chunks(step) {
        cut.extend_from_slice(piece);
        loop {
            match frame::read_within::<T>(&mut cut, limit) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    end_of_cut = Err(error);
                    break 'pieces;
                }
            }
        }
        assert!(cut.len() < frame::PREFIX_BYTES + limit, "more waits than a frame may have");
    }
    assert_eq!(messages, expected, "cut in pieces of {step}");
    assert_eq!(
        end.as_ref().map_err(FrameError::to_string),
        end_of_cut.as_ref().map_err(FrameError::to_string)
    );
    let mut sent = Vec::new();
    for message in &messages {
        frame::write(&mut sent, message).unwrap();
    }
    assert!(sent.len() <= data.len(), "no frame is written longer than it may come");
    let mut sent = BytesMut::from(&sent[..]);
    for message in &messages {
        assert_eq!(frame::read_within::<T>(&mut sent, limit).unwrap().as_ref(), Some(message));
    }
    assert!(sent.is_empty());
}

/// What is decoded can be encoded, in no more bytes, and is the same when it is decoded again.
pub(super) fn messages(data: &[u8]) {
    let (kind, data) = choice(data);
    match kind % 13 {
        0 => message::<FromAgent>(data),
        1 => message::<FromCoordinator>(data),
        2 => message::<StreamHeader>(data),
        3 => message::<UploadAnswer>(data),
        4 => message::<UploadEnd>(data),
        5 => message::<InputAnswer>(data),
        6 => message::<DownloadAnswer>(data),
        7 => message::<Enrol>(data),
        8 => message::<EnrolAnswer>(data),
        9 => message::<Order>(data),
        10 => message::<Request>(data),
        _ => plan(data),
    }
}

fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    let Ok(value) = codec::decode::<T>(data) else { return };
    let bytes = codec::encode(&value).unwrap();
    assert!(bytes.len() <= data.len(), "{value:?} takes more bytes than it came in");
    assert_eq!(codec::decode::<T>(&bytes).unwrap(), value);
}

fn plan(data: &[u8]) {
    let Ok(plan) = codec::decode_record::<Plan>(data) else { return };
    let bytes = codec::encode_record(&plan).unwrap();
    assert_eq!(codec::decode_record::<Plan>(&bytes).unwrap(), plan);
    if plan.check().is_ok() {
        let runs: usize = plan.jobs.iter().map(|job| job.runs.len()).sum();
        assert_eq!(plan.job_runs().count(), runs);
        assert!(runs >= plan.jobs.len() && !plan.jobs.is_empty());
    }
}

/// A block that is accepted is the one that its entries make, byte for byte.
pub(super) fn blocks(data: &[u8]) {
    let (repair, data) = choice(data);
    let bytes = if repair & 1 == 1 { sealed(data) } else { data.to_vec() };
    let cut = usize::from(repair >> 1).min(bytes.len());
    let mut buffer = BytesMut::from(&bytes[..cut]);
    let early = Block::take(&mut buffer);
    let Ok(block) = Block::parse(Bytes::from(bytes.clone())) else {
        buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(block)) = Block::take(&mut buffer) {
            whole(&block);
        }
        return;
    };
    assert!(cut == bytes.len() || matches!(early, Ok(None)), "cut at {cut}: {early:?}");
    buffer = BytesMut::from(&bytes[..]);
    assert_eq!(Block::take(&mut buffer), Ok(Some(block.clone())));
    assert!(buffer.is_empty());
    whole(&block);
}

fn whole(block: &Block) {
    let mut builder = BlockBuilder::new(block.attempt(), block.first_seq());
    let (mut seq, mut time) = (block.first_seq(), block.first_time());
    for entry in block.entries() {
        assert!(entry.seq == seq && entry.time >= time, "{block:?}: {entry:?}");
        assert!(builder.has_room(entry.time, entry.text.len()), "{block:?} has no room for {entry:?}");
        builder.push(entry.time, entry.stream, entry.continued, &entry.text).unwrap();
        (seq, time) = (seq + 1, entry.time);
    }
    assert_eq!((seq, time), (block.next_seq(), block.last_time()));
    assert_eq!(builder.finish().unwrap().as_bytes(), block.as_bytes());
}

/// `data` with the length and the checksum that a block of these bytes has: random bytes get past neither.
pub(super) fn sealed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if bytes.len() >= HEADER_BYTES {
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    }
    bytes
}
