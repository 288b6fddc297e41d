//! What ARCHITECTURE.md says of the house, checked: who may import whom, which crate is known where, how long a file
//! may be, that each says what it is for, and that none is forgotten.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file.
const LINES_MAX: usize = 400;

/// A room, and the other rooms of its crate that it may name.
const ROOMS: &[(&str, &[&str])] = &[
    ("coordinator/src/core", &[]),
    ("coordinator/src/pack", &["core"]),
    ("coordinator/src/store", &["core"]),
    ("coordinator/src/engine", &["core", "store"]),
    ("coordinator/src/logs", &[]),
    ("coordinator/src/artifacts", &[]),
    ("coordinator/src/fleet", &["artifacts", "core", "engine", "logs"]),
    ("coordinator/src/api", &["artifacts", "core", "engine", "logs", "pack"]),
    ("agent/src/spool", &[]),
    ("agent/src/artifacts", &[]),
    ("agent/src/executor", &["spool"]),
    ("agent/src/link", &["artifacts", "executor", "spool"]),
];

/// A crate, and the only places that may name it outside of tests.
const CRATES: &[(&str, &[&str])] = &[
    ("axum", &["coordinator/src/api"]),
    ("bincode", &["protocol/src/codec.rs"]),
    ("clap", &["coordinator/src/cli", "agent/src/cli.rs", "agent/src/config.rs", "agent/src/cli"]),
    ("libc", &["agent/src/executor"]),
    ("quinn", &["protocol/src/quic", "coordinator/src/fleet", "agent/src/link"]),
    ("rcgen", &["protocol/src/cert.rs"]),
    ("redb", &["coordinator/src/store"]),
    ("reqwest", &["coordinator/src/cli", "coordinator/src/api"]),
];

/// What is pure: no I/O, no clock, no async.
const PURE: &[&str] = &[
    "coordinator/src/core",
    "coordinator/src/pack",
    "coordinator/src/logs/merge.rs",
    "agent/src/executor/attempt.rs",
    "agent/src/executor/output.rs",
    "agent/src/link/machine.rs",
];

/// What nothing pure names outside its tests.
const IMPURE: &[&str] =
    &["tokio::", "std::fs", "std::net", "Instant::now", "SystemTime", "Clock::", "getrandom"];

struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
}

impl Source {
    fn is_in(&self, place: &str) -> bool {
        self.path == place
            || self.path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
            || self.path == format!("{place}.rs")
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs") || self.path.starts_with("tests/")
    }

    /// The lines that are neither comments nor in a module of tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let code = self.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        (1..).zip(code.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources() -> Vec<Source> {
    let root = workspace();
    let mut folders: Vec<_> =
        ["protocol", "coordinator", "agent", "tests"].map(|name| root.join(name)).into();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // The fuzz targets are a workspace of their own, which keeps what it builds with them.
            if path.is_dir() {
                folders.extend(Some(path).filter(|path| !path.ends_with("fuzz/target")));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                sources.push(Source { path, text });
            }
        }
    }
    assert!(sources.len() > 100, "the sources were not found");
    sources
}

