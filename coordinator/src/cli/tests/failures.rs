//! What happens when the coordinator can't be reached, refuses, or is none.

use super::*;
use crate::cli::client::Client;
use crate::cli::settings::Connection;

#[tokio::test]
async fn a_coordinator_that_is_not_there_is_4_and_says_where_it_was_looked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let ran = Invocation::new(&["status", "--server", &url]).run().await;
    assert_eq!((ran.code, ran.out.as_str()), (4, ""));
    assert!(ran.err.starts_with(&format!("error: cannot reach the coordinator at {url}/: ")), "{}", ran.err);
    assert!(ran.err.contains("\nhint: is it running?"), "{}", ran.err);
}

#[tokio::test]
async fn every_refusal_has_its_code_and_its_words() {
    for (status, code) in [(400, 2), (401, 4), (403, 4), (404, 2), (409, 2), (422, 2), (429, 4), (503, 4)] {
        let coordinator = Scripted::start(move |_, _| problem(status, "these words")).await;
        for args in [&["status"][..], &["run", "build"], &["runs", "show", RUN], &["runs", "list"]] {
            let ran = coordinator.run(args).await;
            assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{status} {args:?}: {}", ran.err);
            assert!(ran.err.starts_with("error: these words\n"), "{}", ran.err);
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_none_is_4() {
    let ran = Scripted::start(|_, _| "<html>".into_response()).await.run(&["status"]).await;
    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("does --server name a packrun coordinator"), "{}", ran.err);
    let away =
        Scripted::start(|_, _| (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")]).into_response());
    assert_eq!(away.await.run(&["status"]).await.code, 4, "a redirection is not followed");
    let endless = Scripted::start(|asked, _| {
        let next = asked.target.len().to_string();
        axum::Json(json!({"items": vec![json!({}); 50_000], "next_cursor": next})).into_response()
    });
    let ran = endless.await.run(&["tokens", "list"]).await;
    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("more than 200000 items"), "{}", ran.err);
}

#[tokio::test]
async fn a_wrong_url_is_a_usage_error_and_https_takes_a_ca() {
    for (server, said) in [
        ("127.0.0.1:7080", "the server's URL"),
        ("ftp://host", "the server's URL"),
        ("http://", "the server's URL"),
        ("", "the server's URL"),
        ("https://host", "by its CA's certificate"),
    ] {
        let ran = Invocation::new(&["status", "--server", server]).run().await;
        assert_eq!(ran.code, 2, "{server}: {}", ran.err);
        assert!(ran.err.contains(said) && ran.err.contains("hint: "), "{server}: {}", ran.err);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "no pem").unwrap();
    let ca = file.path().display().to_string();
    let ran = Invocation::new(&["status", "--server", "https://host", "--ca", &ca]).run().await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("no certificate in PEM"), "{}", ran.err);
}

/// Answers the first `breaks` connections of its kind with nothing, then all with 200 and this body.
async fn breaking(breaks: usize, body: Value) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let mut requests = Vec::new();
        for count in 0.. {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                assert_ne!(connection.read_buf(&mut request).await.unwrap(), 0);
            }
            requests.push(String::from_utf8_lossy(&request).into_owned());
            if count == breaks {
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                connection.write_all((head + &body).as_bytes()).await.unwrap();
                break;
            }
        }
        requests
    });
    (url, served)
}

#[tokio::test]
async fn a_request_whose_connection_breaks_is_sent_again_with_the_same_key() {
    let (url, served) = breaking(2, pack_run("pending")).await;
    let ran = Invocation::new(&["run", "build", "--server", &url]).run().await;
    assert_eq!((ran.code, ran.out), (0, format!("{RUN}\n")), "{}", ran.err);
    let keys: Vec<_> = served
        .await
        .unwrap()
        .iter()
        .map(|request| request.lines().find(|line| line.starts_with("idempotency-key: ")).unwrap().to_owned())
        .collect();
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn what_would_make_a_second_secret_is_not_sent_again() {
    let (url, served) = breaking(9, json!({})).await;
    let ran = Invocation::new(&["tokens", "create", "--role", "viewer", "--server", &url]).run().await;
    served.abort();
    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("it may have been done"), "{}", ran.err);
}

#[tokio::test]
async fn a_token_is_not_sent_in_the_clear_without_a_word() {
    let exposes = |server: &str, token: Option<&str>| {
        let token = token.map(str::to_owned);
        let connection = Connection { server: server.to_owned(), token, ca: None };
        Client::new(&connection, "key").unwrap().exposes_token()
    };
    for local in ["http://127.0.0.1:7080", "http://localhost", "http://[::1]:7080/base/"] {
        assert!(!exposes(local, Some("t")), "{local}");
    }
    assert!(exposes("http://10.0.0.1:7080", Some("t")) && exposes("http://ci.example", Some("t")));
    assert!(!exposes("http://ci.example", None));
}
