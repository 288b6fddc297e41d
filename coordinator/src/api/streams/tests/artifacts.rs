//! `GET /v1/pack-runs/{id}/artifacts` and the content of one.

use packrun_protocol::id::{Digest, PackRunId};
use packrun_protocol::state::Verdict;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use super::stage::{Stage, wait_for_end};

fn path(run: PackRunId) -> String {
    format!("/v1/pack-runs/{run}/artifacts")
}

async fn all(stage: &Stage, run: PackRunId, limit: usize) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let response = stage.get(&format!("{}?limit={limit}{cursor}", path(run))).await;
        let link = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let page: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        let next = page["next_cursor"].as_str();
        let expected = next.map(|next| format!("<{}?limit={limit}&cursor={next}>; rel=\"next\"", path(run)));
        assert_eq!(link, expected);
        items.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_attempts_files_are_listed_and_taken_over_ones_with_them() {
    let stage = Stage::new().await;
    let run = stage.run(&[("test", &[], 2, 2), ("quiet", &[], 1, 1)]).await;
    let mut agent = stage.agent("builder", 3).await;
    let given = agent.given().await;
    for assignment in &given {
        agent.start(assignment).await;
    }
    agent.leave(given[0].attempt, "old", b"old").await;
    agent.leave(given[1].attempt, "b/2", b"two").await;
    agent.leave(given[1].attempt, "a", b"one").await;
    agent.end(given[0].attempt, Verdict::Failed, 1).await;
    let again = agent.given().await.remove(0);
    agent.start(&again).await;
    agent.leave(again.attempt, "new", b"new").await;
    agent.end(again.attempt, Verdict::Succeeded, 1).await;
    agent.end(given[1].attempt, Verdict::Succeeded, 2).await;
    agent.end(given[2].attempt, Verdict::Succeeded, 0).await;
    wait_for_end(&stage, run).await;
    let whole = all(&stage, run, 10_000).await;
    let shown: Vec<_> = whole
        .iter()
        .map(|item| {
            (item["key"].as_str().unwrap(), item["attempt"].as_u64().unwrap(), item["path"].as_str().unwrap())
        })
        .collect();
    assert_eq!(shown, [("test[shard=0]", 2, "new"), ("test[shard=1]", 1, "a"), ("test[shard=1]", 1, "b/2")]);
    assert_eq!((&whole[0]["size"], &whole[0]["mode"]), (&3.into(), &"0755".into()));
    assert_eq!(whole[0]["digest"], Digest::of(b"new").to_string());
    for limit in 1..4 {
        assert_eq!(all(&stage, run, limit).await, whole);
    }

    // One who takes over has them under his own key, and who takes over from him as well.
    let first = stage.reuse("first", again.attempt.job_run).await;
    let taken = stage.app.engine.read().unwrap().job_runs(first).unwrap()[0].id;
    let second = stage.reuse("second", taken).await;
    for (run, key) in [(first, "first"), (second, "second")] {
        let items = all(&stage, run, 10).await;
        assert_eq!(items.len(), 1);
        assert_eq!(
            (&items[0]["key"], &items[0]["path"], &items[0]["attempt"]),
            (&key.into(), &"new".into(), &2.into())
        );
        let content = stage.get(&format!("{}/{key}/new", path(run))).await;
        assert_eq!(content.bytes().await.unwrap(), &b"new"[..]);
    }
    for query in ["?cursor=x", "?cursor=", "?cursor=MC8uLi8", "?limit=0", "?x=1"] {
        assert_eq!(
            stage.get(&format!("{}{query}", path(run))).await.status(),
            StatusCode::BAD_REQUEST,
            "{query}"
        );
    }
    assert_eq!(stage.get(&path(PackRunId::generate())).await.status(), StatusCode::NOT_FOUND);
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_comes_whole_in_parts_and_not_at_all_to_who_has_it() {
    let stage = Stage::new().await;
    let run = stage.run(&[("test", &[], 2, 1)]).await;
    let mut agent = stage.agent("builder", 2).await;
    let given = agent.given().await.remove(0);
    agent.start(&given).await;
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 7) as u8).collect();
    agent.leave(given.attempt, "out/app ä", &content).await;
    agent.leave(given.attempt, "empty", b"").await;
    let at = format!("{}/test%5Bshard%3D0%5D/out/app%20%C3%A4", path(run));
    let etag = format!("\"{}\"", Digest::of(&content));
    let ask = |headers: &[(&str, &str)], method: Method| {
        let request = stage.request(method, &at);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send()
    };

    let whole = ask(&[], Method::GET).await.unwrap();
    assert_eq!(whole.status(), StatusCode::OK);
    for (name, value) in [
        ("content-length", "1000000"),
        ("content-type", "application/octet-stream"),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
        ("packrun-mode", "0755"),
        ("etag", &etag),
        ("content-disposition", "attachment; filename=\"app__\"; filename*=UTF-8''app%20%C3%A4"),
    ] {
        assert_eq!(header(&whole, name), value, "{name}");
    }
    assert!(whole.bytes().await.unwrap() == content);

    let head = ask(&[], Method::HEAD).await.unwrap();
    assert_eq!((head.status(), header(&head, "content-length")), (StatusCode::OK, "1000000"));
    assert_eq!(head.bytes().await.unwrap().len(), 0);

    for (range, first, behind) in
        [("bytes=0-9", 0, 10), ("bytes=999990-", 999_990, 1_000_000), ("bytes=-500000", 500_000, 1_000_000)]
    {
        let part = ask(&[("range", range), ("if-range", &etag)], Method::GET).await.unwrap();
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(header(&part, "content-range"), format!("bytes {first}-{}/1000000", behind - 1));
        assert_eq!(header(&part, "content-length"), (behind - first).to_string());
        assert!(part.bytes().await.unwrap() == content[first..behind]);
    }
    let beyond = ask(&[("range", "bytes=1000000-")], Method::GET).await.unwrap();
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(header(&beyond, "content-range"), "bytes */1000000");
    assert_eq!(header(&beyond, "content-type"), "application/problem+json");
    for headers in [
        [("range", "bytes=0-9"), ("if-range", "\"sha256:other\"")],
        [("range", "bytes=0-9,20-29"), ("x-nothing", "")],
        [("range", "bytes=9-0"), ("if-none-match", "\"other\", W/\"more\"")],
    ] {
        let whole = ask(&headers, Method::GET).await.unwrap();
        assert_eq!((whole.status(), header(&whole, "content-length")), (StatusCode::OK, "1000000"));
    }
    for tags in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".to_owned()] {
        let known = ask(&[("if-none-match", &tags), ("range", "bytes=0-9")], Method::GET).await.unwrap();
        assert_eq!((known.status(), header(&known, "etag")), (StatusCode::NOT_MODIFIED, &*etag));
        assert_eq!(known.bytes().await.unwrap().len(), 0);
    }
    let empty = stage.get(&format!("{}/test%5Bshard%3D0%5D/empty", path(run))).await;
    assert_eq!((empty.status(), header(&empty, "content-length")), (StatusCode::OK, "0"));

    for none in [
        "test%5Bshard%3D1%5D/empty",
        "test%5Bshard%3D0%5D/none",
        "test%5Bshard%3D0%5D/..%2F..%2Fstate.redb",
        "test%5Bshard%3D0%5D/%2Fetc%2Fpasswd",
        "test%5Bshard%3D0%5D/a%00b",
        "test/empty",
        "%5B/empty",
    ] {
        assert_eq!(
            stage.get(&format!("{}/{none}", path(run))).await.status(),
            StatusCode::NOT_FOUND,
            "{none}"
        );
    }
    assert_eq!(stage.get(&format!("{}/test/%FF", path(run))).await.status(), StatusCode::BAD_REQUEST);
    let stranger = reqwest::get(format!("{}{at}", stage.url)).await.unwrap();
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_document_has_only_paths_that_are_openapi() {
    let stage = Stage::new().await;
    let document = stage.json("/openapi.json").await;
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().collect();
    assert!(paths.iter().any(|path| *path == "/v1/pack-runs/{id}/artifacts/{key}/{path}"), "{paths:?}");
    assert!(!paths.iter().any(|path| path.contains('*')), "{paths:?}");
}
