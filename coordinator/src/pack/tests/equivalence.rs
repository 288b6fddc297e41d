//! One pack in three formats, with and without its defaults, has one digest, and that never changes.

use std::collections::HashSet;

use super::super::Format;
use super::{check, pack};

const YAML: &str = r#"
# A comment.
name: build-and-test
description: Compile once, test in three shards
params:
  profile: { default: release, choices: [debug, release] }
env: { RUST_BACKTRACE: 1 }
jobs:
  compile:
    run: |
      cargo build --profile ${{params.profile}}
    labels: { os: linux }
    resources: { cpus: 0.5, memory: 512MiB }
    timeout: 1h30m
    retry: { attempts: 3, backoff: 5s }
    artifacts: [target/release/app, { path: "reports/**/*.xml", name: reports, optional: true }]
  test:
    needs: [compile]
    inputs: [{ from: compile, artifact: target/release/app, to: bin/app }]
    matrix: { shard: [1, 2, 3], rust: [1.10] }
    command: [./bin/app, --shard, '${{ matrix.shard }}']
  report:
    needs: [test]
    when: always
    run: ./report.sh
"#;

const TOML: &str = r#"
name = "build-and-test"
description = "Compile once, test in three shards"
env.RUST_BACKTRACE = "1"
[params.profile]
choices = ["debug", "release"]
default = "release"
[jobs.compile]
run = "cargo build --profile ${{ params.profile }}\n"
labels.os = "linux"
resources = { cpus = 0.500, memory = "512MiB" }
timeout = "90m"
retry = { attempts = 3, backoff = "5000ms" }
[[jobs.compile.artifacts]]
path = "target/release/app"
[[jobs.compile.artifacts]]
path = "reports/**/*.xml"
name = "reports"
optional = true
[jobs.test]
needs = ["compile"]
inputs = [{ from = "compile", artifact = "target/release/app", to = "bin/app", optional = false }]
matrix.shard = [1, 2, 3]
matrix.rust = [1.10]
command = ["./bin/app", "--shard", "${{ matrix.shard }}"]
[jobs.report]
run = "./report.sh"
when = "always"
needs = ["test"]
"#;

const JSON: &str = r#"{
  "jobs": {
    "compile": {
      "run": "cargo build --profile ${{ params.profile }}\n",
      "labels": {"os": "linux"},
      "resources": {"cpus": 0.5, "memory": "512MiB"},
      "timeout": "90m",
      "retry": {"attempts": 3, "backoff": "5s"},
      "artifacts": ["target\/release\/app", {"path": "reports/**/*.xml", "name": "reports", "optional": true}]
    },
    "test": {
      "needs": ["compile"],
      "inputs": [{"from": "compile", "artifact": "target/release/app", "to": "bin/app"}],
      "matrix": {"shard": ["1", 2, 3], "rust": [1.10]},
      "command": ["./bin/app", "--shard", "${{ matrix.shard }}"],
      "allow_failure": false, "when": "success", "env": {}, "artifacts": [],
      "retry": {"attempts": 1}
    },
    "report": {"needs": ["test"], "when": "always", "run": "./report.sh"}
  },
  "env": {"RUST_BACKTRACE": 1},
  "params": {"profile": {"default": "release", "choices": ["debug", "release"]}},
  "description": "Compile once, test in three shards",
  "name": "build-and-test"
}"#;

