//! Spans: how few there are, and what a reader of one does with the foreign blocks in it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use super::batch::Batch;
use super::span::OWN_BYTES_MAX;
use super::*;

#[test]
fn a_batch_lays_the_blocks_of_each_attempt_and_run_behind_one_another() {
    let runs = Runs::default();
    for number in 1..=3 {
        runs.enter(attempt(number), pack_run(number % 2));
    }
    let mut batch = Batch::default();
    for (number, seq) in [(1, 0), (2, 0), (3, 0), (2, 1), (1, 1), (3, 1), (1, 2)] {
        batch.append(&runs, block(attempt(number), seq, 1)).unwrap();
    }
    let bytes = batch.bytes();
    let at = Position { segment: 1, offset: segment::HEADER_BYTES as u64 };
    let layout = batch.lay_out(7, at, Position::default());
    assert_eq!(layout.bytes.len(), bytes);
    let (written, mut rest) = (layout.bytes.clone(), Vec::new());
    let written = bytes::Bytes::from(written);
    let mut offset = 0;
    while offset < written.len() {
        let record = segment::Record::parse(7, &written.slice(offset..)).unwrap();
        rest.push((record.block.attempt(), record.block.first_seq(), record.header.arrival));
        offset += record.bytes();
    }
    let placed = [(2, 0, 0), (2, 1, 1), (1, 0, 0), (1, 1, 1), (1, 2, 2), (3, 0, 3), (3, 1, 4)];
    assert_eq!(rest, placed.map(|(number, seq, arrival)| (attempt(number), seq, arrival)));
    let acks = layout.publish();
    assert_eq!(
        acks.into_iter().map(|(_, of, next)| (of, next)).collect::<HashMap<_, _>>(),
        HashMap::from([(attempt(1), 3), (attempt(2), 2), (attempt(3), 2)])
    );
    assert_eq!(runs.run_of(attempt(1)).unwrap().extents(attempt(1)).unwrap().len(), 1);
}

#[tokio::test]
async fn attempts_beside_equals_have_an_extent_for_64_kib_and_not_for_a_block() {
    const ATTEMPTS: u8 = 8;
    const BLOCKS: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { segment_bytes: 1 << 20, ..LogConfig::default() };
    let (store, _) = open_with(dir.path(), config);
    for number in 0..ATTEMPTS {
        store.open_attempt(attempt(number), pack_run(9), NO_OFFSET, Timestamp::MIN);
    }
    for seq in 0..BLOCKS {
        for number in 0..ATTEMPTS {
            store.append(block(attempt(number), seq, 1)).await.unwrap();
        }
    }
    let segments = segment::list(dir.path()).unwrap().len();
    for number in 0..ATTEMPTS {
        let extents = store.extents(attempt(number)).unwrap();
        let bytes: u64 = extents.iter().map(|extent| u64::from(extent.bytes)).sum();
        let most = bytes / u64::from(OWN_BYTES_MAX) + 1 + segments as u64;
        assert!(extents.len() as u64 <= most, "{} extents for {bytes} bytes", extents.len());
        let all = texts(store.read_attempt(attempt(number), 0).unwrap(), 0).await;
        assert_eq!(all, expected_texts(attempt(number), 0..BLOCKS));
    }
}

#[tokio::test]
async fn a_span_ends_where_others_have_written_too_much() {
    for (foreign, expected) in [(1, 1), (2, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open(dir.path());
        for number in [1, 2] {
            store.open_attempt(attempt(number), pack_run(9), NO_OFFSET, Timestamp::MIN);
        }
        store.append(block(attempt(1), 0, 1)).await.unwrap();
        for seq in 0..foreign {
            let mut builder = BlockBuilder::new(attempt(2), seq);
            builder.push(Timestamp::from_micros(1), LogStream::Stdout, false, &[b'x'; 60_000]).unwrap();
            store.append(builder.finish().unwrap()).await.unwrap();
        }
        store.append(block(attempt(1), 1, 1)).await.unwrap();
        assert_eq!(store.extents(attempt(1)).unwrap().len(), expected);
        assert_eq!(
            texts(store.read_attempt(attempt(1), 0).unwrap(), 0).await,
            expected_texts(attempt(1), 0..2)
        );
    }
}

#[tokio::test]
async fn a_run_alone_has_one_growing_span_in_its_feed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    for number in 0..40 {
        store.open_attempt(attempt(number), pack_run(9), NO_OFFSET, Timestamp::MIN);
        store.append(block(attempt(number), 0, 1)).await.unwrap();
    }
    let run = store.runs.run(pack_run(9)).unwrap();
    let span = run.feed_span_from(0).unwrap();
    assert_eq!((span.first_arrival, span.next_arrival), (0, 40));
    assert_eq!(span.span.length, span.span.bytes);
}

/// Attempt 1, 2, 1, 2, … with blocks of one entry, one beside the other in segment 1; the places of the blocks.
async fn in_turn(store: &LogStore, dir: &Path, rounds: std::ops::Range<u64>) -> Vec<(AttemptId, Extent)> {
    for seq in rounds {
        for number in [1, 2] {
            store.open_attempt(attempt(number), pack_run(number), NO_OFFSET, Timestamp::MIN);
            store.append(block(attempt(number), seq, 1)).await.unwrap();
        }
    }
    records(dir, 1)
}

