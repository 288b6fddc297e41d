//! Servers that are no coordinators, or broken ones: the command line says so, ends with 4, and neither hangs nor grows.

use std::path::Path;
use std::process::{Output, Stdio};

use packrun_tests::in_time;
use packrun_tests::process::Coordinator;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::programs;

const RUN: &str = "0193c5e2-0000-7000-8000-000000000001";

/// How a server answers every request.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// With these bytes, then it closes.
    Bytes(&'static str),
    /// With the first, and then the second over and over.
    Endless(&'static str, &'static str),
}

/// A server on a port of its own; its URL.
async fn server(answer: Answer) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection, answer));
        }
    });
    url
}

/// Answers one request. A client that has had enough closes the connection, which is no concern of ours.
async fn serve(mut connection: TcpStream, answer: Answer) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if connection.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    match answer {
        Answer::Bytes(bytes) => {
            connection.write_all(bytes.as_bytes()).await?;
            connection.shutdown().await?;
            // What else was sent is read, so that the answer isn't reset on its way.
            tokio::io::copy(&mut connection, &mut tokio::io::sink()).await.map(drop)
        }
        Answer::Endless(head, rest) => {
            connection.write_all(head.as_bytes()).await?;
            let many = rest.repeat((64 << 10) / rest.len());
            loop {
                connection.write_all(many.as_bytes()).await?;
            }
        }
    }
}

async fn packrun(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(programs().packrun);
    command.args(arguments).stdin(Stdio::null()).env_clear().env("HOME", home.path());
    command.envs(variables.iter().copied()).kill_on_drop(true);
    in_time(&format!("packrun {arguments:?}"), command.output()).await.unwrap()
}

/// Runs a command that has to end with 4, and gives what it says.
async fn unusable(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = packrun(arguments, variables).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(4), &b""[..]), "{arguments:?}: {said}");
    assert!(said.contains("error: ") && !said.contains("panicked"), "{said}");
    said
}

#[tokio::test]
async fn an_answer_that_is_none_is_said_so() {
    let cases = [
        (
            Answer::Bytes(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\nnot json!",
            ),
            "none that this version of packrun knows",
        ),
        (
            Answer::Bytes(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 15\r\n\r\n<html>hi</html>",
            ),
            "it is not JSON",
        ),
        (
            Answer::Bytes(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{\"items\": 3}",
            ),
            "does --server name a packrun coordinator",
        ),
        (
            Answer::Bytes("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n"),
            "the coordinator answered 302 Found",
        ),
        (
            Answer::Bytes(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{\"items\":[",
            ),
            "cannot reach the coordinator at http://",
        ),
        (Answer::Bytes("SSH-2.0-OpenSSH_9.9\r\n"), "cannot reach the coordinator at http://"),
        (Answer::Bytes(""), "cannot reach the coordinator at http://"),
        (
            Answer::Bytes(
                "HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\noops",
            ),
            "the coordinator answered 500 Internal Server Error",
        ),
        (
            Answer::Bytes(
                "HTTP/1.1 401 Unauthorized\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nno",
            ),
            "--token-file",
        ),
        (
            Answer::Endless("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[", "\"x\","),
            "the answer has more than",
        ),
        (Answer::Endless("HTTP/1.1 503 Busy\r\n\r\n", "no "), "the coordinator answered 503"),
        (
            Answer::Endless("HTTP/1.1 200 OK\r\n", "x-more: of these\r\n"),
            "cannot reach the coordinator at http://",
        ),
    ];
    let mut running = JoinSet::new();
    for (answer, expected) in cases {
        let url = server(answer).await;
        for arguments in [
            &["status"][..],
            &["runs", "list"],
            &["runs", "show", RUN, "--output", "json"],
            &["run", "p", "--wait"],
        ] {
            let url = url.clone();
            running.spawn(async move {
                let said = unusable(arguments, &[("PACKRUN_SERVER", &url)]).await;
                assert!(said.contains(expected), "{answer:?} to {arguments:?}: {said}");
            });
        }
    }
    assert_eq!(running.join_all().await.len(), 4 * cases.len());
}

#[tokio::test]
async fn a_server_with_a_certificate_of_another_ca_is_told_nothing() {
    let mine = Coordinator::start_on(&programs(), "0.0.0.0:0").await;
    let other = Coordinator::start(&programs()).await;
    let port = mine.url().rsplit_once(':').unwrap().1.trim_end_matches('/').to_owned();
    let (https, http) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
    let ca = |coordinator: &Coordinator| coordinator.data().join("ca/ca.pem").display().to_string();
    let (right, wrong, token) = (ca(&mine), ca(&other), mine.token_file().display().to_string());
    let status = |server: &str, ca: &str| {
        ["status", "--server", server, "--ca", ca, "--token-file", &token].map(str::to_owned)
    };
    let run = async |arguments: [String; 7]| {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        unusable(&arguments, &[]).await
    };
    let good = packrun(&status(&https, &right).each_ref().map(String::as_str), &[]).await;
    assert!(good.status.success(), "{good:?}");
    let said = run(status(&https, &wrong)).await;
    assert!(said.contains("certificate"), "{said}");
    // Neither side speaks what the other does.
    run(status(&http, &right)).await;
    run(status(&other.url().replace("http:", "https:"), &wrong)).await;
    assert!(Path::new(&right).exists());
}
