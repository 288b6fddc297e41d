//! Pack runs and job runs: started, shown, canceled.

use packrun_protocol::id::{JobRunId, PackRunId};
use packrun_protocol::state::{AttemptState, JobRunState, PackRunState, Verdict};
use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::site::{Site, send};
use crate::api::types::{JobRun, PackRun, Page, Problem};
use crate::core::change::Role;
use crate::engine::ToSession;

const PACK: &str = "\
name: build
params:
  count: { default: '1' }
jobs:
  compile: { run: make, labels: { os: linux } }
  test: { needs: [compile], matrix: { shard: [1, 2] }, run: './test ${{ params.count }}' }
";

async fn show(site: &Site, run: PackRunId) -> (PackRun, Vec<JobRun>) {
    let mut run: PackRun = site.get(&format!("/v1/pack-runs/{run}")).await.json();
    let job_runs = run.job_runs.take().unwrap();
    (run, job_runs)
}

fn states(job_runs: &[JobRun]) -> Vec<(&str, JobRunState)> {
    job_runs.iter().map(|job_run| (job_run.key.as_str(), job_run.state)).collect()
}

#[tokio::test]
async fn a_pack_run_is_started_and_shown_until_its_end() {
    use JobRunState::{Blocked, Failed, Queued, Running, Succeeded};
    let site = Site::start().await;
    site.register(PACK).await;
    let answer = site.post("/v1/pack-runs", &json!({ "pack": "build", "params": { "count": 3 } })).await;
    let run: PackRun = answer.json();
    assert_eq!(answer.header(LOCATION), format!("/v1/pack-runs/{}", run.id));
    assert_eq!((answer.status, run.version, run.state), (StatusCode::CREATED, 1, PackRunState::Pending));
    assert_eq!((run.params["count"].as_str(), run.job_runs.is_none()), ("3", true));

    let (_, job_runs) = show(&site, run.id).await;
    assert_eq!(
        states(&job_runs),
        [("compile", Queued), ("test[shard=1]", Blocked), ("test[shard=2]", Blocked)]
    );
    let nobody = "there is no agent; `packrun agents invite` makes a token for one to join";
    assert_eq!(job_runs[0].reason.as_deref(), Some(nobody));
    assert_eq!(job_runs[1].reason.as_deref(), Some("it waits for compile"));
    assert_eq!((job_runs[2].job.as_str(), job_runs[2].matrix["shard"].as_str()), ("test", "2"));
    let blocked: JobRun = site.get(&format!("/v1/runs/{}", job_runs[1].id)).await.json();
    assert_eq!((blocked.state, blocked.reason), (Blocked, job_runs[1].reason.clone()));
    assert!(blocked.attempts.unwrap().is_empty());

    let mut agent = site.agent("builder", 1).await;
    let (attempt, _) = agent.start_next().await.remove(0);
    let (running, job_runs) = show(&site, run.id).await;
    assert_eq!((running.state, job_runs[0].state), (PackRunState::Running, Running));
    assert_eq!(job_runs[0].agent.as_deref(), Some("builder"));
    assert!(job_runs[0].started_at.is_some() && job_runs[0].ended_at.is_none());
    agent.end(attempt, Verdict::Succeeded).await;
    for verdict in [Verdict::Succeeded, Verdict::Failed] {
        let (attempt, _) = agent.start_next().await.remove(0);
        agent.end(attempt, verdict).await;
    }

    let (ended, job_runs) = show(&site, run.id).await;
    assert_eq!((ended.state, ended.ended_at), (PackRunState::PartiallyFailed, Some(ended.since)));
    assert_eq!(
        states(&job_runs),
        [("compile", Succeeded), ("test[shard=1]", Succeeded), ("test[shard=2]", Failed)]
    );
    let failed: JobRun = site.get(&format!("/v1/runs/{}", job_runs[2].id)).await.json();
    assert_eq!((failed.exit_code, failed.signal, failed.duration_seconds), (Some(1), None, Some(1.0)));
    let attempts = failed.attempts.unwrap();
    let [attempt] = attempts.as_slice() else { panic!("{attempts:?}") };
    assert_eq!((attempt.state, attempt.agent.as_str()), (AttemptState::Failed, "builder"));
    assert_eq!((attempt.agent_id, attempt.entries, attempt.exit_code), (agent.id, Some(3), Some(1)));
    assert!(attempt.started_at >= Some(attempt.assigned_at) && attempt.ended_at >= attempt.started_at);
}

