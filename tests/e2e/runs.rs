//! Pack runs do what their packs say: to the end, past failures, and each on its own.

use packrun_tests::api::{job, states, texts};
use packrun_tests::process::Coordinator;
use serde_json::json;

use crate::programs;

#[tokio::test]
async fn a_pack_run_starts_on_the_agent_and_all_three_jobs_complete() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let source = "
name: three
jobs:
  first: { run: echo one }
  second: { needs: [first], run: echo two }
  third: { needs: [second], run: echo three }
";
    let id = api.run(source).await;
    let mut stream = api.stream(&id, None).await;
    let begun = stream.until(|event| event.is_state(Some("first"), "running")).await;
    assert_eq!(begun.last().unwrap().data["agent"], "builder");
    stream.until(|event| event.is_state(None, "completed")).await;

    let run = api.pack_run(&id).await;
    assert_eq!(states(&run), "completed: first succeeded, second succeeded, third succeeded");
    assert_eq!(texts(&api.logs(&id, 100).await), ["one", "two", "three"]);
    for key in ["first", "second", "third"] {
        let job = job(&run, key);
        assert_eq!(
            (&job["agent"], &job["attempt"], &job["exit_code"]),
            (&json!("builder"), &json!(1), &json!(0))
        );
        assert!(job["duration_seconds"].as_f64().unwrap() >= 0.0);
    }
}

#[tokio::test]
async fn after_a_failure_dependents_are_skipped_and_independent_jobs_finish() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let source = "
name: failing
jobs:
  good: { run: exit 0 }
  bad: { run: exit 3 }
  killed: { run: kill -9 $$ }
  dependent: { needs: [bad, good], run: echo never }
  further: { needs: [dependent], run: echo never }
  cleanup: { needs: [bad], when: failure, run: echo cleaning }
  always: { needs: [further], when: always, run: echo always }
  tolerated: { run: exit 1, allow_failure: true }
  after: { needs: [tolerated], run: echo after }
";
    let run = api.run(source).await;
    let run = api.ended(&run).await;
    let expected = "partially_failed: good succeeded, bad failed, killed failed, dependent skipped, further skipped, \
                    cleanup succeeded, always succeeded, tolerated failed, after succeeded";
    assert_eq!(states(&run), expected);
    assert_eq!(job(&run, "bad")["exit_code"], 3);
    assert_eq!(
        (&job(&run, "killed")["exit_code"], &job(&run, "killed")["signal"]),
        (&json!(null), &json!(9))
    );
    assert!(job(&run, "bad")["reason"].as_str().unwrap().contains("exit code 3"));
}

#[tokio::test]
async fn a_failed_job_is_tried_again_and_every_attempt_is_kept() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let source = r#"
name: flaky
jobs:
  flaky:
    run: echo "attempt $PACKRUN_ATTEMPT"; test "$PACKRUN_ATTEMPT" = 3
    retry: { attempts: 3, backoff: 10ms }
  hopeless:
    run: exit 7
    retry: { attempts: 2 }
"#;
    let id = api.run(source).await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "partially_failed: flaky succeeded, hopeless failed");
    let flaky = api.get(&format!("/v1/runs/{}", job(&run, "flaky")["id"].as_str().unwrap())).await;
    let attempts = flaky["attempts"].as_array().unwrap();
    let attempts: Vec<_> = attempts.iter().map(|attempt| attempt["state"].as_str().unwrap()).collect();
    assert_eq!(attempts, ["failed", "failed", "succeeded"]);
    assert_eq!(job(&run, "hopeless")["attempt"], 2);
    assert_eq!(texts(&api.logs(&id, 100).await), ["attempt 1", "attempt 2", "attempt 3"]);
}

#[tokio::test]
async fn twenty_pack_runs_of_one_moment_keep_to_themselves() {
    let coordinator = Coordinator::start(&programs()).await;
    let _left = coordinator.agent("left", &["--slots", "4"]).await;
    let _right = coordinator.agent("right", &["--slots", "4"]).await;
    let api = coordinator.api();
    let source = r#"
name: own
params: { number: {} }
jobs:
  make:
    run: |
      for line in 1 2 3 4 5; do echo "$PACKRUN_RUN_ID ${{ params.number }} $line"; done
      echo "made by ${{ params.number }}" > made
    artifacts: [made]
  take:
    needs: [make]
    inputs: [{ from: make, artifact: made }]
    run: cat made
"#;
    assert!(api.register(source).await.0.is_success());
    let mut runs = tokio::task::JoinSet::new();
    for number in 0..20 {
        let api = api.clone();
        runs.spawn(async move {
            let request = json!({ "pack": "own", "params": { "number": number } });
            let id = api.post("/v1/pack-runs", &request).await["id"].as_str().unwrap().to_owned();
            let events = api.stream(&id, None).await.to_end().await;
            (number, id, events)
        });
    }
    while let Some(run) = runs.join_next().await {
        let (number, id, events) = run.unwrap();
        let run = api.pack_run(&id).await;
        assert_eq!(states(&run), "completed: make succeeded, take succeeded");
        let mut expected: Vec<_> = (1..=5).map(|line| format!("{id} {number} {line}")).collect();
        expected.push(format!("made by {number}"));
        assert_eq!(texts(&api.logs(&id, 3).await), expected);
        let streamed =
            events.iter().filter(|event| event.kind == "log").map(|event| event.data["text"].clone());
        assert_eq!(streamed.collect::<Vec<_>>(), expected);
        let artifacts = api.get(&format!("/v1/pack-runs/{id}/artifacts")).await;
        assert_eq!(artifacts["items"].as_array().unwrap().len(), 1, "{artifacts}");
        let request = api.request(reqwest::Method::GET, &format!("/v1/pack-runs/{id}/artifacts/make/made"));
        assert_eq!(api.send(request).await.text().await.unwrap(), format!("made by {number}\n"));
    }
}

#[tokio::test]
async fn a_pack_of_ten_thousand_jobs_registers_and_runs() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--slots", "8"]).await;
    let api = coordinator.api();
    let jobs: String = (0..10_000)
        .map(|number| match number {
            0 => "  job-0: { command: [\"true\"] }\n".to_owned(),
            // A tree: each job needs the one it hangs from.
            _ => format!("  job-{number}: {{ needs: [job-{}], command: [\"true\"] }}\n", number / 10),
        })
        .collect();
    let id = api.run(&format!("name: many\njobs:\n{jobs}")).await;
    let run = api.ended(&id).await;
    assert_eq!(run["state"], "completed");
    assert_eq!(run["job_runs"].as_array().unwrap().len(), 10_000);
    assert_eq!(job(&run, "job-9999")["state"], "succeeded");
}

#[tokio::test]
async fn a_matrix_of_ten_thousand_jobs_registers_and_runs() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--slots", "8"]).await;
    let api = coordinator.api();
    let numbers: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let axis = numbers.join(", ");
    let source = format!(
        "name: wide\njobs:\n  wide:\n    matrix: {{ a: [{axis}], b: [{axis}] }}\n    command: [\"true\"]\n"
    );
    let id = api.run(&source).await;
    let events = api.stream(&id, None).await.to_end().await;
    let succeeded = events.iter().filter(|event| event.kind == "state" && event.data["state"] == "succeeded");
    assert_eq!(succeeded.count(), 10_000);
    let run = api.pack_run(&id).await;
    assert_eq!(run["state"], "completed");
    assert_eq!(run["job_runs"].as_array().unwrap().len(), 10_000);
}
