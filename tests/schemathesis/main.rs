//! schemathesis against a coordinator with an agent, packs, runs, logs and artifacts: requests made from the OpenAPI
//! document, good and bad ones. It finds no 5xx, and no answer that the document doesn't describe.
//!
//! `SCHEMATHESIS` names the tool (requirements.txt beside this file pins it). By hand it can look for longer:
//! `SCHEMATHESIS_SEED`, `SCHEMATHESIS_EXAMPLES` for each operation, `SCHEMATHESIS_SECONDS` in all.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::path::Path;

use packrun_tests::Programs;
use packrun_tests::api::job;
use packrun_tests::process::Coordinator;
use serde_json::{Value, json};
use tokio::process::Command;

/// A pack with all that an answer can show.
const DEMO: &str = "\
name: demo
params: { profile: { default: release, choices: [debug, release] } }
jobs:
  compile:
    run: |
      echo compiling ${{ params.profile }}; echo warning >&2
      mkdir -p out; echo binary > out/app
    artifacts: [out/app]
  test:
    needs: [compile]
    inputs: [{ from: compile, artifact: out/app }]
    matrix: { shard: [1, 2] }
    run: echo shard ${{ matrix.shard }}; cat out/app
";

const FAILS: &str = "name: fails\njobs:\n  a: { run: exit 3, retry: { attempts: 2, backoff: 1ms } }\n  b: { needs: [a], run: 'true' }\n";

const WAITS: &str = "name: waits\njobs:\n  a: { run: 'true', labels: { os: none } }\n";

#[tokio::test]
#[ignore = "it needs schemathesis, which .ci/run installs under target/ before it runs this"]
async fn schemathesis_finds_nothing_undocumented() {
    let tool = std::env::var("SCHEMATHESIS").expect("SCHEMATHESIS names the tool's program");
    let programs = Programs {
        packrun: env!("CARGO_BIN_EXE_packrun-under-test").into(),
        agent: env!("CARGO_BIN_EXE_packrun-agent-under-test").into(),
    };
    let mut coordinator = Coordinator::start(&programs).await;
    let _builder = coordinator.agent("builder", &["--slots", "2"]).await;
    let _spare = coordinator.agent("spare", &["--label", "spare=yes"]).await;
    let api = coordinator.api();
    let (mut pack_runs, mut runs) = (Vec::new(), Vec::new());
    for (pack, key) in [(DEMO, "compile"), (FAILS, "a"), (WAITS, "a")] {
        let id = api.run(pack).await;
        let run = if pack == WAITS { api.pack_run(&id).await } else { api.ended(&id).await };
        runs.push(job(&run, key)["id"].clone());
        pack_runs.push(Value::from(id));
    }
    let token = api.post("/v1/tokens", &json!({ "role": "admin" })).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |ids: &[Value]| ids.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");

    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis");
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(source.join("schemathesis.toml")).unwrap();
    let config = config
        .replace("@hooks@", source.join("hooks.py").to_str().unwrap())
        .replace("@token@", &text(&token["token"]))
        .replace("@pack-runs@", &list(&pack_runs))
        .replace("@runs@", &list(&runs));
    let file = folder.path().join("schemathesis.toml");
    std::fs::write(&file, config).unwrap();

    let setting = |name: &str, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let mut command = Command::new(tool);
    command.arg("--config-file").arg(&file).arg("run").arg(format!("{}/openapi.json", coordinator.url()));
    command.args(["--seed", &setting("SCHEMATHESIS_SEED", "1")]);
    command.args(["--max-examples", &setting("SCHEMATHESIS_EXAMPLES", "30")]);
    command.args(["--checks", "all", "--phases", "examples,coverage,fuzzing,stateful", "--no-color"]);
    if let Ok(seconds) = std::env::var("SCHEMATHESIS_SECONDS") {
        command.args(["--max-time", &seconds]);
    }
    command.current_dir(folder.path()).kill_on_drop(true);
    let kept = [text(&token["id"]), "builder".to_owned(), agent_id(&api.get("/v1/agents/builder").await)];
    command.env("PACKRUN_TEST_KEPT", kept.join(","));
    let told = command.output().await.unwrap();
    let (out, errors) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(
        told.status.success(),
        "{out}\n{errors}\nthe coordinator's log:\n{}",
        coordinator.process().log()
    );
    println!("{out}");
    let log = coordinator.process().log();
    assert!(!log.contains("panicked") && !log.contains("a request failed"), "{log}");
    assert_eq!(coordinator.process().terminate().await, Some(0));
}

fn agent_id(agent: &Value) -> String {
    agent["id"].as_str().unwrap().to_owned()
}
