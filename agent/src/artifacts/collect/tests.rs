//! What is kept of a workspace, what is skipped, and what fails the attempt.

use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

mod bounds;

static GO_ON: AtomicBool = AtomicBool::new(false);

fn workspace(files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        write(&dir, file, file);
    }
    dir
}

fn write(dir: &TempDir, path: &str, text: &str) {
    let path = dir.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn fifo(path: &Path) {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
}

fn rule(path: &str) -> ArtifactRule {
    ArtifactRule { path: path.into(), name: None, optional: false }
}

fn named(path: &str, name: &str) -> ArtifactRule {
    ArtifactRule { name: Some(name.parse().unwrap()), ..rule(path) }
}

fn run(dir: &TempDir, rules: &[ArtifactRule]) -> Result<Collection, CollectError> {
    collect(&Folder::open(dir.path()).unwrap(), rules, &GO_ON)
}

fn kept(dir: &TempDir, path: &str) -> Vec<String> {
    let optional = ArtifactRule { optional: true, ..rule(path) };
    run(dir, &[optional]).unwrap().files.into_iter().map(|file| file.path.to_string()).collect()
}

fn words(dir: &TempDir, path: &str) -> String {
    run(dir, &[rule(path)]).unwrap_err().to_string()
}

#[test]
fn a_rule_keeps_exactly_the_files_it_means_in_order() {
    let dir = workspace(&[
        "app",
        "a.xml",
        "reports/a.xml",
        "reports/b.txt",
        "reports/deep/er/c.xml",
        "reports.d/x",
        "reports/{x}[1]",
        ".packrun/home/a.xml",
        ".packrun2/a",
        "sub/.packrun/kept.xml",
    ]);
    let cases: &[(&str, &[&str])] = &[
        ("app", &["app"]),
        ("reports", &["reports/a.xml", "reports/b.txt", "reports/deep/er/c.xml", "reports/{x}[1]"]),
        ("reports/*.xml", &["reports/a.xml"]),
        ("reports/*", &["reports/a.xml", "reports/b.txt", "reports/{x}[1]"]),
        ("reports/**/*.xml", &["reports/a.xml", "reports/deep/er/c.xml"]),
        ("**/*.xml", &["a.xml", "reports/a.xml", "reports/deep/er/c.xml", "sub/.packrun/kept.xml"]),
        ("reports/?.{xml,txt}", &["reports/a.xml", "reports/b.txt"]),
        ("{reports/deep/er,sub/.packrun}/*", &["reports/deep/er/c.xml", "sub/.packrun/kept.xml"]),
        ("reports/[a]*", &["reports/a.xml"]),
        (r"reports/\{x\}\[1\]", &["reports/{x}[1]"]),
        ("*", &["a.xml", "app"]),
        ("rep*", &[]),
        ("**/packrun", &[]),
        ("{.packrun,x}/**", &[]),
        ("REPORTS", &[]),
    ];
    for (path, files) in cases {
        assert_eq!(kept(&dir, path), *files, "{path}");
    }
}

#[test]
fn a_rule_that_leads_out_of_the_workspace_or_is_no_glob_is_refused_in_words() {
    let dir = workspace(&["a"]);
    let long = format!("*{}", "a".repeat(1024));
    let cases = [
        ("../a", "`..`"),
        ("a/../../*", "`..`"),
        ("*/..", "`..`"),
        ("/etc/passwd", "absolute"),
        ("/etc/*", "absolute"),
        ("a\0b", "control"),
        ("*\0", "control"),
        ("", "empty"),
        ("a/", "empty"),
        ("./*", "`.`"),
        ("[a", "class"),
        ("{a", "alternate"),
        (".packrun", "belongs to packrun"),
        (".packrun/**", "belongs to packrun"),
        (long.as_str(), "1024"),
        (&format!("{}a{}", "{".repeat(500), "}".repeat(500)), "not valid"),
    ];
    for (path, word) in cases {
        let words = words(&dir, path);
        assert!(words.contains("not valid") && words.contains(word), "{path:?}: {words}");
    }
    assert!(run(&dir, &vec![rule("a"); 1025]).unwrap_err().to_string().contains("1024 artifact rules"));
}

#[test]
fn a_rule_that_matches_nothing_fails_the_attempt_unless_it_is_optional() {
    let dir = workspace(&["a"]);
    fs::create_dir(dir.path().join("empty")).unwrap();
    for path in ["target/release/app", "*.xml", "empty", "a/b"] {
        assert_eq!(words(&dir, path), format!("artifact `{path}` was not left by the job"));
        assert!(kept(&dir, path).is_empty());
    }
    assert!(run(&dir, &[]).unwrap().files.is_empty());
}

#[test]
fn a_file_that_two_rules_match_is_kept_once_under_the_first_name() {
    let dir = workspace(&["out/a", "out/b"]);
    let rules = [rule("out"), named("out/a", "first"), named("**", "second"), rule("out/b")];
    let files = run(&dir, &rules).unwrap().files;
    let names: Vec<_> = files.iter().map(|f| (f.path.as_str(), f.name.as_ref().unwrap().as_str())).collect();
    assert_eq!(names, [("out/a", "first"), ("out/b", "second")]);
}

#[test]
fn content_has_the_digest_the_size_and_the_permissions_without_set_id_bits() {
    let dir = workspace(&["a", "b", "c"]);
    write(&dir, "large", &"x".repeat(3 * hash::BUFFER_BYTES + 7));
    write(&dir, "none", "");
    for (file, mode) in [("a", 0o755), ("b", 0o640), ("c", 0o6755)] {
        fs::set_permissions(dir.path().join(file), Permissions::from_mode(mode)).unwrap();
    }
    let files = run(&dir, &[rule("*")]).unwrap().files;
    let modes: Vec<_> = files.iter().take(3).map(|f| f.content.mode.bits()).collect();
    assert_eq!(modes, [0o755, 0o640, 0o755]);
    for file in &files {
        let bytes = fs::read(dir.path().join(file.path.as_path())).unwrap();
        assert_eq!((file.content.digest, file.content.size), (Digest::of(&bytes), bytes.len() as u64));
    }
}

#[test]
fn a_link_that_a_plain_path_names_or_leads_through_is_refused_even_to_a_file_inside() {
    let outside = workspace(&["secret/file"]);
    let dir = workspace(&["inside"]);
    symlink(outside.path().join("secret/file"), dir.path().join("file")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("folder")).unwrap();
    symlink("inside", dir.path().join("local")).unwrap();
    symlink("/proc/self/root", dir.path().join("magic")).unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    for path in ["file", "folder", "folder/file", "local", "magic/etc/passwd", "dangling"] {
        for optional in [false, true] {
            let error = run(&dir, &[ArtifactRule { optional, ..rule(path) }]).unwrap_err().to_string();
            assert!(error.contains("symbolic link") && error.contains(path), "{path}: {error}");
        }
    }
}

#[test]
fn links_and_special_files_below_a_folder_or_glob_are_skipped_with_a_note_and_never_opened() {
    let outside = workspace(&["secret"]);
    let dir = workspace(&["out/a", "out/sub/b"]);
    symlink(outside.path().join("secret"), dir.path().join("out/link")).unwrap();
    symlink(outside.path(), dir.path().join("out/sub/folder")).unwrap();
    symlink("..", dir.path().join("out/up")).unwrap();
    fifo(&dir.path().join("out/pipe"));
    let _socket = UnixListener::bind(dir.path().join("out/socket")).unwrap();
    for path in ["out", "out/**", "**"] {
        let collection = run(&dir, &[rule(path)]).unwrap();
        let files: Vec<_> = collection.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(files, ["out/a", "out/sub/b"], "{path}");
        let notes = collection.notes.join("\n");
        for skipped in ["`out/link`", "`out/sub/folder`", "`out/up`", "`out/pipe`", "`out/socket`"] {
            assert!(notes.contains(skipped), "{path}: {notes}");
        }
    }
    assert!(run(&dir, &[rule("out/a")]).unwrap().notes.is_empty());
    for path in ["out/pipe", "out/socket"] {
        assert!(words(&dir, path).contains("pipe, socket or device"), "{path}");
    }
    let error = words(&dir, "out/l*");
    assert!(error.contains("was not left") && error.contains("`out/link` is a symbolic link"), "{error}");
}

#[test]
fn notes_are_counted_beyond_their_bound() {
    let dir = workspace(&["out/a"]);
    for n in 0..NOTES_MAX + 5 {
        symlink("a", dir.path().join(format!("out/link{n}"))).unwrap();
    }
    let notes = run(&dir, &[rule("out")]).unwrap().notes;
    assert_eq!(notes.len(), NOTES_MAX + 1);
    assert!(notes.last().unwrap().contains("5 more"), "{notes:?}");
}

#[test]
fn opening_a_pipe_in_place_of_a_file_neither_waits_nor_succeeds() {
    let dir = workspace(&[]);
    fifo(&dir.path().join("pipe"));
    let folder = Folder::open(dir.path()).unwrap();
    let error = folder.open_file(&"pipe".parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(matches!(gone_or_unreadable(Path::new("pipe"), error), CollectError::Changed { .. }));
}

#[test]
fn no_file_is_opened_through_a_link_wherever_it_lies_on_the_path() {
    let dir = workspace(&["folder/file"]);
    symlink("folder", dir.path().join("to-folder")).unwrap();
    symlink("file", dir.path().join("folder/to-file")).unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    assert!(folder.open_file(&"folder/file".parse().unwrap()).is_ok());
    for path in ["to-folder/file", "folder/to-file", "to-folder/to-file"] {
        assert!(folder.open_file(&path.parse().unwrap()).is_err(), "{path}");
    }
}

#[test]
fn a_name_that_packrun_cannot_store_fails_only_when_it_is_matched() {
    let dir = workspace(&["ok"]);
    let not_utf8 = dir.path().join(std::ffi::OsStr::from_bytes(b"out/\xff/a"));
    fs::create_dir_all(not_utf8.parent().unwrap()).unwrap();
    fs::write(not_utf8, "").unwrap();
    write(&dir, "lines/a\nb", "");
    assert!(words(&dir, "out").contains("not UTF-8"));
    assert!(words(&dir, "lines/*").contains("control characters"));
    assert_eq!(kept(&dir, "ok"), ["ok"]);
    assert_eq!(kept(&dir, "out/*.xml"), Vec::<String>::new());
}

#[test]
fn a_folder_swapped_for_a_link_while_it_is_walked_never_leads_out() {
    let outside = workspace(&["file"]);
    fs::write(outside.path().join("file"), "secret").unwrap();
    let dir = workspace(&["a/folder/file"]);
    let (folder, spare, link) =
        (dir.path().join("a/folder"), dir.path().join("spare"), dir.path().join("link"));
    symlink(outside.path(), &link).unwrap();
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            for _ in 0..1000 {
                fs::rename(&folder, &spare).unwrap();
                fs::rename(&link, &folder).unwrap();
                fs::rename(&folder, &link).unwrap();
                fs::rename(&spare, &folder).unwrap();
            }
        });
        let workspace = Folder::open(dir.path()).unwrap();
        while !swapper.is_finished() {
            for file in collect(&workspace, &[rule("a/**")], &GO_ON).into_iter().flat_map(|found| found.files)
            {
                assert_eq!(file.content.digest, Digest::of(b"a/folder/file"));
            }
            if let Ok(mut file) = workspace.open_file(&"a/folder/file".parse().unwrap()) {
                assert_eq!(io::read_to_string(&mut file).unwrap(), "a/folder/file");
            }
        }
    });
}

