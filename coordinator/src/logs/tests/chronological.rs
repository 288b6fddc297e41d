//! The chronological order over attempts whose clocks differ.

use super::*;

const ATTEMPTS: u8 = 5;

/// Attempts whose agents' clocks are off by up to seconds, written in turn; their entries' keys by true time.
async fn write(store: &LogStore, rounds: std::ops::Range<i64>) -> Vec<(MergeKey, String)> {
    let mut written = Vec::new();
    for round in rounds {
        for number in 0..ATTEMPTS {
            let attempt = attempt(number);
            let ahead = i64::from(number) * 1_000_003 - 2_000_000;
            let offset = ClockOffset { micros: -ahead, error_micros: 0 };
            let seq = store.open_attempt(attempt, pack_run(9), offset, Timestamp::MIN).readable;
            let count = 1 + (round as u64 + u64::from(number)) % 3;
            let time = 50_000_000 + (round * 7 + i64::from(number) * 3) / 4;
            store.append(block_at(attempt, seq, count, time + ahead)).await.unwrap();
            let key = |seq| MergeKey { time: Timestamp::from_micros(time), attempt, seq };
            written.extend((seq..seq + count).map(|seq| (key(seq), format!("{attempt} {seq}"))));
        }
    }
    written
}

async fn page(
    store: &LogStore,
    after: Option<MergeKey>,
    watermark: Option<Timestamp>,
    limit: usize,
) -> Vec<(MergeKey, String)> {
    let attempts = (0..ATTEMPTS).map(|number| {
        (attempt(number), store.extents_behind(attempt(number), after, limit).unwrap_or_default())
    });
    let mut reader = store.read_chronological(attempts.collect(), after, watermark);
    let mut page = Vec::new();
    while page.len() < limit
        && let Some((key, entry)) = reader.next().await.unwrap()
    {
        page.push((key, String::from_utf8(entry.text.to_vec()).unwrap()));
    }
    page
}

#[tokio::test]
async fn every_page_size_gives_all_entries_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_with(dir.path(), LogConfig { segment_bytes: 4000, ..LogConfig::default() });
    let mut expected = write(&store, 0..30).await;
    expected.sort();
    for limit in [1, 2, 3, 7, 50, usize::MAX] {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let next = page(&store, after, None, limit).await;
            let Some((last, _)) = next.last() else { break };
            after = Some(*last);
            all.extend(next);
        }
        assert_eq!(all, expected, "pages of {limit}");
    }
}

#[tokio::test]
async fn who_polls_below_the_watermark_reads_what_a_final_read_gives() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let (mut polled, mut after) = (Vec::new(), None);
    for round in 0..20 {
        write(&store, round * 2..round * 2 + 2).await;
        let last_time = |number| store.extents(attempt(number)).unwrap().last().unwrap().last_time;
        let watermark = (0..ATTEMPTS).map(last_time).min();
        let next = page(&store, after, watermark, 9).await;
        assert!(round < 5 || !next.is_empty(), "nothing came out in round {round}");
        after = next.last().map(|(key, _)| *key).or(after);
        polled.extend(next);
    }
    polled.extend(page(&store, after, None, usize::MAX).await);
    assert_eq!(polled, page(&store, None, None, usize::MAX).await);
    assert!(polled.is_sorted());
}

#[tokio::test]
async fn a_page_takes_no_more_extents_than_it_may_need() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    write(&store, 0..30).await;
    let all = page(&store, None, None, usize::MAX).await;
    for (last, _) in &all {
        for number in 0..ATTEMPTS {
            let behind: Vec<_> = all.iter().filter(|(key, _)| key > last).map(|(key, _)| key).collect();
            let own = behind.iter().find(|key| key.attempt == attempt(number));
            let extents = store.extents_behind(attempt(number), Some(*last), 2).unwrap();
            assert!(extents.len() <= 2);
            let first = extents.first().map(|extent| extent.first_seq..extent.next_seq());
            assert_eq!(first.is_some(), own.is_some());
            assert!(own.is_none_or(|key| first.is_some_and(|first| first.contains(&key.seq))));
        }
    }
}
