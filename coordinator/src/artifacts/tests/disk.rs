//! What is on the disk when it is acknowledged, and what becomes of content when the disk fails.

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
    (disk, store)
}

/// Sends the rest of the content as it comes from the network, in pieces.
async fn send(mut upload: Upload, content: &bytes::Bytes) -> Result<(), ArtifactError> {
    for at in (upload.offset() as usize..content.len()).step_by(100_000) {
        upload.write(content.slice(at..content.len().min(at + 100_000))).await?;
    }
    upload.finish().await
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
        assert!(disk.steps().contains(&Step::Sync));
    }
}
