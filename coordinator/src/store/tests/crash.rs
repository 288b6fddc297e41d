//! Power cuts at every sync: a disk that keeps of the unsynced writes nothing, all, or every other one. Whatever
//! was reported as committed must be there, and a batch is there whole or not at all.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use super::*;

/// A file in memory and what of it would survive a power cut.
#[derive(Debug, Default)]
struct Disk {
    now: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
    syncs_left: usize,
}

#[derive(Debug, Clone, Default)]
struct CrashingDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Clone, Copy)]
enum Survivors {
    None,
    EveryOther,
    All,
}

impl CrashingDisk {
    /// The file as it is found after the cut.
    fn after_power_cut(&self, survivors: Survivors) -> Self {
        let disk = self.0.lock().unwrap();
        let mut image = disk.synced.clone();
        for (index, (offset, bytes)) in disk.unsynced.iter().enumerate() {
            let survives = match survivors {
                Survivors::None => false,
                Survivors::EveryOther => index % 2 == 0,
                Survivors::All => true,
            };
            if survives {
                let end = *offset as usize + bytes.len();
                image.resize(image.len().max(end), 0);
                image[*offset as usize..end].copy_from_slice(bytes);
            }
        }
        Self(Arc::new(Mutex::new(Disk {
            now: image.clone(),
            synced: image,
            syncs_left: usize::MAX,
            ..Disk::default()
        })))
    }
}

impl redb::StorageBackend for CrashingDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let start = offset as usize;
        let bytes = disk.now.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().now.resize(length as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        if disk.syncs_left == 0 {
            return Err(io::Error::other("the power is cut"));
        }
        disk.syncs_left -= 1;
        disk.synced = disk.now.clone();
        disk.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let start = offset as usize;
        let end = start + bytes.len();
        let length = disk.now.len().max(end);
        disk.now.resize(length, 0);
        disk.now[start..end].copy_from_slice(bytes);
        disk.unsynced.push((offset, bytes.to_vec()));
        Ok(())
    }
}

/// How many pack runs were committed before the power went, and the disk.
async fn write_until_the_cut(syncs: usize) -> (Option<usize>, CrashingDisk) {
    let disk = CrashingDisk::default();
    disk.0.lock().unwrap().syncs_left = syncs;
    let Ok(store) = Store::open_on(disk.clone()) else { return (None, disk) };
    let Ok((mut lease, _)) = store.acquire().await else { return (None, disk) };
    let mut world = World::new(lease);
    for _ in 0..6 {
        world.create(None);
    }
    let mut committed = 0;
    for changes in std::mem::take(&mut world.batches) {
        let creates = changes.iter().filter(|change| matches!(change, Change::PackRun(_))).count();
        let mut batch = Batch::default();
        changes.into_iter().for_each(|change| batch.add(change));
        match store.commit(lease, batch).await {
            Ok((next, _)) => lease = next,
            Err(CommitError::Unknown(_)) => return (Some(committed), disk),
            Err(CommitError::Fenced) => panic!("nobody else writes"),
        }
        committed += creates;
    }
    (Some(committed), disk)
}

#[tokio::test]
async fn a_power_cut_at_any_sync_loses_nothing_that_was_committed() {
    let mut seen = BTreeMap::new();
    for syncs in 0.. {
        let (committed, disk) = write_until_the_cut(syncs).await;
        for survivors in [Survivors::None, Survivors::EveryOther, Survivors::All] {
            let store = match Store::open_on(disk.after_power_cut(survivors)) {
                Ok(store) => store,
                Err(error) if committed.is_some_and(|committed| committed > 0) => {
                    panic!("{survivors:?} after {syncs} syncs: {error}")
                }
                // The power went while the file was made.
                Err(_) => continue,
            };
            let reader = store.snapshot().unwrap();
            let runs = reader.runs(&RunFilter::default(), None, 100).unwrap().items;
            let least = committed.unwrap_or(0);
            assert!((least..=least + 1).contains(&runs.len()), "{survivors:?} after {syncs} syncs: {runs:?}");
            for run in runs {
                let whole = reader.plan(run).unwrap().is_some()
                    && reader.progress(run).unwrap().is_some()
                    && reader.feed_next(run).unwrap() > 0;
                assert!(whole, "a batch is there whole or not at all");
            }
            let rows = store.load().await.unwrap();
            let (lease, _) = store.acquire().await.unwrap();
            let (_, quarantined) =
                Core::restore(Config::default(), lease.epoch(), Timestamp::default(), rows);
            assert_eq!(quarantined, []);
        }
        *seen.entry(committed).or_insert(0) += 1;
        if committed == Some(6) {
            break;
        }
    }
    assert!(seen.len() > 6, "the power went at every stage: {seen:?}");
}
