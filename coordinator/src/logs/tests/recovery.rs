//! Restarts, torn tails, damage, retention.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use super::*;

fn segment_file(dir: &Path, number: u64) -> PathBuf {
    segment::path(dir, number)
}

/// A log of five blocks of attempt 1 and 2 in turn, closed; where they lie.
async fn five_blocks(dir: &Path) -> Vec<Extent> {
    write_five_blocks(dir).await;
    records(dir, 1).into_iter().map(|(_, extent)| extent).collect()
}

/// Returns the extents of the two.
async fn write_five_blocks(dir: &Path) -> Vec<Extent> {
    let (store, _) = open(dir);
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    store.open_attempt(attempt(2), pack_run(9), NO_OFFSET, Timestamp::MIN);
    for (number, seq) in [(1, 0), (2, 0), (1, 2), (2, 2), (1, 4)] {
        store.append(block(attempt(number), seq, 2)).await.unwrap();
        let mut progress = store.progress(attempt(number)).unwrap();
        progress.wait_for(|progress| progress.durable == seq + 2).await.unwrap();
    }
    let extents = [attempt(1), attempt(2)].map(|attempt| store.extents(attempt).unwrap()).concat();
    store.close().await;
    extents
}

fn readable(store: &LogStore, number: u8) -> u64 {
    store.progress(attempt(number)).map_or(0, |progress| progress.borrow().readable)
}

#[tokio::test]
async fn a_restart_finds_the_same_extents_numbers_and_entries() {
    let dir = tempfile::tempdir().unwrap();
    let before = write_five_blocks(dir.path()).await;
    let (store, recovery) = open(dir.path());
    assert_eq!(recovery, Recovery { blocks: 5, ..Recovery::default() });
    let after = [attempt(1), attempt(2)].map(|attempt| store.extents(attempt).unwrap()).concat();
    assert_eq!(after, before);
    let progress = store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    assert_eq!(
        progress,
        Progress { readable: 6, durable: 6, sealed: false, bytes: block(attempt(1), 0, 6).log_bytes() }
    );
    store.append(block(attempt(1), 6, 1)).await.unwrap();
    assert_eq!(texts(store.read_attempt(attempt(1), 0).unwrap(), 0).await, expected_texts(attempt(1), 0..7));
    assert_eq!(store.feed_progress(pack_run(9)).unwrap().borrow().next_arrival, 6);
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_cut_and_the_block_is_taken_again() {
    let whole = tempfile::tempdir().unwrap();
    let extents = five_blocks(whole.path()).await;
    let last = extents.iter().max_by_key(|extent| extent.at).unwrap();
    let bytes = fs::read(segment_file(whole.path(), 1)).unwrap();
    let start = last.at.offset as usize;
    assert_eq!(bytes.len(), start + last.length as usize);
    for cut in start..bytes.len() {
        for zeros in [0, 7] {
            let dir = tempfile::tempdir().unwrap();
            let torn = [&bytes[..cut], &vec![0; zeros][..]].concat();
            let changed = torn.len() > start;
            fs::write(segment_file(dir.path(), 1), torn).unwrap();
            let (store, recovery) = open(dir.path());
            let place = changed.then_some(last.at);
            assert_eq!(recovery, Recovery { cut: place, damage: vec![], blocks: 4 }, "at {cut}");
            assert_eq!((readable(&store, 1), readable(&store, 2)), (4, 4));
            store.append(block(attempt(1), 4, 2)).await.unwrap();
            let all = texts(store.read_attempt(attempt(1), 0).unwrap(), 0).await;
            assert_eq!(all, expected_texts(attempt(1), 0..6), "at {cut}");
            store.close().await;
        }
    }
}

#[tokio::test]
async fn damage_in_what_was_on_disk_is_reported_and_what_follows_is_kept() {
    let whole = tempfile::tempdir().unwrap();
    let extents = five_blocks(whole.path()).await;
    let blocks: Vec<_> = [1, 2, 1, 2, 1].into_iter().zip(&extents).collect();
    for (damaged, offset) in extents.iter().flat_map(|extent| (0..extent.length).map(move |at| (extent, at)))
    {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(segment_file(whole.path(), 1), segment_file(dir.path(), 1)).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(segment_file(dir.path(), 1)).unwrap();
        let at = damaged.at.offset + u64::from(offset);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        let (store, recovery) = open(dir.path());
        let place = format!("byte {offset} of block {}", damaged.first_arrival);
        // Nothing says of the last block that it was on disk.
        let is_last = damaged.first_arrival == 4;
        let damage = vec![Spot { at: damaged.at, bytes: u64::from(damaged.length) }];
        let expected = if is_last {
            Recovery { cut: Some(damaged.at), damage: vec![], blocks: 4 }
        } else {
            Recovery { cut: None, damage, blocks: 4 }
        };
        assert_eq!(recovery, expected, "{place}");
        for number in [1, 2] {
            let mut reader = store.read_attempt(attempt(number), 0).unwrap();
            for (_, kept) in blocks.iter().filter(|(whose, kept)| *whose == number && kept.at != damaged.at) {
                let read = reader.next_ready().await.unwrap().unwrap();
                assert_eq!(read.block.first_seq(), kept.first_seq, "{place}");
            }
            assert!(reader.next_ready().await.unwrap().is_none(), "{place}");
        }
        let next_arrival = store.feed_progress(pack_run(9)).unwrap().borrow().next_arrival;
        assert_eq!(next_arrival, if is_last { 4 } else { 5 }, "{place}");
        store.close().await;
    }
}

#[tokio::test]
async fn what_a_failed_write_left_is_not_taken_for_what_follows_damage_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let extents = five_blocks(dir.path()).await;
    // A block of attempt 2 went over one of attempt 1, and behind it lies the next of attempt 1.
    let end = disk::leave_behind(dir.path(), 5, &[(2, 4), (1, 7)], 0)[1];
    let second = extents.iter().find(|extent| extent.first_arrival == 1).unwrap();
    let file = OpenOptions::new().write(true).open(segment_file(dir.path(), 1)).unwrap();
    file.write_all_at(&[0], second.at.offset).unwrap();
    let (store, recovery) = open(dir.path());
    let damage = vec![Spot { at: second.at, bytes: u64::from(second.length) }];
    assert_eq!(recovery, Recovery { cut: Some(end), damage, blocks: 5 });
    assert_eq!((readable(&store, 1), readable(&store, 2)), (6, 5));
}

