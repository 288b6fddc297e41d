//! `GET /v1/pack-runs/{id}/logs` and `GET /v1/runs/{id}/logs`.

use packrun_protocol::block::{BlockBuilder, LogStream};
use packrun_protocol::id::{AttemptId, JobRunId, PackRunId};
use packrun_protocol::limit;
use packrun_protocol::state::Verdict;
use packrun_protocol::time::Timestamp;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::super::page::TEXT_BYTES;
use super::stage::{Agent, Stage, wait_for_end};

const JOBS: [(&str, &[u32], usize, u32); 2] = [("test", &[], 3, 1), ("lint", &[], 1, 1)];

fn path(run: PackRunId) -> String {
    format!("/v1/pack-runs/{run}/logs")
}

/// A block of lines, at these microseconds after the agent's first, which may be any time.
async fn say_at(stage: &Stage, attempt: AttemptId, start: Timestamp, lines: &[(i64, &str)]) {
    let next = stage.app.logs.progress(attempt).unwrap().borrow().readable;
    let mut block = BlockBuilder::new(attempt, next);
    for (micros, line) in lines {
        block.push(start.shifted(*micros), LogStream::Stdout, false, line.as_bytes()).unwrap();
    }
    stage.app.logs.append(block.finish().unwrap()).await.unwrap();
}

/// A run of four job runs whose lines interleave.
async fn play(stage: &Stage, run: PackRunId, agent: &mut Agent) {
    let (given, start) = (agent.given().await, stage.app.clock.now());
    for assignment in &given {
        agent.start(assignment).await;
    }
    for round in 0..5_i64 {
        for (place, assignment) in (0_i64..).zip(&given) {
            let text = format!("{place}/{round}");
            let lines = [(round * 100 + place, text.as_str()), (round * 100 + 50 - place, "again")];
            say_at(stage, assignment.attempt, start, &lines).await;
        }
    }
    for assignment in &given {
        agent.end(assignment.attempt, Verdict::Succeeded, 0).await;
    }
    wait_for_end(stage, run).await;
}

