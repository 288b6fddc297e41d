//! A client of the REST API that knows JSON and nothing else: what it finds is what any client finds.

use std::sync::Arc;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::in_time;
use crate::stream::Events;

/// The API of a coordinator, with somebody's token.
#[derive(Debug, Clone)]
pub struct Api {
    url: Arc<str>,
    token: Arc<str>,
    client: reqwest::Client,
}

impl Api {
    /// The API at `url`, for the bearer of `token`.
    #[must_use]
    pub fn new(url: &str, token: &str) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap();
        Self { url: url.trim_end_matches('/').into(), token: token.into(), client }
    }

    /// A request, to be sent.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    /// The answer to a request.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Response {
        in_time("an answer", request.send()).await.unwrap()
    }

    /// The JSON at `path`.
    pub async fn get(&self, path: &str) -> Value {
        good(self.send(self.request(Method::GET, path)).await).await
    }

    /// The JSON that posting `body` to `path` gives.
    pub async fn post(&self, path: &str, body: &Value) -> Value {
        good(self.send(self.request(Method::POST, path).json(body)).await).await
    }

    /// Registers a pack file of YAML: the status and the answer.
    pub async fn register(&self, source: &str) -> (StatusCode, Value) {
        let request = self.request(Method::POST, "/v1/packs").header("content-type", "application/yaml");
        let answer = self.send(request.body(source.to_owned())).await;
        (answer.status(), answer.json().await.unwrap())
    }

    /// Starts a pack run; its id.
    pub async fn start(&self, pack: &str) -> String {
        let run = self.post("/v1/pack-runs", &json!({ "pack": pack })).await;
        run["id"].as_str().unwrap().to_owned()
    }

    /// Registers a pack, runs its newest version; the pack run's id.
    pub async fn run(&self, source: &str) -> String {
        let (status, pack) = self.register(source).await;
        assert!(status.is_success(), "{pack}");
        self.start(pack["name"].as_str().unwrap()).await
    }

    /// The pack run as it is.
    pub async fn pack_run(&self, id: &str) -> Value {
        self.get(&format!("/v1/pack-runs/{id}")).await
    }

    /// The events of a pack run, from the one behind `last` on.
    pub async fn stream(&self, id: &str, last: Option<&str>) -> Events {
        let mut request = self.request(Method::GET, &format!("/v1/pack-runs/{id}/stream"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = self.send(request).await;
        assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.text().await);
        Events::new(answer)
    }

    /// Waits for the end of a pack run, and returns it.
    pub async fn ended(&self, id: &str) -> Value {
        self.stream(id, None).await.to_end().await;
        self.pack_run(id).await
    }

    /// All entries of a pack run, read in pages of `limit`, when it has ended.
    pub async fn logs(&self, id: &str, limit: usize) -> Vec<Value> {
        self.pages(&format!("/v1/pack-runs/{id}/logs?limit={limit}")).await
    }

    /// All entries of the job run of a pack run with this key, when it has ended.
    pub async fn job_logs(&self, id: &str, key: &str) -> Vec<Value> {
        self.pages(&format!("/v1/pack-runs/{id}/logs?limit=10000&job={key}")).await
    }

    async fn pages(&self, path: &str) -> Vec<Value> {
        let (mut entries, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}{cursor}")).await;
            entries.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return entries,
            }
        }
    }
}

async fn good(answer: Response) -> Value {
    let (status, url) = (answer.status(), answer.url().clone());
    let text = in_time("a body", answer.text()).await.unwrap();
    assert!(status.is_success(), "{url}: {status} {text}");
    serde_json::from_str(&text).unwrap()
}

/// The job run of a pack run with this key.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn job<'r>(run: &'r Value, key: &str) -> &'r Value {
    let job_runs = run["job_runs"].as_array().unwrap();
    job_runs.iter().find(|job_run| job_run["key"] == key).unwrap_or_else(|| panic!("no job {key} in {run:#}"))
}

/// The states of a pack run and of its job runs, in order: `completed: a succeeded, b skipped`.
#[must_use]
pub fn states(run: &Value) -> String {
    let job_runs = run["job_runs"].as_array().unwrap();
    let jobs: Vec<_> = job_runs
        .iter()
        .map(|job| format!("{} {}", job["key"].as_str().unwrap(), job["state"].as_str().unwrap()))
        .collect();
    format!("{}: {}", run["state"].as_str().unwrap(), jobs.join(", "))
}

/// The texts of entries, in order.
#[must_use]
pub fn texts(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["text"].as_str().unwrap()).collect()
}