#[tokio::test]
async fn segments_behind_one_with_a_torn_tail_are_cut_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let small = LogConfig { segment_bytes: 1, ..LogConfig::default() };
    // A sync that never succeeds: no record can say that anything was on disk.
    let disk = Arc::new(disk::FailingDisk::default());
    disk.fail_syncs(true);
    disk.allow_open_sync();
    let (store, _) = LogStore::open_on(disk, dir.path(), small, &|_| true).unwrap();
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    for seq in 0..4 {
        store.append(block(attempt(1), seq, 1)).await.unwrap();
    }
    store.close().await;
    let numbers = segment::list(dir.path()).unwrap();
    assert_eq!(numbers, [1, 2, 3, 4]);
    let torn = segment_file(dir.path(), 2);
    let length = fs::metadata(&torn).unwrap().len();
    OpenOptions::new().write(true).open(&torn).unwrap().set_len(length - 1).unwrap();
    let (store, recovery) = open_with(dir.path(), small);
    let cut = Position { segment: 2, offset: segment::HEADER_BYTES as u64 };
    assert_eq!(recovery, Recovery { cut: Some(cut), damage: vec![], blocks: 1 });
    assert_eq!(segment::list(dir.path()).unwrap(), [1, 2]);
    for seq in 1..4 {
        store.append(block(attempt(1), seq, 1)).await.unwrap();
    }
    assert_eq!(texts(store.read_attempt(attempt(1), 0).unwrap(), 0).await, expected_texts(attempt(1), 0..4));
}

#[tokio::test]
async fn a_segment_made_just_before_the_power_was_cut_is_made_anew() {
    for header in [vec![], vec![0; 24], b"PRUN".to_vec()] {
        let dir = tempfile::tempdir().unwrap();
        five_blocks(dir.path()).await;
        fs::write(segment_file(dir.path(), 2), header).unwrap();
        let (store, recovery) = open(dir.path());
        assert_eq!(recovery.cut, Some(Position { segment: 2, offset: 0 }));
        assert_eq!(recovery.blocks, 5);
        store.append(block(attempt(1), 6, 1)).await.unwrap();
        assert_eq!(
            texts(store.read_attempt(attempt(1), 6).unwrap(), 6).await,
            expected_texts(attempt(1), 6..7)
        );
    }
}

#[tokio::test]
async fn a_file_that_is_no_segment_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = b"something else entirely, longer than a header".to_vec();
    fs::write(segment_file(dir.path(), 1), &foreign).unwrap();
    let refused = LogStore::open(dir.path(), LogConfig::default(), &|_| true);
    assert!(refused.unwrap_err().to_string().contains("segment 1 is no log segment"));
    assert_eq!(fs::read(segment_file(dir.path(), 1)).unwrap(), foreign);
}

#[tokio::test]
async fn segments_go_when_their_runs_are_closed_and_nothing_of_them_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let small = LogConfig { segment_bytes: 1, ..LogConfig::default() };
    let (store, _) = open_with(dir.path(), small);
    for (number, run) in [(1, 8), (2, 9)] {
        store.open_attempt(attempt(number), pack_run(run), NO_OFFSET, Timestamp::MIN);
    }
    for seq in 0..3 {
        store.append(block(attempt(1), seq, 1)).await.unwrap();
    }
    store.append(block(attempt(2), 0, 1)).await.unwrap();
    store.progress(attempt(2)).unwrap().wait_for(|progress| progress.durable == 1).await.unwrap();
    let kept = store.seal(attempt(1)).await.unwrap();
    assert_eq!(store.drop_segments(|_| false).unwrap(), [0_u64; 0], "a live run holds them");
    let first = store.checkpoint();
    store.close_run(pack_run(8));
    let checkpoint = store.checkpoint();
    assert!(checkpoint > first);
    assert_eq!(store.drop_segments(|number| number == 2).unwrap(), [1, 3]);
    let mut reader = store.read_extents(attempt(1), kept.clone(), 0);
    assert!(matches!(reader.next().await, Err(ReadError::Gone(1))));
    let second = store.read_extents(attempt(1), kept, 1).next().await.unwrap().unwrap();
    assert_eq!(second.block.first_seq(), 1);
    store.close().await;

    let (store, recovery) = LogStore::open(dir.path(), small, &|run| run == pack_run(9)).unwrap();
    assert_eq!(recovery, Recovery { blocks: 1, ..Recovery::default() });
    assert_eq!((readable(&store, 1), readable(&store, 2)), (0, 1));
}
