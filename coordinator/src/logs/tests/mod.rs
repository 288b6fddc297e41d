//! The log store on real files.

mod checkpoint;
mod chronological;
mod crash;
pub(crate) mod disk;
mod kept;
mod order;
mod recovery;
mod settle;
mod spans;
mod turns;

use std::path::Path;

use packrun_protocol::block::{Block, BlockBuilder, LogStream};
use packrun_protocol::id::{AttemptId, AttemptNumber, JobRunId, PackRunId};
use packrun_protocol::time::{ClockOffset, Timestamp};

use super::*;

const NO_OFFSET: ClockOffset = ClockOffset { micros: 0, error_micros: 0 };

fn attempt(number: u8) -> AttemptId {
    AttemptId { job_run: JobRunId::from_bytes([number; 16]), number: AttemptNumber::FIRST }
}

fn pack_run(number: u8) -> PackRunId {
    PackRunId::from_bytes([number; 16])
}

/// A block of `count` entries from `seq` on, all at `time`, with texts that tell attempt and number.
fn block_at(attempt: AttemptId, seq: u64, count: u64, time: i64) -> Block {
    let mut builder = BlockBuilder::new(attempt, seq);
    for seq in seq..seq + count {
        let text = format!("{attempt} {seq}");
        builder.push(Timestamp::from_micros(time), LogStream::Stdout, false, text.as_bytes()).unwrap();
    }
    builder.finish().unwrap()
}

fn block(attempt: AttemptId, seq: u64, count: u64) -> Block {
    block_at(attempt, seq, count, 1_000_000 + seq as i64)
}

fn open(dir: &Path) -> (LogStore, Recovery) {
    open_with(dir, LogConfig::default())
}

fn open_with(dir: &Path, config: LogConfig) -> (LogStore, Recovery) {
    LogStore::open(dir, config, &|_| true).unwrap()
}

/// The records of a segment, each with whose it is and the extent that it is alone.
fn records(dir: &Path, number: u64) -> Vec<(AttemptId, Extent)> {
    let bytes = bytes::Bytes::from(std::fs::read(segment::path(dir, number)).unwrap());
    let marker = segment::Segment::open(dir, number, false).unwrap().marker;
    let (mut records, mut offset) = (Vec::new(), segment::HEADER_BYTES);
    while offset < bytes.len() {
        let record = segment::Record::parse(marker, &bytes.slice(offset..)).unwrap();
        let at = Position { segment: number, offset: offset as u64 };
        records.push((record.block.attempt(), Extent::of(at, &record.header, &record.block)));
        offset += record.bytes();
    }
    records
}

/// All entries of an attempt from `from` on, checked to be in sequence.
async fn texts(mut reader: LogReader, from: u64) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(block) = reader.next_ready().await.unwrap() {
        for entry in block.entries() {
            assert_eq!(entry.seq, from + texts.len() as u64);
            texts.push(String::from_utf8(entry.text.to_vec()).unwrap());
        }
    }
    texts
}

fn expected_texts(attempt: AttemptId, seqs: std::ops::Range<u64>) -> Vec<String> {
    seqs.map(|seq| format!("{attempt} {seq}")).collect()
}