/// All items of the pages from a cursor on, to the end.
async fn all(stage: &Stage, path: &str, limit: usize) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = stage.json(&format!("{path}limit={limit}{cursor}")).await;
        let found = page["items"].as_array().unwrap();
        assert!(found.len() <= limit);
        items.extend(found.iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_every_size_are_the_same_list_in_chronological_order() {
    let stage = Stage::new().await;
    let run = stage.run(&JOBS).await;
    let mut agent = stage.agent("builder", 4).await;
    play(&stage, run, &mut agent).await;
    // It is over, but its log was not closed: who polls is told to go on.
    let live = stage.json(&path(run)).await;
    assert_eq!(live["items"].as_array().unwrap().len(), 40);
    assert!(live["next_cursor"].is_string());
    stage.close(run).await;

    let whole = all(&stage, &format!("{}?", path(run)), 1000).await;
    assert_eq!(&whole, live["items"].as_array().unwrap());
    let times: Vec<_> = whole.iter().map(|entry| entry["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    for limit in [1, 2, 3, 7, 39, 40, 41] {
        assert_eq!(all(&stage, &format!("{}?", path(run)), limit).await, whole, "{limit} a page");
    }
    let after = live["next_cursor"].as_str().unwrap();
    let end = stage.json(&format!("{}?cursor={after}", path(run))).await;
    assert_eq!((end["items"].as_array().unwrap().len(), &end["next_cursor"]), (0, &Value::Null));

    let of = |job: &str| format!("{}?job={job}&", path(run));
    let tests = all(&stage, &of("test"), 4).await;
    let expected: Vec<_> = whole.iter().filter(|entry| entry["job"] == "test").cloned().collect();
    assert_eq!((tests.len(), &tests), (30, &expected));
    let shard = all(&stage, &of("test%5Bshard%3D1%5D"), 3).await;
    assert_eq!(shard.len(), 10);
    assert!(shard.iter().all(|entry| entry["key"] == "test[shard=1]" && entry["matrix"]["shard"] == "1"));
    for unknown in ["nope", "test%5Bshard%3D9%5D", "%1B%5B2J"] {
        assert_eq!(stage.get(&of(unknown)).await.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_lines_and_those_since_a_time_are_the_end_of_the_whole() {
    let stage = Stage::new().await;
    let run = stage.run(&JOBS).await;
    let mut agent = stage.agent("builder", 4).await;
    play(&stage, run, &mut agent).await;
    for live in [true, false] {
        let first = stage.json(&path(run)).await;
        let whole = first["items"].as_array().unwrap().clone();
        assert_eq!((whole.len(), first["next_cursor"].is_string()), (40, live));
        for lines in [1, 2, 9, 39, 40, 41, 100_000] {
            let tail = stage.json(&format!("{}?tail={lines}", path(run))).await;
            assert_eq!(
                tail["items"].as_array().unwrap(),
                &whole[40_usize.saturating_sub(lines)..],
                "{lines}"
            );
        }
        let none = stage.json(&format!("{}?tail=0", path(run))).await;
        assert_eq!((none["items"].as_array().unwrap().len(), none["next_cursor"].is_string()), (0, live));
        if let Some(cursor) = none["next_cursor"].as_str() {
            let rest = stage.json(&format!("{}?cursor={cursor}", path(run))).await;
            assert_eq!(rest["items"].as_array().unwrap().len(), 0, "only what is still to come");
        }
        let later = stage.json(&format!("{}?since=2999-01-01T00:00:00Z", path(run))).await;
        assert_eq!(later["items"].as_array().unwrap().len(), 0);
        if let Some(cursor) = later["next_cursor"].as_str() {
            assert_eq!(stage.get(&format!("{}?cursor={cursor}", path(run))).await.status(), StatusCode::OK);
        }
        let time = whole[17]["time"].as_str().unwrap();
        let first = whole.iter().position(|entry| entry["time"] == time).unwrap();
        let since = stage.json(&format!("{}?since={time}&tail=100", path(run))).await;
        assert_eq!(since["items"].as_array().unwrap(), &whole[first..]);
        let of_lint: Vec<_> = whole.iter().filter(|entry| entry["key"] == "lint").cloned().collect();
        let paged = format!("{}?job=lint&tail=4&limit=3", path(run));
        let tail = stage.json(&paged).await;
        assert_eq!(tail["items"].as_array().unwrap(), &of_lint[6..9]);
        let cursor = tail["next_cursor"].as_str().unwrap();
        let rest = stage.json(&format!("{}?job=lint&limit=3&cursor={cursor}", path(run))).await;
        assert_eq!(rest["items"].as_array().unwrap(), &of_lint[9..]);
        for wrong in
            [format!("tail=1&cursor={cursor}"), "tail=100001".into(), "tail=-1".into(), "since=1".into()]
        {
            let refused = stage.get(&format!("{}?{wrong}", path(run))).await;
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{wrong}");
        }
        if live {
            stage.close(run).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_in_pieces_counts_once_among_the_last() {
    let stage = Stage::new().await;
    let run = stage.run(&[("job", &[], 1, 1)]).await;
    let mut agent = stage.agent("builder", 1).await;
    let given = agent.given().await.remove(0);
    agent.start(&given).await;
    let said = [(false, "one"), (true, "t"), (true, "w"), (false, "o"), (false, "three"), (true, "prompt: ")];
    for (continued, text) in said {
        let next = stage.app.logs.progress(given.attempt).unwrap().borrow().readable;
        let mut block = BlockBuilder::new(given.attempt, next);
        block.push(stage.app.clock.now(), LogStream::Stdout, continued, text.as_bytes()).unwrap();
        stage.app.logs.append(block.finish().unwrap()).await.unwrap();
    }
    for (lines, first) in [(1, 5), (2, 4), (3, 1), (4, 0), (5, 0)] {
        let page = stage.json(&format!("{}?tail={lines}", path(run))).await;
        assert_eq!(page["items"][0]["text"], said[first].1, "{lines}");
    }
    agent.end(given.attempt, Verdict::Succeeded, 0).await;
    wait_for_end(&stage, run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_and_ndjson_say_the_same_with_the_next_page_in_a_link() {
    let stage = Stage::new().await;
    let run = stage.run(&[("job", &[], 1, 1)]).await;
    let mut agent = stage.agent("builder", 1).await;
    let given = agent.given().await.remove(0);
    agent.start(&given).await;
    let mut block = BlockBuilder::new(given.attempt, 0);
    let euro = "€".as_bytes();
    for (continued, text) in
        [(false, &b"one"[..]), (true, &euro[..1]), (true, &euro[1..]), (false, b" two"), (false, b"")]
    {
        block.push(stage.app.clock.now(), LogStream::Stdout, continued, text).unwrap();
    }
    block.push(stage.app.clock.now(), LogStream::Stdout, true, b"prompt: ").unwrap();
    block.push(stage.app.clock.now(), LogStream::Stderr, false, b"oops").unwrap();
    stage.app.logs.append(block.finish().unwrap()).await.unwrap();
    agent.end(given.attempt, Verdict::Succeeded, 0).await;
    wait_for_end(&stage, run).await;
    stage.close(run).await;
    let whole = "one\n€ two\n\nprompt: \noops\n";
    for limit in 1..8 {
        let (mut text, mut next) = (String::new(), Some(format!("{}?limit={limit}", path(run))));
        let mut bytes = Vec::new();
        while let Some(path) = next {
            let response =
                stage.request(Method::GET, &path).header("accept", "text/plain").send().await.unwrap();
            assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
            let link = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
            next = link.map(|link| {
                let (address, rel) = link.strip_prefix('<').unwrap().split_once('>').unwrap();
                assert_eq!(rel, "; rel=\"next\"");
                assert!(address.contains("format=text"));
                address.to_owned()
            });
            bytes.extend_from_slice(&response.bytes().await.unwrap());
        }
        text.push_str(std::str::from_utf8(&bytes).unwrap());
        assert_eq!(text, whole, "{limit} a page");
    }
    let json = stage.json(&path(run)).await;
    for by in ["?format=ndjson", ""] {
        let request = stage.request(Method::GET, &format!("{}{by}", path(run)));
        let request = request.header("accept", "text/html, application/x-ndjson;q=0.9, text/plain;q=0.5");
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        let lines = response.text().await.unwrap();
        let items: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(&items, json["items"].as_array().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_polls_a_live_run_gets_each_entry_once_and_in_order_whatever_the_clocks_say() {
    let stage = Stage::new().await;
    let run = stage.run(&JOBS).await;
    let mut agent = stage.agent("builder", 4).await;
    let poll = {
        let (url, path) = (stage.url.clone(), path(run));
        let token = stage.token.to_string();
        tokio::spawn(async move {
            let client = reqwest::Client::new();
            let (mut items, mut cursor, mut round) = (Vec::<Value>::new(), String::new(), 0);
            loop {
                round += 1;
                let limit = 1 + round * 7 % 5;
                let request = client.get(format!("{url}{path}?limit={limit}{cursor}")).bearer_auth(&token);
                let page: Value = request.send().await.unwrap().json().await.unwrap();
                items.extend(page["items"].as_array().unwrap().iter().cloned());
                match page["next_cursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => return items,
                }
            }
        })
    };
    let given = agent.given().await;
    for assignment in &given {
        agent.start(assignment).await;
    }
    for round in 0..40_i64 {
        for (place, assignment) in (0_i64..).zip(&given) {
            // The clocks are off by up to 2 s, and get worse.
            let start = stage.app.clock.now().shifted((place - 2) * 1_000_000 - round * place * 10_000);
            say_at(&stage, assignment.attempt, start, &[(0, "first"), (round, "second")]).await;
        }
    }
    for assignment in &given {
        agent.end(assignment.attempt, Verdict::Succeeded, 0).await;
    }
    wait_for_end(&stage, run).await;
    stage.close(run).await;
    let polled = tokio::time::timeout(super::client::HANGS, poll).await.unwrap().unwrap();
    let whole = all(&stage, &format!("{}?", path(run)), 1000).await;
    assert_eq!(polled.len(), 4 * 80);
    assert_eq!(polled, whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_is_read_by_number_up_and_down_live_and_kept() {
    let stage = Stage::new().await;
    let run = stage.run(&[("job", &[], 1, 1), ("later", &[0], 1, 1)]).await;
    let mut agent = stage.agent("builder", 1).await;
    let given = agent.given().await.remove(0);
    agent.start(&given).await;
    let path = format!("/v1/runs/{}/logs", given.attempt.job_run);
    let empty = stage.json(&path).await;
    assert_eq!((&empty["count"], &empty["complete"]), (&0.into(), &false.into()));
    for block in 0..30 {
        let lines: Vec<_> = (0..10).map(|line| format!("{}", block * 10 + line)).collect();
        agent.say(given.attempt, &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    for kept in [false, true] {
        if kept {
            agent.end(given.attempt, Verdict::Succeeded, 0).await;
            let last = agent.given().await.remove(0);
            agent.start(&last).await;
            agent.end(last.attempt, Verdict::Succeeded, 0).await;
            wait_for_end(&stage, run).await;
            stage.close(run).await;
        }
        for (query, numbers) in [
            ("?limit=3", vec![0, 1, 2]),
            ("?from=297&attempt=1", vec![297, 298, 299]),
            ("?from=9&limit=3", vec![9, 10, 11]),
            ("?order=desc&limit=3", vec![299, 298, 297]),
            ("?order=desc&from=100&limit=2", vec![100, 99]),
            ("?order=desc&from=1", vec![1, 0]),
            ("?from=300", vec![]),
            ("?from=18446744073709551615", vec![]),
        ] {
            let page = stage.json(&format!("{path}{query}")).await;
            let items = page["items"].as_array().unwrap();
            let seqs: Vec<_> = items.iter().map(|entry| entry["seq"].as_i64().unwrap()).collect();
            assert_eq!(seqs, numbers, "{query}");
            assert!(items.iter().all(|entry| entry["text"].as_str() == Some(&*entry["seq"].to_string())));
            assert_eq!((&page["count"], &page["complete"]), (&300.into(), &kept.into()));
        }
    }
    for (query, status) in [
        ("?attempt=2", StatusCode::NOT_FOUND),
        ("?attempt=0", StatusCode::NOT_FOUND),
        ("?attempt=-1", StatusCode::BAD_REQUEST),
        ("?limit=0", StatusCode::BAD_REQUEST),
        ("?limit=10001", StatusCode::BAD_REQUEST),
        ("?order=up", StatusCode::BAD_REQUEST),
        ("?from=18446744073709551616", StatusCode::BAD_REQUEST),
        ("?x=1", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(stage.get(&format!("{path}{query}")).await.status(), status, "{query}");
    }
    let unknown = format!("/v1/runs/{}/logs", JobRunId::generate());
    assert_eq!(stage.get(&unknown).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_page_gave_and_what_no_page_has_is_refused() {
    let stage = Stage::new().await;
    let run = stage.run(&JOBS).await;
    let fresh = stage.json(&path(run)).await;
    assert_eq!((fresh["items"].as_array().unwrap().len(), &fresh["next_cursor"]), (0, &"0".into()));
    let id = JobRunId::generate();
    let long = "1".repeat(10_000);
    for query in [
        "limit=0",
        "limit=10001",
        "limit=-1",
        "limit=x",
        "format=xml",
        "cursor=",
        "cursor=x",
        "cursor=1.2.3.4",
        &format!("cursor=1.{id}.0.1"),
        &format!("cursor=1.{id}.1.1.1"),
        &format!("cursor=1.{id}.1.-1"),
        &format!("cursor={long}"),
        "unknown=1",
        "limit=1&limit=2",
    ] {
        let response = stage.get(&format!("{}?{query}", path(run))).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
    assert_eq!(stage.get(&path(PackRunId::generate())).await.status(), StatusCode::NOT_FOUND);
    // A forged one is a place like any other.
    let forged = stage.json(&format!("{}?cursor=-99.{id}.1.7", path(run))).await;
    assert_eq!(forged["items"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_page_ends_where_its_texts_are_many() {
    let stage = Stage::new().await;
    let run = stage.run(&[("test", &[], 1, 1)]).await;
    let mut agent = stage.agent("builder", 1).await;
    let given = agent.given().await.remove(0);
    agent.start(&given).await;
    let line = "x".repeat(limit::ENTRY_TEXT_BYTES_MAX);
    for _ in 0..100 {
        agent.say(given.attempt, &[&line]).await;
    }
    let full = TEXT_BYTES / line.len();
    let by_number = stage.json(&format!("/v1/runs/{}/logs?limit=100", given.attempt.job_run)).await;
    assert_eq!(by_number["items"].as_array().unwrap().len(), full);
    agent.end(given.attempt, Verdict::Succeeded, 0).await;
    wait_for_end(&stage, run).await;
    stage.close(run).await;
    let page = stage.json(&format!("{}?limit=100", path(run))).await;
    assert_eq!(page["items"].as_array().unwrap().len(), full);
    assert_eq!(all(&stage, &format!("{}?", path(run)), 100).await.len(), 100);
}