fn spoil(dir: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(segment::path(dir, 1)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[tokio::test]
async fn a_reader_that_follows_a_growing_span_reads_no_byte_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    in_turn(&store, dir.path(), 0..1).await;
    let mut one = store.read_attempt(attempt(1), 0).unwrap();
    let mut feed = store.read_feed(pack_run(1), FeedPosition::default()).unwrap().unwrap();
    for seq in 0..40 {
        for reader in [&mut one, &mut feed] {
            let read = reader.next_ready().await.unwrap().unwrap();
            assert_eq!(read.block.first_seq(), seq);
            assert!(reader.next_ready().await.unwrap().is_none());
        }
        // Whoever read this again would see it.
        let last = records(dir.path(), 1).iter().rev().find(|(of, _)| *of == attempt(1)).unwrap().1;
        in_turn(&store, dir.path(), seq + 1..seq + 2).await;
        spoil(dir.path(), last.at.offset);
        spoil(dir.path(), last.at.offset);
        let bytes = std::fs::read(segment::path(dir.path(), 1)).unwrap();
        spoil(dir.path(), last.at.offset + 3);
        let read = one.next_ready().await.unwrap().unwrap();
        let same = feed.next_ready().await.unwrap().unwrap();
        assert_eq!((read.block.first_seq(), same.block.first_seq()), (seq + 1, seq + 1));
        std::fs::write(segment::path(dir.path(), 1), bytes).unwrap();
        one = store.read_attempt(attempt(1), seq + 1).unwrap();
        feed = store.read_feed(pack_run(1), FeedPosition { block: seq + 1, entry: 0 }).unwrap().unwrap();
    }
    assert_eq!(store.extents(attempt(1)).unwrap().len(), 1, "it is one span all the time");
}

#[tokio::test]
async fn damage_in_a_span_is_told_where_it_matters_and_not_looped_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let blocks = in_turn(&store, dir.path(), 0..5).await;
    let whole = std::fs::read(segment::path(dir.path(), 1)).unwrap();
    let (_, foreign) = blocks[3];
    let (_, own) = blocks[4];
    let text_of = |extent: Extent| extent.at.offset + u64::from(extent.length) - 1;
    let block_of = |extent: Extent| extent.at.offset + segment::RECORD_HEADER_BYTES as u64;
    let cases = [
        ("text of a foreign block", text_of(foreign), None),
        ("checksum of a foreign block", block_of(foreign) + 4, None),
        ("marker of a foreign record", foreign.at.offset, Some(foreign.at)),
        ("length of a foreign record", foreign.at.offset + 12, Some(foreign.at)),
        ("text of an own block", text_of(own), Some(own.at)),
        ("header of an own record", own.at.offset + 20, Some(own.at)),
        // It looks foreign then, and is missed at the next.
        ("whose an own block is", block_of(own) + 10, Some(blocks[6].1.at)),
    ];
    for (case, offset, damaged) in cases {
        std::fs::write(segment::path(dir.path(), 1), &whole).unwrap();
        spoil(dir.path(), offset);
        let extents = store.extents(attempt(1)).unwrap();
        assert_eq!(extents.len(), 1);
        let readers =
            [store.read_attempt(attempt(1), 0).unwrap(), store.read_extents(attempt(1), extents, 0)];
        for mut reader in readers {
            for _ in 0..3 {
                match (reader.next_ready().await, damaged) {
                    (Ok(Some(_)), None) => {}
                    (Err(ReadError::Damaged(at)), Some(expected)) => assert_eq!(at, expected, "{case}"),
                    (read, _) => panic!("{case}: {read:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn extents_of_somebody_else_give_an_error_and_no_foreign_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    in_turn(&store, dir.path(), 0..3).await;
    let extents = store.extents(attempt(1)).unwrap();
    let read = store.read_extents(attempt(2), extents.clone(), 0).next().await;
    assert!(matches!(read, Err(ReadError::Damaged(_))), "{read:?}");
    let read = store.read_kept_feed(pack_run(7), extents, FeedPosition::default()).unwrap().next().await;
    assert!(matches!(read, Err(ReadError::Damaged(_))), "{read:?}");
}

#[tokio::test]
async fn no_span_reaches_over_damage_found_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let blocks = in_turn(&store, dir.path(), 0..5).await;
    store.progress(attempt(2)).unwrap().wait_for(|progress| progress.durable == 5).await.unwrap();
    in_turn(&store, dir.path(), 5..6).await;
    store.close().await;
    spoil(dir.path(), blocks[3].1.at.offset);
    let (store, recovery) = open(dir.path());
    assert_eq!(recovery.damage.len(), 1);
    let extents = store.extents(attempt(1)).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.entries).collect::<Vec<_>>(), [2, 4]);
    let all = texts(store.read_attempt(attempt(1), 0).unwrap(), 0).await;
    assert_eq!(all, expected_texts(attempt(1), 0..6), "what is foreign and damaged doesn't stand in the way");
}
