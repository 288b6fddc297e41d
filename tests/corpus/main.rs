//! Every input that is kept in `tests/fuzz` keeps its promise. A target without inputs, or inputs without a target, are
//! a mistake: what is not replayed protects nothing.
//!
//! `PACKRUN_SEEDS=write cargo test --workspace --test corpus` writes what a target begins with, see `seeds`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

#[path = "../../protocol/tests/samples/mod.rs"]
mod samples;
mod seeds;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use packrun_tests::fuzz::{self, TARGETS};

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// What is in `folder`, by name.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_input_of_the_corpus_keeps_its_promise() {
    let corpus = fuzz_folder().join("corpus");
    if std::env::var("PACKRUN_SEEDS").is_ok_and(|mode| mode == "write") {
        for (target, name, data) in seeds::all() {
            fs::create_dir_all(corpus.join(target)).unwrap();
            fs::write(corpus.join(target).join(name), data).unwrap();
        }
    }
    for (target, _) in TARGETS {
        let inputs = names(&corpus.join(target));
        assert!(!inputs.is_empty(), "the corpus of {target} is empty");
        for name in inputs {
            let data = fs::read(corpus.join(target).join(&name)).unwrap();
            let kept = catch_unwind(|| fuzz::check(target, &data));
            assert!(kept.is_ok(), "{target} breaks its promise on {name}");
        }
    }
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|(target, _)| (*target).to_owned()).collect();
    assert_eq!(names(&fuzz_folder().join("corpus")), targets);
    let programs = names(&fuzz_folder().join("fuzz_targets"));
    assert_eq!(programs, targets.iter().map(|target| format!("{target}.rs")).collect());
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for target in &targets {
        let program = format!("name = \"{target}\"\npath = \"fuzz_targets/{target}.rs\"\n");
        assert!(manifest.contains(&program), "{target} is not in Cargo.toml");
        let text = fs::read_to_string(fuzz_folder().join(format!("fuzz_targets/{target}.rs"))).unwrap();
        assert!(text.contains(&format!("check(\"{target}\", data)")), "{target}.rs is another target's");
    }
}
