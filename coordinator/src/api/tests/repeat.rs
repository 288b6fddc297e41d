//! Requests that come again: under an idempotency key, and as a retry of what has ended.

use futures_util::future::join_all;
use packrun_protocol::id::{JobRunId, PackRunId};
use packrun_protocol::state::{JobRunState, PackRunState, Verdict};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::site::{Answer, Site, send};
use crate::api::types::{JobRun, PackRun, Page};
use crate::core::change::Role;

const PACK: &str = "name: p\njobs:\n  a: { run: 'true' }\n  b: { needs: [a], run: 'true' }\n";

fn post(site: &Site, path: &str, key: &str, body: &Value) -> RequestBuilder {
    site.request(Some(Role::Operator), Method::POST, path).header("idempotency-key", key).json(body)
}

async fn retry(site: &Site, run: PackRunId, failed: bool) -> Answer {
    site.post(&format!("/v1/pack-runs/{run}/retry"), &json!({ "failed": failed })).await
}

async fn job_runs(site: &Site, run: PackRunId) -> Vec<JobRun> {
    site.get(&format!("/v1/pack-runs/{run}")).await.json::<PackRun>().job_runs.unwrap()
}

#[tokio::test]
async fn a_key_starts_one_pack_run_however_often_it_comes() {
    let site = Site::start().await;
    site.register(PACK).await;
    let body = json!({ "pack": "p", "version": 1, "params": {} });
    let answers = join_all((0..10).map(|_| send(post(&site, "/v1/pack-runs", "key", &body)))).await;
    let made = answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
    let repeated = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!((made, repeated), (1, 9));
    let ids: Vec<PackRunId> = answers.iter().map(|answer| answer.json::<PackRun>().id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));

    site.post(&format!("/v1/pack-runs/{}/cancel", ids[0]), &json!({})).await;
    let later = send(post(&site, "/v1/pack-runs", "key", &body)).await;
    assert_eq!((later.status, later.json::<PackRun>().id), (StatusCode::OK, ids[0]), "also after its end");
    for other in [json!({ "pack": "p" }), json!({ "pack": "p", "version": 1, "params": { "x": 1 } })] {
        let answer = send(post(&site, "/v1/pack-runs", "key", &other)).await;
        let problem = (answer.status, answer.problem());
        assert_eq!(problem, (StatusCode::CONFLICT, "idempotency-key-reused".to_owned()));
    }
    let path = format!("/v1/pack-runs/{}/retry", ids[0]);
    assert_eq!(send(post(&site, &path, "key", &json!({}))).await.problem(), "idempotency-key-reused");
    assert_eq!(site.get("/v1/pack-runs").await.json::<Page<PackRun>>().items.len(), 1);
}

#[tokio::test]
async fn a_key_is_visible_and_short() {
    let site = Site::start().await;
    site.register(PACK).await;
    let body = json!({ "pack": "p" });
    let long = "k".repeat(255);
    assert_eq!(send(post(&site, "/v1/pack-runs", &long, &body)).await.status, StatusCode::CREATED);
    for key in ["", "with space", "t\tab", "ümlaut", &"k".repeat(256)] {
        assert_eq!(
            send(post(&site, "/v1/pack-runs", key, &body)).await.problem(),
            "invalid-request",
            "{key}"
        );
    }
    let twice = post(&site, "/v1/pack-runs", "one", &body).header("idempotency-key", "two");
    assert_eq!(send(twice).await.problem(), "invalid-request");
}

#[tokio::test]
async fn what_lives_is_not_repeated_and_what_is_not_there_neither() {
    let site = Site::start().await;
    let run = site.run(PACK).await;
    assert_eq!(retry(&site, run.id, false).await.problem(), "not-ended");
    assert_eq!(retry(&site, PackRunId::generate(), false).await.problem(), "not-found");
}

#[tokio::test]
async fn a_retry_is_a_new_pack_run_with_the_same_plan() {
    let site = Site::start().await;
    let run = site.run(PACK).await;
    site.register("name: p\njobs:\n  other: { run: 'true' }\n").await;
    site.post(&format!("/v1/pack-runs/{}/cancel", run.id), &json!({})).await;
    let path = format!("/v1/pack-runs/{}/retry", run.id);
    let answer = send(post(&site, &path, "again", &json!({}))).await;
    let again: PackRun = answer.json();
    assert_eq!((answer.status, again.retry_of, again.version), (StatusCode::CREATED, Some(run.id), 1));
    assert_eq!((again.state, again.canceled), (PackRunState::Pending, false));
    let repeated = send(post(&site, &path, "again", &json!({}))).await;
    assert_eq!((repeated.status, repeated.json::<PackRun>().id), (StatusCode::OK, again.id));
    let ids = |job_runs: &[JobRun]| job_runs.iter().map(|job_run| job_run.id).collect::<Vec<_>>();
    let (old, new) = (job_runs(&site, run.id).await, job_runs(&site, again.id).await);
    assert_eq!(new.iter().map(|job_run| job_run.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(ids(&old).iter().all(|id| !ids(&new).contains(id)));
    let without_body = site.request(Some(Role::Operator), Method::POST, &path);
    assert_eq!(send(without_body).await.status, StatusCode::CREATED, "a retry needs no body");
}

#[tokio::test]
async fn what_succeeded_is_taken_over_from_where_it_did() {
    let site = Site::start().await;
    let mut agent = site.agent("builder", 1).await;
    let run = site.run(PACK).await;
    let mut end_next = async |verdict| {
        let (attempt, _) = agent.start_next().await.remove(0);
        agent.end(attempt, verdict).await;
        attempt.job_run
    };
    let original: JobRunId = end_next(Verdict::Succeeded).await;
    end_next(Verdict::Failed).await;
    let mut last = run.id;
    for verdict in [Verdict::Failed, Verdict::Succeeded] {
        let next: PackRun = retry(&site, last, true).await.json();
        end_next(verdict).await;
        let job_runs = job_runs(&site, next.id).await;
        assert_eq!((job_runs[0].state, job_runs[0].attempt), (JobRunState::Succeeded, None));
        assert_eq!(job_runs[0].reused_from, Some(original), "not the one in between, which left nothing");
        assert_eq!(job_runs[1].reused_from, None);
        last = next.id;
    }
    let ended: PackRun = site.get(&format!("/v1/pack-runs/{last}")).await.json();
    assert_eq!(ended.state, PackRunState::Completed);
    let anew: PackRun = retry(&site, last, false).await.json();
    assert!(job_runs(&site, anew.id).await.iter().all(|job_run| job_run.reused_from.is_none()));
}
