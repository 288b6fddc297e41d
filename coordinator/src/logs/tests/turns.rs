//! Many attempts of several runs that write in turns, with restarts and torn tails: every reader gives every
//! entry once, in order, and spans are as large as their rule lets them be.

use proptest::prelude::*;

use super::disk::FailingDisk;
use super::span::{FOREIGN_FREE_BYTES, FOREIGN_PER_OWN, OWN_BYTES_MAX};
use super::*;

const ATTEMPTS: u8 = 14;
const RUNS: u8 = 3;

/// A block to come: whose, how many entries, how long their texts.
type Turn = (u8, u64, usize);

/// From one start of the store to the next.
#[derive(Debug, Clone)]
struct Life {
    /// What is sent at once.
    batches: Vec<Vec<Turn>>,
    /// How many of the batches come to the disk before it fails.
    durable: usize,
    /// What is left of what was not on disk, in thousandths.
    left: u64,
}

fn lives() -> impl Strategy<Value = (Vec<Life>, u64)> {
    let length = prop_oneof![4 => 0_usize..200, 1 => 2000_usize..40_000];
    let turn = (0..ATTEMPTS, 1_u64..4, length).prop_map(|(number, count, length)| {
        // Attempts differ in how much they write.
        (number, count, if number < 7 { length / 8 } else { length / count as usize })
    });
    let batch =
        prop_oneof![3 => prop::collection::vec(turn.clone(), 1), 1 => prop::collection::vec(turn, 1..20)];
    let life = (prop::collection::vec(batch, 1..60), 0_usize..90, 0_u64..=1000)
        .prop_map(|(batches, durable, left)| Life { batches, durable, left });
    (prop::collection::vec(life, 1..4), prop_oneof![5_000_u64..200_000, Just(64 << 20)])
}

fn text(attempt: AttemptId, seq: u64, length: usize) -> String {
    format!("{attempt} {seq} {}", "x".repeat(length))
}

fn long_block(attempt: AttemptId, seq: u64, count: u64, length: usize) -> Block {
    let mut builder = BlockBuilder::new(attempt, seq);
    for seq in seq..seq + count {
        let time = Timestamp::from_micros(1_000_000 + seq as i64 / 2);
        builder.push(time, LogStream::Stdout, false, text(attempt, seq, length).as_bytes()).unwrap();
    }
    builder.finish().unwrap()
}

/// Lives one life on from what is written; returns how far each attempt's log has come then.
async fn live(dir: &Path, config: LogConfig, life: &Life, written: &mut [u64]) {
    let disk = Arc::new(FailingDisk::default());
    let (store, recovery) = LogStore::open_on(disk.clone(), dir, config, &|_| true).unwrap();
    assert_eq!(recovery.damage, vec![]);
    for number in 0..ATTEMPTS {
        let came =
            store.open_attempt(attempt(number), pack_run(number % RUNS), NO_OFFSET, Timestamp::MIN).readable;
        assert!(came <= written[number as usize]);
        written[number as usize] = came;
    }
    for (index, batch) in life.batches.iter().enumerate() {
        if index == life.durable {
            disk.fail_syncs(true);
        }
        let mut appends = tokio::task::JoinSet::new();
        for &(number, count, length) in batch {
            let next = &mut written[number as usize];
            let block = long_block(attempt(number), *next, count, length);
            *next += count;
            let store = store.clone();
            appends.spawn(async move { store.append(block).await.unwrap() });
        }
        appends.join_all().await;
    }
    let on_disk = *store.durable.borrow();
    check(&store, written).await;
    store.close().await;
    let last = *segment::list(dir).unwrap().last().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(segment::path(dir, last)).unwrap();
    let length = file.metadata().unwrap().len();
    let safe = if on_disk.segment == last { on_disk.offset } else { segment::HEADER_BYTES as u64 };
    if life.durable < life.batches.len() && safe < length {
        file.set_len(safe + (length - safe) * life.left / 1000).unwrap();
    }
}

