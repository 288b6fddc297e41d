//! The examples do what their first lines say, on a coordinator and agents of their own, and by the one command that
//! they name.

use packrun_tests::api::{Api, job, states};
use packrun_tests::process::Coordinator;
use reqwest::Method;
use serde_json::{Value, json};

use crate::commands::{dev, text};
use crate::programs;

fn path(example: &str) -> String {
    format!("{}/../deploy/examples/{example}.yaml", env!("CARGO_MANIFEST_DIR"))
}

async fn run(api: &Api, example: &str, params: Value) -> (String, Value) {
    let (status, pack) = api.register(&std::fs::read_to_string(path(example)).unwrap()).await;
    assert!(status.is_success(), "{pack:#}");
    let started = api.post("/v1/pack-runs", &json!({ "pack": example, "params": params })).await;
    let id = started["id"].as_str().unwrap().to_owned();
    let run = api.ended(&id).await;
    (id, run)
}

/// What a job run wrote.
async fn said(api: &Api, id: &str, key: &str) -> String {
    let request = api.request(Method::GET, &format!("/v1/pack-runs/{id}/logs"));
    api.send(request.query(&[("format", "text"), ("job", key)])).await.text().await.unwrap()
}

async fn artifact(api: &Api, id: &str, place: &str) -> String {
    let answer = api.send(api.request(Method::GET, &format!("/v1/pack-runs/{id}/artifacts/{place}"))).await;
    assert!(answer.status().is_success(), "{place}: {}", answer.status());
    answer.text().await.unwrap()
}

#[tokio::test]
async fn a_program_is_built_on_one_agent_tested_in_shards_on_others_and_reported_on() {
    let coordinator = Coordinator::start(&programs()).await;
    let _builder = coordinator.agent("builder", &["--label", "role=build"]).await;
    let _tester = coordinator.agent("tester", &["--label", "role=test", "--slots", "2"]).await;
    let api = coordinator.api();
    let (id, run) = run(&api, "word-count", json!({ "words": 5000 })).await;
    let log = said(&api, &id, "compile").await + &said(&api, &id, "test").await;
    let expected = "completed: compile succeeded, test[shard=1] succeeded, test[shard=2] succeeded, \
                    test[shard=3] succeeded, compare succeeded, report succeeded";
    assert_eq!(states(&run), expected, "{log}");
    assert_eq!(job(&run, "compile")["agent"], "builder");
    for key in ["test[shard=1]", "test[shard=2]", "test[shard=3]", "compare"] {
        assert_eq!(job(&run, key)["agent"], "tester");
    }
    let second = said(&api, &id, "test[shard=2]").await;
    let numbers: Vec<_> = second.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(numbers, ["2", "5", "8"], "its share of nine tests:\n{second}");
    let report = artifact(&api, &id, "report/report.md").await;
    for number in 1..=9 {
        assert!(report.contains(&format!("| ok {number} - ")), "test {number} is missing in:\n{report}");
    }
    assert!(report.contains("| compare | ok 1 - the shell counts the same"), "{report}");
}

#[tokio::test]
async fn a_release_whose_verification_fails_is_told_of_cleaned_up_and_never_published() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--slots", "2"]).await;
    let api = coordinator.api();
    let (id, stopped) = run(&api, "release", json!({})).await;
    let expected = "partially_failed: package succeeded, lint failed, mirror succeeded, verify failed, publish skipped, \
                    announce skipped, notify succeeded, summary succeeded";
    assert_eq!(states(&stopped), expected);
    assert_eq!(
        (&job(&stopped, "mirror")["attempt"], &job(&stopped, "verify")["exit_code"]),
        (&json!(2), &json!(3))
    );
    let mirror = said(&api, &id, "mirror").await;
    assert_eq!(mirror, "attempt 1: the mirror is busy\nattempt 2: the mirror has room\n");
    let notice = said(&api, &id, "notify").await;
    let url = format!("{}/v1/pack-runs/{id}\n", coordinator.url());
    assert!(notice.contains(&url) && notice.contains("about.html: FAILED"), "{notice}");

    let (id, passed) = run(&api, "release", json!({ "damage": "no" })).await;
    let expected = "completed: package succeeded, lint failed, mirror succeeded, verify succeeded, publish succeeded, \
                    announce succeeded, notify skipped, summary succeeded";
    assert_eq!(states(&passed), expected);
    assert_eq!(said(&api, &id, "publish").await, "published 3 pages\n");
}

#[tokio::test]
async fn a_matrix_shares_out_its_work_and_one_job_joins_what_came_of_it() {
    let coordinator = Coordinator::start(&programs()).await;
    let _left = coordinator.agent("left", &[]).await;
    let _right = coordinator.agent("right", &[]).await;
    let api = coordinator.api();
    let (id, run) = run(&api, "matrix", json!({ "files": 20 })).await;
    assert_eq!(run["state"], "completed", "{}", states(&run));
    assert_eq!(run["job_runs"].as_array().unwrap().len(), 8);
    let third = said(&api, &id, "check[std=c99,level=Os]").await;
    assert!(third.starts_with("share 3 of 6\n"), "{third}");
    let report = artifact(&api, &id, "join/report.md").await;
    // Of 20 files the first two shares have four, the others three.
    for row in ["| c99-O0 | 4 |", "| c99-O2 | 4 |", "| c99-Os | 3 |", "| c11-Os | 3 |", "| all | 20 |"] {
        assert!(report.contains(row), "`{row}` is missing in:\n{report}");
    }
}

#[tokio::test]
async fn every_example_runs_by_the_command_in_its_first_lines() {
    for (example, param, code, expected) in [
        ("three-jobs", "largest=5", 0, "100000,9592"),
        ("word-count", "words=500", 0, "the shell counts the same"),
        ("release", "damage=yes", 1, "the site is not what was packaged"),
        ("release", "damage=no", 0, "published 3 pages"),
        ("matrix", "files=6", 0, "| all | 6 |"),
    ] {
        let file = path(example);
        let command = format!("packrun -- dev deploy/examples/{example}.yaml");
        assert!(std::fs::read_to_string(&file).unwrap().contains(&command), "{example} names its command");
        let output = dev(&[&file, "--param", param]).await;
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "{example} with {param}:\n{text}");
        assert!(text.contains(expected), "{example} with {param}:\n{text}");
    }
    let folder = std::fs::read_dir(format!("{}/../deploy/examples", env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert_eq!(folder.count(), 4, "an example that is not tried here");
}