#[tokio::test]
async fn runs_are_listed_newest_first_by_pack_and_state_in_pages_of_any_size() {
    let site = Site::start().await;
    let mut runs = Vec::new();
    for number in 0..9 {
        let name = ["one", "two"][number % 2];
        let run = site.run(&format!("name: {name}\njobs:\n  a: {{ run: 'true' }}\n")).await;
        if number % 3 == 0 {
            site.post(&format!("/v1/pack-runs/{}/cancel", run.id), &json!({})).await;
        }
        runs.insert(0, (run.id, name, number % 3 == 0));
    }
    let is_in = |query: &str, (_, name, canceled): &(PackRunId, &str, bool)| {
        (!query.contains("pack=one") || *name == "one")
            && (!query.contains("state=canceled") || *canceled)
            && (!query.contains("state=pending") || !canceled)
    };
    for query in [
        "",
        "pack=one",
        "state=canceled",
        "state=pending&pack=one",
        "pack=one&state=canceled",
        "state=failed",
    ] {
        let wanted: Vec<_> = runs.iter().filter(|run| is_in(query, run)).map(|run| run.0).collect();
        let wanted = if query == "state=failed" { Vec::new() } else { wanted };
        for limit in [1, 2, 4, 9, 10] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let path = format!("/v1/pack-runs?{query}&limit={limit}{cursor}");
                let page: Page<PackRun> = site.get(&path).await.json();
                assert!(page.items.len() <= limit && page.items.iter().all(|run| run.job_runs.is_none()));
                seen.extend(page.items.iter().map(|run| run.id));
                let Some(next) = page.next_cursor else { break };
                cursor = format!("&cursor={next}");
            }
            assert_eq!(seen, wanted, "{query} in pages of {limit}");
        }
    }
}

#[tokio::test]
async fn parameters_are_texts_numbers_or_booleans_that_the_pack_takes() {
    let site = Site::start().await;
    site.register(
        "name: p\nparams:\n  n: { choices: ['1', 'true'], default: '1' }\njobs:\n  a: { run: 'true' }\n",
    )
    .await;
    for (value, expected) in [(json!(1), "1"), (json!(true), "true"), (json!("true"), "true")] {
        let run = site.post("/v1/pack-runs", &json!({ "pack": "p", "params": { "n": value } })).await;
        assert_eq!(run.json::<PackRun>().params["n"], expected);
    }
    for params in [json!({ "n": 2 }), json!({ "n": null }), json!({ "n": [1] }), json!({ "m": "1" })] {
        let answer = site.post("/v1/pack-runs", &json!({ "pack": "p", "params": params })).await;
        assert_eq!(answer.problem(), "invalid-parameters", "{params}");
        assert_eq!(answer.json::<Problem>().errors[0].kind, "parameter");
    }
    for body in
        [json!({ "pack": "q" }), json!({ "pack": "p", "version": 2 }), json!({ "pack": "p", "version": 0 })]
    {
        assert_eq!(site.post("/v1/pack-runs", &body).await.problem(), "not-found", "{body}");
    }
}

#[tokio::test]
async fn a_pack_run_is_canceled_once_and_however_often_that_is_asked() {
    let site = Site::start().await;
    let mut agent = site.agent("builder", 1).await;
    let run = site.run(PACK).await;
    let path = format!("/v1/pack-runs/{}/cancel", run.id);
    let (attempt, _) = agent.start_next().await.remove(0);
    for _ in 0..2 {
        let answer = site.post(&path, &json!({})).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "its agent has yet to stop it");
        let run: PackRun = answer.json();
        assert_eq!((run.canceled, run.state), (true, PackRunState::Running));
    }
    assert!(matches!(agent.told().await, ToSession::Cancel { attempt: canceled, .. } if canceled == attempt));
    agent.end(attempt, Verdict::Canceled).await;
    let answer = site.post(&path, &json!({})).await;
    assert_eq!((answer.status, answer.json::<PackRun>().state), (StatusCode::OK, PackRunState::Canceled));

    let done = site.run("name: short\njobs:\n  a: { run: 'true' }\n").await;
    let (attempt, _) = agent.start_next().await.remove(0);
    agent.end(attempt, Verdict::Succeeded).await;
    let answer = site.post(&format!("/v1/pack-runs/{}/cancel", done.id), &json!({})).await;
    assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::CONFLICT, "already-ended"));
    let nobody = PackRunId::generate();
    assert_eq!(site.post(&format!("/v1/pack-runs/{nobody}/cancel"), &json!({})).await.problem(), "not-found");
}

