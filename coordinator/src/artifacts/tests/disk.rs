//! What is on the disk when it is acknowledged, and what becomes of content when the disk fails.

use std::sync::OnceLock;

use super::super::disk::Disk;
use super::*;

/// What a disk was told to do, with the name of the file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Write(usize),
    Sync,
    Rename(String),
    Remove(String),
    SyncDir(String),
}

/// The system's disk, but it keeps count of the steps, and fails the next that it is told to.
#[derive(Debug, Default)]
struct ModelDisk {
    steps: Mutex<Vec<Step>>,
    failing: Mutex<Option<Step>>,
    shards: OnceLock<Arc<[Mutex<Shard>]>>,
}

impl ModelDisk {
    /// The steps since this was asked last.
    fn steps(&self) -> Vec<Step> {
        std::mem::take(&mut *self.steps.lock().unwrap())
    }

    fn fail_next(&self, step: Step) {
        *self.failing.lock().unwrap() = Some(step);
    }

    fn step(&self, step: Step) -> io::Result<()> {
        if let (Step::Rename(name) | Step::Remove(name) | Step::SyncDir(name), Some(shards)) =
            (&step, self.shards.get())
            && !name.contains('-')
        {
            let shard = &shards[usize::from_str_radix(&name[..2], 16).unwrap()];
            assert!(shard.try_lock().is_err(), "{step:?} while others look");
        }
        let fails = self.failing.lock().unwrap().take_if(|failing| *failing == step).is_some();
        self.steps.lock().unwrap().push(step);
        if fails { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
    }
}

impl Disk for ModelDisk {
    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        self.step(Step::Write(bytes.len()))?;
        io::Write::write_all(&mut file, bytes)
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        self.step(Step::Sync)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Step::Rename(name(to)))?;
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Remove(name(path)))?;
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step(Step::SyncDir(name(path)))
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn open_on_model(dir: &Path) -> (Arc<ModelDisk>, ArtifactStore) {
    let disk = Arc::new(ModelDisk::default());
    let store = ArtifactStore::open_on(disk.clone(), dir, MAX).unwrap();
    disk.shards.set(store.shards.clone()).unwrap();
    (disk, store)
}

/// Sends the rest of the content as it comes from the network, in pieces.
async fn send(mut upload: Upload, content: &bytes::Bytes) -> Result<(), ArtifactError> {
    for at in (upload.offset() as usize..content.len()).step_by(100_000) {
        upload.write(content.slice(at..content.len().min(at + 100_000))).await?;
    }
    upload.finish().await
}

/// The steps that make content known under its name.
fn made_known(digest: Digest) -> [Step; 3] {
    let hex = digest.to_hex();
    [Step::Sync, Step::Rename(hex.clone()), Step::SyncDir(hex[..2].to_owned())]
}

#[tokio::test]
async fn content_is_acknowledged_when_its_bytes_and_then_its_name_are_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_on_model(dir.path());
    let content = content(20 << 20);
    let digest = Digest::of(&content);
    let upload = sending(&store, "a", digest, content.len()).await;
    disk.steps();
    send(upload, &content).await.unwrap();
    let mut steps = disk.steps();
    assert!(steps.ends_with(&made_known(digest)), "{steps:?}");
    steps.truncate(steps.len() - 3);
    let mut unsynced = 0;
    for step in steps {
        match step {
            Step::Write(bytes) => unsynced += bytes,
            Step::Sync => unsynced = 0,
            _ => {}
        }
        assert!(unsynced <= 9 << 20, "the last sync is long");
    }
}

#[tokio::test]
async fn content_whose_sync_failed_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_on_model(dir.path());
    for bytes in [1000, 20 << 20] {
        let content = content(bytes);
        let digest = Digest::of(&content);
        let upload = sending(&store, "a", digest, bytes).await;
        disk.fail_next(Step::Sync);
        assert!(matches!(send(upload, &content).await, Err(ArtifactError::Io { .. })));
        assert_eq!(partials(dir.path()), 0);

        let again = sending(&store, "a", digest, bytes).await;
        assert_eq!(again.offset(), 0, "what the page cache shows may not be on disk");
        disk.steps();
        send(again, &content).await.unwrap();
        assert!(disk.steps().ends_with(&made_known(digest)));
    }
}

