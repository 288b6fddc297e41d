//! A disk that is full or broken.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use super::*;

/// The system's disk, but its calls fail when they are told to.
#[derive(Default)]
pub(crate) struct FailingDisk {
    writes: AtomicBool,
    syncs: AtomicBool,
    panics: AtomicBool,
    allowed_syncs: AtomicU32,
    cuts: AtomicBool,
    written: AtomicU32,
    tried_syncs: AtomicU32,
    caches: Mutex<HashMap<u64, PageCache>>,
}

/// What the kernel has of a file: ranges that wait for a sync, and those that a failed one took for clean.
#[derive(Default)]
struct PageCache {
    dirty: Vec<(u64, u64)>,
    lost: Vec<(u64, u64)>,
}

impl FailingDisk {
    pub(crate) fn fail_writes(&self, fail: bool) {
        self.writes.store(fail, Ordering::SeqCst);
    }

    pub(super) fn fail_syncs(&self, fail: bool) {
        self.syncs.store(fail, Ordering::SeqCst);
    }

    fn fail_cuts(&self, fail: bool) {
        self.cuts.store(fail, Ordering::SeqCst);
    }

    /// Whether all that was done to the files before this offset has come to the disk.
    fn has_all_before(&self, offset: u64) -> bool {
        let caches = self.caches.lock().unwrap();
        caches.values().flat_map(|cache| cache.dirty.iter().chain(&cache.lost)).all(|range| range.0 >= offset)
    }

    fn has_all(&self) -> bool {
        self.has_all_before(u64::MAX)
    }

    fn cache(&self, file: &File, change: impl FnOnce(&mut PageCache)) {
        let inode = file.metadata().unwrap().ino();
        change(self.caches.lock().unwrap().entry(inode).or_default());
    }

    /// The next sync, that of opening, succeeds.
    pub(super) fn allow_open_sync(&self) {
        self.allowed_syncs.store(1, Ordering::SeqCst);
    }
}

impl Disk for FailingDisk {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.writes.load(Ordering::SeqCst) {
            file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.fetch_add(1, Ordering::SeqCst);
        let end = offset + bytes.len() as u64;
        self.cache(file, |cache| {
            let left = |lost: (u64, u64)| [(lost.0, lost.1.min(offset)), (lost.0.max(end), lost.1)];
            cache.lost = cache.lost.drain(..).flat_map(left).filter(|left| left.0 < left.1).collect();
            cache.dirty.push((offset, end));
        });
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.tried_syncs.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.load(Ordering::SeqCst), "a sync that ends its thread");
        let allowed = self.allowed_syncs.swap(0, Ordering::SeqCst) > 0;
        if self.syncs.load(Ordering::SeqCst) && !allowed {
            self.cache(file, |cache| cache.lost.append(&mut cache.dirty));
            return Err(io::Error::other("the disk is gone"));
        }
        self.cache(file, |cache| cache.dirty.clear());
        file.sync_data()
    }

    fn cut(&self, file: &File, length: u64) -> io::Result<()> {
        if self.cuts.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        self.cache(file, |cache| cache.dirty.push((length, length)));
        file.set_len(length)
    }
}

/// A log on a disk that fails when it is told to, in which these runs are live.
pub(crate) fn open_failing_for(dir: &Path, live: &dyn Fn(PackRunId) -> bool) -> (Arc<FailingDisk>, LogStore) {
    let disk = Arc::new(FailingDisk::default());
    let (store, _) = LogStore::open_on(disk.clone(), dir, LogConfig::default(), live).unwrap();
    (disk, store)
}

fn open_failing(dir: &Path) -> (Arc<FailingDisk>, LogStore) {
    open_failing_with(dir, LogConfig::default())
}

fn open_failing_with(dir: &Path, config: LogConfig) -> (Arc<FailingDisk>, LogStore) {
    let disk = Arc::new(FailingDisk::default());
    let (store, _) = LogStore::open_on(disk.clone(), dir, config, &|_| true).unwrap();
    (disk, store)
}

#[tokio::test]
async fn nothing_is_acknowledged_before_a_sync_has_succeeded() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_failing(dir.path());
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    let mut progress = store.progress(attempt(1)).unwrap();
    let mut health = store.health();
    disk.fail_syncs(true);
    store.append(block(attempt(1), 0, 3)).await.unwrap();
    health.wait_for(|health| health.sync.as_deref() == Some("the disk is gone")).await.unwrap();
    store.append(block(attempt(1), 3, 1)).await.unwrap();
    assert_eq!(
        *progress.borrow(),
        Progress { readable: 4, durable: 0, sealed: false, bytes: block(attempt(1), 0, 4).log_bytes() }
    );
    assert_eq!(texts(store.read_attempt(attempt(1), 0).unwrap(), 0).await.len(), 4, "but it is readable");

    disk.fail_syncs(false);
    progress.wait_for(|progress| progress.durable == 4).await.unwrap();
    health.wait_for(|health| *health == Health::default()).await.unwrap();
    assert!(disk.has_all(), "what the failed sync may have lost is written again");
    store.close().await;
    let (store, recovery) = open(dir.path());
    assert_eq!(recovery, Recovery { blocks: 2, ..Recovery::default() });
    assert_eq!(texts(store.read_attempt(attempt(1), 0).unwrap(), 0).await, expected_texts(attempt(1), 0..4));
}

