//! The cache gives what it was given, keeps its bound, and outlives its process.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;

fn open(dir: &TempDir, bytes_max: u64) -> Cache {
    Cache::open(&dir.path().join("cache"), bytes_max).unwrap()
}

fn vacancy(cache: &Cache, digest: Digest, size: u64) -> Vacancy {
    match cache.try_claim(digest, size).unwrap() {
        Some(Claim::Missing(vacancy)) => vacancy,
        other => panic!("{other:?}"),
    }
}

fn fetch(cache: &Cache, content: &[u8]) -> Blob {
    let mut download = vacancy(cache, Digest::of(content), content.len() as u64).resume().unwrap();
    download.write(content).unwrap();
    download.commit().unwrap()
}

fn held(cache: &Cache, content: &[u8]) -> bool {
    matches!(cache.try_claim(Digest::of(content), content.len() as u64).unwrap(), Some(Claim::Have(_)))
}

fn read(blob: &Blob) -> Vec<u8> {
    let mut bytes = Vec::new();
    blob.open().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Every file below the cache's folder, without it.
fn files(dir: &TempDir, part: &str) -> Vec<PathBuf> {
    let mut folders = vec![dir.path().join("cache").join(part)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

fn age(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_fetched_content_is_there_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for content in [b"content".as_slice(), b""] {
        let blob = fetch(&open(&dir, 100), content);
        assert_eq!(read(&blob), content);
    }
    let cache = open(&dir, 100);
    assert!(held(&cache, b"content") && held(&cache, b""));
    assert_eq!(cache.bytes(), 7);
    assert!(files(&dir, "partial").is_empty());
}

#[test]
fn a_download_goes_on_where_it_was_cut_off_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"content");
    let cache = open(&dir, 100);
    let mut download = vacancy(&cache, digest, 7).resume().unwrap();
    assert_eq!(download.offset(), 0);
    download.write(b"con").unwrap();
    assert_eq!(cache.bytes(), 7, "reserved");
    drop(download);
    assert_eq!(cache.bytes(), 3, "what came");
    let mut download = vacancy(&cache, digest, 7).resume().unwrap();
    assert_eq!(download.offset(), 3);
    download.write(b"te").unwrap();
    drop((download, cache));
    let cache = open(&dir, 100);
    let mut download = vacancy(&cache, digest, 7).resume().unwrap();
    assert_eq!(download.offset(), 5);
    download.write(b"nt").unwrap();
    assert_eq!(read(&download.commit().unwrap()), b"content");
}

#[test]
fn bytes_of_another_content_are_never_kept_and_the_next_fetch_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 100);
    let digest = Digest::of(b"content");
    let mut download = vacancy(&cache, digest, 7).resume().unwrap();
    download.write(b"another").unwrap();
    assert!(matches!(download.commit(), Err(CacheError::Digest(_))));
    assert_eq!((cache.bytes(), files(&dir, "partial").len()), (0, 0));
    assert_eq!(vacancy(&cache, digest, 7).resume().unwrap().offset(), 0);
}

#[test]
fn too_few_or_too_many_bytes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 100);
    let digest = Digest::of(b"content");
    let mut download = vacancy(&cache, digest, 7).resume().unwrap();
    download.write(b"conten").unwrap();
    assert!(matches!(download.write(b"ts"), Err(CacheError::Length { announced: 7, actual: 8, .. })));
    assert!(matches!(download.commit(), Err(CacheError::Length { announced: 7, actual: 6, .. })));
    assert_eq!(vacancy(&cache, digest, 7).resume().unwrap().offset(), 6);
    assert_eq!(vacancy(&cache, digest, 5).resume().unwrap().offset(), 0, "longer than it can be");
    assert!(matches!(cache.try_claim(digest, u64::MAX), Err(CacheError::TooLarge { .. })));
}

#[test]
fn a_partial_content_that_grew_behind_the_download_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 100);
    let mut download = vacancy(&cache, Digest::of(b"content"), 7).resume().unwrap();
    download.write(b"content").unwrap();
    let path = files(&dir, "partial").pop().unwrap();
    OpenOptions::new().append(true).open(path).unwrap().write_all(b"!").unwrap();
    assert!(matches!(download.commit(), Err(CacheError::Digest(_))));
}

#[test]
fn the_longest_unused_content_goes_first_and_one_in_use_never() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 30);
    let first = fetch(&cache, &[1; 10]);
    drop(fetch(&cache, &[2; 10]));
    drop(fetch(&cache, &[3; 10]));
    assert!(held(&cache, &[2; 10]), "used again: 3 is the longest unused now");
    drop(fetch(&cache, &[4; 10]));
    assert!(cache.bytes() <= 30);
    let index = cache.0.index();
    let there = [1, 2, 3, 4].map(|n| index.view(&Digest::of(&[n; 10])).is_some());
    drop(index);
    assert_eq!(there, [true, true, false, true]);
    assert_eq!(read(&first), [1; 10]);
    assert_eq!(files(&dir, "blobs").len(), 3);
}