async fn check(store: &LogStore, written: &[u64]) {
    let mut kept: HashMap<u8, Vec<Extent>> = HashMap::new();
    for (number, &count) in (0..ATTEMPTS).zip(written) {
        let extents = store.extents(attempt(number)).unwrap();
        check_rule(&extents);
        let extents = decode_extents(&encode_extents(&extents)).unwrap();
        for from in [0, count / 2, count] {
            check_attempt(store.read_attempt(attempt(number), from).unwrap(), attempt(number), from..count)
                .await;
            let reader = store.read_extents(attempt(number), extents.clone(), from);
            check_attempt(reader, attempt(number), from..count).await;
        }
        kept.entry(number % RUNS).or_default().extend(extents);
    }
    for run in 0..RUNS {
        let attempts = (run..ATTEMPTS).step_by(RUNS.into());
        let total: u64 = attempts.clone().map(|number| written[number as usize]).sum();
        let start = FeedPosition::default();
        let all = feed(store.read_feed(pack_run(run), start).unwrap().unwrap(), 0).await;
        assert_eq!(all.iter().map(|(_, entries)| entries.len() as u64).sum::<u64>(), total);
        for number in attempts.clone() {
            let own = all.iter().filter(|(of, _)| *of == attempt(number)).flat_map(|(_, seqs)| seqs);
            assert!(own.copied().eq(0..written[number as usize]));
        }
        let extents = kept.remove(&run).unwrap();
        for block in [0, all.len() / 3, all.len()] {
            let from = FeedPosition { block: block as u64, entry: 0 };
            let live = store.read_feed(pack_run(run), from).unwrap().unwrap();
            assert_eq!(feed(live, from.block).await, all[block..]);
            let over = store.read_kept_feed(pack_run(run), extents.clone(), from).unwrap();
            assert_eq!(feed(over, from.block).await, all[block..]);
        }
        let sources = attempts.map(|number| (attempt(number), store.extents(attempt(number)).unwrap()));
        let mut reader = store.read_chronological(sources.collect(), None, None);
        let mut keys = Vec::new();
        while let Some((key, _)) = reader.next().await.unwrap() {
            keys.push(key);
        }
        assert!(keys.is_sorted_by(|a, b| a < b) && keys.len() as u64 == total);
    }
}

fn check_rule(extents: &[Extent]) {
    let most_foreign = |own: u32| FOREIGN_PER_OWN * u64::from(own) + FOREIGN_FREE_BYTES;
    for extent in extents {
        assert!(u64::from(extent.length - extent.bytes) <= most_foreign(extent.bytes), "{extent:?}");
        assert!(extent.bytes < OWN_BYTES_MAX + (100 << 10), "{extent:?}");
    }
    for pair in extents.windows(2) {
        let (one, next) = (pair[0], pair[1]);
        assert_eq!(one.next_seq(), next.first_seq);
        if one.at.segment == next.at.segment && one.bytes < OWN_BYTES_MAX {
            let foreign = next.at.offset - one.at.offset - u64::from(one.bytes);
            assert!(foreign > most_foreign(one.bytes), "{one:?} could have grown to {next:?}");
        }
    }
}

async fn check_attempt(mut reader: LogReader, attempt: AttemptId, range: std::ops::Range<u64>) {
    let mut next = range.start;
    while let Some(block) = reader.next_ready().await.unwrap() {
        for entry in block.entries() {
            assert_eq!(entry.seq, next);
            assert!(entry.text.starts_with(text(attempt, next, 0).as_bytes()));
            next += 1;
        }
    }
    assert_eq!(next, range.end);
}

/// The blocks of a feed, each with whose it is and its entries.
async fn feed(mut reader: LogReader, mut arrival: u64) -> Vec<(AttemptId, Vec<u64>)> {
    let mut blocks = Vec::new();
    while let Some(block) = reader.next_ready().await.unwrap() {
        assert_eq!(block.arrival, arrival);
        arrival += 1;
        blocks.push((block.block.attempt(), block.entries().map(|entry| entry.seq).collect()));
    }
    blocks
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn every_reader_gives_every_entry_once_in_order((lives, segment_bytes) in lives()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let config = LogConfig { segment_bytes, ..LogConfig::default() };
            let mut written = [0; ATTEMPTS as usize];
            for life in &lives {
                live(dir.path(), config, life, &mut written).await;
            }
            let (store, recovery) = open_with(dir.path(), config);
            assert_eq!(recovery.damage, vec![]);
            for number in 0..ATTEMPTS {
                let came = store.open_attempt(attempt(number), pack_run(number % RUNS), NO_OFFSET, Timestamp::MIN);
                written[number as usize] = came.readable;
            }
            check(&store, &written).await;
        });
    }
}
