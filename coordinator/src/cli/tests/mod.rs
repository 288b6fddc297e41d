//! Commands within the test process, against a coordinator that answers as a test says.

mod artifacts;
mod commands;
mod failures;
mod follow;
mod limits;
mod parse;
mod serve;
mod settings;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use packrun_protocol::time::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::world::{Interrupt, Screen, World};

/// A request that came.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    /// The path and the query, as they came.
    target: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// `GET /v1/status`.
    fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

/// A coordinator that answers as it was told.
struct Scripted {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scripted {
    /// Starts one; `answer` is also told how often this was asked before.
    async fn start(answer: impl Fn(&Asked, usize) -> Response + Send + Sync + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::<Asked>::new()));
        let (seen, answer) = (Arc::clone(&asked), Arc::new(answer));
        let router = Router::new().fallback(move |request: Request| {
            let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
                let (method, headers) = (parts.method.to_string(), parts.headers);
                let asked = Asked { method, target: parts.uri.to_string(), headers, body };
                let before = {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.push(asked.clone());
                    seen.iter().filter(|other| other.line() == asked.line()).count() - 1
                };
                answer(&asked, before)
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, asked }
    }

    /// One that answers these requests with these bodies, and others with 404.
    async fn with(answers: impl IntoIterator<Item = (impl Into<String>, Value)>) -> Self {
        let answers: BTreeMap<String, Value> =
            answers.into_iter().map(|(line, body)| (line.into(), body)).collect();
        Self::start(move |asked, _| match answers.get(&asked.line()) {
            Some(body) => axum::Json(body).into_response(),
            None => problem(404, &format!("nothing at {}", asked.line())),
        })
        .await
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn run(&self, args: &[&str]) -> Ran {
        Invocation::new(args).variable("PACKRUN_SERVER", &self.url).run().await
    }
}

fn problem(status: u16, detail: &str) -> Response {
    let body =
        json!({"type": "urn:packrun:problem:test", "title": "test", "status": status, "detail": detail});
    let mut response = (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response();
    response.headers_mut().insert("content-type", "application/problem+json".parse().unwrap());
    response
}

/// What a command did.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    code: u8,
    out: String,
    err: String,
}

/// A command to run.
struct Invocation {
    args: Vec<String>,
    variables: BTreeMap<String, String>,
    data_folders: Vec<PathBuf>,
    interrupt: CancellationToken,
    lull: Duration,
}

impl Invocation {
    fn new(args: &[&str]) -> Self {
        Self {
            args: std::iter::once("packrun").chain(args.iter().copied()).map(str::to_owned).collect(),
            variables: BTreeMap::new(),
            data_folders: Vec::new(),
            interrupt: CancellationToken::new(),
            lull: Duration::from_secs(60),
        }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    async fn run(self) -> Ran {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut world = World {
            variables: self.variables,
            data_folders: self.data_folders,
            out: Screen { writer: &mut out, terminal: false, color: false },
            err: Screen { writer: &mut err, terminal: false, color: false },
            now: "2026-01-31T12:00:00Z".parse::<Timestamp>().unwrap(),
            interrupt: Interrupt::Token(self.interrupt),
            lull: self.lull,
        };
        let code = super::run(self.args, &mut world).await;
        Ran { code, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
    }
}

const RUN: &str = "0193c5e2-0000-7000-8000-000000000001";
const JOB_RUN: &str = "0193c5e2-0000-7000-8000-00000000000a";
const LINT: &str = "0193c5e2-0000-7000-8000-00000000000b";
const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// A pack run of the jobs `compile` and `lint`, in this state.
fn pack_run(state: &str) -> Value {
    let job = |id: &str, key: &str, state: &str, exit: Option<u8>, reason: Option<&str>| {
        json!({
            "id": id, "pack_run": RUN, "key": key, "job": key, "matrix": {}, "state": state,
            "since": "2026-01-31T11:00:01Z", "reason": reason, "attempt": 1, "agent": "builder-1",
            "started_at": "2026-01-31T11:00:01Z", "ended_at": "2026-01-31T11:01:03Z",
            "duration_seconds": 62.0, "exit_code": exit, "signal": null, "reused_from": null,
        })
    };
    json!({
        "id": RUN, "pack": "build", "version": 2, "state": state, "canceled": false,
        "params": {"profile": "debug"}, "retry_of": null, "created_at": "2026-01-31T11:00:00Z",
        "since": "2026-01-31T11:01:03Z", "ended_at": "2026-01-31T11:01:03Z",
        "job_runs": [
            job(JOB_RUN, "compile", "succeeded", Some(0), None),
            job(LINT, "lint", "failed", Some(3), Some("exit code 3")),
        ],
    })
}

fn page(items: Value) -> Value {
    json!({"items": items, "next_cursor": null})
}
