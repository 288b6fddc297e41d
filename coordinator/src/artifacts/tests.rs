//! Uploads that break off, lie or race, and what the store has after them.

use std::fs::File;
use std::time::Duration;

use packrun_protocol::id::{AgentId, AttemptNumber, JobRunId};
use tokio::io::AsyncReadExt;

use super::*;

mod disk;

const MAX: u64 = 64 << 20;

const AGENT: AgentId = AgentId::from_bytes([9; 16]);

fn id(path: &str) -> UploadId {
    id_of(AGENT, path)
}

fn id_of(agent: AgentId, path: &str) -> UploadId {
    let job_run = JobRunId::from_bytes([7; 16]);
    UploadId::new(agent, AttemptId { job_run, number: AttemptNumber::FIRST }, path)
}

/// Bytes without a period that could hide a chunk put in the wrong place.
fn content(bytes: usize) -> bytes::Bytes {
    (0..bytes as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into()
}

async fn sending(store: &ArtifactStore, path: &str, digest: Digest, bytes: usize) -> Upload {
    match store.begin(id(path), digest, bytes as u64).await.unwrap() {
        Begin::Send(upload) => upload,
        Begin::Have => panic!("it is not there yet"),
    }
}

async fn stored(store: &ArtifactStore, digest: Digest) -> Vec<u8> {
    let mut blob = store.read(digest).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    blob.file.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes.len() as u64, blob.bytes);
    bytes
}

fn hours_ago(hours: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(3600 * hours)
}

/// Makes it as if content had been sent two hours ago.
fn grow_old(store: &ArtifactStore, digest: Digest) {
    let (file, _) = store.in_shard(digest, |shard| shard.find(digest)).unwrap().unwrap();
    file.set_modified(hours_ago(2)).unwrap();
}

fn partials(dir: &Path) -> usize {
    partials_of(dir, AGENT)
}

fn partials_of(dir: &Path, agent: AgentId) -> usize {
    // Who has sent nothing has no folder.
    std::fs::read_dir(dir.join("partial").join(agent.to_string())).map_or(0, Iterator::count)
}

#[tokio::test]
async fn content_is_there_when_it_is_finished_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    for bytes in [0, 1, 600_000] {
        let content = content(bytes);
        let digest = Digest::of(&content);
        let mut upload = sending(&store, "a", digest, bytes).await;
        assert_eq!(upload.offset(), 0);
        for at in (0..bytes).step_by(70_000) {
            upload.write(content.slice(at..bytes.min(at + 70_000))).await.unwrap();
        }
        assert_eq!(store.have(digest).await.unwrap(), None);
        assert!(store.read(digest).await.unwrap().is_none());
        upload.finish().await.unwrap();
        assert_eq!(store.have(digest).await.unwrap(), Some(bytes as u64));
        assert!(stored(&store, digest).await == content);
        assert!(matches!(store.begin(id("b"), digest, bytes as u64).await, Ok(Begin::Have)));
        let hex = digest.to_hex();
        assert!(dir.path().join("blobs").join(&hex[..2]).join(&hex).is_file());
    }
    assert_eq!(partials(dir.path()), 0);
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(3_000_000);
    let digest = Digest::of(&content);
    let mut at = 0;
    for _ in 0..4 {
        let store = ArtifactStore::open(dir.path(), MAX).unwrap();
        let mut upload = sending(&store, "a", digest, content.len()).await;
        assert!(upload.offset() >= at as u64, "what was written is kept");
        at = upload.offset() as usize;
        for _ in 0..7 {
            upload.write(content.slice(at..at + 100_000)).await.unwrap();
            at += 100_000;
        }
        // The last pieces may not have been written yet.
        at -= 300_000;
    }
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    let mut upload = sending(&store, "a", digest, content.len()).await;
    assert!(upload.offset() >= 1_600_000, "{}", upload.offset());
    upload.write(content.slice(upload.offset() as usize..)).await.unwrap();
    upload.finish().await.unwrap();
    assert!(stored(&store, digest).await == content);
}

#[tokio::test]
async fn content_other_than_announced_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    let (announced, other) = (content(1000), content(1001).slice(1..));
    let digest = Digest::of(&announced);
    let mut upload = sending(&store, "a", digest, 1000).await;
    upload.write(other.clone()).await.unwrap();
    let refused = upload.finish().await.unwrap_err();
    assert!(matches!(refused, ArtifactError::Mismatch { actual, .. } if actual == Digest::of(&other)));
    assert_eq!((store.have(digest).await.unwrap(), partials(dir.path())), (None, 0));

    let mut again = sending(&store, "a", digest, 1000).await;
    assert_eq!(again.offset(), 0);
    again.write(announced).await.unwrap();
    again.finish().await.unwrap();
}

