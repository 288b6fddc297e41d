//! The checkpoint file: it spares reading, and nothing depends on it.

use std::fs;

use super::*;

const FILE: &str = "checkpoint";

/// A log of one-block segments: two closed runs with 3 blocks each, then one that lives with 2.
async fn write(dir: &Path) {
    let small = LogConfig { segment_bytes: 1, ..LogConfig::default() };
    let (store, _) = open_with(dir, small);
    for (number, blocks) in [(1, 3), (2, 3), (3, 2)] {
        store.open_attempt(attempt(number), pack_run(number), NO_OFFSET, Timestamp::MIN);
        for seq in 0..blocks {
            store.append(block(attempt(number), seq, 1)).await.unwrap();
        }
        store.seal(attempt(number)).await.unwrap();
        if number < 3 {
            store.close_run(pack_run(number));
        }
    }
    store.close().await;
}

/// Damages a block, so that it shows who reads it.
fn damage(dir: &Path, number: u64) {
    let path = segment::path(dir, number);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

fn reopen(dir: &Path) -> Recovery {
    let (store, recovery) = LogStore::open(dir, LogConfig::default(), &|run| run == pack_run(3)).unwrap();
    assert_eq!(store.progress(attempt(3)).unwrap().borrow().readable, 2);
    recovery
}

#[tokio::test]
async fn what_lies_before_the_checkpoint_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    damage(dir.path(), 2);
    assert_eq!(reopen(dir.path()), Recovery { blocks: 2, ..Recovery::default() });
}

#[tokio::test]
async fn without_a_good_checkpoint_all_is_read() {
    let whole = tempfile::tempdir().unwrap();
    write(whole.path()).await;
    let good = fs::read(whole.path().join(FILE)).unwrap();
    let mut bad: Vec<_> = (0..good.len()).map(|place| flipped(&good, place)).collect();
    bad.extend([vec![], good[..good.len() - 1].to_vec(), vec![0; good.len()], good.repeat(2)]);
    for bytes in bad.into_iter().map(Some).chain([None]) {
        let dir = tempfile::tempdir().unwrap();
        for number in segment::list(whole.path()).unwrap() {
            fs::copy(segment::path(whole.path(), number), segment::path(dir.path(), number)).unwrap();
        }
        damage(dir.path(), 2);
        match &bytes {
            Some(bytes) => fs::write(dir.path().join(FILE), bytes).unwrap(),
            None => fs::create_dir(dir.path().join(FILE)).unwrap(),
        }
        let recovery = reopen(dir.path());
        assert_eq!((recovery.damage.len(), recovery.blocks), (1, 2), "{bytes:?}");
    }
}

fn flipped(bytes: &[u8], place: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[place] ^= 0x10;
    bytes
}

#[tokio::test]
async fn a_checkpoint_of_other_segments_is_none() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(dir.path()).await;
    write(other.path()).await;
    damage(dir.path(), 2);
    fs::copy(other.path().join(FILE), dir.path().join(FILE)).unwrap();
    assert_eq!(reopen(dir.path()).damage.len(), 1, "the same number, but not the same segment");
}

fn remove_segments(dir: &Path, from: u64) {
    for number in segment::list(dir).unwrap().into_iter().filter(|&number| number >= from) {
        fs::remove_file(segment::path(dir, number)).unwrap();
    }
}

#[tokio::test]
async fn a_checkpoint_newer_than_the_segments_is_none() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    remove_segments(dir.path(), 3);
    let (_, recovery) = LogStore::open(dir.path(), LogConfig::default(), &|run| run == pack_run(1)).unwrap();
    assert_eq!(recovery.blocks, 2, "as in an older copy of the folder");
}

#[tokio::test]
async fn a_number_is_not_used_twice_though_all_segments_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    remove_segments(dir.path(), 0);
    let (_store, _) = open(dir.path());
    assert_eq!(segment::list(dir.path()).unwrap(), [8], "the checkpoint was in the seventh");
}

#[tokio::test]
async fn a_run_that_lives_holds_the_checkpoint_back() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    for number in [1, 2] {
        store.open_attempt(attempt(number), pack_run(number), NO_OFFSET, Timestamp::MIN);
        store.append(block(attempt(number), 0, 1)).await.unwrap();
        store.seal(attempt(number)).await.unwrap();
    }
    store.close_run(pack_run(2));
    store.close().await;
    let (store, recovery) = open(dir.path());
    assert_eq!(recovery.blocks, 2);
    assert_eq!(texts(store.read_attempt(attempt(1), 0).unwrap(), 0).await, expected_texts(attempt(1), 0..1));
}

#[tokio::test]
async fn a_checkpoint_is_kept_when_much_was_closed_though_the_store_never_ends_well() {
    let dir = tempfile::tempdir().unwrap();
    let small = LogConfig { segment_bytes: 1, ..LogConfig::default() };
    let (store, _) = open_with(dir.path(), small);
    for number in 1..4 {
        store.open_attempt(attempt(number), pack_run(number), NO_OFFSET, Timestamp::MIN);
        store.append(block(attempt(number), 0, 1)).await.unwrap();
        store.seal(attempt(number)).await.unwrap();
        store.close_run(pack_run(number));
    }
    // What is acknowledged behind it says that the syncer has seen it.
    store.open_attempt(attempt(4), pack_run(4), NO_OFFSET, Timestamp::MIN);
    store.append(block(attempt(4), 0, 1)).await.unwrap();
    store.seal(attempt(4)).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let (_, recovery) = open(copy.path());
    assert_eq!(recovery.blocks, 1, "what was written since the last run was closed");
}