#[test]
fn the_format_of_a_file_does_not_show_in_its_pack() {
    let yaml = pack(YAML);
    for (format, text) in [(Format::Toml, TOML), (Format::Json, JSON)] {
        let same = check(format, text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(same, yaml, "{format:?}");
        assert_eq!(same.canonical(), yaml.canonical());
    }
    let with_mark = check(Format::Yaml, format!("\u{feff}{YAML}").replace('\n', "\r\n").as_bytes());
    assert_eq!(with_mark.unwrap(), yaml, "a byte order mark and other line ends change nothing");
}

#[test]
fn a_change_of_the_canonical_form_is_noticed() {
    let smallest = pack("name: p\njobs: {a: {run: x}}");
    assert_eq!(
        smallest.canonical(),
        concat!(
            r#"{"description":null,"env":[],"jobs":[{"allow_failure":false,"artifacts":[],"command":null,"#,
            r#""description":null,"env":[],"inputs":[],"labels":{},"matrix":[],"name":"a","needs":[],"#,
            r#""resources":{"cpu_millis":0,"memory_bytes":0},"retry":{"attempts":1,"backoff_ms":1000},"#,
            r#""run":"x","timeout_ms":null,"when":"success","workdir":null}],"name":"p","params":[]}"#,
        )
    );
    assert_eq!(
        smallest.digest().to_string(),
        "sha256:f959dca96911ac7f2f14c5ed3c815b05f0f8af25a0a3188d0667a8b0b619fea5"
    );
    assert_eq!(
        pack(YAML).digest().to_string(),
        "sha256:3679505a99749a27b62a3a481cb812469e14c39be3cac546241b9133eadd98dd"
    );
}

#[test]
fn what_a_pack_does_differently_shows_in_its_digest() {
    let base = "
name: p
params: {q: {default: '1', choices: ['1', '2']}}
env: {E: e}
jobs:
  a: {run: x, artifacts: [{path: o, name: o}]}
  b:
    run: y
    needs: [a]
    matrix: {c: [1, 2], d: [3]}
    inputs: [{from: a, artifact: o}]
    labels: {l: m}
    env: {F: f}
    resources: {cpus: 1, memory: 1B}
    retry: {attempts: 2, backoff: 2s}
";
    let mut digests = HashSet::from([pack(base).digest()]);
    for (from, to) in [
        ("name: p", "name: r"),
        ("name: p", "name: p\ndescription: s"),
        ("{q: {", "{q: {description: s, "),
        ("default: '1', ", ""),
        ("default: '1'", "default: '2'"),
        ("['1', '2']", "['2', '1']"),
        ("E: e", "E: g"),
        ("F: f", "F: g"),
        ("F: f", "G: f"),
        ("run: x", "run: z"),
        ("run: x", "command: [x]"),
        ("run: x", "run: x, workdir: w"),
        ("run: x", "run: x, timeout: 1s"),
        ("run: x", "run: x, description: s"),
        ("run: x", "run: x, allow_failure: true"),
        ("path: o", "path: u"),
        ("name: o", "name: u"),
        (", name: o}", ", name: o, optional: true}"),
        ("needs: [a]", "needs: [a]\n    when: failure"),
        ("needs: [a]", "needs: [a]\n    when: always"),
        ("c: [1, 2], d: [3]", "d: [3], c: [1, 2]"),
        ("[1, 2]", "[2, 1]"),
        ("artifact: o", "artifact: u"),
        ("artifact: o", "artifact: o, to: u"),
        ("artifact: o", "artifact: o, optional: true"),
        ("l: m", "l: n"),
        ("l: m", "k: m"),
        ("cpus: 1", "cpus: 2"),
        ("memory: 1B", "memory: 2B"),
        ("attempts: 2", "attempts: 3"),
        ("backoff: 2s", "backoff: 3s"),
    ] {
        let changed = base.replacen(from, to, 1);
        assert_ne!(changed, base, "{from} → {to}");
        assert!(digests.insert(pack(&changed).digest()), "{from} → {to}");
    }
    let more = base.replace("jobs:", "jobs:\n  e: {run: x}");
    assert_ne!(
        pack(&more).digest(),
        pack(&more.replace("needs: [a]", "needs: [a, e]")).digest(),
        "another need"
    );
}

#[test]
fn files_and_media_types_tell_their_format() {
    let of_file = |name: &str| Format::of_file(std::path::Path::new(name));
    assert_eq!(of_file("a/p.YML"), Some(Format::Yaml));
    assert_eq!(of_file("p.toml"), Some(Format::Toml));
    assert_eq!(of_file("p.json"), Some(Format::Json));
    assert_eq!(of_file("json"), None);
    for format in [Format::Json, Format::Toml, Format::Yaml] {
        let with_parameter = format!("{}; charset=utf-8", format.media_type());
        assert_eq!(Format::of_media_type(&with_parameter), Some(format));
    }
    assert_eq!(Format::of_media_type("text/html"), None);
}
