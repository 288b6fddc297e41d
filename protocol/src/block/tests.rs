//! Blocks: what goes in comes out, and nothing that isn't a block comes in.

use proptest::prelude::*;

use super::*;

fn attempt() -> AttemptId {
    AttemptId { job_run: JobRunId::from_bytes([7; 16]), number: AttemptNumber::FIRST.next() }
}

fn stream() -> impl Strategy<Value = LogStream> {
    prop_oneof![Just(LogStream::Stdout), Just(LogStream::Stderr), Just(LogStream::System)]
}

type Input = (i64, LogStream, bool, Vec<u8>);

fn input() -> impl Strategy<Value = Vec<Input>> {
    let text = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(vec![b'x'; limit::ENTRY_TEXT_BYTES_MAX]),
    ];
    prop::collection::vec((0i64..1 << 34, stream(), any::<bool>(), text), 1..60)
}

/// All blocks of `entries`, each as full as it gets.
fn blocks(first_seq: u64, entries: &[Input]) -> Vec<Block> {
    let mut builder = BlockBuilder::new(attempt(), first_seq);
    let mut blocks = Vec::new();
    for (time, stream, continued, text) in entries {
        let time = Timestamp::from_micros(*time);
        if !builder.has_room(time, text.len()) {
            blocks.extend(builder.finish());
        }
        builder.push(time, *stream, *continued, text).unwrap();
    }
    blocks.extend(builder.finish());
    assert_eq!(builder.finish(), None);
    blocks
}

/// A valid block with a field changed and the crc made good again.
fn forged(change: impl FnOnce(&mut Vec<u8>)) -> Result<Block, BlockError> {
    let mut builder = BlockBuilder::new(attempt(), 5);
    builder.push(Timestamp::from_micros(100), LogStream::Stdout, false, b"one").unwrap();
    builder.push(Timestamp::from_micros(130), LogStream::Stderr, true, b"two").unwrap();
    let mut bytes = builder.finish().unwrap().as_bytes().to_vec();
    change(&mut bytes);
    let checksum = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    Block::parse(bytes.into())
}

proptest! {
    #[test]
    fn entries_come_out_as_they_went_in_and_time_never_runs_backwards(first_seq in 0u64..1 << 60, entries in input()) {
        let blocks = blocks(first_seq, &entries);
        let mut wire = BytesMut::new();
        blocks.iter().for_each(|block| wire.extend_from_slice(block.as_bytes()));
        let (mut read, mut latest) = (Vec::new(), Timestamp::MIN);
        while let Some(block) = Block::take(&mut wire).unwrap() {
            prop_assert_eq!(block.attempt(), attempt());
            prop_assert!(block.first_time() >= latest);
            prop_assert_eq!(block.entries().last().map(|entry| entry.time), Some(block.last_time()));
            latest = block.last_time();
            read.extend(block.entries());
        }
        prop_assert!(wire.is_empty());
        prop_assert_eq!(read.len(), entries.len());
        let mut time = Timestamp::MIN;
        for (index, (entry, (at, stream, continued, text))) in read.iter().zip(&entries).enumerate() {
            time = time.max(Timestamp::from_micros(*at));
            prop_assert_eq!(entry.seq, first_seq + index as u64);
            prop_assert_eq!(entry.time, time);
            prop_assert_eq!((entry.stream, entry.continued), (*stream, *continued));
            prop_assert_eq!(&entry.text[..], &text[..]);
        }
    }

    #[test]
    fn a_changed_or_cut_block_is_refused(entries in input(), at: prop::sample::Index, bit in 0u8..8) {
        let bytes = blocks(0, &entries).swap_remove(0).as_bytes().to_vec();
        let mut changed = bytes.clone();
        changed[at.index(bytes.len())] ^= 1 << bit;
        prop_assert!(Block::parse(changed.into()).is_err());
        prop_assert!(Block::parse(bytes[..at.index(bytes.len())].to_vec().into()).is_err());
    }

    #[test]
    fn random_bytes_with_a_good_checksum_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 64..300)) {
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[28..32].copy_from_slice(&(length % 5).to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(block) = Block::parse(bytes.into()) {
            prop_assert_eq!(block.entries().count(), block.count() as usize);
        }
    }
}

#[test]
fn a_block_that_lies_with_a_good_checksum_is_refused() {
    let put = |at: usize, value: &[u8]| {
        let value = value.to_vec();
        forged(move |bytes| bytes[at..at + value.len()].copy_from_slice(&value))
    };
    assert!(forged(|_| ()).is_ok());
    let malformed = |result: Result<Block, BlockError>, what: &str| match result {
        Err(BlockError::Malformed(why)) => assert!(why.contains(what), "{why}"),
        other => panic!("{what}: {other:?}"),
    };
    malformed(put(24, &0u32.to_le_bytes()), "attempt 0");
    malformed(put(28, &0u32.to_le_bytes()), "number of entries");
    malformed(put(28, &1u32.to_le_bytes()), "add up");
    malformed(put(28, &3u32.to_le_bytes()), "number of entries");
    malformed(put(28, &u32::MAX.to_le_bytes()), "number of entries");
    malformed(put(32, &u64::MAX.to_le_bytes()), "sequence numbers");
    malformed(put(40, &i64::MIN.to_le_bytes()), "outside the range");
    malformed(put(48, &99i64.to_le_bytes()), "last time");
    malformed(put(56, &1u32.to_le_bytes()), "backwards");
    malformed(put(60, &2u32.to_le_bytes()), "add up");
    malformed(put(60, &(3u32 | 3 << 24).to_le_bytes()), "length or stream");
    malformed(put(60, &(3u32 | 1 << 27).to_le_bytes()), "length or stream");
    malformed(put(60, &0x00ff_ffffu32.to_le_bytes()), "length or stream");
    assert!(matches!(put(0, &u32::MAX.to_le_bytes()), Err(BlockError::Length { .. })));
}

#[test]
fn a_length_that_no_block_has_is_refused_before_anyone_waits_for_it() {
    for length in [0u32, 63, limit::BLOCK_BYTES_MAX as u32 + 1, u32::MAX] {
        assert!(Block::take(&mut BytesMut::from(&length.to_le_bytes()[..])).is_err(), "{length}");
    }
    assert_eq!(Block::length(&[64, 0, 0]), Ok(None));
}

#[test]
fn a_block_takes_its_most_entries_and_its_longest_text_and_no_more() {
    let mut builder = BlockBuilder::new(attempt(), 0);
    let now = Timestamp::from_micros(1);
    for _ in 0..limit::BLOCK_ENTRIES_MAX {
        builder.push(now, LogStream::Stdout, false, b"").unwrap();
    }
    assert!(builder.push(now, LogStream::Stdout, false, b"").is_err());
    assert_eq!(builder.finish().unwrap().count() as usize, limit::BLOCK_ENTRIES_MAX);
    builder.push(now, LogStream::Stdout, false, &[0; limit::ENTRY_TEXT_BYTES_MAX]).unwrap();
    assert!(!builder.has_room(now, 1));
    assert!(builder.has_room(now, 0));
    assert_eq!(Block::parse(builder.finish().unwrap().as_bytes().clone()).unwrap().first_seq(), 4096);
    assert!(builder.push(now, LogStream::Stdout, false, &[0; limit::ENTRY_TEXT_BYTES_MAX + 1]).is_err());
}