#[tokio::test]
async fn nobody_waits_for_a_syncer_that_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_failing(dir.path());
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    disk.panics.store(true, Ordering::SeqCst);
    store.append(block(attempt(1), 0, 1)).await.unwrap();
    assert_eq!(store.seal(attempt(1)).await, Err(AppendError::Closed));
    assert_eq!(store.append(block(attempt(1), 1, 1)).await, Err(AppendError::Closed));
}

#[tokio::test]
async fn what_arrives_does_not_hurry_a_failing_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_failing(dir.path());
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    let mut health = store.health();
    disk.fail_syncs(true);
    let (start, before) = (Instant::now(), disk.tried_syncs.load(Ordering::SeqCst));
    store.append(block(attempt(1), 0, 1)).await.unwrap();
    health.wait_for(|health| health.sync.is_some()).await.unwrap();
    for seq in 1..300 {
        store.append(block(attempt(1), seq, 1)).await.unwrap();
    }
    let tried = disk.tried_syncs.load(Ordering::SeqCst) - before;
    let pauses = start.elapsed().as_millis() / 100;
    assert!(u128::from(tried) <= 1 + pauses, "{tried} syncs with {pauses} pauses");
}

#[tokio::test]
async fn a_disk_that_is_well_again_is_not_written_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_failing(dir.path());
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    let mut health = store.health();
    disk.fail_syncs(true);
    store.append(block(attempt(1), 0, 1)).await.unwrap();
    health.wait_for(|health| health.sync.is_some()).await.unwrap();
    disk.fail_syncs(false);
    let mut progress = store.progress(attempt(1)).unwrap();
    progress.wait_for(|progress| progress.durable == 1).await.unwrap();
    let written = disk.written.load(Ordering::SeqCst);
    append_durably(&store, 1, 1).await;
    assert_eq!(disk.written.load(Ordering::SeqCst), written + 1);
}

#[test]
fn what_was_written_but_not_noted_when_a_sync_failed_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FailingDisk::default());
    let segment = Arc::new(segment::Segment::create(dir.path(), 1, &*disk).unwrap());
    let mut records = Vec::new();
    let mut ends = Vec::new();
    for arrival in 0..2 {
        let durable = Position::default();
        let header = segment::RecordHeader { pack_run: pack_run(9), arrival, correction: 0, durable };
        segment::encode_record(segment.marker, &header, &block(attempt(1), arrival, 1), &mut records);
        ends.push((segment::HEADER_BYTES + records.len()) as u64);
    }
    disk.write(&segment.file, &records, segment::HEADER_BYTES as u64).unwrap();
    let mut syncer = Syncer {
        dir: Arc::new(dir.path().to_owned()),
        disk: disk.clone(),
        runs: Arc::default(),
        checkpoint: Position::default(),
        looked: Position::default(),
        durable: watch::Sender::default(),
        health: watch::Sender::default(),
        dirty: BTreeMap::from([(1, (segment.clone(), ends[0]))]),
        acks: HashMap::new(),
        named: 1,
        distrusted: None,
    };
    disk.fail_syncs(true);
    assert!(syncer.sync().is_err());
    disk.fail_syncs(false);
    for end in ends {
        syncer.dirty.insert(1, (segment.clone(), end));
        syncer.sync().unwrap();
        assert_eq!(*syncer.durable.borrow(), Position { segment: 1, offset: end });
        assert!(disk.has_all_before(end), "what is said to be on disk is");
    }
}

#[tokio::test]
async fn records_lost_by_a_failed_sync_are_never_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_failing(dir.path());
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    let progress = store.progress(attempt(1)).unwrap();
    let mut health = store.health();
    disk.fail_syncs(true);
    store.append(block(attempt(1), 0, 3)).await.unwrap();
    health.wait_for(|health| health.sync.is_some()).await.unwrap();
    let file = File::options().write(true).open(segment::path(dir.path(), 1)).unwrap();
    file.write_all_at(&[0; 64], segment::HEADER_BYTES as u64 + 80).unwrap();
    disk.fail_syncs(false);
    let lost = |health: &Health| health.sync.as_deref().is_some_and(|reason| reason.contains("were lost"));
    health.wait_for(lost).await.unwrap();
    assert_eq!(progress.borrow().durable, 0);
    store.close().await;
    let (_store, recovery) = open(dir.path());
    assert_eq!(recovery.cut, Some(Position { segment: 1, offset: segment::HEADER_BYTES as u64 }));
}