#[test]
fn what_is_in_use_may_exceed_the_bound_until_it_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 10);
    let blobs = [fetch(&cache, &[1; 8]), fetch(&cache, &[2; 8]), fetch(&cache, &[3; 80])];
    assert_eq!(cache.bytes(), 96);
    assert!(held(&cache, &[3; 80]));
    drop(blobs);
    assert_eq!((cache.bytes(), files(&dir, "blobs").len()), (0, 0));
}

#[test]
fn partial_contents_nobody_wants_any_more_are_evicted_too() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 10);
    let mut download = vacancy(&cache, Digest::of(b"x"), 8).resume().unwrap();
    download.write(&[0; 8]).unwrap();
    drop(download);
    drop(fetch(&cache, &[1; 9]));
    assert_eq!((cache.bytes(), files(&dir, "partial").len()), (9, 0));
}

#[test]
fn the_order_of_use_and_the_bound_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 100);
    for (n, seconds) in [(1, 300), (2, 100), (3, 200)] {
        drop(fetch(&cache, &[n; 10]));
        age(&cache.0.path(&Digest::of(&[n; 10]), State::Whole), seconds);
    }
    assert!(held(&cache, &[2; 10]), "the oldest file is the one used last");
    drop(cache);
    let cache = open(&dir, 20);
    assert!(held(&cache, &[1; 10]) && held(&cache, &[2; 10]));
    assert_eq!((cache.bytes(), files(&dir, "blobs").len()), (20, 2));
}

#[test]
fn a_damaged_content_is_fetched_again_but_not_under_its_users() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 100);
    let blob = fetch(&cache, b"content");
    let path = cache.0.path(&Digest::of(b"content"), State::Whole);
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"cont").unwrap();
    assert!(matches!(cache.try_claim(Digest::of(b"content"), 7), Err(CacheError::Damaged(_))));
    drop(blob);
    assert_eq!(read(&fetch(&cache, b"content")), b"content");
    fs::remove_file(&path).unwrap();
    assert_eq!(read(&fetch(&cache, b"content")), b"content");
    assert_eq!(cache.bytes(), 7);
}

#[test]
fn a_wrong_announcement_does_not_throw_a_content_away() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 100);
    drop(fetch(&cache, b"content"));
    let claim = cache.try_claim(Digest::of(b"content"), 8);
    assert!(matches!(claim, Err(CacheError::Length { announced: 8, actual: 7, .. })));
    assert!(held(&cache, b"content"));
}

#[test]
fn files_that_are_not_the_caches_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir, 100));
    let strange = [dir.path().join("cache/blobs/README"), dir.path().join("cache/partial/x")];
    for path in &strange {
        fs::write(path, "large".repeat(100)).unwrap();
    }
    assert_eq!(open(&dir, 100).bytes(), 0);
    assert!(strange.iter().all(|path| path.exists()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_who_want_one_content_fetch_it_once_and_a_fetcher_that_fails_hands_on() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 10);
    let digest = Digest::of(b"content");
    let Claim::Missing(failing) = cache.claim(digest, 7).await.unwrap() else { panic!("not there yet") };
    let wanting: Vec<_> = (0..16)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move {
                match cache.claim(digest, 7).await.unwrap() {
                    Claim::Have(blob) => (read(&blob), 0),
                    Claim::Missing(vacancy) => {
                        let mut download = vacancy.resume().unwrap();
                        for byte in b"content" {
                            download.write(&[*byte]).unwrap();
                            tokio::task::yield_now().await;
                        }
                        (read(&download.commit().unwrap()), 1)
                    }
                }
            })
        })
        .collect();
    drop(failing);
    let mut fetched = 0;
    for task in wanting {
        let (content, fetches) = task.await.unwrap();
        assert_eq!(content, b"content");
        fetched += fetches;
    }
    assert_eq!(fetched, 1);
}

#[tokio::test]
async fn one_who_waits_gets_the_content_as_soon_as_it_is_committed_though_it_stays_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir, 10);
    let digest = Digest::of(b"content");
    let mut download = vacancy(&cache, digest, 7).resume().unwrap();
    let mut waiting = std::pin::pin!(cache.claim(digest, 7));
    tokio::select! {
        biased;
        claim = &mut waiting => panic!("{claim:?}"),
        () = std::future::ready(()) => {}
    }
    download.write(b"content").unwrap();
    let _in_use = download.commit().unwrap();
    let claim = tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap();
    assert!(matches!(claim, Ok(Claim::Have(_))));
}