#[tokio::test]
async fn content_whose_name_was_not_synced_is_not_taken_for_here() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_on_model(dir.path());
    let content = content(1000);
    let digest = Digest::of(&content);
    let [_, _, sync_name] = made_known(digest);
    disk.fail_next(sync_name);
    let refused = send(sending(&store, "a", digest, 1000).await, &content).await;
    assert!(matches!(refused, Err(ArtifactError::Io { .. })), "{refused:?}");
    assert_eq!(store.have(digest).await.unwrap(), None);
    send(sending(&store, "a", digest, 1000).await, &content).await.unwrap();
    assert!(disk.steps().ends_with(&made_known(digest)));
}

#[tokio::test]
async fn a_name_left_by_a_killed_process_is_synced_before_it_is_taken_for_here() {
    let dir = tempfile::tempdir().unwrap();
    for _ in ["made", "opened again"] {
        let (disk, _) = open_on_model(dir.path());
        let mut steps = disk.steps();
        assert_eq!(steps.pop(), Some(Step::SyncDir("blobs".to_owned())), "the shards themselves");
        let shards = (0..=255).map(|number| Step::SyncDir(format!("{number:02x}")));
        assert!(steps.ends_with(&shards.collect::<Vec<_>>()), "{steps:?}");
        assert_eq!(steps.len(), 257, "and the folder of all");
    }
}

#[tokio::test]
async fn an_old_upload_that_is_finished_at_last_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (_, store) = open_on_model(dir.path());
    let content = content(1000);
    let digest = Digest::of(&content);
    let left = store.partial(digest, id("a"));
    std::fs::create_dir_all(store.partials(AGENT)).unwrap();
    std::fs::write(&left, &content).unwrap();
    File::open(&left).unwrap().set_modified(hours_ago(2)).unwrap();
    let upload = sending(&store, "a", digest, 1000).await;
    assert_eq!(upload.offset(), 1000);
    upload.finish().await.unwrap();
    assert_eq!(store.drop_unused(hours_ago(1), |_| false).await.unwrap(), 0);
    assert!(stored(&store, digest).await == content);
}

#[tokio::test]
async fn old_content_that_is_sent_again_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_on_model(dir.path());
    let content = content(1000);
    let digest = Digest::of(&content);
    let [first, second] =
        [sending(&store, "a", digest, 1000).await, sending(&store, "b", digest, 1000).await];
    send(first, &content).await.unwrap();
    grow_old(&store, digest);
    send(second, &content).await.unwrap();
    assert_eq!(store.drop_unused(hours_ago(1), |_| false).await.unwrap(), 0);
    assert!(stored(&store, digest).await == content);
    assert_eq!(partials(dir.path()), 0);

    grow_old(&store, digest);
    disk.steps();
    assert_eq!(store.drop_unused(hours_ago(1), |_| false).await.unwrap(), 1);
    assert_eq!(disk.steps(), [Step::Remove(digest.to_hex())]);
}

#[tokio::test]
async fn small_pieces_are_written_together_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, store) = open_on_model(dir.path());
    let content = content(1 << 20);
    let digest = Digest::of(&content);
    let mut upload = sending(&store, "a", digest, content.len()).await;
    disk.steps();
    for piece in content.chunks(1400) {
        let piece = Arc::new(piece.to_vec());
        let received = bytes::Bytes::from_owner(Piece(piece.clone()));
        upload.write(received).await.unwrap();
        assert_eq!(Arc::strong_count(&piece), 1, "the datagram is still in memory");
    }
    assert_eq!(disk.steps(), [const { Step::Write(256 << 10) }; 4]);
    upload.finish().await.unwrap();
    assert!(stored(&store, digest).await == content);
}

/// What came in one datagram.
struct Piece(Arc<Vec<u8>>);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