/// The identifiers that follow `prefix` in `line`: of `crate::{a::B, c}` both `a` and `c`.
fn named_after<'l>(line: &'l str, prefix: &str) -> Vec<&'l str> {
    let identifier = |text: &'l str| {
        text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap_or_default()
    };
    line.match_indices(prefix)
        .flat_map(|(at, _)| {
            let rest = &line[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(list) => list.split(", ").map(|item| identifier(item.trim())).collect(),
                None => vec![identifier(rest)],
            }
        })
        .collect()
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn no_room_imports_one_above_it() {
    let mut faults = Vec::new();
    let sources = sources();
    for (room, may) in ROOMS {
        let own = room.rsplit('/').next().unwrap();
        let of_crate: BTreeSet<&str> = ROOMS
            .iter()
            .filter(|(other, _)| other.split('/').next() == room.split('/').next())
            .map(|(other, _)| other.rsplit('/').next().unwrap())
            .chain(["cli"])
            .collect();
        for source in sources.iter().filter(|source| source.is_in(room) && !source.is_test()) {
            for (number, line) in source.code() {
                for name in named_after(line, "crate::") {
                    if name != own && of_crate.contains(name) && !may.contains(&name) {
                        faults.push(format!("{}:{number}: {own} may not know {name}", source.path));
                    }
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn a_crate_is_known_only_where_it_belongs() {
    let mut faults = Vec::new();
    for source in sources() {
        for (name, places) in CRATES {
            let used = |line: &str| {
                let line = line.trim_start().trim_start_matches("pub ");
                line.starts_with(&format!("use {name}::")) || line.contains(&format!(" {name}::"))
            };
            let here = source.is_test() || places.iter().any(|place| source.is_in(place));
            for (number, line) in source.code().filter(|(_, line)| !here && used(line)) {
                faults.push(format!("{}:{number}: {name} is not for here: {line}", source.path));
            }
        }
    }
    report(&faults);
}

#[test]
fn what_is_pure_has_no_clock_no_files_and_no_tasks() {
    let mut faults = Vec::new();
    for source in sources() {
        if source.is_test() || !PURE.iter().any(|place| source.is_in(place)) {
            continue;
        }
        for (number, line) in source.code() {
            for impure in IMPURE.iter().filter(|impure| line.contains(**impure)) {
                faults.push(format!("{}:{number}: {impure} in pure code", source.path));
            }
        }
    }
    report(&faults);
}

#[test]
fn every_file_is_short_and_says_what_it_is_for() {
    let mut faults = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            faults.push(format!("{}: {lines} lines are more than {LINES_MAX}", source.path));
        }
        if !source.text.starts_with("//!") {
            faults.push(format!("{}: does not begin with what it is for (`//!`)", source.path));
        }
        let marks = ["TODO", "FIXME", "XXX"].map(|mark| format!("// {mark}"));
        if marks.iter().any(|mark| source.text.contains(mark)) {
            faults.push(format!("{}: has something left to do", source.path));
        }
    }
    report(&faults);
}

#[test]
fn no_file_is_forgotten() {
    let sources = sources();
    // A module by `#[path]` is named from the folder of the file that names it.
    let by_path: BTreeSet<PathBuf> = sources
        .iter()
        .flat_map(|source| {
            let folder = Path::new(&source.path).parent().unwrap();
            let paths = source.text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \""));
            paths.filter_map(move |line| Some(folder.join(line.strip_suffix("\"]")?)))
        })
        .collect();
    let modules: BTreeSet<(String, &str)> = sources
        .iter()
        .flat_map(|source| {
            let path = Path::new(&source.path);
            let folder = path.parent().unwrap().to_str().unwrap();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let own = match stem {
                "lib" | "main" | "mod" => folder.to_owned(),
                _ if source.is_root() => folder.to_owned(),
                _ => format!("{folder}/{stem}"),
            };
            source.text.lines().filter_map(move |line| {
                let line = line.trim_start();
                let line = ["pub(crate) ", "pub(super) ", "pub "]
                    .iter()
                    .find_map(|visibility| line.strip_prefix(visibility))
                    .unwrap_or(line);
                Some((own.clone(), line.strip_prefix("mod ")?.strip_suffix(';')?))
            })
        })
        .collect();
    let forgotten = sources.iter().filter(|source| !source.is_root()).filter(|source| {
        let path = Path::new(source.path.trim_end_matches(".rs").trim_end_matches("/mod"));
        let (folder, name) = (path.parent().unwrap().to_str().unwrap(), path.file_name().unwrap());
        let named = modules.contains(&(folder.to_owned(), name.to_str().unwrap()));
        !named && !by_path.contains(Path::new(&source.path))
    });
    report(&forgotten.map(|source| format!("{}: no module names it", source.path)).collect::<Vec<_>>());
}

impl Source {
    /// Whether cargo compiles it as a crate of its own.
    fn is_root(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        match parts[..] {
            [_, "src", "lib.rs" | "main.rs"] | [_, "src", "bin", _] | ["tests", _, "main.rs"] => true,
            ["tests", "fuzz", "fuzz_targets", _] => true,
            ["protocol" | "coordinator" | "agent", "tests" | "benches", file] => file.ends_with(".rs"),
            _ => false,
        }
    }
}