#[tokio::test]
async fn a_partial_file_changed_by_a_power_cut_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    let content = content(600_000);
    let digest = Digest::of(&content);
    std::fs::create_dir_all(store.partials(AGENT)).unwrap();
    std::fs::write(store.partial(digest, id("a")), vec![0; 300_000]).unwrap();
    let mut upload = sending(&store, "a", digest, content.len()).await;
    assert_eq!(upload.offset(), 300_000);
    upload.write(content.slice(300_000..)).await.unwrap();
    assert!(matches!(upload.finish().await, Err(ArtifactError::Mismatch { .. })));
    assert_eq!(sending(&store, "a", digest, content.len()).await.offset(), 0);
}

#[tokio::test]
async fn lies_about_the_size_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), 1000).unwrap();
    let content = content(1000);
    let digest = Digest::of(&content);
    let too_large = store.begin(id("a"), digest, 1001).await;
    assert!(matches!(too_large, Err(ArtifactError::TooLarge { announced: 1001, limit: 1000 })));

    let mut short = sending(&store, "a", digest, 500).await;
    let overlong = short.write(content.clone()).await;
    assert!(matches!(overlong, Err(ArtifactError::Overlong { announced: 500, .. })));
    assert!(matches!(short.write(content.slice(..1)).await, Err(ArtifactError::Overlong { .. })));
    assert!(matches!(short.finish().await, Err(ArtifactError::Interrupted(_))));
    assert_eq!(partials(dir.path()), 0);

    let mut early = sending(&store, "a", digest, 1000).await;
    early.write(content.slice(..999)).await.unwrap();
    assert!(matches!(early.finish().await, Err(ArtifactError::Incomplete { received: 999, .. })));
    let mut shrunk = sending(&store, "a", digest, 998).await;
    assert_eq!(shrunk.offset(), 0, "what was left is longer than all of it");
    shrunk.write(content.slice(..998)).await.unwrap();
    assert!(matches!(shrunk.finish().await, Err(ArtifactError::Mismatch { .. })));

    let mut right = sending(&store, "a", digest, 1000).await;
    right.write(content).await.unwrap();
    right.finish().await.unwrap();
    let other_size = store.begin(id("b"), digest, 999).await;
    assert!(matches!(other_size, Err(ArtifactError::Size { announced: 999, actual: 1000, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_uploads_of_one_digest_all_succeed_and_one_file_has_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    let content = content(1_000_000);
    let digest = Digest::of(&content);
    let mut uploads = tokio::task::JoinSet::new();
    let start = Arc::new(tokio::sync::Barrier::new(8));
    for number in 0..8 {
        let (store, content, start) = (store.clone(), content.clone(), start.clone());
        uploads.spawn(async move {
            let path = format!("file {number}");
            let mut upload = sending(&store, &path, digest, content.len()).await;
            let twice = store.begin(id(&path), digest, content.len() as u64).await;
            assert!(matches!(twice, Err(ArtifactError::Busy(_))), "{twice:?}");
            start.wait().await;
            for at in (0..content.len()).step_by(50_000) {
                upload.write(content.slice(at..at + 50_000)).await.unwrap();
            }
            upload.finish().await.unwrap();
            assert!(stored(&store, digest).await == content);
        });
    }
    uploads.join_all().await;
    assert_eq!(partials(dir.path()), 0);
}

#[tokio::test]
async fn only_content_that_is_neither_used_nor_wanted_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    let contents = [1000, 2000, 3000].map(content);
    let digests = contents.each_ref().map(|content| Digest::of(content));
    let [used, wanted, unused] = digests;
    for (content, digest) in contents.iter().zip(digests) {
        let mut upload = sending(&store, "a", digest, content.len()).await;
        upload.write(content.clone()).await.unwrap();
        upload.finish().await.unwrap();
        grow_old(&store, digest);
    }
    assert!(matches!(store.begin(id("b"), wanted, 2000).await, Ok(Begin::Have)));
    let mut blob = store.read(unused).await.unwrap().unwrap();
    assert_eq!(store.drop_unused(hours_ago(1), move |digest| digest == used).await.unwrap(), 1);
    let mut left = Vec::new();
    for digest in digests {
        left.push(store.have(digest).await.unwrap());
    }
    assert_eq!(left, [Some(1000), Some(2000), None]);
    let mut bytes = Vec::new();
    blob.file.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == contents[2], "who reads it reads on");
}

#[tokio::test]
async fn only_partial_files_that_nobody_sends_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    let digest = Digest::of(b"x");
    drop(sending(&store, "left", digest, 1).await);
    let under_way = sending(&store, "sent", digest, 1).await;
    let now = SystemTime::now();
    assert_eq!(store.drop_partials(now - Duration::from_secs(3600)).await.unwrap(), 0);
    assert_eq!(store.drop_partials(now + Duration::from_secs(3600)).await.unwrap(), 1);
    assert_eq!(partials(dir.path()), 1);
    drop(under_way);
    assert_eq!(store.drop_partials(now + Duration::from_secs(3600)).await.unwrap(), 1);
}

