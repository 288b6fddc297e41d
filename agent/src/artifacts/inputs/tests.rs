//! Inputs land where they belong, whatever lies in their way.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use packrun_protocol::id::Digest;
use tempfile::TempDir;

use super::*;

struct Scene {
    dir: TempDir,
    source: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap(), source: tempfile::tempdir().unwrap() };
        fs::write(scene.source(), "content").unwrap();
        scene
    }

    fn source(&self) -> std::path::PathBuf {
        self.source.path().join("blob")
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join(path)
    }

    fn place_as(&self, to: &str, size: u64, mode: u32) -> Result<(), PlaceError> {
        let content = Content { digest: Digest::of(b"content"), size, mode: FileMode::of(mode) };
        let folder = Folder::open(self.dir.path()).unwrap();
        place(&folder, &to.parse().unwrap(), &content, &File::open(self.source()).unwrap())
    }

    fn place(&self, to: &str) -> Result<(), PlaceError> {
        self.place_as(to, 7, 0o644)
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn a_placed_file_has_the_content_and_exactly_the_permissions_announced() {
    let scene = Scene::new();
    for mode in [0o755, 0o640, 0o777, 0o400, 0o000, 0o4755] {
        let to = format!("a/b/{mode:o}");
        scene.place_as(&to, 7, mode).unwrap();
        let meta = fs::metadata(scene.at(&to)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.len()), (mode & 0o777, 7), "{mode:o}");
    }
    assert_eq!(fs::read_to_string(scene.at("a/b/640")).unwrap(), "content");
}

#[test]
fn a_job_that_writes_to_its_input_does_not_change_the_source() {
    let scene = Scene::new();
    scene.place("a").unwrap();
    assert_ne!(fs::metadata(scene.at("a")).unwrap().ino(), fs::metadata(scene.source()).unwrap().ino());
    fs::write(scene.at("a"), "changed").unwrap();
    assert_eq!(fs::read_to_string(scene.source()).unwrap(), "content");
}

#[test]
fn paths_that_collide_are_refused_and_what_is_there_stays() {
    let scene = Scene::new();
    scene.place("a").unwrap();
    scene.place("d/e/f").unwrap();
    fs::write(scene.at("a"), "mine").unwrap();
    for to in ["a", "a/b", "a/b/c", "d", "d/e", "d/e/f", "d/e/f/g"] {
        assert!(matches!(scene.place(to), Err(PlaceError::Occupied { .. })), "{to}");
    }
    assert_eq!(fs::read_to_string(scene.at("a")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(scene.at("d/e/f")).unwrap(), "content");
}

#[test]
fn a_link_on_the_way_or_at_the_end_is_never_followed() {
    let scene = Scene::new();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), scene.at("folder")).unwrap();
    symlink(outside.path().join("new"), scene.at("file")).unwrap();
    fs::create_dir(scene.at("inner")).unwrap();
    symlink(outside.path(), scene.at("inner/folder")).unwrap();
    for to in ["folder/a", "folder/a/b", "file", "inner/folder/a", "folder"] {
        assert!(matches!(scene.place(to), Err(PlaceError::Occupied { .. })), "{to}");
    }
    assert!(is_empty(outside.path()));
}

#[test]
fn packruns_own_folder_is_no_place_for_an_input() {
    let scene = Scene::new();
    for to in [".packrun", ".packrun/home/.profile"] {
        assert!(matches!(scene.place(to), Err(PlaceError::OwnFolder { .. })), "{to}");
    }
    assert!(is_empty(scene.dir.path()));
    scene.place("a/.packrun").unwrap();
    scene.place(".packrunner").unwrap();
}

#[test]
fn a_source_of_another_length_leaves_no_file() {
    let scene = Scene::new();
    for (announced, actual) in [(6, 7), (8, 7), (0, 1), (u64::MAX, 7)] {
        match scene.place_as("a", announced, 0o644).unwrap_err() {
            PlaceError::Size { actual: found, .. } => assert_eq!(found, actual),
            other => panic!("{other}"),
        }
    }
    assert!(is_empty(scene.dir.path()));
}
