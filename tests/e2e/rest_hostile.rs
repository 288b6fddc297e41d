//! What no honest client sends, by thousands, while honest ones are answered at once and the coordinator's memory
//! stays within bounds.

use std::time::{Duration, Instant};

use packrun_tests::api::Api;
use packrun_tests::process::Coordinator;
use packrun_tests::raw::{connect, exchange, flood, http2_frame, http2_head, http2_start};
use packrun_tests::{DEADLINE, in_time};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::programs;

/// How long an honest client may wait while others do their worst, on a busy machine.
const PROMPT: Duration = Duration::from_secs(10);

/// What the coordinator's memory may grow by, whatever comes.
const GROWTH_MAX: u64 = 192 << 20;

/// The coordinator's memory, in bytes.
fn memory(coordinator: &mut Coordinator) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", coordinator.process().pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// An honest client, who asks for something that is looked up in the store.
async fn answered(api: &Api) {
    let asked = Instant::now();
    api.get("/v1/packs").await;
    assert!(asked.elapsed() < PROMPT, "an honest client waited {:?}", asked.elapsed());
}

/// Whether a connection ends, whatever is on it.
async fn ends(mut connection: TcpStream) {
    let end = async { while matches!(connection.read(&mut [0; 4096]).await, Ok(1..)) {} };
    in_time("the end of a connection", end).await;
}

#[tokio::test]
async fn idle_connections_and_heads_and_bodies_that_never_end_hold_up_nobody() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let (api, url) = (coordinator.api(), coordinator.url());
    let before = memory(&mut coordinator);
    let token = std::fs::read_to_string(coordinator.token_file()).unwrap();
    let mut idle = Vec::new();
    for number in 0..1_500 {
        let mut connection = connect(&url).await;
        let start = match number % 5 {
            0 => "GET /v1/packs HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_owned(),
            1 => format!(
                "POST /v1/packs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/yaml\r\nContent-Length: 1000000\r\n\r\nname: ",
                token.trim()
            ),
            2 => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            _ => String::new(),
        };
        connection.write_all(start.as_bytes()).await.unwrap();
        idle.push(connection);
        if number % 250 == 0 {
            answered(&api).await;
        }
    }
    answered(&api).await;
    let grown = memory(&mut coordinator).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "1,500 connections take {grown} bytes");
    // None of them is kept for ever.
    for connection in idle.drain(..5) {
        ends(connection).await;
    }
    drop(idle);
    answered(&api).await;
}

#[tokio::test]
async fn whoever_reads_nothing_of_lists_logs_and_streams_holds_up_nobody() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let (api, url) = (coordinator.api(), coordinator.url());
    let pack = "name: noisy\njobs:\n  a:\n    run: |\n      head -c 3000000 /dev/zero | tr '\\0' x | fold -w 300; mkdir out; head -c 20000000 /dev/zero > out/large\n    artifacts: [out/large]\n";
    let run = api.run(pack).await;
    api.ended(&run).await;
    let before = memory(&mut coordinator);
    let token = std::fs::read_to_string(coordinator.token_file()).unwrap();
    let mut stuck = Vec::new();
    for number in 0..120 {
        let path = match number % 5 {
            0 => format!("/v1/pack-runs/{run}/logs?limit=10000"),
            1 => format!("/v1/pack-runs/{run}/stream"),
            2 => format!("/v1/pack-runs/{run}/artifacts/a/out/large"),
            3 => "/v1/events".to_owned(),
            _ => "/v1/pack-runs?limit=500".to_owned(),
        };
        let mut connection = connect(&url).await;
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", token.trim());
        connection.write_all(head.as_bytes()).await.unwrap();
        stuck.push(connection);
        if number % 20 == 0 {
            answered(&api).await;
        }
    }
    answered(&api).await;
    let page = api.get(&format!("/v1/pack-runs/{run}/logs?limit=10")).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 10);
    let grown = memory(&mut coordinator).saturating_sub(before);
    assert!(grown < 2 * GROWTH_MAX, "120 clients that read nothing take {grown} bytes");
}