#[tokio::test]
async fn an_agent_leaves_so_many_uploads_unfinished_and_no_more_the_oldest_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    let content = content(600_000);
    let (digest, bytes) = (Digest::of(&content), 600_000);
    let other = AgentId::from_bytes([8; 16]);
    drop(store.begin(id_of(other, "a"), digest, bytes as u64).await.unwrap());
    let mut sent = sending(&store, "sent", digest, bytes).await;
    let mut resumed = sending(&store, "resumed", digest, bytes).await;
    for upload in [&mut sent, &mut resumed] {
        upload.write(content.slice(..300_000)).await.unwrap();
    }
    drop(resumed);
    for n in 0..500 {
        if n == 250 {
            let begun = sending(&store, "resumed", digest, bytes).await;
            assert_eq!(begun.offset(), 0, "it was one of the oldest");
        }
        let upload = sending(&store, &n.to_string(), digest, bytes).await;
        drop(upload);
        assert!(partials(dir.path()) <= partial::FILES_MAX + 1);
    }
    sent.write(content.slice(300_000..)).await.unwrap();
    sent.finish().await.unwrap();
    assert_eq!(partials_of(dir.path(), other), 1, "it is none of their business");
}

#[tokio::test]
async fn unfinished_uploads_take_so_many_bytes_and_the_last_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    let folder = store.partials(AGENT);
    std::fs::create_dir_all(&folder).unwrap();
    let put = |name: &str, bytes, hours| {
        let file = File::create(folder.join(name)).unwrap();
        file.set_len(bytes).unwrap();
        file.set_modified(hours_ago(hours)).unwrap();
    };
    let names = || {
        let mut names: Vec<_> =
            entries(&folder).unwrap().into_iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    put("a", 300, 1);
    put("b", 300, 4);
    put("c", 300, 3);
    assert_eq!(partial::make_room(&folder, 3, 900).unwrap(), 0);
    assert_eq!(partial::make_room(&folder, 3, 899).unwrap(), 1);
    assert_eq!(names(), ["a", "c"]);
    put("d", 5000, 0);
    assert_eq!(partial::make_room(&folder, 3, 900).unwrap(), 2);
    assert_eq!(names(), ["d"], "however large it is");
    // A sparse file, as large as any: what an agent may leave is bounded without a new upload, too.
    put("e", 2 * partial::BYTES_MAX, 1);
    store.bound_partials(AGENT).await.unwrap();
    assert_eq!(names(), ["d"]);
    store.bound_partials(AgentId::from_bytes([8; 16])).await.unwrap();
}

#[test]
fn a_file_that_was_finished_or_replaced_before_it_was_locked_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("partial");
    std::fs::write(&path, "left").unwrap();
    let opened = File::open(&path).unwrap();
    std::fs::rename(&path, dir.path().join("finished")).unwrap();
    assert_eq!(upload::claim(&path, &opened).unwrap(), None);
    std::fs::write(&path, "another").unwrap();
    assert_eq!(upload::claim(&path, &opened).unwrap(), None);
    assert_eq!(upload::claim(&path, &File::open(&path).unwrap()).unwrap(), Some(7));
}

#[test]
fn waiting_for_a_slow_disk_leaves_threads_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), MAX).unwrap();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().max_blocking_threads(BLOCKING_MAX + 1).build().unwrap();
    let disk = Arc::new(Mutex::new(7));
    let slow = disk.lock().unwrap();
    let (calls, others) = runtime.block_on(async {
        let begun = Arc::new(Semaphore::new(0));
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..2 * BLOCKING_MAX {
            let (store, disk, begun) = (store.clone(), disk.clone(), begun.clone());
            calls.spawn(async move {
                begun.add_permits(1);
                store.blocking(move || Ok(*disk.lock().unwrap())).await.unwrap();
            });
        }
        let _all = begun.acquire_many(2 * BLOCKING_MAX as u32).await.unwrap();
        let other = tokio::task::spawn_blocking(|| ());
        (calls, tokio::time::timeout(Duration::from_secs(10), other).await)
    });
    drop(slow);
    runtime.block_on(calls.join_all());
    others.expect("no thread was left").unwrap();
}
