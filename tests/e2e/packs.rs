//! Packs are kept: versions stay what they were, also over a crash, and bad files are refused with their place.

use packrun_tests::api::{job, states, texts};
use packrun_tests::process::Coordinator;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::programs;

const THREE_JOBS: &str = "
name: three
jobs:
  first: { run: echo one }
  second: { needs: [first], run: echo two }
  third: { needs: [second], run: echo three }
";

#[tokio::test]
async fn a_registered_pack_is_there_after_a_crash() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let (status, made) = coordinator.api().register(THREE_JOBS).await;
    assert_eq!((status, &made["version"]), (StatusCode::CREATED, &json!(1)));
    assert!(made["digest"].as_str().unwrap().starts_with("sha256:"));

    coordinator.crash_and_restart().await;
    let api = coordinator.api();
    let kept = api.get("/v1/packs/three/versions/1").await;
    assert_eq!((&kept["version"], &kept["digest"]), (&json!(1), &made["digest"]));
    assert_eq!(kept["source"], THREE_JOBS);
    assert_eq!(kept["definition"]["jobs"].as_array().unwrap().len(), 3);
    assert_eq!(api.get("/v1/packs").await["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_changed_pack_is_a_new_version_and_the_old_one_still_runs() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let (_, first) = api.register(THREE_JOBS).await;
    let (status, again) = api.register(THREE_JOBS).await;
    assert_eq!(
        (status, &again["version"]),
        (StatusCode::OK, &json!(1)),
        "the same content is no new version"
    );

    let changed = THREE_JOBS.replace("echo two", "echo zwei");
    let (status, second) = api.register(&changed).await;
    assert_eq!((status, &second["version"]), (StatusCode::CREATED, &json!(2)));
    assert_ne!(first["digest"], second["digest"]);

    let path = "/v1/packs/three/versions/1";
    let bytes = api.send(api.request(Method::GET, path).header("accept", "application/yaml")).await;
    assert_eq!(bytes.bytes().await.unwrap(), THREE_JOBS.as_bytes(), "byte for byte");

    let mut said = Vec::new();
    for version in [1, 2] {
        let run = api.post("/v1/pack-runs", &json!({ "pack": "three", "version": version })).await;
        let id = run["id"].as_str().unwrap();
        let run = api.ended(id).await;
        assert_eq!(run["state"], "completed");
        said.push(texts(&api.logs(id, 100).await).join(" "));
    }
    assert_eq!(said, ["one two three", "one zwei three"]);
}

#[tokio::test]
async fn a_bad_pack_file_is_refused_with_its_place_and_the_way_out() {
    let coordinator = Coordinator::start(&programs()).await;
    let api = coordinator.api();
    let refused = async |source: &str| {
        let (status, problem) = api.register(source).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
        problem["errors"][0].clone()
    };
    let typo = refused("name: p\njobs:\n  a:\n    run: x\n    neds: [b]\n").await;
    assert_eq!((&typo["line"], &typo["column"]), (&json!(5), &json!(5)));
    assert!(typo.to_string().contains("needs"), "a suggestion: {typo}");
    let cycle = refused("name: p\njobs:\n  a: { run: x, needs: [b] }\n  b: { run: x, needs: [a] }\n").await;
    assert_eq!(cycle["kind"], "dependency");
    let unknown =
        refused("name: p\njobs:\n  a: { run: x, needs: [compile] }\n  compiler: { run: x }\n").await;
    assert_eq!((&unknown["kind"], &unknown["suggestion"]), (&json!("unknown_reference"), &json!("compiler")));
    let reserved = refused("name: p\njobs:\n  a: { run: x, container: debian }\n").await;
    assert!(reserved["message"].as_str().unwrap().contains("not supported yet"), "{reserved}");
    assert_eq!(api.get("/v1/packs").await["items"], json!([]));
}

#[tokio::test]
async fn parameters_matrix_environment_and_labels_reach_the_job() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--label", "pool=fast"]).await;
    let api = coordinator.api();
    let (status, pack) = api
        .register(
            r#"
name: everything
params:
  profile: { default: debug, choices: [debug, release] }
env: { FOR_ALL: "1" }
jobs:
  build:
    matrix: { shard: [1, 2], os: [linux] }
    labels: { pool: fast }
    env: { SHARD: "${{ matrix.shard }}" }
    run: |
      echo "$FOR_ALL ${{ params.profile }} $PACKRUN_PARAM_PROFILE $SHARD ${{ matrix.os }}"
      echo "$PACKRUN_PACK $PACKRUN_VERSION $PACKRUN_JOB $PACKRUN_ATTEMPT $PACKRUN_AGENT $CI"
      echo "$PACKRUN_RUN_URL $PACKRUN_SHARD_INDEX/$PACKRUN_SHARD_TOTAL $PACKRUN_MATRIX_OS $TRACEPARENT"
      test "$PWD" = "$PACKRUN_WORKSPACE" && test -d "$HOME" && test -d "$TMPDIR"
  direct:
    command: [printf, "%s\n", "a b", "$HOME"]
"#,
        )
        .await;
    assert!(status.is_success(), "{pack}");
    let request = json!({ "pack": "everything", "params": { "profile": "release" } });
    let id = api.post("/v1/pack-runs", &request).await["id"].as_str().unwrap().to_owned();
    let run = api.ended(&id).await;
    let expected =
        "completed: build[shard=1,os=linux] succeeded, build[shard=2,os=linux] succeeded, direct succeeded";
    assert_eq!(states(&run), expected);
    assert_eq!(job(&run, "build[shard=2,os=linux]")["matrix"], json!({ "shard": "2", "os": "linux" }));
    let entries = api.logs(&id, 1000).await;
    let of = |key: &str| {
        let of_key = entries.iter().filter(|entry| entry["key"] == key).cloned().collect::<Vec<_>>();
        texts(&of_key).join("\n")
    };
    let trace = id.replace('-', "");
    let expected = format!(
        "1 release release 2 linux\neverything 1 build[shard=2,os=linux] 1 builder true\n\
         {}/v1/pack-runs/{id} 2/2 linux 00-{trace}-",
        coordinator.url()
    );
    let said = of("build[shard=2,os=linux]");
    assert!(said.starts_with(&expected) && said.ends_with("-01"), "{said}");
    assert_eq!(of("direct"), "a b\n$HOME");
    let wrong = api
        .send(
            api.request(Method::POST, "/v1/pack-runs")
                .json(&json!({ "pack": "everything", "params": { "profile": "fast" } })),
        )
        .await;
    assert!(wrong.status().is_client_error(), "{}", wrong.status());
}