#[tokio::test]
async fn what_is_no_http_is_answered_with_an_error_or_an_end() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let (api, url) = (coordinator.api(), coordinator.url());
    let silence = Duration::from_secs(30);
    let long = "x".repeat(70_000);
    let garbage: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let cases: [(&str, Vec<u8>, &[&str]); 9] = [
        ("a long address", format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n").into(), &["414", "431"]),
        ("a long header", format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n").into(), &["431"]),
        (
            "many headers",
            format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(1000)).into(),
            &["431"],
        ),
        ("no request line", b"\0\x01\x02\r\n\r\n".to_vec(), &["400"]),
        ("no version", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n".to_vec(), &["400"]),
        ("a space in a header's name", b"GET / HTTP/1.1\r\nHost : x\r\n\r\n".to_vec(), &["400"]),
        (
            "two lengths",
            b"POST /v1/packs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"
                .to_vec(),
            &["400"],
        ),
        ("a TLS hello", [&[0x16, 0x03, 0x01, 0x02, 0x00][..], &garbage[..512]].concat(), &["400"]),
        ("garbage", garbage.clone(), &["400", "431"]),
    ];
    for (what, bytes, expected) in cases {
        let answer = exchange(&url, &bytes, silence).await;
        let status = String::from_utf8_lossy(&answer).chars().skip(9).take(3).collect::<String>();
        assert!(expected.contains(&&*status), "{what}: {:?}", String::from_utf8_lossy(&answer));
    }
    // Both a length and chunks: whoever is between might see another request than we do.
    let smuggled = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = exchange(&url, smuggled, silence).await;
    assert!(!String::from_utf8_lossy(&answer).contains("ready"), "{:?}", String::from_utf8_lossy(&answer));
    // A good request, and garbage behind it on the same connection.
    let piped = [&b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"[..], &garbage].concat();
    let answer = exchange(&url, &piped, silence).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 400"), "{answer:?}");
    answered(&api).await;
    assert!(!coordinator.process().log().contains("panicked"));
}

#[tokio::test]
async fn floods_of_http_2_end_with_the_connection_that_they_came_on() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let (api, url) = (coordinator.api(), coordinator.url());
    let before = memory(&mut coordinator);
    let start = http2_start();
    let head = http2_head("GET", "/healthz");
    let reset = |number: u32| {
        let stream = number.wrapping_mul(2) + 1;
        [http2_frame(1, 0x5, stream, &head), http2_frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    // Requests that are taken back at once (CVE-2023-44487).
    flood(&url, &start, |batch| (0..100).flat_map(|n| reset(batch * 100 + n)).collect()).await;
    answered(&api).await;
    // A head that never ends (CVE-2024-27316).
    let endless = [start.clone(), http2_frame(1, 0x1, 1, &head)].concat();
    let header = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x06][..], &[b'y'; 256]].concat();
    flood(&url, &endless, |_| http2_frame(9, 0, 1, &header)).await;
    answered(&api).await;
    // A head that is small on its way and large when it is read: one long value, named again and again.
    let value = vec![b'y'; 3000];
    let indexed = [&[0x40, 0x01, b'x', 0x7f, 0xb9, 0x16][..], &value, &vec![0xbe; 12_000]].concat();
    let bomb = [&head[..], &indexed].concat();
    let bombs = |number: u32| http2_frame(1, 0x5, number * 2 + 1, &bomb[..bomb.len().min(16_384)]);
    let sent = async {
        let mut connection = connect(&url).await;
        connection.write_all(&start).await.unwrap();
        for number in 0..50 {
            if connection.write_all(&bombs(number)).await.is_err() {
                break;
            }
        }
        connection.shutdown().await.ok();
        ends(connection).await;
    };
    in_time("bombs", sent).await;
    answered(&api).await;
    // More streams than there may be, none of which ever ends its body.
    let open = http2_head("POST", "/v1/packs");
    let streams: Vec<u8> = (0..20_000_u32).flat_map(|n| http2_frame(1, 0x4, n * 2 + 1, &open)).collect();
    let mut connection = connect(&url).await;
    let _ = connection.write_all(&[start.clone(), streams].concat()).await;
    answered(&api).await;
    drop(connection);
    // Frames that are to be answered, from one who reads no answer.
    let mut unread = connect(&url).await;
    unread.write_all(&start).await.unwrap();
    let pings = http2_frame(6, 0, 0, &[7; 8]).repeat(10_000);
    let written = async {
        for _ in 0..200 {
            match tokio::time::timeout(Duration::from_secs(1), unread.write_all(&pings)).await {
                Ok(Ok(())) => {}
                // It is closed, or nothing more is read of it.
                _ => return,
            }
        }
    };
    written.await;
    answered(&api).await;
    let grown = memory(&mut coordinator).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "floods took {grown} bytes");
    assert!(!coordinator.process().log().contains("panicked"));
}

