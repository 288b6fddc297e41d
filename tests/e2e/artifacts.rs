//! Artifacts go from agent to agent and to people unchanged, and never out of the folders they belong in.

use std::os::unix::fs::PermissionsExt as _;

use packrun_tests::api::{job, states, texts};
use packrun_tests::process::Coordinator;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::programs;

const HANDED_ON: &str = "
name: handed-on
jobs:
  make:
    labels: { side: left }
    run: |
      mkdir -p out/deep
      printf '#!/bin/sh\\necho it works\\n' > out/tool
      chmod 750 out/tool
      head -c 300000 /dev/urandom > out/deep/noise
      sha256sum out/deep/noise | cut -d' ' -f1
    artifacts: [out/tool, { path: 'out/**/noise', name: noise }]
  use:
    needs: [make]
    labels: { side: right }
    inputs:
      - { from: make, artifact: out/tool, to: bin/tool }
      - { from: make, artifact: noise, to: got }
    run: |
      ./bin/tool
      find got -type f -exec sha256sum {} + | cut -d' ' -f1
";

#[tokio::test]
async fn an_artifact_goes_from_one_agent_to_the_other_and_to_a_folder_with_digest_and_mode() {
    let coordinator = Coordinator::start(&programs()).await;
    let _left = coordinator.agent("left", &["--label", "side=left"]).await;
    let _right = coordinator.agent("right", &["--label", "side=right"]).await;
    let api = coordinator.api();
    let id = api.run(HANDED_ON).await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "completed: make succeeded, use succeeded");
    assert_eq!((&job(&run, "make")["agent"], &job(&run, "use")["agent"]), (&json!("left"), &json!("right")));
    let entries = api.logs(&id, 100).await;
    let [made, works, got] = texts(&entries)[..] else { panic!("{entries:?}") };
    assert_eq!((works, got), ("it works", made));

    let list = api.get(&format!("/v1/pack-runs/{id}/artifacts")).await;
    let noise =
        list["items"].as_array().unwrap().iter().find(|item| item["name"] == "noise").unwrap().clone();
    assert_eq!(noise["digest"], format!("sha256:{made}"));
    assert_eq!((&noise["path"], &noise["size"]), (&json!("out/deep/noise"), &json!(300_000)));

    let path = format!("/v1/pack-runs/{id}/artifacts/make/out/deep/noise");
    let part = api.send(api.request(Method::GET, &path).header("range", "bytes=100-199")).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()["etag"].to_str().unwrap(), format!("\"sha256:{made}\""));
    let part = part.bytes().await.unwrap();
    let whole = api.send(api.request(Method::GET, &path)).await.bytes().await.unwrap();
    assert_eq!((part.len(), &part[..]), (100, &whole[100..200]));

    let to = tempfile::tempdir().unwrap();
    let got = coordinator.cli(&["artifacts", "get", &id, "--to", to.path().to_str().unwrap()]).await;
    assert!(got.status.success(), "{got:?}");
    assert_eq!(std::fs::read(to.path().join("make/out/deep/noise")).unwrap(), whole);
    let mode = std::fs::metadata(to.path().join("make/out/tool")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o750);
}

#[tokio::test]
async fn links_and_paths_out_of_the_workspace_are_refused() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    for path in ["../secret", "/etc/passwd", "a/../../b", ".packrun/home"] {
        let source = format!("name: p\njobs:\n  a: {{ run: x, artifacts: ['{path}'] }}\n");
        let (status, problem) = api.register(&source).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {problem}");
    }
    let source = "
name: links
jobs:
  file: { run: ln -s /etc/passwd secret, artifacts: [secret] }
  folder: { run: ln -s /etc folder, artifacts: [folder/passwd] }
  glob: { run: 'mkdir d; ln -s /etc/passwd d/link; echo x > d/file', artifacts: ['d/*'] }
  missing: { run: exit 0, artifacts: [nothing] }
  optional: { run: exit 0, artifacts: [{ path: nothing, optional: true }] }
";
    let id = api.run(source).await;
    let run = api.ended(&id).await;
    let expected =
        "partially_failed: file failed, folder failed, glob succeeded, missing failed, optional succeeded";
    assert_eq!(states(&run), expected);
    assert!(job(&run, "missing")["reason"].as_str().unwrap().contains("nothing"), "{run}");
    let list = api.get(&format!("/v1/pack-runs/{id}/artifacts")).await;
    let paths: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["path"].clone()).collect();
    assert_eq!(paths, ["d/file"], "what a glob finds may be a link, which is left out");

    for path in ["..%2f..%2fstate.redb", "%2e%2e/%2e%2e/ca/ca.key.pem", "/etc/passwd"] {
        let request = api.request(Method::GET, &format!("/v1/pack-runs/{id}/artifacts/glob/{path}"));
        assert!(api.send(request).await.status().is_client_error(), "{path}");
    }
}

#[tokio::test]
async fn an_input_that_was_not_left_fails_the_attempt_unless_it_is_optional() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let source = "
name: inputs
jobs:
  make: { run: exit 0, artifacts: [{ path: made, optional: true }] }
  needs-it: { needs: [make], inputs: [{ from: make, artifact: made }], run: exit 0 }
  may-do-without: { needs: [make], inputs: [{ from: make, artifact: made, optional: true }], run: test ! -e made }
";
    let id = api.run(source).await;
    let run = api.ended(&id).await;
    let expected = "partially_failed: make succeeded, needs-it failed, may-do-without succeeded";
    assert_eq!(states(&run), expected);
    assert!(job(&run, "needs-it")["reason"].as_str().unwrap().contains("made"), "{run}");
}
