//! What no honest client sends.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use packrun_protocol::id::{Digest, TokenId};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::stream::JoinSecret;
use reqwest::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Body, Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::site::{Answer, Site, send};
use crate::api::token::ApiToken;
use crate::api::types::{PackRun, Page};
use crate::api::{App, Limits, serve};
use crate::core::change::Role;

async fn post_text(site: &Site, path: &str, media_type: &str, body: impl Into<Body>) -> Answer {
    let request = site.request(Some(Role::Admin), Method::POST, path);
    send(request.header(CONTENT_TYPE, media_type).body(body)).await
}

#[tokio::test]
async fn what_is_no_token_that_holds_lets_nobody_in() {
    let site = Site::start().await;
    let good = site.token(Role::Admin);
    let stranger = ApiToken::generate().unwrap().to_string();
    let join =
        JoinToken { ca: Digest::of(b""), id: TokenId::generate(), secret: JoinSecret([1; 32]) }.to_string();
    let mut values: Vec<Vec<u8>> =
        ["", "Bearer", "Bearer ", "Bearer  ", "Basic YTpi", "Bearer packrun-", "Bearer packrun-AAAA", good]
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect();
    values.extend([
        format!("Bearer {stranger}").into_bytes(),
        format!("Bearer {join}").into_bytes(),
        format!("Bearer {}", &good[..good.len() - 1]).into_bytes(),
        format!("Bearer {good}x").into_bytes(),
        format!("Bearer {good} {good}").into_bytes(),
        format!("Bearer packrun-{}", "A".repeat(20_000)).into_bytes(),
        b"Bearer \xff\xfe".to_vec(),
    ]);
    for value in values {
        let request = site.request(None, Method::GET, "/v1/packs").header(AUTHORIZATION, value.clone());
        let answer = send(request).await;
        let shown = String::from_utf8_lossy(&value).into_owned();
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (StatusCode::UNAUTHORIZED, "unauthenticated"),
            "{shown}"
        );
        assert!(!String::from_utf8_lossy(&answer.body).contains(&stranger), "a secret is not repeated");
    }
    let twice = site.request(Some(Role::Admin), Method::GET, "/v1/packs").bearer_auth(good);
    assert_eq!(send(twice).await.status, StatusCode::UNAUTHORIZED);
    let lower = site.request(None, Method::GET, "/v1/packs").header(AUTHORIZATION, format!("bearer {good}"));
    assert_eq!(send(lower).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_over_its_limit_is_answered_and_the_connection_lives() {
    let site = Site::start().await;
    let pack = "#".repeat(site.app.limits.packs.file_bytes + 1);
    for media_type in ["application/yaml", "text/plain"] {
        let answer = post_text(&site, "/v1/packs", media_type, pack.clone()).await;
        assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "too-large"));
    }
    let at_limit = post_text(&site, "/v1/packs", "application/yaml", pack[1..].to_owned()).await;
    assert_eq!(at_limit.problem(), "invalid-pack", "a file of nothing but comments, at the limit");
    let json = format!("{{\"pack\":\"{}\"}}", "p".repeat(site.app.limits.json_bytes));
    for path in ["/v1/pack-runs", "/v1/tokens", "/v1/join-tokens"] {
        assert_eq!(
            post_text(&site, path, "application/json", json.clone()).await.problem(),
            "too-large",
            "{path}"
        );
    }
    // Nobody knows how long this one is, its sender neither.
    let pieces = std::iter::repeat_n(Bytes::from(vec![b'#'; 1 << 20]), 20).map(Ok::<_, std::io::Error>);
    let body = Body::wrap_stream(futures_util::stream::iter(pieces));
    assert_eq!(post_text(&site, "/v1/packs", "application/yaml", body).await.problem(), "too-large");
}

