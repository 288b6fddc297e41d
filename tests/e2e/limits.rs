//! What goes over a limit is refused or cut with words that say so, and the coordinator goes on.

use packrun_tests::api::{Api, job, states};
use packrun_tests::process::Coordinator;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::programs;

fn texts<'e>(entries: &'e [Value], stream: &'e str) -> impl Iterator<Item = &'e str> {
    entries.iter().filter(move |entry| entry["stream"] == stream).filter_map(|entry| entry["text"].as_str())
}

#[tokio::test]
async fn a_log_ends_at_its_limit_with_what_was_cut_and_its_job_runs_on() {
    let coordinator = Coordinator::start_with(&programs(), &["--limit", "log_bytes=1MiB"]).await;
    let _agent = coordinator.agent("one", &[]).await;
    let api = coordinator.api();
    // A line of `yes` counts for nine bytes; the pack's own limit of the other is lower than the coordinator's.
    let id = api
        .run(
            "name: noisy\njobs:\n  yes:\n    run: |\n      yes | head -c 50M\n      echo behind >&2\n      \
             touch end\n    artifacts: [end]\n  seq:\n    log_limit: 1KiB\n    run: seq 1000000\n",
        )
        .await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "completed: yes succeeded, seq succeeded");
    for (job, limit, kept, lines, bytes) in [
        ("yes", 1 << 20, 116_508, 26_214_400 - 116_508 + 1, (50 << 20) - 2 * 116_508 + 7),
        ("seq", 1024, 102, 1_000_000 - 102, 6_888_896 - (9 * 2 + 90 * 3 + 3 * 4)),
    ] {
        let entries = api.job_logs(&id, job).await;
        let (out, own): (Vec<_>, Vec<_>) =
            (texts(&entries, "stdout").collect(), texts(&entries, "system").collect());
        assert_eq!(out.len(), kept, "{job}");
        match job {
            "yes" => assert!(out.iter().all(|text| *text == "y")),
            _ => assert!(out.iter().zip(1..).all(|(text, number)| *text == number.to_string())),
        }
        let limit = format!("its limit of {limit} bytes");
        let reached =
            format!("packrun: the log has reached {limit}; what the job writes from here on is dropped");
        let cut =
            format!("packrun: the log was cut at {limit}: {lines} lines, {bytes} bytes are missing here");
        assert_eq!(own, [reached, cut], "{job}");
        assert_eq!(entries.len(), kept + 2, "{job}: nothing else, and the markers last");
    }
}

/// A limit that is set to less than its default, for what is to go over it.
const LOW: &[&str] = &[
    "--limit",
    "pack_bytes=4KiB",
    "--limit",
    "job_runs=3",
    "--limit",
    "params_bytes=1KiB",
    "--limit",
    "json_bytes=64KiB",
    "--limit",
    "tokens=3",
];

/// What a request over a limit is answered with: its status, and its problem's type and all of its words.
async fn refused(api: &Api, request: reqwest::RequestBuilder) -> (StatusCode, String, String) {
    let answer = api.send(request).await;
    let status = answer.status();
    let problem: Value = answer.json().await.unwrap();
    (status, problem["type"].as_str().unwrap().to_owned(), problem.to_string())
}

#[tokio::test]
async fn what_a_client_sends_over_a_limit_is_refused_in_words_and_the_coordinator_goes_on() {
    let coordinator = Coordinator::start_with(&programs(), LOW).await;
    let api = coordinator.api();
    let file = |text: String| {
        api.request(Method::POST, "/v1/packs").header("content-type", "application/yaml").body(text)
    };
    let post = |path: &str, body: Value| api.request(Method::POST, path).json(&body);
    let good = "name: p\nparams: { a: { default: x } }\njobs: { a: { run: 'true' } }\n";
    assert_eq!(api.register(good).await.0, StatusCode::CREATED);
    let wide = "name: p\njobs: { a: { matrix: { n: [1, 2, 3, 4] }, run: 'true' } }\n";
    let value = |bytes| json!({ "pack": "p", "params": { "a": "v".repeat(bytes) } });
    for (request, status, kind, words) in [
        (file(format!("{good}#{}", "#".repeat(4096))), 413, "too-large", "more than the 4096 bytes"),
        (file(wide.to_owned()), 422, "invalid-pack", "more than 3 job runs in all"),
        (post("/v1/pack-runs", value(1024)), 422, "invalid-parameters", "of which 1024 are taken"),
        (post("/v1/pack-runs", value(64 << 10)), 413, "too-large", "more than the 65536 bytes"),
        (api.request(Method::GET, "/v1/packs?limit=501"), 400, "invalid-request", "1 to 500, not 501"),
    ] {
        let (is, of, detail) = refused(&api, request).await;
        assert_eq!(is.as_u16(), status, "{of}: {detail}");
        assert!(of.ends_with(kind) && detail.contains(words), "{of}: {detail}");
    }
    // The administrator's token is one of three.
    for _ in 0..2 {
        api.post("/v1/tokens", &json!({ "role": "viewer" })).await;
    }
    for path in ["/v1/tokens", "/v1/join-tokens"] {
        let body = if path == "/v1/tokens" { json!({ "role": "viewer" }) } else { json!({}) };
        let (status, kind, detail) = refused(&api, post(path, body)).await;
        assert!(status.is_client_error() && kind.ends_with("limit-reached"), "{status} {kind}: {detail}");
        assert!(detail.contains("3 tokens"), "{detail}");
    }
    let run = api.start("p").await;
    let logs = format!("/v1/pack-runs/{run}/logs?limit=10001");
    let (status, _, detail) = refused(&api, api.request(Method::GET, &logs)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(detail.contains("1 to 10000, not 10001"), "{detail}");
    assert_eq!(api.pack_run(&run).await["state"], "pending");
}

#[tokio::test]
async fn files_over_a_limit_fail_their_attempt_by_its_name_and_others_are_kept() {
    let limits = ["--limit", "artifact_bytes=1KiB", "--limit", "artifacts_per_attempt=2"];
    let coordinator = Coordinator::start_with(&programs(), &limits).await;
    let _agent = coordinator.agent("one", &["--slots", "3"]).await;
    let api = coordinator.api();
    let leaves = |name: &str, run: &str| format!("  {name}: {{ run: '{run}', artifacts: ['out/*'] }}\n");
    let id = api
        .run(&format!(
            "name: p\njobs:\n{}{}{}",
            leaves("large", "mkdir out; head -c 1025 /dev/zero > out/a"),
            leaves("many", "mkdir out; touch out/a out/b out/c"),
            leaves("right", "mkdir out; head -c 1024 /dev/zero > out/a; touch out/b"),
        ))
        .await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "partially_failed: large failed, many failed, right succeeded");
    for (key, words) in [
        ("large", "an artifact of 1025 bytes is over the limit of 1024"),
        ("many", "2 files, the most it may"),
    ] {
        let reason = job(&run, key)["reason"].as_str().unwrap();
        assert!(reason.contains(words), "{key}: {reason}");
    }
    let kept = api.get(&format!("/v1/pack-runs/{id}/artifacts")).await;
    let kept = kept["items"].as_array().unwrap().iter().filter(|file| file["key"] == "right").count();
    assert_eq!(kept, 2);
}