#[test]
fn a_file_with_other_bytes_than_its_size_says_is_reported_as_changed() {
    let rules = [rule("a")];
    let mut walk = Walk {
        rules: Rules::compile(&rules).unwrap(),
        stop: &GO_ON,
        matched: vec![false],
        collection: Collection::default(),
        skipped: 0,
        entries: 0,
        bytes: 0,
        buffer: vec![0; 64],
    };
    // The kernel gives it the size 0, as if it had grown since.
    let grown = File::open("/proc/self/status").unwrap();
    assert!(matches!(walk.read(&grown, Path::new("a")), Err(CollectError::Changed { .. })));
}

#[test]
fn collecting_stops_when_it_is_told_to() {
    let dir = workspace(&["a"]);
    let found = collect(&Folder::open(dir.path()).unwrap(), &[rule("a")], &AtomicBool::new(true));
    assert!(matches!(found, Err(CollectError::Stopped)));
    let file = File::open(dir.path().join("a")).unwrap();
    let mut stopped = Stoppable { file: &file, stop: &AtomicBool::new(true) };
    assert_eq!(stopped.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_file_changed_after_it_was_hashed_is_not_opened_again() {
    let dir = workspace(&["same", "shorter", "touched", "replaced", "gone", "link"]);
    let workspace = Folder::open(dir.path()).unwrap();
    let files = collect(&workspace, &[rule("**")], &GO_ON).unwrap().files;
    let at = |name: &str| dir.path().join(name);
    File::options().write(true).open(at("shorter")).unwrap().set_len(2).unwrap();
    File::open(at("touched")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    fs::copy(at("replaced"), at("copy")).unwrap();
    fs::rename(at("copy"), at("replaced")).unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::remove_file(at("link")).unwrap();
    symlink("same", at("link")).unwrap();
    let openable: Vec<_> =
        files.iter().filter(|file| file.open(&workspace).is_ok()).map(|file| file.path.as_str()).collect();
    assert_eq!(openable, ["same"]);
}

#[test]
fn an_unreadable_file_fails_in_words_rather_than_being_left_out() {
    let dir = workspace(&["a"]);
    fs::set_permissions(dir.path().join("a"), Permissions::from_mode(0o000)).unwrap();
    if File::open(dir.path().join("a")).is_ok() {
        return; // A superuser reads everything.
    }
    assert!(words(&dir, "a").contains("can't read `a`"));
    assert!(words(&dir, "**").contains("can't read `a`"));
}