#[tokio::test]
async fn a_body_without_end_is_not_read_for_ever() {
    let site = Site::start().await;
    let pieces = std::iter::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b'#'; 1 << 20])));
    let body = Body::wrap_stream(futures_util::stream::iter(pieces));
    let request = site.request(Some(Role::Admin), Method::POST, "/v1/packs");
    // It depends on who is faster whether the sender sees the answer or the end of the connection.
    if let Ok(answer) = request.header(CONTENT_TYPE, "application/yaml").body(body).send().await {
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    assert_eq!(site.get("/v1/packs").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_is_not_what_is_asked_for_is_refused() {
    let site = Site::start().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let nested = format!("{{\"pack\":\"p\",\"params\":{{\"a\":{deep}}}}}");
    for body in [
        "",
        "{",
        "null",
        "[]",
        "{}",
        "{\"pack\":1}",
        "{\"pack\":\"p\",\"other\":1}",
        "{\"pack\":\"p\",\"version\":-1}",
        "{\"pack\":\"p\",\"version\":4294967296}",
        "{\"pack\":\"p\",\"params\":[]}",
        "{\"pack\":\"P P\"}",
        "{\"pack\":\"\"}",
        "[\"p\"]",
        "{\"pack\":\"p\",\"pack\":\"q\"}",
        "{\"pack\":\"p\",\"params\":{\"a\":1,\"a\":2}}",
        "{\"pack\":\"p\",\"version\":1.5}",
        &nested,
        &deep,
        "\u{0}",
    ] {
        let answer = post_text(&site, "/v1/pack-runs", "application/json", body.to_owned()).await;
        let shown: String = body.chars().take(60).collect();
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (StatusCode::BAD_REQUEST, "invalid-request"),
            "{shown}"
        );
    }
    let not_text = post_text(&site, "/v1/pack-runs", "application/json", vec![b'"', 0xff, b'"']).await;
    assert_eq!(not_text.problem(), "invalid-request");
    for media_type in ["text/plain", "application/yaml", "application/jsonx", ""] {
        let answer = post_text(&site, "/v1/pack-runs", media_type, "{\"pack\":\"p\"}").await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{media_type}");
        assert_eq!(answer.problem(), "unsupported-media-type", "{media_type}");
    }
    assert_eq!(site.get("/v1/pack-runs").await.json::<Page<PackRun>>().items.len(), 0);
}

#[tokio::test]
async fn queries_cursors_and_ids_are_checked() {
    let site = Site::start().await;
    site.register("name: p\njobs:\n  a: { run: 'true' }\n").await;
    let lists = ["/v1/pack-runs", "/v1/packs", "/v1/packs/p/versions", "/v1/agents", "/v1/tokens"];
    let ask = |path: String| send(site.request(Some(Role::Admin), Method::GET, &path));
    for list in lists {
        for query in [
            "limit=0",
            "limit=501",
            "limit=-1",
            "limit=x",
            "limit=",
            "limit=1&limit=2",
            "other=1",
            "limit=%ff",
        ] {
            assert_eq!(ask(format!("{list}?{query}")).await.problem(), "invalid-request", "{list}?{query}");
        }
        for cursor in ["", "x", "!", "AAAA", "AgAA", "%00", &"A".repeat(5000)] {
            let answer = ask(format!("{list}?cursor={cursor}")).await;
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (StatusCode::BAD_REQUEST, "invalid-cursor"),
                "{list} {cursor}"
            );
        }
    }
    for path in [
        "/v1/pack-runs?state=done",
        "/v1/pack-runs?pack=No%20Pack",
        "/v1/pack-runs/1",
        "/v1/pack-runs/%ff",
        "/v1/pack-runs/0123456789abcdef",
        "/v1/runs/x",
        "/v1/runs/%00",
        "/v1/packs/No%20Pack",
        "/v1/packs/p/versions/x",
        "/v1/packs/p/versions/-1",
        "/v1/packs/p/versions/4294967296",
        "/v1/packs/p?format=xml",
        "/v1/packs/p?form=source",
    ] {
        let answer = ask(path.to_owned()).await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (StatusCode::BAD_REQUEST, "invalid-request"),
            "{path}"
        );
    }
    let long = "x".repeat(10_000);
    for path in [format!("/v1/packs/{long}"), format!("/v1/agents/{long}"), format!("/v1/runs/{long}")] {
        let answer = ask(path).await;
        assert_eq!(answer.problem(), "invalid-request");
        assert!(answer.body.len() < 2000, "what was asked is not repeated at length");
    }
}

#[tokio::test]
async fn what_is_not_there_and_methods_that_are_not_are_problems_too() {
    let site = Site::start().await;
    for path in ["/v2", "/v1", "/v1/pack-runs/", "/v1/nothing", "/..", "/v1/packs/a/b/c/d"] {
        for bearer in [None, Some(Role::Admin)] {
            let answer = send(site.request(bearer, Method::GET, path)).await;
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (StatusCode::NOT_FOUND, "not-found"),
                "{path}"
            );
        }
    }
    let answer = send(site.request(Some(Role::Admin), Method::DELETE, "/v1/packs")).await;
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed")
    );
    let mut allowed: Vec<_> = answer.header(ALLOW).split(',').map(str::trim).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    let head = send(site.request(Some(Role::Viewer), Method::HEAD, "/v1/packs")).await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    assert_eq!(site.post("/healthz", &json!({})).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_connection_more_than_there_may_be_is_closed() {
    let site = Site::start().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits { connections: 1, ..site.app.limits };
    let served = tokio::spawn(serve(listener, None, App { limits, ..site.app.clone() }));
    let ask = async || {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // Who is turned away may find the connection reset at any of these.
        let _ = connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let mut start = [0; 12];
        connection.read_exact(&mut start).await.ok().map(|_| (connection, start))
    };
    let (first, start) = ask().await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    assert!(ask().await.is_none());
    drop(first);
    let next = async {
        while ask().await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), next).await.expect("its place is free again");
    site.app.stop.cancel();
    served.await.unwrap().unwrap();
}