#[tokio::test]
async fn a_full_disk_refuses_blocks_until_there_is_room_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_failing(dir.path());
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    let mut progress = store.progress(attempt(1)).unwrap();
    store.append(block(attempt(1), 0, 2)).await.unwrap();
    disk.fail_writes(true);
    for _ in 0..3 {
        let refused = store.append(block(attempt(1), 2, 2)).await;
        assert!(matches!(refused, Err(AppendError::Write { segment: 1, .. })), "{refused:?}");
    }
    assert!(store.health().borrow().write.is_some());
    assert_eq!(progress.borrow().readable, 2);
    disk.fail_writes(false);
    store.append(block(attempt(1), 2, 1)).await.unwrap();
    store.append(block(attempt(1), 3, 1)).await.unwrap();
    progress.wait_for(|progress| progress.durable == 4).await.unwrap();
    assert_eq!(*store.health().borrow(), Health::default());
    store.close().await;
    assert_eq!(store.append(block(attempt(1), 4, 1)).await, Err(AppendError::Closed));
    let (store, recovery) = open(dir.path());
    assert_eq!((recovery.damage, recovery.blocks), (vec![], 3));
    assert_eq!(texts(store.read_attempt(attempt(1), 0).unwrap(), 0).await, expected_texts(attempt(1), 0..4));
}

#[tokio::test]
async fn what_a_failed_write_left_behind_a_later_one_is_not_taken_for_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_failing(dir.path());
    store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
    store.open_attempt(attempt(2), pack_run(9), NO_OFFSET, Timestamp::MIN);
    disk.fail_syncs(true);
    // Two blocks as one failed write would leave them; the first is then gone over by one of the same size.
    for seq in 0..2 {
        store.append(block(attempt(1), seq, 1)).await.unwrap();
    }
    store.close().await;
    let file = segment::path(dir.path(), 1);
    let left = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let marker = u64::from_le_bytes(*left[16..].first_chunk().unwrap());
    let header = segment::RecordHeader {
        pack_run: pack_run(9),
        arrival: 0,
        correction: 0,
        durable: Position { segment: 1, offset: segment::HEADER_BYTES as u64 },
    };
    let mut record = Vec::new();
    segment::encode_record(marker, &header, &block(attempt(2), 0, 1), &mut record);
    let end = segment::HEADER_BYTES + record.len();
    std::fs::write(&file, [&left[..segment::HEADER_BYTES], &record, &left[end..]].concat()).unwrap();

    let (store, recovery) = open(dir.path());
    let cut = Some(Position { segment: 1, offset: end as u64 });
    assert_eq!(recovery, Recovery { cut, damage: vec![], blocks: 1 });
    assert_eq!(store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN), Progress::default());
}

/// Puts blocks behind the end of segment 1, as a write that failed would leave them: from the arrival number
/// `first` on, each an attempt and a sequence number. Returns where they begin.
pub(super) fn leave_behind(dir: &Path, first: u64, blocks: &[(u8, u64)], torn_off: u64) -> Vec<Position> {
    let file = File::options().read(true).write(true).open(segment::path(dir, 1)).unwrap();
    let end = file.metadata().unwrap().len();
    let marker = segment::Segment::open(dir, 1, false).unwrap().marker;
    let (mut records, mut places) = (Vec::new(), Vec::new());
    for (arrival, &(number, seq)) in (first..).zip(blocks) {
        places.push(Position { segment: 1, offset: end + records.len() as u64 });
        let durable = places[0];
        let header = segment::RecordHeader { pack_run: pack_run(9), arrival, correction: 0, durable };
        segment::encode_record(marker, &header, &block(attempt(number), seq, 1), &mut records);
    }
    file.write_all_at(&records, end).unwrap();
    file.set_len(end + records.len() as u64 - torn_off).unwrap();
    places
}

async fn append_durably(store: &LogStore, number: u8, seq: u64) {
    store.append(block(attempt(number), seq, 1)).await.unwrap();
    let mut progress = store.progress(attempt(number)).unwrap();
    progress.wait_for(|progress| progress.durable == seq + 1).await.unwrap();
}

#[tokio::test]
async fn what_a_failed_write_left_does_not_outlive_a_roll() {
    let small = LogConfig { segment_bytes: 1, ..LogConfig::default() };
    for torn_off in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        let (disk, store) = open_failing_with(dir.path(), small);
        store.open_attempt(attempt(1), pack_run(9), NO_OFFSET, Timestamp::MIN);
        store.open_attempt(attempt(2), pack_run(9), NO_OFFSET, Timestamp::MIN);
        leave_behind(dir.path(), 0, &[(1, 0), (2, 0), (1, 1), (2, 1)], torn_off);
        append_durably(&store, 1, 0).await;
        disk.fail_cuts(true);
        append_durably(&store, 2, 0).await;
        assert_eq!(segment::list(dir.path()).unwrap(), [1], "no roll before it is cut");
        disk.fail_cuts(false);
        append_durably(&store, 2, 1).await;
        append_durably(&store, 1, 1).await;
        assert_eq!(segment::list(dir.path()).unwrap(), [1, 2, 3]);
        assert!(disk.has_all(), "what is acknowledged is behind a cut that is on disk");
        store.close().await;
        let (store, recovery) = open_with(dir.path(), small);
        assert_eq!(recovery, Recovery { blocks: 4, ..Recovery::default() });
        for number in [1, 2] {
            let all = texts(store.read_attempt(attempt(number), 0).unwrap(), 0).await;
            assert_eq!(all, expected_texts(attempt(number), 0..2));
        }
    }
}
