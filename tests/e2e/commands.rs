//! The command line: the first command of the README, and the way of an administrator through a day.

use std::process::{Output, Stdio};

use packrun_tests::in_time;
use packrun_tests::process::Coordinator;
use serde_json::Value;
use tokio::process::Command;

use crate::programs;

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub(crate) async fn dev(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(programs().packrun);
    command.arg("dev").args(arguments).stdin(Stdio::null()).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", home.path());
    in_time("packrun dev", command.output()).await.unwrap()
}

#[tokio::test]
async fn the_example_runs_by_one_command() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/three-jobs.yaml");
    let output = dev(&[example, "--param", "largest=6"]).await;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for expected in ["count", "1000000,78498", "report.md", "sha256:", "completed"] {
        assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "no colour but on a terminal");
}

#[tokio::test]
async fn the_exit_code_says_what_became_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let failing = file("failing.yaml", "name: p\njobs:\n  a: { run: exit 5 }\n");
    let failed = dev(&[&failing]).await;
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    let invalid = file("invalid.yaml", "name: p\njobs:\n  a: { runs: x }\n");
    let refused = dev(&[&invalid]).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("invalid.yaml:3:8"), "{}", text(&refused));
}

#[tokio::test]
async fn an_administrator_registers_runs_reads_and_fetches_by_the_cli() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let pack = folder.path().join("pack.toml");
    std::fs::write(
        &pack,
        "name = \"made\"\n[jobs.make]\nrun = \"echo making; echo content > file\"\nartifacts = [\"file\"]\n",
    )
    .unwrap();
    let ok = async |arguments: &[&str]| {
        let output = coordinator.cli(arguments).await;
        assert!(output.status.success(), "packrun {arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    ok(&["pack", "register", pack.to_str().unwrap()]).await;
    assert!(ok(&["pack", "list"]).await.contains("made"));
    let followed = ok(&["run", "made@1", "--follow"]).await;
    assert!(followed.contains("making"), "{followed}");

    let runs: Value = serde_json::from_str(&ok(&["runs", "list", "--output", "json"]).await).unwrap();
    let id = runs["items"][0]["id"].as_str().unwrap();
    let shown = ok(&["runs", "show", &id[..13]]).await;
    for expected in ["make", "succeeded", "builder"] {
        assert!(shown.contains(expected), "{shown}");
    }
    assert_eq!(ok(&["logs", id]).await.trim(), "making", "one job needs no prefix");
    let to = folder.path().join("got");
    ok(&["artifacts", "get", id, "make/file", "--to", to.to_str().unwrap()]).await;
    assert_eq!(std::fs::read_to_string(to.join("file")).unwrap(), "content\n");
    assert!(ok(&["agents", "list"]).await.contains("builder"));

    let unknown = coordinator.cli(&["run", "nothing", "--wait"]).await;
    assert_eq!(unknown.status.code(), Some(2), "{}", text(&unknown));
    let nobody = coordinator.cli(&["status", "--server", "http://127.0.0.1:9"]).await;
    assert_eq!(nobody.status.code(), Some(4), "{}", text(&nobody));
}