#[tokio::test]
async fn paths_queries_and_bodies_that_mean_harm_are_refused_with_a_problem() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let (api, url) = (coordinator.api(), coordinator.url());
    let token = std::fs::read_to_string(coordinator.token_file()).unwrap();
    let run = "01980a4e-5b7c-7d21-9c1e-3f5a7b9d1e2f";
    let huge = "9".repeat(400);
    let deep = format!("{{\"pack\":\"p\",\"params\":{{\"a\":{}1{}}}}}", "[".repeat(5000), "]".repeat(5000));
    for (method, target, body, expected) in [
        ("GET", "/v1/packs/%00".to_owned(), "", "400"),
        ("GET", "/v1/packs/..".to_owned(), "", "400"),
        ("GET", "/v1/packs/..%2f..%2fetc%2fpasswd".to_owned(), "", "400"),
        ("GET", "/v1/packs/%2e%2e/versions/1".to_owned(), "", "400"),
        ("GET", "/v1/packs/%ff%fe".to_owned(), "", "400"),
        ("GET", format!("/v1/pack-runs/{run}/artifacts/a/../../../../etc/passwd"), "", "404"),
        ("GET", format!("/v1/pack-runs/{run}/artifacts/a/..%2f..%2fetc%2fpasswd"), "", "404"),
        ("GET", format!("/v1/pack-runs/{run}/artifacts/a/%2fetc%2fpasswd"), "", "404"),
        ("GET", format!("/v1/pack-runs/{run}/artifacts/a/x%00y"), "", "404"),
        ("GET", format!("/v1/pack-runs/{run}/artifacts/a/%ff"), "", "400"),
        ("GET", format!("/v1/pack-runs/{run}/logs?limit={huge}"), "", "400"),
        ("GET", format!("/v1/pack-runs/{run}/logs?cursor={huge}"), "", "400"),
        ("GET", format!("/v1/pack-runs/{run}/logs?cursor=-{huge}.{run}.1.1"), "", "400"),
        ("GET", format!("/v1/pack-runs/{run}/logs?cursor=-9223372036854775808.{run}.1.1"), "", "404"),
        (
            "GET",
            format!(
                "/v1/pack-runs/{run}/stream?cursor=1.18446744073709551615.4294967295.18446744073709551615"
            ),
            "",
            "404",
        ),
        ("GET", format!("/v1/runs/{run}/logs?from=18446744073709551615&limit=10000&order=desc"), "", "404"),
        ("GET", "/v1/packs?limit=1&limit=2".to_owned(), "", "400"),
        ("GET", "/v1/packs?limit=%ff".to_owned(), "", "400"),
        ("GET", format!("/v1/packs?cursor={}", "%41".repeat(8000)), "", "400"),
        ("POST", "/v1/pack-runs".to_owned(), &deep, "400"),
        ("POST", "/v1/pack-runs".to_owned(), "{\"pack\":\"p\",\"pack\":\"q\"}", "400"),
        ("POST", "/v1/pack-runs".to_owned(), "{\"pack\":\"p\",\"params\":{\"a\":1,\"a\":2}}", "400"),
        ("POST", "/v1/tokens".to_owned(), "{\"role\":\"viewer\",\"ttl_seconds\":1e400}", "400"),
        (
            "POST",
            "/v1/tokens".to_owned(),
            "{\"role\":\"viewer\",\"ttl_seconds\":18446744073709551615}",
            "400",
        ),
        ("POST", "/v1/join-tokens".to_owned(), "{\"labels\":{\"a\":\"1\",\"a\":\"2\"}}", "400"),
    ] {
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}",
            token.trim()
        );
        let answer = exchange(&url, request.as_bytes(), DEADLINE).await;
        let answer = String::from_utf8_lossy(&answer);
        let shown: String = target.chars().take(100).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{method} {shown}: {answer}");
        assert!(answer.contains("application/problem+json"), "{method} {shown}: {answer}");
    }
    let invalid = api.request(Method::POST, "/v1/pack-runs").header("content-type", "application/json");
    let answer = api.send(invalid.body(b"{\"pack\":\"\xff\"}".to_vec())).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    answered(&api).await;
    assert!(!coordinator.process().log().contains("panicked"));
}
