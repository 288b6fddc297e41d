//! Power cuts that spoil anything that was not yet on disk.

use proptest::prelude::*;

use super::disk::FailingDisk;
use super::*;

#[derive(Debug, Clone)]
struct Crash {
    /// Attempts in order of their blocks.
    blocks: Vec<u8>,
    /// How many of them are on disk.
    durable: usize,
    /// Place and bits of what is spoiled, in thousandths of what was not on disk.
    spoiled: Vec<(u64, u8)>,
    /// What is left of it, in thousandths.
    left: u64,
    segment_bytes: u64,
}

fn crashes() -> impl Strategy<Value = Crash> {
    let blocks = prop::collection::vec(0_u8..4, 1..40);
    let spoiled = prop::collection::vec((0_u64..1000, 1_u8..=255), 0..4);
    (blocks, 0_usize..40, spoiled, 0_u64..=1000, 200_u64..4000).prop_map(
        |(blocks, durable, spoiled, left, segment_bytes)| {
            let durable = durable.min(blocks.len());
            Crash { blocks, durable, spoiled, left, segment_bytes }
        },
    )
}

async fn survive(crash: Crash) {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { segment_bytes: crash.segment_bytes, ..LogConfig::default() };
    let disk = Arc::new(FailingDisk::default());
    let (store, _) = LogStore::open_on(disk.clone(), dir.path(), config, &|_| true).unwrap();
    let mut durable = [0; 4];
    let mut written = [0; 4];
    for (index, &number) in crash.blocks.iter().enumerate() {
        store.open_attempt(attempt(number), pack_run(number % 2), NO_OFFSET, Timestamp::MIN);
        if index == crash.durable {
            disk.fail_syncs(true);
        }
        let seq = written[number as usize];
        store.append(block(attempt(number), seq, 2)).await.unwrap();
        written[number as usize] = seq + 2;
        if index < crash.durable {
            let mut progress = store.progress(attempt(number)).unwrap();
            progress.wait_for(|progress| progress.durable == seq + 2).await.unwrap();
            durable[number as usize] = seq + 2;
        }
    }
    let on_disk = *store.durable.borrow();
    store.close().await;

    // Spoil the last segment with bytes that were not on disk; segments before it may have such too.
    let last = *segment::list(dir.path()).unwrap().last().unwrap();
    let path = segment::path(dir.path(), last);
    let mut bytes = std::fs::read(&path).unwrap();
    let safe = if on_disk.segment == last { on_disk.offset as usize } else { 0 };
    let loose = bytes.len() - safe;
    for (place, bits) in crash.spoiled {
        if loose > 0 {
            bytes[safe + (loose - 1) * place as usize / 1000] ^= bits;
        }
    }
    bytes.truncate(safe + loose * crash.left as usize / 1000);
    // A spoiled segment header that is not all zeros is refused, as a foreign file: it is written by one sector.
    if safe == 0
        && bytes.get(..segment::HEADER_BYTES).is_some_and(|header| !header.starts_with(b"PRUNLOGS\x01\0\0\0"))
    {
        bytes.fill(0);
    }
    std::fs::write(&path, bytes).unwrap();

    let (store, recovery) = open_with(dir.path(), config);
    assert_eq!(recovery.damage, vec![], "nothing that was on disk was spoiled");
    for number in 0..4_u8 {
        let came = store.open_attempt(attempt(number), pack_run(number % 2), NO_OFFSET, Timestamp::MIN);
        let (kept, written) = (came.readable, written[number as usize]);
        assert_eq!(came.durable, kept);
        assert!(
            (durable[number as usize]..=written).contains(&kept),
            "attempt {number} kept {kept} of {written}"
        );
        for seq in (kept..written).step_by(2) {
            store.append(block(attempt(number), seq, 2)).await.unwrap();
        }
        let all = texts(store.read_attempt(attempt(number), 0).unwrap(), 0).await;
        assert_eq!(all, expected_texts(attempt(number), 0..written));
    }
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_was_acknowledged_survives_and_the_rest_is_taken_again(crash in crashes()) {
        tokio::runtime::Runtime::new().unwrap().block_on(survive(crash));
    }
}