#[tokio::test]
async fn a_job_run_is_canceled_on_its_own() {
    let site = Site::start().await;
    let run = site.run("name: p\njobs:\n  a: { run: 'true' }\n  b: { run: 'true' }\n").await;
    let (_, job_runs) = show(&site, run.id).await;
    let path = format!("/v1/runs/{}/cancel", job_runs[0].id);
    for _ in 0..2 {
        let answer = site.post(&path, &json!({})).await;
        assert_eq!((answer.status, answer.json::<JobRun>().state), (StatusCode::OK, JobRunState::Canceled));
    }
    let mut agent = site.agent("builder", 1).await;
    let (attempt, key) = agent.start_next().await.remove(0);
    assert_eq!(key.as_str(), "b");
    let path = format!("/v1/runs/{}/cancel", attempt.job_run);
    assert_eq!(site.post(&path, &json!({})).await.status, StatusCode::ACCEPTED);
    agent.end(attempt, Verdict::Succeeded).await;
    assert_eq!(site.post(&path, &json!({})).await.problem(), "already-ended", "a success beats a cancel");
    let nobody = JobRunId::generate();
    assert_eq!(site.post(&format!("/v1/runs/{nobody}/cancel"), &json!({})).await.problem(), "not-found");
    assert_eq!(site.get(&format!("/v1/runs/{nobody}")).await.problem(), "not-found");
    assert_eq!(show(&site, run.id).await.0.state, PackRunState::PartiallyFailed);
}

#[tokio::test]
async fn a_run_takes_the_version_it_is_told_to() {
    let site = Site::start().await;
    for code in 0..3 {
        site.register(&format!("name: p\njobs:\n  a: {{ run: 'exit {code}' }}\n")).await;
    }
    let request = site.request(Some(Role::Operator), Method::POST, "/v1/pack-runs");
    let run: PackRun = send(request.json(&json!({ "pack": "p", "version": 2 }))).await.json();
    assert_eq!(run.version, 2);
    let mut agent = site.agent("builder", 1).await;
    let ToSession::Dispatch(assignments) = agent.told().await else { panic!("no dispatch") };
    assert_eq!(assignments[0].version, 2);
    let definition = serde_json::to_value(&*assignments[0].definition).unwrap();
    assert_eq!(definition["action"], json!({ "script": "exit 1" }), "{}", Value::from(run.version));
}

#[tokio::test]
async fn the_widest_pack_run_is_started_shown_and_canceled_whole() {
    let site = Site::start().await;
    let values: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let job = |needs: &str| format!("{{ {needs} matrix: {{ n: [{}] }}, run: 'true' }}", values.join(", "));
    let run = site.run(&format!("name: wide\njobs:\n  a: {}\n  b: {}\n", job(""), job("needs: [a],"))).await;
    let (_, job_runs) = show(&site, run.id).await;
    assert_eq!(job_runs.len(), 20_000);
    let last = &job_runs[19_999];
    assert_eq!((job_runs[9_999].key.as_str(), job_runs[9_999].state), ("a[n=9999]", JobRunState::Queued));
    assert_eq!((last.key.as_str(), last.reason.as_deref()), ("b[n=9999]", Some("it waits for a")));
    let canceled = site.post(&format!("/v1/pack-runs/{}/cancel", run.id), &json!({})).await;
    assert_eq!((canceled.status, canceled.json::<PackRun>().state), (StatusCode::OK, PackRunState::Canceled));
    let last: JobRun = site.get(&format!("/v1/runs/{}", last.id)).await.json();
    assert_eq!((last.key.as_str(), last.state), ("b[n=9999]", JobRunState::Canceled));
}

#[tokio::test]
async fn parameters_have_a_size_and_so_have_pages_of_them() {
    let site = Site::start().await;
    let params: String = (0..8).map(|n| format!("  p{n}: {{ default: '' }}\n")).collect();
    site.register(&format!("name: p\nparams:\n{params}jobs:\n  a: {{ run: 'true' }}\n")).await;
    let run = |bytes: usize| {
        let params: Value = (0..8).map(|n| (format!("p{n}"), json!("x".repeat(bytes)))).collect();
        json!({ "pack": "p", "params": params })
    };
    let answer = site.post("/v1/pack-runs", &run(32 << 10)).await;
    assert_eq!(answer.problem(), "invalid-parameters");
    for _ in 0..18 {
        let answer = site.post("/v1/pack-runs", &run((32 << 10) - 2)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    }
    let (mut sizes, mut cursor) = (Vec::new(), String::new());
    loop {
        let page: Page<PackRun> = site.get(&format!("/v1/pack-runs?limit=500{cursor}")).await.json();
        sizes.push(page.items.len());
        let Some(next) = page.next_cursor else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(sizes, [16, 2]);
}
