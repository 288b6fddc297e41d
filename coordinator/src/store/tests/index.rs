//! Lists of pack runs cost what their page has, however long the history is: what is read of the disk is counted.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::tables::{RUNS, RUNS_BY_BOTH, RUNS_BY_PACK, RUNS_BY_STATE, state_key};
use super::*;

/// Ended pack runs.
const RUNS_COUNT: u64 = 100_000;

/// What a page of a list may read: a path down each tree, and some leaves. All of an index is megabytes.
const READ_MAX: u64 = 128 << 10;

/// A disk in memory that counts the bytes that are read of it.
#[derive(Debug, Clone)]
struct CountingDisk {
    memory: Arc<redb::backends::InMemoryBackend>,
    read: Arc<AtomicU64>,
}

impl redb::StorageBackend for CountingDisk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.memory.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.memory.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write(offset, bytes)
    }
}

fn id(number: u64) -> PackRunId {
    PackRunId::from_bytes(u128::from(number).to_be_bytes())
}

/// A store whose oldest runs are the rare ones: three failed, two of pack `rare`, one both.
fn history(disk: &CountingDisk) -> Store {
    // Without a cache all that is looked at is read.
    let database = redb::Builder::new().set_cache_size(0).create_with_backend(disk.clone()).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut runs = write.open_table(RUNS).unwrap();
        let mut by_state = write.open_table(RUNS_BY_STATE).unwrap();
        let mut by_pack = write.open_table(RUNS_BY_PACK).unwrap();
        let mut by_both = write.open_table(RUNS_BY_BOTH).unwrap();
        for number in 0..RUNS_COUNT {
            let key = id(number).to_bytes();
            let pack = if number < 2 { "rare" } else { "common" };
            let state = if (1..4).contains(&number) { PackRunState::Failed } else { PackRunState::Completed };
            runs.insert(key, &[][..]).unwrap();
            by_state.insert((state_key(state), key), ()).unwrap();
            by_pack.insert((pack, key), ()).unwrap();
            by_both.insert((pack, state_key(state), key), ()).unwrap();
        }
    }
    write.commit().unwrap();
    Store { database: Arc::new(database) }
}

#[test]
fn a_page_reads_what_it_shows_and_not_the_history() {
    let disk = CountingDisk { memory: Arc::default(), read: Arc::default() };
    let store = history(&disk);
    let reader = store.snapshot().unwrap();
    let page = |pack: Option<&str>, state, before: Option<u64>, limit| {
        let filter = RunFilter { pack: pack.map(name), state };
        let start = disk.read.load(Ordering::Relaxed);
        let found = reader.runs(&filter, before.map(id), limit).unwrap();
        (found.items, disk.read.load(Ordering::Relaxed) - start)
    };
    let (completed, failed) = (Some(PackRunState::Completed), Some(PackRunState::Failed));
    let ids = |numbers: &[u64]| numbers.iter().map(|number| id(*number)).collect::<Vec<_>>();
    for (pack, state, before, expected) in [
        (None, failed, None, ids(&[3, 2, 1])),
        (Some("rare"), None, None, ids(&[1, 0])),
        (Some("rare"), failed, None, ids(&[1])),
        (Some("rare"), completed, None, ids(&[0])),
        (Some("common"), failed, None, ids(&[3, 2])),
        (Some("common"), failed, Some(3), ids(&[2])),
        (None, Some(PackRunState::Running), None, ids(&[])),
        (Some("none"), completed, None, ids(&[])),
        (None, None, Some(2), ids(&[1, 0])),
        (Some("common"), completed, Some(5), ids(&[4])),
    ] {
        let (found, read) = page(pack, state, before, 50);
        assert_eq!(found, expected, "{pack:?} {state:?} {before:?}");
        assert!(read < READ_MAX, "{pack:?} {state:?} {before:?} reads {read} bytes");
    }
    for (pack, state) in
        [(None, None), (Some("common"), None), (None, completed), (Some("common"), completed)]
    {
        let (found, read) = page(pack, state, Some(RUNS_COUNT / 2), 50);
        assert!(found.len() == 50 && read < READ_MAX, "{pack:?} {state:?} reads {read} bytes");
    }
    let (all, read) = page(None, completed, None, 200_000);
    assert!(all.len() > 99_000 && read > 10 * READ_MAX, "what is read is counted: {read} bytes");
}
