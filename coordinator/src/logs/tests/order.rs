//! Sequence numbers, arrival numbers, corrected time, followers.

use std::time::Duration;

use super::*;

#[tokio::test]
async fn duplicates_are_dropped_and_gaps_and_overlaps_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let (one, two) = (attempt(1), attempt(2));
    assert_eq!(store.append(block(one, 0, 1)).await, Err(AppendError::NotOpen(one)));
    store.open_attempt(one, pack_run(9), NO_OFFSET, Timestamp::MIN);
    let mut progress = store.progress(one).unwrap();
    store.append(block(one, 0, 10)).await.unwrap();
    store.append(block(one, 0, 10)).await.unwrap();
    store.append(block(one, 3, 4)).await.unwrap();
    let gap = AppendError::Gap { attempt: one, expected: 10, first: 11 };
    assert_eq!(store.append(block(one, 11, 1)).await, Err(gap));
    let overlap = AppendError::Overlap { attempt: one, expected: 10, first: 9 };
    assert_eq!(store.append(block(one, 9, 2)).await, Err(overlap));
    store.append(block(one, 10, 1)).await.unwrap();
    progress.wait_for(|progress| progress.durable == 11).await.unwrap();
    assert_eq!(texts(store.read_attempt(one, 0).unwrap(), 0).await, expected_texts(one, 0..11));
    assert_eq!(texts(store.read_attempt(one, 7).unwrap(), 7).await, expected_texts(one, 7..11));
    assert!(store.read_attempt(two, 0).is_none());

    let extents = store.seal(one).await.unwrap();
    assert_eq!(store.append(block(one, 11, 1)).await, Err(AppendError::Sealed(one)));
    store.append(block(one, 10, 1)).await.unwrap();
    assert_eq!(store.seal(one).await, Ok(extents.clone()), "again");
    assert_eq!(extents.iter().map(|extent| extent.entries).sum::<u64>(), 11);
    assert_eq!(texts(store.read_extents(one, extents, 5), 5).await, expected_texts(one, 5..11));
}

#[tokio::test]
async fn corrected_time_never_runs_backwards_within_an_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let one = attempt(1);
    store.open_attempt(one, pack_run(9), ClockOffset { micros: -500, error_micros: 1 }, Timestamp::MIN);
    store.append(block_at(one, 0, 1, 10_000)).await.unwrap();
    store.append(block_at(one, 1, 1, 2_000)).await.unwrap();
    store.open_attempt(one, pack_run(9), ClockOffset { micros: -700, error_micros: 1 }, Timestamp::MIN);
    store.append(block_at(one, 2, 1, 20_000)).await.unwrap();
    let mut reader = store.read_attempt(one, 0).unwrap();
    let mut times = Vec::new();
    while let Some(block) = reader.next_ready().await.unwrap() {
        times.extend(block.entries().map(|entry| entry.time.as_micros()));
    }
    assert_eq!(times, [9_500, 9_500, 19_300]);
    let extents = store.extents(one).unwrap();
    assert_eq!(extents.first().unwrap().first_time.as_micros(), 9_500);
    assert_eq!(extents.last().unwrap().last_time.as_micros(), 19_300);
}

/// Reads a feed to its end as pairs of attempt and sequence number.
async fn feed_entries(mut reader: LogReader) -> Vec<(AttemptId, u64)> {
    let mut entries = Vec::new();
    while let Some(block) = reader.next().await.unwrap() {
        let attempt = block.block.attempt();
        entries.extend(block.entries().map(|entry| (attempt, entry.seq)));
    }
    entries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn followers_see_every_entry_of_many_attempts_once_while_the_log_grows() {
    const ATTEMPTS: u8 = 12;
    const BLOCKS: u64 = 60;
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_with(dir.path(), LogConfig { segment_bytes: 20_000, queue_blocks: 4 });
    let run = pack_run(9);
    for number in 0..ATTEMPTS {
        store.open_attempt(attempt(number), run, NO_OFFSET, Timestamp::MIN);
    }
    let mut followers = tokio::task::JoinSet::new();
    for number in 0..ATTEMPTS {
        let mut reader = store.read_attempt(attempt(number), 0).unwrap();
        followers.spawn(async move {
            let mut next = 0;
            while let Some(block) = reader.next().await.unwrap() {
                for entry in block.entries() {
                    assert_eq!(entry.seq, next);
                    assert_eq!(entry.text, format!("{} {next}", attempt(number)));
                    next += 1;
                }
            }
            assert_eq!(next, 3 * BLOCKS);
        });
    }
    let feed = tokio::spawn(feed_entries(store.read_feed(run, FeedPosition::default()).unwrap().unwrap()));
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..ATTEMPTS {
        let store = store.clone();
        writers.spawn(async move {
            for index in 0..BLOCKS {
                store.append(block(attempt(number), index * 3, 3)).await.unwrap();
            }
            store.seal(attempt(number)).await.unwrap()
        });
    }
    let kept: Vec<Extent> = writers.join_all().await.concat();
    store.close_run(run);
    followers.join_all().await;
    let seen = feed.await.unwrap();
    assert_eq!(seen.len() as u64, u64::from(ATTEMPTS) * BLOCKS * 3);
    for number in 0..ATTEMPTS {
        let of_one = seen.iter().filter(|(whose, _)| *whose == attempt(number)).map(|(_, seq)| *seq);
        assert!(of_one.eq(0..3 * BLOCKS), "attempt {number}");
    }
    assert!(store.read_feed(run, FeedPosition::default()).unwrap().is_none(), "it was closed");
    let again = store.read_kept_feed(run, kept.clone(), FeedPosition::default()).unwrap();
    assert_eq!(feed_entries(again).await, seen);
    for entry in [0, 1, 2, 3] {
        let from = FeedPosition { block: 100, entry };
        let rest = store.read_kept_feed(run, kept.clone(), from).unwrap();
        assert_eq!(feed_entries(rest).await, seen[300 + entry as usize..], "from {from:?}");
    }
}

#[tokio::test]
async fn a_feed_position_that_was_never_reached_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    store.append(block(attempt(1), 0, 2)).await.unwrap();
    for (block, entry, reached) in [(0, 0, true), (0, 9, true), (1, 0, true), (1, 1, false), (2, 0, false)] {
        let reader = store.read_feed(pack_run(9), FeedPosition { block, entry });
        assert_eq!(reader.is_ok(), reached, "{block}.{entry}");
    }
    assert!(store.read_feed(pack_run(8), FeedPosition::default()).unwrap().is_none());
}

#[tokio::test]
async fn a_reader_that_gives_up_waiting_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let one = attempt(1);
    store.open_attempt(one, pack_run(9), NO_OFFSET, Timestamp::MIN);
    let mut reader = store.read_attempt(one, 0).unwrap();
    for seq in 0..50 {
        assert!(tokio::time::timeout(Duration::ZERO, reader.next()).await.is_err(), "nothing there yet");
        store.append(block(one, seq, 1)).await.unwrap();
        let read = loop {
            if let Ok(read) = tokio::time::timeout(Duration::from_micros(50), reader.next()).await {
                break read.unwrap().unwrap();
            }
        };
        assert_eq!(read.block.first_seq(), seq);
    }
}
