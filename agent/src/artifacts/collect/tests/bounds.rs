//! How much of a workspace is looked at and kept.

use super::*;

#[test]
fn ten_thousand_files_are_kept_with_few_descriptors() {
    let dir = workspace(&[]);
    for folder in 0..100 {
        for file in 0..100 {
            if file == 0 {
                fs::create_dir_all(dir.path().join(format!("{folder}"))).unwrap();
            }
            fs::write(dir.path().join(format!("{folder}/{file}")), "").unwrap();
        }
    }
    let files = run(&dir, &[rule("**")]).unwrap().files;
    assert_eq!(files.len(), 10_000);
    assert!(files.is_sorted_by(|a, b| a.path < b.path));
}

#[test]
fn folders_are_walked_to_the_bound_and_refused_beyond_it() {
    let dir = workspace(&[]);
    let deep = |levels: usize| format!("{}f", "d/".repeat(levels));
    write(&dir, &deep(DEPTH_MAX), "");
    assert_eq!(kept(&dir, "d"), [deep(DEPTH_MAX)]);
    write(&dir, &deep(DEPTH_MAX + 1), "");
    assert!(words(&dir, "d").contains("128 folders in each other"));
    write(&dir, "e/f", "");
    assert_eq!(kept(&dir, "e/*"), ["e/f"], "a rule that doesn't reach that deep is not affected");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn no_rule_text_panics_or_keeps_a_file_outside_its_anchor(path in r"[a*?/\.\[\]{},!\\\-]{0,24}") {
        let dir = workspace(&["a", "a.a/a", "aa/a/a"]);
        let rule = ArtifactRule { optional: true, ..rule(&path) };
        if let Ok(found) = run(&dir, std::slice::from_ref(&rule)) {
            let anchor = rule.anchor().unwrap();
            for file in found.files {
                prop_assert!(anchor.as_ref().is_none_or(|anchor| file.path.starts_with(anchor)), "{}", file.path);
            }
        }
    }
}

#[test]
fn a_workspace_is_looked_through_to_its_bounds_and_no_further() {
    let dir = workspace(&["a/1", "a/2", "a/3"]);
    let rules = [rule("a")];
    for (left, fits) in [(4, true), (3, false)] {
        let mut walk = Walk::new(&rules, &GO_ON).unwrap();
        walk.entries = ENTRIES_MAX - left;
        let walked = walk.folder(&Folder::open(dir.path()).unwrap(), Path::new(""), 0);
        match walked {
            Ok(()) => assert!(fits),
            Err(error) => {
                assert!(!fits && error.to_string().contains("2000000 files and folders"), "{error}")
            }
        }
    }
    let mut walk = Walk::new(&rules, &GO_ON).unwrap();
    let kept =
        walk.folder(&Folder::open(dir.path()).unwrap(), Path::new(""), 0).map(|()| walk.collection.files);
    let many = kept.unwrap().into_iter().cycle().take(FILES_MAX).collect();
    let mut walk = Walk::new(&rules, &GO_ON).unwrap();
    walk.collection.files = many;
    let error = walk.folder(&Folder::open(dir.path()).unwrap(), Path::new(""), 0).unwrap_err();
    assert!(error.to_string().contains("100000 files"), "{error}");
}

#[test]
fn files_that_are_too_large_together_are_refused_before_they_are_read() {
    let dir = workspace(&["a/1"]);
    let large = fs::File::create(dir.path().join("a/2")).unwrap();
    if let Err(error) = large.set_len(limit::ARTIFACT_BYTES_MAX) {
        return println!("skipped: the file system has no files of this size: {error}");
    }
    let error = words(&dir, "a");
    assert!(error.contains("1099511627776 bytes"), "{error}");
}
